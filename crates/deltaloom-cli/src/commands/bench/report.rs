//! The report of `deltaloom bench`: JSON with the stable keys of docs/cli.md, or a table.

use std::collections::BTreeMap;
use std::fs;

use deltaloom::checkpoint::Checkpoint;
use deltaloom_report::median;
use serde::Serialize;

use crate::args::BenchArguments;
use crate::ui;
use crate::ui::table::{Cell, Table};
use crate::values::bench::Row;

const NOTES: &str = "\
MB/s are 10^6 original bytes per second, medians over the rounds. Every row restored every byte.
deltaloom: all of packing and opening except reading and writing files. Decoding verifies the CRC-32 of every chunk; with digests, also the BLAKE3 digest of every tensor.
in-place: the same container, applied to the base in memory; unchanged chunks are not touched.
Others: one thread, tensor by tensor; headers and the lengths of frames are not counted.
";

/// The machine of the measurement.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    cpu: String,
    cores: usize,
    isa: &'static str,
    os: String,
}

impl Machine {
    fn this() -> Self {
        let facts = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = facts.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            cpu: model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned()),
            cores: cores(),
            isa: deltaloom::isa_name(),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }

    /// Memory available without swapping, if the system reports it.
    pub(super) fn available_bytes() -> Option<u64> {
        let facts = fs::read_to_string("/proc/meminfo").ok()?;
        let available = facts.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        Some(available.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// One compressor: its size and its times in every round.
#[derive(Debug, Serialize)]
pub(super) struct RowReport {
    pub(super) name: String,
    pub(super) packed_bytes: u64,
    pub(super) encode_seconds: Vec<f64>,
    pub(super) decode_seconds: Vec<f64>,
}

/// The results.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    deltaloom: &'static str,
    machine: Machine,
    file: String,
    bases: Vec<String>,
    dtype_bytes: BTreeMap<String, u64>,
    original_bytes: u64,
    threads: usize,
    rounds: usize,
    rows: Vec<RowReport>,
}

impl Report {
    pub(super) fn new(arguments: &BenchArguments, checkpoint: &Checkpoint, rows: Vec<RowReport>) -> Self {
        let mut dtype_bytes = BTreeMap::new();
        for (_, info) in checkpoint.tensors() {
            *dtype_bytes.entry(info.dtype.to_string()).or_default() += info.len_bytes();
        }
        Self {
            deltaloom: env!("CARGO_PKG_VERSION"),
            machine: Machine::this(),
            file: arguments.checkpoint.display().to_string(),
            bases: arguments.bases.iter().map(|path| path.display().to_string()).collect(),
            dtype_bytes,
            original_bytes: checkpoint.len_bytes(),
            threads: if arguments.threads == 0 { cores() } else { arguments.threads },
            rounds: arguments.rounds,
            rows,
        }
    }

    pub(super) fn describe(&self) -> String {
        let machine = &self.machine;
        let dtypes: Vec<String> = self
            .dtype_bytes
            .iter()
            .map(|(dtype, bytes)| format!("{} {}", ui::printable(dtype), ui::bytes(*bytes)))
            .collect();
        let bases = match &self.bases[..] {
            [] => "no base".to_owned(),
            bases => format!("base {}", ui::printable(&bases.join(", "))),
        };
        format!(
            "deltaloom {} on {}, {} cores, {} kernels, {}\n{} ({}), {bases}; threads of deltaloom: {}; rounds: {}\n\n{}\n{NOTES}{}",
            self.deltaloom,
            ui::printable(&machine.cpu),
            machine.cores,
            machine.isa,
            machine.os,
            ui::printable(&self.file),
            dtypes.join(", "),
            self.threads,
            self.rounds,
            self.table(),
            self.note_on_pco(),
        )
    }

    fn table(&self) -> String {
        let original = self.original_bytes as f64;
        let rate = |seconds: &[f64]| original / 1e6 / median(seconds.to_vec()).unwrap_or(0.0).max(1e-9);
        let copied = self.rows.iter().find(|row| row.name == Row::Memcpy.name());
        let table = Table::of(&self.rows)
            .shown("", |row| Cell::text(&*row.name))
            .shown("packed bytes", |row| Cell::count(row.packed_bytes))
            .shown("of original", |row| Cell::percent(row.packed_bytes as f64 / original, 2))
            .shown("ratio", |row| Cell::ratio(original / row.packed_bytes.max(1) as f64))
            .shown("encode MB/s", |row| Cell::fixed(rate(&row.encode_seconds), 0))
            .shown("decode MB/s", |row| Cell::fixed(rate(&row.decode_seconds), 0))
            .shown("of memcpy", |row| {
                let of = |copy: &RowReport| rate(&row.decode_seconds) / rate(&copy.decode_seconds);
                Cell::maybe(copied, |copy| Cell::fixed(of(copy), 3))
            });
        table.text()
    }

    /// pco uses the instructions that the compiler may use; ours and zstd's are chosen at run time.
    fn note_on_pco(&self) -> &'static str {
        let is_slowed = cfg!(all(target_arch = "x86_64", not(target_feature = "avx2")));
        if is_slowed && self.rows.iter().any(|row| row.name == Row::Pco.name()) {
            "pco was compiled for any x86-64 CPU; for its best speed, build with RUSTFLAGS=\"-C target-feature=+bmi1,+bmi2,+lzcnt,+avx2\"\n"
        } else {
            ""
        }
    }
}
