//! A checkpoint of tensors in separate buffers has the bytes of the file that safetensors writes.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use common::*;
use deltaloom::checkpoint::{Checkpoint, NewTensor};
use deltaloom::tensor::DType;
use deltaloom::{Error, Limits, PackOptions, Silent};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const DTYPES: [Dtype; 20] = [
    Dtype::BOOL,
    Dtype::F4,
    Dtype::F6_E2M3,
    Dtype::F6_E3M2,
    Dtype::U8,
    Dtype::I8,
    Dtype::F8_E5M2,
    Dtype::F8_E4M3,
    Dtype::F8_E8M0,
    Dtype::I16,
    Dtype::U16,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I32,
    Dtype::U32,
    Dtype::F32,
    Dtype::C64,
    Dtype::F64,
    Dtype::I64,
    Dtype::U64,
];

fn new(name: &str, dtype: &str, shape: &[u64], bytes: Vec<u8>) -> NewTensor {
    NewTensor {
        name: name.to_owned(),
        dtype: DType::from_name(dtype),
        shape: shape.to_vec(),
        source: Arc::new(bytes),
    }
}

fn checkpoint_of(tensors: Vec<NewTensor>, metadata: &[(&str, &str)]) -> deltaloom::Result<Checkpoint> {
    let metadata = metadata.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    Checkpoint::from_tensors("model.safetensors", tensors, &metadata, &Limits::default())
}

/// The file that a checkpoint is packed as and restored to.
fn restored(checkpoint: &Checkpoint, against: &[&[u8]]) -> Vec<u8> {
    let mut container = Vec::new();
    deltaloom::pack_to(checkpoint, &bases(against), &mut container, &PackOptions::default(), &Silent)
        .unwrap();
    unpack(&container, against).unwrap()
}

#[test]
fn the_file_is_the_one_of_safetensors() {
    let mut rng = Random::new(3);
    let mut parts = Vec::new();
    for dtype in DTYPES {
        let dtype_name = serde_json::to_value(dtype).unwrap().as_str().unwrap().to_owned();
        for (kind, shape) in
            [("z\"\u{e9}\n", vec![]), ("a", vec![0, 7]), ("b/c", vec![3, 8]), ("B", vec![2, 2, 4])]
        {
            let bits = shape.iter().product::<usize>() * dtype.bitsize();
            if bits % 8 == 0 {
                parts.push((
                    format!("{kind}{dtype_name}"),
                    dtype,
                    dtype_name.clone(),
                    shape,
                    rng.bytes(bits / 8),
                ));
            }
        }
    }
    let views = parts.iter().map(|(name, dtype, _, shape, bytes)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let metadata: HashMap<_, _> = [("format".to_owned(), "pt".to_owned())].into();
    let theirs = safetensors::serialize(views, Some(metadata)).unwrap();
    let tensors = parts.iter().map(|(name, _, dtype, shape, bytes)| {
        let shape: Vec<u64> = shape.iter().map(|d| *d as u64).collect();
        new(name, dtype, &shape, bytes.clone())
    });
    let ours = checkpoint_of(tensors.collect(), &[("format", "pt")]).unwrap();
    assert_eq!(ours.len_bytes(), theirs.len() as u64);
    assert!(restored(&ours, &[]) == theirs);
    // As its own base, everything is identical.
    assert!(restored(&ours, &[&theirs]) == theirs);
    let nothing = safetensors::serialize(Vec::<(String, TensorView<'_>)>::new(), None).unwrap();
    assert!(restored(&checkpoint_of(Vec::new(), &[]).unwrap(), &[]) == nothing);
}

#[test]
fn tensors_stay_where_they_are() {
    let bytes = Random::new(4).bytes(4000);
    let shared: Arc<Vec<u8>> = Arc::new(bytes.clone());
    let one = NewTensor { source: Arc::clone(&shared) as _, ..new("w", "BF16", &[20, 100], Vec::new()) };
    let checkpoint = checkpoint_of(vec![one, new("b", "F32", &[2], vec![7; 8])], &[]).unwrap();
    let (member, info) = checkpoint.tensors().find(|(_, info)| info.name == "w").unwrap();
    assert!(std::ptr::eq(checkpoint.in_memory(member, info).unwrap().as_ptr(), shared.as_ptr()));
    let held = checkpoint.clone().into_memory().unwrap();
    assert!(std::ptr::eq(held.in_memory(member, info).unwrap().as_ptr(), shared.as_ptr()), "copied");
    let mut read = vec![0; 3000];
    checkpoint.read(member, info, 500, &mut read).unwrap();
    assert!(read == bytes[500..3500]);
}

/// A source that cannot lend its bytes is read.
#[test]
fn sources_may_be_read_only_by_copies() {
    let bytes = Random::new(5).bytes(4000);
    let watched = || NewTensor {
        source: Arc::new(Watched::new(bytes.clone())),
        ..new("w", "BF16", &[20, 100], vec![])
    };
    let tensors = || vec![watched(), new("b", "F32", &[2], vec![7; 8])];
    let plain = vec![new("w", "BF16", &[20, 100], bytes.clone()), new("b", "F32", &[2], vec![7; 8])];
    let plain = restored(&checkpoint_of(plain, &[]).unwrap(), &[]);
    assert!(restored(&checkpoint_of(tensors(), &[]).unwrap(), &[]) == plain);
    let held = checkpoint_of(tensors(), &[]).unwrap().into_memory().unwrap();
    assert!(held.tensors().all(|(member, info)| held.in_memory(member, info).is_some()));
}

#[test]
fn what_safetensors_cannot_hold_is_refused() {
    let fault = |tensors| match checkpoint_of(tensors, &[]) {
        Err(Error::InvalidArgument(fault)) => fault,
        other => panic!("{:?}", other.err()),
    };
    let good = || new("w", "F32", &[2], vec![0; 8]);
    assert!(fault(vec![good(), good()]).contains("two tensors are named \"w\""));
    assert!(fault(vec![new("__metadata__", "F32", &[2], vec![0; 8])]).contains("cannot be named"));
    assert!(fault(vec![new("w", "F3", &[2], vec![0; 8])]).contains("no dtype F3"));
    assert!(fault(vec![new("w", "F32", &[2], vec![0; 7])]).contains("does not take 7 bytes"));
    assert!(fault(vec![new("w", "F4", &[3], vec![0; 2])]).contains("does not take 2 bytes"));
    assert!(fault(vec![new("w", "F64", &[1 << 62, 4], vec![])]).contains("does not take 0 bytes"));
    let mut few = Limits::default();
    few.tensors = 1;
    let two = vec![good(), new("v", "F32", &[2], vec![0; 8])];
    let many = Checkpoint::from_tensors("m", two, &BTreeMap::new(), &few);
    assert!(matches!(many.err(), Some(Error::LimitExceeded { .. })));
}
