//! Chooses the predictor of every tensor: equal to something known, near a reference, or on its own.
//! Samples rule candidates out; equality is always proven on all bytes.

use std::collections::HashMap;

use rayon::prelude::*;

use super::{Digests, Reference};
use crate::bases::{Bases, TensorSource};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::limits::to_usize;
use crate::plan;
use crate::predict::{Predictor, cast};
use crate::progress::{Progress, check_cancelled};
use crate::sample::{self, fingerprint};
use crate::tensor::{DType, TensorInfo};

/// Bytes compared at a time when equality is proven.
const COMPARE_BYTES: u64 = 1 << 20;

/// How a tensor will be predicted.
pub(super) struct Choice {
    pub(super) predictor: Predictor,
    /// Where the prediction of a `Reference` is read.
    pub(super) reference: Option<Reference>,
    /// Known already when the tensor was compared as a whole.
    pub(super) digests: Option<Digests>,
}

impl Choice {
    fn zero() -> Self {
        Self { predictor: Predictor::Zero, reference: None, digests: None }
    }
}

/// A tensor to be packed.
#[derive(Clone, Copy)]
struct Target<'a> {
    checkpoint: &'a Checkpoint,
    member: usize,
    info: &'a TensorInfo,
}

impl Target<'_> {
    fn read(&self, offset: u64, len_bytes: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0; len_bytes];
        self.checkpoint.read(self.member, self.info, offset, &mut buffer)?;
        Ok(buffer)
    }

    fn sample(&self) -> Result<Vec<u8>> {
        sample::read(self.info, |offset, len| self.read(offset, len))
    }
}

/// Tensors by what their sample looks like, as they are or rounded to a narrower dtype.
type Lookalikes<T> = HashMap<u64, Vec<T>>;

/// Chooses for all tensors, in their order.
pub(super) fn choose(
    checkpoint: &Checkpoint,
    bases: &Bases,
    tensors: &[(usize, &TensorInfo)],
    progress: &dyn Progress,
) -> Result<Vec<Choice>> {
    let targets: Vec<Target<'_>> =
        tensors.iter().map(|&(member, info)| Target { checkpoint, member, info }).collect();
    let samples: Vec<Vec<u8>> = targets.par_iter().map(Target::sample).collect::<Result<_>>()?;
    let needs_casts = targets.iter().any(|target| cast::is_target(&target.info.dtype));
    let singles_of_bases: Vec<&TensorSource> = bases
        .iter()
        .flat_map(crate::bases::Base::tensors)
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
    let context =
        Context { targets: &targets, samples: &samples, bases, base_casts, own_casts, ties, progress };
    let mut choices: Vec<Choice> =
        (0..targets.len()).into_par_iter().map(|i| context.choose_one(i)).collect::<Result<_>>()?;
    // A tensor may only come from one that stands by itself: a tie to a rounding becomes a rounding, all others are packed on their own after all.
    for i in 0..choices.len() {
        let is_root = |choice: &Choice| {
            choice.predictor.internal().is_none() && !matches!(choice.predictor, Predictor::Cast(_))
        };
        let is_allowed =
            |choice: &Choice| choice.predictor.internal().is_none_or(|target| is_root(&choices[target]));
        if !is_allowed(&choices[i]) {
            let untied = context.choose_untied(i)?;
            choices[i] = if is_allowed(&untied) { untied } else { context.choose_coded(i)? };
        }
    }
    let done = choices.iter().zip(&targets).filter(|(choice, _)| !choice.predictor.has_chunks());
    progress.advance(done.map(|(_, target)| target.info.len_bytes()).sum());
    Ok(choices)
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
    samples: &'a [Vec<u8>],
    bases: &'a Bases,
    base_casts: Lookalikes<&'a TensorSource>,
    own_casts: Lookalikes<usize>,
    ties: Lookalikes<usize>,
    progress: &'a dyn Progress,
}

