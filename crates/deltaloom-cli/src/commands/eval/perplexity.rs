//! `deltaloom eval perplexity`: the loss of a model on token ids.

use std::time::Instant;

use anyhow::{Context as _, Result};
use deltaloom::Progress as _;
use deltaloom_lm::model::{Perplexity, PerplexityOptions, perplexity};
use serde::Serialize;

use super::{Measured, measure};
use crate::args::eval::PerplexityArguments;
use crate::models::{self, ID_BYTES, Opened, counting};
use crate::progress::Bar;
use crate::{Answer, ui};

/// The longest window by default.
const WINDOW: usize = 1024;

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    result: Perplexity,
    /// Of a text: bits of its tokens, for each of its bytes.
    bits_per_byte: Option<f64>,
    /// BLAKE3-256 of the file.
    digest: String,
    window_tokens: usize,
    stride_tokens: usize,
    model_type: String,
    seconds: f64,
    tokens_per_second: f64,
}

pub(crate) fn run(arguments: &PerplexityArguments) -> Result<Answer> {
    let open = || Ok(models::open_chosen(&arguments.model)?.with_kv_file(&arguments.kv_file)?);
    measure(
        &arguments.computing.threads,
        arguments.json,
        open,
        |opened, bar| report(arguments, opened, bar),
        describe,
    )
}

fn report(arguments: &PerplexityArguments, opened: Opened, bar: &Bar) -> Result<Measured<Report>> {
    let text = models::text(&arguments.tokens, &opened, arguments.limit)?;
    let Opened { mut model, tenant, warnings, .. } = opened;
    let ids = text.ids.as_slice();
    let size = |number: Option<u32>| number.map(usize::try_from).transpose();
    let trained = model.config().max_positions.unwrap_or(WINDOW);
    let window = size(arguments.window)?.unwrap_or(trained.clamp(2, WINDOW));
    let stride = size(arguments.stride)?.unwrap_or(window);
    let chunk = usize::try_from(arguments.chunk)?;
    let options = PerplexityOptions::new(window)
        .with_stride(stride)
        .with_chunks(chunk, (512 / chunk.min(window)).clamp(1, 8))
        .with_memory(arguments.computing.memory());
    let start = Instant::now();
    let total = options.work(ids.len());
    bar.start(total as u64 * ID_BYTES);
    let result = perplexity(&mut model, tenant, ids, &options, &arguments.computing.run(), counting(bar))
        .with_context(|| arguments.tokens.display().to_string())?;
    let seconds = start.elapsed().as_secs_f64();
    let bits_per_token = result.loss / std::f64::consts::LN_2;
    let bytes = text.text_bytes.filter(|bytes| *bytes > 0);
    let report = Report {
        bits_per_byte: bytes.map(|bytes| bits_per_token * ids.len() as f64 / bytes as f64),
        digest: text.digest.to_string(),
        result,
        window_tokens: window,
        stride_tokens: stride,
        model_type: model.config().model_type.clone(),
        seconds,
        tokens_per_second: total as f64 / seconds,
    };
    Ok((report, warnings))
}

fn describe(report: &Report) -> String {
    let Perplexity { loss, perplexity, tokens, windows, standard_error, .. } = &report.result;
    let per_byte = report.bits_per_byte.map_or(String::new(), |bits| format!(", {bits:.4} bits per byte"));
    let error = standard_error.map_or(String::new(), |error| format!(" ± {error:.4}"));
    format!(
        "loss {loss:.4}{error} nats per token, perplexity {perplexity:.3}{per_byte}\n{}, {} of {} every {}, {:.0} tokens per second\n",
        ui::count(*tokens as u64, "token"),
        ui::count(*windows as u64, "window"),
        report.window_tokens,
        report.stride_tokens,
        report.tokens_per_second
    )
}
