//! The library's `Store` on any `object_store::ObjectStore`: maps keys to paths, waits, and adds
//! URLs to errors.
//!
//! Replacing the manifest, sending files and caching blocks are other modules.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path as LocalPath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use deltaloom::checkpoint::ReadAt;
use deltaloom::series::{ObjectInfo, Revision, Store};
use deltaloom::{Access, Error, Missing, Result};
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload};

use crate::blocks::{BLOCK_BYTES, Blocks};
use crate::fault::{Cause, Fault, is_no_bucket, store_error};
use crate::manifest::{self, Stamp};
use crate::runtime::wait;
use crate::service::Service;
use crate::upload::{self, UploadError};

/// Key of the manifest.
const MANIFEST: &str = "series.json";
/// Tries for a body that ends early, in addition to those that `object_store` makes per request.
const TRIES: usize = 3;

/// A series under a path of an object store.
#[derive(Debug, Clone)]
pub struct RemoteStore {
    store: Arc<dyn ObjectStore>,
    service: Service,
    url: String,
    prefix: Path,
}

impl RemoteStore {
    /// The series under `prefix` of an open store; messages call it `url`.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, service: Service, url: &str, prefix: Path) -> Self {
        Self { store, service, url: url.trim_end_matches('/').to_owned(), prefix }
    }

    fn url_of(&self, key: &str) -> PathBuf {
        PathBuf::from(format!("{}/{key}", self.url))
    }

    fn path_of(&self, key: &str) -> Result<Path> {
        Path::parse(format!("{}/{key}", self.prefix)).map_err(|why| Error::InvalidArgument(why.to_string()))
    }

    fn fault(&self, key: &str, fault: Fault) -> Error {
        store_error(self.url_of(key), fault)
    }

    /// Turns an error of a request into one about an object.
    fn refused(&self, key: &str) -> impl FnOnce(object_store::Error) -> Error {
        move |error| self.fault(key, Fault::of(self.service, &error))
    }

    /// Runs a request with this store and the path of an object.
    fn ask<T, R>(&self, key: &str, request: impl FnOnce(Arc<dyn ObjectStore>, Path) -> R) -> Result<T>
    where
        T: Send + 'static,
        R: Future<Output = T> + Send + 'static,
    {
        let path = self.path_of(key)?;
        wait(request(Arc::clone(&self.store), path)).map_err(|source| Error::Io {
            path: self.url_of(key),
            access: Access::Read,
            source,
        })
    }

    fn is_absent(error: &object_store::Error) -> bool {
        matches!(error, object_store::Error::NotFound { .. }) && !is_no_bucket(error)
    }
}

/// The bytes of a range, as far as the object has them, and the size of the object.
async fn fetch(
    store: &dyn ObjectStore,
    path: &Path,
    range: Range<u64>,
) -> object_store::Result<Option<(Bytes, u64)>> {
    for _ in 0..TRIES {
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let found = store.get_opts(path, options).await?;
        let size = found.meta.size;
        let bytes = found.bytes().await?;
        if bytes.len() as u64 == size.min(range.end).saturating_sub(range.start) {
            return Ok(Some((bytes, size)));
        }
    }
    Ok(None)
}

/// The first block of an object and its size.
async fn fetch_first(store: &dyn ObjectStore, path: &Path) -> object_store::Result<Option<(Bytes, u64)>> {
    match fetch(store, path, 0..BLOCK_BYTES).await {
        Err(error) if !RemoteStore::is_absent(&error) => {
            // An empty object has no first byte, which each store reports as a different error.
            let is_empty = store.head(path).await.is_ok_and(|meta| meta.size == 0);
            if is_empty { Ok(Some((Bytes::new(), 0))) } else { Err(error) }
        }
        result => result,
    }
}

impl Store for RemoteStore {
    fn location(&self) -> String {
        self.url.clone()
    }

    fn read_manifest(&self) -> Result<Option<(Vec<u8>, Revision)>> {
        let service = self.service;
        let read = self
            .ask(MANIFEST, move |store, path| async move { manifest::read(&store, &path, service).await })?;
        let found = read.map_err(|fault| self.fault(MANIFEST, fault))?;
        Ok(found.map(|(bytes, stamp)| (bytes.into(), Revision(stamp.to_text()))))
    }

