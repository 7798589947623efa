//! `deltaloom shrink quick-test`: every branch and the search on a made-up model.

use std::path::Path;

use anyhow::{Result, bail};
use deltaloom::checkpoint::output::Inputs;
use deltaloom_shrink::ablation::ablate;
use deltaloom_shrink::recipe::{Loaded, Recipe};
use deltaloom_shrink::run::{self, Made};
use deltaloom_shrink::{student, synthetic};
use serde::Serialize;

use crate::args::shrink::QuickTestArguments;
use crate::progress::Bar;
use crate::{Answer, models, ui};

/// Steps that make a student: name, recipe, and the divergence that it must stay below.
const STUDENTS: [(&str, &str, f64); 6] = [
    ("quantise, 4 bits", "branches: {quantise: {bits: 4}}", 0.2),
    ("quantise, 3 bits a weight", "branches: {quantise: {method: waterfill, rate: 3.0}}", 0.5),
    ("sparsity, 2 of 4", "branches: {sparsity: {pattern: \"2:4\"}}", 1.0),
    ("low rank", "branches: {lra: {ratio: 1.3, residual: drop}}", 2.0),
    ("embedding", "branches: {blt: {latent_dim: 48, head: tied}, quantise: {bits: 6}}", 0.5),
    ("search", "planner: {mode: search, repair: {tokens: 256}}\ntargets: {compression_ratio: 4}", 2.0),
];
/// The recipe whose branches are told apart.
const ABLATED: &str = "branches: {sparsity: {target_sparsity: 0.3}, quantise: {bits: 4}}";

#[derive(Serialize)]
struct Step {
    name: &'static str,
    ratio: f64,
    kl: f64,
    ok: bool,
}

pub(super) fn run(arguments: &QuickTestArguments) -> Result<Answer> {
    let folder = tempfile::tempdir()?;
    let bar = Bar::new("testing");
    let steps =
        models::on_threads(arguments.look.threads.count, || steps(folder.path(), &bar, arguments.look.json))?;
    bar.finish();
    if arguments.look.json {
        ui::print_json(&steps)?;
    }
    let failed: Vec<&str> = steps.iter().filter(|step| !step.ok).map(|step| step.name).collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join("; "));
    }
    Ok(Answer::Yes)
}

fn steps(folder: &Path, bar: &Bar, is_json: bool) -> Result<Vec<Step>> {
    synthetic::write(&folder.join("model"))?;
    let mut steps = Vec::new();
    let mut add = |name, ratio: f64, kl: f64, ok: bool| -> Result<()> {
        if !is_json {
            let word = if ok { "ok" } else { "FAILED" };
            ui::print(&format!("{name:26} ratio {:>6}  KL {kl:.5}  {word}\n", ui::ratio(ratio)))?;
        }
        steps.push(Step { name, ratio, kl, ok });
        Ok(())
    };
    for (name, settings, most) in STUDENTS {
        let loaded = recipe(folder, settings)?;
        let Made { report, .. } = &run::run(&loaded, bar)?;
        let kl = report.texts.first().map_or(f64::NAN, |text| text.kl);
        let is_small = loaded.recipe.targets.compression_ratio.is_none_or(|ratio| report.ratio >= ratio);
        add(name, report.ratio, kl, kl > 0.0 && kl < most && report.ratio > 1.0 && is_small)?;
    }
    let made = run::run(&recipe(folder, STUDENTS[0].1)?, bar)?;
    let target = folder.join("student");
    made.write(&target, false, &Inputs::default())?;
    let is_whole = student::open(&target, None).is_ok()
        && student::describe(&target)?.matrices.len() == made.forms.len();
    let kl = made.report.texts.first().map_or(f64::NAN, |text| text.kl);
    add("written and read again", made.report.ratio, kl, is_whole)?;
    let found = ablate(&recipe(folder, ABLATED)?, None, bar, &|_, _| ())?;
    let product: f64 = found.contributions.iter().map(|part| part.factor).product();
    let sum: f64 = found.contributions.iter().map(|part| part.kl).sum();
    let is_whole =
        (product * found.packing_ratio / found.ratio - 1.0).abs() < 1e-9 && (sum - found.kl).abs() < 1e-9;
    add("ablation", found.ratio, found.kl, is_whole)?;
    Ok(steps)
}

fn recipe(folder: &Path, settings: &str) -> Result<Loaded> {
    let mode = if settings.starts_with("planner") { "" } else { "planner: {mode: fixed}\n" };
    let text = format!("version: 1\nteacher: {{model: model}}\n{mode}{settings}\n");
    Ok(Recipe::parse(&text, &folder.join("recipe.yaml")).map_err(deltaloom::Error::from)?)
}
