//! One request between its socket and its route: who sent it, its number, its body, and when it
//! must be answered.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as HttpBody;
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::{HeaderMap, Response, StatusCode, Uri};
use deltaloom_lm::model::Model;
use deltaloom_lm::text::Special;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Serialize;
use tokio::time::{Instant, timeout};

use crate::app::App;
use crate::catalog::{BASE, Tenant, Text, now};
use crate::error::{Failure, Kind, Result};
use crate::keys::Client;
use crate::stream::Running;
use crate::wire::Body;

/// The number of a request.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Milliseconds until a request must be answered.
const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");
/// The fine-tune that answered.
const TENANT: HeaderName = HeaderName::from_static("x-deltaloom-tenant");
/// How long the parts took.
const TIMING: HeaderName = HeaderName::from_static("server-timing");
/// Characters of a client's number.
const LONGEST_ID: usize = 64;

/// A request.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    pub(crate) client: Client,
    pub(crate) uri: Uri,
    /// What the path has at the place of `{..}`.
    pub(crate) name: String,
    pub(crate) body: Body,
    pub(crate) id: String,
    pub(crate) deadline: Option<Instant>,
}

impl Call {
    /// The fine-tune with a name that the client may use.
    pub(crate) fn tenant(&self, name: &str) -> Result<Arc<Tenant>> {
        let tenant = self.app.catalog.find(name).ok_or_else(|| Failure::model_not_found(name))?;
        if self.may_use(&tenant) {
            return Ok(tenant);
        }
        let message = format!("this key may not use the model {name:?}");
        Err(Failure::new(Kind::Permission, message).with_param("model").with_code("model_not_allowed"))
    }

    /// Whether the client may use a fine-tune. The base has two names.
    pub(crate) fn may_use(&self, tenant: &Tenant) -> bool {
        self.client.may_use(&tenant.name) || (tenant.id == Model::BASE && self.client.may_use(BASE))
    }
}

/// The client's number if it is harmless, or a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> String {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let given = given.filter(|id| (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(is_allowed));
    given.map_or_else(
        || {
            // Without random numbers the time is enough: nothing secret depends on it.
            format!("{:016x}", getrandom::u64().unwrap_or_else(|_| now()))
        },
        str::to_owned,
    )
}

/// When a request must be answered: what its header says, if that is sooner than `most`.
///
/// # Errors
/// 400 for a header that is no number above 0.
pub(crate) fn deadline(headers: &HeaderMap, most: Option<Duration>) -> Result<Option<Instant>> {
    let own = headers.get(REQUEST_TIMEOUT).map(|value| {
        let ms = value.to_str().ok().and_then(|text| text.parse::<u32>().ok()).filter(|ms| *ms > 0);
        let wrong = || Failure::field(REQUEST_TIMEOUT.as_str(), "must be milliseconds, from 1 to 4294967295");
        ms.map(|ms| Duration::from_millis(ms.into())).ok_or_else(wrong)
    });
    let own = own.transpose()?;
    let soonest = [own, most].into_iter().flatten().min();
    Ok(soonest.map(|time| Instant::now() + time))
}

/// The bytes of a body.
///
/// # Errors
/// 413 for too many, 408-like timeouts as 504, 400 if the connection breaks.
pub(crate) async fn read_body(body: HttpBody, most: usize, time: Duration) -> Result<Vec<u8>> {
    let too_large = || {
        let message = format!("the body has more than {most} bytes");
        Failure::new(Kind::TooLarge, message).with_code("body_too_large")
    };
    match timeout(time, Limited::new(body, most).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes().into()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Failure::new(Kind::Invalid, "the body ends too early").with_code("bad_body")),
        Err(_) => Err(Failure::new(Kind::Timeout, "the body takes too long").with_code("request_timeout")),
    }
}

/// Works on text on a thread that may block.
pub(crate) async fn on_text<T: Send + 'static>(
    tenant: &Arc<Tenant>,
    work: impl FnOnce(&Text) -> Result<T> + Send + 'static,
) -> Result<T> {
    let text = Arc::clone(&tenant.text);
    blocking(move || work(&text)).await
}

/// Works on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Failure::new(Kind::Server, format!("a defect: {error}"))))
}

/// Whether ids that start texts are added.
pub(crate) fn special(add: bool) -> Special {
    if add { Special::Add } else { Special::Omit }
}

/// A response with JSON.
pub(crate) fn json<T: Serialize>(status: StatusCode, value: &T) -> Response<HttpBody> {
    let Ok(text) = serde_json::to_string(value) else {
        return Failure::new(Kind::Server, "the answer is not JSON").response();
    };
    let mut response = Response::new(HttpBody::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A response with the answer of a request that has ended, and how long its parts took.
pub(crate) fn timed<T: Serialize>(answer: &T, running: &Running) -> Response<HttpBody> {
    let mut response = with_tenant(json(StatusCode::OK, answer), &running.tenant);
    if let Ok(timing) = HeaderValue::from_str(&running.timing()) {
        response.headers_mut().insert(TIMING, timing);
    }
    response
}

/// Says which fine-tune answered.
pub(crate) fn with_tenant(mut response: Response<HttpBody>, tenant: &Tenant) -> Response<HttpBody> {
    if let Ok(name) = HeaderValue::from_str(&tenant.name) {
        response.headers_mut().insert(TENANT, name);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn only_harmless_numbers_are_kept() {
        assert_eq!(request_id(&headers(REQUEST_ID, "a-B_9")), "a-B_9");
        for bad in ["", "a b", "a;b", &"x".repeat(65)] {
            let id = request_id(&headers(REQUEST_ID, bad));
            assert!(id != bad && id.len() == 16, "{bad}");
        }
    }

    #[test]
    fn a_header_only_shortens_the_time() {
        let minute = Some(Duration::from_secs(60));
        let long = headers(REQUEST_TIMEOUT, "4000000000");
        let soon = Instant::now() + Duration::from_secs(61);
        assert!(deadline(&long, minute).unwrap().unwrap() < soon);
        assert!(deadline(&headers(REQUEST_TIMEOUT, "5"), minute).unwrap().unwrap() < soon);
        assert_eq!(deadline(&HeaderMap::new(), None).unwrap(), None);
        for bad in ["0", "-1", "x", "1e3", "99999999999999"] {
            assert!(deadline(&headers(REQUEST_TIMEOUT, bad), None).is_err(), "{bad}");
        }
    }
}
