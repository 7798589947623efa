//! A recipe from start to end: reads the teacher and the texts, shrinks the embedding and then the
//! layers, and measures the student by the bytes of its packed file.

mod candidates;
mod embedding;
mod search;
mod settings;
mod solve;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use deltaloom::checkpoint::output::Inputs;
use deltaloom::{Error, Progress, Result};
use deltaloom_lm::evaluate::DivergenceReport;
use deltaloom_lm::model::Parts;
use serde::Serialize;

use crate::data::{Divided, Texts};
use crate::forms::Form;
use crate::measure::{Measured, Reference, Windows, frequency_table};
use crate::network::Network;
use crate::pipeline::{Options, shrink_layers};
use crate::recipe::{Branch, Loaded, PlannerMode, Switch, Targets, published_rules};
use crate::sizes::Sizes;
use crate::student::{self, Description, Origin, Student};
use candidates::matrices;
pub use search::{Chosen, Plan, Point};
use search::{Found, Goal, Search};
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
    /// Where its base is.
    pub base: Option<PathBuf>,
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
    /// How the planner chose forms, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
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

/// A recipe, with the model and the texts that it names.
struct Prepared {
    loaded: Loaded,
    path: PathBuf,
    /// Where the base of the teacher is, and the digest of its weights.
    base: Option<(PathBuf, String)>,
    teacher: Network,
    origin: Origin,
    texts: Texts,
    settings: Settings,
    warnings: Vec<String>,
}

impl Prepared {
    /// Reads everything, and refuses what does not fit.
    fn new(loaded: &Loaded) -> Result<Self> {
        let (loaded, notes) = with_published_rules(loaded.clone());
        loaded.ready()?;
        let path = loaded.path(loaded.recipe.teacher.model.as_deref().unwrap_or_default());
        let parts = Arc::new(Parts::open(&path).map_err(|error| error.in_file(&path))?);
        if parts.config.model_type == "gpt2" {
            let what = "GPT-2 stores its matrices turned, which students do not have yet".to_owned();
            return Err(loaded.error("teacher.model", what, None).into());
        }
        let texts = Texts::read(&loaded, &path, &parts)?;
        let settings = Settings::new(&loaded, &parts)?;
        let mut teacher = Network::new(Arc::clone(&parts))?;
        let mut base = None;
        if let Some(of_recipe) = &loaded.recipe.teacher.base {
            let path = loaded.path(of_recipe);
            let parts = Arc::new(Parts::open(&path).map_err(|error| error.in_file(&path))?);
            base = Some((path, student::origin(&parts.checkpoint)?.digest));
            teacher = teacher.with_base(parts).map_err(|error| no_base(&loaded, &error))?;
        }
        let origin = student::origin(&parts.checkpoint)?;
        let warnings = loaded.warnings.iter().chain(&notes).chain(&texts.warnings).cloned().collect();
        Ok(Self { loaded, path, base, teacher, origin, texts, settings, warnings })
    }

    fn measured_tokens(&self) -> usize {
        self.texts.evaluate.iter().map(|(_, windows)| tokens(windows)).sum()
    }

    fn fixed_work(&self) -> usize {
        2 * tokens(&self.texts.calibrate) * self.settings.exponents.len().max(1)
    }

    fn goal(&self, targets: &Targets) -> Goal {
        match (budget(targets, &self.teacher, self.origin.bytes), targets.kl.limit) {
            (Some(bytes), _) => Goal::Bytes(bytes),
            (None, Some(limit)) => Goal::Kl(limit),
            (None, None) => Goal::Bytes(u64::MAX),
        }
    }

    /// Packs a student, measures it and compares it with targets.
    fn finished(
        &self,
        found: Found,
        plan: Option<Plan>,
        targets: &Targets,
        advance: &Advance<'_>,
    ) -> Result<Made> {
        let Found { network, forms } = found;
        let student = Student::new(&self.teacher, &forms)?;
        let mut report = self.measure(&network, &student, &forms, plan, advance)?;
        report.verdict = verdict(targets, &report);
        let description = Description {
            schema: 1,
            lossy: true,
            tool: concat!("deltaloom ", env!("CARGO_PKG_VERSION")).to_owned(),
            teacher: self.origin.clone(),
            base: self.base.as_ref().map(|(_, digest)| digest.clone()),
            from_base: student.from_base().clone(),
            recipe: self.loaded.recipe.digest(),
            weights: student.weights_digest()?,
            texts: self.texts.used.clone(),
            matrices: student.matrices().clone(),
            measured: serde_json::to_value(&report).unwrap_or_default(),
        };
        let (teacher, files) = (self.path.clone(), self.texts.files.clone());
        let base = self.base.as_ref().map(|(path, _)| path.clone());
        Ok(Made { forms, report, teacher, base, files, student, description })
    }

