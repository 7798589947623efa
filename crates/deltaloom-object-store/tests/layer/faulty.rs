//! An object store that loses, delays, repeats and truncates requests, by a seed.
//!
//! It never waits for time to pass; a delay is a number of turns of the runtime.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use crate::log::Dice;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mishap {
    None,
    /// The request does not arrive.
    Before,
    /// It takes effect, but the answer does not arrive.
    After,
    /// The sender gives up, and it takes effect later if it then can.
    Late,
    /// It arrives twice; the answer is the second one.
    Twice,
    /// It takes some time.
    Slow,
    /// The body of the answer ends early.
    Short,
}

/// A store with mishaps in about every other request.
pub(crate) struct Faulty {
    inner: Arc<dyn ObjectStore>,
    dice: Mutex<Dice>,
    late: Arc<AtomicUsize>,
}

impl Faulty {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, seed: u64, late: &Arc<AtomicUsize>) -> Self {
        Self { inner, dice: Mutex::new(Dice::new(seed)), late: Arc::clone(late) }
    }

    fn mishap(&self) -> (Mishap, u64) {
        use Mishap::*;
        let mut dice = self.dice.lock().expect("no thread has panicked");
        let kinds = [Before, After, Late, Twice, Slow, Short, None, None, None, None, None, None];
        let kind = kinds[usize::try_from(dice.below(kinds.len() as u64)).expect("below a usize")];
        (kind, dice.below(200))
    }
}

fn lost<T>() -> Result<T> {
    Err(Error::Generic { store: "faulty", source: "the connection was lost".into() })
}

async fn turns(count: u64) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({:?})", self.inner)
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let (mishap, delay) = self.mishap();
        match mishap {
            Mishap::Before => return lost(),
            Mishap::After => {
                let _ = self.inner.put_opts(path, payload, options).await;
                return lost();
            }
            Mishap::Late => {
                let (inner, late, path) = (Arc::clone(&self.inner), Arc::clone(&self.late), path.clone());
                late.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    turns(delay * 20).await;
                    let _ = inner.put_opts(&path, payload, options).await;
                    late.fetch_sub(1, Ordering::SeqCst);
                });
                return lost();
            }
            Mishap::Twice => {
                let _ = self.inner.put_opts(path, payload.clone(), options.clone()).await;
            }
            Mishap::Slow => turns(delay).await,
            Mishap::Short | Mishap::None => {}
        }
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let (mishap, delay) = self.mishap();
        turns(delay).await;
        if mishap == Mishap::Before {
            return lost();
        }
        let inner = self.inner.put_multipart_opts(path, options).await?;
        Ok(Box::new(FaultyUpload { inner, mishap }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let (mishap, delay) = self.mishap();
        match mishap {
            Mishap::Before | Mishap::After | Mishap::Late => return lost(),
            Mishap::Twice => drop(self.inner.get_opts(path, options.clone()).await),
            Mishap::Slow => turns(delay).await,
            Mishap::Short | Mishap::None => {}
        }
        let found = self.inner.get_opts(path, options).await?;
        if mishap != Mishap::Short {
            return Ok(found);
        }
        let (meta, range, attributes, extensions) =
            (found.meta.clone(), found.range.clone(), found.attributes.clone(), found.extensions.clone());
        let whole = found.bytes().await?;
        let cut = whole.slice(..whole.len() / 2);
        let payload = GetResultPayload::Stream(stream::iter([Ok(cut)]).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.mishap().0 {
            Mishap::Before => stream::iter([lost()]).boxed(),
            _ => self.inner.list(prefix),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    mishap: Mishap,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        if self.mishap == Mishap::Late { Box::pin(async { lost() }) } else { self.inner.put_part(data) }
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let done = self.inner.complete().await;
        if self.mishap == Mishap::After { lost() } else { done }
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}
