//! What samples of a tensor would cost, coded on their own or with a prediction, to compare
//! predictions. It plans no group.

use deltaloom_kernels::Number;
use deltaloom_kernels::rans::ALPHABET;

use super::codes::may_be_codes;
use super::{GroupInput, Preset, draft, float_draft, magnitudes, plain_cost, symbolise, ulp_draft};
use crate::codec::{self, Coding, UlpSymbols};
use crate::entropy::log2::ONE_BIT;
use crate::entropy::table::{self, Counts};
use crate::residual::scales;

/// Elements that show whether residuals are small.
const START_ELEMS: usize = 1024;

/// Whether a sample is so similar to its prediction that nothing else can be cheaper: with one
/// table, residuals take less than half of its size. Weights on their own never come near that.
/// Small integers do, so with this prediction they must take less than half of what they take
/// alone.
pub(crate) fn is_clearly_near(number: Number, sample: &[u8], prediction: &[u8]) -> bool {
    let cost = ulp_cost(number, sample, prediction);
    let is_far = || may_be_codes(number) && cost >= codes_cost(number, sample) / 2;
    cost < sample.len() as u64 * 4 * ONE_BIT && !is_far()
}

/// Bits in 1/65536 of small integers without a prediction.
fn codes_cost(number: Number, sample: &[u8]) -> u64 {
    ulp_cost(number, sample, &vec![0; sample.len()])
}

/// Bits in 1/65536 that an element may cost with a companion for the companion to pay, compared
/// with its reference if it has one. `None` if it should have no companion.
pub(crate) fn cost_without_companion(number: Number, sample: &[u8], reference: Option<&[u8]>) -> Option<u64> {
    let ulps = reference.map(|reference| ulp_cost_of_start(number, sample, reference));
    magnitudes::cost_without_companion(number, (sample, reference.unwrap_or(sample)), ulps)
}

/// Bits in 1/65536 of a sample's element with a companion. `None` if that tensor cannot be its
/// companion.
pub(crate) fn cost_with_companion(number: Number, sample: &[u8], companion: &[u8]) -> Option<u64> {
    let ulps = ulp_cost_of_start(number, sample, companion);
    magnitudes::cost_with_companion(number, (sample, companion), ulps)
}

/// Bits in 1/65536 of an element's residual, from as many elements as are enough to tell similar
/// tensors from others.
fn ulp_cost_of_start(number: Number, sample: &[u8], prediction: &[u8]) -> u64 {
    let len_bytes = sample.len().min(START_ELEMS * number.bytes());
    let elems = (len_bytes / number.bytes()).max(1) as u64;
    ulp_cost(number, &sample[..len_bytes], &prediction[..len_bytes]) / elems
}

/// Bits in 1/65536 of residuals with one table.
fn ulp_cost(number: Number, sample: &[u8], prediction: &[u8]) -> u64 {
    let residuals = UlpSymbols::of(number, sample, prediction);
    let mut counts: Counts = [0; ALPHABET];
    residuals.symbols.iter().for_each(|symbol| counts[usize::from(*symbol)] += 1);
    table::own_table_cost(&counts) + residuals.raw_bits * ONE_BIT
}

/// Estimated bits in 1/65536 of a sample coded with its prediction, for comparing predictions.
pub fn residual_cost(number: Number, sample: &[u8], prediction: &[u8]) -> u64 {
    let group = sample_group(number, sample, prediction, true);
    let ulps = ulp_draft(&group, &symbolise(&group), scales::uniform(number, &group.chunks), 0).cost;
    magnitudes::sample_cost(&group).map_or(ulps, |scaled| scaled.min(ulps))
}

/// Estimated bits of a whole chunk, in the coding that [`draft`] would choose.
pub(crate) fn chunk_cost(number: Number, target: &[u8], prediction: &[u8], is_predicted: bool) -> u64 {
    let draft = draft(&sample_group(number, target, prediction, is_predicted), Preset::Default);
    match draft.coding {
        // Its estimate is from a small sample, in which a few changes may be missing.
        Coding::Plain => codec::planes_sample_cost(number, target, prediction) * 8,
        _ => draft.cost / ONE_BIT,
    }
}

/// Estimated bits in 1/65536 of a sample coded on its own.
pub fn stand_alone_cost(number: Number, sample: &[u8]) -> u64 {
    let zeros = vec![0; sample.len()];
    let group = sample_group(number, sample, &zeros, false);
    let cost = float_draft(&group, true, 0).map_or_else(|| plain_cost(&group), |draft| draft.cost);
    if may_be_codes(number) { cost.min(codes_cost(number, sample)) } else { cost }
}

fn sample_group<'a>(
    number: Number,
    sample: &'a [u8],
    prediction: &'a [u8],
    is_predicted: bool,
) -> GroupInput<'a> {
    let chunks = vec![(sample, prediction)];
    GroupInput {
        number,
        cols: 1,
        is_matrix: false,
        chunks,
        is_predicted,
        may_have_nibbles: false,
        history: None,
    }
}
