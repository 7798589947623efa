//! The data to code: the bits of a file, or patterns generated from a seed. Patterns use no
//! floating point, so every machine generates the same bytes.
//!
//! Any block can be generated again on its own, so results are compared without keeping the data.

use std::path::PathBuf;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::BLOCK_BYTES;
use deltaloom::checkpoint::{FileSource, ReadAt};
use deltaloom::{Error, Result};

/// Kinds of sparse data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// A 1 at every stride, which is 40 to 60 bytes and drawn per block.
    Structured,
    /// Each byte is nonzero with probability 0.02, and then uniform from 1 to 255.
    Random,
    /// The same, with a probability from 1e-6 to 1e-2 that is drawn per block.
    Sparse,
    /// Bursts of 32 bytes on average, with geometric lengths and distances; 0.02 of all bytes.
    Clustered,
}

/// Probabilities are in units of 2^-32.
const ONE: f64 = 4_294_967_296.0;
/// 0.02 to six digits, in 20 bits, so that a draw needs 18 random words instead of 32.
const RANDOM: u32 = 20_972 << 12;
/// 1e-6, 3e-6, 1e-5 and so on to 1e-2.
const SPARSE: [u32; 9] =
    [4_295, 12_885, 42_950, 128_849, 429_497, 1_288_490, 4_294_967, 12_884_902, 42_949_673];
/// Each byte of a burst is its last one with this probability: 1 in 32.
const BURST_ENDS: u32 = 1 << 27;
/// Each byte outside begins a burst with this probability: 1 in 1568, because 49 times as many
/// bytes are outside.
const BURST_BEGINS: u32 = 2_739_137;
const STRIDES: std::ops::RangeInclusive<usize> = 40..=60;

impl Pattern {
    /// Name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Structured => "structured",
            Self::Random => "random",
            Self::Sparse => "sparse",
            Self::Clustered => "clustered",
        }
    }

    /// Random numbers that only this block has.
    fn numbers(self, seed: u64, block: u64) -> Xoshiro256PlusPlus {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"deltaloom positions ");
        hasher.update(self.name().as_bytes());
        hasher.update(&seed.to_le_bytes());
        hasher.update(&block.to_le_bytes());
        Xoshiro256PlusPlus::from_seed(hasher.finalize().into())
    }

    /// Generates a block in `bytes`, which are zeros.
    fn make(self, seed: u64, block: u64, bytes: &mut [u8]) {
        let mut numbers = self.numbers(seed, block);
        match self {
            Self::Structured => {
                let stride = stride(&mut numbers);
                bytes.iter_mut().step_by(stride).for_each(|byte| *byte = 1);
            }
            Self::Random => scatter_values(&mut numbers, RANDOM, bytes),
            Self::Sparse => {
                let probability = SPARSE[below(&mut numbers, SPARSE.len())];
                scatter_values(&mut numbers, probability, bytes);
            }
            Self::Clustered => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let distance = (1 + failures(&mut numbers, BURST_BEGINS, rest.len())).min(rest.len());
                    rest = &mut rest[distance..];
                    let length = (1 + failures(&mut numbers, BURST_ENDS, rest.len())).min(rest.len());
                    let (burst, after) = rest.split_at_mut(length);
                    burst.iter_mut().for_each(|byte| *byte = value(&mut numbers));
                    rest = after;
                }
            }
        }
    }

    /// Entropy of a block in bits, which no coder of such blocks beats on average.
    fn block_entropy_bits(self, seed: u64, block: u64, bytes: usize) -> f64 {
        let mut numbers = self.numbers(seed, block);
        let values = 255f64.log2();
        let independent = |p: f64| binary_entropy(p) + p * values;
        let bytes = bytes as f64;
        match self {
            Self::Structured => 21f64.log2(),
            Self::Random => bytes * independent(f64::from(RANDOM) / ONE),
            Self::Sparse => {
                let probability = SPARSE[below(&mut numbers, SPARSE.len())];
                9f64.log2() + bytes * independent(f64::from(probability) / ONE)
            }
            Self::Clustered => {
                let (begins, ends) = (f64::from(BURST_BEGINS) / ONE, f64::from(BURST_ENDS) / ONE);
                let inside = begins / (begins + ends);
                let switches = inside * binary_entropy(ends) + (1.0 - inside) * binary_entropy(begins);
                bytes * (switches + inside * values)
            }
        }
    }
}

