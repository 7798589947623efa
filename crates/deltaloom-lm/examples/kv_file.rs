//! Computes a sequence with keys and values in memory or in a file, for `just context-kv-file`.
//!
//! Arguments: MODEL (a folder), tokens, and, for a file, its path and the bytes that stay in
//! memory. Prints JSON: the BLAKE3 of the logits of the last token, and the most memory of this
//! process.
#![expect(clippy::print_stdout, reason = "it reports measurements")]

use std::path::Path;
use std::time::Instant;

use deltaloom_compute::Run;
use deltaloom_lm::layer::MemoryOptions;
use deltaloom_lm::model::{Chunk, Model};
use deltaloom_lm::tenancy::FamilyOptions;

/// Tokens that are computed together.
const CHUNK: usize = 512;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Kibibytes in a line of /proc/self/status, in bytes.
fn status(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib << 10)
}

fn main() -> Fallible<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (path, tokens, file) = match &arguments[..] {
        [path, tokens] => (path, tokens, None),
        [path, tokens, file, bytes] => (path, tokens, Some((file, bytes.parse()?))),
        _ => return Err("usage: kv_file MODEL TOKENS [FILE BYTES]".into()),
    };
    let mut model = Model::open(Path::new(path), FamilyOptions::default())?;
    let weight_bytes: u64 = model.base().weights().map(|(_, info)| info.len_bytes()).sum();
    if let Some((file, bytes)) = file {
        model = model.with_kv_file(Path::new(file), bytes)?;
    }
    let vocabulary = u32::try_from(model.config().vocabulary)?;
    let ids: Vec<u32> = (0..tokens.parse()?).map(|at: u32| at.wrapping_mul(7919) % vocabulary).collect();
    let (mut memory, run) = (model.memory(MemoryOptions::default()), Run::default());
    let sequence = memory.begin(Model::BASE);
    let (before, start) = (status("VmHWM"), Instant::now());
    let mut digest = None;
    for tokens in ids.chunks(CHUNK) {
        let hidden = model.forward(&mut memory, &[Chunk { sequence, tokens }], &run)?;
        let logits = hidden.logits(&[tokens.len() - 1], &run)?;
        let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
        digest = Some(blake3::hash(&bytes).to_string());
    }
    let report = serde_json::json!({
        "logits": digest,
        "seconds": start.elapsed().as_secs_f64(),
        "weight_bytes": weight_bytes,
        "kv_bytes": memory.used_bytes(),
        "bytes_before": before,
        "peak_bytes": status("VmHWM"),
        "read_bytes": model.kv_file().map(|file| file.read_bytes()),
    });
    println!("{report}");
    Ok(())
}
