//! `deltaloom series get`.

use anyhow::Result;
use deltaloom::series::{Part, Series, StepEntry};
use deltaloom::{Error, UnpackOptions};

use super::common::{entry_of, open_on};
use crate::args::series::GetArguments;
use crate::progress::Bar;
use crate::target::{self, Target};
use crate::ui::nearest;
use crate::{Answer, ui};

pub(super) fn run(arguments: &GetArguments) -> Result<Answer> {
    let series = open_on(&arguments.store.location, &arguments.branch)?;
    let target = Target::new(&arguments.output);
    target.check(arguments.overwrite, &series.inputs())?;
    let entry = entry_of(&series, arguments.step)?;
    let part = match arguments.only.as_deref() {
        None => Part::All,
        Some("model") => Part::Model,
        Some("optimizer") => Part::Optimizer,
        Some(tensor) => {
            let written = target::write_bytes(&target, arguments.overwrite, &series.inputs(), |out| {
                series.read_tensor(entry.step, tensor, out)
            });
            written.map_err(|error| with_nearest(error, &series, &entry, tensor))?;
            ui::note(&format!("step {}: tensor {} restored", entry.step, ui::printable(tensor)));
            return Ok(Answer::Yes);
        }
    };
    let options =
        UnpackOptions::default().with_threads(arguments.threads.count).with_overwrite(arguments.overwrite);
    let bar = Bar::new("restoring");
    let report = match &target {
        Target::Path(path) => series.extract(entry.step, part, path, &options, &bar)?,
        Target::Stdout => {
            let mut out = target::stdout_for_bytes(&series.inputs())?;
            let extracted = series.extract_to(entry.step, part, &mut out, &options, &bar);
            extracted.map_err(|e| target::named(e, &target))?
        }
    };
    bar.finish();
    if arguments.json {
        ui::print_json(&report)?;
    } else {
        let (size, seconds) = (ui::bytes(report.original_bytes), report.seconds);
        let (step, hops) = (entry.step, ui::count(entry.hops.into(), "hop"));
        ui::note(&format!("step {step}: {size} restored ({hops}), every digest matches, {seconds:.2} s"));
    }
    Ok(Answer::Yes)
}

/// If the step has no tensor of this name, suggests the most similar one, or where the names are.
fn with_nearest(error: anyhow::Error, series: &Series, entry: &StepEntry, tensor: &str) -> anyhow::Error {
    let names = || {
        let report = series.inspect(entry).ok()?;
        Some(report.tensors.into_iter().map(|tensor| tensor.name).collect())
    };
    let list =
        format!("`deltaloom series show --step {} --tensors` lists the tensors of the step", entry.step);
    match error.downcast::<Error>() {
        Ok(error) => nearest::suggest(error, tensor, names, Some(list)),
        Err(error) => error,
    }
}
