//! `deltaloom context apply`: a container that runs a model with a recipe.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use deltaloom::checkpoint::output::{Inputs, NewDirectory};
use deltaloom::checkpoint::{Checkpoint, Warning};
use deltaloom::{Bases, Limits, PackOptions, Silent};
use deltaloom_lm::context::recipe::Loaded;
use deltaloom_lm::context::{Applied, CONTEXT_FILE, Resolved, export};
use deltaloom_lm::layer::{Gain, QkNorm};
use serde::Serialize;
use serde_json::{Map, Value};

use super::recipes::{self, Prepared};
use crate::args::context::ApplyArguments;
use crate::models;
use crate::progress::Bar;
use crate::target::{self, Target};
use crate::{Answer, inputs, ui};

/// Most bytes of a container with gains.
const LARGEST: usize = 16 << 10;

/// The configuration of Hugging Face.
const CONFIG: &str = "config.json";

#[derive(Serialize)]
struct Report {
    /// `None` without a container.
    packed_bytes: Option<u64>,
    /// Number of layers whose plan differs from that of the model.
    changed_layers: usize,
    #[serde(flatten)]
    resolved: Resolved,
}

pub(crate) fn run(arguments: &ApplyArguments) -> Result<Answer> {
    let loaded = recipes::read(std::slice::from_ref(&arguments.recipe))?;
    let files = target::inputs([&arguments.model, &arguments.recipe]);
    for path in arguments.output.iter().chain(&arguments.export) {
        let target = Target::new(path);
        if target == Target::Stdout {
            bail!("standard output is not possible here; name a file");
        }
        let is_folder = arguments.export.as_ref() == Some(path);
        target.check(arguments.overwrite && !is_folder, &files)?;
    }
    let (report, warnings) =
        models::on_threads(arguments.computing.threads.count, || apply(arguments, loaded, &files))?;
    if arguments.json {
        inputs::print_json(&report, &warnings)?;
    } else {
        let packed = report.packed_bytes.map_or(String::new(), |bytes| format!("{}, ", ui::bytes(bytes)));
        ui::note(&format!(
            "{packed}{} of {} layers changed; run a container with --base {}",
            report.changed_layers,
            report.resolved.layers.len(),
            arguments.model.display()
        ));
    }
    Ok(Answer::Yes)
}

fn apply(arguments: &ApplyArguments, loaded: Vec<Loaded>, files: &Inputs) -> Result<(Report, Vec<Warning>)> {
    let opened = models::open(&arguments.model, None, None)?;
    let folder = opened.base.as_ref().to_owned();
    if !folder.join(CONFIG).is_file() {
        bail!("{}: wanted a folder of Hugging Face, with {CONFIG}", folder.display());
    }
    let warnings = opened.warnings.clone();
    let plans: Vec<_> = opened.model.attention().cloned().collect();
    let recipe = serde_json::to_value(&loaded[0].recipe)?;
    let run = arguments.computing.run();
    // The model stays open until its folder is read again: a bundled one is removed with it.
    let Prepared { resolved, opened: _opened, .. } =
        recipes::prepare(opened, loaded, None, arguments.computing.memory(), &run)?;
    let resolved = resolved.into_iter().next().context("a recipe")?;
    let changed_layers = plans.iter().zip(&resolved.layers).filter(|(before, after)| before != after).count();
    if !resolved.required {
        bail!("{}: it changes no layer of this model, and no table", arguments.recipe.display());
    }
    let text = std::fs::read_to_string(folder.join(CONFIG))?;
    let config: Map<String, Value> = serde_json::from_str(&text)?;
    if let (Some(out), Some(family)) = (&arguments.export, arguments.family) {
        let exported = export(&config, &resolved, family.family());
        let exported = exported.map_err(|faults| {
            anyhow::anyhow!("transformers cannot say this as that family: {}", faults.join("; "))
        })?;
        write_folder(&folder, &exported, out, files)?;
    }
    let packed_bytes = match &arguments.output {
        None => None,
        Some(output) => {
            let applied = Applied::new(recipe, resolved.clone());
            Some(write(&folder, config, output, arguments.overwrite, &applied)?)
        }
    };
    Ok((Report { packed_bytes, changed_layers, resolved }, warnings))
}

