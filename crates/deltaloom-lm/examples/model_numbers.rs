//! Computes what tools/check_smollm2.py compares with transformers: `just check-smollm2`.
//!
//! Arguments: MODEL (a folder or a GGUF file), QUESTIONS (JSON), folder for the answers. Keys and
//! values are kept in FP32. The questions are an object, of which all keys may be missing:
//!
//! - `logits`: lists of ids. The answers are in logits.f32, `[ids, vocabulary]` one after another.
//! - `greedy`: lists of ids, each continued by `new` tokens.
//! - `perplexity`: lists of ids, scored in windows of `window` tokens.
//! - `texts` and `chats`: to tokenize, and to render.
//! - `weights`: if true, all tensors go to weights.safetensors in FP32.
//!
//! The other answers are in answers.json, under the same names.

use std::path::Path;

use deltaloom_compute::Run;
use deltaloom_lm::layer::{KvType, MemoryOptions};
use deltaloom_lm::model::{Chunk, Model, PerplexityOptions, perplexity};
use deltaloom_lm::sample::LogProbs;
use deltaloom_lm::tenancy::FamilyOptions;
use deltaloom_lm::text::{ChatTemplate, Conversation, Special, Tokenizer};
use serde_json::{Value, json};

/// Tokens of a step while prompts are read.
const CHUNK: usize = 256;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn memory_options() -> MemoryOptions {
    MemoryOptions::default().with_kv(KvType::F32)
}

fn logits(model: &mut Model, ids: &[u32]) -> deltaloom::Result<Vec<f32>> {
    let mut memory = model.memory(memory_options());
    let chunk = Chunk { sequence: memory.begin(Model::BASE), tokens: ids };
    let hidden = model.forward(&mut memory, &[chunk], &Run::default())?;
    hidden.logits(&(0..ids.len()).collect::<Vec<_>>(), &Run::default())
}

/// Continues prompts by their most probable tokens, all in one batch.
fn greedy(model: &mut Model, prompts: &[Vec<u32>], new: usize) -> deltaloom::Result<Vec<Vec<u32>>> {
    let run = Run::default();
    let mut memory = model.memory(memory_options());
    let mut sequences = Vec::new();
    let mut next = Vec::new();
    for prompt in prompts {
        let sequence = memory.begin(Model::BASE);
        let mut logits = Vec::new();
        for tokens in prompt.chunks(CHUNK) {
            let hidden = model.forward(&mut memory, &[Chunk { sequence, tokens }], &run)?;
            logits = hidden.logits(&[tokens.len() - 1], &run)?;
        }
        sequences.push(sequence);
        next.push(LogProbs::new(&logits)?.best());
    }
    let mut found: Vec<Vec<u32>> = next.iter().map(|id| vec![*id]).collect();
    let all: Vec<usize> = (0..prompts.len()).collect();
    for _ in 1..new {
        let pairs = sequences.iter().zip(next.chunks(1));
        let chunks: Vec<_> = pairs.map(|(sequence, tokens)| Chunk { sequence: *sequence, tokens }).collect();
        let logits = model.forward(&mut memory, &chunks, &run)?.logits(&all, &run)?;
        let rows = logits.chunks_exact(model.config().vocabulary);
        next = rows.map(|row| Ok(LogProbs::new(row)?.best())).collect::<deltaloom::Result<_>>()?;
        found.iter_mut().zip(&next).for_each(|(found, id)| found.push(*id));
    }
    Ok(found)
}

/// All tensors in FP32.
fn weights(model: &Model) -> Fallible<Vec<u8>> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let base = model.base();
    for (member, info) in base.weights() {
        let begin = data.len();
        let bytes = base.read_tensor(member, info)?;
        match info.dtype.to_string().as_str() {
            "F32" => data.extend(bytes),
            // A BF16 number is the upper half of an FP32 number.
            "BF16" => bytes.as_chunks().0.iter().for_each(|[low, high]| data.extend([0, 0, *low, *high])),
            other => return Err(format!("{} is {other}", info.name).into()),
        }
        let entry = json!({"dtype": "F32", "shape": info.shape, "data_offsets": [begin, data.len()]});
        header.insert(info.name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    Ok([&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat())
}

fn render(tokenizer: &Tokenizer, chat: &Value) -> Fallible<String> {
    let special = tokenizer.special();
    let source = special.chat_template.as_deref().ok_or("there is no chat template")?;
    let template = ChatTemplate::parse(source, special.begin_text.as_deref(), special.end_text.as_deref())?;
    Ok(template.render(&Conversation::from_json(&chat.to_string())?)?)
}

fn main() -> Fallible<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, questions, out] = &arguments[..] else {
        return Err("usage: model_numbers MODEL QUESTIONS OUT".into());
    };
    let (path, out) = (Path::new(path), Path::new(out));
    let questions: Value = serde_json::from_slice(&std::fs::read(questions)?)?;
    let list = |name: &str| questions[name].as_array().cloned().unwrap_or_default();
    let number = |name: &str| questions[name].as_u64().and_then(|number| usize::try_from(number).ok());
    let ids =
        |name: &str| -> Fallible<Vec<Vec<u32>>> { Ok(serde_json::from_value(Value::Array(list(name)))?) };
    let mut model = deltaloom_lm::context::open(path, FamilyOptions::default())?;

    if questions["weights"] == true {
        std::fs::write(out.join("weights.safetensors"), weights(&model)?)?;
    }
    let mut all = Vec::new();
    for ids in ids("logits")? {
        all.extend(logits(&mut model, &ids)?.into_iter().flat_map(f32::to_le_bytes));
    }
    std::fs::write(out.join("logits.f32"), all)?;
    let greedy = greedy(&mut model, &ids("greedy")?, number("new").unwrap_or(0))?;
    let options = PerplexityOptions::new(number("window").unwrap_or(512)).with_memory(memory_options());
    let mut losses = Vec::new();
    for ids in ids("perplexity")? {
        let found = perplexity(&mut model, Model::BASE, &ids, &options, &Run::default(), |_| Ok(()))?;
        losses.push(found.loss);
    }
    let (mut texts, mut chats) = (Vec::new(), Vec::new());
    if questions["texts"].is_array() || questions["chats"].is_array() {
        let tokenizer = Tokenizer::open(path, model.config().vocabulary)?;
        for text in list("texts") {
            texts.push(tokenizer.encode(text.as_str().ok_or("not a text")?, Special::Omit)?);
        }
        for chat in list("chats") {
            chats.push(render(&tokenizer, &chat)?);
        }
    }
    let answers = json!({"greedy": greedy, "perplexity": losses, "texts": texts, "chats": chats});
    std::fs::write(out.join("answers.json"), answers.to_string())?;
    Ok(())
}
