//! A tensor that is a reference times one number, as merge tools write layers that they scale, and
//! as weights become that only decayed.
//! Each element says which numbers round to it; what all of them have in common is the number.

use super::subject::Subject;
use super::{Origin, reference_name};
use crate::bases::TensorSource;
use crate::error::Result;
use crate::predict::{Blend, BlendForm, Element, Precision, Predictor, load};
use crate::progress::{Progress, check_cancelled};

/// Fewer elements are no evidence.
const LEAST_ELEMS: usize = 64;

/// The numbers that turn all elements of a reference into those of a tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    low: f64,
    high: f64,
    /// The sign, once an element has shown it.
    sign: Option<bool>,
    elems: usize,
}

impl Numbers {
    pub(super) const ALL: Self = Self { low: 0.0, high: f64::MAX, sign: None, elems: 0 };

    /// Only those that also turn these elements into each other. `None` if there are none.
    pub(super) fn and(mut self, element: Element, target: &[u8], reference: &[u8]) -> Option<Self> {
        let size = element.bytes();
        for (target, reference) in target.chunks_exact(size).zip(reference.chunks_exact(size)) {
            let bits =
                |bytes: &[u8]| bytes.iter().rev().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
            let top = 1u64 << (8 * size - 1);
            let (target, reference) = (bits(target), bits(reference));
            let (target_size, reference_size) = (target & (top - 1), reference & (top - 1));
            let of_size = |size: u64| value_of(element, &size.to_le_bytes());
            let [below, exact, above] =
                [target_size.saturating_sub(1), target_size, target_size + 1].map(of_size);
            let reference_value = of_size(reference_size);
            if !above.is_finite() || !reference_value.is_finite() || reference_size == 0 {
                // Zero stays zero. What is not finite is left to the residual.
                if reference_size == 0 && target_size != 0 {
                    return None;
                }
                continue;
            }
            self.low = self.low.max((below + exact) / 2.0 / reference_value);
            self.high = self.high.min((exact + above) / 2.0 / reference_value);
            if target_size > 0 {
                let is_negative = (target ^ reference) & top != 0;
                if *self.sign.get_or_insert(is_negative) != is_negative {
                    return None;
                }
            }
            self.elems += 1;
            if self.low > self.high {
                return None;
            }
        }
        Some(self)
    }

    /// The number in the middle, if there are enough elements.
    fn number(self) -> Option<f64> {
        self.middle().filter(|_| self.elems >= LEAST_ELEMS)
    }

    /// The F32 number in the middle, unless 1 is one of the numbers.
    pub(super) fn middle(self) -> Option<f64> {
        let is_negative = self.sign?;
        if self.high == f64::MAX || (!is_negative && (self.low..=self.high).contains(&1.0)) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "it is rounded")]
        let middle = f64::from(((self.low + self.high) / 2.0) as f32);
        Some(if is_negative { -middle } else { middle })
    }
}

/// The number of the first element in some bytes.
pub(super) fn value_of(element: Element, bytes: &[u8]) -> f64 {
    let mut value = [0.0];
    load(element, &bytes[..element.bytes()], &mut value);
    value[0]
}

/// The numbers that explain a sample.
fn score(element: Element, sample: &[u8], reference: &[u8]) -> Option<Numbers> {
    Numbers::ALL.and(element, sample, reference).filter(|numbers| numbers.number().is_some())
}

/// The prediction from a multiple of `reference`, if one number explains the tensor. The samples
/// are those of both.
pub(super) fn fit(
    subject: Subject<'_>,
    sample: &[u8],
    reference: &TensorSource,
    reference_sample: &[u8],
    progress: &dyn Progress,
) -> Result<Option<Origin>> {
    let info = subject.info();
    let Some(element) = Element::of(&info.dtype) else { return Ok(None) };
    let Some(mut numbers) = score(element, sample, reference_sample) else { return Ok(None) };
    // All elements narrow it down. If some were changed afterwards, the sample has to do.
    for (offset, len) in info.blocks(1) {
        check_cancelled(progress)?;
        match numbers.and(element, &subject.read(offset, len)?, &reference.read(offset, len)?) {
            Some(narrower) => numbers = narrower,
            None => break,
        }
    }
    let Some(number) = numbers.number() else { return Ok(None) };
    let blend = Blend {
        form: BlendForm::Linear,
        precision: Precision::Single,
        references: vec![reference_name(info, reference)],
        numbers: vec![number],
    };
    let predictor = Predictor::Blend(Box::new(blend));
    Origin::coded(predictor, vec![reference.clone()]).with_reference_digests().map(Some)
}
