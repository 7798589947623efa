//! Packs a fine-tune against its base:
//! `cargo run --release --example pack -- base.safetensors tuned.safetensors tuned.loom`
#![expect(clippy::print_stdout, reason = "a program that says what it did")]

use std::error::Error;
use std::path::PathBuf;

use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Bases, Limits, PackOptions, Silent, Texts, pack};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    run(&arguments)
}

pub(crate) fn run(arguments: &[PathBuf]) -> Result<(), Box<dyn Error>> {
    let [base, tuned, container] = arguments else {
        return Err("usage: pack BASE TUNED CONTAINER".into());
    };
    // Limits bound what a damaged or hostile file can make a reader allocate.
    let limits = Limits::default();
    // A checkpoint is a safetensors file, or a folder of them with small files such as a tokenizer.
    let checkpoint = Checkpoint::open(tuned, &limits)?;
    // A reader needs the same bases again. Without any, the checkpoint is packed on its own.
    let bases = Bases::open(std::slice::from_ref(base), &limits)?;
    // With an identity, even an empty one, the container names its bases for whoever reads it.
    let options = PackOptions::default().with_identity(Some(Texts::new()));
    // `Silent` reports no progress; your own `Progress` can show a bar, or stop the work.
    let report = pack(&checkpoint, &bases, container, &options, &Silent)?;
    println!(
        "{} bytes packed into {}, a ratio of {:.2}",
        report.original_bytes, report.packed_bytes, report.ratio
    );
    Ok(())
}
