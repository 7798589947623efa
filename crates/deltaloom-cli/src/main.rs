//! The program `deltaloom`.

use std::process::ExitCode;

fn main() -> ExitCode {
    deltaloom_cli::run()
}

/// Windows of chunks are allocated and freed all the time. This allocator returns their pages to
/// the system later than the default one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
