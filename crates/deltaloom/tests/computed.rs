//! Computed predictions: special values, threads, parts, chains of containers, and changing a file
//! in place.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::Path;

use common::*;
use deltaloom::{Bases, InPlaceOptions, Limits, ResolvedContainer, Silent};

const ROWS: usize = 96;
const COLS: usize = 40;

/// Weights of three models: a base, and two that were trained from it.
fn three(random: &mut Random) -> [Vec<f32>; 3] {
    let base = random.weights(ROWS * COLS);
    let mut near = || base.iter().map(|x| x + 0.001 * random.normal()).collect();
    let (one, two) = (near(), near());
    [base, one, two]
}

fn matrix(dtype: &str, values: &[f32]) -> Vec<u8> {
    safetensors(&[tensor("w", dtype, &[ROWS as u64, COLS as u64], bytes_of(dtype, values))])
}

fn rounded(dtype: &str, values: &[f32]) -> Vec<f32> {
    let round = |x: &f32| match dtype {
        "BF16" => half::bf16::from_f32(*x).to_f32(),
        "F16" => half::f16::from_f32(*x).to_f32(),
        _ => *x,
    };
    values.iter().map(round).collect()
}

/// NaNs of both signs, infinities, zeros, the smallest numbers.
const SPECIAL: [f32; 8] =
    [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, f32::from_bits(1), -f32::MIN_POSITIVE];

#[test]
fn blends_are_found_in_every_dtype_and_survive_special_values() {
    for dtype in ["F32", "BF16", "F16"] {
        let mut random = Random::new(1);
        let models = three(&mut random).map(|values| rounded(dtype, &values));
        let mut merged: Vec<f32> =
            models[1].iter().zip(&models[2]).map(|(y, z)| 0.25 * y + 0.75 * z).collect();
        let mut models = models;
        for (i, special) in SPECIAL.into_iter().enumerate() {
            models.iter_mut().for_each(|values| values[50 * i] = special);
            merged[50 * i] = special;
            // And nothing follows from them.
            models[1][50 * i + 1] = if special.is_finite() { models[2][50 * i + 1] } else { special };
        }
        let files = models.map(|values| matrix(dtype, &values));
        let against: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
        let tuned = matrix(dtype, &merged);
        let (container, report) = roundtrip_with(&tuned, &against, &options());
        assert_eq!(report.tensors[0].predictor, "blend", "{dtype}");
        assert!(report.tensors[0].changed_fraction.unwrap() < 0.02, "{dtype}: {:?}", report.tensors[0]);
        for threads in [2, 3] {
            let again = pack_with(&tuned, &against, &options().with_threads(threads)).0;
            assert!(again == container, "{dtype} with {threads} threads");
        }
        // The error names any missing base.
        let missing = format!("{:?}", unpack(&container, &against[..2]).unwrap_err());
        assert!(missing.contains("BaseMismatch"), "{missing}");
    }
}

#[test]
fn models_that_are_no_blend_are_not_taken_for_one() {
    let mut random = Random::new(2);
    let [base, one, two] = three(&mut random);
    let files = [&one, &two].map(|values| matrix("BF16", values));
    let report = roundtrip(&matrix("BF16", &base), &[&files[0], &files[1]]);
    assert_eq!(report.tensors[0].predictor, "reference");
    let alone = roundtrip(&matrix("BF16", &random.weights(ROWS * COLS)), &[&files[0], &files[1]]);
    assert_eq!(alone.tensors[0].predictor, "zero");
}

