//! What an element's values at earlier steps say about its next one: states of changes, levels of
//! residuals, and the tables chosen by both; docs/format.md section 15.
//!
//! It reads no earlier steps itself and counts nothing.

use crate::isa::per_isa;
use crate::keys::{KEYS, map_keys};
use crate::number::{by_number, load};
use crate::{Number, NumberKind};

/// A state is 0 before the first change. After that, its low bits count changes, the bits above
/// count steps since the last change, and the top bit says that the value went down.
const COUNT_BITS: u8 = 3;
const MOST_CHANGES: u8 = (1 << COUNT_BITS) - 1;
const ONE_STEP: u8 = 1 << COUNT_BITS;
const STEPS: u8 = 0x78;
const DOWN: u8 = 0x80;
/// Levels of residuals run from minus to plus this.
const MOST_LEVEL: u8 = 7;
/// Classes of residuals: the level of the last one times the sign of the one before.
const SIGNS: u8 = 3;

per_isa! {
    /// Advances the states of all elements by one step, from `older` to `newer`.
    ///
    /// # Panics
    /// If the slices do not have the same number of elements.
    pub fn follow_changes(number: Number, older: &[u8], newer: &[u8], states: &mut [u8]) = follow_changes_body;
}

#[inline(always)]
fn follow_changes_body(number: Number, older: &[u8], newer: &[u8], states: &mut [u8]) {
    #[inline(always)]
    fn run<const B: usize>(number: Number, older: &[u8], newer: &[u8], states: &mut [u8]) {
        let pairs = older.chunks_exact(B).zip(newer.chunks_exact(B));
        for (state, (older, newer)) in states.iter_mut().zip(pairs) {
            let (older, newer) = (load::<B>(older, 0), load::<B>(newer, 0));
            let is_down = is_negative(number, residual(number, newer, older));
            *state = next_state(*state, older != newer, is_down);
        }
    }
    let size = number.bytes();
    assert!(older.len() == states.len() * size && newer.len() == older.len());
    if size == 2 {
        return follow_changes_16(number, older, newer, states);
    }
    by_number!(number, run(older, newer, states));
}

/// The same for elements of 16 bits, in 16-bit arithmetic, so that vectors hold twice as many.
#[inline(always)]
fn follow_changes_16(number: Number, older: &[u8], newer: &[u8], states: &mut [u8]) {
    let residual = residual_16(number);
    let pairs = older.chunks_exact(2).zip(newer.chunks_exact(2));
    for (state, (older, newer)) in states.iter_mut().zip(pairs) {
        let d = residual(load_16(newer), load_16(older));
        *state = next_state(*state, d != 0, d >> 15 == 1);
    }
}

#[inline(always)]
fn low_byte(x: u16) -> u8 {
    x.to_le_bytes()[0]
}

#[inline(always)]
fn load_16(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[0], bytes[1]])
}

/// [`residual`] for elements of 16 bits.
#[inline(always)]
fn residual_16(number: Number) -> impl Fn(u16, u16) -> u16 {
    let of_floats = if number.kind() == NumberKind::Float { 0x7fff } else { 0 };
    let of_signed = if number.kind() == NumberKind::Unsigned { 0 } else { u16::MAX };
    // Flipping the top bit of both would cancel in their difference.
    let ordered = move |x: u16| x ^ ((x >> 15).wrapping_neg() & of_floats);
    move |t, p| {
        let fold = (p >> 15).wrapping_neg() & of_signed;
        (ordered(t).wrapping_sub(ordered(p)) ^ fold).wrapping_sub(fold)
    }
}

#[inline(always)]
fn next_state(state: u8, is_changed: bool, is_down: bool) -> u8 {
    let changed = (if is_down { DOWN } else { 0 })
        | ONE_STEP
        | ((state & MOST_CHANGES) + u8::from(state & MOST_CHANGES < MOST_CHANGES));
    let waits = state != 0 && state & STEPS != STEPS;
    let unchanged = state + if waits { ONE_STEP } else { 0 };
    if is_changed { changed } else { unchanged }
}

