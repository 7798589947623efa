//! The sockets: connections are accepted, limited and closed, and the server ends when it is asked
//! to. Only HTTP/1, so that nobody can flood it with resets of streams.

use std::net::{self, IpAddr, SocketAddr};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use deltaloom::{Error, Result};
use deltaloom_lm::engine::EngineOptions;
use deltaloom_lm::model::Model;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tower::ServiceExt as _;

use crate::app::App;
use crate::options::ServeOptions;
use crate::routes::router;

/// Time until the head of a request has arrived, also of the next one of a connection.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Bytes of the head of a request.
const HEAD_BYTES: usize = 64 << 10;
/// Threads that make ids of text, and load fine-tunes.
const TEXT_THREADS: usize = 8;
/// Time for responses on their way when everything else has ended.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// A server that is ready to listen. Clones are the same server.
#[derive(Clone)]
pub struct Server {
    app: Arc<App>,
    router: Router,
}

impl Server {
    /// Starts the engine and loads all fine-tunes. The base's tokenizer is at `path`: a folder, or
    /// a GGUF file.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for options that make no sense, for a model without a tokenizer,
    /// and for a fine-tune that cannot be loaded.
    pub fn new(model: Model, path: &Path, engine: EngineOptions, options: ServeOptions) -> Result<Self> {
        let app = App::new(model, path, engine, options)?;
        Ok(Self { router: router(&app), app })
    }

    /// Answers one request, without a socket.
    pub async fn answer(&self, request: Request<Body>) -> Response<Body> {
        match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    /// Takes no more requests: `/ready` and new requests get 503, and [`Self::run`] ends when those
    /// that run have ended.
    pub fn drain(&self) {
        self.app.drain();
    }

    /// Serves connections until [`Self::drain`] was called and the last request has ended, or its
    /// time is over.
    ///
    /// # Errors
    /// The engine has ended by itself.
    pub async fn run(&self, listener: TcpListener) -> Result<()> {
        let graceful = GracefulShutdown::new();
        let connections = Arc::new(Semaphore::new(self.app.options.connections));
        let mut drained = pin!(self.app.wait_for_end());
        loop {
            let place = Arc::clone(&connections).acquire_owned();
            let accepted = tokio::select! {
                () = &mut drained => break,
                accepted = async { (place.await, listener.accept().await) } => accepted,
            };
            let (Ok(place), Ok((stream, _))) = accepted else {
                // The system has no room for a connection now.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let connection = graceful.watch(self.connection(stream));
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection broke");
                }
                drop(place);
            });
        }
        if timeout(CLOSE_TIME, graceful.shutdown()).await.is_err() {
            tracing::warn!("some connections did not close");
        }
        if self.app.worker.is_alive() {
            Ok(())
        } else {
            Err(Error::InvalidArgument("the engine has ended by itself: this is a defect".to_owned()))
        }
    }

    fn connection(
        &self,
        stream: TcpStream,
    ) -> http1::Connection<TokioIo<TcpStream>, TowerToHyperService<Router>> {
        // Events are small and must not wait for each other. If this fails, they do.
        let _ = stream.set_nodelay(true);
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(self.router.clone()))
    }
}

/// Listens at the address of the options. Clients that come before [`serve`] wait.
///
/// # Errors
/// The address cannot be used, or other machines can reach it without keys and
/// [`ServeOptions::is_open`] does not say that this is meant.
pub fn listen(options: &ServeOptions) -> Result<net::TcpListener> {
    let address = options.address;
    check_address(address.ip(), options.keys.is_empty(), options.is_open)?;
    let failed = || Error::io(address.to_string());
    let listener = net::TcpListener::bind(address).map_err(failed())?;
    // For the runtime.
    listener.set_nonblocking(true).map_err(failed())?;
    Ok(listener)
}

/// Serves a model until the process is asked to end: the first signal drains, the second ends at
/// once. `ready` gets the address, with the port that the system chose if it was 0.
///
/// # Errors
/// As [`Server::new`] and [`Server::run`].
pub fn serve(
    listener: net::TcpListener,
    model: Model,
    path: &Path,
    engine: EngineOptions,
    options: ServeOptions,
    ready: impl FnOnce(SocketAddr),
) -> Result<()> {
    let server = Server::new(model, path, engine, options)?;
    let network = || Error::io(Path::new("the network"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(TEXT_THREADS)
        .enable_all()
        .build();
    let runtime = runtime.map_err(Error::io(Path::new("threads of the server")))?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener).map_err(network())?;
        // Whoever is told that the server is ready may ask it to end at once.
        let mut signals = Signals::catch();
        ready(listener.local_addr().map_err(network())?);
        tokio::select! {
            result = server.run(listener) => result,
            () = two_signals(&server, &mut signals) => Ok(()),
        }
    })
}

/// Other machines may only ask with keys.
fn check_address(address: IpAddr, no_keys: bool, is_open: bool) -> Result<()> {
    if address.is_loopback() || !no_keys || is_open {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!("other machines can reach {address}, and there are no keys")))
}

/// Ends at the second signal. The first drains.
async fn two_signals(server: &Server, signals: &mut Signals) {
    signals.next().await;
    server.drain();
    signals.next().await;
}

/// Signals that ask the process to end, from [`Self::catch`] on. Those that cannot be caught end it
/// by the system's rule.
#[cfg(unix)]
struct Signals([Option<tokio::signal::unix::Signal>; 2]);

#[cfg(unix)]
impl Signals {
    fn catch() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        Self([SignalKind::terminate(), SignalKind::interrupt()].map(|kind| signal(kind).ok()))
    }

    async fn next(&mut self) {
        async fn one(signal: &mut Option<tokio::signal::unix::Signal>) {
            match signal {
                Some(signal) => {
                    signal.recv().await;
                }
                None => std::future::pending().await,
            }
        }
        let Self([terminate, interrupt]) = self;
        tokio::select! {
            () = one(terminate) => {}
            () = one(interrupt) => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn catch() -> Self {
        Self
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_machines_need_keys() {
        let [local, all] = ["127.0.0.1", "0.0.0.0"].map(|text| text.parse().unwrap());
        assert!(check_address(local, true, false).is_ok());
        assert!(check_address(all, true, false).is_err());
        assert!(check_address(all, false, false).is_ok());
        assert!(check_address(all, true, true).is_ok());
        assert!(check_address("::1".parse().unwrap(), true, false).is_ok());
    }
}
