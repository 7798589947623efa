//! Earlier states of a weight are a context: the same content in fewer bytes, from plain steps and
//! from containers, as a whole and in parts.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use deltaloom::{
    Bases, Container, Error, InPlaceOptions, Limits, PackOptions, PackReport, ResolvedContainer, Silent,
};

const ROWS: usize = 300;
const COLS: usize = 100;
const STEPS: usize = 8;

/// Steps of a run, oldest first. The masters drift at their own speeds, so one that was just
/// rounded to another value will not be again soon.
fn steps() -> Vec<Vec<u8>> {
    let mut random = Random::new(7);
    let elems = ROWS * COLS;
    let mut masters = random.weights(elems);
    let drift: Vec<f32> = (0..elems).map(|_| 1.5e-5 * random.normal()).collect();
    let mut singles = random.weights(elems / 4);
    let sizes: Vec<f32> = singles.iter().map(|_| (2.0 * random.normal() - 18.0).exp2()).collect();
    let mut next = || {
        masters.iter_mut().zip(&drift).for_each(|(weight, step)| *weight += step);
        singles.iter_mut().zip(&sizes).for_each(|(value, size)| *value += size * random.normal());
        safetensors(&[
            tensor("a.weight", "BF16", &[ROWS as u64, COLS as u64], bf16_bytes(&masters)),
            tensor("b.weight", "F32", &[elems as u64 / 4], f32_bytes(&singles)),
            tensor("kept", "BF16", &[50], bf16_bytes(&[0.5; 50])),
        ])
    };
    (0..STEPS).map(|_| next()).collect()
}

/// Plain steps that form the history, newest first.
fn plain(newest_first: &[&[u8]]) -> Bases {
    let mut bases = bases(newest_first);
    let paths: Vec<PathBuf> = (0..newest_first.len()).map(|i| format!("base-{i}").into()).collect();
    bases.set_history(&paths).unwrap();
    bases
}

fn packed(file: &[u8], bases: &Bases, options: &PackOptions) -> (Vec<u8>, PackReport) {
    let mut out = Vec::new();
    let report = deltaloom::pack_to(&checkpoint(file).unwrap(), bases, &mut out, options, &Silent).unwrap();
    (out, report)
}

/// The steps before the last, newest first.
fn before_last(steps: &[Vec<u8>]) -> Vec<&[u8]> {
    steps[..STEPS - 1].iter().rev().map(Vec::as_slice).collect()
}

#[test]
fn the_same_content_takes_fewer_bytes() {
    let steps = steps();
    let (last, before) = (&steps[STEPS - 1], before_last(&steps));
    let bases = plain(&before);
    let (with, report) = packed(last, &bases, &options());
    let (without, plain_report) = pack(last, &before[..1]);
    assert!(with.len() * 100 < without.len() * 95, "{} and {} bytes", with.len(), without.len());
    let predictors = predictors(&report);
    assert_eq!((predictors["a.weight"], predictors["kept"]), ("history", "identical"));
    assert_eq!(report.tensors[0].changed_fraction, plain_report.tensors[0].changed_fraction);
    assert!(unpack_with(&with, &bases).unwrap() == *last);
    // The order of bases matters only to the writer.
    let mut shuffled = before.clone();
    shuffled.rotate_left(3);
    assert!(unpack_with(&with, &common::bases(&shuffled)).unwrap() == *last);
    for threads in [1, 2, 3] {
        assert!(packed(last, &bases, &options().with_threads(threads)).0 == with, "{threads} threads");
    }
}

#[test]
fn a_history_that_says_nothing_is_not_stored() {
    let mut random = Random::new(9);
    let steps: Vec<Vec<u8>> = (0..3)
        .map(|_| safetensors(&[tensor("noise", "F32", &[4000], f32_bytes(&random.weights(4000)))]))
        .collect();
    let (with, _) = packed(&steps[2], &plain(&[&steps[1], &steps[0]]), &options());
    assert!(with == pack(&steps[2], &[&steps[1]]).0);
}

