//! The tokenizer in the metadata of a GGUF file, as the text of a `tokenizer.json`: so it is checked
//! and used like any other. Byte-level BPE only; others are refused by name.

use serde_json::{Value as Json, json};

use super::{SpecialTokens, Tokenizer};
use crate::gguf::{Gguf, wrong};
use deltaloom::{Error, Result};

/// Types of tokens, by the numbers of llama.cpp.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Keys of ids that end a text.
const ENDS: [&str; 3] = ["eos", "eot", "eom"];

/// What to do where the metadata cannot be used.
const HINT: &str = "put the model's tokenizer.json beside the file";

/// How a text is cut before tokens are merged, and what goes with it.
struct Cut {
    /// Values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// Digits stand alone.
    has_single_digits: bool,
    /// `None` for the pattern of GPT-2.
    pattern: Option<&'static str>,
    /// Texts are brought into Unicode's form C.
    has_form_c: bool,
    /// A piece that is a token is not made by merges.
    ignores_merges: bool,
    /// Whether a text starts with a token, if it is not said.
    adds_begin: bool,
}

static CUTS: [Cut; 4] = [
    Cut {
        names: &["gpt-2", "gpt2"],
        has_single_digits: false,
        pattern: None,
        has_form_c: false,
        ignores_merges: false,
        adds_begin: false,
    },
    Cut {
        names: &["smollm"],
        has_single_digits: true,
        pattern: None,
        has_form_c: false,
        ignores_merges: false,
        adds_begin: false,
    },
    Cut {
        names: &["qwen2", "deepseek-r1-qwen"],
        has_single_digits: false,
        pattern: Some(concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )),
        has_form_c: true,
        ignores_merges: false,
        adds_begin: false,
    },
    Cut {
        names: &["llama-bpe", "llama3", "llama-v3"],
        has_single_digits: false,
        pattern: Some(concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )),
        has_form_c: false,
        ignores_merges: true,
        adds_begin: true,
    },
];

/// The tokenizer, with the ids that start and end texts.
pub(super) fn read(file: &Gguf, rows: usize) -> Result<Tokenizer> {
    let cut = cut(file)?;
    let tokens = needed(file.texts("tokenizer.ggml.tokens")?, "tokens")?;
    let json = json(file, cut, &tokens)?;
    let mut tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), rows)?;
    tokenizer.special = special(file, &tokens)?;
    Ok(tokenizer)
}

fn cut(file: &Gguf) -> Result<&'static Cut> {
    let refused = |key: &str, found: Option<&str>, known: &[&str]| {
        let found = found.map_or("missing".to_owned(), |found| format!("{found:?}"));
        let known = known.join(", ");
        Err(wrong(format!("tokenizer.ggml.{key} is {found}, and known are {known}: {HINT}")))
    };
    let model = file.text("tokenizer.ggml.model")?;
    if model != Some("gpt2") {
        return refused("model", model, &["gpt2"]);
    }
    let pre = file.text("tokenizer.ggml.pre")?;
    match CUTS.iter().find(|cut| pre.is_some_and(|pre| cut.names.contains(&pre))) {
        Some(cut) => Ok(cut),
        None => refused("pre", pre, &CUTS.each_ref().map(|cut| cut.names).concat()),
    }
}

fn needed<T>(found: Option<T>, name: &str) -> Result<T> {
    found.ok_or_else(|| wrong(format!("tokenizer.ggml.{name} is missing: {HINT}")))
}

