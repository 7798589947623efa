//! What went wrong with a store, grouped by who must act, and what they can do. It only reads
//! errors; whether to try again is decided elsewhere.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::PathBuf;

use deltaloom::{Access, Error};
use object_store::client::{HttpError, HttpErrorKind};

use crate::service::Service;

/// Why a store did not do what was requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// No credentials to sign requests were found.
    NoCredentials,
    /// The credentials are unknown or insufficient.
    Denied,
    /// The credentials were valid, and are no longer.
    Expired,
    /// The clocks of this machine and of the store differ too much.
    ClockSkew,
    /// The store has too many requests to answer.
    Busy,
    /// What answers is no store, such as the login page of a network.
    NoStore,
    /// The bucket, or container, does not exist.
    NoBucket,
    /// The endpoint does not answer.
    Unreachable,
    /// The bucket is in another region.
    WrongRegion,
    /// The endpoint is not encrypted, which the settings do not allow.
    NotEncrypted,
    /// The store ignores conditions of writes, so one writer would undo another's writes.
    NoConditions,
    /// The settings are invalid.
    Settings,
    /// The answer does not fit the request.
    BadAnswer,
    /// It is unknown whether the manifest was replaced.
    Undecided,
    /// Anything else; the store's own message says it all.
    Other,
}

/// A failed request to a store; the inner error of [`deltaloom::Error::Io`].
#[derive(Debug)]
pub struct Fault {
    cause: Cause,
    service: Service,
    detail: String,
}

impl Fault {
    pub(crate) fn new(cause: Cause, service: Service, detail: impl Into<String>) -> Self {
        Self { cause, service, detail: detail.into() }
    }

    pub(crate) fn of(service: Service, error: &object_store::Error) -> Self {
        Self::new(cause_of(error), service, chain_text(error))
    }

    /// Why it failed.
    #[must_use]
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// What can be done about it, if known.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match (self.cause, self.service) {
            (Cause::NoCredentials, Service::S3) => Some(
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN); profiles in ~/.aws are not read: `aws configure export-credentials --format env` prints them",
            ),
            (Cause::NoCredentials, Service::Google) => {
                Some("set GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT to a key file")
            }
            (Cause::NoCredentials, Service::Azure) => Some(
                "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_KEY or AZURE_CLIENT_ID, AZURE_CLIENT_SECRET and AZURE_TENANT_ID",
            ),
            (Cause::Denied, Service::S3) => Some(
                "the key in AWS_ACCESS_KEY_ID needs s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket for the bucket",
            ),
            (Cause::Denied, Service::Google) => {
                Some("the account needs the role Storage Object User on the bucket")
            }
            (Cause::Denied, Service::Azure) => {
                Some("the account needs the role Storage Blob Data Contributor on the container")
            }
            (Cause::Expired, Service::S3) => Some(
                "fetch new credentials: temporary ones, with AWS_SESSION_TOKEN, are valid for some hours",
            ),
            (Cause::Expired, _) => Some("fetch new credentials: temporary ones are valid for some hours"),
            (Cause::ClockSkew, _) => {
                Some("set the clock of this machine; the store refuses requests that are minutes off")
            }
            (Cause::Busy, _) => {
                Some("try again later; the store limits how many requests it answers in a second")
            }
            (Cause::NoStore, _) => Some(
                "is the endpoint that of the store? A network may want a login first, or a proxy may answer",
            ),
            (Cause::NoBucket, _) => {
                Some("create it first, or correct its name; deltaloom does not create buckets")
            }
            (Cause::Unreachable, Service::S3) => {
                Some("is the network up, and AWS_ENDPOINT_URL (or AWS_REGION) right?")
            }
            (Cause::Unreachable, _) => {
                Some("is the network up, and the name of the account or bucket right?")
            }
            (Cause::WrongRegion, _) => Some("set AWS_REGION to the region of the bucket"),
            (Cause::NotEncrypted, Service::S3) => Some("set AWS_ALLOW_HTTP=true if this is intended"),
            (Cause::NotEncrypted, Service::Google) => Some("set GOOGLE_ALLOW_HTTP=true if this is intended"),
            (Cause::NotEncrypted, Service::Azure) => Some("set AZURE_ALLOW_HTTP=true if this is intended"),
            (Cause::NoConditions, Service::S3) => {
                Some("unset AWS_CONDITIONAL_PUT, or use a server that honours If-Match and If-None-Match")
            }
            (Cause::Undecided, _) => Some("run the same command again; nothing is done twice"),
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.cause {
            Cause::NoCredentials => "no credentials were found",
            Cause::Denied => "permission denied",
            Cause::Expired => "the credentials have expired",
            Cause::ClockSkew => "the clock of this machine differs too much from that of the store",
            Cause::Busy => "the store has too many requests to answer",
            Cause::NoStore => "this is not an object store",
            Cause::NoBucket => "the bucket does not exist",
            Cause::Unreachable => "the endpoint cannot be reached",
            Cause::WrongRegion => "the bucket is in another region",
            Cause::NotEncrypted => "the endpoint is not encrypted",
            Cause::NoConditions => "the store does not support conditional writes",
            Cause::Settings => "wrong settings",
            Cause::BadAnswer => "the answer does not fit the request",
            Cause::Undecided => "it is unknown whether the manifest was replaced",
            Cause::Other => return f.write_str(&self.detail),
        };
        write!(f, "{what}: {}", self.detail)
    }
}

