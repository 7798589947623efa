//! Every finding of `lineage`, on checkpoints that were made by the operation that it names.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Random, bases, bf16_bytes, f32_bytes, safetensors, stepped, tensor};
use deltaloom::{Finding, LineageReport, Silent, lineage};

const ROWS: usize = 96;
const COLS: usize = 160;

fn found(tuned: &[u8], ancestors: &[&[u8]]) -> LineageReport {
    lineage(&bases(&[tuned]), &bases(ancestors), 1, &Silent).unwrap()
}

/// A file with one matrix.
fn matrix(dtype: &str, bytes: Vec<u8>) -> Vec<u8> {
    safetensors(&[tensor("weight", dtype, &[ROWS as u64, COLS as u64], bytes)])
}

#[track_caller]
fn only(report: LineageReport) -> Finding {
    assert_eq!((report.tensors.len(), report.findings.len()), (1, 1));
    report.tensors[0].finding.clone()
}

fn weights(seed: u64) -> Vec<f32> {
    Random::new(seed).weights(ROWS * COLS)
}

/// Mixes element by element.
fn mixed(a: &[f32], b: &[f32], mix: impl Fn(f32, f32) -> f32) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| mix(*a, *b)).collect()
}

/// A product of rows and columns with rank `rank`.
fn product(rank: usize, size: f32) -> Vec<f32> {
    let mut random = Random::new(77);
    let left: Vec<f32> = (0..ROWS * rank).map(|_| random.normal()).collect();
    let right: Vec<f32> = (0..rank * COLS).map(|_| random.normal()).collect();
    let element =
        |i: usize, j: usize| (0..rank).map(|k| left[i * rank + k] * right[k * COLS + j]).sum::<f32>() * size;
    (0..ROWS * COLS).map(|at| element(at / COLS, at % COLS)).collect()
}

#[test]
fn equality_is_found_in_all_its_forms() {
    let values = weights(1);
    let new = weights(2)[..700].to_vec();
    let base = safetensors(&[
        tensor("same", "F32", &[40, 40], f32_bytes(&values[..1600])),
        tensor("model.moved", "F32", &[30], f32_bytes(&values[..30])),
        tensor("master", "F32", &[500], f32_bytes(&values[..500])),
    ]);
    let tuned = safetensors(&[
        tensor("same", "F32", &[40, 40], f32_bytes(&values[..1600])),
        tensor("moved", "F32", &[30], f32_bytes(&values[..30])),
        tensor("master", "BF16", &[500], bf16_bytes(&values[..500])),
        tensor("own", "F32", &[700], f32_bytes(&new)),
        tensor("own again", "F32", &[700], f32_bytes(&new)),
        tensor("own rounded", "BF16", &[700], bf16_bytes(&new)),
        tensor("empty", "F32", &[0], Vec::new()),
    ]);
    let report = found(&tuned, &[&base]);
    let findings: Vec<&Finding> = report.tensors.iter().map(|tensor| &tensor.finding).collect();
    let ancestor = "base-0".to_owned();
    let identical = |tensor| Finding::Identical { ancestor: ancestor.clone(), tensor };
    assert_eq!(*findings[0], identical(None));
    assert_eq!(*findings[1], identical(Some("model.moved".to_owned())));
    assert_eq!(*findings[2], Finding::Cast { ancestor: Some(ancestor.clone()), tensor: "master".to_owned() });
    assert_eq!(*findings[3], Finding::New);
    assert_eq!(*findings[4], Finding::Tied { tensor: "own".to_owned() });
    assert_eq!(*findings[5], Finding::Cast { ancestor: None, tensor: "own".to_owned() });
    assert_eq!(*findings[6], Finding::New);
    assert_eq!(report.findings[0].finding, "identical to base-0");
    assert_eq!((report.findings[0].tensors, report.findings[0].bytes), (2, 6520));
    assert!(report.findings.iter().all(|group| group.evidence.is_none()));
}

