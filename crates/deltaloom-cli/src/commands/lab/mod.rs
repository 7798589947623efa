//! `deltaloom lab`: compares other methods with ours.

mod cells;
mod layer;
mod matmul;
mod mixed;
mod positions;
mod serve;
mod simhash;
mod tenants;
mod tpde;

use anyhow::Result;

use crate::Answer;
use crate::args::lab::{Experiment, LabArguments};

pub(crate) fn run(arguments: &LabArguments) -> Result<Answer> {
    match &arguments.experiment {
        Experiment::Layer(arguments) => layer::run(arguments),
        Experiment::Mixed(arguments) => mixed::run(arguments),
        Experiment::Matmul(arguments) => matmul::run(arguments),
        Experiment::Positions(arguments) => positions::run(arguments),
        Experiment::Tenants(arguments) => tenants::run(arguments),
        Experiment::Tpde(arguments) => tpde::run(arguments),
        Experiment::Serve(arguments) => serve::run(arguments),
        Experiment::SimHash(arguments) => simhash::run(arguments),
    }
}
