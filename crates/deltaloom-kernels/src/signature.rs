//! Random-hyperplane signatures as 64-bit words: on which side of each plane a vector lies, in how
//! many bits two signatures differ, and the products estimated from that.
//!
//! It draws no hyperplanes and knows nothing of matrices.

use crate::isa::per_isa;

/// Bits of a word, and the number of directions that are interleaved.
pub const WORD_BITS: usize = 64;

/// A kernel like those of [`per_isa`], also compiled for AVX-512 with VPOPCNTDQ, which counts the
/// bits of eight words at once.
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
                    // SAFETY: `isa` returns Avx512 only if it has detected every feature but
                    // VPOPCNTDQ, which was detected here.
                    #[expect(unsafe_code, reason = "calling a function with detected target features")]
                    return unsafe { with_avx512($($arg),*) };
                }
            }
            narrower($($arg),*);
        }
    };
}

per_isa_popcnt! {
    /// Sets bit i of word w if the product of `vector` and direction 64 w + i is not negative.
    ///
    /// For each word, `directions` holds `dims` runs of 64 numbers: run d has component d of the
    /// word's 64 directions. A vector shorter than `dims` is padded with zeros. Products are added
    /// in order and not fused.
    pub fn sign(directions: &[f32], dims: usize, vector: &[f32], signature: &mut [u64]) = sign_body;
}

per_isa_popcnt! {
    /// Counts the bits in which `query` differs from each of the signatures, which have as many
    /// words.
    pub fn distances(query: &[u64], signatures: &[u64], out: &mut [u16]) = distances_body;
}

per_isa_popcnt! {
    /// Adds to each element of `out` the product estimated from the distance of its signature:
    /// `scale` x its norm (a BF16) x the cosine of that distance.
    ///
    /// # Panics
    /// If a distance, from 0 to the number of bits, has no cosine.
    pub fn add_estimates(
        query: &[u64],
        signatures: &[u64],
        norms: &[u16],
        cosines: &[f32],
        scale: f32,
        out: &mut [f32],
    ) = add_estimates_body;
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
    let write = |i: usize, distance: u32| {
        if let Some(out) = out.get_mut(i) {
            *out = distance as u16;
        }
    };
    each_distance(query, signatures, write);
}

#[inline(always)]
fn add_estimates_body(
    query: &[u64],
    signatures: &[u64],
    norms: &[u16],
    cosines: &[f32],
    scale: f32,
    out: &mut [f32],
) {
    assert!(cosines.len() > query.len() * WORD_BITS, "a cosine for each distance");
    let len = out.len().min(norms.len());
    let (out, norms) = (&mut out[..len], &norms[..len]);
    let add = |i: usize, distance: u32| {
        if i < len {
            out[i] += scale * f32::from_bits(u32::from(norms[i]) << 16) * cosines[distance as usize];
        }
    };
    each_distance(query, signatures, add);
}

/// Separate loops for the usual lengths, so that a whole signature is loaded at once.
#[inline(always)]
fn each_distance(query: &[u64], signatures: &[u64], mut with: impl FnMut(usize, u32)) {
    match *query {
        [] => {}
        [a] => of_words([a], signatures, with),
        [a, b] => of_words([a, b], signatures, with),
        [a, b, c, d] => of_words([a, b, c, d], signatures, with),
        _ => {
            for (i, signature) in signatures.chunks_exact(query.len()).enumerate() {
                with(i, query.iter().zip(signature).map(|(a, b)| (a ^ b).count_ones()).sum());
            }
        }
    }
}

#[inline(always)]
fn of_words<const W: usize>(query: [u64; W], signatures: &[u64], mut with: impl FnMut(usize, u32)) {
    for (i, signature) in signatures.as_chunks::<W>().0.iter().enumerate() {
        let mut distance = 0;
        for w in 0..W {
            distance += (signature[w] ^ query[w]).count_ones();
        }
        with(i, distance);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_isa_counts_and_signs_as_bit_by_bit(
            words in 1usize..6, count in 0usize..40, seed in prop::collection::vec(any::<u64>(), 64), dims in 1usize..20, shorter in 0usize..3,
        ) {
            let word = |i: usize| seed[i % 64].rotate_left(u32::try_from(i / 64 * 7 % 64).unwrap()) ^ (i as u64);
            let query: Vec<u64> = (0..words).map(word).collect();
            let signatures: Vec<u64> = (0..words * count).map(|i| word(i + 100)).collect();
            let norms: Vec<u16> = (0..count).map(|i| 0x3f80 + u16::try_from(i).unwrap()).collect();
            let cosines: Vec<f32> = (0..=words * 64).map(|h| 1.0 - h as f32 / 100.0).collect();
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
                add_estimates(&query, &signatures, &norms, &cosines, 2.0, &mut products);
                for i in 0..count {
                    let product = 2.0 * f32::from_bits(u32::from(norms[i]) << 16) * cosines[usize::from(expected[i])];
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
