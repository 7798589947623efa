//! One module per subcommand.

pub(crate) mod cat;
pub(crate) mod demo;
pub(crate) mod diff;
pub(crate) mod inspect;
pub(crate) mod pack;
pub(crate) mod unpack;
pub(crate) mod verify;

use anyhow::Result;
use deltaloom::{Bases, Container, Limits, ResolvedContainer};

use crate::args::BaseArguments;

fn open_bases(arguments: &BaseArguments) -> Result<Bases> {
    Ok(Bases::open(&arguments.paths, &Limits::default())?)
}

fn open_resolved(container: &std::path::Path, bases: &BaseArguments) -> Result<ResolvedContainer> {
    let container = Container::open(container, &Limits::default())?;
    Ok(ResolvedContainer::new(container, &open_bases(bases)?)?)
}
