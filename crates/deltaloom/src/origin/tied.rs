//! A tensor that equals another one of the same checkpoint.
//! Of equal tensors, one stands for itself and the others are tied to it: the first one that a base
//! knows, or else the first.

use super::equality;
use super::fingerprints::{Fingerprints, print};
use super::subject::Subject;
use crate::container::Digest;
use crate::error::Result;
use crate::progress::Progress;

/// The tensors of a checkpoint that may be tied, in order of preference for standing for itself.
pub(crate) struct Ties(Fingerprints<usize>);

impl Ties {
    /// `has_counterpart` says whether a base has a tensor with the place of the numbered one.
    pub(crate) fn new(
        subjects: &[Subject<'_>],
        samples: &[Vec<u8>],
        has_counterpart: impl Fn(usize) -> bool,
    ) -> Self {
        let printed = |(i, (subject, sample)): (usize, (&Subject<'_>, &Vec<u8>))| {
            let info = subject.info();
            (print(&info.shape, &info.dtype, sample), i)
        };
        let prints = Fingerprints::new(subjects.iter().zip(samples).enumerate().map(printed));
        Self(prints.sorted_by_key(|i| (!has_counterpart(*i), *i)))
    }

    /// The tensor that number `i` is tied to, and the digest of both.
    pub(crate) fn prove(
        &self,
        i: usize,
        subjects: &[Subject<'_>],
        samples: &[Vec<u8>],
        progress: &dyn Progress,
    ) -> Result<Option<(usize, Digest)>> {
        let subject = subjects[i];
        for other in self.0.alike(subject.info(), &samples[i]).take_while(|other| *other != i) {
            // The length of an unknown dtype does not follow from the shape.
            if !subjects[other].info().is_like(subject.info()) {
                continue;
            }
            let read = |offset, len| subjects[other].read(offset, len);
            if let Some(digest) = equality::prove(subject, read, progress)? {
                return Ok(Some((other, digest)));
            }
        }
        Ok(None)
    }
}
