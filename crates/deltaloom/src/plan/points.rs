//! Finds the step and, if there is one, the origin of a block of elements that a quantiser wrote.
//! It proves every point with the decoder's arithmetic. Elements that are not points become
//! escapes.

use deltaloom_kernels::Number;

use crate::codec::grid::{ESCAPE, MIDDLE, point};

/// Adding and subtracting this rounds smaller numbers to integers, ties to even.
const ROUND: f64 = 4_503_599_627_370_496.0;
/// Low mantissa bits of an F32 number that was an F16 number.
const HALF_ZERO_BITS: u32 = 13;
/// At most this many numbers are proven for a block. A BF16 element leaves its step no more F16
/// numbers than that.
const MAX_STEPS: usize = 16;
/// One in this many elements may be no point.
const ELEMS_PER_ESCAPE: usize = 8;

/// The kinds of grids that are tried for a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Multiples of a step. The largest element by magnitude determines the number of steps.
    Steps,
    /// Multiples of a step, counted from the least element.
    Origins,
}

impl Kind {
    /// Possible distances of the farthest element, in steps. Without an origin, any. With one,
    /// those of n-bit quantisers, which use both ends.
    pub(super) fn reaches(self) -> &'static [u16] {
        const ALL: [u16; 127] = {
            let mut all = [0; 127];
            let mut i = 0;
            while i < all.len() {
                #[expect(clippy::cast_possible_truncation, reason = "at most 127")]
                let reach = i as u16 + 1;
                all[i] = reach;
                i += 1;
            }
            all
        };
        match self {
            Self::Steps => &ALL,
            Self::Origins => &[1, 3, 7, 15, 31, 63, 127, 255],
        }
    }
}

/// A block as points of a grid.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Block {
    pub(super) step: f32,
    pub(super) origin: Option<f32>,
    pub(super) reach: u16,
}

/// The distance of a finite element from the origin, and how far it may have been rounded.
#[derive(Debug, Clone, Copy)]
struct Distance {
    size: f64,
    error: f64,
}

/// Buffers and the number type, reused for many blocks.
pub(super) struct Fitter {
    number: Number,
    kind: Kind,
    elements: Vec<(u64, f32)>,
    distances: Vec<Distance>,
    symbols: Vec<u8>,
}

impl Fitter {
    pub(super) fn new(number: Number, kind: Kind) -> Self {
        Self { number, kind, elements: Vec::new(), distances: Vec::new(), symbols: Vec::new() }
    }

    /// The grid of a block of elements with one of the `reaches`. `previous` is the step if the
    /// elements do not determine one.
    pub(super) fn fit(&mut self, bytes: &[u8], reaches: &[u16], previous: f32) -> Option<Block> {
        let number = self.number;
        self.elements.clear();
        self.elements.extend(bytes.chunks_exact(number.bytes()).map(|bytes| element(number, bytes)));
        let origins = match self.kind {
            Kind::Steps => vec![None],
            Kind::Origins => origins(number, self.finite().min_by(f32::total_cmp)?),
        };
        let mut best: Option<(usize, Block)> = None;
        for origin in origins {
            let sign = if origin.is_none() { self.sign() } else { 1.0 };
            let found = self.fit_from(origin, sign, reaches, previous);
            best = found.into_iter().chain(best).min_by_key(|(escapes, _)| *escapes);
            if best.is_some_and(|(escapes, _)| escapes == 0) {
                break;
            }
        }
        let (escapes, block) = best?;
        if escapes > 0 {
            self.symbols_with(&block);
        }
        Some(block)
    }

    /// The symbols of the block that was fitted last, with its elements as bits.
    pub(super) fn symbols(&self) -> impl Iterator<Item = (u8, u64)> {
        self.symbols.iter().copied().zip(self.elements.iter().map(|(bits, _)| *bits))
    }

    /// Computes the symbols of the last block's elements with another grid.
    pub(super) fn symbols_with(&mut self, block: &Block) {
        let number = self.number;
        let symbols = self.elements.iter().map(symbol_of(number, block));
        self.symbols.clear();
        self.symbols.extend(symbols);
    }

    fn finite(&self) -> impl Iterator<Item = f32> {
        self.elements.iter().map(|(_, value)| *value).filter(|value| value.is_finite())
    }

