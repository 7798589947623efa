//! How long it takes from a stored difference to a result: load, decompress, apply, state load and
//! forward, per parameter and in total. Also how much could be gained at best by removing a step.
//!
//! The caller provides the forward pass; sizes are in [`super::statistics`].

use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use crate::rounds::Rounds;
use crate::statistics::{Pair, XOR_ZSTD_LEVEL, pairs};
use deltaloom::__internals::{frame, to_usize};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::{DType, TensorInfo};
use deltaloom::{Bases, Container, Error, Limits, ResolvedContainer, Result, Silent};

/// A stored difference.
#[derive(Debug, Clone)]
pub enum Stored {
    /// XOR with the base and zstd 10, one frame per tensor, in the order of the fine-tune's file.
    XorZstd(Vec<Vec<u8>>),
    /// A container.
    Packed(Vec<u8>),
}

impl Stored {
    /// Compresses every tensor of a fine-tune with XOR and zstd 10.
    ///
    /// # Errors
    /// As [`super::statistics::measure`].
    pub fn xor_zstd(base: &Checkpoint, tuned: &Checkpoint) -> Result<Self> {
        let of_pair =
            |pair: &Pair<'_>| frame::compress(&pair.xor(base, tuned)?, XOR_ZSTD_LEVEL).map_err(Error::io(""));
        Ok(Self::XorZstd(pairs(base, tuned)?.iter().map(of_pair).collect::<Result<_>>()?))
    }
}

/// A parameter in the form that a forward pass uses.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// Name.
    pub name: String,
    /// Sizes of the dimensions.
    pub shape: Vec<u64>,
    /// The elements, row by row, in FP32 whatever their stored type is.
    pub values: Vec<f32>,
}

/// Mean and sample standard deviation over the repeats; the deviation of one repeat is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Seconds {
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub deviation: f64,
}

/// Times of a parameter's steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ParameterTiming {
    /// Name.
    pub name: String,
    /// From stored bytes to bytes of the difference.
    pub decompress: Seconds,
    /// From bytes of the difference to those of the tensor.
    pub apply: Seconds,
    /// From bytes to the numbers of the forward pass.
    pub state_load: Seconds,
    /// Sum of all three.
    pub total: Seconds,
}

/// End-to-end time if steps cost nothing: no implementation of them can gain more.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct WhatIf {
    /// Seconds if applying took no time. If applying is a part of decompressing, the same as with
    /// it.
    pub without_apply: f64,
    /// Seconds if decompressing and applying took no time.
    pub without_apply_and_decompress: f64,
}

/// Wall times, on the threads of the pool in which they were measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Timing {
    /// Number of measured rounds, after a warm-up round.
    pub repeats: usize,
    /// Opening the stored form; for a container, also finding its references by their digests.
    pub load: Seconds,
    /// Sum over all parameters.
    pub decompress: Seconds,
    /// Sum over all parameters.
    pub apply: Seconds,
    /// Whether decompressing already gives elements, so that it includes applying, as in a
    /// container.
    pub decompress_applies: bool,
    /// Sum over all parameters.
    pub state_load: Seconds,
    /// The caller's forward pass.
    pub forward: Seconds,
    /// Everything together.
    pub end_to_end: Seconds,
    /// Bounds on what can be gained.
    pub what_if: WhatIf,
    /// The parameters, slowest first.
    pub parameters: Vec<ParameterTiming>,
}

/// Runs all phases `repeats` times after a warm-up. Each time it passes the fine-tune's parameters
/// to `forward`.
///
/// # Errors
/// [`Error::InvalidArgument`] if there are no repeats, if the frames or the container have other
/// tensors, or for a dtype other than F32, BF16 and F16. Also errors of opening, decoding or
/// `forward`.
pub fn measure(
    stored: &Stored,
    base: &Checkpoint,
    tuned: &Checkpoint,
    repeats: usize,
    forward: &mut dyn FnMut(&[Weights]) -> Result<()>,
) -> Result<Timing> {
    let counted = Rounds::new(repeats)?;
    let pairs = pairs(base, tuned)?;
    let bases: Vec<Vec<u8>> = pairs.iter().map(|pair| pair.base_bytes(base)).collect::<Result<_>>()?;
    let rounds = counted.run(&mut [stored], &Silent, |stored, _| match stored {
        Stored::XorZstd(frames) => xor_round(frames, &pairs, &bases, forward),
        Stored::Packed(bytes) => packed_round(bytes, base, &pairs, forward),
    })?;
    Ok(timing(&rounds.concat(), &pairs, matches!(stored, Stored::Packed(_))))
}

