//! `deltaloom unpack`.

use std::path::Path;

use anyhow::{Context as _, Result};
use deltaloom::{Check, Error, InPlaceOptions, InPlaceReport, UnpackOptions};

use crate::args::UnpackArguments;
use crate::{Answer, ui};

pub(crate) fn run(arguments: &UnpackArguments) -> Result<Answer> {
    match (&arguments.in_place, &arguments.output) {
        (Some(base), _) => in_place(arguments, base)?,
        (None, Some(output)) => to_output(arguments, output)?,
        (None, None) => anyhow::bail!("neither --output nor --in-place was given"),
    }
    Ok(Answer::Yes)
}

fn to_output(arguments: &UnpackArguments, output: &Path) -> Result<()> {
    // Said before the bases are read, which may take long.
    if !arguments.overwrite && output.symlink_metadata().is_ok() {
        return Err(Error::AlreadyExists { path: output.to_path_buf() }.into());
    }
    let container = super::open_to_stream(&arguments.container)?;
    let resolved =
        super::resolve(container, &arguments.bases, arguments.base_dir.as_deref(), arguments.threads.count)?;
    let options = UnpackOptions { threads: arguments.threads.count, overwrite: arguments.overwrite };
    let bar = ui::Bar::new("unpacking");
    let report = deltaloom::unpack(&resolved, output, &options, &bar)?;
    bar.finish();
    if arguments.json {
        return ui::print_json(&report);
    }
    let (size, files) = (ui::bytes(report.original_bytes), report.files);
    let files = if files == 1 { String::new() } else { format!(" in {files} files") };
    ui::note(&format!("{size}{files} restored, every digest matches, {:.2} s", report.seconds));
    Ok(())
}

fn in_place(arguments: &UnpackArguments, base: &Path) -> Result<()> {
    let container = super::open_to_stream(&arguments.container)?;
    let others = super::open_bases(&arguments.bases)?;
    let check = match () {
        () if arguments.trust_base => Check::One,
        () if arguments.check_all => Check::All,
        () => Check::Changed,
    };
    let options = InPlaceOptions { threads: arguments.threads.count, check, overwrite: arguments.overwrite };
    let bar = ui::Bar::new("changing");
    let report = deltaloom::unpack_in_place(container, base, &others, &options, &bar);
    bar.finish();
    let report = match report {
        Err(Error::Cancelled) => {
            Err(Error::Cancelled).with_context(|| format!("{} is as it was", base.display()))
        }
        done => Ok(done?),
    }?;
    if arguments.json {
        return ui::print_json(&report);
    }
    ui::note(&summary(&report, base, check));
    Ok(())
}

fn summary(report: &InPlaceReport, base: &Path, check: Check) -> String {
    let checked = match check {
        Check::All => "every digest matches",
        Check::Changed => "the digest of every tensor that changes matches",
        Check::One => "one tensor checked",
    };
    let base = base.display();
    if report.already_applied {
        return format!("{base} is the fine-tune already, {checked}; nothing written");
    }
    let (written, all) = (ui::bytes(report.written_bytes), ui::bytes(report.original_bytes));
    let again = if report.resumed { "; went on where an earlier run had stopped" } else { "" };
    format!(
        "{base} is now the fine-tune: {written} of {all} written, {checked}, {:.2} s{again}",
        report.seconds
    )
}
