//! One number for all weights of a model: equal for a container and for the dense files of the same
//! weights.

use blake3::{Hash, Hasher};

/// Tells these digests from all others.
const TAG: &[u8] = b"deltaloom weights of a model, 1";

/// BLAKE3 over the tag, and over the name and the digest of each tensor. They come sorted by name.
pub(super) fn of_weights<'a>(sorted: impl Iterator<Item = (&'a str, Hash)>) -> Hash {
    let mut hasher = Hasher::new();
    hasher.update(TAG);
    for (name, digest) in sorted {
        // The length keeps names apart.
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(digest.as_bytes());
    }
    hasher.finalize()
}
