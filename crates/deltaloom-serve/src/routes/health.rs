//! Whether the process lives, and whether it takes requests.

use axum::body::Body;
use axum::http::{Response, StatusCode};

use crate::call::{Call, json};
use crate::error::{Failure, Result};
use crate::wire::Status;

pub(super) async fn health(call: Call) -> Result<Response<Body>> {
    if call.app.worker.is_alive() {
        Ok(json(StatusCode::OK, &Status { status: "ok" }))
    } else {
        Err(Failure::engine_gone())
    }
}

pub(super) async fn ready(call: Call) -> Result<Response<Body>> {
    if call.app.is_draining() {
        return Ok(json(StatusCode::SERVICE_UNAVAILABLE, &Status { status: "draining" }));
    }
    health(call).await
}
