//! A step of Adam from the state before it: the second moment from the first ones, the weights from
//! both; docs/format.md section 3.4.
//! It computes a prediction from known numbers. [`crate::origin`] finds the numbers.
//!
//! Kingma, Ba, "Adam: A Method for Stochastic Optimization", 2014; Loshchilov, Hutter, "Decoupled
//! Weight Decay Regularization", 2017.

use std::fmt;

use super::fields;
use super::number::{Element, load, round_to_single, store_or};
use crate::entropy::bytes::{ByteReader, push_varint};
use crate::error::Result;

/// What is predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum AdamForm {
    /// The mean of squares. The gradient follows from the first moments before and after the step.
    SecondMoment,
    /// The weights.
    Weights,
}

/// A step of Adam. Its inputs are first its references, which are tensors of bases, then its
/// tensors, which are in the same container.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Adam {
    /// What is predicted.
    pub form: AdamForm,
    /// Whether operations are rounded to F32; otherwise they are those of F64.
    pub is_single: bool,
    /// Names of the old second and first moment, or of the old weights. `None` stands for the
    /// tensor's own name.
    pub references: Vec<Option<String>>,
    /// Numbers of the new first moment, or of both new moments.
    pub tensors: Vec<usize>,
    /// The decay rates of both moments. Or for weights: their decay factor, the step size, and the
    /// number that is added to the root.
    pub numbers: Vec<f64>,
}

const FORMS: [AdamForm; 2] = [AdamForm::SecondMoment, AdamForm::Weights];

/// Number of references and tensors together, the same for every form.
pub(crate) const ADAM_INPUTS: usize = 3;
/// Elements computed at a time.
const BLOCK: usize = 256;

impl AdamForm {
    pub(crate) fn reference_count(self) -> usize {
        match self {
            Self::SecondMoment => 2,
            Self::Weights => 1,
        }
    }

    pub(crate) fn number_count(self) -> usize {
        match self {
            Self::SecondMoment => 2,
            Self::Weights => 3,
        }
    }
}

impl Adam {
    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        meta.push(match self.form {
            AdamForm::SecondMoment => 0,
            AdamForm::Weights => 1,
        });
        meta.push(u8::from(self.is_single));
        self.references.iter().for_each(|name| fields::push_name(meta, name));
        self.tensors.iter().for_each(|tensor| push_varint(meta, *tensor as u64));
        meta.extend(self.numbers.iter().flat_map(|number| number.to_le_bytes()));
    }

    pub(super) fn parse(meta: &mut ByteReader<'_>) -> Result<Self> {
        let form = *FORMS.get(usize::from(meta.u8()?)).ok_or_else(|| fields::bad("form"))?;
        let is_single = match meta.u8()? {
            0 => false,
            1 => true,
            _ => return Err(fields::bad("precision")),
        };
        let reference_count = form.reference_count();
        let references = (0..reference_count).map(|_| fields::name(meta)).collect::<Result<_>>()?;
        let tensors = (reference_count..ADAM_INPUTS).map(|_| meta.size()).collect::<Result<_>>()?;
        let mut number = || fields::finite(f64::from_le_bytes(meta.array()?), "number");
        let numbers = (0..form.number_count()).map(|_| number()).collect::<Result<_>>()?;
        Ok(Self { form, is_single, references, tensors, numbers })
    }

    /// Computes the prediction of a run of F32 elements. Each input has the bytes of the same run.
    pub(crate) fn predict(&self, inputs: [&[u8]; ADAM_INPUTS], out: &mut [u8]) {
        if self.is_single {
            self.compute(inputs, out, round_to_single)
        } else {
            self.compute(inputs, out, |x| x)
        }
    }

    fn compute(&self, inputs: [&[u8]; ADAM_INPUTS], out: &mut [u8], round: impl Fn(f64) -> f64 + Copy) {
        match (self.form, &self.numbers[..]) {
            (AdamForm::SecondMoment, [b1, b2]) => {
                let (old_share, new_share) = (round(*b2), round(1.0 - b2));
                for_elements(inputs, out, |v, m, new_m| {
                    let gradient = round((new_m - b1 * m) / (1.0 - b1));
                    round(round(old_share * v) + round(round(new_share * gradient) * gradient))
                });
            }
            (AdamForm::Weights, [decay, rate, epsilon]) => {
                let (decay, rate, epsilon) = (round(*decay), round(*rate), round(*epsilon));
                for_elements(inputs, out, |w, new_m, new_v| {
                    let root = round(round(new_v.sqrt()) + epsilon);
                    round(round(decay * w) - round(round(rate * new_m) / root))
                });
            }
            // Parsing guarantees that each form has its numbers.
            _ => out.copy_from_slice(inputs[0]),
        }
    }
}

