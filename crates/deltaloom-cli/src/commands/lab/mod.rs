//! `deltaloom lab`: other ways to code weights, measured beside ours.

mod layer;
mod layer_page;
mod matmul;
mod matmul_page;
pub(crate) mod page;
mod positions;
mod simhash;
mod simhash_page;
mod tenants;
mod tpde;

pub(crate) use tpde::{Adaptive, MethodName};

use anyhow::Result;

use crate::Answer;
use crate::args::lab::{Experiment, LabArguments};

pub(crate) fn run(arguments: &LabArguments) -> Result<Answer> {
    match &arguments.experiment {
        Experiment::Layer(arguments) => layer::run(arguments),
        Experiment::Matmul(arguments) => matmul::run(arguments),
        Experiment::Positions(arguments) => positions::run(arguments),
        Experiment::Tenants(arguments) => tenants::run(arguments),
        Experiment::Tpde(arguments) => tpde::run(arguments),
        Experiment::SimHash(arguments) => simhash::run(arguments),
    }
}
