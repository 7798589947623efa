//! Transposes FP32 matrices: activations before the products, and products after them. It knows no
//! tokens.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "vector loads and stores"))]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use crate::isa::{Isa, isa};

/// Rows and columns of a square. Its cache lines stay in the first-level cache and fit the vectors
/// of AVX-512.
const SIDE: usize = 16;

/// Writes the transpose of `x`, [rows, cols], into `out`, [cols, rows].
///
/// # Panics
/// If the lengths do not fit.
pub fn transpose(x: &[f32], rows: usize, cols: usize, out: &mut [f32]) {
    assert!(rows.checked_mul(cols) == Some(x.len()) && out.len() == x.len());
    if rows <= 1 || cols <= 1 {
        return out.copy_from_slice(x);
    }
    #[cfg(target_arch = "x86_64")]
    let is_wide = isa() >= Isa::Avx512;
    for first_row in (0..rows).step_by(SIDE) {
        for first_col in (0..cols).step_by(SIDE) {
            let (x, out) = (&x[first_row * cols + first_col..], &mut out[first_col * rows + first_row..]);
            let size = [SIDE.min(rows - first_row), SIDE.min(cols - first_col)];
            #[cfg(target_arch = "x86_64")]
            if is_wide {
                // SAFETY: AVX-512 was detected, and the square lies in both matrices.
                unsafe { square(x, [rows, cols], size, out) };
                continue;
            }
            for row in 0..size[0] {
                for col in 0..size[1] {
                    out[col * rows + row] = x[row * cols + col];
                }
            }
        }
    }
}

/// Transposes a square, or a part of one, at the beginning of `x` and `out`.
///
/// # Safety
/// Needs AVX-512, and a square of `height` and `width` within matrices of `rows` and `cols`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,bmi2")]
unsafe fn square(x: &[f32], [rows, cols]: [usize; 2], [height, width]: [usize; 2], out: &mut [f32]) {
    let lanes = |count: usize| __mmask16::MAX >> (SIDE - count);
    let (read, written) = (lanes(width), lanes(height));
    let mut lines = [_mm512_setzero_ps(); SIDE];
    for (row, line) in lines.iter_mut().enumerate().take(height) {
        // SAFETY: reads `width` numbers of a row of the matrix.
        *line = unsafe { _mm512_maskz_loadu_ps(read, x.as_ptr().add(row * cols)) };
    }
    // Now 128-bit lane `q` of `fours[4 * i + c]` gets column `4 * q + c` of the four rows from
    // `4 * i` on.
    let mut fours = [_mm512_setzero_ps(); SIDE];
    for i in (0..SIDE).step_by(4) {
        let low =
            [_mm512_unpacklo_ps(lines[i], lines[i + 1]), _mm512_unpacklo_ps(lines[i + 2], lines[i + 3])];
        let high =
            [_mm512_unpackhi_ps(lines[i], lines[i + 1]), _mm512_unpackhi_ps(lines[i + 2], lines[i + 3])];
        fours[i] = _mm512_shuffle_ps::<0b01_00_01_00>(low[0], low[1]);
        fours[i + 1] = _mm512_shuffle_ps::<0b11_10_11_10>(low[0], low[1]);
        fours[i + 2] = _mm512_shuffle_ps::<0b01_00_01_00>(high[0], high[1]);
        fours[i + 3] = _mm512_shuffle_ps::<0b11_10_11_10>(high[0], high[1]);
    }
    for c in 0..4 {
        let low = [
            _mm512_shuffle_f32x4::<0b10_00_10_00>(fours[c], fours[4 + c]),
            _mm512_shuffle_f32x4::<0b10_00_10_00>(fours[8 + c], fours[12 + c]),
        ];
        let high = [
            _mm512_shuffle_f32x4::<0b11_01_11_01>(fours[c], fours[4 + c]),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(fours[8 + c], fours[12 + c]),
        ];
        let columns = [
            _mm512_shuffle_f32x4::<0b10_00_10_00>(low[0], low[1]),
            _mm512_shuffle_f32x4::<0b10_00_10_00>(high[0], high[1]),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(low[0], low[1]),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(high[0], high[1]),
        ];
        for (q, column) in columns.into_iter().enumerate() {
            let col = 4 * q + c;
            if col < width {
                // SAFETY: writes `height` numbers of a column of the matrix.
                unsafe {
                    let out = out.as_mut_ptr().add(col * rows);
                    if height == SIDE {
                        _mm512_storeu_ps(out, column);
                    } else {
                        _mm512_mask_storeu_ps(out, written, column);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn rows_become_columns(rows in 0usize..70, cols in 0usize..70) {
            let x: Vec<f32> = (0u16..).take(rows * cols).map(f32::from).collect();
            for_each_isa(|isa| {
                let mut out = vec![-1.0; x.len()];
                transpose(&x, rows, cols, &mut out);
                for row in 0..rows {
                    for col in 0..cols {
                        prop_assert_eq!(out[col * rows + row], x[row * cols + col], "{:?}", isa);
                    }
                }
                Ok(())
            })?;
        }
    }
}
