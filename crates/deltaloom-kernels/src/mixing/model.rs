//! Probabilities of bits: adaptive counters in several contexts, mixed in the logistic domain and
//! refined at the end; docs/format.md section 13.
//!
//! Integers only. The caller knows what the contexts and nodes mean.

use super::coder::BitCoder;

/// Number of contexts of every bit.
pub(super) const CONTEXTS: usize = 6;
/// The contexts and a constant; one slot is unused.
const INPUTS: usize = 8;
/// Stretched probabilities: 256 is one unit of ln(p / (1 - p)).
const STRETCH_MAX: i32 = 2047;
/// Counters stop slowing down after this many bits.
const COUNT_MAX: u32 = 1000;
/// Initial weight of each context: 0.35 of 65536.
const FIRST_WEIGHT: i32 = 22_938;
const WEIGHT_MAX: i32 = 8 << 16;
const REFINED_STEPS: usize = 33;

/// 65536 / (1 + exp(-x / 2)) for x = -16..=16.
const SQUASH: [i32; REFINED_STEPS] = [
    22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11_955, 17_625, 24_743, 32_768, 40_793,
    47_911, 53_581, 57_724, 60_565, 62_428, 63_615, 64_357, 64_816, 65_097, 65_269, 65_374, 65_438, 65_476,
    65_500, 65_514,
];

/// Probability of a stretched value, in 1/65536: the table, with linear interpolation.
const fn squash(x: i32) -> i32 {
    let at = x + 2048;
    let step = (at >> 7) as usize;
    let (low, high) = (SQUASH[step], SQUASH[step + 1]);
    low + (((high - low) * (at & 127)) >> 7)
}

/// `squash` of -2047..=2047.
static SQUASHED: [u16; 4096] = {
    let mut table = [0; 4096];
    let mut x = 1;
    while x < 4096 {
        #[expect(clippy::cast_possible_truncation, reason = "below 65536")]
        let p = squash(x as i32 - 2048) as u16;
        table[x] = p;
        x += 1;
    }
    table
};

/// For each probability in 1/4096, the least x whose squash is at least that.
static STRETCHED: [i16; 4096] = {
    let mut table = [0; 4096];
    let mut x: i16 = -2047;
    let mut p = 0;
    while p < 4096 {
        while x < 2047 && squash(x as i32) < p * 16 {
            x += 1;
        }
        table[p as usize] = x;
        p += 1;
    }
    table
};

/// 65536 / (n + 2): how far a counter that has seen n bits moves towards the next one.
static RATES: [u16; COUNT_MAX as usize + 1] = {
    let mut rates = [0; COUNT_MAX as usize + 1];
    let mut n = 0;
    while n < rates.len() {
        #[expect(clippy::cast_possible_truncation, reason = "32768 at most")]
        let rate = (65536 / (n + 2)) as u16;
        rates[n] = rate;
        n += 1;
    }
    rates
};

/// A probability of 22 bits above its number of updates in 10 bits.
#[derive(Debug, Clone, Copy)]
struct Counter(u32);

impl Counter {
    const EVEN: Self = Self(1 << 31);

    #[inline(always)]
    fn stretched(self) -> i32 {
        i32::from(STRETCHED[(self.0 >> 20) as usize])
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "within 22 bits")]
    fn update(&mut self, bit: bool) {
        let (p, n) = (i64::from(self.0 >> 10), self.0 & 1023);
        let goal = if bit { (1 << 22) - 1 } else { 0 };
        let moved = p + (((goal - p) * i64::from(RATES[n as usize])) >> 16);
        self.0 = (moved as u32) << 10 | (n + u32::from(n < COUNT_MAX));
    }
}

type Weights = [i32; INPUTS];

/// Location of a bit's statistics.
pub(super) struct Place {
    /// Its counter in each context.
    pub(super) counters: [usize; CONTEXTS],
    /// Selects weights and the refinement.
    pub(super) node: usize,
    /// Selects the other weights.
    pub(super) selector: usize,
}

/// Everything learned about bits.
pub(super) struct Mixer {
    counters: Vec<Counter>,
    by_node: Vec<Weights>,
    by_selector: Vec<Weights>,
    refined: Vec<[u16; REFINED_STEPS]>,
}

impl Mixer {
    pub(super) fn new(counters: usize, nodes: usize, selectors: usize) -> Self {
        let mut first = [0; INPUTS];
        first[..CONTEXTS].fill(FIRST_WEIGHT);
        #[expect(clippy::cast_possible_truncation, reason = "probabilities")]
        let even = SQUASH.map(|p| p as u16);
        Self {
            counters: vec![Counter::EVEN; counters],
            by_node: vec![first; nodes],
            by_selector: vec![first; selectors],
            refined: vec![even; nodes],
        }
    }

    /// Codes a bit and learns from it.
    #[inline(always)]
    pub(super) fn code<C: BitCoder>(&mut self, coder: &mut C, bit: bool, place: &Place) -> bool {
        let mut inputs = [0i32; INPUTS];
        for (input, at) in inputs.iter_mut().zip(place.counters) {
            *input = self.counters[at].stretched();
        }
        inputs[CONTEXTS] = 256;
        let (first, second) = (&mut self.by_node[place.node], &mut self.by_selector[place.selector]);
        let (x1, x2) = (mixed(&inputs, first), mixed(&inputs, second));
        let x = (x1 + x2) >> 1;
        // The refinement learns the actual probability near two points of the table.
        let position = x + 2048;
        let (step, between) = ((position >> 7) as usize, position & 127);
        let refined = &mut self.refined[place.node];
        let (low, high) = (i32::from(refined[step]), i32::from(refined[step + 1]));
        let of_place = low + (((high - low) * between) >> 7);
        let p = (probability(x) + of_place) >> 1;
        let bit = coder.code(bit, p as u32);
        let goal = if bit { 65535 } else { 0 };
        let nearest = &mut refined[step + usize::from(between >= 64)];
        #[expect(clippy::cast_possible_truncation, reason = "within 16 bits")]
        let moved = (i32::from(*nearest) + ((goal - i32::from(*nearest)) >> 6)) as u16;
        *nearest = moved.max(16);
        learn(first, &inputs, goal - probability(x1));
        learn(second, &inputs, goal - probability(x2));
        for at in place.counters {
            self.counters[at].update(bit);
        }
        bit
    }
}

#[inline(always)]
fn probability(x: i32) -> i32 {
    i32::from(SQUASHED[(x + 2048) as usize])
}

#[inline(always)]
fn mixed(inputs: &Weights, weights: &Weights) -> i32 {
    let sum: i32 = inputs.iter().zip(weights).map(|(input, weight)| (input * weight) >> 8).sum();
    (sum >> 8).clamp(-STRETCH_MAX, STRETCH_MAX)
}

#[inline(always)]
fn learn(weights: &mut Weights, inputs: &Weights, error: i32) {
    for (weight, input) in weights.iter_mut().zip(inputs) {
        *weight = (*weight + ((input * error + (1 << 13)) >> 14)).clamp(-WEIGHT_MAX, WEIGHT_MAX);
    }
}
