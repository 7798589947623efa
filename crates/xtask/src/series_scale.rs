//! Cost of a series at its store as the series grows: requests and bytes for adding, listing and
//! restoring.
//!
//! Counts are exact and the same on every machine; the store is a folder behind a counter.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fs, io};

use anyhow::{Context as _, Result, ensure};
use deltaloom::__internals::ratio;
use deltaloom::checkpoint::ReadAt;
use deltaloom::series::{
    AddOptions, Directory, NewStep, ObjectInfo, Part, Revision, Series, SeriesOptions, Store,
};
use deltaloom::{PackOptions, Silent, UnpackOptions};
use deltaloom_report::{Axis, Curve, Drawn, Figure, Lines, Unit, standalone};

use crate::files::{Tensor, safetensors};
use crate::{Mode, say, settle};

/// Series lengths at which requests are counted.
const MEASURED: [u64; 9] = [10, 30, 100, 300, 1_000, 2_000, 4_000, 7_000, 10_000];
/// Number of operations of each kind over which the greatest count is taken.
const REPEATED: u64 = 40;

/// Requests to a store and their bytes.
#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Counts {
    fn add(&self, bytes: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn take(&self) -> (u64, u64) {
        (self.requests.swap(0, Ordering::Relaxed), self.bytes.swap(0, Ordering::Relaxed))
    }
}

struct Counting {
    inner: Directory,
    counts: Arc<Counts>,
}

struct CountingSource {
    inner: Box<dyn ReadAt>,
    counts: Arc<Counts>,
}

impl ReadAt for CountingSource {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.counts.add(buffer.len() as u64);
        self.inner.read_at(offset, buffer)
    }
}

impl Store for Counting {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn scratch_folder(&self) -> Option<&Path> {
        self.inner.scratch_folder()
    }

    fn read_manifest(&self) -> deltaloom::Result<Option<(Vec<u8>, Revision)>> {
        let read = self.inner.read_manifest()?;
        self.counts.add(read.as_ref().map_or(0, |(bytes, _)| bytes.len() as u64));
        Ok(read)
    }

    fn replace_manifest(&self, bytes: &[u8], expected: Option<&Revision>) -> deltaloom::Result<bool> {
        self.counts.add(bytes.len() as u64);
        self.inner.replace_manifest(bytes, expected)
    }

    fn open(&self, key: &str) -> deltaloom::Result<Box<dyn ReadAt>> {
        self.counts.add(0);
        let inner = self.inner.open(key)?;
        Ok(Box::new(CountingSource { inner, counts: Arc::clone(&self.counts) }))
    }

    fn len_bytes(&self, key: &str) -> deltaloom::Result<Option<u64>> {
        self.counts.add(0);
        self.inner.len_bytes(key)
    }

    fn put_file(&self, key: &str, file: &Path) -> deltaloom::Result<()> {
        self.counts.add(std::fs::metadata(file).map_or(0, |metadata| metadata.len()));
        self.inner.put_file(key, file)
    }

    fn put(&self, key: &str, bytes: &[u8]) -> deltaloom::Result<()> {
        self.counts.add(bytes.len() as u64);
        self.inner.put(key, bytes)
    }

    fn list(&self, prefix: &str) -> deltaloom::Result<Vec<ObjectInfo>> {
        self.counts.add(0);
        self.inner.list(prefix)
    }

    fn delete(&self, key: &str) -> deltaloom::Result<()> {
        self.counts.add(0);
        self.inner.delete(key)
    }
}

/// Counts of the operations at one length of the series.
struct Row {
    steps: u64,
    /// For each of [`OPERATIONS`], the most requests and bytes.
    most: [(u64, u64); 3],
}

const OPERATIONS: [&str; 3] = ["add", "ls", "get"];

const HEAD: &str = "# What a series asks of its store

The most of 40 operations of each kind once the series has that many steps: requests (each read of an object, at any offset, is one) and bytes read or written. Checkpoints are of 2 kB, so that
nearly all of it is the manifest, its pages and indexes. `get` restores steps from the first to the last. `just series-scale` writes this page; counts do not depend on the machine.

![requests](series-scale.svg)

";

/// A small checkpoint whose weights move from step to step.
fn model(step: u64) -> Vec<u8> {
    let word =
        |i: u64| u16::try_from(0x3c00 + i % 500 + u64::from((i + step).is_multiple_of(30))).unwrap_or(0);
    let bytes = (0..1024).flat_map(|i| word(i).to_le_bytes()).collect();
    safetensors(&[Tensor::new("weight", "BF16", &[32, 32], bytes)])
}

