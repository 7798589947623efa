//! What a container says about itself: the bases of its references, and free texts; docs/format.md
//! section 16. Nothing here is needed to decode, and nothing is computed: [`crate::bases`] computes
//! the digests of bases.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};

use crate::entropy::bytes::{ByteReader, push_text, push_varint};
use crate::error::{Error, Result};
use crate::limits::Limits;

/// Free texts by their keys.
pub type Texts = BTreeMap<String, String>;

const BASES: u8 = 1;
const TEXTS: u8 = 2;
const NAME_BYTES: std::ops::RangeInclusive<usize> = 1..=1024;
const KEY_BYTES: std::ops::RangeInclusive<usize> = 1..=256;
/// Bytes of the digest of a base.
const DIGEST_BYTES: usize = 16;

/// Digest of a base: of the names, dtypes, shapes and samples of its tensors.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseDigest(pub [u8; DIGEST_BYTES]);

impl fmt::Display for BaseDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BaseDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for BaseDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A base with its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NamedBase {
    /// The name that the packer was given.
    pub name: String,
    /// Digest of its tensors.
    pub digest: BaseDigest,
}

impl fmt::Display for NamedBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A name is whatever the file says, so it is escaped for terminals.
        write!(f, "{} (digest {})", self.name.escape_debug(), self.digest)
    }
}

/// What a container says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// In the order in which the packer was given them.
    pub(crate) bases: Vec<NamedBase>,
    pub(crate) texts: Texts,
}

impl Identity {
    pub(crate) fn is_empty(&self) -> bool {
        self.bases.is_empty() && self.texts.is_empty()
    }

    /// The bases in a sentence. Empty if none is named.
    pub(crate) fn needed(&self) -> String {
        let names: Vec<String> = self.bases.iter().map(NamedBase::to_string).collect();
        names.join(" and ")
    }

    /// Checks that readers accept it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for names and keys that are empty or too long,
    /// [`Error::LimitExceeded`].
    pub(crate) fn check(&self, limits: &Limits) -> Result<()> {
        if let Some(base) = self.bases.iter().find(|base| !NAME_BYTES.contains(&base.name.len())) {
            let (most, bytes) = (NAME_BYTES.end(), base.name.len());
            return Err(Error::InvalidArgument(format!(
                "the name of a base has 1 to {most} bytes, not {bytes}"
            )));
        }
        if let Some(key) = self.texts.keys().find(|key| !KEY_BYTES.contains(&key.len())) {
            let (most, bytes) = (KEY_BYTES.end(), key.len());
            return Err(Error::InvalidArgument(format!(
                "the key of a text has 1 to {most} bytes, not {bytes}"
            )));
        }
        let mut parts = Vec::new();
        self.push_to(&mut parts);
        check_size(parts.len(), limits)
    }

    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        let mut push_part = |id: u8, count: usize, push: &dyn Fn(&mut Vec<u8>)| {
            if count > 0 {
                let mut part = Vec::new();
                push_varint(&mut part, count as u64);
                push(&mut part);
                meta.push(id);
                push_varint(meta, part.len() as u64);
                meta.extend(part);
            }
        };
        push_part(BASES, self.bases.len(), &|part| {
            for base in &self.bases {
                push_text(part, &base.name);
                part.extend(base.digest.0);
            }
        });
        push_part(TEXTS, self.texts.len(), &|part| {
            for (key, value) in &self.texts {
                push_text(part, key);
                push_text(part, value);
            }
        });
    }

    /// Reads the parts, up to the end of meta.
    pub(super) fn parse(meta: ByteReader<'_>, limits: &Limits) -> Result<Self> {
        let parts = meta.rest();
        check_size(parts.len(), limits)?;
        let mut meta = ByteReader::new(parts, "the parts");
        let mut identity = Self::default();
        let mut last = 0;
        while !meta.is_empty() {
            let id = meta.u8()?;
            if id <= last {
                return Err(Error::corrupt(format!("part {id} of the index comes after part {last}")));
            }
            last = id;
            let length = meta.size()?;
            let mut part = ByteReader::new(meta.take(length)?, "a part of the index");
            match id {
                BASES => identity.bases = parse_bases(&mut part)?,
                TEXTS => identity.texts = parse_texts(&mut part)?,
                _ => return Err(Error::corrupt(format!("part {id} of the index does not exist"))),
            }
            part.finish()?;
        }
        Ok(identity)
    }
}

fn check_size(bytes: usize, limits: &Limits) -> Result<()> {
    Limits::check("what a container says of itself in bytes", bytes as u64, limits.identity_bytes)
}

/// The number of entries of a part, which must not be empty.
fn parse_count(part: &mut ByteReader<'_>) -> Result<u64> {
    match part.varint()? {
        0 => Err(Error::corrupt("a part of the index is empty")),
        count => Ok(count),
    }
}

