//! The faults that `verify` finds and the distances that `diff` measures, compared with answers
//! made by hand.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::PathBuf;

use common::*;
use deltaloom::{Bases, Limits, Silent, TensorDiff, Verifiable, VerifyReport};

fn verify(container: &[u8], against: Option<&Bases>) -> VerifyReport {
    let check = |what: Verifiable<'_>| deltaloom::verify(&what, 2, &Silent).unwrap();
    match against {
        None => check(Verifiable::Alone(&open(container).unwrap())),
        Some(bases) => check(Verifiable::Resolved(&resolve(container, bases).unwrap())),
    }
}

#[test]
fn verify_names_every_damaged_chunk_and_is_content_otherwise() {
    let mut rng = Random::new(1);
    let before = tensor("moved", "BF16", &[60, 100], bf16_bytes(&rng.weights(6000)));
    let alone = tensor("alone", "F32", &[3000], f32_bytes(&rng.weights(3000)));
    let moved = Tensor { bytes: stepped(&before.bytes, 2, |_| rng.around_zero(2)), ..before.clone() };
    let kept = tensor("kept", "I16", &[40], rng.bytes(80));
    let base = safetensors(&[before, kept.clone()]);
    let tuned = safetensors(&[moved, alone, kept]);
    let (container, report) = pack(&tuned, &[&base]);
    let base = bases(&[&base]);
    let chunks = usize::try_from(report.codecs.values().map(|share| share.count).sum::<u64>()).unwrap();

    for (against, checked) in [(None, "checksums"), (Some(&base), "digests")] {
        let report = verify(&container, against);
        assert!(report.ok && report.faults.is_empty(), "{:?}", report.faults);
        assert_eq!((report.checked, report.tensors, report.chunks), (checked, 3, chunks));
    }
    // The first byte of the first tensor and the last of the second. Payloads follow the head in
    // order.
    let payloads =
        usize::try_from(report.tensors.iter().map(|tensor| tensor.packed_bytes).sum::<u64>()).unwrap();
    let mut damaged = container;
    damaged[16] ^= 0x40;
    damaged[16 + payloads - 1] ^= 1;
    for against in [None, Some(&base)] {
        let report = verify(&damaged, against);
        assert_eq!((report.ok, report.checked, report.faults.len()), (false, "checksums", 2));
        assert!(
            report.faults[0].contains("\"moved\"") && report.faults[1].contains("\"alone\""),
            "{:?}",
            report.faults
        );
    }
}

fn diff(a: &[Tensor], b: &[Tensor]) -> deltaloom::DiffReport {
    let [a, b] = [a, b].map(|tensors| bases(&[&safetensors(tensors)]));
    let report = deltaloom::diff(&a, &b, 1, &Silent).unwrap();
    assert_eq!(deltaloom::diff(&a, &b, 3, &Silent).unwrap(), report);
    report
}

fn only(a: Tensor, b: Tensor) -> TensorDiff {
    let mut report = diff(&[a], &[b]);
    assert_eq!(report.tensors.len(), 1);
    assert_eq!(report.identical, report.tensors[0].status == "identical");
    report.tensors.remove(0)
}

