//! Where a command's result goes: a file, a folder or standard output. The library decides what may
//! be replaced.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use deltaloom::Error;
use deltaloom::checkpoint::output::{Inputs, NewFile};

use crate::ui;

/// A path that means standard input or output.
pub(crate) const DASH: &str = "-";

/// Where a result goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Path(PathBuf),
    Stdout,
}

impl Target {
    pub(crate) fn new(path: &Path) -> Self {
        if path == Path::new(DASH) { Self::Stdout } else { Self::Path(path.to_path_buf()) }
    }

    /// For messages.
    pub(crate) fn name(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Stdout => "standard output".into(),
        }
    }

    /// Refuses a target that exists, unless `overwrite`, or is an input. Called before anything is
    /// read, which may take long.
    pub(crate) fn check(&self, overwrite: bool, inputs: &Inputs) -> Result<()> {
        let Self::Path(path) = self else { return Ok(()) };
        inputs.check(path)?;
        if !overwrite && !is_empty_folder(path) && path.symlink_metadata().is_ok() {
            return Err(Error::AlreadyExists { path: path.clone() }.into());
        }
        Ok(())
    }
}

fn is_empty_folder(path: &Path) -> bool {
    path.read_dir().is_ok_and(|mut entries| entries.next().is_none())
}

/// The files that a command reads, with all files of folders.
pub(crate) fn inputs<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Inputs {
    let mut inputs = Inputs::default();
    for path in paths {
        let path = path.as_ref();
        // Only the commands of a series may change it.
        if path.to_str().is_some_and(crate::store::is_folder_store) {
            inputs.add_store(path);
        }
        inputs.add(path);
    }
    inputs
}

/// Standard output for raw bytes: not a terminal, and none of the files that are read.
pub(crate) fn stdout_for_bytes(inputs: &Inputs) -> Result<impl Write + Send + use<>> {
    if io::stdout().is_terminal() {
        bail!(
            "raw bytes, and standard output is a terminal; name a file with --output, or redirect standard output"
        );
    }
    inputs.check_open(&stdout_file()?, Path::new("standard output"))?;
    Ok(io::stdout())
}

#[cfg(unix)]
fn stdout_file() -> io::Result<File> {
    use std::os::fd::AsFd as _;
    io::stdout().as_fd().try_clone_to_owned().map(File::from)
}

#[cfg(windows)]
fn stdout_file() -> io::Result<File> {
    use std::os::windows::io::AsHandle as _;
    io::stdout().as_handle().try_clone_to_owned().map(File::from)
}

/// Writes the bytes of a library function to standard output, or to a file that appears complete.
pub(crate) fn write_bytes(
    target: &Target,
    overwrite: bool,
    inputs: &Inputs,
    write: impl FnOnce(&mut dyn Write) -> deltaloom::Result<()>,
) -> Result<()> {
    let fill = |out: &mut dyn Write| {
        let mut out = BufWriter::new(out);
        write(&mut out).map_err(|e| named(e, target))?;
        out.flush().map_err(|e| writing(&target.name(), e))
    };
    match target {
        Target::Stdout => fill(&mut stdout_for_bytes(inputs)?)?,
        Target::Path(path) => {
            let mut file = NewFile::create(path, overwrite, inputs)?;
            fill(file.file())?;
            file.commit()?;
        }
    }
    Ok(())
}

/// Prints the report on a result as JSON: on standard output, or on standard error where the result
/// itself went there.
pub(crate) fn print_report(report: &impl serde::Serialize, target: &Target) -> Result<()> {
    match target {
        Target::Path(_) => ui::print_json(report),
        Target::Stdout => ui::say_json(report),
    }
}

/// The error of writing to a file that the program fills itself.
pub(crate) fn writing(path: &Path, source: io::Error) -> Error {
    Error::Io { path: path.to_path_buf(), access: deltaloom::Access::Write, source }
}

/// Adds the name of the target to the error of a library function that does not know it.
pub(crate) fn named(error: Error, target: &Target) -> Error {
    match error {
        Error::Io { path, access, source } if path.as_os_str().is_empty() => {
            Error::Io { path: target.name(), access, source }
        }
        other => other,
    }
}
