//! A base and its tenants: the registry, and the memory that they may use. [`super::running`] runs
//! batches.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::background::{Ahead, Background};
use super::base::{Base, GlobalNames, MatrixPlace};
use super::cache::{Cache, Key, Residency, TenantResidency};
use super::prepare::{PreparedTenant, Preparer};
use super::running::RunningBatch;
use super::tenant::Tenant;
use crate::layer::{Batch, LayerConfig, LayerNames, TenantId, forward};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Bases, Container, Error, Missing, Result};
use deltaloom_compute::{Choice, Form, Run};

/// In which forms matrices of tenants are stored in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Forms {
    /// Each in the fastest form that fits its share of the budget, or else in the smallest that is
    /// not the container's.
    #[default]
    ByShare,
    /// All in this form, if possible.
    All(Form),
}

/// How much memory tenants may use, and for what.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct FamilyOptions {
    /// Memory budget in bytes for the resident forms of all tenants together.
    pub budget_bytes: u64,
    /// The forms.
    pub forms: Forms,
    /// Number of matrices that a background thread decodes ahead of their use; 0 means no thread.
    /// This many may be in memory in addition to the budget.
    pub prefetch: usize,
}

impl Default for FamilyOptions {
    fn default() -> Self {
        Self { budget_bytes: u64::MAX, forms: Forms::ByShare, prefetch: 2 }
    }
}

impl FamilyOptions {
    /// Limits the bytes of all tenants together.
    #[must_use]
    pub fn with_budget(self, budget_bytes: u64) -> Self {
        Self { budget_bytes, ..self }
    }

    /// Chooses the in-memory forms.
    #[must_use]
    pub fn with_forms(self, forms: Forms) -> Self {
        Self { forms, ..self }
    }

    /// Decodes this many matrices ahead of their use; none for 0.
    #[must_use]
    pub fn with_prefetch(self, prefetch: usize) -> Self {
        Self { prefetch, ..self }
    }
}

/// One base and its tenants.
pub struct Family {
    /// Of the base, for messages.
    path: PathBuf,
    pub(super) base: Arc<Base>,
    preparer: Preparer,
    pub(super) tenants: BTreeMap<TenantId, Arc<Tenant>>,
    pub(super) cache: Mutex<Cache>,
    pub(super) prefetcher: Option<Background>,
    /// For tenants whose requests wait. Starts with the first.
    pub(super) builder: Option<Background>,
    /// Number of batches so far.
    pub(super) batches: u64,
    /// The last batch in which each tenant ran.
    pub(super) last_batches: BTreeMap<TenantId, u64>,
    /// The number of batches when a request for each tenant came last.
    pub(super) expected: BTreeMap<TenantId, u64>,
    pub(super) options: FamilyOptions,
    next_tenant: usize,
}

impl Family {
    /// Creates a family from a base whose files are in memory or mapped (see
    /// [`Checkpoint::into_mapped`]), with the layers to run. `path` is for messages.
    ///
    /// # Errors
    /// [`Error::NotFound`] and [`Error::InvalidArgument`] for matrices that are missing, not in
    /// memory, not BF16 or F32, or not of the layer's shape.
    pub fn new(
        path: &Path,
        checkpoint: Checkpoint,
        layers: Vec<(LayerConfig, LayerNames)>,
        options: FamilyOptions,
    ) -> Result<Self> {
        Self::of(path, checkpoint.into(), layers, None, options)
    }

