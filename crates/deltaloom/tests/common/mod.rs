//! Small checkpoints that the test generates, packed and unpacked in memory.
#![allow(dead_code)] // Every test file uses a part of it.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use deltaloom::checkpoint::{Checkpoint, ReadAt};
use deltaloom::{
    Bases, Container, Limits, PackOptions, PackReport, ResolvedContainer, Result, Silent, UnpackOptions,
};

/// A xorshift generator: the same numbers on every machine.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64).try_into().unwrap()
    }

    /// A number from -`span` to `span`.
    pub(crate) fn around_zero(&mut self, span: u64) -> i64 {
        self.below(2 * span + 1).cast_signed() - span.cast_signed()
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes());
        words.take(count).collect()
    }

    /// Approximately normal, of variance 1.
    pub(crate) fn normal(&mut self) -> f32 {
        let twelve: f32 =
            (0..12).map(|_| f32::from(u16::try_from(self.next() >> 48).unwrap()) / 65536.0).sum();
        twelve - 6.0
    }

    /// Weights as in trained layers.
    pub(crate) fn weights(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| 0.02 * self.normal()).collect()
    }
}

/// First and second moments of a matrix as Adam keeps them. The second is almost a product of row
/// and column, and the first is as large as its root.
pub(crate) fn moments(rng: &mut Random, rows: usize, cols: usize) -> (Vec<f32>, Vec<f32>) {
    let mut factors =
        |count: usize| -> Vec<f32> { (0..count).map(|_| (3.0 * rng.normal()).exp2()).collect() };
    let (of_rows, of_cols) = (factors(rows), factors(cols));
    let size = |i: usize| 1e-8 * of_rows[i / cols] * of_cols[i % cols];
    let second: Vec<f32> = (0..rows * cols).map(|i| size(i) * (0.5 * rng.normal()).exp2()).collect();
    let first = second.iter().map(|v| v.sqrt() * rng.normal()).collect();
    (first, second)
}

/// Rounded to BF16 or F16, or else as they are.
pub(crate) fn bytes_of(dtype: &str, values: &[f32]) -> Vec<u8> {
    match dtype {
        "BF16" => bf16_bytes(values),
        "F16" => f16_bytes(values),
        _ => f32_bytes(values),
    }
}

pub(crate) fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(crate) fn bf16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect()
}

pub(crate) fn f16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect()
}

/// Adds `step(i)` to the bits of element i; elements are `size` bytes wide.
pub(crate) fn stepped(bytes: &[u8], size: usize, mut step: impl FnMut(usize) -> i64) -> Vec<u8> {
    let moved = |(i, element): (usize, &[u8])| {
        let mut word = [0; 8];
        word[..size].copy_from_slice(element);
        u64::from_le_bytes(word).wrapping_add_signed(step(i)).to_le_bytes()[..size].to_vec()
    };
    bytes.chunks_exact(size).enumerate().flat_map(moved).collect()
}

/// A tensor of a file to create.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn tensor(name: &str, dtype: &str, shape: &[u64], bytes: Vec<u8>) -> Tensor {
    Tensor { name: name.to_owned(), dtype: dtype.to_owned(), shape: shape.to_vec(), bytes }
}

/// A safetensors file with these tensors in order.
pub(crate) fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut data) = (BTreeMap::new(), Vec::new());
    for tensor in tensors {
        let begin = data.len();
        data.extend_from_slice(&tensor.bytes);
        // In this order whether maps of JSON are sorted or keep it.
        let entry = serde_json::json!({"data_offsets": [begin, data.len()], "dtype": tensor.dtype, "shape": tensor.shape});
        assert!(header.insert(tensor.name.clone(), entry).is_none(), "{:?} twice", tensor.name);
    }
    file(&serde_json::to_string(&header).unwrap(), &data)
}

/// A safetensors file with any header.
pub(crate) fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// The bytes behind the header of a safetensors file.
pub(crate) fn data_of(file: &[u8]) -> &[u8] {
    let header = u64::from_le_bytes(file[..8].try_into().unwrap());
    &file[8 + usize::try_from(header).unwrap()..]
}

/// Opens a file in memory.
pub(crate) fn checkpoint(bytes: &[u8]) -> Result<Checkpoint> {
    Checkpoint::from_bytes("model.safetensors", bytes.to_vec(), &Limits::default())
}

pub(crate) fn bases(files: &[&[u8]]) -> Bases {
    let mut bases = Bases::default();
    for (i, bytes) in files.iter().enumerate() {
        bases.push_checkpoint(Path::new(&format!("base-{i}")), checkpoint(bytes).unwrap());
    }
    bases
}

/// Small chunks, so that small tensors have many. One thread, since tests run in parallel anyway.
pub(crate) fn options() -> PackOptions {
    PackOptions::default().with_threads(1).with_chunk_log2(10)
}

pub(crate) fn one_thread() -> UnpackOptions {
    UnpackOptions::default().with_threads(1)
}

pub(crate) fn pack_with(file: &[u8], against: &[&[u8]], options: &PackOptions) -> (Vec<u8>, PackReport) {
    let mut out = Vec::new();
    let report = deltaloom::pack_to(&checkpoint(file).unwrap(), &bases(against), &mut out, options, &Silent);
    (out, report.unwrap())
}

