//! Who may ask for what: keys of clients, each perhaps confined to some fine-tunes, and the key of
//! the administrator.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use deltaloom::{Error, Limits};

use crate::error::{Failure, Kind, Result};

/// Lines of a file of keys.
const MOST_KEYS: u64 = 65_536;
/// Bytes of a key.
const LONGEST_KEY: usize = 256;

/// The keys of clients. Without any, everybody may ask.
#[derive(Debug, Default)]
pub struct Keys(Vec<Arc<Key>>);

/// A key. Only its digest is in memory.
#[derive(Debug)]
pub(crate) struct Key {
    digest: blake3::Hash,
    /// For logs.
    pub(crate) name: String,
    /// Names of fine-tunes; all if absent.
    tenants: Option<BTreeSet<String>>,
    /// Its line, from 1.
    number: u64,
    running: AtomicUsize,
}

/// Who sent a request.
#[derive(Debug, Clone)]
pub(crate) struct Client(Option<Arc<Key>>);

/// A request of a client that counts as running until this is dropped.
#[derive(Debug)]
pub(crate) struct Running(Option<Arc<Key>>);

impl Keys {
    /// Reads lines of `key [name] [tenant,tenant,..]`. Empty lines and those that start with `#` do
    /// not count.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the line that is wrong: too many words, a key that comes
    /// twice or has other characters than printable ASCII.
    pub fn parse(text: &str) -> deltaloom::Result<Self> {
        let mut keys: Vec<Arc<Key>> = Vec::new();
        for (line, number) in text.lines().zip(1_u64..) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            Limits::check("keys", number, MOST_KEYS)?;
            let wrong = |what: &str| Error::InvalidArgument(format!("line {number} of the keys: {what}"));
            let words: Vec<&str> = line.split_whitespace().collect();
            let (key, name, tenants) = match *words.as_slice() {
                [key] => (key, None, None),
                [key, name] => (key, Some(name), None),
                [key, name, tenants] => (key, Some(name), Some(tenants)),
                _ => return Err(wrong("more than a key, a name and fine-tunes")),
            };
            if key.len() > LONGEST_KEY || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(wrong("a key has up to 256 printable characters of ASCII"));
            }
            let digest = blake3::hash(key.as_bytes());
            if keys.iter().any(|other| other.digest == digest) {
                return Err(wrong("this key comes twice"));
            }
            keys.push(Arc::new(Key {
                digest,
                name: name.map_or_else(|| format!("key-{number}"), str::to_owned),
                tenants: tenants.map(|list| list.split(',').map(str::to_owned).collect()),
                number,
                running: AtomicUsize::new(0),
            }));
        }
        Ok(Self(keys))
    }

    /// Whether everybody may ask.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Who sent these headers.
    ///
    /// # Errors
    /// 401 without a key that is known.
    pub(crate) fn client(&self, headers: &HeaderMap) -> Result<Client> {
        if self.is_empty() {
            return Ok(Client(None));
        }
        let given = blake3::hash(bearer(headers)?.as_bytes());
        // All are compared, each in constant time.
        let found =
            self.0.iter().fold(None, |found, key| if key.digest == given { Some(key) } else { found });
        found.map(|key| Client(Some(Arc::clone(key)))).ok_or_else(|| unknown("this key is not known"))
    }
}

/// Whether the headers have the administrator's key.
///
/// # Errors
/// 403 if there is none, 401 for another one.
pub(crate) fn check_admin(admin: Option<&blake3::Hash>, headers: &HeaderMap) -> Result<()> {
    let Some(admin) = admin else {
        let message = "this server has no key for its administration";
        return Err(Failure::new(Kind::Permission, message).with_code("admin_disabled"));
    };
    let given = blake3::hash(bearer(headers)?.as_bytes());
    if given == *admin { Ok(()) } else { Err(unknown("this is not the key of the administration")) }
}

