//! Sizes of a fine-tune in every form that could store it: our container, XOR with zstd, and sparse
//! forms for computing. Sizes are per tensor, in total, and for many tenants of one base.
//!
//! It keeps each form in memory only while it measures it; times are in [`super::timing`].

use std::collections::BTreeMap;
use std::io::{self, Write};

use deltaloom_kernels::ulp;
use rayon::prelude::*;
use serde::Serialize;

use deltaloom::__internals::{check_cancelled, frame, ratio};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::TensorInfo;
use deltaloom::{Container, Error, PartBytes, Progress, Result, inspect};

/// zstd level with which XOR deltas are published.
pub const XOR_ZSTD_LEVEL: i32 = 10;
/// Bytes for each nonzero byte: a position and a value.
const NAIVE_BYTES: u64 = 5;
/// Bytes of a row pointer of CSR.
const POINTER_BYTES: u64 = 4;

/// Size of a tensor's difference from its base in each form. For a tensor without a difference, the
/// sparse forms are empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct FormBytes {
    /// XOR with the base, uncompressed.
    pub xor: u64,
    /// XOR and zstd 10, one frame per tensor.
    pub xor_zstd: u64,
    /// 5 bytes for each nonzero byte of the XOR.
    pub sparse_bytes: u64,
    /// Row and column in 32 bits each, and the element: 12 bytes in FP32.
    pub coo_32: u64,
    /// Row and column in 64 bits each, and the element: 20 bytes in FP32.
    pub coo_64: u64,
    /// A bit for each element, and the changed elements.
    pub bitmap: u64,
    /// Row pointers of 32 bits, columns of 16 bits if that is enough (else 32), and elements.
    pub csr: u64,
    /// Payloads in our container, without tables and index.
    pub packed: u64,
}

impl FormBytes {
    fn plus(self, other: Self) -> Self {
        Self {
            xor: self.xor + other.xor,
            xor_zstd: self.xor_zstd + other.xor_zstd,
            sparse_bytes: self.sparse_bytes + other.sparse_bytes,
            coo_32: self.coo_32 + other.coo_32,
            coo_64: self.coo_64 + other.coo_64,
            bitmap: self.bitmap + other.bitmap,
            csr: self.csr + other.csr,
            packed: self.packed + other.packed,
        }
    }
}

/// How much of a tensor changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Sparsity {
    /// Number of elements.
    pub elems: u64,
    /// Elements whose bits differ from the base.
    pub changed_elems: u64,
    /// Nonzero bytes of the XOR.
    pub nonzero_bytes: u64,
    /// Their fraction of all bytes.
    pub byte_density: f64,
}

/// Statistics of a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorStatistics {
    /// Name.
    pub name: String,
    /// Safetensors dtype.
    pub dtype: String,
    /// Sizes of the dimensions.
    pub shape: Vec<u64>,
    /// Size of the original.
    pub original_bytes: u64,
    /// How much changed.
    pub sparsity: Sparsity,
    /// Size of the change in each form.
    pub bytes: FormBytes,
    /// Codec of its payloads.
    pub codec: &'static str,
    /// Original bytes over packed bytes.
    pub ratio: f64,
}

/// Statistics of a fine-tune with its base and its container.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerStatistics {
    /// The tensors, in the order of the container.
    pub tensors: Vec<TensorStatistics>,
    /// Size of all tensors.
    pub original_bytes: u64,
    /// Total over all tensors.
    pub sparsity: Sparsity,
    /// Sums over the tensors.
    pub bytes: FormBytes,
    /// XOR and zstd 10 of all tensors one after another, in one frame.
    pub xor_zstd_joined_bytes: u64,
    /// The whole container.
    pub container_bytes: u64,
    /// Sizes of its parts.
    pub parts: PartBytes,
    /// Original bytes over container bytes.
    pub ratio: f64,
}

