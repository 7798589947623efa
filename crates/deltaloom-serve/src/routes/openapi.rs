//! The table of routes for others to read: an OpenAPI document, and the page docs/api.md.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use axum::body::Body;
use axum::http::{Response, StatusCode};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::{Access, Gives, ROUTES, Route, SchemaOf};
use crate::call::{Call, json as answer_json};
use crate::error::Result;

/// Where schemas are in the document.
const SCHEMAS: &str = "#/components/schemas/";

/// A field of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: String,
    kind: String,
    is_required: bool,
    does: String,
}

pub(super) async fn answer(_: Call) -> Result<Response<Body>> {
    Ok(answer_json(StatusCode::OK, &document()))
}

fn generator() -> SchemaGenerator {
    SchemaSettings::draft2020_12()
        .with(|it| it.definitions_path = "/components/schemas".into())
        .into_generator()
}

/// The fields of objects that come together as one.
pub(super) fn fields(of: &[SchemaOf]) -> Vec<Field> {
    let mut generator = generator();
    let schemas: Vec<Value> = of.iter().map(|schema| schema(&mut generator).into()).collect();
    let definitions = generator.take_definitions(true);
    schemas.iter().flat_map(|schema| fields_of(schema, &definitions)).collect()
}

/// The fields of an object, or of one that a reference means.
fn fields_of(schema: &Value, definitions: &Map<String, Value>) -> Vec<Field> {
    let object = resolve(schema, definitions);
    let required = object["required"].as_array();
    let field = |(name, field): (&String, &Value)| Field {
        name: name.clone(),
        kind: kind(field),
        is_required: required.is_some_and(|list| list.iter().any(|other| other == name)),
        does: describe(field, definitions),
    };
    object["properties"].as_object().into_iter().flatten().map(field).collect()
}

/// The object that a reference means.
fn resolve<'a>(schema: &'a Value, definitions: &'a Map<String, Value>) -> &'a Value {
    let name = schema["$ref"].as_str().and_then(|path| path.strip_prefix(SCHEMAS));
    name.and_then(|name| definitions.get(name)).unwrap_or(schema)
}

/// What a field says about itself, or its type.
fn describe(field: &Value, definitions: &Map<String, Value>) -> String {
    let own = field["description"].as_str();
    // A field that may be null is any of its type and null.
    let kind = field["anyOf"].as_array().and_then(|any| any.first()).unwrap_or(field);
    let of_type = || resolve(kind, definitions)["description"].as_str();
    own.or_else(of_type).unwrap_or_default().replace('\n', " ")
}

/// A type in words.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str() {
        return name.strip_prefix(SCHEMAS).unwrap_or(name).to_owned();
    }
    if let Some(any) = schema["anyOf"].as_array() {
        let kinds: Vec<String> = any.iter().map(kind).filter(|kind| kind != "null").collect();
        return kinds.join(" or ");
    }
    if let Some(constant) = schema["const"].as_str() {
        return format!("`{constant}`");
    }
    let one = |name: &str| match name {
        "array" => format!("list of {}", kind(&schema["items"])),
        other => other.to_owned(),
    };
    match &schema["type"] {
        Value::String(name) => one(name),
        Value::Array(names) => {
            let names = names.iter().filter_map(Value::as_str).filter(|name| *name != "null");
            names.map(one).collect::<Vec<_>>().join(" or ")
        }
        _ => "any".to_owned(),
    }
}

fn security(access: Access) -> &'static str {
    match access {
        Access::Open => "no key",
        Access::Key => "a key, if there are any",
        Access::Metrics => "a key, if there are any and metrics are not open",
        Access::Admin => "the key of the administration",
    }
}

/// The OpenAPI document.
fn document() -> Value {
    let mut generator = generator();
    let mut paths = Map::new();
    for route in ROUTES {
        let operation = operation(route, &mut generator);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_ascii_lowercase()] = operation;
    }
    let error: Value = generator.subschema_for::<crate::error::ErrorBody<'_>>().into();
    json!({
        "openapi": "3.1.0",
        "info": {"title": "deltaloom", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "responses": {"Error": {
                "description": "What is wrong.",
                "content": {"application/json": {"schema": error}},
            }},
        },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut of = |schema: SchemaOf| -> Value { schema(generator).into() };
    let content = match route.gives {
        Gives::Json(schema) => json!({"application/json": {"schema": of(schema)}}),
        Gives::JsonOrEvents(whole, event) => json!({
            "application/json": {"schema": of(whole)},
            "text/event-stream": {"schema": of(event)},
        }),
        Gives::Other(kind) => json!({kind: {}}),
        Gives::Nothing => json!({}),
    };
    let mut operation = json!({
        "summary": route.does,
        "responses": {
            "200": {"description": "The answer.", "content": content},
            "default": {"$ref": "#/components/responses/Error"},
        },
    });
    if !route.takes.is_empty() {
        let all: Vec<Value> = route.takes.iter().map(|schema| of(*schema)).collect();
        operation["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": {"allOf": all}}}});
    }
    if route.access != Access::Open {
        operation["security"] = json!([{"key": []}]);
    }
    if route.path.contains("{name}") {
        operation["parameters"] =
            json!([{"name": "name", "in": "path", "required": true, "schema": {"type": "string"}}]);
    }
    operation
}

