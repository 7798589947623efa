//! The loss of a small LLaMA on token ids, computed layer by layer on packed weights.
//! `just check-layer` compares it with the loss that transformers computes for the same model.
//!
//! Arguments: directory of the base, directory of the fine-tune (or the same), file of token ids
//! (little-endian u16), sequences of 256.

use std::path::PathBuf;
use std::sync::Arc;

use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Bases, Container, Limits, PackOptions, ResolvedContainer, Silent};
use deltaloom_compute::{Choice, DenseMatrix, Form, Run};
use deltaloom_lm::layer::{Batch, LayerHints, LayerNames, PackedLayer, Sequence, TenantId, forward};

const TOKENS: usize = 256;
const EPSILON: f32 = 1e-5;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// A tensor of a mapped checkpoint.
fn matrix(checkpoint: &Arc<Checkpoint>, name: &str) -> Fallible<DenseMatrix> {
    let (member, info) = checkpoint.tensors().find(|(_, info)| info.name == name).ok_or(name.to_owned())?;
    Ok(DenseMatrix::of_checkpoint(checkpoint, member, info)?)
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|pair| half::bf16::from_le_bytes(*pair).to_f32()).collect()
}

fn main() -> Fallible<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [base, tuned, tokens, sequences] = &arguments[..] else {
        return Err("usage: layer_loss BASE TUNED TOKENS SEQUENCES".into());
    };
    let sequences: usize = sequences.to_str().ok_or("not a number")?.parse()?;
    let ids: Vec<usize> =
        std::fs::read(tokens)?.as_chunks().0.iter().map(|pair| u16::from_le_bytes(*pair).into()).collect();
    let ids = ids.get(..sequences * TOKENS).ok_or("too few tokens")?;

    let open = |path: &PathBuf| Checkpoint::open(path, &Limits::default())?.into_memory();
    let (mapped, mut packed, mut bases) = (Arc::new(open(tuned)?), Vec::new(), Bases::default());
    bases.push_checkpoint(base, open(base)?);
    deltaloom::pack_to(&mapped, &bases, &mut packed, &PackOptions::default(), &Silent)?;
    let container = Container::from_source("packed".as_ref(), Box::new(packed), &Limits::default())?;
    let resolved = Arc::new(ResolvedContainer::new(container, &bases)?);
    // Fine-tunes of lm12m have no config of their own.
    let config_text = std::fs::read_to_string(base.join("config.json"))?;

    let table = matrix(&mapped, "model.embed_tokens.weight")?;
    let (vocabulary, width) = (table.shape().rows, table.shape().cols);
    let embeddings = numbers(table.bytes());
    let mut x: Vec<f32> = ids.iter().flat_map(|id| &embeddings[id * width..][..width]).copied().collect();
    let batch =
        Batch::new(vec![Sequence { tenant: TenantId::ONLY, tokens: TOKENS, position: 0 }; sequences])?;
    for layer in 0.. {
        let hints = LayerHints::default().with_layer(layer).with_config(Some(&config_text));
        let shapes = mapped.tensors().map(|(_, info)| (info.name.as_str(), info.shape.as_slice()));
        let Ok((config, names)) = LayerNames::recognise(shapes, &hints) else { break };
        let weights = PackedLayer::open(&resolved, &config, &names, Choice::Form(Form::Planes))?;
        x = forward(&config, &weights, &batch, &x, &Run::default())?;
    }
    let (member, info) = mapped
        .tensors()
        .find(|(_, info)| info.name == "model.norm.weight")
        .ok_or("the model has no final norm")?;
    let norm = numbers(mapped.in_memory(member, info).ok_or("the final norm is not in memory")?);
    for token in x.chunks_exact_mut(width) {
        let mean = token.iter().map(|x| x * x).sum::<f32>() / width as f32;
        token.iter_mut().zip(&norm).for_each(|(x, weight)| *x *= weight / (mean + EPSILON).sqrt());
    }
    let mut logits = vec![0.0; ids.len() * vocabulary];
    table.matmul(&x, &mut logits, &Run::default())?;
    let (mut loss, mut count) = (0.0, 0.0);
    for (at, logits) in logits.chunks_exact(vocabulary).enumerate() {
        if (at + 1) % TOKENS != 0 {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
            loss += sum.ln() - f64::from(logits[ids[at + 1]] - largest);
            count += 1.0;
        }
    }
    #[expect(clippy::print_stdout, reason = "its result")]
    {
        println!("{:.4} nats per token", loss / count);
    }
    Ok(())
}
