//! deltaloom packs neural-network weights exactly. It predicts each tensor from what the reader
//! already has, counts the residual in ULPs, and entropy-codes it in the context of the prediction.
//!
//! [`pack`] writes a container and [`unpack`] restores its files byte for byte. [`unpack_in_place`]
//! turns the base itself into the fine-tune. [`verify`] checks a container, [`inspect`] describes
//! one without decoding it, and [`diff`] compares two checkpoints.
//!
//! The library is synchronous and never touches a network. `docs/format.md` specifies the
//! container, and `ARCHITECTURE.md` is the map of the modules.

// Sizes in files and in memory are the same numbers; see `limits::to_usize`.
const _: () = assert!(usize::BITS >= 64, "deltaloom needs a 64-bit machine");

pub mod checkpoint;
mod entropy;
mod error;
mod limits;
mod options;
mod progress;
mod scratch;
pub mod tensor;

pub mod predict;
mod residual;

mod codec;
mod plan;

mod lowrank;

mod bases;
mod container;
mod sample;
mod search;
mod sketch;

mod diff;
mod in_place;
mod inspect;
pub mod lab;
mod lineage;
mod pack;
mod pipeline;
pub mod report;
mod unpack;
mod verify;

pub mod compute;
pub mod tenancy;

pub mod lossy;
pub mod series;

pub use bases::{Bases, ResolvedContainer};
pub use codec::Codec;
pub use container::{BaseDigest, Container, NamedBase, PartBytes, Texts};
pub use diff::{DiffReport, DiffTotal, TensorDiff, UlpHistogram, Uncompared, diff};
pub use error::{Access, Error, ErrorKind, Missing, Result};
pub use in_place::{Check, InPlaceOptions, InPlaceReport, unpack_in_place};
pub use inspect::{inspect, needs_base};
pub use limits::Limits;
pub use lineage::{BlendPart, Evidence, Finding, FindingGroup, LineageReport, TensorLineage, lineage};
pub use pack::{PackOptions, pack, pack_to};
pub use pipeline::with_threads;
pub use plan::Preset;
pub use progress::{Progress, Silent};
pub use report::{PackReport, Share, TensorReport};
pub use search::{
    BaseCandidate, BaseSearch, FoundBases, SearchReport, SkippedFile, find_base, find_needed_bases,
};
pub use unpack::{UnpackOptions, UnpackReport, read_tensor, unpack, unpack_to};
pub use verify::{Verifiable, VerifyReport, verify};

/// The instruction set that the hot loops use: reports of speed should name it.
#[must_use]
pub fn isa_name() -> &'static str {
    deltaloom_kernels::isa::isa().name()
}
