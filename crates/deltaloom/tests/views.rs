//! Tensors that are pieces of tensors of a base: with other rows, fused, split, stacked, turned,
//! re-cut, in another order, or of another dtype or shape.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::*;
use deltaloom::PackReport;

const ROWS: usize = 96;
const COLS: usize = 128;

/// BF16 elements of a matrix.
type Matrix = Vec<[u8; 2]>;

fn matrix(seed: u64) -> Matrix {
    matrix_of(seed, ROWS, COLS)
}

fn matrix_of(seed: u64, rows: usize, cols: usize) -> Matrix {
    bf16_bytes(&Random::new(seed).weights(rows * cols)).as_chunks().0.to_vec()
}

/// Some elements move by up to two ULPs, as in training.
fn trained(matrix: &Matrix) -> Matrix {
    let mut moves = Random::new(matrix.len() as u64 + 7);
    let step = |_| if moves.below(100) < 20 { moves.around_zero(2) } else { 0 };
    stepped(matrix.as_flattened(), 2, step).as_chunks().0.to_vec()
}

fn transposed(matrix: &Matrix, cols: usize) -> Matrix {
    let rows = matrix.len() / cols;
    (0..cols).flat_map(|column| (0..rows).map(move |row| matrix[row * cols + column])).collect()
}

fn bf16(name: &str, shape: &[usize], matrix: &Matrix) -> Tensor {
    let shape: Vec<u64> = shape.iter().map(|dim| *dim as u64).collect();
    tensor(name, "BF16", &shape, matrix.as_flattened().to_vec())
}

/// Packs with small chunks, restores, and checks that every tensor costs at most `share` of itself.
fn view_of(tuned: &[Tensor], base: &[Tensor], share: f64) -> PackReport {
    let (tuned, base) = (safetensors(tuned), safetensors(base));
    for chunk_log2 in [10, 17] {
        let (container, report) = pack_with(&tuned, &[&base], &options().with_chunk_log2(chunk_log2));
        assert!(unpack(&container, &[&base]).unwrap() == tuned);
        for row in &report.tensors {
            let most = row.original_bytes as f64 * share + 64.0;
            assert!((row.packed_bytes as f64) < most, "{}: {} bytes", row.name, row.packed_bytes);
        }
        assert_parts(&container, &base, &tuned);
        if chunk_log2 == 17 {
            return report;
        }
    }
    unreachable!("the last size of chunks returns")
}

fn kinds(report: &PackReport) -> Vec<&str> {
    report.tensors.iter().map(|row| row.predictor).collect()
}

#[test]
fn rows_may_be_added_removed_and_moved() {
    let old = matrix(1);
    let base = [bf16("embed", &[ROWS, COLS], &old)];
    let grown = [trained(&old), matrix_of(2, 3, COLS)].concat();
    let report = view_of(&[bf16("embed", &[ROWS + 3, COLS], &grown)], &base, 0.35);
    assert_eq!(kinds(&report), ["view"]);
    assert_eq!(report.tensors[0].reference.as_deref(), Some("embed"));
    let padded = [old.clone(), vec![[0; 2]; 5 * COLS]].concat();
    view_of(&[bf16("embed", &[ROWS + 5, COLS], &padded)], &base, 0.0);
    let fewer = trained(&old[..70 * COLS].to_vec());
    view_of(&[bf16("embed", &[70, COLS], &fewer)], &base, 0.3);
    let kept = (0..ROWS).filter(|row| row % 3 != 1 && row % 7 != 2);
    let trimmed: Matrix = kept.flat_map(|row| old[row * COLS..(row + 1) * COLS].to_vec()).collect();
    view_of(&[bf16("embed", &[trimmed.len() / COLS, COLS], &trimmed)], &base, 0.0);
}

