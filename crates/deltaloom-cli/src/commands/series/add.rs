//! `deltaloom series add` and `flush`.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use deltaloom::Limits;
use deltaloom::report::WarningKind;
use deltaloom::series::{AddOptions, Added, NewStep, Pending, Series};

use super::{count, open, pack_options};
use crate::args::series::{AddArguments, FlushArguments, Step};
use crate::{Answer, ui};

pub(super) fn add(arguments: &AddArguments) -> Result<Answer> {
    let (location, checkpoint) = arguments.places.split()?;
    let series = open(&location)?;
    let new = NewStep::new(checkpoint)
        .with_step(match arguments.step {
            Step::Number(step) => Some(step),
            Step::Next => None,
        })
        .with_optimizer(arguments.optimizer.clone())
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
    // What was snapshot before comes before.
    let of_waiting = AddOptions::default().with_pack(options.pack.clone());
    drain(&series, &pending, &of_waiting, &location)?;
    let bar = ui::Bar::new("adding");
    let added = series.add(&new, &options, &bar)?;
    bar.finish();
    if arguments.json {
        ui::print_json(&added)?;
    } else {
        tell(&added, &location);
    }
    Ok(Answer::Yes)
}

/// Says what was added, and what one should know of it.
pub(super) fn tell(added: &Added, location: &str) {
    ui::note(&describe(added));
    let entry = &added.entry;
    if let Some(closed) = &added.closed {
        let (name, steps) = (&closed.name, count(closed.totals.steps, "step"));
        ui::note(&ui::printable(&format!(
            "the run went back: {steps}, {} to {}, now on branch {name}; `deltaloom series ls {location} --branch {name}` lists them",
            closed.first, closed.last
        )));
    }
    for (kind, count) in
        [(WarningKind::NonFinite, entry.nonfinite_weights), (WarningKind::Constant, entry.constant_matrices)]
    {
        if added.is_new && count > 0 {
            ui::warn(&format!("step {}: {}", entry.step, kind.counted(Some(count))));
        }
    }
    if !added.meta_not_stored.is_empty() {
        let step = added.entry.step;
        let text = |(name, value): (&String, &String)| format!(" --meta {name}={value}");
        let meta: String = added.meta_not_stored.iter().map(text).collect();
        ui::warn(&ui::printable(&format!(
            "its text is as it was; `deltaloom series set {location} --step {step}{meta}` changes it"
        )));
    }
}

pub(super) fn flush(arguments: &FlushArguments) -> Result<Answer> {
    let series = open(&arguments.store.location)?;
    let pack = pack_options(arguments.preset, &arguments.threads);
    let options = AddOptions::default().with_pack(pack);
    let location = &arguments.store.location;
    drain(&series, &Pending::new(&pending_folder(location)?), &options, location)?;
    Ok(Answer::Yes)
}

fn drain(series: &Series, pending: &Pending, options: &AddOptions, location: &str) -> Result<()> {
    let bar = ui::Bar::new("adding");
    let drained = pending.drain(series, options, &bar, |added| {
        bar.finish();
        tell(added, location);
        Ok(())
    });
    bar.finish();
    drained.context("a step that was added in the background")
}

/// Copies the checkpoint and lets another process add the copy.
fn snapshot(
    pending: &Pending,
    new: &NewStep,
    options: &AddOptions,
    arguments: &AddArguments,
    location: &str,
) -> Result<()> {
    let bar = ui::Bar::new("copying");
    pending.snapshot(new, options, &Limits::default(), &bar)?;
    bar.finish();
    let mut command = Command::new(std::env::current_exe().context("this program")?);
    command.args(["series", "flush", location]);
    command.args(["--threads", &arguments.threads.count.to_string()]);
    // What it has to say is said by the next flush or add, which meets the same fault.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn().context("a process in the background")?;
    ui::note(&format!("a copy is safe; {} to be added", pending.count()?));
    Ok(())
}

/// Where copies wait: in the store, or for a URL in the folder for the state of programs.
fn pending_folder(location: &str) -> Result<PathBuf> {
    if !super::is_url(location) {
        return Ok(PathBuf::from(location).join("pending"));
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::home_dir().map(|home| home.join(".local/state"));
    let state = state.or_else(home).context("neither XDG_STATE_HOME nor a home folder is known")?;
    let name: String = location.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    Ok(state.join("deltaloom/pending").join(name))
}

fn describe(added: &Added) -> String {
    let entry = &added.entry;
    if !added.is_new {
        return format!("step {} is there already with the same content; nothing changed", entry.step);
    }
    let against = match (entry.reference, entry.changed_fraction) {
        (Some(reference), changed) => {
            let hops = count(entry.hops.into(), "hop");
            let changed =
                changed.map_or_else(String::new, |share| format!("{:.2} % changed, ", 100.0 * share));
            format!("against step {reference}, {changed}{hops}")
        }
        _ => "a keyframe".to_owned(),
    };
    format!(
        "step {}: {} -> {}, ratio {:.2}, {against}, {:.2} s",
        entry.step,
        ui::bytes(entry.original_bytes),
        ui::bytes(entry.stored_bytes),
        entry.ratio(),
        entry.seconds,
    )
}
