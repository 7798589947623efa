//! A tensor that equals another one of the same checkpoint.
//! Of equal tensors, one stands for itself and the others are tied to it: the first one that a base
//! knows, or else the first.

use std::collections::HashMap;

use rayon::prelude::*;

use super::fingerprints::print;
use super::subject::Subject;
use crate::container::Digest;
use crate::error::Result;
use crate::progress::{Progress, check_cancelled};

/// Tensors with equal samples, by number.
type Alike = Vec<usize>;

/// The tensors of a checkpoint that are tied: by number, which other one they equal, and the digest
/// of both.
pub(crate) struct Ties(HashMap<usize, (usize, Digest)>);

impl Ties {
    /// Hashes all tensors whose samples are equal, each once, on the threads of the current rayon
    /// pool. `has_counterpart` says whether a base has a tensor with the place of the numbered one.
    ///
    /// # Errors
    /// What reading gives.
    pub(crate) fn prove(
        subjects: &[Subject<'_>],
        samples: &[Vec<u8>],
        has_counterpart: impl Fn(usize) -> bool,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let mut alike: HashMap<u64, Alike> = HashMap::new();
        for (i, (subject, sample)) in subjects.iter().zip(samples).enumerate() {
            let info = subject.info();
            alike.entry(print(&info.shape, &info.dtype, sample)).or_default().push(i);
        }
        let several: Vec<Alike> = alike.into_values().filter(|alike| alike.len() > 1).collect();
        let digest = |i: &usize| {
            check_cancelled(progress)?;
            Ok((*i, subjects[*i].digest()?))
        };
        let hashed = several.par_iter().map(|alike| alike.par_iter().map(digest).collect());
        let hashed: Vec<Vec<(usize, Digest)>> = hashed.collect::<Result<_>>()?;
        let mut tied = HashMap::new();
        for mut alike in hashed {
            alike.sort_by_key(|(i, _)| (!has_counterpart(*i), *i));
            let mut first_of: HashMap<[u8; 32], usize> = HashMap::new();
            for (i, digest) in alike {
                let first = *first_of.entry(*digest.as_bytes()).or_insert(i);
                // The length of an unknown dtype does not follow from the shape.
                if first != i && subjects[first].info().is_like(subjects[i].info()) {
                    tied.insert(i, (first, digest));
                }
            }
        }
        Ok(Self(tied))
    }

    /// The tensor that number `i` is tied to, and the digest of both.
    pub(crate) fn of(&self, i: usize) -> Option<(usize, Digest)> {
        self.0.get(&i).copied()
    }
}
