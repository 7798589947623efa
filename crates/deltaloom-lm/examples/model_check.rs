//! Checks a real model against itself: `just check-model` runs it on lm12m.
//!
//! - The loss on sequences of 256 token ids has the same bits in chunks of 1, 7 and 256, and on
//!   every instruction set of the machine.
//! - Logits of fine-tunes, packed, have the bits of the same fine-tunes loaded as models: in every
//!   resident form, in batches that mix them, on 1 and 2 threads.
//!
//! Arguments: directory of the base, file of token ids (little-endian u16), number of sequences,
//! directories of fine-tunes.

use std::path::{Path, PathBuf};

use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Bases, Container, Limits, PackOptions, Silent, with_threads};
use deltaloom_compute::{Form, Run};
use deltaloom_kernels::isa::{Isa, isa, lower_to};
use deltaloom_lm::layer::{MemoryOptions, TenantId};
use deltaloom_lm::model::{Chunk, Model, PerplexityOptions, perplexity};
use deltaloom_lm::tenancy::{FamilyOptions, Forms};

const WINDOW: usize = 256;
/// Tokens of each sequence whose logits are compared.
const COMPARED: usize = 80;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn open(folder: &Path, config: &str, options: FamilyOptions) -> Fallible<Model> {
    let checkpoint =
        Checkpoint::open(&folder.join("model.safetensors"), &Limits::default())?.into_memory()?;
    Ok(Model::of_checkpoint(folder, checkpoint, config, options)?)
}

/// Bits of all logits of some sequences in one batch, in chunks.
fn logits(model: &mut Model, chunk: usize, texts: &[(TenantId, &[u32])]) -> deltaloom::Result<Vec<Vec<u32>>> {
    let run = Run::default();
    let mut memory = model.memory(MemoryOptions::default());
    let sequences: Vec<_> = texts.iter().map(|(tenant, _)| memory.begin(*tenant)).collect();
    let mut found = vec![Vec::new(); texts.len()];
    for start in (0..COMPARED).step_by(chunk) {
        let end = (start + chunk).min(COMPARED);
        let pairs = sequences.iter().zip(texts);
        let chunks =
            pairs.map(|(sequence, (_, ids))| Chunk { sequence: *sequence, tokens: &ids[start..end] });
        let hidden = model.forward(&mut memory, &chunks.collect::<Vec<_>>(), &run)?;
        for (number, found) in found.iter_mut().enumerate() {
            let first = number * (end - start);
            let tokens: Vec<usize> = (first..first + end - start).collect();
            found.extend(hidden.logits(&tokens, &run)?.into_iter().map(f32::to_bits));
        }
    }
    Ok(found)
}

fn main() -> Fallible<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [base, tokens, sequences, fine_tunes @ ..] = &arguments[..] else {
        return Err("usage: model_check BASE TOKENS SEQUENCES [FINE-TUNE...]".into());
    };
    let sequences: usize = sequences.to_str().ok_or("not a number")?.parse()?;
    let ids: Vec<u32> =
        std::fs::read(tokens)?.as_chunks().0.iter().map(|pair| u16::from_le_bytes(*pair).into()).collect();
    let ids = ids.get(..sequences * WINDOW).ok_or("too few tokens")?;
    let config = std::fs::read_to_string(base.join("config.json"))?;

    let mut model = open(base, &config, FamilyOptions::default())?;
    let mut losses = Vec::new();
    for (chunk, windows) in [(1, 40), (7, 8), (256, 1)] {
        let options = PerplexityOptions::new(WINDOW).with_chunks(chunk, windows);
        let found = perplexity(&mut model, Model::BASE, ids, &options, &Run::default(), |_| Ok(()))?;
        report(&format!("chunks of {chunk}: {:.6} nats per token", found.loss));
        losses.push(found.loss.to_bits());
    }
    if losses.iter().any(|loss| *loss != losses[0]) {
        return Err("the loss depends on the chunks".into());
    }
    let best = isa();
    let options = PerplexityOptions::new(WINDOW).with_chunks(WINDOW, 1);
    for set in Isa::available() {
        lower_to(set);
        let found = perplexity(&mut model, Model::BASE, ids, &options, &Run::default(), |_| Ok(()))?;
        if found.loss.to_bits() != losses[0] {
            return Err(format!("the loss with {} is {}", set.name(), found.loss).into());
        }
        report(&format!("{}: the same bits", set.name()));
    }
    lower_to(best);

    let mut expected = Vec::new();
    let mut packed = Vec::new();
    let texts = |tenant| [(tenant, &ids[..COMPARED])];
    for fine_tune in fine_tunes {
        expected.extend(logits(
            &mut open(fine_tune, &config, FamilyOptions::default())?,
            COMPARED,
            &texts(Model::BASE),
        )?);
        let of_base = Checkpoint::open(&base.join("model.safetensors"), &Limits::default())?;
        let mut bases = Bases::default();
        bases.push_checkpoint(base, of_base);
        let tuned = Checkpoint::open(&fine_tune.join("model.safetensors"), &Limits::default())?;
        let mut out = Vec::new();
        deltaloom::pack_to(&tuned, &bases, &mut out, &PackOptions::default(), &Silent)?;
        packed.push(out);
    }
    for form in Form::ALL {
        let options = FamilyOptions::default().with_forms(Forms::All(form));
        let mut model = open(base, &config, options)?;
        let mut tenants = Vec::new();
        for bytes in &packed {
            let source = Box::new(bytes.clone());
            let container = Container::from_source("packed".as_ref(), source, &Limits::default())?;
            let prepared = model.prepare(container)?;
            tenants.push(model.admit(prepared)?);
        }
        // Every fine-tune twice, with the base between.
        let order: Vec<usize> = (0..tenants.len()).chain(0..tenants.len()).collect();
        let mut texts = vec![(Model::BASE, &ids[WINDOW..][..COMPARED])];
        texts.extend(order.iter().map(|number| (tenants[*number], &ids[..COMPARED])));
        for (chunk, threads) in [(1, 2), (COMPARED, 1)] {
            let found = with_threads(threads, || logits(&mut model, chunk, &texts))?;
            for (found, number) in found[1..].iter().zip(&order) {
                let differ = found.iter().zip(&expected[*number]).filter(|(a, b)| a != b).count();
                if differ > 0 || found.len() != expected[*number].len() {
                    let name = fine_tunes[*number].display();
                    return Err(format!("{name} as {}: {differ} logits differ", form.name()).into());
                }
            }
        }
        report(&format!("{}: 0 bits of logits differ in {} fine-tunes", form.name(), fine_tunes.len()));
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "its results")]
fn report(line: &str) {
    println!("{line}");
}
