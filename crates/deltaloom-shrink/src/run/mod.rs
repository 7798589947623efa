//! A recipe from start to end: reads the teacher and the texts, shrinks the embedding and then the
//! layers, and measures the student by the bytes of its packed file.

mod embedding;
mod search;
mod settings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use deltaloom::checkpoint::output::Inputs;
use deltaloom::{Error, Progress, Result};
use deltaloom_lm::evaluate::DivergenceReport;
use deltaloom_lm::model::Parts;
use serde::Serialize;

use crate::data::Texts;
use crate::forms::Form;
use crate::measure::{Measured, Reference, Windows, frequency_table};
use crate::network::Network;
use crate::pipeline::{Options, shrink_layers};
use crate::recipe::{Branch, Loaded, PlannerMode, Targets};
use crate::sizes::Sizes;
use crate::student::{self, Description, Student};
use search::Found;
use settings::Settings;

/// Bytes that progress counts for each token that a model computes.
const TOKEN_BYTES: u64 = size_of::<u32>() as u64;

/// A student that was made, and what it costs.
pub struct Made {
    /// Its forms.
    pub forms: BTreeMap<String, Form>,
    /// What it is like.
    pub report: Report,
    /// Where the teacher is.
    pub teacher: PathBuf,
    /// Files that were read.
    pub files: Vec<PathBuf>,
    student: Student,
    description: Description,
}

/// What a student is like.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether every target is met.
    pub verdict: Verdict,
    /// Bytes of the weights of the teacher.
    pub teacher_bytes: u64,
    /// Bytes of the packed weights of the student.
    pub student_bytes: u64,
    /// The one over the other.
    pub ratio: f64,
    /// Bits of the packed student for each weight of the teacher.
    pub bits_per_weight: f64,
    /// The same without tensors that stayed as they are.
    pub bits_per_shrunk_weight: f64,
    /// Divergence from the teacher on each text.
    pub texts: Vec<OnText>,
    /// Divergence of a table of token frequencies from the teacher, on the first text. A student
    /// that is no nearer is useless.
    pub table_kl: f64,
    /// Where the bytes of the packed student are.
    pub sizes: Sizes,
    /// Forms of matrices and how many have each.
    pub forms: BTreeMap<String, usize>,
    /// What is doubtful.
    pub warnings: Vec<String>,
}

/// Whether a student is worth having.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every target that the recipe has is met.
    Feasible,
    /// A target is missed.
    Infeasible,
    /// It is no nearer to the teacher than a table of token frequencies.
    Useless,
}

/// A comparison on a text.
#[derive(Debug, Clone, Serialize)]
pub struct OnText {
    /// Its file.
    pub name: String,
    /// Divergence in nats per token.
    pub kl: f64,
    /// Its standard error: the larger of those by tokens and by windows.
    pub kl_error: f64,
    /// All that was measured.
    pub divergence: DivergenceReport,
}

impl Made {
    /// Writes the student's directory.
    ///
    /// # Errors
    /// As [`Student::write`].
    pub fn write(&self, target: &Path, overwrite: bool, inputs: &Inputs) -> Result<()> {
        self.student.write(target, &self.description, &self.teacher, overwrite, inputs)
    }
}

/// Makes a student as a recipe says.
///
/// # Errors
/// [`Error::InvalidArgument`] for a recipe that does not fit the teacher or the texts, or that asks
/// for what is not built yet; errors of reading; [`Error::Cancelled`].
pub fn run(loaded: &Loaded, progress: &dyn Progress) -> Result<Made> {
    loaded.ready()?;
    let recipe = &loaded.recipe;
    if recipe.planner.mode == PlannerMode::PublishedRules {
        let what = "the rules of the published toolkit are not built yet".to_owned();
        let hint = Some("use search; or fixed, with the size of each branch".to_owned());
        return Err(loaded.error("planner.mode", what, hint).into());
    }
    let path = loaded.path(recipe.teacher.model.as_deref().unwrap_or_default());
    let parts = Arc::new(Parts::open(&path).map_err(|error| error.in_file(&path))?);
    if parts.config.model_type == "gpt2" {
        let what = "GPT-2 stores its matrices turned, which students do not have yet".to_owned();
        return Err(loaded.error("teacher.model", what, None).into());
    }
    let texts = Texts::read(loaded, &path, &parts)?;
    let settings = Settings::new(loaded, &parts)?;
    let teacher = Network::new(Arc::clone(&parts))?;
    let origin = student::origin(&parts.checkpoint)?;
    let measured: usize = texts.evaluate.iter().map(|(_, windows)| tokens(windows)).sum();
    let advance = |tokens: usize| {
        progress.advance(tokens as u64 * TOKEN_BYTES);
        if progress.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    };
    let Found { network, forms } = match recipe.planner.mode {
        PlannerMode::Search => {
            let budget = budget(&recipe.targets, &teacher, origin.bytes);
            let work = search::work(loaded, &teacher, &texts) + 2 * measured;
            progress.start(work as u64 * TOKEN_BYTES);
            search::search(loaded, &teacher, &texts, &settings, budget, &advance)?
        }
        _ => {
            let rounds = settings.exponents.len().max(1);
            progress.start((tokens(&texts.calibrate) * 2 * rounds + 2 * measured) as u64 * TOKEN_BYTES);
            fixed(loaded, &teacher, &texts, &settings, &advance)?
        }
    };
    let student = Student::new(&teacher, &forms)?;
    let mut report = measure(loaded, &teacher, &network, &texts, &student, origin.bytes, &forms, &advance)?;
    if recipe.planner.mode == PlannerMode::Search {
        let what = "the planner chooses rates of quantisation; it does not try low rank and sparsity yet";
        report.warnings.push(what.to_owned());
    }
    let description = Description {
        schema: 1,
        lossy: true,
        tool: concat!("deltaloom ", env!("CARGO_PKG_VERSION")).to_owned(),
        teacher: origin,
        recipe: recipe.digest(),
        weights: student.weights_digest()?,
        texts: texts.used.clone(),
        matrices: student.matrices().clone(),
        measured: serde_json::to_value(&report).unwrap_or_default(),
    };
    Ok(Made { forms, report, teacher: path, files: texts.files, student, description })
}