    /// The same for a whole model, with the matrices and the norm around its layers.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_model(
        path: &Path,
        checkpoint: Arc<Checkpoint>,
        layers: Vec<(LayerConfig, LayerNames)>,
        globals: &GlobalNames,
        options: FamilyOptions,
    ) -> Result<Self> {
        Self::of(path, checkpoint, layers, Some(globals), options)
    }

    fn of(
        path: &Path,
        checkpoint: Arc<Checkpoint>,
        layers: Vec<(LayerConfig, LayerNames)>,
        globals: Option<&GlobalNames>,
        options: FamilyOptions,
    ) -> Result<Self> {
        if options.forms == Forms::All(Form::Base) {
            return Err(Error::InvalidArgument(
                "form `base` is not possible for tenants, because they differ from the base".into(),
            ));
        }
        let base = Base::open(&checkpoint, layers, globals)?;
        let mut bases = Bases::default();
        bases.push_checkpoint(path, checkpoint);
        let preparer = Preparer::new(base, bases);
        Ok(Self {
            path: path.to_owned(),
            base: Arc::clone(&preparer.base),
            preparer,
            tenants: BTreeMap::new(),
            cache: Mutex::new(Cache::new(options.budget_bytes)),
            prefetcher: (options.prefetch > 0)
                .then(|| Background::new("prefetch", Ahead::Matrices(options.prefetch))),
            builder: None,
            batches: 0,
            last_batches: BTreeMap::new(),
            expected: BTreeMap::new(),
            options,
            next_tenant: 0,
        })
    }

    /// What checks fine-tunes for this family, on any thread.
    #[must_use]
    pub fn preparer(&self) -> Preparer {
        self.preparer.clone()
    }

    /// Adds a fine-tune that is packed against the base: [`Preparer::prepare`], then
    /// [`Self::admit`].
    ///
    /// # Errors
    /// As [`Preparer::prepare`].
    pub fn add(&mut self, container: Container) -> Result<TenantId> {
        self.admit(self.preparer.prepare(container)?)
    }

    /// Adds a prepared fine-tune of this base, which takes microseconds.
    ///
    /// Returns the id for its tokens, which no other tenant will ever have.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for one that was prepared for another family.
    pub fn admit(&mut self, prepared: PreparedTenant) -> Result<TenantId> {
        let foreign = || Error::InvalidArgument("the fine-tune was prepared for another base".into());
        let tenant = prepared.into_tenant_of(&self.base).ok_or_else(foreign)?;
        Ok(self.insert(tenant))
    }

    /// Adds the base itself as a tenant. It takes no memory.
    ///
    /// # Errors
    /// Those of reading the base.
    pub fn add_base(&mut self) -> Result<TenantId> {
        let tenant = Tenant::of_base(&self.base)?;
        Ok(self.insert(tenant))
    }

    fn insert(&mut self, tenant: Tenant) -> TenantId {
        self.cache().add_vectors(tenant.vector_bytes());
        let id = TenantId::new(self.next_tenant);
        self.next_tenant += 1;
        self.tenants.insert(id, Arc::new(tenant));
        id
    }

    /// BLAKE3 over the names of all weights of a tenant and their digests, which is the same for a
    /// container and for a base of equal weights. That of the base is computed by the first call,
    /// which reads all weights on all threads.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown tenant; those of reading the base.
    pub fn digest(&self, tenant: TenantId) -> Result<blake3::Hash> {
        self.tenants.get(&tenant).ok_or_else(|| unknown(tenant))?.digest(&self.base)
    }

    /// The tenants whose file has changed since it was opened, or cannot be asked, with its path.
    /// It takes microseconds for each, so it may be called between batches.
    ///
    /// The system tells the length, the time of change, and the identity of the file that has the
    /// name. Bytes that change without these (within the grain of the clock, through a mapping that
    /// was not yet written back, or with the time set back) are not found here. A chunk of a
    /// container that is read later is also compared with its checksum. What has been decoded does
    /// not change, and a base in memory neither. If the files of a base are mapped, bytes may have
    /// been used before this call, and a base that is made shorter ends the process.
    #[must_use]
    pub fn changed_files(&self) -> Vec<(TenantId, PathBuf)> {
        let base = match self.base.check_unchanged() {
            Ok(()) => None,
            Err(Error::Changed { path }) => Some(path),
            Err(_) => Some(self.path.clone()),
        };
        let of = |(id, tenant): (&TenantId, &Arc<Tenant>)| {
            let changed = if tenant.is_base() { base.clone() } else { tenant.changed_file() };
            Some((*id, changed?))
        };
        self.tenants.iter().filter_map(of).collect()
    }

    /// The file of a tenant if it has changed, as [`Self::changed_files`] finds it.
    #[must_use]
    pub fn changed_file(&self, tenant: TenantId) -> Option<PathBuf> {
        self.tenants.get(&tenant).filter(|tenant| !tenant.is_base())?.changed_file()
    }

    /// Changes the budget, before any tenant is in memory.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if one is.
    pub fn set_budget(&mut self, budget_bytes: u64) -> Result<()> {
        if self.tenants.values().any(|tenant| !tenant.is_base()) {
            return Err(Error::InvalidArgument("the budget of a family with fine-tunes".to_owned()));
        }
        self.options.budget_bytes = budget_bytes;
        self.cache = Mutex::new(Cache::new(budget_bytes));
        Ok(())
    }

    /// Removes a tenant and everything that it has in memory.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown tenant.
    pub fn remove(&mut self, tenant: TenantId) -> Result<()> {
        let removed = self.tenants.remove(&tenant).ok_or_else(|| unknown(tenant))?;
        self.last_batches.remove(&tenant);
        self.expected.remove(&tenant);
        if let Some(builder) = &self.builder {
            builder.forget(tenant);
        }
        let mut cache = self.cache();
        cache.remove_tenant(tenant);
        cache.remove_vectors(removed.vector_bytes());
        Ok(())
    }

    /// A small file of the folder that a fine-tune was packed from, such as its
    /// `tokenizer_config.json`; `None` if its container has none of that name, and for the base.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown tenant; [`Error::LimitExceeded`] for more bytes than
    /// `limit`; errors of decoding.
    pub fn file(&self, tenant: TenantId, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        self.tenants.get(&tenant).ok_or_else(|| unknown(tenant))?.file(name, limit)
    }

    /// All tenants.
    pub fn tenants(&self) -> impl ExactSizeIterator<Item = TenantId> {
        self.tenants.keys().copied()
    }

    /// Whether there is such a tenant.
    #[must_use]
    pub fn has(&self, tenant: TenantId) -> bool {
        self.tenants.contains_key(&tenant)
    }

    /// The shapes of the layers.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = &LayerConfig> {
        self.base.layers.iter()
    }

    /// Number of matrices of all tenants in each form, among those that have been decoded.
    #[must_use]
    pub fn forms(&self) -> BTreeMap<Form, usize> {
        let mut forms = BTreeMap::new();
        for form in self.tenants.values().flat_map(|tenant| tenant.forms()) {
            *forms.entry(form).or_default() += 1;
        }
        forms
    }

    /// Memory in use, and the work done for it.
    #[must_use]
    pub fn residency(&self) -> Residency {
        let mut residency = self.cache().residency;
        residency.prefetched =
            [&self.prefetcher, &self.builder].into_iter().flatten().map(Background::decoded).sum();
        residency
    }

    /// What a tenant has in memory, and the work done for it. The base has nothing of its own.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown tenant.
    pub fn tenant_residency(&self, tenant: TenantId) -> Result<TenantResidency> {
        let found = self.tenants.get(&tenant).ok_or_else(|| unknown(tenant))?;
        let mut residency = self.cache().of_tenant(tenant);
        residency.resident_bytes += found.vector_bytes();
        residency.changed_matrices = found.changed_matrices();
        for form in found.forms() {
            *residency.forms.entry(form).or_default() += 1;
        }
        Ok(residency)
    }

    /// Keeps the matrices of a tenant in memory from their next use on, or lets them be evicted
    /// again. They take the place of any that is not pinned or in use, and count in the budget, so
    /// that others have less.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown tenant.
    pub fn pin(&mut self, tenant: TenantId, is_pinned: bool) -> Result<()> {
        self.tenants.get(&tenant).ok_or_else(|| unknown(tenant))?;
        self.cache().pin(tenant, is_pinned);
        Ok(())
    }

    /// Begins a batch. The memory of its tenants stays until it ends. Only one batch runs at a
    /// time.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown tenant.
    pub fn start(&mut self, batch: &Batch) -> Result<RunningBatch<'_>> {
        let now: BTreeSet<TenantId> =
            batch.sequences().iter().filter(|s| s.tokens > 0).map(|sequence| sequence.tenant).collect();
        if let Some(tenant) = now.iter().find(|tenant| !self.tenants.contains_key(tenant)) {
            return Err(unknown(*tenant));
        }
        self.batches += 1;
        let number = self.batches;
        let before =
            now.into_iter().map(|tenant| (tenant, self.last_batches.insert(tenant, number))).collect();
        Ok(RunningBatch::new(self, batch, before))
    }

    /// Runs all layers, one after another, on the tokens of a batch: `x` and the result are
    /// `[tokens, width]`.
    ///
    /// # Errors
    /// As [`Self::start`]; [`Error::InvalidArgument`] for `x` of another shape; errors of decoding.
    pub fn forward(&mut self, batch: &Batch, x: &[f32], run: &Run<'_>) -> Result<Vec<f32>> {
        let running = self.start(batch)?;
        let mut x = x.to_vec();
        for number in 0..running.layers() {
            let layer = running.layer(number)?;
            x = forward(layer.config(), &layer, batch, &x, run)?;
        }
        Ok(x)
    }

    pub(super) fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether matrices may be evicted for one of this tenant, which ran last in the batch
    /// `before`: those of tenants that have been idle for as long, and all if it is pinned.
    pub(super) fn may_go_for(&self, tenant: TenantId, before: Option<u64>) -> impl Fn(&Key) -> bool {
        let is_pinned = self.cache().is_pinned(tenant);
        move |other| {
            let last = self.last_batches.get(&other.tenant).max(self.expected.get(&other.tenant));
            is_pinned || before.is_some_and(|before| last.is_none_or(|last| *last <= before))
        }
    }

    /// The choice for a matrix that has no form yet. Its share of the budget is its fraction of the
    /// matrix elements of all tenants.
    pub(super) fn wanted(&self, place: MatrixPlace) -> Choice {
        if let Forms::All(form) = self.options.forms {
            return Choice::Form(form);
        }
        let of_base: u128 = self.base.order.iter().map(|place| self.base.elems(*place)).sum();
        let tenants = self.tenants.values().filter(|tenant| !tenant.is_base()).count();
        let all = (of_base * tenants as u128).max(1);
        let of_matrix = self.base.elems(place);
        let budget = self.cache().matrix_budget();
        Choice::Budget(u64::try_from(u128::from(budget).saturating_mul(of_matrix) / all).unwrap_or(budget))
    }
}

pub(super) fn unknown(tenant: TenantId) -> Error {
    Error::not_found(Missing::Tenant, tenant.to_string())
}
