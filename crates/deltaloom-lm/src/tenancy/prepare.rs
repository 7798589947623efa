//! Checks fine-tunes before they are admitted, on any thread, while batches of others run.

use std::sync::Arc;

use super::base::Base;
use super::tenant::Tenant;
use deltaloom::{Bases, Container, ResolvedContainer, Result};

/// What checking needs of a family. It borrows nothing, so that another thread may have it.
#[derive(Clone)]
pub struct Preparer {
    pub(super) base: Arc<Base>,
    bases: Arc<Bases>,
}

/// A fine-tune that is checked and ready to be admitted to its family.
pub struct PreparedTenant {
    tenant: Tenant,
    digest: blake3::Hash,
    /// The base of the family that it was checked for.
    base: Arc<Base>,
}

impl Preparer {
    pub(super) fn new(base: Base, bases: Bases) -> Self {
        Self { base: Arc::new(base), bases: Arc::new(bases) }
    }

    /// Checks a fine-tune that is packed against the base, finds its tensors and decodes its
    /// vectors. Its bytes stay where they are: [`Container::open`] reads from the file when they
    /// are needed. Matrices are decoded on demand.
    ///
    /// # Errors
    /// [`deltaloom::Error::BaseMismatch`] before anything is decoded;
    /// [`deltaloom::Error::NotFound`] and [`deltaloom::Error::InvalidArgument`] if it does not have
    /// the base's tensors; errors of decoding.
    pub fn prepare(&self, container: Container) -> Result<PreparedTenant> {
        let tenant = Tenant::open(ResolvedContainer::new(container, &self.bases)?, &self.base)?;
        let digest = tenant.digest(&self.base)?;
        Ok(PreparedTenant { tenant, digest, base: Arc::clone(&self.base) })
    }
}

impl PreparedTenant {
    /// BLAKE3 over the names of all weights and their digests: the number of
    /// [`super::Family::digest`]. The digests are those that the container has of its tensors.
    #[must_use]
    pub fn digest(&self) -> blake3::Hash {
        self.digest
    }

    /// Number of matrices that differ from those of the base. A fine-tune with none answers almost
    /// as its base does, which is rarely what was meant.
    #[must_use]
    pub fn changed_matrices(&self) -> usize {
        self.tenant.changed_matrices()
    }

    /// Whether its container has a tensor of this name.
    #[must_use]
    pub fn has_tensor(&self, name: &str) -> bool {
        self.tenant.has_tensor(name)
    }

    /// As [`super::Family::file`].
    ///
    /// # Errors
    /// [`deltaloom::Error::LimitExceeded`] for more bytes than `limit`; errors of decoding.
    pub fn file(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        self.tenant.file(name, limit)
    }

    /// The same weights, with the small files of the container that it was made from.
    pub(crate) fn with_files(self, files: Arc<ResolvedContainer>) -> Self {
        Self { tenant: self.tenant.with_files(files), ..self }
    }

    /// The tenant, if it was checked for this base.
    pub(super) fn into_tenant_of(self, base: &Arc<Base>) -> Option<Tenant> {
        Arc::ptr_eq(&self.base, base).then_some(self.tenant)
    }
}
