//! Reports the history of each tensor, compared with checkpoints that it may come from: equality,
//! rounding, blends, low rank, sparse and dense change.
//! It packs nothing. All operations are found as packing finds them, in [`crate::origin`]; here is
//! what the numbers say of the rest.

mod finding;
mod moments;

use deltaloom_kernels::ulp::count_changed;
use rayon::prelude::*;
use serde::Serialize;

use crate::bases::{Base, Bases, TensorSource};
use crate::checkpoint::Role;
use crate::error::Result;
use crate::origin::cast::{Master, Masters};
use crate::origin::{self, Origin, Subject, Ties, blend, content, identical, predict_from};
use crate::pipeline;
use crate::plan;
use crate::predict::Predictor;
use crate::progress::{Progress, check_cancelled};
use crate::sample;
use crate::summary::{Share, ratio};
use crate::tensor::{ChunkGrid, TensorInfo};

pub use finding::{BlendPart, Evidence, Finding, FindingGroup, TensorLineage};
use moments::Moments;

/// log2 of the elements of a chunk, as packing has it unless it is told otherwise.
const CHUNK_LOG2: u32 = 17;
/// Smaller tensors show no operation.
const LEAST_ELEMS: u64 = 16;
/// Below the first share of changed elements, no other operation is considered. Below the second, a
/// change counts as sparse.
const CLEARLY_SPARSE: f64 = 0.05;
const SPARSE: f64 = 1.0 / 3.0;

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
/// read, and once more where an operation explains a tensor.
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
    /// Recipes of the largest tensors.
    blends: Vec<blend::Recipe>,
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
        let blends = blend::hints(&subjects, &candidates)?;
        Ok(Self { tensors, subjects, samples, ancestors, found, ties, masters, blends, progress })
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
        Ok(match &origin.predictor {
            Predictor::Blocks(blocks) => {
                let (block_type, has) = (blocks.block_type(), blocks.content());
                Finding::Blocks { ancestors, of, block_type, has, rule, changed_fraction }
            }
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
        let (one, ancestor) = (&moments.references[nearest], self.name(others[nearest].ancestor));
        let changed_fraction = ratio(one.changed, moments.elems);
        let relative_l2 = moments.relative_l2(nearest);
        if changed_fraction >= CLEARLY_SPARSE
            && let Some(finding) = self.computed(i, &others, &moments)?
        {
            return Ok(finding);
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

    /// A blend of several ancestors, a multiple of one, or one plus a product, as packing finds
    /// them.
    fn computed(&self, i: usize, others: &[Counterpart<'_>], moments: &Moments) -> Result<Option<Finding>> {
        let (subject, sample, info) = (self.subjects[i], &self.samples[i], self.tensors[i].info());
        let alike: Vec<&TensorSource> =
            others.iter().map(|other| other.source).filter(|source| source.is_like(info)).collect();
        let grid = ChunkGrid::new(info, CHUNK_LOG2);
        let Some(origin) = origin::computed(subject, sample, &alike, &self.blends, &grid, self.progress)?
        else {
            return Ok(None);
        };
        let mut left = 0.0;
        for (offset, len) in info.blocks(grid.row_bytes()) {
            check_cancelled(self.progress)?;
            let mut predicted = vec![0; len];
            predict_from(&self.subjects, &origin, info, offset, &mut predicted)?;
            left += moments::squares_between(info.number(), &subject.read(offset, len)?, &predicted);
        }
        let residual = (left / moments.rounding.max(f64::MIN_POSITIVE)).sqrt();
        let place_of =
            |source: &TensorSource| others.iter().position(|other| other.source.id() == source.id());
        let places: Vec<usize> = origin.references.iter().filter_map(place_of).collect();
        let Some(first) = places.first().copied() else { return Ok(None) };
        let ancestor = self.name(others[first].ancestor);
        let low_rank = |rank: usize| {
            let relative_l2 = moments.relative_l2(first);
            Finding::LowRank { ancestor: self.name(others[first].ancestor), rank, residual, relative_l2 }
        };
        Ok(match &origin.predictor {
            Predictor::Blend(blend) => match &blend.weights()[..] {
                [factor] => Some(Finding::Rescaled { ancestor, factor: *factor, residual }),
                weights => {
                    let mut parts: Vec<(usize, f64)> =
                        places.into_iter().zip(weights.iter().copied()).collect();
                    parts.sort_by_key(|(place, _)| *place);
                    let part = |(place, weight): (usize, f64)| BlendPart {
                        ancestor: self.name(others[place].ancestor),
                        weight,
                    };
                    Some(Finding::Blend { parts: parts.into_iter().map(part).collect(), residual })
                }
            },
            Predictor::LowRank { rank, .. } => Some(low_rank(*rank)),
            Predictor::LowRanks(products) => products.ranks.iter().max().map(|rank| low_rank(*rank)),
            _ => None,
        })
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
