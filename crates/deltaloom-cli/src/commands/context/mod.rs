//! `deltaloom context`: longer context without training, and what it gains.

mod apply;
mod layers;
mod limit;
#[cfg(feature = "report")]
mod page;
mod probe;
mod recipes;
mod test;

use anyhow::Result;

use crate::Answer;
use crate::args::context::{ContextArguments, ContextCommand};

pub(crate) fn run(arguments: &ContextArguments) -> Result<Answer> {
    match &arguments.command {
        ContextCommand::Layers(arguments) => layers::run(arguments),
        ContextCommand::Test(arguments) => test::run(arguments),
        ContextCommand::Apply(arguments) => apply::run(arguments),
        ContextCommand::Limit(arguments) => limit::run(arguments),
    }
}
