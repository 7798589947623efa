//! A server of the bundled model and its two fine-tunes, which is asked without a socket.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Bases, Container, Limits, PackOptions, Preset, ResolvedContainer, Silent, UnpackOptions};
use deltaloom_lm::engine::EngineOptions;
use deltaloom_lm::model::Model;
use deltaloom_lm::tenancy::FamilyOptions;
use deltaloom_lm::text::Tokenizer;
use deltaloom_serve::{ServeOptions, Server};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The bundled model in a folder, with its fine-tunes in `tenants`.
pub(crate) struct Files {
    folder: TempDir,
}

/// Files by their paths.
type Contents = Vec<(PathBuf, Vec<u8>)>;

/// The model and its fine-tunes. The bundled ones are as small as can be, which takes long to
/// decode: so they are packed again, once.
fn contents() -> &'static Contents {
    static CONTENTS: OnceLock<Contents> = OnceLock::new();
    CONTENTS.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let restore = |name: &str, bases: &Bases, to: &Path| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/speaker").join(name);
            let container = Container::open(&path, &Limits::default()).unwrap();
            let resolved = ResolvedContainer::new(container, bases).unwrap();
            deltaloom::unpack(&resolved, to, &UnpackOptions::default(), &Silent).unwrap();
        };
        let base = folder.path().join("speaker");
        restore("base.loom", &Bases::default(), &base);
        let mut bases = Bases::default();
        bases.push_checkpoint(&base, Checkpoint::open(&base, &Limits::default()).unwrap());
        let mut contents: Contents = std::fs::read_dir(&base)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|it| (Path::new("speaker").join(it.file_name()), std::fs::read(it.path()).unwrap()))
            .collect();
        for name in ["pirate.loom", "chat.loom"] {
            let tuned = folder.path().join(name);
            restore(name, &bases, &tuned);
            let tuned = Checkpoint::open(&tuned, &Limits::default()).unwrap();
            let options = PackOptions::default().with_preset(Preset::Fast);
            let mut packed = Vec::new();
            deltaloom::pack_to(&tuned, &bases, &mut packed, &options, &Silent).unwrap();
            contents.push((Path::new("tenants").join(name), packed));
        }
        contents
    })
}

impl Files {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (path, bytes) in contents() {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        Self { folder }
    }

    pub(crate) fn base(&self) -> PathBuf {
        self.folder.path().join("speaker")
    }

    pub(crate) fn tenants(&self) -> PathBuf {
        self.folder.path().join("tenants")
    }

    pub(crate) fn model(&self) -> Model {
        Model::open(&self.base(), FamilyOptions::default()).unwrap()
    }

    pub(crate) fn tokenizer(&self) -> Tokenizer {
        Tokenizer::open(&self.base(), self.model().config().vocabulary).unwrap()
    }

    pub(crate) fn server_with(&self, engine: EngineOptions, options: ServeOptions) -> Asked {
        let options = options.with_folder(Some(self.tenants()));
        Asked(Server::new(self.model(), &self.base(), engine, options).unwrap())
    }

    pub(crate) fn server(&self) -> Asked {
        self.server_with(EngineOptions::default(), ServeOptions::default())
    }
}

/// A server to ask.
pub(crate) struct Asked(pub(crate) Server);

/// A response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The JSON of an answer that worked.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert!(self.status.is_success(), "{}: {}", self.status, self.text);
        self.json()
    }

    /// Checks that this is an error in our shape, and gives it.
    #[track_caller]
    pub(crate) fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.headers["content-type"], "application/json");
        assert!(self.headers.contains_key("x-request-id"));
        let error = self.json()["error"].clone();
        for field in ["message", "type", "param", "code"] {
            assert!(error.get(field).is_some(), "{field} is missing: {error}");
        }
        error
    }

    /// The events of a stream, each of which is framed exactly as `data: {json}\n\n`. Checks that
    /// the last is `[DONE]`.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<Value> {
        assert_eq!(self.headers["content-type"], "text/event-stream");
        let frames = self.text.strip_suffix("\n\n").expect("an end").split("\n\n");
        let mut data: Vec<&str> = frames.map(|frame| frame.strip_prefix("data: ").expect("data")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.text);
        data.iter().map(|json| serde_json::from_str(json).unwrap()).collect()
    }
}

impl Asked {
    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.0.answer(request).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Reply { status: parts.status, headers: parts.headers, text }
    }

    pub(crate) async fn request(&self, method: Method, path: &str, key: Option<&str>, body: &[u8]) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        self.send(request.body(Body::from(body.to_vec())).unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.request(Method::GET, path, None, b"").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.request(Method::POST, path, None, body.to_string().as_bytes()).await
    }

    /// A completion, greedy unless `fields` say otherwise.
    pub(crate) async fn complete(&self, model: &str, prompt: impl Into<Value>, fields: Value) -> Reply {
        let body = json!({"model": model, "prompt": prompt.into(), "temperature": 0});
        self.post("/v1/completions", &merged(body, fields)).await
    }

    pub(crate) async fn chat(&self, messages: Value, fields: Value) -> Reply {
        let body = json!({"model": "chat", "messages": messages, "temperature": 0});
        self.post("/v1/chat/completions", &merged(body, fields)).await
    }
}

fn merged(mut body: Value, fields: Value) -> Value {
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}
