//! Chooses the predictor of every tensor: equal to a known tensor, similar to a reference, or on
//! its own.
//! Samples rule candidates out. Equality is always proven on all bytes.

use std::collections::HashMap;

use rayon::prelude::*;

use super::adam;
use super::adapter;
use super::blend::{self, Recipe};
use super::companion;
use super::history;
use super::low_rank::{self, ChosenFactors};
use crate::bases::{Base, Bases, TensorSource};
use crate::checkpoint::Checkpoint;
use crate::container::Digest;
use crate::error::Result;
use crate::limits::to_usize;
use crate::plan;
use crate::predict::{Element, MAX_REFERENCES, Predictor, cast};
use crate::progress::{Progress, check_cancelled};
use crate::sample::{self, fingerprint};
use crate::tensor::{ChunkGrid, DType, TensorInfo};

/// Elements for fitting the weights of blends.
const BLEND_SAMPLE_ELEMS: u64 = 16_384;
/// Number of tensors whose blends are tried for all others.
const BLEND_HINTS: usize = 3;
/// Bytes compared at a time when equality is proven.
const COMPARE_BYTES: u64 = 1 << 20;

/// How a tensor will be predicted.
pub(super) struct Choice {
    pub(super) predictor: Predictor,
    /// The tensors that it is predicted from.
    pub(super) references: Vec<TensorSource>,
    /// The tensor's digest, if the whole tensor was compared.
    pub(super) digest: Option<Digest>,
    /// The digests of the references, unless they are hashed while the tensor is packed.
    pub(super) reference_digests: Option<Vec<Digest>>,
    /// The factors of a low-rank prediction.
    pub(super) factors: Option<ChosenFactors>,
}

impl Choice {
    fn zero() -> Self {
        Self::coded(Predictor::Zero, Vec::new())
    }

    /// A choice whose chunks will be coded.
    pub(super) fn coded(predictor: Predictor, references: Vec<TensorSource>) -> Self {
        Self { predictor, references, digest: None, reference_digests: None, factors: None }
    }

    /// Hashes the references now, since they are not read as predictions later.
    pub(super) fn with_reference_digests(mut self) -> Result<Self> {
        let digests = self.references.iter().map(TensorSource::digest).collect::<Result<_>>()?;
        self.reference_digests = Some(digests);
        Ok(self)
    }

    /// A choice without a residual. `reference_digests` are those of the references.
    fn proven(
        predictor: Predictor,
        digest: Digest,
        references: Vec<TensorSource>,
        reference_digests: Vec<Digest>,
    ) -> Self {
        Self {
            predictor,
            references,
            digest: Some(digest),
            reference_digests: Some(reference_digests),
            factors: None,
        }
    }
}

/// A tensor to be packed.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    checkpoint: &'a Checkpoint,
    member: usize,
    pub(super) info: &'a TensorInfo,
}

impl Target<'_> {
    pub(super) fn read(&self, offset: u64, len_bytes: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0; len_bytes];
        self.checkpoint.read(self.member, self.info, offset, &mut buffer)?;
        Ok(buffer)
    }

    fn sample(&self) -> Result<Vec<u8>> {
        sample::read(self.info, sample::ELEMS, |offset, len| self.read(offset, len))
    }
}

/// Tensors by the fingerprint of their sample, as it is or rounded to a narrower dtype.
type Lookalikes<T> = HashMap<u64, Vec<T>>;

