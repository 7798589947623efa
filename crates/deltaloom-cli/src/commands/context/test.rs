//! `deltaloom context test`: what recipes gain over truncation.

use anyhow::{Context as _, Result};
use deltaloom::Progress as _;
use deltaloom_lm::context::tester::{Method, TestOptions, TestReport, Text, test};
use deltaloom_lm::context::{Estimate, Measuring, Resolved, trained_tokens};
use serde::Serialize;

use super::recipes::{self, Prepared};
use crate::args::context::TestArguments;
use crate::models::{self, ID_BYTES, counting};
use crate::progress::Bar;
use crate::ui::table::{Cell, Table};
use crate::values::compute::TaskName;
use crate::{Answer, inputs, ui};

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) model_type: String,
    /// BLAKE3-256 of the text.
    digest: String,
    pub(super) kv: &'static str,
    #[serde(flatten)]
    pub(super) result: TestReport,
    pub(super) recipes: Vec<Resolved>,
    seconds: f64,
}

pub(crate) fn run(arguments: &TestArguments) -> Result<Answer> {
    let recipes = recipes::read(&arguments.recipes)?;
    #[cfg(feature = "report")]
    let files = {
        let model = &arguments.model;
        let paths = [&model.model, &arguments.text].into_iter().chain(&arguments.recipes);
        crate::target::inputs(paths.chain(&model.base).chain(&model.tenant))
    };
    #[cfg(feature = "report")]
    if let Some(page) = &arguments.report {
        crate::target::Target::new(page).check(arguments.overwrite, &files)?;
    }
    let bar = Bar::new("computing");
    let (report, warnings) = models::on_threads(arguments.computing.threads.count, || {
        let opened = models::open_chosen(&arguments.model)?.with_kv_file(&arguments.kv_file)?;
        let warnings = opened.warnings.clone();
        measure(arguments, opened, recipes, &bar).map(|report| (report, warnings))
    })?;
    bar.finish();
    #[cfg(feature = "report")]
    if let Some(page) = &arguments.report {
        crate::pages::write(&super::page::page(&report), page, None, arguments.overwrite, &files)?;
    }
    if arguments.json {
        inputs::print_json(&report, &warnings)?;
    } else {
        ui::print(&describe(&report.result))?;
    }
    Ok(Answer::Yes)
}

