//! A running batch: its tokens are grouped by tenant, and each of their matrices is found in
//! memory, decoded into memory, or multiplied from the container.
//!
//! The choice among the three depends only on the order of the tokens and on earlier uses. So no
//! bit depends on threads or on prefetching.
//!
//! Matrices in use by the running batch are never evicted. While there is room, every decoded
//! matrix stays. Without room, the rule of LIRS applies (Jiang and Zhang, 2002): a matrix is
//! evicted only if its tenant has been idle for at least as long as the incoming one was away.
//!
//! So tenants that come for one token each, one after another, do not drive out those in memory,
//! but are multiplied from their containers. A tenant that also ran in the previous batch gets all
//! the room that others do not use now.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::background::Job;
use super::base::{MatrixPlace, VectorPlace};
use super::cache::{Key, Use};
use super::family::{Family, unknown};
use super::tenant::{Slot, dense_bytes};
use crate::layer::{Affine, Batch, LayerConfig, LayerWeights, MatrixRole, TenantId, VectorRole};
use deltaloom::{Error, Missing, Result};
use deltaloom_compute::{Form, PackedMatrix, Phase, Run, Segment, matmul_shared};

/// How many matrices ahead of the current one may be prefetched, for every tenant.
const STEPS_AHEAD: usize = 2;

/// A running batch. It ends when this value is dropped.
pub struct RunningBatch<'a> {
    family: &'a Family,
    batch: Batch,
    groups: Groups,
    /// Its tenants, with the previous batch in which each ran.
    before: BTreeMap<TenantId, Option<u64>>,
}

/// The weights of one layer for a batch.
pub struct RunningLayer<'a> {
    running: &'a RunningBatch<'a>,
    number: usize,
}

/// Tokens by tenant.
struct Groups {
    /// Number of tokens of each tenant, with tenants in the order of their first token.
    counts: Vec<(TenantId, usize)>,
    /// Where each token of these groups is; `None` if they are already in this order.
    places: Option<Vec<usize>>,
}

impl Groups {
    /// Groups runs of consecutive tokens.
    fn of(runs: impl Iterator<Item = (TenantId, Range<usize>)>) -> Self {
        let mut counts: Vec<(TenantId, usize)> = Vec::new();
        let mut order = Vec::new();
        for (tenant, tokens) in runs.filter(|(_, tokens)| !tokens.is_empty()) {
            let group = counts.iter().position(|(other, _)| *other == tenant);
            let group = group.unwrap_or_else(|| {
                counts.push((tenant, 0));
                counts.len() - 1
            });
            counts[group].1 += tokens.len();
            order.push((group, tokens));
        }
        let is_grouped = order.is_sorted_by_key(|(group, _)| *group);
        // Runs of a tenant keep their order.
        order.sort_by_key(|(group, _)| *group);
        let places = (!is_grouped).then(|| order.into_iter().flat_map(|(_, tokens)| tokens).collect());
        Self { counts, places }
    }

    fn tokens(&self) -> usize {
        self.counts.iter().map(|(_, tokens)| tokens).sum()
    }
}

impl<'a> RunningBatch<'a> {
    pub(super) fn new(family: &'a Family, batch: &Batch, before: BTreeMap<TenantId, Option<u64>>) -> Self {
        let groups = Groups::of(batch.places().map(|(sequence, tokens)| (sequence.tenant, tokens)));
        let running = Self { family, batch: batch.clone(), groups, before };
        running.prefetch_from(0);
        running
    }

    /// Its tokens.
    #[must_use]
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// The rows of these tokens in the embedding of each one's tenant: `[tokens, width]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another number of tokens than the batch has, or one that is
    /// not in the vocabulary; [`Error::NotFound`] without an embedding; errors of decoding.
    pub fn embed(&self, ids: &[u32]) -> Result<Vec<f32>> {
        if ids.len() != self.batch.tokens() {
            let what = format!("{} ids for {} tokens", ids.len(), self.batch.tokens());
            return Err(Error::InvalidArgument(what));
        }
        self.rows(MatrixPlace::Embedding, |tokens| ids[tokens].iter().map(|id| *id as usize).collect())
    }

    /// These rows of the table of positions of each token's tenant: `[tokens, width]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another number of rows than the batch has tokens, or one that
    /// is not there; [`Error::NotFound`] without a table of positions; errors of decoding.
    pub fn positions(&self, rows: &[usize]) -> Result<Vec<f32>> {
        if rows.len() != self.batch.tokens() {
            let what = format!("{} positions for {} tokens", rows.len(), self.batch.tokens());
            return Err(Error::InvalidArgument(what));
        }
        self.rows(MatrixPlace::Positions, |tokens| rows[tokens].to_vec())
    }

