//! Damaged, foreign and hostile files: a clear error, but never a panic, wrong bytes, or files left
//! behind.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::ops::Range;
use std::path::Path;

use common::*;
use deltaloom::checkpoint::{Checkpoint, ReadAt};
use deltaloom::{Bases, Container, Error, Limits, Preset, ResolvedContainer, Silent, Verifiable};

struct Model {
    bases: Vec<Vec<u8>>,
    file: Vec<u8>,
    container: Vec<u8>,
}

/// A container of a few KB with all codecs, all predictors, and scales. Every chunk is a tensor of
/// its own.
fn model() -> Model {
    let mut rng = Random::new(1);
    let near = bf16_bytes(&rng.weights(1024));
    let sparse = f32_bytes(&rng.weights(600));
    let kept = f16_bytes(&rng.weights(50));
    let master = rng.weights(60);
    let (first, second) = moments(&mut rng, 32, 32);
    let base = vec![
        tensor("ulp", "BF16", &[32, 32], near.clone()),
        tensor("sparse", "F32", &[600], sparse.clone()),
        tensor("same", "I16", &[300], vec![7; 600]),
        tensor("identical", "F16", &[50], kept.clone()),
        tensor("master", "F32", &[60], f32_bytes(&master)),
    ];
    let scaled = stepped(&near, 2, |i| rng.around_zero([0, 20, 1000][i / 32 % 3]));
    let tuned = vec![
        tensor("ulp", "BF16", &[32, 32], scaled.clone()),
        tensor(
            "sparse",
            "F32",
            &[600],
            stepped(&sparse, 4, |i| if i % 40 == 3 { rng.around_zero(99) } else { 0 }),
        ),
        tensor("identical", "F16", &[50], kept),
        tensor("cast", "BF16", &[60], bf16_bytes(&master)),
        tensor("float", "F16", &[700], f16_bytes(&rng.weights(700))),
        tensor("planes", "I32", &[400], (0..400u32).flat_map(|i| (i * i).to_le_bytes()).collect()),
        tensor("constant", "F64", &[9], vec![0x3f; 72]),
        tensor("raw", "U8", &[40], rng.bytes(40)),
        tensor("zeros", "F32", &[33], vec![0; 132]),
        tensor("tied", "BF16", &[32, 32], scaled),
        tensor("empty", "F32", &[0], Vec::new()),
        tensor("adam.m", "BF16", &[32, 32], bf16_bytes(&first)),
        tensor("adam.v", "BF16", &[32, 32], bf16_bytes(&second)),
    ];
    let (base, file) = (safetensors(&base), safetensors(&tuned));
    let (container, report) = pack_with(&file, &[&base], &options().with_preset(Preset::Max));
    let codecs: Vec<&str> = report.codecs.keys().copied().collect();
    assert_eq!(codecs, ["constant", "float", "planes", "raw", "same", "scaled", "sparse", "ulp"]);
    let predictors: Vec<&str> = report.predictors.keys().copied().collect();
    assert_eq!(predictors, ["cast", "companion", "identical", "reference", "tied", "zero"]);
    assert!(container.len() < 11_000, "{}", container.len());
    assert!(
        Parts::of(&container).meta.windows(3).any(|w| (w[0], w[2]) == (2, 3)),
        "a group of family 2 with both scales"
    );
    Model { bases: vec![base], file, container }
}

/// A container with a full identity, of a file with a tail.
fn said() -> Model {
    let values = bf16_bytes(&Random::new(2).weights(300));
    let with_tail = |step: i64, tail: &[u8]| {
        let values = stepped(&values, 2, |i| if i % 9 == 0 { step } else { 0 });
        [&safetensors(&[tensor("w", "BF16", &[300], values)]), tail].concat()
    };
    let (base, file) = (with_tail(0, &[7; 60]), with_tail(1, &[7; 61]));
    let mut bases = bases(&[&base]);
    bases.set_names([(Path::new("base-0"), "org/model@5f0b02c")]).unwrap();
    let texts = [("licence", "MIT"), ("note", "of a test")];
    let texts = texts.map(|(key, text)| (key.to_owned(), text.to_owned())).into();
    let mut container = Vec::new();
    let options = options().with_identity(Some(texts));
    deltaloom::pack_to(&checkpoint(&file).unwrap(), &bases, &mut container, &options, &Silent).unwrap();
    assert_eq!(container[8], 4);
    Model { bases: vec![base], file, container }
}

