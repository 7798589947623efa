//! `deltaloom eval choices`: multiple choice.

use std::time::Instant;

use anyhow::{Context as _, Result};
use deltaloom::{Error, Progress as _};
use deltaloom_lm::evaluate::{Choices, ChoicesReport, Share, read_choices, score_choices};
use serde::Serialize;

use super::{File, Measured, files, measure, share};
use crate::args::eval::ChoicesArguments;
use crate::models::{self, Opened};
use crate::progress::Bar;
use crate::{Answer, ui};

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    result: ChoicesReport,
    files: Vec<File>,
    seconds: f64,
}

pub(crate) fn run(arguments: &ChoicesArguments) -> Result<Answer> {
    let open = || models::open_chosen(&arguments.model);
    measure(
        &arguments.computing.threads,
        arguments.json,
        open,
        |opened, bar| report(arguments, opened, bar),
        describe,
    )
}

fn report(arguments: &ChoicesArguments, opened: Opened, bar: &Bar) -> Result<Measured<Report>> {
    let tokenizer = opened.tokenizer()?;
    let Opened { mut model, tenant, warnings, .. } = opened;
    let file = models::place(&arguments.file)?;
    let mut found = read_choices(file.as_ref(), usize::from(arguments.shots))?;
    if let Some(limit) = arguments.limit {
        found.items.truncate(usize::try_from(limit)?);
    }
    if let ([only], false) = (&mut found.files[..], arguments.file.is_dir()) {
        // What the user calls it: a bundled file has a path of its own.
        only.0.clone_from(&arguments.file);
    }
    let start = Instant::now();
    bar.start(found.items.iter().map(|item| item.context.len() as u64).sum());
    let memory = arguments.computing.memory();
    let mut choices = Choices::default();
    for item in &found.items {
        let sums = score_choices(&mut model, tenant, &tokenizer, item, memory, &arguments.computing.run())?;
        choices.add(item, &sums)?;
        bar.advance(item.context.len() as u64);
        if bar.is_cancelled() {
            return Err(Error::Cancelled.into());
        }
    }
    let result = choices.report().context("no items")?;
    Ok((Report { result, files: files(&found.files), seconds: start.elapsed().as_secs_f64() }, warnings))
}

fn describe(report: &Report) -> String {
    let ChoicesReport { acc, acc_norm, kind, groups } = &report.result;
    let mut text = format!("acc       {}\nacc_norm  {}\n", share(acc), share(acc_norm));
    for (name, [acc, acc_norm]) in groups {
        let part = |share: &Share| ui::percent(share.value, 1);
        let items = ui::count(acc.of, "item");
        text.push_str(&format!("  {}: {}, {} ({items})\n", ui::printable(name), part(acc), part(acc_norm)));
    }
    text.push_str(&format!("a {kind} from {}\n", ui::count(acc.of, "item")));
    text
}
