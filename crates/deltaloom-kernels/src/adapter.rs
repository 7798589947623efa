//! Computes rows of the product of two F32 factors and rounds each step as adapter libraries do:
//! docs/format.md section 3.2.
//!
//! The order of operations is fixed, so every machine computes the same bits. This is not a general
//! matrix product.

/// Computes one row of U V: `out[j]` = u0 v0j, then + u_k v_kj for k = 1, 2, ...
///
/// `u` holds the factors of the row, and `v` holds `u.len()` rows of `out.len()` elements. Each
/// product and each sum is rounded to F32; with `fused`, both are rounded once, together.
///
/// # Panics
/// If the lengths do not fit.
pub fn product_row(u: &[f32], v: &[f32], fused: bool, out: &mut [f32]) {
    assert_eq!(Some(v.len()), u.len().checked_mul(out.len()), "a row of V for every element of u");
    out.fill(0.0);
    if out.is_empty() {
        return;
    }
    let mut terms = u.iter().zip(v.chunks_exact(out.len()));
    if let Some((u, v)) = terms.next() {
        out.iter_mut().zip(v).for_each(|(out, v)| *out = u * v);
    }
    for (u, v) in terms {
        if fused {
            add_fused(*u, v, out);
        } else {
            out.iter_mut().zip(v).for_each(|(out, v)| *out += u * v);
        }
    }
}

/// Adds u v and rounds once.
fn add_fused(u: f32, v: &[f32], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn with_fma(u: f32, v: &[f32], out: &mut [f32]) {
            add_each(u, v, out);
        }
        if crate::isa::isa() >= crate::isa::Isa::Avx2 {
            // SAFETY: `isa` returns Avx2 or more only if it has detected AVX2 and FMA.
            #[expect(unsafe_code, reason = "calling a function with detected target features")]
            return unsafe { with_fma(u, v, out) };
        }
    }
    add_each(u, v, out);
}

#[inline(always)]
fn add_each(u: f32, v: &[f32], out: &mut [f32]) {
    out.iter_mut().zip(v).for_each(|(out, v)| *out = u.mul_add(*v, *out));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;

    /// A number whose products have more digits than F32.
    fn number(i: usize) -> f32 {
        let bits = u32::try_from(i).unwrap().wrapping_mul(0x9e37_79b9);
        f32::from_bits(0x3f00_0000 | bits >> 9 | bits << 31)
    }

    #[test]
    fn each_step_is_rounded_as_asked_for_on_every_path() {
        let (rank, cols) = (9, 67);
        let u: Vec<f32> = (0..rank).map(number).collect();
        let v: Vec<f32> = (100..100 + rank * cols).map(number).collect();
        let expected = |fused: bool| -> Vec<u32> {
            let element = |j: usize| {
                let mut sum = u[0] * v[j];
                for k in 1..rank {
                    // F64 holds the product exactly, so the sum is rounded to F64 and then to F32.
                    // That equals one rounding except in rare cases, which these are not.
                    let exact = f64::from(u[k]) * f64::from(v[k * cols + j]);
                    #[expect(clippy::cast_possible_truncation, reason = "rounding is what is meant")]
                    let once = (exact + f64::from(sum)) as f32;
                    sum = if fused { once } else { sum + u[k] * v[k * cols + j] };
                }
                sum.to_bits()
            };
            (0..cols).map(element).collect()
        };
        assert_ne!(expected(true), expected(false));
        for_each_isa(|isa| {
            for fused in [false, true] {
                let mut out = vec![7.0; cols];
                product_row(&u, &v, fused, &mut out);
                let bits: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
                if bits != expected(fused) {
                    return Err(format!("{isa:?}, fused: {fused}"));
                }
            }
            Ok(())
        })
        .unwrap();
        let mut none = [1.0];
        product_row(&[], &[], true, &mut none);
        assert_eq!(none, [0.0]);
    }
}
