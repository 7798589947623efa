//! A proxy on loopback that loses, repeats and truncates HTTP requests and answers by a seed, so
//! that the client's own retries are tested too.
//!
//! Each connection carries one request; nothing waits for time to pass.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::log::Dice;

/// What happens to a request: the first few numbers of a die; any other number passes it on.
const BEFORE: u64 = 0;
const AFTER: u64 = 1;
const LATE: u64 = 2;
const TWICE: u64 = 3;
const CUT: u64 = 4;
const BUSY: u64 = 5;
const BUSY_AFTER: u64 = 6;
const SIDES: u64 = 14;

pub(crate) struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    server: SocketAddr,
    dice: Mutex<Dice>,
    /// Requests whose senders have given up and that reach the server after the next one.
    late: Mutex<Vec<Vec<u8>>>,
    is_over: AtomicBool,
}

impl Proxy {
    pub(crate) fn start(server: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let state = Arc::new(State {
            server,
            dice: Mutex::new(Dice::new(seed)),
            late: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                if shared.is_over.load(Ordering::SeqCst) {
                    break;
                }
                let state = Arc::clone(&shared);
                thread::spawn(move || state.serve(connection));
            }
        });
        Self { address, state }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.send_late();
        self.state.is_over.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    /// Answers one request, or not. Broken connections are the point, so errors only end the
    /// connection.
    fn serve(&self, mut client: TcpStream) -> Option<()> {
        let request = read_request(&mut client).ok()?;
        let side = self.dice.lock().ok()?.below(SIDES);
        let answer = match side {
            BEFORE => None,
            AFTER => self.forward(&request).map(|_| Vec::new()),
            LATE => {
                self.late.lock().ok()?.push(request);
                return None;
            }
            TWICE => self.forward(&request).and_then(|_| self.forward(&request)),
            CUT => self.forward(&request).map(|answer| cut(&answer)),
            BUSY => Some(busy()),
            BUSY_AFTER => self.forward(&request).map(|_| busy()),
            _ => self.forward(&request),
        };
        self.send_late();
        client.write_all(&answer?).ok()?;
        client.shutdown(Shutdown::Write).ok()
    }

    fn forward(&self, request: &[u8]) -> Option<Vec<u8>> {
        let mut server = TcpStream::connect(self.server).ok()?;
        server.write_all(request).ok()?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer).ok()?;
        Some(answer)
    }

    fn send_late(&self) {
        let late = self.late.lock().map(|mut late| std::mem::take(&mut *late)).unwrap_or_default();
        for request in late {
            let _ = self.forward(&request);
        }
    }
}

fn busy() -> Vec<u8> {
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec()
}

/// The head of an answer and half of its body, if it has one.
fn cut(answer: &[u8]) -> Vec<u8> {
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    answer[..head + (answer.len() - head) / 2].to_vec()
}

/// Reads a whole request and makes it ask the server to close the connection after the answer, so
/// that its end is seen.
fn read_request(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    let body_at = loop {
        let read = client.read(&mut buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&buffer[..read]);
        if let Some(at) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..body_at - 2]).into_owned();
    let field = |line: &str, name: &str| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    };
    let length =
        head.lines().find_map(|line| field(line, "content-length")).map_or(Ok(0), |value| value.parse());
    let mut left = length.map_err(io::Error::other)?;
    left -= (bytes.len() - body_at).min(left);
    let start = bytes.len();
    bytes.resize(start + left, 0);
    client.read_exact(&mut bytes[start..])?;

    let mut request = Vec::new();
    for line in head.lines().filter(|line| field(line, "connection").is_none()) {
        request.extend_from_slice(line.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"Connection: close\r\n\r\n");
    request.extend_from_slice(&bytes[body_at..]);
    Ok(request)
}
