//! `deltaloom pack`.

use anyhow::{Result, bail};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Container, Limits, PackOptions, PackReport};

use crate::args::PackArguments;
use crate::{Answer, ui};

pub(crate) fn run(arguments: &PackArguments) -> Result<Answer> {
    let path = &arguments.checkpoint;
    if path.is_file() && Container::is_container(path)? {
        bail!("{}: this is a container already; unpack it to pack it anew", path.display());
    }
    let checkpoint = Checkpoint::open(path, &Limits::default())?;
    let bases = super::open_bases(&arguments.bases)?;
    let options = PackOptions {
        preset: arguments.preset.into(),
        threads: arguments.threads.count,
        overwrite: arguments.overwrite,
        ..PackOptions::default()
    };
    let bar = ui::Bar::new("packing");
    let report = deltaloom::pack(&checkpoint, &bases, &arguments.output, &options, &bar)?;
    bar.finish();
    if arguments.json {
        ui::print_json(&report)?;
    } else {
        ui::note(&summary(&report));
    }
    Ok(Answer::Yes)
}

/// One line with sizes, ratio, share and, where known, the time.
pub(crate) fn summary(report: &PackReport) -> String {
    let sizes = format!(
        "{} -> {}, ratio {:.3}",
        ui::bytes(report.original_bytes),
        ui::bytes(report.packed_bytes),
        report.ratio,
    );
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = |seconds: f64| report.original_bytes as f64 / 1e6 / seconds.max(1e-9);
    match report.seconds {
        Some(seconds) => format!("{sizes}, {seconds:.2} s, {:.0} MB/s", rate(seconds)),
        None => sizes,
    }
}
