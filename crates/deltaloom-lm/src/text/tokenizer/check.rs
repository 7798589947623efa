//! What a `tokenizer.json` may say. The crate `tokenizers` trusts its files: it slices by lengths
//! that a file gives, and unwraps. This module reads the same file first and refuses what breaks
//! those expectations, and kinds of parts that language models do not use.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;

use crate::text::detokenize::Decoding;
use deltaloom::{Error, Limits, Result};

/// Bytes of a token. The longest of known vocabularies has 512.
const LONGEST_TOKEN: u64 = 4096;
/// Parts of a normalizer, pre-tokenizer, post-processor or decoder.
const MOST_PARTS: u64 = 64;
/// By how much replacements may lengthen a text.
const LARGEST_GROWTH: u64 = 64;

const NORMALIZERS: &[&str] = &[
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Lowercase",
    "Strip",
    "StripAccents",
    "Prepend",
    "Replace",
    "ByteLevel",
    "BertNormalizer",
];
const PRE_TOKENIZERS: &[&str] = &[
    "ByteLevel",
    "Metaspace",
    "Split",
    "Digits",
    "Punctuation",
    "Whitespace",
    "WhitespaceSplit",
    "UnicodeScripts",
    "CharDelimiterSplit",
    "BertPreTokenizer",
];
const POST_PROCESSORS: &[&str] = &["ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing"];

/// What was found besides "can be used".
pub(super) struct Facts {
    /// Added tokens with their ids.
    pub(super) added: Vec<(String, u32)>,
    /// Ids of added tokens that are not text.
    pub(super) special: HashSet<u32>,
    pub(super) decoding: Decoding,
}

impl Facts {
    pub(super) fn added_ids(&self) -> HashSet<u32> {
        self.added.iter().map(|(_, id)| *id).collect()
    }
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Vocabulary,
    merges: Option<Merges>,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    unk_id: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Vocabulary {
    Ids(HashMap<String, u32>),
    Scores(Vec<(String, f64)>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merges {
    Pairs(Vec<(String, String)>),
    Lines(Vec<String>),
}

pub(super) fn check(json: &[u8], rows: usize) -> Result<Facts> {
    let file: File =
        serde_json::from_slice(json).map_err(|e| Error::corrupt(format!("not a tokenizer: {e}")))?;
    let rows = u32::try_from(rows).unwrap_or(u32::MAX);
    match &file.model.vocab {
        Vocabulary::Ids(ids) => {
            named("model", file.model.kind.as_deref().unwrap_or("BPE"), &["BPE"])?;
            check_ids(ids, rows)?;
            check_merges(&file.model, ids)?;
        }
        Vocabulary::Scores(scores) => {
            named("model", file.model.kind.as_deref().unwrap_or("Unigram"), &["Unigram"])?;
            check_scores(scores, file.model.unk_id, rows)?;
        }
    }
    let mut special = HashSet::new();
    for token in &file.added_tokens {
        check_token(&token.content, token.id, rows)?;
        if token.special {
            special.insert(token.id);
        }
    }
    check_parts("normalizer", &file.normalizer, "normalizers", NORMALIZERS)?;
    check_parts("pre-tokenizer", &file.pre_tokenizer, "pretokenizers", PRE_TOKENIZERS)?;
    check_parts("post-processor", &file.post_processor, "processors", POST_PROCESSORS)?;
    let decoders = parts("decoder", &file.decoder, "decoders")?;
    let decoding = Decoding::from_parts(&decoders)?;
    let added = file.added_tokens.into_iter().map(|token| (token.content, token.id)).collect();
    Ok(Facts { added, special, decoding })
}

fn named(what: &str, name: &str, known: &[&str]) -> Result<()> {
    if known.contains(&name) {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "the {what} of the tokenizer is {name:?}: must be {}",
        known.join(", ")
    )))
}

fn check_token(token: &str, id: u32, rows: u32) -> Result<()> {
    Limits::check("bytes of a token", token.len() as u64, LONGEST_TOKEN)?;
    if token.is_empty() {
        return Err(Error::corrupt(format!("token {id} is empty")));
    }
    if id >= rows {
        return Err(Error::InvalidArgument(format!(
            "token {token:?} has id {id}, but the model's embedding has {rows} rows"
        )));
    }
    Ok(())
}

fn check_ids(ids: &HashMap<String, u32>, rows: u32) -> Result<()> {
    let mut seen = HashSet::with_capacity(ids.len());
    for (token, id) in ids {
        check_token(token, *id, rows)?;
        if !seen.insert(*id) {
            return Err(Error::corrupt(format!("two tokens have id {id}")));
        }
    }
    Ok(())
}

fn check_scores(scores: &[(String, f64)], unknown: Option<u64>, rows: u32) -> Result<()> {
    let mut seen = HashSet::with_capacity(scores.len());
    for ((token, score), id) in scores.iter().zip(0..) {
        check_token(token, id, rows)?;
        if !score.is_finite() || !seen.insert(token) {
            return Err(Error::corrupt(format!("token {token:?} is there twice or has no score")));
        }
    }
    match unknown {
        Some(id) if id >= scores.len() as u64 => {
            Err(Error::corrupt(format!("the unknown token has id {id}")))
        }
        _ => Ok(()),
    }
}

/// Every merge must make a token of the vocabulary that is longer than its parts.
fn check_merges(model: &Model, ids: &HashMap<String, u32>) -> Result<()> {
    if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        return Err(Error::InvalidArgument(
            "the tokenizer drops merges at random, which is for training: set `dropout` to null".to_owned(),
        ));
    }
    let prefix = model.continuing_subword_prefix.as_deref().unwrap_or("");
    let check = |left: &str, right: &str| {
        let rest = right.strip_prefix(prefix).filter(|rest| !rest.is_empty() && !left.is_empty());
        let fits = rest.is_some_and(|rest| ids.contains_key(&format!("{left}{rest}")));
        if fits && ids.contains_key(left) && ids.contains_key(right) {
            return Ok(());
        }
        Err(Error::corrupt(format!("the merge of {left:?} and {right:?} makes no token of the vocabulary")))
    };
    match &model.merges {
        None => Err(Error::corrupt("a BPE vocabulary without merges")),
        Some(Merges::Pairs(pairs)) => pairs.iter().try_for_each(|(left, right)| check(left, right)),
        Some(Merges::Lines(lines)) => {
            // The crate skips a first line with a version.
            lines.iter().filter(|line| !line.starts_with("#version")).try_for_each(|line| {
                match line.split(' ').collect::<Vec<_>>()[..] {
                    [left, right] => check(left, right),
                    _ => Err(Error::corrupt(format!("{line:?} is not a merge of two tokens"))),
                }
            })
        }
    }
}

