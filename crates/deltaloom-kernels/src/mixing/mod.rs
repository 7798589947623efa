//! Residuals coded bit by bit with mixed contexts; each element's step is predicted from those
//! before it; docs/format.md section 13.
//!
//! It does not decide where this pays off, and it knows nothing of containers but its own payload.

mod coder;
mod filter;
mod fit;
mod model;
mod value;

use crate::isa::per_isa;
use crate::number::{by_number, load, store};
use crate::{DecodeError, Number, NumberKind};
use coder::{BitCoder, BitDecoder, BitEncoder};
use filter::{Foreseen, Noise, RANK, STEP_MAX, StepFilter};
use model::{CONTEXTS, Mixer, Place};
use value::{FAR, Parts};

/// Scales lie within plus and minus this.
pub const SCALE_MAX: i32 = 1000;
/// Fewest rows for which steps can be predicted: the factors, `RANK` per column, then take no more
/// numbers than the chunk has elements.
pub const MIN_TRACKED_ROWS: usize = RANK;

/// How the steps of a chunk are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MixRule {
    /// Whether steps are predicted, for which a chunk needs [`MIN_TRACKED_ROWS`].
    pub tracks: bool,
    /// Whether predictions are shifted by the predicted steps.
    pub shifts: bool,
    /// log2 of the unit of steps, within [`SCALE_MAX`].
    pub scale: i32,
    /// Elements with a higher exponent do not move and say nothing about steps.
    pub highest: u32,
}

/// Layout of a chunk: its elements and its rows.
#[derive(Debug, Clone, Copy)]
pub struct MixShape {
    /// Bit layout of the elements.
    pub number: Number,
    /// Number of elements of a row.
    pub cols: usize,
}

/// Nodes of shapes: node 0 is whether there is a residual; then come its sign, whether its group is
/// small, and trees for the group.
const SHAPE_NODES: usize = 64;
const SIZE_NODE: usize = 1;
const SIGN_NODE: usize = 2;
const SMALL_TREE: usize = 8;
const LARGE_TREE: usize = 32;
const SMALL_GROUPS: u32 = 8;
/// The first context in which the later nodes also depend on the sign.
const UNSIGNED: usize = 2;
/// Nodes of details: 8 for each group, 128 for [`FAR`].
const DETAIL_NODES: usize = 8 * FAR as usize + 128;
const NODES: usize = SHAPE_NODES + DETAIL_NODES;
/// Number of values of the contexts of shapes, and of those of details.
const SHAPE_VALUES: [usize; CONTEXTS] = [128, 128, 2 * 64 * 16, 2 * 64 * 8, 2 * 4096, 2 * 64 * 32];
const DETAIL_VALUES: [usize; CONTEXTS] = [128, 128, 2 * 16, 2 * 8, 2 * 32, 2 * 32];
/// Kinds of bits that selectors distinguish, and levels of how often each occurs.
const KINDS: usize = 9;
const LEVELS: usize = 64;
/// Mean sizes start at this, in 1/65536 of the scale.
const FIRST_MEAN: u32 = 20_000;

/// First counters of the contexts of shapes and of details, and the number of all counters.
const LAYOUT: ([usize; CONTEXTS], [usize; CONTEXTS], usize) = {
    let (mut shapes, mut details, mut at, mut i) = ([0; CONTEXTS], [0; CONTEXTS], 0, 0);
    while i < CONTEXTS {
        shapes[i] = at;
        at += SHAPE_VALUES[i] * SHAPE_NODES;
        details[i] = at;
        at += DETAIL_VALUES[i] * DETAIL_NODES;
        i += 1;
    }
    (shapes, details, at)
};

/// log2 of a mean size in quarters; 65536 gives 0.
#[inline(always)]
fn quarters(mean: u32) -> i32 {
    let mean = mean.max(1);
    let log2 = mean.ilog2();
    let below = if log2 < 2 { mean << (2 - log2) } else { mean >> (log2 - 2) } & 3;
    4 * log2.cast_signed() - 64 + below.cast_signed()
}

/// Half the log2 of a positive number, in quarters.
#[inline(always)]
fn root_quarters(square: f32) -> i32 {
    let square = if square > 1e-24 { square } else { 1e-24 };
    (square.to_bits() >> 22).cast_signed() - 254
}

