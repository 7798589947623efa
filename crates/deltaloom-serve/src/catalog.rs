//! The fine-tunes that are served, by name, with what turns their text into ids and back. A name
//! may change to another fine-tune; requests that have the old one finish with it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use deltaloom::{Container, Error, ErrorKind, Limits};
use deltaloom_lm::layer::TenantId;
use deltaloom_lm::model::{Model, Preparer};
use deltaloom_lm::text::{ChatTemplate, ReadFile, Special, Tokenizer};

use crate::error::{Failure, Kind, Result};
use crate::grammar::{Grammar, Shape, Style, Vocabulary};
use crate::worker::Worker;

/// Another name of the base.
pub(crate) const BASE: &str = "base";
/// Names of files that decide how text and ids belong together.
const TEXT_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
];
/// Bytes of such a file.
const LARGEST_TEXT_FILE: u64 = 64 << 20;
/// Bytes of a name.
const LONGEST_NAME: usize = 128;
/// Fine-tunes at a time.
const MOST_TENANTS: usize = 65_536;

/// Between text and ids. Fine-tunes with the same files share it.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) tokenizer: Tokenizer,
    /// The chat template, or why there is none.
    pub(crate) template: Result<ChatTemplate, String>,
    /// Ids that end texts.
    pub(crate) ends: Arc<[u32]>,
    /// How calls of functions are written.
    pub(crate) style: Style,
    /// Made for the first grammar.
    vocabulary: OnceLock<Option<Vocabulary>>,
}

/// A fine-tune, or the base. It is removed from the engine when nobody has it any more.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) name: String,
    pub(crate) id: TenantId,
    /// Of all weights.
    pub(crate) digest: blake3::Hash,
    pub(crate) fingerprint: String,
    pub(crate) text: Arc<Text>,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) packed_bytes: u64,
    pub(crate) pinned: bool,
    /// Seconds since 1970; 0 before the first request.
    last_used: AtomicU64,
    in_flight: AtomicUsize,
    worker: Worker,
}

/// A request of a fine-tune that runs or waits, until this is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Tenant>);

/// All fine-tunes.
pub(crate) struct Catalog {
    base_path: PathBuf,
    base_name: String,
    base: Arc<Tenant>,
    pub(crate) vocabulary: usize,
    /// Positions of the model.
    pub(crate) context: usize,
    preparer: Preparer,
    worker: Worker,
    /// Where fine-tunes may come from, without links.
    folder: Option<PathBuf>,
    tenants: RwLock<BTreeMap<String, Arc<Tenant>>>,
    texts: Mutex<BTreeMap<[u8; 32], Weak<Text>>>,
}

/// What is known of the base before its engine starts.
pub(crate) struct Base {
    pub(crate) digest: blake3::Hash,
    pub(crate) bytes: u64,
    pub(crate) vocabulary: usize,
    pub(crate) context: usize,
    pub(crate) preparer: Preparer,
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog").field("base", &self.base_name).finish_non_exhaustive()
    }
}

impl Catalog {
    /// A catalog with the base alone, whose tokenizer is at `path`.
    ///
    /// # Errors
    /// The base has no tokenizer that can be used; the folder cannot be read.
    pub(crate) fn new(
        path: &Path,
        base: Base,
        folder: Option<&Path>,
        worker: Worker,
    ) -> deltaloom::Result<Self> {
        let canonical = path.canonicalize().map_err(Error::io(path))?;
        let name = canonical.file_name().and_then(|name| name.to_str()).unwrap_or(BASE);
        let folder = folder.map(|folder| folder.canonicalize().map_err(Error::io(folder))).transpose()?;
        let tokenizer = Tokenizer::open(path, base.vocabulary)?;
        let tenant = Tenant {
            name: name.to_owned(),
            id: Model::BASE,
            digest: base.digest,
            fingerprint: fingerprint(base.digest),
            text: Arc::new(Text::new(tokenizer)),
            created: now(),
            packed_bytes: base.bytes,
            pinned: true,
            last_used: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            worker: worker.clone(),
        };
        Ok(Self {
            base_path: path.to_owned(),
            base_name: name.to_owned(),
            base: Arc::new(tenant),
            vocabulary: base.vocabulary,
            context: base.context,
            preparer: base.preparer,
            worker,
            folder,
            tenants: RwLock::default(),
            texts: Mutex::default(),
        })
    }

    /// The base.
    pub(crate) fn base(&self) -> &Arc<Tenant> {
        &self.base
    }

