//! `deltaloom generate`: text from a language model.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use deltaloom::{Error, Limits};
use deltaloom_lm::generate::{Event, Finish, Generated, Request, generate};
use deltaloom_lm::sample::Sampling;
use deltaloom_lm::text::{ChatTemplate, Conversation, Special, Stop, Tokenizer};
use serde::Serialize;

use crate::args::generate::{GenerateArguments, SamplingArguments};
use crate::models::{self, Opened};
use crate::target::DASH;
use crate::{Answer, inputs, signals, ui};

/// Bytes of a prompt from standard input.
const LARGEST_PROMPT: u64 = 16 << 20;

#[derive(Serialize)]
struct Report {
    text: String,
    finish: Finish,
    ids: Vec<u32>,
    prompt_tokens: usize,
    tokens: usize,
    model_type: String,
    open_seconds: f64,
    prompt_seconds: f64,
    seconds: f64,
    prompt_tokens_per_second: Option<f64>,
    tokens_per_second: Option<f64>,
}

pub(crate) fn run(arguments: &GenerateArguments) -> Result<Answer> {
    signals::work_can_stop();
    let prompt = prompt(arguments)?;
    let (report, warnings) = models::on_threads(arguments.computing.threads.count, || {
        let start = Instant::now();
        let opened = models::open_chosen(&arguments.model)?.with_kv_file(&arguments.kv_file)?;
        report(arguments, opened, &prompt, start)
    })?;
    let is_cancelled = report.finish == Finish::Cancelled;
    if arguments.json {
        inputs::print_json(&report, &warnings)?;
    } else {
        ui::print("\n")?;
        ui::note(&describe(&report));
    }
    if is_cancelled { Err(Error::Cancelled.into()) } else { Ok(Answer::Yes) }
}

fn prompt(arguments: &GenerateArguments) -> Result<String> {
    if arguments.prompt != DASH {
        return Ok(arguments.prompt.clone());
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(LARGEST_PROMPT + 1).read_to_end(&mut bytes).context("standard input")?;
    Limits::check("bytes of standard input", bytes.len() as u64, LARGEST_PROMPT)?;
    String::from_utf8(bytes).context("standard input is not UTF-8")
}

fn report(
    arguments: &GenerateArguments,
    opened: Opened,
    prompt: &str,
    start: Instant,
) -> Result<(Report, Vec<deltaloom::checkpoint::Warning>)> {
    let tokenizer = opened.tokenizer()?;
    let Opened { mut model, tenant, warnings, .. } = opened;
    let ids = ids(arguments, &tokenizer, prompt)?;
    let request = Request::new(&ids, usize::try_from(arguments.max_tokens)?)
        .with_sampling(sampling(&arguments.sampling))
        .with_stop(Stop::new(tokenizer.special().end.clone(), arguments.stop.clone())?)
        .with_memory(arguments.computing.memory());
    let opened = start.elapsed();
    let mut prompted = Duration::ZERO;
    let each = |event: Event<'_>| {
        match event {
            Event::Prompt(_) => prompted = start.elapsed() - opened,
            Event::Token(text) | Event::Rest(text) if !arguments.json => {
                show(text).map_err(Error::writing("standard output"))?;
            }
            Event::Token(_) | Event::Rest(_) => {}
        }
        Ok(!signals::is_interrupted())
    };
    let generated =
        generate(&mut model, tenant, tokenizer.pieces(), request, &arguments.computing.run(), each)?;
    let seconds = (start.elapsed() - opened - prompted).as_secs_f64();
    let Generated { text, ids: tokens, finish } = generated;
    let per_second = |count: usize, seconds: f64| (seconds > 0.0).then(|| count as f64 / seconds);
    let report = Report {
        text,
        finish,
        prompt_tokens: ids.len(),
        tokens: tokens.len(),
        model_type: model.config().model_type.clone(),
        open_seconds: opened.as_secs_f64(),
        prompt_seconds: prompted.as_secs_f64(),
        seconds,
        prompt_tokens_per_second: per_second(ids.len(), prompted.as_secs_f64()),
        // The first token comes from the prompt.
        tokens_per_second: per_second(tokens.len().saturating_sub(1), seconds),
        ids: tokens,
    };
    Ok((report, warnings))
}

fn ids(arguments: &GenerateArguments, tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>> {
    if !arguments.chat {
        let mut ids = tokenizer.encode(prompt, Special::Add)?;
        if ids.is_empty() {
            // A text that starts with nothing starts with this.
            ids.extend(tokenizer.special().begin);
        }
        return Ok(ids);
    }
    let special = tokenizer.special();
    let Some(source) = &special.chat_template else {
        bail!("{}: the model has no chat template; leave out --chat", arguments.model.model.display());
    };
    let template = ChatTemplate::parse(source, special.begin_text.as_deref(), special.end_text.as_deref())?;
    let text = template.render(&Conversation::of_user(arguments.system.as_deref(), prompt))?;
    Ok(tokenizer.encode(&text, Special::Omit)?)
}

fn sampling(arguments: &SamplingArguments) -> Sampling {
    let SamplingArguments { temperature, top_k, top_p, min_p, repetition_penalty, seed } = *arguments;
    Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed, ..Sampling::default() }
}

/// Prints text as it comes. Control characters must not reach a terminal.
fn show(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if out.is_terminal() {
        let harmless = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
        out.write_all(text.chars().map(harmless).collect::<String>().as_bytes())?;
    } else {
        out.write_all(text.as_bytes())?;
    }
    out.flush()
}

fn describe(report: &Report) -> String {
    let end = match report.finish {
        Finish::Stop => "ended",
        Finish::Length => "as many as allowed",
        Finish::Context => "the context is full",
        _ => "stopped",
    };
    let speed = |speed: Option<f64>| {
        speed.map_or(String::new(), |speed| format!(", {} per second", ui::significant(speed)))
    };
    format!(
        "prompt: {}{}; text: {}{} ({end})",
        ui::count(report.prompt_tokens as u64, "token"),
        speed(report.prompt_tokens_per_second),
        ui::count(report.tokens as u64, "token"),
        speed(report.tokens_per_second),
    )
}
