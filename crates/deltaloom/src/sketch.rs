//! Sketches of checkpoints: samples of the tensors that hold most of the bytes, and how similar the
//! tensors of a base are to them.
//! It reads samples only. [`crate::base_search`] lists and ranks bases.

use rayon::prelude::*;

use crate::bases::{Base, TensorSource};
use crate::checkpoint::Checkpoint;
use crate::entropy::log2::ONE_BIT;
use crate::error::Result;
use crate::origin::content::{self, ContentIndex};
use crate::origin::{converted, identical, view};
use crate::plan;
use crate::sample;
use crate::tensor::TensorInfo;

/// Number of sampled tensors. In a checkpoint with more, evenly spaced bytes choose the tensors.
const TENSORS: usize = 128;

/// A sampled tensor of the checkpoint that bases are compared with, in the dtype in which it would
/// be coded.
struct TensorSketch {
    info: TensorInfo,
    /// Bytes of the checkpoint that it represents.
    weight_bytes: u64,
    sample: Vec<u8>,
    /// Bits of the sample as it is stored, and estimated bits on its own, in 1/65536.
    stored: u64,
    alone: u64,
}

/// A checkpoint, as far as bases are compared with it.
pub(crate) struct Sketch {
    tensors: Vec<TensorSketch>,
}

/// Estimated bytes of a checkpoint, extrapolated from its sampled tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Nearness {
    /// Original size.
    pub(crate) original_bytes: u64,
    /// Size if packed on its own.
    pub(crate) alone_bytes: u64,
    /// Size if packed against the base.
    pub(crate) given_bytes: u64,
    /// Size of the tensors that have a counterpart of their shape.
    pub(crate) matched_bytes: u64,
    /// Size of the tensors whose sample is in the base, perhaps after rounding.
    pub(crate) identical_bytes: u64,
    /// Packed size of those on their own.
    pub(crate) identical_alone_bytes: u64,
}

/// Smallest useful saving in tensors that differ, in 1/10000 of their size alone, and smallest
/// useful share of identical tensors, in the same unit. Either makes a base (docs/adr/0021).
pub(crate) const LEAST_SAVING: u64 = 200;
pub(crate) const LEAST_IDENTICAL: u64 = 2500;

impl Nearness {
    /// The saving of the base, in 1/10000 of packing alone.
    pub(crate) fn saving(&self) -> u64 {
        per_myriad(self.alone_bytes.saturating_sub(self.given_bytes), self.alone_bytes)
    }

    /// The same for tensors that are not identical. Constants, which independent trainings share,
    /// do not count.
    pub(crate) fn changed_saving(&self) -> u64 {
        let alone = self.alone_bytes.saturating_sub(self.identical_alone_bytes);
        per_myriad(alone.saturating_sub(self.given_bytes), alone)
    }

    /// Whether packing against the base is worth depending on it.
    pub(crate) fn is_useful(&self) -> bool {
        self.changed_saving() >= LEAST_SAVING
            || per_myriad(self.identical_bytes, self.original_bytes) >= LEAST_IDENTICAL
    }
}

impl Sketch {
    /// Samples the tensors of a checkpoint, except small files.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let tensors: Vec<(usize, &TensorInfo)> =
            checkpoint.typed().filter(|(_, info)| info.len_bytes() > 0).collect();
        let sizes: Vec<u64> = tensors.iter().map(|(_, info)| info.len_bytes()).collect();
        let sketch = |(i, weight_bytes): (usize, u64)| {
            let (member, info) = tensors[i];
            let sample = sample::read(info, sample::ELEMS, |offset, len| {
                let mut bytes = vec![0; len];
                checkpoint.read(member, info, offset, &mut bytes)?;
                Ok(bytes)
            })?;
            let stored = sample.len() as u64 * 8 * ONE_BIT;
            let alone = plan::stand_alone_cost(info.number(), &sample).min(stored);
            Ok(match converted::score(&info.dtype, &sample) {
                None => TensorSketch { info: info.clone(), weight_bytes, sample, stored, alone },
                Some(dtype) => {
                    let sample = converted::converted(&sample, &info.dtype, &dtype);
                    TensorSketch { info: info.of_dtype(dtype), weight_bytes, sample, stored, alone }
                }
            })
        };
        let tensors = weights(&sizes).into_par_iter().map(sketch).collect::<Result<_>>()?;
        Ok(Self { tensors })
    }

    /// Bytes of all samples.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.sample.len() as u64).sum()
    }

    /// The sizes without any base.
    pub(crate) fn alone(&self) -> Nearness {
        self.tensors.iter().map(|tensor| tensor.nearness(None)).fold(Nearness::default(), Nearness::plus)
    }

    /// How similar a base is. Only samples are read: those of the counterparts, and where a tensor
    /// has none that is near, those of all tensors of its kind.
    pub(crate) fn compare(&self, base: &Base) -> Result<Nearness> {
        let named = |tensor: &TensorSketch| tensor.counterpart(base);
        let named: Vec<Option<Vec<u8>>> = self.tensors.par_iter().map(named).collect::<Result<_>>()?;
        let pairs: Vec<(&TensorSketch, Option<Vec<u8>>)> = self.tensors.iter().zip(named).collect();
        let lacking: Vec<&TensorInfo> = pairs
            .iter()
            .filter(|(tensor, named)| !named.as_ref().is_some_and(|other| tensor.is_near(other)))
            .map(|(tensor, _)| &tensor.info)
            .collect();
        let is_wanted = |source: &&TensorSource| {
            lacking.iter().any(|info| source.is_like(info) || view::applies(info, source))
        };
        let index = ContentIndex::new(base.tensors().iter().filter(is_wanted).collect())?;
        let each = |(tensor, named): &(&TensorSketch, Option<Vec<u8>>)| {
            let by_name = tensor.nearness(named.as_ref());
            if named.as_ref().is_some_and(|other| tensor.is_near(other)) {
                return Ok(by_name);
            }
            let alike = index.find(&tensor.info, &tensor.sample).first().copied();
            let others = || {
                let fits = |source: &TensorSource| view::applies(&tensor.info, source);
                index.similar(&tensor.info, &tensor.sample, fits).first().copied()
            };
            let found = alike.or_else(others).map(|source| tensor.sample_of(source)).transpose()?;
            let by_content = tensor.nearness(found.as_ref());
            Ok(if by_content.given_bytes < by_name.given_bytes { by_content } else { by_name })
        };
        let all = pairs.par_iter().map(each).collect::<Result<Vec<Nearness>>>()?;
        Ok(all.into_iter().fold(Nearness::default(), Nearness::plus))
    }
}

