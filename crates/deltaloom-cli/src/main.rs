//! The program `deltaloom`.

use std::process::ExitCode;

fn main() -> ExitCode {
    deltaloom_cli::run()
}

/// Windows of chunks are allocated and freed all the time; this allocator gives their pages back later than the system's does.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
