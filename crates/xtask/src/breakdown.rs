//! docs/benchmarks/breakdown.*: where the processor time of `deltaloom pack` and `unpack` goes,
//! stage by stage, sampled by Linux perf.
//!
//! The shares are published, but no check depends on them; instructions.rs has the counts that may
//! not grow.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::commands::{cargo, is_installed, stdout_of};
use crate::{Mode, root, say, settle};

const JSON: &str = "docs/benchmarks/breakdown.json";
const PAGE: &str = "docs/benchmarks/breakdown.md";
const RECIPE: &str = "breakdown";
/// Samples per second of processor time; odd, so that they do not run in step with the clock.
const SAMPLE_HZ: u32 = 4999;
/// Most samples, in per cent, that may belong to no stage.
const MAX_OTHER: f64 = 10.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Read,
    Contexts,
    Choose,
    Residual,
    Code,
    Hash,
    Checksum,
    Move,
    Clear,
    Memory,
    Write,
    Start,
    Other,
}

use Stage::{
    Checksum, Choose, Clear, Code, Contexts, Hash, Memory, Move, Other, Read, Residual, Start, Write,
};

/// Every stage in the order of the table, with its name and its contents.
const STAGES: [(Stage, &str, &str); 13] = [
    (Read, "read", "system calls that read, headers, the index of the container"),
    (Contexts, "contexts", "predictions and the context of each element"),
    (Choose, "choose", "histograms, step scales, costs, table sets"),
    (Residual, "residual", "ULP residuals, float fields and raw bits, made or applied"),
    (Code, "code", "rANS and its tables, Rice codes, zstd"),
    (Hash, "hash", "BLAKE3 of tensors"),
    (Checksum, "checksum", "CRC-32 of chunks"),
    (Move, "copy", "memmove, memset and memcmp, without the page faults in them"),
    (Clear, "page clearing", "zeros that the system writes to pages before a process gets them"),
    (Memory, "memory", "the rest of page faults and mapping, and the allocator"),
    (Write, "write", "system calls that write, the container's writer"),
    (Start, "start and end", "loading and leaving the program"),
    (Other, "other", "what no rule knows"),
];

/// Which stage a function belongs to: the first text that its name, after a space, contains.
///
/// The innermost frame of a sample with a rule decides, so helpers without a rule belong to their
/// callers.
const RULES: &[(Stage, &[&str])] = &[
    // The system
    (Clear, &["clear_page", "clear_huge_page", "folio_zero_user"]),
    (
        Start,
        &[
            "filemap_fault",
            "filemap_map_pages",
            "execve",
            "do_exit",
            "do_group_exit",
            "ret_from_fork",
            "clone",
        ],
    ),
    (Memory, &["exc_page_fault", "sys_mmap", "sys_munmap", "sys_madvise", "sys_mprotect", "sys_brk"]),
    (Read, &["sys_read", "sys_pread", "sys_open", "sys_newfstat", "sys_statx", "sys_lseek", "sys_fadvise"]),
    (Write, &["sys_write", "sys_pwrite", "sys_fsync", "sys_fdatasync", "do_fsync", "sys_ftruncate"]),
    (Write, &["sys_fallocate", "sys_rename", "sys_link", "sys_unlink", "sys_close", "task_work_run"]),
    (Other, &["entry_SYSCALL"]),
    // Libraries
    (Start, &["ld-linux", " _dl_", " _start", " __libc_start"]),
    (Move, &[" __memmove", " __memcpy", " __memset", " __memcmp"]),
    (Memory, &[" mi_", " _mi_"]),
    (Hash, &["blake3"]),
    (Checksum, &["crc32"]),
    (Code, &[" ZSTD_", " HUF_", " FSE_", " HIST_", " zstd::"]),
    // deltaloom
    (
        Choose,
        &["keys::count_pairs", "fields::count_tops", "ulp::count_changed", "common_zero_bits", "escape_bits"],
    ),
    (Choose, &["kernels::steps", "residual::scales", "deltaloom::plan", "entropy::table", "entropy::log2"]),
    (Choose, &["deltaloom::origin", "pack::choose"]),
    (Contexts, &["kernels::keys", "deltaloom::predict"]),
    (Code, &["kernels::rans", "entropy::block", "entropy::rice", "codec::planes"]),
    (Residual, &["kernels::ulp", "kernels::fields", "kernels::bits", "kernels::tokens", "deltaloom::codec"]),
    (Write, &["container::writer", "container::layout::serialise", "checkpoint::output"]),
    (Read, &["deltaloom::checkpoint", "deltaloom::bases", "container::layout", "container::index"]),
];

