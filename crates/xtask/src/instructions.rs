//! docs/benchmarks/instructions.*: instructions per element of every kernel, which may not grow.
//!
//! valgrind's callgrind counts them on the data of benches/kernels.rs. It measures no time, and no
//! AVX-512, which valgrind does not support.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::commands::{cargo, is_installed, stdout_of};
use crate::{Mode, root, say, settle};

const JSON: &str = "docs/benchmarks/instructions.json";
const TABLE: &str = "docs/benchmarks/instructions.md";
const RECIPE: &str = "instructions";
/// The values of `DELTALOOM_ISA`.
const ISAS: [&str; 2] = ["scalar", "avx2"];
/// The function of the harness whose calls are counted.
const COUNTED: &str = "kernels::counted";
/// Counts are reproducible; smaller changes come from the code around a kernel.
const TOLERANCE: f64 = 0.02;

/// A kernel and its instructions per element on each instruction set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Kernel {
    name: String,
    per_element: BTreeMap<String, f64>,
}

/// The recorded counts.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Counts {
    command: String,
    /// Another compiler or target generates other instructions from the same source.
    compiler: String,
    notes: Vec<String>,
    kernels: Vec<Kernel>,
}

/// Results of a comparison.
#[derive(Debug, Default, PartialEq)]
struct Findings {
    faults: Vec<String>,
    notes: Vec<String>,
}

/// Records the counts, or checks that none has grown and that all kernels are recorded. Checks
/// nothing if valgrind is missing.
///
/// # Errors
/// A count that has grown, a new or missing kernel, or a harness that cannot be built or run.
pub fn run(mode: Mode) -> Result<()> {
    if !is_installed("valgrind") {
        let note = "valgrind is missing: instructions cannot be counted; install it with the system's package manager";
        return if mode == Mode::Check { say(&format!("note: {note}")) } else { bail!(note) };
    }
    let now = count()?;
    say(&table(&now.kernels))?;
    match mode {
        Mode::Write => write(&now),
        Mode::Check => check(&now),
    }
}

fn write(now: &Counts) -> Result<()> {
    for isa in ISAS {
        let is_counted = |kernel: &Kernel| kernel.per_element.contains_key(isa);
        ensure!(now.kernels.iter().all(is_counted), "this machine has no {isa}; record on one that has it");
    }
    let mut json = serde_json::to_vec_pretty(now)?;
    json.push(b'\n');
    settle(Mode::Write, JSON, &json, RECIPE)?;
    settle(Mode::Write, TABLE, page(now).as_bytes(), RECIPE)
}

fn check(now: &Counts) -> Result<()> {
    let json = fs::read(root().join(JSON)).with_context(|| format!("{JSON}; run `just {RECIPE}`"))?;
    let recorded: Counts = serde_json::from_slice(&json).context(JSON)?;
    settle(Mode::Check, TABLE, page(&recorded).as_bytes(), RECIPE)?;
    let findings = compare(&recorded, now);
    findings.notes.iter().try_for_each(|note| say(&format!("note: {note}")))?;
    if !findings.faults.is_empty() {
        bail!("{}\nrun `just {RECIPE}` if the times justify it", findings.faults.join("\n"));
    }
    say(&format!("{JSON}: no count has grown by more than {:.0} %", 100.0 * TOLERANCE))
}

/// Compares the counts with the recorded ones.
fn compare(recorded: &Counts, now: &Counts) -> Findings {
    let mut found = Findings::default();
    let is_same_compiler = recorded.compiler == now.compiler;
    if !is_same_compiler {
        let (then, now) = (&recorded.compiler, &now.compiler);
        found.notes.push(format!("recorded with {then}, but this is {now}: larger counts are not an error"));
    }
    for name in names_only_in(&recorded.kernels, &now.kernels) {
        found.faults.push(format!("{name}: recorded, but the kernel no longer exists"));
    }
    for name in names_only_in(&now.kernels, &recorded.kernels) {
        found.faults.push(format!("{name}: new kernel, not recorded"));
    }
    for (name, isa, then, now) in pairs(&recorded.kernels, &now.kernels) {
        let change = now / then - 1.0;
        let text = format!("{name}, {isa}: {now} instructions per element, recorded: {then}");
        if change > TOLERANCE && is_same_compiler {
            found.faults.push(format!("{text} ({:+.1} %)", 100.0 * change));
        } else if change.abs() > TOLERANCE {
            found.notes.push(format!("{text} ({:+.1} %); run `just {RECIPE}`", 100.0 * change));
        }
    }
    found
}

