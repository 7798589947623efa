//! `deltaloom pack`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use deltaloom::checkpoint::{Checkpoint, Exclude, Foreign, Unread};
use deltaloom::{AdapterReport, BaseSearch, Bases, Limits, PackOptions, PackReport, SearchReport, Texts};
use serde::Serialize;

use crate::args::{BaseArguments, IdentityArguments, PackArguments};
use crate::progress::Bar;
use crate::target::{self, Target};
use crate::ui::table::{Cell, Table};
use crate::{Answer, inputs, store, ui};

/// Candidates to show; JSON has all of them.
const SHOWN_CANDIDATES: usize = 12;

/// Files that no base helped with to show; JSON has all of them.
const SHOWN_FILES: usize = 3;

/// Unused modules of an adapter to show; JSON has more.
const SHOWN_MODULES: usize = 5;

/// The JSON that is printed.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    pack: &'a PackReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    base_search: Option<&'a SearchReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unread: Option<&'a Unread>,
}

/// Files that may contain weights but are stored unchanged, in words.
fn describe(unread: &Unread) -> String {
    let (files, size) = (unread.files, ui::bytes(unread.bytes));
    let stored = if files == 1 {
        format!(
            "1 file ({size}) is not in a format of weights that deltaloom reads, and is packed as plain bytes"
        )
    } else {
        format!(
            "{files} files ({size}) are not in a format of weights that deltaloom reads, and are packed as plain bytes"
        )
    };
    let kind = |(kind, count): (&Foreign, &usize)| ui::count(*count as u64, &format!("{} file", kind.name()));
    let kinds: Vec<String> = unread.kinds.iter().map(kind).collect();
    let stored = if kinds.is_empty() { stored } else { format!("{stored}: {}", kinds.join(", ")) };
    match unread.reasons.first_key_value() {
        Some((path, why)) => format!("{stored} ({}: {})", ui::printable(path), ui::printable(why)),
        None => stored,
    }
}

pub(crate) fn run(arguments: &PackArguments) -> Result<Answer> {
    let path = &arguments.checkpoint;
    let target = match &arguments.output {
        Some(output) => Target::new(output),
        None => Target::Path(default_output(path)),
    };
    let mut exclude = arguments.exclude.patterns.clone();
    if let Target::Path(output) = &target
        && let Some(inside) = Exclude::of_output(output, path)?
    {
        ui::note(&format!("{} is left out of the folder that it is in", ui::printable(inside.as_str())));
        exclude.push(inside);
    }
    let (checkpoint, mut warnings) = inputs::open_checkpoint(path, &exclude)?;
    if !arguments.dry_run {
        // Before the bases are read, which may take long.
        let BaseArguments { paths, adapters } = &arguments.bases;
        let store = path.to_str().is_some_and(store::is_folder_store).then_some(path);
        let inputs = target::inputs(paths.iter().chain(adapters).chain(store)).and(&checkpoint.inputs());
        target.check(arguments.overwrite, &inputs)?;
    }
    let texts = texts(&arguments.identity)?;
    let (mut bases, search) = match &arguments.base_dir {
        None => (inputs::open_bases(&arguments.bases)?, None),
        Some(folder) => {
            let found = search(&checkpoint, folder, arguments)?;
            let report = found.report.clone();
            if arguments.dry_run {
                if arguments.json {
                    ui::print_json(&report)?;
                }
                return Ok(if report.chosen.is_some() { Answer::Yes } else { Answer::No });
            }
            let bases = found.into_bases(folder)?;
            inputs::warn(bases.warnings());
            (bases, Some(report))
        }
    };
    warnings.extend_from_slice(bases.warnings());
    let (names, found) = (&arguments.identity.base_names, search.as_ref());
    let found = found.and_then(|report| report.chosen.as_deref()).map(PathBuf::from);
    let paths = found.as_ref().map_or(&arguments.bases.paths[..], std::slice::from_ref);
    if names.len() > paths.len() {
        bail!("{} names for {} bases: --base-name occurs more often than --base", names.len(), paths.len());
    }
    bases.set_names(paths.iter().map(PathBuf::as_path).zip(names.iter().map(String::as_str)))?;
    let report = pack(&checkpoint, &bases, &target, texts, arguments)?;
    let unread = checkpoint.unread();
    if arguments.json {
        let report = Report { pack: &report, base_search: search.as_ref(), unread: unread.as_ref() };
        inputs::print_report(&report, &warnings, &target)?;
    } else {
        ui::note(&ui::container::summary(&report));
        if let Some(portions) = ui::container::portions(&report) {
            ui::note(&portions);
        }
        unread.iter().for_each(|unread| ui::note(&describe(unread)));
        stored_alone(&report).iter().for_each(|text| ui::note(text));
        report.adapters.iter().filter_map(unused).for_each(|text| ui::note(&text));
    }
    Ok(Answer::Yes)
}

/// The files that are stored without help of a base, the largest first, if there are any.
fn stored_alone(report: &PackReport) -> Option<String> {
    let names: HashSet<&str> = report.stored_alone.iter().map(String::as_str).collect();
    let mut files: Vec<(u64, &str)> = report
        .tensors
        .iter()
        .filter(|tensor| names.contains(tensor.name.as_str()))
        .map(|tensor| (tensor.packed_bytes, tensor.name.as_str()))
        .collect();
    files.sort_by(|a, b| (b.0, a.1).cmp(&(a.0, b.1)));
    let bytes: u64 = files.iter().map(|(bytes, _)| bytes).sum();
    let shown: Vec<_> = files.iter().take(SHOWN_FILES).map(|(_, name)| ui::printable(name)).collect();
    let more = if files.len() > shown.len() { ", .." } else { "" };
    let (count, size) = (ui::count(files.len() as u64, "file"), ui::bytes(bytes));
    let shown = shown.join(", ");
    (!files.is_empty()).then(|| format!("{count} ({size}) without help of a base: {shown}{more}"))
}

