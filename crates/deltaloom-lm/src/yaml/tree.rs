//! A YAML document as a tree that remembers its lines.

use std::fmt;

use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Error as YamlError, Options, Spanned};

use super::fault::{Fault, shown};

/// Longest key in bytes. Patterns of tensors are keys, too.
const KEY_BYTES: usize = 256;

/// A value and where it is.
#[derive(Debug, Clone)]
pub struct Node {
    /// Line of its key, or of itself in a list. 0: it is not in the file.
    pub line: u64,
    /// The dotted name under which it was written, where that is not its place in the tree.
    pub written: Option<String>,
    /// What it holds.
    pub value: Value,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub enum Value {
    /// No value.
    Nothing,
    /// True or false.
    Flag(bool),
    /// A whole number.
    Whole(i128),
    /// Another number.
    Number(f64),
    /// A text.
    Text(String),
    /// Items.
    List(Vec<Node>),
    /// Keys with their values, in the order of the file.
    Map(Vec<(String, Node)>),
}

impl Value {
    /// What it is, for a message.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::Nothing => "nothing".to_owned(),
            Self::Flag(flag) => flag.to_string(),
            Self::Whole(number) => number.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Text(text) => shown(text),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a section with keys".to_owned(),
        }
    }
}

impl Node {
    /// A value that was written under another name than that of its place.
    #[must_use]
    pub fn new(line: u64, written: &str, value: Value) -> Self {
        Self { line, written: Some(written.to_owned()), value }
    }

    /// Reads a document. Its size, depth, aliases and duplicate keys are checked.
    ///
    /// # Errors
    /// What is not YAML, or more than a recipe needs.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let options: Options = serde_saphyr::options! {
            budget: serde_saphyr::budget! {
                max_events: 20_000,
                max_nodes: 10_000,
                max_depth: 16,
                flow_nesting_limit: 16,
                max_aliases: 100,
                max_anchors: 100,
                max_recorded_anchor_events: 20_000,
                max_documents: 1,
            },
            alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 20_000 },
            duplicate_keys: DuplicateKeyPolicy::Error,
            merge_keys: MergeKeyPolicy::Error,
            strict_booleans: true,
            // The typed pass refuses them, with the name of their field.
            non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
            with_snippet: false,
        };
        let root: Spanned<Node> = serde_saphyr::from_str_with_options(text, options).map_err(refused)?;
        Ok(root.value)
    }

    /// The node of a dotted name.
    #[must_use]
    pub fn get(&self, field: &str) -> Option<&Self> {
        field.split('.').try_fold(self, Self::child)
    }

    fn child(&self, name: &str) -> Option<&Self> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|(key, _)| key == name).map(|(_, node)| node)
    }

    /// Where `field` is, or the nearest section of it that is there: its line, and its name as
    /// written.
    #[must_use]
    pub fn place(&self, field: &str) -> (u64, String) {
        let (mut node, mut line, mut written) = (Some(self), 0, String::new());
        for name in field.split('.') {
            node = node.and_then(|node| node.child(name));
            line = node.map_or(line, |node| node.line);
            written = named(node, &written, name);
        }
        (line, written)
    }

    /// Takes the node of a dotted name out of the tree.
    pub fn take(&mut self, field: &str) -> Option<Self> {
        let Value::Map(entries) = &mut self.value else { return None };
        let (name, rest) = field.split_once('.').map_or((field, None), |(name, rest)| (name, Some(rest)));
        let at = entries.iter().position(|(key, _)| key == name)?;
        match rest {
            Some(rest) => entries[at].1.take(rest),
            None => Some(entries.remove(at).1),
        }
    }

    /// Says that `option` gave the setting `field`, and not the file.
    pub fn mark(&mut self, field: &str, option: &str) {
        self.take(field);
        // It can only fail where a value is in the place of a section, and that was refused before.
        self.put(field, Self::new(0, option, Value::Nothing)).ok();
    }

    /// Puts `node` at a dotted name, in sections that are made for it. Two sections become one.
    ///
    /// # Errors
    /// A setting that is there already, and a value in the place of a section.
    pub fn put(&mut self, field: &str, node: Self) -> Result<(), Fault> {
        if matches!(self.value, Value::Nothing) {
            self.value = Value::Map(Vec::new());
        }
        let Value::Map(entries) = &mut self.value else {
            return Err(Fault::new("", "wanted a section with keys").at(self.line, field));
        };
        let (name, rest) = field.split_once('.').map_or((field, None), |(name, rest)| (name, Some(rest)));
        let there = entries.iter().position(|(key, _)| key == name);
        match (there, rest) {
            (None, None) => entries.push((name.to_owned(), node)),
            (None, Some(rest)) => {
                let mut section = Self { line: node.line, written: None, value: Value::Map(Vec::new()) };
                section.put(rest, node)?;
                entries.push((name.to_owned(), section));
            }
            (Some(at), Some(rest)) => entries[at].1.put(rest, node)?,
            (Some(at), None) => {
                let Value::Map(more) = node.value else {
                    let what = format!("line {} gives the same setting", entries[at].1.line);
                    return Err(Fault::new("", what).at(node.line, node.written.as_deref().unwrap_or(field)));
                };
                let prefix = node.written.unwrap_or_else(|| field.to_owned());
                for (key, mut child) in more {
                    child.written.get_or_insert_with(|| format!("{prefix}.{key}"));
                    entries[at].1.put(&key, child)?;
                }
            }
        }
        Ok(())
    }
}

/// The dotted name of `node`, which is `key` in the section `parent`.
pub(super) fn named(node: Option<&Node>, parent: &str, key: &str) -> String {
    match node.and_then(|node| node.written.as_deref()) {
        Some(written) => written.to_owned(),
        None if parent.is_empty() => key.to_owned(),
        None => format!("{parent}.{key}"),
    }
}

/// What the YAML reader refuses.
fn refused(error: YamlError) -> Fault {
    let error = error.without_snippet();
    let what = match error {
        YamlError::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key {} is there twice", shown(key))
        }
        YamlError::DuplicateMappingKey { .. } => "a key is there twice".to_owned(),
        YamlError::MergeKeyNotAllowed { .. } => "merge keys (<<) are not read".to_owned(),
        YamlError::Budget { .. }
        | YamlError::AliasError { .. }
        | YamlError::AliasReplayLimitExceeded { .. }
        | YamlError::AliasExpansionLimitExceeded { .. }
        | YamlError::AliasReplayStackDepthExceeded { .. } => {
            "too many values, aliases or levels for a recipe".to_owned()
        }
        YamlError::MultipleDocuments { .. } => "there are several documents".to_owned(),
        other => format!("not YAML that can be read: {other}").replace(char::is_control, " "),
    };
    Fault::new("", what).at(error.location().map_or(0, |place| place.line()), "")
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = deserializer.deserialize_any(ValueVisitor)?;
        Ok(Self { line: 0, written: None, value })
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Flag(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Whole(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Whole(number.into()))
    }

    fn visit_i128<E>(self, number: i128) -> Result<Value, E> {
        Ok(Value::Whole(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(item) = list.next_element::<Spanned<Node>>()? {
            nodes.push(Node { line: item.referenced.line(), ..item.value });
        }
        Ok(Value::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            if key.value.len() > KEY_BYTES || key.value.contains(char::is_control) {
                let what = format_args!("{} is too long for a key, or not printable", shown(&key.value));
                return Err(A::Error::custom(what));
            }
            let node: Node = map.next_value()?;
            entries.push((key.value, Node { line: key.referenced.line(), ..node }));
        }
        Ok(Value::Map(entries))
    }
}
