//! Which ids start and end a text. Models say so in three files, and each in several ways.

use std::path::Path;

use serde_json::Value;

use super::{ReadFile, Tokenizer};
use deltaloom::{Error, Limits, Result};

/// Bytes of a configuration. Some list a thousand added tokens.
const LARGEST_CONFIG: u64 = 16 << 20;
/// Ids that end a text.
const MOST_ENDS: u64 = 64;

/// The ids that start and end texts, and the template of chats.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpecialTokens {
    /// Starts a text.
    pub begin: Option<u32>,
    /// Each ends a generated text. In ascending order.
    pub end: Vec<u32>,
    /// Texts of the tokens, as chat templates want them.
    pub begin_text: Option<String>,
    /// The text of the token that ends texts.
    pub end_text: Option<String>,
    /// The chat template of `tokenizer_config.json` or `chat_template.jinja`.
    pub chat_template: Option<String>,
}

impl SpecialTokens {
    /// Reads them. Ids come from `generation_config.json`, else from `config.json`; texts from
    /// `tokenizer_config.json`, whose tokens count as well.
    pub(super) fn open(read_file: ReadFile<'_>, tokenizer: &Tokenizer) -> Result<Self> {
        let [tokens, generation, config] = ["tokenizer_config.json", "generation_config.json", "config.json"]
            .map(|name| read(read_file, name));
        let (tokens, generation, config) = (tokens?, generation?, config?);
        let mut found = Self {
            begin_text: token_text(&tokens["bos_token"]),
            end_text: token_text(&tokens["eos_token"]),
            chat_template: match template_text(&tokens["chat_template"]) {
                None => read_template(read_file)?,
                text => text,
            },
            ..Self::default()
        };
        let id_of = |text: &Option<String>| text.as_deref().and_then(|text| tokenizer.id_of(text));
        let ids = |key: &str| -> Result<Vec<u32>> {
            let known = [&generation, &config].into_iter().find(|file| !file[key].is_null());
            known.map_or(Ok(Vec::new()), |file| token_ids(key, &file[key], tokenizer))
        };
        found.begin = id_of(&found.begin_text).or(ids("bos_token_id")?.first().copied());
        found.end = ids("eos_token_id")?;
        found.end.extend(id_of(&found.end_text));
        found.end.sort_unstable();
        found.end.dedup();
        Ok(found)
    }
}

fn read(read_file: ReadFile<'_>, name: &str) -> Result<Value> {
    let Some(bytes) = read_file(name, LARGEST_CONFIG)? else { return Ok(Value::Null) };
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::corrupt(format!("not JSON: {e}")).in_file(Path::new(name)))
}

fn read_template(read_file: ReadFile<'_>) -> Result<Option<String>> {
    let name = "chat_template.jinja";
    let Some(bytes) = read_file(name, LARGEST_CONFIG)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|_| Error::corrupt("not UTF-8").in_file(Path::new(name)))
}

/// A token is a string, or an object with its content.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// A template is a string, or a list of named ones, of which one is the default.
fn template_text(value: &Value) -> Option<String> {
    let named = |list: &Vec<Value>| {
        let default = list.iter().find(|entry| entry["name"] == "default");
        default.or(list.first()).and_then(|entry| entry["template"].as_str()).map(str::to_owned)
    };
    value.as_str().map(str::to_owned).or_else(|| value.as_array().and_then(named))
}

/// An id, the text of a token, or a list of them.
fn token_ids(key: &str, value: &Value, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let one = |value: &Value| {
        let id = match value {
            Value::String(text) => tokenizer.id_of(text),
            other => other.as_u64().and_then(|id| u32::try_from(id).ok()),
        };
        id.filter(|id| tokenizer.pieces.has(*id))
            .ok_or_else(|| Error::corrupt(format!("{key} is {value}: not a token of the tokenizer")))
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) => {
            Limits::check("ids that end a text", list.len() as u64, MOST_ENDS)?;
            list.iter().map(one).collect()
        }
        single => Ok(vec![one(single)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_and_tokens_come_in_two_forms() {
        let list = serde_json::json!([
            {"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}
        ]);
        assert_eq!(template_text(&list).as_deref(), Some("D"));
        assert_eq!(template_text(&Value::from("S")).as_deref(), Some("S"));
        assert_eq!(template_text(&Value::Null), None);
        assert_eq!(token_text(&serde_json::json!({"content": "</s>"})).as_deref(), Some("</s>"));
        assert_eq!(token_text(&Value::from("</s>")).as_deref(), Some("</s>"));
        assert_eq!(token_text(&Value::from(3)), None);
    }
}