/// What an adapter does not explain, if there is anything.
fn unused(adapter: &AdapterReport) -> Option<String> {
    let AdapterReport { path, modules, used_modules, unused, .. } = adapter;
    let count = modules - used_modules;
    if count == 0 {
        return None;
    }
    let path = ui::printable(path);
    if *used_modules == 0 {
        return Some(format!("{path}: this adapter explains nothing ({})", ui::count(*modules, "module")));
    }
    let names: Vec<_> = unused.iter().take(SHOWN_MODULES).map(|name| ui::printable(name)).collect();
    let more = if count > names.len() as u64 { ", .." } else { "" };
    let explain = if count == 1 { "explains" } else { "explain" };
    Some(format!("{path}: {count} of {modules} modules {explain} nothing: {}{more}", names.join(", ")))
}

/// `x.safetensors` and the folder `x` become `x.loom` in the same folder.
fn default_output(checkpoint: &Path) -> PathBuf {
    // A path such as `.` does not contain its name.
    let named = match checkpoint.file_name() {
        Some(_) => checkpoint.to_path_buf(),
        None => checkpoint.canonicalize().unwrap_or_else(|_| checkpoint.to_path_buf()),
    };
    if !named.is_dir() {
        return named.with_extension("loom");
    }
    // `.5` in `model-v1.5` is not an extension.
    let mut name = named.file_name().unwrap_or_default().to_os_string();
    name.push(".loom");
    named.with_file_name(name)
}

fn pack(
    checkpoint: &Checkpoint,
    bases: &Bases,
    target: &Target,
    texts: Option<Texts>,
    arguments: &PackArguments,
) -> Result<PackReport> {
    let options = PackOptions::default()
        .with_preset(arguments.preset.into())
        .with_threads(arguments.threads.count)
        .with_overwrite(arguments.overwrite)
        .with_identity(texts);
    let bar = Bar::new("packing");
    let report = match target {
        Target::Path(path) => deltaloom::pack(checkpoint, bases, path, &options, &bar)?,
        Target::Stdout => {
            let out = target::stdout_for_bytes(&bases.inputs().and(&checkpoint.inputs()))?;
            let packed = deltaloom::pack_to(checkpoint, bases, out, &options, &bar);
            packed.map_err(|e| target::named(e, target))?
        }
    };
    bar.finish();
    Ok(report)
}

/// The texts to record in the container; `None` records nothing, not even names of bases.
fn texts(arguments: &IdentityArguments) -> Result<Option<Texts>> {
    if arguments.no_identity {
        return Ok(None);
    }
    let mut texts = Texts::new();
    for (key, text) in &arguments.texts {
        if texts.insert(key.clone(), text.clone()).is_some() {
            bail!("--meta {key} occurs twice");
        }
    }
    Ok(Some(texts))
}

/// Searches for a base and prints what was found, even if the report is JSON.
fn search(checkpoint: &Checkpoint, folder: &Path, arguments: &PackArguments) -> Result<BaseSearch> {
    let bar = Bar::new("searching");
    let exclude: Vec<&Path> = arguments.output.as_deref().into_iter().collect();
    let threads = arguments.threads.count;
    let found = deltaloom::find_base(checkpoint, folder, &exclude, &Limits::default(), threads, &bar)?;
    bar.finish();
    for skipped in &found.report.skipped {
        ui::warn(&format!("{} skipped: {}", ui::printable(&skipped.path), ui::printable(&skipped.why)));
    }
    ui::note(describe_search(&found.report).trim_end());
    Ok(found)
}

fn describe_search(report: &SearchReport) -> String {
    let shown = report.candidates.iter().take(SHOWN_CANDIDATES);
    let rows: Vec<_> = std::iter::once(None).chain(shown.map(Some)).collect();
    let percent = |share: Option<f64>| Cell::maybe(share, |share| Cell::percent(share, 1));
    let table = Table::of(&rows)
        .shown("base", |row| Cell::text(row.map_or("(none)", |candidate| &candidate.path)))
        .shown("est. ratio", |row| match row {
            Some(candidate) if candidate.identical_fraction >= 1.0 => Cell::text("identical"),
            Some(candidate) => Cell::ratio(candidate.estimated_ratio),
            None => Cell::ratio(report.alone_ratio),
        })
        .shown("saving", |row| percent(row.map(|candidate| candidate.estimated_saving)))
        .shown("identical", |row| percent(row.map(|candidate| candidate.identical_fraction)))
        .shown("saving on the rest", |row| percent(row.map(|candidate| candidate.estimated_changed_saving)))
        .shown("matched", |row| percent(row.map(|candidate| candidate.matched_fraction)));
    let mut out = table.text();
    let hidden = report.candidates.len().saturating_sub(SHOWN_CANDIDATES);
    if hidden > 0 {
        out.push_str(&format!("and {hidden} others with less in common\n"));
    }
    let chosen = report.candidates.first().filter(|_| report.chosen.is_some());
    match chosen {
        Some(best) if best.needs.is_empty() => {
            out.push_str(&format!("base: {}\n", ui::printable(&best.path)))
        }
        Some(best) => {
            let needs = ui::printable(&best.needs.join(", "));
            out.push_str(&format!("base: {}, which needs {needs}\n", ui::printable(&best.path)));
        }
        None => {
            let percent = |share| ui::percent(share, 1);
            let (identical, saving) =
                (percent(report.least_identical_fraction), percent(report.least_changed_saving));
            out.push_str(&format!(
                "no useful base: none has {identical} of the bytes in common, or saves {saving} of the rest\n"
            ));
        }
    }
    out
}
