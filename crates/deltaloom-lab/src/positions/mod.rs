//! Position coding of sparse data: set bits become gaps, and gaps become bytes. It compares 17
//! published combinations, our own codings, and general-purpose compression of the data itself.
//!
//! Every method writes a container, which is read back and compared byte for byte.

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

/// Data is generated, read and compared in blocks of this size; gaps continue across blocks.
pub const BLOCK_BYTES: usize = 4 << 20;

/// Encodes `source` by every one of `methods`, decodes each and compares, on the threads of the
/// current pool.
///
/// If a method does not return its data, that is not an error; the report says so.
///
/// # Errors
/// [`Error::Io`] for the source or for temporary files; [`Error::LimitExceeded`] for a gap of more
/// than 2^36 bits with a published Golomb code; [`Error::Cancelled`].
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

/// Restores the data of a container, at most `limit_bytes`, piece by piece.
///
/// # Errors
/// [`Error::Corrupt`] for anything but a whole container, [`Error::LimitExceeded`] if its data is
/// larger, [`Error::UnsupportedVersion`]; errors of `sink`.
pub fn decode(
    container: &mut (dyn Read + Send),
    limit_bytes: u64,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Method> {
    decode::decode(container, limit_bytes, sink)
}
