use std::path::Path;

use deltaloom::{Bases, Container, Limits, ResolvedContainer};
use deltaloom_lm::text::Tokenizer;
use serde_json::{Map, Value, json};

use super::*;

/// The id that ends texts of the bundled model.
const END: u32 = 1;

/// The tokens of the bundled model.
fn pieces() -> Pieces {
    let container: &[u8] = include_bytes!("../../../../assets/speaker/base.loom");
    let (limits, name) = (Limits::default(), Path::new("base.loom"));
    let container = Container::from_source(name, Box::new(container.to_vec()), &limits).unwrap();
    let resolved = ResolvedContainer::new(container, &Bases::default()).unwrap();
    let json = resolved.read(resolved.find("tokenizer.json").unwrap()).unwrap();
    Tokenizer::from_json(&json, 1024).unwrap().pieces().clone()
}

fn param(failure: &Failure) -> String {
    let body: Value = serde_json::from_str(&failure.json()).unwrap();
    body["error"]["param"].as_str().unwrap_or_default().to_owned()
}

/// A small source of numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

fn schema(random: &mut Random, depth: usize) -> Value {
    let kinds = if depth == 0 { 8 } else { 12 };
    match random.below(kinds) {
        0 => json!({"type": "boolean"}),
        1 => json!({"type": ["null", "boolean"]}),
        2 => json!({"type": "integer", "minimum": -5, "maximum": 10 + random.below(1000)}),
        3 => json!({"type": "number", "minimum": 0, "maximum": 2}),
        4 => json!({"type": "string", "minLength": random.below(3), "maxLength": 3 + random.below(6)}),
        5 => json!({"type": "string", "pattern": "^[a-c]{1,4}(-[0-9])?$"}),
        6 => json!({"enum": ["one", 2, null, [3], {"four": "\u{e9}\""}]}),
        7 => json!({"const": {"a": [random.below(9)]}}),
        8 | 9 => {
            let names = ["id", "name", "a b", "\u{fc}", "x\"y"];
            let count = random.below(names.len() + 1);
            let mut properties = Map::new();
            for name in &names[..count] {
                properties.insert((*name).to_owned(), schema(random, depth - 1));
            }
            let required = &names[..random.below(count + 1)];
            json!({"type": "object", "properties": properties, "required": required,
                "additionalProperties": false})
        }
        10 => {
            let least = random.below(3);
            json!({"type": "array", "items": schema(random, depth - 1), "minItems": least, "maxItems": least + 2})
        }
        _ => json!({"anyOf": [schema(random, depth - 1), schema(random, depth - 1)]}),
    }
}

/// Whether a value has a schema of this kind.
fn conforms(value: &Value, schema: &Value) -> bool {
    let within = |length: usize, least: &str, most: &str| {
        let bound = |key: &str, absent| schema[key].as_u64().unwrap_or(absent);
        (bound(least, 0)..=bound(most, u64::MAX)).contains(&(length as u64))
    };
    if let Some(choices) = schema["anyOf"].as_array() {
        return choices.iter().any(|choice| conforms(value, choice));
    }
    if let Some(choices) = schema["enum"].as_array() {
        return choices.contains(value);
    }
    if let Some(only) = schema.get("const") {
        return value == only;
    }
    match (value, &schema["type"]) {
        (Value::Null | Value::Bool(_), Value::Array(_)) => true,
        (Value::Bool(_), kind) => kind == "boolean",
        (Value::Number(number), kind) => {
            let bound = |key: &str, absent| schema[key].as_f64().unwrap_or(absent);
            let number = number.as_f64().unwrap_or(f64::NAN);
            (kind == "number" || (kind == "integer" && number.fract() == 0.0))
                && (bound("minimum", f64::MIN)..=bound("maximum", f64::MAX)).contains(&number)
        }
        (Value::String(text), kind) => {
            let has_pattern = schema.get("pattern").is_none()
                || text.trim_start_matches(['a', 'b', 'c', '-']).chars().all(|c| c.is_ascii_digit());
            kind == "string" && has_pattern && within(text.chars().count(), "minLength", "maxLength")
        }
        (Value::Array(items), kind) => {
            kind == "array"
                && within(items.len(), "minItems", "maxItems")
                && items.iter().all(|item| conforms(item, &schema["items"]))
        }
        (Value::Object(fields), kind) => {
            let known = |(name, value): (&String, &Value)| {
                schema["properties"].get(name).is_some_and(|schema| conforms(value, schema))
            };
            let is_there = |name: &Value| fields.contains_key(name.as_str().unwrap());
            kind == "object"
                && fields.iter().all(known)
                && schema["required"].as_array().is_some_and(|names| names.iter().all(is_there))
        }
        (Value::Null, _) => false,
    }
}

