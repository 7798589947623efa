//! Safetensors files with bytes after their last tensor are packed, restored, predicted, compared
//! and changed in place like any other.

mod common;

use std::path::Path;

use common::*;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Bases, Container, Error, InPlaceOptions, Limits, Silent, UnpackOptions};

fn weights(step: i64) -> Vec<Tensor> {
    let bytes = bf16_bytes(&Random::new(5).weights(3000));
    vec![tensor("w", "BF16", &[30, 100], stepped(&bytes, 2, |i| if i % 3 == 0 { step } else { 0 }))]
}

fn with_tail(tensors: &[Tensor], tail: &[u8]) -> Vec<u8> {
    [&safetensors(tensors), tail].concat()
}

#[test]
fn tails_of_every_length_come_back() {
    let mut rng = Random::new(1);
    for len in [1, 2, 3, 4, 100, 1024, 5000] {
        let tail = rng.bytes(len);
        let (base, tuned) = (with_tail(&weights(0), &tail), with_tail(&weights(2), &tail));
        let (container, report) = roundtrip_with(&tuned, &[], &options());
        assert_eq!((container[8], report.original_bytes), (4, tuned.len() as u64));
        let report = roundtrip(&tuned, &[&base]);
        assert_eq!(predictors(&report)["__tail__"], "identical", "{len} bytes");
        // If the base has no tail, the tail is packed on its own.
        let report = roundtrip(&tuned, &[&safetensors(&weights(0))]);
        assert_eq!(predictors(&report), [("__tail__", "zero"), ("w", "reference")].into());
        // A file without a tail gets none from a base that has one.
        let (container, _) = roundtrip_with(&safetensors(&weights(2)), &[&base], &options());
        assert_eq!(container[8], 3);
    }
    // Only a tail, and a tail after a tensor without elements.
    roundtrip(&file("{}", b"all of it"), &[]);
    roundtrip(&with_tail(&[tensor("none", "F32", &[0], Vec::new())], &[7; 9]), &[]);
}

#[test]
fn a_tail_is_a_tensor_with_chunks_of_its_own() {
    let mut rng = Random::new(2);
    let old = rng.bytes(40_000);
    let mut new = old.clone();
    new.iter_mut().step_by(1000).for_each(|byte| *byte ^= 1);
    let (base, tuned) = (with_tail(&weights(0), &old), with_tail(&weights(1), &new));
    let (container, report) = roundtrip_with(&tuned, &[&base], &options());
    let of_tail = report.tensors.last().unwrap();
    assert_eq!((of_tail.name.as_str(), of_tail.dtype.as_str()), ("__tail__", "U8"));
    assert_eq!((of_tail.predictor, &of_tail.shape[..]), ("reference", &[40_000][..]));
    assert!(of_tail.packed_bytes < 4000, "{of_tail:?}");
    let resolved = resolve(&container, &bases(&[&base])).unwrap();
    let mut rows = Vec::new();
    deltaloom::read_tensor(&resolved, "__tail__", 33_000..33_010, &mut rows).unwrap();
    assert!(rows == new[33_000..33_010]);

    let report = deltaloom::diff(&bases(&[&base]), &bases(&[&tuned]), 1, &Silent).unwrap();
    let statuses: Vec<_> = report.tensors.iter().map(|t| (t.name.as_str(), t.status)).collect();
    assert_eq!(statuses, [("__tail__", "changed"), ("w", "changed")]);
    // It can be a base like any other, also as a container.
    let next = with_tail(&weights(2), &new);
    let mut both = bases(&[&base]);
    let folder = tempfile::tempdir().unwrap();
    write_tree(folder.path(), &[("tuned.loom", container)]);
    both.push_paths(&[folder.path().join("tuned.loom")], &Limits::default()).unwrap();
    let mut packed = Vec::new();
    let checkpoint = checkpoint(&next).unwrap();
    let report = deltaloom::pack_to(&checkpoint, &both, &mut packed, &options(), &Silent).unwrap();
    assert_eq!(predictors(&report)["__tail__"], "identical");
    assert!(unpack_with(&packed, &both).unwrap() == next);
}

#[test]
fn no_name_of_a_tensor_is_in_the_way() {
    let named = |names: &[&str]| {
        let tensors: Vec<Tensor> =
            names.iter().map(|name| tensor(name, "U8", &[3], b"abc".to_vec())).collect();
        with_tail(&tensors, b"the tail")
    };
    let report = roundtrip(&named(&["__tail__", "__tail___", "x"]), &[]);
    let names: Vec<&str> = report.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["__tail__", "__tail___", "x", "__tail____"]);
    roundtrip(&named(&["__tail__"]), &[&named(&["x"])]);
}

#[test]
fn folders_with_tails_in_some_files_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let files = |step: i64| {
        vec![
            ("config.json", b"{}".to_vec()),
            ("model-00001-of-00002.safetensors", with_tail(&weights(step), b"four")),
            ("model-00002-of-00002.safetensors", safetensors(&[tensor("v", "U8", &[3], vec![1; 3])])),
            ("vae/vae.safetensors", with_tail(&[tensor("u", "U8", &[2], vec![2; 2])], &[0; 700])),
        ]
    };
    write_tree(&folder.path().join("base"), &files(0));
    write_tree(&folder.path().join("tuned"), &files(3));
    let tuned = Checkpoint::open(&folder.path().join("tuned"), &Limits::default()).unwrap();
    let base = Bases::open(&[folder.path().join("base")], &Limits::default()).unwrap();
    for bases in [&base, &Bases::default()] {
        let mut container = Vec::new();
        deltaloom::pack_to(&tuned, bases, &mut container, &options(), &Silent).unwrap();
        let target = folder.path().join("restored");
        let options = UnpackOptions::default().with_threads(1).with_overwrite(true);
        deltaloom::unpack(&resolve(&container, bases).unwrap(), &target, &options, &Silent).unwrap();
        assert!(tree(&target) == tree(&folder.path().join("tuned")));
    }
}

#[test]
fn in_place_the_tail_is_changed_too_and_another_length_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let base = with_tail(&weights(0), b"old tail");
    let change = |tuned: &[u8], from: &[u8]| {
        write_tree(folder.path(), &[("model.safetensors", from.to_vec())]);
        let (container, _) = pack(tuned, &[&base]);
        let container =
            Container::from_source(Path::new("packed.loom"), Box::new(container), &Limits::default())
                .unwrap();
        let options = InPlaceOptions::default().with_threads(1);
        let answer = deltaloom::unpack_in_place(container, &path, &Bases::default(), &options, &Silent);
        (answer, std::fs::read(&path).unwrap())
    };
    let tuned = with_tail(&weights(2), b"new tail");
    let (answer, now) = change(&tuned, &base);
    answer.unwrap();
    assert!(now == tuned);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    for tuned in [safetensors(&weights(2)), with_tail(&weights(2), b"longer tail")] {
        let (answer, now) = change(&tuned, &base);
        assert!(matches!(answer, Err(Error::NotInPlace { .. })), "{answer:?}");
        assert!(now == base, "a file that was refused is as it was");
    }
    let (answer, now) = change(&with_tail(&weights(2), b"new tail"), &safetensors(&weights(0)));
    assert!(matches!(answer, Err(Error::NotInPlace { .. })) && now == safetensors(&weights(0)), "{answer:?}");
}

#[test]
fn a_file_that_lacks_bytes_is_still_refused() {
    let whole = safetensors(&weights(0));
    let cut = checkpoint(&whole[..whole.len() - 1]).err().unwrap().to_string();
    assert!(cut.contains("model.safetensors"), "{cut}");
}
