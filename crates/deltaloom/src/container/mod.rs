//! The `.loom` file: layout, index, reader and writer.
//! It does not predict or plan: readers pass it predictions, and writers pass it coded chunks.

mod ends;
mod identity;
mod index;
mod layout;
mod reader;
mod writer;

pub(crate) use ends::version_for;
pub(crate) use identity::Identity;
pub use identity::{BaseDigest, NamedBase, Texts};
pub(crate) use index::{ChunkEntry, GroupEntry, Index, KnownDigest, PackedTensor, PayloadEntry};
pub use reader::{Container, PartBytes};
pub(crate) use writer::ContainerWriter;

/// BLAKE3 of a tensor's bytes.
pub(crate) type Digest = blake3::Hash;