/// Memory for a base and a number of its fine-tunes, by the form that stores their differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TenantBytes {
    /// Number of fine-tunes.
    pub tenants: u64,
    /// Each as a dense copy, without a base.
    pub dense: u64,
    /// With differences in each form; `packed` counts whole containers.
    pub with_base: FormBytes,
}

impl LayerStatistics {
    /// Computes the memory for `tenants` fine-tunes like this one.
    #[must_use]
    pub fn for_tenants(&self, tenants: u64) -> TenantBytes {
        let with_base = |each: u64| self.original_bytes.saturating_add(each.saturating_mul(tenants));
        let bytes = self.bytes;
        TenantBytes {
            tenants,
            dense: self.original_bytes.saturating_mul(tenants),
            with_base: FormBytes {
                xor: with_base(bytes.xor),
                xor_zstd: with_base(bytes.xor_zstd),
                sparse_bytes: with_base(bytes.sparse_bytes),
                coo_32: with_base(bytes.coo_32),
                coo_64: with_base(bytes.coo_64),
                bitmap: with_base(bytes.bitmap),
                csr: with_base(bytes.csr),
                packed: with_base(self.container_bytes),
            },
        }
    }
}

/// Measures `tuned` against `base`, which has tensors of the same names, and `container`, into
/// which `tuned` was packed.
///
/// # Errors
/// [`Error::InvalidArgument`] if a tensor is not in the base with the same dtype and shape, or not
/// in the container; errors of reading; [`Error::Cancelled`].
pub fn measure(
    base: &Checkpoint,
    tuned: &Checkpoint,
    container: &Container,
    progress: &dyn Progress,
) -> Result<LayerStatistics> {
    let pairs = pairs(base, tuned)?;
    let report = inspect(container);
    let packed: BTreeMap<&str, _> =
        report.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let original_bytes = pairs.iter().map(|pair| pair.tuned.1.len_bytes()).sum();
    // Once separately, once joined.
    progress.start(2 * original_bytes);
    let of_pair = |pair: &Pair<'_>| {
        let info = pair.tuned.1;
        check_cancelled(progress)?;
        let stored = packed.get(info.name.as_str()).filter(|stored| stored.shape == info.shape);
        let stored = stored.ok_or_else(|| no_match(&info.name, "container"))?;
        let (sparsity, bytes) = sizes(info, &pair.xor(base, tuned)?)?;
        progress.advance(info.len_bytes());
        Ok(TensorStatistics {
            name: info.name.clone(),
            dtype: info.dtype.to_string(),
            shape: info.shape.clone(),
            original_bytes: info.len_bytes(),
            sparsity,
            bytes: FormBytes { packed: stored.packed_bytes, ..bytes },
            codec: stored.codec,
            ratio: ratio(info.len_bytes(), stored.packed_bytes),
        })
    };
    let tensors: Vec<TensorStatistics> = pairs.par_iter().map(of_pair).collect::<Result<_>>()?;
    let sum = |field: fn(&Sparsity) -> u64| tensors.iter().map(|tensor| field(&tensor.sparsity)).sum::<u64>();
    let nonzero_bytes = sum(|sparsity| sparsity.nonzero_bytes);
    let container_bytes = container.len_bytes();
    Ok(LayerStatistics {
        original_bytes,
        sparsity: Sparsity {
            elems: sum(|sparsity| sparsity.elems),
            changed_elems: sum(|sparsity| sparsity.changed_elems),
            nonzero_bytes,
            byte_density: share(nonzero_bytes, original_bytes),
        },
        bytes: tensors.iter().fold(FormBytes::default(), |sum, tensor| sum.plus(tensor.bytes)),
        xor_zstd_joined_bytes: joined_bytes(base, tuned, &pairs, original_bytes, progress)?,
        container_bytes,
        parts: container.part_bytes(),
        ratio: ratio(original_bytes, container_bytes),
        tensors,
    })
}