/// Packs each step against the previous ones, all of them containers.
fn chain(folder: &Path, steps: &[Vec<u8>]) -> Vec<PathBuf> {
    let mut newest_first: Vec<PathBuf> = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        let mut bases = Bases::open(&newest_first, &Limits::default()).unwrap();
        bases.set_history(&newest_first).unwrap();
        let path = folder.join(format!("{i}.loom"));
        std::fs::write(&path, packed(step, &bases, &options()).0).unwrap();
        newest_first.insert(0, path);
    }
    newest_first
}

#[test]
fn chains_of_containers_decode_whole_and_in_parts() {
    let steps = steps();
    let folder = tempfile::tempdir().unwrap();
    let newest_first = chain(folder.path(), &steps);
    for (i, step) in steps.iter().rev().enumerate() {
        let bases = Bases::open(&newest_first[i + 1..], &Limits::default()).unwrap();
        let container = std::fs::read(&newest_first[i]).unwrap();
        assert!(unpack_with(&container, &bases).unwrap() == *step, "{i} steps before the last");
    }
    let bases = Bases::open(&newest_first[1..], &Limits::default()).unwrap();
    let container = std::fs::read(&newest_first[0]).unwrap();
    let resolved = ResolvedContainer::for_tensor(open(&container).unwrap(), &bases, "a.weight").unwrap();
    let all = &data_of(&steps[STEPS - 1])[..ROWS * COLS * 2];
    for rows in [0..1, 7..31, 290..300] {
        let mut out = Vec::new();
        deltaloom::read_tensor(&resolved, "a.weight", rows.clone(), &mut out).unwrap();
        let bytes = |row: u64| usize::try_from(row).unwrap() * COLS * 2;
        assert!(out == all[bytes(rows.start)..bytes(rows.end)], "{rows:?}");
    }
    // The same steps as plain files do as well.
    let plain = common::bases(&before_last(&steps));
    assert!(unpack_with(&container, &plain).unwrap() == steps[STEPS - 1]);
}

#[test]
fn what_is_missing_is_told_before_anything_is_decoded() {
    let steps = steps();
    let before = before_last(&steps);
    let (with, _) = packed(&steps[STEPS - 1], &plain(&before), &options());
    for missing in 0..before.len() {
        let mut others = before.clone();
        others.remove(missing);
        let fault = resolve(&with, &common::bases(&others)).err().unwrap();
        let Error::InFile { source, .. } = fault else { panic!("{fault:?}") };
        assert!(matches!(&*source, Error::BaseMismatch { tensor, .. } if tensor != "kept"), "{source:?}");
    }
    let mut bases = common::bases(&before);
    let unknown = bases.set_history(&["elsewhere".into()]).unwrap_err();
    assert!(matches!(unknown, Error::InvalidArgument(_)), "{unknown:?}");
}

#[test]
fn the_reference_is_turned_into_the_next_step_in_place() {
    let steps = steps();
    let before = before_last(&steps);
    let folder = tempfile::tempdir().unwrap();
    let (file, container) = (folder.path().join("model.safetensors"), folder.path().join("next.loom"));
    std::fs::write(&container, packed(&steps[STEPS - 1], &plain(&before), &options()).0).unwrap();
    let apply = |others: &Bases| {
        std::fs::write(&file, before[0]).unwrap();
        let container = Container::open(&container, &Limits::default())?;
        deltaloom::unpack_in_place(container, &file, others, &InPlaceOptions::default(), &Silent)
    };
    apply(&common::bases(&before[1..])).unwrap();
    assert!(std::fs::read(&file).unwrap() == steps[STEPS - 1]);
    assert!(apply(&Bases::default()).is_err());
    assert!(std::fs::read(&file).unwrap() == before[0]);
}

#[test]
fn flips_and_cuts_are_noticed() {
    let steps = steps();
    let before = before_last(&steps);
    let (with, _) = packed(&steps[STEPS - 1], &plain(&before), &options());
    let bases = common::bases(&before);
    let mut random = Random::new(3);
    for _ in 0..60 {
        let mut broken = with.clone();
        let at = usize::try_from(random.below(with.len() as u64)).unwrap();
        broken[at] ^= 1 << random.below(8);
        assert!(unpack_with(&broken, &bases).is_err(), "byte {at}");
        broken.truncate(at);
        assert!(unpack_with(&broken, &bases).is_err(), "cut at {at}");
    }
}
