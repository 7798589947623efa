//! The server as clients see it: every route, every wrong request, and the life of a server.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails should fail the test")]

mod access;
mod bad_requests;
mod chat;
mod completions;
mod life;
mod other;
mod shapes;
mod support;
