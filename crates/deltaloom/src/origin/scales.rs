//! Scales that a quantiser computed from a base's numbers: a measure of each group, times or
//! divided by a number that all groups have in common.
//! Names limit the candidates, as for [`super::quantised`], and the number of scales the groups.

use rayon::prelude::*;

use super::layouts::{self, Shape, group_sizes};
use super::quantised::{Found, Sibling, Stems};
use super::subject::Subject;
use super::{Origin, nearest, reference_name};
use crate::bases::{Bases, TensorSource, predict_into};
use crate::error::Result;
use crate::limits::to_usize;
use crate::plan;
use crate::predict::{Blocks, Element, MOST_HELD, Measure, Predictor, Scales, cast, load_singles};
use crate::progress::{Progress, check_cancelled};
use crate::tensor::{DType, TensorInfo};

/// Smaller tensors of scales cost less than the record.
const LEAST_BYTES: u64 = 128;
/// Numbers of a group, at least.
const LEAST_GROUP: u64 = 8;
/// Groups of a sample: at the start, and as many at the end.
const RUN: u64 = 24;
/// Scales that must say what they are.
const LEAST_TOLD: usize = 4;
/// What the record costs besides the digest, in the unit of estimates.
const RECORD_COST: u128 = nearest::DIGEST_COST * 2;

