//! A batch while it runs: its tokens are brought together tenant by tenant, and every matrix of theirs is found in memory, decoded into it, or multiplied where it is.
//! Which of the three is decided in the order of the tokens and from what was used before alone, so that no bit depends on threads or on what was prefetched.
//!
//! What a running batch uses is never evicted. While there is room every matrix that is decoded stays. When there is none, only matrices of tenants go that have not run for
//! at least as long as the one that comes was away (the rule of LIRS: Jiang and Zhang, 2002): tenants that come for a token each, one after another, do not drive out those
//! that are there, but are multiplied from their containers; a tenant that ran in the batch before gets all the room that others do not use now.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::cache::Key;
use super::family::{Family, Layer, unknown};
use super::prefetch::Job;
use super::tenant::{Loaded, Slot};
use crate::layer::{Batch, LayerConfig, LayerWeights, MatrixRole, TenantId, VectorRole};
use deltaloom::{Error, Missing, Result};
use deltaloom_compute::{Form, PackedMatrix, Phase, Run, Segment, matmul_shared};

/// Matrices ahead of the one that is multiplied, of every tenant, that may be prefetched.
const STEPS_AHEAD: usize = 2;

/// A batch that has begun. It ends with this value.
pub struct RunningBatch<'a> {
    family: &'a Family,
    batch: &'a Batch,
    /// Tokens of each tenant, tenants in the order of their first token.
    groups: Vec<(TenantId, usize)>,
    /// Where each token of these groups is in the batch; none where they are in its order.
    places: Option<Vec<usize>>,
    /// Its tenants, with the batch in which each ran before.
    before: BTreeMap<TenantId, Option<u64>>,
}

/// The weights of one layer for a batch.
pub struct RunningLayer<'a> {
    running: &'a RunningBatch<'a>,
    layer: &'a Layer,
    number: usize,
}

impl<'a> RunningBatch<'a> {
    pub(super) fn new(family: &'a Family, batch: &'a Batch, before: BTreeMap<TenantId, Option<u64>>) -> Self {
        let mut groups: Vec<(TenantId, usize)> = Vec::new();
        let mut order = Vec::new();
        for (sequence, tokens) in batch.places().filter(|(_, tokens)| !tokens.is_empty()) {
            let group = groups.iter().position(|(tenant, _)| *tenant == sequence.tenant);
            let group = group.unwrap_or_else(|| {
                groups.push((sequence.tenant, 0));
                groups.len() - 1
            });
            groups[group].1 += tokens.len();
            order.push((group, tokens));
        }
        let is_grouped = order.is_sorted_by_key(|(group, _)| *group);
        // Sequences of a tenant stay in their order.
        order.sort_by_key(|(group, _)| *group);
        let places = (!is_grouped).then(|| order.into_iter().flat_map(|(_, tokens)| tokens).collect());
        let running = Self { family, batch, groups, places, before };
        running.prefetch_from(0);
        running
    }

