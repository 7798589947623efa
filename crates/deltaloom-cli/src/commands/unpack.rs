//! `deltaloom unpack`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use deltaloom::{Check, Container, Error, InPlaceOptions, InPlaceReport, Limits, UnpackOptions};

use crate::args::{BaseArguments, UnpackArguments};
use crate::progress::Bar;
use crate::target::{self, Target};
use crate::{Answer, inputs, ui};

pub(crate) fn run(arguments: &UnpackArguments) -> Result<Answer> {
    match (&arguments.in_place, &arguments.output) {
        (Some(base), _) => in_place(arguments, base)?,
        (None, output) => to_output(arguments, output.as_deref())?,
    }
    Ok(Answer::Yes)
}

fn to_output(arguments: &UnpackArguments, output: Option<&Path>) -> Result<()> {
    let container = Container::open(&arguments.container, &Limits::default())?;
    let target = match output {
        Some(output) => Target::new(output),
        None => Target::Path(default_output(&arguments.container, &container)),
    };
    // Before the bases are read, which may take long.
    let BaseArguments { paths, adapters } = &arguments.bases;
    let inputs = target::inputs(paths.iter().chain(adapters).chain([&arguments.container]));
    target.check(arguments.overwrite, &inputs)?;
    let (resolved, warnings) =
        inputs::resolve(container, &arguments.bases, arguments.base_dir.as_deref(), arguments.threads.count)?;
    let options =
        UnpackOptions::default().with_threads(arguments.threads.count).with_overwrite(arguments.overwrite);
    let bar = Bar::new("unpacking");
    let report = match &target {
        Target::Path(path) => deltaloom::unpack(&resolved, path, &options, &bar)?,
        Target::Stdout => {
            let mut out = target::stdout_for_bytes(&inputs)?;
            let unpacked = deltaloom::unpack_to(&resolved, &mut out, &options, &bar);
            unpacked.map_err(|e| target::named(e, &target))?
        }
    };
    bar.finish();
    if arguments.json {
        return inputs::print_report(&report, &warnings, &target);
    }
    let (size, files) = (ui::bytes(report.original_bytes), report.files);
    let files = if files == 1 { String::new() } else { format!(" in {files} files") };
    ui::note(&format!("{size}{files} restored, every digest matches, {:.2} s", report.seconds));
    Ok(())
}

/// `x.loom` becomes `x`, with the extension of the file that was packed.
fn default_output(path: &Path, container: &Container) -> PathBuf {
    let ending = container.single_file().and_then(|name| Path::new(name).extension());
    match ending {
        Some(ending) => path.with_extension(ending),
        None => path.with_extension(""),
    }
}

fn in_place(arguments: &UnpackArguments, base: &Path) -> Result<()> {
    let container = Container::open(&arguments.container, &Limits::default())?;
    let others = inputs::open_bases(&arguments.bases)?;
    let check = match () {
        () if arguments.trust_base => Check::One,
        () if arguments.check_all => Check::All,
        () => Check::Changed,
    };
    let options = InPlaceOptions::default()
        .with_threads(arguments.threads.count)
        .with_check(check)
        .with_overwrite(arguments.overwrite);
    let bar = Bar::new("changing");
    let report = deltaloom::unpack_in_place(container, base, &others, &options, &bar);
    bar.finish();
    let report = match report {
        Err(Error::Cancelled) => {
            Err(Error::Cancelled).with_context(|| format!("{} is unchanged", base.display()))
        }
        done => Ok(done?),
    }?;
    if arguments.json {
        return inputs::print_json(&report, others.warnings());
    }
    ui::note(&summary(&report, base, check));
    Ok(())
}

fn summary(report: &InPlaceReport, base: &Path, check: Check) -> String {
    let checked = match check {
        Check::All => "every digest matches",
        Check::Changed => "every changed tensor matches its digest",
        Check::One => "one tensor checked",
    };
    let base = base.display();
    if report.already_applied {
        return format!("{base} already is the fine-tune ({checked}); nothing was written");
    }
    let (written, all) = (ui::bytes(report.written_bytes), ui::bytes(report.original_bytes));
    let again = if report.resumed { "; resumed an interrupted run" } else { "" };
    format!(
        "{base} is now the fine-tune: {written} of {all} written, {checked}, {:.2} s{again}",
        report.seconds
    )
}