#[test]
fn matrices_may_be_fused_split_and_stacked() {
    let (q, k, v) = (matrix(1), matrix(2), matrix(3));
    let apart = |of: &dyn Fn(&Matrix) -> Matrix| {
        [("q", &q), ("k", &k), ("v", &v)].map(|(name, m)| bf16(name, &[ROWS, COLS], &of(m)))
    };
    let fused =
        |of: &dyn Fn(&Matrix) -> Matrix| [bf16("qkv", &[3 * ROWS, COLS], &[of(&q), of(&k), of(&v)].concat())];
    let stacked = |of: &dyn Fn(&Matrix) -> Matrix| {
        [bf16("experts", &[3, COLS, ROWS], &[&q, &k, &v].map(|m| transposed(&of(m), COLS)).concat())]
    };
    let columns = |of: &dyn Fn(&Matrix) -> Matrix| {
        let parts = [&q, &k, &v].map(|m| transposed(&of(m), COLS));
        let rows =
            (0..COLS).flat_map(|row| parts.each_ref().map(|m| m[row * ROWS..(row + 1) * ROWS].to_vec()));
        [bf16("c_attn", &[COLS, 3 * ROWS], &rows.flatten().collect())]
    };
    let same = |m: &Matrix| m.clone();
    for to in [&fused as &dyn Fn(&dyn Fn(&Matrix) -> Matrix) -> [Tensor; 1], &stacked, &columns] {
        assert_eq!(kinds(&view_of(&to(&trained), &apart(&same), 0.3)), ["view"]);
        assert_eq!(kinds(&view_of(&apart(&trained), &to(&same), 0.3)), ["view"; 3]);
    }
}

#[test]
fn matrices_may_be_transposed_and_reshaped() {
    for (rows, cols) in [(ROWS, COLS), (96, 96)] {
        let old = matrix_of(4, rows, cols);
        let turned = transposed(&trained(&old), cols);
        let base = [bf16("w", &[rows, cols], &old)];
        assert_eq!(kinds(&view_of(&[bf16("w", &[cols, rows], &turned)], &base, 0.3)), ["view"]);
        let report = view_of(&[bf16("w", &[rows, cols, 1, 1], &old)], &base, 0.0);
        assert_eq!(kinds(&report), ["view"]);
        view_of(&[bf16("other", &[rows * cols], &trained(&old))], &base, 0.3);
    }
}

#[test]
fn rows_of_heads_may_be_interleaved() {
    let old = matrix(5);
    // Two halves of each head of 16 rows become pairs.
    let place = |row: usize| row / 16 * 16 + row % 2 * 8 + row % 16 / 2;
    let moved = (0..ROWS).flat_map(|row| old[place(row) * COLS..(place(row) + 1) * COLS].to_vec()).collect();
    let base = [bf16("q", &[ROWS, COLS], &old)];
    view_of(&[bf16("q", &[ROWS, COLS], &trained(&moved))], &base, 0.3);
}

#[test]
fn columns_of_two_matrices_may_alternate() {
    let (gate, up) = (matrix(15), matrix(16));
    let base = [bf16("gate", &[ROWS, COLS], &gate), bf16("up", &[ROWS, COLS], &up)];
    let woven = |gate: &Matrix, up: &Matrix| -> Matrix {
        gate.iter().zip(up).flat_map(|(gate, up)| [*gate, *up]).collect()
    };
    let wide = woven(&trained(&gate), &trained(&up));
    view_of(&[bf16("gate_up", &[ROWS, 2 * COLS], &wide)], &base, 0.3);
    // As one expert of several, and transposed.
    let turned = woven(&transposed(&trained(&gate), COLS), &transposed(&trained(&up), COLS));
    let experts = [turned.clone(), vec![[0; 2]; turned.len()], turned].concat();
    view_of(&[bf16("gate_up", &[3, COLS, 2 * ROWS], &experts)], &base, 0.3);
}

#[test]
fn flat_partitions_may_be_cut_elsewhere() {
    let all = matrix_of(6, 1, 30_000);
    let cut = |of: &Matrix, at: [usize; 2]| {
        [bf16("0", &[at[0]], &of[..at[0]].to_vec()), bf16("1", &[at[1] - at[0]], &of[at[0]..at[1]].to_vec())]
            .into_iter()
            .chain([bf16("2", &[30_000 - at[1]], &of[at[1]..].to_vec())])
            .collect::<Vec<_>>()
    };
    let report = view_of(&cut(&trained(&all), [7001, 19_000]), &cut(&all, [10_000, 20_000]), 0.3);
    assert!(kinds(&report).iter().all(|kind| *kind == "view"));
}