    /// How many layers there are.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.family.layers.len()
    }

    /// The weights of a layer.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a number that no layer has.
    pub fn layer(&self, number: usize) -> Result<RunningLayer<'_>> {
        let missing = || Error::not_found(Missing::Layer, format!("layer {number} of the family"));
        let layer = self.family.layers.get(number).ok_or_else(missing)?;
        Ok(RunningLayer { running: self, layer, number })
    }

    fn slot(&self, key: &Key) -> Result<&Slot> {
        let missing =
            || Error::not_found(Missing::Layer, format!("the matrix {:?} of layer {}", key.role, key.layer));
        let tenant = self.family.tenants.get(&key.tenant).ok_or_else(|| unknown(key.tenant))?;
        tenant.slot(key.layer, key.role).ok_or_else(missing)
    }

    /// Whether a matrix of so many bytes is to be in memory from now on.
    fn is_welcome(&self, key: &Key, bytes: u64) -> bool {
        let cache = self.family.cache();
        cache.has_room(bytes) || cache.can_make_room(bytes, |other| self.may_go(other, key))
    }

    /// Whether a matrix may go so that another can come.
    fn may_go(&self, key: &Key, other: &Key) -> bool {
        let last = self.family.last_batches.get(&key.tenant);
        let before = self.before.get(&other.tenant).copied().flatten();
        !self.before.contains_key(&key.tenant)
            && before.is_some_and(|before| last.is_none_or(|last| *last <= before))
    }

    /// One matrix of every group.
    fn matrices(&self, layer: usize, role: MatrixRole) -> Result<Vec<Arc<PackedMatrix>>> {
        let keys = self.groups.iter().map(|(tenant, _)| Key { tenant: *tenant, layer, role });
        let keys: Vec<Key> = keys.collect();
        let mut found: Vec<Option<Arc<PackedMatrix>>> = Vec::with_capacity(keys.len());
        for key in &keys {
            let slot = self.slot(key)?;
            found.push(match slot.direct().form() {
                Form::Base => Some(Arc::clone(slot.direct())),
                _ => self.family.cache().get(key),
            });
            let is_base = slot.direct().form() == Form::Base;
            let residency = &mut self.family.cache().residency;
            match found.last() {
                Some(Some(_)) if is_base => {}
                Some(Some(_)) => residency.hits += 1,
                _ => residency.misses += 1,
            }
        }
        let missing =
            |found: &[Option<_>]| -> Vec<usize> { (0..keys.len()).filter(|i| found[*i].is_none()).collect() };
        // Those whose form is not known are decoded to find it, as many at a time as there are threads, and kept if they are welcome.
        let mut formless = Vec::new();
        for i in missing(&found) {
            if self.slot(&keys[i])?.chosen().is_none() {
                formless.push(i);
            }
        }
        for some in formless.chunks(rayon::current_num_threads().max(1)) {
            for (i, matrix) in some.iter().zip(self.load_all(some, &keys)?) {
                let bytes = self.slot(&keys[*i])?.choose(&matrix).bytes;
                found[*i] = Some(self.keep_or_leave(&keys[*i], bytes, matrix)?);
            }
        }
        // The others have their places before they are decoded.
        let mut welcome = Vec::new();
        for i in missing(&found) {
            let (key, slot) = (&keys[i], self.slot(&keys[i])?);
            match slot.chosen() {
                Some(chosen) if chosen.form != Form::Tiles && self.reserve(key, chosen.bytes) => {
                    welcome.push(i)
                }
                _ => found[i] = Some(self.leave(key)?),
            }
        }
        let loaded = self.load_all(&welcome, &keys).inspect_err(|_| {
            welcome.iter().for_each(|i| self.family.cache().remove(&keys[*i]));
        })?;
        for (i, matrix) in welcome.iter().zip(loaded) {
            self.family.cache().fill(&keys[*i], &matrix);
            found[*i] = Some(matrix);
        }
        Ok(found.into_iter().flatten().collect())
    }

    fn reserve(&self, key: &Key, bytes: u64) -> bool {
        self.family.cache().reserve(*key, bytes, |other| self.may_go(other, key))
    }

    fn keep_or_leave(&self, key: &Key, bytes: u64, matrix: Arc<PackedMatrix>) -> Result<Arc<PackedMatrix>> {
        if matrix.form() == Form::Tiles || !self.reserve(key, bytes) {
            return self.leave(key);
        }
        self.family.cache().fill(key, &matrix);
        Ok(matrix)
    }

    /// A matrix as it is in its container, decoded while it is multiplied.
    fn leave(&self, key: &Key) -> Result<Arc<PackedMatrix>> {
        let direct = Arc::clone(self.slot(key)?.direct());
        let residency = &mut self.family.cache().residency;
        residency.direct += 1;
        residency.decoded_bytes += dense_bytes(&direct);
        Ok(direct)
    }

    /// Decodes some of these matrices, on all threads.
    fn load_all(&self, some: &[usize], keys: &[Key]) -> Result<Vec<Arc<PackedMatrix>>> {
        if some.len() < 2 {
            return some.iter().map(|i| self.load(&keys[*i])).collect();
        }
        some.par_iter().map(|i| self.load(&keys[*i])).collect()
    }

    fn load(&self, key: &Key) -> Result<Arc<PackedMatrix>> {
        let prefetched = self.family.prefetcher.as_ref().and_then(|prefetcher| prefetcher.take(key));
        let is_prefetched = prefetched.is_some();
        let loaded = prefetched.or_else(|| self.job(key)?.run());
        let Loaded { matrix, decodes } = loaded.unwrap_or_else(|| Err(unknown(key.tenant)))?;
        let residency = &mut self.family.cache().residency;
        residency.prefetch_hits += u64::from(is_prefetched);
        residency.decoded_bytes += decodes * dense_bytes(&matrix);
        Ok(matrix)
    }

    fn job(&self, key: &Key) -> Option<Job> {
        let tenant = Arc::clone(self.family.tenants.get(&key.tenant)?);
        Some(Job { key: *key, tenant, wanted: self.family.wanted(key.layer, key.role) })
    }

    /// Has what the next matrices will need decoded, as far as that can be foreseen; `step` counts matrices through all layers.
    fn prefetch_from(&self, step: usize) {
        let Some(prefetcher) = &self.family.prefetcher else { return };
        let layers = self.family.layers.iter().enumerate();
        let steps = layers
            .flat_map(|(number, layer)| layer.config.matrices().into_iter().map(move |role| (number, role)));
        let mut jobs = Vec::new();
        for (layer, role) in steps.skip(step).take(STEPS_AHEAD) {
            for (tenant, _) in &self.groups {
                let key = Key { tenant: *tenant, layer, role };
                let Ok(slot) = self.slot(&key) else { continue };
                let is_wanted = match slot.chosen() {
                    Some(chosen) => chosen.form != Form::Tiles && self.is_welcome(&key, chosen.bytes),
                    None => slot.direct().form() != Form::Base,
                };
                if is_wanted && !self.family.cache().has(&key) {
                    jobs.extend(self.job(&key));
                }
            }
        }
        prefetcher.ask(jobs);
    }
}