    /// The sign of the step. Zeros show it. Without zeros: quantisers reach farther below zero.
    fn sign(&self) -> f32 {
        let zeros = || self.finite().filter(|value| *value == 0.0);
        let is_negative = match zeros().next() {
            Some(_) => zeros().all(f32::is_sign_negative),
            None => self.finite().max_by(|a, b| a.abs().total_cmp(&b.abs())).is_some_and(|value| value > 0.0),
        };
        if is_negative { -1.0 } else { 1.0 }
    }

    fn fit_from(
        &mut self,
        origin: Option<f32>,
        sign: f32,
        reaches: &[u16],
        previous: f32,
    ) -> Option<(usize, Block)> {
        let number = self.number;
        let mut distances = std::mem::take(&mut self.distances);
        distances.clear();
        distances.extend(self.finite().map(|value| {
            let size = (f64::from(value) - f64::from(origin.unwrap_or(0.0))).abs();
            // With an origin, the product was rounded before the addition.
            let of_product = if origin.is_some() { half_ulp(Number::float(8, 23), size) } else { 0.0 };
            Distance { size, error: half_ulp(number, f64::from(value)) + of_product }
        }));
        if number.mantissa_bits() < 10 && self.kind == Kind::Steps {
            // The nearest first: their levels are certain even while the step is not known well.
            distances.sort_unstable_by(|a, b| a.size.total_cmp(&b.size));
        }
        self.distances = distances;
        let farthest = *self.distances.iter().max_by(|a, b| a.size.total_cmp(&b.size))?;
        if farthest.size <= farthest.error {
            return self.best_of(std::iter::once(Block { step: previous.abs() * sign, origin, reach: 0 }));
        }
        // If several origins are tried, they were F16 numbers, and so was the step.
        let is_half = origin.is_some() && number.mantissa_bits() < 10;
        let is_likely = |step: &f32| !is_half || step.to_bits().trailing_zeros() >= HALF_ZERO_BITS;
        reaches.iter().find_map(|reach| {
            let (low, high) = self.interval(farthest, *reach)?;
            self.best_of(steps(low, high).filter(is_likely).map(|step| Block {
                step: step * sign,
                origin,
                reach: *reach,
            }))
        })
    }

    /// The range of steps with which every element may be a point, if the farthest is `reach` steps
    /// away.
    fn interval(&self, farthest: Distance, reach: u16) -> Option<(f64, f64)> {
        let reach = f64::from(reach);
        let mut low = (farthest.size - farthest.error) / reach;
        let mut high = (farthest.size + farthest.error) / reach;
        for at in &self.distances {
            let level = at.size / (0.5 * (low + high)) + ROUND - ROUND;
            if level == 0.0 {
                if at.size > at.error {
                    return None;
                }
                continue;
            }
            low = low.max((at.size - at.error) / level);
            high = high.min((at.size + at.error) / level);
            if low > high {
                return None;
            }
        }
        Some((low, high))
    }

    /// The first of the blocks with the fewest escapes, if these are few.
    fn best_of(&mut self, blocks: impl Iterator<Item = Block>) -> Option<(usize, Block)> {
        let mut best: Option<(usize, Block)> = None;
        for block in blocks {
            let limit = best.map_or(self.distances.len() / ELEMS_PER_ESCAPE + 1, |(escapes, _)| escapes);
            let Some(escapes) = self.count_escapes(&block, limit) else { continue };
            best = Some((escapes, block));
            if escapes == 0 {
                break;
            }
        }
        best
    }

    /// Number of finite elements that are not points, if it is below `limit`.
    fn count_escapes(&mut self, block: &Block, limit: usize) -> Option<usize> {
        let symbol_of = symbol_of(self.number, block);
        let mut escapes = 0;
        self.symbols.clear();
        for element in &self.elements {
            let symbol = symbol_of(element);
            escapes += usize::from(symbol == ESCAPE && element.1.is_finite());
            if escapes >= limit {
                return None;
            }
            self.symbols.push(symbol);
        }
        Some(escapes)
    }
}

