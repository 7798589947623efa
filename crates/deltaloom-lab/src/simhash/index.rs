//! Near-duplicate tensors across checkpoints: a signature for each tensor, and the nearest one by
//! Hamming distance among those of the same shape.
//!
//! It finds candidates. The estimate comes with the cosine of the samples, and only equal digests
//! prove an exact duplicate.

use std::collections::BTreeMap;
use std::f64::consts::PI;
use std::ops::Range;

use deltaloom_kernels::signature::distances;
use rayon::prelude::*;
use serde::Serialize;

use super::directions::{Directions, Projection, signs, words_of};
use deltaloom::__internals::{Element, check_cancelled, load_singles, sample, to_usize};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::TensorInfo;
use deltaloom::{Error, Progress, Result};

/// Elements of a sample, and number of sums into which a whole tensor is folded.
const DIMS: usize = 4096;
/// Bytes of a tensor to read at a time.
const READ_BYTES: u64 = 1 << 20;

/// How tensors are compared.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexSettings {
    /// Bits of a signature: a multiple of 64 up to 1024.
    pub bits: usize,
    /// Least estimated cosine of a reported pair.
    pub least_similarity: f64,
    /// Whether every element is read, instead of a sample of 4096. It is replaced by 4096 sums of
    /// elements with random signs.
    pub whole: bool,
    /// Each seed draws different directions.
    pub seed: u64,
}

/// A tensor and the nearest one in another checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DuplicatePair {
    /// Index of the first tensor's checkpoint, in the order of the arguments.
    pub first_checkpoint: usize,
    /// Its name.
    pub first_tensor: String,
    /// Its dtype.
    pub first_dtype: String,
    /// Index of the second tensor's checkpoint.
    pub second_checkpoint: usize,
    /// Its name.
    pub second_tensor: String,
    /// Its dtype.
    pub second_dtype: String,
    /// Shape of both.
    pub shape: Vec<u64>,
    /// Number of bits in which the signatures differ.
    pub distance: u16,
    /// Cosine of the angle for this distance.
    pub similarity: f64,
    /// Cosine of the centred samples themselves, to check the estimate; `None` for constants.
    pub sample_cosine: Option<f64>,
    /// Whether dtype and digest are equal: an exact duplicate. Otherwise a near one.
    pub exact: bool,
}

/// Result of an index.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IndexReport {
    /// Number of checkpoints compared.
    pub checkpoints: usize,
    /// Number of tensors with a signature.
    pub tensors: u64,
    /// Number of tensors that are empty or not F32, BF16 or F16.
    pub skipped_tensors: u64,
    /// Bits of a signature.
    pub bits: usize,
    /// Bytes of all signatures.
    pub signature_bytes: u64,
    /// Bytes of tensors that were read for them.
    pub read_bytes: u64,
    /// Standard deviation of the estimated cosine of unrelated tensors: pi / (2 sqrt(bits)).
    pub deviation: f64,
    /// Pairs, most similar first.
    pub pairs: Vec<DuplicatePair>,
}

struct Entry<'a> {
    checkpoint: usize,
    member: usize,
    info: &'a TensorInfo,
    element: Element,
}

/// Shape, and the value of a constant tensor: only tensors that agree in both are compared.
type Kind<'a> = (&'a [u64], Option<u32>);

