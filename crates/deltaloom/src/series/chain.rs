//! Chooses the reference of a new step, so that any step is few hops from its keyframe and most
//! deltas are small; docs/series.md.
//! Pure functions of the existing entries. Nothing is read.

use super::manifest::{SeriesOptions, StepEntry};
use crate::error::Result;

/// Possible distances of the reference from a new step, in addition to the keyframe.
const SKIPS: [usize; 4] = [1, 2, 4, 8];

/// Number of entries before a new one that [`choose_reference`] uses.
pub(crate) const LOOK_BACK: usize = SKIPS[SKIPS.len() - 1];

/// Deltas grow with the distance s as s^0.65: from 3.0 to 22 % of the weights in one and eight
/// steps of real training at a rate of 1e-6 (docs/adr/0025).
const GROWTH: f64 = 0.65;

/// Number of older entries to consider if a delta takes much more than those before it.
const OLDER: usize = 3;
/// A delta is unusual if it takes this many times the smallest of those before it.
const UNUSUAL: f64 = 1.25;

/// The possible references of the next step.
pub(crate) struct Candidates<'a> {
    /// From its keyframe up to the entry that the rule names. Empty if the next step becomes a
    /// keyframe.
    pub(crate) chain: Vec<StepEntry>,
    before: Vec<StepEntry>,
    max_chain: u32,
    chain_of: &'a dyn Fn(&StepEntry) -> Result<Vec<StepEntry>>,
}

impl<'a> Candidates<'a> {
    /// No references: the next step is a keyframe.
    pub(crate) fn none(chain_of: &'a dyn Fn(&StepEntry) -> Result<Vec<StepEntry>>) -> Self {
        Self { chain: Vec::new(), before: Vec::new(), max_chain: 0, chain_of }
    }

    /// The candidates for the step after `before`, which holds the newest entries in order, at
    /// least [`LOOK_BACK`] if so many exist.
    pub(crate) fn new(
        before: Vec<StepEntry>,
        options: &SeriesOptions,
        chain_of: &'a dyn Fn(&StepEntry) -> Result<Vec<StepEntry>>,
    ) -> Result<Self> {
        let Some(newest) = before.last() else { return Ok(Self::none(chain_of)) };
        let keyframe = &chain_of(newest)?[0];
        let reference = choose_reference(&before, keyframe, options);
        let chain = reference.map_or_else(|| Ok(Vec::new()), chain_of)?;
        Ok(Self { chain, before, max_chain: options.max_chain, chain_of })
    }

    /// Whether a delta of this share of its checkpoint is about as small as the deltas before it.
    pub(crate) fn is_usual(&self, share: f64) -> bool {
        let deltas = self.before.iter().filter(|entry| !entry.is_keyframe() && entry.is_sound());
        let least = deltas.map(|entry| 1.0 / entry.ratio()).min_by(f64::total_cmp);
        least.is_none_or(|least| share <= UNUSUAL * least)
    }

    /// Chains that end before the entry of the rule and have room for another step, newest first.
    pub(crate) fn older(&self) -> Result<Vec<Vec<StepEntry>>> {
        let Some(reference) = self.chain.last() else { return Ok(Vec::new()) };
        let older = || self.before.iter().rev().filter(|entry| entry.step < reference.step);
        let open = older().filter(|entry| entry.hops < self.max_chain);
        let mut chains = open.take(OLDER).map(|entry| (self.chain_of)(entry)).collect::<Result<Vec<_>>>()?;
        // If all are full, the keyframe below them has room.
        if let (true, Some(entry)) = (chains.is_empty(), older().next()) {
            chains.push((self.chain_of)(entry)?[..1].to_vec());
        }
        Ok(chains)
    }
}

/// The reference of the entry after `before`, or `None` for a keyframe. `before` holds the newest
/// entries in order, at least [`LOOK_BACK`] if so many exist. `keyframe` is the last keyframe.
pub(crate) fn choose_reference<'a>(
    before: &'a [StepEntry],
    keyframe: &'a StepEntry,
    options: &SeriesOptions,
) -> Option<&'a StepEntry> {
    let newest = before.last()?;
    let distance_to_keyframe = newest.since_keyframe as usize + 1;
    if newest.since_keyframe + 1 >= options.keyframe_every {
        return None;
    }
    if newest.hops < options.max_chain {
        return Some(newest);
    }
    let skips = SKIPS.into_iter().filter(|skip| *skip < distance_to_keyframe);
    let back = skips.filter_map(|skip| Some((skip, before.get(before.len().checked_sub(skip)?)?)));
    let candidates = back.chain([(distance_to_keyframe, keyframe)]);
    let open = candidates.filter(|(_, candidate)| candidate.hops < options.max_chain);
    let least = open.min_by(|(skip, a), (other, b)| {
        mean_size(*skip, options.max_chain - a.hops).total_cmp(&mean_size(*other, options.max_chain - b.hops))
    });
    least.map(|(_, candidate)| candidate)
}

/// Expected size per entry of a skip and of the entries after it until the chain is full again. In
/// units of a delta to the entry before.
fn mean_size(skip: usize, room: u32) -> f64 {
    let room = f64::from(room);
    ((skip as f64).powf(GROWTH) + room - 1.0) / room
}

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::entry;
    use super::*;

    /// A series of `count` entries, built by the rule.
    fn series(count: u64, options: &SeriesOptions) -> Vec<StepEntry> {
        let mut entries: Vec<StepEntry> = Vec::new();
        let mut keyframe = entry(0, None, 0, 0);
        for step in 0..count {
            let reference = choose_reference(&entries, &keyframe, options);
            let since = entries.last().map_or(0, |newest: &StepEntry| newest.since_keyframe + 1);
            let new = match reference {
                Some(reference) => entry(step, Some(reference.step), reference.hops + 1, since),
                None => entry(step, None, 0, 0),
            };
            if new.is_keyframe() {
                keyframe = new.clone();
            }
            entries.push(new);
        }
        entries
    }

    #[test]
    fn no_chain_is_longer_than_allowed() {
        for (keyframe_every, max_chain) in [(16, 8), (1, 1), (5, 1), (64, 8), (1000, 3), (40, 16), (100, 256)]
        {
            let options = SeriesOptions { keyframe_every, max_chain };
            let entries = series(300, &options);
            assert!(entries.iter().all(|e| e.hops <= max_chain));
            let keyframes: Vec<u64> = entries.iter().filter(|e| e.is_keyframe()).map(|e| e.step).collect();
            let expected: Vec<u64> = (0..300).step_by(keyframe_every as usize).collect();
            assert_eq!(keyframes, expected, "{options:?}");
        }
    }

    #[test]
    fn the_default_goes_back_once_between_keyframes() {
        let entries = series(17, &SeriesOptions::default());
        let references: Vec<Option<u64>> = entries.iter().map(|e| e.reference).collect();
        let expected = [
            None,
            Some(0),
            Some(1),
            Some(2),
            Some(3),
            Some(4),
            Some(5),
            Some(6),
            Some(7),
            // All eight hops are used: a skip to step 0 leaves room for all that follow.
            Some(0),
            Some(9),
            Some(10),
            Some(11),
            Some(12),
            Some(13),
            Some(14),
            None,
        ];
        assert_eq!(references, expected);
    }
}
