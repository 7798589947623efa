//! `response_format` of a request.

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use crate::error::{Failure, Result};

/// The field that says it.
const PARAM: &str = "response_format";
/// Bytes of a schema, an expression or a grammar.
const LARGEST: usize = 64 << 10;
/// Levels of a schema.
const DEEPEST: usize = 32;
/// Space between the parts of JSON. Without a bound, a model may write spaces for ever.
const SPACE: &str = r"[ \n]{0,16}";

/// What a text must look like.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shape {
    /// A JSON object.
    Object,
    /// JSON of this schema.
    Schema(Value),
    /// The regular expression matches all of it.
    Regex(String),
    /// A grammar as llguidance writes Lark.
    Lark(String),
    /// A call of a function, between these texts, by this schema.
    Call { before: &'static str, schema: Value, after: &'static str },
}

impl Shape {
    /// Reads a `response_format`; `None` if any text will do.
    ///
    /// # Errors
    /// 400 for one that is not known, or that is too large or too deep.
    pub(crate) fn of_response_format(format: &Value) -> Result<Option<Self>> {
        let text = |key: &str| {
            let found = format.get(key).and_then(Value::as_str).map(str::to_owned);
            found.ok_or_else(|| Failure::field(PARAM, format!("{key:?} must be a string")))
        };
        let shape = match format.get("type").and_then(Value::as_str) {
            Some("text") => return Ok(None),
            Some("json_object") => Self::Object,
            Some("json_schema") => {
                let schema = format.get("json_schema").and_then(|of| of.get("schema"));
                let missing = || Failure::field(PARAM, "\"json_schema\" must have a \"schema\"");
                Self::Schema(schema.ok_or_else(missing)?.clone())
            }
            Some("regex") => Self::Regex(text("pattern")?),
            Some("grammar") => Self::Lark(text("grammar")?),
            _ => {
                let known = "\"type\" must be text, json_object, json_schema, regex or grammar";
                return Err(Failure::field(PARAM, known));
            }
        };
        shape.check()?;
        Ok(Some(shape))
    }

    /// The field of a request that it comes from.
    pub(crate) fn param(&self) -> &'static str {
        if matches!(self, Self::Call { .. }) { "tools" } else { PARAM }
    }

    /// Refuses what is too large or too deep to be compiled.
    pub(crate) fn check(&self) -> Result<()> {
        let refused = |what: &str| Err(Failure::field(self.param(), what).with_code("invalid_grammar"));
        let bytes = match self {
            Self::Object => 0,
            Self::Schema(schema) | Self::Call { schema, .. } => {
                if !schema.is_object() && !schema.is_boolean() {
                    return refused("a schema must be an object");
                }
                if depth(schema) > DEEPEST {
                    return refused("a schema has at most 32 levels");
                }
                schema.to_string().len()
            }
            Self::Regex(text) | Self::Lark(text) => text.len(),
        };
        if bytes > LARGEST {
            return refused("this is too large: at most 65,536 bytes");
        }
        Ok(())
    }

    pub(super) fn grammar(&self) -> TopLevelGrammar {
        match self {
            Self::Object => TopLevelGrammar::from_json_schema(spaced(&json!({"type": "object"}))),
            Self::Schema(schema) => TopLevelGrammar::from_json_schema(spaced(schema)),
            Self::Regex(pattern) => TopLevelGrammar::from_regex(pattern),
            Self::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
            Self::Call { before, schema, after } => {
                let (before, after) = (Value::from(*before), Value::from(*after));
                let schema = spaced(schema);
                TopLevelGrammar::from_lark(format!("start: {before} call {after}\ncall: %json {schema}\n"))
            }
        }
    }
}

/// A schema with our rule for spaces, whatever its own is.
fn spaced(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Object(_) => schema.clone(),
        // `true` allows everything, and `false` nothing.
        other => json!({"allOf": [other]}),
    };
    schema["x-guidance"] = json!({"whitespace_flexible": true, "whitespace_pattern": SPACE});
    schema
}

fn depth(value: &Value) -> usize {
    let inner = match value {
        Value::Array(items) => items.iter().map(depth).max(),
        Value::Object(fields) => fields.values().map(depth).max(),
        _ => return 0,
    };
    1 + inner.unwrap_or(0)
}