impl Nearness {
    fn plus(self, other: Self) -> Self {
        Self {
            original_bytes: self.original_bytes + other.original_bytes,
            alone_bytes: self.alone_bytes + other.alone_bytes,
            given_bytes: self.given_bytes + other.given_bytes,
            matched_bytes: self.matched_bytes + other.matched_bytes,
            identical_bytes: self.identical_bytes + other.identical_bytes,
            identical_alone_bytes: self.identical_alone_bytes + other.identical_alone_bytes,
        }
    }
}

impl TensorSketch {
    /// The sample of the base's counterpart: a tensor of the same kind, or else of another dtype or
    /// shape.
    fn counterpart(&self, base: &Base) -> Result<Option<Vec<u8>>> {
        let found = identical::counterpart(&self.info, base).or_else(|| view::counterpart(&self.info, base));
        found.map(|source| self.sample_of(source)).transpose()
    }

    /// The sample of a tensor in the dtype of this one.
    fn sample_of(&self, source: &TensorSource) -> Result<Vec<u8>> {
        Ok(converted::converted(&sample::of(source)?, &source.info().dtype, &self.info.dtype))
    }

    /// Whether no better counterpart is looked for.
    fn is_near(&self, other: &[u8]) -> bool {
        content::is_near(&self.info, &self.sample, other)
    }

    fn nearness(&self, counterpart: Option<&Vec<u8>>) -> Nearness {
        let bytes = |bits: u64| {
            saturated(u128::from(self.weight_bytes) * u128::from(bits) / u128::from(self.stored.max(1)))
        };
        let given = match counterpart {
            None => self.alone,
            Some(other) if *other == self.sample => 0,
            Some(other) => plan::residual_cost(self.info.number(), &self.sample, other).min(self.alone),
        };
        Nearness {
            original_bytes: self.weight_bytes,
            alone_bytes: bytes(self.alone),
            given_bytes: bytes(given),
            matched_bytes: if counterpart.is_some() { self.weight_bytes } else { 0 },
            identical_bytes: if given == 0 { self.weight_bytes } else { 0 },
            identical_alone_bytes: if given == 0 { bytes(self.alone) } else { 0 },
        }
    }
}

/// A share in 1/10000.
fn per_myriad(part: u64, whole: u64) -> u64 {
    saturated(u128::from(part) * 10_000 / u128::from(whole.max(1)))
}

/// Estimates are compared and reported, not written, so a bound does for them.
fn saturated(estimate: u128) -> u64 {
    u64::try_from(estimate).unwrap_or(u64::MAX)
}

/// Which tensors are sampled, given the sizes of all, and how many bytes each represents.
fn weights(sizes: &[u64]) -> Vec<(usize, u64)> {
    if sizes.len() <= TENSORS {
        return sizes.iter().copied().enumerate().collect();
    }
    let total: u128 = sizes.iter().map(|size| u128::from(*size)).sum();
    let place = |i: u128| saturated(total * i / TENSORS as u128);
    let mut weights: Vec<(usize, u64)> = Vec::new();
    let (mut tensor, mut end) = (0, sizes[0]);
    for i in 0..TENSORS as u128 {
        let (from, to) = (place(i), place(i + 1));
        while end <= from + (to - from) / 2 {
            tensor += 1;
            end = end.saturating_add(sizes[tensor]);
        }
        match weights.last_mut() {
            Some((last, weight)) if *last == tensor => *weight += to - from,
            _ => weights.push((tensor, to - from)),
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampled_tensors_stand_for_all_bytes() {
        assert_eq!(weights(&[]), []);
        assert_eq!(weights(&[3, 5]), [(0, 3), (1, 5)]);
        let mut sizes = vec![1000; 500];
        sizes[7] = 500_000;
        let chosen = weights(&sizes);
        assert!(chosen.len() <= TENSORS && chosen.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(chosen.iter().map(|(_, weight)| weight).sum::<u64>(), 999_000);
        let large = chosen.iter().find(|(tensor, _)| *tensor == 7).unwrap().1;
        assert!(large.abs_diff(500_000) < 10_000, "{large}");
    }

    #[test]
    fn constants_that_happen_to_be_equal_make_no_base() {
        let nearness = |alone_bytes, given_bytes, identical| Nearness {
            original_bytes: 2000,
            alone_bytes,
            given_bytes,
            matched_bytes: 2000,
            identical_bytes: identical,
            identical_alone_bytes: identical,
        };
        assert!(!nearness(0, 0, 0).is_useful());
        assert!(!nearness(1000, 990, 0).is_useful());
        assert!(nearness(1000, 980, 0).is_useful());
        // Silero VAD: 15 % identical, the rest independent.
        let silero = nearness(2000, 1690, 300);
        assert_eq!((silero.saving(), silero.changed_saving(), silero.is_useful()), (1550, 58, false));
        assert!(nearness(2000, 1500, 500).is_useful());
    }
}
