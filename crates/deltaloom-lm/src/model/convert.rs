//! What a checkpoint needs before its weights can be multiplied.

use std::sync::Arc;

use crate::layer::family::Described;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::{DType, TensorInfo};
use deltaloom::{Error, Limits, Result};

/// The tensor of a head that is not tied.
pub const HEAD: &str = "lm_head.weight";

/// What is done to the tensors of a checkpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conversion {
    /// Matrices are stored as [in, out], and names may begin with `transformer.`: GPT-2.
    is_transposed: bool,
}

impl Conversion {
    /// What a model with this `config.json` needs, if anything: F16 is not multiplied.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a configuration that is not supported.
    pub(super) fn of(checkpoint: &Checkpoint, config_text: &str) -> Result<Option<Self>> {
        let is_transposed = Described::parse(config_text)?.is_transposed();
        let has_halves = checkpoint.weights().any(|(_, info)| info.dtype == DType::F16);
        Ok((is_transposed || has_halves).then_some(Self { is_transposed }))
    }

    /// A converted copy in memory.
    pub(super) fn checkpoint(self, checkpoint: &Checkpoint) -> Result<Checkpoint> {
        let mut file = Safetensors::default();
        for (member, info) in checkpoint.weights() {
            self.push(&mut file, info, checkpoint.read_tensor(member, info)?);
        }
        file.checkpoint()
    }

    /// Adds a tensor: in F32 if it is in F16, which is exact, and turned if it has to be.
    pub(super) fn push(self, file: &mut Safetensors, info: &TensorInfo, bytes: Vec<u8>) {
        let (bytes, dtype) = if info.dtype == DType::F16 {
            let numbers = bytes.as_chunks().0.iter().map(|half| half::f16::from_le_bytes(*half).to_f32());
            (numbers.flat_map(f32::to_le_bytes).collect(), DType::F32)
        } else {
            (bytes, info.dtype.clone())
        };
        let mut name = info.name.as_str();
        if self.is_transposed {
            name = name.strip_prefix("transformer.").unwrap_or(name);
            if let ([rows, cols], true) = (&info.shape[..], is_turned(name)) {
                let turned = transposed(&bytes, *rows, *cols);
                return file.push(name, &dtype.to_string(), &[*cols, *rows], [turned]);
            }
        }
        file.push(name, &dtype.to_string(), &info.shape, [bytes]);
    }
}

/// Whether GPT-2 stores this matrix as [in, out].
fn is_turned(name: &str) -> bool {
    ["attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"]
        .iter()
        .any(|end| name.ends_with(end))
}

/// A matrix of `rows` and `cols` of any type, turned.
fn transposed(bytes: &[u8], rows: u64, cols: u64) -> Vec<u8> {
    let (rows, cols) = (usize::try_from(rows).unwrap_or(0), usize::try_from(cols).unwrap_or(0));
    let size = rows.checked_mul(cols).and_then(|elems| bytes.len().checked_div(elems)).unwrap_or(0);
    let mut turned = Vec::with_capacity(bytes.len());
    for col in 0..cols {
        for row in 0..rows {
            turned.extend_from_slice(&bytes[(row * cols + col) * size..][..size]);
        }
    }
    turned
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
