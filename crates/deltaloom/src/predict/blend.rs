//! Combinations of several references, as merge tools make them: weighted sums, task arithmetic,
//! TIES; docs/format.md section 3.3.
//! It computes a prediction from known numbers. [`crate::origin`] finds the numbers.
//!
//! Task arithmetic: Ilharco et al., "Editing Models with Task Arithmetic", 2022. TIES: Yadav et
//! al., "TIES-Merging", 2023.

use std::fmt;

use super::fields;
use super::number::{Element, load, narrow, round_to_single, store_or};
use crate::entropy::bytes::{ByteReader, push_varint};
use crate::error::Result;

/// How references are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum BlendForm {
    /// A weighted sum.
    Linear,
    /// The first reference plus weighted differences of later ones to the second.
    Task,
    /// The first reference plus the differences of the others to it, trimmed, where they agree on
    /// the sign.
    Ties,
}

/// What each operation is rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Precision {
    /// F64. The result is rounded to F32 before the tensor's dtype.
    Double,
    /// F32.
    Single,
    /// The tensor's dtype.
    Own,
}

/// A combination of references.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Blend {
    /// The form of the combination.
    pub form: BlendForm,
    /// The arithmetic of the combination.
    pub precision: Precision,
    /// Names of the references. `None` stands for the tensor's own name.
    pub references: Vec<Option<String>>,
    /// As many as the form needs.
    pub numbers: Vec<f64>,
}

const FORMS: [BlendForm; 3] = [BlendForm::Linear, BlendForm::Task, BlendForm::Ties];
const PRECISIONS: [Precision; 3] = [Precision::Double, Precision::Single, Precision::Own];

/// Most references of a blend.
pub(crate) const MAX_REFERENCES: usize = 16;
/// Elements computed at a time.
const BLOCK: usize = 256;

impl BlendForm {
    /// How many numbers this many references need. `None` if the form cannot have this many.
    pub(crate) fn number_count(self, references: usize) -> Option<usize> {
        if references > MAX_REFERENCES {
            return None;
        }
        match self {
            Self::Linear => (references >= 1).then_some(references),
            Self::Task => (references >= 3).then(|| references - 2),
            Self::Ties => (references >= 2).then(|| 2 * (references - 1) + 1),
        }
    }
}

impl Blend {
    /// The weights that the references have in the sum, trimmed differences as if they were whole.
    pub(crate) fn weights(&self) -> Vec<f64> {
        let count = self.references.len();
        match self.form {
            BlendForm::Linear => self.numbers.clone(),
            BlendForm::Task => [&[1.0, -self.numbers.iter().sum::<f64>()][..], &self.numbers].concat(),
            BlendForm::Ties => {
                let scale = self.numbers.last().copied().unwrap_or(1.0);
                let others = self.numbers.iter().skip(count - 1).take(count - 1).map(|weight| weight * scale);
                let others: Vec<f64> = others.collect();
                [&[1.0 - others.iter().sum::<f64>()][..], &others].concat()
            }
        }
    }

    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        meta.push(match self.form {
            BlendForm::Linear => 0,
            BlendForm::Task => 1,
            BlendForm::Ties => 2,
        });
        meta.push(match self.precision {
            Precision::Double => 0,
            Precision::Single => 1,
            Precision::Own => 2,
        });
        push_varint(meta, self.references.len() as u64);
        self.references.iter().for_each(|name| fields::push_name(meta, name));
        meta.extend(self.numbers.iter().flat_map(|number| number.to_le_bytes()));
    }

    pub(super) fn parse(meta: &mut ByteReader<'_>) -> Result<Self> {
        let form = *FORMS.get(usize::from(meta.u8()?)).ok_or_else(|| fields::bad("form"))?;
        let precision = *PRECISIONS.get(usize::from(meta.u8()?)).ok_or_else(|| fields::bad("precision"))?;
        let reference_count = meta.size()?;
        let number_count =
            form.number_count(reference_count).ok_or_else(|| fields::bad("number of references"))?;
        let references = (0..reference_count).map(|_| fields::name(meta)).collect::<Result<_>>()?;
        let mut number = || fields::finite(f64::from_le_bytes(meta.array()?), "number");
        let numbers = (0..number_count).map(|_| number()).collect::<Result<_>>()?;
        Ok(Self { form, precision, references, numbers })
    }

    /// Computes the prediction of a run of elements. Each reference has the bytes of the same run.
    pub(crate) fn predict(&self, element: Element, references: &[&[u8]], out: &mut [u8]) {
        let size = element.bytes();
        let round = match (self.precision, element) {
            (Precision::Double, _) => |x: f64| x,
            (Precision::Single, _) | (_, Element::F32) => round_to_single,
            (Precision::Own, Element::BF16) => |x: f64| half::bf16::from_f32(narrow(x)).to_f64(),
            (Precision::Own, Element::F16) => |x: f64| half::f16::from_f32(narrow(x)).to_f64(),
        };
        let number = |x: &f64| if self.precision == Precision::Double { *x } else { round_to_single(*x) };
        let numbers: Vec<f64> = self.numbers.iter().map(number).collect();
        let mut values = vec![[0.0; BLOCK]; references.len()];
        let mut result = [0.0; BLOCK];
        for start in (0..out.len() / size).step_by(BLOCK) {
            let count = BLOCK.min(out.len() / size - start);
            let bytes = start * size..(start + count) * size;
            for (values, reference) in values.iter_mut().zip(references) {
                load(element, &reference[bytes.clone()], &mut values[..count]);
            }
            match self.form {
                BlendForm::Linear => linear(&values, &numbers, round, &mut result),
                BlendForm::Task => task(&values, &numbers, round, &mut result),
                BlendForm::Ties => ties(&values, &numbers, round, &mut result),
            }
            store_or(element, &result[..count], &references[0][bytes.clone()], &mut out[bytes]);
        }
    }
}

