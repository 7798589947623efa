//! Finds tensors by what they hold, whatever their names are: equal ones by a fingerprint of their
//! sample, similar ones by short runs of it.
//! It reads samples only, so what it finds must be costed or proven.
//!
//! Runs are compared by the signs and exponents of their elements, which training seldom changes.
//! That is locality-sensitive hashing by bands (Broder, "On the Resemblance and Containment of
//! Documents", 1997; Indyk and Motwani, "Approximate Nearest Neighbors", 1998).

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use rayon::prelude::*;

use super::subject::Subject;
use super::{codes, view};
use crate::bases::{Base, Bases, TensorSource};
use crate::error::Result;
use crate::plan;
use crate::sample;
use crate::tensor::TensorInfo;

/// Runs of a sample, and elements of a run. By chance, two runs of independent weights agree with a
/// probability of about 2^-36.
const RUNS: usize = 32;
const RUN_ELEMS: usize = 12;
/// Tensors with the same run that are looked at.
const MOST_PER_RUN: usize = 16;
/// Similar tensors that are returned.
const MOST_FOUND: usize = 4;

/// Tensors of bases by their samples.
pub(crate) struct ContentIndex<'a> {
    sources: Vec<&'a TensorSource>,
    /// Numbers of the tensors, by the fingerprint of the whole sample.
    equal: HashMap<u64, Vec<usize>>,
    /// By the hash of a run.
    alike: HashMap<u64, Vec<usize>>,
}

impl<'a> ContentIndex<'a> {
    /// Samples all tensors, on the threads of the current rayon pool.
    ///
    /// # Errors
    /// What reading gives.
    pub(crate) fn new(sources: Vec<&'a TensorSource>) -> Result<Self> {
        let hashes = |source: &&TensorSource| {
            let sample = sample::of(source)?;
            Ok((fingerprint(source.info(), &sample), runs(source.info(), &sample)))
        };
        let hashed: Vec<(u64, Vec<u64>)> = sources.par_iter().map(hashes).collect::<Result<_>>()?;
        let (mut equal, mut alike) = (HashMap::<_, Vec<usize>>::new(), HashMap::<_, Vec<usize>>::new());
        for (i, (whole, runs)) in hashed.into_iter().enumerate() {
            equal.entry(whole).or_default().push(i);
            for run in runs {
                let found = alike.entry(run).or_default();
                if found.len() < MOST_PER_RUN && found.last() != Some(&i) {
                    found.push(i);
                }
            }
        }
        Ok(Self { sources, equal, alike })
    }

    /// Tensors of the same dtype and shape whose sample equals this one, or else is similar to it;
    /// the most similar first.
    pub(crate) fn find(&self, info: &TensorInfo, sample: &[u8]) -> Vec<&'a TensorSource> {
        let is_like = |source: &TensorSource| source.is_like(info);
        let equal = self.equal.get(&fingerprint(info, sample)).into_iter().flatten();
        let equal = equal.map(|i| self.sources[*i]).filter(|source| is_like(source));
        let equal: Vec<&TensorSource> = equal.take(MOST_FOUND).collect();
        if equal.is_empty() { self.similar(info, sample, is_like) } else { equal }
    }

    /// Tensors that fit and have similar samples, the most similar first. They have as many
    /// elements, perhaps of another dtype or in another shape.
    pub(crate) fn similar(
        &self,
        info: &TensorInfo,
        sample: &[u8],
        fits: impl Fn(&TensorSource) -> bool,
    ) -> Vec<&'a TensorSource> {
        let fits = |i: &&usize| fits(self.sources[**i]);
        let mut votes: HashMap<usize, usize> = HashMap::new();
        for run in runs(info, sample) {
            let found = self.alike.get(&run).into_iter().flatten();
            found.filter(fits).for_each(|i| *votes.entry(*i).or_default() += 1);
        }
        let mut votes: Vec<(usize, usize)> = votes.into_iter().collect();
        votes.sort_unstable_by_key(|(i, votes)| (std::cmp::Reverse(*votes), *i));
        votes.into_iter().take(MOST_FOUND).map(|(i, _)| self.sources[i]).collect()
    }
}

/// Whether a sample is so near to that of another tensor of its kind that no better one is looked
/// for.
pub(crate) fn is_near(info: &TensorInfo, sample: &[u8], other: &[u8]) -> bool {
    other == sample || plan::is_clearly_near(info.number(), sample, other)
}

/// What the bases have of each subject that none of its candidates is near to.
pub(crate) struct Found<'a> {
    /// Whether none of its candidates is near to it.
    pub(crate) is_open: Vec<bool>,
    /// Tensors of the same dtype and shape, equal or similar.
    pub(crate) alike: Vec<Vec<&'a TensorSource>>,
    /// Similar tensors of another dtype or shape.
    pub(crate) others: Vec<Vec<&'a TensorSource>>,
}

/// Finds tensors of bases that are equal or similar, for the subjects that none of `candidates`,
/// which have the place of their name, is near to.
///
/// # Errors
/// What reading gives.
pub(crate) fn find<'a>(
    candidates: &[Vec<&'a TensorSource>],
    subjects: &[Subject<'_>],
    samples: &[impl AsRef<[u8]> + Sync],
    bases: &'a Bases,
) -> Result<Found<'a>> {
    let applies = |(i, candidates): (usize, &Vec<&TensorSource>)| {
        let info = subjects[i].info();
        for candidate in candidates {
            if is_near(info, samples[i].as_ref(), &sample::of(candidate)?) {
                return Ok(false);
            }
        }
        Ok(info.len_bytes() > 0)
    };
    let applies: Vec<bool> = candidates.par_iter().enumerate().map(applies).collect::<Result<_>>()?;
    let sources: Vec<&TensorSource> = bases.direct().flat_map(Base::tensors).collect();
    if sources.is_empty() || !applies.contains(&true) {
        let none = vec![Vec::new(); candidates.len()];
        return Ok(Found { is_open: applies, alike: none.clone(), others: none });
    }
    let index = ContentIndex::new(sources)?;
    let of_one = |i: usize| {
        if !applies[i] {
            return (Vec::new(), Vec::new());
        }
        let info = subjects[i].info();
        let mut alike = index.find(info, samples[i].as_ref());
        alike.retain(|source| candidates[i].iter().all(|known| known.id() != source.id()));
        let others = match alike[..] {
            [] => index.similar(info, samples[i].as_ref(), |source| view::applies(info, source)),
            _ => Vec::new(),
        };
        (alike, others)
    };
    let (alike, others) = (0..candidates.len()).into_par_iter().map(of_one).unzip();
    Ok(Found { is_open: applies, alike, others })
}

fn fingerprint(info: &TensorInfo, sample: &[u8]) -> u64 {
    sample::fingerprint(&info.shape, &info.dtype, sample)
}

/// Hashes of evenly spaced runs of a sample. Runs of equal signs and exponents say nothing.
pub(super) fn runs(info: &TensorInfo, sample: &[u8]) -> Vec<u64> {
    let codes = codes::of(info, sample);
    let elems = info.elems();
    let Some(last) = codes.len().checked_sub(RUN_ELEMS) else { return Vec::new() };
    let hash = |run: usize| {
        let start = run * last / (RUNS - 1);
        let run_codes = &codes[start..start + RUN_ELEMS];
        let says_something = run_codes.iter().any(|code| *code != run_codes[0]);
        says_something.then(|| {
            let mut hasher = DefaultHasher::new();
            (elems, start, run_codes).hash(&mut hasher);
            hasher.finish()
        })
    };
    (0..RUNS).filter_map(hash).collect()
}
