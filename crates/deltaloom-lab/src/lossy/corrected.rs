//! The corrected form of the threshold methods, one tensor at a time. Elements that differ enough
//! from the reader's version become exact; the others stay as the reader has them.
//!
//! It reads and writes no files; [`super::file`] does.

use deltaloom_kernels::Number;

use super::positions::{self, Positions};
use super::threshold::{Rule, Threshold};
use super::values;
use deltaloom::__internals::bytes::{ByteReader, push_varint};
use deltaloom::__internals::{Element, load_singles};
use deltaloom::Result;

/// A target size is met if the coded bytes use at least this fraction of it.
const NEAR_ENOUGH: f64 = 0.97;
/// If at least one element in this many is kept, try a residual for every element.
const DENSE: usize = 64;
/// Most thresholds to try for a target size.
const TRIES: u32 = 14;

/// A stored tensor.
#[derive(Debug)]
pub(super) struct Coded {
    /// Empty if nothing is kept.
    pub(super) payload: Vec<u8>,
    pub(super) kept: usize,
    pub(super) positions: Positions,
    /// Elements that are not kept differ by less than its value, or not at all.
    pub(super) threshold: Threshold,
}

/// Codes `target` against `held`, the reader's version. `budget_bytes` is for [`Rule::Bytes`].
pub(super) fn encode(element: Element, rule: &Rule, target: &[u8], held: &[u8], budget_bytes: u64) -> Coded {
    let differences = differences(element, target, held);
    let code = |threshold| code(element.number(), threshold, &differences, target, held);
    match rule.threshold(&differences) {
        Some(threshold) => code(threshold),
        None => within(budget_bytes, &differences, |value| code(Threshold { value, zone: false })),
    }
}

/// Differences of the elements in FP32. Rounding is harmless: a rounded difference below a
/// threshold was below it before.
pub(super) fn differences(element: Element, target: &[u8], held: &[u8]) -> Vec<f32> {
    load_singles(element, target).iter().zip(load_singles(element, held)).map(|(a, b)| a - b).collect()
}

fn code(number: Number, threshold: Threshold, differences: &[f32], target: &[u8], held: &[u8]) -> Coded {
    let size = number.bytes();
    // A threshold that is not finite keeps everything, and differences that are NaN are always
    // kept.
    let threshold =
        Threshold { value: if threshold.value.is_finite() { threshold.value } else { 0.0 }, ..threshold };
    let is_small = |i: usize| differences[i].abs() < threshold.value;
    let differs = |i: &usize| target[i * size..(i + 1) * size] != held[i * size..(i + 1) * size];
    let kept: Vec<usize> = (0..differences.len()).filter(|i| !is_small(*i)).filter(differs).collect();
    let (mut positions, coded) = positions::encode(&kept, differences.len());
    let mut payload = Vec::new();
    if !kept.is_empty() {
        push_varint(&mut payload, coded.len() as u64);
        payload.extend(coded);
        payload.extend(values::encode(number, target, held, &kept));
    }
    if kept.len() >= differences.len() / DENSE && positions != Positions::Implied {
        let mut reconstructed = held.to_vec();
        kept.iter().for_each(|at| {
            reconstructed[at * size..(at + 1) * size].copy_from_slice(&target[at * size..(at + 1) * size]);
        });
        let dense = values::encode_all(number, &reconstructed, held);
        if dense.len() < payload.len() {
            (positions, payload) = (Positions::Dense, dense);
        }
    }
    Coded { payload, kept: kept.len(), positions, threshold }
}

/// Finds the lowest threshold with which at most `budget_bytes` are stored.
fn within(budget_bytes: u64, differences: &[f32], code: impl Fn(f32) -> Coded) -> Coded {
    let mut sizes: Vec<f32> = differences.iter().map(|d| d.abs()).filter(|d| *d > 0.0).collect();
    sizes.sort_unstable_by(|a, b| b.total_cmp(a));
    let everything = code(0.0);
    let len_bytes = |coded: &Coded| coded.payload.len() as u64;
    if len_bytes(&everything) <= budget_bytes {
        return everything;
    }
    // Above all finite differences, so that only the others are kept.
    let finite = sizes.iter().find(|size| size.is_finite());
    let mut best = code(finite.map_or(0.0, |size| size.next_up()));
    // In descending order, keeping the elements up to `low` fits and up to `high` does not.
    let (mut low, mut high) = (0, sizes.len());
    for _ in 0..TRIES {
        let is_near = len_bytes(&best) as f64 >= NEAR_ENOUGH * budget_bytes as f64;
        if is_near || high - low < 2 {
            break;
        }
        let middle = low.midpoint(high);
        let tried = code(sizes[middle]);
        if len_bytes(&tried) <= budget_bytes {
            low = middle;
            best = tried;
        } else {
            high = middle;
        }
    }
    best
}

/// Turns `values`, the reader's version of a tensor, into its next reconstruction.
pub(super) fn decode(
    number: Number,
    positions: Positions,
    kept: usize,
    payload: &[u8],
    values: &mut [u8],
) -> Result<()> {
    let elems = values.len() / number.bytes();
    if positions == Positions::Dense {
        return values::decode_all(number, payload, values);
    }
    let mut reader = ByteReader::new(payload, "a lossy payload");
    if kept == 0 {
        return reader.finish();
    }
    let len_bytes = reader.size()?;
    let positions = positions::decode(positions, reader.take(len_bytes)?, kept, elems)?;
    values::decode(number, reader.rest(), &positions, values)
}
