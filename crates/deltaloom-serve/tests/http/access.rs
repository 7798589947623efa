//! Keys, the administration, and paths that strangers give.

use crate::support::{Asked, Files, Reply};
use axum::http::Method;
use deltaloom_lm::engine::EngineOptions;
use deltaloom_serve::{Keys, ServeOptions};
use serde_json::{Value, json};

async fn post(server: &Asked, path: &str, key: Option<&str>, body: Value) -> Reply {
    server.request(Method::POST, path, key, body.to_string().as_bytes()).await
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|entry| entry["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn keys_open_what_they_are_for() {
    let files = Files::new();
    let keys = Keys::parse("sk-all\nsk-pirate alice pirate").unwrap();
    let server = files.server_with(EngineOptions::default(), ServeOptions::default().with_keys(keys));
    let body = |model: &str| json!({"model": model, "prompt": "The", "max_tokens": 1});
    for key in [None, Some("sk-none"), Some("")] {
        let error = post(&server, "/v1/completions", key, body("pirate")).await.error(401);
        assert_eq!(error["type"], "authentication_error");
        server.request(Method::GET, "/v1/models", key, b"").await.error(401);
        server.request(Method::GET, "/metrics", key, b"").await.error(401);
    }
    assert!(post(&server, "/v1/completions", Some("sk-all"), body("chat")).await.status.is_success());
    assert!(post(&server, "/v1/completions", Some("sk-pirate"), body("pirate")).await.status.is_success());
    for model in ["chat", "base", "speaker"] {
        let error = post(&server, "/v1/completions", Some("sk-pirate"), body(model)).await.error(403);
        assert_eq!(error["code"], "model_not_allowed");
    }
    let list = server.request(Method::GET, "/v1/models", Some("sk-pirate"), b"").await.ok();
    assert_eq!(names(&list["data"]), ["pirate"]);
    let list = server.request(Method::GET, "/v1/models", Some("sk-all"), b"").await.ok();
    assert_eq!(names(&list["data"]), ["speaker", "chat", "pirate"]);
    // Harnesses ask these without a key, or with any; but only about the base.
    for key in [None, Some("any")] {
        let answer = post(&server, "/tokenize", key, json!({"prompt": "The"})).await.ok();
        assert_eq!(answer["count"], answer["tokens"].as_array().unwrap().len());
        assert!(server.request(Method::GET, "/tokenizer_info", key, b"").await.status.is_success());
        assert!(server.request(Method::GET, "/health", key, b"").await.status.is_success());
        post(&server, "/tokenize", key, json!({"prompt": "The", "model": "pirate"})).await.error(403);
    }
}

#[tokio::test]
async fn administration_needs_its_own_key() {
    let files = Files::new();
    let keys = || Keys::parse("sk-all").unwrap();
    let closed = files.server_with(EngineOptions::default(), ServeOptions::default().with_keys(keys()));
    let options = ServeOptions::default().with_keys(keys()).with_admin_key(Some("root".to_owned()));
    let open = files.server_with(EngineOptions::default(), options);
    for (method, path) in [
        (Method::GET, "/admin/tenants"),
        (Method::POST, "/admin/tenants"),
        (Method::DELETE, "/admin/tenants/chat"),
        (Method::POST, "/v1/load_lora_adapter"),
        (Method::POST, "/v1/unload_lora_adapter"),
    ] {
        for key in [None, Some("sk-all"), Some("root")] {
            closed.request(method.clone(), path, key, b"{}").await.error(403);
        }
        for key in [None, Some("sk-all"), Some("toor")] {
            open.request(method.clone(), path, key, b"{}").await.error(401);
        }
    }
    let list = open.request(Method::GET, "/admin/tenants", Some("root"), b"").await.ok();
    let tenants = list["tenants"].as_array().unwrap();
    assert_eq!(tenants.iter().map(|it| it["name"].clone()).collect::<Vec<_>>(), ["chat", "pirate"]);
    assert!(tenants.iter().all(|it| it["in_flight"] == 0 && it["packed_bytes"].as_u64().unwrap() > 0));
}

#[tokio::test]
async fn fine_tunes_come_and_go() {
    let files = Files::new();
    let options = ServeOptions::default().with_admin_key(Some("root".to_owned()));
    let server = files.server_with(EngineOptions::default(), options);
    let load = async |body: Value| post(&server, "/admin/tenants", Some("root"), body).await;
    let remove = async |path: &str| server.request(Method::DELETE, path, Some("root"), b"").await;
    let text = async |model: &str| {
        let answer =
            server.complete(model, "The little", json!({"max_tokens": 8, "ignore_eos": true})).await.ok();
        (answer["choices"][0]["text"].clone(), answer["system_fingerprint"].clone())
    };
    let before = text("pirate").await;
    assert_eq!(load(json!({"name": "second", "path": "pirate.loom"})).await.status, 201);
    assert_eq!(text("second").await, before);
    assert_ne!(text("base").await.1, before.1, "other weights");
    assert_eq!(load(json!({"name": "second", "path": "chat.loom"})).await.error(409)["code"], "name_taken");
    load(json!({"name": "second", "path": "chat.loom", "replace": true, "pinned": true})).await.ok();
    assert_eq!(text("second").await, text("chat").await);
    assert_eq!(remove("/admin/tenants/second").await.error(409)["code"], "pinned");
    assert_eq!(remove("/admin/tenants/second?force=perhaps").await.error(400)["param"], "force");
    assert_eq!(remove("/admin/tenants/second?force=true").await.status, 204);
    server.complete("second", "a", json!({})).await.error(404);
    remove("/admin/tenants/second").await.error(404);
    for base in ["base", "speaker"] {
        remove(&format!("/admin/tenants/{base}?force=true")).await.error(409);
        load(json!({"name": base, "path": "chat.loom", "replace": true})).await.error(409);
    }
    // vLLM's names.
    let lora = json!({"lora_name": "third", "lora_path": files.tenants().join("pirate.loom")});
    assert!(post(&server, "/v1/load_lora_adapter", Some("root"), lora.clone()).await.status.is_success());
    post(&server, "/v1/load_lora_adapter", Some("root"), lora).await.error(409);
    assert_eq!(text("third").await, before);
    let third = json!({"lora_name": "third"});
    assert!(post(&server, "/v1/unload_lora_adapter", Some("root"), third.clone()).await.status.is_success());
    post(&server, "/v1/unload_lora_adapter", Some("root"), third).await.error(404);
}

#[cfg(unix)]
#[tokio::test]
async fn only_containers_of_the_folder_are_loaded() {
    let files = Files::new();
    let options = ServeOptions::default().with_admin_key(Some("root".to_owned()));
    let server = files.server_with(EngineOptions::default(), options);
    let outside = files.base().with_file_name("outside.loom");
    std::fs::copy(files.tenants().join("chat.loom"), &outside).unwrap();
    std::os::unix::fs::symlink(&outside, files.tenants().join("link.loom")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", files.tenants().join("zero.loom")).unwrap();
    std::fs::create_dir(files.tenants().join("folder.loom")).unwrap();
    std::fs::write(files.tenants().join("text.loom"), "no container").unwrap();
    std::fs::copy(files.base().join("config.json"), files.tenants().join("config.loom")).unwrap();
    let load = async |name: &str, path: &str| {
        post(&server, "/admin/tenants", Some("root"), json!({"name": name, "path": path})).await
    };
    let outside = outside.to_str().unwrap();
    for path in [
        "../outside.loom",
        outside,
        "link.loom",
        "zero.loom",
        "folder.loom",
        "none.loom",
        "",
        "/dev/zero",
        "a\0b",
    ] {
        let error = load("x", path).await.error(404);
        assert_eq!(error["code"], "file_not_found", "{path:?}");
    }
    for path in ["text.loom", "config.loom"] {
        assert_eq!(load("x", path).await.error(400)["code"], "not_a_container");
    }
    for name in ["", "../x", "a/b", "a b", ".x", &"x".repeat(200)] {
        assert_eq!(load(name, "chat.loom").await.error(400)["param"], "name");
    }
    // A fine-tune of another base.
    let assets = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets");
    std::fs::copy(assets.join("golden/v4/conversions.loom"), files.tenants().join("other.loom")).unwrap();
    assert_eq!(load("x", "other.loom").await.error(422)["code"], "base_mismatch");
}