/// Folded residual of `t` for prediction `p`, in the width of the element.
#[inline(always)]
fn residual(number: Number, t: u64, p: u64) -> u64 {
    number.folded(number.ordered(t).wrapping_sub(number.ordered(p)), p) & number.mask()
}

#[inline(always)]
fn is_negative(number: Number, residual: u64) -> bool {
    residual & number.top_bit() != 0
}

per_isa! {
    /// Computes the classes of the last two residuals of all elements: from `older` to `newer` and,
    /// if there is an `oldest`, from `oldest` to `older`.
    ///
    /// # Panics
    /// If the slices do not have the same number of elements.
    pub fn residual_classes(number: Number, oldest: Option<&[u8]>, older: &[u8], newer: &[u8], classes: &mut [u8]) = residual_classes_body;
}

#[inline(always)]
fn residual_classes_body(
    number: Number,
    oldest: Option<&[u8]>,
    older: &[u8],
    newer: &[u8],
    classes: &mut [u8],
) {
    #[inline(always)]
    fn run<const B: usize>(
        number: Number,
        oldest: Option<&[u8]>,
        older: &[u8],
        newer: &[u8],
        classes: &mut [u8],
    ) {
        for (i, class) in classes.iter_mut().enumerate() {
            let (p, t) = (load::<B>(older, i), load::<B>(newer, i));
            let before =
                oldest.map_or(1, |oldest| sign_of(number, residual(number, p, load::<B>(oldest, i))));
            *class = level_of(number, residual(number, t, p)) * SIGNS + before;
        }
    }
    assert!(older.len() == classes.len() * number.bytes() && newer.len() == older.len());
    assert!(oldest.is_none_or(|oldest| oldest.len() == older.len()));
    if number.bytes() == 2 {
        return residual_classes_16(number, oldest, older, newer, classes);
    }
    by_number!(number, run(oldest, older, newer, classes));
}

/// The same for elements of 16 bits.
#[inline(always)]
fn residual_classes_16(
    number: Number,
    oldest: Option<&[u8]>,
    older: &[u8],
    newer: &[u8],
    classes: &mut [u8],
) {
    let residual = residual_16(number);
    let pairs = older.chunks_exact(2).zip(newer.chunks_exact(2));
    for (class, (older, newer)) in classes.iter_mut().zip(pairs) {
        let d = residual(load_16(newer), load_16(older));
        let size = if d >> 15 == 1 { d.wrapping_neg() } else { d };
        // Comparisons, because vectors cannot count leading zeros.
        let bits: u16 = (0..MOST_LEVEL).map(|bit| u16::from(size >> bit != 0)).sum();
        let middle = u16::from(MOST_LEVEL);
        let level = if d >> 15 == 1 { middle - bits } else { middle + bits };
        *class = low_byte(level * u16::from(SIGNS) + 1);
    }
    let Some(oldest) = oldest else { return };
    for (class, (oldest, older)) in classes.iter_mut().zip(oldest.chunks_exact(2).zip(older.chunks_exact(2)))
    {
        let before = residual(load_16(older), load_16(oldest));
        *class = *class + u8::from(before != 0) - 2 * low_byte(before >> 15);
    }
}

/// 0 for down, 1 for unchanged, 2 for up.
#[inline(always)]
fn sign_of(number: Number, residual: u64) -> u8 {
    if is_negative(number, residual) { 0 } else { 1 + u8::from(residual != 0) }
}

/// Number of bits of the residual's absolute value, with its sign; 0 is far down.
#[inline(always)]
fn level_of(number: Number, residual: u64) -> u8 {
    let is_negative = is_negative(number, residual);
    let size = if is_negative { residual.wrapping_neg() & number.mask() } else { residual };
    let bits: u8 = (0..MOST_LEVEL).map(|bit| u8::from(size >> bit != 0)).sum();
    if is_negative { MOST_LEVEL - bits } else { MOST_LEVEL + bits }
}

