//! `tools` and `tool_choice` of a request.

use serde_json::{Value, json};

use super::calls::CallReader;
use super::shape::Shape;
use crate::error::{Failure, Result};

/// Functions of a request.
const MOST: usize = 128;
/// Bytes of a function's name.
const LONGEST_NAME: usize = 64;

/// How a model was taught to write calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// `<tool_call>{"name": .., "arguments": {..}}</tool_call>` among text: Hermes, Qwen.
    Tagged,
    /// The answer is `{"name": .., "parameters": {..}}`: LLaMA 3.
    Bare,
}

impl Style {
    /// The style that a chat template asks for.
    pub(crate) fn of_template(source: &str) -> Self {
        if source.contains("<tool_call>") { Self::Tagged } else { Self::Bare }
    }

    fn arguments(self) -> &'static str {
        match self {
            Self::Tagged => "arguments",
            Self::Bare => "parameters",
        }
    }
}

/// The functions that a model may call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tools {
    style: Style,
    names: Vec<String>,
    forced: Option<Shape>,
}

impl Tools {
    /// Reads `tools` and `tool_choice`; `None` if no function may be called.
    ///
    /// # Errors
    /// 400 for a tool that is no function, has no usable name or comes twice, and for a choice that
    /// is not known.
    pub(crate) fn of_request(tools: &[Value], choice: Option<&Value>, style: Style) -> Result<Option<Self>> {
        let choice = Choice::of(choice)?;
        if tools.len() > MOST {
            return Err(Failure::field("tools", format!("at most {MOST} functions")));
        }
        let functions = tools.iter().enumerate().map(|(number, tool)| Function::of(number, tool));
        let functions = functions.collect::<Result<Vec<_>>>()?;
        for (number, function) in functions.iter().enumerate() {
            if functions[..number].iter().any(|other| other.name == function.name) {
                return Err(Failure::field("tools", format!("two functions are named {:?}", function.name)));
            }
        }
        let forced: Vec<&Function<'_>> = match &choice {
            Choice::None => return Ok(None),
            Choice::Auto if functions.is_empty() => return Ok(None),
            Choice::Auto => Vec::new(),
            Choice::Required => functions.iter().collect(),
            Choice::Named(name) => functions.iter().filter(|function| function.name == *name).collect(),
        };
        if forced.is_empty() && choice != Choice::Auto {
            return Err(Failure::field("tool_choice", "this function is not among the tools"));
        }
        let forced = (!forced.is_empty()).then(|| call_of(&forced, style));
        if let Some(shape) = &forced {
            shape.check()?;
        }
        let names = functions.iter().map(|function| function.name.to_owned()).collect();
        Ok(Some(Self { style, names, forced }))
    }

    /// The shape of an answer that must be a call.
    pub(crate) fn shape(&self) -> Option<&Shape> {
        self.forced.as_ref()
    }

    /// Finds the calls in an answer.
    pub(crate) fn reader(&self) -> CallReader {
        CallReader::new(self.style, self.names.clone())
    }
}

#[derive(Debug, PartialEq)]
enum Choice<'a> {
    None,
    Auto,
    Required,
    Named(&'a str),
}

impl<'a> Choice<'a> {
    fn of(choice: Option<&'a Value>) -> Result<Self> {
        match choice {
            None => return Ok(Self::Auto),
            Some(Value::String(word)) => match word.as_str() {
                "none" => return Ok(Self::None),
                "auto" => return Ok(Self::Auto),
                "required" => return Ok(Self::Required),
                _ => {}
            },
            Some(choice) => {
                if let Some(name) =
                    choice["function"]["name"].as_str().filter(|_| choice["type"] == "function")
                {
                    return Ok(Self::Named(name));
                }
            }
        }
        Err(Failure::field("tool_choice", "must be none, auto, required, or a function with its name"))
    }
}

struct Function<'a> {
    name: &'a str,
    /// The schema of its arguments.
    parameters: Option<&'a Value>,
}

impl<'a> Function<'a> {
    fn of(number: usize, tool: &'a Value) -> Result<Self> {
        let refused = |what: &str| Failure::field(format!("tools[{number}]"), what);
        if tool["type"] != "function" {
            return Err(refused("\"type\" must be \"function\""));
        }
        let is_usual = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        let name = tool["function"]["name"]
            .as_str()
            .filter(|name| (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(is_usual));
        let name = name.ok_or_else(|| refused("\"name\" must be 1 to 64 letters, digits, _, - or ."))?;
        let parameters = tool["function"].get("parameters").filter(|value| !value.is_null());
        if parameters.is_some_and(|parameters| !parameters.is_object()) {
            return Err(refused("\"parameters\" must be a schema"));
        }
        Ok(Self { name, parameters })
    }
}

/// A call of one of some functions.
fn call_of(functions: &[&Function<'_>], style: Style) -> Shape {
    let key = style.arguments();
    let one = |(number, function): (usize, &&Function<'_>)| {
        let mut arguments = function.parameters.cloned().unwrap_or_else(|| json!({"type": "object"}));
        // What was at the root of its schema is here now.
        rebase(&mut arguments, &format!("#/anyOf/{number}/properties/{key}"));
        json!({
            "type": "object",
            "properties": {"name": {"const": function.name}, key: arguments},
            "required": ["name", key],
            "additionalProperties": false,
        })
    };
    let calls: Vec<Value> = functions.iter().enumerate().map(one).collect();
    let [before, after] = match style {
        Style::Tagged => ["<tool_call>\n", "\n</tool_call>"],
        Style::Bare => ["", ""],
    };
    Shape::Call { before, schema: json!({"anyOf": calls}), after }
}

/// Moves references to the root of a schema to another place.
fn rebase(schema: &mut Value, root: &str) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(|item| rebase(item, root)),
        Value::Object(fields) => {
            for (key, value) in fields.iter_mut() {
                match value {
                    Value::String(target) if key == "$ref" => {
                        if let Some(rest) = target.strip_prefix('#') {
                            *target = format!("{root}{rest}");
                        }
                    }
                    // Values, not schemas.
                    _ if matches!(key.as_str(), "const" | "enum" | "default" | "examples") => {}
                    _ => rebase(value, root),
                }
            }
        }
        _ => {}
    }
}