    /// Rows of each token's tenant. `chosen` gets the places of the tokens of a sequence in the
    /// batch.
    fn rows(&self, place: MatrixPlace, chosen: impl Fn(Range<usize>) -> Vec<usize>) -> Result<Vec<f32>> {
        let base = self.family.base.matrices.get(&place).ok_or_else(|| missing(place))?;
        let width = base.values.shape().cols;
        let mut out = vec![0.0; self.batch.tokens() * width];
        for (sequence, tokens) in self.batch.places().filter(|(_, tokens)| !tokens.is_empty()) {
            let key = Key { tenant: sequence.tenant, place };
            // Few rows are needed, so nothing is kept for them. A tied head may be in memory.
            let kept = self.family.cache().get(&key);
            let matrix = match kept {
                Some(matrix) => matrix,
                None => Arc::clone(self.slot(&key)?.direct()),
            };
            let rows = chosen(tokens.clone());
            matrix.gather(&rows, &mut out[tokens.start * width..tokens.end * width])?;
        }
        Ok(out)
    }

    /// The weight of the norm before the head, and its bias if there is one.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown tenant, or without such a norm.
    pub(crate) fn final_norm(&self, tenant: TenantId) -> Result<Affine<'_>> {
        let found = self.family.tenants.get(&tenant).ok_or_else(|| unknown(tenant))?;
        let missing = || Error::not_found(Missing::Tensor, "the norm before the head".to_owned());
        let weight = found.vector(VectorPlace::FinalNorm).ok_or_else(missing)?;
        Ok(Affine { weight: Some(weight), bias: found.vector(VectorPlace::FinalNormBias) })
    }

    /// Logits of some activations after the last norm, `[tokens, vocabulary]`. `tenants` has one
    /// for each of them; all must be in the batch.
    ///
    /// # Errors
    /// [`Error::NotFound`] for another tenant, or without a head; [`Error::InvalidArgument`] for
    /// other lengths; errors of decoding.
    pub fn logits(&self, tenants: &[TenantId], x: &[f32], run: &Run<'_>) -> Result<Vec<f32>> {
        if let Some(tenant) = tenants.iter().find(|tenant| !self.before.contains_key(tenant)) {
            return Err(unknown(*tenant));
        }
        let head = self.family.base.head();
        let base = self.family.base.matrices.get(&head).ok_or_else(|| missing(head))?;
        let mut y = vec![0.0; tenants.len() * base.values.shape().rows];
        let groups = Groups::of(tenants.iter().enumerate().map(|(i, tenant)| (*tenant, i..i + 1)));
        self.multiply(head, &groups, x, &mut y, run)?;
        Ok(y)
    }

    /// Number of layers.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.family.base.layers.len()
    }

    /// The weights of a layer.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown layer number.
    pub fn layer(&self, number: usize) -> Result<RunningLayer<'_>> {
        if number >= self.layers() {
            return Err(Error::not_found(Missing::Layer, format!("layer {number} of the family")));
        }
        Ok(RunningLayer { running: self, number })
    }

    fn slot(&self, key: &Key) -> Result<&Slot> {
        let tenant = self.family.tenants.get(&key.tenant).ok_or_else(|| unknown(key.tenant))?;
        tenant.slot(key.place).ok_or_else(|| missing(key.place))
    }

    /// Whether a matrix of this many bytes should be kept in memory.
    fn is_welcome(&self, key: &Key, bytes: u64) -> bool {
        let may_go = self.may_go_for(key.tenant);
        self.family.cache().can_make_room(bytes, may_go)
    }

    /// Whether matrices may be evicted for one of this tenant.
    fn may_go_for(&self, tenant: TenantId) -> impl Fn(&Key) -> bool {
        let before = self.before.get(&tenant).copied().flatten();
        let may_go = self.family.may_go_for(tenant, before);
        move |other| !self.before.contains_key(&other.tenant) && may_go(other)
    }

    /// One matrix of every group.
    fn matrices(&self, place: MatrixPlace, groups: &Groups) -> Result<Vec<Arc<PackedMatrix>>> {
        let keys = groups.counts.iter().map(|(tenant, _)| Key { tenant: *tenant, place });
        let keys: Vec<Key> = keys.collect();
        let mut found: Vec<Option<Arc<PackedMatrix>>> = Vec::with_capacity(keys.len());
        for key in &keys {
            let slot = self.slot(key)?;
            found.push(match slot.direct().form() {
                Form::Base => Some(Arc::clone(slot.direct())),
                _ => self.family.cache().get(key),
            });
            if slot.direct().form() != Form::Base {
                let is_there = found.last().is_some_and(Option::is_some);
                self.family.cache().count(key.tenant, if is_there { Use::Hit } else { Use::Miss });
            }
        }
        let missing =
            |found: &[Option<_>]| -> Vec<usize> { (0..keys.len()).filter(|i| found[*i].is_none()).collect() };
        // Decode matrices with an unknown form to find it, as many at a time as there are threads.
        // Keep them if they are welcome.
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
        // Reserve places for the others before decoding them.
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
        let may_go = self.may_go_for(key.tenant);
        self.family.cache().reserve(*key, bytes, may_go)
    }

    fn keep_or_leave(&self, key: &Key, bytes: u64, matrix: Arc<PackedMatrix>) -> Result<Arc<PackedMatrix>> {
        if matrix.form() == Form::Tiles || !self.reserve(key, bytes) {
            return self.leave(key);
        }
        self.family.cache().fill(key, &matrix);
        Ok(matrix)
    }

    /// Uses a matrix from its container, decoded during the product.
    fn leave(&self, key: &Key) -> Result<Arc<PackedMatrix>> {
        let direct = Arc::clone(self.slot(key)?.direct());
        let mut cache = self.family.cache();
        cache.count(key.tenant, Use::Direct);
        cache.residency.decoded_bytes += dense_bytes(&direct);
        Ok(direct)
    }

    /// Decodes some of these matrices on all threads.
    fn load_all(&self, some: &[usize], keys: &[Key]) -> Result<Vec<Arc<PackedMatrix>>> {
        if some.len() < 2 {
            return some.iter().map(|i| self.load(&keys[*i])).collect();
        }
        some.par_iter().map(|i| self.load(&keys[*i])).collect()
    }

    fn load(&self, key: &Key) -> Result<Arc<PackedMatrix>> {
        let mut threads = [&self.family.prefetcher, &self.family.builder].into_iter().flatten();
        let prefetched = threads.find_map(|thread| thread.take(key));
        let is_prefetched = prefetched.is_some();
        let loaded = prefetched.or_else(|| self.job(key)?.run());
        let loaded = loaded.unwrap_or_else(|| Err(unknown(key.tenant)))?;
        let residency = &mut self.family.cache().residency;
        residency.prefetch_hits += u64::from(is_prefetched);
        residency.decoded_bytes += loaded.decoded_bytes();
        Ok(loaded.matrix)
    }

    fn job(&self, key: &Key) -> Option<Job> {
        let tenant = Arc::clone(self.family.tenants.get(&key.tenant)?);
        Some(Job { key: *key, tenant, wanted: self.family.wanted(key.place) })
    }

    /// Requests prefetching for the next matrices, as far as they are predictable. `step` counts
    /// matrices through all layers.
    fn prefetch_from(&self, step: usize) {
        let Some(prefetcher) = &self.family.prefetcher else { return };
        let mut jobs = Vec::new();
        for place in self.family.base.order.iter().skip(step).take(STEPS_AHEAD) {
            for (tenant, _) in &self.groups.counts {
                let key = Key { tenant: *tenant, place: *place };
                let Ok(slot) = self.slot(&key) else { continue };
                let is_wanted = match slot.chosen() {
                    Some(chosen) => chosen.form != Form::Tiles && self.is_welcome(&key, chosen.bytes),
                    None => slot.direct().form() != Form::Base,
                };
                // What is built for a waiting request need not be decoded twice.
                let is_built = self.family.builder.as_ref().is_some_and(|builder| builder.knows(&key));
                if is_wanted && !is_built && !self.family.cache().has(&key) {
                    jobs.extend(self.job(&key));
                }
            }
        }
        prefetcher.replace(jobs);
    }

    /// Multiplies tokens with a matrix of each one's tenant.
    fn multiply(
        &self,
        place: MatrixPlace,
        groups: &Groups,
        x: &[f32],
        y: &mut [f32],
        run: &Run<'_>,
    ) -> Result<()> {
        let base = &self.family.base.matrices.get(&place).ok_or_else(|| missing(place))?.values;
        let matrices = self.matrices(place, groups)?;
        let step = self.family.base.order.iter().position(|other| *other == place);
        self.prefetch_from(step.map_or(0, |step| step + 1));
        let segments = groups.counts.iter().zip(&matrices);
        let segments: Vec<Segment<'_>> =
            segments.map(|((_, tokens), matrix)| Segment { tokens: *tokens, matrix }).collect();
        let shape = base.shape();
        let fits = |len: usize, width: usize| groups.tokens().checked_mul(width) == Some(len);
        let Some(places) =
            groups.places.as_ref().filter(|_| fits(x.len(), shape.cols) && fits(y.len(), shape.rows))
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
        &self.running.family.base.layers[self.number]
    }
}

impl LayerWeights for RunningLayer<'_> {
    fn matmul(&self, role: MatrixRole, batch: &Batch, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()> {
        let running = self.running;
        if *batch != running.batch {
            return Err(Error::InvalidArgument("this is another batch than the one that was started".into()));
        }
        running.multiply(MatrixPlace::Layer(self.number, role), &running.groups, x, y, run)
    }

    fn vector(&self, role: VectorRole, tenant: TenantId) -> Result<Option<Cow<'_, [f32]>>> {
        let tenant = self.running.family.tenants.get(&tenant).ok_or_else(|| unknown(tenant))?;
        Ok(tenant.vector(VectorPlace::Layer(self.number, role)).map(Cow::Borrowed))
    }
}

fn missing(place: MatrixPlace) -> Error {
    let what = match place {
        MatrixPlace::Embedding => "the embedding of the model".to_owned(),
        MatrixPlace::Positions => "the table of positions of the model".to_owned(),
        MatrixPlace::Head => "the head of the model".to_owned(),
        MatrixPlace::Layer(layer, role) => format!("the matrix {role:?} of layer {layer}"),
    };
    Error::not_found(Missing::Layer, what)
}
