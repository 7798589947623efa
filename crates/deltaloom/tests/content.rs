//! Tensors are found in a base by what they hold: under other names, moved, or several times.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::*;
use deltaloom::PackReport;

const ROWS: usize = 48;
const COLS: usize = 96;

/// The weights of one matrix; `drift` of their elements move by up to two ULPs.
fn matrix(seed: u64, drift: u64) -> Vec<u8> {
    let weights = bf16_bytes(&Random::new(seed).weights(ROWS * COLS));
    let mut moves = Random::new(seed + 1000);
    stepped(&weights, 2, |_| if moves.below(100) < drift { moves.around_zero(2) } else { 0 })
}

/// A file of matrices, by name and contents.
fn file(matrices: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let tensors =
        matrices.iter().map(|(name, bytes)| tensor(name, "BF16", &[ROWS as u64, COLS as u64], bytes.clone()));
    safetensors(&tensors.collect::<Vec<_>>())
}

/// Packs, restores, and returns the predictors and references of all tensors.
fn found(tuned: &[u8], bases: &[&[u8]]) -> (PackReport, Vec<(String, String)>) {
    let (container, report) = pack(tuned, bases);
    assert!(unpack(&container, bases).unwrap() == tuned);
    let rows = report.tensors.iter();
    let rows = rows.map(|row| (row.predictor.to_owned(), row.reference.clone().unwrap_or_default()));
    let rows = rows.collect();
    (report, rows)
}

fn pair(predictor: &str, reference: &str) -> (String, String) {
    (predictor.to_owned(), reference.to_owned())
}

#[test]
fn equal_tensors_are_identical_under_any_name() {
    let base = file(&[("a", matrix(1, 0)), ("b", matrix(2, 0)), ("c", matrix(3, 0))]);
    let tuned = file(&[("x.0", matrix(3, 0)), ("y.1", matrix(1, 0)), ("z.2", matrix(2, 0))]);
    let (report, rows) = found(&tuned, &[&base]);
    assert_eq!(rows, [pair("identical", "c"), pair("identical", "a"), pair("identical", "b")]);
    assert!(report.packed_bytes < 700, "{}", report.packed_bytes);
}

#[test]
fn similar_tensors_are_predicted_under_any_name_and_from_any_base() {
    let one = file(&[("a", matrix(1, 0)), ("b", matrix(2, 0))]);
    let other = file(&[("a", matrix(3, 0)), ("c", matrix(4, 0))]);
    let tuned = file(&[("p", matrix(4, 30)), ("q", matrix(2, 30)), ("a", matrix(5, 30))]);
    let (report, rows) = found(&tuned, &[&one, &other]);
    assert_eq!(rows, [pair("reference", "c"), pair("reference", "b"), pair("zero", "")]);
    assert!(report.tensors[0].packed_bytes * 4 < report.tensors[2].packed_bytes);
}

#[test]
fn layers_that_moved_are_found_though_their_old_place_is_taken() {
    let layer = |i: usize| format!("layers.{i}.w");
    let names: Vec<String> = (0..6).map(layer).collect();
    let with = |seeds: &[u64], drift: u64| {
        let rows = names.iter().zip(seeds).map(|(name, seed)| (name.as_str(), matrix(*seed, drift)));
        file(&rows.collect::<Vec<_>>())
    };
    let base = with(&[10, 11, 12, 13, 14, 15], 0);
    // Layers 1 and 2 are gone, and 4 and 5 come twice.
    let (_, rows) = found(&with(&[10, 13, 14, 15, 14, 15], 30), &[&base]);
    let references: Vec<&str> = rows.iter().map(|(_, reference)| reference.as_str()).collect();
    assert_eq!(references[1..4], ["layers.3.w", "layers.4.w", "layers.5.w"]);
    let kinds: Vec<&str> = rows.iter().map(|(predictor, _)| predictor.as_str()).collect();
    assert_eq!(kinds, ["reference", "reference", "reference", "reference", "tied", "tied"]);
    let (_, rows) = found(&with(&[10, 13, 14, 15, 14, 15], 0), &[&base]);
    let kinds: Vec<&str> = rows.iter().map(|(predictor, _)| predictor.as_str()).collect();
    assert_eq!(kinds, ["identical"; 6]);
}

#[test]
fn what_no_base_has_stands_alone() {
    let base = file(&[("a", matrix(1, 0)), ("b", matrix(2, 0))]);
    let tuned = file(&[("a", matrix(6, 0)), ("c", matrix(7, 0))]);
    let (_, rows) = found(&tuned, &[&base]);
    assert_eq!(rows, [pair("zero", ""), pair("zero", "")]);
}

#[test]
fn tensors_without_elements_and_constants_do_not_confuse_it() {
    let zeros = vec![0; 2 * ROWS * COLS];
    let base = file(&[("zeros", zeros.clone()), ("a", matrix(1, 0))]);
    let mut tensors = vec![tensor("empty", "BF16", &[0, 7], Vec::new())];
    tensors.push(tensor("none", "BF16", &[ROWS as u64, COLS as u64], zeros));
    tensors.push(tensor("one", "BF16", &[1], vec![0, 63]));
    let (_, rows) = found(&safetensors(&tensors), &[&base]);
    assert_eq!(rows[1], pair("identical", "zeros"));
}

#[test]
fn near_copies_of_one_file_are_predicted_from_the_first() {
    let names: Vec<String> = (0..40).map(|i| format!("layer{i}.w")).collect();
    let changed = |i: usize| {
        let mut bytes = Random::new(8).bytes(9000);
        bytes[4000 + i] ^= 1;
        tensor(&names[i], "U8", &[9000], bytes)
    };
    let mut tensors: Vec<Tensor> = (0..40).map(changed).collect();
    tensors.push(tensor("other", "U8", &[9000], Random::new(9).bytes(9000)));
    let (report, rows) = found(&safetensors(&tensors), &[]);
    let companions = rows.iter().filter(|(predictor, _)| predictor == "companion").count();
    assert_eq!(companions, 39);
    assert!(report.packed_bytes < 24_000, "{}", report.packed_bytes);
}
