//! The services whose interfaces stores speak.

/// Whose interface a store speaks: what its errors and settings are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Amazon S3 and servers that are compatible with it.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}
