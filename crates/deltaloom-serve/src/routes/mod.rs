//! The table of routes, and what happens around each: the number of a request, keys, the body,
//! errors in our shape, and the log.

mod admin;
mod chat;
mod completions;
mod health;
mod messages;
mod metrics;
mod models;
mod openapi;
mod page;
mod scores;
mod tokens;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts as _, RawPathParams};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, HOST, HeaderValue, ORIGIN, VARY,
};
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use axum::routing::{MethodFilter, on};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::app::App;
use crate::call::{Call, REQUEST_ID, deadline, read_body, request_id};
use crate::error::{Failure, Kind, Result};
use crate::keys::{Client, Keys, check_admin};
use crate::wire::{self, Body as Fields};
pub use openapi::api_markdown;

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Everybody. A key counts if it is there.
    Open,
    /// Who has a key, if there are any.
    Key,
    /// As with a key, unless metrics are open.
    Metrics,
    /// The administration.
    Admin,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>>> + Send>>;
type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A row of the table.
struct Route {
    method: Method,
    path: &'static str,
    access: Access,
    /// What it does, in a sentence.
    does: &'static str,
    /// Fields of the body: those of all these types.
    takes: &'static [SchemaOf],
    gives: Gives,
    run: fn(Call) -> Answer,
}

/// What an answer has.
#[derive(Clone, Copy)]
enum Gives {
    Json(SchemaOf),
    /// JSON, or a stream of these events.
    JsonOrEvents(SchemaOf, SchemaOf),
    Other(&'static str),
    Nothing,
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// A row. `$run` is an asynchronous function of a call.
macro_rules! route {
    ($method:ident $path:literal, $access:ident, $does:literal, [$($takes:ty),*], $gives:expr, $run:path) => {
        Route {
            method: Method::$method,
            path: $path,
            access: Access::$access,
            does: $does,
            takes: &[$(schema::<$takes>),*],
            gives: $gives,
            run: |call| Box::pin($run(call)),
        }
    };
}

/// All routes.
static ROUTES: &[Route] = {
    use Gives::{Json, JsonOrEvents, Nothing, Other};
    use wire::{
        Chat, ChatChunk, ChatCompletion, Common, Completion, CompletionRequest, Detokenize, Detokenized,
        Lora, ModelEntry, ModelList, NewTenant, Status, TenantEntry, TenantList, Tokenize, Tokenized,
        TokenizerInfo, Unloaded,
    };
    &[
        route!(POST "/v1/completions", Key, "Continues a text.", [CompletionRequest, Common],
            JsonOrEvents(schema::<Completion>, schema::<Completion>), completions::answer),
        route!(POST "/v1/chat/completions", Key, "Answers a conversation.", [Chat, Common],
            JsonOrEvents(schema::<ChatCompletion>, schema::<ChatChunk>), chat::answer),
        route!(GET "/v1/models", Key, "Lists the base and the fine-tunes that the key may use.", [],
            Json(schema::<ModelList>), models::list),
        route!(GET "/v1/models/{name}", Key, "Describes one of them.", [],
            Json(schema::<ModelEntry>), models::one),
        route!(POST "/tokenize", Open, "Turns a text or a conversation into ids.", [Tokenize],
            Json(schema::<Tokenized>), tokens::tokenize),
        route!(POST "/detokenize", Open, "Turns ids into text.", [Detokenize],
            Json(schema::<Detokenized>), tokens::detokenize),
        route!(GET "/tokenizer_info", Open, "Describes the tokenizer of the base.", [],
            Json(schema::<TokenizerInfo>), tokens::info),
        route!(GET "/health", Open, "Says that the process lives.", [], Json(schema::<Status>), health::health),
        route!(GET "/v1/health", Open, "The same.", [], Json(schema::<Status>), health::health),
        route!(GET "/ready", Open, "Says whether requests are taken: 503 while the server ends.", [],
            Json(schema::<Status>), health::ready),
        route!(GET "/metrics", Metrics, "Metrics for Prometheus.", [],
            Other("application/openmetrics-text"), metrics::answer),
        route!(GET "/admin/tenants", Admin, "Lists all fine-tunes.", [],
            Json(schema::<TenantList>), admin::list),
        route!(POST "/admin/tenants", Admin, "Loads a fine-tune from the folder: 201 with it.", [NewTenant],
            Json(schema::<TenantEntry>), admin::load),
        route!(DELETE "/admin/tenants/{name}", Admin,
            "Removes a fine-tune: 204, or 202 while its requests finish. With `?force=true` also one that is pinned.",
            [], Json(schema::<Unloaded>), admin::remove),
        route!(POST "/v1/load_lora_adapter", Admin, "Loads a fine-tune, by vLLM's names.", [Lora],
            Other("text/plain"), admin::load_lora),
        route!(POST "/v1/unload_lora_adapter", Admin, "Removes a fine-tune, by vLLM's names.", [Lora],
            Other("text/plain"), admin::unload_lora),
        route!(GET "/openapi.json", Open, "This table as an OpenAPI document.", [],
            Other("application/json"), openapi::answer),
        route!(GET "/", Open, "A page to try the fine-tunes.", [], Other("text/html"), page::html),
        route!(GET "/page.css", Open, "Its style.", [], Other("text/css"), page::css),
        route!(GET "/page.js", Open, "Its program.", [], Other("text/javascript"), page::js),
        route!(GET "/favicon.ico", Open, "No picture: 204.", [], Nothing, page::icon),
    ]
};

/// The service of all routes.
pub(crate) fn router(app: &Arc<App>) -> Router {
    let mut router = Router::new();
    for row in ROUTES {
        let own = Arc::clone(app);
        let answer = move |request| around(Arc::clone(&own), row, request);
        let filter = match row.method {
            Method::POST => MethodFilter::POST,
            Method::DELETE => MethodFilter::DELETE,
            _ => MethodFilter::GET,
        };
        router = router.route(row.path, on(filter, answer));
    }
    let (none, other) = (Arc::clone(app), Arc::clone(app));
    router
        .fallback(move |request| refuse(Arc::clone(&none), Kind::NotFound, request))
        .method_not_allowed_fallback(move |request| refuse(Arc::clone(&other), Kind::Method, request))
}

/// Answers a request by a row of the table.
async fn around(
    app: Arc<App>,
    row: &'static Route,
    request: Request<Body>,
) -> Result<Response<Body>, Infallible> {
    let start = Instant::now();
    let id = request_id(request.headers());
    let (method, headers) = (request.method().clone(), request.headers().clone());
    let client = client(&app, row.access, &headers);
    let name = client.as_ref().map_or("?", Client::name).to_owned();
    let answer = match client.and_then(|client| check_origin(&app, &method, &headers).map(|()| client)) {
        Ok(client) => answer(&app, row, client, id.clone(), request).await,
        Err(failure) => Err(failure),
    };
    let response = answer.unwrap_or_else(|failure| {
        app.metrics.refused(failure.code().unwrap_or("invalid_request"));
        failure.response()
    });
    let status = response.status().as_u16();
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    tracing::info!(id, %method, path = row.path, client = name, status, ms, "request");
    Ok(finish(&app, &headers, &id, response))
}

async fn answer(
    app: &Arc<App>,
    row: &Route,
    client: Client,
    id: String,
    request: Request<Body>,
) -> Result<Response<Body>> {
    let deadline = deadline(request.headers(), app.options.request_time)?;
    let (mut parts, body) = request.into_parts();
    let params = RawPathParams::from_request_parts(&mut parts, &()).await;
    let params = params.map_err(|_| Failure::new(Kind::NotFound, "the path is not UTF-8"))?;
    let name = params.iter().next().map_or(String::new(), |(_, value)| value.to_owned());
    let body = if row.takes.is_empty() {
        Fields::default()
    } else {
        let bytes = read_body(body, app.options.body_bytes, app.options.body_time).await?;
        let fields = Fields::parse(&bytes)?;
        if app.options.strict {
            check_known(row, &fields)?;
        }
        fields
    };
    (row.run)(Call { app: Arc::clone(app), client, uri: parts.uri, name, body, id, deadline }).await
}

/// Who sent a request, if it may use the route.
fn client(app: &App, access: Access, headers: &HeaderMap) -> Result<Client> {
    let nobody = || Keys::default().client(headers);
    match access {
        Access::Admin => check_admin(app.admin_key.as_ref(), headers).and_then(|()| nobody()),
        Access::Metrics if app.options.open_metrics => nobody(),
        Access::Key | Access::Metrics => app.options.keys.client(headers),
        Access::Open => Ok(app.options.keys.client(headers).unwrap_or_else(|_| Client::stranger())),
    }
}

/// Refuses fields that no type of the row has.
fn check_known(row: &Route, fields: &Fields) -> Result<()> {
    let known = openapi::fields(row.takes);
    match fields.names().find(|name| !known.iter().any(|field| field.name == *name)) {
        None => Ok(()),
        Some(name) => Err(Failure::field(name, "is not a field of this request").with_code("unknown_field")),
    }
}

/// Answers what no row has, in our shape.
async fn refuse(app: Arc<App>, kind: Kind, request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let (method, headers) = (request.method(), request.headers());
    let id = request_id(headers);
    if method == Method::OPTIONS && is_allowed(&app, headers) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let answer = response.headers_mut();
        answer.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
        let allowed = "authorization, content-type, x-request-id, x-request-timeout-ms";
        answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(allowed));
        return Ok(finish(&app, headers, &id, response));
    }
    let failure = match kind {
        Kind::Method => Failure::new(kind, "this path takes other methods").with_code("method_not_allowed"),
        _ => Failure::new(kind, "there is nothing at this path").with_code("unknown_path"),
    };
    tracing::info!(id, %method, path = "?", status = kind.status().as_u16(), "request");
    Ok(finish(&app, headers, &id, failure.response()))
}