/// The text of a `tokenizer.json`.
fn json(file: &Gguf, cut: &Cut, tokens: &[String]) -> Result<Json> {
    let kinds = file.integers("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
    if kinds.len() != tokens.len() {
        return Err(wrong(format!("{} tokens have {} types", tokens.len(), kinds.len())));
    }
    let mut vocabulary = serde_json::Map::new();
    let mut added = Vec::new();
    for ((token, kind), id) in tokens.iter().zip(&kinds).zip(0_u64..) {
        if *kind == UNUSED {
            continue;
        }
        if vocabulary.insert(token.clone(), json!(id)).is_some() {
            return Err(wrong(format!("two tokens are {token:?}")));
        }
        if [CONTROL, USER_DEFINED].contains(kind) {
            added.push(json!({"id": id, "content": token, "special": *kind == CONTROL, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false}));
        }
    }
    let merges = needed(file.texts("tokenizer.ggml.merges")?, "merges")?;
    let pair = |merge: &String| {
        let (left, right) = merge.split_once(' ').ok_or_else(|| wrong(format!("{merge:?} is no merge")))?;
        Ok(json!([left, right]))
    };
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": cut.pattern.is_none()});
    let digits = cut.has_single_digits.then(|| json!({"type": "Digits", "individual_digits": true}));
    let split = cut.pattern.map(|pattern| {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
    });
    let parts: Vec<Json> = [digits, split, Some(level.clone())].into_iter().flatten().collect();
    Ok(json!({
        "added_tokens": added,
        "normalizer": cut.has_form_c.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
        "post_processor": around(file, cut, tokens)?,
        "decoder": level,
        "model": {"type": "BPE", "ignore_merges": cut.ignores_merges, "vocab": vocabulary,
            "merges": merges.iter().map(pair).collect::<Result<Vec<Json>>>()?},
    }))
}

/// The template that adds ids around a text.
fn around(file: &Gguf, cut: &Cut, tokens: &[String]) -> Result<Option<Json>> {
    let added = |key: &str, name: &str, default: bool| -> Result<Option<_>> {
        let wanted = file.integer(&format!("tokenizer.ggml.{key}"))?.map_or(default, |wanted| wanted != 0);
        if wanted {
            Ok(Some(needed(token(file, name, tokens)?, &format!("{name}_token_id"))?))
        } else {
            Ok(None)
        }
    };
    let begin = added("add_bos_token", "bos", cut.adds_begin)?;
    let end = added("add_eos_token", "eos", false)?;
    if begin.is_none() && end.is_none() {
        return Ok(None);
    }
    let part = |token: Option<(u32, &String)>| {
        token.map(|(_, token)| json!({"SpecialToken": {"id": token, "type_id": 0}}))
    };
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<Json> = [part(begin), Some(text), part(end)].into_iter().flatten().collect();
    let described = [begin, end]
        .into_iter()
        .flatten()
        .map(|(id, token)| (token.clone(), json!({"id": token, "ids": [id], "tokens": [token]})));
    Ok(Some(json!({
        "type": "TemplateProcessing",
        "single": single,
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": described.collect::<serde_json::Map<_, _>>(),
    })))
}

fn special(file: &Gguf, tokens: &[String]) -> Result<SpecialTokens> {
    let begin = token(file, "bos", tokens)?;
    let end = ENDS.map(|name| token(file, name, tokens));
    let end = end.into_iter().collect::<Result<Vec<_>>>()?;
    let text = |token: Option<(u32, &String)>| token.map(|(_, token)| token.clone());
    let mut ends: Vec<u32> = end.iter().flatten().map(|(id, _)| *id).collect();
    ends.sort_unstable();
    ends.dedup();
    Ok(SpecialTokens {
        begin: begin.map(|(id, _)| id),
        begin_text: text(begin),
        end_text: text(end[0]),
        end: ends,
        chat_template: file.text("tokenizer.chat_template")?.map(str::to_owned),
    })
}

/// The id that `tokenizer.ggml.NAME_token_id` names, with its text.
fn token<'a>(file: &Gguf, name: &str, tokens: &'a [String]) -> Result<Option<(u32, &'a String)>> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(id) = file.integer(&key)? else { return Ok(None) };
    let known = u32::try_from(id).ok().and_then(|id| Some((id, tokens.get(id as usize)?)));
    let unknown =
        || Error::InvalidArgument(format!("GGUF: {key} is {id}: not one of {} tokens", tokens.len()));
    known.ok_or_else(unknown).map(Some)
}

#[cfg(test)]
mod tests {
    use super::super::Special;
    use super::*;
    use crate::gguf::writer::Writer;

    const BASE: [&str; 6] = ["<s>", "<end>", "a", "b", "1", "ab"];

    /// A file with a tokenizer, or one whose first values come from `first`.
    fn file(pre: &str, first: impl FnOnce(&mut Writer)) -> Writer {
        let mut file = Writer::default();
        first(&mut file);
        file.text("tokenizer.ggml.model", "gpt2");
        file.text("tokenizer.ggml.pre", pre);
        file.texts("tokenizer.ggml.tokens", &BASE);
        file.integers("tokenizer.ggml.token_type", &[3, 4, 1, 1, 1, 1]);
        file.texts("tokenizer.ggml.merges", &["a b"]);
        file
    }

    fn tokenizer(file: &Writer) -> Result<Tokenizer> {
        read(&file.open()?, 8)
    }

    #[test]
    fn tokens_and_merges_are_those_of_the_file() {
        let tokenizer = tokenizer(&file("smollm", |file| {
            file.integer("tokenizer.ggml.bos_token_id", 0);
            file.integer("tokenizer.ggml.eos_token_id", 1);
            file.integer("tokenizer.ggml.eot_token_id", 0);
            file.text("tokenizer.chat_template", "T");
        }))
        .unwrap();
        assert_eq!(tokenizer.encode("ab11<end>b<s>", Special::Add).unwrap(), [5, 4, 4, 1, 3, 0]);
        assert_eq!(tokenizer.pieces().text(&[5, 0, 1], true), "ab<end>");
        let special = tokenizer.special();
        assert_eq!((special.begin, &special.end[..]), (Some(0), &[0, 1][..]));
        assert_eq!(
            (special.begin_text.as_deref(), special.end_text.as_deref()),
            (Some("<s>"), Some("<end>"))
        );
        assert_eq!(special.chat_template.as_deref(), Some("T"));
    }

