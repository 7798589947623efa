//! How the weights of a checkpoint are distributed, and how many bits the fields of a float carry:
//! from a sample of stated size. It compares nothing with anything.

use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::predict::{Element, load};
use crate::progress::{Progress, check_cancelled};
use crate::sample;
use crate::tensor::{DType, TensorInfo};

/// Intervals of the histogram.
const INTERVALS: usize = 80;
/// Share of weights that the histogram leaves out, at both ends together.
const OUTSIDE: f64 = 0.01;

/// Bits of one field of a float.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FieldEntropy {
    /// `sign`, `exponent`, or `mantissa N` with N counted from the most significant bit.
    pub name: String,
    /// Bits that it takes in an element.
    pub stored_bits: u32,
    /// Entropy of its values by their frequencies alone, in bits per element.
    pub entropy_bits: f64,
}

/// The weights of a checkpoint in the dtype that most of them have.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeightStatistics {
    /// Safetensors dtype.
    pub dtype: String,
    /// Elements of that dtype.
    pub elems: u64,
    /// Those that were looked at.
    pub sampled_elems: u64,
    /// Mean of the finite ones.
    pub mean: f64,
    /// Their standard deviation.
    pub deviation: f64,
    /// Share of exact zeros.
    pub zero_fraction: f64,
    /// Share of infinities and NaNs.
    pub non_finite_fraction: f64,
    /// Ends of the intervals of the histogram, one more than counts.
    pub edges: Vec<f64>,
    /// Weights in each interval.
    pub counts: Vec<u64>,
    /// Weights outside all intervals.
    pub outside: u64,
    /// The fields, from the most significant bit on.
    pub fields: Vec<FieldEntropy>,
}

/// Statistics of about `sample_elems` weights, taken from every tensor in proportion to its size;
/// `None` where no tensor is F32, BF16 or F16.
///
/// # Errors
/// [`Error::Io`], [`Error::Cancelled`].
pub fn weights(
    checkpoint: &Checkpoint,
    sample_elems: u64,
    progress: &dyn Progress,
) -> Result<Option<WeightStatistics>> {
    let tensors: Vec<(usize, &TensorInfo)> = checkpoint.weights().collect();
    let elems_of = |dtype: &DType| -> u64 {
        let tensors = tensors.iter().filter(|(_, tensor)| tensor.dtype == *dtype);
        tensors.map(|(_, tensor)| elems(tensor)).sum()
    };
    let dtypes = [DType::F32, DType::BF16, DType::F16].map(|dtype| (elems_of(&dtype), dtype));
    let Some((total, dtype)) =
        dtypes.into_iter().rev().max_by_key(|(elems, _)| *elems).filter(|(n, _)| *n > 0)
    else {
        return Ok(None);
    };
    let Some(element) = Element::of(&dtype) else { return Ok(None) };
    let mut bytes = Vec::new();
    progress.start(total.min(sample_elems).saturating_mul(element.bytes() as u64));
    for (member, tensor) in tensors.into_iter().filter(|(_, tensor)| tensor.dtype == dtype) {
        check_cancelled(progress)?;
        let share = u128::from(elems(tensor)) * u128::from(sample_elems) / u128::from(total);
        let wanted = u64::try_from(share).unwrap_or(u64::MAX).max(16);
        let part = sample::read(tensor, wanted, |offset, len| {
            let mut part = vec![0; len];
            checkpoint.read(member, tensor, offset, &mut part)?;
            Ok::<_, Error>(part)
        })?;
        progress.advance(part.len() as u64);
        bytes.extend(part);
    }
    Ok(Some(statistics(element, total, &bytes)))
}

fn elems(tensor: &TensorInfo) -> u64 {
    tensor.len_bytes() / tensor.number().bytes().max(1) as u64
}

fn statistics(element: Element, total: u64, bytes: &[u8]) -> WeightStatistics {
    let count = bytes.len() / element.bytes();
    let mut values = vec![0.0; count];
    load(element, bytes, &mut values);
    let share = |n: usize| n as f64 / count.max(1) as f64;
    let zero_fraction = share(values.iter().filter(|v| **v == 0.0).count());
    values.retain(|v| v.is_finite());
    let non_finite_fraction = share(count - values.len());
    let of = |sum: f64| sum / values.len().max(1) as f64;
    let mean = of(values.iter().sum());
    let deviation = of(values.iter().map(|v| (v - mean) * (v - mean)).sum()).sqrt();
    let (edges, counts) = histogram(&mut values);
    let inside: u64 = counts.iter().sum();
    WeightStatistics {
        dtype: element.dtype().to_string(),
        elems: total,
        sampled_elems: count as u64,
        mean,
        deviation,
        zero_fraction,
        non_finite_fraction,
        edges,
        outside: (values.len() as u64).saturating_sub(inside),
        counts,
        fields: fields(element, bytes),
    }
}

