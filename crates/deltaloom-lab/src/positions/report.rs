//! The measurements of a run, with stable names. It defines no layout; programs draw the tables.

use serde::Serialize;

use super::container::HEADER_BYTES;
use super::decode::Checked;
use super::encode::{Encoded, EncodedMethod};
use super::pattern::Source;

/// The row of one method. All its seconds are processor time of one thread, if the system reports
/// it.
#[derive(Debug, Clone, Serialize)]
pub struct MethodReport {
    /// Its name.
    pub method: String,
    /// `published`, `ours` or `baseline`.
    pub group: &'static str,
    /// Size of the coded data without a header, as the published tables count it, even if the data
    /// is stored raw because that is smaller.
    pub coded_bytes: u64,
    /// Size of the whole container.
    pub container_bytes: u64,
    /// Whether the container holds the original data.
    pub is_raw: bool,
    /// Original over coded bytes.
    pub ratio: f64,
    /// Seconds to find the gaps, counted once for all methods that need them.
    pub extract_seconds: f64,
    /// Seconds to code, including a first step that methods share.
    pub compress_seconds: f64,
    /// Seconds from the container to gaps, or to bytes.
    pub decompress_seconds: f64,
    /// Seconds from gaps to bytes.
    pub reconstruct_seconds: f64,
    /// Seconds for checksum and comparison.
    pub verify_seconds: f64,
    /// Original bytes over the seconds of extract and compress, in 10^6 per second.
    pub encode_mb_per_second: f64,
    /// Original bytes over the seconds of decompress and reconstruct, in 10^6 per second.
    pub decode_mb_per_second: f64,
    /// Whether every byte came back.
    pub verified: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// A run over one source.
#[derive(Debug, Clone, Serialize)]
pub struct PositionsReport {
    /// Pattern, or path of a file.
    pub source: String,
    /// Seed of a pattern.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Size of the data.
    pub original_bytes: u64,
    /// Number of set bits, if a method needs it.
    pub gaps: u64,
    /// Entropy of the pattern in bytes. For a file, the entropy of its bytes as if they were
    /// independent, which is not a bound.
    pub entropy_bytes: f64,
    /// Original bytes over that; absent if it is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy_ratio: Option<f64>,
    /// `pattern` or `order 0`.
    pub entropy_of: &'static str,
    /// Number of threads.
    pub threads: usize,
    /// Wall time in seconds of encoding by all methods side by side.
    pub encode_seconds: f64,
    /// Wall time in seconds of everything.
    pub total_seconds: f64,
    /// The verified method with the smallest coded size.
    pub best: Option<String>,
    /// The verified method that encodes fastest.
    pub fastest: Option<String>,
    /// The rows.
    pub methods: Vec<MethodReport>,
}

fn quotient(a: u64, b: f64) -> f64 {
    if b > 0.0 { a as f64 / b } else { 0.0 }
}

fn order_0_bits(counts: &[u64]) -> f64 {
    let total: u64 = counts.iter().sum();
    let used = counts.iter().filter(|count| **count > 0).map(|count| *count as f64);
    used.map(|count| count * (total as f64 / count).log2()).sum()
}

fn row(source: &Source, encoded: &EncodedMethod, extract_seconds: f64, checked: Checked) -> MethodReport {
    let header = encoded.stored.header;
    let original = source.len_bytes();
    let extract_seconds = if encoded.takes_gaps { extract_seconds } else { 0.0 };
    let Checked { seconds, fault } = checked;
    MethodReport {
        method: header.method.name(),
        group: header.method.group(),
        coded_bytes: encoded.stored.coded_bytes,
        container_bytes: HEADER_BYTES + header.body_bytes,
        is_raw: header.is_raw,
        ratio: quotient(original, encoded.stored.coded_bytes as f64),
        extract_seconds,
        compress_seconds: encoded.compress_seconds,
        decompress_seconds: seconds.decompress,
        reconstruct_seconds: seconds.reconstruct,
        verify_seconds: seconds.verify,
        encode_mb_per_second: quotient(original, 1e6 * (extract_seconds + encoded.compress_seconds)),
        decode_mb_per_second: quotient(original, 1e6 * (seconds.decompress + seconds.reconstruct)),
        verified: fault.is_none(),
        fault,
    }
}

pub(super) fn report(
    source: &Source,
    encoded: &Encoded,
    checked: Vec<Checked>,
    [encode_seconds, total_seconds]: [f64; 2],
) -> PositionsReport {
    let pairs = encoded.methods.iter().zip(checked);
    let methods: Vec<MethodReport> =
        pairs.map(|(method, checked)| row(source, method, encoded.extract_seconds, checked)).collect();
    let verified = || methods.iter().filter(|row| row.verified);
    let best = verified().min_by_key(|row| row.coded_bytes).map(|row| row.method.clone());
    let by_speed =
        |a: &&MethodReport, b: &&MethodReport| a.encode_mb_per_second.total_cmp(&b.encode_mb_per_second);
    let fastest = verified().max_by(by_speed).map(|row| row.method.clone());
    let pattern_bits = source.entropy_bits();
    let entropy_bytes = pattern_bits.unwrap_or_else(|| order_0_bits(&encoded.counts)) / 8.0;
    PositionsReport {
        source: source.name(),
        seed: match source {
            Source::Made { seed, .. } => Some(*seed),
            Source::Stored { .. } => None,
        },
        original_bytes: source.len_bytes(),
        gaps: encoded.gaps,
        entropy_bytes,
        entropy_ratio: (entropy_bytes > 0.0).then(|| quotient(source.len_bytes(), entropy_bytes)),
        entropy_of: if pattern_bits.is_some() { "pattern" } else { "order 0" },
        threads: rayon::current_num_threads(),
        encode_seconds,
        total_seconds,
        best,
        fastest,
        methods,
    }
}