/// The table of routes with all fields, as Markdown.
#[must_use]
pub fn api_markdown() -> String {
    let mut text = String::from(INTRODUCTION);
    text.push_str("\n| route | what it does | needs |\n|---|---|---|\n");
    for Route { method, path, does, access, .. } in ROUTES {
        let _ = writeln!(text, "| `{method} {path}` | {does} | {} |", security(*access));
    }
    let mut shown = BTreeSet::new();
    for route in ROUTES {
        let (takes, gives) = (fields(route.takes), answers(route.gives));
        if takes.is_empty() && gives.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\n## `{} {}`\n\n{}", route.method, route.path, route.does);
        push_table(&mut text, "request", &takes);
        for (title, schema) in gives {
            push_table(&mut text, title, &fields(&[schema]));
            shown.extend(name_of(schema));
        }
        shown.extend(route.takes.iter().filter_map(|schema| name_of(*schema)));
    }
    push_types(&mut text, &shown);
    text
}

/// Types that others have fields of, without those that are `shown` already.
fn push_types(text: &mut String, shown: &BTreeSet<String>) {
    let mut generator = generator();
    for route in ROUTES {
        let gives = answers(route.gives).into_iter().map(|(_, schema)| schema);
        route.takes.iter().copied().chain(gives).for_each(|schema| drop(schema(&mut generator)));
    }
    let definitions = generator.take_definitions(true);
    text.push_str("\n## Types\n");
    for (name, schema) in definitions.iter().filter(|(name, _)| !shown.contains(*name)) {
        let _ = writeln!(text, "\n### `{name}`\n\n{}", describe(schema, &definitions));
        push_table(text, "field", &fields_of(schema, &definitions));
        for any in [&schema["anyOf"], &schema["oneOf"]].into_iter().filter_map(Value::as_array).flatten() {
            let _ = writeln!(text, "- {}: {}", kind(any), describe(any, &definitions));
        }
    }
}

/// The name of a type.
fn name_of(schema: SchemaOf) -> Option<String> {
    let schema: Value = schema(&mut generator()).into();
    Some(schema["$ref"].as_str()?.strip_prefix(SCHEMAS)?.to_owned())
}

/// The types of an answer.
fn answers(gives: Gives) -> Vec<(&'static str, SchemaOf)> {
    match gives {
        Gives::Json(answer) => vec![("answer", answer)],
        Gives::JsonOrEvents(answer, event) if name_of(answer) == name_of(event) => {
            vec![("answer and event", answer)]
        }
        Gives::JsonOrEvents(answer, event) => vec![("answer", answer), ("event", event)],
        Gives::Other(_) | Gives::Nothing => Vec::new(),
    }
}

fn push_table(text: &mut String, title: &str, fields: &[Field]) {
    if fields.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n| {title} | type | meaning |\n|---|---|---|");
    for Field { name, kind, is_required, does } in fields {
        let mark = if *is_required && (title == "request" || title == "field") { "*" } else { "" };
        let _ = writeln!(
            text,
            "| `{name}`{mark} | {} | {} |",
            kind.replace('|', "\\|"),
            does.replace('|', "\\|")
        );
    }
}

const INTRODUCTION: &str = "\
# HTTP API

This page is made from the table of routes in the code; `GET /openapi.json` has the same for programs. A
key is sent as `Authorization: Bearer KEY`. Fields with * must be there; a field that is `null` counts as
absent; others than these are ignored, or refused with `--strict`.

Errors have the shape `{\"error\": {\"message\", \"type\", \"param\", \"code\"}}`. Status 400 means a wrong
request, 401 no known key, 403 a key that may not do this, 404 an unknown model or path, 405 another
method, 409 a name that is taken or pinned, 413 a body that is too large, 422 a fine-tune of another base,
429 full queues (with `retry-after`), 500 a failed computation, 503 a server that ends, 504 a request whose
time is over. In a stream an error is an event, and no `[DONE]` follows.

Every response has `x-request-id`: the request's own if it has up to 64 letters, digits, `_` and `-`.
`x-request-timeout-ms` limits the time of a request. Answers have `x-deltaloom-tenant`, and
`server-timing` unless they are streams.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_of_the_document_is_there() {
        let document = document();
        let text = document.to_string();
        for name in text.split(SCHEMAS).skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
        assert_eq!(document["paths"]["/admin/tenants"].as_object().unwrap().len(), 2);
    }

    #[test]
    fn fields_of_all_parts_are_known() {
        let route = &ROUTES[0];
        let fields = fields(route.takes);
        let find = |name: &str| fields.iter().find(|field| field.name == name).unwrap();
        assert!(find("prompt").is_required && find("model").is_required && !find("stream").is_required);
        assert_eq!(find("temperature").kind, "number");
        assert_eq!(find("stop_token_ids").kind, "list of integer");
        assert!(find("user").does.contains("ignored"));
        assert!(api_markdown().contains("| `model`* | string | The fine-tune. |"));
    }
}
