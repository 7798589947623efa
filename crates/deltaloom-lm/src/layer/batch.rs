//! Which tokens are computed together: sequences of one or many tenants, one after another.
//! It holds no activations.

use std::fmt;
use std::ops::Range;

use deltaloom::{Error, Result};

/// A fine-tune whose weights tokens run on. [`crate::tenancy::Family`] gives them out; a layer of
/// one fine-tune knows [`TenantId::ONLY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(usize);

impl TenantId {
    /// The tenant of a layer or model that has one.
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
    /// Whose weights it runs on.
    pub tenant: TenantId,
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