    /// The fine-tune with this name, or the base with one of its names.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Tenant>> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        match tenants.get(name) {
            None if name == BASE || name == self.base_name => Some(Arc::clone(&self.base)),
            found => found.cloned(),
        }
    }

    /// All fine-tunes by name, without the base.
    pub(crate) fn tenants(&self) -> Vec<Arc<Tenant>> {
        self.tenants.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The containers of the folder, with the names of their fine-tunes.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(crate) fn in_folder(&self) -> deltaloom::Result<Vec<(String, PathBuf)>> {
        let Some(folder) = &self.folder else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
            let path = entry.map_err(Error::io(folder))?.path();
            if path.extension().is_some_and(|extension| extension == "loom")
                && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
            {
                found.push((stem.to_owned(), path));
            }
        }
        found.sort();
        Ok(found)
    }

    /// A path that a stranger gave: a regular file below the folder, without links out of it.
    ///
    /// # Errors
    /// 403 without a folder; 404 for everything else, so that nobody learns what is elsewhere.
    pub(crate) fn confined(&self, path: &str) -> Result<PathBuf> {
        let Some(folder) = &self.folder else {
            let message = "this server has no folder of fine-tunes";
            return Err(Failure::new(Kind::Permission, message).with_code("no_folder"));
        };
        let missing = || {
            let failure = Failure::new(Kind::NotFound, "no such file in the folder of fine-tunes");
            failure.with_param("path").with_code("file_not_found")
        };
        let path = folder.join(path).canonicalize().map_err(|_| missing())?;
        if path.starts_with(folder) && path.is_file() { Ok(path) } else { Err(missing()) }
    }

    /// Opens a container and serves it under a name. It reads the whole file; others run meanwhile.
    ///
    /// # Errors
    /// 400 for a bad name or no container; 404 for no file; 409 if the name is taken and must not
    /// be replaced; 422 for the fine-tune of another base, or of other shapes.
    pub(crate) fn load(&self, name: &str, path: &Path, pinned: bool, replace: bool) -> Result<Arc<Tenant>> {
        check_name(name)?;
        if name == BASE || name == self.base_name {
            return Err(taken(name));
        }
        if !replace && self.find(name).is_some() {
            return Err(taken(name));
        }
        let container = Container::open(path, &Limits::default()).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                Failure::new(Kind::NotFound, "there is no such file").with_code("file_not_found")
            }
            _ => Failure::field("path", error.to_string()).with_code("not_a_container"),
        })?;
        let packed_bytes = container.len_bytes();
        let prepared = self.preparer.prepare(container).map_err(|error| {
            let code = if error.kind() == ErrorKind::WrongBase { "base_mismatch" } else { "shape_mismatch" };
            Failure::new(Kind::Unprocessable, error.to_string()).with_param("path").with_code(code)
        })?;
        let text = self.text_of(&|file, limit| prepared.file(file, limit)).map_err(|error| {
            Failure::new(Kind::Unprocessable, error.with_path()).with_code("bad_tokenizer")
        })?;
        if prepared.changed_matrices() == 0 {
            tracing::warn!(name, "no matrix of this fine-tune differs from its base");
        }
        let digest = prepared.digest();
        let tenant = Arc::new(Tenant {
            name: name.to_owned(),
            id: self.worker.admit(prepared, pinned)?,
            digest,
            fingerprint: fingerprint(digest),
            text,
            created: now(),
            packed_bytes,
            pinned,
            last_used: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            worker: self.worker.clone(),
        });
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        if tenants.contains_key(name) && !replace {
            return Err(taken(name));
        }
        if tenants.len() >= MOST_TENANTS {
            return Err(Failure::new(Kind::Conflict, "too many fine-tunes").with_code("too_many_tenants"));
        }
        tenants.insert(name.to_owned(), Arc::clone(&tenant));
        Ok(tenant)
    }

    /// Takes a fine-tune out. Requests that have it finish.
    ///
    /// # Errors
    /// 404 for no such fine-tune; 409 for the base, and without force for one that is pinned.
    pub(crate) fn remove(&self, name: &str, force: bool) -> Result<Arc<Tenant>> {
        let pinned = |message: &str| Failure::new(Kind::Conflict, message).with_code("pinned");
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        match tenants.get(name) {
            None if name == BASE || name == self.base_name => Err(pinned("the base cannot be removed")),
            None => Err(Failure::model_not_found(name)),
            Some(tenant) if tenant.pinned && !force => Err(pinned("the fine-tune is pinned")),
            Some(_) => tenants.remove(name).ok_or_else(|| Failure::model_not_found(name)),
        }
    }

    /// Takes out a fine-tune that the engine has dropped, unless its name is another's by now.
    pub(crate) fn forget(&self, gone: &Tenant) {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        if tenants.get(&gone.name).is_some_and(|tenant| tenant.id == gone.id) {
            tracing::warn!(name = gone.name, "a fine-tune is gone: its file has changed on disk");
            tenants.remove(&gone.name);
        }
    }

    /// The text of a fine-tune: that of the base, or of another with the same files, or a new one.
    fn text_of(&self, own: ReadFile<'_>) -> deltaloom::Result<Arc<Text>> {
        let mut hasher = blake3::Hasher::new();
        let mut is_same = true;
        for name in TEXT_FILES {
            let file = own(name, LARGEST_TEXT_FILE)?;
            let of_base = std::fs::read(self.base_path.join(name)).ok();
            is_same &= file.is_none() || file == of_base;
            let digest = file.or(of_base).map_or([0; 32], |bytes| *blake3::hash(&bytes).as_bytes());
            hasher.update(&digest);
        }
        if is_same {
            return Ok(Arc::clone(&self.base.text));
        }
        let digest = *hasher.finalize().as_bytes();
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = texts.get(&digest).and_then(Weak::upgrade) {
            return Ok(text);
        }
        let text = Arc::new(Text::new(Tokenizer::open_with(&self.base_path, self.vocabulary, own)?));
        texts.retain(|_, text| text.strong_count() > 0);
        texts.insert(digest, Arc::downgrade(&text));
        Ok(text)
    }
}

