//! The order in which the detectors are asked for the tensors of a checkpoint.

use std::borrow::Cow;
use std::collections::HashSet;

use rayon::prelude::*;

use super::blend::{self, Recipe};
use super::cast::{Master, Masters};
use super::content::Found;
use super::subject::Subject;
use super::tied::Ties;
use super::view::Viewing;
use super::{
    Origin, adam, adapter, blocks, companion, content, converted, heads, identical, lines, low_rank, nearest,
    quantised, reference_name, scaled, scales, text, view,
};
use crate::bases::{Bases, TensorId, TensorSource};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::predict::Predictor;
use crate::progress::{Progress, check_cancelled};
use crate::sample;
use crate::tensor::{ChunkGrid, TensorInfo};

/// Up to this size, a tie is better than an equal tensor of a base, which has a digest.
const TINY_BYTES: u64 = 64;

/// Layers that an adapted tensor may be copied from, and how many of the nearest are tried.
const MOST_LAYERS: usize = 512;
const COPIES_TO_TRY: usize = 2;

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
    progress.search(subjects.iter().map(|subject| subject.info().len_bytes()).sum());
    let samples: Vec<Vec<u8>> = subjects.par_iter().map(Subject::sample).collect::<Result<_>>()?;
    let masters = Masters::new(&subjects, &samples, bases.direct())?;
    let stored = stored_from(&subjects, &samples, bases, progress)?;
    let coded: Vec<Subject<'_>> = subjects.iter().zip(&stored).map(coded_subject).collect();
    let coded_samples: Vec<Cow<'_, [u8]>> = (0..coded.len())
        .map(|i| match &stored[i] {
            None => Cow::Borrowed(&samples[i][..]),
            Some(info) => Cow::Owned(converted::converted(&samples[i], &tensors[i].1.dtype, &info.dtype)),
        })
        .collect();
    let of_bases = |subject: &Subject<'_>| {
        let info = subject.info();
        bases.direct().filter_map(|base| identical::counterpart(info, base)).collect()
    };
    let candidates: Vec<Vec<&TensorSource>> = coded.par_iter().map(of_bases).collect();
    let mut found = content::find(&candidates, &coded, &coded_samples, bases)?;
    for (i, others) in found.others.iter_mut().enumerate() {
        let info = coded[i].info();
        if candidates[i].is_empty() && found.alike[i].is_empty() {
            others.extend(bases.direct().filter_map(|base| view::counterpart(info, base)));
        }
    }
    let is_open = |i: usize| {
        let (info, sample) = (subjects[i].info(), &samples[i]);
        let near = candidates[i].iter().chain(&found.alike[i]);
        let near = near.filter(|reference| reference.is_like(info));
        let mut costs = near.map(|reference| nearest::cost(info, sample, reference));
        Ok(!costs.try_fold(false, |is_near, cost| Ok::<_, Error>(is_near || cost? < enough(info, sample)))?)
    };
    let quantised = coded_numbers(&subjects, is_open, bases, progress)?;
    for (is_open, found) in found.is_open.iter_mut().zip(&quantised) {
        *is_open &= found.is_none();
    }
    let views = views_of(&coded, &coded_samples, &candidates, &found, grids, bases, progress)?;
    let ties = Ties::prove(&subjects, &samples, |i| !candidates[i].is_empty(), progress)?;
    let blends = blend::hints(&coded, &candidates)?;
    let context = Context {
        subjects: &subjects,
        samples: &samples,
        coded: &coded,
        coded_samples: &coded_samples,
        candidates,
        found: found.alike,
        views,
        quantised,
        files: text::files(bases),
        grids,
        bases,
        masters,
        ties,
        blends,
        progress,
    };
    let mut origins: Vec<Origin> =
        (0..subjects.len()).into_par_iter().map(|i| context.found(i)).collect::<Result<_>>()?;
    // A tensor may only depend on tensors of level 0. A tie to a rounded tensor becomes a rounding,
    // and all others are packed on their own after all.
    for i in 0..origins.len() {
        if depends_on_roots(&origins[i].predictor, &origins) {
            continue;
        }
        let of_tied = |number: usize| match origins[number].predictor {
            Predictor::Tied(target) => target,
            _ => number,
        };
        let other = match &origins[i].predictor {
            Predictor::Quantised(quantised) => {
                let predictor = Predictor::Quantised(Box::new(quantised.as_ref().clone().with_own(of_tied)));
                Origin::coded(predictor, origins[i].references.clone()).with_reference_digests()?
            }
            _ => context.untied(i)?,
        };
        let is_allowed = depends_on_roots(&other.predictor, &origins);
        origins[i] = if is_allowed { other } else { context.otherwise(i)? };
    }
    let predictors: Vec<&Predictor> = origins.iter().map(|origin| &origin.predictor).collect();
    for (i, origin) in adam::find(&subjects, &samples, &predictors, bases)? {
        origins[i] = origin;
    }
    let infos: Vec<&TensorInfo> = tensors.iter().map(|(_, info)| *info).collect();
    let predictors: Vec<&Predictor> = origins.iter().map(|origin| &origin.predictor).collect();
    for (i, other) in companion::near_copies(&infos, &samples, &predictors) {
        origins[i] = Origin::coded(Predictor::Companion(other), Vec::new());
    }
    let predictors: Vec<&Predictor> = origins.iter().map(|origin| &origin.predictor).collect();
    let reference_sample = |i: usize| origins[i].references.first().map(sample::of).transpose();
    for (i, other) in companion::find(&infos, &samples, &predictors, reference_sample)? {
        origins[i] = Origin::coded(Predictor::Companion(other), Vec::new());
    }
    for (i, origin) in own_views(&subjects, &samples, &origins, progress)? {
        origins[i] = origin;
    }
    Ok(origins)
}