/// The table for every key in every class.
pub type CellMap = [[u8; KEYS]; 256];

/// Replaces every key by its table in the element's class.
///
/// # Panics
/// If the numbers of classes and keys differ.
pub fn map_cells(keys: &mut [u8], classes: &[u8], map: &CellMap) {
    assert_eq!(keys.len(), classes.len(), "a class for every key");
    let usual = usual_class(classes);
    for (keys, classes) in keys.chunks_mut(MAP_BLOCK).zip(classes.chunks(MAP_BLOCK)) {
        let unusual: usize = classes.iter().map(|class| usize::from(*class != usual)).sum();
        if unusual * 4 > classes.len() {
            let pairs = keys.iter_mut().zip(classes);
            pairs.for_each(|(key, class)| *key = map[usize::from(*class)][usize::from(*key)]);
            continue;
        }
        // Whole vectors of keys for the most common class, then the other classes.
        let mut before = [0; MAP_BLOCK];
        before[..keys.len()].copy_from_slice(keys);
        map_keys(keys, &map[usize::from(usual)]);
        for (word, eight) in classes.chunks(8).enumerate() {
            let mut bytes = [usual; 8];
            bytes[..eight.len()].copy_from_slice(eight);
            // The top bit of every byte that differs.
            let differs = u64::from_le_bytes(bytes) ^ u64::from_le_bytes([usual; 8]);
            let low = u64::MAX / 255 * 0x7f;
            let mut differs = (((differs & low) + low) | differs) & !low;
            while differs != 0 {
                let at = 8 * word + differs.trailing_zeros() as usize / 8;
                keys[at] = map[usize::from(classes[at])][usize::from(before[at])];
                differs &= differs - 1;
            }
        }
    }
}

/// Number of keys that are mapped together.
const MAP_BLOCK: usize = 256;

