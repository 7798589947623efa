//! Searches for the form of each tensor. Errors of tensors do not add up exactly, so what is chosen
//! by adding them is made, and its packed file decides whether the size is met.

use std::collections::BTreeMap;

use deltaloom::{Error, Result};
use serde::Serialize;

use super::candidates::{Candidate, Work, matrices, measurements};
use super::embedding::Table;
use super::settings::Settings;
use super::solve::{Choice, Tensor, bits_for, cost, solve, taken};
use crate::data::{Divided, Texts};
use crate::forms::Form;
use crate::measure::{Reference, Windows};
use crate::network::Network;
use crate::pipeline::{Options, Place, shrink_layers};
use crate::recipe::Loaded;
use crate::student::Student;

/// How often a student is made anew, because its packed file missed the size.
const ROUNDS: usize = 5;
/// Windows that first tries are fitted to.
const REHEARSED: usize = 8;
/// A file of this share of the budget is near enough.
const NEAR_ENOUGH: f64 = 0.995;
/// Ratios of the curve of a plan.
const RATIOS: [f64; 12] = [2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 50.0, 100.0, 200.0, 1000.0];
const BITS: f64 = 8.0;
/// Nats per token above which what is expected of a student is not trusted.
const MUCH: f64 = 1.0;

/// A student: its weights, and their forms.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) network: Network,
    pub(super) forms: BTreeMap<String, Form>,
}

/// What a student shall be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Goal {
    /// As near to its teacher as these packed bytes allow.
    Bytes(u64),
    /// As small as this divergence allows, in nats per token.
    Kl(f64),
}

/// How a planner came to a student.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Bytes that the packed weights may take, if the size is a target.
    pub budget: Option<u64>,
    /// Bytes of the packed weights if every tensor has its smallest form.
    pub least_bytes: u64,
    /// Bytes of the students that were made, in their order.
    pub made: Vec<u64>,
    /// Divergence that was expected of the student, in nats per token: that of its tensors, added.
    pub expected_kl: f64,
    /// What is expected at other sizes. Corrected by what the student costs over what was expected.
    pub curve: Vec<Point>,
    /// Bytes at which the divergence is expected to be the limit of the recipe.
    pub bytes_for_limit: Option<u64>,
    /// What the tensors became.
    pub tensors: BTreeMap<String, Chosen>,
}

/// A size, and the divergence that is expected at it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Packed bytes.
    pub bytes: u64,
    /// Nats per token.
    pub kl: f64,
}

/// What a planner chose for a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Chosen {
    /// Its form.
    pub form: String,
    /// Bits per weight, about.
    pub bits: f64,
    /// Divergence that it was expected to cost.
    pub kl: f64,
}

/// All that is known of a teacher's tensors before anything is chosen.
pub(super) struct Search<'a> {
    loaded: &'a Loaded,
    teacher: &'a Network,
    texts: &'a Texts,
    /// Windows that students are fitted to if others of the same texts judge them.
    fitted: Windows,
    tables: BTreeMap<&'a str, Table>,
    tensors: Vec<Tensor>,
    /// The same, where the embedding and the head are not all zeros.
    alive: Vec<Tensor>,
    reference: Reference,
    /// Packed bytes if every tensor has its smallest form.
    least: u64,
}

/// Tokens that a search computes, about, for this many students.
pub(super) fn work(loaded: &Loaded, teacher: &Network, texts: &Texts, students: usize) -> usize {
    let tokens: usize = texts.calibrate.iter().map(Vec::len).sum();
    let measured = loaded.recipe.planner.repair.tokens.min(tokens);
    let tables = outside_layers(teacher).count();
    (measurements(loaded, teacher, tables) + 1) * measured + 2 * students * tokens
}

/// The embedding, and the head if it is another matrix.
fn outside_layers(teacher: &Network) -> impl Iterator<Item = &str> {
    let globals = &teacher.parts().globals;
    [Some(globals.embedding.as_str()), globals.head.as_deref()].into_iter().flatten()
}

impl<'a> Search<'a> {
    /// Makes and measures candidates of all tensors.
    pub(super) fn new(
        loaded: &'a Loaded,
        teacher: &'a Network,
        texts: &'a Texts,
        settings: &Settings,
        advance: &dyn Fn(usize) -> Result<()>,
    ) -> Result<Self> {
        let names = outside_layers(teacher).filter(|name| !settings.is_protected(name));
        let tables = names.map(|name| Ok((name, Table::new(loaded, teacher, name, texts)?)));
        let tables: BTreeMap<&str, Table> = tables.collect::<Result<_>>()?;
        let len = texts.calibrate.first().map_or(1, Vec::len);
        let count = (loaded.recipe.planner.repair.tokens / len.max(1)).clamp(1, texts.calibrate.len());
        let Divided { fitted, compared } = texts.divided(count);
        let reference = Reference::new(teacher.clone(), compared, advance)?.with_layers()?;
        let work = Work { loaded, teacher, texts, settings, tables: &tables, reference: &reference, advance };
        let tensors = work.tensors()?;
        let mut alive = tensors.clone();
        for tensor in alive.iter_mut().filter(|tensor| tables.contains_key(tensor.name.as_str())) {
            tensor.choices.retain(|choice| choice.candidate != Candidate::Zero);
        }
        let mut search = Self { loaded, teacher, texts, fitted, tables, tensors, alive, reference, least: 0 };
        search.least = search.packed(&search.smallest(&|_| advance(0))?.student.forms)?;
        Ok(search)
    }