impl Text {
    fn new(tokenizer: Tokenizer) -> Self {
        let special = tokenizer.special();
        let template = special.chat_template.as_ref().map_or_else(
            || Err("the model has no chat template".to_owned()),
            |source| {
                let parsed =
                    ChatTemplate::parse(source, special.begin_text.as_deref(), special.end_text.as_deref());
                parsed.map_err(|error| error.to_string())
            },
        );
        let ends = special.end.clone().into();
        let style = Style::of_template(special.chat_template.as_deref().unwrap_or_default());
        Self { tokenizer, template, ends, style, vocabulary: OnceLock::new() }
    }

    /// What lets only texts of a shape through. May take a second for the first of a tokenizer.
    ///
    /// # Errors
    /// As [`Vocabulary::grammar`]; 400 for a tokenizer that is too large for grammars.
    pub(crate) fn grammar(&self, shape: &Shape) -> Result<Grammar> {
        let make = || Vocabulary::new(self.tokenizer.pieces(), &self.ends).ok();
        let vocabulary = self.vocabulary.get_or_init(make).as_ref();
        let too_large = || Failure::field(shape.param(), "the vocabulary of this model is too large");
        vocabulary.ok_or_else(too_large)?.grammar(shape)
    }

    /// The ids of a text. One that starts with nothing starts with the id that starts texts.
    pub(crate) fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode(text, special)?;
        if ids.is_empty() && special == Special::Add {
            ids.extend(self.tokenizer.special().begin);
        }
        Ok(ids)
    }

    /// The text of one id; `bytes:\x..` where its bytes are not UTF-8.
    pub(crate) fn token(&self, id: u32) -> String {
        let bytes = self.tokenizer.pieces().bytes(id);
        match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
        }
    }
}

impl Tenant {
    /// When the last request came, in seconds since 1970.
    pub(crate) fn last_used(&self) -> Option<u64> {
        Some(self.last_used.load(Ordering::Relaxed)).filter(|time| *time > 0)
    }

    /// Requests that run or wait.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

impl InFlight {
    /// Counts a request of this fine-tune, which it keeps.
    pub(crate) fn new(tenant: Arc<Tenant>) -> Self {
        tenant.in_flight.fetch_add(1, Ordering::Relaxed);
        tenant.last_used.store(now(), Ordering::Relaxed);
        Self(tenant)
    }
}

impl Deref for InFlight {
    type Target = Tenant;

    fn deref(&self) -> &Tenant {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        if self.id != Model::BASE {
            self.worker.retire(self.id);
        }
    }
}

fn taken(name: &str) -> Failure {
    Failure::new(Kind::Conflict, format!("the name {name:?} is taken"))
        .with_param("name")
        .with_code("name_taken")
}

fn check_name(name: &str) -> Result<()> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:@+".contains(&byte);
    let is_short = (1..=LONGEST_NAME).contains(&name.len());
    if is_short && name.bytes().all(is_allowed) && !name.starts_with('.') {
        return Ok(());
    }
    let message = "a name has up to 128 letters, digits and ._-:@+ and does not start with a full stop";
    Err(Failure::field("name", message).with_code("bad_name"))
}

/// Tells weights, the order of additions and the version apart.
fn fingerprint(digest: blake3::Hash) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(digest.as_bytes());
    hasher.update(concat!("pair order ", env!("CARGO_PKG_VERSION")).as_bytes());
    let hex = hasher.finalize().to_hex();
    format!("dl-{}", &hex[..12])
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_harmless() {
        for good in ["a", "pirate-2", "org:model@v1.0+x"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "../x", "a/b", "a b", "a\n", "é", &"x".repeat(129), "a\0"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
