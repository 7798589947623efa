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
mod foreign;
mod limits;
mod options;
mod progress;
mod scratch;
pub mod tensor;

mod predict;
mod residual;

mod codec;
mod plan;

mod lowrank;

mod base_search;
mod bases;
mod container;
mod origin;
mod sample;
mod sketch;
mod summary;
mod weights;

mod diff;
mod in_place;
mod inspect;
mod lineage;
mod pack;
mod pipeline;
mod unpack;
mod verify;

pub mod series;

/// What other crates of this project need besides the public API. It may change at any time.
#[doc(hidden)]
pub mod __internals {
    pub use crate::checkpoint::check_paths;
    pub use crate::checkpoint::output::NewDirectory;
    pub use crate::checkpoint::safetensors::{LOSSY_MAGIC, parse_header};
    pub use crate::entropy::{block, bytes, frame, log2, table};
    pub use crate::limits::{narrow, to_usize};
    pub use crate::predict::{Element, load, number::load_singles};
    pub use crate::progress::check_cancelled;
    pub use crate::summary::ratio;

    /// What a chunk costs, in fixed-point bits.
    pub mod plan {
        pub use crate::plan::{residual_cost, stand_alone_cost};
    }

    /// Samples of tensors.
    pub mod sample {
        pub use crate::sample::{ELEMS, read};
    }
}

pub use base_search::{
    BaseCandidate, BaseSearch, FoundBases, SearchReport, SkippedFile, find_base, find_needed_bases,
};
pub use bases::{Bases, Changes, ResolvedContainer};
pub use codec::Codec;
pub use container::{BaseDigest, Container, NamedBase, PartBytes, Texts};
pub use diff::{DiffReport, DiffTotal, Squares, TensorDiff, UlpHistogram, Uncompared, diff};
pub use error::{Access, Error, ErrorKind, Missing, Result};
pub use in_place::{Check, InPlaceOptions, InPlaceReport, unpack_in_place};
pub use inspect::{inspect, needs_base};
pub use limits::Limits;
pub use lineage::{BlendPart, Evidence, Finding, FindingGroup, LineageReport, TensorLineage, lineage};
pub use pack::{PackOptions, pack, pack_to};
pub use pipeline::with_threads;
pub use plan::Preset;
pub use progress::{Progress, Silent};
pub use summary::{AdapterReport, PackReport, Portion, Share, TensorReport};
pub use unpack::{UnpackOptions, UnpackReport, read_tensor, unpack, unpack_to};
pub use verify::{Verifiable, VerifyReport, verify};
pub use weights::{FieldEntropy, WeightStatistics, weights};

/// The instruction set that the hot loops use: reports of speed should name it.
#[must_use]
pub fn isa_name() -> &'static str {
    deltaloom_kernels::isa::isa().name()
}