/// Whether a tensor with this predictor depends on no tensor that depends on others.
fn depends_on_roots(predictor: &Predictor, origins: &[Origin]) -> bool {
    predictor.internals().iter().all(|other| origins[*other].predictor.is_root())
}

/// Descriptions of the tensors that were stored in a wider dtype, as they were before. Only where
/// that helps: if the bases have a tensor of such a name, but no equal one.
fn stored_from(
    subjects: &[Subject<'_>],
    samples: &[Vec<u8>],
    bases: &Bases,
    progress: &dyn Progress,
) -> Result<Vec<Option<TensorInfo>>> {
    if bases.direct().next().is_none() {
        return Ok(vec![None; subjects.len()]);
    }
    let of_one = |(subject, sample): (&Subject<'_>, &Vec<u8>)| {
        let info = subject.info();
        let Some(dtype) = converted::score(&info.dtype, sample) else { return Ok(None) };
        for same in bases.direct().filter_map(|base| identical::counterpart(info, base)) {
            if sample::of(same)? == *sample {
                return Ok(None);
            }
        }
        let is_stored = info.len_bytes() > 0 && converted::prove(*subject, &dtype, progress)?;
        Ok(is_stored.then(|| info.of_dtype(dtype)))
    };
    subjects.par_iter().zip(samples).map(of_one).collect()
}

fn coded_subject<'a>((subject, stored): (&'a Subject<'a>, &'a Option<TensorInfo>)) -> Subject<'a> {
    stored.as_ref().map_or(*subject, |info| Subject::Converted { of: subject, info })
}