/// A command to measure: packs `tuned` with `base`, or unpacks the result.
struct Case {
    name: &'static str,
    is_unpack: bool,
    base: Option<&'static str>,
    tuned: &'static str,
}

const fn case(name: &'static str, is_unpack: bool, base: Option<&'static str>, tuned: &'static str) -> Case {
    Case { name, is_unpack, base, tuned }
}

const BASE: &str = "base/model.safetensors";
const BF16: &str = "ft_bf16/model.safetensors";
const MASTER: &str = "ft_master/model.safetensors";

/// Each unpacking follows the packing that it needs.
const CASES: [Case; 6] = [
    case("pack ft_bf16", false, Some(BASE), BF16),
    case("unpack ft_bf16", true, Some(BASE), BF16),
    case("pack ft_master", false, Some(BASE), MASTER),
    case("unpack ft_master", true, Some(BASE), MASTER),
    case("pack base", false, None, BASE),
    case("unpack base", true, None, BASE),
];

/// The samples of a command.
#[derive(Debug, Default)]
struct Samples {
    /// Number of samples per stage, for each run.
    runs: Vec<BTreeMap<Stage, u32>>,
    /// Innermost frames of samples without a stage.
    unmapped: BTreeMap<String, u32>,
}

/// Published numbers of a command.
#[derive(Debug, Serialize)]
struct Breakdown {
    name: String,
    /// Percentages of `cpu_ms`.
    percent: BTreeMap<&'static str, f64>,
    /// Processor time of a run without page clearing.
    cpu_ms: f64,
    /// Quartiles of the additional time for page clearing.
    page_clearing_ms: [f64; 2],
}

/// The published report.
#[derive(Debug, Serialize)]
struct Report {
    command: String,
    version: String,
    machine: String,
    date: String,
    runs: u32,
    sample_hz: u32,
    commands: Vec<Breakdown>,
}

/// Samples every command `runs` times and writes the shares of the stages.
///
/// # Errors
/// If perf, the weights or the permission to sample the system is missing, a command fails, or too
/// many samples belong to no stage.
pub fn run(runs: u32, data: &Path) -> Result<()> {
    ensure!(
        is_installed("perf"),
        "perf is missing; install it with the system's package manager (linux-perf, linux-tools)"
    );
    let weights = data.join("lm12m");
    ensure!(
        weights.is_dir(),
        "the lm12m weights are absent (no lm12m/ in {}); set DELTALOOM_DATA",
        data.display()
    );
    let program = build()?;
    let scratch = tempfile::tempdir_in(target())?;
    let bench = Bench { program: &program, weights: &weights, scratch: scratch.path() };
    let samples = bench.sample(runs)?;
    let mut commands = Vec::new();
    for (case, samples) in CASES.iter().zip(&samples) {
        say(&summary(case.name, samples))?;
        check(case.name, samples)?;
        commands.push(breakdown(case.name, samples));
    }
    write(&Report {
        command: format!("cargo run --release -p xtask -- breakdown --runs {runs}"),
        version: version(&program)?,
        machine: machine()?,
        date: stdout_of(Command::new("date").args(["-u", "+%F"]))?.trim().to_owned(),
        runs,
        sample_hz: SAMPLE_HZ,
        commands,
    })
}

/// Where the program with frame pointers is built and files are written: on the disk of the
/// checkout, as a user's would be.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), PathBuf::from)
        .join("breakdown")
}