/// Chooses for all tensors, in order.
pub(super) fn choose(
    checkpoint: &Checkpoint,
    bases: &Bases,
    tensors: &[(usize, &TensorInfo)],
    grids: &[ChunkGrid],
    progress: &dyn Progress,
) -> Result<Vec<Choice>> {
    let targets: Vec<Target<'_>> =
        tensors.iter().map(|&(member, info)| Target { checkpoint, member, info }).collect();
    let samples: Vec<Vec<u8>> = targets.par_iter().map(Target::sample).collect::<Result<_>>()?;
    let needs_casts = targets.iter().any(|target| cast::is_target(&target.info.dtype));
    let singles_of_bases: Vec<&TensorSource> = bases
        .direct()
        .flat_map(Base::tensors)
        .filter(|source| needs_casts && source.info().dtype == DType::F32)
        .collect();
    let base_casts = lookalikes_of_casts(&singles_of_bases, |source| {
        Ok((source.info().shape.clone(), sample::of(source)?))
    })?;
    let numbers: Vec<usize> =
        (0..targets.len()).filter(|i| needs_casts && targets[*i].info.dtype == DType::F32).collect();
    let own_casts =
        lookalikes_of_casts(&numbers, |i| Ok((targets[*i].info.shape.clone(), samples[*i].clone())))?;
    let mut ties: Lookalikes<usize> = HashMap::new();
    for (i, target) in targets.iter().enumerate().filter(|(_, target)| target.info.len_bytes() > 0) {
        ties.entry(fingerprint(&target.info.shape, &target.info.dtype, &samples[i])).or_default().push(i);
    }
    let candidates: Vec<Vec<&TensorSource>> =
        targets.par_iter().map(|target| candidates(target.info, bases)).collect();
    // Of equal tensors, one is packed and the others are tied to it: the first one that a base
    // knows, or else the first.
    for alike in ties.values_mut() {
        alike.sort_by_key(|i| (candidates[*i].is_empty(), *i));
    }
    let mut context = Context {
        targets: &targets,
        candidates,
        grids,
        samples: &samples,
        bases,
        base_casts,
        own_casts,
        ties,
        blends: Vec::new(),
        progress,
    };
    context.blends = context.blends_of_largest()?;
    let mut choices: Vec<Choice> =
        (0..targets.len()).into_par_iter().map(|i| context.choose_one(i)).collect::<Result<_>>()?;
    // A tensor may only depend on tensors of level 0. A tie to a rounded tensor becomes a rounding,
    // and all others are packed on their own after all.
    for i in 0..choices.len() {
        let is_allowed = |choice: &Choice| {
            choice.predictor.internals().iter().all(|target| choices[*target].predictor.is_root())
        };
        if !is_allowed(&choices[i]) {
            let untied = context.choose_untied(i)?;
            choices[i] = if is_allowed(&untied) { untied } else { context.choose_coded(i)? };
        }
    }
    let predictors: Vec<&Predictor> = choices.iter().map(|choice| &choice.predictor).collect();
    for (i, choice) in adam::find(&targets, &samples, &predictors, bases)? {
        choices[i] = choice;
    }
    let predictors: Vec<&Predictor> = choices.iter().map(|choice| &choice.predictor).collect();
    let infos: Vec<&TensorInfo> = tensors.iter().map(|(_, info)| *info).collect();
    let reference_sample = |i: usize| choices[i].references.first().map(sample::of).transpose();
    for (i, other) in companion::find(&infos, &samples, &predictors, reference_sample)? {
        choices[i] = Choice::coded(Predictor::Companion(other), Vec::new());
    }
    let with_ancestors =
        |(choice, target): (Choice, &Target<'_>)| history::with_ancestors(choice, target.info, bases);
    let choices: Vec<Choice> =
        choices.into_par_iter().zip(&targets).map(with_ancestors).collect::<Result<_>>()?;
    let done = choices.iter().zip(&targets).filter(|(choice, _)| !choice.predictor.has_chunks());
    progress.advance(done.map(|(_, target)| target.info.len_bytes()).sum());
    Ok(choices)
}

/// From each base, the tensor with this one's place, dtype and shape.
fn candidates<'a>(info: &TensorInfo, bases: &'a Bases) -> Vec<&'a TensorSource> {
    let of_base = |base: &'a Base| base.counterpart(&info.name, |source| source.is_like(info));
    bases.direct().filter_map(of_base).collect()
}

fn lookalikes_of_casts<T: Copy + Sync + Send>(
    singles: &[T],
    shape_and_sample: impl Fn(&T) -> Result<(Vec<u64>, Vec<u8>)> + Sync,
) -> Result<Lookalikes<T>> {
    let prints = |single: &T| {
        let (shape, bytes) = shape_and_sample(single)?;
        let print = |dtype: DType| fingerprint(&shape, &dtype, &cast::round(&dtype, &bytes));
        Ok([(print(DType::BF16), *single), (print(DType::F16), *single)])
    };
    let prints: Vec<_> = singles.par_iter().map(prints).collect::<Result<_>>()?;
    let mut lookalikes: Lookalikes<T> = HashMap::new();
    for (print, single) in prints.into_iter().flatten() {
        lookalikes.entry(print).or_default().push(single);
    }
    Ok(lookalikes)
}

struct Context<'a> {
    targets: &'a [Target<'a>],
    candidates: Vec<Vec<&'a TensorSource>>,
    grids: &'a [ChunkGrid],
    samples: &'a [Vec<u8>],
    bases: &'a Bases,
    base_casts: Lookalikes<&'a TensorSource>,
    own_casts: Lookalikes<usize>,
    /// In order of preference for being packed, not tied.
    ties: Lookalikes<usize>,
    blends: Vec<Recipe>,
    progress: &'a dyn Progress,
}