    fn replace_manifest(&self, bytes: &[u8], expected: Option<&Revision>) -> Result<bool> {
        let expected = match expected {
            None => None,
            Some(Revision(text)) => Some(Stamp::from_text(text).ok_or_else(|| {
                Error::InvalidArgument(format!("{text:?} is not a revision of {}", self.url))
            })?),
        };
        let (service, bytes) = (self.service, Bytes::copy_from_slice(bytes));
        let replaced = self.ask(MANIFEST, move |store, path| async move {
            manifest::replace(&store, &path, service, bytes, expected).await
        })?;
        replaced.map_err(|fault| self.fault(MANIFEST, fault))
    }

    fn open(&self, key: &str) -> Result<Box<dyn ReadAt>> {
        let first = self.ask(key, |store, path| async move { fetch_first(&store, &path).await })?.map_err(
            |error| {
                if Self::is_absent(&error) {
                    Error::NotFound { kind: Missing::Object, what: self.url_of(key).display().to_string() }
                } else {
                    self.refused(key)(error)
                }
            },
        )?;
        let ends_early = || Fault::new(Cause::BadAnswer, self.service, "the body ends early");
        let (first, len_bytes) = first.ok_or_else(|| self.fault(key, ends_early()))?;
        let (store, path, service) = (Arc::clone(&self.store), self.path_of(key)?, self.service);
        Ok(Box::new(Blocks::new(len_bytes, first, move |range| {
            let (store, path) = (Arc::clone(&store), path.clone());
            let fetched = wait(async move { fetch(&store, &path, range).await })?;
            match fetched.map_err(|error| Fault::of(service, &error))? {
                Some((bytes, size)) if size == len_bytes => Ok(bytes),
                Some((_, size)) => {
                    let what = format!("the object had {len_bytes} bytes and now has {size}");
                    Err(Fault::new(Cause::BadAnswer, service, what).into())
                }
                None => Err(io::ErrorKind::UnexpectedEof.into()),
            }
        })))
    }

    fn len_bytes(&self, key: &str) -> Result<Option<u64>> {
        match self.ask(key, |store, path| async move { store.head(&path).await })? {
            Ok(meta) => Ok(Some(meta.size)),
            Err(error) if Self::is_absent(&error) => Ok(None),
            Err(error) => Err(self.refused(key)(error)),
        }
    }

    fn put_file(&self, key: &str, file: &LocalPath) -> Result<()> {
        let local = |source| Error::Io { path: file.to_path_buf(), access: Access::Read, source };
        let content = File::open(file).map_err(local)?;
        let len_bytes = content.metadata().map_err(local)?.len();
        let sent = self.ask(key, move |store, path| async move {
            upload::send(&store, &path, content, len_bytes).await
        })?;
        sent.map_err(|error| match error {
            UploadError::File(source) => local(source),
            UploadError::Store(error) => self.refused(key)(error),
        })
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        let payload = PutPayload::from(bytes.to_vec());
        let sent = self.ask(key, |store, path| async move { store.put(&path, payload).await })?;
        sent.map(|_| ()).map_err(self.refused(key))
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        // Object stores list by whole path segments; the rest of the prefix is checked here.
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let listed = self.ask(folder, |store, path| async move {
            let path = (!path.as_ref().is_empty()).then_some(path);
            store.list(path.as_ref()).try_collect::<Vec<_>>().await
        })?;
        let now = SystemTime::now();
        let root = if self.prefix.as_ref().is_empty() { String::new() } else { format!("{}/", self.prefix) };
        let objects = listed.map_err(self.refused(folder))?.into_iter().filter_map(|meta| {
            let key = meta.location.as_ref().strip_prefix(&root)?.to_owned();
            // Clocks differ, so an object written in the future counts as new.
            let age = now.duration_since(SystemTime::from(meta.last_modified)).unwrap_or(Duration::ZERO);
            (key.starts_with(prefix) && key != MANIFEST).then(|| ObjectInfo::new(key, meta.size, age))
        });
        Ok(objects.collect())
    }

    fn delete(&self, key: &str) -> Result<()> {
        match self.ask(key, |store, path| async move { store.delete(&path).await })? {
            Err(error) if !Self::is_absent(&error) => Err(self.refused(key)(error)),
            _ => Ok(()),
        }
    }
}
