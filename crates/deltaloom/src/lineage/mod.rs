//! Reports the history of each tensor, compared with checkpoints that it may come from: equality,
//! rounding, blends, low rank, sparse and dense change.
//! It packs nothing. Equality, ties, rounding, views and codes are found as packing finds them, in
//! [`crate::origin`].

mod finding;
mod moments;
mod rank;

use deltaloom_kernels::ulp::count_changed;
use rayon::prelude::*;
use serde::Serialize;

use crate::bases::{Base, Bases, TensorSource};
use crate::checkpoint::Role;
use crate::error::Result;
use crate::limits::to_usize;
use crate::origin::cast::{Master, Masters};
use crate::origin::{self, Origin, Subject, Ties, content, identical, predict_from};
use crate::pipeline;
use crate::plan;
use crate::predict::Predictor;
use crate::progress::{Progress, check_cancelled};
use crate::sample;
use crate::summary::{Share, ratio};
use crate::tensor::TensorInfo;

pub use finding::{BlendPart, Evidence, Finding, FindingGroup, TensorLineage};
use moments::Moments;

/// What a finding leaves unexplained may be this many times what rounding causes (in squares),
/// since merges round more than once.
const LEFT: f64 = 4.0;
/// It may also be at most this share of what the most similar ancestor alone leaves.
const PART_LEFT: f64 = 0.1;
/// Smaller tensors show no operation.
const LEAST_ELEMS: u64 = 16;
/// Smallest weight of a blend that counts.
const LEAST_WEIGHT: f64 = 0.005;
/// Below the first share of changed elements, no other operation is considered. Below the second, a
/// change counts as sparse.
const CLEARLY_SPARSE: f64 = 0.05;
const SPARSE: f64 = 1.0 / 3.0;
/// Shortest side of a matrix whose rank is meaningful.
const LEAST_SIDE: u64 = 16;
/// Number of runs of rows that are read to measure the rank.
const ROW_RUNS: u64 = 8;

/// The history of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LineageReport {
    /// Paths of the ancestors.
    pub ancestors: Vec<String>,
    /// The findings. Those with the most bytes come first.
    pub findings: Vec<FindingGroup>,
    /// States of a training beside the weights, such as the moments of an optimizer: how many
    /// tensors, and their size. They are left out.
    #[serde(skip_serializing_if = "Share::is_empty")]
    pub left_out: Share,
    /// The weights, in file order.
    pub tensors: Vec<TensorLineage>,
}

/// Finds how the weights of a checkpoint came from the tensors of `ancestors`. All their bytes are
/// read. To measure the rank of a matrix, a part of at most 384 rows and columns is read once more.
///
/// # Errors
/// What reading or decoding gives; [`crate::Error::Cancelled`].
pub fn lineage(
    tuned: &Bases,
    ancestors: &Bases,
    threads: usize,
    progress: &dyn Progress,
) -> Result<LineageReport> {
    let of_role = |wanted: Role| -> Vec<&TensorSource> {
        let all = tuned.iter().flat_map(|base| base.tensors().iter().zip(base.roles()));
        all.filter(|(_, role)| *role == wanted).map(|(source, _)| source).collect()
    };
    let (tensors, states) = (of_role(Role::Weights), of_role(Role::State));
    let left_out = Share {
        count: states.len() as u64,
        bytes: states.iter().map(|source| source.info().len_bytes()).sum(),
    };
    progress.start(tensors.iter().map(|tensor| tensor.info().len_bytes()).sum());
    let tensors = pipeline::with_threads(threads, || {
        let study = Study::new(tensors, ancestors, progress)?;
        let mut found: Vec<TensorLineage> =
            (0..study.tensors.len()).into_par_iter().map(|i| study.tensor(i)).collect::<Result<_>>()?;
        study.look_further(&mut found, ancestors)?;
        Ok(found)
    })?;
    let ancestors = ancestors.iter().map(name_of).collect();
    Ok(LineageReport { ancestors, findings: finding::group(&tensors), left_out, tensors })
}

fn name_of(base: &Base) -> String {
    base.path().display().to_string()
}

/// A tensor of an ancestor, and the number of that ancestor.
struct Counterpart<'a> {
    ancestor: usize,
    source: &'a TensorSource,
}

struct Study<'a> {
    tensors: Vec<&'a TensorSource>,
    /// The same tensors, as the detectors want them.
    subjects: Vec<Subject<'a>>,
    samples: Vec<Vec<u8>>,
    ancestors: Vec<&'a Base>,
    /// Of each tensor, those of ancestors that were found by content.
    found: Vec<Vec<&'a TensorSource>>,
    ties: Ties,
    masters: Masters<'a>,
    progress: &'a dyn Progress,
}

