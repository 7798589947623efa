//! `deltaloom cat`.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use deltaloom::{Container, Error, Limits, ResolvedContainer};

use crate::Answer;
use crate::args::CatArguments;

pub(crate) fn run(arguments: &CatArguments) -> Result<Answer> {
    let container = Container::open(&arguments.container, &Limits::default())?;
    let (tensor, folder) = (Some(arguments.tensor.as_str()), arguments.base_dir.as_deref());
    let bases = super::open_or_find_bases(&container, tensor, &arguments.bases, folder, 0)?;
    let resolved = ResolvedContainer::for_tensor(container, &bases, &arguments.tensor)?;
    let mut out = io::stdout().lock();
    let read = deltaloom::read_tensor(&resolved, &arguments.tensor, arguments.rows.clone(), &mut out);
    read.map_err(|e| match e {
        // The library does not know where it writes to.
        Error::Io { path, source } if path.as_os_str().is_empty() => {
            anyhow::Error::from(source).context("standard output")
        }
        other => other.into(),
    })?;
    out.flush().context("standard output")?;
    Ok(Answer::Yes)
}
