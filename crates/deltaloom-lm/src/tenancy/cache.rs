//! Which matrices of which tenants are in memory, accurate to the byte. Used matrices stay; the
//! least recently used go first.
//!
//! It decodes nothing; [`super::RunningBatch`] fills the places that it reserves.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::Serialize;

use super::base::MatrixPlace;
use crate::layer::TenantId;
use deltaloom_compute::{Form, PackedMatrix};

/// A matrix of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) tenant: TenantId,
    pub(super) place: MatrixPlace,
}

/// Memory in use, and the work done for it. Counts start with the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Residency {
    /// Budget in bytes for resident forms.
    pub budget_bytes: u64,
    /// Bytes of matrices, without the base and mapped containers.
    pub matrix_bytes: u64,
    /// Bytes of vectors of tenants. They always stay, and reduce the budget for matrices.
    pub vector_bytes: u64,
    /// The most bytes that matrices and vectors have used.
    pub peak_bytes: u64,
    /// Uses of a matrix in memory.
    pub hits: u64,
    /// Uses of a matrix that was not in memory.
    pub misses: u64,
    /// Misses that were multiplied directly from the container's tiles and left no trace.
    pub direct: u64,
    /// Matrices that were evicted for others.
    pub evictions: u64,
    /// Dense bytes of everything decoded, to be kept or multiplied. Choosing the form of a
    /// large matrix decodes it once more.
    pub decoded_bytes: u64,
    /// Matrices decoded in the background before their use.
    pub prefetched: u64,
    /// Misses whose matrix was already prefetched, or being prefetched.
    pub prefetch_hits: u64,
}

/// What one tenant has in memory, and the work done for it. Counts start when it is admitted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct TenantResidency {
    /// Bytes of its matrices and vectors in memory, without the base and its container.
    pub resident_bytes: u64,
    /// Number of its matrices that differ from those of the base.
    pub changed_matrices: usize,
    /// Number of those that are in memory.
    pub resident_matrices: usize,
    /// Number of matrices in each form, among those that are the base's or have been decoded.
    pub forms: BTreeMap<Form, usize>,
    /// Whether its matrices are never evicted.
    pub is_pinned: bool,
    /// How its matrices were used.
    #[serde(flatten)]
    pub uses: Uses,
}

/// How the matrices of a tenant were used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Uses {
    /// Uses of a matrix in memory.
    pub hits: u64,
    /// Uses of a matrix that was not in memory.
    pub misses: u64,
    /// Misses that were multiplied directly from the container's tiles.
    pub direct: u64,
    /// Matrices that were evicted for others.
    pub evictions: u64,
}

/// The places of matrices. A place may be reserved before its matrix is decoded.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<Key, Entry>,
    /// In order of last use.
    by_age: BTreeMap<u64, Key>,
    uses: u64,
    by_tenant: BTreeMap<TenantId, Uses>,
    /// Tenants whose matrices are never evicted.
    pinned: BTreeSet<TenantId>,
    pub(super) residency: Residency,
}

/// Where a matrix was when it was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Hit,
    Miss,
    /// What a miss may become.
    Direct,
}

#[derive(Debug)]
struct Entry {
    matrix: Option<Arc<PackedMatrix>>,
    bytes: u64,
    age: u64,
}

impl Cache {
    pub(super) fn new(budget_bytes: u64) -> Self {
        Self { residency: Residency { budget_bytes, ..Residency::default() }, ..Self::default() }
    }

    /// Budget in bytes for matrices.
    pub(super) fn matrix_budget(&self) -> u64 {
        self.residency.budget_bytes.saturating_sub(self.residency.vector_bytes)
    }

