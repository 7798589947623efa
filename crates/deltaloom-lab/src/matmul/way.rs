//! Methods of multiplying a fine-tune's matrix, and a matrix prepared for one of them. It does no
//! timing.

use super::compressed::{Compressed, Cut};
use super::pair::Pair;
use deltaloom::{Error, Result};
use deltaloom_compute::{Choice, Form, Mode, PackedMatrix, Run};

/// A method of multiplying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The dense fine-tune, the reference for the others.
    Raw,
    /// One of our resident forms.
    Ours(Form),
    /// Only adds the sparse differences to an existing product of the base: the cost of a fine-tune
    /// on a base that others share.
    Differences,
    /// Tiles of 64 KiB, each compressed by zstd.
    ZstdTiles,
    /// Tiles of the XOR with the base.
    XorZstdTiles,
    /// The XOR of every block of 16 x 16 elements, each compressed separately by zstd.
    XorZstdBlocks,
}

impl Way {
    /// All ways, in the order of reports.
    pub const ALL: [Self; 9] = [
        Self::Raw,
        Self::Ours(Form::Tiles),
        Self::Ours(Form::Planes),
        Self::Ours(Form::Bitmap),
        Self::Ours(Form::Csr),
        Self::Differences,
        Self::ZstdTiles,
        Self::XorZstdTiles,
        Self::XorZstdBlocks,
    ];

    /// Name in reports and options.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Ours(form) => form.name(),
            Self::Differences => "csr-differences",
            Self::ZstdTiles => "zstd-tiles",
            Self::XorZstdTiles => "xor-zstd-tiles",
            Self::XorZstdBlocks => "xor-zstd-blocks",
        }
    }

    /// dense, ours, part (of a product) or zstd.
    #[must_use]
    pub fn group(self) -> &'static str {
        match self {
            Self::Raw => "dense",
            Self::Ours(_) => "ours",
            Self::Differences => "part",
            Self::ZstdTiles | Self::XorZstdTiles | Self::XorZstdBlocks => "zstd",
        }
    }

    /// The ways with a name: a single one, or those of `all`, `ours` or `zstd`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an unknown name.
    pub fn named(name: &str) -> Result<Vec<Self>> {
        let of_name = |way: &Self| match name {
            "all" => true,
            "ours" => matches!(way.group(), "ours" | "part"),
            "zstd" => way.group() == "zstd",
            name => way.name() == name,
        };
        let found: Vec<_> = Self::ALL.into_iter().filter(of_name).collect();
        if found.is_empty() {
            let names = Self::ALL.map(Self::name).join(", ");
            return Err(Error::InvalidArgument(format!(
                "unknown form {name:?}; expected all, ours, zstd, {names}"
            )));
        }
        Ok(found)
    }

    /// Whether it exists in a mode: only fast products add differences.
    pub(super) fn has_mode(self, mode: Mode) -> bool {
        self != Self::Differences || mode == Mode::Fast
    }
}

/// A matrix prepared for one of the ways.
pub(super) enum Prepared {
    Matrix(PackedMatrix),
    Differences(PackedMatrix),
    Compressed(Compressed),
}

impl Prepared {
    pub(super) fn new(way: Way, pair: &Pair) -> Result<Self> {
        let packed = |form| PackedMatrix::from_dense(&pair.base, &pair.tuned, Choice::Form(form));
        Ok(match way {
            Way::Raw => Self::Matrix(packed(Form::Dense)?),
            Way::Ours(Form::Tiles) => {
                let tiles = PackedMatrix::open(&pair.container, &pair.tensor, Choice::Form(Form::Tiles))?;
                Self::Matrix(tiles)
            }
            Way::Ours(form) => Self::Matrix(packed(form)?),
            Way::Differences => Self::Differences(packed(Form::Csr)?),
            Way::ZstdTiles => Self::Compressed(Compressed::new(None, &pair.tuned, Cut::Tiles)?),
            Way::XorZstdTiles => {
                Self::Compressed(Compressed::new(Some(&pair.base), &pair.tuned, Cut::Tiles)?)
            }
            Way::XorZstdBlocks => {
                Self::Compressed(Compressed::new(Some(&pair.base), &pair.tuned, Cut::Blocks)?)
            }
        })
    }

    /// Bytes of memory without the base.
    pub(super) fn resident_bytes(&self) -> u64 {
        match self {
            Self::Matrix(matrix) | Self::Differences(matrix) => matrix.resident_bytes(),
            Self::Compressed(compressed) => compressed.resident_bytes(),
        }
    }

    /// Computes the product; differences are added to what `y` holds.
    pub(super) fn product(&self, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()> {
        match self {
            Self::Matrix(matrix) => matrix.matmul(x, y, run),
            Self::Differences(matrix) => matrix.add_differences(x, y, run),
            Self::Compressed(compressed) => compressed.matmul(x, y, run),
        }
    }

    /// Sets `y` to what it must hold before the product.
    pub(super) fn begin(&self, base_product: &[f32], y: &mut [f32]) {
        match self {
            Self::Differences(_) => y.copy_from_slice(base_product),
            // NaN exposes a way that skips an element.
            _ => y.fill(f32::NAN),
        }
    }
}