/// The views that each tensor may be: whole tensors, or, if nothing else is near, pieces.
fn views_of(
    subjects: &[Subject<'_>],
    samples: &[Cow<'_, [u8]>],
    candidates: &[Vec<&TensorSource>],
    found: &Found<'_>,
    grids: &[ChunkGrid],
    bases: &Bases,
    progress: &dyn Progress,
) -> Result<Vec<Vec<Viewing>>> {
    let whole = |i: usize| -> Vec<Viewing> {
        found.others[i].iter().map(|source| view::of_whole(subjects[i].info(), source)).collect()
    };
    let mut views: Vec<Vec<Viewing>> = (0..subjects.len()).into_par_iter().map(whole).collect();
    if bases.direct().next().is_none() {
        return Ok(views);
    }
    // Of each subject, whether it is unexplained, and the tensor that explains it.
    let explained = |i: usize| {
        let (info, sample) = (subjects[i].info(), &samples[i]);
        if !found.is_open[i] {
            return Ok((false, candidates[i].first().map(|reference| reference.id())));
        }
        let enough = enough(info, sample);
        let grid = grids[i].of_dtype(&info.dtype);
        for reference in candidates[i].iter().chain(&found.alike[i]) {
            let other = sample::of(reference)?;
            if content::is_near(info, sample, &other)
                || nearest::cost(info, sample, reference)? < enough
                || low_rank::looks(subjects[i], sample, reference, &other, &grid)?
            {
                return Ok((false, Some(reference.id())));
            }
        }
        Ok(match view::score(subjects, info, sample, views[i].clone())? {
            Some((cost, origin)) if cost < enough => (false, origin.references.first().map(TensorSource::id)),
            _ => (true, None),
        })
    };
    let explained: Vec<(bool, Option<TensorId>)> =
        (0..subjects.len()).into_par_iter().map(explained).collect::<Result<_>>()?;
    let (wanted, used): (Vec<bool>, Vec<Option<TensorId>>) = explained.into_iter().unzip();
    let used: HashSet<TensorId> = used.into_iter().flatten().collect();
    let is_used = |source: &TensorSource| used.contains(&source.id());
    for (i, found) in view::find(subjects, &wanted, bases, is_used, progress)?.into_iter().enumerate() {
        views[i].extend(found);
    }
    Ok(views)
}

/// Views of tensors of the same file, for those without any prediction.
fn own_views(
    subjects: &[Subject<'_>],
    samples: &[Vec<u8>],
    origins: &[Origin],
    progress: &dyn Progress,
) -> Result<Vec<(usize, Origin)>> {
    let needed: HashSet<usize> = origins.iter().flat_map(|origin| origin.predictor.internals()).collect();
    let is_open =
        |i: &usize| origins[*i].predictor == Predictor::Zero && view::is_wanted(subjects[*i].info());
    // A tensor that others depend on stays as it is.
    let (open, others): (Vec<usize>, Vec<usize>) = (0..subjects.len())
        .filter(|i| origins[*i].predictor.is_root())
        .partition(|i| is_open(i) && !needed.contains(i));
    let elems = |numbers: &[usize]| numbers.iter().map(|i| subjects[*i].info().elems()).sum::<u64>();
    if open.is_empty() {
        return Ok(Vec::new());
    }
    let others = if view::is_affordable(elems(&others), elems(&open)) { &others[..] } else { &[] };
    let common = heads::find(subjects, &open, others)?;
    let views = view::find_own(subjects, &common.wanted, &common.sources, progress)?;
    let mut found = Vec::new();
    for (i, view) in views.into_iter().enumerate() {
        let (info, sample) = (subjects[i].info(), &samples[i]);
        let best = view::score(subjects, info, sample, view.into_iter().collect())?;
        found.extend(best.filter(|(cost, _)| *cost < enough(info, sample)).map(|(_, origin)| (i, origin)));
    }
    Ok(found)
}

/// What a tensor costs with a reference that saves an eighth. It is related, so that no other one
/// is looked for.
fn enough(info: &TensorInfo, sample: &[u8]) -> u128 {
    nearest::cost_alone(info, sample) / 8 * 7
}

/// The views that explain the subjects which are `wanted`, by their numbers.
///
/// # Errors
/// What reading gives.
pub(crate) fn views(
    subjects: &[Subject<'_>],
    samples: &[Vec<u8>],
    wanted: &[bool],
    bases: &Bases,
    progress: &dyn Progress,
) -> Result<Vec<(usize, Origin)>> {
    let mut found = Vec::new();
    for (i, pieces) in view::find(subjects, wanted, bases, |_| false, progress)?.into_iter().enumerate() {
        let (info, sample) = (subjects[i].info(), &samples[i]);
        if !wanted[i] || info.len_bytes() == 0 {
            continue;
        }
        let named = bases.direct().filter_map(|base| view::counterpart(info, base));
        let whole = named.map(|source| view::of_whole(info, source));
        let best = view::score(subjects, info, sample, whole.chain(pieces).collect())?;
        found.extend(best.filter(|(cost, _)| *cost < enough(info, sample)).map(|(_, origin)| (i, origin)));
    }
    Ok(found)
}

/// The blend of tensors of bases, the multiple of one, or the product added to one that explains a
/// tensor. All have its dtype and shape.
///
/// # Errors
/// What reading gives.
pub(crate) fn computed(
    subject: Subject<'_>,
    sample: &[u8],
    references: &[&TensorSource],
    blends: &[Recipe],
    grid: &ChunkGrid,
    progress: &dyn Progress,
) -> Result<Option<Origin>> {
    if let Some(origin) = blend::fit(subject, references, blends)? {
        return Ok(Some(origin));
    }
    let info = subject.info();
    // The product need not have been added to the most similar reference.
    for reference in nearest::sorted(info, sample, references)? {
        let of_reference = sample::of(reference)?;
        if let Some(origin) = scaled::fit(subject, sample, reference, &of_reference, progress)? {
            return Ok(Some(origin));
        }
        let product = low_rank::fit(subject, sample, reference, &of_reference, grid, progress)?;
        if product.is_some() {
            return Ok(product);
        }
    }
    Ok(None)
}

/// Codes with scales in other tensors, or else in blocks, and the scales.
fn coded_numbers(
    subjects: &[Subject<'_>],
    wanted: impl Fn(usize) -> Result<bool> + Sync,
    bases: &Bases,
    progress: &dyn Progress,
) -> Result<Vec<Option<quantised::Found>>> {
    let mut found = quantised::find(subjects, &wanted, bases, progress)?;
    let is_left = |i: usize| Ok(found[i].is_none() && wanted(i)?);
    let in_blocks = blocks::find(subjects, is_left, bases, progress)?;
    found.iter_mut().zip(in_blocks).for_each(|(found, blocks)| *found = found.take().or(blocks));
    let is_left = |i: usize| Ok(found[i].is_none() && wanted(i)?);
    let of_groups = scales::find(subjects, is_left, bases, progress)?;
    found.iter_mut().zip(of_groups).for_each(|(found, scales)| *found = found.take().or(scales));
    Ok(found)
}

/// The codes, or numbers of codes, that explain the subjects which are `wanted`, by their numbers.
///
/// # Errors
/// What reading gives.
pub(crate) fn by_codes(
    subjects: &[Subject<'_>],
    wanted: &[bool],
    bases: &Bases,
    progress: &dyn Progress,
) -> Result<Vec<(usize, Origin)>> {
    let found = coded_numbers(subjects, |i| Ok(wanted[i]), bases, progress)?;
    Ok(found.into_iter().enumerate().filter_map(|(i, found)| Some((i, found?.origin))).collect())
}

struct Context<'a> {
    subjects: &'a [Subject<'a>],
    samples: &'a [Vec<u8>],
    /// What will be coded: the tensors, or those that they were before they were stored in a wider
    /// dtype.
    coded: &'a [Subject<'a>],
    coded_samples: &'a [Cow<'a, [u8]>],
    /// Of each coded tensor, the counterparts in the bases.
    candidates: Vec<Vec<&'a TensorSource>>,
    /// Further tensors of bases, found by content.
    found: Vec<Vec<&'a TensorSource>>,
    /// Views that each may be.
    views: Vec<Vec<Viewing>>,
    /// Codes, or numbers of codes, that each may be.
    quantised: Vec<Option<quantised::Found>>,
    /// Small files of the bases.
    files: Vec<&'a TensorSource>,
    grids: &'a [ChunkGrid],
    bases: &'a Bases,
    masters: Masters<'a>,
    ties: Ties,
    blends: Vec<Recipe>,
    progress: &'a dyn Progress,
}

impl Context<'_> {
    fn found(&self, i: usize) -> Result<Origin> {
        let origin = self.of_one(i)?;
        self.progress.searched(self.subjects[i].info().len_bytes());
        Ok(origin)
    }

    fn of_one(&self, i: usize) -> Result<Origin> {
        check_cancelled(self.progress)?;
        let len_bytes = self.subjects[i].info().len_bytes();
        if len_bytes == 0 {
            return Ok(Origin::unknown());
        }
        let named = || self.identical(i, &self.candidates[i]);
        let tied = || Ok(self.tied(i));
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
        let (subject, sample) = (self.coded[i], &self.coded_samples[i]);
        for reference in references {
            if let Some(digest) = identical::prove(subject, sample, reference, self.progress)? {
                let predictor = Predictor::Identical(reference_name(subject.info(), reference));
                let references = vec![(*reference).clone()];
                let origin = Origin::proven(predictor, digest, references, vec![digest]);
                return self.as_stored(i, origin).map(Some);
            }
        }
        Ok(None)
    }

    fn tied(&self, i: usize) -> Option<Origin> {
        let (other, digest) = self.ties.of(i)?;
        Some(Origin::proven(Predictor::Tied(other), digest, Vec::new(), Vec::new()))
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

    /// The origin of a tensor from that of what is coded of it.
    fn as_stored(&self, i: usize, origin: Origin) -> Result<Origin> {
        let Subject::Converted { of, info } = self.coded[i] else { return Ok(origin) };
        if !origin.predictor.can_be_converted() {
            return Ok(Origin::unknown());
        }
        let digest = match origin.predictor.has_chunks() {
            true => None,
            false => Some(of.digest()?),
        };
        let predictor = Predictor::Converted(info.dtype.clone(), Box::new(origin.predictor));
        Ok(Origin { predictor, digest, ..origin })
    }

    /// The prediction that leaves the least residual, as far as a sample tells.
    fn coded(&self, i: usize) -> Result<Origin> {
        let (cost, origin) = self.predicted(i)?;
        let (subject, sample, grid) = (&self.subjects[i], &self.samples[i], &self.grids[i]);
        if let Some(patches) = text::fit(subject, sample, grid, &self.files, &origin)? {
            return Ok(patches);
        }
        match &self.quantised[i] {
            // Costs are estimates, and what is simpler to read wins a tie.
            Some(found) if cost.is_none_or(|cost| found.cost + found.cost / 32 < cost) => {
                let Origin { predictor, references, own_payload, .. } = &found.origin;
                let origin = Origin::coded(predictor.clone(), references.clone());
                Origin { own_payload: own_payload.clone(), ..origin }.with_reference_digests()
            }
            _ => self.as_stored(i, origin),
        }
    }

    /// The same without tensors of the same file.
    fn otherwise(&self, i: usize) -> Result<Origin> {
        self.as_stored(i, self.predicted(i)?.1)
    }

    /// Adapters that were merged into one of the references; or else into a copy of a tensor from
    /// another layer.
    fn merged(&self, i: usize, references: &[&TensorSource], grid: &ChunkGrid) -> Result<Option<Origin>> {
        let (subject, sample) = (self.coded[i], &self.coded_samples[i]);
        let info = subject.info();
        for reference in references {
            if let Some(origin) = adapter::fit(subject, reference, grid, self.bases)? {
                return Ok(Some(origin));
            }
        }
        if !adapter::has_module(info, self.bases) {
            return Ok(None);
        }
        let copies: Vec<&TensorSource> =
            self.bases.direct().flat_map(|base| base.in_other_layers(info)).take(MOST_LAYERS).collect();
        let nearest = nearest::sorted(info, sample, &copies)?;
        for reference in nearest.into_iter().take(COPIES_TO_TRY) {
            if let Some(origin) = adapter::fit(subject, reference, grid, self.bases)? {
                return Ok(Some(origin));
            }
        }
        Ok(None)
    }

    /// How what is coded is predicted, and the cost. `None` if a rule explains it.
    fn predicted(&self, i: usize) -> Result<(Option<u128>, Origin)> {
        let (subject, sample) = (self.coded[i], &self.coded_samples[i]);
        let info = subject.info();
        if info.len_bytes() == 0 {
            return Ok((Some(0), Origin::unknown()));
        }
        let candidates = [&self.candidates[i][..], &self.found[i]].concat();
        let grid = self.grids[i].of_dtype(&info.dtype);
        if let Some(origin) = self.merged(i, &candidates, &grid)? {
            return Ok((None, origin));
        }
        if let Some(origin) = computed(subject, sample, &candidates, &self.blends, &grid, self.progress)? {
            return Ok((None, origin));
        }
        let candidates = nearest::sorted(info, sample, &candidates)?;
        let best = match candidates.first() {
            Some(best) => nearest::fit(info, sample, best)?,
            None => Origin::unknown(),
        };
        let of_best = match (&best.predictor, candidates.first()) {
            (Predictor::Reference(_), Some(reference)) => nearest::cost(info, sample, reference)?,
            _ => nearest::cost_alone(info, sample),
        };
        if let Some(reference) = candidates.first()
            && of_best > nearest::DIGEST_COST
            && !matches!(subject, Subject::Converted { .. })
            && let Some((cost, origin)) = lines::fit(subject, sample, reference, self.progress)?
            && cost < of_best
        {
            return Ok((Some(cost), origin));
        }
        match view::score(self.coded, info, sample, self.views[i].clone())? {
            Some((cost, view)) if cost + cost / 32 < of_best => {
                Ok((Some(cost), view.with_reference_digests()?))
            }
            _ => Ok((Some(of_best), best)),
        }
    }
}
