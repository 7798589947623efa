//! From a URL and the environment to a store. No request is made yet: wrong names or credentials
//! show with the first one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use deltaloom::series::{Directory, Store};
use deltaloom::{Error, Result};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig};
use url::Url;

use crate::fault::{Cause, Fault, store_error};
use crate::remote::RemoteStore;
use crate::service::Service;

/// Timeout of one request, whose body is at most a part of an upload or a run of blocks. The
/// default of `object_store`, 30 s, would require 9 Mbit/s.
const REQUEST_TIME: &str = "120 seconds";

/// The default, ten tries in 3 minutes, takes too long to report a wrong name.
fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(10),
            base: 2.0,
        },
        max_retries: 6,
        retry_timeout: Duration::from_secs(150),
    }
}

/// Whether a place is a URL rather than a path.
#[must_use]
pub fn is_url(place: &str) -> bool {
    place.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    })
}

/// Opens the store at `s3://BUCKET/PATH`, `gs://BUCKET/PATH` or `az://CONTAINER/PATH`. Endpoints
/// and credentials come from environment variables that begin with `AWS_`, `GOOGLE_` or `AZURE_`,
/// as the crate `object_store` reads them.
///
/// # Errors
/// [`Error::InvalidArgument`] for any other URL; [`Error::Io`] with a [`Fault`] if the environment
/// does not fit.
pub fn open(url: &str) -> Result<Box<dyn Store>> {
    if let Some(folder) =
        Url::parse(url).ok().filter(|url| url.scheme() == "file").map(|url| url.to_file_path())
    {
        let folder = folder.map_err(|()| invalid(url, "it is not a path of a local folder"))?;
        return Ok(Box::new(Directory::new(&folder)));
    }
    let is_ours = |name: &str| {
        ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix))
            || ["SERVICE_ACCOUNT", "IDENTITY_ENDPOINT"].contains(&name)
    };
    let settings: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| is_ours(name))
        .collect();
    Ok(Box::new(open_with(url, &settings)?))
}

/// Like [`open`], with names and values of settings instead of the environment.
///
/// # Errors
/// Those of [`open`].
pub fn open_with(url: &str, settings: &[(String, String)]) -> Result<RemoteStore> {
    let parsed = Url::parse(url).map_err(|why| invalid(url, &why.to_string()))?;
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(invalid(url, "it has a query or a fragment; settings come from the environment"));
    }
    let service = match parsed.scheme() {
        "s3" | "s3a" => Service::S3,
        "gs" => Service::Google,
        "az" | "abfs" | "abfss" => Service::Azure,
        "file" => return Err(invalid(url, "it is a local directory; use its path instead")),
        scheme => {
            return Err(invalid(url, &format!("unknown scheme {scheme:?}; expected s3, gs or az")));
        }
    };
    if parsed.host_str().is_none_or(str::is_empty) {
        return Err(invalid(url, "it names no bucket"));
    }
    let path = Path::from_url_path(parsed.path()).map_err(|why| invalid(url, &why.to_string()))?;
    // Without OpenSSL or aws-lc, rustls needs an explicit cryptography provider. It is fine if the
    // program has already set one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let store = connect(service, url, settings)
        .map_err(|error| store_error(PathBuf::from(url), refusal(service, &error)))?;
    Ok(RemoteStore::new(store, service, url, path))
}

/// A builder of `object_store` with all settings that it knows. The three builders have the same
/// methods but no common trait.
macro_rules! build {
    ($builder:ty, $client:path, $url:expr, $settings:expr) => {{
        let first = <$builder>::new().with_config($client(ClientConfigKey::Timeout), REQUEST_TIME);
        let builder =
            $settings.iter().fold(first, |builder, (name, value)| match name.to_ascii_lowercase().parse() {
                Ok(key) => builder.with_config(key, value),
                Err(_) => builder,
            });
        Arc::new(builder.with_url($url).with_retry(retries()).build()?)
    }};
}

fn connect(
    service: Service,
    url: &str,
    settings: &[(String, String)],
) -> object_store::Result<Arc<dyn ObjectStore>> {
    Ok(match service {
        Service::S3 => build!(AmazonS3Builder, AmazonS3ConfigKey::Client, url, settings),
        Service::Google => build!(GoogleCloudStorageBuilder, GoogleConfigKey::Client, url, settings),
        Service::Azure => build!(MicrosoftAzureBuilder, AzureConfigKey::Client, url, settings),
    })
}

/// Errors before the first request are problems of settings.
fn refusal(service: Service, error: &object_store::Error) -> Fault {
    let fault = Fault::of(service, error);
    match fault.cause() {
        Cause::Other
            if ["Missing", "must be specified"].iter().any(|word| fault.to_string().contains(word)) =>
        {
            Fault::new(Cause::NoCredentials, service, fault.to_string())
        }
        Cause::Other => Fault::new(Cause::Settings, service, fault.to_string()),
        _ => fault,
    }
}

fn invalid(url: &str, why: &str) -> Error {
    Error::InvalidArgument(format!("{url:?} cannot be a store: {why}"))
}
