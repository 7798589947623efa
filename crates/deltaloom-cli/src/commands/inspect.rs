//! `deltaloom inspect`.

use anyhow::Result;
use deltaloom::{Container, Limits};

use crate::args::InspectArguments;
use crate::ui::container;
use crate::{Answer, ui};

pub(crate) fn run(arguments: &InspectArguments) -> Result<Answer> {
    let opened = Container::open(&arguments.container, &Limits::default())?;
    let report = deltaloom::inspect(&opened);
    if arguments.json {
        ui::print_json(&report)?;
    } else {
        let (head, body) = (container::head(&report), container::body(&report, arguments.tensors));
        ui::print(&(head + &container::identity(&report) + &body))?;
    }
    Ok(Answer::Yes)
}