    fn measure(
        &self,
        network: &Network,
        student: &Student,
        forms: &BTreeMap<String, Form>,
        plan: Option<Plan>,
        advance: &Advance<'_>,
    ) -> Result<Report> {
        let Self { teacher, texts, .. } = self;
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
        Ok(Report {
            verdict: Verdict::Feasible,
            teacher_bytes: self.origin.bytes,
            student_bytes,
            ratio: self.origin.bytes as f64 / student_bytes.max(1) as f64,
            bits_per_weight: student_bytes as f64 * 8.0 / weights.max(1) as f64,
            bits_per_shrunk_weight: packed.shrunk as f64 * 8.0 / packed.shrunk_weights.max(1) as f64,
            texts: on_texts,
            table_kl,
            sizes: Sizes::new(teacher.parts(), student.matrices(), &packed),
            forms: counts,
            warnings: self.warnings.clone(),
            plan,
        })
    }
}

/// A base that the teacher is no fine-tune of.
fn no_base(loaded: &Loaded, error: &Error) -> Error {
    let hint = Some("name the model that the teacher was tuned from".to_owned());
    loaded.error("teacher.base", error.to_string(), hint).into()
}

/// Counts tokens that were computed.
type Advance<'a> = dyn Fn(usize) -> Result<()> + 'a;

/// The recipe as the published toolkit's rules change it, if it asks for them, and what they
/// change.
fn with_published_rules(mut loaded: Loaded) -> (Loaded, Vec<String>) {
    if loaded.recipe.planner.mode != PlannerMode::PublishedRules {
        return (loaded, Vec::new());
    }
    let ratio = loaded.recipe.targets.compression_ratio.unwrap_or(1.0);
    let (recipe, mut notes) = published_rules(loaded.recipe, ratio);
    if recipe.branches.kv.enabled != Switch::Off && recipe.branches.has_size(Branch::Kv) {
        notes.push("keys and values are not made smaller yet: branches.kv is not applied".to_owned());
    }
    loaded.recipe = recipe;
    (loaded, notes)
}

/// Makes a student as a recipe says.
///
/// # Errors
/// [`Error::InvalidArgument`] for a recipe that does not fit the teacher or the texts, or that asks
/// for what is not built yet; errors of reading; [`Error::Cancelled`].
pub fn run(loaded: &Loaded, progress: &dyn Progress) -> Result<Made> {
    let prepared = Prepared::new(loaded)?;
    let Prepared { loaded, teacher, texts, settings, .. } = &prepared;
    let (advance, targets) = (advance(progress), &loaded.recipe.targets);
    let measured = 2 * prepared.measured_tokens();
    if loaded.recipe.planner.mode != PlannerMode::Search {
        start(progress, prepared.fixed_work() + measured);
        let found = fixed(loaded, teacher, texts, settings, &advance)?;
        return prepared.finished(found, None, targets, &advance);
    }
    start(progress, search::work(loaded, teacher, texts, 2) + measured);
    let search = Search::new(loaded, teacher, texts, settings, &advance)?;
    let (found, plan) = search.student(prepared.goal(targets), &advance)?;
    let mut made = prepared.finished(found, Some(plan), targets, &advance)?;
    let kl = made.report.texts.first().map_or(0.0, |text| text.kl);
    if let Some(plan) = &mut made.report.plan {
        search.add_curve(plan, kl, prepared.origin.bytes);
    }
    made.description.measured = serde_json::to_value(&made.report).unwrap_or_default();
    Ok(made)
}

/// What students of several sizes cost.
#[derive(Debug, Clone, Serialize)]
pub struct Curve {
    /// Bytes of the weights of the teacher.
    pub teacher_bytes: u64,
    /// One student for each ratio that was asked for, as the planner chose it.
    pub searched: Vec<OnCurve>,
    /// The same by the rules of the published toolkit, if the recipe gives branches a size.
    pub published: Vec<OnCurve>,
    /// What is doubtful.
    pub warnings: Vec<String>,
}

/// A student of a curve.
#[derive(Debug, Clone, Serialize)]
pub struct OnCurve {
    /// Bytes of the teacher over bytes of the student, as asked for.
    pub wanted: f64,
    /// What the student is like.
    pub report: Report,
}

