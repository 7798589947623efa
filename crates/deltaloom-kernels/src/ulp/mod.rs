//! Residuals in ULPs: from target and prediction to symbols with raw bits, and back; docs/format.md
//! section 8. It does not choose tables or scales and does not entropy-code.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bytes;
#[cfg(target_arch = "x86_64")]
mod changed;

use crate::bits::{BitReader, BitWriter, SHORT_BITS};
use crate::isa::per_isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::{Isa, isa};
use crate::number::{by_number, by_size, load, load_32, store};
use crate::tokens::{JUMPS, SMALL, Token, read_token, small_token, token, token_base};
use crate::{DecodeError, Number, NumberKind};

/// Number of jump symbols per sign; the first and the last mean any exponent farther away.
const JUMP_SPAN: u32 = 40;
const JUMP_CENTER: u32 = 12;

/// Token of target `t` for prediction `p`.
#[inline(always)]
fn residual(number: Number, t: u64, p: u64) -> Token {
    if number.kind() == NumberKind::Float {
        let flipped = (t ^ p) >> (number.bits() - 1) & 1;
        let distance = i64::from(number.exponent(t)) - i64::from(number.exponent(p));
        if flipped == 1 || distance.abs() >= 2 {
            let j = (distance + i64::from(JUMP_CENTER)).clamp(0, i64::from(JUMP_SPAN) - 1);
            let far = j == 0 || j == i64::from(JUMP_SPAN) - 1;
            let raw_bits = if far { number.bits() - 1 } else { number.mantissa_bits() };
            #[expect(clippy::cast_possible_truncation, reason = "176 + 40 + 39 at most")]
            let symbol = (i64::from(JUMPS) + 40 * flipped.cast_signed() + j) as u8;
            return Token { symbol, raw_bits, raw: t & ((1 << raw_bits) - 1) };
        }
    }
    let d = number.folded(number.ordered(t).wrapping_sub(number.ordered(p)), p);
    let unused = 64 - number.bits();
    let signed = (d << unused).cast_signed() >> unused;
    token(((signed << 1) ^ (signed >> 63)).cast_unsigned() & number.mask())
}

/// Inverse of [`residual`].
#[inline(always)]
fn apply_token(number: Number, symbol: u8, p: u64, raw: &mut BitReader<'_>) -> Result<u64, DecodeError> {
    let s = u32::from(symbol);
    if s >= JUMPS {
        if number.kind() != NumberKind::Float {
            return Err(DecodeError::BadSymbol);
        }
        let flipped = u64::from((s - JUMPS) / JUMP_SPAN) << (number.bits() - 1);
        let j = (s - JUMPS) % JUMP_SPAN;
        let sign = (p ^ flipped) & number.top_bit();
        if j == 0 || j == JUMP_SPAN - 1 {
            return Ok(sign | raw.take(number.bits() - 1));
        }
        let exponent_mask = (1u64 << number.exponent_bits()) - 1;
        let exponent = u64::from(number.exponent(p) + j).wrapping_sub(u64::from(JUMP_CENTER)) & exponent_mask;
        return Ok(sign | exponent << number.mantissa_bits() | raw.take(number.mantissa_bits()));
    }
    let (base, raw_bits) = token_base(symbol);
    let z = base + raw.take(raw_bits);
    if z & !number.mask() != 0 {
        return Err(DecodeError::BadSymbol);
    }
    let d = number.folded((z >> 1) ^ (z & 1).wrapping_neg(), p);
    Ok(number.unordered(number.ordered(p).wrapping_add(d) & number.mask()))
}

/// Number of elements of a block of [`near_residuals`].
const NEAR_BLOCK: usize = 240;
/// Marks a residual that is a jump or does not fit 32 bits.
const NOT_NEAR: u32 = u32::MAX;

