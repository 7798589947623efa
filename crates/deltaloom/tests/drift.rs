//! Products that explain a part of what training changed: every dtype, special values, threads,
//! parts, changing a file in place, and damage.

mod common;

use common::*;
use deltaloom::{InPlaceOptions, Limits, Preset, Silent};

const ROWS: usize = 176;
const COLS: usize = 128;
const RANK: usize = 4;

fn matrix(dtype: &str, values: &[f32]) -> Vec<u8> {
    safetensors(&[tensor("w", dtype, &[ROWS as u64, COLS as u64], bytes_of(dtype, values))])
}

/// Weights, and the same after training: a product that is four times as strong as the rest.
fn trained(random: &mut Random, step: f32) -> [Vec<f32>; 2] {
    let base: Vec<f32> = (0..ROWS * COLS).map(|_| 0.02 * random.normal()).collect();
    let mut normal = |count: usize| (0..count).map(|_| random.normal()).collect::<Vec<f32>>();
    let (left, right, rest) = (normal(ROWS * RANK), normal(RANK * COLS), normal(ROWS * COLS));
    let product =
        |i: usize, j: usize| (0..RANK).map(|k| left[i * RANK + k] * right[k * COLS + j]).sum::<f32>();
    let tuned = |at: usize| base[at] + step * (2.0 * product(at / COLS, at % COLS) + rest[at]);
    let tuned = (0..base.len()).map(tuned).collect();
    [base, tuned]
}

#[test]
fn drift_is_found_in_every_dtype_and_survives_special_values() {
    let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, f32::from_bits(1)];
    for dtype in ["F32", "BF16", "F16"] {
        let [mut base, mut tuned] = trained(&mut Random::new(1), 1e-3);
        for (i, special) in special.into_iter().enumerate() {
            (base[50 * i], tuned[50 * i + 1]) = (special, special);
            (base[50 * i + 2], tuned[50 * i + 2]) = (special, special);
        }
        let (base, tuned) = (matrix(dtype, &base), matrix(dtype, &tuned));
        let (container, report) = roundtrip_with(&tuned, &[&base], &options());
        assert_eq!(report.tensors[0].predictor, "drift", "{dtype}");
        assert_eq!(container[8], 4, "the version");
        let (without, _) = roundtrip_with(&tuned, &[&base], &options().with_preset(Preset::Fast));
        assert_eq!(without[8], 3, "fast does not search");
        assert!(
            container.len() + ROWS * COLS / 8 < without.len(),
            "{dtype}: {} {}",
            container.len(),
            without.len()
        );
        for threads in [2, 3] {
            let again = pack_with(&tuned, &[&base], &options().with_threads(threads)).0;
            assert!(again == container, "{dtype} with {threads} threads");
        }
        assert_parts(&container, &base, &tuned);
        let small = roundtrip_with(&tuned, &[&base], &options().with_chunk_log2(10)).1;
        assert_eq!(small.tensors[0].predictor, "drift", "{dtype} in chunks");
    }
}

#[test]
fn changes_without_strong_directions_and_sparse_ones_take_no_factors() {
    let mut random = Random::new(2);
    let [base, _] = trained(&mut random, 0.0);
    let noise: Vec<f32> = base.iter().map(|x| x + 1e-3 * random.normal()).collect();
    // Most of such small steps are lost in rounding.
    let [_, _] = trained(&mut random, 0.0);
    let [other, sparse] = trained(&mut random, 4e-7);
    for (base, tuned) in [(base, noise), (other, sparse)] {
        let (base, tuned) = (matrix("BF16", &base), matrix("BF16", &tuned));
        let (container, report) = roundtrip_with(&tuned, &[&base], &options());
        assert_eq!((report.tensors[0].predictor, container[8]), ("reference", 3));
    }
}

#[test]
fn files_are_changed_in_place_and_a_container_is_a_base() {
    let [base, tuned] = trained(&mut Random::new(3), 1e-3);
    let (base, tuned) = (matrix("BF16", &base), matrix("BF16", &tuned));
    let (container, _) = pack(&tuned, &[&base]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, &base).unwrap();
    for round in 0..2 {
        let opened = open(&container).unwrap();
        let report =
            deltaloom::unpack_in_place(opened, &path, &bases(&[]), &InPlaceOptions::default(), &Silent)
                .unwrap();
        assert!(std::fs::read(&path).unwrap() == tuned, "round {round}: {report:?}");
    }
    let packed = folder.path().join("tuned.loom");
    std::fs::write(&packed, &container).unwrap();
    let mut all = bases(&[&base]);
    all.push_paths(&[packed], &Limits::default()).unwrap();
    let mut last = Vec::new();
    deltaloom::pack_to(&checkpoint(&tuned).unwrap(), &all, &mut last, &options(), &Silent).unwrap();
    assert!(unpack_with(&last, &all).unwrap() == tuned);
}

#[test]
fn damage_is_found() {
    let [base, tuned] = trained(&mut Random::new(4), 1e-3);
    let (base, tuned) = (matrix("BF16", &base), matrix("BF16", &tuned));
    let (container, report) = pack(&tuned, &[&base]);
    assert_eq!(report.tensors[0].predictor, "drift");
    let bases = bases(&[&base]);
    let folder = tempfile::tempdir().unwrap();
    let refused = |bytes: &[u8]| unpack_in(folder.path(), bytes, &bases).is_err();
    assert!(!refused(&container));
    let mut random = Random::new(5);
    // The factors come first in the file.
    let places =
        (0..1500).chain((0..1500).map(|_| usize::try_from(random.next() % container.len() as u64).unwrap()));
    for at in places {
        let mut flipped = container.clone();
        flipped[at] ^= 1 << (at % 8);
        assert!(refused(&flipped), "byte {at}");
        assert!(refused(&container[..at]), "cut at {at}");
    }
    // Version 3 has no such predictor.
    let mut old = container.clone();
    old[8] = 3;
    assert!(refused(&old));
}