fn tokens(windows: &Windows) -> usize {
    windows.iter().map(Vec::len).sum()
}

/// Bytes that the packed student may have; without a target, any.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of bytes")]
fn budget(targets: &Targets, teacher: &Network, teacher_bytes: u64) -> u64 {
    let of_ratio = targets.compression_ratio.map(|ratio| (teacher_bytes as f64 / ratio) as u64);
    let of_bits = targets.bits_per_weight.map(|bits| (bits * weights(teacher) as f64 / 8.0) as u64);
    targets.bytes.or(of_ratio).or(of_bits).unwrap_or(u64::MAX)
}

/// Number of weights of a model.
fn weights(teacher: &Network) -> u64 {
    teacher.parts().checkpoint.weights().map(|(_, info)| info.shape.iter().product::<u64>()).sum()
}

/// Makes the student whose sizes a recipe gives. Low rank tries each exponent, and the last windows
/// of the calibration text choose.
fn fixed(
    loaded: &Loaded,
    teacher: &Network,
    texts: &Texts,
    settings: &Settings,
    advance: &dyn Fn(usize) -> Result<()>,
) -> Result<Found> {
    let recipe = &loaded.recipe;
    let rounds = settings.exponents.len().max(1);
    let mut best: Option<(f64, Found)> = None;
    let chosen = settings.choose_on(&texts.calibrate);
    let calibrate = texts.calibrate[..texts.calibrate.len() - chosen.len()].to_vec();
    let reference = match rounds {
        1 => None,
        _ => Some(Reference::new(teacher.clone(), chosen.to_vec(), advance)?),
    };
    let mut with_embedding = Found { network: teacher.clone(), forms: BTreeMap::new() };
    if recipe.uses(Branch::Blt) {
        let network = &mut with_embedding.network;
        with_embedding.forms = embedding::factor(loaded, teacher, network, texts, settings, advance)?;
    }
    let matrices: usize = teacher.parts().layers.iter().map(|names| names.matrices().count()).sum();
    let share = 2 * tokens(&texts.calibrate) / matrices.max(1);
    let options = Options { correct: recipe.correct.enabled.then_some(recipe.correct.damping) };
    for round in 0..rounds {
        let mut found = with_embedding.clone();
        let treatment = |place: crate::pipeline::Place<'_>| settings.of(place, round);
        let progress = |count| advance(count * share);
        let network = &mut found.network;
        found
            .forms
            .append(&mut shrink_layers(teacher, network, &calibrate, &treatment, &options, &progress)?);
        let kl = match &reference {
            Some(reference) => reference.compare(&found.network, &|_| advance(0))?.kl(),
            None => 0.0,
        };
        if best.as_ref().is_none_or(|(least, _)| kl < *least) {
            best = Some((kl, found));
        }
    }
    Ok(best.map_or(with_embedding, |(_, found)| found))
}