/// What a recipe leaves as it is in the folder of a model: paths and names.
fn kept(folder: &Path) -> Result<Vec<(PathBuf, OsString)>> {
    let mut kept = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        if name != CONFIG && name != CONTEXT_FILE {
            kept.push((path, name));
        }
    }
    Ok(kept)
}

/// Copies what a checkpoint has of the folder, with another configuration. It gets its name when it
/// is complete and synced.
fn write_folder(folder: &Path, config: &Map<String, Value>, out: &Path, inputs: &Inputs) -> Result<()> {
    let checkpoint = Checkpoint::open(folder, &Limits::default())?;
    let new = NewDirectory::create(out, false, inputs)?;
    let write = |name: &str, from: &mut dyn Read| {
        let mut to = new.create_file(name)?;
        let written = std::io::copy(from, &mut to).and_then(|_| to.sync_all());
        written.with_context(|| out.join(name).display().to_string())
    };
    let names = checkpoint.members.iter().map(|member| &*member.path);
    for name in names.filter(|name| *name != CONFIG && *name != CONTEXT_FILE) {
        let path = folder.join(name);
        write(name, &mut File::open(&path).with_context(|| path.display().to_string())?)?;
    }
    let config = serde_json::to_string_pretty(config)? + "\n";
    write(CONFIG, &mut config.as_bytes())?;
    Ok(new.commit()?)
}

/// Packs the folder with the plan against itself.
fn write(
    folder: &Path,
    mut config: Map<String, Value>,
    output: &Path,
    overwrite: bool,
    applied: &Applied,
) -> Result<u64> {
    let limits = Limits::default();
    let changed = tempfile::tempdir()?;
    for (path, name) in kept(folder)? {
        let real = path.canonicalize().with_context(|| path.display().to_string())?;
        link(&real, &changed.path().join(name))?;
    }
    // For people and programs that read the configuration and not the other file.
    config
        .insert("deltaloom_context".to_owned(), serde_json::json!({"required": true, "file": CONTEXT_FILE}));
    std::fs::write(changed.path().join(CONFIG), serde_json::to_string_pretty(&config)? + "\n")?;
    std::fs::write(changed.path().join(CONTEXT_FILE), serde_json::to_string(applied)? + "\n")?;
    let bar = Bar::new("packing");
    let bases = Bases::open(&[folder.to_owned()], &limits)?;
    let checkpoint = Checkpoint::open(changed.path(), &limits)?;
    let options = PackOptions::default().with_overwrite(overwrite);
    let is_calibrated = |norm: &QkNorm| matches!(norm.gain, Gain::Calibrated(_));
    if applied.plan.layers.iter().any(|plan| plan.qk_norm.as_ref().is_some_and(is_calibrated)) {
        // A number for each head of each layer may be too many: said before a file is written.
        let mut packed = Vec::new();
        deltaloom::pack_to(&checkpoint, &bases, &mut packed, &options, &Silent)?;
        if packed.len() > LARGEST {
            bail!("with its gains the container would have {} bytes: at most {LARGEST}", packed.len());
        }
    }
    let report = deltaloom::pack(&checkpoint, &bases, output, &options, &bar)?;
    bar.finish();
    Ok(report.packed_bytes)
}

#[cfg(unix)]
fn link(from: &Path, to: &Path) -> Result<()> {
    Ok(std::os::unix::fs::symlink(from, to)?)
}

#[cfg(not(unix))]
fn link(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        bail!("{}: a folder in the folder of the model", from.display());
    }
    std::fs::copy(from, to)?;
    Ok(())
}
