//! The layer as other tools compute it: restores the whole fine-tune from its stored form, then
//! multiplies.
//!
//! [`crate::timing`] times the restoring; here is the forward pass that it calls.

use std::borrow::Cow;
use std::collections::BTreeMap;

use deltaloom_kernels::dense::{self, Weights as Rows};
use serde::Serialize;

use super::case::LayerCase;
use crate::timing;
use crate::timing::{Stored, Timing, Weights};
use deltaloom::{Error, Missing, Result};
use deltaloom_compute::{Mode, Run};
use deltaloom_lm::layer::{
    Batch, LayerConfig, LayerNames, LayerWeights, MatrixRole, TenantId, VectorRole, forward,
};

/// A layer that was restored before it was computed.
#[derive(Debug, Clone, Serialize)]
pub struct RestoredReport {
    /// The stored form: `container`, or `xor + zstd 10`.
    pub stored: &'static str,
    /// Number of tokens of the sequence.
    pub tokens: usize,
    /// Whether all output bits equal those of the fine-tune's own weights.
    pub is_bit_exact: bool,
    /// Load, decompress, apply, state load, forward.
    pub timing: Timing,
}

/// Restores from both stored forms and computes the layer.
pub(super) fn measure(
    case: &LayerCase,
    repeats: usize,
    x: &[f32],
    tokens: usize,
    expected: &[f32],
) -> Result<[RestoredReport; 2]> {
    let one = |name: &'static str, stored: &Stored| -> Result<RestoredReport> {
        let mut is_bit_exact = true;
        let timing = timing::measure(stored, case.base(), case.tuned(), repeats, &mut |state| {
            let restored = Restored { config: case.config(), names: case.names(), tensors: by_name(state) };
            let output =
                forward(case.config(), &restored, &Batch::of_one(tokens), x, &Run::new(Mode::Exact))?;
            is_bit_exact &= output.iter().map(|x| x.to_bits()).eq(expected.iter().map(|x| x.to_bits()));
            Ok(())
        })?;
        Ok(RestoredReport { stored: name, tokens, is_bit_exact, timing })
    };
    Ok([
        one("container", &Stored::Packed(case.container().to_vec()))?,
        one("xor + zstd 10", &Stored::xor_zstd(case.base(), case.tuned())?)?,
    ])
}

fn by_name(state: &[Weights]) -> BTreeMap<&str, &[f32]> {
    state.iter().map(|weights| (weights.name.as_str(), weights.values.as_slice())).collect()
}

/// The restored weights in FP32.
struct Restored<'a> {
    config: &'a LayerConfig,
    names: &'a LayerNames,
    tensors: BTreeMap<&'a str, &'a [f32]>,
}

impl LayerWeights for Restored<'_> {
    fn matmul(
        &self,
        role: MatrixRole,
        _batch: &Batch,
        x: &[f32],
        y: &mut [f32],
        _run: &Run<'_>,
    ) -> Result<()> {
        let [rows, cols] = self.config.shape(role);
        let missing = || Error::not_found(Missing::Layer, format!("the matrix {role:?} of the layer"));
        let weights = self.names.matrix(role).and_then(|name| self.tensors.get(name)).ok_or_else(missing)?;
        let tokens = y.len() / rows;
        if weights.len() != rows * cols || x.len() != tokens * cols {
            return Err(Error::InvalidArgument(format!(
                "the matrix {role:?} does not have the shape [{rows}, {cols}]"
            )));
        }
        let mut by_row = vec![0.0; y.len()];
        dense::products(Rows::Numbers(weights), cols, x, &mut by_row);
        for (token, y) in y.chunks_exact_mut(rows).enumerate() {
            y.iter_mut().zip(by_row.chunks_exact(tokens)).for_each(|(y, row)| *y = row[token]);
        }
        Ok(())
    }

    fn vector(&self, role: VectorRole, _tenant: TenantId) -> Result<Option<Cow<'_, [f32]>>> {
        let name = self.names.vector(role);
        Ok(name.and_then(|name| self.tensors.get(name)).map(|values| Cow::Borrowed(*values)))
    }
}
