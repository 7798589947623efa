//! Converts elements to numbers and back, exactly as in docs/format.md section 13: values, shifted
//! predictions, and residuals in parts. It learns nothing and codes nothing.

use crate::{Number, NumberKind};

/// 2^k for exponents of normal numbers; other k are clamped to those.
#[inline(always)]
pub(super) fn power_of_two(k: i32) -> f64 {
    f64::from_bits(((k.clamp(-1022, 1023) + 1023) as u64) << 52)
}

#[inline(always)]
fn bias(number: Number) -> i32 {
    (1 << (number.exponent_bits() - 1)) - 1
}

/// Value of a float. The largest exponent is treated like any other.
#[inline(always)]
fn float_value(number: Number, x: u64) -> f64 {
    let magnitude = (x & (number.top_bit() - 1)) << (52 - number.mantissa_bits());
    let sign = (x >> (number.bits() - 1)) << 63;
    f64::from_bits(sign | magnitude) * power_of_two(1023 - bias(number))
}

/// The float nearest to `v`, below the largest exponent.
#[inline(always)]
fn nearest_float(number: Number, v: f64) -> u64 {
    let unused = 52 - number.mantissa_bits();
    let magnitude = (v.abs() * power_of_two(bias(number) - 1023)).to_bits();
    let rounded = (magnitude + (1 << unused >> 1)) >> unused;
    let largest = (((1u64 << number.exponent_bits()) - 1) << number.mantissa_bits()) - 1;
    let sign = if v.is_sign_negative() { number.top_bit() } else { 0 };
    sign | rounded.min(largest)
}

/// Step from `p` to `t` in units of 2^scale; not finite if a value is not.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "single precision is what steps have")]
pub(super) fn step(number: Number, p: u64, t: u64, scale: i32) -> f32 {
    let step = match number.kind() {
        NumberKind::Float => float_value(number, t) - float_value(number, p),
        _ => {
            let unused = 64 - number.bits();
            ((t.wrapping_sub(p) << unused).cast_signed() >> unused) as f64
        }
    };
    (step * power_of_two(-scale)) as f32
}

/// log2 of the ULP of `x`; 0 for integers.
#[inline(always)]
pub(super) fn ulp_log2(number: Number, x: u64) -> i32 {
    match number.kind() {
        NumberKind::Float => {
            number.exponent(x).max(1).cast_signed() - bias(number) - number.mantissa_bits().cast_signed()
        }
        _ => 0,
    }
}

/// A prediction shifted by a step, and how many ULPs of the step are left over.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a cast saturates")]
pub(super) fn shifted(number: Number, p: u64, step: f32, scale: i32) -> (u64, f64) {
    let step = f64::from(step) * power_of_two(scale);
    match number.kind() {
        NumberKind::Float => {
            let v = float_value(number, p) + step;
            if !v.is_finite() {
                return (p, 0.0);
            }
            let q = nearest_float(number, v);
            (q, (v - float_value(number, q)) * power_of_two(-ulp_log2(number, q)))
        }
        _ => {
            let whole = (step + if step < 0.0 { -0.5 } else { 0.5 }) as i64;
            (p.wrapping_add(whole.cast_unsigned()) & number.mask(), step - whole as f64)
        }
    }
}

/// The parts in which a nonzero residual is coded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) negative: bool,
    /// Number of bits of |d| minus one, or [`FAR`] if the detail says more.
    pub(super) group: u32,
    pub(super) detail: u32,
    pub(super) raw: u64,
}

/// The group of everything rare: |d| of 32 bits or more, and jumps.
pub(super) const FAR: u32 = 31;
/// First detail of jumps.
const JUMPS: u32 = 33;
const JUMP_SPAN: u32 = 40;
const JUMP_CENTER: i64 = 12;

/// Number of bits of a group's detail.
#[inline(always)]
pub(super) fn detail_bits(group: u32) -> u32 {
    if group == FAR { 7 } else { group.min(3) }
}

/// Number of raw bits, or `None` if no residual has this group and detail.
#[inline(always)]
pub(super) fn raw_bits(number: Number, group: u32, detail: u32) -> Option<u32> {
    if group < FAR {
        return (group < number.bits()).then(|| group - group.min(3));
    }
    if detail < JUMPS {
        return (FAR + detail < number.bits()).then_some(FAR + detail);
    }
    let j = (detail - JUMPS) % JUMP_SPAN;
    let is_far = j == 0 || j == JUMP_SPAN - 1;
    let is_jump = number.kind() == NumberKind::Float && detail < JUMPS + 2 * JUMP_SPAN;
    is_jump.then(|| if is_far { number.bits() - 1 } else { number.mantissa_bits() })
}

/// Parts of the residual of `t` for `q`, which differs from it.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "112 at most, and 3 bits")]
pub(super) fn parts(number: Number, t: u64, q: u64) -> Parts {
    if number.kind() == NumberKind::Float {
        let flipped = (t ^ q) >> (number.bits() - 1) & 1;
        let distance = i64::from(number.exponent(t)) - i64::from(number.exponent(q));
        if flipped == 1 || distance.abs() >= 2 {
            let j = (distance + JUMP_CENTER).clamp(0, i64::from(JUMP_SPAN) - 1) as u32;
            let detail = JUMPS + JUMP_SPAN * flipped as u32 + j;
            let raw_bits = raw_bits(number, FAR, detail).unwrap_or(0);
            let negative = flipped == 1 || distance < 0;
            return Parts { negative, group: FAR, detail, raw: t & ((1 << raw_bits) - 1) };
        }
    }
    let unused = 64 - number.bits();
    let d = number.folded(number.ordered(t).wrapping_sub(number.ordered(q)), q);
    let signed = (d << unused).cast_signed() >> unused;
    let (negative, size) = (signed < 0, signed.unsigned_abs());
    let bits = 63 - size.leading_zeros();
    let below = size & !(1 << bits);
    if bits >= FAR {
        return Parts { negative, group: FAR, detail: bits - FAR, raw: below };
    }
    let raw_bits = bits - detail_bits(bits);
    Parts { negative, group: bits, detail: (below >> raw_bits) as u32, raw: below & ((1 << raw_bits) - 1) }
}

/// Inverse of [`parts`]; `raw_bits` is what [`raw_bits`] returns for them.
#[inline(always)]
pub(super) fn joined(number: Number, parts: Parts, raw_bits: u32, q: u64) -> u64 {
    if parts.group == FAR && parts.detail >= JUMPS {
        let flipped = u64::from((parts.detail - JUMPS) / JUMP_SPAN) << (number.bits() - 1);
        let j = i64::from((parts.detail - JUMPS) % JUMP_SPAN);
        let sign = (q ^ flipped) & number.top_bit();
        if raw_bits == number.bits() - 1 {
            return sign | parts.raw;
        }
        let exponent = (i64::from(number.exponent(q)) + j - JUMP_CENTER).cast_unsigned();
        let exponent = exponent & ((1 << number.exponent_bits()) - 1);
        return sign | exponent << number.mantissa_bits() | parts.raw;
    }
    let size = if parts.group == FAR {
        1 << (FAR + parts.detail) | parts.raw
    } else {
        1 << parts.group | u64::from(parts.detail) << raw_bits | parts.raw
    };
    let d = if parts.negative { size.wrapping_neg() } else { size };
    number.unordered(number.ordered(q).wrapping_add(number.folded(d, q)) & number.mask())
}
