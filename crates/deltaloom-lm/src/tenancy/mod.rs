//! Many fine-tunes of one base, served together: the base is there once, and each tenant's matrices as what differs from it, within a budget of bytes.
//! It says which weights a token is multiplied with and which of them stay in memory; products are [`deltaloom_compute`]'s, and requests are whoever calls it.
//!
//! A [`Family`] is a base with its layers; tenants are added and removed between batches. [`Family::start`] begins a batch of tokens of any tenants and gives the weights of
//! every layer to [`crate::layer::forward`]; [`Family::forward`] does it for all layers.

mod cache;
mod estimate;
mod family;
mod prefetch;
mod running;
mod tenant;

pub use cache::Residency;
pub use estimate::{LoadedTenant, ModelSizes, TenantBytes};
pub use family::{Family, FamilyOptions, Forms};
pub use running::{RunningBatch, RunningLayer};
