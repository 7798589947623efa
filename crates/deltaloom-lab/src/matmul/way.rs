//! The ways of multiplying a fine-tune's matrix, and one matrix made ready for each of them.
//! It takes no time.

use super::compressed::{Compressed, Cut};
use super::pair::Pair;
use deltaloom::{Error, Result};
use deltaloom_compute::{Choice, Form, Mode, PackedMatrix, Run};

/// A way of multiplying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The fine-tune as it is: what the others are compared with.
    Raw,
    /// One of our resident forms.
    Ours(Form),
    /// Only adding the sparse differences to a product of the base that is there: what a fine-tune costs on a base that others share.
    Differences,
    /// Tiles of 64 KiB, each compressed by zstd.
    ZstdTiles,
    /// The same of the XOR with the base.
    XorZstdTiles,
    /// The XOR of every block of 16 x 16 elements, each compressed by zstd on its own.
    XorZstdBlocks,
}

impl Way {
    /// All of them, in the order of reports.
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

    /// The ways of a name: one, or those of `all`, `ours` and `zstd`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name that none has.
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
                "there is no form {name:?}; there are all, ours, zstd, {names}"
            )));
        }
        Ok(found)
    }

    /// Whether it is done in a mode: differences are only ever added in fast products.
    pub(super) fn has_mode(self, mode: Mode) -> bool {
        self != Self::Differences || mode == Mode::Fast
    }
}

/// A matrix that is ready to be multiplied in some way.
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

    /// Bytes of memory, the base not counted.
    pub(super) fn resident_bytes(&self) -> u64 {
        match self {
            Self::Matrix(matrix) | Self::Differences(matrix) => matrix.resident_bytes(),
            Self::Compressed(compressed) => compressed.resident_bytes(),
        }
    }

    /// The product; differences are added to what `y` has.
    pub(super) fn product(&self, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()> {
        match self {
            Self::Matrix(matrix) => matrix.matmul(x, y, run),
            Self::Differences(matrix) => matrix.add_differences(x, y, run),
            Self::Compressed(compressed) => compressed.matmul(x, y, run),
        }
    }

    /// What `y` has before the product is computed.
    pub(super) fn begin(&self, base_product: &[f32], y: &mut [f32]) {
        match self {
            Self::Differences(_) => y.copy_from_slice(base_product),
            // Whoever leaves a place out is found out.
            _ => y.fill(f32::NAN),
        }
    }
}