/// Seconds of one repeat; decompress, apply and state load are per parameter.
#[derive(Debug, Clone, Default)]
struct Round {
    load: f64,
    steps: Vec<[f64; 3]>,
    forward: f64,
    end_to_end: f64,
}

fn timed<T>(seconds: &mut f64, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let done = work();
    *seconds += start.elapsed().as_secs_f64();
    done
}

type Forward<'a> = &'a mut dyn FnMut(&[Weights]) -> Result<()>;

fn xor_round(
    frames: &[Vec<u8>],
    pairs: &[Pair<'_>],
    bases: &[Vec<u8>],
    forward: Forward<'_>,
) -> Result<Round> {
    if frames.len() != pairs.len() {
        return Err(Error::InvalidArgument(format!("{} frames for {} tensors", frames.len(), pairs.len())));
    }
    let start = Instant::now();
    let mut round = Round::default();
    // A copy stands in for reading them.
    let loaded = timed(&mut round.load, || Ok(frames.to_vec()))?;
    let mut state = Vec::with_capacity(pairs.len());
    for ((pair, frame), base) in pairs.iter().zip(&loaded).zip(bases) {
        let [mut decompress, mut apply, mut state_load] = [0.0; 3];
        let mut values = timed(&mut decompress, || frame::decompress(frame, base.len() as u64))?;
        if values.len() != base.len() {
            return Err(Error::corrupt("a frame does not have the length of its tensor"));
        }
        timed(&mut apply, || {
            values.iter_mut().zip(base).for_each(|(value, base)| *value ^= base);
            Ok(())
        })?;
        state.push(timed(&mut state_load, || weights(pair.tuned.1, &values))?);
        round.steps.push([decompress, apply, state_load]);
    }
    timed(&mut round.forward, || forward(&state))?;
    round.end_to_end = start.elapsed().as_secs_f64();
    Ok(round)
}

fn packed_round(bytes: &[u8], base: &Checkpoint, pairs: &[Pair<'_>], forward: Forward<'_>) -> Result<Round> {
    let start = Instant::now();
    let mut round = Round::default();
    let resolved = timed(&mut round.load, || {
        let container =
            Container::from_source(Path::new("container"), Box::new(bytes.to_vec()), &Limits::default())?;
        let mut bases = Bases::default();
        bases.push_checkpoint(Path::new("base"), base.clone());
        ResolvedContainer::new(container, &bases)
    })?;
    if !resolved.tensors().map(|info| &info.name).eq(pairs.iter().map(|pair| &pair.tuned.1.name)) {
        return Err(Error::InvalidArgument("the container belongs to another fine-tune".to_owned()));
    }
    let mut state = Vec::with_capacity(pairs.len());
    for (number, info) in resolved.tensors().enumerate() {
        let [mut decompress, mut state_load] = [0.0; 2];
        let values = timed(&mut decompress, || {
            let mut values = vec![0; to_usize(info.len_bytes())];
            resolved.read_into(number, &mut values)?;
            Ok(values)
        })?;
        state.push(timed(&mut state_load, || weights(info, &values))?);
        round.steps.push([decompress, 0.0, state_load]);
    }
    timed(&mut round.forward, || forward(&state))?;
    round.end_to_end = start.elapsed().as_secs_f64();
    Ok(round)
}

fn weights(info: &TensorInfo, bytes: &[u8]) -> Result<Weights> {
    let values = match info.dtype {
        DType::F32 => bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect(),
        DType::BF16 => halves(bytes, half::bf16::from_le_bytes),
        DType::F16 => halves(bytes, half::f16::from_le_bytes),
        _ => return Err(Error::InvalidArgument(format!("{}: dtype {}", info.name, info.dtype))),
    };
    Ok(Weights { name: info.name.clone(), shape: info.shape.clone(), values })
}

fn halves<T: Into<f32>>(bytes: &[u8], number: fn([u8; 2]) -> T) -> Vec<f32> {
    bytes.as_chunks::<2>().0.iter().map(|value| number(*value).into()).collect()
}

fn timing(rounds: &[Round], pairs: &[Pair<'_>], decompress_applies: bool) -> Timing {
    let of = |phase: &dyn Fn(&Round) -> f64| seconds(rounds.iter().map(phase));
    let step = |step: usize| of(&|round| round.steps.iter().map(|steps| steps[step]).sum());
    let mut parameters: Vec<ParameterTiming> = pairs
        .iter()
        .enumerate()
        .map(|(i, pair)| {
            let [decompress, apply, state_load] =
                std::array::from_fn(|step| of(&|round| round.steps[i][step]));
            let total = of(&|round| round.steps[i].iter().sum());
            ParameterTiming { name: pair.tuned.1.name.clone(), decompress, apply, state_load, total }
        })
        .collect();
    parameters.sort_by(|a, b| b.total.mean.total_cmp(&a.total.mean));
    let (decompress, apply, end_to_end) = (step(0), step(1), of(&|round| round.end_to_end));
    let without_apply = end_to_end.mean - apply.mean;
    Timing {
        repeats: rounds.len(),
        load: of(&|round| round.load),
        decompress,
        apply,
        decompress_applies,
        state_load: step(2),
        forward: of(&|round| round.forward),
        end_to_end,
        what_if: WhatIf { without_apply, without_apply_and_decompress: without_apply - decompress.mean },
        parameters,
    }
}

pub(super) fn seconds(rounds: impl ExactSizeIterator<Item = f64> + Clone) -> Seconds {
    let count = rounds.len() as f64;
    let mean = rounds.clone().sum::<f64>() / count.max(1.0);
    let squares: f64 = rounds.map(|round| (round - mean) * (round - mean)).sum();
    Seconds { mean, deviation: (squares / (count - 1.0).max(1.0)).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::ReferenceCase;
    use deltaloom::{PackOptions, pack_to};

    #[test]
    fn forward_sees_the_fine_tune_in_every_round_and_times_add_up() {
        let case = ReferenceCase::default();
        let layer = case.base();
        let tuned_layer = case.tuned(&layer, 0).unwrap();
        let (base, tuned) = (layer.to_checkpoint().unwrap(), tuned_layer.to_checkpoint().unwrap());
        let mut bases = Bases::default();
        bases.push_checkpoint(Path::new("base"), base.clone());
        let mut packed = Vec::new();
        let options = PackOptions::default().with_threads(1);
        pack_to(&tuned, &bases, &mut packed, &options, &Silent).unwrap();
        for stored in [Stored::xor_zstd(&base, &tuned).unwrap(), Stored::Packed(packed)] {
            let mut calls = 0;
            let mut forward = |state: &[Weights]| {
                calls += 1;
                let is_tuned = state.iter().zip(&tuned_layer.parameters).all(|(weights, parameter)| {
                    (&weights.name[..], &weights.values) == (parameter.name, &parameter.values)
                });
                assert!(is_tuned && state.len() == 12);
                Ok(())
            };
            let timing = measure(&stored, &base, &tuned, 3, &mut forward).unwrap();
            assert_eq!((calls, timing.repeats, timing.parameters.len()), (4, 3, 12));
            let phases = [timing.load, timing.decompress, timing.apply, timing.state_load, timing.forward]
                .map(|p| p.mean);
            assert!(phases.iter().all(|phase| *phase >= 0.0) && timing.decompress.mean > 0.0);
            assert!(phases.iter().sum::<f64>() <= timing.end_to_end.mean * 1.000_001);
            assert!(timing.what_if.without_apply_and_decompress < timing.what_if.without_apply);
            assert!(timing.parameters.windows(2).all(|w| w[0].total.mean >= w[1].total.mean));
            assert!(measure(&stored, &base, &tuned, 0, &mut |_| Ok(())).is_err());
        }
        let none = Stored::XorZstd(Vec::new());
        assert!(measure(&none, &base, &tuned, 1, &mut |_| Ok(())).is_err());
        let stopped = Stored::xor_zstd(&base, &tuned).unwrap();
        assert!(matches!(
            measure(&stopped, &base, &tuned, 1, &mut |_| Err(Error::Cancelled)),
            Err(Error::Cancelled)
        ));
    }

    #[test]
    fn mean_and_deviation_are_those_of_a_sample() {
        let three = seconds([1.0, 2.0, 3.0].into_iter());
        assert_eq!((three.mean.to_bits(), three.deviation.to_bits()), (2f64.to_bits(), 1f64.to_bits()));
        assert_eq!(seconds([5.0].into_iter()).deviation.to_bits(), 0);
    }
}
