//! Reading a part gives that part of the whole, and reads no more of the container than necessary.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;

use common::*;
use deltaloom::checkpoint::ReadAt;
use deltaloom::{Error, Limits, ResolvedContainer};
use proptest::prelude::*;

struct Model {
    base: Vec<u8>,
    container: Vec<u8>,
    tensors: Vec<Tensor>,
}

/// Tensors of every predictor and of shapes with and without rows.
static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let mut rng = Random::new(1);
    let weights = rng.weights(20_000);
    let before = tensor("reference", "BF16", &[100, 200], bf16_bytes(&rng.weights(20_000)));
    let kept = tensor("identical", "F16", &[5, 10, 100], f16_bytes(&rng.weights(5000)));
    let tuned = Tensor { bytes: stepped(&before.bytes, 2, |_| rng.around_zero(2)), ..before.clone() };
    let tensors = vec![
        tensor("cast", "BF16", &[40, 500], bf16_bytes(&weights)),
        tuned.clone(),
        Tensor { name: "tied".to_owned(), ..tuned },
        kept.clone(),
        tensor("master", "F32", &[40, 500], f32_bytes(&weights)),
        tensor("vector", "I16", &[7001], stepped(&[0; 14_002], 2, |i| (i as i64) / 9)),
        tensor("scalar", "F32", &[], vec![1, 2, 3, 4]),
        tensor("long rows", "F32", &[3, 1100], f32_bytes(&rng.weights(3300))),
        tensor("no rows", "F32", &[0, 4], Vec::new()),
        tensor("empty rows", "F32", &[4, 0], Vec::new()),
        tensor("nibbles", "F4", &[100, 30], rng.bytes(1500)),
        tensor("halves of bytes", "F4", &[10, 3], rng.bytes(15)),
    ];
    let base = safetensors(&[before, kept]);
    let (container, report) = pack(&safetensors(&tensors), &[&base]);
    assert_eq!(report.predictors.len(), 5);
    Model { base, container, tensors }
});

fn read(resolved: &ResolvedContainer, name: &str, rows: Option<Range<u64>>) -> deltaloom::Result<Vec<u8>> {
    let mut out = Vec::new();
    match rows {
        None => deltaloom::read_tensor(resolved, name, .., &mut out),
        Some(rows) => deltaloom::read_tensor(resolved, name, rows, &mut out),
    }
    .map(|()| out)
}

fn resolved() -> ResolvedContainer {
    resolve(&MODEL.container, &bases(&[&MODEL.base])).unwrap()
}

#[test]
fn whole_tensors_are_read() {
    let resolved = resolved();
    for tensor in &MODEL.tensors {
        assert!(read(&resolved, &tensor.name, None).unwrap() == tensor.bytes, "{}", tensor.name);
    }
}

#[test]
fn tensors_are_decoded_into_memory() {
    for resolved in [resolved(), resolve_plain_source()] {
        let infos: Vec<_> = resolved.tensors().cloned().collect();
        let mut all = vec![0xa5; infos.iter().map(|info| usize::try_from(info.len_bytes()).unwrap()).sum()];
        resolved.read_all_into(&mut all).unwrap();
        let mut rest = &all[..];
        for (number, info) in infos.iter().enumerate() {
            let tensor = MODEL.tensors.iter().find(|tensor| tensor.name == info.name).unwrap();
            let mut out = vec![0x5a; tensor.bytes.len()];
            resolved.read_into(number, &mut out).unwrap();
            assert!(out == tensor.bytes, "{}", info.name);
            assert!(rest.split_off(..out.len()).unwrap() == out, "{} among all", info.name);
            resolved.check(number, &out).unwrap();
            if let Some(byte) = out.last_mut() {
                *byte ^= 1;
                let fault = resolved.check(number, &out).unwrap_err();
                assert!(
                    matches!(fault, Error::InFile { source, .. } if matches!(*source, Error::DigestMismatch { .. }))
                );
            }
            let wrong = vec![0; out.len() + 1];
            for mut wrong in [wrong.clone(), wrong[..out.len().saturating_sub(1)].to_vec()] {
                let is_right = wrong.len() == out.len();
                assert_eq!(resolved.read_into(number, &mut wrong).is_ok(), is_right, "{}", info.name);
            }
        }
        assert!(rest.is_empty());
        let mut in_place = vec![0x5a; all.len()];
        resolved.read_references_into(&mut in_place).unwrap();
        assert!(in_place != all);
        resolved.apply_all(&mut in_place).unwrap();
        assert!(in_place == all, "references become the tensors where they are");
        assert!(matches!(resolved.read_into(infos.len(), &mut []), Err(Error::InvalidArgument(_))));
        assert!(matches!(resolved.check(infos.len(), &[]), Err(Error::InvalidArgument(_))));
        assert!(matches!(resolved.read_all_into(&mut all[1..]), Err(Error::InvalidArgument(_))));
    }
}