/// Computes z of every element of a block, or [`NOT_NEAR`].
#[inline(always)]
fn near_residuals<const B: usize>(
    number: Number,
    target: &[u8],
    prediction: &[u8],
    out: &mut [u32; NEAR_BLOCK],
) {
    let pairs = target.chunks_exact(B).zip(prediction.chunks_exact(B));
    // The arithmetic of `residual`, in 32 bits and without branches.
    let (sign_at, unused) = (number.bits() - 1, 32 - number.bits());
    let (top, exponent_mask) = (1u32 << sign_at, (1u32 << number.exponent_bits()) - 1);
    let all_if = |bit: u32| bit.wrapping_neg() << unused >> unused;
    let ordered = |x: u32| x ^ (top | all_if(x >> sign_at));
    let exponent = |x: u32| x >> number.mantissa_bits() & exponent_mask;
    for (out, (t, p)) in out.iter_mut().zip(pairs) {
        let (t, p) = (load_32::<B>(t), load_32::<B>(p));
        let is_negative = p >> sign_at;
        let d = (ordered(t).wrapping_sub(ordered(p)) ^ is_negative.wrapping_neg()).wrapping_add(is_negative);
        let signed = (d << unused).cast_signed() >> unused;
        let z = ((signed << 1) ^ (signed >> 31)).cast_unsigned() << unused >> unused;
        let is_far = exponent(t).wrapping_sub(exponent(p)).wrapping_add(1) > 2;
        let is_jump = (t ^ p) >> sign_at | u32::from(is_far);
        *out = z | is_jump.wrapping_neg();
    }
}

/// Computes the symbols of all elements and appends their raw bits.
///
/// # Panics
/// If the slices do not have the same number of elements.
pub fn encode(number: Number, target: &[u8], prediction: &[u8], symbols: &mut [u8], raw: &mut BitWriter) {
    assert!(target.len() == symbols.len() * number.bytes() && target.len() == prediction.len());
    if bytes::supports(number) {
        return bytes::encode(number, target, prediction, symbols, raw);
    }
    // Wider vectors gain nothing here, because one PEXT per 64 bits dominates the time.
    #[cfg(target_arch = "x86_64")]
    if isa() >= Isa::Avx2 && number.kind() == NumberKind::Float && avx2::supports(number) {
        #[expect(unsafe_code, reason = "calling functions with detected target features")]
        // SAFETY: `isa` returns only what was detected, and the lengths were checked.
        return unsafe {
            match number.bits() {
                16 => avx2::encode_16(number, target, prediction, symbols, raw),
                _ => avx2::encode_32(number, target, prediction, symbols, raw),
            }
        };
    }
    encode_in_blocks(number, target, prediction, symbols, raw);
}

/// [`encode`], one element after another.
#[inline(always)]
fn encode_elements<const B: usize>(
    number: Number,
    target: &[u8],
    prediction: &[u8],
    symbols: &mut [u8],
    raw: &mut BitWriter,
) {
    let mut writer = std::mem::take(raw);
    for (i, symbol) in symbols.iter_mut().enumerate() {
        let token = residual(number, load::<B>(target, i), load::<B>(prediction, i));
        *symbol = token.symbol;
        writer.push(token.raw, token.raw_bits);
    }
    *raw = writer;
}

/// Appends the bits of each word that are in its mask, at most [`SHORT_BITS`].
///
/// # Safety
/// Needs BMI2. This function does not enable it, because it could then not always be inlined, and a
/// call would take longer than the work.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "intrinsics of features that only the caller has")]
#[inline(always)]
unsafe fn push_masked<const N: usize>(raw: &mut BitWriter, words: &[u64; N], masks: &[u64; N]) {
    let (mut values, mut lengths) = ([0; N], [0; N]);
    for i in 0..N {
        // SAFETY: this function's contract.
        values[i] = unsafe { std::arch::x86_64::_pext_u64(words[i], masks[i]) };
        lengths[i] = masks[i].count_ones().into();
    }
    raw.push_all(&values, &lengths);
}

per_isa! {
    fn encode_in_blocks(
        number: Number,
        target: &[u8],
        prediction: &[u8],
        symbols: &mut [u8],
        raw: &mut BitWriter,
    ) = encode_body;
}