/// Intervals of one width around zero that leave out only the farthest weights, and the weights in
/// each.
fn histogram(values: &mut [f64]) -> (Vec<f64>, Vec<u64>) {
    values.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    #[expect(clippy::cast_possible_truncation, reason = "an index below the length")]
    let last_inside = ((values.len() as f64) * (1.0 - OUTSIDE)) as usize;
    let reach = values.get(last_inside).or(values.last()).map_or(0.0, |v| v.abs());
    let reach = if reach > 0.0 { reach } else { 1.0 };
    let half = INTERVALS as f64 / 2.0;
    let edges: Vec<f64> = (0..=INTERVALS).map(|i| reach * (i as f64 - half) / half).collect();
    let mut counts = vec![0; INTERVALS];
    for value in values.iter() {
        let after = edges.partition_point(|edge| edge <= value);
        let is_last_edge = after > INTERVALS && *value == edges[INTERVALS];
        let interval = if is_last_edge { Some(INTERVALS - 1) } else { after.checked_sub(1) };
        if let Some(count) = interval.and_then(|i| counts.get_mut(i)) {
            *count += 1;
        }
    }
    (edges, counts)
}

fn fields(element: Element, bytes: &[u8]) -> Vec<FieldEntropy> {
    let number = element.number();
    let (exponent_bits, mantissa_bits) = (number.exponent_bits(), number.mantissa_bits());
    let mut signs = [0u64; 2];
    let mut exponents = [0u64; 256];
    let mut mantissas = [[0u64; 2]; 23];
    for bytes in bytes.chunks_exact(element.bytes()) {
        let bits = bytes.iter().rev().fold(0usize, |bits, byte| bits << 8 | usize::from(*byte));
        signs[bits >> (exponent_bits + mantissa_bits) & 1] += 1;
        exponents[bits >> mantissa_bits & ((1 << exponent_bits) - 1)] += 1;
        for (i, counts) in (0..mantissa_bits).rev().zip(&mut mantissas) {
            counts[bits >> i & 1] += 1;
        }
    }
    let field = |name: String, stored_bits, counts: &[u64]| FieldEntropy {
        name,
        stored_bits,
        entropy_bits: entropy(counts),
    };
    let mut out =
        vec![field("sign".to_owned(), 1, &signs), field("exponent".to_owned(), exponent_bits, &exponents)];
    out.extend(
        (1..=mantissa_bits).zip(&mantissas).map(|(i, counts)| field(format!("mantissa {i}"), 1, counts)),
    );
    out
}

fn entropy(counts: &[u64]) -> f64 {
    let total: u64 = counts.iter().sum();
    let present = counts.iter().filter(|count| **count > 0).map(|count| *count as f64 / total as f64);
    present.map(|p| -p * p.log2()).sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_known_floats_carry_known_bits() {
        // Eight exponents, both signs, all mantissas of the first two bits and zeros below, equally
        // often.
        let mut bytes = Vec::new();
        for sign in 0..2u16 {
            for exponent in 120..128u16 {
                for mantissa in 0..4u16 {
                    bytes.extend((sign << 15 | exponent << 7 | mantissa << 5).to_le_bytes());
                }
            }
        }
        let found = statistics(Element::BF16, 64, &bytes);
        let bits: Vec<f64> = found.fields.iter().map(|field| field.entropy_bits).collect();
        assert_eq!(bits, [1.0, 3.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(found.fields.iter().map(|field| field.stored_bits).sum::<u32>(), 16);
        assert_eq!(found.sampled_elems, 64);
        assert_eq!(found.mean, 0.0);
        assert_eq!(found.counts.iter().sum::<u64>() + found.outside, 64);
    }

    #[test]
    fn nonsense_weights_are_counted_and_do_no_harm() {
        let bytes: Vec<u8> =
            [f32::NAN, f32::INFINITY, 0.0, -0.0, 1e38, -1e-45].iter().flat_map(|x| x.to_le_bytes()).collect();
        let found = statistics(Element::F32, 6, &bytes);
        assert_eq!(found.zero_fraction, 2.0 / 6.0);
        assert_eq!(found.non_finite_fraction, 2.0 / 6.0);
        assert_eq!(found.counts.iter().sum::<u64>() + found.outside, 4);
        assert_eq!(statistics(Element::F32, 0, &[]).counts.iter().sum::<u64>(), 0);
    }
}