/// The origins of subjects that are `wanted`.
///
/// # Errors
/// What reading gives.
pub(super) fn find(
    subjects: &[Subject<'_>],
    wanted: impl Fn(usize) -> Result<bool> + Sync,
    bases: &Bases,
    progress: &dyn Progress,
) -> Result<Vec<Option<Found>>> {
    // Scales are in the file that has the codes.
    if !subjects.iter().any(|subject| layouts::is_code(&subject.info().dtype)) {
        return Ok(subjects.iter().map(|_| None).collect());
    }
    let sources = bases.direct().flat_map(|base| base.tensors());
    let numbers = sources.filter(|source| layouts::is_number(&source.info().dtype));
    let stems = Stems::new(numbers.map(Sibling::OfBase));
    let of_one = |i: usize| -> Result<Option<Found>> {
        let subject = &subjects[i];
        let info = subject.info();
        if !applies(info) {
            return Ok(None);
        }
        let siblings = stems.of(info);
        let sources = siblings.iter().filter_map(|sibling| match sibling {
            Sibling::OfBase(source) => Some(*source),
            Sibling::Own(..) => None,
        });
        let sources: Vec<&TensorSource> =
            sources.filter(|source| source.info().elems() / LEAST_GROUP >= info.elems()).collect();
        if sources.is_empty() || !wanted(i)? {
            return Ok(None);
        }
        check_cancelled(progress)?;
        let sample = Sample::new(subject)?;
        for source in sources {
            if let Some(found) = sample.fit(source)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    };
    (0..subjects.len()).into_par_iter().map(of_one).collect()
}

fn applies(info: &TensorInfo) -> bool {
    let is_scale =
        layouts::is_number(&info.dtype) || info.dtype == DType::F8E4M3 || info.dtype.may_be_exponents();
    is_scale && info.len_bytes() >= LEAST_BYTES
}

/// Some scales of a tensor.
struct Sample<'a> {
    info: &'a TensorInfo,
    runs: Vec<(u64, u64)>,
    bytes: Vec<u8>,
    scales: Vec<f32>,
}

impl<'a> Sample<'a> {
    fn new(subject: &Subject<'a>) -> Result<Self> {
        let info = subject.info();
        let (elems, size) = (info.elems(), info.number().bytes() as u64);
        let runs = if elems <= 2 * RUN { vec![(0, elems)] } else { vec![(0, RUN), (elems - RUN, RUN)] };
        let mut bytes = Vec::new();
        for (start, count) in &runs {
            bytes.extend(subject.read(start * size, to_usize(count * size))?);
        }
        let scales = singles(&info.dtype, &bytes);
        Ok(Self { info, runs, bytes, scales })
    }

    /// The prediction from a source, if there is one that pays.
    fn fit(&self, source: &TensorSource) -> Result<Option<Found>> {
        let Some((scales, measures)) = self.best_groups(source)? else { return Ok(None) };
        let Some(best) = self.best_factor(&scales, &measures) else { return Ok(None) };
        let number = self.info.number();
        let cost = self.cost(&best, &measures);
        let alone = plan::stand_alone_cost(number, &self.bytes);
        let all = nearest::of_tensor(self.info, &self.bytes, cost) + nearest::DIGEST_COST + RECORD_COST;
        if cost >= alone / 8 * 7 || all >= nearest::of_tensor(self.info, &self.bytes, alone) {
            return Ok(None);
        }
        let predictor = Predictor::Blocks(Box::new(Blocks::Scales(best)));
        Ok(Some(Found { origin: Origin::coded(predictor, vec![source.clone()]), cost: all }))
    }

    /// The groups whose measures are most nearly multiples of the scales, with these measures.
    fn best_groups(&self, source: &TensorSource) -> Result<Option<(Scales, Vec<f32>)>> {
        let is_exponent = self.info.dtype.may_be_exponents();
        let mut best: Option<(f32, Scales, Vec<f32>)> = None;
        for scales in self.all_groups(source) {
            let measures = self.measures(&scales, source)?;
            let Some((least, greatest)) = self.ratios(&measures) else { continue };
            let spread = greatest / least;
            // A scale that is rounded to a power of two is up to one octave away.
            let most = match self.info.dtype {
                _ if is_exponent => 2.001,
                DType::F32 | DType::BF16 | DType::F16 => 1.012,
                _ => 1.15,
            };
            if spread <= most && best.as_ref().is_none_or(|(least, ..)| spread < *least) {
                best = Some((spread, scales, measures));
            }
        }
        Ok(best.map(|(_, scales, measures)| (scales, measures)))
    }

    /// All groups of which there are as many as scales, with a factor of 1.
    fn all_groups(&self, source: &TensorSource) -> Vec<Scales> {
        let numbers = source.info();
        let (rows, cols) = match numbers.shape[..] {
            [cols] => (1, cols),
            [.., rows, cols] => (rows, cols),
            [] => return Vec::new(),
        };
        let batches = numbers.elems() / (rows * cols).max(1);
        let measures =
            if self.info.dtype.may_be_exponents() { &Measure::ALL[..1] } else { &Measure::ALL[..] };
        let is_slow = source.is_in_container() && numbers.len_bytes() > MOST_HELD;
        let mut found = Vec::new();
        for is_transposed in [false, true] {
            if is_transposed && (is_slow || numbers.shape.len() < 2) {
                continue;
            }
            let (rows, cols) = if is_transposed { (cols, rows) } else { (rows, cols) };
            for group in group_sizes(self.info.elems(), Shape { batches, rows, cols }) {
                let is_known = |other: &Scales| {
                    // A row of groups may be a column of others.
                    other.is_transposed != is_transposed
                        && other.group == (group.1, group.0)
                        && (group.0 == rows || group.1 == cols)
                };
                if found.iter().any(is_known) || (is_slow && group.1 < cols) {
                    continue;
                }
                found.extend(measures.iter().map(|measure| Scales {
                    reference: reference_name(self.info, source),
                    dtype: numbers.dtype.clone(),
                    shape: numbers.shape.clone(),
                    is_transposed,
                    group,
                    measure: *measure,
                    is_divided: false,
                    factor: 1.0,
                    rounding: Element::F32,
                }));
            }
        }
        found.retain(|scales| scales.is_valid(self.info));
        found
    }

    fn measures(&self, scales: &Scales, source: &TensorSource) -> Result<Vec<f32>> {
        let info = TensorInfo::sized(self.info.name.clone(), DType::F32, self.info.shape.clone());
        let predictor = Predictor::Blocks(Box::new(Blocks::Scales(scales.clone())));
        let mut found = Vec::new();
        for (start, count) in &self.runs {
            let mut out = vec![0; to_usize(*count * 4)];
            predict_into(&predictor, std::slice::from_ref(source), None, &info, start * 4, &mut out)?;
            found.extend(load_singles(Element::F32, &out));
        }
        Ok(found)
    }

    /// The least and the greatest ratio of a measure to its scale. Groups of zeros have none.
    fn ratios(&self, measures: &[f32]) -> Option<(f32, f32)> {
        let told =
            measures.iter().zip(&self.scales).filter(|(measure, scale)| **measure > 0.0 && **scale > 0.0);
        let ratios: Vec<f32> =
            told.map(|(measure, scale)| measure / scale).filter(|ratio| ratio.is_finite()).collect();
        let told = LEAST_TOLD.max(measures.len() / 2).min(measures.len());
        let least = ratios.iter().copied().reduce(f32::min)?;
        let greatest = ratios.iter().copied().reduce(f32::max)?;
        (ratios.len() >= told && least > 0.0).then_some((least, greatest))
    }

    /// The factor and the rounding that predict the sample best.
    fn best_factor(&self, scales: &Scales, measures: &[f32]) -> Option<Scales> {
        let (least, greatest) = self.ratios(measures)?;
        let roundings = match self.info.dtype {
            DType::F32 | DType::F8E4M3 => vec![Element::F32, Element::BF16, Element::F16],
            _ => vec![Element::F32],
        };
        let with = |(is_divided, factor): (bool, f32)| {
            let with = |rounding| Scales { is_divided, factor, rounding, ..scales.clone() };
            roundings.iter().copied().map(with).collect::<Vec<_>>()
        };
        let all = factors(self.info.dtype.may_be_exponents(), least, greatest);
        let all = all.into_iter().filter(|(_, factor)| factor.is_finite() && *factor > 0.0).flat_map(with);
        all.min_by_key(|scales| self.cost(scales, measures))
    }

    fn cost(&self, scales: &Scales, measures: &[f32]) -> u64 {
        let mut prediction = vec![0; self.bytes.len()];
        scales.store(&self.info.dtype, measures, &mut prediction);
        plan::residual_cost(self.info.number(), &self.bytes, &prediction)
    }
}

/// Factors that ratios from `least` to `greatest` speak for, and whether they divide. Those that
/// people choose come first.
fn factors(is_exponent: bool, least: f32, greatest: f32) -> Vec<(bool, f32)> {
    if is_exponent {
        // Powers of two, and what a code of few bits reaches times such powers.
        let power = least.log2().round();
        let powers = [power - 1.0, power, power + 1.0];
        let steps = |power: f32| [1.0, 1.5, 1.75].map(|step| (true, step * power.exp2()));
        return powers.into_iter().flat_map(steps).collect();
    }
    let ratio = least + (greatest - least) / 2.0;
    let whole = (2.0 * ratio).round() / 2.0;
    let inverse = (2.0 / ratio).round() / 2.0;
    let near = |x: f32, y: f32| (x / y - 1.0).abs() < 0.02;
    let mut found = Vec::new();
    if near(whole, ratio) {
        found.extend([(true, whole), (false, 1.0 / whole)]);
    }
    if near(inverse, 1.0 / ratio) {
        found.extend([(false, inverse), (true, 1.0 / inverse)]);
    }
    found.extend([(true, ratio), (false, 1.0 / ratio)]);
    found
}

/// Scales as F32.
fn singles(dtype: &DType, bytes: &[u8]) -> Vec<f32> {
    if dtype.may_be_exponents() {
        return bytes.iter().map(|byte| f32::from_bits(u32::from(*byte) << 23)).collect();
    }
    let size = to_usize(dtype.bits().unwrap_or(8) / 8);
    let mut wide = vec![0; bytes.len() / size * 4];
    cast::convert_into(dtype, &DType::F32, bytes, &mut wide);
    load_singles(Element::F32, &wide)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_that_people_choose_come_first() {
        assert_eq!(factors(false, 447.9, 448.2)[0], (true, 448.0));
        assert_eq!(factors(false, 127.4, 127.6)[0], (true, 127.5));
        assert_eq!(factors(false, 0.999, 1.001)[0], (true, 1.0));
        assert!(factors(true, 4.1, 7.9).contains(&(true, 4.0)));
    }
}
