//! Sums over the elements of a tensor and those of its references, in one pass and in a fixed
//! order, and what follows from them.
//! Elements that are not finite somewhere count as zeros.

use deltaloom_kernels::{Number, NumberKind, steps};
use rayon::prelude::*;

use crate::bases::TensorSource;
use crate::error::Result;
use crate::limits::to_usize;
use crate::progress::{Progress, check_cancelled};

/// Elements of a block.
const BLOCK_ELEMS: u64 = 1 << 17;

/// Sums for one tensor and its references.
#[derive(Debug, Clone)]
pub(super) struct Moments {
    pub(super) elems: u64,
    /// Variance that rounding to the tensor's dtype causes, summed.
    pub(super) rounding: f64,
    sum: f64,
    squares: f64,
    pub(super) references: Vec<OfReference>,
}

/// Sums for one reference.
#[derive(Debug, Clone, Default)]
pub(super) struct OfReference {
    /// Elements that differ from those of the tensor.
    pub(super) changed: u64,
    /// Sum of the squared differences.
    pub(super) distance: f64,
    sum: f64,
    squares: f64,
    product: f64,
}

impl Moments {
    fn zero(references: usize) -> Self {
        Self {
            elems: 0,
            rounding: 0.0,
            sum: 0.0,
            squares: 0.0,
            references: vec![OfReference::default(); references],
        }
    }

    fn plus(mut self, other: &Self) -> Self {
        self.elems += other.elems;
        self.rounding += other.rounding;
        self.sum += other.sum;
        self.squares += other.squares;
        for (a, b) in self.references.iter_mut().zip(&other.references) {
            a.changed += b.changed;
            a.distance += b.distance;
            a.sum += b.sum;
            a.squares += b.squares;
            a.product += b.product;
        }
        self
    }

    /// The reference with the least distance.
    pub(super) fn nearest(&self) -> Option<usize> {
        let distance = |i: &usize| self.references[*i].distance;
        (0..self.references.len()).min_by(|a, b| distance(a).total_cmp(&distance(b)))
    }

    /// Norm of the difference from a reference over that of the reference.
    pub(super) fn relative_l2(&self, reference: usize) -> f64 {
        let one = &self.references[reference];
        (one.distance / one.squares.max(f64::MIN_POSITIVE)).sqrt()
    }

    /// Correlation with the elements of a reference. 0 if one of the two is constant.
    pub(super) fn correlation(&self, reference: usize) -> f64 {
        let (one, count) = (&self.references[reference], (self.elems.max(1)) as f64);
        let shared = one.product - self.sum * one.sum / count;
        let spread = (self.squares - self.sum * self.sum / count) * (one.squares - one.sum * one.sum / count);
        if spread > 0.0 { (shared / spread.sqrt()).clamp(-1.0, 1.0) } else { 0.0 }
    }
}

/// The elements of a tensor and its references in one block.
struct Block {
    target: Vec<f64>,
    references: Vec<Vec<f64>>,
    /// Number of elements that differ, for each reference.
    changed: Vec<u64>,
}

/// Reads a run of elements as numbers.
fn numbers(source: &TensorSource, start: u64, count: u64) -> Result<Vec<f64>> {
    let number = source.info().number();
    let size = number.bytes() as u64;
    let mut out = vec![0.0; to_usize(count)];
    steps::to_doubles(number, &source.read(start * size, to_usize(count * size))?, &mut out);
    Ok(out)
}