#[test]
fn masters_have_any_name_and_what_an_ancestor_knows_is_not_tied() {
    let values = weights(21);
    let base = safetensors(&[
        tensor("optimizer.master.3", "F32", &[500], f32_bytes(&values[..500])),
        tensor("known", "F32", &[700], f32_bytes(&weights(22)[..700])),
    ]);
    let tuned = safetensors(&[
        tensor("layer.weight", "BF16", &[500], bf16_bytes(&values[..500])),
        tensor("a copy", "F32", &[700], f32_bytes(&values[500..1200])),
        tensor("known", "F32", &[700], f32_bytes(&values[500..1200])),
    ]);
    let report = found(&tuned, &[&base]);
    let findings: Vec<&Finding> = report.tensors.iter().map(|tensor| &tensor.finding).collect();
    let tensor = "optimizer.master.3".to_owned();
    assert_eq!(*findings[0], Finding::Cast { ancestor: Some("base-0".to_owned()), tensor });
    assert_eq!(*findings[1], Finding::Tied { tensor: "known".to_owned() });
    assert!(matches!(findings[2], Finding::Unrelated { .. }), "{:?}", findings[2]);
}

#[test]
fn a_merged_lora_has_its_rank() {
    let base = weights(2);
    let merged = mixed(&base, &product(5, 0.001), |a, b| a + b);
    for (dtype, bytes) in [("F32", f32_bytes as fn(&[f32]) -> Vec<u8>), ("BF16", bf16_bytes)] {
        let found = only(found(&matrix(dtype, bytes(&merged)), &[&matrix(dtype, bytes(&base))]));
        let Finding::LowRank { rank, relative_l2, residual, .. } = found else { panic!("{found:?}") };
        assert_eq!(rank, 5, "{dtype}");
        assert!((0.05..0.3).contains(&relative_l2), "{relative_l2}");
        // BF16 bases were rounded too.
        assert!((0.5..2.0).contains(&residual), "{dtype}: {residual}");
    }
}

#[test]
fn blends_have_their_weights() {
    let base = weights(3);
    let [a, b, c] = [4, 5, 6].map(|seed| mixed(&base, &weights(seed), |base, step| base + 0.1 * step));
    let files = [&a, &b, &c].map(|values| matrix("F32", f32_bytes(values)));
    let ancestors: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
    let weights_of = |values: &[f32], ancestors: &[&[u8]]| {
        let found = only(found(&matrix("F32", f32_bytes(values)), ancestors));
        let Finding::Blend { parts, residual } = found else { panic!("{found:?}") };
        assert!(residual < 2.0, "{residual}");
        parts.iter().map(|part| (part.weight * 1000.0).round() / 1000.0).collect::<Vec<f64>>()
    };
    let half = mixed(&a, &b, |a, b| 0.5 * a + 0.5 * b);
    assert_eq!(weights_of(&half, &ancestors[..2]), [0.5, 0.5]);
    // Ancestors without a part in it, and one that is given twice.
    assert_eq!(weights_of(&half, &ancestors), [0.5, 0.5]);
    assert_eq!(weights_of(&half, &[ancestors[0], ancestors[0], ancestors[1]]), [0.5, 0.5]);
    // Task arithmetic: a + 0.4 (b - c).
    let task = mixed(&a, &mixed(&b, &c, |b, c| 0.4 * (b - c)), |a, step| a + step);
    assert_eq!(weights_of(&task, &ancestors), [1.0, 0.4, -0.4]);
    let multiple: Vec<f32> = a.iter().map(|a| a * 0.7).collect();
    let found = only(found(&matrix("F32", f32_bytes(&multiple)), &ancestors));
    let Finding::Rescaled { ancestor, factor, .. } = found else { panic!("{found:?}") };
    assert_eq!(ancestor, "base-0");
    assert!((factor - 0.7).abs() < 1e-6, "{factor}");
}

#[test]
fn training_shows_as_sparse_or_dense_change_of_the_nearest() {
    let base = weights(7);
    let far = matrix("BF16", bf16_bytes(&weights(8)));
    let near = bf16_bytes(&base);
    let mut random = Random::new(9);
    let sparse = stepped(&near, 2, |_| i64::from(random.below(10) == 0));
    let found_sparse = only(found(&matrix("BF16", sparse), &[&far, &matrix("BF16", near.clone())]));
    let Finding::Sparse { ancestor, changed_fraction, relative_l2 } = found_sparse else {
        panic!("{found_sparse:?}")
    };
    assert_eq!(ancestor, "base-1");
    assert!((0.08..0.12).contains(&changed_fraction), "{changed_fraction}");
    assert!((1e-4..1e-2).contains(&relative_l2), "{relative_l2}");

    let moved: Vec<f32> = base.iter().map(|weight| weight + 2e-5 * random.normal()).collect();
    let base = matrix("F32", f32_bytes(&base));
    let found_dense = only(found(&matrix("F32", f32_bytes(&moved)), &[&base]));
    let Finding::Drift { relative_l2, changed_fraction, correlation, .. } = found_dense else {
        panic!("{found_dense:?}")
    };
    assert!((0.9e-3..1.1e-3).contains(&relative_l2), "{relative_l2}");
    assert!(changed_fraction > 0.99 && correlation > 0.99);
    // A different dtype does not hide it.
    let other_type = only(found(&matrix("BF16", bf16_bytes(&moved)), &[&base]));
    assert!(matches!(other_type, Finding::Drift { .. }), "{other_type:?}");
}