/// Compares the tensors of checkpoints by signatures; those of a single checkpoint with each other.
///
/// # Errors
/// [`Error::InvalidArgument`] for an invalid number of bits or similarity; [`Error::Io`];
/// [`Error::Cancelled`].
pub fn index(
    checkpoints: &[Checkpoint],
    settings: &IndexSettings,
    progress: &dyn Progress,
) -> Result<IndexReport> {
    let words = words_of(settings.bits)?;
    if !(-1.0..=1.0).contains(&settings.least_similarity) {
        return Err(Error::InvalidArgument(format!(
            "similarity {}: must be a cosine from -1 to 1",
            settings.least_similarity
        )));
    }
    let (entries, skipped_tensors) = entries(checkpoints);
    let read_bytes = entries.iter().map(|entry| entry.read_bytes(settings.whole)).sum();
    progress.start(read_bytes);
    let directions = Directions::new(Projection::Gaussian, words, DIMS, settings.seed);
    let sign = |entry: &Entry<'_>| {
        check_cancelled(progress)?;
        let vector = if settings.whole {
            folded(entry, &checkpoints[entry.checkpoint], settings.seed)?
        } else {
            entry.centred_sample(checkpoints)?
        };
        progress.advance(entry.read_bytes(settings.whole));
        let mut signature = vec![0; words];
        match vector {
            Ok(vector) => directions.sign(&vector, &mut signature),
            Err(constant) => return Ok((Some(constant), signature)),
        }
        Ok((None, signature))
    };
    let signed = entries.par_iter().map(sign).collect::<Result<Vec<_>>>()?;
    let mut kinds: BTreeMap<Kind<'_>, Vec<usize>> = BTreeMap::new();
    for (i, (entry, (constant, _))) in entries.iter().zip(&signed).enumerate() {
        kinds.entry((&entry.info.shape, constant.map(f32::to_bits))).or_default().push(i);
    }
    let signature = |i: usize| &signed[i].1[..];
    let of_kind = |members: &Vec<usize>| nearest(&entries, members, signature, checkpoints.len() == 1);
    let near: Vec<(usize, usize, u16)> =
        kinds.into_values().collect::<Vec<_>>().par_iter().flat_map_iter(of_kind).collect();
    let pair = |(a, b, distance): (usize, usize, u16)| -> Result<Option<DuplicatePair>> {
        check_cancelled(progress)?;
        let similarity = (PI * f64::from(distance) / settings.bits as f64).cos();
        if similarity < settings.least_similarity {
            return Ok(None);
        }
        let is_constant = signed[a].0.is_some();
        let (a, b) = (&entries[a], &entries[b]);
        let exact = distance == 0
            && a.info.dtype == b.info.dtype
            && a.digest(checkpoints)? == b.digest(checkpoints)?;
        if is_constant && !exact {
            return Ok(None);
        }
        let cosine = match (a.centred_sample(checkpoints)?, b.centred_sample(checkpoints)?) {
            (Ok(a), Ok(b)) => Some(cosine(&a, &b)),
            _ => None,
        };
        Ok(Some(DuplicatePair {
            first_checkpoint: a.checkpoint,
            first_tensor: a.info.name.clone(),
            first_dtype: a.info.dtype.to_string(),
            second_checkpoint: b.checkpoint,
            second_tensor: b.info.name.clone(),
            second_dtype: b.info.dtype.to_string(),
            shape: a.info.shape.clone(),
            distance,
            similarity,
            sample_cosine: cosine,
            exact,
        }))
    };
    let found = near.into_par_iter().map(pair).collect::<Result<Vec<_>>>()?;
    let mut pairs: Vec<DuplicatePair> = found.into_iter().flatten().collect();
    pairs.sort_by(|a, b| {
        let names =
            |pair: &DuplicatePair| (pair.first_checkpoint, pair.second_checkpoint, pair.first_tensor.clone());
        b.exact.cmp(&a.exact).then(a.distance.cmp(&b.distance)).then_with(|| names(a).cmp(&names(b)))
    });
    Ok(IndexReport {
        checkpoints: checkpoints.len(),
        tensors: entries.len() as u64,
        skipped_tensors,
        bits: settings.bits,
        signature_bytes: (entries.len() * words * 8) as u64,
        read_bytes,
        deviation: PI / (2.0 * (settings.bits as f64).sqrt()),
        pairs,
    })
}

/// Float tensors in the order of the checkpoints, and the number of other tensors.
fn entries(checkpoints: &[Checkpoint]) -> (Vec<Entry<'_>>, u64) {
    let (mut entries, mut skipped) = (Vec::new(), 0);
    for (number, checkpoint) in checkpoints.iter().enumerate() {
        for (member, info) in checkpoint.tensors() {
            if !checkpoint.members[member].is_typed(info) {
                continue;
            }
            match Element::of(&info.dtype) {
                Some(element) if info.len_bytes() > 0 => {
                    entries.push(Entry { checkpoint: number, member, info, element });
                }
                _ => skipped += 1,
            }
        }
    }
    (entries, skipped)
}

