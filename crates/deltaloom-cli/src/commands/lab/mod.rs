//! `deltaloom lab`: other ways to code weights, measured beside ours.

mod tpde;

pub(crate) use tpde::{Adaptive, MethodName};

use anyhow::Result;
use clap::Subcommand;

use crate::Answer;
use crate::args::{LabArguments, TpdeArguments};

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    Tpde(TpdeArguments),
}

pub(crate) fn run(arguments: &LabArguments) -> Result<Answer> {
    match &arguments.command {
        LabCommand::Tpde(arguments) => tpde::run(arguments),
    }
}
