//! `deltaloom series`: one file per group of subcommands.

mod add;
mod common;
mod get;
mod list;
mod look_after;
#[cfg(feature = "report")]
mod plot;
mod watch;

use anyhow::Result;
use deltaloom::Error;
use deltaloom::series::{Series, SeriesOptions};

use crate::args::series::{InitArguments, SeriesArguments, SeriesCommand};
use crate::store::store;
use crate::{Answer, ui};

pub(crate) fn run(arguments: &SeriesArguments) -> Result<Answer> {
    match &arguments.command {
        SeriesCommand::Init(arguments) => init(arguments),
        SeriesCommand::Add(arguments) => add::add(arguments),
        SeriesCommand::Flush(arguments) => add::flush(arguments),
        SeriesCommand::Ls(arguments) => list::ls(arguments),
        SeriesCommand::Log(arguments) => list::log(arguments),
        SeriesCommand::Show(arguments) => list::show(arguments),
        #[cfg(feature = "report")]
        SeriesCommand::Plot(arguments) => plot::plot(arguments),
        #[cfg(feature = "report")]
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
    // The usual hint, --overwrite, does not apply here.
    let series = made.map_err(|e| match e {
        Error::AlreadyExists { .. } => {
            anyhow::anyhow!("{}: a series already exists here", arguments.store.location)
                .context(ui::Hint("add checkpoints to it with `deltaloom series add`".to_owned()))
        }
        other => other.into(),
    })?;
    ui::note(&format!("created an empty series in {}", series.location()));
    Ok(Answer::Yes)
}
