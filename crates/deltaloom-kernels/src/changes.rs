//! The elements in which two runs differ, as places and values.

use crate::isa::per_isa;

/// Elements that are compared at a time: one bit each.
const BLOCK: usize = u64::BITS as usize;

per_isa! {
    /// Appends the places of the elements of `size` bytes in which `new` differs from `old`, and
    /// their bytes in `new`. Places count from `first`.
    ///
    /// # Panics
    /// If `size` is not 1, 2, 4 or 8; if the runs are not whole elements of the same number; if a
    /// place is above `u32::MAX`.
    pub fn collect_changes(
        size: usize,
        first: u32,
        old: &[u8],
        new: &[u8],
        places: &mut Vec<u32>,
        values: &mut Vec<u8>,
    ) = collect_changes_body;
}

#[inline(always)]
fn collect_changes_body(
    size: usize,
    first: u32,
    old: &[u8],
    new: &[u8],
    places: &mut Vec<u32>,
    values: &mut Vec<u8>,
) {
    assert!(matches!(size, 1 | 2 | 4 | 8), "elements of {size} bytes");
    assert!(old.len() == new.len() && new.len().is_multiple_of(size), "the runs differ in length");
    let elems = u32::try_from(new.len() / size).ok().and_then(|elems| elems.checked_add(first));
    assert!(elems.is_some(), "too many elements for places of 32 bits");
    match size {
        1 => run::<1>(first, old, new, places, values),
        2 => run::<2>(first, old, new, places, values),
        4 => run::<4>(first, old, new, places, values),
        _ => run::<8>(first, old, new, places, values),
    }
}

#[inline(always)]
fn run<const B: usize>(first: u32, old: &[u8], new: &[u8], places: &mut Vec<u32>, values: &mut Vec<u8>) {
    let mut at = first;
    for (old, new) in old.chunks(BLOCK * B).zip(new.chunks(BLOCK * B)) {
        // Most blocks of a fine-tune are equal or have few changes, and equality is cheap.
        if old != new {
            let mut changed = 0u64;
            for (i, (old, new)) in old.chunks_exact(B).zip(new.chunks_exact(B)).enumerate() {
                changed |= u64::from(old != new) << i;
            }
            while changed != 0 {
                let i = changed.trailing_zeros();
                places.push(at + i);
                values.extend_from_slice(&new[i as usize * B..][..B]);
                changed &= changed - 1;
            }
        }
        // The last block may end above the largest place.
        at = at.wrapping_add(u64::BITS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn changes_put_into_the_old_run_give_the_new_one(
            size in prop::sample::select(vec![1usize, 2, 4, 8]),
            first in 0u32..1000,
            old in prop::collection::vec(any::<u8>(), 0..3000),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..200),
        ) {
            let old = &old[..old.len() / size * size];
            let mut new = old.to_vec();
            if !new.is_empty() {
                changes.iter().for_each(|(at, value)| new[at.index(old.len())] = *value);
            }
            let (mut places, mut values) = (Vec::new(), Vec::new());
            collect_changes(size, first, old, &new, &mut places, &mut values);
            prop_assert_eq!(values.len(), places.len() * size);
            let mut patched = old.to_vec();
            for (place, value) in places.iter().zip(values.chunks_exact(size)) {
                let at = (place - first) as usize * size;
                prop_assert!(patched[at..at + size] != *value, "an element that did not change");
                patched[at..at + size].copy_from_slice(value);
            }
            prop_assert!(patched == new && places.is_sorted());
        }
    }

    #[test]
    #[should_panic(expected = "too many elements")]
    fn places_do_not_wrap() {
        collect_changes(1, u32::MAX, &[0, 0], &[1, 1], &mut Vec::new(), &mut Vec::new());
    }
}
