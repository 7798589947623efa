//! Load on a server of many fine-tunes, what its clients see, and whether every answer is that of
//! the dense fine-tune.
//!
//! It sends completions of token ids to a server on this machine, never to another. Requests are
//! generated from a seed: which model, which prompt, how many tokens.

mod check;
mod client;
mod direct;
mod plan;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;

pub use check::{Checked, check};
use client::Client;
pub use direct::direct;
pub use plan::Planned;
use plan::Planner;

use deltaloom::{Error, Limits, Progress, Result};

/// Most clients, and the longest run.
const MOST_CLIENTS: u64 = 4096;
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// A client that was refused waits this long.
const AFTER_REFUSAL: Duration = Duration::from_millis(20);

/// The load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The server, on this machine.
    pub address: SocketAddr,
    /// The key to send.
    pub key: Option<String>,
    /// Names of models.
    pub models: Vec<String>,
    /// How much more often earlier models are asked for: the model at place n has the weight
    /// 1 / n^zipf. With 0 all are equal.
    pub zipf: f64,
    /// Requests at a time, at most.
    pub clients: usize,
    /// Requests per second that arrive at random times (Poisson). `None`: a client sends its next
    /// request when it has the answer to the one before.
    pub rate: Option<f64>,
    /// How long requests are sent.
    pub duration: Duration,
    /// Most requests.
    pub requests: u64,
    /// Number of ids of the model.
    pub vocabulary: u32,
    /// Tokens of a prompt.
    pub prompt_tokens: RangeInclusive<usize>,
    /// Tokens of an answer.
    pub max_tokens: RangeInclusive<usize>,
    /// Selects the requests.
    pub seed: u64,
}

/// What became of a request.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The request.
    pub planned: Planned,
    /// HTTP status.
    pub status: u16,
    /// Why it failed, if the status does not say it.
    pub failure: Option<String>,
    /// Generated ids, with the logarithms of their probabilities.
    pub tokens: Vec<(u32, f64)>,
    /// From sending until the first token.
    pub first: Option<Duration>,
    /// Between tokens.
    pub gaps: Vec<Duration>,
    /// From sending until the end.
    pub total: Duration,
}

/// Median and high quantiles, in seconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Quantiles {
    /// Median.
    pub p50: f64,
    /// 99 in 100 are shorter.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

/// Requests of one model.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ModelLoad {
    /// Answered requests.
    pub answered: usize,
    /// Generated tokens.
    pub tokens: usize,
}

/// What the clients saw.
#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    /// Time from the first request to the last answer.
    pub seconds: f64,
    /// Requests.
    pub requests: usize,
    /// By status; 0 is a connection that failed.
    pub statuses: BTreeMap<u16, usize>,
    /// Arrivals that found no free client. They were not sent.
    pub not_sent: u64,
    /// What went wrong, besides refusals: the first few.
    pub failures: Vec<String>,
    /// Generated tokens per second.
    pub tokens_per_second: f64,
    /// From sending to the first token.
    pub first_token: Quantiles,
    /// Between tokens.
    pub between_tokens: Quantiles,
    /// Whole answers.
    pub whole: Quantiles,
    /// By model.
    pub models: BTreeMap<String, ModelLoad>,
}

impl LoadOptions {
    fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::InvalidArgument(what));
        if !self.address.ip().is_loopback() {
            return wrong(format!("{}: load is only sent to this machine", self.address));
        }
        if self.models.is_empty() || self.vocabulary == 0 {
            return wrong("load needs a model, and a model ids".to_owned());
        }
        if self.duration > LONGEST {
            return wrong("load for more than a day".to_owned());
        }
        if !(0.0..=10.0).contains(&self.zipf) || self.rate.is_some_and(|rate| !(1e-3..=1e6).contains(&rate)) {
            return wrong("an exponent above 10, or a rate that is not from 0.001 to 1,000,000".to_owned());
        }
        if [&self.prompt_tokens, &self.max_tokens].iter().any(|range| range.is_empty() || *range.start() == 0)
        {
            return wrong("prompts and answers need a token".to_owned());
        }
        Limits::check("clients", self.clients.max(1) as u64, MOST_CLIENTS)
    }
}

/// Sends requests until the time is over or all are sent, and waits for the answers.
///
/// # Errors
/// [`Error::InvalidArgument`] for another machine and for values out of range;
/// [`Error::LimitExceeded`] for too many clients; [`Error::Cancelled`].
pub async fn run(options: &LoadOptions, progress: &dyn Progress) -> Result<(LoadReport, Vec<Answer>)> {
    options.check()?;
    let planner = Planner::new(options);
    let sent = AtomicU64::new(0);
    let answers = Mutex::new(Vec::new());
    let start = Instant::now();
    let not_sent = match options.rate {
        None => closed(options, &planner, &sent, &answers, start, progress).await,
        Some(rate) => open(options, &planner, rate, &answers, start, progress).await,
    };
    if progress.is_cancelled() {
        return Err(Error::Cancelled);
    }
    let seconds = start.elapsed().as_secs_f64();
    let answers = answers.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok((LoadReport::of(&answers, not_sent, seconds), answers))
}

