//! Products of rows of BF16 weights with activations in pair order: the order in which the tile
//! products of Intel's AMX add. They have the same bits for any number of rows, tokens or threads
//! and on every instruction set. docs/arithmetic.md defines the order.
//!
//! An activation in FP32 is the sum of up to three BF16 parts. The products of each part are added
//! in pair order, and the sums of the parts from the smallest to the largest.
//!
//! Which rows are patched, and where each is multiplied, is decided above.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod lanes;
mod plain;

use crate::isa::per_isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::{Isa, isa};
use crate::sparse::transpose;

/// Columns whose products are added before the next ones: even and odd ones on their own.
const BLOCK: usize = 32;
/// Rows that are best multiplied in one call, or a multiple of them.
pub const ROWS_AT_ONCE: usize = 2 * ROWS;
/// Rows that are multiplied at a time: lanes of a vector, or rows of a tile.
const ROWS: usize = 16;
/// How far ahead weights are asked for, in groups of [`ROWS`] rows: line by line as they lie, so
/// that the processor sees a stream. It does not see one in rows side by side.
#[cfg(target_arch = "x86_64")]
const GROUPS_AHEAD: usize = 3;
/// Bytes of a weight.
const WEIGHT: usize = 2;
/// Bytes of the weights of a row in a block.
const BLOCK_BYTES: usize = BLOCK * WEIGHT;
/// The most columns of activations in a tile.
#[cfg(target_arch = "x86_64")]
const TILE: usize = 16;

/// Smallest parts of activations: those below count as 0. With weights of at least
/// [`LEAST_WEIGHT`], all sums are multiples of 2^-126, so that none is subnormal.
const LEAST_PART: f32 = 1.0 / (1u64 << 63) as f32 / 2.0;
/// The upper half of an FP32 number: 2^-48.
const LEAST_WEIGHT: u16 = (127 - 48) << 7;

/// How many BF16 parts stand for an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Parts {
    /// The activation rounded to BF16.
    One,
    /// An error of about 2^-17.
    Two,
    /// All bits of an FP32 number, unless it is tiny.
    #[default]
    Three,
}

impl Parts {
    /// Their number.
    #[must_use]
    pub fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Three => 3,
        }
    }
}

/// Activations, split into parts and laid out for the instruction set in use. A column is one part
/// of one token: first the largest parts of all tokens, then the others.
#[derive(Debug, Clone)]
pub struct Activations {
    tokens: usize,
    /// Length of a token.
    cols: usize,
    parts: Parts,
    layout: Layout,
    /// Whether they need no fused addition; see [`lanes`].
    is_ordinary: bool,
}

#[derive(Debug, Clone)]
enum Layout {
    /// Column by column, each filled up to whole blocks.
    Numbers(Vec<f32>),
    /// For tiles: groups of up to [`TILE`] columns. In a group, words of two BF16 numbers follow
    /// one another, each for all columns.
    #[cfg(target_arch = "x86_64")]
    Words(Vec<Line>),
}

/// A row of a tile. Loads of lines that are not aligned take twice as long.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; TILE]);

impl Activations {
    /// Splits `x`, [tokens, cols].
    ///
    /// # Panics
    /// If `x` is not whole tokens.
    #[must_use]
    pub fn new(x: &[f32], cols: usize, parts: Parts) -> Self {
        assert!(cols > 0 && x.len().is_multiple_of(cols));
        let tokens = x.len() / cols;
        let padded = cols.next_multiple_of(BLOCK);
        let mut numbers = vec![0.0; parts.count() * tokens * padded];
        let mut rest = x.to_vec();
        for numbers in numbers.chunks_exact_mut((tokens * padded).max(1)) {
            for (rest, part) in rest.chunks_exact_mut(cols).zip(numbers.chunks_exact_mut(padded)) {
                take_part(rest, &mut part[..cols]);
            }
        }
        let is_ordinary = lanes::are_ordinary(&numbers);
        #[cfg(target_arch = "x86_64")]
        let layout = match isa() {
            Isa::Amx => Layout::Words(avx512::in_words(&numbers, padded)),
            _ => Layout::Numbers(numbers),
        };
        #[cfg(not(target_arch = "x86_64"))]
        let layout = Layout::Numbers(numbers);
        Self { tokens, cols, parts, layout, is_ordinary }
    }

    /// Number of tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    fn columns(&self) -> usize {
        self.tokens * self.parts.count()
    }

    /// Length of a column in its layout.
    fn padded(&self) -> usize {
        self.cols.next_multiple_of(BLOCK)
    }
}

per_isa! {
    fn take_part(rest: &mut [f32], part: &mut [f32]) = take_part_body;
}

