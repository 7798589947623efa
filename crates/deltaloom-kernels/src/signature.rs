//! Signatures of random hyperplanes as 64-bit words: which side a vector lies on, how many bits two signatures differ in, and what products follow from that.
//! It draws no hyperplanes and knows nothing of matrices.

use crate::isa::per_isa;

/// Bits of a word, and directions that stand side by side.
pub const WORD_BITS: usize = 64;

/// A kernel as [`per_isa`] makes it, which is also compiled for AVX-512 with VPOPCNTDQ: a vector then counts the bits of eight words at once.
macro_rules! per_isa_popcnt {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $body:ident;) => {
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) {
            per_isa! {
                fn narrower($($arg: $type),*) = $body;
            }
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vpopcntdq,bmi1,bmi2,lzcnt,popcnt")]
                fn with_avx512($($arg: $type),*) {
                    $body($($arg),*);
                }
                if $crate::isa::isa() >= $crate::isa::Isa::Avx512 && is_x86_feature_detected!("avx512vpopcntdq") {
                    // SAFETY: `isa` gives Avx512 only after it has detected every feature but the last, which was detected here.
                    #[expect(unsafe_code, reason = "calling a function with detected target features")]
                    return unsafe { with_avx512($($arg),*) };
                }
            }
            narrower($($arg),*);
        }
    };
}

per_isa_popcnt! {
    /// Sets bit i of word w where the product of `vector` and direction 64 w + i is not negative. `directions` has, for each word, `dims` runs of 64 numbers, the
    /// next component of its 64 directions each. A vector of fewer numbers than `dims` is continued by zeros. Products are added in order and not fused.
    pub fn sign(directions: &[f32], dims: usize, vector: &[f32], signature: &mut [u64]) = sign_body;
}

per_isa_popcnt! {
    /// Counts the bits in which `query` differs from each signature of as many words.
    pub fn distances(query: &[u64], signatures: &[u64], out: &mut [u16]) = distances_body;
}

per_isa_popcnt! {
    /// Adds to each element of `out` the product that the distance of its signature stands for: `scale` x its norm, a BF16, x the cosine of pi x the share of bits that differ.
    /// The cosine is that of [`cosine`].
    pub fn add_estimates(query: &[u64], signatures: &[u64], norms: &[u16], scale: f32, out: &mut [f32]) = add_estimates_body;
}

/// Of sin(pi t) / t in powers of t^2, fitted for t up to 1/2.
const SINE: [f32; 5] = [3.141_592_7, -5.167_710_3, 2.550_077_4, -0.598_291_3, 0.077_657_66];

/// Cosine of pi x `share`, for shares from 0 to 1, with an error below 1e-6: a polynomial, which vectors compute where they have no tables. It is odd around 1/2, so that
/// half of the bits give exactly 0.
#[must_use]
#[inline(always)]
pub fn cosine(share: f32) -> f32 {
    let t = 0.5 - share;
    let u = t * t;
    t * (SINE[0] + u * (SINE[1] + u * (SINE[2] + u * (SINE[3] + u * SINE[4]))))
}

#[inline(always)]
fn sign_body(directions: &[f32], dims: usize, vector: &[f32], signature: &mut [u64]) {
    let words = directions.chunks_exact((dims * WORD_BITS).max(1));
    for (word, directions) in signature.iter_mut().zip(words) {
        let mut sums = [0.0; WORD_BITS];
        for (x, run) in vector.iter().zip(directions.as_chunks::<WORD_BITS>().0) {
            for i in 0..WORD_BITS {
                sums[i] += x * run[i];
            }
        }
        *word = sums.iter().rev().fold(0, |word, sum| word << 1 | u64::from(*sum >= 0.0));
    }
}

#[inline(always)]
fn distances_body(query: &[u64], signatures: &[u64], out: &mut [u16]) {
    #[expect(clippy::cast_possible_truncation, reason = "signatures have fewer than 65,536 bits")]
    each_distance(query, signatures, out, |out, _, distance| *out = distance as u16);
}

#[inline(always)]
fn add_estimates_body(query: &[u64], signatures: &[u64], norms: &[u16], scale: f32, out: &mut [f32]) {
    let per_bit = 1.0 / (query.len() * WORD_BITS).max(1) as f32;
    let len = out.len().min(norms.len());
    let (out, norms) = (&mut out[..len], &norms[..len]);
    each_distance(query, signatures, out, |out, i, distance| {
        *out += scale * f32::from_bits(u32::from(norms[i]) << 16) * cosine(distance as f32 * per_bit);
    });
}

