//! Keeps the checkpoints of a training run in a folder, each packed against an earlier one, and
//! restores the newest:
//! `cargo run --release --example series -- run restored.safetensors step-1.safetensors ...`
#![expect(clippy::print_stdout, reason = "a program that says what it did")]

use std::error::Error;
use std::path::PathBuf;

use deltaloom::series::{AddOptions, Directory, NewStep, Part, Series, SeriesOptions};
use deltaloom::{Silent, UnpackOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    run(&arguments)
}

pub(crate) fn run(arguments: &[PathBuf]) -> Result<(), Box<dyn Error>> {
    let [folder, target, checkpoints @ ..] = arguments else {
        return Err("usage: series FOLDER TARGET CHECKPOINT...".into());
    };
    // A directory is one kind of store; the crate deltaloom-object-store has S3 and others.
    let store = Box::new(Directory::new(folder));
    // Every 16th step is packed on its own, so that restoring stays cheap. The others are deltas.
    let options = SeriesOptions::default().with_keyframe_every(16);
    let series = Series::init(store, &options)?;
    for checkpoint in checkpoints {
        // Without a number, a step follows the newest one. Only a keyframe has no reference.
        let added = series.add(&NewStep::new(checkpoint), &AddOptions::default(), &Silent)?;
        let entry = added.entry;
        println!("step {}: {} bytes, reference {:?}", entry.step, entry.stored_bytes, entry.reference);
    }
    // A later program starts with `Series::open`.
    let newest = series.last(1)?.pop().ok_or("no checkpoint was given")?;
    series.extract(newest.step, Part::Model, target, &UnpackOptions::default(), &Silent)?;
    println!("step {} restored to {}", newest.step, target.display());
    Ok(())
}