#[inline(always)]
fn encode_body(number: Number, target: &[u8], prediction: &[u8], symbols: &mut [u8], raw: &mut BitWriter) {
    #[inline(always)]
    fn run<const B: usize>(
        number: Number,
        target: &[u8],
        prediction: &[u8],
        symbols: &mut [u8],
        raw: &mut BitWriter,
    ) {
        if B > 4 || number.kind() != NumberKind::Float {
            return encode_elements::<B>(number, target, prediction, symbols, raw);
        }
        // A local writer stays in registers; one behind a reference is stored at every push.
        let mut writer = std::mem::take(raw);
        let mut near = [0u32; NEAR_BLOCK];
        let blocks = target.chunks(NEAR_BLOCK * B).zip(prediction.chunks(NEAR_BLOCK * B));
        for (symbols, (t, p)) in symbols.chunks_mut(NEAR_BLOCK).zip(blocks) {
            // Two passes: the first has neither branches nor tables and is vectorised.
            near_residuals::<B>(number, t, p, &mut near);
            let far_token = |i: usize| residual(number, load::<B>(t, i), load::<B>(p, i));
            for (k, (symbols, near)) in symbols.chunks_mut(3).zip(near.chunks(3)).enumerate() {
                if let ([s0, s1, s2], &[a, b, c]) = (&mut *symbols, near)
                    && (a | b | c) < SMALL
                {
                    // The common case. One push for three tokens of at most 7 raw bits each,
                    // because each push waits for the one before it.
                    let (a, b, c) = (small_token(a), small_token(b), small_token(c));
                    [*s0, *s1, *s2] = [a.symbol, b.symbol, c.symbol];
                    let bits = a.raw | b.raw << a.raw_bits | c.raw << (a.raw_bits + b.raw_bits);
                    writer.push(bits, a.raw_bits + b.raw_bits + c.raw_bits);
                    continue;
                }
                for (i, (symbol, &near)) in symbols.iter_mut().zip(near).enumerate() {
                    let token = if near == NOT_NEAR { far_token(3 * k + i) } else { token(u64::from(near)) };
                    *symbol = token.symbol;
                    writer.push(token.raw, token.raw_bits);
                }
            }
        }
        *raw = writer;
    }
    by_number!(number, run(target, prediction, symbols, raw));
}

#[expect(clippy::cast_possible_truncation, reason = "what does not fit was found to be bad")]
#[inline(always)]
fn low_32(z: u64) -> u32 {
    z as u32
}

/// Applies the residual z of every element of a block of floats of at most 32 bits.
#[inline(always)]
fn apply_near<const B: usize>(number: Number, values: &mut [u8], near: &[u32; NEAR_BLOCK]) {
    // The arithmetic of `apply_token`, in 32 bits and without branches.
    let (sign_at, unused) = (number.bits() - 1, 32 - number.bits());
    let top = 1u32 << sign_at;
    let all_if = |bit: u32| bit.wrapping_neg() << unused >> unused;
    for (value, &z) in values.chunks_exact_mut(B).zip(near) {
        let p = load_32::<B>(value);
        let is_negative = p >> sign_at;
        let d = (z >> 1) ^ (z & 1).wrapping_neg();
        let d = (d ^ is_negative.wrapping_neg()).wrapping_add(is_negative);
        let o = (p ^ (top | all_if(is_negative))).wrapping_add(d) << unused >> unused;
        let t = o ^ (top | all_if(o >> sign_at ^ 1));
        value.copy_from_slice(&t.to_le_bytes()[..B]);
    }
}

/// Turns `values`, which holds the prediction, into the target.
///
/// # Errors
/// [`DecodeError::BadSymbol`] for a symbol that this number type does not have.
///
/// # Panics
/// If there is not one symbol per element.
pub fn apply(
    number: Number,
    values: &mut [u8],
    symbols: &[u8],
    raw: &mut BitReader<'_>,
) -> Result<(), DecodeError> {
    assert_eq!(values.len(), symbols.len() * number.bytes());
    if bytes::supports(number) {
        return bytes::apply(number, values, symbols, raw);
    }
    #[cfg(target_arch = "x86_64")]
    if isa() == Isa::Avx2 && number.kind() == NumberKind::Float && avx2::supports(number) {
        #[expect(unsafe_code, reason = "calling functions with detected target features")]
        // SAFETY: `isa` returns only what was detected, and the lengths were checked.
        return unsafe {
            match number.bits() {
                16 => avx2::apply_16(number, values, symbols, raw),
                _ => avx2::apply_32(number, values, symbols, raw),
            }
        };
    }
    #[cfg(target_arch = "x86_64")]
    if isa() >= Isa::Avx512 && number.kind() == NumberKind::Float && matches!(number.bits(), 16 | 32) {
        #[expect(unsafe_code, reason = "calling functions with detected target features")]
        // SAFETY: `isa` returns only what was detected, and the lengths were checked.
        return unsafe {
            match number.bits() {
                16 => avx512::apply_16(number, values, symbols, raw),
                _ => avx512::apply_32(number, values, symbols, raw),
            }
        };
    }
    apply_in_blocks(number, values, symbols, raw)
}