/// Loops of their own for the usual lengths, so that several signatures are loaded at once.
#[inline(always)]
fn each_distance<T>(query: &[u64], signatures: &[u64], out: &mut [T], with: impl Fn(&mut T, usize, u32)) {
    match *query {
        [] => {}
        [a] => of_words([a], signatures, out, with),
        [a, b] => of_words([a, b], signatures, out, with),
        [a, b, c, d] => of_words([a, b, c, d], signatures, out, with),
        _ => {
            for (i, (out, signature)) in out.iter_mut().zip(signatures.chunks_exact(query.len())).enumerate()
            {
                with(out, i, query.iter().zip(signature).map(|(a, b)| (a ^ b).count_ones()).sum());
            }
        }
    }
}

#[inline(always)]
fn of_words<T, const W: usize>(
    query: [u64; W],
    signatures: &[u64],
    out: &mut [T],
    with: impl Fn(&mut T, usize, u32),
) {
    for (i, (out, signature)) in out.iter_mut().zip(signatures.as_chunks::<W>().0).enumerate() {
        let mut distance = 0;
        for w in 0..W {
            distance += (signature[w] ^ query[w]).count_ones();
        }
        with(out, i, distance);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    #[test]
    fn cosines_are_near_and_odd() {
        for bits in [64u16, 128, 256, 1024] {
            for h in 0..=bits {
                let found = cosine(f32::from(h) * (1.0 / f32::from(bits)));
                let exact = (std::f64::consts::PI * f64::from(h) / f64::from(bits)).cos();
                assert!((f64::from(found) - exact).abs() < 1e-6, "{h} of {bits}: {found} {exact}");
                assert_eq!(found, -cosine(f32::from(bits - h) * (1.0 / f32::from(bits))));
            }
        }
    }

    proptest! {
        #[test]
        fn every_isa_counts_and_signs_as_bit_by_bit(
            words in 1usize..6, count in 0usize..40, seed in prop::collection::vec(any::<u64>(), 64), dims in 1usize..20, shorter in 0usize..3,
        ) {
            let word = |i: usize| seed[i % 64].rotate_left(u32::try_from(i / 64 * 7 % 64).unwrap()) ^ (i as u64);
            let query: Vec<u64> = (0..words).map(word).collect();
            let signatures: Vec<u64> = (0..words * count).map(|i| word(i + 100)).collect();
            let norms: Vec<u16> = (0..count).map(|i| 0x3f80 + u16::try_from(i).unwrap()).collect();
            let number = |i: usize| (word(i + 500) >> 40) as f32 / 8_388_608.0 - 1.0;
            let directions: Vec<f32> = (0..words * dims * 64).map(number).collect();
            let vector: Vec<f32> = (0..dims.saturating_sub(shorter)).map(|i| number(i + 9000)).collect();

            let bit = |of: &[u64], i: usize| of[i / 64] >> (i % 64) & 1;
            let expected: Vec<u16> = (0..count)
                .map(|s| {
                    let signature = &signatures[s * words..][..words];
                    u16::try_from((0..words * 64).filter(|i| bit(signature, *i) != bit(&query, *i)).count()).unwrap()
                })
                .collect();
            let side = |i: usize| {
                let component = |j: usize| directions[(i / 64 * dims + j) * 64 + i % 64];
                vector.iter().enumerate().fold(0.0f32, |sum, (j, x)| sum + x * component(j)) >= 0.0
            };
            for_each_isa(|_| {
                let mut found = vec![0; count];
                distances(&query, &signatures, &mut found);
                prop_assert_eq!(&found, &expected);
                let mut products = vec![0.5f32; count];
                add_estimates(&query, &signatures, &norms, 2.0, &mut products);
                for i in 0..count {
                    let share = f32::from(expected[i]) * (1.0 / (words * 64) as f32);
                    let product = 2.0 * f32::from_bits(u32::from(norms[i]) << 16) * cosine(share);
                    prop_assert_eq!(products[i], 0.5 + product);
                }
                let mut signature = vec![0; words];
                sign(&directions, dims, &vector, &mut signature);
                for i in 0..words * 64 {
                    prop_assert_eq!(bit(&signature, i) == 1, side(i), "bit {}", i);
                }
                Ok(())
            })?;
        }
    }
}
