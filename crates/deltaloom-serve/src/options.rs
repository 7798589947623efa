//! How a server behaves.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::keys::Keys;

/// Options of a server.
#[derive(Debug)]
#[non_exhaustive]
pub struct ServeOptions {
    /// Where it listens. Port 0 lets the system choose.
    pub address: SocketAddr,
    /// Whether other machines may ask without keys.
    pub is_open: bool,
    /// Fine-tunes by name.
    pub tenants: Vec<(String, PathBuf)>,
    /// A folder of containers: each is a fine-tune with the stem of its file as name. Only from
    /// here can fine-tunes be loaded later.
    pub folder: Option<PathBuf>,
    /// Keys of clients.
    pub keys: Keys,
    /// The key of the administration, which is refused without.
    pub admin_key: Option<String>,
    /// Whether metrics need no key.
    pub open_metrics: bool,
    /// Whether unknown fields of requests are refused.
    pub strict: bool,
    /// The origin of pages that may ask from browsers; none if absent.
    pub origin: Option<String>,
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Requests of a key that may run at a time.
    pub per_key: usize,
    /// Longest time of a request.
    pub request_time: Option<Duration>,
    /// Longest time until a request has arrived.
    pub body_time: Duration,
    /// How long running requests may go on after the server was asked to end.
    pub drain_time: Duration,
    /// Connections at a time.
    pub connections: usize,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            is_open: false,
            tenants: Vec::new(),
            folder: None,
            keys: Keys::default(),
            admin_key: None,
            open_metrics: false,
            strict: false,
            origin: None,
            body_bytes: 4 << 20,
            per_key: usize::MAX,
            request_time: None,
            body_time: Duration::from_secs(30),
            drain_time: Duration::from_secs(30),
            connections: 4096,
        }
    }
}

/// Sets one field each.
macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident($field:ident: $kind:ty);)*) => {
        impl ServeOptions {
            $($(#[$doc])*
            #[must_use]
            pub fn $name(self, $field: $kind) -> Self {
                Self { $field, ..self }
            })*
        }
    };
}

setters! {
    /// Listens there.
    with_address(address: SocketAddr);
    /// Lets other machines ask without keys.
    with_open(is_open: bool);
    /// Serves fine-tunes by name.
    with_tenants(tenants: Vec<(String, PathBuf)>);
    /// Serves the containers of a folder.
    with_folder(folder: Option<PathBuf>);
    /// Asks clients for keys.
    with_keys(keys: Keys);
    /// Allows the administration.
    with_admin_key(admin_key: Option<String>);
    /// Shows metrics without a key.
    with_open_metrics(open_metrics: bool);
    /// Refuses unknown fields.
    with_strict(strict: bool);
    /// Lets pages of an origin ask.
    with_origin(origin: Option<String>);
    /// Limits bodies.
    with_body_bytes(body_bytes: usize);
    /// Limits the requests of a key.
    with_per_key(per_key: usize);
    /// Limits the time of a request.
    with_request_time(request_time: Option<Duration>);
    /// Limits the time until a request has arrived.
    with_body_time(body_time: Duration);
    /// Limits the time to end.
    with_drain_time(drain_time: Duration);
    /// Limits connections.
    with_connections(connections: usize);
}