/// The parts of a pipeline, in order: one part, or those of a sequence, which may hold sequences.
fn parts<'a>(what: &str, value: &'a Value, list: &str) -> Result<Vec<(&'a str, &'a Value)>> {
    let mut found = Vec::new();
    let mut open = vec![value];
    while let Some(part) = open.pop() {
        if part.is_null() {
            continue;
        }
        let Some(kind) = part["type"].as_str() else {
            return Err(Error::corrupt(format!("a part of the {what} has no type")));
        };
        match (kind, part[list].as_array()) {
            ("Sequence", Some(inner)) => open.extend(inner.iter().rev()),
            ("Sequence", None) => return Err(Error::corrupt(format!("the {what} is an empty sequence"))),
            _ => found.push((kind, part)),
        }
        Limits::check("parts of a tokenizer", (found.len() + open.len()) as u64, MOST_PARTS)?;
    }
    Ok(found)
}

fn check_parts(what: &str, value: &Value, list: &str, known: &[&str]) -> Result<()> {
    let mut growth = 1_u64;
    for (kind, part) in parts(what, value, list)? {
        named(what, kind, known)?;
        if kind == "Replace" {
            let to = part["content"].as_str().map_or(1, str::len) as u64;
            let from = part["pattern"]["String"].as_str().map_or(1, str::len) as u64;
            growth = growth.saturating_mul(to.div_ceil(from.max(1)).max(1));
            Limits::check("growth of a text by a tokenizer", growth, LARGEST_GROWTH)?;
        }
        if kind == "Prepend" {
            Limits::check(
                "bytes before a text",
                part["prepend"].as_str().map_or(0, str::len) as u64,
                LONGEST_TOKEN,
            )?;
        }
        if kind == "TemplateProcessing" {
            check_single(part)?;
        }
    }
    Ok(())
}

/// A template must have the text in it, and name only tokens that it lists.
fn check_single(part: &Value) -> Result<()> {
    let bad = |why: &str| Err(Error::corrupt(format!("the post-processor of the tokenizer {why}")));
    let Some(single) = part["single"].as_array() else { return bad("has no template for one text") };
    Limits::check("parts of a tokenizer", single.len() as u64, MOST_PARTS)?;
    if !single.iter().any(|piece| piece.get("Sequence").is_some()) {
        return bad("leaves out the text");
    }
    for piece in single {
        if let Some(name) = piece["SpecialToken"]["id"].as_str()
            && part["special_tokens"].get(name).is_none()
        {
            return bad(&format!("has no token {name:?}"));
        }
    }
    Ok(())
}
