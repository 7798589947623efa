//! `deltaloom lab layer`: runs the benchmark and prints it as text or JSON.

mod page;
mod table;

use std::path::Path;

use anyhow::{Context as _, Result};
use deltaloom::Limits;
use deltaloom::checkpoint::Checkpoint;
use deltaloom_compute::Choice;
use deltaloom_lab::layer::{self, LayerCase, LayerOptions, LayerReport};
use deltaloom_lab::reference::{self, ReferenceCase};
use deltaloom_lm::layer::LayerHints;
use serde::Serialize;

use crate::args::lab::layer::LayerArguments;
use crate::inputs::config_of;
use crate::pages;
use crate::progress::Bar;
use crate::{Answer, target, ui};

/// Parameters to list in the text.
const HOTTEST: usize = 5;

/// The JSON that is printed.
#[derive(Serialize)]
struct Printed<'a> {
    layer: &'a str,
    #[serde(flatten)]
    report: &'a LayerReport,
}

pub(crate) fn run(arguments: &LayerArguments) -> Result<Answer> {
    let inputs = target::inputs(arguments.base.iter().chain(&arguments.tuned));
    pages::check(&arguments.page, &inputs)?;
    let options = LayerOptions {
        tokens: arguments.tokens.clone(),
        choices: choices(arguments),
        repeats: arguments.repeats,
        tenants: arguments.tenants.clone(),
        seed: arguments.seed,
    };
    let subject = Subject::of(arguments)?;
    let bar = Bar::new("computing");
    let (case, report) = deltaloom::with_threads(arguments.threads.count, || {
        let case = LayerCase::new(&subject.base, &subject.tuned, &subject.hints(arguments), &bar)?;
        let report = layer::run(&case, &options, &bar)?;
        Ok((case, report))
    })?;
    bar.finish();
    if arguments.page.html.is_some() {
        let page = page::page(&subject.name, &case, &report)?;
        pages::write_asked(|| page, &arguments.page, &inputs)?;
    }
    if arguments.json {
        ui::print_json(&Printed { layer: &subject.name, report: &report })?;
    } else {
        ui::print(&describe(&subject.name, &report))?;
    }
    Ok(if report.is_right { Answer::Yes } else { Answer::No })
}

fn choices(arguments: &LayerArguments) -> Vec<Choice> {
    let forms = arguments.form.iter().map(|name| Choice::Form(name.form()));
    forms.chain(arguments.budget.map(Choice::Budget)).collect()
}

/// The base, the fine-tune and the facts about them.
struct Subject {
    name: String,
    base: Checkpoint,
    tuned: Checkpoint,
    heads: Option<usize>,
    config: Option<String>,
}

impl Subject {
    fn of(arguments: &LayerArguments) -> Result<Self> {
        let (Some(base), Some(tuned)) = (&arguments.base, &arguments.tuned) else {
            let case = ReferenceCase { seed: arguments.seed, ..ReferenceCase::default() };
            let base = case.base();
            let tuned = case.tuned(&base, 0)?;
            return Ok(Self {
                name: "reference layer".to_owned(),
                base: base.to_checkpoint()?,
                tuned: tuned.to_checkpoint()?,
                heads: usize::try_from(reference::HEADS).ok(),
                config: None,
            });
        };
        let open = |path: &Path| {
            Checkpoint::open(path, &Limits::default()).with_context(|| path.display().to_string())
        };
        Ok(Self {
            name: format!("layer {} of {}", arguments.layer, tuned.display()),
            base: open(base)?,
            tuned: open(tuned)?,
            heads: arguments.heads,
            config: [tuned, base].into_iter().find_map(|path| config_of(path)),
        })
    }

    fn hints(&self, arguments: &LayerArguments) -> LayerHints<'_> {
        LayerHints::default()
            .with_layer(arguments.layer)
            .with_heads(self.heads)
            .with_config(self.config.as_deref())
    }
}

fn describe(name: &str, report: &LayerReport) -> String {
    let config = &report.config;
    let runs: Vec<_> = report.runs.iter().collect();
    let first = table::first_packed(report).into_iter();
    let hottest: Vec<_> =
        first.flat_map(|run| run.parameters.iter().take(HOTTEST).map(move |it| (run, it))).collect();
    [
        format!(
            "{}: width {}, {} heads of {}, hidden width {}; {}, threads: {}, repeats: {}\n",
            ui::printable(name),
            config.width,
            config.query_heads,
            config.head_size,
            config.hidden_width,
            report.isa,
            report.threads,
            report.repeats,
        ),
        format!("Sizes\n{}", table::sizes(&table::tensors(&report.statistics)).text()),
        format!("Layer on packed weights\n{}", table::runs(&runs).text()),
        format!("Phases\n{}", table::phases(&runs).text()),
        format!("Slowest parameters\n{}", table::parameters(&hottest).text()),
        format!("Layer after restoring all weights\n{}", table::restored(report).text()),
        format!("Memory of the base and its tenants\n{}", table::memory(report).text()),
    ]
    .join("\n")
}
