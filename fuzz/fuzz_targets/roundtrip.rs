//! Packs any bytes as a tensor, or as a pair of them, of any dtype and shape. The result is
//! restored and compared, and must stay within the size bound.
//!
//! Input: dtype, columns, flags (1: the second half is the base; 2, 4: preset; 8: several tensors),
//! chunk size; data.

#![no_main]

use std::path::Path;

use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Bases, Container, Limits, PackOptions, Preset, ResolvedContainer, Silent};

const DTYPES: [(&str, usize); 17] = [
    ("BOOL", 1),
    ("U8", 1),
    ("U16", 2),
    ("U32", 4),
    ("U64", 8),
    ("I8", 1),
    ("I16", 2),
    ("I32", 4),
    ("I64", 8),
    ("F8_E4M3", 1),
    ("F8_E5M2", 1),
    ("F16", 2),
    ("BF16", 2),
    ("F32", 4),
    ("F64", 8),
    ("C64", 8),
    ("UNKNOWN", 1),
];

/// A safetensors file of whole rows of `data`; the second tensor, if any, gets the last half of the
/// rows.
fn file(dtype: (&str, usize), cols: usize, tensors: usize, data: &[u8]) -> Vec<u8> {
    let row_bytes = cols * dtype.1;
    let rows = data.len() / row_bytes;
    let mut entries = Vec::new();
    let mut begin = 0;
    for i in 0..tensors {
        let rows = if i + 1 == tensors { rows - i * (rows / 2) } else { rows / 2 };
        let end = begin + rows * row_bytes;
        let dtype = dtype.0;
        entries.push(format!(
            r#""t{i}":{{"dtype":"{dtype}","shape":[{rows},{cols}],"data_offsets":[{begin},{end}]}}"#
        ));
        begin = end;
    }
    let header = format!("{{{}}}", entries.join(","));
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(&data[..begin]);
    out
}

fn open(bytes: &[u8]) -> Checkpoint {
    Checkpoint::from_bytes("x", bytes.to_vec(), &Limits::default()).expect("a sound file")
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [dtype, cols, flags, chunk_log2, data @ ..] = bytes else { return };
    let dtype = DTYPES[usize::from(*dtype) % DTYPES.len()];
    let cols = usize::from(*cols).max(1);
    let tensors = if flags & 8 == 0 { 1 } else { 2 };
    let (tuned, base) = data.split_at(if flags & 1 == 0 { data.len() } else { data.len() / 2 });
    let tuned = file(dtype, cols, tensors, tuned);
    let mut bases = Bases::default();
    if flags & 1 != 0 {
        bases.push_checkpoint(Path::new("base"), open(&file(dtype, cols, tensors, base)));
    }
    let options = PackOptions::default()
        .with_preset([Preset::Default, Preset::Fast, Preset::Max][usize::from(flags >> 1 & 3) % 3])
        .with_chunk_log2(10 + chunk_log2 % 11)
        .with_threads(1);
    let checkpoint = open(&tuned);
    let mut packed = Vec::new();
    let report = deltaloom::pack_to(&checkpoint, &bases, &mut packed, &options, &Silent)
        .expect("a sound pair is packed");
    let chunks: u64 = report.codecs.values().map(|share| share.count).sum();
    let bound =
        tuned.len() as u64 + 1024 + 256 * (1 + tensors as u64) + 16 * chunks + tuned.len() as u64 / 128;
    assert!(packed.len() as u64 <= bound, "{} bytes of {}", packed.len(), tuned.len());
    let container = Container::from_source(Path::new("packed"), Box::new(packed), &Limits::default());
    let resolved = ResolvedContainer::new(container.expect("a sound container"), &bases).expect("its bases");
    let folder = tempfile::tempdir().expect("a folder");
    let restored = folder.path().join("x");
    let options = deltaloom::UnpackOptions::default().with_threads(1);
    deltaloom::unpack(&resolved, &restored, &options, &Silent).expect("a sound container is restored");
    assert!(std::fs::read(&restored).expect("the restored file") == tuned);
});
