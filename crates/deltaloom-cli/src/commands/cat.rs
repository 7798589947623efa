//! `deltaloom cat`.

use std::ops::Bound;

use anyhow::Result;
use deltaloom::{Container, Error, Limits, ResolvedContainer};

use crate::args::CatArguments;
use crate::target::{self, Target};
use crate::ui::nearest;
use crate::{Answer, inputs};

pub(crate) fn run(arguments: &CatArguments) -> Result<Answer> {
    let container = Container::open(&arguments.container, &Limits::default())?;
    let (tensor, folder) = (Some(arguments.tensor.as_str()), arguments.base_dir.as_deref());
    let bases = inputs::open_or_find_bases(&container, tensor, &arguments.bases, folder, 0)?;
    let resolved = ResolvedContainer::for_tensor(container, &bases, &arguments.tensor)
        .map_err(|e| with_nearest(e, arguments))?;
    let rows = arguments.rows.unwrap_or((Bound::Unbounded, Bound::Unbounded));
    let target = Target::new(&arguments.output);
    target::write_bytes(&target, arguments.overwrite, resolved.inputs(), |out| {
        deltaloom::read_tensor(&resolved, &arguments.tensor, rows, out)
    })?;
    Ok(Answer::Yes)
}

/// If there is no tensor of this name, suggests the most similar one.
fn with_nearest(error: Error, arguments: &CatArguments) -> anyhow::Error {
    let names = || {
        let container = Container::open(&arguments.container, &Limits::default()).ok()?;
        let report = deltaloom::inspect(&container);
        Some(report.tensors.into_iter().map(|tensor| tensor.name).collect())
    };
    nearest::suggest(error, &arguments.tensor, names, None)
}
