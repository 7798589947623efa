//! What a query sees: at most three ranges of keys, each with one position of the query and one
//! map of the keys' positions. Every way to stretch a context is such a table; attention knows
//! nothing else of it.

use std::ops::Range;

use super::plan::{AttentionPlan, PositionMap, Positions, Reach};

/// Keys that a query sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) keys: Range<usize>,
    /// The position of the query.
    pub(super) query: usize,
    /// The positions of the keys.
    pub(super) map: KeyMap,
}

/// The position that stands for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyMap {
    /// Its own.
    Own,
    /// The whole part of its own over this number.
    Divided(usize),
    /// The rest of its own over this number.
    Modulo(usize),
    /// 0.
    Zero,
}

impl KeyMap {
    pub(super) fn of(self, position: usize) -> usize {
        match self {
            Self::Own => position,
            Self::Divided(by) => position / by,
            Self::Modulo(by) => position % by,
            Self::Zero => 0,
        }
    }
}

/// What the query at this position sees, by growing key; no two spans could be one.
pub(super) fn spans(plan: &AttentionPlan, position: usize) -> impl Iterator<Item = Span> + use<> {
    let first = plan.first_seen(position);
    let end = position + 1;
    let map = match plan.positions {
        Positions::None => PositionMap::Identity,
        Positions::Rotary { map, .. } => map,
    };
    let span = |keys, query, map| Span { keys, query, map };
    let own = |keys| span(keys, position, KeyMap::Own);
    let parts = match map {
        PositionMap::Identity => {
            let Reach::Window { tokens, sinks } = plan.reach else {
                return joined([own(first..end), own(end..end), own(end..end)]);
            };
            let seen_first = sinks.min(end);
            let sinks = span(0..seen_first, position.min(sinks + tokens - 1), KeyMap::Own);
            [sinks, own(first.max(seen_first)..end), own(end..end)]
        }
        PositionMap::Grouped { group: 1, .. } => [own(first..end), own(end..end), own(end..end)],
        PositionMap::Grouped { group, neighbours } => {
            let near = end.saturating_sub(neighbours);
            let query = position / group + neighbours - neighbours / group;
            let far = span(first..near, query, KeyMap::Divided(group));
            [far, own(near.max(first)..end), own(end..end)]
        }
        PositionMap::DualChunk { chunk, local, saturate } => {
            let most = saturate.unwrap_or(chunk + local);
            let start = position / chunk * chunk;
            let before = start.saturating_sub(chunk);
            let map = KeyMap::Modulo(chunk);
            [
                span(first..before, most, map),
                span(first.max(before)..start, (position % chunk + chunk).min(most), map),
                span(first.max(start)..end, position % chunk, map),
            ]
        }
        PositionMap::Clipped { at } => {
            let near = end.saturating_sub(at);
            [span(first..near, at, KeyMap::Zero), own(near.max(first)..end), own(end..end)]
        }
    };
    joined(parts)
}

/// Spans without empty ones; those that touch and have the same positions are one.
fn joined(parts: [Span; 3]) -> impl Iterator<Item = Span> + use<> {
    let mut found: [Option<Span>; 3] = [const { None }; 3];
    let mut count = 0_usize;
    for part in parts {
        if part.keys.is_empty() {
            continue;
        }
        match count.checked_sub(1).and_then(|last| found[last].as_mut()) {
            Some(last)
                if last.keys.end == part.keys.start && (last.query, last.map) == (part.query, part.map) =>
            {
                last.keys.end = part.keys.end;
            }
            _ => {
                found[count] = Some(part);
                count += 1;
            }
        }
    }
    found.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::super::table::Table;
    use super::*;

    fn plan(map: PositionMap, reach: Reach) -> AttentionPlan {
        let positions = Positions::Rotary { theta: 1e4, table: Table::Default, map };
        AttentionPlan::new(reach).with_positions(positions)
    }

    fn found(map: PositionMap, reach: Reach, position: usize) -> Vec<Span> {
        spans(&plan(map, reach), position).collect()
    }

    fn span(keys: Range<usize>, query: usize, map: KeyMap) -> Span {
        Span { keys, query, map }
    }

    #[test]
    fn spans_are_those_of_the_formulas() {
        use KeyMap::{Divided, Modulo, Own, Zero};
        let identity = PositionMap::Identity;
        let sinks = Reach::Window { tokens: 8, sinks: 2 };
        assert_eq!(found(identity, Reach::Causal, 9), [span(0..10, 9, Own)]);
        assert_eq!(found(identity, Reach::Chunk { tokens: 4 }, 9), [span(8..10, 9, Own)]);
        assert_eq!(found(identity, sinks, 9), [span(0..10, 9, Own)]);
        assert_eq!(found(identity, sinks, 20), [span(0..2, 9, Own), span(13..21, 20, Own)]);
        let grouped = PositionMap::Grouped { group: 4, neighbours: 6 };
        assert_eq!(found(grouped, Reach::Causal, 5), [span(0..6, 5, Own)]);
        assert_eq!(found(grouped, Reach::Causal, 20), [span(0..15, 10, Divided(4)), span(15..21, 20, Own)]);
        let window = Reach::Window { tokens: 10, sinks: 0 };
        assert_eq!(found(grouped, window, 20), [span(11..15, 10, Divided(4)), span(15..21, 20, Own)]);
        let dual = PositionMap::DualChunk { chunk: 8, local: 2, saturate: None };
        assert_eq!(found(dual, Reach::Causal, 7), [span(0..8, 7, Modulo(8))]);
        // Queries of both older chunks are at their largest position.
        assert_eq!(found(dual, Reach::Causal, 19), [span(0..16, 10, Modulo(8)), span(16..20, 3, Modulo(8))]);
        let three = [span(0..8, 10, Modulo(8)), span(8..16, 9, Modulo(8)), span(16..18, 1, Modulo(8))];
        assert_eq!(found(dual, Reach::Causal, 17), three);
        let clipped = PositionMap::Clipped { at: 5 };
        assert_eq!(found(clipped, Reach::Causal, 9), [span(0..5, 5, Zero), span(5..10, 9, Own)]);
    }

    #[test]
    fn every_key_that_is_seen_is_in_one_span() {
        let maps = [
            PositionMap::Identity,
            PositionMap::Grouped { group: 3, neighbours: 7 },
            PositionMap::DualChunk { chunk: 9, local: 3, saturate: Some(11) },
            PositionMap::Clipped { at: 4 },
        ];
        let reaches = [Reach::Causal, Reach::Window { tokens: 13, sinks: 0 }, Reach::Chunk { tokens: 20 }];
        for (map, reach) in maps.into_iter().flat_map(|map| reaches.map(|reach| (map, reach))) {
            for position in 0..100 {
                let plan = plan(map, reach);
                let keys: Vec<usize> = spans(&plan, position).flat_map(|span| span.keys).collect();
                assert!(keys.into_iter().eq(plan.first_seen(position)..=position), "{map:?} {reach:?}");
            }
        }
    }
}
