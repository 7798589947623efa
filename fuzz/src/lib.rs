//! What the fuzz targets share: golden bases, limits, a way to decode everything, and a writer of
//! containers whose checksums are right whatever their parts say.

pub mod assemble;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Bases, Container, Limits, ResolvedContainer};

/// Restoring more than this only costs time.
const MAX_ORIGINAL_BYTES: u64 = 4 << 20;

/// Limits under which a hostile container stays quick.
pub fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.index_bytes = 1 << 20;
    limits.chunks = 1 << 10;
    limits.tensors = 1 << 10;
    limits
}

fn golden() -> Vec<PathBuf> {
    let files = |folder: PathBuf| {
        fs::read_dir(folder).expect("golden files").map(|entry| entry.expect("entry").path())
    };
    let versions = files(Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/golden"));
    versions.filter(|path| path.is_dir()).flat_map(files).collect()
}

/// The bases of all golden containers, and their tensors by name with their digests.
pub struct GoldenBases {
    pub bases: Bases,
    digests: Vec<(String, String, Vec<u64>, [u8; 32])>,
}

/// Opened once.
pub fn golden_bases() -> &'static GoldenBases {
    static BASES: OnceLock<GoldenBases> = OnceLock::new();
    BASES.get_or_init(|| {
        let mut out = GoldenBases { bases: Bases::default(), digests: Vec::new() };
        let mut paths = golden();
        paths.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".base")));
        paths.sort();
        for path in paths {
            let checkpoint = Checkpoint::open(&path, &Limits::default()).expect("a golden base");
            for (member, info) in checkpoint.tensors() {
                let mut bytes = vec![0; usize::try_from(info.len_bytes()).expect("a small tensor")];
                checkpoint.read(member, info, 0, &mut bytes).expect("a readable tensor");
                let digest = *blake3::hash(&bytes).as_bytes();
                out.digests.push((info.name.clone(), info.dtype.to_string(), info.shape.clone(), digest));
            }
            out.bases.push_checkpoint(&path, checkpoint);
        }
        out
    })
}

impl GoldenBases {
    /// The digest of a tensor that fits.
    pub fn digest(&self, name: &str, dtype: &str, shape: &[u64]) -> Option<[u8; 32]> {
        let fits =
            |(n, d, s, _): &&(String, String, Vec<u64>, [u8; 32])| n == name && d == dtype && s == shape;
        self.digests.iter().find(fits).map(|(.., digest)| *digest)
    }
}

/// Opens a container, describes it, and decodes all that can be decoded; errors are fine.
pub fn decode_all(bytes: Vec<u8>, bases: &Bases) -> deltaloom::Result<()> {
    let container = Container::from_source(Path::new("fuzz"), Box::new(bytes), &limits())?;
    let report = deltaloom::inspect(&container);
    let resolved = ResolvedContainer::new(container, bases)?;
    if report.original_bytes > MAX_ORIGINAL_BYTES {
        return Ok(());
    }
    for tensor in &report.tensors {
        let mut out = Vec::new();
        // A duplicate name or a broken chunk is an error; the next tensor may still be whole.
        if deltaloom::read_tensor(&resolved, &tensor.name, .., &mut out).is_ok() {
            assert_eq!(out.len() as u64, tensor.original_bytes);
        }
    }
    Ok(())
}

/// Opens bytes as an archive; packs, restores and compares what is opened.
pub fn archive_roundtrip(bytes: &[u8]) {
    let Ok(checkpoint) = Checkpoint::from_bytes("a.pt", bytes.to_vec(), &limits()) else { return };
    let mut packed = Vec::new();
    let options = deltaloom::PackOptions::default().with_threads(1);
    deltaloom::pack_to(&checkpoint, &Bases::default(), &mut packed, &options, &deltaloom::Silent).expect("packed");
    let container = Container::from_source(Path::new("fuzz"), Box::new(packed), &Limits::default()).expect("a container");
    let resolved = ResolvedContainer::new(container, &Bases::default()).expect("nothing is needed");
    let (mut restored, options) = (Vec::new(), deltaloom::UnpackOptions::default().with_threads(1));
    deltaloom::unpack_to(&resolved, &mut restored, &options, &deltaloom::Silent).expect("restored");
    assert!(restored == bytes, "other bytes were restored");
}