/// A tensor of both checkpoints, with its member in each.
pub(super) struct Pair<'a> {
    base: (usize, &'a TensorInfo),
    pub(super) tuned: (usize, &'a TensorInfo),
}

/// Pairs the tensors of `tuned` with those of the same name in `base`.
pub(super) fn pairs<'a>(base: &'a Checkpoint, tuned: &'a Checkpoint) -> Result<Vec<Pair<'a>>> {
    let by_name: BTreeMap<&str, (usize, &TensorInfo)> =
        base.tensors().map(|tensor| (tensor.1.name.as_str(), tensor)).collect();
    let pair = |tuned: (usize, &'a TensorInfo)| {
        let name = tuned.1.name.as_str();
        let like = by_name.get(name).filter(|(_, info)| info.same_type(tuned.1));
        let base = *like.ok_or_else(|| no_match(name, "base"))?;
        Ok(Pair { base, tuned })
    };
    tuned.tensors().map(pair).collect()
}

fn no_match(name: &str, place: &str) -> Error {
    Error::InvalidArgument(format!("tensor {name:?} is not in the {place} with the same dtype and shape"))
}

impl Pair<'_> {
    /// Reads all bytes of the base's tensor.
    pub(super) fn base_bytes(&self, base: &Checkpoint) -> Result<Vec<u8>> {
        base.read_tensor(self.base.0, self.base.1)
    }

    /// Computes the XOR of both tensors.
    pub(super) fn xor(&self, base: &Checkpoint, tuned: &Checkpoint) -> Result<Vec<u8>> {
        let mut bytes = self.base_bytes(base)?;
        let other = tuned.read_tensor(self.tuned.0, self.tuned.1)?;
        bytes.iter_mut().zip(&other).for_each(|(byte, other)| *byte ^= other);
        Ok(bytes)
    }
}

/// Computes everything but the sizes in our container.
fn sizes(info: &TensorInfo, xor: &[u8]) -> Result<(Sparsity, FormBytes)> {
    let number = info.number();
    let size = number.bytes() as u64;
    let (len, elems) = (xor.len() as u64, xor.len() as u64 / size);
    let nonzero_bytes = xor.iter().filter(|byte| **byte != 0).count() as u64;
    let changed = ulp::count_changed(number, xor, &vec![0; xor.len()]);
    let sparsity =
        Sparsity { elems, changed_elems: changed, nonzero_bytes, byte_density: share(nonzero_bytes, len) };
    let xor_zstd = frame::compress(xor, XOR_ZSTD_LEVEL).map_err(Error::io(""))?.len() as u64;
    let whole = FormBytes { xor: len, xor_zstd, ..FormBytes::default() };
    if changed == 0 {
        return Ok((sparsity, whole));
    }
    // A vector is one row.
    let cols = info.shape.last().copied().unwrap_or(1).max(1);
    let rows = elems.div_ceil(cols);
    let column_bytes = if cols <= 1 << 16 { 2 } else { 4 };
    let bytes = FormBytes {
        sparse_bytes: NAIVE_BYTES * nonzero_bytes,
        coo_32: changed * (8 + size),
        coo_64: changed * (16 + size),
        bitmap: elems.div_ceil(8) + changed * size,
        csr: (rows + 1) * POINTER_BYTES + changed * (column_bytes + size),
        ..whole
    };
    Ok((sparsity, bytes))
}

fn share(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { ratio(part, of) }
}

