//! `deltaloom eval generate`: answers that are numbers.

use std::time::Instant;

use anyhow::{Context as _, Result};
use deltaloom::{Error, Progress as _};
use deltaloom_lm::evaluate::{Answer as Found, Share, kind_of_number, read_problems};
use deltaloom_lm::generate::{Event, Finish, Request, generate};
use deltaloom_lm::text::{Special, Stop};
use serde::Serialize;

use super::{File, Measured, files, measure, share};
use crate::args::eval::AnswersArguments;
use crate::models::{self, Opened};
use crate::progress::Bar;
use crate::{Answer, ui};

#[derive(Serialize)]
struct Report {
    /// Right numbers behind `####`.
    strict: Share,
    /// Right last numbers.
    flexible: Share,
    kind: &'static str,
    files: Vec<File>,
    seconds: f64,
}

pub(crate) fn run(arguments: &AnswersArguments) -> Result<Answer> {
    let open = || models::open_chosen(&arguments.model);
    measure(
        &arguments.computing.threads,
        arguments.json,
        open,
        |opened, bar| report(arguments, opened, bar),
        describe,
    )
}

fn report(arguments: &AnswersArguments, opened: Opened, bar: &Bar) -> Result<Measured<Report>> {
    let tokenizer = opened.tokenizer()?;
    let Opened { mut model, tenant, warnings, .. } = opened;
    let (mut problems, digest) = read_problems(models::place(&arguments.file)?.as_ref())?;
    let mut read = vec![(arguments.file.clone(), digest)];
    let mut examples = String::new();
    if let Some(path) = &arguments.examples {
        let (solved, digest) = read_problems(models::place(path)?.as_ref())?;
        read.push((path.clone(), digest));
        for problem in solved.iter().take(usize::from(arguments.shots)) {
            examples.push_str(&format!("Question: {}\nAnswer: {}\n\n", problem.question, problem.steps));
        }
    }
    if let Some(limit) = arguments.limit {
        problems.truncate(usize::try_from(limit)?);
    }
    let start = Instant::now();
    bar.start(problems.len() as u64);
    let [mut strict, mut flexible] = [0, 0];
    for problem in &problems {
        let prompt = format!("{examples}Question: {}\nAnswer:", problem.question);
        let ids = tokenizer.encode(&prompt, Special::Add)?;
        let request = Request::new(&ids, usize::try_from(arguments.max_tokens)?)
            .with_stop(Stop::new(tokenizer.special().end.clone(), vec!["Question:".to_owned()])?)
            .with_memory(arguments.computing.memory());
        let go_on = |_: Event<'_>| Ok(!bar.is_cancelled());
        let text =
            generate(&mut model, tenant, tokenizer.pieces(), request, &arguments.computing.run(), go_on)?;
        if text.finish == Finish::Cancelled {
            return Err(Error::Cancelled.into());
        }
        let is_right = |way: Found| u64::from(way.of(&text.text).as_ref() == Some(&problem.number));
        strict += is_right(Found::Strict);
        flexible += is_right(Found::Flexible);
        bar.advance(1);
    }
    let count = problems.len() as u64;
    let share = |right: u64| Share::new(right, count).context("no problems");
    let seconds = start.elapsed().as_secs_f64();
    let (strict, flexible, kind) = (share(strict)?, share(flexible)?, kind_of_number(count));
    Ok((Report { strict, flexible, kind, files: files(&read), seconds }, warnings))
}

fn describe(report: &Report) -> String {
    let Report { strict, flexible, kind, .. } = report;
    let items = ui::count(strict.of, "problem");
    format!("strict    {}\nflexible  {}\na {kind} from {items}\n", share(strict), share(flexible))
}
