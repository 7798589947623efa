//! Size of a matrix in each resident form, from counts of its changes, without building it.
//! [`super`] chooses among the forms.

use serde::Serialize;

use super::Form;
use crate::dense::{MatrixShape, WeightType};
use crate::forms::{Bitmap, Csr, Planes};

/// How much of a matrix differs from its base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Changes {
    /// Number of elements that differ.
    pub elems: u64,
    /// Number of those that differ in their top byte.
    pub tops: u64,
    /// Number of entries of sparse rows; `None` if a difference is not finite and so cannot be an
    /// entry.
    pub entries: Option<u64>,
}

impl Changes {
    /// Counts that are known otherwise: elements that differ, those that differ in their top byte,
    /// and entries of sparse rows.
    #[must_use]
    pub fn new(elems: u64, tops: u64, entries: Option<u64>) -> Self {
        Self { elems, tops, entries }
    }

    /// No changes.
    #[must_use]
    pub fn none() -> Self {
        Self { elems: 0, tops: 0, entries: Some(0) }
    }

    /// Adds the changes between some elements, from the bytes of both.
    pub fn add(&mut self, weight: WeightType, base: &[u8], tuned: &[u8]) {
        if base == tuned {
            return;
        }
        let elements = base.chunks_exact(weight.bytes()).zip(tuned.chunks_exact(weight.bytes()));
        for (from, to) in elements.filter(|(from, to)| from != to) {
            self.elems += 1;
            self.tops += u64::from(from.last() != to.last());
            let entries = Csr::entries_for(weight, from, to);
            self.entries = self.entries.zip(entries).map(|(sum, entries)| sum + entries);
        }
    }

    /// Number of bytes of a matrix with these changes. `None` for tiles, which depend on more than
    /// counts, and for impossible sparse rows.
    #[must_use]
    pub fn resident_bytes(&self, shape: MatrixShape, form: Form) -> Option<u64> {
        match form {
            Form::Base => (self.elems == 0).then_some(0),
            Form::Tiles => None,
            Form::Planes => Some(Planes::bytes_for(shape, self.elems, self.tops)),
            Form::Bitmap => Some(Bitmap::bytes_for(shape, self.elems)),
            Form::Csr => Some(Csr::bytes_for(shape, self.entries?)),
            Form::Dense => Some(shape.len_bytes() as u64),
        }
    }
}