/// Makes and measures students of several sizes; nothing is written. Candidates are made once.
///
/// # Errors
/// As [`run`]; [`Error::InvalidArgument`] for a ratio that is not above 1.
pub fn curve(loaded: &Loaded, ratios: &[f64], progress: &dyn Progress) -> Result<Curve> {
    if ratios.is_empty() || !ratios.iter().all(|ratio| ratio.is_finite() && *ratio > 1.0) {
        let what = "a curve needs ratios above 1, of bytes of the teacher over bytes of the student";
        return Err(Error::InvalidArgument(what.to_owned()));
    }
    let with = |mode, ratio| {
        let mut loaded = loaded.clone();
        let targets = &mut loaded.recipe.targets;
        (targets.compression_ratio, targets.bytes, targets.bits_per_weight) = (Some(ratio), None, None);
        loaded.recipe.planner.mode = mode;
        Prepared::new(&loaded)
    };
    let prepared = with(PlannerMode::Search, ratios[0])?;
    let has_size = |branch: &Branch| *branch != Branch::Kv && loaded.recipe.branches.has_size(*branch);
    let by_rules: Vec<Prepared> = match Branch::ALL.iter().any(has_size) {
        true => {
            ratios.iter().map(|ratio| with(PlannerMode::PublishedRules, *ratio)).collect::<Result<_>>()?
        }
        false => Vec::new(),
    };
    let Prepared { loaded, teacher, texts, settings, .. } = &prepared;
    let advance = advance(progress);
    let measured = 2 * prepared.measured_tokens();
    let of_rules: usize = by_rules.iter().map(|prepared| prepared.fixed_work() + measured).sum();
    start(
        progress,
        search::work(loaded, teacher, texts, 2 * ratios.len()) + ratios.len() * measured + of_rules,
    );
    let search = Search::new(loaded, teacher, texts, settings, &advance)?;
    let mut searched = Vec::new();
    for ratio in ratios {
        let targets = Targets { compression_ratio: Some(*ratio), ..loaded.recipe.targets.clone() };
        let (found, plan) = search.student(prepared.goal(&targets), &advance)?;
        let report = prepared.finished(found, Some(plan), &targets, &advance)?.report;
        searched.push(OnCurve { wanted: *ratio, report });
    }
    let mut published = Vec::new();
    for (ratio, by_rules) in ratios.iter().zip(by_rules) {
        let Prepared { loaded, teacher, texts, settings, .. } = &by_rules;
        let found = fixed(loaded, teacher, texts, settings, &advance)?;
        let report = by_rules.finished(found, None, &loaded.recipe.targets, &advance)?.report;
        published.push(OnCurve { wanted: *ratio, report });
    }
    let (teacher_bytes, warnings) = (prepared.origin.bytes, prepared.warnings);
    Ok(Curve { teacher_bytes, searched, published, warnings })
}

fn start(progress: &dyn Progress, tokens: usize) {
    progress.start(tokens as u64 * TOKEN_BYTES);
}

fn advance(progress: &dyn Progress) -> impl Fn(usize) -> Result<()> + '_ {
    move |tokens| {
        progress.advance(tokens as u64 * TOKEN_BYTES);
        if progress.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

fn tokens(windows: &Windows) -> usize {
    windows.iter().map(Vec::len).sum()
}

/// Bytes that the packed student may have, if that is a target.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of bytes")]
fn budget(targets: &Targets, teacher: &Network, teacher_bytes: u64) -> Option<u64> {
    let of_ratio = targets.compression_ratio.map(|ratio| (teacher_bytes as f64 / ratio) as u64);
    let of_bits = targets.bits_per_weight.map(|bits| (bits * weights(teacher) as f64 / 8.0) as u64);
    targets.bytes.or(of_ratio).or(of_bits)
}

/// Number of weights of a model.
fn weights(teacher: &Network) -> u64 {
    teacher.parts().checkpoint.weights().map(|(_, info)| info.shape.iter().product::<u64>()).sum()
}

/// Makes the student whose sizes a recipe gives. Low rank tries each exponent; a quarter of the
/// calibration text, which matrices are not fitted to, chooses.
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
    let (calibrate, reference) = match rounds {
        1 => (texts.calibrate.clone(), None),
        _ => {
            let Divided { fitted, compared } = texts.divided(texts.calibrate.len() / 4);
            (fitted, Some(Reference::new(teacher.clone(), compared, advance)?))
        }
    };
    let mut with_embedding = Found { network: teacher.clone(), forms: BTreeMap::new() };
    if recipe.uses(Branch::Blt) {
        let network = &mut with_embedding.network;
        with_embedding.forms = embedding::shrink(loaded, teacher, network, texts, settings, advance)?;
    }
    let share = 2 * tokens(&texts.calibrate) / matrices(teacher).max(1);
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
            plan: None,
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
