//! An HTTP server with the API of OpenAI for many fine-tunes of one base. It knows requests, text
//! and time, and no matrix: `deltaloom-lm` computes, on a thread of its own.

mod app;
mod call;
mod catalog;
mod error;
mod grammar;
mod keys;
mod metrics;
mod options;
mod routes;
mod scrape;
mod server;
mod stream;
mod text;
mod wire;
mod worker;

pub use keys::Keys;
pub use options::ServeOptions;
pub use routes::api_markdown;
pub use server::{Server, listen, serve};
