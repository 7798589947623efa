//! Answers of a given shape, and calls of functions, over HTTP.

use serde_json::{Value, json};

use crate::support::Files;

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

fn with_schema(schema: &Value) -> Value {
    json!({"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}})
}

fn merged(mut one: Value, other: &Value) -> Value {
    one.as_object_mut().unwrap().extend(other.as_object().unwrap().clone());
    one
}

/// A small schema, by its number.
fn schema(number: u64) -> Value {
    let field = |number: u64| match number % 6 {
        0 => json!({"type": "boolean"}),
        1 => json!({"type": "integer", "minimum": 0, "maximum": 10 + number}),
        2 => json!({"type": "string", "maxLength": 8}),
        3 => json!({"enum": ["cat", "dog", null, number]}),
        4 => json!({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}),
        _ => json!({"anyOf": [{"const": number}, {"type": "string", "pattern": "^[xyz]{2}$"}]}),
    };
    let properties = json!({"a": field(number), "b": field(number / 6), "c": field(number / 36)});
    let required = if number.is_multiple_of(2) { json!(["a", "b", "c"]) } else { json!(["b"]) };
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

#[tokio::test]
async fn answers_have_their_schema() {
    let files = Files::new();
    let server = files.server();
    let mut complete = 0;
    for number in 0..200 {
        let schema = schema(number);
        let fields =
            merged(with_schema(&schema), &json!({"max_tokens": 150, "temperature": 1, "seed": number}));
        let answer = server.chat(user("Tell me."), fields).await.ok();
        let choice = &answer["choices"][0];
        if choice["finish_reason"] != "stop" {
            continue;
        }
        complete += 1;
        let text = choice["message"]["content"].as_str().unwrap();
        let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{schema}: {text}: {e}"));
        let fields = value.as_object().unwrap();
        assert!(fields.keys().all(|key| schema["properties"].get(key).is_some()), "{schema}: {text}");
        let required = schema["required"].as_array().unwrap();
        assert!(required.iter().all(|key| fields.contains_key(key.as_str().unwrap())), "{schema}: {text}");
    }
    // A model without sense may fill its context with what the schema leaves open.
    assert!(complete >= 190, "{complete}");
}

#[tokio::test]
async fn streams_and_choices_have_a_shape_too() {
    let files = Files::new();
    let server = files.server();
    let fields = json!({"response_format": {"type": "regex", "pattern": "(yes|no), [a-z]{1,3}"},
        "n": 3, "temperature": 1, "seed": 7});
    let whole = server.chat(user("Is it?"), fields.clone()).await.ok();
    let events = server.chat(user("Is it?"), merged(fields, &json!({"stream": true}))).await.events();
    let mut texts = vec![String::new(); 3];
    for event in &events {
        let choice = &event["choices"][0];
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        texts[index].push_str(choice["delta"]["content"].as_str().unwrap());
    }
    for (text, choice) in texts.iter().zip(whole["choices"].as_array().unwrap()) {
        assert_eq!(text, choice["message"]["content"].as_str().unwrap());
        let (word, rest) = text.split_once(", ").unwrap();
        assert!(["yes", "no"].contains(&word) && (1..=3).contains(&rest.len()), "{text}");
        assert!(choice["message"].get("tool_calls").is_none());
    }
}

#[tokio::test]
async fn functions_are_called() {
    let files = Files::new();
    let server = files.server();
    let parameters = json!({"type": "object", "properties": {"x": {"enum": [1, 22, 333]}},
        "required": ["x"], "additionalProperties": false});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    let tools = json!([tool("left"), tool("right")]);
    let right = json!({"type": "function", "function": {"name": "right"}});
    for choice in [json!("required"), right.clone()] {
        let fields = json!({"tools": tools, "tool_choice": choice, "temperature": 1, "seed": 3});
        let answer = server.chat(user("Go."), fields.clone()).await.ok();
        let of = &answer["choices"][0];
        assert_eq!((&of["finish_reason"], &of["message"]["content"]), (&json!("tool_calls"), &json!(null)));
        let call = &of["message"]["tool_calls"][0];
        assert_eq!(
            (&call["type"], of["message"]["tool_calls"].as_array().unwrap().len()),
            (&json!("function"), 1)
        );
        let name = call["function"]["name"].as_str().unwrap();
        assert!(name == "right" || (name == "left" && choice == "required"));
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!([1, 22, 333].map(|x| json!({"x": x})).contains(&arguments));
        // The same in parts.
        let events = server.chat(user("Go."), merged(fields, &json!({"stream": true}))).await.events();
        let parts: Vec<&Value> = events
            .iter()
            .filter_map(|event| event["choices"][0]["delta"].get("tool_calls"))
            .flat_map(|calls| calls.as_array().unwrap())
            .collect();
        assert_eq!(parts[0]["function"]["name"], name);
        assert!(parts[0]["id"].is_string() && parts[1..].iter().all(|part| part.get("id").is_none()));
        let text: String = parts.iter().map(|part| part["function"]["arguments"].as_str().unwrap()).collect();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), arguments);
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    }
    // Nothing must be called.
    let answer = server.chat(user("Go."), json!({"tools": tools, "max_tokens": 5})).await.ok();
    assert!(answer["choices"][0]["message"]["content"].is_string());
}

#[tokio::test]
async fn wrong_shapes_and_tools_are_told() {
    let files = Files::new();
    let server = files.server();
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    for (fields, param) in [
        (json!({"response_format": "json"}), "response_format"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format"),
        (with_schema(&json!({"type": "thing"})), "response_format"),
        (with_schema(&json!({"$ref": "https://example.com/x"})), "response_format"),
        (json!({"response_format": {"type": "regex", "pattern": "("}}), "response_format"),
        (json!({"tools": [{"type": "search"}]}), "tools[0]"),
        (json!({"tools": tools, "tool_choice": "f"}), "tool_choice"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (
            json!({"tools": tools, "tool_choice": "required", "response_format": {"type": "json_object"}}),
            "response_format",
        ),
    ] {
        assert_eq!(server.chat(user("Hi"), fields).await.error(400)["param"], param);
    }
}
