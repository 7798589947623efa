use super::*;

/// A conversation, and what Python makes of it: `tools/chat_templates/make.py` writes these.
#[derive(serde::Deserialize)]
struct Case {
    template: String,
    name: String,
    answer: bool,
    messages: String,
    tools: String,
    variables: String,
    text: Option<String>,
    error: Option<String>,
}

const TEMPLATES: [(&str, &str); 4] = [
    ("chatml", include_str!("../../../../../tools/chat_templates/chatml.jinja")),
    ("tools", include_str!("../../../../../tools/chat_templates/tools.jinja")),
    ("thinking", include_str!("../../../../../tools/chat_templates/thinking.jinja")),
    ("turns", include_str!("../../../../../tools/chat_templates/turns.jinja")),
];

#[test]
fn templates_render_as_in_python() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("cases.json")).unwrap();
    assert_eq!(cases.len(), 28);
    for case in cases {
        let source = TEMPLATES.iter().find(|(name, _)| *name == case.template).unwrap().1;
        let template = ChatTemplate::parse(source, Some("<s>"), Some("</s>")).unwrap();
        let conversation = Conversation::from_json(&case.messages).unwrap().with_answer(case.answer);
        let conversation =
            conversation.with_tools(&case.tools).unwrap().with_variables(&case.variables).unwrap();
        let what = format!("{} of {}", case.name, case.template);
        match (template.render(&conversation), case.text, case.error) {
            (Ok(found), Some(text), _) => assert_eq!(found, text, "{what}"),
            (Err(found), None, Some(error)) => assert!(found.to_string().contains(&error), "{what}: {found}"),
            (found, ..) => panic!("{what}: {found:?}"),
        }
    }
}

fn render(source: &str) -> Result<String> {
    ChatTemplate::parse(source, None, None)?.render(&Conversation::of_user(Some("s"), "u"))
}

#[track_caller]
fn refused(source: &str) -> String {
    render(source).unwrap_err().to_string()
}

#[test]
fn messages_of_a_prompt_are_as_expected() {
    let source =
        "{% for m in messages %}{{ m.role }}:{{ m['content'] }};{% endfor %}{{ bos_token is defined }}";
    assert_eq!(render(source).unwrap(), "system:s;user:u;False");
}

#[test]
fn templates_that_do_too_much_are_refused() {
    assert!(
        refused("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}")
            .contains("too")
    );
    assert!(refused("{% for i in range(1000000000) %}x{% endfor %}").contains("template fails"));
    assert!(refused("{{ 'x' * 1000000000 }}").contains("too much"));
    assert!(refused("{{ ('x' * 1000000) * 1000 }}").contains("too much"));
    let doubling =
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}";
    assert!(refused(doubling).contains("too much"));
    assert!(refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").contains("recursion"));
    assert!(refused("{% set ns = namespace(x=[]) %}{% for i in range(300) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}")
        .contains("levels"));
    assert!(refused("{{ messages|tojson(indent=1000000000) }}").contains("indents"));
    assert!(refused(&"{% if true %}".repeat(10_000)).contains("template fails"));
    assert!(
        refused(&format!("{{{{ {}1{} }}}}", "(".repeat(10_000), ")".repeat(10_000)))
            .contains("template fails")
    );
    assert!(refused(&"x".repeat(2 << 20)).contains("limit"));
}

#[test]
fn templates_that_fail_say_where() {
    assert_eq!(
        refused("\n{{ raise_exception('No tools here') }}"),
        "the chat template fails: No tools here (line 2)"
    );
    assert!(refused("{{ missing() }}").contains("missing"));
    assert!(refused("{{ messages.nothing.more }}").contains("template fails"));
    assert!(refused("{% for %}").contains("template fails"));
    assert!(refused("{{ 'a'.wrong() }}").contains("wrong"));
    assert!(refused("{% include 'other' %}").contains("template fails"));
    assert!(refused("{{ strftime_now('%Q') }}").contains("%Q"));
}

#[test]
fn the_date_is_there() {
    let found = render("{{ strftime_now('%Y-%m-%d') }}").unwrap();
    assert!(found.len() == 10 && found.starts_with("20"), "{found}");
}

#[test]
fn conversations_are_checked() {
    for bad in ["", "{}", "[]", "[1]", "[{}]", "[{\"role\": 1}]", "null", "\"text\""] {
        assert!(Conversation::from_json(bad).is_err(), "{bad}");
    }
    let deep = format!("[{{\"role\": \"user\", \"content\": {}1{}}}]", "[".repeat(1000), "]".repeat(1000));
    assert!(Conversation::from_json(&deep).is_err());
    let one = Conversation::of_user(None, "u");
    assert!(one.clone().with_tools("{").is_err());
    assert!(one.with_variables("[]").is_err());
}

#[test]
fn variables_do_not_hide_messages() {
    let template = ChatTemplate::parse("{{ messages|length }}{{ more }}", None, None).unwrap();
    let conversation =
        Conversation::of_user(None, "u").with_variables("{\"messages\": [], \"more\": 2}").unwrap();
    assert_eq!(template.render(&conversation).unwrap(), "12");
}
