//! The rows of `deltaloom bench`.

use clap::ValueEnum;

/// A line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    /// deltaloom; decoding verifies the checksum of every chunk
    Deltaloom,
    /// deltaloom; decoding also verifies the digest of every tensor
    #[value(name = "deltaloom+digests")]
    DeltaloomDigests,
    /// deltaloom; decoding turns the base in memory into the fine-tune
    InPlace,
    /// deltaloom; decoding finds the elements that differ from the base, and writes only those
    Changes,
    /// A plain copy: the upper limit of speed
    Memcpy,
    /// zstd level 1
    #[value(name = "zstd-1")]
    Zstd1,
    /// zstd level 3
    #[value(name = "zstd-3")]
    Zstd3,
    /// LZ4 block format
    Lz4,
    /// pco on differences in ULPs, or on the values if there is no base
    Pco,
    /// zstd level 1 on the XOR with the base
    #[value(name = "xor+zstd-1")]
    XorZstd1,
    /// zstd level 3 on the byte planes of the XOR with the base, in 1 MiB pieces
    Bitx,
}

impl Row {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub(crate) fn needs_base(self) -> bool {
        matches!(self, Self::InPlace | Self::Changes | Self::XorZstd1 | Self::Bitx)
    }
}