/// Moves a mean by a part of its distance to `size`.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "between the two")]
fn approach(mean: &mut u32, size: u32, part_of_4096: i64) {
    let distance = i64::from(size) - i64::from(*mean);
    *mean = (i64::from(*mean) + ((distance * part_of_4096) >> 12)) as u32;
}

/// State learned from a chunk while its elements are processed in order.
struct Elements {
    rule: MixRule,
    mixer: Mixer,
    filter: Option<StepFilter>,
    noise: Noise,
    /// Mean sizes of the prediction errors of steps: of each column, the current row, and all.
    columns: Vec<u32>,
    row: u32,
    all: u32,
    /// Steps of the current row; NaN where they carry no information.
    steps: Vec<f32>,
}

/// Contexts of an element.
struct Contexts {
    shapes: [usize; CONTEXTS],
    details: [usize; CONTEXTS],
    selector: usize,
}

impl Elements {
    fn new(shape: MixShape, rule: MixRule) -> Self {
        Self {
            rule,
            mixer: Mixer::new(LAYOUT.2, NODES, LEVELS * KINDS),
            filter: rule.tracks.then(|| StepFilter::new(shape.cols)),
            noise: Noise::new(),
            columns: vec![FIRST_MEAN; shape.cols],
            row: FIRST_MEAN,
            all: FIRST_MEAN,
            steps: vec![0.0; shape.cols],
        }
    }

    #[inline(always)]
    fn start_row(&mut self) {
        if let Some(filter) = &mut self.filter {
            filter.start_row();
        }
        self.noise.start_row();
        self.row = (self.row + self.all) >> 1;
    }

    #[inline(always)]
    fn end_row(&mut self) {
        if let Some(filter) = &mut self.filter {
            filter.end_row(&self.steps);
        }
    }

