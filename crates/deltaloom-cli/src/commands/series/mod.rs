//! `deltaloom series`: one file per group of subcommands.

mod add;
mod get;
mod list;
mod look_after;
mod plot;
mod watch;

use std::path::Path;

use anyhow::{Context as _, Result};
use deltaloom::series::{Directory, Series, SeriesOptions, StepEntry, Store};
use deltaloom::{Error, Missing, PackOptions};

use crate::args::series::{BranchArgument, ExistingStep, InitArguments, SeriesArguments, SeriesCommand};
use crate::args::{PresetArgument, ThreadsArgument};
use crate::{Answer, ui};

pub(crate) fn run(arguments: &SeriesArguments) -> Result<Answer> {
    match &arguments.command {
        SeriesCommand::Init(arguments) => init(arguments),
        SeriesCommand::Add(arguments) => add::add(arguments),
        SeriesCommand::Flush(arguments) => add::flush(arguments),
        SeriesCommand::Ls(arguments) => list::ls(arguments),
        SeriesCommand::Log(arguments) => list::log(arguments),
        SeriesCommand::Show(arguments) => list::show(arguments),
        SeriesCommand::Plot(arguments) => plot::plot(arguments),
        SeriesCommand::Health(arguments) => plot::health(arguments),
        SeriesCommand::Get(arguments) => get::run(arguments),
        SeriesCommand::Set(arguments) => look_after::set(arguments),
        SeriesCommand::Rm(arguments) => look_after::remove(arguments),
        SeriesCommand::Prune(arguments) => look_after::prune(arguments),
        SeriesCommand::Repack(arguments) => look_after::repack(arguments),
        SeriesCommand::Gc(arguments) => look_after::gc(arguments),
        SeriesCommand::Verify(arguments) => look_after::verify(arguments),
        SeriesCommand::Watch(arguments) => watch::run(arguments),
    }
}

fn init(arguments: &InitArguments) -> Result<Answer> {
    let options = SeriesOptions::default()
        .with_keyframe_every(arguments.keyframe_every)
        .with_max_chain(arguments.max_chain);
    let made = Series::init(store(&arguments.store.location)?, &options);
    // --overwrite is no way out here.
    let series = made.map_err(|e| match e {
        Error::AlreadyExists { .. } => {
            anyhow::anyhow!("{}: there is a series already", arguments.store.location)
        }
        other => other.into(),
    })?;
    ui::note(&format!("{}: an empty series", series.location()));
    Ok(Answer::Yes)
}

/// A folder, or what a URL names.
fn store(location: &str) -> Result<Box<dyn Store>> {
    if !is_url(location) {
        return Ok(Box::new(Directory::new(Path::new(location))));
    }
    #[cfg(feature = "object-store")]
    return Ok(deltaloom_object_store::open(location)?);
    #[cfg(not(feature = "object-store"))]
    anyhow::bail!("{location}: this program was built without object stores");
}

fn is_url(location: &str) -> bool {
    location.contains("://")
}

/// Whether there is a series at a place.
pub(crate) fn is_store(location: &str) -> Result<bool> {
    Ok(is_url(location) || store(location)?.read_manifest()?.is_some())
}

/// Whether there is a series in a local folder.
pub(crate) fn is_folder_store(location: &str) -> bool {
    !is_url(location) && is_store(location).unwrap_or(false)
}

pub(crate) fn open(location: &str) -> Result<Series> {
    Ok(Series::open(store(location)?)?)
}

/// A series, or a branch of it.
fn open_on(location: &str, branch: &BranchArgument) -> Result<Series> {
    let series = open(location)?;
    Ok(match &branch.name {
        Some(name) => series.on_branch(name)?,
        None => series,
    })
}

fn entry_of(series: &Series, step: ExistingStep) -> Result<StepEntry> {
    let number = match step {
        ExistingStep::Number(number) => number,
        ExistingStep::Newest => series.summary()?.newest.context("the series has no steps")?,
    };
    let missing =
        || Error::NotFound { kind: Missing::Step, what: format!("step {number} of {}", series.location()) };
    Ok(series.find(number)?.ok_or_else(missing)?)
}

/// A number with the word for what it counts.
fn count(number: u64, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

fn pack_options(preset: PresetArgument, threads: &ThreadsArgument) -> PackOptions {
    PackOptions::default().with_preset(preset.into()).with_threads(threads.count)
}