impl Context<'_> {
    fn choose_one(&self, i: usize) -> Result<Choice> {
        check_cancelled(self.progress)?;
        let (target, sample) = (&self.targets[i], &self.samples[i]);
        if target.info.len_bytes() == 0 {
            return Ok(Choice::zero());
        }
        for reference in &self.candidates[i] {
            let same_sample = sample::of(reference)? == *sample;
            if same_sample
                && let Some(digest) = self.equal(target, |offset, len| reference.read(offset, len))?
            {
                let predictor = Predictor::Identical(reference_name(target, reference));
                return Ok(Choice::proven(predictor, digest, vec![(*reference).clone()], vec![digest]));
            }
        }
        let print = fingerprint(&target.info.shape, &target.info.dtype, sample);
        for other in self.ties.get(&print).into_iter().flatten().take_while(|other| **other != i) {
            if let Some(digest) = self.equal(target, |offset, len| self.targets[*other].read(offset, len))? {
                return Ok(Choice::proven(Predictor::Tied(*other), digest, Vec::new(), Vec::new()));
            }
        }
        self.choose_untied(i)
    }

    /// A rounding if it is one, else coded.
    fn choose_untied(&self, i: usize) -> Result<Choice> {
        match self.choose_cast(i)? {
            Some(choice) => Ok(choice),
            None => self.choose_coded(i),
        }
    }

    fn choose_cast(&self, i: usize) -> Result<Option<Choice>> {
        let target = &self.targets[i];
        let dtype = &target.info.dtype;
        if !cast::is_target(dtype) {
            return Ok(None);
        }
        let print = fingerprint(&target.info.shape, dtype, &self.samples[i]);
        for other in self.own_casts.get(&print).into_iter().flatten() {
            let master = &self.targets[*other];
            let rounded =
                |offset: u64, len: usize| Ok(cast::round(dtype, &master.read(2 * offset, 2 * len)?));
            if let Some(digest) = self.equal(target, rounded)? {
                let predictor = Predictor::CastInternal(*other);
                return Ok(Some(Choice::proven(predictor, digest, Vec::new(), Vec::new())));
            }
        }
        for source in self.base_casts.get(&print).into_iter().flatten() {
            let rounded =
                |offset: u64, len: usize| Ok(cast::round(dtype, &source.read(2 * offset, 2 * len)?));
            if let Some(digest) = self.equal(target, rounded)? {
                let predictor = Predictor::Cast(reference_name(target, source));
                return Ok(Some(Choice::proven(
                    predictor,
                    digest,
                    vec![(*source).clone()],
                    vec![source.digest()?],
                )));
            }
        }
        Ok(None)
    }

    /// The reference whose residual costs least on a sample. None if the tensor on its own costs no
    /// more.
    fn choose_coded(&self, i: usize) -> Result<Choice> {
        let (target, sample) = (&self.targets[i], &self.samples[i]);
        if target.info.len_bytes() == 0 {
            return Ok(Choice::zero());
        }
        let number = target.info.number();
        let reference_choice = |reference: &TensorSource| {
            let predictor = Predictor::Reference(reference_name(target, reference));
            Choice::coded(predictor, vec![reference.clone()])
        };
        let mut candidates = self.candidates[i].clone();
        for reference in &candidates {
            if let Some(choice) = adapter::choose(target, reference, self.bases)? {
                return Ok(choice);
            }
        }
        if let Some(choice) = self.choose_blend(target, &candidates)? {
            return Ok(choice);
        }
        let cost = |reference: &TensorSource| -> Result<u64> {
            Ok(plan::residual_cost(number, sample, &sample::of(reference)?))
        };
        if candidates.len() > 1 {
            let costs = candidates.iter().map(|reference| cost(reference)).collect::<Result<Vec<u64>>>()?;
            let mut costed: Vec<(u64, &TensorSource)> = costs.into_iter().zip(candidates).collect();
            costed.sort_by_key(|(cost, _)| *cost);
            candidates = costed.into_iter().map(|(_, reference)| reference).collect();
        }
        // The product need not have been added to the most similar reference.
        for reference in &candidates {
            if !low_rank::changes_enough(number, sample, &sample::of(reference)?) {
                continue;
            }
            if let Some(choice) = low_rank::choose(target, reference, &self.grids[i], self.progress)? {
                return Ok(choice);
            }
        }
        let Some(best) = candidates.first().copied() else { return Ok(Choice::zero()) };
        let is_better_alone = !plan::is_clearly_near(number, sample, &sample::of(best)?)
            && plan::stand_alone_cost(number, sample) <= cost(best)?;
        Ok(if is_better_alone { Choice::zero() } else { reference_choice(best) })
    }

    /// A combination of several candidates, if it costs clearly less than the best of them.
    fn choose_blend(&self, target: &Target<'_>, candidates: &[&TensorSource]) -> Result<Option<Choice>> {
        let Some(found) = fit_blend(target, candidates, &self.blends)? else { return Ok(None) };
        if found.cost * 20 > found.least_of_one * 19 {
            return Ok(None);
        }
        let names: Vec<_> = candidates.iter().map(|candidate| reference_name(target, candidate)).collect();
        let references = found.recipe.order.iter().map(|i| candidates[*i].clone()).collect();
        let predictor = Predictor::Blend(Box::new(found.recipe.blend(&names)));
        Choice::coded(predictor, references).with_reference_digests().map(Some)
    }

    /// The recipes of the largest tensors. Small ones cannot tell weights from noise.
    fn blends_of_largest(&self) -> Result<Vec<Recipe>> {
        let mut largest: Vec<usize> =
            (0..self.targets.len()).filter(|i| self.candidates[*i].len() > 1).collect();
        largest.sort_by_key(|i| std::cmp::Reverse(self.targets[*i].info.len_bytes()));
        let mut recipes: Vec<Recipe> = Vec::new();
        for i in largest.into_iter().take(BLEND_HINTS) {
            let found = fit_blend(&self.targets[i], &self.candidates[i], &[])?.map(|found| found.recipe);
            recipes.extend(found.filter(|recipe| !recipes.contains(recipe)));
        }
        Ok(recipes)
    }

    /// The digest of a tensor if all its bytes equal those of `read`.
    fn equal(
        &self,
        target: &Target<'_>,
        read: impl Fn(u64, usize) -> Result<Vec<u8>>,
    ) -> Result<Option<Digest>> {
        let mut hasher = blake3::Hasher::new();
        let total = target.info.len_bytes();
        for offset in (0..total).step_by(to_usize(COMPARE_BYTES)) {
            check_cancelled(self.progress)?;
            let len_bytes = to_usize(COMPARE_BYTES.min(total - offset));
            let block = target.read(offset, len_bytes)?;
            if block != read(offset, len_bytes)? {
                return Ok(None);
            }
            hasher.update(&block);
        }
        Ok(Some(hasher.finalize()))
    }
}

