//! `deltaloom eval`: language models measured on texts, against each other, and on tasks.

mod answers;
mod choices;
mod divergence;
mod perplexity;

use std::path::PathBuf;

use anyhow::Result;
use deltaloom::checkpoint::Warning;
use deltaloom_lm::evaluate::Share;
use serde::Serialize;

use crate::args::ThreadsArgument;
use crate::args::eval::{EvalArguments, EvalCommand};
use crate::models::{self, Opened};
use crate::progress::Bar;
use crate::{Answer, inputs, ui};

pub(crate) fn run(arguments: &EvalArguments) -> Result<Answer> {
    match &arguments.command {
        EvalCommand::Perplexity(arguments) => perplexity::run(arguments),
        EvalCommand::Divergence(arguments) => divergence::run(arguments),
        EvalCommand::Choices(arguments) => choices::run(arguments),
        EvalCommand::Generate(arguments) => answers::run(arguments),
    }
}

/// What was measured, and problems with the files of the model.
type Measured<R> = (R, Vec<Warning>);

/// Opens a model, measures it with progress, and prints the report.
fn measure<R: Serialize + Send>(
    threads: &ThreadsArgument,
    is_json: bool,
    open: impl FnOnce() -> Result<Opened> + Send,
    report: impl FnOnce(Opened, &Bar) -> Result<Measured<R>> + Send,
    describe: impl FnOnce(&R) -> String,
) -> Result<Answer> {
    let bar = Bar::new("computing");
    let (report, warnings) = models::on_threads(threads.count, || report(open()?, &bar))?;
    bar.finish();
    if is_json {
        inputs::print_json(&report, &warnings)?;
    } else {
        ui::print(&describe(&report))?;
    }
    Ok(Answer::Yes)
}

/// A file of the user, and its BLAKE3-256.
#[derive(Serialize)]
struct File {
    path: PathBuf,
    digest: String,
}

fn files(read: &[(PathBuf, impl std::fmt::Display)]) -> Vec<File> {
    read.iter().map(|(path, digest)| File { path: path.clone(), digest: digest.to_string() }).collect()
}

/// A share for people, with its interval.
fn share(share: &Share) -> String {
    let Share { value, low, high, right, of } = share;
    let [value, low, high] = [value, low, high].map(|part| ui::percent(*part, 1));
    format!("{value} ({right} of {of}; 95 %: {low} to {high})")
}