impl Drop for RunningBatch<'_> {
    fn drop(&mut self) {
        if let Some(prefetcher) = &self.family.prefetcher {
            prefetcher.cancel();
        }
    }
}

impl RunningLayer<'_> {
    /// Its shape.
    #[must_use]
    pub fn config(&self) -> &LayerConfig {
        &self.layer.config
    }

    /// How many matrices come before one of this layer.
    fn step(&self, role: MatrixRole) -> usize {
        let before = &self.running.family.layers[..self.number];
        let before: usize = before.iter().map(|layer| layer.config.matrices().len()).sum();
        before + self.layer.config.matrices().iter().position(|other| *other == role).unwrap_or(0)
    }
}

impl LayerWeights for RunningLayer<'_> {
    fn matmul(&self, role: MatrixRole, batch: &Batch, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()> {
        let running = self.running;
        if batch != running.batch {
            return Err(Error::InvalidArgument("another batch than the one that was started".into()));
        }
        let missing = || Error::not_found(Missing::Layer, format!("the matrix {role:?} of the layer"));
        let base = self.layer.base.get(&role).ok_or_else(missing)?;
        let matrices = running.matrices(self.number, role)?;
        running.prefetch_from(self.step(role) + 1);
        let segments: Vec<Segment<'_>> = running
            .groups
            .iter()
            .zip(&matrices)
            .map(|((_, tokens), matrix)| Segment { tokens: *tokens, matrix })
            .collect();
        let shape = base.shape();
        let fits = |len: usize, width: usize| batch.tokens().checked_mul(width) == Some(len);
        let Some(places) =
            running.places.as_ref().filter(|_| fits(x.len(), shape.cols) && fits(y.len(), shape.rows))
        else {
            return matmul_shared(base, &segments, x, y, run);
        };
        let token = |place: &usize| &x[place * shape.cols..][..shape.cols];
        let grouped: Vec<f32> = run.time(Phase::Load, || places.iter().flat_map(token).copied().collect());
        let mut products = vec![0.0; y.len()];
        matmul_shared(base, &segments, &grouped, &mut products, run)?;
        run.time(Phase::Finish, || {
            for (place, product) in places.iter().zip(products.chunks_exact(shape.rows)) {
                y[place * shape.rows..][..shape.rows].copy_from_slice(product);
            }
        });
        Ok(())
    }

    fn vector(&self, role: VectorRole, tenant: TenantId) -> Result<Option<Cow<'_, [f32]>>> {
        let tenant = self.running.family.tenants.get(&tenant).ok_or_else(|| unknown(tenant))?;
        Ok(tenant.vector(self.number, role).map(Cow::Owned))
    }
}

fn dense_bytes(matrix: &PackedMatrix) -> u64 {
    let shape = matrix.shape();
    (shape.rows * shape.cols * shape.weight.bytes()) as u64
}
