//! What all requests share: the fine-tunes, the thread of the engine, metrics, and whether the
//! server still takes requests.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use deltaloom::{Error, Result};
use deltaloom_lm::engine::{Engine, EngineOptions};
use deltaloom_lm::model::Model;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::catalog::{Base, Catalog};
use crate::error::Failure;
use crate::metrics::Metrics;
use crate::options::ServeOptions;
use crate::scrape::Scrape;
use crate::worker::Worker;

/// A server without its sockets.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) options: ServeOptions,
    pub(crate) admin_key: Option<blake3::Hash>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) worker: Worker,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) registry: Registry,
    life: Life,
}

/// Whether the server ends.
#[derive(Debug)]
struct Life {
    is_draining: AtomicBool,
    /// Requests that run.
    running: AtomicUsize,
    /// Becomes true when requests must end now.
    end: watch::Sender<bool>,
    /// Changes with each request that ends.
    ended: watch::Sender<()>,
}

/// A request that the end of the server waits for, until this is dropped.
#[derive(Debug)]
pub(crate) struct Counted(Arc<App>);

impl App {
    /// Starts the engine's thread and loads all fine-tunes. The tokenizer of the base is at `path`.
    ///
    /// # Errors
    /// Those of the engine's options, of the tokenizer, and of the first fine-tune that cannot be
    /// loaded, with its path.
    pub(crate) fn new(
        model: Model,
        path: &Path,
        engine: EngineOptions,
        options: ServeOptions,
    ) -> Result<Arc<Self>> {
        let digest = model.digest(Model::BASE)?;
        let bytes = model.base().weights().map(|(_, info)| info.len_bytes()).sum();
        let (vocabulary, preparer) = (model.config().vocabulary, model.preparer());
        let engine = Engine::new(model, engine)?;
        let base = Base { digest, bytes, vocabulary, context: engine.context(), preparer };
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::new(&mut registry));
        let worker = Worker::start(engine, Arc::clone(&metrics)).map_err(Error::io(Path::new("a thread")))?;
        let catalog = Arc::new(Catalog::new(path, base, options.folder.as_deref(), worker.clone())?);
        let mut tenants = catalog.in_folder()?;
        tenants.extend(options.tenants.iter().cloned());
        for (name, path) in &tenants {
            catalog
                .load(name, path, false, false)
                .map_err(|failure| Error::InvalidArgument(failure.message().to_owned()).in_file(path))?;
        }
        registry.register_collector(Box::new(Scrape::new(Arc::clone(&catalog), worker.clone())));
        let life = Life {
            is_draining: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            end: watch::Sender::new(false),
            ended: watch::Sender::new(()),
        };
        let admin_key = options.admin_key.as_ref().map(|key| blake3::hash(key.as_bytes()));
        Ok(Arc::new(Self { options, admin_key, catalog, worker, metrics, registry, life }))
    }

    /// Counts a request, unless the server ends.
    pub(crate) fn count(self: &Arc<Self>) -> Result<Counted, Failure> {
        self.life.running.fetch_add(1, Ordering::SeqCst);
        let counted = Counted(Arc::clone(self));
        if self.is_draining() { Err(Failure::shutting_down()) } else { Ok(counted) }
    }

    /// Takes no more requests.
    pub(crate) fn drain(&self) {
        self.life.is_draining.store(true, Ordering::SeqCst);
        self.life.ended.send_replace(());
    }

    /// Whether it takes no more requests.
    pub(crate) fn is_draining(&self) -> bool {
        self.life.is_draining.load(Ordering::SeqCst)
    }

    /// Waits until the engine has ended, or until the server was asked to end and no request runs.
    /// Those that run for longer than they may are told to end.
    pub(crate) async fn wait_for_end(&self) {
        let mut ended = self.life.ended.subscribe();
        // The sender lives as long as this does, so waiting cannot fail.
        tokio::select! {
            _ = ended.wait_for(|()| self.is_draining()) => {}
            () = self.worker.ended() => return,
        }
        let none = |(): &()| self.life.running.load(Ordering::SeqCst) == 0;
        if timeout(self.options.drain_time, ended.wait_for(none)).await.is_err() {
            self.life.end.send_replace(true);
        }
    }

    /// Becomes true when requests must end.
    pub(crate) fn ending(&self) -> watch::Receiver<bool> {
        self.life.end.subscribe()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.life.running.fetch_sub(1, Ordering::SeqCst);
        self.0.life.ended.send_replace(());
    }
}