#[test]
fn dtypes_may_differ() {
    let singles = Random::new(7).weights(ROWS * COLS);
    let shape = [ROWS as u64, COLS as u64];
    let of = |dtype: &str, values: &[f32]| {
        let bytes = match dtype {
            "F32" => f32_bytes(values),
            "F16" => f16_bytes(values),
            _ => bf16_bytes(values),
        };
        [tensor("w", dtype, &shape, bytes)]
    };
    let moved: Vec<f32> = singles.iter().map(|value| value * 1.001 + 1e-5).collect();
    for (base, tuned, share) in
        [("F32", "BF16", 0.3), ("F16", "BF16", 0.3), ("F32", "F16", 0.6), ("BF16", "F16", 0.8)]
    {
        let report = view_of(&of(tuned, &moved), &of(base, &singles), share);
        assert_eq!(kinds(&report), ["view"], "{base} to {tuned}");
    }
    // A BF16 model that is stored in a wider dtype is coded as what it is.
    let rounded = |values: &[f32]| -> Vec<f32> {
        let widened = |b: &[u8; 2]| f32::from_le_bytes([0, 0, b[0], b[1]]);
        bf16_bytes(values).as_chunks().0.iter().map(widened).collect()
    };
    for wide in ["F32", "F16"] {
        let share = if wide == "F32" { 0.15 } else { 0.3 };
        let report = view_of(&of(wide, &rounded(&moved)), &of("BF16", &singles), share);
        assert_eq!(kinds(&report), ["converted"], "{wide}");
        view_of(&of(wide, &rounded(&singles)), &of("BF16", &singles), 0.0);
    }
    let report = view_of(&of("F32", &rounded(&moved)), &of("F32", &singles), 0.15);
    assert_eq!(kinds(&report), ["converted"]);
}

#[test]
fn a_tensor_may_be_a_reference_times_one_number() {
    let weights = Random::new(14).weights(ROWS * COLS);
    let shape = [ROWS as u64, COLS as u64];
    let widened = |bytes: Vec<u8>| -> Vec<f32> {
        bytes.as_chunks().0.iter().map(|b: &[u8; 2]| f32::from_le_bytes([0, 0, b[0], b[1]])).collect()
    };
    let old = widened(bf16_bytes(&weights));
    for (dtype, number) in [
        ("BF16", 0.840_896_4_f32),
        ("BF16", 0.5),
        ("BF16", -1.5),
        ("F16", 0.7),
        ("F32", 0.999_9),
        ("F32", 3.3),
    ] {
        let of = |values: &[f32]| match dtype {
            "F32" => f32_bytes(values),
            "F16" => f16_bytes(values),
            _ => bf16_bytes(values),
        };
        let rounded: Vec<f32> = match dtype {
            "F16" => weights.iter().map(|value| half::f16::from_f32(*value).to_f32()).collect(),
            "F32" => weights.clone(),
            _ => old.clone(),
        };
        let scaled: Vec<f32> = rounded.iter().map(|value| value * number).collect();
        let report = view_of(
            &[tensor("w", dtype, &shape, of(&scaled))],
            &[tensor("w", dtype, &shape, of(&rounded))],
            0.01,
        );
        assert_eq!(kinds(&report), ["blend"], "{dtype} times {number}");
    }
}

