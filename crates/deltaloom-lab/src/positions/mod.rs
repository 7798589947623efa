//! Position coding of sparse data: the bits that are set become gaps, and gaps become bytes, by 17 published combinations, by ours, and beside general-purpose compression of
//! the data itself. Every method writes a container, which is read back and compared byte for byte.

mod backend;
mod container;
mod decode;
mod encode;
mod method;
mod own;
mod pattern;
mod report;
mod segment;
#[cfg(test)]
mod tests;

use std::io::Read;

use deltaloom::{Error, Progress, Result};

pub use method::{Backend, Coder, Method, Own};
pub use pattern::{Pattern, Source};
pub use report::{MethodReport, PositionsReport};

/// Data is made, read and compared in blocks of this size; gaps run on across them.
pub const BLOCK_BYTES: usize = 4 << 20;

/// Encodes `source` by every one of `methods`, decodes each and compares, on the threads of the pool in which it is called.
///
/// # Errors
/// [`Error::Io`] for the source or for temporary files; [`Error::LimitExceeded`] for a gap of more than 2^36 bits where a published Golomb code is asked for;
/// [`Error::Cancelled`]. That a method does not give back its data is no error but said in the report.
pub fn run(source: &Source, methods: &[Method], progress: &dyn Progress) -> Result<PositionsReport> {
    let methods = method::unique(methods);
    progress.start(source.len_bytes().saturating_mul(2 * methods.len() as u64));
    let started = std::time::Instant::now();
    let encoded = encode::encode(source, &methods, progress)?;
    let encode_seconds = started.elapsed().as_secs_f64();
    let checked = decode::check_all(source, &encoded.methods, progress)?;
    let seconds = [encode_seconds, started.elapsed().as_secs_f64()];
    Ok(report::report(source, &encoded, checked, seconds))
}

/// Writes the container of one method.
///
/// # Errors
/// Those of [`run`], and [`Error::Io`] for `out`.
pub fn encode(source: &Source, method: Method, out: &mut dyn std::io::Write) -> Result<u64> {
    let mut encoded = encode::encode(source, &[method], &deltaloom::Silent)?;
    let container = encoded.methods.pop().ok_or_else(|| Error::corrupt("no container was written"))?;
    container.copy_to(out)
}

/// Restores what a container holds, at most `limit_bytes`, piece by piece.
///
/// # Errors
/// [`Error::Corrupt`] for anything that is not a whole container, [`Error::LimitExceeded`] when its data is larger, [`Error::UnsupportedVersion`]; those of `sink`.
pub fn decode(
    container: &mut (dyn Read + Send),
    limit_bytes: u64,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Method> {
    decode::decode(container, limit_bytes, sink)
}