fn add(answers: &Mutex<Vec<Answer>>, answer: Answer, progress: &dyn Progress) {
    progress.advance(1);
    answers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(answer);
}

/// Every client sends its next request when it has an answer.
async fn closed(
    options: &LoadOptions,
    planner: &Planner,
    sent: &AtomicU64,
    answers: &Mutex<Vec<Answer>>,
    start: Instant,
    progress: &dyn Progress,
) -> u64 {
    let one = async || {
        let mut client = Client::new(options.address, options.key.clone());
        while start.elapsed() < options.duration && !progress.is_cancelled() {
            let number = sent.fetch_add(1, Ordering::Relaxed);
            if number >= options.requests {
                break;
            }
            let answer = client.complete(planner.request(number)).await;
            let is_refused = answer.status != 200;
            add(answers, answer, progress);
            if is_refused {
                tokio::time::sleep(AFTER_REFUSAL).await;
            }
        }
    };
    futures_util::future::join_all((0..options.clients.max(1)).map(|_| one())).await;
    0
}

/// Requests arrive when they want. Returns how many found no client.
async fn open(
    options: &LoadOptions,
    planner: &Planner,
    rate: f64,
    answers: &Mutex<Vec<Answer>>,
    start: Instant,
    progress: &dyn Progress,
) -> u64 {
    let mut free: Vec<Client> =
        (0..options.clients.max(1)).map(|_| Client::new(options.address, options.key.clone())).collect();
    let mut running: JoinSet<(Client, Answer)> = JoinSet::new();
    let (mut next, mut not_sent) = (Duration::ZERO, 0);
    for number in 0..options.requests {
        next += planner.pause(number, rate);
        if next >= options.duration || progress.is_cancelled() {
            break;
        }
        let due = tokio::time::Instant::from_std(start + next);
        // Answers come while the next arrival is not due.
        while let Ok(Some(ended)) = tokio::time::timeout_at(due, running.join_next()).await {
            if let Ok((client, answer)) = ended {
                free.push(client);
                add(answers, answer, progress);
            }
        }
        tokio::time::sleep_until(due).await;
        match free.pop() {
            None => not_sent += 1,
            Some(mut client) => {
                let planned = planner.request(number);
                running.spawn(async move {
                    let answer = client.complete(planned).await;
                    (client, answer)
                });
            }
        }
    }
    while let Some(ended) = running.join_next().await {
        if let Ok((_, answer)) = ended {
            add(answers, answer, progress);
        }
    }
    not_sent
}

impl Answer {
    /// Before anything has come.
    fn of(planned: Planned) -> Self {
        Self {
            planned,
            status: 0,
            failure: None,
            tokens: Vec::new(),
            first: None,
            gaps: Vec::new(),
            total: Duration::ZERO,
        }
    }
}

impl Quantiles {
    fn of(durations: impl Iterator<Item = Duration>) -> Self {
        let mut seconds: Vec<f64> = durations.map(|duration| duration.as_secs_f64()).collect();
        seconds.sort_by(f64::total_cmp);
        let at =
            |share: usize| seconds.get((seconds.len() * share / 100).min(seconds.len().saturating_sub(1)));
        let [p50, p99, max] = [50, 99, 100].map(|share| at(share).copied().unwrap_or(0.0));
        Self { p50, p99, max }
    }
}

impl LoadReport {
    fn of(answers: &[Answer], not_sent: u64, seconds: f64) -> Self {
        let (mut statuses, mut models) = (BTreeMap::new(), BTreeMap::<String, ModelLoad>::new());
        for answer in answers {
            *statuses.entry(answer.status).or_default() += 1;
            let model = models.entry(answer.planned.model.clone()).or_default();
            model.answered += usize::from(answer.status == 200);
            model.tokens += answer.tokens.len();
        }
        let tokens: usize = models.values().map(|model| model.tokens).sum();
        Self {
            seconds,
            requests: answers.len(),
            statuses,
            not_sent,
            failures: answers.iter().filter_map(|answer| answer.failure.clone()).take(5).collect(),
            tokens_per_second: tokens as f64 / seconds.max(f64::MIN_POSITIVE),
            first_token: Quantiles::of(answers.iter().filter_map(|answer| answer.first)),
            between_tokens: Quantiles::of(answers.iter().flat_map(|answer| answer.gaps.iter().copied())),
            whole: Quantiles::of(answers.iter().filter(|it| it.status == 200).map(|answer| answer.total)),
            models,
        }
    }
}
