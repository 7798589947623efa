//! Stores of a series in S3, Google Cloud Storage and Azure, through the crate `object_store`.
//! It moves bytes and says who must act when that fails; what the objects mean is the library's matter, and a directory is the library's own store.
//!
//! The library is synchronous and has no network; so is this interface. One runtime with two threads, shared by all stores of the process, does the waiting.

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
pub use service::Service;