#[test]
fn independent_weights_are_unrelated_whatever_they_hold() {
    let mut strange = weights(10);
    for (i, value) in [f32::NAN, f32::INFINITY, -0.0, f32::MAX, f32::MIN_POSITIVE / 8.0].iter().enumerate() {
        strange[i] = *value;
    }
    let report = found(&matrix("F32", f32_bytes(&strange)), &[&matrix("F32", f32_bytes(&weights(11)))]);
    let Finding::Unrelated { correlation, bits_per_element: Some([alone, given]), .. } = only(report) else {
        panic!("related")
    };
    assert!(correlation.abs() < 0.05 && given > 0.98 * alone, "{correlation} {alone} {given}");
    // Operations do not apply to bytes and integers, which do not prevent the others from being
    // found.
    let words = |seed| Random::new(seed).bytes(4096);
    let file = |seed| {
        let [a, b] = [1u64, 2].map(|salt| words(seed + salt));
        safetensors(&[tensor("a", "I64", &[512], a), tensor("b", "F6_E2M3", &[5460], b[..4095].to_vec())])
    };
    let report = found(&file(0), &[&file(100)]);
    let kinds: Vec<String> = report.findings.iter().map(|group| group.finding.clone()).collect();
    assert_eq!(kinds, ["unrelated"], "{:?}", report.tensors);
}

#[test]
fn bundled_fine_tunes_are_told_apart() {
    let asset = |name: &str| {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo");
        std::fs::read(folder.join(format!("{name}.safetensors"))).unwrap()
    };
    let base = asset("base");
    let words = |name: &str| {
        let report = found(&asset(name), &[&base]);
        report.findings[0].finding.clone()
    };
    assert_eq!(words("ft_bf16"), "sparse change of base-0");
    assert_eq!(words("ft_master"), "dense drift of base-0");
    assert_eq!(words("ft_lora_merged"), "low rank r = 8 on base-0");
}

#[test]
fn threads_do_not_change_what_is_found() {
    let (base, other) = (weights(12), weights(13));
    let long = |values: &[f32]| f32_bytes(&values.repeat(20));
    let file =
        |values: &[f32]| safetensors(&[tensor("w", "F32", &[(ROWS * COLS * 20) as u64], long(values))]);
    let tuned = file(&mixed(&base, &other, |a, b| a + 0.01 * b));
    let with = |threads| lineage(&bases(&[&tuned]), &bases(&[&file(&base)]), threads, &Silent).unwrap();
    assert_eq!(with(1), with(3));
}

#[test]
fn renamed_tensors_are_found_as_packing_finds_them() {
    let (a, b) = (weights(1), weights(2));
    let file = |tensors: &[(&str, &[f32])]| {
        let of = |(name, values): &(&str, &[f32])| {
            tensor(name, "BF16", &[ROWS as u64, COLS as u64], bf16_bytes(values))
        };
        safetensors(&tensors.iter().map(of).collect::<Vec<_>>())
    };
    let moved = mixed(&b, &weights(3), |x, noise| x + 1e-2 * noise);
    let base = file(&[("a", &a), ("b", &b)]);
    let tuned = file(&[("x.of.a", &a), ("y.of.b", &moved)]);
    let report = found(&tuned, &[&base]);
    let findings: Vec<&Finding> = report.tensors.iter().map(|tensor| &tensor.finding).collect();
    let tensor = Some("a".to_owned());
    assert_eq!(*findings[0], Finding::Identical { ancestor: "base-0".to_owned(), tensor });
    assert!(matches!(findings[1], Finding::Drift { .. }), "{:?}", findings[1]);
}

