//! Measures a model on some threads, for `just bench-lm`: how fast memory is read, a prompt is
//! computed, and tokens are decoded one after another.
//!
//! Arguments: directory or GGUF file, tokens of the prompt, tokens to decode, threads. Prints JSON.
#![expect(clippy::print_stdout, reason = "it reports measurements")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use deltaloom::with_threads;
use deltaloom_compute::{Mode, Run};
use deltaloom_kernels::functions;
use deltaloom_lm::layer::MemoryOptions;
use deltaloom_lm::model::{Chunk, Model};
use deltaloom_lm::tenancy::FamilyOptions;
use rayon::prelude::*;

/// Tokens that are computed together.
const CHUNK: usize = 256;
/// Tokens before those whose decoding is timed.
const CONTEXT: usize = 32;

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Fallible<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, prompt, tokens, threads] = &arguments[..] else {
        return Err("usage: model_speed MODEL PROMPT TOKENS THREADS".into());
    };
    let (prompt, tokens, threads): (usize, usize, usize) =
        (prompt.parse()?, tokens.parse()?, threads.parse()?);
    let measured = with_threads(threads, || Ok(measure(Path::new(path), prompt, tokens)))?;
    println!("{}", serde_json::to_string(&measured?)?);
    Ok(())
}

fn measure(path: &Path, prompt: usize, tokens: usize) -> Fallible<serde_json::Value> {
    let start = Instant::now();
    let mut model = Model::open(path, FamilyOptions::default())?;
    let open_seconds = start.elapsed().as_secs_f64();
    let base = Arc::clone(model.base());
    let weights: Vec<&[u8]> =
        base.weights().filter_map(|(member, info)| base.in_memory(member, info)).collect();
    let bytes: usize = weights.iter().map(|bytes| bytes.len()).sum();
    let vocabulary = u32::try_from(model.config().vocabulary)?;
    let ids: Vec<u32> = (0..u32::try_from(prompt)?).map(|i| i * 7919 % vocabulary).collect();
    // Pages that were never read are slow the first time.
    let sum = read(&weights);
    let start = Instant::now();
    assert_eq!(read(&weights), sum);
    let read_seconds = start.elapsed().as_secs_f64();
    let mut prompt_seconds = serde_json::Map::new();
    let mut decode_seconds = serde_json::Map::new();
    for mode in [Mode::Exact, Mode::Exact16] {
        let run = Run::new(mode);
        let mut memory = model.memory(MemoryOptions::default());
        let sequence = memory.begin(Model::BASE);
        let start = Instant::now();
        for (number, tokens) in ids.chunks(CHUNK).enumerate() {
            let hidden = model.forward(&mut memory, &[Chunk { sequence, tokens }], &run)?;
            if number + 1 == ids.len().div_ceil(CHUNK) {
                hidden.logits(&[tokens.len() - 1], &run)?;
            }
        }
        prompt_seconds.insert(mode.name().to_owned(), start.elapsed().as_secs_f64().into());

        let mut memory = model.memory(MemoryOptions::default());
        let sequence = memory.begin(Model::BASE);
        let mut next = ids[..CONTEXT.min(prompt)].to_vec();
        let mut start = Instant::now();
        for decoded in 0..=tokens {
            let hidden = model.forward(&mut memory, &[Chunk { sequence, tokens: &next }], &run)?;
            let logits = hidden.logits(&[next.len() - 1], &run)?;
            let best = functions::place_of_largest(&logits).ok_or("the model computed NaN")?;
            next = vec![u32::try_from(best)?];
            if decoded == 0 {
                start = Instant::now();
            }
        }
        decode_seconds.insert(mode.name().to_owned(), start.elapsed().as_secs_f64().into());
    }
    Ok(serde_json::json!({
        "open_seconds": open_seconds,
        "weight_bytes": bytes,
        "read_seconds": read_seconds,
        "prompt_seconds": prompt_seconds,
        "decode_seconds": decode_seconds,
    }))
}

/// Reads all bytes, on all threads.
fn read(weights: &[&[u8]]) -> u64 {
    let sum = |bytes: &[u8]| {
        bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).fold(0, u64::wrapping_add)
    };
    weights.par_iter().flat_map(|bytes| bytes.par_chunks(1 << 20)).map(sum).reduce(|| 0, u64::wrapping_add)
}
