//! Which matrices of which tenants are in memory, accurate to the byte. Used matrices stay; the
//! least recently used go first.
//!
//! It decodes nothing; [`super::RunningBatch`] fills the places that it reserves.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Serialize;

use super::base::MatrixPlace;
use crate::layer::TenantId;
use deltaloom_compute::PackedMatrix;

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
    /// Dense bytes of everything decoded, to be kept or multiplied. Choosing a form decodes once
    /// more.
    pub decoded_bytes: u64,
    /// Matrices decoded in the background before their use.
    pub prefetched: u64,
    /// Misses whose matrix was already prefetched, or being prefetched.
    pub prefetch_hits: u64,
}

/// The places of matrices. A place may be reserved before its matrix is decoded.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<Key, Entry>,
    /// In order of last use.
    by_age: BTreeMap<u64, Key>,
    uses: u64,
    pub(super) residency: Residency,
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

    /// Whether this many bytes are free.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.residency.matrix_bytes.checked_add(bytes).is_some_and(|sum| sum <= self.matrix_budget())
    }

    /// Whether this many bytes could be freed if everything may go that `may_go` allows.
    pub(super) fn can_make_room(&self, bytes: u64, may_go: impl Fn(&Key) -> bool) -> bool {
        self.victims(bytes, may_go).is_some()
    }

    /// Reserves a place of this many bytes and evicts others for it, least recently used first. If
    /// that is not enough, evicts none. A previous place of the key is released.
    pub(super) fn reserve(&mut self, key: Key, bytes: u64, may_go: impl Fn(&Key) -> bool) -> bool {
        self.remove(&key);
        let Some(victims) = self.victims(bytes, may_go) else { return false };
        self.residency.evictions += victims.len() as u64;
        victims.iter().for_each(|victim| self.remove(victim));
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

    /// Releases all places of a tenant.
    pub(super) fn remove_tenant(&mut self, tenant: TenantId) {
        let keys: Vec<Key> = self.entries.keys().filter(|key| key.tenant == tenant).copied().collect();
        keys.iter().for_each(|key| self.remove(key));
    }

    /// Counts vectors of a new tenant and evicts matrices over the budget, least recently used
    /// first.
    pub(super) fn add_vectors(&mut self, bytes: u64) {
        self.residency.vector_bytes += bytes;
        let victims = self.victims(0, |_| true).unwrap_or_default();
        self.residency.evictions += victims.len() as u64;
        victims.iter().for_each(|victim| self.remove(victim));
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
        let mut oldest = self.by_age.values().filter(|key| may_go(key));
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
            assert!(cache.has_room(25) && cache.reserve(key(tenant), 25, |_| true));
        }
        assert!(!cache.has_room(1) && cache.has_room(0));
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
}
