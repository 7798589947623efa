//! Which matrices of which tenants are in memory, to the byte: what is used stays, what was not used for longest goes.
//! It decodes nothing; [`super::RunningBatch`] fills the places it gives.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Serialize;

use crate::layer::{MatrixRole, TenantId};
use deltaloom_compute::PackedMatrix;

/// A matrix of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) tenant: TenantId,
    pub(super) layer: usize,
    pub(super) role: MatrixRole,
}

/// What is in memory, and what was done to have it there. Counts go on from the beginning of the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Residency {
    /// Bytes that resident forms may take.
    pub budget_bytes: u64,
    /// Bytes that matrices take, the base and mapped containers not counted.
    pub matrix_bytes: u64,
    /// Bytes that vectors of tenants take. They always stay, and leave that much less of the budget to matrices.
    pub vector_bytes: u64,
    /// The most that matrices and vectors have taken.
    pub peak_bytes: u64,
    /// Uses of a matrix that was there.
    pub hits: u64,
    /// Uses of one that was not.
    pub misses: u64,
    /// Misses that were multiplied straight from the container's tiles, and left no trace.
    pub direct: u64,
    /// Matrices that gave way to others.
    pub evictions: u64,
    /// Dense bytes of what was decoded, to be kept or multiplied. Choosing a form decodes once more.
    pub decoded_bytes: u64,
    /// Matrices decoded ahead of their use, in the background.
    pub prefetched: u64,
    /// Misses for which that had been done, or begun.
    pub prefetch_hits: u64,
}

/// The places of matrices. A place may be taken before its matrix is decoded.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<Key, Entry>,
    /// By last use.
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

    /// Bytes that matrices may take.
    pub(super) fn matrix_budget(&self) -> u64 {
        self.residency.budget_bytes.saturating_sub(self.residency.vector_bytes)
    }

    /// Whether a matrix is there, without using it.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.matrix.is_some())
    }

    /// A matrix that is there, which then is the one used last.
    pub(super) fn get(&mut self, key: &Key) -> Option<Arc<PackedMatrix>> {
        let entry = self.entries.get_mut(key)?;
        let matrix = entry.matrix.clone()?;
        self.by_age.remove(&entry.age);
        self.uses += 1;
        entry.age = self.uses;
        self.by_age.insert(self.uses, *key);
        Some(matrix)
    }

    /// Whether so many bytes are free.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.residency.matrix_bytes.checked_add(bytes).is_some_and(|sum| sum <= self.matrix_budget())
    }

    /// Whether so many bytes can be had when everything may go that `may_go` allows.
    pub(super) fn can_make_room(&self, bytes: u64, may_go: impl Fn(&Key) -> bool) -> bool {
        self.victims(bytes, may_go).is_some()
    }

    /// Takes a place of so many bytes, for which others may have to go, longest unused first; none goes where that is not enough. What the place held before is given back.
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

    /// Puts a matrix into the place that was taken for it.
    pub(super) fn fill(&mut self, key: &Key, matrix: &Arc<PackedMatrix>) {
        if let Some(entry) = self.entries.get_mut(key) {
            debug_assert_eq!(entry.bytes, matrix.resident_bytes());
            entry.matrix = Some(Arc::clone(matrix));
        }
    }

    /// Gives a place back.
    pub(super) fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.by_age.remove(&entry.age);
            self.residency.matrix_bytes -= entry.bytes;
        }
    }

    /// Gives back all places of a tenant.
    pub(super) fn remove_tenant(&mut self, tenant: TenantId) {
        let keys: Vec<Key> = self.entries.keys().filter(|key| key.tenant == tenant).copied().collect();
        keys.iter().for_each(|key| self.remove(key));
    }

    /// Counts vectors of a tenant that comes; matrices that then are too many go, longest unused first.
    pub(super) fn add_vectors(&mut self, bytes: u64) {
        self.residency.vector_bytes += bytes;
        let victims = self.victims(0, |_| true).unwrap_or_default();
        self.residency.evictions += victims.len() as u64;
        victims.iter().for_each(|victim| self.remove(victim));
        self.note_peak();
    }

    /// Counts vectors of a tenant that goes.
    pub(super) fn remove_vectors(&mut self, bytes: u64) {
        self.residency.vector_bytes -= bytes;
    }

    fn note_peak(&mut self) {
        let residency = &mut self.residency;
        residency.peak_bytes = residency.peak_bytes.max(residency.matrix_bytes + residency.vector_bytes);
    }

    /// Who has to go for so many bytes; none where that is not enough.
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
        Key { tenant: TenantId::new(tenant), layer: 0, role: MatrixRole::Up }
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