fn names_only_in<'a>(these: &'a [Kernel], those: &[Kernel]) -> Vec<&'a str> {
    let is_missing = |kernel: &&Kernel| !those.iter().any(|other| other.name == kernel.name);
    these.iter().filter(is_missing).map(|kernel| kernel.name.as_str()).collect()
}

/// Name, instruction set, recorded count and current count of everything that both have.
fn pairs<'a>(recorded: &'a [Kernel], now: &'a [Kernel]) -> Vec<(&'a str, &'a str, f64, f64)> {
    let mut pairs = Vec::new();
    for then in recorded {
        let now = now.iter().filter(|kernel| kernel.name == then.name);
        for (isa, count) in now.flat_map(|kernel| &kernel.per_element) {
            pairs.extend(
                then.per_element.get(isa).map(|then_count| (&*then.name, &**isa, *then_count, *count)),
            );
        }
    }
    pairs
}

/// Counts all kernels on all instruction sets of this machine that valgrind supports.
fn count() -> Result<Counts> {
    let harness = build()?;
    let mut kernels: Vec<Kernel> = Vec::new();
    for isa in ISAS {
        for (at, (name, count)) in count_on(isa, &harness)?.into_iter().enumerate() {
            if at == kernels.len() {
                kernels.push(Kernel { name, per_element: BTreeMap::new() });
            }
            kernels[at].per_element.insert(isa.to_owned(), count);
        }
    }
    let notes = [
        "Instructions per element, counted by callgrind in one call of each kernel on 2^17 elements, allocations and libc included.",
        "A kernel without a path of its own for an instruction set runs the path below it.",
    ];
    Ok(Counts {
        command: "cargo run --release -p xtask -- instructions".to_owned(),
        compiler: compiler()?,
        notes: notes.map(str::to_owned).to_vec(),
        kernels,
    })
}

/// Builds the harness and returns its path.
fn build() -> Result<PathBuf> {
    let arguments = [
        "bench",
        "--quiet",
        "-p",
        "deltaloom-kernels",
        "--features",
        "lab",
        "--bench",
        "kernels",
        "--no-run",
    ];
    let messages = stdout_of(cargo(&arguments).arg("--message-format=json"))?;
    let mut path = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    });
    path.next_back().context("cargo bench names no executable")
}

