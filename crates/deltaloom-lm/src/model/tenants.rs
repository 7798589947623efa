//! The fine-tunes of a model: how they are checked, admitted and retired, and what they have in
//! memory. [`crate::tenancy`] does the work.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::stored::Stored;
use super::{Model, ModelConfig, convert};
use crate::layer::TenantId;
use crate::tenancy::{self, PreparedTenant, Residency, TenantResidency};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Container, Error, Result};

/// The file of a folder or a container that has plans of attention; the room `context` reads it.
pub const PLAN_FILE: &str = "deltaloom_context.json";

/// Checks fine-tunes of a model. It borrows nothing, so that another thread may check while the
/// model computes.
#[derive(Clone)]
pub struct Preparer {
    pub(super) family: tenancy::Preparer,
    pub(super) config: Arc<ModelConfig>,
    /// Where the base is, for messages and for fine-tunes of a GGUF file.
    pub(super) path: Arc<Path>,
    pub(super) base: Arc<Checkpoint>,
    pub(super) stored: Arc<Stored>,
}

impl Preparer {
    /// Checks a fine-tune that is packed against the base. One of a base in F16 or of a GGUF file
    /// is decoded and packed again, in memory, against the widened weights.
    ///
    /// # Errors
    /// As [`tenancy::Preparer::prepare`]; [`Error::InvalidArgument`] for a fine-tune with a head of
    /// its own where that of the base is tied.
    pub fn prepare(&self, container: Container) -> Result<PreparedTenant> {
        let prepared = match self.stored.widened(container, &self.path, &self.base, &self.config)? {
            (container, None) => self.family.prepare(container)?,
            (container, Some(original)) => self.family.prepare(container)?.with_files(original),
        };
        if self.config.has_tied_head && prepared.has_tensor(convert::HEAD) {
            let head = convert::HEAD;
            let what = format!("the fine-tune has a tensor {head:?}, and the head of its base is tied");
            return Err(Error::InvalidArgument(what));
        }
        Ok(prepared)
    }
}

impl Model {
    /// What checks fine-tunes for this model, on any thread.
    #[must_use]
    pub fn preparer(&self) -> Preparer {
        self.preparer.clone()
    }

    /// Checks a fine-tune: [`Preparer::prepare`].
    ///
    /// # Errors
    /// As [`Preparer::prepare`].
    pub fn prepare(&self, container: Container) -> Result<PreparedTenant> {
        self.preparer.prepare(container)
    }

    /// Adds a prepared fine-tune, which takes microseconds.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for one that was prepared for another model, and for one with
    /// plans of attention of its own.
    pub fn admit(&mut self, prepared: PreparedTenant) -> Result<TenantId> {
        if prepared.has_tensor(PLAN_FILE) {
            return Err(Error::InvalidArgument(format!(
                "it has plans of attention of its own ({PLAN_FILE}), and all fine-tunes of a model share \
                 those of the model: open its container as the model"
            )));
        }
        self.family.admit(prepared)
    }

    /// The same, whether or not it has plans of its own. Who calls this gives them to the model.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for one that was prepared for another model.
    pub(crate) fn admit_with_plans(&mut self, prepared: PreparedTenant) -> Result<TenantId> {
        self.family.admit(prepared)
    }

    /// Whether it has this fine-tune, or the base.
    #[must_use]
    pub fn has_tenant(&self, tenant: TenantId) -> bool {
        self.family.has(tenant)
    }

    /// Removes a fine-tune and what it has in memory. Its sequences stay in their
    /// [`crate::layer::Memory`] until they end, and cannot go on.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown tenant; [`Error::InvalidArgument`] for the base.
    pub fn retire(&mut self, tenant: TenantId) -> Result<()> {
        if tenant == Self::BASE {
            return Err(Error::InvalidArgument("the base of a model cannot be retired".to_owned()));
        }
        self.family.remove(tenant)
    }

    /// A small file of the folder that a fine-tune was packed from, as [`tenancy::Family::file`].
    ///
    /// # Errors
    /// As [`tenancy::Family::file`].
    pub fn file(&self, tenant: TenantId, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        self.family.file(tenant, name, limit)
    }

    /// One number for all weights of a tenant, as [`tenancy::Family::digest`].
    ///
    /// # Errors
    /// As [`tenancy::Family::digest`].
    pub fn digest(&self, tenant: TenantId) -> Result<blake3::Hash> {
        self.family.digest(tenant)
    }

    /// The tenants whose file has changed, as [`tenancy::Family::changed_files`] finds them.
    #[must_use]
    pub fn changed_files(&self) -> Vec<(TenantId, PathBuf)> {
        self.family.changed_files()
    }

    /// The file of a fine-tune if it has changed, as [`tenancy::Family::changed_files`] finds it.
    #[must_use]
    pub fn changed_file(&self, tenant: TenantId) -> Option<PathBuf> {
        self.family.changed_file(tenant)
    }

    /// Changes the budget of the fine-tunes, as [`tenancy::Family::set_budget`].
    ///
    /// # Errors
    /// As [`tenancy::Family::set_budget`].
    pub fn set_budget(&mut self, budget_bytes: u64) -> Result<()> {
        self.family.set_budget(budget_bytes)
    }

    /// Has a tenant decoded in the background, as [`tenancy::Family::expect`].
    ///
    /// # Errors
    /// As [`tenancy::Family::expect`].
    pub fn expect(&mut self, tenant: TenantId) -> Result<()> {
        self.family.expect(tenant)
    }

    /// Whether parts of a tenant are still being decoded in the background.
    #[must_use]
    pub fn is_expected(&self, tenant: TenantId) -> bool {
        self.family.is_expected(tenant)
    }

    /// Moves what was decoded in the background into memory, between steps.
    pub fn take_expected(&mut self) {
        self.family.take_expected();
    }

    /// Memory of the fine-tunes in use, and the work done for it.
    #[must_use]
    pub fn residency(&self) -> Residency {
        self.family.residency()
    }

    /// What one of them has in memory, as [`tenancy::Family::tenant_residency`].
    ///
    /// # Errors
    /// As [`tenancy::Family::tenant_residency`].
    pub fn tenant_residency(&self, tenant: TenantId) -> Result<TenantResidency> {
        self.family.tenant_residency(tenant)
    }

    /// Keeps the matrices of a tenant from being evicted, as [`tenancy::Family::pin`].
    ///
    /// # Errors
    /// As [`tenancy::Family::pin`].
    pub fn pin(&mut self, tenant: TenantId, is_pinned: bool) -> Result<()> {
        self.family.pin(tenant, is_pinned)
    }
}
