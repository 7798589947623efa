//! Tensors of checkpoints as the methods see them: read whole, found by name, and distinguished
//! from optimiser state. It codes nothing.

use std::collections::HashMap;

use deltaloom::Result;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::TensorInfo;

/// Parts of names that mark a tensor of an optimiser.
const OPTIMIZER_PARTS: [&str; 4] = ["optimizer", "exp_avg", "exp_avg_sq", "momentum_buffer"];

/// Whether a tensor is optimiser state. Its values have any size, so no threshold for weights fits.
pub(super) fn is_optimizer_state(member_path: &str, info: &TensorInfo) -> bool {
    let mut parts = member_path.split('/').chain(info.name.split(['.', '/']));
    parts.any(|part| OPTIMIZER_PARTS.contains(&part) || part == "optimizer.safetensors")
}

/// A checkpoint whose tensors are found by name, in any of its files.
pub(super) struct Named<'a> {
    checkpoint: &'a Checkpoint,
    by_name: HashMap<&'a str, (usize, &'a TensorInfo)>,
}

impl<'a> Named<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Self {
        let mut by_name = HashMap::new();
        for (member, info) in checkpoint.tensors() {
            by_name.entry(info.name.as_str()).or_insert((member, info));
        }
        Self { checkpoint, by_name }
    }

    /// Reads the tensor of that name, if `fits` accepts it.
    pub(super) fn read(&self, name: &str, fits: impl Fn(&TensorInfo) -> bool) -> Result<Option<Vec<u8>>> {
        match self.by_name.get(name) {
            Some((member, info)) if fits(info) => self.checkpoint.read_tensor(*member, info).map(Some),
            _ => Ok(None),
        }
    }
}