/// Both, and the golden containers with computed predictions.
fn models() -> Vec<Model> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/golden");
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let golden = |name: &str, bases: &[&str]| Model {
        bases: bases.iter().map(|base| read(&format!("{name}.{base}"))).collect(),
        file: read(&format!("{name}.safetensors")),
        container: read(&format!("{name}.loom")),
    };
    let [one, two, three] = ["base1.safetensors", "base2.safetensors", "base3.safetensors"];
    vec![
        model(),
        golden("v2/adapters", &[one, "base2/adapter_model.safetensors"]),
        golden("v2/blends", &[one, two, three]),
        golden("v2/low_rank", &[one]),
        golden("v2/step_of_adam", &[one]),
        golden("v4/views", &[one]),
        golden("v4/conversions", &[one]),
        said(),
    ]
}

impl Model {
    fn open_bases(&self) -> Bases {
        let files: Vec<&[u8]> = self.bases.iter().map(Vec::as_slice).collect();
        bases(&files)
    }
}

#[test]
fn every_flipped_bit_is_found() {
    for model in models() {
        let bases = model.open_bases();
        assert!(unpack_with(&model.container, &bases).unwrap() == model.file);
        let bits = model.container.len() * 8;
        // Both cores, with half of the bits each.
        std::thread::scope(|scope| {
            for half in 0..2 {
                let (model, bases) = (&model, &bases);
                scope.spawn(move || {
                    let folder = tempfile::tempdir().unwrap();
                    for bit in (half..bits).step_by(2) {
                        let mut flipped = model.container.clone();
                        flipped[bit / 8] ^= 1 << (bit % 8);
                        assert!(unpack_in(folder.path(), &flipped, bases).is_err(), "bit {bit}");
                    }
                });
            }
        });
    }
}

#[test]
fn every_cut_and_everything_appended_is_found() {
    for model in [model(), said()] {
        every_cut_is_found(&model);
    }
}

fn every_cut_is_found(model: &Model) {
    let bases = model.open_bases();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.loom");
    for len in 0..model.container.len() {
        let cut = &model.container[..len];
        assert!(open(cut).is_err(), "{len} bytes");
        assert!(open(&model.container[model.container.len() - len..]).is_err(), "the last {len} bytes");
    }
    // Mapped files too, down to the empty one.
    for len in (0..model.container.len()).step_by(97) {
        std::fs::write(&path, &model.container[..len]).unwrap();
        assert!(Container::open(&path, &Limits::default()).is_err(), "{len} bytes");
        let as_base = Bases::open(std::slice::from_ref(&path), &Limits::default()).err().unwrap();
        assert!(as_base.to_string().contains("cut.loom"), "{as_base}");
    }
    let trailer = model.container.len() - 48;
    let appended = [
        vec![0],
        vec![0; 48],
        model.container[trailer..].to_vec(),
        model.container.clone(),
        b"LOOMEND\n".to_vec(),
    ];
    for more in appended {
        assert!(unpack_with(&[&model.container[..], &more].concat(), &bases).is_err());
    }
}

/// The parts of a container, as in docs/format.md section 1, decompressed.
#[derive(Clone, PartialEq)]
struct Parts {
    head: Vec<u8>,
    payloads: Vec<u8>,
    meta: Vec<u8>,
    tables: Vec<u8>,
    checks: Vec<u8>,
}

impl Parts {
    fn of(container: &[u8]) -> Self {
        let trailer = &container[container.len() - 48..];
        let size = |at: usize| u32::from_le_bytes(trailer[at..at + 4].try_into().unwrap()) as usize;
        let index = usize::try_from(u64::from_le_bytes(trailer[..8].try_into().unwrap())).unwrap();
        let (tables, checks) = (index + size(8), index + size(8) + size(16));
        Self {
            head: container[..16].to_vec(),
            payloads: container[16..index].to_vec(),
            meta: zstd::bulk::decompress(&container[index..tables], size(12)).unwrap(),
            tables: zstd::bulk::decompress(&container[tables..checks], size(20)).unwrap(),
            checks: container[checks..checks + size(24)].to_vec(),
        }
    }