/// Finds the nearest tensor in each later checkpoint for each of some tensors. If there is only one
/// checkpoint, among the later tensors in it.
fn nearest<'a>(
    entries: &[Entry<'_>],
    members: &[usize],
    signature: impl Fn(usize) -> &'a [u64],
    is_single: bool,
) -> Vec<(usize, usize, u16)> {
    let signatures: Vec<u64> = members.iter().flat_map(|i| signature(*i).iter().copied()).collect();
    let of = |place: usize| entries[members[place]].checkpoint;
    let mut runs: Vec<Range<usize>> = Vec::new();
    for place in 0..members.len() {
        match runs.last_mut() {
            Some(run) if of(run.start) == of(place) => run.end = place + 1,
            _ => runs.push(place..place + 1),
        }
    }
    let mut found = Vec::new();
    let mut counts = vec![0; members.len()];
    for (place, &member) in members.iter().enumerate() {
        let query = signature(member);
        let later = runs.iter().filter_map(|run| match is_single {
            true => Some(place + 1..run.end).filter(|run| !run.is_empty()),
            false => Some(run.clone()).filter(|run| of(run.start) > of(place)),
        });
        for run in later {
            let counts = &mut counts[..run.len()];
            distances(query, &signatures[run.start * query.len()..run.end * query.len()], counts);
            let name = &entries[member].info.name;
            let best = run.clone().zip(&*counts).min_by_key(|(other, distance)| {
                (**distance, entries[members[*other]].info.name != *name, *other)
            });
            found.extend(best.map(|(other, distance)| (member, members[other], *distance)));
        }
    }
    found
}

/// A vector, or the value of a constant tensor.
type Centred = Result<Vec<f32>, f32>;

impl Entry<'_> {
    fn read_bytes(&self, whole: bool) -> u64 {
        let sampled = sample::ELEMS * self.element.bytes() as u64;
        if whole { self.info.len_bytes() } else { self.info.len_bytes().min(sampled) }
    }

    fn digest(&self, checkpoints: &[Checkpoint]) -> Result<blake3::Hash> {
        checkpoints[self.checkpoint].digest(self.member, self.info, |_| Ok(()))
    }

    /// The sample minus its mean.
    fn centred_sample(&self, checkpoints: &[Checkpoint]) -> Result<Centred> {
        let checkpoint = &checkpoints[self.checkpoint];
        let bytes = sample::read(self.info, sample::ELEMS, |offset, len| {
            let mut bytes = vec![0; len];
            checkpoint.read(self.member, self.info, offset, &mut bytes)?;
            Ok(bytes)
        })?;
        let values = finite(load_singles(self.element, &bytes));
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len().max(1) as f64;
        let first = values.first().copied().unwrap_or(0.0);
        if values.iter().all(|v| *v == first) {
            return Ok(Err(first));
        }
        Ok(Ok(values.iter().map(|v| narrow(f64::from(*v) - mean)).collect()))
    }
}

/// Sums of elements with random signs, minus the part of the mean. On average, products of such
/// vectors equal those of the centred tensors.
fn folded(entry: &Entry<'_>, checkpoint: &Checkpoint, seed: u64) -> Result<Centred> {
    let (mut sums, mut ones) = (vec![0.0f64; DIMS], vec![0.0f64; DIMS]);
    let (mut total, mut count, mut first, mut is_constant) = (0.0, 0usize, None, true);
    let mut sign = signs(!seed);
    let mut bytes = Vec::new();
    for start in (0..entry.info.len_bytes()).step_by(to_usize(READ_BYTES)) {
        bytes.resize(to_usize(READ_BYTES.min(entry.info.len_bytes() - start)), 0);
        checkpoint.read(entry.member, entry.info, start, &mut bytes)?;
        for value in finite(load_singles(entry.element, &bytes)) {
            let sign = f64::from(sign.next().unwrap_or(1.0));
            is_constant &= *first.get_or_insert(value) == value;
            total += f64::from(value);
            sums[count % DIMS] += sign * f64::from(value);
            ones[count % DIMS] += sign;
            count += 1;
        }
    }
    if is_constant {
        return Ok(Err(first.unwrap_or(0.0)));
    }
    let mean = total / count.max(1) as f64;
    Ok(Ok(sums.iter().zip(&ones).map(|(sum, one)| narrow(sum - mean * one)).collect()))
}

/// Elements that are not finite count as zero.
fn finite(mut values: Vec<f32>) -> Vec<f32> {
    values.iter_mut().filter(|v| !v.is_finite()).for_each(|v| *v = 0.0);
    values
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is intended")]
fn narrow(x: f64) -> f32 {
    x as f32
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}
