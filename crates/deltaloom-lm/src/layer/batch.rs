//! Which tokens are computed together: sequences of one or many tenants, one after another.
//! It holds no activations.

use std::ops::Range;

use deltaloom::{Error, Result};

/// A run of consecutive tokens of one tenant. Attention never leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// Whose weights it runs on.
    pub tenant: usize,
    /// How many tokens it has.
    pub tokens: usize,
    /// Position of the first of them, for rotary positions.
    pub position: usize,
}

/// Sequences whose tokens lie one after another: activations are `[tokens, width]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    sequences: Vec<Sequence>,
    tokens: usize,
}

impl Batch {
    /// # Errors
    /// [`Error::InvalidArgument`] when tokens or positions cannot be counted.
    pub fn new(sequences: Vec<Sequence>) -> Result<Self> {
        let total = |sum: usize, it: &Sequence| {
            it.position.checked_add(it.tokens)?;
            sum.checked_add(it.tokens)
        };
        let tokens = sequences.iter().try_fold(0, total);
        let tokens = tokens.ok_or_else(|| Error::InvalidArgument("a batch of too many tokens".to_owned()))?;
        Ok(Self { sequences, tokens })
    }

    /// One sequence of tenant 0, from position 0 on.
    #[must_use]
    pub fn of_one(tokens: usize) -> Self {
        Self { sequences: vec![Sequence { tenant: 0, tokens, position: 0 }], tokens }
    }

    /// The sequences in order.
    #[must_use]
    pub fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }

    /// Tokens of all sequences.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Each sequence with the numbers of its tokens.
    pub fn places(&self) -> impl Iterator<Item = (&Sequence, Range<usize>)> {
        let mut start = 0;
        self.sequences.iter().map(move |sequence| {
            // Their sum was checked.
            let place = start..start + sequence.tokens;
            start = place.end;
            (sequence, place)
        })
    }
}