/// A combination of candidates.
struct FoundBlend {
    recipe: Recipe,
    cost: u64,
    /// Cost of the best candidate on its own.
    least_of_one: u64,
}

/// The best combination of several candidates on a sample, if its dtype has arithmetic here.
fn fit_blend(
    target: &Target<'_>,
    candidates: &[&TensorSource],
    hints: &[Recipe],
) -> Result<Option<FoundBlend>> {
    let Some(element) = Element::of(&target.info.dtype).filter(|_| candidates.len() > 1) else {
        return Ok(None);
    };
    let candidates = &candidates[..candidates.len().min(MAX_REFERENCES)];
    let read = |elems: u64| -> Result<(Vec<u8>, Vec<Vec<u8>>)> {
        let of_target = sample::read(target.info, elems, |offset, len| target.read(offset, len))?;
        let of_one = |source: &&TensorSource| {
            sample::read(source.info(), elems, |offset, len| source.read(offset, len))
        };
        Ok((of_target, candidates.iter().map(of_one).collect::<Result<_>>()?))
    };
    let (of_target, of_candidates) = read(sample::ELEMS)?;
    let references = of_candidates.iter().map(Vec::as_slice).collect();
    if !blend::Sample::new(element, &of_target, references).looks_blended() {
        return Ok(None);
    }
    let (of_target, of_candidates) = read(BLEND_SAMPLE_ELEMS)?;
    let references = of_candidates.iter().map(Vec::as_slice).collect();
    let fitting = hints.iter().filter(|hint| hint.order.iter().all(|i| *i < candidates.len()));
    let hints: Vec<Recipe> = fitting.cloned().collect();
    let sample = blend::Sample::new(element, &of_target, references);
    let best = sample.best_recipe(&hints);
    Ok(best.map(|(recipe, cost)| FoundBlend { recipe, cost, least_of_one: sample.least_of_one() }))
}

/// Name of the reference, unless it is the tensor's own.
pub(super) fn reference_name(target: &Target<'_>, reference: &TensorSource) -> Option<String> {
    let name = &reference.info().name;
    (*name != target.info.name).then(|| name.clone())
}