#[test]
fn pieces_of_ancestors_are_named() {
    let values = weights(31);
    let bytes = bf16_bytes(&values);
    let rows: Vec<[u8; 2]> = bytes.as_chunks().0.to_vec();
    let turned: Vec<[u8; 2]> = (0..COLS)
        .flat_map(|column| (0..ROWS).map(move |row| row * COLS + column))
        .map(|at| rows[at])
        .collect();
    let grown = [stepped(&bytes, 2, |i| i64::from(i % 4 == 0)), vec![0; 6 * COLS]].concat();
    let tuned = safetensors(&[
        tensor("turned", "BF16", &[COLS as u64, ROWS as u64], turned.as_flattened().to_vec()),
        tensor("weight", "BF16", &[ROWS as u64 + 3, COLS as u64], grown),
        tensor(
            "unlike",
            "BF16",
            &[ROWS as u64 + 1, COLS as u64],
            Random::new(33).bytes(2 * (ROWS + 1) * COLS),
        ),
    ]);
    let report = found(&tuned, &[&matrix("BF16", bytes)]);
    for (i, most) in [(0, 0.001), (1, 0.3)] {
        let Finding::View { ancestors, of, changed_fraction, .. } = &report.tensors[i].finding else {
            panic!("{:?}", report.tensors[i])
        };
        assert_eq!((&ancestors[..], &of[..]), (&["base-0".to_owned()][..], &["weight".to_owned()][..]));
        assert!(*changed_fraction < most, "{changed_fraction}");
    }
    assert_eq!(report.tensors[2].finding, Finding::New);
    assert_eq!(report.findings[0].finding, "pieces of base-0");
}

#[test]
fn codes_of_numbers_are_explained() {
    let mut random = Random::new(31);
    let numbers = bf16_bytes(&random.weights(64 * 96));
    let values: Vec<f32> =
        numbers.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect();
    let largest = |row: &[f32]| row.iter().fold(0f32, |most, x| x.abs().max(most)) / 127.0;
    let scales: Vec<f32> = values.chunks(96).map(largest).collect();
    #[expect(clippy::cast_possible_truncation, reason = "codes have 8 bits")]
    let codes: Vec<u8> = values
        .iter()
        .enumerate()
        .map(|(i, x)| ((x / scales[i / 96]).round_ties_even() as i8).cast_unsigned())
        .collect();
    let base = safetensors(&[tensor("a.weight", "BF16", &[64, 96], numbers)]);
    let tuned = safetensors(&[
        tensor("a.weight", "I8", &[64, 96], codes),
        tensor("a.weight_scale", "F32", &[64, 1], f32_bytes(&scales)),
    ]);
    let report = lineage(&bases(&[&tuned]), &bases(&[&base]), 1, &Silent).unwrap();
    let Finding::Quantised { of, changed_fraction, .. } = &report.tensors[0].finding else {
        panic!("{:?}", report.tensors[0].finding)
    };
    assert_eq!((of.as_slice(), *changed_fraction), (&["a.weight".to_owned()][..], 0.0));
}

#[test]
fn lineage_names_the_type_of_blocks() {
    let numbers: Vec<f32> = Random::new(5).weights(64 * 64);
    let bytes: Vec<u8> = bf16_bytes(&numbers);
    let stored: Vec<f32> =
        bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect();
    let block = |x: &[f32]| {
        let scale = x.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
        #[expect(clippy::cast_possible_truncation, reason = "codes are small")]
        let code = |x: &f32| ((x * (1.0 / scale)).round() as i8).cast_unsigned();
        half::f16::from_f32(scale).to_le_bytes().into_iter().chain(x.iter().map(code)).collect::<Vec<u8>>()
    };
    let blocks = stored.chunks(32).flat_map(block).collect();
    let base = safetensors(&[tensor("a.weight", "BF16", &[64, 64], bytes)]);
    let tuned = safetensors(&[tensor("blk.a", "U8", &[64, 68], blocks)]);
    let report = lineage(&bases(&[&tuned]), &bases(&[&base]), 1, &Silent).unwrap();
    let Finding::Blocks { of, block_type, has, changed_fraction, .. } = &report.tensors[0].finding else {
        panic!("{:?}", report.tensors[0].finding)
    };
    assert_eq!((of.as_slice(), *block_type, *has), (&["a.weight".to_owned()][..], Some("Q8_0"), "blocks"));
    assert_eq!(*changed_fraction, 0.0);
    assert!(report.findings[0].finding.starts_with("Q8_0 blocks of "));
}