/// Returns a function from an element to its symbol, or to the escape.
fn symbol_of(number: Number, block: &Block) -> impl Fn(&(u64, f32)) -> u8 {
    let Block { step, origin, .. } = *block;
    let per_step = 1.0 / f64::from(step);
    let (from, middle) = match origin {
        Some(origin) => (f64::from(origin), 0.0),
        None => (0.0, f64::from(MIDDLE)),
    };
    move |(bits, value)| {
        let level = (f64::from(*value) - from) * per_step + middle;
        // Also true for NaN, which compares with nothing.
        if !(-0.5..254.5).contains(&level) {
            return ESCAPE;
        }
        #[expect(clippy::cast_possible_truncation, reason = "0 to 254, and it was checked")]
        let symbol = (level + ROUND - ROUND) as u8;
        if point(number, step, origin, symbol) == *bits { symbol } else { ESCAPE }
    }
}

/// Bits and value of a BF16, F16 or F32 element.
#[inline]
pub(super) fn element(number: Number, bytes: &[u8]) -> (u64, f32) {
    match (number.mantissa_bits(), bytes) {
        (7, &[a, b]) => {
            let bits = u16::from_le_bytes([a, b]);
            (bits.into(), half::bf16::from_bits(bits).to_f32())
        }
        (10, &[a, b]) => {
            let bits = u16::from_le_bytes([a, b]);
            (bits.into(), half::f16::from_bits(bits).to_f32())
        }
        (_, &[a, b, c, d]) => {
            let bits = u32::from_le_bytes([a, b, c, d]);
            (bits.into(), f32::from_bits(bits))
        }
        _ => (0, 0.0),
    }
}

/// Half a unit in the last place of a number of this type and size.
fn half_ulp(number: Number, size: f64) -> f64 {
    const F64_BIAS: u64 = 1023;
    let bias = (1u64 << (number.exponent_bits() - 1)) - 1;
    let exponent = (size.to_bits() >> 52 & 0x7ff).max(F64_BIAS + 1 - bias);
    f64::from_bits((exponent - u64::from(number.mantissa_bits()) - 1) << 52)
}

/// Numbers that may have been rounded to the least element of a block.
fn origins(number: Number, least: f32) -> Vec<Option<f32>> {
    let mut origins = vec![Some(least)];
    if number.mantissa_bits() < 10 {
        // F16 numbers lie eight times as close.
        let eighth = half_ulp(number, f64::from(least)) / 4.0;
        let near =
            [1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 4.0, -4.0].map(|i| single(f64::from(least) + i * eighth));
        origins.extend(near.into_iter().filter(|origin| origin.is_finite()).map(Some));
    }
    origins
}

#[expect(clippy::cast_possible_truncation, reason = "rounds to the nearest")]
fn single(x: f64) -> f32 {
    x as f32
}

/// F32 numbers from `low` to `high` that are likely steps. The one with the shortest mantissa comes
/// first, then numbers that were F16 numbers, or else the middle.
fn steps(low: f64, high: f64) -> impl Iterator<Item = f32> {
    let (mut first, mut last) = (single(low).to_bits(), single(high).to_bits());
    if f64::from(f32::from_bits(first)) < low {
        first += 1;
    }
    if f64::from(f32::from_bits(last)) > high {
        last = last.saturating_sub(1);
    }
    let is_empty = first > last || !f32::from_bits(last).is_finite() || first == 0;
    let halves = first.div_ceil(1 << HALF_ZERO_BITS)..=last >> HALF_ZERO_BITS;
    // A longer mantissa would cost all steps of the chunk their zero bits.
    let middle = Some(first.midpoint(last)).filter(|_| halves.is_empty());
    let halves = halves.map(|x| x << HALF_ZERO_BITS).take(MAX_STEPS);
    let all = std::iter::once(shortest(first, last)).chain(halves).chain(middle);
    all.filter(move |_| !is_empty).map(f32::from_bits)
}

