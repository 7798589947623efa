//! Tenants whose requests wait: their matrices are decoded in the background while others run, and
//! come into memory between batches.
//!
//! The rule of [`super::running`] applies: without room, a matrix is evicted only if its tenant has
//! been idle for at least as long as the incoming one was away. To be expected counts as a use of
//! what is there, so that it is not evicted before the request runs. What has no room is not built
//! any further.

use std::sync::Arc;

use super::background::{Ahead, Background, Job};
use super::cache::Key;
use super::family::{Family, unknown};
use crate::layer::TenantId;
use deltaloom::Result;
use deltaloom_compute::Form;

/// The part of the budget that matrices may take in addition while they wait for
/// [`Family::take_expected`].
const WAITING_SHARE: u64 = 8;

impl Family {
    /// Has the matrices of a tenant decoded in the background, because a request for it waits. No
    /// bit of an exact run depends on it. Nothing happens for what is in memory, and for what has
    /// no room: that will be multiplied from its container.
    ///
    /// Decoded matrices wait for [`Self::take_expected`]. They may take an eighth of the budget and
    /// one matrix in addition to it.
    ///
    /// # Errors
    /// [`deltaloom::Error::NotFound`] for an unknown tenant.
    pub fn expect(&mut self, tenant: TenantId) -> Result<()> {
        let jobs = self.jobs_of(tenant)?;
        self.expected.insert(tenant, self.batches);
        if !jobs.is_empty() {
            let ahead = Ahead::Bytes(self.options.budget_bytes / WAITING_SHARE);
            self.builder.get_or_insert_with(|| Background::new("expect", ahead)).add(jobs);
        }
        Ok(())
    }

    /// The matrices of a tenant that are not in memory, up to the first without room.
    fn jobs_of(&self, tenant: TenantId) -> Result<Vec<Job>> {
        let found = self.tenants.get(&tenant).ok_or_else(|| unknown(tenant))?;
        let may_go = self.may_go_for_expected(tenant);
        let mut jobs = Vec::new();
        let mut bytes = 0_u64;
        for place in &self.base.order {
            let (key, Some(slot)) = (Key { tenant, place: *place }, found.slot(*place)) else { continue };
            let is_tiles = slot.chosen().is_some_and(|chosen| chosen.form == Form::Tiles);
            if slot.direct().form() == Form::Base || is_tiles || self.cache().has(&key) {
                continue;
            }
            // The size of one without a form is not known yet.
            bytes = bytes.saturating_add(slot.chosen().map_or(0, |chosen| chosen.bytes));
            if !self.cache().can_make_room(bytes, &may_go) {
                break;
            }
            jobs.push(Job { key, tenant: Arc::clone(found), wanted: self.wanted(*place) });
        }
        Ok(jobs)
    }

    /// Whether matrices of a tenant are still being decoded, or wait for [`Self::take_expected`].
    #[must_use]
    pub fn is_expected(&self, tenant: TenantId) -> bool {
        self.builder.as_ref().is_some_and(|builder| builder.has(tenant))
    }

    /// Moves what was decoded for waiting requests into memory, as far as there is room. To be
    /// called between batches; it takes microseconds.
    pub fn take_expected(&mut self) {
        let Some(builder) = &self.builder else { return };
        for (key, result) in builder.take_all() {
            let Some(slot) = self.tenants.get(&key.tenant).and_then(|tenant| tenant.slot(key.place)) else {
                continue;
            };
            // The batch that needs the matrix finds the error again and tells it.
            let Ok(loaded) = result else { continue };
            let bytes = slot.choose(&loaded.matrix).bytes;
            let may_go = self.may_go_for_expected(key.tenant);
            let mut cache = self.cache();
            cache.residency.decoded_bytes += loaded.decoded_bytes();
            if loaded.matrix.form() == Form::Tiles || cache.has(&key) {
                continue;
            }
            if cache.reserve(key, bytes, may_go) {
                cache.fill(&key, &loaded.matrix);
            } else {
                builder.forget(key.tenant);
            }
        }
    }

    /// Whether matrices may be evicted for one of a tenant that waits.
    fn may_go_for_expected(&self, tenant: TenantId) -> impl Fn(&Key) -> bool {
        let may_go = self.may_go_for(tenant, self.last_batches.get(&tenant).copied());
        move |other| other.tenant != tenant && may_go(other)
    }
}