    /// Codes the element of the next column, which is `t` if known, and returns it.
    #[inline(always)]
    fn code<C: BitCoder>(
        &mut self,
        number: Number,
        coder: &mut C,
        column: usize,
        p: u64,
        t: u64,
    ) -> Result<u64, DecodeError> {
        let tells = number.exponent(p) <= self.rule.highest;
        let foreseen = match &mut self.filter {
            Some(filter) => filter.foresee(column),
            None => Foreseen::default(),
        };
        let (moved, rest) = value::shifted(number, p, foreseen.step, self.rule.scale);
        let ulp = value::ulp_log2(number, p) - self.rule.scale;
        let (q, rest) = if self.rule.shifts && tells {
            (moved, rest)
        } else {
            (p, f64::from(foreseen.step) * value::power_of_two(-ulp))
        };
        let contexts = self.contexts(number, column, p, q, rest, foreseen, tells);
        let t = self.code_residual(number, coder, &contexts, q, t)?;
        let step = value::step(number, p, t, self.rule.scale);
        if tells && !step.is_nan() {
            let step = step.clamp(-STEP_MAX, STEP_MAX);
            self.steps[column] = step;
            let error = step - foreseen.step;
            if let Some(filter) = &mut self.filter {
                filter.learn(foreseen, error, self.noise.of_element());
            }
            self.noise.learn(foreseen.variance, error);
            #[expect(clippy::cast_possible_truncation, reason = "at most 128 * 65536")]
            let size = (error.abs() * 65536.0) as u32;
            approach(&mut self.columns[column], size, 328);
            approach(&mut self.row, size, 123);
            approach(&mut self.all, size, 2);
        } else {
            self.steps[column] = f32::NAN;
        }
        Ok(t)
    }

    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "all that contexts are made of")]
    #[expect(clippy::cast_possible_truncation, reason = "a few bits each")]
    fn contexts(
        &self,
        number: Number,
        column: usize,
        p: u64,
        q: u64,
        rest: f64,
        foreseen: Foreseen,
        tells: bool,
    ) -> Contexts {
        let ulp = 4 * (value::ulp_log2(number, q) - self.rule.scale);
        let is_negative = number.kind() != NumberKind::Unsigned && q & number.top_bit() != 0;
        let fine = |quarters: i32| (quarters - ulp + 48).clamp(0, 127) as usize;
        let coarse = |quarters: i32| ((quarters - ulp) >> 1).saturating_add(24).clamp(0, 63) as usize;
        let spread = root_quarters(self.noise.with(foreseen.variance));
        let by_column = quarters(self.columns[column]);
        let by_place = by_column + quarters(self.row) - quarters(self.all);
        // Where the step ends between two numbers, in eighths; up is away from zero.
        let eighths = (rest * 8.0).clamp(-8.0, 7.0).floor() as i32 + 8;
        let eighths = (if is_negative { 15 - eighths } else { eighths }) as usize;
        let (top, below) = match number.kind() {
            NumberKind::Float => {
                let mantissa = |x: u64| {
                    let low = x & ((1 << number.mantissa_bits()) - 1);
                    ((low << 7) >> number.mantissa_bits()) as usize
                };
                (mantissa(q) >> 4, mantissa(p))
            }
            _ => {
                let high = |x: u64| (x >> (number.bits() - 7)) as usize & 127;
                (high(q) >> 4, high(p))
            }
        };
        let exponent = (number.exponent(p) & 31) as usize;
        let relative = (((root_quarters(foreseen.step * foreseen.step) - spread) >> 1) + 12).clamp(0, 15);
        let towards = 2 * relative as usize + usize::from((foreseen.step < 0.0) != is_negative);
        let level = coarse(by_place);
        Contexts {
            shapes: [
                fine(spread),
                fine(by_column),
                2 * (16 * level + eighths),
                2 * (8 * coarse(spread) + top),
                2 * (128 * exponent + below),
                2 * (32 * coarse(spread) + towards),
            ],
            details: [fine(spread), fine(by_column), 2 * eighths, 2 * top, 2 * exponent, 2 * towards],
            selector: KINDS * (if tells { level } else { 0 }),
        }
    }

    #[inline(always)]
    fn code_residual<C: BitCoder>(
        &mut self,
        number: Number,
        coder: &mut C,
        contexts: &Contexts,
        q: u64,
        t: u64,
    ) -> Result<u64, DecodeError> {
        let is_changed = C::ENCODES && t != q;
        let known = if is_changed { value::parts(number, t, q) } else { Parts::default() };
        let mixer = &mut self.mixer;
        let mut site = Site {
            counters: std::array::from_fn(|i| LAYOUT.0[i] + contexts.shapes[i] * SHAPE_NODES),
            nodes: 0,
        };
        let selector = contexts.selector;
        if !mixer.code(coder, is_changed, &site.place(0, selector)) {
            return Ok(q);
        }
        let negative = mixer.code(coder, known.negative, &site.place(SIGN_NODE, selector + 1));
        let sign = usize::from(negative);
        site.counters[UNSIGNED..].iter_mut().for_each(|first| *first += sign * SHAPE_NODES);
        let is_large = mixer.code(coder, known.group >= SMALL_GROUPS, &site.place(SIZE_NODE, selector + 2));
        let (tree, bits) = if is_large { (LARGE_TREE, 5) } else { (SMALL_TREE, 3) };
        let group = code_tree(mixer, coder, &site, tree, selector + 3, known.group, bits);
        let bits = value::detail_bits(group);
        let first = |i: usize| {
            let value = contexts.details[i] + if i >= UNSIGNED { sign } else { 0 };
            LAYOUT.1[i] + value * DETAIL_NODES + 8 * group as usize
        };
        let site = Site { counters: std::array::from_fn(first), nodes: SHAPE_NODES + 8 * group as usize };
        let detail = code_tree(mixer, coder, &site, 0, selector + 6, known.detail, bits);
        let raw_bits = value::raw_bits(number, group, detail).ok_or(DecodeError::BadSymbol)?;
        let raw = coder.code_raw(known.raw, raw_bits);
        if C::ENCODES {
            return Ok(t);
        }
        Ok(value::joined(number, Parts { negative, group, detail, raw }, raw_bits, q))
    }
}

/// Where the statistics of a part's nodes start.
struct Site {
    counters: [usize; CONTEXTS],
    nodes: usize,
}