    /// The choices of least cost that take at most so many bits. Where there is room for anything
    /// else, the embedding is not all zeros: no matrix behind it would be read then, which the sum
    /// of their costs does not know.
    fn choose(&self, bits: f64) -> Vec<&Choice> {
        let alive = solve(&self.alive, bits);
        if taken(&alive) <= bits { alive } else { solve(&self.tensors, bits) }
    }

    fn packed(&self, forms: &BTreeMap<String, Form>) -> Result<u64> {
        Ok(Student::new(self.teacher, forms)?.packed()?.bytes)
    }

    /// Makes the best student for a goal.
    pub(super) fn student(&self, goal: Goal, advance: &dyn Fn(usize) -> Result<()>) -> Result<(Found, Plan)> {
        let mut found = match goal {
            Goal::Bytes(budget) => self.of_size(budget, advance)?,
            Goal::Kl(limit) => self.within(limit, advance)?,
        };
        let names = self.tensors.iter().zip(&found.chosen);
        let tensors = names.map(|(tensor, choice)| {
            let form = found.student.forms.get(&tensor.name).map_or_else(String::new, Form::name);
            let bits = choice.bits / tensor.weights.max(1) as f64;
            (tensor.name.clone(), Chosen { form, bits, kl: choice.cost })
        });
        let plan = Plan {
            budget: match goal {
                Goal::Bytes(u64::MAX) | Goal::Kl(_) => None,
                Goal::Bytes(bytes) => Some(bytes),
            },
            least_bytes: self.least,
            made: std::mem::take(&mut found.made),
            expected_kl: cost(&found.chosen),
            curve: Vec::new(),
            bytes_for_limit: None,
            tensors: tensors.collect(),
        };
        Ok((found.student, plan))
    }

    /// Adds to a plan what is expected at other sizes, when its student costs `kl`.
    pub(super) fn add_curve(&self, plan: &mut Plan, kl: f64, teacher_bytes: u64) {
        let factor = if plan.expected_kl > 0.0 { kl / plan.expected_kl } else { 1.0 };
        let sizes = RATIOS.map(|ratio| bytes_of(teacher_bytes as f64 / ratio));
        let point = |bytes: u64| Point { bytes, kl: factor * cost(&self.choose(self.bits_in(bytes as f64))) };
        plan.curve = sizes.into_iter().filter(|bytes| *bytes >= self.least).map(point).collect();
        let limit = self.loaded.recipe.targets.kl.limit;
        plan.bytes_for_limit = limit.map(|limit| {
            let bits = bits_for(&self.tensors, limit / factor.max(f64::MIN_POSITIVE));
            self.least + bytes_of(bits / BITS)
        });
    }

    /// Bits of forms that a packed file has room for.
    fn bits_in(&self, bytes: f64) -> f64 {
        let smallest = taken(&self.choose(0.0));
        (bytes - self.least as f64) * BITS + smallest
    }

