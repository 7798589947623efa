//! Facts that are planted in a text and asked for at its end. A text is read once; each question
//! goes on from a copy of what is in memory.

use deltaloom::{Error, Result};
use serde::Serialize;

use super::Measuring;
use crate::context::losses::STEP;
use crate::context::statistics::{Estimate, places};
use crate::evaluate::Share;
use crate::layer::{Memory, SequenceId};
use crate::model::{Chunk, Model};
use crate::sample::LogProbs;
use crate::text::{Special, Tokenizer};

/// Facts of a text, and answers to choose from.
const FACTS: usize = 8;
/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Task {
    /// Eight keys with a number each, evenly spaced; all are asked for.
    Multikey,
    /// One number among other text.
    Passkey,
    /// Eight numbers, each handed on twice to another name (RULER, 2404.06654).
    Tracking,
}

/// How often a method found facts.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Retrieval {
    /// The method, or `truncation`.
    pub name: String,
    /// Tokens of a text.
    pub tokens: usize,
    /// How often the right number of eight was the most probable one: 1 of 8 by chance.
    pub forced_choice: Option<Share>,
    /// How often the right number was what the model wrote.
    pub exact: Option<Share>,
    /// Right choices by depth, first in the text first.
    pub by_depth: Vec<u64>,
    /// Right choices by text.
    pub by_text: Vec<u64>,
    /// Texts.
    pub texts: usize,
    /// The share of right choices less that of truncation in the same texts; `None` for truncation.
    pub gain: Option<Estimate>,
}

impl Retrieval {
    /// If more is found than with truncation, with 95 % confidence.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.gain.is_some_and(|gain| gain.low > 0.0)
    }

    /// Compares with `truncation`, which was asked the same questions.
    pub(super) fn compared(self, truncation: &Self, seed: u64) -> Self {
        let share = |of: &Self| -> Vec<f64> {
            let questions = of.forced_choice.map_or(1, |share| share.of) as f64 / of.texts.max(1) as f64;
            of.by_text.iter().map(|right| *right as f64 / questions).collect()
        };
        let gain = Estimate::paired(&share(&self), &share(truncation), seed);
        Self { gain: Some(gain), ..self }
    }
}

/// A text with facts.
pub(super) struct Planted {
    ids: Vec<u32>,
    /// Depth, question, and the number of the answer.
    questions: Vec<(usize, Vec<u32>, usize)>,
    answers: Vec<Vec<u32>>,
}

/// Texts of `tokens` tokens.
pub(super) fn plant(
    task: Task,
    tokenizer: &Tokenizer,
    filler: &[u32],
    tokens: usize,
    texts: usize,
    seed: u64,
) -> Result<Vec<Planted>> {
    (0..texts).map(|number| text(task, tokenizer, filler, tokens, seed, number as u64)).collect()
}

/// Names that differ in their first letters.
const NAMES: [&str; FACTS] = ["apple", "bridge", "candle", "dragon", "engine", "forest", "garden", "hammer"];

/// Facts of a depth with the question for the last of them. All facts of a depth follow each other.
fn facts(task: Task, number: usize, value: &str) -> (Vec<String>, String) {
    let name = NAMES[number];
    match task {
        Task::Multikey => (
            vec![format!("\nThe number of the {name} is {value}.\n")],
            format!("\nThe number of the {name} is"),
        ),
        Task::Passkey => (
            vec![format!("\nThe pass key is {value}. Remember it. {value} is the pass key.\n")],
            "\nThe pass key is".to_owned(),
        ),
        Task::Tracking => {
            let letter = name.to_uppercase();
            let hops = vec![
                format!("\nVAR {letter}A = {value}\n"),
                format!("\nVAR {letter}B = {letter}A\n"),
                format!("\nVAR {letter}C = {letter}B\n"),
            ];
            (hops, format!("\nVAR {letter}C ="))
        }
    }
}

