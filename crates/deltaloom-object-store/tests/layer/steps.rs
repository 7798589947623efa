//! Writers that add steps to one series, whatever happens to their requests, and what must be there
//! afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use deltaloom::series::{AddOptions, NewStep, Part, RebuildOptions, Series, SeriesOptions, Store};
use deltaloom::{Error, PackOptions, Silent, UnpackOptions};

/// A small model of BF16 weights, some of which move from step to step.
fn model(writer: usize, step: usize) -> Vec<u8> {
    let header = br#"{"weight":{"dtype":"BF16","shape":[40,50],"data_offsets":[0,4000]}}"#;
    let moved = |i: usize| (0..=step).filter(|s| (i * 7 + s * 13 + writer).is_multiple_of(40)).count();
    let word = |i: usize| u16::try_from(0x3c00 + i % 700 + moved(i)).expect("a word").to_le_bytes();
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header, &(0..2000).flat_map(word).collect::<Vec<u8>>()].concat()
}

fn pack_options() -> PackOptions {
    PackOptions::default().with_threads(1)
}

pub(crate) fn init(store: Box<dyn Store>) {
    Series::init(store, &SeriesOptions::default().with_keyframe_every(6).with_max_chain(3))
        .expect("a new series");
}

/// Adds `count` steps through stores of `open`. A writer repeats a failed request with the same
/// step number, because a request without an answer may take effect at any later time. It takes
/// another number only once another step has its own: then the old request can only be refused.
pub(crate) fn add(open: &dyn Fn() -> Box<dyn Store>, writer: usize, count: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    let next_step = || -> Result<u64, Error> {
        Ok(Series::open(open())?.last(1)?.last().map_or(0, |newest| newest.step + 1))
    };
    for step in 0..count {
        fs::write(&path, model(writer, step)).expect("written");
        let meta = BTreeMap::from([("by".to_owned(), format!("{writer}-{step}"))]);
        let options = AddOptions::default().with_pack(pack_options());
        let mut number = None;
        loop {
            let Some(of_series) = number.or_else(|| next_step().ok()) else { continue };
            let new = NewStep::new(&path).with_step(Some(of_series)).with_meta(meta.clone());
            number = match Series::open(open()).and_then(|series| series.add(&new, &options, &Silent)) {
                Ok(_) => break,
                Err(Error::StepTaken { .. } | Error::StepOutOfOrder { .. }) => None,
                Err(_) => Some(of_series),
            };
        }
    }
}

/// Checks that every step of every writer is there once and can be restored, prunes, and checks
/// again.
pub(crate) fn check(store: Box<dyn Store>, writers: usize, count: usize) {
    let series = Series::open(store).expect("a series");
    let entries = series.last(usize::MAX).expect("entries");
    let mut found: Vec<String> = entries.iter().map(|entry| entry.meta["by"].clone()).collect();
    found.sort();
    let mut expected: Vec<String> =
        (0..writers).flat_map(|writer| (0..count).map(move |step| format!("{writer}-{step}"))).collect();
    expected.sort();
    assert_eq!(found, expected);
    check_content(&series);
    let options = RebuildOptions::default().with_pack(pack_options());
    series.prune(&"last 3, every 4".parse().expect("rules"), &options, &Silent).expect("pruned");
    series.gc(Duration::ZERO, false).expect("swept");
    check_content(&series);
}

fn check_content(series: &Series) {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    for entry in series.last(usize::MAX).expect("entries") {
        let options = UnpackOptions::default().with_threads(1).with_overwrite(true);
        series.extract(entry.step, Part::All, &out, &options, &Silent).expect("restored");
        let (writer, step) = entry.meta["by"].split_once('-').expect("two numbers");
        let expected = model(writer.parse().expect("a number"), step.parse().expect("a number"));
        assert!(fs::read(&out).expect("read") == expected, "step {}", entry.step);
    }
    let report = series.verify(true, 1, &Silent).expect("verified");
    assert!(report.ok, "{:?}", report.faults);
}
