//! Sends a local file: in one request if it is small, in parts if it is large.
//!
//! The object appears whole or not at all, and the parts of a failed upload are withdrawn.

use std::fs::File;
use std::io::{self, Read};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};
use tokio::task::JoinSet;

/// Files up to this size are sent in one request. Also the usual size of a part.
const PART_BYTES: u64 = 8 << 20;
/// The limit of S3.
const MAX_PARTS: u64 = 10_000;
/// Parts in flight at a time. Times [`PART_BYTES`], this is the memory of an upload.
const MAX_IN_FLIGHT: usize = 4;

/// Why a file did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    /// The file could not be read.
    #[error(transparent)]
    File(#[from] io::Error),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] object_store::Error),
}

/// Sends all of `file`, which has `len_bytes`.
pub(crate) async fn send(
    store: &dyn ObjectStore,
    path: &Path,
    mut file: File,
    len_bytes: u64,
) -> Result<(), UploadError> {
    if len_bytes <= PART_BYTES {
        let content = read_part(&mut file, len_bytes)?;
        store.put(path, PutPayload::from(content)).await?;
        return Ok(());
    }
    let mut upload = store.put_multipart(path).await?;
    if let Err(error) = send_parts(&mut *upload, file, len_bytes).await {
        // If withdrawing fails, the bucket's own rules clean up; the first error says more.
        let _ = upload.abort().await;
        return Err(error);
    }
    match upload.complete().await {
        Ok(_) => Ok(()),
        // The answer may have been lost, or a repeated request may have found its work done. Keys
        // are derived from contents, so the object there is the file.
        Err(_) if store.head(path).await.is_ok_and(|meta| meta.size == len_bytes) => Ok(()),
        Err(error) => {
            let _ = upload.abort().await;
            Err(error.into())
        }
    }
}

async fn send_parts(
    upload: &mut dyn MultipartUpload,
    mut file: File,
    len_bytes: u64,
) -> Result<(), UploadError> {
    let part_bytes = PART_BYTES.max(len_bytes.div_ceil(MAX_PARTS));
    let mut in_flight = JoinSet::new();
    let mut left_bytes = len_bytes;
    while left_bytes > 0 {
        let part = read_part(&mut file, left_bytes.min(part_bytes))?;
        left_bytes -= part.len() as u64;
        while in_flight.len() >= MAX_IN_FLIGHT {
            arrived(in_flight.join_next().await)?;
        }
        in_flight.spawn(upload.put_part(part.into()));
    }
    while !in_flight.is_empty() {
        arrived(in_flight.join_next().await)?;
    }
    Ok(())
}

type Joined = Result<object_store::Result<()>, tokio::task::JoinError>;

fn arrived(joined: Option<Joined>) -> object_store::Result<()> {
    match joined {
        Some(Ok(result)) => result,
        Some(Err(ended)) => Err(ended.into()),
        None => Ok(()),
    }
}

/// The next `len_bytes` of a file; an error if the file has become shorter.
fn read_part(file: &mut File, len_bytes: u64) -> io::Result<Bytes> {
    let mut part = Vec::new();
    file.take(len_bytes).read_to_end(&mut part)?;
    if part.len() as u64 == len_bytes { Ok(part.into()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
