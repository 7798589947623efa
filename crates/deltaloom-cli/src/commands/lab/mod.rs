//! `deltaloom lab`: one module per experiment.

mod positions;

use anyhow::Result;

use crate::Answer;
use crate::args::{Experiment, LabArguments};

pub(crate) fn run(arguments: &LabArguments) -> Result<Answer> {
    match &arguments.experiment {
        Experiment::Positions(arguments) => positions::run(arguments),
    }
}
