//! Which step a new one is packed against, so that any step is few hops from its keyframe and most deltas are small; docs/series.md.
//! Pure functions of the entries that are there; nothing is read.

use super::manifest::{SeriesOptions, StepEntry};

/// How many places before a new step its reference may be, besides the keyframe.
const SKIPS: [usize; 4] = [1, 2, 4, 8];

/// Entries before a new one that [`choose_reference`] looks at.
pub(crate) const LOOK_BACK: usize = SKIPS[SKIPS.len() - 1];

/// Deltas grow with the distance s as s^0.65: from 3.0 to 22 % of the weights in one and eight steps of real training at a rate of 1e-6 (docs/adr/0025).
const GROWTH: f64 = 0.65;

/// The entry against which the one after `before` is packed, or `None` for a keyframe. `before` are the newest entries in order, at least [`LOOK_BACK`] where there are
/// so many; `keyframe` is the last keyframe.
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

/// Expected size per entry, in deltas to the entry before, of a skip and of the entries after it until the chain is full again.
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn mean_size(skip: usize, room: u32) -> f64 {
    let room = f64::from(room);
    ((skip as f64).powf(GROWTH) + room - 1.0) / room
}

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::entry;
    use super::*;

    /// A series of `count` entries that is built by the rule.
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
            // Eight hops are used up: a skip to step 0 leaves room for all that follow.
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