fn measure(
    arguments: &TestArguments,
    opened: models::Opened,
    recipes: Vec<deltaloom_lm::context::recipe::Loaded>,
    bar: &Bar,
) -> Result<Report> {
    let start = std::time::Instant::now();
    let (memory, run) = (arguments.computing.memory(), arguments.computing.run());
    let text = models::text(&arguments.text, &opened, None)?;
    let trained_length = arguments.trained.map(u64::from);
    let trained = trained_tokens(opened.model.config(), trained_length)?;
    let Prepared { opened, resolved, controls } =
        recipes::prepare(opened, recipes, trained_length, memory, &run)?;
    let lengths = arguments.lengths.iter().map(|length| usize::try_from(*length));
    let options = TestOptions::new(
        trained,
        &lengths.collect::<Result<Vec<_>, _>>()?,
        usize::try_from(arguments.sequences)?,
    )
    .with_passages(usize::try_from(arguments.passages)?)
    .with_rounds(usize::try_from(arguments.rounds)?)
    .with_retrieval(arguments.retrieval.map(TaskName::task))
    .with_seed(arguments.seed);
    let method = |(resolved, controls): (&Resolved, Vec<Resolved>)| {
        Method::new(resolved.name.clone(), resolved.layers.clone())
            .with_positions(resolved.positions)
            .with_controls(controls.into_iter().map(|control| control.layers).collect())
    };
    let methods: Vec<Method> = resolved.iter().zip(controls).map(method).collect();
    bar.start(options.work(&methods) as u64 * ID_BYTES);
    let model_type = opened.model.config().model_type.clone();
    let tokenizer = arguments.retrieval.map(|_| opened.tokenizer()).transpose()?;
    let on = Text { ids: &text.ids, tokenizer: tokenizer.as_ref() };
    let mut progress = counting(bar);
    let how = Measuring { tenant: opened.tenant, memory, run: &run };
    let result = test(opened.model, on, &methods, &options, &how, &mut progress)
        .with_context(|| arguments.text.display().to_string())?;
    Ok(Report {
        model_type,
        digest: text.digest.to_string(),
        kv: memory.kv.name(),
        result,
        recipes: resolved,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// A difference with its standard error.
pub(super) fn with_error(estimate: &Estimate) -> String {
    let error = estimate.standard_error.map_or(String::new(), |error| format!(" ± {error:.3}"));
    format!("{:+.3}{error}", estimate.mean)
}

/// A gain of shares in points with its interval.
pub(super) fn with_points(gain: &Estimate) -> String {
    let [mean, low, high] = [gain.mean, gain.low, gain.high].map(|share| 100.0 * share);
    format!("{mean:+.0} ({low:+.0} to {high:+.0}) points")
}

/// Which methods find more than truncation, one sentence for each length behind the trained one.
pub(super) fn clear_of_truncation(report: &TestReport) -> Vec<String> {
    let of = |tokens: usize| {
        let clear = report.retrieval.iter().filter(|row| row.tokens == tokens && row.is_clear());
        let names: Vec<&str> = clear.map(|row| row.name.as_str()).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        format!("Finds more than truncation in {tokens} tokens, with 95 % confidence: {names}.")
    };
    let lengths = report.lengths.iter().map(|length| length.tokens);
    let is_asked = |tokens: &usize| {
        *tokens > report.trained_tokens && report.retrieval.iter().any(|row| row.tokens == *tokens)
    };
    lengths.filter(is_asked).map(of).collect()
}

fn describe(report: &TestReport) -> String {
    let mut text = String::new();
    for length in &report.lengths {
        let title = |[start, end]: &[usize; 2]| format!("{start}-{}", end - 1);
        let mut table = Table::of(&length.methods).shown("method", |method| Cell::text(&*method.name));
        for (number, bucket) in length.buckets.iter().enumerate() {
            table = table.shown(&title(bucket), |method| Cell::fixed(method.losses.buckets[number], 3));
        }
        table = table
            .shown("gain", |method| {
                Cell::maybe(method.gain, |gain| Cell::number(gain.mean, with_error(&gain)))
            })
            .shown("", |method| method.word.map_or(Cell::Empty, |word| Cell::text(word.name())));
        let baseline: Vec<String> =
            length.truncation.buckets.iter().map(|loss| format!("{loss:.3}")).collect();
        text.push_str(&format!(
            "{}, {}, nats per token\n{}\ntruncation to {}: {}\n\n",
            ui::count(length.starts.len() as u64, "sequence"),
            ui::count(length.tokens as u64, "token"),
            table.text().trim_end(),
            report.trained_tokens,
            baseline.join(" ")
        ));
    }
    for price in report.price.iter().skip(1) {
        let cost = with_error(&price.difference);
        text.push_str(&format!("price of {} at {} tokens: {cost}\n", price.name, price.tokens));
    }
    for choice in &report.controls {
        text.push_str(&format!(
            "layers of {}: place {} of {} beside random ones (p {:.2}); depth may explain it\n",
            choice.name,
            choice.rank,
            choice.controls.len() + 1,
            choice.p_value
        ));
    }
    for copies in &report.copies {
        text.push_str(&format!(
            "copy {} tokens before, {}: {}\n",
            copies.gap_tokens,
            copies.name,
            with_error(&copies.gain)
        ));
    }
    for row in &report.retrieval {
        let share = |share: Option<deltaloom_lm::evaluate::Share>| {
            share.map_or_else(String::new, |share| format!("{} of {}", share.right, share.of))
        };
        let gain =
            row.gain.map_or_else(String::new, |gain| format!(", {} over truncation", with_points(&gain)));
        text.push_str(&format!(
            "facts in {} tokens, {}: {} chosen{gain}, {} written\n",
            row.tokens,
            row.name,
            share(row.forced_choice),
            share(row.exact)
        ));
    }
    for sentence in clear_of_truncation(report) {
        text.push_str(&format!("{sentence}\n"));
    }
    for kv in &report.memory {
        text.push_str(&format!(
            "keys and values of {} tokens, {}: {}, counted {}\n",
            kv.tokens,
            kv.name,
            ui::bytes(kv.formula_bytes),
            ui::bytes(kv.counted_bytes)
        ));
    }
    for speed in &report.speed {
        text.push_str(&format!(
            "speed of {}: prefill {:.0} tokens per second ({:.2}), decode {:.0} ({:.2})\n",
            speed.name,
            speed.prefill_tokens_per_second,
            speed.prefill_ratio,
            speed.decode_tokens_per_second,
            speed.decode_ratio
        ));
    }
    for end in &report.effective_length {
        let tokens = end.tokens.map_or("none".to_owned(), |tokens| tokens.to_string());
        text.push_str(&format!("effective length of {}: {tokens} ({})\n", end.name, end.reason));
    }
    text
}