pub(crate) fn pack(file: &[u8], against: &[&[u8]]) -> (Vec<u8>, PackReport) {
    pack_with(file, against, &options())
}

pub(crate) fn open(container: &[u8]) -> Result<Container> {
    open_source(container.to_vec())
}

pub(crate) fn open_source(source: impl ReadAt + 'static) -> Result<Container> {
    Container::from_source(Path::new("packed.loom"), Box::new(source), &Limits::default())
}

pub(crate) fn resolve(container: &[u8], bases: &Bases) -> Result<ResolvedContainer> {
    ResolvedContainer::new(open(container)?, bases)
}

pub(crate) fn unpack(container: &[u8], against: &[&[u8]]) -> Result<Vec<u8>> {
    unpack_with(container, &bases(against))
}

pub(crate) fn unpack_with(container: &[u8], bases: &Bases) -> Result<Vec<u8>> {
    unpack_in(tempfile::tempdir().unwrap().path(), container, bases)
}

/// Unpacks a single file in an empty folder. If that fails, checks that nothing was left behind.
pub(crate) fn unpack_in(folder: &Path, container: &[u8], bases: &Bases) -> Result<Vec<u8>> {
    let resolved = resolve(container, bases)?;
    let target = folder.join("out");
    match deltaloom::unpack(&resolved, &target, &one_thread(), &Silent) {
        Ok(_) => {
            let restored = std::fs::read(&target).unwrap();
            std::fs::remove_file(&target).unwrap();
            Ok(restored)
        }
        Err(e) => {
            assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0, "left behind after: {e}");
            Err(e)
        }
    }
}

/// Packs, opens, unpacks and compares. Also checks that the index agrees with the report of
/// packing. Returns container and report.
#[track_caller]
pub(crate) fn roundtrip_with(file: &[u8], against: &[&[u8]], options: &PackOptions) -> (Vec<u8>, PackReport) {
    let (container, mut report) = pack_with(file, against, options);
    assert_eq!(report.packed_bytes, container.len() as u64);
    (report.seconds, report.threads) = (None, None);
    assert_eq!(deltaloom::inspect(&open(&container).unwrap()), report);
    let restored = unpack(&container, against).unwrap();
    assert!(restored == file, "the unpacked file differs");
    (container, report)
}

#[track_caller]
pub(crate) fn roundtrip(file: &[u8], against: &[&[u8]]) -> PackReport {
    roundtrip_with(file, against, &options()).1
}

/// Predictors of the tensors by name.
pub(crate) fn predictors(report: &PackReport) -> BTreeMap<&str, &'static str> {
    report.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.predictor)).collect()
}

/// All files below a folder, by relative path.
pub(crate) fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.strip_prefix(folder).unwrap().to_path_buf(), std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

pub(crate) fn write_tree(folder: &Path, files: &[(&str, Vec<u8>)]) {
    for (name, bytes) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// Memory that records all reads.
#[derive(Clone)]
pub(crate) struct Watched {
    bytes: Arc<Vec<u8>>,
    reads: Arc<Mutex<Vec<Range<u64>>>>,
}

impl Watched {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: Arc::new(bytes), reads: Arc::default() }
    }

    /// The ranges that were read since the last call.
    pub(crate) fn take_reads(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut *self.reads.lock().unwrap())
    }
}

impl ReadAt for Watched {
    fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.reads.lock().unwrap().push(offset..offset + buffer.len() as u64);
        self.bytes.as_slice().read_at(offset, buffer)
    }
}

/// Reads odd parts of every tensor, which must agree with the whole.
pub(crate) fn assert_parts(container: &[u8], base: &[u8], tuned: &[u8]) {
    let resolved = resolve(container, &bases(&[base])).unwrap();
    let mut at = 0;
    for number in 0..resolved.tensors().len() {
        let len = usize::try_from(resolved.info(number).len_bytes()).unwrap();
        let whole = &data_of(tuned)[at..at + len];
        for (start, end) in [(0, len.min(3)), (len / 3, len / 2), (len.saturating_sub(700), len)] {
            let mut part = vec![0; end - start];
            resolved.read_part_into(number, start as u64, &mut part).unwrap();
            assert!(part == whole[start..end], "tensor {number}, bytes {start}..{end}");
        }
        at += len;
    }
}

/// Numbers of BF16, widened.
pub(crate) fn singles_of(bf16: &[u8]) -> Vec<f32> {
    bf16.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
}

/// A tensor of these numbers, rounded to BF16.
pub(crate) fn bf16(name: &str, shape: &[u64], numbers: &[f32]) -> Tensor {
    let bytes = numbers.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes());
    tensor(name, "BF16", shape, bytes.collect())
}

/// Packs with small and large chunks, restores, reads parts, and returns the report.
pub(crate) fn packed_in_chunks(tuned: &[Tensor], base: &[Tensor]) -> PackReport {
    let (tuned, base) = (safetensors(tuned), safetensors(base));
    for chunk_log2 in [10, 17] {
        let (container, report) = pack_with(&tuned, &[&base], &options().with_chunk_log2(chunk_log2));
        assert!(unpack(&container, &[&base]).unwrap() == tuned);
        assert_parts(&container, &base, &tuned);
        if chunk_log2 == 17 {
            return report;
        }
    }
    unreachable!("the last size of chunks returns")
}