/// A text that a model without any sense writes.
fn write(pieces: &Pieces, mut grammar: Grammar, random: &mut Random) -> String {
    let mut bytes = Vec::new();
    for _ in 0..4000 {
        let mut logits = vec![0.0; pieces.ids()];
        grammar.apply(&mut logits).unwrap();
        let allowed: Vec<u32> =
            (0..).zip(&logits).filter(|(_, logit)| **logit == 0.0).map(|(id, _)| id).collect();
        let id = allowed[random.below(allowed.len())];
        let is_last = grammar.accept(id).unwrap();
        if id != END {
            bytes.extend_from_slice(pieces.bytes(id));
        }
        if is_last || id == END {
            return String::from_utf8(bytes).unwrap();
        }
    }
    panic!("the text does not end: {}", String::from_utf8_lossy(&bytes));
}

#[test]
fn every_text_has_its_schema() {
    let pieces = pieces();
    for ends in [&[END][..], &[]] {
        let vocabulary = Vocabulary::new(&pieces, ends).unwrap();
        let mut random = Random(1);
        for number in 0..200 {
            let schema = schema(&mut random, 3);
            let grammar = vocabulary.grammar(&Shape::Schema(schema.clone()));
            let grammar = grammar.unwrap_or_else(|e| panic!("{number}: {schema}: {e:?}"));
            let text = write(&pieces, grammar, &mut random);
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|e| panic!("{schema}: {text}: {e}"));
            assert!(conforms(&value, &schema), "{schema}: {text}");
        }
    }
}

#[test]
fn other_shapes_hold_too() {
    let pieces = pieces();
    let vocabulary = Vocabulary::new(&pieces, &[END]).unwrap();
    let mut random = Random(2);
    let mut text = |shape: &Shape| write(&pieces, vocabulary.grammar(shape).unwrap(), &mut random);
    for _ in 0..5 {
        let date = text(&Shape::Regex("[0-9]{4}-(0[1-9]|1[0-2])".to_owned()));
        assert!(date.len() == 7 && date.as_bytes()[4] == b'-', "{date}");
        let sum = text(&Shape::Lark("start: /[0-9]/ (\"+\" /[0-9]/){1,3}".to_owned()));
        assert!(sum.len() % 2 == 1 && sum.bytes().skip(1).step_by(2).all(|byte| byte == b'+'), "{sum}");
    }
    let calls = |choice: Value, style| {
        let tools = json!([
            {"type": "function", "function": {"name": "add", "parameters": {
                "type": "object", "properties": {"a": {"$ref": "#/$defs/digit"}}, "required": ["a"],
                "additionalProperties": false, "$defs": {"digit": {"enum": [1, 2]}}}}},
            {"type": "function", "function": {"name": "now", "parameters": {
                "type": "object", "properties": {}, "additionalProperties": false}}},
        ]);
        Tools::of_request(tools.as_array().unwrap(), Some(&choice), style).unwrap().unwrap()
    };
    let add = json!({"type": "function", "function": {"name": "add"}});
    for style in [Style::Tagged, Style::Bare] {
        for choice in [add.clone(), json!("required")] {
            let tools = calls(choice.clone(), style);
            let answer = text(tools.shape().unwrap());
            let mut reader = tools.reader();
            let mut parts = reader.push(&answer);
            parts.extend(reader.finish());
            let Part::Call { index: 0, name } = &parts[0] else { panic!("{answer}: {parts:?}") };
            assert!(name == "add" || choice == "required");
            let arguments: String = parts[1..]
                .iter()
                .map(|part| match part {
                    Part::Arguments { index: 0, text } => text.as_str(),
                    other => panic!("{answer}: {other:?}"),
                })
                .collect();
            let arguments: Value = serde_json::from_str(&arguments).unwrap();
            assert!(if name == "add" { arguments["a"].is_i64() } else { arguments == json!({}) });
        }
    }
    assert!(calls(json!("auto"), Style::Bare).shape().is_none());
}