/// Builds the program as released, but with the frame pointers and names that perf needs.
/// Returns its path.
fn build() -> Result<PathBuf> {
    let mut cargo = cargo(&["build", "--quiet", "--release", "-p", "deltaloom-cli"]);
    cargo.env("CARGO_TARGET_DIR", target()).env("RUSTFLAGS", "-C force-frame-pointers=yes");
    stdout_of(cargo.env("CARGO_PROFILE_RELEASE_STRIP", "none"))?;
    Ok(target().join("release/deltaloom"))
}

struct Bench<'a> {
    program: &'a Path,
    weights: &'a Path,
    scratch: &'a Path,
}

impl Bench<'_> {
    /// Samples each command. The runs of all commands take turns, so that other work on the machine
    /// affects all of them alike.
    fn sample(&self, runs: u32) -> Result<Vec<Samples>> {
        let mut samples: Vec<Samples> = CASES.iter().map(|_| Samples::default()).collect();
        for run in 0..=runs {
            for (case, samples) in CASES.iter().zip(&mut samples) {
                let script = self.record(case).with_context(|| case.name.to_owned())?;
                // The first run warms up.
                if run > 0 {
                    samples.add_run(&script);
                }
            }
        }
        Ok(samples)
    }

    /// Runs the command once under perf and returns its samples as text.
    fn record(&self, case: &Case) -> Result<String> {
        let profile = self.scratch.join("perf.data");
        let mut record = Command::new("perf");
        // The software clock exists in virtual machines too.
        record.args(["record", "--quiet", "-g", "-e", "cpu-clock", "-F", &SAMPLE_HZ.to_string(), "-o"]);
        stdout_of(record.arg(&profile).arg("--").arg(self.program).args(self.arguments(case)))?;
        let mut script = Command::new("perf");
        stdout_of(script.args(["script", "--no-inline", "-F", "ip,sym,dso", "-i"]).arg(&profile))
    }

    fn arguments(&self, case: &Case) -> Vec<PathBuf> {
        let packed = self.scratch.join("packed.loom");
        let (subcommand, from, to) = if case.is_unpack {
            ("unpack", packed, self.scratch.join("restored"))
        } else {
            ("pack", self.weights.join(case.tuned), packed)
        };
        let mut arguments = vec![subcommand.into(), from, "-o".into(), to];
        arguments.extend(["--overwrite", "--threads", "1"].map(PathBuf::from));
        arguments.extend(case.base.iter().flat_map(|base| ["--base".into(), self.weights.join(base)]));
        arguments
    }
}

impl Samples {
    /// Adds the output of `perf script` for a run: paragraphs of frames, innermost first.
    fn add_run(&mut self, script: &str) {
        let mut by_stage = BTreeMap::new();
        for sample in script.split("\n\n").filter(|sample| !sample.trim().is_empty()) {
            let stage = stage_of(sample);
            *by_stage.entry(stage).or_default() += 1;
            if stage == Other {
                *self.unmapped.entry(innermost(sample)).or_default() += 1;
            }
        }
        self.runs.push(by_stage);
    }

    /// The counts of the middle half of the runs.
    fn middle(&self, stage: Stage) -> Vec<f64> {
        let count = |run: &BTreeMap<Stage, u32>| f64::from(run.get(&stage).copied().unwrap_or(0));
        let mut counts: Vec<f64> = self.runs.iter().map(count).collect();
        counts.sort_by(f64::total_cmp);
        let quarter = counts.len() / 4;
        counts[quarter..counts.len() - quarter].to_vec()
    }

    /// Samples per run in all stages but page clearing.
    fn of_a_run(&self) -> f64 {
        shared_stages().map(|(stage, ..)| mean(&self.middle(stage))).sum()
    }

    fn percent(&self, stage: Stage) -> f64 {
        100.0 * mean(&self.middle(stage)) / self.of_a_run().max(1.0)
    }

    /// Milliseconds of page clearing in the run at the lower and at the upper quartile.
    fn page_clearing_ms(&self) -> [f64; 2] {
        let middle = self.middle(Clear);
        [middle.first(), middle.last()].map(|count| count.copied().map_or(0.0, milliseconds))
    }
}

/// The stages that share the time: all but page clearing, which is reported separately.
///
/// A virtual machine may get pages from its host only when they are cleared. That takes from a
/// tenth of a run to more than all the rest of it.
fn shared_stages() -> impl Iterator<Item = (Stage, &'static str, &'static str)> {
    STAGES.into_iter().filter(|(stage, ..)| *stage != Clear)
}

