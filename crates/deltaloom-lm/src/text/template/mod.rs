//! Chat templates: messages to the text that a model was trained on. Templates are Jinja, and come
//! with models, so they are hostile: work, memory and output are limited.
//!
//! They are rendered as transformers renders them: `trim_blocks`, `lstrip_blocks`, methods of
//! Python's strings and dicts, `tojson` as Python's `json.dumps`, `raise_exception`,
//! `strftime_now`, and `generation` blocks that change nothing.

mod clock;
mod python;
mod source;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, Value, context};

use deltaloom::{Error, Limits, Result};

/// Bytes of a template.
const LARGEST_TEMPLATE: u64 = 1 << 20;
/// Bytes of messages and tools, as JSON.
const LARGEST_CONVERSATION: u64 = 16 << 20;
/// Steps of a rendering. One pays for an instruction or for 64 bytes, so 128 MB is the most that a
/// template can make.
const FUEL: u64 = 2 << 20;
/// Levels of blocks and calls.
const DEPTH: usize = 200;
/// Spaces of a level of JSON.
const LARGEST_INDENT: usize = 16;

const NAME: &str = "chat_template";

/// What a template renders.
#[derive(Debug, Clone)]
pub struct Conversation {
    messages: Value,
    tools: Value,
    answer: bool,
    extra: Value,
}

impl Conversation {
    /// The messages, as a JSON list of objects with `role` and `content`.
    ///
    /// # Errors
    /// It is no such list, or is too large.
    pub fn from_json(messages: &str) -> Result<Self> {
        let messages = parse("messages", messages)?;
        let is_message = |message: Value| message.get_attr("role").is_ok_and(|role| role.as_str().is_some());
        let all = messages.kind() == ValueKind::Seq
            && messages.try_iter().is_ok_and(|mut list| list.all(is_message));
        if !all || messages.len() == Some(0) {
            return Err(Error::InvalidArgument(
                "messages must be a JSON list of objects with a role, and not be empty".to_owned(),
            ));
        }
        Ok(Self { messages, tools: Value::from(()), answer: true, extra: context! {} })
    }

    /// One message of the user, after one of the system if there is any.
    #[must_use]
    pub fn of_user(system: Option<&str>, prompt: &str) -> Self {
        let message = |role: &str, content: &str| context! { role => role, content => content };
        let messages: Vec<Value> =
            system.map(|text| message("system", text)).into_iter().chain([message("user", prompt)]).collect();
        Self { messages: messages.into(), tools: Value::from(()), answer: true, extra: context! {} }
    }

    /// Offers tools, as a JSON list.
    ///
    /// # Errors
    /// It is not JSON, or is too large.
    pub fn with_tools(self, tools: &str) -> Result<Self> {
        Ok(Self { tools: parse("tools", tools)?, ..self })
    }

    /// Whether the text ends with the start of an answer. Without this, it does.
    #[must_use]
    pub fn with_answer(self, answer: bool) -> Self {
        Self { answer, ..self }
    }

    /// Sets more variables of the template, as a JSON object: `enable_thinking` and the like.
    ///
    /// # Errors
    /// It is not a JSON object, or is too large.
    pub fn with_variables(self, extra: &str) -> Result<Self> {
        let extra = parse("variables", extra)?;
        if extra.kind() != ValueKind::Map {
            return Err(Error::InvalidArgument("variables of a template must be a JSON object".to_owned()));
        }
        Ok(Self { extra, ..self })
    }
}

fn parse(what: &'static str, json: &str) -> Result<Value> {
    Limits::check(what, json.len() as u64, LARGEST_CONVERSATION)?;
    serde_json::from_str(json).map_err(|e| Error::InvalidArgument(format!("the {what} are not JSON: {e}")))
}

/// A template that was parsed.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    begin: Option<String>,
    end: Option<String>,
}

impl ChatTemplate {
    /// Parses a template. `begin` and `end` are its variables `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// The template is too large or is not valid Jinja.
    pub fn parse(source: &str, begin: Option<&str>, end: Option<&str>) -> Result<Self> {
        Limits::check("bytes of a chat template", source.len() as u64, LARGEST_TEMPLATE)?;
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(failed)?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(DEPTH);
        // Text for a model is not HTML.
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(python::format);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", clock::strftime_now);
        let source = source::without_generation(source);
        environment.add_template_owned(NAME, source).map_err(failed)?;
        let text = |token: Option<&str>| token.map(str::to_owned);
        Ok(Self { environment, begin: text(begin), end: text(end) })
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// The template fails, raises an exception, or does too much.
    pub fn render(&self, conversation: &Conversation) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let own = context! {
            messages => conversation.messages.clone(),
            tools => conversation.tools.clone(),
            documents => Value::from(()),
            add_generation_prompt => conversation.answer,
            bos_token => self.begin.clone().map_or(Value::UNDEFINED, Value::from),
            eos_token => self.end.clone().map_or(Value::UNDEFINED, Value::from),
        };
        template.render(context! { ..own, ..conversation.extra.clone() }).map_err(failed)
    }
}

/// An error of a template in one line: what its author or the engine says, and where.
fn failed(error: minijinja::Error) -> Error {
    let line = error.line().map_or(String::new(), |line| format!(" (line {line})"));
    let what = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "it does too much".to_owned(),
        (_, Some(detail)) => detail.to_owned(),
        (kind, None) => kind.to_string(),
    };
    Error::InvalidArgument(format!("the chat template fails: {what}{line}"))
}

fn raise_exception(message: &str) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(
    state: &minijinja::State,
    value: &Value,
    indent: Option<usize>,
    options: Kwargs,
) -> Result<Value, minijinja::Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<usize>>("indent")?,
    };
    if indent.is_some_and(|indent| indent > LARGEST_INDENT) {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "tojson indents too far"));
    }
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let separators =
        separators.and_then(|list| <[String; 2]>::try_from(list).ok()).map(<(String, String)>::from);
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let _ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let style = python::Json { indent, separators, sorted };
    Ok(Value::from(style.text(state, value)?))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