fn compiler() -> Result<String> {
    let version = stdout_of(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or("?");
    Ok(format!("{} for {host}", version.lines().next().unwrap_or("?")))
}

/// Names of the kernels and their instructions per element; empty if this machine does not have the
/// instruction set.
fn count_on(isa: &str, harness: &Path) -> Result<Vec<(String, f64)>> {
    let scratch = tempfile::tempdir()?;
    let out = scratch.path().join("profile");
    let mut valgrind = Command::new("valgrind");
    // Each call of the counted function writes its own profile: profile.1, profile.2, ...
    valgrind.args(["--quiet", "--tool=callgrind"]).arg(format!("--callgrind-out-file={}", out.display()));
    valgrind.args(["--toggle-collect=", "--dump-after="].map(|option| format!("{option}{COUNTED}")));
    let lines = stdout_of(valgrind.arg(harness).arg("--once").env("DELTALOOM_ISA", isa))?;
    let mut counts = Vec::new();
    for (line, number) in lines.lines().zip(1..) {
        let (ran_on, elements, name) =
            fields(line).with_context(|| format!("unexpected output of the harness: {line}"))?;
        if ran_on != isa {
            say(&format!("note: this machine has no {isa}, which is not counted"))?;
            return Ok(Vec::new());
        }
        let profile = out.with_extension(number.to_string());
        let profile =
            fs::read_to_string(&profile).with_context(|| format!("callgrind has not seen {COUNTED}"))?;
        counts.push((name.to_owned(), per_element(&profile, elements)?));
    }
    ensure!(!counts.is_empty(), "the harness has run no kernel");
    Ok(counts)
}

/// Instruction set, elements and name from a line of the harness.
fn fields(line: &str) -> Option<(&str, f64, &str)> {
    let (isa, rest) = line.split_once('\t')?;
    let (elements, name) = rest.split_once('\t')?;
    Some((isa, elements.parse().ok()?, name))
}

/// The total of a profile over the number of elements, with four decimals.
fn per_element(profile: &str, elements: f64) -> Result<f64> {
    let total = profile.lines().find_map(|line| line.strip_prefix("totals: "));
    let total: f64 = total.context("a profile without totals")?.trim().parse()?;
    ensure!(total > 0.0, "a profile without instructions");
    Ok((10_000.0 * total / elements).round() / 10_000.0)
}

fn page(counts: &Counts) -> String {
    let notes: Vec<String> = counts.notes.iter().map(|note| format!("- {note}\n")).collect();
    format!(
        "# Instructions of the kernels\n\nWritten by `just {RECIPE}`, with {}.\n\n{}\n{}",
        counts.compiler,
        notes.concat(),
        table(&counts.kernels)
    )
}

fn table(kernels: &[Kernel]) -> String {
    let mut lines = format!("| instructions per element | {} |\n|---|--:|--:|\n", ISAS.join(" | "));
    for kernel in kernels {
        let count = |isa| kernel.per_element.get(isa).map_or("-".to_owned(), |count| format!("{count:.2}"));
        lines.push_str(&format!("| {} | {} |\n", kernel.name, ISAS.map(count).join(" | ")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(compiler: &str, kernels: &[(&str, f64)]) -> Counts {
        let kernel = |&(name, count): &(&str, f64)| Kernel {
            name: name.to_owned(),
            per_element: BTreeMap::from([("avx2".to_owned(), count)]),
        };
        Counts {
            command: String::new(),
            compiler: compiler.to_owned(),
            notes: Vec::new(),
            kernels: kernels.iter().map(kernel).collect(),
        }
    }

    #[test]
    fn growth_is_a_fault_and_shrinkage_a_note() {
        let recorded = counts("a", &[("steady", 100.0), ("grown", 100.0), ("shrunk", 100.0)]);
        let found =
            compare(&recorded, &counts("a", &[("steady", 101.9), ("grown", 102.1), ("shrunk", 97.0)]));
        assert_eq!((found.faults.len(), found.notes.len()), (1, 1));
        assert!(found.faults[0].starts_with("grown, avx2: 102.1 "));
        assert!(found.notes[0].starts_with("shrunk, avx2: 97 "));
    }

    #[test]
    fn kernels_that_come_and_go_are_faults_whatever_the_compiler() {
        let found = compare(&counts("a", &[("gone", 1.0)]), &counts("b", &[("new", 1.0)]));
        assert_eq!((found.faults.len(), found.notes.len()), (2, 1));
    }

    #[test]
    fn growth_under_another_compiler_is_a_note() {
        let found = compare(&counts("a", &[("kernel", 1.0)]), &counts("b", &[("kernel", 2.0)]));
        assert_eq!((found.faults.len(), found.notes.len()), (0, 2));
    }

    #[test]
    fn profiles_are_read() {
        assert_eq!(fields("avx2\t8\ta, b"), Some(("avx2", 8.0, "a, b")));
        assert_eq!(fields("avx2 8"), None);
        assert_eq!(per_element("events: Ir\ntotals: 21\n", 8.0).unwrap(), 2.625);
        assert!(per_element("totals: 0", 8.0).is_err());
        assert!(per_element("events: Ir", 8.0).is_err());
    }
}