/// Counts the bytes written to it.
struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn joined_bytes(
    base: &Checkpoint,
    tuned: &Checkpoint,
    pairs: &[Pair<'_>],
    len_bytes: u64,
    progress: &dyn Progress,
) -> Result<u64> {
    let mut encoder = zstd::Encoder::new(Counter(0), XOR_ZSTD_LEVEL).map_err(Error::io(""))?;
    encoder.set_pledged_src_size(Some(len_bytes)).map_err(Error::io(""))?;
    for pair in pairs {
        check_cancelled(progress)?;
        encoder.write_all(&pair.xor(base, tuned)?).map_err(Error::io(""))?;
        progress.advance(pair.tuned.1.len_bytes());
    }
    Ok(encoder.finish().map_err(Error::io(""))?.0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::reference::ReferenceCase;
    use deltaloom::{Bases, Limits, PackOptions, Silent, pack_to};

    fn reference() -> (Checkpoint, Checkpoint, Container) {
        let case = ReferenceCase::default();
        let layer = case.base();
        let (base, tuned) =
            (layer.to_checkpoint().unwrap(), case.tuned(&layer, 0).unwrap().to_checkpoint().unwrap());
        let mut bases = Bases::default();
        bases.push_checkpoint(Path::new("base"), base.clone());
        let mut packed = Vec::new();
        let options = PackOptions::default().with_threads(1);
        pack_to(&tuned, &bases, &mut packed, &options, &Silent).unwrap();
        let container =
            Container::from_source(Path::new("packed"), Box::new(packed), &Limits::default()).unwrap();
        (base, tuned, container)
    }

    #[test]
    fn the_reference_layer_has_the_sizes_that_follow_from_994_changes() {
        let (base, tuned, container) = reference();
        let found = measure(&base, &tuned, &container, &Silent).unwrap();
        assert_eq!(
            (found.original_bytes, found.sparsity.elems, found.sparsity.changed_elems),
            (133_888, 33_472, 994)
        );
        assert_eq!((found.bytes.xor, found.bytes.coo_32, found.bytes.coo_64), (133_888, 994 * 12, 994 * 20));
        // Every size is a multiple of 8 elements. Rows: 9 vectors, 192, 64, 128 and 64.
        assert_eq!(found.bytes.bitmap, 33_472 / 8 + 994 * 4);
        assert_eq!(found.bytes.csr, (8 * 2 + 193 + 65 + 129 + 65) * 4 + 994 * 6);
        assert_eq!(found.bytes.sparse_bytes, 5 * found.sparsity.nonzero_bytes);
        assert!((2 * 994..=4 * 994).contains(&found.sparsity.nonzero_bytes));
        assert!(
            found.bytes.packed < found.xor_zstd_joined_bytes && found.container_bytes < found.bytes.xor_zstd
        );
        let parts = found.parts;
        let of_parts = [parts.meta_bytes, parts.tables_bytes, parts.checks_bytes, parts.frame_bytes];
        assert_eq!(found.bytes.packed, parts.payload_bytes);
        assert_eq!(of_parts.iter().sum::<u64>() + parts.payload_bytes, found.container_bytes);
        let tenants = found.for_tenants(16);
        assert_eq!(tenants.dense, 16 * 133_888);
        assert_eq!(tenants.with_base.coo_32, 133_888 + 16 * 994 * 12);
        assert_eq!(tenants.with_base.packed, 133_888 + 16 * found.container_bytes);
        assert!(serde_json::to_value(&found).unwrap()["tensors"][0]["bytes"]["xor_zstd"].is_u64());
    }

    #[test]
    fn an_unchanged_tensor_takes_nothing_and_a_strange_base_is_refused() {
        let (base, tuned, container) = reference();
        let none = measure(&tuned, &tuned, &container, &Silent).unwrap();
        let bytes = none.bytes;
        assert_eq!(
            (bytes.sparse_bytes, bytes.coo_32, bytes.coo_64, bytes.bitmap, bytes.csr),
            (0, 0, 0, 0, 0)
        );
        assert_eq!(bytes.xor, 133_888);
        assert!((12 * 9..12 * 30).contains(&bytes.xor_zstd), "a frame of zeros for each: {}", bytes.xor_zstd);
        assert_eq!((none.sparsity.changed_elems, none.sparsity.byte_density.to_bits()), (0, 0));
        let mut layer = ReferenceCase::default().base();
        layer.parameters.pop();
        let smaller = layer.to_checkpoint().unwrap();
        assert!(matches!(measure(&smaller, &tuned, &container, &Silent), Err(Error::InvalidArgument(_))));
        assert!(measure(&base, &smaller, &container, &Silent).is_ok());
    }
}