fn parse_bases(part: &mut ByteReader<'_>) -> Result<Vec<NamedBase>> {
    let mut bases = Vec::new();
    // Each entry takes bytes that must exist, so a count that claims too much ends early.
    for _ in 0..parse_count(part)? {
        let name = part.text()?.to_owned();
        if !NAME_BYTES.contains(&name.len()) {
            return Err(Error::corrupt(format!("the name of a base has {} bytes", name.len())));
        }
        bases.push(NamedBase { name, digest: BaseDigest(part.array()?) });
    }
    Ok(bases)
}

fn parse_texts(part: &mut ByteReader<'_>) -> Result<Texts> {
    let mut texts = Texts::new();
    for _ in 0..parse_count(part)? {
        let key = part.text()?;
        if !KEY_BYTES.contains(&key.len()) {
            return Err(Error::corrupt(format!("the key of a text has {} bytes", key.len())));
        }
        if texts.last_key_value().is_some_and(|(before, _)| before.as_str() >= key) {
            return Err(Error::corrupt(format!("the text {key:?} is out of order")));
        }
        texts.insert(key.to_owned(), part.text()?.to_owned());
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let base = |name: &str, byte| NamedBase { name: name.to_owned(), digest: BaseDigest([byte; 16]) };
        let texts = [("licence", "MIT"), ("run", ""), ("é", "ü\n")];
        Identity {
            bases: vec![base("org/model@1", 1), base("lora", 2)],
            texts: texts.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        }
    }

    fn bytes(identity: &Identity) -> Vec<u8> {
        let mut out = Vec::new();
        identity.push_to(&mut out);
        out
    }

    fn parse(bytes: &[u8]) -> Result<Identity> {
        Identity::parse(ByteReader::new(bytes, "test"), &Limits::default())
    }

    #[test]
    fn it_comes_back_whole_or_in_part() {
        let whole = identity();
        let only_bases = Identity { texts: Texts::new(), ..whole.clone() };
        let only_texts = Identity { bases: Vec::new(), ..whole.clone() };
        for identity in [whole, only_bases, only_texts, Identity::default()] {
            identity.check(&Limits::default()).unwrap();
            assert_eq!(parse(&bytes(&identity)).unwrap(), identity);
        }
        assert!(bytes(&Identity::default()).is_empty());
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        let good = bytes(&identity());
        for len in 1..good.len() {
            // If a whole part is cut off, the rest is a valid identity, too.
            let is_whole_part = good[1] as usize + 2 == len;
            assert_eq!(parse(&good[..len]).is_ok(), is_whole_part, "{len} bytes");
        }
        let (bases, texts) = good.split_at(good[1] as usize + 2);
        let text = |pairs: &[(&str, &str)]| {
            let mut part = Vec::new();
            push_varint(&mut part, pairs.len() as u64);
            for (key, value) in pairs {
                push_text(&mut part, key);
                push_text(&mut part, value);
            }
            let mut out = vec![TEXTS];
            push_varint(&mut out, part.len() as u64);
            [out, part].concat()
        };
        assert!(parse(&text(&[("a", "1"), ("b", "2")])).is_ok());
        let long = "k".repeat(257);
        let bad = [
            [texts, bases].concat(),
            [bases, bases].concat(),
            vec![3, 0],
            vec![0, 0],
            vec![BASES, 1, 0],
            vec![TEXTS, 1, 0],
            [&[BASES, 18, 1, 0][..], &[7; 16]].concat(),
            [&[BASES, 20, 1, 1, b'x'][..], &[7; 17]].concat(),
            [&[BASES, 19, 1, 1, 0xff][..], &[7; 16]].concat(),
            vec![BASES, 10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            text(&[("a", "1"), ("a", "2")]),
            text(&[("b", "1"), ("a", "2")]),
            text(&[("", "1")]),
            text(&[(&long, "1")]),
        ];
        for bytes in bad {
            assert!(matches!(parse(&bytes), Err(Error::Corrupt { .. })), "{bytes:?}");
        }
        let small = Limits { identity_bytes: 5, ..Limits::default() };
        let parse_small = Identity::parse(ByteReader::new(&good, "test"), &small);
        assert!(matches!(parse_small, Err(Error::LimitExceeded { .. })));
        assert!(matches!(identity().check(&small), Err(Error::LimitExceeded { .. })));
    }

    #[test]
    fn names_in_messages_have_no_control_characters() {
        let base = NamedBase { name: "a\u{1b}[31m\n".to_owned(), digest: BaseDigest([0xab; 16]) };
        assert!(!base.to_string().chars().any(char::is_control), "{base}");
        assert!(base.to_string().ends_with("(digest abababababababababababababababab)"));
    }
}
