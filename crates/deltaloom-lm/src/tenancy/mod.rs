//! Serves many fine-tunes of one base together. The base is in memory once, and each tenant's
//! matrices as differences from it, within a budget of bytes.
//!
//! It decides which weights multiply a token and which of them stay in memory.
//! [`deltaloom_compute`] computes the products, and the caller brings the requests.
//!
//! A [`Family`] is a base with its layers; tenants are added and removed between batches.
//! [`Family::start`] begins a batch of tokens of any tenants and provides the weights of every
//! layer for [`crate::layer::forward`]; [`Family::forward`] does this for all layers.

mod background;
mod base;
mod cache;
mod digest;
mod estimate;
mod expected;
mod family;
mod prepare;
mod running;
mod tenant;

pub use base::GlobalNames;
pub use cache::{Residency, TenantResidency, Uses};
pub use estimate::{LoadedTenant, ModelSizes, TenantBytes};
pub use family::{Family, FamilyOptions, Forms};
pub use prepare::{PreparedTenant, Preparer};
pub use running::{RunningBatch, RunningLayer};
