//! Restores a packed fine-tune, byte for byte:
//! `cargo run --release --example unpack -- tuned.loom base.safetensors restored.safetensors`
#![expect(clippy::print_stdout, reason = "a program that says what it did")]

use std::error::Error;
use std::path::PathBuf;

use deltaloom::{Bases, Container, Limits, ResolvedContainer, Silent, UnpackOptions, unpack};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    run(&arguments)
}

pub(crate) fn run(arguments: &[PathBuf]) -> Result<(), Box<dyn Error>> {
    let [container, base, target] = arguments else {
        return Err("usage: unpack CONTAINER BASE TARGET".into());
    };
    let limits = Limits::default();
    // Opening reads the index only.
    let container = Container::open(container, &limits)?;
    let bases = Bases::open(std::slice::from_ref(base), &limits)?;
    // Finds every reference by its digest. A wrong base is an error here, before anything is
    // decoded.
    let resolved = ResolvedContainer::new(container, &bases)?;
    // The target gets its name only when it is complete and every tensor has its digest.
    let report = unpack(&resolved, target, &UnpackOptions::default(), &Silent)?;
    println!("{} bytes restored to {}", report.original_bytes, target.display());
    Ok(())
}
