//! Text from a model, and measures of it, on a tiny random model whose tokens are single
//! characters.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

use deltaloom::Error;
use deltaloom_compute::Run;
use deltaloom_lm::evaluate::{Item, Student, compare, score_choices};
use deltaloom_lm::generate::{Event, Finish, Generated, Request, generate};
use deltaloom_lm::layer::MemoryOptions;
use deltaloom_lm::model::{Chunk, Model};
use deltaloom_lm::sample::{LogProbs, Sampling};
use deltaloom_lm::tenancy::FamilyOptions;
use deltaloom_lm::text::{Special, Stop, Tokenizer};

/// Ids of the tiny models, and their positions.
const ROWS: usize = 96;
const POSITIONS: usize = 64;

fn open() -> Model {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/assets/tiny/qwen2");
    Model::open(&folder, FamilyOptions::default()).unwrap()
}

/// Printable ASCII: id 0 is a space, and the last id is `<end>`.
fn tokenizer() -> Tokenizer {
    let vocab: serde_json::Map<String, serde_json::Value> = (b' '..=b'~')
        .map(|byte| if byte == b' ' { 'Ġ' } else { char::from(byte) })
        .zip(0..)
        .map(|(letter, id)| (letter.to_string(), id.into()))
        .collect();
    let json = serde_json::json!({
        "added_tokens": [{"id": 95, "content": "<end>", "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    Tokenizer::from_json(json.to_string().as_bytes(), ROWS).unwrap()
}

/// Runs a request, and checks that the events make up the text.
fn run(model: &mut Model, tokenizer: &Tokenizer, request: Request<'_>) -> Generated {
    let mut text = String::new();
    let each = |event: Event<'_>| {
        if let Event::Token(part) | Event::Rest(part) = event {
            text.push_str(part);
        }
        Ok(true)
    };
    let found = generate(model, Model::BASE, tokenizer.pieces(), request, &Run::default(), each).unwrap();
    assert_eq!(found.text, text);
    found
}

/// The most probable continuation, each token from a run over everything before it.
fn greedy(model: &mut Model, prompt: &[u32], count: usize) -> Vec<u32> {
    let run = Run::default();
    let mut ids = prompt.to_vec();
    for _ in 0..count {
        let mut memory = model.memory(MemoryOptions::default());
        let sequence = memory.begin(Model::BASE);
        let hidden = model.forward(&mut memory, &[Chunk { sequence, tokens: &ids }], &run).unwrap();
        let logits = hidden.logits(&[ids.len() - 1], &run).unwrap();
        ids.push(LogProbs::new(&logits).unwrap().best());
    }
    ids.split_off(prompt.len())
}

#[test]
fn a_text_grows_by_the_most_probable_tokens() {
    let (mut model, tokenizer) = (open(), tokenizer());
    let prompt = tokenizer.encode("Once upon", Special::Add).unwrap();
    let found = run(&mut model, &tokenizer, Request::new(&prompt, 20));
    assert_eq!(found.ids, greedy(&mut model, &prompt, 20));
    assert_eq!(found.finish, Finish::Length);
    assert_eq!(found.text, tokenizer.pieces().text(&found.ids, true));
}

#[test]
fn seeds_select_texts() {
    let (mut model, tokenizer) = (open(), tokenizer());
    let prompt = tokenizer.encode("Once upon", Special::Add).unwrap();
    let mut draw = |seed| {
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
        run(&mut model, &tokenizer, Request::new(&prompt, 20).with_sampling(sampling)).ids
    };
    let first = draw(1);
    assert_eq!(first, draw(1));
    assert_ne!(first, draw(2));
}

#[test]
fn texts_end_at_ids_strings_and_the_context() {
    let (mut model, tokenizer) = (open(), tokenizer());
    let prompt = tokenizer.encode("Once upon", Special::Add).unwrap();
    let sampling = || Sampling { temperature: 1.5, seed: 5, ..Sampling::default() };
    let whole = run(&mut model, &tokenizer, Request::new(&prompt, 1000).with_sampling(sampling()));
    assert_eq!((whole.finish, whole.ids.len()), (Finish::Context, POSITIONS - prompt.len()));
    // At the first place of its tenth id.
    let last = whole.ids[9];
    let place = whole.ids.iter().position(|id| *id == last).unwrap();
    let stop = Stop::new(vec![last], Vec::new()).unwrap();
    let ended =
        run(&mut model, &tokenizer, Request::new(&prompt, 1000).with_sampling(sampling()).with_stop(stop));
    assert_eq!((ended.finish, &ended.ids[..]), (Finish::Stop, &whole.ids[..place]));
    // Three characters are three tokens.
    let string = whole.text[6..9].to_owned();
    let place = whole.text.find(&string).unwrap();
    let stop = Stop::new(Vec::new(), vec![string]).unwrap();
    let ended =
        run(&mut model, &tokenizer, Request::new(&prompt, 1000).with_sampling(sampling()).with_stop(stop));
    assert_eq!((ended.finish, ended.text.as_str()), (Finish::Stop, &whole.text[..place]));
}

#[test]
fn the_caller_may_stop() {
    let (mut model, tokenizer) = (open(), tokenizer());
    let prompt = tokenizer.encode("Once upon", Special::Add).unwrap();
    let mut tokens = 0;
    let each = |event: Event<'_>| {
        tokens += usize::from(matches!(event, Event::Token(_)));
        Ok(tokens < 3)
    };
    let request = Request::new(&prompt, 20);
    let found =
        generate(&mut model, Model::BASE, tokenizer.pieces(), request, &Run::default(), each).unwrap();
    assert_eq!((found.finish, found.ids.len()), (Finish::Cancelled, 3));
    let fails = |_: Event<'_>| Err(Error::Cancelled);
    let request = Request::new(&prompt, 20);
    let found = generate(&mut model, Model::BASE, tokenizer.pieces(), request, &Run::default(), fails);
    assert!(matches!(found, Err(Error::Cancelled)));
}

#[test]
fn prompts_must_fit() {
    let (mut model, tokenizer) = (open(), tokenizer());
    let mut refused = |prompt: &[u32]| {
        let request = Request::new(prompt, 1);
        let found =
            generate(&mut model, Model::BASE, tokenizer.pieces(), request, &Run::default(), |_| Ok(true));
        found.unwrap_err().to_string()
    };
    assert!(refused(&[]).contains("0 tokens"));
    assert!(refused(&[1; POSITIONS + 1]).contains("from 1 to 64"));
    assert!(refused(&[96]).contains("vocabulary"));
}

#[test]
fn a_model_has_no_divergence_from_itself() {
    let mut model = open();
    let ids: Vec<u32> = (0..50).map(|i| i * i % 96).collect();
    let (memory, run) = (MemoryOptions::default(), Run::default());
    let mut same = open();
    let [itself, other] = [Student::Tenant(Model::BASE), Student::Other(&mut same, Model::BASE)]
        .map(|student| compare(&mut model, student, &ids, 20, memory, &run, |_| Ok(())).unwrap());
    let report = itself.report().unwrap();
    assert_eq!((report.mean_kl, report.kl.maximum, report.tokens), (0.0, 0.0, 47));
    assert_eq!((report.same_top.value, report.log_perplexity_ratio), (1.0, 0.0));
    assert_eq!((report.reverse_kl, report.top5_overlap), (0.0, 1.0));
    assert_eq!(other.report().unwrap(), report);
    for (ids, window) in [(&ids[..1], 20), (&ids[..], 1)] {
        let itself = Student::Tenant(Model::BASE);
        assert!(compare(&mut model, itself, ids, window, memory, &run, |_| Ok(())).is_err());
    }
}

#[test]
fn choices_are_scored_by_their_tokens() {
    let (mut model, tokenizer) = (open(), tokenizer());
    let item = |context: &str, choices: &[&str]| Item {
        context: context.to_owned(),
        choices: choices.iter().map(|choice| (*choice).to_owned()).collect(),
        right: 0,
        group: String::new(),
    };
    let (memory, run) = (MemoryOptions::default(), Run::default());
    let mut score = |item: &Item| score_choices(&mut model, Model::BASE, &tokenizer, item, memory, &run);
    let both = score(&item("The sky is", &[" blue", " red"])).unwrap();
    // Alone, and letter by letter.
    assert_eq!(score(&item("The sky is", &[" red"])).unwrap(), both[1..]);
    let letters = ["", " ", " r", " re"].iter().zip([" ", "r", "e", "d"]);
    let sum: f64 =
        letters.map(|(start, next)| score(&item(&format!("The sky is{start}"), &[next])).unwrap()[0]).sum();
    assert!((sum - both[1]).abs() < 1e-9);
    assert!(score(&item("The sky is", &[""])).is_err());
    assert!(score(&item(&"x".repeat(POSITIONS), &["yy"])).is_err());
    assert!(score(&item("", &["yy"])).unwrap()[0] < 0.0);
}
