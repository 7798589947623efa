//! The order in which the detectors are asked for the tensors of a checkpoint.

use rayon::prelude::*;

use super::blend::{self, Recipe};
use super::cast::{Master, Masters};
use super::subject::Subject;
use super::tied::Ties;
use super::{Origin, adam, adapter, companion, content, identical, low_rank, nearest, reference_name};
use crate::bases::{Bases, TensorSource};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::predict::Predictor;
use crate::progress::{Progress, check_cancelled};
use crate::sample;
use crate::tensor::{ChunkGrid, TensorInfo};

/// Up to this size, a tie is better than an equal tensor of a base, which has a digest.
const TINY_BYTES: u64 = 64;

/// The origins of all tensors, in order.
pub(crate) fn find(
    checkpoint: &Checkpoint,
    bases: &Bases,
    tensors: &[(usize, &TensorInfo)],
    grids: &[ChunkGrid],
    progress: &dyn Progress,
) -> Result<Vec<Origin>> {
    let subjects: Vec<Subject<'_>> =
        tensors.iter().map(|&(member, info)| Subject::Member { checkpoint, member, info }).collect();
    let samples: Vec<Vec<u8>> = subjects.par_iter().map(Subject::sample).collect::<Result<_>>()?;
    let masters = Masters::new(&subjects, &samples, bases.direct())?;
    let of_bases = |subject: &Subject<'_>| {
        let info = subject.info();
        bases.direct().filter_map(|base| identical::counterpart(info, base)).collect()
    };
    let candidates: Vec<Vec<&TensorSource>> = subjects.par_iter().map(of_bases).collect();
    let found = content::find(&candidates, &subjects, &samples, bases)?;
    let ties = Ties::new(&subjects, &samples, |i| !candidates[i].is_empty());
    let blends = blend::hints(&subjects, &candidates)?;
    let context = Context {
        subjects: &subjects,
        candidates,
        found,
        grids,
        samples: &samples,
        bases,
        masters,
        ties,
        blends,
        progress,
    };
    let mut origins: Vec<Origin> =
        (0..subjects.len()).into_par_iter().map(|i| context.of_one(i)).collect::<Result<_>>()?;
    // A tensor may only depend on tensors of level 0. A tie to a rounded tensor becomes a rounding,
    // and all others are packed on their own after all.
    for i in 0..origins.len() {
        let is_allowed = |origin: &Origin| {
            origin.predictor.internals().iter().all(|other| origins[*other].predictor.is_root())
        };
        if !is_allowed(&origins[i]) {
            let untied = context.untied(i)?;
            origins[i] = if is_allowed(&untied) { untied } else { context.coded(i)? };
        }
    }
    let predictors: Vec<&Predictor> = origins.iter().map(|origin| &origin.predictor).collect();
    for (i, origin) in adam::find(&subjects, &samples, &predictors, bases)? {
        origins[i] = origin;
    }
    let predictors: Vec<&Predictor> = origins.iter().map(|origin| &origin.predictor).collect();
    let infos: Vec<&TensorInfo> = tensors.iter().map(|(_, info)| *info).collect();
    let reference_sample = |i: usize| origins[i].references.first().map(sample::of).transpose();
    for (i, other) in companion::find(&infos, &samples, &predictors, reference_sample)? {
        origins[i] = Origin::coded(Predictor::Companion(other), Vec::new());
    }
    Ok(origins)
}

struct Context<'a> {
    subjects: &'a [Subject<'a>],
    /// Of each tensor, the counterparts in the bases.
    candidates: Vec<Vec<&'a TensorSource>>,
    /// Further tensors of bases, found by content.
    found: Vec<Vec<&'a TensorSource>>,
    grids: &'a [ChunkGrid],
    samples: &'a [Vec<u8>],
    bases: &'a Bases,
    masters: Masters<'a>,
    ties: Ties,
    blends: Vec<Recipe>,
    progress: &'a dyn Progress,
}

impl Context<'_> {
    fn of_one(&self, i: usize) -> Result<Origin> {
        check_cancelled(self.progress)?;
        let len_bytes = self.subjects[i].info().len_bytes();
        if len_bytes == 0 {
            return Ok(Origin::unknown());
        }
        let named = || self.identical(i, &self.candidates[i]);
        let tied = || self.tied(i);
        let detectors: [&dyn Fn() -> Result<Option<Origin>>; 2] =
            if len_bytes <= TINY_BYTES { [&tied, &named] } else { [&named, &tied] };
        for detect in detectors {
            if let Some(origin) = detect()? {
                return Ok(origin);
            }
        }
        self.untied(i)
    }

    fn identical(&self, i: usize, references: &[&TensorSource]) -> Result<Option<Origin>> {
        let (subject, sample) = (self.subjects[i], &self.samples[i]);
        for reference in references {
            if let Some(digest) = identical::prove(subject, sample, reference, self.progress)? {
                let predictor = Predictor::Identical(reference_name(subject.info(), reference));
                let references = vec![(*reference).clone()];
                return Ok(Some(Origin::proven(predictor, digest, references, vec![digest])));
            }
        }
        Ok(None)
    }

    fn tied(&self, i: usize) -> Result<Option<Origin>> {
        let found = self.ties.prove(i, self.subjects, self.samples, self.progress)?;
        Ok(found
            .map(|(other, digest)| Origin::proven(Predictor::Tied(other), digest, Vec::new(), Vec::new())))
    }

    /// Equal to a tensor of a base that was found by content, a rounding, or else coded.
    fn untied(&self, i: usize) -> Result<Origin> {
        if let Some(origin) = self.identical(i, &self.found[i])? {
            return Ok(origin);
        }
        let found = self.masters.prove(i, self.subjects, self.samples, self.progress)?;
        let Some((master, digest)) = found else { return self.coded(i) };
        Ok(match master {
            Master::Own(other) => {
                Origin::proven(Predictor::CastInternal(other), digest, Vec::new(), Vec::new())
            }
            Master::OfBase(_, source) => {
                let predictor = Predictor::Cast(reference_name(self.subjects[i].info(), source));
                Origin::proven(predictor, digest, vec![source.clone()], vec![source.digest()?])
            }
        })
    }

    /// The prediction that leaves the least residual, as far as a sample tells.
    fn coded(&self, i: usize) -> Result<Origin> {
        let (subject, sample) = (self.subjects[i], &self.samples[i]);
        let info = subject.info();
        if info.len_bytes() == 0 {
            return Ok(Origin::unknown());
        }
        let candidates = [&self.candidates[i][..], &self.found[i]].concat();
        for reference in &candidates {
            if let Some(origin) = adapter::fit(subject, reference, self.bases)? {
                return Ok(origin);
            }
        }
        if let Some(origin) = blend::fit(subject, &candidates, &self.blends)? {
            return Ok(origin);
        }
        let candidates = nearest::sorted(info, sample, &candidates)?;
        // The product need not have been added to the most similar reference.
        for reference in &candidates {
            if !low_rank::score(info.number(), sample, &sample::of(reference)?) {
                continue;
            }
            if let Some(origin) = low_rank::fit(subject, reference, &self.grids[i], self.progress)? {
                return Ok(origin);
            }
        }
        candidates.first().map_or_else(|| Ok(Origin::unknown()), |best| nearest::fit(info, sample, best))
    }
}
