//! `/metrics`.

use axum::body::Body;
use axum::http::Response;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use prometheus_client::encoding::text::encode;

use crate::call::Call;
use crate::error::{Failure, Kind, Result};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) async fn answer(call: Call) -> Result<Response<Body>> {
    let mut text = String::new();
    encode(&mut text, &call.app.registry)
        .map_err(|_| Failure::new(Kind::Server, "the metrics cannot be written"))?;
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
    Ok(response)
}