#[test]
fn choices_of_a_request_go_their_own_ways() {
    let pieces = pieces();
    let vocabulary = Vocabulary::new(&pieces, &[END]).unwrap();
    let mut one = vocabulary.grammar(&Shape::Regex("ab|cd".to_owned())).unwrap();
    let mut other = one.copy();
    let id_of = |byte: u8| (0..1024).find(|id| pieces.bytes(*id) == [byte]).unwrap();
    assert!(!one.accept(id_of(b'a')).unwrap() && !other.accept(id_of(b'c')).unwrap());
    assert!(one.accept(id_of(b'b')).unwrap() && other.accept(id_of(b'd')).unwrap());
    let mut wrong = vocabulary.grammar(&Shape::Regex("ab".to_owned())).unwrap();
    assert!(wrong.accept(id_of(b'x')).is_err());
    // Logits of rows without a token.
    let mut logits = vec![0.0; 2000];
    vocabulary.grammar(&Shape::Object).unwrap().apply(&mut logits).unwrap();
    assert!(logits[1024..].iter().all(|logit| *logit == f32::NEG_INFINITY));
    assert!(logits[id_of(b'{') as usize] == 0.0 && logits[END as usize] < 0.0);
}

#[test]
fn what_cannot_be_done_is_told() {
    let pieces = pieces();
    let vocabulary = Vocabulary::new(&pieces, &[END]).unwrap();
    let refused = |format: Value| {
        let shape = Shape::of_response_format(&format);
        let failure = shape.and_then(|shape| vocabulary.grammar(&shape.unwrap())).unwrap_err();
        assert!(param(&failure) == "response_format", "{format}: {failure:?}");
    };
    let schema = |schema: Value| refused(json!({"type": "json_schema", "json_schema": {"schema": schema}}));
    refused(json!(null));
    refused(json!({"type": "xml"}));
    refused(json!({"type": "json_schema"}));
    refused(json!({"type": "json_schema", "json_schema": {"name": "x"}}));
    refused(json!({"type": "regex", "pattern": 1}));
    refused(json!({"type": "regex", "pattern": "("}));
    refused(json!({"type": "grammar", "grammar": "start: nothing"}));
    schema(json!(3));
    schema(json!({"type": "thing"}));
    schema(json!({"type": "string", "pattern": "["}));
    schema(json!({"$ref": "https://example.com/schema"}));
    schema(json!({"$ref": "#/$defs/none"}));
    schema(json!({"allOf": [{"type": "string"}, {"type": "integer"}]}));
    schema(json!({"enum": ["x".repeat(70_000)]}));
    let deep = (0..40).fold(json!({}), |inner, _| json!({"type": "array", "items": inner}));
    schema(deep);
    let text = Shape::of_response_format(&json!({"type": "text"}));
    assert_eq!(text, Ok(None));
}

#[test]
fn tools_are_checked() {
    let refused = |tools: Value, choice: Value, param_: &str| {
        let found = Tools::of_request(tools.as_array().unwrap(), Some(&choice), Style::Bare);
        assert_eq!(param(&found.unwrap_err()), param_, "{tools} {choice}");
    };
    let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
    refused(json!([{"type": "search"}]), json!("auto"), "tools[0]");
    refused(json!([tool("a"), tool("")]), json!("auto"), "tools[1]");
    refused(json!([tool("a b")]), json!("auto"), "tools[0]");
    refused(
        json!([{"type": "function", "function": {"name": "a", "parameters": 1}}]),
        json!("auto"),
        "tools[0]",
    );
    refused(json!([tool("a"), tool("a")]), json!("auto"), "tools");
    refused(json!(vec![tool("a"); 200]), json!("auto"), "tools");
    refused(json!([tool("a")]), json!("some"), "tool_choice");
    refused(json!([tool("a")]), json!({"type": "function", "function": {"name": "b"}}), "tool_choice");
    refused(json!([]), json!("required"), "tool_choice");
    for (tools, choice) in [(json!([tool("a")]), json!("none")), (json!([]), json!("auto"))] {
        assert_eq!(Tools::of_request(tools.as_array().unwrap(), Some(&choice), Style::Bare), Ok(None));
    }
    assert_eq!(Style::of_template("..<tool_call>.."), Style::Tagged);
}
