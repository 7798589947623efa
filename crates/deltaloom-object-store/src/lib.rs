//! Stores of a series in S3, Google Cloud Storage and Azure, through the crate `object_store`.
//!
//! It moves bytes, and says who must act if that fails. The library knows what the objects mean,
//! and has its own store for local directories.
//!
//! The library is synchronous and has no network; this interface is synchronous too. One runtime
//! with two threads, shared by all stores of the process, does the waiting.

mod blocks;
mod connect;
mod fault;
mod manifest;
mod remote;
mod runtime;
mod service;
mod upload;

pub use connect::{is_url, open, open_with};
pub use fault::{Cause, Fault, fault};
pub use remote::RemoteStore;
pub use runtime::when_slow;
pub use service::Service;