/// The key in the one header that may have it.
fn bearer(headers: &HeaderMap) -> Result<&str> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (Some(header), None) = (all.next(), all.next()) else {
        return Err(unknown("give one key as `Authorization: Bearer KEY`"));
    };
    let text = header.to_str().ok().and_then(|text| text.split_once(' '));
    match text {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") && !key.is_empty() => Ok(key),
        _ => Err(unknown("give the key as `Authorization: Bearer KEY`")),
    }
}

fn unknown(message: &str) -> Failure {
    Failure::new(Kind::Authentication, message).with_code("invalid_api_key")
}

impl Client {
    /// Somebody without a key, where others have keys: may use nothing that needs one.
    pub(crate) fn stranger() -> Self {
        let key = Key {
            digest: blake3::hash(&[]),
            name: "stranger".to_owned(),
            tenants: Some(BTreeSet::new()),
            number: 0,
            running: AtomicUsize::new(0),
        };
        Self(Some(Arc::new(key)))
    }

    /// Whether it may use a fine-tune.
    pub(crate) fn may_use(&self, tenant: &str) -> bool {
        let confined = self.0.as_ref().and_then(|key| key.tenants.as_ref());
        confined.is_none_or(|tenants| tenants.contains(tenant))
    }

    /// For logs.
    pub(crate) fn name(&self) -> &str {
        self.0.as_ref().map_or("-", |key| &key.name)
    }

    /// Tells clients apart; 0 if there are no keys.
    pub(crate) fn number(&self) -> u64 {
        self.0.as_ref().map_or(0, |key| key.number)
    }

    /// Counts a request, of which `most` may run at a time.
    ///
    /// # Errors
    /// 429 for one too many.
    pub(crate) fn start(&self, most: usize) -> Result<Running> {
        let Some(key) = &self.0 else { return Ok(Running(None)) };
        if key.running.fetch_add(1, Ordering::Relaxed) >= most {
            key.running.fetch_sub(1, Ordering::Relaxed);
            return Err(Failure::full(format!("this key has {most} requests already"), 1));
        }
        Ok(Running(Some(Arc::clone(key))))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(key) = &self.0 {
            key.running.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn keys_are_known_and_confined() {
        let keys = Keys::parse("# clients\nsk-a alice pirate,chat\n\nsk-b bob\nsk-c\n").unwrap();
        let alice = keys.client(&headers(&["Bearer sk-a"])).unwrap();
        assert_eq!((alice.name(), alice.number()), ("alice", 2));
        assert!(alice.may_use("chat") && !alice.may_use("base"));
        let other = keys.client(&headers(&["bearer sk-c"])).unwrap();
        assert_eq!(other.name(), "key-5");
        assert!(other.may_use("base"));
        for bad in [
            &[][..],
            &["Bearer sk-x"],
            &["Bearer sk-a", "Bearer sk-b"],
            &["sk-a"],
            &["Basic sk-a"],
            &["Bearer "],
        ] {
            assert!(keys.client(&headers(bad)).is_err(), "{bad:?}");
        }
        assert!(Keys::default().client(&headers(&[])).unwrap().may_use("base"));
    }

    #[test]
    fn bad_files_are_refused() {
        for bad in ["a b c d", "a\na", "é", &"k".repeat(300)] {
            assert!(Keys::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn requests_of_a_key_are_counted() {
        let keys = Keys::parse("k").unwrap();
        let client = keys.client(&headers(&["Bearer k"])).unwrap();
        let first = client.start(1).unwrap();
        assert!(client.start(1).is_err());
        drop(first);
        assert!(client.start(1).is_ok());
    }

    #[test]
    fn administration_needs_its_key() {
        let key = blake3::hash(b"root");
        assert!(check_admin(Some(&key), &headers(&["Bearer root"])).is_ok());
        let status = |admin, given: &[&str]| check_admin(admin, &headers(given)).unwrap_err().kind();
        assert_eq!(status(Some(&key), &["Bearer toor"]), Kind::Authentication);
        assert_eq!(status(None, &["Bearer root"]), Kind::Permission);
    }
}
