//! `deltaloom unpack`.

use anyhow::Result;
use deltaloom::{Error, ResolvedContainer, UnpackOptions};

use crate::args::UnpackArguments;
use crate::{Answer, ui};

pub(crate) fn run(arguments: &UnpackArguments) -> Result<Answer> {
    // Said before the bases are read, which may take long.
    if !arguments.overwrite && arguments.output.symlink_metadata().is_ok() {
        return Err(Error::AlreadyExists { path: arguments.output.clone() }.into());
    }
    let container = super::open_to_stream(&arguments.container)?;
    let resolved = ResolvedContainer::new(container, &super::open_bases(&arguments.bases)?)?;
    let options = UnpackOptions { threads: arguments.threads.count, overwrite: arguments.overwrite };
    let bar = ui::Bar::new("unpacking");
    let report = deltaloom::unpack(&resolved, &arguments.output, &options, &bar)?;
    bar.finish();
    if arguments.json {
        ui::print_json(&report)?;
    } else {
        let (size, files) = (ui::bytes(report.original_bytes), report.files);
        let files = if files == 1 { String::new() } else { format!(" in {files} files") };
        ui::note(&format!("{size}{files} restored, every digest matches, {:.2} s", report.seconds));
    }
    Ok(Answer::Yes)
}