impl StdError for Fault {}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        let kind = match fault.cause {
            Cause::NoCredentials | Cause::Denied | Cause::Expired | Cause::ClockSkew => {
                io::ErrorKind::PermissionDenied
            }
            Cause::NoBucket => io::ErrorKind::NotFound,
            Cause::BadAnswer | Cause::NoStore => io::ErrorKind::InvalidData,
            Cause::NoConditions => io::ErrorKind::Unsupported,
            Cause::NotEncrypted | Cause::Settings => io::ErrorKind::InvalidInput,
            Cause::Unreachable | Cause::Busy => io::ErrorKind::NotConnected,
            Cause::WrongRegion | Cause::Undecided | Cause::Other => io::ErrorKind::Other,
        };
        Self::new(kind, fault)
    }
}

/// The store error inside a library error, if it is one.
#[must_use]
pub fn fault(error: &Error) -> Option<&Fault> {
    match error {
        Error::Io { source, .. } => source.get_ref()?.downcast_ref(),
        Error::InFile { source, .. } | Error::StepUnknown { source, .. } => fault(source),
        _ => None,
    }
}

pub(crate) fn store_error(path: PathBuf, fault: Fault) -> Error {
    Error::Io { path, access: Access::Read, source: fault.into() }
}

/// Whether the bucket was not found, rather than an object in it.
pub(crate) fn is_no_bucket(error: &object_store::Error) -> bool {
    cause_of(error) == Cause::NoBucket
}

fn cause_of(error: &object_store::Error) -> Cause {
    use object_store::Error as E;
    let text = chain_text(error);
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    // Cloud machines get their credentials from these places. They are queried last, if nothing
    // else was set.
    if says(&[
        "/latest/api/token",
        "/latest/meta-data",
        "/computeMetadata/",
        "/metadata/identity",
        "169.254.",
    ]) {
        return Cause::NoCredentials;
    }
    if says(&["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"]) {
        return Cause::NoBucket;
    }
    // S3 answers with a redirect without a target, or names the region that it expects.
    if says(&[
        "incorrectly configured region",
        "AuthorizationHeaderMalformed",
        "PermanentRedirect",
        "IllegalLocationConstraint",
    ]) {
        return Cause::WrongRegion;
    }
    // These come with the codes of refused keys, so they are first.
    if says(&["RequestTimeTooSkewed", "RequestExpired"]) {
        return Cause::ClockSkew;
    }
    if says(&["ExpiredToken", "TokenRefreshRequired"]) {
        return Cause::Expired;
    }
    if says(&["SlowDown", "TooManyRequests", "ServerBusy", "503 Service Unavailable", "429 Too Many"]) {
        return Cause::Busy;
    }
    if says(&["URL scheme is not allowed"]) {
        return Cause::NotEncrypted;
    }
    match error {
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => return Cause::Denied,
        E::NotImplemented { .. } => return Cause::NoConditions,
        E::UnknownConfigurationKey { .. } | E::InvalidPath { .. } => return Cause::Settings,
        _ => {}
    }
    if says(&["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"]) {
        return Cause::Denied;
    }
    let mut link: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(inner) = link {
        if let Some(http) = inner.downcast_ref::<HttpError>()
            && http.kind() == HttpErrorKind::Connect
        {
            return Cause::Unreachable;
        }
        link = inner.source();
    }
    Cause::Other
}

/// The error and its causes on one line, without repetitions: some errors include their cause in
/// their own text.
fn chain_text(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut link = error.source();
    while let Some(inner) = link {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        link = inner.source();
    }
    text
}