/// The same from a source whose bytes cannot be borrowed.
fn resolve_plain_source() -> ResolvedContainer {
    let container = open_source(Watched::new(MODEL.container.clone())).unwrap();
    ResolvedContainer::new(container, &bases(&[&MODEL.base])).unwrap()
}

/// Threads that share an output must not change it.
#[test]
fn threads_do_not_change_what_is_decoded() {
    let resolved = resolved();
    let bytes: u64 = resolved.tensors().map(deltaloom::tensor::TensorInfo::len_bytes).sum();
    let decoded = [1, 2, 5].map(|threads| {
        let mut out = vec![0; usize::try_from(bytes).unwrap()];
        deltaloom::with_threads(threads, || resolved.read_all_into(&mut out)).unwrap();
        out
    });
    assert!(decoded[0] == decoded[1] && decoded[0] == decoded[2]);
}

/// A chunk with a wrong checksum must not be accepted just because its bytes are in memory.
#[test]
fn damage_is_noticed_in_memory_too() {
    let mut damaged = MODEL.container.clone();
    damaged[20] ^= 1;
    let resolved = resolve(&damaged, &bases(&[&MODEL.base])).unwrap();
    let bytes: u64 = resolved.tensors().map(deltaloom::tensor::TensorInfo::len_bytes).sum();
    let fault = resolved.read_all_into(&mut vec![0; usize::try_from(bytes).unwrap()]).unwrap_err();
    assert!(matches!(fault, Error::InFile { source, .. } if matches!(*source, Error::Corrupt { .. })));
}

#[test]
fn a_checkpoint_can_be_held_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    write_tree(folder.path(), &[("a.safetensors", MODEL.base.clone()), ("b/notes.txt", b"opaque".to_vec())]);
    let on_disk = deltaloom::checkpoint::Checkpoint::open(folder.path(), &Limits::default()).unwrap();
    let held = on_disk.clone().into_memory().unwrap();
    assert_eq!(held.members, on_disk.members);
    for (member, info) in held.tensors() {
        let mut bytes = vec![0; usize::try_from(info.len_bytes()).unwrap()];
        on_disk.read(member, info, 0, &mut bytes).unwrap();
        assert!(on_disk.in_memory(member, info).is_none());
        assert!(held.in_memory(member, info) == Some(&bytes[..]), "{}", info.name);
    }
}

/// Puts the changes of some rows of a tensor into the bytes of its reference.
fn patched(
    resolved: &ResolvedContainer,
    name: &str,
    rows: Range<u64>,
    reference: &[u8],
    size: usize,
) -> Vec<u8> {
    let mut out = reference.to_vec();
    let put = |changes: deltaloom::Changes<'_>| {
        for (offset, value) in changes.offsets.iter().zip(changes.values.chunks_exact(size)) {
            let at = usize::try_from(changes.first + u64::from(*offset)).unwrap() * size;
            assert!(out[at..at + size] != *value, "an element that did not change");
            out[at..at + size].copy_from_slice(value);
        }
        Ok(())
    };
    resolved.changes(resolved.find(name).unwrap(), rows, put).unwrap();
    out
}

