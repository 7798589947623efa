//! A GGUF file as a model: what is opened computes the logits of a token. Other input is a kind of
//! blocks and the blocks, which become numbers.

#![no_main]

use deltaloom::checkpoint::gguf::{BlockKind, dequantise};
use deltaloom_compute::Run;
use deltaloom_lm::layer::MemoryOptions;
use deltaloom_lm::model::{Chunk, Model};
use deltaloom_lm::tenancy::FamilyOptions;

fn compute(file: &[u8]) -> deltaloom::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, file).expect("a new file");
    let mut model = Model::open(&path, FamilyOptions::default())?;
    let vocabulary = model.config().vocabulary;
    let mut memory = model.memory(MemoryOptions::default());
    let chunk = Chunk { sequence: memory.begin(Model::BASE), tokens: &[0] };
    let hidden = model.forward(&mut memory, &[chunk], &Run::default())?;
    let logits = hidden.logits(&[0], &Run::default())?;
    assert_eq!(logits.len(), vocabulary);
    Ok(())
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if bytes.starts_with(b"GGUF") {
        let _ = compute(bytes);
        return;
    }
    let Some((kind, blocks)) = bytes.split_first() else { return };
    let kind = BlockKind::ALL[usize::from(*kind) % BlockKind::ALL.len()];
    let is_whole = blocks.len() % kind.bytes() == 0;
    let mut numbers = vec![0.0; blocks.len() / kind.bytes() * kind.numbers()];
    assert_eq!(dequantise(kind, blocks, &mut numbers).is_ok(), is_whole);
});