/// Takes the nearest BF16 numbers out of `rest`.
#[inline(always)]
fn take_part_body(rest: &mut [f32], part: &mut [f32]) {
    for (rest, part) in rest.iter_mut().zip(part) {
        let nearest = rounded(*rest);
        // Nothing is left of an infinite part, and a tiny part counts as 0.
        let left = *rest - nearest;
        *rest = if nearest.abs() < f32::INFINITY { left } else { 0.0 };
        *part = if nearest.abs() < LEAST_PART { 0.0 } else { nearest };
    }
}

/// The nearest BF16 number, of two the even one.
#[inline(always)]
fn rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    if x.is_nan() { f32::NAN } else { f32::from_bits(nearest) }
}

/// Computes `y` [rows, tokens]: rows of BF16 weights times activations. `sums` is memory to reuse.
///
/// # Panics
/// Unless `weights` are as many rows as `y` has.
pub fn products(weights: &[u8], x: &Activations, sums: &mut Vec<f32>, y: &mut [f32]) {
    let row_bytes = x.cols * WEIGHT;
    assert!(weights.len().is_multiple_of(row_bytes));
    assert!(weights.len() / row_bytes * x.tokens == y.len());
    if y.is_empty() {
        return;
    }
    match &x.layout {
        #[cfg(target_arch = "x86_64")]
        Layout::Words(words) => amx::products(weights, x, words, sums, y),
        Layout::Numbers(numbers) => {
            let body = body();
            let rows = weights.chunks(ROWS * row_bytes).zip(y.chunks_mut(ROWS * x.tokens));
            for (weights, y) in rows {
                sums.clear();
                sums.resize(x.columns() * ROWS, 0.0);
                if !body(weights, x, numbers, sums) {
                    plain::products(weights, x, numbers, sums);
                }
                let (of_first, of_others) = sums.split_at_mut(x.tokens * ROWS);
                add_parts(of_first, of_others);
                turn(of_first, x.tokens, y);
            }
        }
    }
}

/// Adds the products of up to [`ROWS`] rows with every column to `sums`, [columns, ROWS], which are
/// 0. Returns whether the sums hold: a body that does not flush subnormal numbers must not see
/// weights below [`LEAST_WEIGHT`].
type Body = fn(&[u8], &Activations, &[f32], &mut [f32]) -> bool;

/// What multiplies on the instruction set in use.
fn body() -> Body {
    #[cfg(target_arch = "x86_64")]
    match isa() {
        Isa::Avx512 | Isa::Amx => return avx512::add_products,
        Isa::Avx2 => return avx2::add_products,
        Isa::Scalar => {}
    }
    lanes::add_products
}

per_isa! {
    fn add_parts(first: &mut [f32], others: &[f32]) = add_parts_body;
}

/// Adds the sums of the parts, the smallest first.
#[inline(always)]
fn add_parts_body(first: &mut [f32], others: &[f32]) {
    let (second, third) = others.split_at(others.len().min(first.len()));
    let nan_or = |sum: f32| if sum.is_nan() { f32::NAN } else { sum };
    // Instruction sets differ in which NaN they give.
    match (second.is_empty(), third.is_empty()) {
        (true, _) => first.iter_mut().for_each(|a| *a = nan_or(*a)),
        (_, true) => first.iter_mut().zip(second).for_each(|(a, b)| *a = nan_or(*b + *a)),
        _ => {
            let others = second.iter().zip(third);
            first.iter_mut().zip(others).for_each(|(a, (b, c))| *a = nan_or(*c + *b + *a));
        }
    }
}

/// Writes sums, [tokens, ROWS], as products, [rows, tokens].
fn turn(sums: &[f32], tokens: usize, y: &mut [f32]) {
    let rows = y.len() / tokens;
    if rows == ROWS {
        return transpose(sums, tokens, ROWS, y);
    }
    for (token, sums) in sums.chunks_exact(ROWS).enumerate() {
        for (row, sum) in sums[..rows].iter().enumerate() {
            y[row * tokens + token] = *sum;
        }
    }
}

/// A block of weights as numbers, [columns, rows].
#[repr(align(64))]
struct Turned([[f32; ROWS]; BLOCK]);

impl Turned {
    fn new() -> Self {
        Self([[0.0; ROWS]; BLOCK])
    }
}

/// The weights of up to [`ROWS`] rows in a block from column `at` on. Missing ones are 0.
fn block(weights: &[u8], cols: usize, at: usize) -> [[u8; BLOCK_BYTES]; ROWS] {
    let mut block = [[0; BLOCK_BYTES]; ROWS];
    let bytes = at * WEIGHT..cols.min(at + BLOCK) * WEIGHT;
    for (block, row) in block.iter_mut().zip(weights.chunks_exact(cols * WEIGHT)) {
        let row = &row[bytes.clone()];
        match row.first_chunk() {
            Some(whole) => *block = *whole,
            None => block[..row.len()].copy_from_slice(row),
        }
    }
    block
}

#[cfg(test)]
mod tests;