#[test]
fn changes_turn_the_reference_into_the_tensor() {
    let resolved = resolved();
    let (of_base, of_tuned) = (data_of(&MODEL.base), &MODEL.tensors[1].bytes);
    let reference = &of_base[..of_tuned.len()];
    assert!(patched(&resolved, "reference", 0..100, reference, 2) == *of_tuned);
    for rows in [0..0, 0..1, 17..83, 99..100] {
        let bytes = usize::try_from(rows.start).unwrap() * 400..usize::try_from(rows.end).unwrap() * 400;
        let mut expected = reference.to_vec();
        expected[bytes.clone()].copy_from_slice(&of_tuned[bytes]);
        assert!(patched(&resolved, "reference", rows, reference, 2) == expected);
    }
    let kept = &MODEL.tensors[3];
    assert!(patched(&resolved, "identical", 0..5, &kept.bytes, 2) == kept.bytes);
    let unused = |_: deltaloom::Changes<'_>| panic!("called");
    assert!(resolved.changes(resolved.find("identical").unwrap(), .., unused).is_ok());
    let no_reference = resolved.find("vector").unwrap();
    assert!(matches!(resolved.changes(no_reference, .., |_| Ok(())), Err(Error::InvalidArgument(_))));
    let number = resolved.find("reference").unwrap();
    assert!(matches!(resolved.changes(number, 0..101, |_| Ok(())), Err(Error::InvalidArgument(_))));
    assert!(matches!(resolved.changes(number, .., |_| Err(Error::Cancelled)), Err(Error::Cancelled)));
    assert!(matches!(resolved.changes(1000, .., |_| Ok(())), Err(Error::InvalidArgument(_))));
}

#[test]
fn changes_from_any_values_give_the_tensor() {
    let resolved = resolved();
    let mut rng = Random::new(9);
    for tensor in &MODEL.tensors {
        let number = resolved.find(&tensor.name).unwrap();
        let size = match tensor.dtype.as_str() {
            "F32" => 4,
            "F4" => 1,
            _ => 2,
        };
        let mut values = tensor.bytes.clone();
        let moved: Vec<usize> = (0..values.len() / size).filter(|_| rng.below(10) == 0).collect();
        moved.iter().for_each(|at| values[at * size] ^= 1);
        let (mut patched, mut count) = (values.clone(), 0);
        let put = |changes: deltaloom::Changes<'_>| {
            count += changes.offsets.len();
            for (offset, value) in changes.offsets.iter().zip(changes.values.chunks_exact(size)) {
                let at = usize::try_from(changes.first + u64::from(*offset)).unwrap() * size;
                patched[at..at + size].copy_from_slice(value);
            }
            Ok(())
        };
        let digest = resolved.changes_from(number, &values, put).unwrap();
        assert_eq!(Some(digest), resolved.container().digest(number), "{}", tensor.name);
        assert!(patched == tensor.bytes && count == moved.len(), "{}", tensor.name);
    }
    let unused = |_: deltaloom::Changes<'_>| panic!("called");
    assert!(matches!(resolved.changes_from(1000, &[], unused), Err(Error::InvalidArgument(_))));
    assert!(matches!(resolved.changes_from(0, &[0; 3], unused), Err(Error::InvalidArgument(_))));
    let stop = |_: deltaloom::Changes<'_>| Err(Error::Cancelled);
    assert!(matches!(resolved.changes_from(0, &MODEL.tensors[0].bytes, stop), Err(Error::Cancelled)));
}

proptest! {
    #[test]
    fn rows_are_slices_of_the_whole(which in 0..MODEL.tensors.len(), a in any::<u64>(), b in any::<u64>()) {
        let tensor = &MODEL.tensors[which];
        let Some(&count) = tensor.shape.first() else { return Ok(()) };
        let (a, b) = (a % (count + 1), b % (count + 1));
        let rows = a.min(b)..a.max(b);
        let is_whole_bytes = count == 0 || (tensor.bytes.len() as u64).is_multiple_of(count);
        match read(&resolved(), &tensor.name, Some(rows.clone())) {
            Ok(part) => {
                let row_bytes = tensor.bytes.len() as u64 / count.max(1);
                let range = usize::try_from(rows.start * row_bytes).unwrap()..usize::try_from(rows.end * row_bytes).unwrap();
                prop_assert!(is_whole_bytes && part == tensor.bytes[range]);
                let resolved = resolved();
                let number = resolved.find(&tensor.name).unwrap();
                let mut out = vec![0x5a; part.len()];
                resolved.read_rows_into(number, rows.clone(), &mut out).unwrap();
                prop_assert!(out == part);
                out.push(0);
                prop_assert!(resolved.read_rows_into(number, rows, &mut out).is_err());
            }
            Err(e) => prop_assert!(!is_whole_bytes && matches!(e, Error::InvalidArgument(_)), "{e}"),
        }
    }
}