impl Context<'_> {
    fn choose_one(&self, i: usize) -> Result<Choice> {
        check_cancelled(self.progress)?;
        let (target, sample) = (&self.targets[i], &self.samples[i]);
        if target.info.len_bytes() == 0 {
            return Ok(Choice::zero());
        }
        for reference in self.candidates(target) {
            let same_sample = sample::of(reference)? == *sample;
            if same_sample
                && let Some(digest) = self.equal(target, |offset, len| reference.read(offset, len))?
            {
                let predictor = Predictor::Identical(reference_name(target, reference));
                return Ok(Choice { predictor, reference: None, digests: Some((digest, Some(digest))) });
            }
        }
        let print = fingerprint(&target.info.shape, &target.info.dtype, sample);
        // Of equal tensors one is packed, if possible one that a base knows, and the others are tied to it.
        let rank = |i: usize| (self.candidates(&self.targets[i]).next().is_none(), i);
        let mut others = self.ties.get(&print).cloned().unwrap_or_default();
        if others.len() > 1 {
            others.retain(|other| rank(*other) < rank(i));
            others.sort_by_key(|other| rank(*other));
        }
        for other in others.into_iter().filter(|other| *other != i) {
            if let Some(digest) = self.equal(target, |offset, len| self.targets[other].read(offset, len))? {
                return Ok(Choice {
                    predictor: Predictor::Tied(other),
                    reference: None,
                    digests: Some((digest, None)),
                });
            }
        }
        self.choose_untied(i)
    }

    /// A rounding where it is one, else coded.
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
                return Ok(Some(Choice { predictor, reference: None, digests: Some((digest, None)) }));
            }
        }
        for source in self.base_casts.get(&print).into_iter().flatten() {
            let rounded =
                |offset: u64, len: usize| Ok(cast::round(dtype, &source.read(2 * offset, 2 * len)?));
            if let Some(digest) = self.equal(target, rounded)? {
                let predictor = Predictor::Cast(reference_name(target, source));
                let digests = Some((digest, Some(source.digest()?)));
                return Ok(Some(Choice { predictor, reference: None, digests }));
            }
        }
        Ok(None)
    }

    /// The reference whose residual costs least on a sample, or none when the tensor alone costs no more.
    fn choose_coded(&self, i: usize) -> Result<Choice> {
        let (target, sample) = (&self.targets[i], &self.samples[i]);
        if target.info.len_bytes() == 0 {
            return Ok(Choice::zero());
        }
        let number = target.info.number();
        let reference_choice = |reference: &TensorSource| {
            let predictor = Predictor::Reference(reference_name(target, reference));
            Choice { predictor, reference: Some(reference.clone()), digests: None }
        };
        let candidates: Vec<&TensorSource> = self.candidates(target).collect();
        if let [only] = candidates[..]
            && plan::is_clearly_near(number, sample, &sample::of(only)?)
        {
            return Ok(reference_choice(only));
        }
        let mut best: Option<(u64, &TensorSource)> = None;
        for reference in candidates {
            let cost = sample::cost(number, sample, Some(&sample::of(reference)?));
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                best = Some((cost, reference));
            }
        }
        let Some((least, reference)) = best else { return Ok(Choice::zero()) };
        let is_better_alone = sample::cost(number, sample, None) <= least;
        Ok(if is_better_alone { Choice::zero() } else { reference_choice(reference) })
    }

    /// From each base the tensor that has this one's place by name, dtype and shape.
    fn candidates<'a>(&'a self, target: &'a Target<'_>) -> impl Iterator<Item = &'a TensorSource> {
        let info = target.info;
        self.bases.iter().filter_map(move |base| base.counterpart(&info.name, |source| source.is_like(info)))
    }

    /// Whether all bytes of a tensor equal those that `read` gives; its digest when they do.
    fn equal(
        &self,
        target: &Target<'_>,
        read: impl Fn(u64, usize) -> Result<Vec<u8>>,
    ) -> Result<Option<crate::container::Digest>> {
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

/// Name of the reference where it is not the tensor's own.
fn reference_name(target: &Target<'_>, reference: &TensorSource) -> Option<String> {
    let name = &reference.info().name;
    (*name != target.info.name).then(|| name.clone())
}