impl<'a> Study<'a> {
    fn new(tensors: Vec<&'a TensorSource>, ancestors: &'a Bases, progress: &'a dyn Progress) -> Result<Self> {
        let subjects: Vec<Subject<'_>> = tensors.iter().map(|tensor| Subject::Source(tensor)).collect();
        let samples: Vec<Vec<u8>> = subjects.par_iter().map(Subject::sample).collect::<Result<_>>()?;
        let of_ancestors = |tensor: &&TensorSource| {
            let info = tensor.info();
            ancestors.iter().filter_map(|base| identical::counterpart(info, base)).collect()
        };
        let candidates: Vec<Vec<&TensorSource>> = tensors.par_iter().map(of_ancestors).collect();
        let found = content::find(&candidates, &subjects, &samples, ancestors)?.alike;
        let ties = Ties::prove(&subjects, &samples, |i| !candidates[i].is_empty(), progress)?;
        let ancestors: Vec<&Base> = ancestors.iter().collect();
        let masters = Masters::new(&subjects, &samples, ancestors.iter().copied())?;
        Ok(Self { tensors, subjects, samples, ancestors, found, ties, masters, progress })
    }

    fn tensor(&self, i: usize) -> Result<TensorLineage> {
        check_cancelled(self.progress)?;
        let info = self.tensors[i].info();
        let finding = match self.equal_to_something(i)? {
            Some(finding) => finding,
            None => self.numeric(i)?,
        };
        self.progress.advance(info.len_bytes());
        Ok(TensorLineage {
            name: info.name.clone(),
            dtype: info.dtype.to_string(),
            shape: info.shape.clone(),
            bytes: info.len_bytes(),
            finding,
        })
    }

    /// Replaces findings that say little, where a tensor has codes or numbers of others, and those
    /// that say nothing, where it consists of pieces.
    fn look_further(&self, found: &mut [TensorLineage], ancestors: &Bases) -> Result<()> {
        // Codes are similar to their numbers, which does not say what they are.
        let says_little = |tensor: &TensorLineage| {
            matches!(tensor.finding, Finding::New | Finding::Unrelated { .. } | Finding::Drift { .. })
                || matches!(tensor.finding, Finding::Rescaled { .. })
        };
        let wanted: Vec<bool> = found.iter().map(says_little).collect();
        for (i, origin) in origin::by_codes(&self.subjects, &wanted, ancestors, self.progress)? {
            found[i].finding = self.predicted(i, &origin)?;
        }
        let says_nothing =
            |tensor: &TensorLineage| matches!(tensor.finding, Finding::New | Finding::Unrelated { .. });
        let wanted: Vec<bool> = found.iter().map(says_nothing).collect();
        for (i, origin) in origin::views(&self.subjects, &self.samples, &wanted, ancestors, self.progress)? {
            found[i].finding = self.predicted(i, &origin)?;
        }
        Ok(())
    }

    /// The finding that a tensor is predicted as packing does it.
    fn predicted(&self, i: usize, origin: &Origin) -> Result<Finding> {
        let (subject, info) = (self.subjects[i], self.tensors[i].info());
        let mut changed = 0;
        for (offset, len) in info.blocks(1) {
            check_cancelled(self.progress)?;
            let mut predicted = vec![0; len];
            predict_from(&self.subjects, origin, info, offset, &mut predicted)?;
            let bytes = subject.read(offset, len)?;
            changed += count_changed(info.number(), &bytes, &predicted);
        }
        let references = &origin.references;
        let has_any = |base: &&&Base| references.iter().any(|source| base.has_origin_of(source));
        let ancestors = self.ancestors.iter().filter(has_any).map(|base| name_of(base)).collect();
        let of = references.iter().map(|source| source.info().name.clone()).collect();
        let rule = origin.predictor.rule().unwrap_or_default();
        let changed_fraction = ratio(changed, info.elems());
        Ok(match origin.predictor {
            Predictor::Quantised(_) => Finding::Quantised { ancestors, of, rule, changed_fraction },
            _ => Finding::View { ancestors, of, rule, changed_fraction },
        })
    }

    fn name(&self, ancestor: usize) -> String {
        name_of(self.ancestors[ancestor])
    }