/// The number in a range with the most trailing zeros.
fn shortest(first: u32, last: u32) -> u32 {
    let Some(differing) = (first ^ last).checked_ilog2() else { return first };
    if first.trailing_zeros() > differing { first } else { last >> differing << differing }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const F32: Number = Number::float(8, 23);
    const F16: Number = Number::float(5, 10);
    const BF16: Number = Number::float(8, 7);

    /// Elements of a block with these levels.
    fn write(number: Number, step: f32, origin: Option<f32>, symbols: &[u8]) -> Vec<u8> {
        let bytes =
            |symbol: &u8| point(number, step, origin, *symbol).to_le_bytes()[..number.bytes()].to_vec();
        symbols.iter().flat_map(bytes).collect()
    }

    fn escapes(fitter: &Fitter) -> usize {
        fitter.symbols().filter(|(symbol, _)| *symbol == ESCAPE).count()
    }

    proptest! {
        /// Whatever an F16 step made is found again, in every dtype, except where BF16 rounds
        /// points onto one another.
        #[test]
        fn blocks_of_quantisers_are_found(
            step in 0x1000u16..0x3c00, origin in 0x8000u16..0xbc00, levels in prop::collection::vec(0u8..16, 30),
        ) {
            let (step, origin) = (half::f16::from_bits(step).to_f32(), half::f16::from_bits(origin).to_f32());
            let symbols = [&levels[..], &[0, 15]].concat();
            for number in [F32, F16, BF16] {
                let signed: Vec<u8> = symbols.iter().map(|level| MIDDLE - 8 + level).collect();
                let bytes = write(number, -step, None, &signed);
                let mut fitter = Fitter::new(number, Kind::Steps);
                prop_assert!(fitter.fit(&bytes, Kind::Steps.reaches(), 1.0).is_some(), "{number:?}");
                let allowed = if number == BF16 { symbols.len() / ELEMS_PER_ESCAPE } else { 0 };
                prop_assert!(escapes(&fitter) <= allowed);
            }
            for number in [F32, F16] {
                let bytes = write(number, step, Some(origin), &symbols);
                // If rounding the origin swallows the step, the block is constant.
                let mut fitter = Fitter::new(number, Kind::Origins);
                let block = fitter.fit(&bytes, Kind::Origins.reaches(), 1.0);
                if number == F32 || step * 64.0 > -origin {
                    prop_assert_eq!(block.map(|_| escapes(&fitter)), Some(0), "{:?} {} {}", number, step, origin);
                }
            }
        }

        #[test]
        fn any_elements_are_fitted_or_not_but_never_wrong(words in prop::collection::vec(any::<u32>(), 1..70)) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            for number in [F32, F16, BF16] {
                for kind in [Kind::Steps, Kind::Origins] {
                    let mut fitter = Fitter::new(number, kind);
                    if let Some(block) = fitter.fit(&bytes, kind.reaches(), 1.0) {
                        prop_assert!(block.step.is_finite() && block.origin.is_none_or(f32::is_finite));
                        let is_point = |(symbol, bits)| symbol == ESCAPE || point(number, block.step, block.origin, symbol) == bits;
                        prop_assert!(fitter.symbols().all(is_point));
                        prop_assert_eq!(fitter.symbols().count(), bytes.len() / number.bytes());
                    }
                }
            }
        }
    }

    #[test]
    fn the_shortest_number_of_a_range() {
        assert_eq!(shortest(0b1011_0111, 0b1011_1010), 0b1011_1000);
        assert_eq!((shortest(8, 9), shortest(12, 12), shortest(7, 9)), (8, 12, 8));
    }

    #[test]
    fn zeros_say_the_sign_of_the_step() {
        let mut fitter = Fitter::new(F32, Kind::Steps);
        let step = |values: [f32; 3], fitter: &mut Fitter| {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            fitter.fit(&bytes, Kind::Steps.reaches(), 0.75).unwrap().step
        };
        assert_eq!(step([-0.0, 1.5, 1.0], &mut fitter), -0.5);
        assert_eq!(step([0.0, 1.5, 1.0], &mut fitter), 0.5);
        assert_eq!(step([-1.5, 1.5, 1.0], &mut fitter), -0.5);
        assert_eq!(step([0.0, 0.0, 0.0], &mut fitter), 0.75);
    }

    #[test]
    fn weights_have_no_steps() {
        let bytes: Vec<u8> = (1..=32u16).flat_map(|i| (1.0 / f32::from(i * 7 + 3)).to_le_bytes()).collect();
        for kind in [Kind::Steps, Kind::Origins] {
            assert_eq!(Fitter::new(F32, kind).fit(&bytes, kind.reaches(), 1.0), None);
        }
    }
}