fn text(
    task: Task,
    tokenizer: &Tokenizer,
    filler: &[u32],
    tokens: usize,
    seed: u64,
    number: u64,
) -> Result<Planted> {
    let encode = |text: &str| tokenizer.encode(text, Special::Omit);
    let digits = places(9000, FACTS * 16, seed, 2 * number + 10);
    let mut values: Vec<String> = Vec::with_capacity(FACTS);
    for digits in digits {
        let value = (1000 + digits).to_string();
        if values.len() < FACTS && !values.contains(&value) {
            values.push(value);
        }
    }
    let asked: Vec<usize> = match task {
        Task::Passkey => vec![usize::try_from(number).unwrap_or(0) % FACTS],
        _ => (0..FACTS).collect(),
    };
    let mut planted = Vec::new();
    let mut questions = Vec::new();
    for at in &asked {
        let Some(value) = values.get(*at) else { continue };
        let (facts, question) = facts(task, *at, value);
        let facts = facts.iter().map(|fact| encode(fact)).collect::<Result<Vec<_>>>()?;
        planted.push((*at, facts.concat()));
        questions.push((*at, encode(&question)?, *at));
    }
    let answers = values.iter().map(|value| encode(&format!(" {value}"))).collect::<Result<Vec<_>>>()?;
    if answers.len() < FACTS
        || answers.iter().any(Vec::is_empty)
        || questions.iter().any(|it| it.1.is_empty())
    {
        return Err(Error::InvalidArgument("the tokenizer has no ids for planted facts".to_owned()));
    }
    let of_facts: usize = planted.iter().map(|(_, fact)| fact.len()).sum();
    let longest = questions.iter().map(|(_, question, _)| question.len()).max().unwrap_or(0)
        + answers.iter().map(Vec::len).max().unwrap_or(0);
    let Some(rest) = tokens.checked_sub(of_facts + longest).filter(|rest| *rest <= filler.len()) else {
        return Err(Error::InvalidArgument(format!(
            "{tokens} tokens do not hold {of_facts} tokens of facts and a question of {longest}, or the text is too short"
        )));
    };
    let start = places((filler.len() - rest).max(1), 1, seed, 2 * number + 11)[0];
    let filler = &filler[start..start + rest];
    let mut ids = Vec::with_capacity(tokens);
    let mut used = 0;
    for (depth, fact) in planted {
        let until = rest * (2 * depth + 1) / (2 * FACTS);
        ids.extend_from_slice(&filler[used..until]);
        ids.extend(fact);
        used = until;
    }
    ids.extend_from_slice(&filler[used..]);
    Ok(Planted { ids, questions, answers })
}

/// Number of tokens that are computed for a method, for its progress.
pub(super) fn work(tokens: usize, texts: usize) -> usize {
    tokens * texts
}

/// Asks for all facts. `keep` is the number of last tokens that the model gets, for truncation.
pub(super) fn ask(
    model: &mut Model,
    name: &str,
    tokens: usize,
    texts: &[Planted],
    keep: usize,
    how: &Measuring<'_>,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Retrieval> {
    let (mut chosen, mut exact, mut all) = (0, 0, 0);
    let (mut by_depth, mut by_text) = (vec![0; FACTS], Vec::with_capacity(texts.len()));
    for text in texts {
        let before = chosen;
        let longest = text.questions.iter().map(|(_, question, _)| question.len()).max().unwrap_or(0);
        // Answers need positions, too.
        let answers = text.answers.iter().map(Vec::len).max().unwrap_or(0);
        let keep = keep.min(model.config().table_end().saturating_sub(answers));
        let ids = &text.ids[text.ids.len().saturating_sub(keep.saturating_sub(longest))..];
        let mut memory = model.memory(how.memory);
        let sequence = memory.begin(how.tenant);
        for tokens in ids.chunks(STEP) {
            model.forward(&mut memory, &[Chunk { sequence, tokens }], how.run)?;
        }
        for (depth, question, answer) in &text.questions {
            let found = answer_of(model, &mut memory, sequence, question, &text.answers, how)?;
            all += 1;
            if found.choice == *answer {
                chosen += 1;
                by_depth[*depth] += 1;
            }
            exact += u64::from(found.written.starts_with(&text.answers[*answer]));
        }
        by_text.push(chosen - before);
        progress(text.ids.len())?;
    }
    Ok(Retrieval {
        name: name.to_owned(),
        tokens,
        forced_choice: Share::new(chosen, all),
        exact: Share::new(exact, all),
        by_depth,
        by_text,
        texts: texts.len(),
        gain: None,
    })
}

struct Found {
    /// The answer with the largest probability.
    choice: usize,
    /// The most probable tokens, as many as the longest answer has.
    written: Vec<u32>,
}

/// Goes on from a copy of `sequence` with a question, and from copies of that with the answers.
fn answer_of(
    model: &mut Model,
    memory: &mut Memory,
    sequence: SequenceId,
    question: &[u32],
    answers: &[Vec<u32>],
    how: &Measuring<'_>,
) -> Result<Found> {
    let asked = memory.fork(sequence)?;
    let logits = {
        let hidden = model.forward(memory, &[Chunk { sequence: asked, tokens: question }], how.run)?;
        hidden.logits(&[question.len() - 1], how.run)?
    };
    let next = LogProbs::new(&logits)?;
    let mut best = (f64::NEG_INFINITY, 0);
    for (number, answer) in answers.iter().enumerate() {
        let copy = memory.fork(asked)?;
        let mut sum = next.of(answer[0]);
        if answer.len() > 1 {
            let tokens = &answer[..answer.len() - 1];
            let hidden = model.forward(memory, &[Chunk { sequence: copy, tokens }], how.run)?;
            let rest: Vec<(usize, u32)> = answer[1..].iter().copied().enumerate().collect();
            sum += hidden.log_probs(&rest, how.run)?.iter().sum::<f64>();
        }
        memory.end(copy)?;
        if sum > best.0 {
            best = (sum, number);
        }
    }
    let longest = answers.iter().map(Vec::len).max().unwrap_or(0);
    let mut written = vec![next.best()];
    while written.len() < longest {
        let last = [written[written.len() - 1]];
        let hidden = model.forward(memory, &[Chunk { sequence: asked, tokens: &last }], how.run)?;
        written.push(LogProbs::new(&hidden.logits(&[0], how.run)?)?.best());
    }
    memory.end(asked)?;
    Ok(Found { choice: best.1, written })
}