#[test]
fn what_is_not_there_is_an_error() {
    let resolved = resolved();
    let backwards = Range { start: 3, end: 2 };
    for (name, rows) in [
        ("reference", 0..101),
        ("reference", 101..101),
        ("reference", backwards),
        ("scalar", 0..1),
        ("no rows", 0..1),
    ] {
        assert!(matches!(read(&resolved, name, Some(rows)), Err(Error::InvalidArgument(_))), "{name}");
    }
    let fault = read(&resolved, "nobody", None).unwrap_err();
    assert!(fault.to_string().contains("loom") && !fault.to_string().is_empty());
    let only = |name| ResolvedContainer::for_tensor(open(&MODEL.container).unwrap(), &bases(&[]), name);
    assert!(only("nobody").is_err());
    assert!(only("reference").is_err() && only("tied").is_err() && only("identical").is_err());
    for name in ["cast", "master", "vector"] {
        assert!(read(&only(name).unwrap(), name, None).is_ok(), "{name} needs no base");
    }
}

/// Location of every tensor's payloads: they follow the head in the order of the tensors.
fn payloads(resolved: &ResolvedContainer) -> BTreeMap<String, Range<u64>> {
    let mut at = 16;
    let mut place = |bytes: u64| {
        at += bytes;
        at - bytes..at
    };
    let report = deltaloom::inspect(resolved.container());
    report.tensors.into_iter().map(|tensor| (tensor.name, place(tensor.packed_bytes))).collect()
}

#[test]
fn one_tensor_costs_the_index_and_its_own_chunks() {
    let mut rng = Random::new(2);
    let before: Vec<Tensor> = (0..40)
        .map(|i| tensor(&format!("t{i}"), "BF16", &[250, 200], bf16_bytes(&rng.weights(50_000))))
        .collect();
    let mut tuned: Vec<Tensor> = before
        .iter()
        .map(|t| Tensor { bytes: stepped(&t.bytes, 2, |_| rng.around_zero(9)), ..t.clone() })
        .collect();
    tuned.push(Tensor { name: "tied".to_owned(), ..tuned[7].clone() });
    let (base, file) = (safetensors(&before), safetensors(&tuned));
    for against in [vec![], vec![&base[..]]] {
        let (container, report) = pack(&file, &against);
        let watched = Watched::new(container);
        let end = watched.len_bytes();
        let opened = open_source(watched.clone()).unwrap();
        // The head, the trailer, and the parts of the index in one piece.
        let index = end - report.index_bytes + 16..end - 48;
        assert_eq!(watched.take_reads(), [0..16, end - 48..end, index]);
        drop(opened);
        for (name, source) in [("t7", "t7"), ("t39", "t39"), ("tied", "t7")] {
            let resolved =
                ResolvedContainer::for_tensor(open_source(watched.clone()).unwrap(), &bases(&against), name)
                    .unwrap();
            let own = payloads(&resolved)[source].clone();
            watched.take_reads();
            let number: usize = source[1..].parse().unwrap();
            assert!(read(&resolved, name, None).unwrap() == tuned[number].bytes);
            let reads = watched.take_reads();
            assert_eq!(reads.first().unwrap().start..reads.last().unwrap().end, own);
            assert!(reads.windows(2).all(|pair| pair[0].end == pair[1].start), "each chunk once");
            // A few rows read only their chunk. 50 000 elements are 49 chunks of 6 rows.
            assert_eq!(read(&resolved, name, Some(12..18)).unwrap(), tuned[number].bytes[12 * 400..18 * 400]);
            assert_eq!(watched.take_reads(), reads[2..3]);
        }
    }
}

#[test]
fn one_tensor_needs_only_its_own_reference() {
    let mut rng = Random::new(3);
    let before: Vec<Tensor> =
        (0..9).map(|i| tensor(&format!("t{i}"), "BF16", &[2000], bf16_bytes(&rng.weights(2000)))).collect();
    let tuned: Vec<Tensor> = before
        .iter()
        .map(|t| Tensor { bytes: stepped(&t.bytes, 2, |_| rng.around_zero(2)), ..t.clone() })
        .collect();
    let (container, _) = pack(&safetensors(&tuned), &[&safetensors(&before)]);
    let part = bases(&[&safetensors(&before[4..5])]);
    assert!(resolve(&container, &part).is_err());
    let resolved = ResolvedContainer::for_tensor(open(&container).unwrap(), &part, "t4").unwrap();
    assert!(read(&resolved, "t4", None).unwrap() == tuned[4].bytes);
    assert!(read(&resolved, "t5", None).is_err());
}