    /// From each ancestor, the tensor that fits and has the place of `name`.
    fn counterparts(&self, name: &str, fits: impl Fn(&TensorInfo) -> bool) -> Vec<Counterpart<'a>> {
        let of = |(ancestor, base): (usize, &&'a Base)| {
            let source = base.counterpart(name, |source| fits(source.info()))?;
            Some(Counterpart { ancestor, source })
        };
        self.ancestors.iter().enumerate().filter_map(of).collect()
    }

    /// The tensors that were found by content.
    fn found(&self, i: usize) -> impl Iterator<Item = Counterpart<'a>> {
        let of = |source: &'a TensorSource| {
            let ancestor = self.ancestors.iter().position(|base| base.has_origin_of(source))?;
            Some(Counterpart { ancestor, source })
        };
        self.found[i].iter().filter_map(move |source| of(source))
    }

    /// Findings from comparing bits, as packing makes them.
    fn equal_to_something(&self, i: usize) -> Result<Option<Finding>> {
        let (subject, sample) = (self.subjects[i], &self.samples[i]);
        for (ancestor, base) in self.ancestors.iter().enumerate() {
            let Some(other) = identical::counterpart(subject.info(), base) else { continue };
            if identical::prove(subject, sample, other, self.progress)?.is_some() {
                return Ok(Some(self.identical(i, ancestor, other)));
            }
        }
        let name_of_own = |other: usize| self.tensors[other].info().name.clone();
        if let Some((other, _)) = self.ties.of(i) {
            return Ok(Some(Finding::Tied { tensor: name_of_own(other) }));
        }
        for other in self.found(i) {
            if identical::prove(subject, sample, other.source, self.progress)?.is_some() {
                return Ok(Some(self.identical(i, other.ancestor, other.source)));
            }
        }
        let found = self.masters.prove(i, &self.subjects, &self.samples, self.progress)?;
        Ok(found.map(|(master, _)| match master {
            Master::Own(other) => Finding::Cast { ancestor: None, tensor: name_of_own(other) },
            Master::OfBase(ancestor, source) => {
                let tensor = source.info().name.clone();
                Finding::Cast { ancestor: Some(self.name(ancestor)), tensor }
            }
        }))
    }

    fn identical(&self, i: usize, ancestor: usize, other: &TensorSource) -> Finding {
        let (own, other) = (&self.tensors[i].info().name, &other.info().name);
        Finding::Identical { ancestor: self.name(ancestor), tensor: (own != other).then(|| other.clone()) }
    }

    /// Findings from calculation.
    fn numeric(&self, i: usize) -> Result<Finding> {
        let tensor = self.tensors[i];
        let info = tensor.info();
        let mut others = self.counterparts(&info.name, |other| {
            let is_number = |info: &TensorInfo| info.dtype.number().is_some();
            other.is_like(info) || (other.shape == info.shape && is_number(other) && is_number(info))
        });
        others.extend(self.found(i));
        others.retain(|other| other.source.info().len_bytes() > 0);
        let references: Vec<&TensorSource> = others.iter().map(|other| other.source).collect();
        let moments = moments::moments(tensor, &references, self.progress)?;
        let Some(nearest) = moments.nearest() else { return Ok(Finding::New) };
        if let Some(finding) = self.blend(tensor, &others, &moments, nearest)? {
            return Ok(finding);
        }
        let (one, ancestor) = (&moments.references[nearest], self.name(others[nearest].ancestor));
        let changed_fraction = ratio(one.changed, moments.elems);
        let relative_l2 = moments.relative_l2(nearest);
        if changed_fraction >= CLEARLY_SPARSE
            && let Some(low) = self.low_rank(tensor, references[nearest])?
        {
            return Ok(Finding::LowRank { ancestor, rank: low.rank, residual: low.residual, relative_l2 });
        }
        if changed_fraction < SPARSE {
            return Ok(Finding::Sparse { ancestor, changed_fraction, relative_l2 });
        }
        let correlation = moments.correlation(nearest);
        let bits_per_element = self.bits_per_element(i, references[nearest])?;
        Ok(if is_related(&moments, nearest, bits_per_element) {
            Finding::Drift { ancestor, relative_l2, changed_fraction, correlation }
        } else {
            Finding::Unrelated { ancestor, correlation, bits_per_element }
        })
    }

    /// A blend of several ancestors, or a multiple of one, that explains everything except
    /// rounding.
    fn blend(
        &self,
        tensor: &TensorSource,
        others: &[Counterpart<'_>],
        moments: &Moments,
        nearest: usize,
    ) -> Result<Option<Finding>> {
        if moments.elems < LEAST_ELEMS {
            return Ok(None);
        }
        let references: Vec<&TensorSource> = others.iter().map(|other| other.source).collect();
        let most = (LEFT * moments.rounding).min(PART_LEFT * moments.references[nearest].distance);
        let residual = |left: f64| (left / moments.rounding.max(f64::MIN_POSITIVE)).sqrt();
        for (i, other) in others.iter().enumerate() {
            let factor = moments.factor(i);
            let left = moments::left(tensor, &references[i..=i], &[factor], self.progress)?;
            if factor != 0.0 && left <= most {
                let ancestor = self.name(other.ancestor);
                return Ok(Some(Finding::Rescaled { ancestor, factor, residual: residual(left) }));
            }
        }
        let weights = moments.linear_blend();
        let counts = |weight: &&f64| weight.abs() >= LEAST_WEIGHT;
        if weights.iter().filter(counts).count() < 2 {
            return Ok(None);
        }
        let left = moments::left(tensor, &references, &weights, self.progress)?;
        if left > most {
            return Ok(None);
        }
        let part = |(other, weight): (&Counterpart<'_>, &f64)| BlendPart {
            ancestor: self.name(other.ancestor),
            weight: *weight,
        };
        let parts = others.iter().zip(&weights).filter(|(_, weight)| counts(weight)).map(part);
        Ok(Some(Finding::Blend { parts: parts.collect(), residual: residual(left) }))
    }

    /// The rank of the difference of two matrices, from a part of them.
    fn low_rank(&self, tensor: &TensorSource, reference: &TensorSource) -> Result<Option<rank::LowRank>> {
        let info = tensor.info();
        let elems = info.len_bytes() / info.number().bytes() as u64;
        let rows = info.shape.first().copied().unwrap_or(0).max(1);
        let cols = elems / rows;
        if info.shape.len() < 2 || rows.min(cols) < LEAST_SIDE {
            return Ok(None);
        }
        let side = rank::SIDE as u64;
        let width = cols.min(side);
        let (mut difference, mut rounding) = (Vec::new(), 0.0);
        for (start, count) in runs(rows, side) {
            check_cancelled(self.progress)?;
            let values = moments::numbers(tensor, start * cols, count * cols)?;
            let others = moments::numbers(reference, start * cols, count * cols)?;
            for row in 0..count {
                for k in 0..width {
                    let at = to_usize(row * cols + k * cols / width);
                    let (t, r) = (values[at], others[at]);
                    let both = t.is_finite() && r.is_finite();
                    difference.push(if both { t - r } else { 0.0 });
                    rounding += moments::rounding_variance(info.number(), t);
                }
            }
        }
        let width = to_usize(width);
        let height = difference.len() / width;
        let noise = rounding / difference.len() as f64;
        Ok(rank::rank_of(&difference, height, width, noise))
    }

    /// Estimated bits of an element on its own, and with a reference of the same dtype.
    fn bits_per_element(&self, i: usize, reference: &TensorSource) -> Result<Option<[f64; 2]>> {
        let (tensor, sample) = (self.tensors[i].info(), &self.samples[i]);
        if !reference.is_like(tensor) {
            return Ok(None);
        }
        let number = tensor.number();
        // Elements that do not shrink are stored as they are.
        let elems = (sample.len() / number.bytes()) as u64;
        let bits = |cost: u64| ratio(cost, 65_536 * elems).min(f64::from(number.bits()));
        let given = plan::residual_cost(number, sample, &sample::of(reference)?);
        Ok(Some([bits(plan::stand_alone_cost(number, sample)), bits(given)]))
    }
}

