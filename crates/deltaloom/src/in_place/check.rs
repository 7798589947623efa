//! Proves, before the first byte is written, that the file is the base: every checked tensor must
//! come out with its digest.
//! A tensor that already has the digest of its result needs no writing.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::Check;
use super::work::Work;
use crate::container::{Digest, KnownDigest};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::scratch::Scratch;
use crate::unpack::decode_each;

/// What the check found.
#[derive(Default)]
pub(super) struct Checked {
    /// Tensors that already have their new bytes.
    applied: HashSet<usize>,
    /// For each job, the checksum of the bytes that it will write, if it was computed.
    sums: Vec<OnceLock<u32>>,
}

impl Checked {
    pub(super) fn is_applied(&self, tensor: usize) -> bool {
        self.applied.contains(&tensor)
    }

    /// Whether the bytes of a job are those that the check saw, if it saw them.
    pub(super) fn agrees(&self, job: usize, crc: u32) -> bool {
        self.sums.get(job).and_then(OnceLock::get).is_none_or(|sum| *sum == crc)
    }
}

/// The tensors to check when the first `done` jobs are done.
pub(super) fn tensors_to_check(work: &Work, check: Check, done: usize) -> Vec<usize> {
    let index = work.resolved().container().index();
    let all = 0..index.tensors.len();
    let written = all.clone().filter(|tensor| !work.jobs_of(*tensor).is_empty()).collect::<Vec<_>>();
    match check {
        // If nothing will be written, only a check of everything proves the file.
        Check::Changed if !written.is_empty() => written,
        Check::Changed | Check::All => all.collect(),
        Check::One => {
            // A tensor whose jobs are all done or all to do, and that needs the base at its place.
            // If its jobs are done, it also shows whether the journal belongs to the file.
            let tells = |tensor: &usize| {
                let jobs = work.jobs_of(*tensor);
                let is_whole = jobs.start >= done || jobs.end <= done;
                is_whole && jobs.clone().any(|job| work.jobs()[job].is_change)
            };
            let rank = |tensor: &usize| {
                (work.jobs_of(*tensor).end > done, work.resolved().info(*tensor).len_bytes())
            };
            written.into_iter().filter(tells).min_by_key(rank).into_iter().collect()
        }
    }
}

/// Checks one tensor as it is: it must be the base's or the fine-tune's.
pub(super) fn check_one(work: &Work, tensor: usize, done: usize) -> Result<Checked> {
    let found = work.current(tensor).digest()?;
    let packed = work.resolved().tensor(tensor);
    let is_begun = work.jobs_of(tensor).start < done;
    if found == packed.digest {
        // It represents all tensors, unless a journal says how far the others are.
        let all = 0..work.resolved().container().index().tensors.len();
        let applied = all.filter(|other| done == 0 || *other == tensor).collect();
        return Ok(Checked { applied, sums: Vec::new() });
    }
    match work.digest_before(tensor) {
        Some(expected) if is_begun || found != expected => {
            Err(wrong_base(work, tensor, KnownDigest::Whole(expected), found))
        }
        _ => Ok(Checked::default()),
    }
}

/// Computes the results of tensors and compares them with their digests. The first `done` jobs are
/// done.
pub(super) fn check_results(
    work: &Work,
    tensors: &[usize],
    done: usize,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Checked> {
    let sums: Vec<OnceLock<u32>> = work.jobs().iter().map(|_| OnceLock::new()).collect();
    let faults: Mutex<HashMap<usize, Error>> = Mutex::default();
    let result = |tensor: usize, chunk: usize| -> Result<Scratch> {
        let Some(job) = work.job_of_chunk(tensor, chunk).filter(|job| *job >= done) else {
            return work.current_chunk(tensor, chunk);
        };
        match work.resolved().chunk(tensor, chunk) {
            Ok(bytes) => {
                let _first = sums[job].set(crc32fast::hash(&bytes));
                Ok(bytes)
            }
            Err(e @ Error::Io { .. }) => Err(e),
            // The file need not hold the base there.
            Err(e) => {
                faults.lock().unwrap_or_else(PoisonError::into_inner).entry(tensor).or_insert(e);
                Ok(Scratch::default())
            }
        }
    };
    let mut applied = HashSet::new();
    decode_each(work.resolved(), tensors.iter().copied(), threads, progress, result, |piece| {
        if let Some(mismatch) = piece.fault {
            let fault = faults.lock().unwrap_or_else(PoisonError::into_inner).remove(&piece.tensor);
            explain(work, piece.tensor, fault.unwrap_or(mismatch))?;
            applied.insert(piece.tensor);
        }
        Ok(())
    })?;
    Ok(Checked { applied, sums })
}

/// The reason why a tensor does not come out right. It is no error if the tensor is the fine-tune's
/// already.
fn explain(work: &Work, tensor: usize, fault: Error) -> Result<()> {
    let resolved = work.resolved();
    if work.current(tensor).digest()? == resolved.tensor(tensor).digest {
        return Ok(());
    }
    for needed in resolved.container().index().needed_for(tensor) {
        let digests = &resolved.tensor(needed).reference_digests;
        for (source, expected) in resolved.references(needed).iter().zip(digests) {
            let found = source.digest()?;
            if !expected.is_of(&found) {
                return Err(wrong_base(work, needed, *expected, found));
            }
        }
    }
    Err(fault)
}

fn wrong_base(work: &Work, tensor: usize, expected: KnownDigest, found: Digest) -> Error {
    Error::BaseMismatch {
        tensor: work.resolved().info(tensor).name.clone(),
        expected: expected.to_hex(),
        found: format!("{} has {}", work.path().display(), found.to_hex()),
        needed: work.resolved().container().index().identity.needed(),
    }
}