/// Adds steps, measures, and writes docs/benchmarks/series.md and series.svg.
///
/// # Errors
/// If a step is not restored exactly, or the cost grows with the series.
pub fn run(last: u64) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let counts = Arc::new(Counts::default());
    let inner = Directory::new(&folder.path().join("store"));
    let store = Counting { inner, counts: Arc::clone(&counts) };
    let series = Series::init(Box::new(store), &SeriesOptions::default())?;
    let options = AddOptions::default().with_pack(PackOptions::default().with_threads(1));
    let checkpoint = folder.path().join("model.safetensors");
    let mut rows: Vec<Row> = Vec::new();
    for step in 0..=last {
        fs::write(&checkpoint, model(step))?;
        let new = NewStep::new(&checkpoint).with_step(Some(step));
        counts.take();
        series.add(&new, &options, &Silent)?;
        let added = counts.take();
        // The greatest of many, because the cost goes up and down with the lengths of the chain and
        // the page.
        let Some(steps) = MEASURED.into_iter().find(|steps| (*steps..steps + REPEATED).contains(&step))
        else {
            continue;
        };
        if rows.last().is_none_or(|row| row.steps != steps) {
            rows.push(Row { steps, most: [(0, 0); 3] });
        }
        series.last(20)?;
        let listed = counts.take();
        // Steps from the first to the last.
        let wanted = step * (step % REPEATED) / (REPEATED - 1);
        let out = folder.path().join("out");
        let unpack = UnpackOptions::default().with_threads(1).with_overwrite(true);
        series.extract(wanted, Part::Model, &out, &unpack, &Silent)?;
        let got = counts.take();
        ensure!(fs::read(&out)? == model(wanted), "step {wanted} differs");
        let row = rows.last_mut().context("a row was pushed")?;
        for (most, seen) in row.most.iter_mut().zip([added, listed, got]) {
            *most = (most.0.max(seen.0), most.1.max(seen.1));
        }
    }
    let text = table(&rows);
    say(&text)?;
    // From 100 steps on, the manifest does not grow.
    let grown = |at: usize| -> Option<(f64, f64)> {
        let most = |row: &Row| row.most[at];
        let full = rows.iter().find(|row| row.steps >= 300).map(most)?;
        let last = rows.last().map(most)?;
        Some((ratio(last.0, full.0), ratio(last.1, full.1)))
    };
    for (at, operation) in OPERATIONS.iter().enumerate() {
        if let Some((requests, bytes)) = grown(at) {
            ensure!(
                requests <= 1.5 && bytes <= 1.5,
                "{operation} asks for {requests:.2} times the requests and {bytes:.2} times the bytes"
            );
        }
    }
    if last < MEASURED[MEASURED.len() - 1] {
        return Ok(());
    }
    let picture = standalone(&figure(&rows), "Requests to the store against steps in the series");
    settle(Mode::Write, "docs/benchmarks/series-scale.svg", picture.as_bytes(), "series-scale")?;
    let page = format!("{HEAD}{text}");
    settle(Mode::Write, "docs/benchmarks/series-scale.md", page.as_bytes(), "series-scale")
}

fn table(rows: &[Row]) -> String {
    let mut out = String::from("| steps |");
    OPERATIONS.iter().for_each(|name| out.push_str(&format!(" {name}: requests | bytes |")));
    out.push_str("\n|--:|--:|--:|--:|--:|--:|--:|\n");
    for row in rows {
        out.push_str(&format!("| {} |", row.steps));
        row.most.iter().for_each(|(requests, bytes)| out.push_str(&format!(" {requests} | {bytes} |")));
        out.push('\n');
    }
    out
}

fn figure(rows: &[Row]) -> Figure {
    let curve = |at: usize| Curve {
        name: OPERATIONS[at].to_owned(),
        points: rows.iter().map(|row| (row.steps as f64, row.most[at].0 as f64)).collect(),
        drawn: Drawn::Line,
    };
    Figure::Lines(Lines {
        x: Axis::log("steps in the series", Unit::Count),
        y: Axis::linear("requests, the most of one operation", Unit::Count),
        curves: (0..OPERATIONS.len()).map(curve).collect(),
        marks: Vec::new(),
    })
}
