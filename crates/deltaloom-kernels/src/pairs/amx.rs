//! Tile products. Weights are read as they lie, sixteen rows at a time, and two tiles of rows meet
//! two tiles of columns.
#![expect(unsafe_code, reason = "instructions without functions")]

use std::arch::asm;

use super::{Activations, BLOCK, BLOCK_BYTES, Line, ROWS, ROWS_AT_ONCE, TILE, WEIGHT, add_parts, block};

/// Bytes of a sum.
const SUM: usize = 4;
/// From so many uses on, rows that are not aligned are copied first: they load at half the speed.
const MOST_UNALIGNED: usize = 6;

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Tiles 0, 1: sums of the first and the second rows with the first columns; 2, 3: with the second
/// columns; 4, 5: weights; 6, 7: columns.
impl Shapes {
    fn new(columns: [usize; 2]) -> Self {
        let [first, second] =
            columns.map(|count| u16::try_from(count.max(1) * SUM).expect("at most 16 columns"));
        let weights = 64;
        let mut row_bytes = [0; 16];
        row_bytes[..8].copy_from_slice(&[first, first, second, second, weights, weights, first, second]);
        let mut rows = [0; 16];
        rows[..8].fill(16);
        Self { palette: 1, start: 0, reserved: [0; 14], row_bytes, rows }
    }
}

/// A block of weights, as two tiles.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Block([[[u8; BLOCK_BYTES]; ROWS]; 2]);

/// Up to 32 rows: blocks as they lie, then copies of the others, with zeros for what is missing.
struct Rows<'a> {
    weights: &'a [u8],
    row_bytes: usize,
    in_place: usize,
    copied: &'a [Block],
}

impl<'a> Rows<'a> {
    /// `uses` tells how often they will be read; `copied` is memory to reuse.
    fn new(weights: &'a [u8], cols: usize, uses: usize, copied: &'a mut Vec<Block>) -> Self {
        let row_bytes = cols * WEIGHT;
        let is_aligned =
            weights.as_ptr().align_offset(BLOCK_BYTES) == 0 && row_bytes.is_multiple_of(BLOCK_BYTES);
        let is_whole = weights.len() == ROWS_AT_ONCE * row_bytes;
        let in_place = if is_whole && (is_aligned || uses < MOST_UNALIGNED) { cols / BLOCK } else { 0 };
        let (first, last) = weights.split_at(weights.len().min(ROWS * row_bytes));
        copied.clear();
        let blocks = in_place..cols.div_ceil(BLOCK);
        copied.extend(blocks.map(|i| Block([first, last].map(|weights| block(weights, cols, i * BLOCK)))));
        Self { weights, row_bytes, in_place, copied }
    }
}

/// See [`super::products`]; `words` are the columns in the layout for tiles.
pub(super) fn products(weights: &[u8], x: &Activations, words: &[Line], sums: &mut Vec<f32>, y: &mut [f32]) {
    let (columns, padded) = (x.columns(), x.padded());
    assert!(words.len() == columns * padded / 2 / TILE);
    sums.resize(ROWS_AT_ONCE * columns, 0.0);
    let (mut shapes, mut copied) = (None, Vec::new());
    let rows = weights.chunks(ROWS_AT_ONCE * x.cols * WEIGHT).zip(y.chunks_mut(ROWS_AT_ONCE * x.tokens));
    for (weights, y) in rows {
        let rows = Rows::new(weights, x.cols, columns.div_ceil(2 * TILE), &mut copied);
        let mut fill = |sums: &mut [f32]| {
            for first in (0..columns).step_by(2 * TILE) {
                let counts = [TILE.min(columns - first), TILE.min(columns.saturating_sub(first + TILE))];
                if shapes != Some(counts) {
                    shapes = Some(counts);
                    // SAFETY: this layout is only made if `isa` has detected tiles.
                    unsafe { configure(&Shapes::new(counts)) };
                }
                let words = &words[first * padded / 2 / TILE..];
                // SAFETY: tiles have the shapes of these groups, which are there in whole.
                unsafe { multiply(&rows, words, padded, counts, &mut sums[first..], columns) };
            }
        };
        if y.len() == sums.len() {
            fill(y);
            add_parts(y, &[]);
            continue;
        }
        fill(sums);
        for (y, sums) in y.chunks_exact_mut(x.tokens).zip(sums.chunks_exact(columns)) {
            y.copy_from_slice(&sums[..x.tokens]);
            add_parts(y, &sums[x.tokens..]);
        }
    }
    // SAFETY: as above. Without tiles in use, the system has less to save.
    unsafe { asm!("tilerelease", options(nostack, preserves_flags)) };
}

/// # Safety
/// Needs tiles.
unsafe fn configure(shapes: &Shapes) {
    // SAFETY: the instruction reads the 64 bytes of `shapes`.
    unsafe { asm!("ldtilecfg [{}]", in(reg) shapes, options(nostack, preserves_flags, readonly)) };
}

