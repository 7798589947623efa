//! The bound of docs/format.md section 12 under attack: a packed checkpoint is never much larger
//! than the original.

mod common;

use std::path::Path;

use common::*;
use deltaloom::{Preset, Silent, Texts};

/// Packs a file in all variants and checks the bound each time.
#[track_caller]
fn check(what: &str, file: &[u8], against: &[&[u8]]) {
    check_with(what, file, against, &Preset::ALL, &[10, 12, 17]);
}

#[track_caller]
fn check_with(what: &str, file: &[u8], against: &[&[u8]], presets: &[Preset], chunk_log2s: &[u8]) {
    for &preset in presets {
        for &chunk_log2 in chunk_log2s {
            let (container, report) =
                pack_with(file, against, &options().with_preset(preset).with_chunk_log2(chunk_log2));
            let header = (file.len() - data_of(file).len()) as u64;
            let chunks: u64 = report.codecs.values().map(|share| share.count).sum();
            let parts = 256 * (1 + report.tensors.len() as u64) + 16 * chunks;
            let bound = file.len() as u64 + 1024 + parts + header / 128;
            let packed = container.len() as u64;
            assert!(
                packed <= bound,
                "{what}, {preset:?}, 2^{chunk_log2}: {packed} > {bound}, {:?}",
                report.codecs
            );
        }
    }
}

const DTYPES: [(&str, usize); 12] = [
    ("BOOL", 1),
    ("U8", 1),
    ("U16", 2),
    ("U64", 8),
    ("I8", 1),
    ("I32", 4),
    ("F8_E4M3", 1),
    ("F8_E5M2", 1),
    ("F16", 2),
    ("BF16", 2),
    ("F32", 4),
    ("F64", 8),
];

#[test]
fn noise_of_every_dtype() {
    let mut rng = Random::new(1);
    for (dtype, size) in DTYPES {
        for shape in [[240, 85], [20_400, 1], [1, 20_400]] {
            let mut of = || safetensors(&[tensor("w", dtype, &shape, rng.bytes(20_400 * size))]);
            let (base, tuned) = (of(), of());
            check(dtype, &tuned, &[]);
            check(dtype, &tuned, &[&base]);
        }
    }
}

/// Wide matrices have as many column scales as a chunk has elements.
#[test]
fn noise_on_top_of_the_reference_in_wide_and_narrow_matrices() {
    let mut rng = Random::new(2);
    for (dtype, size) in DTYPES {
        for cols in [1024, 64, 4] {
            let (rows, bits) = (20_480 / cols, 8 * size as u64);
            let base = rng.bytes(20_480 * size);
            for noisy_bits in [bits - 1, bits - 2, bits.min(6)] {
                let tuned = stepped(&base, size, |_| (rng.next() >> (64 - noisy_bits)).cast_signed());
                let of = |bytes| safetensors(&[tensor("w", dtype, &[rows, cols], bytes)]);
                let (tuned, base) = (of(tuned), of(base.clone()));
                check_with(dtype, &tuned, &[&base], &[Preset::Fast, Preset::Max], &[10, 17]);
            }
        }
    }
}

#[test]
fn many_tiny_tensors() {
    let mut rng = Random::new(3);
    for (dtype, size) in [("BF16", 2), ("F32", 4), ("U8", 1)] {
        for elems in [0, 1, 2, 9, 40] {
            // Names that do not compress.
            let names: Vec<String> =
                (0..150).map(|_| format!("{:016x}{:016x}", rng.next(), rng.next())).collect();
            let mut of = |noise: bool| {
                let bytes = |rng: &mut Random| {
                    if noise {
                        rng.bytes(elems * size)
                    } else {
                        f32_bytes(&rng.weights(elems))[..elems * size].to_vec()
                    }
                };
                let all = names.iter().map(|name| tensor(name, dtype, &[elems as u64], bytes(&mut rng)));
                safetensors(&all.collect::<Vec<_>>())
            };
            for (base, tuned) in [(of(false), of(false)), (of(false), of(true)), (of(true), of(true))] {
                for against in [vec![], vec![&base[..]]] {
                    check_with(dtype, &tuned, &against, &[Preset::Fast, Preset::Max], &[10]);
                }
            }
        }
    }
}

