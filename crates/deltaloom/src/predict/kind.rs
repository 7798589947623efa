//! Which predictors there are, and which tensors can have them; the table of docs/format.md section
//! 3.

use super::cast;
use super::number::Element;
use crate::error::{Error, Result};
use crate::tensor::{ChunkGrid, DType, TensorInfo};

/// Which predictor it is, as files and reports name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Zero,
    Reference,
    Identical,
    Tied,
    Cast,
    CastInternal,
    LowRank,
    Adapter,
    Blend,
    Companion,
    Adam,
    History,
    View,
    Converted,
    Adapters,
    Quantised,
    Text,
    Blocks,
    LowRanks,
    LaidOut,
    Drift,
}

impl Kind {
    const ALL: [Self; 21] = [
        Self::Zero,
        Self::Reference,
        Self::Identical,
        Self::Tied,
        Self::Cast,
        Self::CastInternal,
        Self::LowRank,
        Self::Adapter,
        Self::Blend,
        Self::Companion,
        Self::Adam,
        Self::History,
        Self::View,
        Self::Converted,
        Self::Adapters,
        Self::Quantised,
        Self::Text,
        Self::Blocks,
        Self::LowRanks,
        Self::LaidOut,
        Self::Drift,
    ];

    /// Its id in files, the first version of the format that has it, and its name in reports.
    pub(super) fn facts(self) -> (u8, u16, &'static str) {
        match self {
            Self::Zero => (0, 1, "zero"),
            Self::Reference => (1, 1, "reference"),
            Self::Identical => (2, 1, "identical"),
            Self::Tied => (3, 1, "tied"),
            Self::Cast => (4, 1, "cast"),
            Self::CastInternal => (5, 1, "cast"),
            Self::LowRank => (6, 2, "lowrank"),
            Self::Adapter => (7, 2, "adapter"),
            Self::Blend => (8, 2, "blend"),
            Self::Companion => (9, 2, "companion"),
            Self::Adam => (10, 2, "adam"),
            Self::History => (11, 3, "history"),
            Self::View => (12, 4, "view"),
            Self::Converted => (13, 4, "converted"),
            Self::Adapters => (14, 4, "adapters"),
            Self::Quantised => (15, 4, "quantised"),
            Self::Text => (16, 4, "text"),
            Self::Blocks => (17, 4, "blocks"),
            Self::LowRanks => (18, 4, "lowrank"),
            Self::LaidOut => (19, 4, "text"),
            Self::Drift => (20, 4, "drift"),
        }
    }

    pub(super) fn of_id(id: u8, version: u16) -> Result<Self> {
        let is_wanted = |kind: &Self| {
            let (own, since, _) = kind.facts();
            own == id && since <= version
        };
        let found = Self::ALL.into_iter().find(is_wanted);
        found.ok_or_else(|| Error::corrupt(format!("predictor {id} does not exist")))
    }

    /// Whether a tensor can have it.
    pub(super) fn fits(self, info: &TensorInfo, grid: &ChunkGrid) -> bool {
        let is_computed = || Element::of(&info.dtype).is_some();
        match self {
            Self::Cast | Self::CastInternal => cast::is_target(&info.dtype),
            Self::LowRank | Self::Drift => is_computed() && grid.is_matrix,
            Self::Adapter => is_computed() && info.shape.len() == 2 && grid.is_matrix,
            Self::Blend | Self::Adapters | Self::LowRanks => is_computed(),
            Self::Adam => info.dtype == DType::F32,
            Self::View => info.dtype.number().is_some(),
            Self::Text | Self::LaidOut => info.dtype == DType::U8,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_format() {
        for (id, kind) in (0u8..).zip(Kind::ALL) {
            assert_eq!((kind.facts().0, Kind::of_id(id, u16::MAX).unwrap()), (id, kind));
        }
        assert!(Kind::of_id(21, u16::MAX).is_err());
        assert!(Kind::of_id(6, 1).is_err() && Kind::of_id(11, 2).is_err() && Kind::of_id(12, 3).is_err());
        assert!(Kind::of_id(14, 3).is_err() && Kind::of_id(20, 3).is_err());
    }
}
