//! `deltaloom verify`.

use anyhow::Result;
use deltaloom::{Container, Limits, Verifiable};

use crate::args::VerifyArguments;
use crate::progress::Bar;
use crate::{Answer, inputs, ui};

pub(crate) fn run(arguments: &VerifyArguments) -> Result<Answer> {
    let container = Container::open(&arguments.container, &Limits::default())?;
    let resolved;
    let mut warnings = Vec::new();
    let nothing_is_given = arguments.bases.is_empty() && arguments.base_dir.is_none();
    let what = if nothing_is_given && deltaloom::needs_base(&container) {
        Verifiable::Alone(&container)
    } else {
        (resolved, warnings) = inputs::resolve(
            container,
            &arguments.bases,
            arguments.base_dir.as_deref(),
            arguments.threads.count,
        )?;
        Verifiable::Resolved(&resolved)
    };
    let bar = Bar::new("verifying");
    let report = deltaloom::verify(&what, arguments.threads.count, &bar)?;
    bar.finish();
    if arguments.json {
        inputs::print_json(&report, &warnings)?;
    } else if report.ok {
        let also = if report.checked == "digests" {
            " and every digest match"
        } else {
            " matches (digests need --base)"
        };
        ui::print(&format!(
            "ok: {} tensors, {} chunks: every checksum{also}\n",
            report.tensors, report.chunks
        ))?;
    } else {
        let lines: Vec<String> =
            report.faults.iter().map(|fault| format!("fault: {}\n", ui::printable(fault))).collect();
        ui::print(&lines.concat())?;
    }
    Ok(if report.ok { Answer::Yes } else { Answer::No })
}