/// A base, the base with an adapter merged into it, and the adapter's folder.
fn merged(folder: &Path, dtype: &str, config: &str, update: impl Fn(f32) -> f32) -> (Vec<u8>, Vec<u8>) {
    let rank = 3;
    let mut random = Random::new(3);
    let base = rounded(dtype, &random.weights(ROWS * COLS));
    let (a, b) = (random.weights(rank * COLS), random.weights(ROWS * rank));
    let factor = |name: &str, shape: [usize; 2], values: &[f32]| {
        tensor(
            &format!("base_model.model.w.{name}.weight"),
            "F32",
            &shape.map(|d| d as u64),
            f32_bytes(values),
        )
    };
    let factors = [factor("lora_A", [rank, COLS], &a), factor("lora_B", [ROWS, rank], &b)];
    write_tree(
        folder,
        &[
            ("adapter_config.json", config.as_bytes().to_vec()),
            ("adapter_model.safetensors", safetensors(&factors)),
        ],
    );
    let element = |at: usize| {
        let (i, j) = (at / COLS, at % COLS);
        let sum = (1..rank).fold(b[i * rank] * a[j], |sum, k| b[i * rank + k].mul_add(a[k * COLS + j], sum));
        base[at] + update(sum)
    };
    let tuned: Vec<f32> = (0..ROWS * COLS).map(element).collect();
    let named = |values: &[f32]| {
        let bytes = if dtype == "BF16" { bf16_bytes(values) } else { f32_bytes(values) };
        safetensors(&[tensor("w.weight", dtype, &[ROWS as u64, COLS as u64], bytes)])
    };
    (named(&base), named(&tuned))
}

fn with_adapter(folder: &Path, base: &[u8]) -> Bases {
    let mut all = bases(&[base]);
    all.push_adapter(folder, &Limits::default()).unwrap();
    all
}

#[test]
fn merged_adapters_leave_nothing() {
    let config = r#"{"peft_type": "LORA", "r": 3, "lora_alpha": 300}"#;
    let folder = tempfile::tempdir().unwrap();
    let rounded_update: fn(f32) -> f32 = |x| half::bf16::from_f32(100.0 * x).to_f32();
    for (dtype, update) in
        [("F32", (|x| 100.0 * x) as fn(f32) -> f32), ("BF16", rounded_update), ("BF16", |x| 100.0 * x)]
    {
        let (base, tuned) = merged(folder.path(), dtype, config, update);
        let all = with_adapter(folder.path(), &base);
        let mut container = Vec::new();
        let report =
            deltaloom::pack_to(&checkpoint(&tuned).unwrap(), &all, &mut container, &options(), &Silent)
                .unwrap();
        assert_eq!((report.tensors[0].predictor, report.tensors[0].packed_bytes), ("adapter", 0), "{dtype}");
        assert!(unpack_with(&container, &all).unwrap() == tuned);
        // Single rows need only single rows of B.
        let resolved = resolve(&container, &all).unwrap();
        let mut rows = Vec::new();
        deltaloom::read_tensor(&resolved, "w.weight", 50..53, &mut rows).unwrap();
        let row_bytes = COLS * if dtype == "BF16" { 2 } else { 4 };
        assert!(rows == data_of(&tuned)[50 * row_bytes..53 * row_bytes]);
        let missing = format!("{:?}", unpack(&container, &[&base]).unwrap_err());
        assert!(missing.contains("lora_A"), "{missing}");
    }
}