impl fmt::Display for Blend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.form {
            BlendForm::Linear => "linear",
            BlendForm::Task => "task",
            BlendForm::Ties => "ties",
        };
        write!(f, "{form}")?;
        self.numbers.iter().try_for_each(|number| write!(f, " {number:.6}"))
    }
}

type Values = [f64; BLOCK];

fn linear(values: &[Values], weights: &[f64], round: fn(f64) -> f64, out: &mut Values) {
    weighted_sum(values, weights, round, out, |value, _| value);
}

fn task(values: &[Values], weights: &[f64], round: fn(f64) -> f64, out: &mut Values) {
    let [first, origin, others @ ..] = values else { return };
    weighted_sum(others, weights, round, out, |value, i| round(value - origin[i]));
    out.iter_mut().zip(first).for_each(|(out, first)| *out = round(first + *out));
}

fn weighted_sum(
    values: &[Values],
    weights: &[f64],
    round: fn(f64) -> f64,
    out: &mut Values,
    term: impl Fn(f64, usize) -> f64,
) {
    for (number, (values, weight)) in values.iter().zip(weights).enumerate() {
        for i in 0..BLOCK {
            let product = round(weight * term(values[i], i));
            out[i] = if number == 0 { product } else { round(out[i] + product) };
        }
    }
}

fn ties(values: &[Values], numbers: &[f64], round: fn(f64) -> f64, out: &mut Values) {
    let [first, others @ ..] = values else { return };
    let (thresholds, rest) = numbers.split_at(others.len());
    let Some((scale, weights)) = rest.split_last() else { return };
    for i in 0..BLOCK {
        let mut terms = [0.0; MAX_REFERENCES];
        let mut sum = 0.0;
        for (number, other) in others.iter().enumerate() {
            let difference = round(other[i] - first[i]);
            let kept = if difference.abs() < thresholds[number] { 0.0 } else { difference };
            terms[number] = round(weights[number] * kept);
            sum = if number == 0 { terms[0] } else { round(sum + terms[number]) };
        }
        let (mut update, mut total) = (0.0, 0.0);
        for (term, weight) in terms.iter().zip(weights).filter(|(term, _)| **term * sum > 0.0) {
            update = round(update + term);
            total = round(total + weight);
        }
        let mean = if total == 0.0 { 0.0 } else { round(update / total) };
        out[i] = round(first[i] + round(scale * mean));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predict(form: BlendForm, precision: Precision, references: &[&[f32]], numbers: &[f64]) -> Vec<u32> {
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let files: Vec<Vec<u8>> = references.iter().map(|values| bytes(values)).collect();
        let blend = Blend { form, precision, references: vec![None; files.len()], numbers: numbers.to_vec() };
        let mut out = vec![1; files[0].len()];
        let files: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
        blend.predict(Element::F32, &files, &mut out);
        out.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }

    #[test]
    fn what_is_not_finite_is_the_first_reference() {
        let nan = f32::from_bits(0x7fa1_2345);
        let first = [f32::MAX, nan, 1.0, f32::NEG_INFINITY, -0.0];
        let second = [f32::MAX, 1.0, f32::INFINITY, f32::INFINITY, -0.0];
        for precision in [Precision::Double, Precision::Single] {
            let bits = predict(BlendForm::Linear, precision, &[&first, &second], &[1.5, 1.5]);
            assert_eq!(bits, first.map(f32::to_bits), "{precision:?}");
            let bits = predict(BlendForm::Ties, precision, &[&first, &second], &[0.0, 1.0, 1.0]);
            assert_eq!(bits[1..4], first[1..4].iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn precisions_round_where_they_say() {
        let (x, y) = ([1.0 + f32::EPSILON; 300], [3.0; 300]);
        let sum =
            |precision| f32::from_bits(predict(BlendForm::Linear, precision, &[&x, &y], &[0.1, 0.2])[299]);
        let single = 0.1f32 * x[0] + 0.2f32 * y[0];
        let double = 0.1 * f64::from(x[0]) + 0.2 * f64::from(y[0]);
        assert_eq!(sum(Precision::Single), single);
        assert_eq!(f64::from(sum(Precision::Double)), f64::from(narrow(double)));
        assert_ne!(sum(Precision::Single), sum(Precision::Double));
    }
}
