//! `deltaloom series get`.

use std::io::{BufWriter, Write as _};

use anyhow::{Context as _, Result};
use deltaloom::checkpoint::output::NewFile;
use deltaloom::series::{Part, Series};
use deltaloom::{Error, UnpackOptions};

use super::{count, entry_of, open_on};
use crate::args::series::GetArguments;
use crate::{Answer, ui};

pub(super) fn run(arguments: &GetArguments) -> Result<Answer> {
    // Said before anything is read, which may take long.
    if !arguments.overwrite && arguments.output.symlink_metadata().is_ok() {
        return Err(Error::AlreadyExists { path: arguments.output.clone() }.into());
    }
    let series = open_on(&arguments.store.location, &arguments.branch)?;
    let entry = entry_of(&series, arguments.step)?;
    let part = match arguments.only.as_deref() {
        None => Part::All,
        Some("model") => Part::Model,
        Some("optimizer") => Part::Optimizer,
        Some(tensor) => {
            write_tensor(&series, entry.step, tensor, arguments)?;
            return Ok(Answer::Yes);
        }
    };
    let options = UnpackOptions { threads: arguments.threads.count, overwrite: arguments.overwrite };
    let bar = ui::Bar::new("restoring");
    let report = series.extract(entry.step, part, &arguments.output, &options, &bar)?;
    bar.finish();
    if arguments.json {
        ui::print_json(&report)?;
    } else {
        let (size, seconds) = (ui::bytes(report.original_bytes), report.seconds);
        let (step, hops) = (entry.step, count(entry.hops.into(), "hop"));
        ui::note(&format!("step {step}: {size} restored over {hops}, every digest matches, {seconds:.2} s"));
    }
    Ok(Answer::Yes)
}

fn write_tensor(series: &Series, step: u64, name: &str, arguments: &GetArguments) -> Result<()> {
    let mut file = NewFile::create(&arguments.output, arguments.overwrite)?;
    let mut out = BufWriter::new(file.file());
    series.read_tensor(step, name, &mut out)?;
    out.flush().with_context(|| arguments.output.display().to_string())?;
    drop(out);
    file.commit()?;
    Ok(())
}
