//! Random activations for measurements, the same on every machine.

use deltaloom::{Error, Result};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

/// Guards against a typo exhausting memory.
const MOST_ELEMS: usize = 1 << 28;

/// Activations [tokens, width], uniform from -1 to 1.
pub(super) fn activations(seed: u64, tokens: usize, width: usize) -> Result<Vec<f32>> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut uniform = || {
        let [low, high, ..] = random.next_u64().to_le_bytes();
        f32::from(i16::from_le_bytes([low, high])) / 32_768.0
    };
    let count = tokens.checked_mul(width).filter(|count| *count <= MOST_ELEMS);
    let count = count
        .ok_or_else(|| Error::InvalidArgument(format!("{tokens} tokens of width {width} are too many")))?;
    Ok((0..count).map(|_| uniform()).collect())
}
