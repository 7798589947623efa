//! Checks a container: every checksum and, if the bases are given, the digest of every tensor.
//! It reports all faults, not just the first.

use rayon::prelude::*;
use serde::Serialize;

use crate::bases::ResolvedContainer;
use crate::container::{Container, PackedTensor, PayloadEntry};
use crate::error::{Error, Result};
use crate::pipeline;
use crate::progress::{Progress, check_cancelled};
use crate::unpack;

/// The result of a verification.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Whether there are no faults.
    pub ok: bool,
    /// `checksums` of all payloads, or also `digests` of all decoded tensors.
    pub checked: &'static str,
    /// Tensors in the container.
    pub tensors: usize,
    /// Chunks in the container.
    pub chunks: usize,
    /// The faults, one line each.
    pub faults: Vec<String>,
}

/// A container, with or without its references.
pub enum Verifiable<'a> {
    /// The container alone: checksums.
    Alone(&'a Container),
    /// With its references: checksums and digests.
    Resolved(&'a ResolvedContainer),
}

/// Verifies a container.
///
/// # Errors
/// Only what prevents the verification: [`Error::Cancelled`], [`Error::Io`]. Faults are in the
/// report.
pub fn verify(what: &Verifiable<'_>, threads: usize, progress: &dyn Progress) -> Result<VerifyReport> {
    let container = match what {
        Verifiable::Alone(container) => container,
        Verifiable::Resolved(resolved) => resolved.container(),
    };
    let index = container.index();
    let mut faults = checksum_faults(container, threads, progress)?;
    let mut checked = "checksums";
    if let (Verifiable::Resolved(resolved), true) = (what, faults.is_empty()) {
        checked = "digests";
        progress.start(index.data_bytes());
        let decoded = unpack::decode_all(resolved, threads, progress, |piece| {
            faults.extend(piece.fault.map(|fault| fault.detail()));
            Ok(())
        });
        match decoded {
            Err(e @ (Error::Cancelled | Error::Io { .. })) => return Err(e),
            Err(e) => faults.push(e.detail()),
            Ok(_) => {}
        }
    }
    let chunks = index.tensors.iter().map(|tensor| tensor.chunks.len()).sum();
    Ok(VerifyReport { ok: faults.is_empty(), checked, tensors: index.tensors.len(), chunks, faults })
}

fn checksum_faults(container: &Container, threads: usize, progress: &dyn Progress) -> Result<Vec<String>> {
    let index = container.index();
    let payloads: Vec<_> = index.tensors.iter().flat_map(|t| t.payloads().map(move |p| (t, p))).collect();
    progress.start(index.tensors.iter().map(PackedTensor::packed_bytes).sum());
    let check = |&(tensor, payload): &(&PackedTensor, &PayloadEntry)| {
        check_cancelled(progress)?;
        progress.advance(payload.len_bytes as u64);
        match container.read_payload(tensor, payload) {
            Ok(_) => Ok(None),
            Err(e @ Error::Io { .. }) => Err(e),
            Err(e) => Ok(Some(e.detail())),
        }
    };
    pipeline::with_threads(threads, || {
        let faults: Vec<Option<String>> = payloads.par_iter().map(check).collect::<Result<_>>()?;
        Ok(faults.into_iter().flatten().collect())
    })
}
