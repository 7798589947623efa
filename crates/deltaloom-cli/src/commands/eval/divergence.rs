//! `deltaloom eval divergence`: how far a fine-tune, or another model, is from a base.

use std::time::Instant;

use anyhow::{Context as _, Result};
use deltaloom::Progress as _;
use deltaloom_lm::evaluate::{DivergenceReport, compare};
use serde::Serialize;

use super::{Measured, measure};
use crate::args::eval::DivergenceArguments;
use crate::models::{self, ID_BYTES, Opened, counting};
use crate::progress::Bar;
use crate::{Answer, ui};

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    result: DivergenceReport,
    window_tokens: usize,
    /// BLAKE3-256 of the text.
    digest: String,
    seconds: f64,
}

pub(crate) fn run(arguments: &DivergenceArguments) -> Result<Answer> {
    let open = || {
        let base = arguments.base_of_student.as_deref().filter(|_| models::needs_base(&arguments.base));
        models::open(&arguments.base, base, None)
    };
    measure(
        &arguments.computing.threads,
        arguments.json,
        open,
        |opened, bar| report(arguments, opened, bar),
        describe,
    )
}

fn report(arguments: &DivergenceArguments, mut opened: Opened, bar: &Bar) -> Result<Measured<Report>> {
    let of_student = arguments.base_of_student.as_deref();
    let of_student =
        of_student.filter(|_| models::needs_base(&arguments.student) || !models::needs_base(&arguments.base));
    let mut compared = models::compared(&mut opened, &arguments.student, of_student)?;
    let text = models::text(&arguments.tokens, &opened, arguments.limit)?;
    let Opened { mut model, warnings, .. } = opened;
    let trained = model.config().max_positions.unwrap_or(usize::MAX);
    let window = usize::try_from(arguments.window)?.min(trained);
    let start = Instant::now();
    bar.start(text.ids.len() as u64 * ID_BYTES);
    let memory = arguments.computing.memory();
    let found = compare(
        &mut model,
        compared.student(),
        &text.ids,
        window,
        memory,
        &arguments.computing.run(),
        counting(bar),
    )?;
    let result = found.report().context("no token was scored")?;
    let digest = text.digest.to_hex().to_string();
    Ok((Report { result, window_tokens: window, digest, seconds: start.elapsed().as_secs_f64() }, warnings))
}

fn describe(report: &Report) -> String {
    let DivergenceReport { kl, probability_change: change, same_top, .. } = &report.result;
    let number = |value: f64| format!("{value:.6}");
    let rows = [
        ("mean KL", format!("{} ± {}", number(kl.mean), number(kl.standard_error))),
        ("mean reverse KL", {
            let DivergenceReport { reverse_kl, reverse_kl_error, .. } = &report.result;
            format!("{} ± {}", number(*reverse_kl), number(*reverse_kl_error))
        }),
        ("maximum KL", number(kl.maximum)),
        ("99.9 % KL", number(kl.p99_9)),
        ("99 % KL", number(kl.p99)),
        ("median KL", number(kl.median)),
        ("10 % KL", number(kl.p10)),
        ("1 % KL", number(kl.p1)),
        ("minimum KL", number(kl.minimum)),
        ("mean Δp", ui::percent(change.mean, 3)),
        ("99 % Δp", ui::percent(change.p99, 3)),
        ("median Δp", ui::percent(change.median, 3)),
        ("1 % Δp", ui::percent(change.p1, 3)),
        ("RMS Δp", ui::percent(report.result.probability_change_rms, 3)),
        ("same top token", ui::percent(same_top.value, 3)),
        ("overlap of the top 5", ui::percent(report.result.top5_overlap, 3)),
        ("perplexity of the base", number(report.result.base_perplexity)),
        ("perplexity of the student", number(report.result.student_perplexity)),
        ("ln of their ratio", {
            let [ratio, error] =
                [report.result.log_perplexity_ratio, report.result.log_perplexity_ratio_error];
            format!("{} ± {}", number(ratio), number(error))
        }),
    ];
    let mut text: String = rows.iter().map(|(name, value)| format!("{name:26} {value}\n")).collect();
    text.push_str(&format!("{}, KL in nats\n", ui::count(report.result.tokens, "token")));
    text
}