fn binary_entropy(p: f64) -> f64 {
    -p * p.log2() - (1.0 - p) * (1.0 - p).log2()
}

/// Uniform below `n`, which is small.
fn below(numbers: &mut Xoshiro256PlusPlus, n: usize) -> usize {
    let product = (numbers.next_u64() >> 32) * n as u64;
    usize::try_from(product >> 32).unwrap_or(0)
}

fn stride(numbers: &mut Xoshiro256PlusPlus) -> usize {
    STRIDES.start() + below(numbers, STRIDES.end() - STRIDES.start() + 1)
}

/// Uniform from 1 to 255.
fn value(numbers: &mut Xoshiro256PlusPlus) -> u8 {
    let product = (numbers.next_u64() >> 32) * 255;
    u8::try_from(1 + (product >> 32)).unwrap_or(u8::MAX)
}

/// 64 independent bits, each set with the given probability: one random word for each binary digit
/// of it, the last digit first.
fn draws(numbers: &mut Xoshiro256PlusPlus, probability: u32) -> u64 {
    (probability.trailing_zeros()..32).fold(0, |set, digit| {
        let word = numbers.next_u64();
        if probability >> digit & 1 == 1 { set | word } else { set & word }
    })
}

/// Number of failures before the first success, at most `most`.
fn failures(numbers: &mut Xoshiro256PlusPlus, probability: u32, most: usize) -> usize {
    let mut count = 0;
    while count < most {
        match draws(numbers, probability) {
            0 => count += 64,
            set => return count + set.trailing_zeros() as usize,
        }
    }
    count
}

fn scatter_values(numbers: &mut Xoshiro256PlusPlus, probability: u32, bytes: &mut [u8]) {
    for bytes in bytes.chunks_mut(64) {
        let mut set = draws(numbers, probability);
        while set != 0 {
            if let Some(byte) = bytes.get_mut(set.trailing_zeros() as usize) {
                *byte = value(numbers);
            }
            set &= set - 1;
        }
    }
}

/// Data to be coded.
pub enum Source {
    /// Generated on demand.
    Made {
        /// Which pattern.
        pattern: Pattern,
        /// Each seed gives different data.
        seed: u64,
        /// Size in bytes.
        len_bytes: u64,
    },
    /// Read on demand.
    Stored {
        /// Name in reports.
        name: PathBuf,
        /// Its bytes.
        bytes: Box<dyn ReadAt>,
    },
}

impl Source {
    /// Opens the bits of a file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &std::path::Path) -> Result<Self> {
        Ok(Self::Stored { name: path.to_path_buf(), bytes: Box::new(FileSource::open(path)?) })
    }

    /// Size in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        match self {
            Self::Made { len_bytes, .. } => *len_bytes,
            Self::Stored { bytes, .. } => bytes.len_bytes(),
        }
    }

    /// Name of the pattern or file.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Made { pattern, .. } => pattern.name().to_owned(),
            Self::Stored { name, .. } => name.display().to_string(),
        }
    }

    /// Size of block `number`; 0 past the end.
    fn block_bytes(&self, number: u64) -> usize {
        let before = number.saturating_mul(BLOCK_BYTES as u64);
        let left = self.len_bytes().saturating_sub(before);
        usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK_BYTES)
    }

    /// Fills `block` with block `number`. Returns whether there is one.
    pub(super) fn block(&self, number: u64, block: &mut Vec<u8>) -> Result<bool> {
        block.clear();
        block.resize(self.block_bytes(number), 0);
        if block.is_empty() {
            return Ok(false);
        }
        match self {
            Self::Made { pattern, seed, .. } => pattern.make(*seed, number, block),
            Self::Stored { name, bytes } => {
                bytes.read_at(number * BLOCK_BYTES as u64, block).map_err(Error::io(name))?;
            }
        }
        Ok(true)
    }

    /// Entropy of the pattern in bits, if the data comes from one.
    pub(super) fn entropy_bits(&self) -> Option<f64> {
        let Self::Made { pattern, seed, len_bytes } = self else { return None };
        let blocks = 0..len_bytes.div_ceil(BLOCK_BYTES as u64);
        Some(blocks.map(|block| pattern.block_entropy_bits(*seed, block, self.block_bytes(block))).sum())
    }
}