    /// Whether a matrix is in memory, without using it.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.matrix.is_some())
    }

    /// Uses a matrix in memory, which becomes the most recently used.
    pub(super) fn get(&mut self, key: &Key) -> Option<Arc<PackedMatrix>> {
        let entry = self.entries.get_mut(key)?;
        let matrix = entry.matrix.clone()?;
        self.by_age.remove(&entry.age);
        self.uses += 1;
        entry.age = self.uses;
        self.by_age.insert(self.uses, *key);
        Some(matrix)
    }

    /// Whether this many bytes are free, or could be if everything may go that `may_go` allows.
    pub(super) fn can_make_room(&self, bytes: u64, may_go: impl Fn(&Key) -> bool) -> bool {
        self.victims(bytes, may_go).is_some()
    }

    /// Reserves a place of this many bytes and evicts others for it, least recently used first. If
    /// that is not enough, evicts none. A previous place of the key is released.
    pub(super) fn reserve(&mut self, key: Key, bytes: u64, may_go: impl Fn(&Key) -> bool) -> bool {
        self.remove(&key);
        let Some(victims) = self.victims(bytes, may_go) else { return false };
        victims.iter().for_each(|victim| self.evict(victim));
        self.uses += 1;
        self.by_age.insert(self.uses, key);
        self.entries.insert(key, Entry { matrix: None, bytes, age: self.uses });
        self.residency.matrix_bytes += bytes;
        self.note_peak();
        true
    }

    /// Puts a matrix into the place reserved for it.
    pub(super) fn fill(&mut self, key: &Key, matrix: &Arc<PackedMatrix>) {
        if let Some(entry) = self.entries.get_mut(key) {
            debug_assert_eq!(entry.bytes, matrix.resident_bytes());
            entry.matrix = Some(Arc::clone(matrix));
        }
    }

    /// Releases a place.
    pub(super) fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.by_age.remove(&entry.age);
            self.residency.matrix_bytes -= entry.bytes;
        }
    }

    fn evict(&mut self, key: &Key) {
        self.residency.evictions += 1;
        self.by_tenant.entry(key.tenant).or_default().evictions += 1;
        self.remove(key);
    }

    /// Counts a use.
    pub(super) fn count(&mut self, tenant: TenantId, used: Use) {
        let uses = self.by_tenant.entry(tenant).or_default();
        let (of_tenant, all) = match used {
            Use::Hit => (&mut uses.hits, &mut self.residency.hits),
            Use::Miss => (&mut uses.misses, &mut self.residency.misses),
            Use::Direct => (&mut uses.direct, &mut self.residency.direct),
        };
        *of_tenant += 1;
        *all += 1;
    }

    /// Keeps the matrices of a tenant from being evicted, or allows it again.
    pub(super) fn pin(&mut self, tenant: TenantId, is_pinned: bool) {
        if is_pinned {
            self.pinned.insert(tenant);
        } else {
            self.pinned.remove(&tenant);
        }
    }

    pub(super) fn is_pinned(&self, tenant: TenantId) -> bool {
        self.pinned.contains(&tenant)
    }

    /// What a tenant has in memory, without its vectors and forms.
    pub(super) fn of_tenant(&self, tenant: TenantId) -> TenantResidency {
        let entries = self.entries.iter().filter(|(key, _)| key.tenant == tenant);
        let resident = entries.map(|(_, entry)| entry).filter(|entry| entry.matrix.is_some());
        let (resident_matrices, resident_bytes) =
            resident.fold((0, 0), |(count, bytes), entry| (count + 1, bytes + entry.bytes));
        TenantResidency {
            resident_bytes,
            resident_matrices,
            is_pinned: self.is_pinned(tenant),
            uses: self.by_tenant.get(&tenant).copied().unwrap_or_default(),
            ..TenantResidency::default()
        }
    }

    /// Releases all places of a tenant, and forgets it.
    pub(super) fn remove_tenant(&mut self, tenant: TenantId) {
        self.by_tenant.remove(&tenant);
        self.pinned.remove(&tenant);
        let keys: Vec<Key> = self.entries.keys().filter(|key| key.tenant == tenant).copied().collect();
        keys.iter().for_each(|key| self.remove(key));
    }

    /// Counts vectors of a new tenant and evicts matrices over the budget, least recently used
    /// first. Those of pinned tenants stay even then.
    pub(super) fn add_vectors(&mut self, bytes: u64) {
        self.residency.vector_bytes += bytes;
        while self.residency.matrix_bytes > self.matrix_budget() {
            let oldest = self.by_age.values().find(|key| !self.pinned.contains(&key.tenant)).copied();
            let Some(victim) = oldest else { break };
            self.evict(&victim);
        }
        self.note_peak();
    }

    /// Stops counting vectors of a removed tenant.
    pub(super) fn remove_vectors(&mut self, bytes: u64) {
        self.residency.vector_bytes -= bytes;
    }

    fn note_peak(&mut self) {
        let residency = &mut self.residency;
        residency.peak_bytes = residency.peak_bytes.max(residency.matrix_bytes + residency.vector_bytes);
    }

    /// The matrices to evict for this many bytes; `None` if that is not enough.
    fn victims(&self, bytes: u64, may_go: impl Fn(&Key) -> bool) -> Option<Vec<Key>> {
        let budget = self.matrix_budget().checked_sub(bytes)?;
        let mut left = self.residency.matrix_bytes;
        let mut victims = Vec::new();
        let mut oldest = self.by_age.values().filter(|key| !self.pinned.contains(&key.tenant) && may_go(key));
        while left > budget {
            let victim = oldest.next()?;
            left -= self.entries.get(victim).map_or(0, |entry| entry.bytes);
            victims.push(*victim);
        }
        Some(victims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tenant: usize) -> Key {
        Key { tenant: TenantId::new(tenant), place: MatrixPlace::Embedding }
    }

    fn tenants(cache: &Cache) -> Vec<usize> {
        cache.by_age.values().map(|key| key.tenant.number()).collect()
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let mut cache = Cache::new(100);
        for tenant in 0..4 {
            assert!(cache.can_make_room(25, |_| false) && cache.reserve(key(tenant), 25, |_| true));
        }
        assert!(!cache.can_make_room(1, |_| false) && cache.can_make_room(0, |_| false));
        assert!(cache.reserve(key(4), 30, |_| true));
        assert_eq!((tenants(&cache), cache.residency.matrix_bytes), (vec![2, 3, 4], 80));
        // Tenant 2 is in use.
        assert!(cache.reserve(key(5), 40, |key| key.tenant != TenantId::new(2)));
        assert_eq!((tenants(&cache), cache.residency.matrix_bytes), (vec![2, 4, 5], 95));
        assert!(
            !cache.reserve(key(6), 40, |key| key.tenant == TenantId::new(2))
                && !cache.reserve(key(6), 101, |_| true)
        );
        assert_eq!((tenants(&cache), cache.residency.evictions), (vec![2, 4, 5], 3));
        assert!(
            cache.can_make_room(75, |key| key.tenant != TenantId::new(2))
                && !cache.can_make_room(76, |key| key.tenant != TenantId::new(2))
        );
    }

    #[test]
    fn every_byte_is_given_back() {
        let mut cache = Cache::new(100);
        cache.add_vectors(10);
        assert!(!cache.reserve(key(0), 91, |_| true) && cache.reserve(key(0), 90, |_| true));
        // The same place again.
        assert!(cache.reserve(key(0), 40, |_| false) && cache.reserve(key(1), 50, |_| false));
        assert_eq!(cache.residency.matrix_bytes, 90);
        cache.add_vectors(20);
        assert_eq!((tenants(&cache), cache.residency.matrix_bytes), (vec![1], 50));
        cache.add_vectors(200);
        assert_eq!((cache.residency.matrix_bytes, cache.matrix_budget()), (0, 0));
        cache.remove_vectors(220);
        assert!(cache.reserve(key(1), 60, |_| false) && cache.reserve(key(2), 30, |_| false));
        cache.remove_tenant(TenantId::new(1));
        cache.remove_tenant(TenantId::new(2));
        cache.remove_tenant(TenantId::new(7));
        let left = cache.residency;
        assert_eq!((left.matrix_bytes, left.vector_bytes, left.peak_bytes), (0, 10, 230));
        assert!(cache.by_age.is_empty() && !cache.has(&key(0)));
    }

    #[test]
    fn pinned_matrices_stay_and_count() {
        let mut cache = Cache::new(100);
        (0..4).for_each(|tenant| assert!(cache.reserve(key(tenant), 25, |_| true)));
        cache.pin(TenantId::new(0), true);
        cache.pin(TenantId::new(2), true);
        assert!(!cache.can_make_room(51, |_| true) && cache.reserve(key(4), 50, |_| true));
        assert_eq!((tenants(&cache), cache.residency.matrix_bytes), (vec![0, 2, 4], 100));
        // Vectors come in any case.
        cache.add_vectors(60);
        assert_eq!((tenants(&cache), cache.residency.matrix_bytes), (vec![0, 2], 50));
        assert!(!cache.can_make_room(0, |_| true) && !cache.reserve(key(5), 1, |_| true));
        assert_eq!(cache.of_tenant(TenantId::new(4)).uses.evictions, 1);
        assert_eq!(cache.of_tenant(TenantId::new(1)).uses.evictions, 1);
        assert!(cache.of_tenant(TenantId::new(2)).is_pinned);
        cache.pin(TenantId::new(2), false);
        assert!(cache.reserve(key(5), 15, |_| true));
        assert_eq!((tenants(&cache), cache.residency.evictions), (vec![0, 5], 4));
        cache.remove_tenant(TenantId::new(0));
        assert_eq!(cache.of_tenant(TenantId::new(0)), TenantResidency::default());
    }
}
