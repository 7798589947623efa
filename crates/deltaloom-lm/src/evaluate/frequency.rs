//! How often a token was seen in a text: what a model says of rare tokens suffers first when it is
//! made smaller.

use serde::Serialize;

/// How often a token was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Frequency {
    /// Never.
    Unseen,
    /// Less often than if all ids of the model were equally frequent.
    Rare,
    /// At least that often.
    Common,
}

/// Counts of ids in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    counts: Vec<u64>,
    total: u64,
}

impl Seen {
    /// Counts ids below `vocabulary`; others are ignored.
    #[must_use]
    pub fn new(ids: impl IntoIterator<Item = u32>, vocabulary: usize) -> Self {
        let mut seen = Self { counts: vec![0; vocabulary], total: 0 };
        for id in ids {
            if let Some(count) = seen.counts.get_mut(id as usize) {
                *count += 1;
                seen.total += 1;
            }
        }
        seen
    }

    /// Number of tokens that were counted.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.total
    }

    /// How often an id was seen.
    #[must_use]
    pub fn of(&self, id: u32) -> Frequency {
        let count = self.counts.get(id as usize).copied().unwrap_or(0);
        match u128::from(count) * self.counts.len() as u128 {
            0 => Frequency::Unseen,
            scaled if scaled < u128::from(self.total) => Frequency::Rare,
            _ => Frequency::Common,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_less_than_the_average_is_rare() {
        let seen = Seen::new([0, 0, 0, 0, 0, 0, 1, 2, 2, 9], 4);
        assert_eq!(seen.tokens(), 9);
        assert_eq!([0, 1, 2, 3, 9].map(|id| seen.of(id)), {
            use Frequency::{Common, Rare, Unseen};
            [Common, Rare, Rare, Unseen, Unseen]
        });
        assert_eq!(Seen::new([0, 1, 2, 3], 4).of(2), Frequency::Common);
        assert_eq!(Seen::new([], 0).of(0), Frequency::Unseen);
    }
}