#[test]
fn files_with_tails_and_containers_that_say_much() {
    let mut rng = Random::new(6);
    let mut noise = |bytes: usize| -> String {
        rng.bytes(bytes).iter().map(|byte| char::from(b' ' + byte % 95)).collect()
    };
    let (name, key, text) = (noise(1000), noise(200), noise(5000));
    for tail in [1, 5, 1025, 40_000] {
        let of = |rng: &mut Random| {
            [safetensors(&[tensor("w", "U8", &[900], rng.bytes(900))]), rng.bytes(tail)].concat()
        };
        let mut rng = Random::new(tail as u64);
        let (base, tuned) = (of(&mut rng), of(&mut rng));
        check("tails", &tuned, &[]);
        check("tails", &tuned, &[&base]);

        let mut bases = bases(&[&base, &base]);
        bases.set_names([(Path::new("base-0"), name.as_str()), (Path::new("base-1"), &name)]).unwrap();
        let texts: Texts = [(key.clone(), text.clone()), ("k".to_owned(), String::new())].into();
        let options = options().with_identity(Some(texts));
        let mut container = Vec::new();
        let checkpoint = checkpoint(&tuned).unwrap();
        let report = deltaloom::pack_to(&checkpoint, &bases, &mut container, &options, &Silent).unwrap();
        let said = report.bases.iter().map(|base| base.name.len() + 24).sum::<usize>()
            + report.texts.iter().map(|(key, text)| key.len() + text.len() + 8).sum::<usize>();
        let chunks: u64 = report.codecs.values().map(|share| share.count).sum();
        let parts = 256 * (1 + report.tensors.len() as u64) + 16 * chunks;
        let bound = tuned.len() as u64 + 1024 + parts + 1 + 48 + said as u64;
        assert!(container.len() as u64 <= bound, "{} > {bound}", container.len());
    }
}

/// Data that looks good to a plan that samples or averages, but is bad where it is coded.
#[test]
fn data_that_deceives_the_plan() {
    let mut rng = Random::new(4);
    let elems = 32 * 1024;
    let one = |dtype: &str, bytes: Vec<u8>| safetensors(&[tensor("w", dtype, &[512, 64], bytes)]);
    // Constant and noise alternate, by chunk or by element.
    let (mut by_chunk, mut by_element) = (rng.bytes(2 * elems), rng.bytes(2 * elems));
    by_chunk.chunks_mut(2048).step_by(2).for_each(|chunk| chunk.fill(0x3f));
    by_element.chunks_mut(2).step_by(2).for_each(|element| element.fill(0x3f));
    // Good where samples are taken (both ends and the thirds), noise elsewhere.
    let mut good_samples = rng.bytes(2 * elems);
    for start in [0, elems / 3, 2 * elems / 3, elems - 1024] {
        let end = (2 * start + 4096).min(good_samples.len());
        good_samples[2 * start..end].fill(0);
    }
    let base = one("BF16", bf16_bytes(&rng.weights(elems)));
    for (what, bytes) in [("chunks", by_chunk), ("elements", by_element), ("good samples", good_samples)] {
        for dtype in ["BF16", "F16", "I16"] {
            check(what, &one(dtype, bytes.clone()), &[]);
        }
        check(what, &one("BF16", bytes), &[&base]);
    }
}

/// Savings so small that tables, states and scales may cost what coding gains. In many groups, so
/// that the fixed part of the bound does not hide it.
#[test]
fn savings_too_small_for_their_overhead() {
    let mut rng = Random::new(5);
    let elems = 96 * 1024;
    for (dtype, size) in [("BF16", 2), ("U8", 1), ("I16", 2), ("F32", 4)] {
        let of = |bytes: Vec<u8>| safetensors(&[tensor("w", dtype, &[elems as u64 / 64, 64], bytes)]);
        for skew in (4..44).step_by(4) {
            let mut base = rng.bytes(elems * size);
            let mut leaning = rng.bytes(elems * size);
            let mut related = leaning.clone();
            for i in (0..elems * size).step_by(size).filter(|_| rng.below(4000) < skew * skew / 2) {
                // On their own, the top bits are biased. With a reference, some elements are equal
                // to it.
                leaning[i + size - 1] &= 0x3f;
                related[i..i + size].copy_from_slice(&base[i..i + size]);
            }
            // The sampled parts of a tensor look better than the rest.
            base[..1024 * size].copy_from_slice(&related[..1024 * size]);
            for (file, against) in [(of(leaning), vec![]), (of(related), vec![of(base)])] {
                let against: Vec<&[u8]> = against.iter().map(Vec::as_slice).collect();
                check_with("small savings", &file, &against, &[Preset::Fast, Preset::Max], &[10]);
            }
        }
    }
}
