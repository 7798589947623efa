//! How much time packing may take, and what follows from that.

/// Chunks up to this size may use a slow level: they take little time anyway.
const SMALL_PLANES_BYTES: usize = 64 << 10;

/// How much time packing may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Preset {
    /// One context per exponent, light zstd.
    Fast,
    /// Row and column scales if they pay.
    #[default]
    Default,
    /// Also the strongest zstd, scales tried everywhere, and mixed contexts. Some MB/s in both
    /// directions.
    Max,
}

impl Preset {
    /// All presets, the fastest first.
    pub const ALL: [Self; 3] = [Self::Fast, Self::Default, Self::Max];

    /// Its name on command lines and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Default => "default",
            Self::Max => "max",
        }
    }

    /// zstd level for the index, and for planes of `len_bytes`. For large planes, levels above 3
    /// take ten times as long and save 1 % (position embeddings of MiniLM).
    pub(crate) fn zstd_level(self, len_bytes: usize) -> i32 {
        match self {
            Self::Fast => 1,
            Self::Default if len_bytes > SMALL_PLANES_BYTES => 3,
            Self::Default => 9,
            Self::Max => 19,
        }
    }

    /// zstd level for patches. Below 9, zstd finds few of the bytes in the reference. A tokenizer
    /// of 2 MB in which most numbers changed takes 0.2 s at 10, and 3 s at 16 for 13 % less.
    pub(crate) fn patch_level(self) -> i32 {
        match self {
            Self::Fast | Self::Default => 10,
            Self::Max => 16,
        }
    }

    /// Smallest share of changed elements, in 1024ths, for which scales are tried. Rounded sparse
    /// updates never gained; see docs/adr/0008.
    pub(super) fn scales_from(self) -> Option<u64> {
        match self {
            Self::Fast => None,
            Self::Default => Some(341),
            Self::Max => Some(1),
        }
    }
}
