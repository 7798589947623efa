//! Where a series is: a local folder, or a place in an object store.

use std::path::Path;

use anyhow::Result;
use deltaloom::series::{Directory, Series, Store};

/// The store in a folder or at a URL.
pub(crate) fn store(location: &str) -> Result<Box<dyn Store>> {
    if !is_url(location) {
        return Ok(Box::new(Directory::new(Path::new(location))));
    }
    #[cfg(feature = "object-store")]
    return Ok(deltaloom_object_store::open(location)?);
    #[cfg(not(feature = "object-store"))]
    anyhow::bail!("{location}: this build does not support object stores");
}

pub(crate) fn is_url(location: &str) -> bool {
    location.contains("://")
}

/// Whether there is a series at this location.
pub(crate) fn is_store(location: &str) -> Result<bool> {
    Ok(is_url(location) || store(location)?.read_manifest()?.is_some())
}

/// Whether there is a series in a local folder.
pub(crate) fn is_folder_store(location: &str) -> bool {
    !is_url(location) && is_store(location).unwrap_or(false)
}

pub(crate) fn open(location: &str) -> Result<Series> {
    Ok(Series::open(store(location)?)?)
}
