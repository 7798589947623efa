//! A lookup by name does not get slower with the number of tensors.
//!
//! Measured as processor time relative to packing the same number of tensors under equal names, so
//! that a busy machine does not matter.

mod common;

use std::time::Instant;

use common::*;
use deltaloom::{ErrorKind, read_tensor};

const TENSORS: usize = 20_000;
const ELEMS: usize = 16;
/// Most processor time, relative to packing under equal names. Scanning all names for each lookup
/// took 12 times as long, and 80 times with a base that lacks the references.
const MOST: f64 = 4.0;

/// Ticks of processor time of this process, or of a clock if the system does not report them.
fn ticks(start: Instant) -> f64 {
    let of_process = || {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let (_, after_name) = stat.rsplit_once(')')?;
        let mut fields = after_name.split_whitespace().skip(11);
        let (user, system) = (fields.next()?.parse::<f64>().ok()?, fields.next()?.parse::<f64>().ok()?);
        Some(user + system)
    };
    of_process().unwrap_or_else(|| start.elapsed().as_secs_f64() * 100.0)
}

/// A file of experts; each tensor has a few values from its own random numbers.
fn experts(prefix: &str, step: u64) -> Vec<u8> {
    let mut rng = Random::new(3);
    let mut moves = Random::new(4);
    let expert = |i: usize| {
        let weights = bf16_bytes(&rng.weights(ELEMS));
        let bytes = stepped(&weights, 2, |_| i64::from(step > 0 && moves.below(8) == 0));
        tensor(&format!("{prefix}layers.{}.expert{}.w", i / 64, i % 64), "BF16", &[ELEMS as u64], bytes)
    };
    safetensors(&(0..TENSORS).map(expert).collect::<Vec<_>>())
}

#[test]
fn every_look_up_by_name_is_a_search_and_no_scan() {
    let start = Instant::now();
    let timed = |work: &mut dyn FnMut()| {
        let before = ticks(start);
        work();
        ticks(start) - before
    };
    let (base, same, renamed) = (experts("", 0), experts("", 1), experts("model.", 1));
    let usual = timed(&mut || _ = pack(&same, &[&base]));
    let check = |what: &str, work: &mut dyn FnMut()| {
        let ticks = timed(work);
        assert!(ticks <= MOST * usual.max(10.0), "{what}: {ticks} ticks, and {usual} under equal names");
    };

    let mut packed = Vec::new();
    check("a prefix added to every name", &mut || {
        let (container, report) = pack(&renamed, &[&base]);
        assert!(report.tensors.iter().all(|tensor| tensor.predictor != "zero"));
        packed = container;
    });
    check("restoring that", &mut || assert!(unpack(&packed, &[&base]).unwrap() == renamed));
    let renamed_base = experts("moved.", 0);
    check("a base whose names have changed since", &mut || {
        assert!(unpack(&packed, &[&renamed_base]).unwrap() == renamed);
    });
    check("a base that lacks every reference", &mut || {
        assert_eq!(unpack(&packed, &[&renamed]).unwrap_err().kind(), ErrorKind::WrongBase);
    });
    check("one tensor after another by its name", &mut || {
        let resolved = resolve(&packed, &bases(&[&base])).unwrap();
        for info in resolved.tensors() {
            let mut bytes = Vec::new();
            read_tensor(&resolved, &info.name, .., &mut bytes).unwrap();
            assert_eq!(bytes.len(), 2 * ELEMS);
        }
    });
    check("names of which each differs from all others in one part", &mut || {
        let mut rng = Random::new(5);
        let bytes: Vec<Vec<u8>> = (0..TENSORS).map(|_| rng.bytes(4 * ELEMS)).collect();
        let one = |i: usize| tensor(&format!("layer{i}.w"), "F32", &[ELEMS as u64], bytes[i].clone());
        let file = safetensors(&(0..TENSORS).map(one).collect::<Vec<_>>());
        assert!(unpack(&pack(&file, &[]).0, &[]).unwrap() == file);
    });
    check("tensors that are all equal", &mut || {
        let one = |i: usize| tensor(&format!("{i}.w"), "F32", &[ELEMS as u64], vec![1; 4 * ELEMS]);
        let file = safetensors(&(0..TENSORS).map(one).collect::<Vec<_>>());
        assert!(unpack(&pack(&file, &[]).0, &[]).unwrap() == file);
    });
}
