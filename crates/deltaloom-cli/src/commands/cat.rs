//! `deltaloom cat`.

use std::io::{self, Write as _};

use anyhow::Result;
use deltaloom::{Container, Limits, ResolvedContainer};

use crate::Answer;
use crate::args::CatArguments;

pub(crate) fn run(arguments: &CatArguments) -> Result<Answer> {
    let container = Container::open(&arguments.container, &Limits::default())?;
    let bases = super::open_bases(&arguments.bases)?;
    let resolved = ResolvedContainer::for_tensor(container, &bases, &arguments.tensor)?;
    let mut out = io::stdout().lock();
    deltaloom::read_tensor(&resolved, &arguments.tensor, arguments.rows.clone(), &mut out)?;
    out.flush()?;
    Ok(Answer::Yes)
}
