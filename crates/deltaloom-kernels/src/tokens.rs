//! The universal alphabet: numbers of up to 64 bits as symbols with raw bits; docs/format.md
//! section 8. Jumps need a prediction and are in [`crate::ulp`].

use crate::DecodeError;
use crate::bits::BitReader;

/// First symbol of residuals with 5 to 8, 9 to 32 and 33 to 64 bits, and of jumps.
const FINE: u32 = 16;
const MEDIUM: u32 = 48;
const COARSE: u32 = 144;
pub(crate) const JUMPS: u32 = 176;

/// A coded residual: the symbol and its raw bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Symbol of the universal alphabet.
    pub symbol: u8,
    /// Number of raw bits that follow.
    pub raw_bits: u32,
    /// The raw bits.
    pub raw: u64,
}

/// Every z below this is small.
pub(crate) const SMALL: u32 = 1024;

/// Symbol and number of raw bits of small z, which nearly all are.
static SMALL_TOKENS: [(u8, u8); SMALL as usize] = {
    let mut table = [(0, 0); SMALL as usize];
    let mut z = 0;
    while z < table.len() {
        let token = computed_token(z as u64);
        #[expect(clippy::cast_possible_truncation, reason = "at most 9")]
        let raw_bits = token.raw_bits as u8;
        table[z] = (token.symbol, raw_bits);
        z += 1;
    }
    table
};

#[inline(always)]
pub(crate) fn small_token(z: u32) -> Token {
    let (symbol, raw_bits) = SMALL_TOKENS[(z % SMALL) as usize];
    Token { symbol, raw_bits: u32::from(raw_bits), raw: u64::from(z) & ((1 << raw_bits) - 1) }
}

/// Token of a folded residual or a gap `z`.
#[inline]
#[must_use]
pub fn token(z: u64) -> Token {
    match u32::try_from(z) {
        Ok(z) if z < SMALL => small_token(z),
        _ => computed_token(z),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "symbols are below 256 by construction")]
const fn computed_token(z: u64) -> Token {
    if z < 16 {
        return Token { symbol: z as u8, raw_bits: 0, raw: 0 };
    }
    let bits = 64 - z.leading_zeros();
    let (first, modelled) = match bits {
        ..=8 => (FINE + 8 * (bits - 5), 3),
        9..=32 => (MEDIUM + 4 * (bits - 9), 2),
        _ => (COARSE + bits - 33, 0),
    };
    let raw_bits = bits - 1 - modelled;
    let detail = (z >> raw_bits) as u32 & ((1 << modelled) - 1);
    Token { symbol: (first + detail) as u8, raw_bits, raw: z & ((1 << raw_bits) - 1) }
}

/// The smallest z that a symbol below the jumps stands for, and its number of raw bits.
#[inline]
pub(crate) const fn token_base(symbol: u8) -> (u64, u32) {
    let (base, raw_bits) = TOKEN_BASES[symbol as usize];
    (base, raw_bits as u32)
}

/// Symbol of the smallest z with `bits` bits, and its number of raw bits.
#[cfg(target_arch = "x86_64")]
pub(crate) const fn token_of_bits(bits: usize) -> (u8, u8) {
    let token = computed_token(if bits == 0 { 0 } else { 1 << (bits - 1) });
    #[expect(clippy::cast_possible_truncation, reason = "at most 63")]
    let raw_bits = token.raw_bits as u8;
    (token.symbol, raw_bits)
}

/// Jumps get a width that no run of tokens can have.
static TOKEN_BASES: [(u64, u8); 256] = {
    let mut table = [(0, u8::MAX); 256];
    let mut symbol = 0;
    while symbol < JUMPS {
        table[symbol as usize] = computed_token_base(symbol);
        symbol += 1;
    }
    table
};

#[expect(clippy::cast_possible_truncation, reason = "at most 63 raw bits")]
const fn computed_token_base(s: u32) -> (u64, u8) {
    let (bits, detail, modelled) = match s {
        ..FINE => return (s as u64, 0),
        FINE..MEDIUM => (5 + (s - FINE) / 8, (s - FINE) % 8, 3),
        MEDIUM..COARSE => (9 + (s - MEDIUM) / 4, (s - MEDIUM) % 4, 2),
        _ => (33 + s - COARSE, 0, 0),
    };
    let raw_bits = bits - 1 - modelled;
    ((1 << (bits - 1)) | (detail as u64) << raw_bits, raw_bits as u8)
}

/// Number of raw bits of a symbol, or 0 for jumps.
#[inline]
#[must_use]
pub fn raw_bits(symbol: u8) -> u32 {
    if u32::from(symbol) < JUMPS { token_base(symbol).1 } else { 0 }
}

/// Reads the z of a symbol that is not a jump.
///
/// # Errors
/// [`DecodeError::BadSymbol`] for jumps.
#[inline]
pub fn read_token(symbol: u8, raw: &mut BitReader<'_>) -> Result<u64, DecodeError> {
    if u32::from(symbol) >= JUMPS {
        return Err(DecodeError::BadSymbol);
    }
    let (base, raw_bits) = token_base(symbol);
    Ok(base + raw.take(raw_bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_cover_the_alphabet_in_order() {
        let mut next = 0u64;
        for symbol in 0..176u8 {
            let (base, raw_bits) = token_base(symbol);
            assert_eq!(base, next, "symbol {symbol}");
            assert_eq!(token(base), Token { symbol, raw_bits, raw: 0 });
            next = base.wrapping_add(1 << raw_bits);
        }
        assert_eq!(next, 0, "the last token ends at 2^64");
    }
}
