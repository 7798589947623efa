//! Which tokens are computed together: sequences of one or many tenants, one after another. It
//! holds no activations.

use std::fmt;
use std::ops::Range;

use deltaloom::{Error, Result};

/// A fine-tune on whose weights tokens run. [`crate::tenancy::Family`] assigns the ids; a layer of
/// one fine-tune knows [`TenantId::ONLY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(usize);

impl TenantId {
    /// The tenant of a layer or model with a single one.
    pub const ONLY: Self = Self(0);

    /// The tenant with this number. A family numbers its tenants from 0 in the order in which they
    /// are added.
    #[must_use]
    pub const fn new(number: usize) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> usize {
        self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tenant {}", self.0)
    }
}

/// A run of consecutive tokens of one tenant. Attention never leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// The tenant on whose weights it runs.
    pub tenant: TenantId,
    /// Number of its tokens.
    pub tokens: usize,
    /// Position of its first token, for rotary positions.
    pub position: usize,
}

/// Sequences with their tokens one after another: activations are `[tokens, width]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    sequences: Vec<Sequence>,
    tokens: usize,
}

impl Batch {
    /// Combines sequences into a batch.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the number of tokens or a position overflows.
    pub fn new(sequences: Vec<Sequence>) -> Result<Self> {
        let total = |sum: usize, it: &Sequence| {
            it.position.checked_add(it.tokens)?;
            sum.checked_add(it.tokens)
        };
        let tokens = sequences.iter().try_fold(0, total);
        let tokens =
            tokens.ok_or_else(|| Error::InvalidArgument("the batch has too many tokens".to_owned()))?;
        Ok(Self { sequences, tokens })
    }

    /// One sequence of [`TenantId::ONLY`], from position 0 on.
    #[must_use]
    pub fn of_one(tokens: usize) -> Self {
        Self { sequences: vec![Sequence { tenant: TenantId::ONLY, tokens, position: 0 }], tokens }
    }

    /// The sequences in order.
    #[must_use]
    pub fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }

    /// Number of tokens of all sequences.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Each sequence with the range of its tokens.
    pub fn places(&self) -> impl Iterator<Item = (&Sequence, Range<usize>)> {
        let mut start = 0;
        self.sequences.iter().map(move |sequence| {
            // The sum was checked, so this cannot overflow.
            let place = start..start + sequence.tokens;
            start = place.end;
            (sequence, place)
        })
    }
}
