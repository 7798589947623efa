//! `deltaloom series get`.

use anyhow::Result;
use deltaloom::UnpackOptions;
use deltaloom::series::Part;

use super::common::{entry_of, open_on};
use crate::args::series::GetArguments;
use crate::progress::Bar;
use crate::target::{self, Target};
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
            target::write_bytes(&target, arguments.overwrite, &series.inputs(), |out| {
                series.read_tensor(entry.step, tensor, out)
            })?;
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
