use super::*;
use crate::text::{Special, Tokenizer};
use proptest::prelude::*;

/// A byte-level tokenizer without merges, or one with pieces of text and single bytes.
fn tokenizer(byte_level: bool, decoder: Value) -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    if byte_level {
        for (place, byte) in byte_level_chars() {
            vocab.insert(place.to_string(), Value::from(byte));
        }
    } else {
        for byte in 0..=255 {
            vocab.insert(format!("<0x{byte:02X}>"), Value::from(byte));
        }
        for (piece, id) in ["\u{2581}", "h", "i", "\u{2581}hi", "ü"].into_iter().zip(256..) {
            vocab.insert(piece.to_owned(), Value::from(id));
        }
    }
    let normalizer =
        serde_json::json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let json = serde_json::json!({
        "added_tokens": [
            {"id": 300, "content": "<|end|>", "special": true, "single_word": false, "lstrip": false,
             "rstrip": false, "normalized": false},
        ],
        "normalizer": if byte_level { Value::Null } else { normalizer },
        "pre_tokenizer": if byte_level {
            serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true})
        } else { Value::Null },
        "decoder": decoder,
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": !byte_level},
    });
    // Added tokens get the next free id, so the vocabulary is filled up to it.
    let mut json = json;
    let size = json["model"]["vocab"].as_object().unwrap().len();
    json["added_tokens"][0]["id"] = Value::from(size);
    Tokenizer::from_json(json.to_string().as_bytes(), size + 1).unwrap()
}

fn byte_level_chars() -> Vec<(char, u8)> {
    let table = byte_level();
    (0..).zip(table).filter_map(|(c, byte)| Some((char::from_u32(c)?, byte?))).collect()
}

fn byte_level_decoder() -> Value {
    serde_json::json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true})
}

fn fallback_decoder() -> Value {
    serde_json::json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]})
}

fn streamed(pieces: &Pieces, ids: &[u32], position: Position) -> Vec<String> {
    let mut stream = Detokenizer::new(position, true);
    let mut texts: Vec<String> = ids
        .iter()
        .map(|id| {
            let mut text = String::new();
            stream.push(pieces, *id, &mut text);
            text
        })
        .collect();
    let mut last = String::new();
    stream.finish(&mut last);
    texts.push(last);
    texts
}

#[test]
fn every_byte_has_a_character() {
    let chars = byte_level_chars();
    assert_eq!(chars.len(), 256);
    let of = |byte: u8| chars.iter().find(|(_, other)| *other == byte).unwrap().0;
    // As GPT-2 has them.
    assert_eq!([of(b' '), of(b'\n'), of(b'a'), of(0), of(0xad), of(0xff)], ['Ġ', 'Ċ', 'a', 'Ā', 'Ń', 'ÿ']);
}

#[test]
fn a_character_is_held_back_until_it_is_complete() {
    let tokenizer = tokenizer(true, byte_level_decoder());
    let ids = tokenizer.encode("a€", Special::Add).unwrap();
    assert_eq!(streamed(tokenizer.pieces(), &ids, Position::Start), ["a", "", "", "€", ""]);
    // Cut in the middle, and followed by another character.
    let cut = [ids[1], ids[2], ids[0], ids[1]];
    assert_eq!(streamed(tokenizer.pieces(), &cut, Position::Start), ["", "", "\u{fffd}a", "", "\u{fffd}"]);
}

#[test]
fn special_tokens_give_text_only_if_wanted() {
    let tokenizer = tokenizer(true, byte_level_decoder());
    let ids = tokenizer.encode("a<|end|>b", Special::Omit).unwrap();
    assert_eq!(ids.len(), 3);
    assert!(tokenizer.pieces().is_special(ids[1]));
    assert_eq!(tokenizer.pieces().text(&ids, false), "a<|end|>b");
    assert_eq!(tokenizer.pieces().text(&ids, true), "ab");
    assert_eq!(tokenizer.pieces().bytes(1_000_000), b"");
    assert!(!tokenizer.pieces().has(1_000_000));
}

#[test]
fn one_space_is_left_out_at_the_start_only() {
    let tokenizer = tokenizer(false, fallback_decoder());
    let ids = tokenizer.encode("  hi hi", Special::Add).unwrap();
    assert_eq!(tokenizer.pieces().text(&ids, true), " hi hi");
    assert_eq!(streamed(tokenizer.pieces(), &ids, Position::After).concat(), "  hi hi");
    let byte = tokenizer.id_of("<0x41>").unwrap();
    assert_eq!(tokenizer.pieces().bytes(byte), b"A");
}

#[test]
fn metaspace_leaves_out_the_spaces_of_the_first_token() {
    let decoder =
        serde_json::json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always"});
    let tokenizer = tokenizer(false, decoder);
    let hi = tokenizer.id_of("\u{2581}hi").unwrap();
    assert_eq!(tokenizer.pieces().text(&[hi, hi], true), "hi hi");
    assert_eq!(streamed(tokenizer.pieces(), &[hi, hi], Position::After).concat(), " hi hi");
}

#[test]
fn unknown_decoders_are_refused() {
    let refused = |decoder: Value| {
        let list = [decoder["type"].as_str().map(|kind| (kind, &decoder)).unwrap()];
        Decoding::from_parts(&list).unwrap_err().to_string()
    };
    assert!(refused(serde_json::json!({"type": "CTC"})).contains("\"CTC\""));
    assert!(
        refused(serde_json::json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}))
            .contains("Strip")
    );
    let pattern = serde_json::json!({"type": "Replace", "pattern": {"Regex": "a"}, "content": "b"});
    assert!(refused(pattern).contains("Replace"));
    assert!(Decoding::from_parts(&[]).is_err());
}

proptest! {
    #[test]
    fn any_ids_give_the_text_of_their_bytes(ids in proptest::collection::vec(0_u32..256, 0..40)) {
        for byte_level in [true, false] {
            let decoder = if byte_level { byte_level_decoder() } else { fallback_decoder() };
            let tokenizer = tokenizer(byte_level, decoder);
            let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.pieces().bytes(*id).to_vec()).collect();
            prop_assert_eq!(
                streamed(tokenizer.pieces(), &ids, Position::After).concat(),
                String::from_utf8_lossy(&bytes).into_owned()
            );
        }
    }

    #[test]
    fn encoding_then_decoding_gives_the_text(text in "\\PC{0,40}") {
        for byte_level in [true, false] {
            let decoder = if byte_level { byte_level_decoder() } else { fallback_decoder() };
            let tokenizer = tokenizer(byte_level, decoder);
            let ids = tokenizer.encode(&text, Special::Omit).unwrap();
            let text = if byte_level { text.clone() } else { text.replace('\u{2581}', " ") };
            prop_assert_eq!(streamed(tokenizer.pieces(), &ids, Position::After).concat(), text);
        }
    }
}