#[test]
fn a_base_may_itself_be_a_container_of_views() {
    let old = matrix(8);
    let base = safetensors(&[bf16("w", &[ROWS, COLS], &old)]);
    let first = safetensors(&[bf16("w", &[COLS, ROWS], &transposed(&trained(&old), COLS))]);
    let woven = old.iter().zip(&matrix(18)).flat_map(|(a, b)| [*a, *b]).collect();
    let shuffled = (0..COLS).flat_map(|row| {
        let from = row * 37 % COLS;
        transposed(&old, COLS)[from * ROWS..(from + 1) * ROWS].to_vec()
    });
    let second = safetensors(&[
        bf16("v", &[ROWS, COLS], &trained(&trained(&old))),
        bf16("woven", &[ROWS, 2 * COLS], &woven),
        bf16("shuffled", &[COLS, ROWS], &trained(&shuffled.collect())),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("base.safetensors"), &base).unwrap();
    std::fs::write(path("first.loom"), pack(&first, &[&base]).0).unwrap();
    let mut bases = deltaloom::Bases::default();
    bases.push_paths(&[path("first.loom"), path("base.safetensors")], &deltaloom::Limits::default()).unwrap();
    let mut container = Vec::new();
    let second_file = checkpoint(&second).unwrap();
    let report =
        deltaloom::pack_to(&second_file, &bases, &mut container, &options(), &deltaloom::Silent).unwrap();
    assert!(unpack_with(&container, &bases).unwrap() == second);
    assert!(kinds(&report).iter().all(|kind| *kind != "zero"), "{:?}", kinds(&report));
}

#[test]
fn tensors_may_consist_of_pieces_of_the_same_file() {
    let (embedding, up, gate) = (matrix(1), matrix(2), matrix(3));
    let new = matrix_of(9, 2, COLS);
    let stored = |name: &str, shape: &[usize], bytes: Vec<u8>| {
        tensor(name, "F32", &shape.iter().map(|dim| *dim as u64).collect::<Vec<_>>(), bytes)
    };
    let widened = |matrix: &Matrix| matrix.iter().flat_map(|[a, b]| [0, 0, *a, *b]).collect::<Vec<u8>>();
    let rows = |matrix: &Matrix, range: std::ops::Range<usize>| {
        matrix[range.start * COLS..range.end * COLS].to_vec()
    };
    let file = [
        bf16("a.embed", &[ROWS, COLS], &embedding),
        // More rows, fewer rows, turned, fused, in another shape or dtype, in another order.
        bf16("b.head", &[ROWS + 2, COLS], &[trained(&embedding), new].concat()),
        bf16("c.first", &[40, COLS], &rows(&embedding, 0..40)),
        bf16("d.turned", &[COLS, ROWS], &transposed(&trained(&embedding), COLS)),
        bf16("e.up", &[ROWS, COLS], &up),
        bf16("f.gate", &[ROWS, COLS], &gate),
        bf16("g.fused", &[2 * ROWS, COLS], &[gate.clone(), trained(&up)].concat()),
        bf16("h.flat", &[ROWS / 2, 2 * COLS], &trained(&gate)),
        stored("i.wide", &[ROWS - 1, COLS], widened(&rows(&up, 1..ROWS))),
        bf16("j.moved", &[ROWS, COLS], &[rows(&gate, 50..ROWS), rows(&gate, 0..50)].concat()),
    ];
    let bytes = safetensors(&file);
    for chunk_log2 in [10, 17] {
        let (container, report) = pack_with(&bytes, &[], &options().with_chunk_log2(chunk_log2));
        assert!(unpack(&container, &[]).unwrap() == bytes);
        for row in &report.tensors {
            let is_alone = ["a.embed", "e.up", "f.gate"].contains(&row.name.as_str());
            assert_eq!(row.predictor == "zero", is_alone, "{}", row.name);
            let share = row.packed_bytes as f64 / row.original_bytes as f64;
            assert!(is_alone || share < 0.3, "{}: {share}", row.name);
        }
        assert_parts(&container, &bytes, &bytes);
    }
}

#[test]
fn what_is_new_or_too_small_stands_alone() {
    let base = [bf16("a", &[ROWS, COLS], &matrix(9)), bf16("n", &[8], &matrix_of(10, 1, 8))];
    let tuned =
        [bf16("a", &[ROWS + 1, COLS], &matrix_of(11, ROWS + 1, COLS)), bf16("n", &[9], &matrix_of(10, 1, 9))];
    let (_, report) = pack(&safetensors(&tuned), &[&safetensors(&base)]);
    assert_eq!(kinds(&report), ["zero", "zero"]);
}

#[test]
fn files_without_views_keep_their_version() {
    let old = matrix(12);
    let base = safetensors(&[bf16("w", &[ROWS, COLS], &old)]);
    let version = |tuned: &[Tensor]| pack(&safetensors(tuned), &[&base]).0[8];
    assert_eq!(version(&[bf16("w", &[ROWS, COLS], &trained(&old))]), 3);
    assert_eq!(version(&[bf16("w", &[COLS, ROWS], &old)]), 4);
}

#[test]
fn a_wrong_base_is_refused() {
    let old = matrix(13);
    let base = safetensors(&[bf16("w", &[ROWS, COLS], &old)]);
    let other = safetensors(&[bf16("w", &[ROWS, COLS], &trained(&old))]);
    let (container, _) = pack(&safetensors(&[bf16("w", &[COLS, ROWS], &transposed(&old, COLS))]), &[&base]);
    for wrong in [&[&other[..]][..], &[]] {
        let fault = unpack(&container, wrong).unwrap_err();
        assert!(format!("{fault:?}").contains("BaseMismatch"), "{fault:?}");
    }
}

#[test]
fn pieces_do_not_overlap_where_a_base_ends_and_begins_again() {
    let bytes = Random::new(77).bytes(3000);
    let other = Random::new(78).bytes(20);
    for (end, between, start) in [(2995, 1, 3), (2993, 0, 7), (2999, 2, 1), (2996, 9, 4), (2900, 3, 100)] {
        let joined = [&bytes[..end], &other[..between], &bytes[start..]].concat();
        let len = joined.len() as u64;
        let tuned = safetensors(&[tensor("w", "U8", &[len], joined)]);
        let base = safetensors(&[tensor("w", "U8", &[3000], bytes.clone())]);
        assert_eq!(predictors(&roundtrip(&tuned, &[&base]))["w"], "view");
    }
}