#[test]
fn adapters_of_other_kinds_are_ignored_and_strengths_fitted() {
    let folder = tempfile::tempdir().unwrap();
    let open = |config: &str| {
        let (base, tuned) = merged(folder.path(), "F32", config, |x| 100.0 * x);
        let mut all = bases(&[&base]);
        all.push_adapter(folder.path(), &Limits::default()).map(|()| (all, tuned))
    };
    for bad in ["", "{", "[]", r#"{"r": 3}"#, r#"{"peft_type": "LORA", "r": "3"}"#] {
        assert!(open(bad).is_err(), "{bad}");
    }
    for (config, is_adapter, warning_count) in [
        (r#"{"peft_type": "LORA", "r": 3, "lora_alpha": 1}"#, true, 0),
        (r#"{"peft_type": "LORA", "r": null, "lora_alpha": null, "use_dora": true}"#, true, 0),
        (r#"{"peft_type": "LOKR", "r": 3, "lora_alpha": 300}"#, false, 1),
    ] {
        let (all, tuned) = open(config).unwrap();
        assert_eq!(all.warnings().len(), warning_count, "{config}");
        let mut container = Vec::new();
        let report =
            deltaloom::pack_to(&checkpoint(&tuned).unwrap(), &all, &mut container, &options(), &Silent)
                .unwrap();
        assert_eq!(report.tensors[0].predictor == "adapter", is_adapter, "{config}");
        assert!(unpack_with(&container, &all).unwrap() == tuned);
    }
}

#[test]
fn low_rank_updates_are_found_and_a_base_can_be_a_container_of_them() {
    let mut random = Random::new(4);
    let base = random.weights(ROWS * COLS);
    let (left, right) = (random.weights(ROWS), random.weights(COLS));
    let update = |scale: f32| {
        let element = |at: usize| base[at] + scale * left[at / COLS] * right[at % COLS];
        matrix("F32", &(0..ROWS * COLS).map(element).collect::<Vec<f32>>())
    };
    let (base, first, second) = (matrix("F32", &base), update(3.0), update(-2.0));
    let (container, report) = roundtrip_with(&first, &[&base], &options());
    assert_eq!(report.tensors[0].predictor, "lowrank");
    assert_eq!(report.tensors[0].rule.as_deref(), Some("rank 1"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("first.loom");
    std::fs::write(&path, &container).unwrap();
    let mut all = bases(&[&base]);
    all.push_paths(&[path], &Limits::default()).unwrap();
    let mut last = Vec::new();
    deltaloom::pack_to(&checkpoint(&second).unwrap(), &all, &mut last, &options(), &Silent).unwrap();
    assert!(unpack_with(&last, &all).unwrap() == second);
}

/// Adds a product of rank `rank` to a matrix with rows of `cols`.
fn add_product(random: &mut Random, matrix: &mut [f32], cols: usize, rank: usize) {
    let rows = matrix.len() / cols;
    let (left, right) = (random.weights(rows * rank), random.weights(rank * cols));
    for (at, x) in matrix.iter_mut().enumerate() {
        let (i, j) = (at / cols, at % cols);
        *x += (0..rank).map(|k| 3.0 * left[i * rank + k] * right[k * cols + j]).sum::<f32>();
    }
}

#[test]
fn products_are_found_in_convolutions_and_in_each_expert() {
    let mut random = Random::new(8);
    let shapes: [(&str, &[u64]); 4] = [
        ("conv", &[64, 40, 3, 3]),
        ("kernel", &[40, 40, 3, 3]),
        ("experts", &[5, 48, 40]),
        ("one_expert", &[32, 36, 36]),
    ];
    let base: Vec<Vec<f32>> = shapes
        .iter()
        .map(|(_, shape)| random.weights(usize::try_from(shape.iter().product::<u64>()).unwrap()))
        .collect();
    let mut tuned = base.clone();
    add_product(&mut random, &mut tuned[0], 360, 2);
    add_product(&mut random, &mut tuned[1], 120, 2);
    for (i, expert) in tuned[2].chunks_exact_mut(48 * 40).enumerate().filter(|(i, _)| *i != 2) {
        add_product(&mut random, expert, 40, 1 + i % 2);
    }
    add_product(&mut random, &mut tuned[3][7 * 1296..8 * 1296], 36, 1);
    let rules = [
        "rank 2, rows of 360",
        "rank 2, rows of 120",
        "rank up to 2, 5 matrices, rows of 40",
        "rank up to 1, 32 matrices, rows of 36",
    ];
    let file = |dtype: &str, values: &[Vec<f32>]| {
        let bytes = |values: &[f32]| if dtype == "F32" { f32_bytes(values) } else { bf16_bytes(values) };
        let tensors = shapes.iter().zip(values);
        let tensors = tensors.map(|((name, shape), values)| tensor(name, dtype, shape, bytes(values)));
        safetensors(&tensors.collect::<Vec<_>>())
    };
    for (dtype, chunk_log2) in [("F32", 17), ("F32", 10), ("BF16", 11)] {
        let (base, tuned) = (file(dtype, &base), file(dtype, &tuned));
        let options = options().with_chunk_log2(chunk_log2);
        let (container, report) = roundtrip_with(&tuned, &[&base], &options);
        let kinds: Vec<&str> = report.tensors.iter().map(|tensor| tensor.predictor).collect();
        assert_eq!(kinds, ["lowrank"; 4], "{dtype}");
        if dtype == "F32" {
            for (tensor, rule) in report.tensors.iter().zip(rules) {
                assert_eq!(tensor.rule.as_deref(), Some(rule), "{}", tensor.name);
            }
        }
        assert_eq!(container[8], 4);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, &base).unwrap();
        let opened = open(&container).unwrap();
        deltaloom::unpack_in_place(opened, &path, &bases(&[]), &InPlaceOptions::default(), &Silent).unwrap();
        assert!(std::fs::read(&path).unwrap() == tuned, "{dtype}");
    }
}

#[test]
fn rows_longer_than_a_chunk_take_no_factors() {
    const COLS: usize = 1100;
    let mut random = Random::new(6);
    let base = random.weights(64 * COLS);
    let (left, right) = (random.weights(64), random.weights(COLS));
    let update = |at: usize| base[at] + 3.0 * left[at / COLS] * right[at % COLS];
    let file = |values: &[f32]| safetensors(&[tensor("w", "F32", &[64, COLS as u64], f32_bytes(values))]);
    let tuned = file(&(0..64 * COLS).map(update).collect::<Vec<f32>>());
    for (chunk_log2, predictor) in [(11, "lowrank"), (10, "reference")] {
        let options = options().with_chunk_log2(chunk_log2);
        let (_, report) = roundtrip_with(&tuned, &[&file(&base)], &options);
        assert_eq!(report.tensors[0].predictor, predictor);
    }
}

#[test]
fn files_are_changed_in_place_by_computed_predictions() {
    let mut random = Random::new(5);
    let [one, two, three] = three(&mut random);
    let merged: Vec<f32> = (0..one.len()).map(|i| 0.5 * one[i] + 0.5 * two[i]).collect();
    let update = |at: usize| three[at] + (at / COLS) as f32 * 1e-3 * ((at % COLS) as f32).sin();
    let updated: Vec<f32> = (0..one.len()).map(update).collect();
    let file = |first: &[f32], second: &[f32]| {
        let shape = [ROWS as u64, COLS as u64];
        let half = tensor("low", "F32", &shape, f32_bytes(second));
        safetensors(&[tensor("mix", "F32", &shape, f32_bytes(first)), half])
    };
    let (base, tuned) = (file(&one, &three), file(&merged, &updated));
    let other = safetensors(&[tensor("mix", "F32", &[ROWS as u64, COLS as u64], f32_bytes(&two))]);
    let (container, report) = pack(&tuned, &[&base, &other]);
    let kinds: Vec<&str> = report.tensors.iter().map(|tensor| tensor.predictor).collect();
    assert_eq!(kinds, ["blend", "lowrank"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, &base).unwrap();
    for round in 0..2 {
        let opened = open(&container).unwrap();
        let options = InPlaceOptions::default().with_threads(1);
        let report = deltaloom::unpack_in_place(opened, &path, &bases(&[&other]), &options, &Silent).unwrap();
        assert!(std::fs::read(&path).unwrap() == tuned, "round {round}: {report:?}");
    }
    std::fs::write(&path, file(&two, &three)).unwrap();
    let opened = open(&container).unwrap();
    let wrong =
        deltaloom::unpack_in_place(opened, &path, &bases(&[&other]), &InPlaceOptions::default(), &Silent);
    assert!(wrong.is_err());
    assert!(std::fs::read(&path).unwrap() == file(&two, &three), "a wrong base is left as it is");
    assert!(ResolvedContainer::new(open(&container).unwrap(), &bases(&[&base])).is_err());
}

/// A file of training state: moments and weights of two tensors, and the serving copy of one.
fn state(seed: u64, v_is_first: bool) -> [Vec<u8>; 2] {
    let mut random = Random::new(seed);
    let count = ROWS * COLS;
    let mut normals = |size: f32| -> Vec<f32> { (0..count).map(|_| size * random.normal()).collect() };
    let (m, gradients, w) = (normals(3e-4), normals(1e-3), normals(0.02));
    let v: Vec<f32> = normals(1e-3).iter().map(|x| x * x).collect();
    let new_m: Vec<f32> = m.iter().zip(&gradients).map(|(m, g)| m + 0.1 * (g - m)).collect();
    let new_v: Vec<f32> = v.iter().zip(&gradients).map(|(v, g)| 0.999 * v + 0.001 * g * g).collect();
    let moved = |i: usize| 0.9999 * w[i] - 3e-4 * new_m[i] / (new_v[i].sqrt() + 1e-8);
    let new_w: Vec<f32> = (0..count).map(moved).collect();
    let file = |m: &[f32], v: &[f32], w: &[f32]| {
        let shape = [ROWS as u64, COLS as u64];
        let single = |name: &str, values: &[f32]| tensor(name, "F32", &shape, f32_bytes(values));
        let half = tensor("model.a", "BF16", &shape, bf16_bytes(w));
        let moments = [single("opt.exp_avg.a", m), single("opt.exp_avg_sq.a", v)];
        let [one, two] = moments;
        let tensors = [half, one, single("master.a", w), two];
        safetensors(&if v_is_first { tensors.into_iter().rev().collect::<Vec<_>>() } else { tensors.into() })
    };
    [file(&m, &v, &w), file(&new_m, &new_v, &new_w)]
}

#[test]
fn a_step_of_adam_is_found_and_leaves_little() {
    for v_is_first in [false, true] {
        let [base, tuned] = state(6, v_is_first);
        let (container, report) = roundtrip_with(&tuned, &[&base], &options().with_chunk_log2(10));
        let sizes: std::collections::BTreeMap<&str, (&str, u64)> =
            report.tensors.iter().map(|t| (t.name.as_str(), (t.predictor, t.packed_bytes))).collect();
        assert_eq!(sizes["opt.exp_avg.a"].0, "reference");
        assert_eq!(sizes["model.a"], ("cast", 0));
        for name in ["opt.exp_avg_sq.a", "master.a"] {
            let (predictor, bytes) = sizes[name];
            assert_eq!(predictor, "adam", "{name}");
            // A quarter of a bit per element.
            assert!(bytes * 32 < (ROWS * COLS) as u64, "{name}: {bytes}");
        }
        for threads in [2, 3] {
            let options = options().with_threads(threads).with_chunk_log2(10);
            assert!(pack_with(&tuned, &[&base], &options).0 == container, "{threads} threads");
        }
        // One tensor on its own, through everything that it depends on.
        let resolved =
            ResolvedContainer::for_tensor(open(&container).unwrap(), &bases(&[&base]), "model.a").unwrap();
        let mut rows = Vec::new();
        deltaloom::read_tensor(&resolved, "model.a", 40..42, &mut rows).unwrap();
        let all = ResolvedContainer::new(open(&container).unwrap(), &bases(&[&base])).unwrap();
        let mut expected = Vec::new();
        deltaloom::read_tensor(&all, "model.a", .., &mut expected).unwrap();
        assert!(rows == expected[40 * 2 * COLS..42 * 2 * COLS]);
        // A container of it can be a base.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("step.loom");
        std::fs::write(&path, &container).unwrap();
        let mut chain = bases(&[&base]);
        chain.push_paths(&[path], &Limits::default()).unwrap();
        let mut last = Vec::new();
        deltaloom::pack_to(&checkpoint(&tuned).unwrap(), &chain, &mut last, &options(), &Silent).unwrap();
        assert!(unpack_with(&last, &chain).unwrap() == tuned);
        // In place, twice, and refused for another file.
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, &base).unwrap();
        for _ in 0..2 {
            let options = InPlaceOptions::default();
            deltaloom::unpack_in_place(open(&container).unwrap(), &path, &bases(&[]), &options, &Silent)
                .unwrap();
            assert!(std::fs::read(&path).unwrap() == tuned);
        }
        let [other, _] = state(7, v_is_first);
        std::fs::write(&path, &other).unwrap();
        let options = InPlaceOptions::default();
        assert!(
            deltaloom::unpack_in_place(open(&container).unwrap(), &path, &bases(&[]), &options, &Silent)
                .is_err()
        );
        assert!(std::fs::read(&path).unwrap() == other);
    }
}

#[test]
fn states_that_are_no_step_apart_are_not_taken_for_one() {
    let ([base, _], [_, tuned]) = (state(6, false), state(7, false));
    let report = roundtrip(&tuned, &[&base]);
    assert!(report.tensors.iter().all(|tensor| tensor.predictor != "adam"), "{:?}", report.tensors);
}
