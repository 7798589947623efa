//! The rows of `deltaloom bench`.

use clap::ValueEnum;

/// A line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    /// Packing, and decoding every chunk with its checksum
    Deltaloom,
    /// The same, and the digest of every tensor
    #[value(name = "deltaloom+digests")]
    DeltaloomDigests,
    /// Packing, and turning the base into the result where it is in memory
    InPlace,
    /// Copying the bytes: the limit
    Memcpy,
    /// zstd, level 1
    #[value(name = "zstd-1")]
    Zstd1,
    /// zstd, level 3
    #[value(name = "zstd-3")]
    Zstd3,
    /// LZ4 blocks
    Lz4,
    /// pco on differences in ULPs, or without a base on the numbers
    Pco,
    /// zstd, level 1, of the XOR with the base
    #[value(name = "xor+zstd-1")]
    XorZstd1,
    /// zstd, level 3, of 1 MiB pieces of the byte planes of that XOR
    Bitx,
}

impl Row {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub(crate) fn needs_base(self) -> bool {
        matches!(self, Self::InPlace | Self::XorZstd1 | Self::Bitx)
    }
}