/// [`apply`], one element after another.
#[inline(always)]
fn apply_elements<const B: usize>(
    number: Number,
    values: &mut [u8],
    symbols: &[u8],
    raw: &mut BitReader<'_>,
) -> Result<(), DecodeError> {
    for (i, &symbol) in symbols.iter().enumerate().filter(|(_, symbol)| **symbol != 0) {
        let t = apply_token(number, symbol, load::<B>(values, i), raw)?;
        store::<B>(values, i, t);
    }
    Ok(())
}

per_isa! {
    fn apply_in_blocks(
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
    #[inline(always)]
    fn run<const B: usize>(
        number: Number,
        values: &mut [u8],
        symbols: &[u8],
        raw: &mut BitReader<'_>,
    ) -> Result<(), DecodeError> {
        let mut reader = raw.clone();
        if B > 4 || number.kind() != NumberKind::Float {
            apply_elements::<B>(number, values, symbols, &mut reader)?;
            *raw = reader;
            return Ok(());
        }
        // As in `encode_body`: one pass for everything that needs branches and tables, and one that
        // is vectorised.
        let mut near = [0u32; NEAR_BLOCK];
        let mut far = Vec::with_capacity(NEAR_BLOCK);
        let mut bad = 0;
        for (values, symbols) in values.chunks_mut(NEAR_BLOCK * B).zip(symbols.chunks(NEAR_BLOCK)) {
            far.clear();
            for (k, (near, symbols)) in near.chunks_mut(3).zip(symbols.chunks(3)).enumerate() {
                if let ([z0, z1, z2], &[a, b, c]) = (&mut *near, symbols)
                    && let ((base_a, a), (base_b, b), (base_c, c)) =
                        (token_base(a), token_base(b), token_base(c))
                    && a + b + c <= SHORT_BITS
                {
                    // The common case; jumps have too many bits. One take for three fields, because
                    // each take waits for the one before it.
                    let bits = reader.take(a + b + c);
                    let field = |from: u32, width: u32| bits >> from & ((1 << width) - 1);
                    let z = [base_a + field(0, a), base_b + field(a, b), base_c + field(a + b, c)];
                    bad |= (z[0] | z[1] | z[2]) & !number.mask();
                    (*z0, *z1, *z2) = (low_32(z[0]), low_32(z[1]), low_32(z[2]));
                    continue;
                }
                for (i, &symbol) in symbols.iter().enumerate() {
                    let at = 3 * k + i;
                    if u32::from(symbol) < JUMPS {
                        let z = read_token(symbol, &mut reader)?;
                        bad |= z & !number.mask();
                        near[i] = low_32(z);
                    } else {
                        near[i] = 0;
                        far.push((at, apply_token(number, symbol, load::<B>(values, at), &mut reader)?));
                    }
                }
            }
            apply_near::<B>(number, values, &near);
            for &(at, t) in &far {
                store::<B>(values, at, t);
            }
        }
        if bad != 0 {
            return Err(DecodeError::BadSymbol);
        }
        *raw = reader;
        Ok(())
    }
    by_number!(number, run(values, symbols, raw))
}

/// Positions of the elements that differ from the prediction.
///
/// # Panics
/// If the slices differ in length.
#[must_use]
pub fn changed_positions(number: Number, target: &[u8], prediction: &[u8]) -> Vec<u32> {
    assert_eq!(target.len(), prediction.len());
    #[cfg(target_arch = "x86_64")]
    if isa() >= Isa::Avx2 && matches!(number.bytes(), 2 | 4) {
        #[expect(unsafe_code, reason = "calling functions with detected target features")]
        // SAFETY: `isa` returns only what was detected, and the lengths were checked.
        return unsafe {
            match (isa(), number.bytes()) {
                (Isa::Avx512 | Isa::Amx, 2) => avx512::changed_positions::<2>(target, prediction),
                (Isa::Avx512 | Isa::Amx, _) => avx512::changed_positions::<4>(target, prediction),
                (_, 2) => changed::changed_positions::<2>(target, prediction),
                _ => changed::changed_positions::<4>(target, prediction),
            }
        };
    }
    fn run<const B: usize>(target: &[u8], prediction: &[u8]) -> Vec<u32> {
        let pairs = target.as_chunks::<B>().0.iter().zip(prediction.as_chunks::<B>().0);
        (0u32..).zip(pairs).filter(|(_, (t, p))| t != p).map(|(i, _)| i).collect()
    }
    by_size!(number, run(target, prediction))
}

per_isa! {
    /// Number of elements that differ from the prediction.
    pub fn count_changed(number: Number, target: &[u8], prediction: &[u8]) -> u64 = count_changed_body;
}

#[inline(always)]
fn count_changed_body(number: Number, target: &[u8], prediction: &[u8]) -> u64 {
    /// In a block of this size a 16-bit counter cannot overflow, so counting is vectorised.
    const BLOCK_BYTES: usize = 1 << 15;
    #[inline(always)]
    fn run<const B: usize>(target: &[u8], prediction: &[u8]) -> u64 {
        let blocks = target.chunks(BLOCK_BYTES).zip(prediction.chunks(BLOCK_BYTES));
        let in_block = |(target, prediction): (&[u8], &[u8])| {
            let pairs = target.chunks_exact(B).zip(prediction.chunks_exact(B));
            u64::from(pairs.fold(0u16, |count, (t, p)| count + u16::from(load::<B>(t, 0) != load::<B>(p, 0))))
        };
        blocks.map(in_block).sum()
    }
    by_size!(number, run(target, prediction))
}

/// Collects the elements at `positions`, in order.
///
/// # Panics
/// If a position is past the end of the values.
#[must_use]
pub fn gather(number: Number, values: &[u8], positions: &[u32]) -> Vec<u8> {
    fn run<const B: usize>(values: &[u8], positions: &[u32]) -> Vec<u8> {
        let mut elements = vec![0; positions.len() * B];
        for (element, &i) in elements.chunks_exact_mut(B).zip(positions) {
            element.copy_from_slice(&values[i as usize * B..][..B]);
        }
        elements
    }
    by_size!(number, run(values, positions))
}

/// Writes `elements` to `positions`, in order.
///
/// # Panics
/// If a position is past the end of the values.
pub fn scatter(number: Number, values: &mut [u8], positions: &[u32], elements: &[u8]) {
    fn run<const B: usize>(values: &mut [u8], positions: &[u32], elements: &[u8]) {
        for (element, &i) in elements.chunks_exact(B).zip(positions) {
            values[i as usize * B..][..B].copy_from_slice(element);
        }
    }
    by_size!(number, run(values, positions, elements));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    const NUMBERS: [Number; 10] = [
        Number::float(8, 7),
        Number::float(5, 10),
        Number::float(8, 23),
        Number::float(11, 52),
        Number::float(4, 3),
        Number::float(5, 2),
        Number::signed(8),
        Number::signed(64),
        Number::unsigned(16),
        Number::unsigned(64),
    ];

    fn load_any(number: Number, bytes: &[u8], i: u32) -> &[u8] {
        &bytes[i as usize * number.bytes()..][..number.bytes()]
    }

    /// Encodes and applies on every instruction set; all must give the same symbols and bits.
    fn roundtrip(number: Number, target: &[u8], prediction: &[u8]) {
        let count = target.len() / number.bytes();
        let mut first: Option<(Vec<u8>, Vec<u8>)> = None;
        for_each_isa(|isa| {
            let mut symbols = vec![0; count];
            let mut raw = BitWriter::default();
            // Some bits first, so that fields do not start at byte boundaries.
            raw.push(5, 3);
            encode(number, target, prediction, &mut symbols, &mut raw);
            let raw = raw.finish();
            let mut values = prediction.to_vec();
            let mut reader = BitReader::new(&raw);
            reader.take(3);
            apply(number, &mut values, &symbols, &mut reader).unwrap();
            reader.finish(0).unwrap();
            assert_eq!(values, target, "{number:?} {isa:?}");
            let changed = changed_positions(number, target, prediction);
            let differs = |i: &u32| load_any(number, target, *i) != load_any(number, prediction, *i);
            assert!((0..u32::try_from(count).unwrap()).filter(differs).eq(changed), "{number:?} {isa:?}");
            let coded = (symbols, raw);
            assert_eq!(*first.get_or_insert(coded.clone()), coded, "{number:?} {isa:?}");
            Ok::<_, ()>(())
        })
        .unwrap();
    }

    /// How far targets are from their predictions; whole vectors of one kind would rarely occur by
    /// chance.
    #[derive(Debug, Clone, Copy)]
    enum Near {
        Anywhere,
        FewUlps,
        Jumps,
    }

    proptest! {
        #[test]
        fn any_bits_roundtrip(
            which in 0..NUMBERS.len(), pairs in prop::collection::vec((any::<u64>(), any::<u64>(), 0u32..64), 1..200),
            near in prop::sample::select(vec![Near::Anywhere, Near::FewUlps, Near::Jumps]),
        ) {
            let number = NUMBERS[which];
            let store = |x: u64| x.to_le_bytes()[..number.bytes()].to_vec();
            let target_of = |&(p, d, s): &(u64, u64, u32)| match near {
                Near::Anywhere => p.wrapping_add(d >> s),
                Near::FewUlps => p.wrapping_add(d >> (40 + s % 24)),
                Near::Jumps => (p ^ (d % 2) << (number.bits() - 1)).wrapping_add(u64::from(s % 16) << number.mantissa_bits()),
            };
            let target: Vec<u8> = pairs.iter().flat_map(|pair| store(target_of(pair))).collect();
            let prediction: Vec<u8> = pairs.iter().flat_map(|&(p, _, _)| store(p)).collect();
            roundtrip(number, &target, &prediction);
        }
    }

    /// Streams of all kinds of symbols that end early: every instruction set reads zeros past the
    /// end and continues.
    #[test]
    fn streams_that_end_early_read_as_zeros() {
        for number in [NUMBERS[0], NUMBERS[1], NUMBERS[2]] {
            for (len, last) in [(0u8, 15), (70, 63), (200, 63), (200, 15), (33, 47), (255, 63)] {
                let symbols: Vec<u8> = (0..len)
                    .map(|i| if i % 9 == 4 { 180 + i % 30 } else { i.wrapping_mul(29) % (last + 1) })
                    .collect();
                let values = vec![0x3du8; symbols.len() * number.bytes()];
                for bytes in [0, 1, 7, 31, 32, 63, 64, 65, 100, 1000] {
                    let raw: Vec<u8> = (0..bytes).map(|i| u8::try_from(i * 151 % 256).unwrap()).collect();
                    let mut first = None;
                    for_each_isa(|isa| {
                        let mut values = values.clone();
                        let mut reader = BitReader::new(&raw);
                        reader.take(5);
                        apply(number, &mut values, &symbols, &mut reader).unwrap();
                        let got = (values, reader.position_bits());
                        assert_eq!(*first.get_or_insert(got.clone()), got, "{number:?} {bytes} {isa:?}");
                        Ok::<_, ()>(())
                    })
                    .unwrap();
                }
            }
        }
    }

    #[test]
    fn all_pairs_of_small_floats_roundtrip() {
        for number in [Number::float(4, 3), Number::float(5, 2), Number::signed(8), Number::unsigned(8)] {
            let target: Vec<u8> = (0..=255u8).flat_map(|_| 0..=255).collect();
            let prediction: Vec<u8> = (0..=255u8).flat_map(|p| [p; 256]).collect();
            roundtrip(number, &target, &prediction);
        }
    }

    #[test]
    fn a_step_of_one_ulp_away_from_zero_is_two_in_both_signs() {
        let bf16 = NUMBERS[0];
        assert_eq!(residual(bf16, 0x3f81, 0x3f80).symbol, 2);
        assert_eq!(residual(bf16, 0xbf81, 0xbf80).symbol, 2);
        assert_eq!(residual(bf16, 0xbf7f, 0xbf80).symbol, 1);
        // A sign change and two octaves up are jumps with the mantissa raw.
        assert_eq!(residual(bf16, 0xbf80, 0x3f80), Token { symbol: 176 + 40 + 12, raw_bits: 7, raw: 0 });
        assert_eq!(residual(bf16, 0x4085, 0x3f80), Token { symbol: 176 + 14, raw_bits: 7, raw: 5 });
    }

    #[test]
    fn symbols_that_do_not_exist_are_refused() {
        let mut raw = BitReader::new(&[]);
        assert_eq!(apply(Number::unsigned(16), &mut [0, 0], &[176], &mut raw), Err(DecodeError::BadSymbol));
        assert_eq!(apply(NUMBERS[0], &mut [0, 0], &[80], &mut raw), Err(DecodeError::BadSymbol));
        assert_eq!(read_token(200, &mut raw), Err(DecodeError::BadSymbol));
    }
}