/// The most common class among the first elements.
fn usual_class(classes: &[u8]) -> u8 {
    let mut counts = [0u16; 256];
    classes.iter().take(MAP_BLOCK).for_each(|class| counts[usize::from(*class)] += 1);
    (0..=u8::MAX).max_by_key(|class| counts[usize::from(*class)]).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    const NUMBERS: [Number; 7] = [
        Number::float(8, 7),
        Number::float(5, 10),
        Number::float(8, 23),
        Number::float(11, 52),
        Number::float(4, 3),
        Number::signed(16),
        Number::unsigned(16),
    ];

    fn bytes(number: Number, words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()[..number.bytes()].to_vec()).collect()
    }

    proptest! {
        #[test]
        fn every_isa_follows_as_the_definition_says(
            steps in prop::collection::vec(prop::collection::vec(prop_oneof![4 => 0u64..3, 1 => any::<u64>()], 77), 2..20),
        ) {
            for number in NUMBERS {
                let steps: Vec<Vec<u8>> = steps.iter().map(|words| bytes(number, words)).collect();
                let value = |step: usize, i: usize| {
                    let mut word = [0; 8];
                    word[..number.bytes()].copy_from_slice(&steps[step][i * number.bytes()..][..number.bytes()]);
                    u64::from_le_bytes(word)
                };
                let expected: Vec<u8> = (0..77).map(|i| {
                    let (mut age, mut count, mut down) = (0u8, 0u8, 0u8);
                    for step in 1..steps.len() {
                        let (p, t) = (value(step - 1, i), value(step, i));
                        if t != p {
                            let d = number.folded(number.ordered(t).wrapping_sub(number.ordered(p)), p);
                            (age, count, down) = (1, (count + 1).min(7), u8::from(d & number.top_bit() != 0));
                        } else if age > 0 {
                            age = (age + 1).min(15);
                        }
                    }
                    down << 7 | age << 3 | count
                }).collect();
                for_each_isa(|isa| {
                    let mut states = vec![0; 77];
                    steps.windows(2).for_each(|w| follow_changes(number, &w[0], &w[1], &mut states));
                    prop_assert_eq!(&states, &expected, "{:?} {:?}", number, isa);
                    let last = &steps[steps.len() - 2..];
                    let oldest = steps.len().checked_sub(3).map(|i| &steps[i][..]);
                    let d = |t: u64, p: u64| {
                        let d = number.folded(number.ordered(t).wrapping_sub(number.ordered(p)), p);
                        (d << (64 - number.bits())).cast_signed() >> (64 - number.bits())
                    };
                    let of = |i: usize| {
                        let at = |step: usize| value(steps.len() - step, i);
                        let last = d(at(1), at(2));
                        let bits = (64 - last.unsigned_abs().leading_zeros()).min(7).cast_signed();
                        let before = if oldest.is_some() { d(at(2), at(3)).signum() } else { 0 };
                        3 * (7 + bits * i32::try_from(last.signum()).unwrap()) + 1 + i32::try_from(before).unwrap()
                    };
                    let mut classes = vec![0; 77];
                    residual_classes(number, oldest, &last[0], &last[1], &mut classes);
                    prop_assert!((0..77).all(|i| i32::from(classes[i]) == of(i)), "{:?} {:?}", number, isa);
                    Ok(())
                })?;
            }
        }
    }

    #[test]
    fn classes_are_levels_and_signs() {
        let bf16 = Number::float(8, 7);
        // Away from zero by 5, towards zero by 1, unchanged, and across zero.
        let older = bytes(bf16, &[0x3f80, 0xbf81, 0x3f80, 0x0001]);
        let newer = bytes(bf16, &[0x3f85, 0xbf80, 0x3f80, 0x8001]);
        let mut classes = [0; 4];
        for_each_isa(|_| {
            residual_classes(bf16, None, &older, &newer, &mut classes);
            assert_eq!(classes, [10 * 3 + 1, 6 * 3 + 1, 7 * 3 + 1, 5 * 3 + 1]);
            residual_classes(bf16, Some(&newer), &older, &newer, &mut classes);
            assert_eq!(classes, [10 * 3, 6 * 3 + 2, 7 * 3 + 1, 5 * 3]);
            Ok::<_, ()>(())
        })
        .unwrap();
    }

    #[test]
    fn cells_lead_to_the_table_of_their_class() {
        let mut map: Box<CellMap> = Box::new([[0; KEYS]; 256]);
        map[3][200] = 9;
        map[0][200] = 5;
        let mut keys = [200, 200, 7];
        map_cells(&mut keys, &[3, 0, 3], &map);
        assert_eq!(keys, [9, 5, 0]);
        // Few and many unusual classes, and incomplete blocks.
        for (class, cells) in (0u32..).zip(map.iter_mut()) {
            for (key, table) in (0u32..).zip(cells) {
                *table = (class * 7 + key * 13).to_le_bytes()[0];
            }
        }
        for (every, len) in [(1, 1000), (3, 300), (9, 777), (100, 256), (1000, 900)] {
            let bytes = |i: usize, by: usize| (i * by).to_le_bytes()[0];
            let keys: Vec<u8> = (0..len).map(|i| bytes(i, 37)).collect();
            let classes: Vec<u8> =
                (0..len).map(|i| if i % every == every / 2 { bytes(i, 11) } else { 22 }).collect();
            let expected: Vec<u8> =
                keys.iter().zip(&classes).map(|(k, c)| map[usize::from(*c)][usize::from(*k)]).collect();
            for_each_isa(|isa| {
                let mut keys = keys.clone();
                map_cells(&mut keys, &classes, &map);
                assert_eq!(keys, expected, "{every} {isa:?}");
                Ok::<_, ()>(())
            })
            .unwrap();
        }
    }
}