    /// The student of least divergence whose packed weights take at most `budget` bytes, or the
    /// smallest one.
    fn of_size(&self, budget: u64, advance: &dyn Fn(usize) -> Result<()>) -> Result<Tried<'_>> {
        let mut bits = self.bits_in(budget as f64);
        let mut best: Option<(u64, Tried<'_>)> = None;
        let mut made = Vec::new();
        let mut before: Vec<&Choice> = Vec::new();
        let all = &self.texts.calibrate;
        // A few windows tell the size of a file.
        let few = all[..all.len().min(REHEARSED)].to_vec();
        let mut is_rehearsal = few.len() < all.len();
        for round in 0..ROUNDS {
            is_rehearsal &= round + 2 < ROUNDS;
            let chosen = self.choose(bits);
            let calibrate = if is_rehearsal { &few } else { all };
            let student =
                self.make(&chosen, calibrate, &|done| advance(if is_rehearsal { 0 } else { done }))?;
            let bytes = self.packed(&student.forms)?;
            made.push(bytes);
            let is_better =
                best.as_ref().is_none_or(|(known, _)| match (*known <= budget, bytes <= budget) {
                    (true, true) => bytes > *known,
                    (false, false) => bytes < *known,
                    (known, new) => !known && new,
                });
            let is_same = chosen == before;
            before.clone_from(&chosen);
            let is_near = bytes <= budget && bytes as f64 >= NEAR_ENOUGH * budget as f64;
            let is_least = bytes > budget && bytes <= self.least;
            if is_rehearsal && (is_near || is_same || is_least) {
                is_rehearsal = false;
                before.clear();
                continue;
            }
            if !is_rehearsal && is_better {
                best = Some((bytes, Tried { student, chosen, made: Vec::new() }));
            }
            if is_near || is_same || is_least {
                break;
            }
            // A little below, so that the next file does not miss it by a byte.
            let wanted = budget as f64 * (1.0 + NEAR_ENOUGH) / 2.0;
            bits += (wanted - bytes as f64) * BITS;
        }
        let mut tried = match best {
            Some((_, tried)) => tried,
            None => self.smallest(advance)?,
        };
        // Sums of large costs say little: zeros can be nearer than what is left of a model.
        if cost(&tried.chosen) > MUCH {
            let smallest = self.smallest(advance)?;
            let kl = |tried: &Tried<'_>| {
                Ok::<f64, Error>(self.reference.compare(&tried.student.network, &|_| advance(0))?.kl())
            };
            if kl(&smallest)? < kl(&tried)? {
                tried = smallest;
            }
        }
        Ok(Tried { made, ..tried })
    }

    /// The smallest student found that is within `limit` of its teacher, on the windows that
    /// candidates were measured on; without one, the nearest.
    fn within(&self, limit: f64, advance: &dyn Fn(usize) -> Result<()>) -> Result<Tried<'_>> {
        let mut factor = 1.0;
        let mut best: Option<((bool, f64), Tried<'_>)> = None;
        let mut made = Vec::new();
        for _ in 0..ROUNDS {
            let chosen = self.choose(bits_for(&self.tensors, limit / factor));
            let student = self.make(&chosen, &self.fitted, advance)?;
            let measured = self.reference.compare(&student.network, &|_| advance(0))?;
            let bound = self.loaded.recipe.targets.kl.confidence;
            let kl = measured.kl() + super::normal_quantile(bound) * measured.standard_error();
            let bytes = self.packed(&student.forms)?;
            made.push(bytes);
            // Those within the limit come first, the smallest of them; then the nearest.
            let rank = if kl <= limit { (false, bytes as f64) } else { (true, kl) };
            let expected = cost(&chosen);
            if best.as_ref().is_none_or(|(least, _)| rank < *least) {
                best = Some((rank, Tried { student, chosen, made: Vec::new() }));
            }
            if kl <= limit && kl >= 0.95 * limit || expected <= 0.0 {
                break;
            }
            factor = kl / expected / 0.98;
        }
        let (_, tried) = match best {
            Some(best) => best,
            None => ((true, 0.0), self.smallest(advance)?),
        };
        Ok(Tried { made, ..tried })
    }

    fn smallest(&self, advance: &dyn Fn(usize) -> Result<()>) -> Result<Tried<'_>> {
        let chosen = self.choose(0.0);
        let student = self.make(&chosen, &self.texts.calibrate, advance)?;
        Ok(Tried { student, chosen, made: Vec::new() })
    }

    fn make(
        &self,
        chosen: &[&Choice],
        calibrate: &Windows,
        advance: &dyn Fn(usize) -> Result<()>,
    ) -> Result<Found> {
        let chosen: BTreeMap<&str, Candidate> = self
            .tensors
            .iter()
            .map(|tensor| tensor.name.as_str())
            .zip(chosen.iter().map(|choice| choice.candidate))
            .collect();
        let correct = &self.loaded.recipe.correct;
        let options = Options { correct: correct.enabled.then_some(correct.damping) };
        let mut network = self.teacher.clone();
        let mut forms = BTreeMap::new();
        for (name, table) in &self.tables {
            let form = chosen.get(name).map(|candidate| table.form(*candidate)).transpose()?;
            if let Some(form) = form.flatten() {
                let [rows, cols] = self.teacher.shape(name)?;
                network.replace(name, [rows, cols], &form.decode(rows, cols))?;
                forms.insert((*name).to_owned(), form);
            }
        }
        let treatment = |place: Place<'_>| chosen.get(place.name)?.treatment();
        let tokens: usize = calibrate.iter().map(Vec::len).sum();
        let share = 2 * tokens / matrices(self.teacher).max(1);
        forms.append(&mut shrink_layers(
            self.teacher,
            &mut network,
            calibrate,
            &treatment,
            &options,
            &|done| advance(done * share),
        )?);
        Ok(Found { network, forms })
    }
}

/// A student that was made, and the choices that made it.
struct Tried<'a> {
    student: Found,
    chosen: Vec<&'a Choice>,
    made: Vec<u64>,
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of bytes")]
fn bytes_of(bytes: f64) -> u64 {
    bytes.max(0.0) as u64
}