/// Whether a page of this origin may ask.
fn is_allowed(app: &App, headers: &HeaderMap) -> bool {
    let origin = headers.get(ORIGIN).and_then(|origin| origin.to_str().ok());
    origin.is_some() && origin == app.options.origin.as_deref()
}

/// Refuses what a page of another origin asks a browser to do here, where keys may not be needed.
fn check_origin(app: &App, method: &Method, headers: &HeaderMap) -> Result<()> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let is_own = text(ORIGIN).and_then(|origin| origin.split_once("://")).map(|(_, host)| host) == text(HOST);
    if *method == Method::GET || !headers.contains_key(ORIGIN) || is_own || is_allowed(app, headers) {
        return Ok(());
    }
    Err(Failure::new(Kind::Permission, "pages of this origin may not ask").with_code("origin_not_allowed"))
}

/// Adds what every response has.
fn finish(app: &App, request: &HeaderMap, id: &str, mut response: Response<Body>) -> Response<Body> {
    let is_allowed = is_allowed(app, request);
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
    if let (true, Some(origin)) = (is_allowed, request.get(ORIGIN)) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(VARY, HeaderValue::from_static("origin"));
        let shown = "x-request-id, x-deltaloom-tenant, server-timing, retry-after";
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(shown));
    }
    response
}
