//! What a checkpoint needs before its weights can be multiplied.

use std::sync::Arc;

use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::{DType, TensorInfo};
use deltaloom::{Error, Limits, Result};

/// The tensor of a head that is not tied.
pub(super) const HEAD: &str = "lm_head.weight";

/// Whether tensors are in F16, which is not multiplied.
pub(super) fn has_halves(checkpoint: &Checkpoint) -> bool {
    checkpoint.weights().any(|(_, info)| info.dtype == DType::F16)
}

/// A copy in memory in which F16 is widened to F32, which is exact.
pub(super) fn widened(checkpoint: &Checkpoint) -> Result<Checkpoint> {
    let mut file = Safetensors::default();
    for (member, info) in checkpoint.weights() {
        push_widened(&mut file, info, checkpoint.read_tensor(member, info)?);
    }
    file.checkpoint()
}

/// Adds a tensor, in F32 if it is in F16.
pub(super) fn push_widened(file: &mut Safetensors, info: &TensorInfo, bytes: Vec<u8>) {
    if info.dtype == DType::F16 {
        let numbers = bytes.as_chunks().0.iter().map(|half| half::f16::from_le_bytes(*half).to_f32());
        file.push(&info.name, "F32", &info.shape, numbers.map(f32::to_le_bytes));
    } else {
        file.push(&info.name, &info.dtype.to_string(), &info.shape, [bytes]);
    }
}

/// Refuses a head beside one that is tied, unless both are the same.
pub(super) fn check_tied(checkpoint: &Arc<Checkpoint>, embedding: &str) -> Result<()> {
    let read = |name: &str| {
        let found = checkpoint.weights().find(|(_, info)| info.name == name);
        found.map(|(member, info)| checkpoint.read_tensor(member, info)).transpose()
    };
    match read(HEAD)? {
        Some(head) if Some(&head) != read(embedding)?.as_ref() => Err(Error::InvalidArgument(format!(
            "config.json: tie_word_embeddings is true, and {HEAD:?} differs from {embedding:?}"
        ))),
        _ => Ok(()),
    }
}

/// A safetensors file in memory.
#[derive(Default)]
pub(super) struct Safetensors {
    header: serde_json::Map<String, serde_json::Value>,
    data: Vec<u8>,
}

impl Safetensors {
    pub(super) fn push(
        &mut self,
        name: &str,
        dtype: &str,
        shape: &[u64],
        bytes: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) {
        let begin = self.data.len();
        bytes.into_iter().for_each(|bytes| self.data.extend_from_slice(bytes.as_ref()));
        let entry =
            serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, self.data.len()]});
        self.header.insert(name.to_owned(), entry);
    }

    pub(super) fn checkpoint(self) -> Result<Checkpoint> {
        let header = serde_json::Value::Object(self.header).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(&self.data);
        Checkpoint::from_bytes("model.safetensors", file, &Limits::default())
    }
}