fn milliseconds(samples: f64) -> f64 {
    1000.0 * samples / f64::from(SAMPLE_HZ)
}

fn mean(values: &[f64]) -> f64 {
    let (sum, count) = values.iter().fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    if count > 0.0 { sum / count } else { 0.0 }
}

/// The names in a sample, each after a space.
fn frames(sample: &str) -> impl Iterator<Item = &str> {
    sample.lines().filter_map(|line| line.trim_start().find(' ').map(|at| &line.trim_start()[at..]))
}

/// The stage of a sample, from its innermost frame with a rule.
fn stage_of(sample: &str) -> Stage {
    let stage_of_frame = |frame: &str| {
        let knows = |(_, texts): &&(Stage, &[&str])| texts.iter().any(|text| frame.contains(text));
        RULES.iter().find(knows).map(|(stage, _)| *stage)
    };
    frames(sample).find_map(stage_of_frame).unwrap_or(Other)
}

/// The innermost frames of a sample, for the list of frames without a rule.
fn innermost(sample: &str) -> String {
    let name = |frame: &str| frame.rsplit_once(" (").map_or(frame, |(name, _)| name).trim().to_owned();
    frames(sample).take(3).map(name).collect::<Vec<_>>().join(" < ")
}

/// The shares of a command on one line, and the most frequent frames without a rule.
fn summary(name: &str, samples: &Samples) -> String {
    let mut text = format!("{name}:");
    for (stage, name, _) in shared_stages() {
        let _ = write!(text, " {name} {:.1} %,", samples.percent(stage));
    }
    let [low, high] = samples.page_clearing_ms();
    let _ = write!(text, " and page clearing {low:.0} to {high:.0} ms");
    let mut unmapped: Vec<_> = samples.unmapped.iter().collect();
    unmapped.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (frames, count) in unmapped.into_iter().take(8) {
        let _ = write!(text, "\n    no stage, {count} samples: {frames}");
    }
    text
}

fn check(name: &str, samples: &Samples) -> Result<()> {
    let reads = samples.percent(Read) + samples.percent(Write);
    let advice = "sampling it needs root, or kernel.perf_event_paranoid <= 1 and kernel.kptr_restrict = 0";
    ensure!(reads > 0.0, "{name}: no samples of the system; {advice}");
    let other = samples.percent(Other);
    ensure!(
        other < MAX_OTHER,
        "{name}: {other:.1} % of the samples have no stage; add rules to breakdown.rs"
    );
    Ok(())
}

fn breakdown(name: &str, samples: &Samples) -> Breakdown {
    let round = |value: f64| (10.0 * value).round() / 10.0;
    Breakdown {
        name: name.to_owned(),
        percent: shared_stages().map(|(stage, name, _)| (name, round(samples.percent(stage)))).collect(),
        cpu_ms: round(milliseconds(samples.of_a_run())),
        page_clearing_ms: samples.page_clearing_ms().map(round),
    }
}

/// The program's version, and the commit that it was built from.
fn version(program: &Path) -> Result<String> {
    let version = stdout_of(Command::new(program).arg("--version"))?;
    let mut git = Command::new("git");
    let commit = stdout_of(git.args(["describe", "--always", "--dirty"]).current_dir(root()));
    Ok(format!("{}, commit {}", version.trim(), commit.as_deref().unwrap_or("unknown").trim()))
}

fn machine() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
    let models = cpus.lines().filter(|line| line.starts_with("model name"));
    let model =
        models.clone().next().and_then(|line| line.split_once(": ")).map_or("unknown", |(_, model)| model);
    let system = stdout_of(Command::new("uname").args(["-s", "-r"]))?;
    let isa = deltaloom_kernels::isa::isa().name();
    Ok(format!("{model}, {} cores ({isa}), {}", models.count(), system.trim()))
}

fn write(report: &Report) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(report)?;
    json.push(b'\n');
    settle(Mode::Write, JSON, &json, RECIPE)?;
    settle(Mode::Write, PAGE, page(report).as_bytes(), RECIPE)
}