impl fmt::Display for Adam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.form {
            AdamForm::SecondMoment => "second moment",
            AdamForm::Weights => "weights",
        };
        write!(f, "{form}")?;
        self.numbers.iter().try_for_each(|number| write!(f, " {number}"))
    }
}

fn for_elements(inputs: [&[u8]; ADAM_INPUTS], out: &mut [u8], element: impl Fn(f64, f64, f64) -> f64) {
    let size = Element::F32.bytes();
    let mut values = [[0.0; BLOCK]; ADAM_INPUTS];
    let mut result = [0.0; BLOCK];
    for start in (0..out.len() / size).step_by(BLOCK) {
        let count = BLOCK.min(out.len() / size - start);
        let bytes = start * size..(start + count) * size;
        for (values, input) in values.iter_mut().zip(inputs) {
            load(Element::F32, &input[bytes.clone()], &mut values[..count]);
        }
        for (i, result) in result.iter_mut().enumerate() {
            *result = element(values[0][i], values[1][i], values[2][i]);
        }
        store_or(Element::F32, &result[..count], &inputs[0][bytes.clone()], &mut out[bytes]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predict(form: AdamForm, is_single: bool, numbers: &[f64], inputs: [&[f32]; 3]) -> Vec<u32> {
        let files = inputs.map(|values| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
        let count = form.reference_count();
        let adam = Adam {
            form,
            is_single,
            references: vec![None; count],
            tensors: vec![0; 3 - count],
            numbers: numbers.to_vec(),
        };
        let mut out = vec![1; files[0].len()];
        adam.predict([&files[0], &files[1], &files[2]], &mut out);
        out.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }

    #[test]
    fn weights_are_those_of_arithmetic_in_single_precision() {
        let (w, m, v) = ([0.0123f32; 300], [-3.4e-5f32; 300], [7.7e-10f32; 300]);
        let numbers = [1.0 - 1e-4, 3e-4, 1e-8];
        let [decay, rate, epsilon] = [0.9999f32, 3e-4, 1e-8];
        let expected = decay * w[0] - rate * m[0] / (v[0].sqrt() + epsilon);
        assert_eq!(predict(AdamForm::Weights, true, &numbers, [&w, &m, &v])[299], expected.to_bits());
        let double = numbers[0] * f64::from(w[0])
            - numbers[1] * f64::from(m[0]) / (f64::from(v[0]).sqrt() + numbers[2]);
        #[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is what is meant")]
        let double = (double as f32).to_bits();
        assert_eq!(predict(AdamForm::Weights, false, &numbers, [&w, &m, &v])[299], double);
    }

    #[test]
    fn second_moments_follow_from_the_gradient() {
        let (v, m, gradient) = (1e-6f32, 1e-3f32, 2e-3f32);
        let new_m = m + 0.1 * (gradient - m);
        let expected = 0.95 * v + 0.05 * gradient * gradient;
        for is_single in [false, true] {
            let [bits] = predict(AdamForm::SecondMoment, is_single, &[0.9, 0.95], [&[v], &[m], &[new_m]])[..]
            else {
                unreachable!()
            };
            assert!((f32::from_bits(bits) / expected - 1.0).abs() < 1e-6, "{is_single}");
        }
    }

    #[test]
    fn what_is_not_finite_is_the_first_reference() {
        let nan = f32::from_bits(0x7fa1_2345);
        let first = [1.0, nan, 2.0, f32::INFINITY, 0.0];
        let (second, third) = ([f32::NAN, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, -1.0, 1.0, 0.0]);
        for is_single in [false, true] {
            // A root of a negative number, and a division by zero.
            let bits = predict(AdamForm::Weights, is_single, &[1.0, 1.0, 0.0], [&first, &second, &third]);
            assert_eq!(bits, first.map(f32::to_bits));
            let bits = predict(AdamForm::SecondMoment, is_single, &[1.0, 0.5], [&first, &second, &third]);
            assert_eq!(bits[..4], first.map(f32::to_bits)[..4]);
        }
    }
}