#[expect(clippy::too_many_arguments, reason = "all that a report is made of")]
fn measure(
    loaded: &Loaded,
    teacher: &Network,
    network: &Network,
    texts: &Texts,
    student: &Student,
    teacher_bytes: u64,
    forms: &BTreeMap<String, Form>,
    advance: &dyn Fn(usize) -> Result<()>,
) -> Result<Report> {
    let mut on_texts = Vec::new();
    let mut table_kl = f64::INFINITY;
    for (number, (name, windows)) in texts.evaluate.iter().enumerate() {
        let reference = Reference::new(teacher.clone(), windows.clone(), advance)?;
        let measured = reference.compare(network, advance)?;
        if number == 0 {
            let table = frequency_table(&texts.seen, teacher.parts().config.vocabulary, 0.1);
            table_kl = reference.compare_table(&table)?.kl();
        }
        let (kl, kl_error) = (measured.kl(), measured.standard_error());
        let Measured { report: divergence } = measured;
        on_texts.push(OnText { name: name.clone(), kl, kl_error, divergence });
    }
    let weights = weights(teacher);
    let packed = student.packed()?;
    let student_bytes = packed.bytes;
    let mut counts = BTreeMap::new();
    forms.values().for_each(|form| *counts.entry(form.name()).or_insert(0) += 1);
    let mut report = Report {
        verdict: Verdict::Feasible,
        teacher_bytes,
        student_bytes,
        ratio: teacher_bytes as f64 / student_bytes.max(1) as f64,
        bits_per_weight: student_bytes as f64 * 8.0 / weights.max(1) as f64,
        bits_per_shrunk_weight: packed.shrunk as f64 * 8.0 / packed.shrunk_weights.max(1) as f64,
        texts: on_texts,
        table_kl,
        sizes: Sizes::new(teacher.parts(), student.matrices(), &packed),
        forms: counts,
        warnings: loaded.warnings.iter().chain(&texts.warnings).cloned().collect(),
    };
    report.verdict = verdict(&loaded.recipe.targets, &report);
    Ok(report)
}

fn verdict(targets: &Targets, report: &Report) -> Verdict {
    let Some(OnText { kl, .. }) = report.texts.first() else { return Verdict::Infeasible };
    if *kl >= report.table_kl {
        return Verdict::Useless;
    }
    let all_met = compliance(targets, report).into_values().all(|is_met| is_met);
    if all_met { Verdict::Feasible } else { Verdict::Infeasible }
}

/// The targets that a recipe has, by their names in it, and whether each is met.
#[must_use]
pub fn compliance(targets: &Targets, report: &Report) -> BTreeMap<&'static str, bool> {
    let bound = report.texts.first().map_or(f64::INFINITY, |OnText { kl, kl_error, .. }| {
        kl + normal_quantile(targets.kl.confidence) * kl_error
    });
    let found = [
        ("kl", targets.kl.limit.map(|limit| bound <= limit)),
        ("compression_ratio", targets.compression_ratio.map(|ratio| report.ratio >= ratio)),
        ("bytes", targets.bytes.map(|bytes| report.student_bytes <= bytes)),
        ("bits_per_weight", targets.bits_per_weight.map(|bits| report.bits_per_weight <= bits)),
    ];
    found.into_iter().filter_map(|(name, is_met)| Some((name, is_met?))).collect()
}

/// The number of standard errors below which a share of all normal deviations lies.
fn normal_quantile(share: f64) -> f64 {
    let below = |z: f64| 0.5 * libm::erfc(-z / std::f64::consts::SQRT_2);
    let (mut low, mut high) = (-9.0, 9.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        *(if below(middle) < share { &mut low } else { &mut high }) = middle;
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use deltaloom_lm::evaluate::Divergence;

    #[test]
    fn bounds_of_measurements_are_compared_with_targets() {
        let mut divergence = Divergence::default();
        divergence.add(&[0.0, 1.0], &[0.0, 1.0], 0).unwrap();
        let divergence = divergence.report().unwrap();
        let on = OnText { name: String::new(), kl: 0.1, kl_error: 0.01, divergence };
        let report = Report {
            verdict: Verdict::Feasible,
            teacher_bytes: 1000,
            student_bytes: 100,
            ratio: 10.0,
            bits_per_weight: 1.6,
            bits_per_shrunk_weight: 1.6,
            texts: vec![on],
            table_kl: 2.0,
            sizes: Sizes::default(),
            forms: BTreeMap::new(),
            warnings: Vec::new(),
        };
        let with = |change: fn(&mut Targets)| {
            let mut targets = Targets::default();
            targets.kl.limit = Some(0.12);
            change(&mut targets);
            verdict(&targets, &report)
        };
        assert_eq!(with(|_| ()), Verdict::Feasible);
        // The bound is 1.64 standard errors above the mean.
        assert_eq!(with(|targets| targets.kl.limit = Some(0.116)), Verdict::Infeasible);
        assert_eq!(with(|targets| targets.compression_ratio = Some(10.1)), Verdict::Infeasible);
        assert_eq!(with(|targets| targets.bytes = Some(99)), Verdict::Infeasible);
        assert_eq!(with(|targets| targets.bits_per_weight = Some(1.6)), Verdict::Feasible);
        let useless = Report { table_kl: 0.1, ..report.clone() };
        assert_eq!(verdict(&Targets::default(), &useless), Verdict::Useless);
    }

    #[test]
    fn quantiles_are_those_of_tables() {
        for (share, z) in [(0.5, 0.0), (0.95, 1.644_854), (0.975, 1.959_964)] {
            assert!((normal_quantile(share) - z).abs() < 1e-6);
        }
    }
}
