//! `deltaloom context`: longer context without training, and what it gains.

mod layers;

use anyhow::Result;

use crate::Answer;
use crate::args::context::{ContextArguments, ContextCommand};

pub(crate) fn run(arguments: &ContextArguments) -> Result<Answer> {
    match &arguments.command {
        ContextCommand::Layers(arguments) => layers::run(arguments),
    }
}