fn page(report: &Report) -> String {
    let Report { command, version, machine, date, runs, .. } = report;
    let names: Vec<&str> = report.commands.iter().map(|command| command.name.as_str()).collect();
    let row = |cell: &dyn Fn(&Breakdown) -> String| {
        report.commands.iter().map(cell).collect::<Vec<_>>().join(" | ")
    };
    let mut text = format!(
        "# Where the time goes\n\nPer cent of processor time without page clearing, one thread, on the lm12m weights; ft_bf16 and ft_master have `base` as base.\n\n\
         {machine}; {date}; {version}; `{command}`: {runs} runs of each command, sampled at {SAMPLE_HZ} Hz; means of the middle half of the runs.\n\n\
         | stage | {} | what is in it |\n|---|{}---|\n",
        names.join(" | "),
        "--:|".repeat(names.len())
    );
    for (_, stage, what) in shared_stages() {
        let _ = writeln!(text, "| {stage} | {} | {what} |", row(&|of| format!("{:.1}", of.percent[stage])));
    }
    let _ = writeln!(
        text,
        "| **sum, ms** | {} | processor time of a run |",
        row(&|of| format!("{:.0}", of.cpu_ms))
    );
    let clearing = |of: &Breakdown| of.page_clearing_ms.map(|ms| format!("{ms:.0}")).join(" to ");
    let what = "besides, quartiles of the runs: the system clears pages before a process gets them";
    let _ = writeln!(text, "| page clearing, ms | {} | {what} |", row(&clearing));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT_IN_READ: &str = "
\tffffffff8220 clear_page_erms ([kernel.kallsyms])
\tffffffff8221 asm_exc_page_fault ([kernel.kallsyms])
\tffffffff8222 __x64_sys_pread64 ([kernel.kallsyms])
\t    55e0c8d0 deltaloom::checkpoint::Checkpoint::read (/x/deltaloom)
";

    #[test]
    fn the_innermost_frame_with_a_rule_decides() {
        assert_eq!(stage_of(FAULT_IN_READ), Clear);
        assert_eq!(stage_of(&FAULT_IN_READ.replace("clear_page_erms", "get_page")), Memory);
        let helper = "\t55 core::iter::fold (/x/deltaloom)\n\t56 deltaloom::plan::draft (/x/deltaloom)\n";
        assert_eq!(stage_of(helper), Choose);
        assert_eq!(stage_of("\t55 std::helper (/x/deltaloom)\n"), Other);
    }

    #[test]
    fn a_text_with_a_space_is_the_start_of_a_name() {
        assert_eq!(stage_of("\t55 mi_free (/x/deltaloom)"), Memory);
        assert_eq!(stage_of("\t55 std::semi_free (/x/deltaloom)"), Other);
    }

    #[test]
    fn samples_are_counted_run_by_run() {
        let mut samples = Samples::default();
        samples.add_run(&format!("{FAULT_IN_READ}\n\n\t55 a (x)\n\t56 b (x)\n\n"));
        samples.add_run(FAULT_IN_READ);
        assert_eq!(samples.runs[0], BTreeMap::from([(Clear, 1), (Other, 1)]));
        assert_eq!(samples.unmapped, BTreeMap::from([("a < b".to_owned(), 1)]));
        assert_eq!((samples.middle(Clear), samples.middle(Other)), (vec![1.0, 1.0], vec![0.0, 1.0]));
    }

    #[test]
    fn one_run_out_of_line_changes_nothing() {
        let runs = [4, 4, 4, 400].map(|count| BTreeMap::from([(Clear, 5 * count), (Code, count), (Hash, 4)]));
        let samples = Samples { runs: runs.to_vec(), unmapped: BTreeMap::new() };
        assert_eq!((samples.percent(Code), samples.of_a_run()), (50.0, 8.0));
        assert_eq!(samples.page_clearing_ms(), [milliseconds(20.0); 2]);
    }

    #[test]
    fn every_stage_has_a_row() {
        for (stage, _) in RULES {
            assert_eq!(STAGES.iter().filter(|(other, ..)| other == stage).count(), 1);
        }
    }
}
