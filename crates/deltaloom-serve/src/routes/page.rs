//! The page at `/`. It loads nothing from elsewhere, and its browser is told to see to that.

use axum::body::Body;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{Response, StatusCode};

use crate::call::Call;
use crate::error::Result;

const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      object-src 'none'";

pub(super) async fn html(_: Call) -> Result<Response<Body>> {
    Ok(file("text/html; charset=utf-8", include_str!("../page/index.html")))
}

pub(super) async fn css(_: Call) -> Result<Response<Body>> {
    Ok(file("text/css; charset=utf-8", include_str!("../page/page.css")))
}

pub(super) async fn js(_: Call) -> Result<Response<Body>> {
    Ok(file("text/javascript; charset=utf-8", include_str!("../page/page.js")))
}

pub(super) async fn icon(_: Call) -> Result<Response<Body>> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

fn file(kind: &'static str, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    for (name, value) in [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