fn words(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn histogram(tensor: &TensorDiff) -> Vec<(u64, u64)> {
    tensor.ulp_histogram.as_ref().unwrap().iter().map(|(ulps, count)| (*ulps, *count)).collect()
}

#[test]
fn diff_counts_ulps_in_powers_of_two() {
    // 0, 1, 1 (down, over an octave), 2, 3, 4, 5 ULPs, from -0 to +0, and a change of sign.
    let before = [0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x8000, 0x0001];
    let after = [0x3f80, 0x3f81, 0x3f7f, 0x3f82, 0x3f83, 0x3f84, 0x3f85, 0x0000, 0x8001];
    let of = |values: &[u16]| tensor("w", "BF16", &[9], words(values));
    let found = only(of(&before), of(&after));
    assert_eq!(found.status, "changed");
    assert_eq!(found.changed_fraction, Some(8.0 / 9.0));
    // -1 and 1 in the least subnormal are three steps apart, because -0 and +0 are between them.
    assert_eq!(histogram(&found), [(0, 1), (1, 3), (2, 1), (4, 3), (8, 1)]);

    let bytes = |value: u64| value.to_le_bytes().to_vec();
    let far = only(tensor("w", "U64", &[1], bytes(0)), tensor("w", "U64", &[1], bytes(u64::MAX)));
    assert_eq!(histogram(&far), [(u64::MAX, 1)]);
    let signed = only(tensor("w", "I8", &[2], vec![0xff, 5]), tensor("w", "I8", &[2], vec![0, 5]));
    assert_eq!(histogram(&signed), [(0, 1), (1, 1)]);
}

#[test]
fn diff_measures_the_relative_l2_norm() {
    let of = |values: &[f32]| tensor("w", "F32", &[values.len() as u64], f32_bytes(values));
    let l2 = |a: &[f32], b: &[f32]| only(of(a), of(b)).relative_l2;
    assert_eq!(l2(&[1.0, 1.0, 1.0, 1.0], &[1.0, 1.0, 1.0, 1.5]), Some(0.25));
    assert_eq!(l2(&[3.0, 4.0], &[0.0, 0.0]), Some(1.0));
    assert_eq!(l2(&[3.0, f32::NAN], &[3.0, f32::NAN]), Some(0.0));
    assert_eq!(l2(&[3.0, f32::NAN], &[2.0, f32::NAN]), None);
    assert_eq!(l2(&[0.0, 0.0], &[0.0, 1.0]), None);
    let power = |exponent, x: f64| tensor("w", "F64", &[1], (x * 2f64.powi(exponent)).to_le_bytes().to_vec());
    assert_eq!(only(power(600, 1.0), power(600, 1.5)).relative_l2, None, "squares are infinite");
    assert_eq!(only(power(300, 1.0), power(300, 1.5)).relative_l2, Some(0.5));
    let integers = |x: u8| tensor("w", "I8", &[1], vec![x]);
    assert_eq!(only(integers(0xfc), integers(0xfb)).relative_l2, Some(0.25));
    // More than a block of one mebibyte.
    let long: Vec<f32> = vec![2.0; 600_000];
    let mut moved = long.clone();
    moved[599_999] = 2.0 + 600_000f32.sqrt();
    let found = only(of(&long), of(&moved));
    assert!((found.relative_l2.unwrap() - 0.5).abs() < 1e-6);
    assert_eq!(found.changed_fraction, Some(1.0 / 600_000.0));
}

#[test]
fn diff_tells_what_only_one_side_has() {
    let bytes = vec![7; 8];
    let of = |name: &str, dtype: &str, shape: &[u64]| tensor(name, dtype, shape, bytes.clone());
    let a = [of("a", "U8", &[8]), of("dtype", "BF16", &[4]), of("shape", "F32", &[2]), of("same", "X", &[1])];
    let b =
        [of("b", "U8", &[8]), of("dtype", "F16", &[4]), of("shape", "F32", &[2, 1]), of("same", "X", &[1])];
    let report = diff(&a, &b);
    let found: Vec<(&str, &str, &str)> =
        report.tensors.iter().map(|t| (t.name.as_str(), t.status, t.dtype.as_str())).collect();
    assert_eq!(
        found,
        [
            ("a", "only_a", "U8"),
            ("b", "only_b", "U8"),
            ("dtype", "retyped", "F16"),
            ("same", "identical", "X"),
            ("shape", "retyped", "F32"),
        ]
    );
    assert!(!report.identical);
    assert_eq!(report.tensors[4].shape, [2, 1]);
    assert!(report.tensors[..3].iter().all(|t| (t.changed_fraction, t.relative_l2) == (None, None)));
    assert!(diff(&a, &a).identical && diff(&[], &[]).identical);
    assert!(!diff(&[], &a[..1]).identical);
    let empty = only(tensor("w", "F32", &[0], vec![]), tensor("w", "F32", &[0], vec![]));
    assert_eq!(
        (empty.status, empty.changed_fraction, empty.relative_l2),
        ("identical", Some(0.0), Some(0.0))
    );
}

#[test]
fn diff_reads_containers_and_directories() {
    let mut rng = Random::new(2);
    let base = tensor("w", "BF16", &[5000], bf16_bytes(&rng.weights(5000)));
    let tuned = Tensor { bytes: stepped(&base.bytes, 2, |i| i64::from(i % 10 == 0)), ..base.clone() };
    let (base, tuned) = (safetensors(&[base]), safetensors(&[tuned]));
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_tree(
        folder.path(),
        &[
            ("base.safetensors", base.clone()),
            ("tuned.loom", pack(&tuned, &[&base]).0),
            ("tuned/model.safetensors", tuned),
            ("tuned/config.json", b"{}".to_vec()),
        ],
    );
    let open = |paths: &[PathBuf]| Bases::open(paths, &Limits::default()).unwrap();
    let (plain, packed) =
        (open(&[at("base.safetensors")]), open(&[at("tuned.loom"), at("base.safetensors")]));
    // The container's own base comes before it in the set, so the container has the tensor with
    // that name.
    assert_eq!(deltaloom::diff(&plain, &packed, 1, &Silent).unwrap().tensors[0].changed_fraction, Some(0.1));
    let report = deltaloom::diff(&plain, &open(&[at("tuned")]), 1, &Silent).unwrap();
    assert_eq!((report.tensors[0].name.as_str(), report.tensors[0].status), ("config.json", "only_b"));
    assert_eq!(histogram(&report.tensors[1]), [(0, 4500), (1, 500)]);
}