    /// A container whose index has correct lengths and checksums everywhere.
    fn join(&self) -> Vec<u8> {
        let [meta, tables] = [&self.meta, &self.tables].map(|part| zstd::bulk::compress(part, 1).unwrap());
        let index = [&meta[..], &tables, &self.checks].concat();
        let mut trailer = (16 + self.payloads.len() as u64).to_le_bytes().to_vec();
        for size in [meta.len(), self.meta.len(), tables.len(), self.tables.len(), self.checks.len(), 0] {
            trailer.extend(u32::try_from(size).unwrap().to_le_bytes());
        }
        // Since version 3 the checksum covers the head too.
        let head = if self.head[8] >= 3 { &self.head[..] } else { &[] };
        trailer.extend(crc32fast::hash(&[head, &index].concat()).to_le_bytes());
        trailer.extend(crc32fast::hash(&trailer).to_le_bytes());
        trailer.extend(b"LOOMEND\n");
        [&self.head[..], &self.payloads, &index, &trailer].concat()
    }

    /// Sets the checksum of chunk `i` of `chunks`, which is at `range` of the payloads.
    fn mend(&mut self, i: usize, chunks: usize, range: Range<usize>) {
        let at = self.checks.len() - 4 * (chunks - i);
        let crc = crc32fast::hash(&self.payloads[range]);
        self.checks[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

#[test]
fn what_is_new_in_version_4_is_an_error_in_a_file_that_says_it_is_older() {
    let model = said();
    let parts = Parts::of(&model.container);
    assert!(open(&parts.join()).is_ok());
    for version in [1, 2, 3, 5, 255] {
        let mut parts = parts.clone();
        parts.head[8] = version;
        let fault = open(&parts.join()).err().unwrap();
        assert!(fault.to_string().contains("packed.loom"), "{fault}");
    }
    // Version 3 refuses a part, and version 4 also allows none.
    let mut plain = Parts::of(&pack(&safetensors(&[tensor("w", "U8", &[4], vec![1; 4])]), &[]).0);
    let old = plain.clone();
    plain.head[8] = 4;
    assert!(open(&plain.join()).is_ok());
    let parts = [2, 6, 1, 1, b'k', 2, b'v', b'w'];
    for (version, is_right) in [(3, false), (4, true)] {
        let mut with_part = Parts { meta: [&old.meta[..], &parts].concat(), ..old.clone() };
        with_part.head[8] = version;
        assert_eq!(open(&with_part.join()).is_ok(), is_right, "version {version}");
    }
    // An unknown id, a duplicate, and a tail without a byte.
    for bad in [&[3, 1, 0][..], &[parts, parts].concat(), &[2, 7, 1, 1, b'k', 2, b'v', b'w']] {
        let mut bad = Parts { meta: [&old.meta[..], bad].concat(), ..old.clone() };
        bad.head[8] = 4;
        assert!(matches!(open(&bad.join()), Err(Error::InFile { .. })));
    }
    for (tail, is_right) in [(0, false), (u64::MAX, false), (1, true)] {
        let mut parts = Parts::of(&pack(&file("{}", b"x"), &[]).0);
        parts.meta = vec![0, 10, 1, 1, b'm', 2, 2, b'{', b'}'];
        push_varint(&mut parts.meta, tail);
        // No table set; Zero, one group of one chunk, plain, constant of one byte.
        parts.meta.extend([0, 0, 1, 1, 0, 1, 1]);
        (parts.payloads, parts.tables, parts.head[8]) = (vec![b'x'], Vec::new(), 4);
        parts.checks = vec![0; 36];
        parts.mend(0, 1, 0..1);
        assert_eq!(open(&parts.join()).is_ok(), is_right, "a tail of {tail} bytes");
    }
}

/// Payloads by chunk: in this model every tensor with chunks has one.
fn chunks_of(container: &[u8]) -> Vec<Range<usize>> {
    let report = deltaloom::inspect(&open(container).unwrap());
    let mut at = 0;
    let coded = report
        .tensors
        .iter()
        .filter(|t| matches!(t.predictor, "zero" | "reference" | "companion") && t.original_bytes > 0);
    let ranges: Vec<_> = coded
        .map(|tensor| {
            let len = usize::try_from(tensor.packed_bytes).unwrap();
            at += len;
            at - len..at
        })
        .collect();
    assert_eq!(ranges.len() as u64, report.codecs.values().map(|share| share.count).sum::<u64>());
    ranges
}

fn change(rng: &mut Random, bytes: &mut Vec<u8>, may_resize: bool) {
    for _ in 0..=rng.below(3) {
        if bytes.is_empty() {
            return;
        }
        let at = usize::try_from(rng.below(bytes.len() as u64)).unwrap();
        let byte = rng.next().to_le_bytes()[0];
        match rng.below(if may_resize { 7 } else { 4 }) {
            0 => bytes[at] ^= 1 << (byte % 8),
            1 => bytes[at] = byte,
            2 => bytes[at] = bytes[at].wrapping_add(1),
            3 => bytes[at] = [0, 0x7f, 0x80, 0xff][usize::from(byte % 4)],
            4 => bytes.insert(at, byte),
            // A varint of up to ten bytes, for huge sizes and numbers.
            5 => drop(bytes.splice(at..=at, std::iter::repeat_n(0xff, usize::from(byte % 10)).chain([1]))),
            _ => drop(bytes.remove(at)),
        }
    }
}

/// Runs `count` changed containers through all readers. Names and headers have no digest, so they
/// may come out changed. Tensors may not.
fn attack(model: &Model, count: u64, mut hostile: impl FnMut(&mut Random, &mut Parts)) -> u64 {
    let bases = model.open_bases();
    let folder = tempfile::tempdir().unwrap();
    let original = Parts::of(&model.container);
    let mut survivors = 0;
    for seed in 0..count {
        let mut parts = original.clone();
        hostile(&mut Random::new(seed), &mut parts);
        if parts == original {
            continue;
        }
        let container = parts.join();
        let Ok(opened) = open(&container) else { continue };
        let _ = deltaloom::inspect(&opened);
        let _ = deltaloom::needs_base(&opened);
        let Ok(resolved) = ResolvedContainer::new(opened, &bases) else { continue };
        for tensor in &deltaloom::inspect(resolved.container()).tensors {
            // Parts of tensors have no digest of their own, so this may succeed.
            let _ = deltaloom::read_tensor(&resolved, &tensor.name, 0..1, &mut std::io::sink());
        }
        let report = deltaloom::verify(&Verifiable::Resolved(&resolved), 1, &Silent).unwrap();
        survivors += u64::from(report.ok);
        // Success waits for the disk, so only some of it is checked.
        if !report.ok || survivors % 16 == 1 {
            let unpacked = unpack_in(folder.path(), &container, &bases);
            assert_eq!(unpacked.is_ok(), report.ok, "seed {seed}");
            assert!(
                unpacked.is_err() || data_of(&unpacked.unwrap()) == data_of(&model.file),
                "seed {seed}: wrong bytes"
            );
        }
    }
    survivors
}

#[test]
fn hostile_payloads_with_right_checksums() {
    let model = model();
    let chunks = chunks_of(&model.container);
    let survivors = attack(&model, 5000, |rng, parts| {
        let i = usize::try_from(rng.below(chunks.len() as u64)).unwrap();
        let mut payload = parts.payloads[chunks[i].clone()].to_vec();
        change(rng, &mut payload, false);
        parts.payloads[chunks[i].clone()].copy_from_slice(&payload);
        parts.mend(i, chunks.len(), chunks[i].clone());
    });
    // Only a change that decodes to the same elements may go unnoticed.
    assert!(survivors < 100, "{survivors}");
}

#[test]
fn hostile_indexes_with_right_checksums() {
    for computed in &models()[1..] {
        attack(computed, 4000, |rng, parts| change(rng, &mut parts.meta, true));
        attack(computed, 500, |rng, parts| change(rng, &mut parts.checks, true));
    }
    let model = model();
    attack(&model, 10_000, |rng, parts| change(rng, &mut parts.meta, true));
    attack(&model, 4000, |rng, parts| change(rng, &mut parts.tables, true));
    attack(&model, 2000, |rng, parts| change(rng, &mut parts.checks, true));
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(0x80 | (value & 0x7f) as u8);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// A container of one safetensors file with this header. `tensors` describes its tensors.
fn claiming(header: &str, tensors: &[u8], checks: usize) -> Vec<u8> {
    let mut meta = vec![0, 10, 1, 1, b'm', 1];
    push_varint(&mut meta, header.len() as u64);
    meta.extend(header.as_bytes());
    meta.push(0);
    meta.extend(tensors);
    let head = [&b"\x89LOOM\r\n\x1a"[..], &[2, 0, 0, 0, 0, 0, 0, 0]].concat();
    Parts { head, payloads: Vec::new(), meta, tables: Vec::new(), checks: vec![0; checks] }.join()
}

#[test]
fn sizes_that_cannot_be_are_refused_without_allocating() {
    let one = |dtype: &str, shape: &str, end: u64| {
        format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    let (identical, stand_alone) = ([2, 0], [0, 1, 1, 0, 1, 1]);
    assert!(open(&claiming(&one("U8", "[4]", 4), &identical, 32)).is_ok(), "the recipe itself is right");
    let most = 1u64 << 60;
    for (header, tensors) in [
        (one("U8", "[1152921504606846976]", most), &stand_alone[..]),
        (one("F64", "[144115188075855872]", most), &stand_alone),
        (one("X", "[1]", u64::MAX), &identical),
        (one("X", "[1]", u64::MAX - 8), &identical),
        (one("U8", "[18446744073709551615]", u64::MAX), &identical),
    ] {
        let container = claiming(&header, tensors, 32);
        let fault = match open(&container) {
            // A claim without chunks can be refused only when a base is requested for it.
            Ok(opened) => {
                let _ = deltaloom::inspect(&opened);
                ResolvedContainer::new(opened, &bases(&[])).err().unwrap()
            }
            Err(fault) => fault,
        };
        assert!(!fault.to_string().is_empty());
    }
    // Two files whose total size overflows.
    let mut meta = vec![1, 10, 2];
    for name in [b'a', b'b'] {
        let header = one("X", "[1]", u64::MAX / 2 + 1);
        meta.extend([1, name, 1]);
        push_varint(&mut meta, header.len() as u64);
        meta.extend(header.as_bytes());
    }
    meta.extend([0, 2, 0, 2, 0]);
    let parts = Parts { meta, checks: vec![0; 64], ..Parts::of(&claiming("{}", &[], 0)) };
    assert!(open(&parts.join()).is_err());
}

#[test]
fn smallest_signed_numbers_are_out_of_range() {
    let header = r#"{"t":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}}"#;
    let table = [1, 0, 0, 0];
    let least_i32 = u64::from(u32::MAX);
    for (offset, base, is_right) in [
        (1, 1, true),
        (least_i32, 0, false),
        (u64::MAX, 0, false),
        (0, least_i32, false),
        (0, u64::MAX, false),
    ] {
        // Reference, own name, 1 changed, one group of one chunk, family 2, set 0, column scales,
        // codec raw.
        let mut tensors = vec![1, 0, 1, 1, 1, 2, 0, 2];
        push_varint(&mut tensors, offset);
        push_varint(&mut tensors, base);
        tensors.extend([0, 1, 0, 2, 8]);
        let mut parts = Parts::of(&claiming(header, &[], 64 + 4));
        *parts.meta.last_mut().unwrap() = 1;
        parts.meta.extend(&tensors);
        (parts.payloads, parts.tables) = (vec![0; 8], table.to_vec());
        parts.mend(0, 1, 0..8);
        assert_eq!(open(&parts.join()).is_ok(), is_right, "{offset} {base}");
    }
}

#[test]
fn only_the_right_base_will_do_and_nothing_is_decoded_before() {
    let model = model();
    let other = {
        let mut other = model.bases[0].clone();
        *other.last_mut().unwrap() ^= 1;
        other
    };
    for (what, against) in [
        ("no base", vec![]),
        ("the result instead of the base", vec![&model.file]),
        ("one bit of one tensor changed", vec![&other]),
    ] {
        let against: Vec<&[u8]> = against.into_iter().map(Vec::as_slice).collect();
        let watched = Watched::new(model.container.clone());
        let fault =
            ResolvedContainer::new(open_source(watched.clone()).unwrap(), &bases(&against)).err().unwrap();
        let Error::InFile { source, .. } = &fault else { panic!("{what}: {fault}") };
        assert!(matches!(**source, Error::BaseMismatch { .. }), "{what}: {fault}");
        assert_eq!(fault.kind(), deltaloom::ErrorKind::WrongBase);
        let index =
            watched.len_bytes() - deltaloom::inspect(&open(&model.container).unwrap()).index_bytes + 16;
        let payloads = 16..index;
        let reads = watched.take_reads();
        assert!(
            reads.iter().all(|read| read.end <= payloads.start || read.start >= payloads.end),
            "{what}: {reads:?}"
        );
    }
    // The container of the opposite direction.
    let (swapped, _) = pack(&model.bases[0], &[&model.file]);
    assert!(unpack(&swapped, &[&model.bases[0]]).is_err());
    assert!(unpack(&swapped, &[&model.file]).unwrap() == model.bases[0]);
    // Place and name of the base do not matter.
    assert!(unpack(&model.container, &[&other, &model.file, &model.bases[0]]).unwrap() == model.file);
}

/// Randomly damaged headers that still parse describe tensors that can be packed and restored.
#[test]
fn random_damage_to_a_header_is_refused_or_harmless() {
    let model = model();
    let header_bytes = model.file.len() - data_of(&model.file).len() - 8;
    let mut harmless = 0;
    for seed in 0..3000 {
        let mut rng = Random::new(seed);
        let mut header = model.file[8..8 + header_bytes].to_vec();
        change(&mut rng, &mut header, true);
        let damaged = [&(header.len() as u64).to_le_bytes(), &header[..], data_of(&model.file)].concat();
        if checkpoint(&damaged).is_ok() {
            harmless += 1;
            if harmless % 8 == 0 {
                roundtrip(&damaged, &[&model.bases[0]]);
            }
        }
    }
    assert!(harmless > 50, "{harmless}");
}

#[test]
fn members_that_would_escape_are_refused() {
    let file = |path: &str| {
        let mut meta = vec![1, 10, 1];
        push_varint(&mut meta, path.len() as u64);
        meta.extend(path.as_bytes());
        meta.extend([0, 0, 0, 0, 0]);
        Parts { meta, checks: vec![0; 32], ..Parts::of(&claiming("{}", &[], 0)) }.join()
    };
    assert!(open(&file("a/b")).is_ok());
    for path in ["../a", "a/../../b", "/a", "a//b", "", ".", "a\\b", "a\0", "C:a"] {
        let fault = open(&file(path)).err().unwrap();
        assert!(fault.to_string().contains("packed.loom"), "{path:?}: {fault}");
    }
}

/// Files that are not checkpoints, or that change while they are open.
#[test]
fn sources_that_end_early_are_errors() {
    struct Shrunk(Vec<u8>);
    impl ReadAt for Shrunk {
        fn len_bytes(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
            let keep = 16..self.0.len() / 2;
            if keep.contains(&usize::try_from(offset).unwrap()) {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            self.0.as_slice().read_at(offset, buffer)
        }
    }
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    let opened = open_source(Shrunk(model.container.clone())).unwrap();
    let resolved = ResolvedContainer::new(opened, &model.open_bases()).unwrap();
    let fault = deltaloom::unpack(&resolved, &folder.path().join("out"), &one_thread(), &Silent).unwrap_err();
    assert!(matches!(fault, Error::Io { .. }), "{fault}");
    assert!(tree(folder.path()).is_empty());
    let missing = Checkpoint::open(Path::new("no/such/file"), &Limits::default()).err().unwrap();
    assert!(matches!(missing, Error::Io { .. }));
}