impl Block {
    fn read(target: &TensorSource, references: &[&TensorSource], start: u64, count: u64) -> Result<Self> {
        let size = target.info().number().bytes();
        let bytes = target.read(start * size as u64, to_usize(count) * size)?;
        let mut block =
            Self { target: vec![0.0; to_usize(count)], references: Vec::new(), changed: Vec::new() };
        steps::to_doubles(target.info().number(), &bytes, &mut block.target);
        for reference in references {
            let values = numbers(reference, start, count)?;
            block.changed.push(if reference.info().dtype == target.info().dtype {
                let other = reference.read(start * size as u64, bytes.len())?;
                let pairs = bytes.chunks_exact(size).zip(other.chunks_exact(size));
                pairs.filter(|(a, b)| a != b).count() as u64
            } else {
                block.target.iter().zip(&values).filter(|(a, b)| a != b).count() as u64
            });
            block.references.push(values);
        }
        for i in 0..block.target.len() {
            let is_finite = |values: &Vec<f64>| values[i].is_finite();
            if !(is_finite(&block.target) && block.references.iter().all(is_finite)) {
                block.target[i] = 0.0;
                block.references.iter_mut().for_each(|values| values[i] = 0.0);
            }
        }
        Ok(block)
    }

    fn moments(&self, number: Number) -> Moments {
        let count = self.references.len();
        let mut out = Moments::zero(count);
        out.elems = self.target.len() as u64;
        for (i, t) in self.target.iter().enumerate() {
            out.sum += t;
            out.squares += t * t;
            out.rounding += rounding_variance(number, *t);
            for (k, values) in self.references.iter().enumerate() {
                let (r, one) = (values[i], &mut out.references[k]);
                one.sum += r;
                one.squares += r * r;
                one.product += t * r;
                one.distance += (t - r) * (t - r);
            }
        }
        for (one, changed) in out.references.iter_mut().zip(&self.changed) {
            one.changed = *changed;
        }
        out
    }
}

/// All moments of a tensor and its references, which must have its shape.
pub(super) fn moments(
    target: &TensorSource,
    references: &[&TensorSource],
    progress: &dyn Progress,
) -> Result<Moments> {
    let number = target.info().number();
    let parts = by_blocks(target, references, progress, |block| block.moments(number))?;
    Ok(parts.iter().fold(Moments::zero(references.len()), Moments::plus))
}

/// Squares of the differences of two runs of elements. Those that are not finite do not count.
pub(super) fn squares_between(number: Number, a: &[u8], b: &[u8]) -> f64 {
    let numbers = |bytes: &[u8]| {
        let mut out = vec![0.0; bytes.len() / number.bytes()];
        steps::to_doubles(number, bytes, &mut out);
        out
    };
    let squares = numbers(a).into_iter().zip(numbers(b)).map(|(a, b)| (a - b) * (a - b));
    squares.filter(|square| square.is_finite()).sum()
}

fn by_blocks<T: Send>(
    target: &TensorSource,
    references: &[&TensorSource],
    progress: &dyn Progress,
    each: impl Fn(&Block) -> T + Sync,
) -> Result<Vec<T>> {
    let elems = target.info().len_bytes() / target.info().number().bytes() as u64;
    let blocks = 0..to_usize(elems.div_ceil(BLOCK_ELEMS));
    let of_block = |i: usize| {
        check_cancelled(progress)?;
        let start = i as u64 * BLOCK_ELEMS;
        Ok(each(&Block::read(target, references, start, BLOCK_ELEMS.min(elems - start))?))
    };
    blocks.into_par_iter().map(of_block).collect()
}

/// Variance of the error of rounding to an element near `value`: a uniform error within half a ULP.
fn rounding_variance(number: Number, value: f64) -> f64 {
    if number.kind() != NumberKind::Float {
        return 1.0 / 12.0;
    }
    let least = 2 - (1i32 << (number.exponent_bits() - 1));
    let exponent = (value.to_bits() >> 52 & 0x7ff) as i32 - 1023;
    let mantissa = number.mantissa_bits().cast_signed();
    2f64.powi(2 * (exponent.max(least) - mantissa)) / 12.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_a_twelfth_of_a_square_ulp() {
        let bf16 = Number::float(8, 7);
        assert_eq!(rounding_variance(bf16, 1.5), 2f64.powi(-14) / 12.0);
        assert_eq!(rounding_variance(bf16, -3.0), 2f64.powi(-12) / 12.0);
        assert_eq!(rounding_variance(Number::float(5, 10), 0.0), 2f64.powi(-48) / 12.0);
        assert_eq!(rounding_variance(Number::signed(8), 7.0), 1.0 / 12.0);
    }
}
