//! What a client is told when a request fails: one shape for every error, and the status, type and
//! code of each.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use axum::http::{Response, StatusCode};
use schemars::JsonSchema;
use serde::Serialize;

/// Result of a request.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// Tells clients of OpenAI whether to try again.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Bytes of a message. Parts of requests are quoted in messages.
const LONGEST_MESSAGE: usize = 1000;

const MODEL_GONE: &str = "model_gone";

/// The kinds of errors, by status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Invalid,
    Authentication,
    Permission,
    NotFound,
    Method,
    Conflict,
    TooLarge,
    Unprocessable,
    RateLimit,
    Server,
    Unavailable,
    Timeout,
}

impl Kind {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::Authentication => StatusCode::UNAUTHORIZED,
            Self::Permission => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unprocessable => StatusCode::UNPROCESSABLE_ENTITY,
            Self::RateLimit => StatusCode::TOO_MANY_REQUESTS,
            Self::Server => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Invalid | Self::Method | Self::Conflict | Self::TooLarge | Self::Unprocessable => {
                "invalid_request_error"
            }
            Self::Authentication => "authentication_error",
            Self::Permission => "permission_error",
            Self::NotFound => "not_found_error",
            Self::RateLimit => "rate_limit_error",
            Self::Server | Self::Timeout => "server_error",
            Self::Unavailable => "unavailable_error",
        }
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    retry_after: Option<u64>,
}

/// The body of an error.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ErrorBody<'a> {
    error: ErrorFields<'a>,
}

/// What is wrong.
#[derive(Debug, Serialize, JsonSchema)]
struct ErrorFields<'a> {
    /// What is wrong, for people.
    message: &'a str,
    /// The kind, such as `invalid_request_error`.
    #[serde(rename = "type")]
    kind: &'a str,
    /// The field of the request that is wrong.
    param: Option<&'a str>,
    /// What is wrong, for programs.
    code: Option<&'a str>,
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > LONGEST_MESSAGE {
            message.truncate(message.floor_char_boundary(LONGEST_MESSAGE));
            message.push_str(" ...");
        }
        Self { kind, message, param: None, code: None, retry_after: None }
    }

    /// A request that is wrong in this field.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(Kind::Invalid, message) }
    }

    /// The queues are full: come back after some seconds.
    pub(crate) fn full(message: impl Into<String>, seconds: u64) -> Self {
        let failure = Self::new(Kind::RateLimit, message).with_code("queue_full");
        Self { retry_after: Some(seconds.clamp(1, 60)), ..failure }
    }

    /// The server ends.
    pub(crate) fn shutting_down() -> Self {
        let failure = Self::new(Kind::Unavailable, "the server is shutting down");
        Self { retry_after: Some(5), ..failure.with_code("server_shutting_down") }
    }

    /// The thread of the engine has ended.
    pub(crate) fn engine_gone() -> Self {
        Self::new(Kind::Server, "the engine has stopped").with_code("engine_stopped")
    }

    /// No fine-tune, or none that this key may use, has the name.
    pub(crate) fn model_not_found(name: &str) -> Self {
        let message = format!("the model {name:?} does not exist");
        Self { param: Some("model".to_owned()), ..Self::new(Kind::NotFound, message) }
            .with_code("model_not_found")
    }

    /// The engine has dropped a fine-tune that the request had found.
    pub(crate) fn model_gone() -> Self {
        let message = "the model was removed, or its file has changed on disk";
        Self { param: Some("model".to_owned()), ..Self::new(Kind::NotFound, message) }.with_code(MODEL_GONE)
    }

    /// Whether it is [`Self::model_gone`].
    pub(crate) fn is_model_gone(&self) -> bool {
        self.code == Some(MODEL_GONE)
    }

    pub(crate) fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    pub(crate) fn with_param(self, param: &str) -> Self {
        Self { param: Some(param.to_owned()), ..self }
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    #[cfg(test)]
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn code(&self) -> Option<&'static str> {
        self.code
    }

    /// The body, as JSON.
    pub(crate) fn json(&self) -> String {
        let error = ErrorFields {
            message: &self.message,
            kind: self.kind.name(),
            param: self.param.as_deref(),
            code: self.code,
        };
        // Strings can always be written.
        serde_json::to_string(&ErrorBody { error }).unwrap_or_default()
    }

    pub(crate) fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.json()));
        *response.status_mut() = self.kind.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        match self.kind {
            Kind::RateLimit | Kind::Unavailable => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("true"));
            }
            Kind::Server | Kind::Timeout => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
            _ => {}
        }
        response
    }
}

/// Errors of the library that a client caused.
impl From<deltaloom::Error> for Failure {
    fn from(error: deltaloom::Error) -> Self {
        Self::new(Kind::Invalid, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_that_of_openai() {
        let failure = Failure::field("top_p", "must be above 0").with_code("bad_value");
        let expected = r#"{"error":{"message":"must be above 0","type":"invalid_request_error","param":"top_p","code":"bad_value"}}"#;
        assert_eq!(failure.json(), expected);
        assert_eq!(failure.response().status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let response = Failure::full("full", 1000).response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["retry-after"], "60");
        assert_eq!(response.headers()["x-should-retry"], "true");
    }

    #[test]
    fn messages_are_short() {
        let failure = Failure::model_not_found(&"é".repeat(10_000));
        assert!(failure.json().len() < 1500);
    }
}
