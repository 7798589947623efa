//! `deltaloom context limit --measure`: a process of its own for each length.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use deltaloom::{Error, ErrorKind};
use deltaloom_lm::context::{Measuring, Outcome, Probed, longest, probe};
use serde::{Deserialize, Serialize};

use super::recipes::{self, Prepared};
use crate::args::context::LimitArguments;
use crate::{Answer, host, models, signals, ui};

/// How often it is asked whether to stop.
const PAUSE: Duration = Duration::from_millis(50);

/// What processes have shown.
#[derive(Serialize)]
pub(super) struct Measured {
    /// The longest sequence that was computed; `None` if there is none.
    pub(super) longest: Option<Probed>,
    /// All that were tried, in order.
    pub(super) tried: Vec<Tried>,
}

#[derive(Serialize)]
pub(super) struct Tried {
    tokens: usize,
    seconds: f64,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
}

/// What a process prints.
#[derive(Deserialize)]
#[serde(untagged)]
enum Said {
    Failed { error: Failure },
    Probed(Probed),
}

#[derive(Deserialize)]
struct Failure {
    kind: String,
    message: String,
}

/// Looks for the longest sequence of at most `most` tokens.
pub(super) fn measure(arguments: &LimitArguments, most: usize) -> Result<Measured> {
    signals::work_can_stop();
    let mut tried = Vec::new();
    let longest = longest(most, |tokens| {
        let start = Instant::now();
        let outcome = elsewhere(arguments, tokens).map_err(library_error)?;
        let words = match &outcome {
            Outcome::Worked(Probed { peak_bytes: Some(bytes), .. }) => {
                format!("worked, {}", ui::bytes(*bytes))
            }
            Outcome::Worked(_) => "worked".to_owned(),
            Outcome::NoMemory => "not enough memory".to_owned(),
            Outcome::Failed { reason } => reason.clone(),
            _ => "not finite".to_owned(),
        };
        ui::note(&format!("{tokens} tokens: {words}"));
        tried.push(Tried { tokens, seconds: start.elapsed().as_secs_f64(), outcome: outcome.clone() });
        Ok(outcome)
    })?;
    Ok(Measured { longest, tried })
}

fn library_error(error: anyhow::Error) -> Error {
    error.downcast().unwrap_or_else(|error| Error::InvalidArgument(format!("{error:#}")))
}

/// Computes a length in another process.
fn elsewhere(arguments: &LimitArguments, tokens: usize) -> Result<Outcome> {
    let mut command = host::same_again().context("cannot find the file of this program")?;
    command.args(["--probe", &tokens.to_string()]);
    if !arguments.json {
        command.arg("--json");
    }
    let Some(output) = output(command)? else { return Ok(Outcome::NoMemory) };
    Ok(match serde_json::from_slice(&output) {
        Ok(Said::Probed(probed)) if probed.not_finite_at.is_some() => Outcome::NotFinite(probed),
        Ok(Said::Probed(probed)) => Outcome::Worked(probed),
        Ok(Said::Failed { error }) if error.kind == ErrorKind::LimitExceeded.name() => Outcome::NoMemory,
        Ok(Said::Failed { error }) => Outcome::Failed { reason: error.message },
        Err(error) => bail!("a process printed something else than a result: {error}"),
    })
}

/// What a process prints; `None` if the system ended it. It ends with this one.
fn output(mut command: Command) -> Result<Option<Vec<u8>>> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut stdout = child.stdout.take().context("a process without an output")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = stdout.read_to_end(&mut bytes).map(|_| bytes);
        // Nobody waits after an interrupt.
        let _ignored = sender.send(read);
    });
    let bytes = loop {
        match receiver.recv_timeout(PAUSE) {
            _ if signals::is_interrupted() => {
                child.kill()?;
                child.wait()?;
                return Err(Error::Cancelled.into());
            }
            Err(RecvTimeoutError::Timeout) => {}
            read => break read.context("a process that cannot be heard")??,
        }
    };
    // A signal ends it when memory is short: that of the system, or its own when it gets none.
    Ok(child.wait()?.code().is_some().then_some(bytes))
}

/// What such a process does.
pub(super) fn run(arguments: &LimitArguments, tokens: usize) -> Result<Answer> {
    let loaded = recipes::read(arguments.recipe.as_slice())?;
    let probed = models::on_threads(arguments.computing.threads.count, || {
        let opened = models::open_chosen(&arguments.model)?;
        let memory = arguments.computing.memory().with_budget(Some(arguments.memory));
        let run = arguments.computing.run();
        let Prepared { opened, resolved, .. } = recipes::prepare(opened, loaded, None, memory, &run)?;
        let how = Measuring { tenant: opened.tenant, memory, run: &run };
        let mut model = opened.model;
        if let Some(resolved) = resolved.into_iter().next() {
            model = model.with_attention(resolved.layers)?;
        }
        let within = || {
            let peak = peak_bytes();
            if let Some(found) = peak.filter(|peak| *peak > arguments.memory) {
                let what = "the memory of this process in bytes";
                return Err(Error::LimitExceeded { what, found, limit: arguments.memory });
            }
            Ok(peak)
        };
        Ok(probe(&mut model, tokens, &how, within)?)
    })?;
    ui::print_json(&probed)?;
    Ok(Answer::Yes)
}

/// The most memory that this process had, if the system tells.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    kib.checked_mul(1024)
}