/// Whether an ancestor says anything about a tensor that differs from it in most elements.
fn is_related(moments: &Moments, nearest: usize, bits_per_element: Option<[f64; 2]>) -> bool {
    const LEAST_GAIN: f64 = 0.02;
    // A few elements show no correlation, only similarity.
    let clearly_near = if moments.elems < LEAST_ELEMS { 0.1 } else { 0.01 };
    let is_cheaper = bits_per_element.is_some_and(|[alone, given]| given < (1.0 - LEAST_GAIN) * alone);
    // Four standard deviations of the correlation of independent elements.
    let by_chance = 4.0 / (moments.elems.max(1) as f64).sqrt();
    let is_correlated = moments.correlation(nearest) > by_chance.max(0.25);
    is_cheaper || is_correlated || moments.relative_l2(nearest) < clearly_near
}

/// At most `most` of the rows, in a few evenly spaced runs.
fn runs(rows: u64, most: u64) -> Vec<(u64, u64)> {
    if rows <= most {
        return vec![(0, rows)];
    }
    let run = most / ROW_RUNS;
    (0..ROW_RUNS).map(|i| (i * (rows - run) / (ROW_RUNS - 1), run)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_rows_are_inside_and_apart() {
        assert_eq!(runs(384, 384), [(0, 384)]);
        for rows in [385, 1000, 151_936] {
            let runs = runs(rows, 384);
            assert_eq!(runs.iter().map(|(_, count)| count).sum::<u64>(), 384);
            assert!(runs.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
            assert!(runs.last().is_some_and(|(start, count)| start + count == rows));
        }
    }
}
