//! Residuals of integers of 8 bits. Most are small and have no raw bits, which is seen for eight at
//! a time.

use crate::bits::{BitReader, BitWriter};
use crate::isa::per_isa;
use crate::tokens::{small_token, token_base};
use crate::{DecodeError, Number, NumberKind};

/// Elements of a block, of which all residuals are computed before their tokens.
const BLOCK: usize = 128;
/// Elements whose raw bits are moved together: at most 4 of each.
const RUN: usize = 8;
/// Symbols below this one have no raw bits.
const FIRST_WITH_RAW_BITS: u8 = 16;
/// Symbols from this one on stand for more than 8 bits.
const SYMBOLS: u8 = 48;
/// Set in a run of which a residual has raw bits.
const WITH_RAW_BITS: u64 = 0xf0f0_f0f0_f0f0_f0f0;

pub(super) fn supports(number: Number) -> bool {
    number.kind() != NumberKind::Float && number.bits() == 8
}

/// Turns d around where the prediction is negative, if the type is signed: `signs` is 1, else 0.
#[inline(always)]
fn folded(d: u8, p: u8, signs: u8) -> u8 {
    let is_negative = p >> 7 & signs;
    (d ^ is_negative.wrapping_neg()).wrapping_add(is_negative)
}

fn signs_of(number: Number) -> u8 {
    u8::from(number.kind() == NumberKind::Signed)
}

per_isa! {
    /// [`super::encode`] for these numbers.
    pub(super) fn encode(
        number: Number,
        target: &[u8],
        prediction: &[u8],
        symbols: &mut [u8],
        raw: &mut BitWriter,
    ) = encode_body;
}

#[inline(always)]
fn encode_body(number: Number, target: &[u8], prediction: &[u8], symbols: &mut [u8], raw: &mut BitWriter) {
    let signs = signs_of(number);
    // A local writer stays in registers; one behind a reference is stored at every push.
    let mut writer = std::mem::take(raw);
    let blocks = target.chunks(BLOCK).zip(prediction.chunks(BLOCK));
    for (symbols, (target, prediction)) in symbols.chunks_mut(BLOCK).zip(blocks) {
        for (z, (t, p)) in symbols.iter_mut().zip(target.iter().zip(prediction)) {
            let d = folded(t.wrapping_sub(*p), *p, signs);
            *z = (d << 1) ^ (d >> 7).wrapping_neg();
        }
        for run in symbols.chunks_mut(RUN) {
            if has_raw_bits(run) {
                let (mut bits, mut count) = (0, 0);
                for z in run {
                    let token = small_token(u32::from(*z));
                    *z = token.symbol;
                    bits |= token.raw << count;
                    count += token.raw_bits;
                }
                writer.push(bits, count);
            }
        }
    }
    *raw = writer;
}

/// Whether one of at most eight residuals or symbols is 16 or more.
#[inline(always)]
fn has_raw_bits(run: &[u8]) -> bool {
    match run.first_chunk() {
        Some(eight) => u64::from_le_bytes(*eight) & WITH_RAW_BITS != 0,
        None => run.iter().any(|z| *z >= FIRST_WITH_RAW_BITS),
    }
}

per_isa! {
    /// [`super::apply`] for these numbers.
    pub(super) fn apply(
        number: Number,
        values: &mut [u8],
        symbols: &[u8],
        raw: &mut BitReader<'_>,
    ) -> Result<(), DecodeError> = apply_body;
}

#[inline(always)]
fn apply_body(
    number: Number,
    values: &mut [u8],
    symbols: &[u8],
    raw: &mut BitReader<'_>,
) -> Result<(), DecodeError> {
    let signs = signs_of(number);
    let mut reader = raw.clone();
    for (values, symbols) in values.chunks_mut(BLOCK).zip(symbols.chunks(BLOCK)) {
        let most = symbols.iter().fold(0, |most: u8, symbol| most.max(*symbol));
        if most < FIRST_WITH_RAW_BITS {
            add(values, symbols, signs);
            continue;
        }
        if most >= SYMBOLS {
            return Err(DecodeError::BadSymbol);
        }
        // Symbols behind the end are 0, which takes no bits.
        let mut near = [0u8; BLOCK];
        near[..symbols.len()].copy_from_slice(symbols);
        for run in near.as_chunks_mut::<RUN>().0 {
            if has_raw_bits(run) {
                read_run(run, &mut reader);
            }
        }
        add(values, &near, signs);
    }
    *raw = reader;
    Ok(())
}

/// Adds residuals.
#[inline(always)]
fn add(values: &mut [u8], residuals: &[u8], signs: u8) {
    for (value, z) in values.iter_mut().zip(residuals) {
        let d = (z >> 1) ^ (z & 1).wrapping_neg();
        *value = value.wrapping_add(folded(d, *value, signs));
    }
}

/// Replaces symbols by residuals.
#[inline(always)]
fn read_run(run: &mut [u8; RUN], reader: &mut BitReader<'_>) {
    let tokens = run.map(token_base);
    // One take for all, because each take waits for the one before it.
    let mut bits = reader.take(tokens.iter().map(|(_, raw_bits)| raw_bits).sum());
    for (z, (base, raw_bits)) in run.iter_mut().zip(tokens) {
        let residual = base | (bits & ((1 << raw_bits) - 1));
        *z = (residual & 0xff) as u8;
        bits >>= raw_bits;
    }
}
