//! Who runs the program: a process of its own, or an interpreter that calls it.

use std::ffi::OsString;
use std::io;
use std::process::Command;
use std::sync::{PoisonError, RwLock};

/// Who runs the program. By default, a process of its own.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Host {
    /// The words that start the program again, before its arguments. Empty for the file of this
    /// process.
    pub start: Vec<OsString>,
    /// Asked between chunks whether to stop. `None` leaves signals to the program, which then
    /// handles them for the whole process from the first run on.
    pub is_interrupted: Option<fn() -> bool>,
}

impl Host {
    /// A host that starts the program by these words, and that handles signals itself.
    #[must_use]
    pub fn new(start: Vec<OsString>, is_interrupted: Option<fn() -> bool>) -> Self {
        Self { start, is_interrupted }
    }
}

/// The host, and the arguments of the run, of which there is one at a time.
static CURRENT: RwLock<(Host, Vec<OsString>)> =
    RwLock::new((Host { start: Vec::new(), is_interrupted: None }, Vec::new()));

pub(crate) fn begin(host: Host, arguments: &[OsString]) {
    *CURRENT.write().unwrap_or_else(PoisonError::into_inner) = (host, arguments.to_vec());
}

/// Whether the host asks to stop.
pub(crate) fn is_interrupted() -> bool {
    let asked = CURRENT.read().unwrap_or_else(PoisonError::into_inner).0.is_interrupted;
    asked.is_some_and(|asked| asked())
}

/// Starts the program again, with other arguments.
pub(crate) fn program() -> io::Result<Command> {
    let start = CURRENT.read().unwrap_or_else(PoisonError::into_inner).0.start.clone();
    let Some((file, words)) = start.split_first() else {
        return Ok(Command::new(std::env::current_exe()?));
    };
    let mut command = Command::new(file);
    command.args(words);
    Ok(command)
}

/// Starts the program again, with the same arguments.
#[cfg(feature = "compute")]
pub(crate) fn same_again() -> io::Result<Command> {
    let mut command = program()?;
    command.args(&CURRENT.read().unwrap_or_else(PoisonError::into_inner).1);
    Ok(command)
}
