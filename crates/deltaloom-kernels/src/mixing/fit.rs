//! Chooses how the steps of a chunk are used, from one look at its elements. An encoder is free to
//! choose otherwise. Nothing is learned or coded here.

use super::{MIN_TRACKED_ROWS, MixRule, MixShape, SCALE_MAX, value};
use crate::number::{by_number, load};
use crate::{Number, NumberKind};

/// How the elements of one exponent moved.
#[derive(Debug, Clone, Copy, Default)]
struct Moves {
    elems: u64,
    changed: u64,
    squares: f64,
}

impl Moves {
    fn add(&mut self, other: &Self) {
        self.elems += other.elems;
        self.changed += other.changed;
        self.squares += other.squares;
    }
}

/// Below 1 in this many, the elements that move are too few to learn from alone.
const LEAST_SHARE: u64 = 64;

impl MixRule {
    /// Chooses a rule for coding `target` with `prediction`.
    #[must_use]
    pub fn fit(shape: MixShape, target: &[u8], prediction: &[u8]) -> Self {
        let number = shape.number;
        let mut moves = vec![Moves::default(); 1 << number.exponent_bits()];
        by_number!(number, count(&mut moves, target, prediction));
        let mut all = Moves::default();
        moves.iter().for_each(|of_exponent| all.add(of_exponent));
        // Where a ULP is too large for the steps, nothing moves, and an element that stands still
        // does not show how far it would have moved.
        let moving = moves.iter().rposition(|m| m.changed > 0 && m.changed * 2 >= m.elems);
        let mut highest = moving.unwrap_or(moves.len() - 1);
        let sum = |moves: &[Moves]| {
            moves.iter().fold(Moves::default(), |mut sum, m| {
                sum.add(m);
                sum
            })
        };
        let mut moved = sum(&moves[..=highest]);
        if moved.elems * LEAST_SHARE < all.elems {
            (highest, moved) = (moves.len() - 1, all);
        }
        let mean_square = moved.squares / moved.elems.max(1) as f64;
        let scale = if mean_square > 0.0 {
            let log2 = (mean_square.to_bits() >> 52) as i32 - 1023;
            ((log2 + 1) >> 1).clamp(-SCALE_MAX, SCALE_MAX)
        } else {
            0
        };
        let tracks = target.len() / number.bytes() / shape.cols >= MIN_TRACKED_ROWS;
        #[expect(clippy::cast_possible_truncation, reason = "an exponent")]
        let highest = highest as u32;
        Self { tracks, shifts: tracks && all.changed * 2 >= all.elems, scale, highest }
    }
}

#[inline(always)]
fn count<const B: usize>(number: Number, moves: &mut [Moves], target: &[u8], prediction: &[u8]) {
    for i in 0..target.len() / B {
        let (t, p) = (load::<B>(target, i), load::<B>(prediction, i));
        let exponent = if number.kind() == NumberKind::Float { number.exponent(p) as usize } else { 0 };
        let of_exponent = &mut moves[exponent];
        of_exponent.elems += 1;
        if t != p {
            of_exponent.changed += 1;
            let step = f64::from(value::step(number, p, t, 0));
            of_exponent.squares += if step.is_finite() { step * step } else { 0.0 };
        }
    }
}
