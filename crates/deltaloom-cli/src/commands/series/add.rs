//! `deltaloom series add` and `flush`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use deltaloom::Limits;
use deltaloom::series::{AddOptions, Input, NewStep, Pending, Series, Taking};

use super::common::{metrics, pack_options, tell};
use crate::args::series::{AddArguments, FlushArguments, store_and_input};
use crate::progress::Bar;
use crate::store::{is_url, open};
use crate::{Answer, host, ui, values};

pub(super) fn add(arguments: &AddArguments) -> Result<Answer> {
    let (location, checkpoint) = store_and_input(&arguments.store, arguments.checkpoint.as_ref())?;
    let series = open(&location)?;
    let step = match arguments.step {
        values::series::NewStep::Number(step) => Some(step),
        values::series::NewStep::Next => None,
    };
    let metrics = metrics(checkpoint, step).unwrap_or_else(|why| {
        ui::warn(&why);
        BTreeMap::new()
    });
    let new = NewStep::new(checkpoint)
        .with_step(step)
        .with_optimizer(arguments.optimizer.as_ref().map(Input::from))
        .with_metrics(metrics)
        .with_exclude(arguments.exclude.patterns.clone())
        .with_meta(arguments.meta.iter().cloned().collect());
    let pack = pack_options(arguments.preset, &arguments.threads);
    let options = AddOptions::default()
        .with_pack(pack)
        .with_keyframe(arguments.keyframe)
        .with_force(arguments.force)
        .with_rewind(arguments.rewind)
        .with_branch(arguments.branch.clone());
    let pending = Pending::new(&pending_folder(&location)?);
    if arguments.background {
        series.check_new(&new, &options)?;
        snapshot(&pending, &new, &options, arguments, &location)?;
        return Ok(Answer::Yes);
    }
    // Earlier snapshots come first.
    let of_waiting = AddOptions::default().with_pack(options.pack.clone());
    drain(&series, &pending, &of_waiting, &location)?;
    let bar = Bar::new("adding");
    let added = series.add(&new, &options, &bar)?;
    bar.finish();
    if arguments.json {
        ui::print_json(&added)?;
    } else {
        tell(&added, &location);
    }
    Ok(Answer::Yes)
}

pub(super) fn flush(arguments: &FlushArguments) -> Result<Answer> {
    let series = open(&arguments.store.location)?;
    let pack = pack_options(arguments.preset, &arguments.threads);
    let options = AddOptions::default().with_pack(pack);
    let location = &arguments.store.location;
    let pending = Pending::new(&pending_folder(location)?);
    if pending.count()? == 0 {
        ui::note("nothing was waiting to be added");
    }
    drain(&series, &pending, &options, location)?;
    Ok(Answer::Yes)
}

fn drain(series: &Series, pending: &Pending, options: &AddOptions, location: &str) -> Result<()> {
    let bar = Bar::new("adding");
    let drained = pending.drain(series, options, &bar, |added| {
        bar.finish();
        tell(added, location);
        Ok(())
    });
    bar.finish();
    drained.context("adding a step in the background")
}

/// Copies the checkpoint and lets another process add the copy.
fn snapshot(
    pending: &Pending,
    new: &NewStep,
    options: &AddOptions,
    arguments: &AddArguments,
    location: &str,
) -> Result<()> {
    let bar = Bar::new("copying");
    let taking = if arguments.link { Taking::Links } else { Taking::Copies };
    pending.snapshot(new, options, taking, &Limits::default(), &bar)?;
    bar.finish();
    let mut command = host::program().context("cannot find the file of this program")?;
    command.args(["series", "flush", location]);
    command.args(["--threads", &arguments.threads.count.to_string()]);
    // The next flush or add meets the same fault and reports it.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn().context("cannot start a background process")?;
    ui::note(&format!("a copy is on the local disk; {} waiting to be added", pending.count()?));
    Ok(())
}

/// Where copies wait: in the store, or for a URL in the user's state folder.
fn pending_folder(location: &str) -> Result<PathBuf> {
    if !is_url(location) {
        return Ok(PathBuf::from(location).join("pending"));
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::home_dir().map(|home| home.join(".local/state"));
    let state = state
        .or_else(home)
        .context("no place for a copy: neither XDG_STATE_HOME nor a home folder is set")?;
    let name: String = location.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    Ok(state.join("deltaloom/pending").join(name))
}
