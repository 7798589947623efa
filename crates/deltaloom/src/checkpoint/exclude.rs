//! Patterns of paths that a user wants to leave out of a folder.
//! It lists nothing; [`super::folder`] does.

use std::ffi::OsStr;
use std::path::Path;
use std::str::FromStr;

use regex_lite::Regex;

use crate::error::{Error, Result};

/// A pattern of relative paths, with `/` between their parts.
///
/// `*` stands for any characters but `/`, `?` for one of them, and `**` for any characters. Other
/// characters stand for themselves. A pattern without `/` is one of names, in any folder. A folder
/// that fits is left out with all that is in it.
#[derive(Debug, Clone)]
pub struct Exclude {
    text: String,
    pattern: Regex,
}

impl Exclude {
    /// Fits one path only, which is given as it is.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a path that is too long.
    pub fn of_path(path: &str) -> Result<Self> {
        let pattern = Regex::new(&format!("^{}$", regex_lite::escape(path)));
        let pattern = pattern.map_err(|_| too_long(path))?;
        Ok(Self { text: path.to_owned(), pattern })
    }

    /// Fits the container `output`, if it is in `folder` from an earlier run: else each container
    /// would pack the one before it. `None` for any other output.
    ///
    /// # Errors
    /// As [`Self::of_path`].
    pub fn of_output(output: &Path, folder: &Path) -> Result<Option<Self>> {
        let (Ok(output), Ok(folder)) = (output.canonicalize(), folder.canonicalize()) else {
            return Ok(None);
        };
        let path = output.strip_prefix(&folder).ok().filter(|path| path.extension() == Some("loom".as_ref()));
        let parts: Option<Vec<&str>> = path.and_then(|path| path.iter().map(OsStr::to_str).collect());
        parts.map(|parts| Self::of_path(&parts.join("/"))).transpose()
    }

    /// Whether a file or folder in `root` is left out. Names that are not UTF-8 can be, too.
    pub(crate) fn fits_in(&self, root: &Path, path: &Path) -> bool {
        let Ok(path) = path.strip_prefix(root) else { return false };
        let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
        self.fits(&parts.join("/"))
    }

    fn fits(&self, path: &str) -> bool {
        self.pattern.is_match(path)
    }

    /// The pattern, as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Exclude {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl FromStr for Exclude {
    type Err = Error;

    /// # Errors
    /// [`Error::InvalidArgument`] for a pattern that fits nothing, or is too long.
    fn from_str(text: &str) -> Result<Self> {
        let path = text.strip_prefix("./").unwrap_or(text).trim_end_matches('/');
        if path.is_empty() || path.starts_with('/') || path.split('/').any(|part| matches!(part, "." | ".."))
        {
            let what = format!("the pattern {text:?} is not one of paths relative to the folder");
            return Err(Error::InvalidArgument(what));
        }
        let mut regex = String::from(if path.contains('/') { "(?s)^" } else { "(?s)^(?:.*/)?" });
        let mut rest = path;
        while let Some(first) = rest.chars().next() {
            let (taken, part) = match first {
                // Also no folder at all.
                '*' if rest.starts_with("**/") => (3, "(?:.*/)?".to_owned()),
                '*' if rest.starts_with("**") => (2, ".*".to_owned()),
                '*' => (1, "[^/]*".to_owned()),
                '?' => (1, "[^/]".to_owned()),
                _ => (first.len_utf8(), regex_lite::escape(&rest[..first.len_utf8()])),
            };
            regex.push_str(&part);
            rest = &rest[taken..];
        }
        regex.push('$');
        let pattern = Regex::new(&regex).map_err(|_| too_long(text))?;
        Ok(Self { text: text.to_owned(), pattern })
    }
}

fn too_long(text: &str) -> Error {
    Error::InvalidArgument(format!("the pattern {text:?} is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_names_or_paths() {
        let fits = |pattern: &str, path: &str| pattern.parse::<Exclude>().unwrap().fits(path);
        for (pattern, path) in [
            ("*.pt", "a.pt"),
            ("*.pt", "sub/a.pt"),
            ("optimizer", "optimizer"),
            ("runs/", "runs"),
            ("./runs/*", "runs/a"),
            ("runs/**", "runs/a/b"),
            ("**/a", "a"),
            ("**/a", "b/c/a"),
            ("a/**/z", "a/z"),
            ("a/**/z", "a/b/c/z"),
            ("a?c", "a\u{e4}c"),
            ("a+(b).[c]", "x/a+(b).[c]"),
            ("*", "a\nb"),
        ] {
            assert!(fits(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("*.pt", "a.pth"),
            ("*.pt", "xpt"),
            ("optimizer", "optimizer.pt"),
            ("runs/*", "runs/a/b"),
            ("runs/*", "other/runs/a"),
            ("**/a", "b/ca"),
            ("a?c", "a/c"),
            ("A", "a"),
        ] {
            assert!(!fits(pattern, path), "{pattern} {path}");
        }
        let path = Exclude::of_path("a/*.loom").unwrap();
        assert!(path.fits("a/*.loom") && !path.fits("a/b.loom") && !path.fits("b/a/*.loom"));
        for bad in ["", "/", "/a", "../a", "a/./b", "."] {
            assert!(bad.parse::<Exclude>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_a_container_in_the_folder_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("deep")).unwrap();
        for name in ["config.json", "deep/old.loom"] {
            std::fs::write(path(name), b"").unwrap();
        }
        let of = |name: &str, root: &str| {
            let found = Exclude::of_output(&path(name), &path(root)).unwrap();
            found.map(|found| found.as_str().to_owned())
        };
        assert_eq!(of("deep/old.loom", ".").as_deref(), Some("deep/old.loom"));
        assert_eq!(of("deep/old.loom", "deep").as_deref(), Some("old.loom"));
        for (name, root) in [("config.json", "."), ("new.loom", "."), ("deep/old.loom", "config.json")] {
            assert_eq!(of(name, root), None, "{name} in {root}");
        }
    }
}
