//! When a generated text ends: at an id, or at a string, which may begin in one token and end in a
//! later one. Text that may become a stop string is held back.
//!
//! Of several matches, that which ends first counts, and of those the longest. So the text does not
//! depend on how it was split.

use std::sync::Arc;

use deltaloom::{Error, Limits, Result};

/// Stop strings of a request, and their bytes together.
const MOST_STRINGS: u64 = 1024;
const MOST_BYTES: u64 = 64 << 10;

/// What ends a generated text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stop {
    ids: Vec<u32>,
    strings: Arc<[String]>,
}

impl Stop {
    /// Stops at these ids and strings.
    ///
    /// # Errors
    /// A string is empty, or there are too many.
    pub fn new(mut ids: Vec<u32>, strings: Vec<String>) -> Result<Self> {
        Limits::check("stop strings", strings.len() as u64, MOST_STRINGS)?;
        let bytes: usize = strings.iter().map(String::len).sum();
        Limits::check("bytes of stop strings", bytes as u64, MOST_BYTES)?;
        if strings.iter().any(String::is_empty) {
            return Err(Error::InvalidArgument("a stop string is empty".to_owned()));
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(Self { ids, strings: strings.into() })
    }

    /// Whether this id ends the text. It gives no text itself.
    #[must_use]
    pub fn is_end(&self, id: u32) -> bool {
        self.ids.binary_search(&id).is_ok()
    }

    /// Starts to look for the strings.
    #[must_use]
    pub fn strings(&self) -> StopStrings {
        StopStrings { strings: Arc::clone(&self.strings), held: String::new() }
    }
}

/// What a piece of text led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped<'a> {
    /// Nothing yet.
    No,
    /// This string was found. The text before it is complete.
    By(&'a str),
}

/// Looks for stop strings in a stream of text.
#[derive(Debug, Clone)]
pub struct StopStrings {
    strings: Arc<[String]>,
    /// What may become one of them.
    held: String,
}

impl StopStrings {
    /// Appends to `out` what is certainly text before a stop string.
    pub fn push(&mut self, text: &str, out: &mut String) -> Stopped<'_> {
        let known = self.held.len();
        self.held.push_str(text);
        if let Some((start, number)) = self.first_match(known) {
            out.push_str(&self.held[..start]);
            self.held.clear();
            return Stopped::By(&self.strings[number]);
        }
        let kept = self.longest_start();
        let released = self.held.len() - kept;
        out.push_str(&self.held[..released]);
        self.held.drain(..released);
        Stopped::No
    }

    /// Appends what was held back: the text has ended.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    /// Start and number of the first match that ends behind the first `known` bytes.
    fn first_match(&self, known: usize) -> Option<(usize, usize)> {
        let held = self.held.as_bytes();
        (known + 1..=held.len()).find_map(|end| {
            let strings = self.strings.iter().enumerate();
            let here = strings.filter(|(_, string)| held[..end].ends_with(string.as_bytes()));
            let (number, longest) = here.max_by_key(|(_, string)| string.len())?;
            Some((end - longest.len(), number))
        })
    }

    /// Bytes at the end that are the start of a stop string.
    fn longest_start(&self) -> usize {
        let held = self.held.as_bytes();
        let of = |string: &String| {
            let most = held.len().min(string.len() - 1);
            (1..=most).rev().find(|length| string.as_bytes().starts_with(&held[held.len() - length..]))
        };
        self.strings.iter().filter_map(of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(strings: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let stop = Stop::new(Vec::new(), strings.iter().map(|s| (*s).to_owned()).collect()).unwrap();
        let mut looking = stop.strings();
        let mut out = String::new();
        for piece in pieces {
            if let Stopped::By(string) = looking.push(piece, &mut out) {
                return (out, Some(string.to_owned()));
            }
        }
        looking.finish(&mut out);
        (out, None)
    }

    #[test]
    fn a_string_may_span_pieces() {
        let found = |text: &str, by: &str| (text.to_owned(), Some(by.to_owned()));
        assert_eq!(run(&["###"], &["one #", "#", "# two"]), found("one ", "###"));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), found("a", "aab"));
        assert_eq!(run(&["abcd", "bc"], &["xab", "cd"]), found("xa", "bc"));
        assert_eq!(run(&["c", "abc"], &["ab", "c"]), found("", "abc"));
        assert_eq!(run(&["Straße"], &["die Straß", "e"]), found("die ", "Straße"));
        assert_eq!(run(&["###"], &["one ##"]), ("one ##".to_owned(), None));
        assert_eq!(run(&[], &["one", " two"]), ("one two".to_owned(), None));
    }

    #[test]
    fn hostile_lists_are_refused() {
        assert!(Stop::new(Vec::new(), vec![String::new()]).is_err());
        assert!(Stop::new(Vec::new(), vec!["x".to_owned(); 10_000]).is_err());
        assert!(Stop::new(Vec::new(), vec!["x".repeat(1 << 20)]).is_err());
    }

    #[test]
    fn ids_end_a_text() {
        let stop = Stop::new(vec![7, 2, 7], Vec::new()).unwrap();
        assert!(stop.is_end(2) && stop.is_end(7) && !stop.is_end(3));
    }

    proptest! {
        #[test]
        fn splits_do_not_matter(text in "[ab#é]{0,24}", stops in proptest::collection::vec("[ab#é]{1,4}", 0..4), cut in 1_usize..5) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let whole = run(&stops, &[&text]);
            let letters: Vec<String> = text.chars().map(String::from).collect();
            let pieces: Vec<String> = letters.chunks(cut).map(<[String]>::concat).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(whole, run(&stops, &pieces));
        }
    }
}