    #[test]
    fn ids_are_added_where_the_file_or_its_kind_says_so() {
        let ids = |pre: &str, change: &dyn Fn(&mut Writer)| {
            let changed = file(pre, |file| {
                file.integer("tokenizer.ggml.bos_token_id", 0);
                file.integer("tokenizer.ggml.eos_token_id", 1);
                change(file);
            });
            tokenizer(&changed).unwrap().encode("a", Special::Add).unwrap()
        };
        let add = |name: &'static str, value: u8| {
            move |file: &mut Writer| file.value(&format!("tokenizer.ggml.add_{name}_token"), 7, &[value])
        };
        assert_eq!(ids("gpt-2", &|_| ()), [2]);
        assert_eq!(ids("gpt-2", &add("bos", 1)), [0, 2]);
        assert_eq!(ids("qwen2", &add("eos", 1)), [2, 1]);
        assert_eq!(ids("llama-bpe", &|_| ()), [0, 2]);
        assert_eq!(ids("llama-bpe", &add("bos", 0)), [2]);
    }

    #[test]
    fn every_pattern_can_be_used() {
        for name in CUTS.iter().flat_map(|cut| cut.names) {
            let found = tokenizer(&file(name, |file| {
                file.value("tokenizer.ggml.add_bos_token", 7, &[0]);
            }));
            assert_eq!(found.unwrap().encode("ab1a", Special::Add).unwrap(), [5, 4, 2], "{name}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let told = |file: &Writer, words: &str| {
            let error = tokenizer(file).unwrap_err().to_string();
            assert!(error.contains(words), "{error}, not {words}");
        };
        told(&file("tekken", |_| ()), "tokenizer.ggml.pre is \"tekken\"");
        told(&file("tekken", |_| ()), "tokenizer.json beside the file");
        let mut other = Writer::default();
        told(&other, "tokenizer.ggml.model is missing");
        other.text("tokenizer.ggml.model", "llama");
        told(&other, "\"llama\"");
        other = Writer::default();
        other.text("tokenizer.ggml.model", "gpt2");
        told(&other, "tokenizer.ggml.pre is missing");
        other.text("tokenizer.ggml.pre", "gpt-2");
        told(&other, "tokens is missing");
        other.texts("tokenizer.ggml.tokens", &["a", "b", "a"]);
        told(&other, "two tokens are \"a\"");
    }

    #[test]
    fn metadata_that_lies_is_refused() {
        let told = |change: &dyn Fn(&mut Writer), words: &str| {
            let error = tokenizer(&file("gpt-2", |file| change(file))).unwrap_err().to_string();
            assert!(error.contains(words), "{error}, not {words}");
        };
        told(&|file| file.integer("tokenizer.ggml.eos_token_id", 6), "not one of 6 tokens");
        told(&|file| file.text("tokenizer.ggml.bos_token_id", "a"), "bos_token_id");
        told(&|file| file.integer("tokenizer.ggml.add_bos_token", 1), "bos_token_id is missing");
        told(&|file| file.texts("tokenizer.chat_template", &["a"]), "chat_template");
        let with = |tokens: &[&str], kinds: &[i32], merges: &[&str]| {
            let mut file = Writer::default();
            file.text("tokenizer.ggml.model", "gpt2");
            file.text("tokenizer.ggml.pre", "gpt-2");
            file.texts("tokenizer.ggml.tokens", tokens);
            file.integers("tokenizer.ggml.token_type", kinds);
            file.texts("tokenizer.ggml.merges", merges);
            tokenizer(&file).map(|it| it.pieces().ids()).map_err(|e| e.to_string())
        };
        assert_eq!(with(&["a", "b"], &[1, 1], &[]), Ok(2));
        assert_eq!(with(&["a", "b", "[PAD]"], &[1, 1, 5], &[]), Ok(2));
        assert!(with(&["a", "b"], &[1], &[]).unwrap_err().contains("2 tokens have 1 types"));
        assert!(with(&["a", "b"], &[1, 1], &["a"]).unwrap_err().contains("no merge"));
        assert!(with(&["a", "b"], &[1, 1], &["a b"]).unwrap_err().contains("makes no token"));
        assert!(with(&["a", ""], &[1, 1], &[]).unwrap_err().contains("empty"));
        let nine: Vec<String> = (0..9).map(|id| format!("t{id}")).collect();
        let nine: Vec<&str> = nine.iter().map(String::as_str).collect();
        assert!(with(&nine, &[1; 9], &[]).unwrap_err().contains("8 rows"));
    }
}