/// Steps and places that do not fit registers.
#[repr(C)]
struct Steps {
    /// Bytes of a block of the first and of the second columns.
    columns: [usize; 2],
    copied: *const u8,
    copied_count: usize,
    /// Sums of the first and of the last sixteen rows.
    sums: [*mut f32; 2],
}

/// Adds the products of a block of weights at `a` and `b` with two groups of columns.
macro_rules! two_groups {
    () => {
        concat!(
            "tileloadd tmm4, [{a} + {stride}]\n",
            "tileloadd tmm6, [{x} + {x_stride}]\n",
            "tileloadd tmm5, [{b} + {stride}]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm1, tmm5, tmm6\n",
            "tileloadd tmm7, [{z} + {z_stride}]\n",
            "tdpbf16ps tmm2, tmm4, tmm7\n",
            "tdpbf16ps tmm3, tmm5, tmm7\n",
            "add {x}, [{steps}]\n",
            "add {z}, [{steps} + 8]\n",
        )
    };
}

/// The same with one group.
macro_rules! one_group {
    () => {
        concat!(
            "tileloadd tmm4, [{a} + {stride}]\n",
            "tileloadd tmm6, [{x} + {x_stride}]\n",
            "tileloadd tmm5, [{b} + {stride}]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm1, tmm5, tmm6\n",
            "add {x}, [{steps}]\n",
        )
    };
}

/// All blocks in place, then all copies. It needs the labels 2 to 5.
macro_rules! all_blocks {
    ($block:ident) => {
        concat!(
            "test {n}, {n}\n",
            "jz 3f\n",
            "2:\n",
            $block!(),
            "add {a}, 64\n",
            "add {b}, 64\n",
            "dec {n}\n",
            "jnz 2b\n",
            "3:\n",
            "mov {n}, [{steps} + 24]\n",
            "test {n}, {n}\n",
            "jz 5f\n",
            "mov {a}, [{steps} + 16]\n",
            "lea {b}, [{a} + 1024]\n",
            "mov {stride}, 64\n",
            "4:\n",
            $block!(),
            "add {a}, 2048\n",
            "add {b}, 2048\n",
            "dec {n}\n",
            "jnz 4b\n",
            "5:\n",
            "mov {a}, [{steps} + 32]\n",
            "mov {b}, [{steps} + 40]\n",
        )
    };
}

/// Products of rows with one or two groups of columns, of `counts` each. Sums of a row are
/// `columns` apart.
///
/// # Safety
/// Needs tiles of these shapes, two groups of `words`, and 32 rows of sums from the first column
/// on.
unsafe fn multiply(
    rows: &Rows<'_>,
    words: &[Line],
    padded: usize,
    counts: [usize; 2],
    sums: &mut [f32],
    columns: usize,
) {
    assert!(words.len() >= (counts[0] + counts[1]) * padded / 2 / TILE);
    assert!(sums.len() >= (ROWS_AT_ONCE - 1) * columns + counts[0] + counts[1]);
    let last = sums.as_mut_ptr().wrapping_add(ROWS * columns);
    let steps = Steps {
        columns: counts.map(|count| TILE * count * SUM),
        copied: rows.copied.as_ptr().cast(),
        copied_count: rows.copied.len(),
        sums: [sums.as_mut_ptr(), last],
    };
    let first = rows.weights.as_ptr();
    let second = first.wrapping_add(ROWS * rows.row_bytes);
    let (x, z) = (words.as_ptr(), words.as_ptr().wrapping_add(counts[0] * padded / 2 / TILE));
    let sum_stride = columns * SUM;
    if counts[1] == 0 {
        // SAFETY: the lengths were compared. Rows are there in whole where they are read in place.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                all_blocks!(one_group),
                "tilestored [{a} + {sum_stride}], tmm0",
                "tilestored [{b} + {sum_stride}], tmm1",
                a = inout(reg) first => _,
                b = inout(reg) second => _,
                x = inout(reg) x => _,
                n = inout(reg) rows.in_place => _,
                stride = inout(reg) rows.row_bytes => _,
                x_stride = in(reg) counts[0] * SUM,
                sum_stride = in(reg) sum_stride,
                steps = in(reg) &raw const steps,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
                options(nostack),
            );
        }
        return;
    }
    // SAFETY: as above.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            all_blocks!(two_groups),
            "tilestored [{a} + {sum_stride}], tmm0",
            "tilestored [{b} + {sum_stride}], tmm1",
            "tilestored [{a} + {sum_stride} + 64], tmm2",
            "tilestored [{b} + {sum_stride} + 64], tmm3",
            a = inout(reg) first => _,
            b = inout(reg) second => _,
            x = inout(reg) x => _,
            z = inout(reg) z => _,
            n = inout(reg) rows.in_place => _,
            stride = inout(reg) rows.row_bytes => _,
            x_stride = in(reg) counts[0] * SUM,
            z_stride = in(reg) counts[1] * SUM,
            sum_stride = in(reg) sum_stride,
            steps = in(reg) &raw const steps,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
