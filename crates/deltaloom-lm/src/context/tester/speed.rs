//! Bytes of keys and values, and time, of methods that take turns.

use std::time::Instant;

use deltaloom::Result;

use super::report::{KvBytes, Speed};
use super::{Measuring, Method, TestOptions};
use crate::context::losses::STEP;
use crate::layer::{AttentionPlan, KvType, Memory, Reach, SequenceId};
use crate::model::{Chunk, Model, ModelConfig};

/// Tokens that are computed one at a time.
const DECODED: usize = 16;

/// The tokens that a layer still sees after so many.
fn seen_tokens(plan: &AttentionPlan, tokens: usize) -> usize {
    match plan.reach {
        Reach::Window { tokens: window, sinks } => tokens.min(window.saturating_add(sinks)),
        // Of the chunk that the next token begins or continues.
        Reach::Chunk { tokens: chunk } => tokens.min(chunk),
        _ => tokens,
    }
}

/// Bytes of keys and values that `tokens` tokens need. `None` if it overflows.
#[must_use]
pub fn kv_bytes(config: &ModelConfig, plans: &[AttentionPlan], tokens: usize, kv: KvType) -> Option<u64> {
    config.layers.iter().zip(plans).try_fold(0_u64, |sum, (layer, plan)| {
        let of_token = (2 * layer.key_value_heads as u64).checked_mul(layer.head_size as u64)?;
        let tokens = seen_tokens(plan, tokens) as u64;
        sum.checked_add(of_token.checked_mul(kv.bytes() as u64)?.checked_mul(tokens)?)
    })
}

impl KvBytes {
    pub(super) fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }
}

/// Reads `ids`, and says what is in memory then.
pub(super) fn bytes(model: &mut Model, ids: &[u32], how: &Measuring<'_>) -> Result<KvBytes> {
    let mut memory = model.memory(how.memory);
    let sequence = memory.begin(how.tenant);
    read(model, &mut memory, sequence, ids, how)?;
    let plans: Vec<AttentionPlan> = model.attention().cloned().collect();
    let formula = kv_bytes(model.config(), &plans, ids.len(), how.memory.kv);
    Ok(KvBytes {
        name: String::new(),
        tokens: ids.len(),
        formula_bytes: formula.unwrap_or(u64::MAX),
        counted_bytes: memory.used_bytes(),
    })
}

fn read(
    model: &mut Model,
    memory: &mut Memory,
    sequence: SequenceId,
    ids: &[u32],
    how: &Measuring<'_>,
) -> Result<()> {
    for tokens in ids.chunks(STEP) {
        let hidden = model.forward(memory, &[Chunk { sequence, tokens }], how.run)?;
        // As a program does that wants the next token.
        hidden.logits(&[tokens.len() - 1], how.run)?;
    }
    Ok(())
}

pub(super) fn work(options: &TestOptions, runs: usize) -> usize {
    let rounds = if options.rounds == 0 { 0 } else { options.rounds + 1 };
    rounds * runs * options.longest()
}

/// Times the methods in turns: a round that is not counted, then `rounds`.
pub(super) fn measure(
    mut model: Model,
    methods: &[&Method],
    ids: &[u32],
    rounds: usize,
    how: &Measuring<'_>,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<Speed>> {
    if rounds == 0 {
        return Ok(Vec::new());
    }
    let (text, after) = ids.split_at(ids.len().saturating_sub(DECODED).max(1));
    let mut times = vec![[Vec::new(), Vec::new()]; methods.len()];
    for round in 0..=rounds {
        for (method, times) in methods.iter().zip(&mut times) {
            model = method.on(model, &method.plans)?;
            let mut memory = model.memory(how.memory);
            let sequence = memory.begin(how.tenant);
            let start = Instant::now();
            read(&mut model, &mut memory, sequence, text, how)?;
            let prefill = start.elapsed().as_secs_f64();
            let start = Instant::now();
            for id in after {
                read(&mut model, &mut memory, sequence, std::slice::from_ref(id), how)?;
            }
            let decode = start.elapsed().as_secs_f64();
            if round > 0 {
                times[0].push(prefill);
                times[1].push(decode);
            }
            progress(ids.len())?;
        }
    }
    let medians: Vec<[f64; 2]> = times.into_iter().map(|times| times.map(median)).collect();
    let row = |(method, [prefill, decode]): (&&Method, &[f64; 2])| Speed {
        name: method.name.clone(),
        tokens: ids.len(),
        prefill_tokens_per_second: text.len() as f64 / prefill,
        prefill_ratio: medians[0][0] / prefill,
        decode_tokens_per_second: after.len() as f64 / decode,
        decode_ratio: medians[0][1] / decode,
    };
    Ok(methods.iter().zip(&medians).map(row).collect())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
