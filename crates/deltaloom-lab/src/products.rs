//! Checks every product of a layer against the bit-exact product with dense weights.

use std::borrow::Cow;
use std::cell::Cell;

use deltaloom::Result;
use deltaloom_compute::{Run, Tolerance};
use deltaloom_lm::layer::{Batch, LayerWeights, MatrixRole, TenantId, VectorRole};

/// Dense weights of every tenant and of the base.
pub(super) trait Reference {
    /// Writes the bit-exact product of a tenant's matrix and `x` to `y`. Returns the tolerance for
    /// products with `x`.
    fn product(&self, role: MatrixRole, tenant: TenantId, x: &[f32], y: &mut [f32]) -> Result<Tolerance>;
}

/// Weights whose products are compared with those of a reference as they are computed.
pub(super) struct Checked<'a> {
    weights: &'a dyn LayerWeights,
    reference: &'a dyn Reference,
    /// The largest error of any product, as a fraction of the sum of its absolute products.
    pub(super) error: Cell<f64>,
}

impl<'a> Checked<'a> {
    pub(super) fn new(weights: &'a dyn LayerWeights, reference: &'a dyn Reference) -> Self {
        Self { weights, reference, error: Cell::new(0.0) }
    }
}

impl LayerWeights for Checked<'_> {
    fn matmul(&self, role: MatrixRole, batch: &Batch, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()> {
        self.weights.matmul(role, batch, x, y, run)?;
        let tokens = batch.tokens().max(1);
        let (cols, rows) = (x.len() / tokens, y.len() / tokens);
        for (sequence, tokens) in batch.places().filter(|(_, tokens)| !tokens.is_empty()) {
            let x = &x[tokens.start * cols..tokens.end * cols];
            let y = &y[tokens.start * rows..tokens.end * rows];
            let mut exact = vec![0.0; y.len()];
            let tolerance = self.reference.product(role, sequence.tenant, x, &mut exact)?;
            self.error.set(self.error.get().max(tolerance.error(x, y, &exact)?));
        }
        Ok(())
    }

    fn vector(&self, role: VectorRole, tenant: TenantId) -> Result<Option<Cow<'_, [f32]>>> {
        self.weights.vector(role, tenant)
    }
}
