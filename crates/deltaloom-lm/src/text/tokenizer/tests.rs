use super::*;
use serde_json::{Value, json};

fn small() -> Value {
    json!({
        "version": "1.0",
        "added_tokens": [added(3, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    })
}

fn added(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false})
}

fn parse(json: &Value) -> Result<Tokenizer> {
    Tokenizer::from_json(json.to_string().as_bytes(), 8)
}

/// The message with which a changed file is refused.
#[track_caller]
fn refused(change: impl FnOnce(&mut Value)) -> String {
    let mut json = small();
    change(&mut json);
    parse(&json).unwrap_err().to_string()
}

#[test]
fn merges_and_added_tokens_give_ids() {
    let tokenizer = parse(&small()).unwrap();
    assert_eq!(tokenizer.encode("abb</s>a", Special::Add).unwrap(), [2, 1, 3, 0]);
    assert_eq!(tokenizer.encode("", Special::Add).unwrap(), [0_u32; 0]);
    assert_eq!(tokenizer.pieces().ids(), 4);
    let mut pairs = small();
    pairs["model"]["merges"] = json!([["a", "b"]]);
    assert_eq!(parse(&pairs).unwrap().encode("ab", Special::Add).unwrap(), [2]);
}

#[test]
fn a_template_adds_tokens_if_wanted() {
    let mut json = small();
    json["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [3], "tokens": ["</s>"]}}});
    let tokenizer = parse(&json).unwrap();
    assert_eq!(tokenizer.encode("a", Special::Add).unwrap(), [3, 0]);
    assert_eq!(tokenizer.encode("a", Special::Omit).unwrap(), [0]);
    json["post_processor"]["special_tokens"] = json!({});
    assert!(parse(&json).is_err());
    json["post_processor"]["single"] = json!([]);
    assert!(parse(&json).is_err());
}

#[test]
fn padding_and_truncation_of_the_file_do_not_count() {
    let mut json = small();
    json["truncation"] =
        json!({"max_length": 1, "strategy": "LongestFirst", "stride": 5, "direction": "Right"});
    json["padding"] = json!({"strategy": {"Fixed": 1_000_000_000_000_u64}, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"});
    assert_eq!(parse(&json).unwrap().encode("abab", Special::Add).unwrap(), [2, 2]);
}

#[test]
fn what_is_no_tokenizer_is_refused() {
    for bytes in [&b""[..], b"{}", b"[]", b"{\"model\":{}}", b"\xff\xfe", b"{\"model\":{\"vocab\":3}}"] {
        assert!(Tokenizer::from_json(bytes, 8).is_err());
    }
    let deep = format!("{{\"normalizer\": {}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(Tokenizer::from_json(deep.as_bytes(), 8).is_err());
    assert!(Tokenizer::from_json(&vec![b' '; (64 << 20) + 1], 8).unwrap_err().to_string().contains("limit"));
}

#[test]
fn ids_must_have_a_row_and_be_unique() {
    assert!(refused(|json| json["model"]["vocab"]["c"] = json!(8)).contains("8 rows"));
    assert!(refused(|json| json["model"]["vocab"]["c"] = json!(1)).contains("two tokens"));
    assert!(refused(|json| json["model"]["vocab"]["c"] = json!(-1)).contains("not a tokenizer"));
    assert!(refused(|json| json["model"]["vocab"][""] = json!(4)).contains("empty"));
    assert!(refused(|json| json["added_tokens"][0]["id"] = json!(100)).contains("8 rows"));
    // The crate would give it another id.
    assert!(refused(|json| json["added_tokens"][0]["id"] = json!(6)).contains("cannot have id 6"));
    assert!(refused(|json| json["added_tokens"][0]["content"] = json!("x".repeat(5000))).contains("limit"));
}

#[test]
fn merges_must_make_longer_tokens() {
    assert!(refused(|json| json["model"]["merges"] = json!(["b a"])).contains("makes no token"));
    assert!(refused(|json| json["model"]["merges"] = json!(["a c"])).contains("makes no token"));
    assert!(refused(|json| json["model"]["merges"] = json!(["a"])).contains("not a merge"));
    assert!(refused(|json| json["model"]["merges"] = json!([["a", ""]])).contains("makes no token"));
    assert!(refused(|json| json["model"]["merges"] = json!("a b")).contains("not a tokenizer"));
    assert!(
        refused(|json| drop(json["model"].as_object_mut().unwrap().remove("merges")))
            .contains("without merges")
    );
    // The crate would slice by the length of the prefix.
    assert!(
        refused(|json| json["model"]["continuing_subword_prefix"] = json!("####")).contains("makes no token")
    );
    assert!(refused(|json| json["model"]["dropout"] = json!(0.5)).contains("at random"));
}

#[test]
fn parts_must_be_known_and_few() {
    assert!(refused(|json| json["model"]["type"] = json!("WordPiece")).contains("\"WordPiece\""));
    assert!(
        refused(|json| json["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AA"}))
            .contains("\"Precompiled\"")
    );
    assert!(
        refused(|json| json["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0}))
            .contains("FixedLength")
    );
    assert!(refused(|json| json["decoder"] = json!(null)).contains("missing"));
    assert!(refused(|json| json["decoder"] = json!({"type": "CTC"})).contains("CTC"));
    let doubling = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    assert!(
        refused(|json| {
            json["normalizer"] = json!({"type": "Sequence", "normalizers": vec![doubling; 40]});
        })
        .contains("growth")
    );
    let many = vec![json!({"type": "NFC"}); 65];
    assert!(
        refused(|json| json["normalizer"] = json!({"type": "Sequence", "normalizers": many}))
            .contains("limit")
    );
    let regex = json!({"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": false});
    assert!(refused(|json| json["pre_tokenizer"] = regex).contains("not a tokenizer"));
}

#[test]
fn a_pattern_that_backtracks_ends() {
    let mut json = small();
    json["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "(a+)+(?=c)"}, "behavior": "Isolated",
        "invert": false});
    let tokenizer = parse(&json).unwrap();
    assert_eq!(tokenizer.encode(&"a".repeat(64), Special::Add).unwrap().len(), 64);
}

#[test]
fn unigram_scores_are_checked() {
    let unigram = |vocab: Value, unknown: Value| {
        parse(&json!({
            "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always"},
            "decoder": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always"},
            "model": {"type": "Unigram", "unk_id": unknown, "vocab": vocab},
        }))
    };
    let vocab = json!([["<unk>", 0.0], ["\u{2581}a", -1.0], ["b", -2.0], ["\u{2581}", -3.0]]);
    let tokenizer = unigram(vocab.clone(), json!(0)).unwrap();
    let ids = tokenizer.encode("ab a", Special::Add).unwrap();
    assert_eq!(ids, [1, 2, 1]);
    assert_eq!(tokenizer.pieces().text(&ids, true), "ab a");
    assert!(unigram(vocab.clone(), json!(4)).is_err());
    assert!(unigram(json!([["a", 0.0], ["a", 1.0]]), json!(0)).is_err());
    assert!(unigram(json!([["", 0.0]]), json!(0)).is_err());
    // Without a token for what is unknown, such a text is an error and not a panic.
    assert!(unigram(vocab, Value::Null).unwrap().encode("x", Special::Add).is_err());
}

#[test]
fn ends_are_given_as_id_list_or_text() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, json: Value| std::fs::write(folder.path().join(name), json.to_string()).unwrap();
    let end = || Ok::<_, Error>(Tokenizer::open(folder.path(), 8)?.special().end.clone());
    assert!(end().unwrap_err().to_string().contains("no such file"));
    write("tokenizer.json", small());
    assert_eq!(end().unwrap(), [0_u32; 0]);
    write("config.json", json!({"eos_token_id": 1}));
    assert_eq!(end().unwrap(), [1]);
    write("generation_config.json", json!({"eos_token_id": [3, 0, 3], "bos_token_id": 2}));
    assert_eq!(end().unwrap(), [0, 3]);
    write("generation_config.json", json!({"eos_token_id": "</s>"}));
    assert_eq!(end().unwrap(), [3]);
    write(
        "tokenizer_config.json",
        json!({"eos_token": {"content": "ab"}, "bos_token": "a", "chat_template": "T"}),
    );
    assert_eq!(end().unwrap(), [2, 3]);
    let tokenizer = Tokenizer::open(folder.path(), 8).unwrap();
    assert_eq!(tokenizer.special().begin, Some(0));
    assert_eq!(tokenizer.special().chat_template.as_deref(), Some("T"));
    // A fine-tune may have a template of its own, and the other files of the base.
    let own =
        |name: &str, _| Ok((name == "tokenizer_config.json").then(|| br#"{"chat_template": "U"}"#.to_vec()));
    let tuned = Tokenizer::open_with(folder.path(), 8, &own).unwrap();
    assert_eq!(tuned.special().chat_template.as_deref(), Some("U"));
    assert_eq!(tuned.special().end, [3]);
    let too_long = |_: &str, limit| Err(Limits::check("bytes of a file", u64::MAX, limit).unwrap_err());
    assert!(Tokenizer::open_with(folder.path(), 8, &too_long).is_err());
    for bad in [json!(9), json!(-1), json!("x"), json!(1.5), json!([[]]), json!(vec![0; 100])] {
        write("generation_config.json", json!({"eos_token_id": bad}));
        assert!(end().is_err(), "{bad}");
    }
    std::fs::write(folder.path().join("generation_config.json"), b"{").unwrap();
    assert!(end().is_err());
}

#[test]
fn texts_that_are_too_long_are_refused() {
    let tokenizer = parse(&small()).unwrap();
    assert!(
        tokenizer
            .encode(&"a".repeat((64 << 20) + 1), Special::Add)
            .unwrap_err()
            .to_string()
            .contains("limit")
    );
}
