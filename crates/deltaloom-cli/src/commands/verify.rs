//! `deltaloom verify`.

use anyhow::Result;
use deltaloom::{Container, Limits, ResolvedContainer, Verifiable};

use crate::args::VerifyArguments;
use crate::{Answer, ui};

pub(crate) fn run(arguments: &VerifyArguments) -> Result<Answer> {
    let container = Container::open(&arguments.container, &Limits::default())?;
    let bar = ui::Bar::new("verifying");
    let threads = arguments.threads.count;
    let report = if arguments.bases.paths.is_empty() && deltaloom::needs_base(&container) {
        deltaloom::verify(&Verifiable::Alone(&container), threads, &bar)?
    } else {
        let resolved = ResolvedContainer::new(container, &super::open_bases(&arguments.bases)?)?;
        deltaloom::verify(&Verifiable::Resolved(&resolved), threads, &bar)?
    };
    bar.finish();
    if arguments.json {
        ui::print_json(&report)?;
    } else if report.ok {
        let also = if report.checked == "digests" { " and every digest" } else { " (digests need --base)" };
        ui::print(&format!(
            "ok: {} tensors, {} chunks, every checksum{also}\n",
            report.tensors, report.chunks
        ))?;
    } else {
        let lines: Vec<String> =
            report.faults.iter().map(|fault| format!("fault: {}\n", ui::printable(fault))).collect();
        ui::print(&lines.concat())?;
    }
    Ok(if report.ok { Answer::Yes } else { Answer::No })
}
