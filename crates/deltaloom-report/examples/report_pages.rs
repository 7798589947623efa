//! Writes pages of made-up series of several sizes into a folder, with their pictures as files, for
//! `just check-page`.
//!
//! With a checkpoint as the second argument, it also shows its weights.

use std::path::{Path, PathBuf};

use deltaloom::checkpoint::Checkpoint;
use deltaloom::weights;
use deltaloom::{Limits, Silent};
use deltaloom_report::{EventWriter, Page, health, series_events, series_page};

#[path = "../tests/series_example/mod.rs"]
mod series_example;
use series_example::{add_methods, series};

const PUBLISHED: [&str; 8] = ["P1", "P1+", "P2", "P2+", "P3", "P3-first", "P3+", "P4"];
const ODD: [&str; 3] = [
    "<b>&\"quoted\"</b>",
    "ein Verfahren mit einem außerordentlich langen Namen, der nirgends hineinpasst",
    "方法",
];

fn write(folder: &Path, name: &str, page: &Page) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::write(folder.join(format!("{name}.html")), page.html())?;
    let pictures = folder.join(name);
    std::fs::create_dir_all(&pictures)?;
    for (file, picture) in page.pictures() {
        std::fs::write(pictures.join(file), picture)?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let folder = arguments.next().ok_or("which folder?")?;
    std::fs::create_dir_all(&folder)?;
    let weights = match arguments.next() {
        Some(path) => weights(&Checkpoint::open(&path, &Limits::default())?, 1 << 20, &Silent)?,
        None => None,
    };
    for steps in [0, 1, 2, 200, 10_000] {
        let mut summary = series(steps, 12);
        if steps > 1 {
            let count = if steps == 200 { 8 } else { 3 };
            add_methods(&mut summary, &PUBLISHED[..count]);
        }
        summary.weights = weights.clone();
        write(&folder, &format!("series-{steps}"), &series_page(&summary))?;
    }
    let mut odd = series(60, 40);
    odd.name = "<script>alert(1)</script> & \"names\"".to_owned();
    for tensor in odd.steps.iter_mut().flat_map(|step| &mut step.tensors) {
        tensor.name = tensor
            .name
            .replace(
                "model.layers.1.",
                "a <very> & \"long\" prefix, much longer than there is room for.layers.1.",
            )
            .into();
    }
    add_methods(&mut odd, &ODD);
    write(&folder, "odd-names", &series_page(&odd))?;

    let example = series(200, 12);
    let events = folder.join("events");
    if events.is_dir() {
        std::fs::remove_dir_all(&events)?;
    }
    let mut events = EventWriter::create(&events, 1_700_000_000.0)?;
    series_events(&example.steps, &health(&example.steps, &example.rule), &mut events)?;
    events.finish()?;
    Ok(())
}