impl Site {
    #[inline(always)]
    fn place(&self, node: usize, selector: usize) -> Place {
        Place { counters: self.counters.map(|first| first + node), node: self.nodes + node, selector }
    }
}

/// Codes `bits` bits, highest first, each in the context of those before it.
#[inline(always)]
fn code_tree<C: BitCoder>(
    mixer: &mut Mixer,
    coder: &mut C,
    site: &Site,
    tree: usize,
    selector: usize,
    known: u32,
    bits: u32,
) -> u32 {
    let mut prefix = 1;
    for i in (0..bits).rev() {
        let kind = (bits - 1 - i).min(2) as usize;
        let is_set =
            mixer.code(coder, known >> i & 1 == 1, &site.place(tree + prefix as usize, selector + kind));
        prefix = 2 * prefix + u32::from(is_set);
    }
    prefix - (1 << bits)
}

/// Codes whole rows of `target` with `prediction`.
///
/// # Panics
/// If the lengths differ or are not those of whole rows.
#[must_use]
pub fn encode(shape: MixShape, rule: MixRule, target: &[u8], prediction: &[u8], out: Vec<u8>) -> Vec<u8> {
    assert!(
        target.len() == prediction.len() && target.len().is_multiple_of(shape.cols * shape.number.bytes())
    );
    encode_chunk(shape, rule, target, prediction, out)
}

/// Turns `values`, whole rows of the prediction, into the elements.
///
/// # Errors
/// If `payload` cannot be what an encoder wrote for this many elements.
///
/// # Panics
/// If the length of `values` is not that of whole rows.
pub fn decode(shape: MixShape, rule: MixRule, payload: &[u8], values: &mut [u8]) -> Result<(), DecodeError> {
    assert!(values.len().is_multiple_of(shape.cols * shape.number.bytes()));
    decode_chunk(shape, rule, payload, values)
}

per_isa! {
    fn encode_chunk(shape: MixShape, rule: MixRule, target: &[u8], prediction: &[u8], out: Vec<u8>) -> Vec<u8> = encode_body;
}

per_isa! {
    fn decode_chunk(shape: MixShape, rule: MixRule, payload: &[u8], values: &mut [u8]) -> Result<(), DecodeError> = decode_body;
}

#[inline(always)]
fn encode_body(shape: MixShape, rule: MixRule, target: &[u8], prediction: &[u8], out: Vec<u8>) -> Vec<u8> {
    #[inline(always)]
    fn run<const B: usize>(
        number: Number,
        elements: &mut Elements,
        coder: &mut BitEncoder,
        cols: usize,
        target: &[u8],
        prediction: &[u8],
    ) {
        for (target, prediction) in target.chunks_exact(cols * B).zip(prediction.chunks_exact(cols * B)) {
            elements.start_row();
            for column in 0..cols {
                let (t, p) = (load::<B>(target, column), load::<B>(prediction, column));
                // An encoder meets only residuals that exist.
                let _ = elements.code(number, coder, column, p, t);
            }
            elements.end_row();
        }
    }
    let mut coder = BitEncoder::new(out);
    let mut elements = Elements::new(shape, rule);
    by_number!(shape.number, run(&mut elements, &mut coder, shape.cols, target, prediction));
    coder.finish()
}

#[inline(always)]
fn decode_body(shape: MixShape, rule: MixRule, payload: &[u8], values: &mut [u8]) -> Result<(), DecodeError> {
    #[inline(always)]
    fn run<const B: usize>(
        number: Number,
        elements: &mut Elements,
        coder: &mut BitDecoder<'_>,
        cols: usize,
        values: &mut [u8],
    ) -> Result<(), DecodeError> {
        for values in values.chunks_exact_mut(cols * B) {
            elements.start_row();
            for column in 0..cols {
                let t = elements.code(number, coder, column, load::<B>(values, column), 0)?;
                store::<B>(values, column, t);
            }
            if coder.is_past_end() {
                return Err(DecodeError::Truncated);
            }
            elements.end_row();
        }
        Ok(())
    }
    let mut coder = BitDecoder::new(payload);
    let mut elements = Elements::new(shape, rule);
    by_number!(shape.number, run(&mut elements, &mut coder, shape.cols, values))?;
    coder.finish()
}

#[cfg(test)]
mod tests;
