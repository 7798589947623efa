//! Containers that are broken, and models that compute what is no number: an error for those who
//! asked for it, and the same bits for everybody else.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../deltaloom/tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};

use common::*;
use deltaloom::{Container, Error, Limits, Result};
use deltaloom_compute::{Form, Run};
use deltaloom_lm::evaluate::{Student, compare};
use deltaloom_lm::generate::{Request, generate};
use deltaloom_lm::layer::{MemoryOptions, TenantId};
use deltaloom_lm::model::{Chunk, Model, PerplexityOptions, perplexity};
use deltaloom_lm::sample::Sampling;
use deltaloom_lm::tenancy::{FamilyOptions, Forms};
use deltaloom_lm::text::Tokenizer;

/// Ids of the tiny models.
const ROWS: usize = 96;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/assets/tiny/qwen2")
}

fn base() -> Vec<u8> {
    std::fs::read(folder().join("model.safetensors")).unwrap()
}

fn open(options: FamilyOptions) -> Model {
    let config = std::fs::read_to_string(folder().join("config.json")).unwrap();
    Model::of_checkpoint(Path::new("model"), checkpoint(&base()).unwrap(), &config, options).unwrap()
}

/// The base with other bytes in the tensors whose names contain `part`.
fn changed(part: &str, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let bytes = base();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names = file.names();
    names.sort_unstable();
    let one = |name: &str| {
        let view = file.tensor(name).unwrap();
        let shape: Vec<u64> = view.shape().iter().map(|size| *size as u64).collect();
        let mut bytes = view.data().to_vec();
        if name.contains(part) {
            change(&mut bytes);
        }
        tensor(name, "BF16", &shape, bytes)
    };
    common::safetensors(&names.into_iter().map(one).collect::<Vec<_>>())
}

fn packed(tuned: &[u8]) -> Vec<u8> {
    pack(tuned, &[&base()]).0
}

fn admit(model: &mut Model, bytes: Vec<u8>) -> Result<TenantId> {
    let container = Container::from_source(Path::new("tenant"), Box::new(bytes), &Limits::default())?;
    let prepared = model.prepare(container)?;
    model.admit(prepared)
}

fn ids() -> Vec<u32> {
    (0..40).map(|i| i * i % 96).collect()
}

/// Bits of the logits of the last token of these sequences, in one batch.
fn logits(model: &mut Model, tenants: &[TenantId]) -> Result<Vec<Vec<u32>>> {
    let (ids, run) = (ids(), Run::default());
    let mut memory = model.memory(MemoryOptions::default());
    let sequences: Vec<_> = tenants.iter().map(|tenant| memory.begin(*tenant)).collect();
    let chunks: Vec<_> = sequences.iter().map(|it| Chunk { sequence: *it, tokens: &ids }).collect();
    let hidden = model.forward(&mut memory, &chunks, &run)?;
    let last: Vec<usize> = (1..=tenants.len()).map(|count| count * ids.len() - 1).collect();
    let bits: Vec<u32> = hidden.logits(&last, &run)?.into_iter().map(f32::to_bits).collect();
    Ok(bits.chunks(ROWS).map(<[u32]>::to_vec).collect())
}

/// Printable ASCII: id 0 is a space, and the last id is `<end>`.
fn tokenizer() -> Tokenizer {
    let letters = (b' '..=b'~').map(|byte| if byte == b' ' { 'Ġ' } else { char::from(byte) }).zip(0..);
    let vocab: serde_json::Map<String, serde_json::Value> =
        letters.map(|(letter, id): (char, u32)| (letter.to_string(), id.into())).collect();
    let json = serde_json::json!({
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    Tokenizer::from_json(json.to_string().as_bytes(), ROWS).unwrap()
}

fn told<T>(found: Result<T>, words: &str) {
    match found {
        Err(Error::InvalidArgument(what)) => assert!(what.contains(words), "{what}, not {words}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused: {words}"),
    }
}

#[test]
fn what_is_no_number_in_a_tenant_is_an_error_of_its_own() {
    let nan = half::bf16::NAN.to_le_bytes();
    let infinite = half::bf16::INFINITY.to_le_bytes();
    let cases = [
        ("layers.1.mlp.down_proj", nan),
        ("layers.0.self_attn.k_proj.weight", infinite),
        ("layers.2.input_layernorm", nan),
        ("embed_tokens", nan),
        ("model.norm", infinite),
    ];
    let expected = logits(&mut open(FamilyOptions::default()), &[Model::BASE]).unwrap().remove(0);
    let healthy = packed(&changed("up_proj", |bytes| bytes[0] ^= 1));
    let broken =
        |(part, number): (&str, [u8; 2])| packed(&changed(part, |bytes| bytes[..2].copy_from_slice(&number)));
    for case in cases {
        for forms in Form::ALL.map(Forms::All).into_iter().chain([Forms::ByShare]) {
            let mut model = open(FamilyOptions::default().with_forms(forms));
            let neighbour = admit(&mut model, healthy.clone()).unwrap();
            let alone = logits(&mut model, &[neighbour]).unwrap().remove(0);
            let tenant = admit(&mut model, broken(case)).unwrap();
            let found = logits(&mut model, &[Model::BASE, tenant, neighbour, tenant]).unwrap();
            assert_eq!((&found[0], &found[2]), (&expected, &alone), "{case:?} {forms:?}");
            let is_number = |bits: &u32| f32::from_bits(*bits).is_finite();
            assert!(!found[1].iter().all(is_number), "{case:?} {forms:?}");
        }
        let mut model = open(FamilyOptions::default());
        let tenant = admit(&mut model, broken(case)).unwrap();
        let (ids, run, memory) = (ids(), Run::default(), MemoryOptions::default());
        let pieces = tokenizer();
        let each = |_: deltaloom_lm::generate::Event<'_>| Ok(true);
        let found = generate(&mut model, tenant, pieces.pieces(), Request::new(&ids, 4), &run, each);
        told(found, "the model computed");
        let options = PerplexityOptions::new(40);
        told(perplexity(&mut model, tenant, &ids, &options, &run, |_| Ok(())), "the model computed");
        told(
            compare(&mut model, Student::Tenant(tenant), &ids, 40, memory, &run, |_| Ok(())),
            "the model computed",
        );
        assert_eq!(logits(&mut model, &[Model::BASE]).unwrap()[0], expected);
    }
}

#[test]
fn equal_logits_are_the_first_id_and_no_possible_id_is_an_error() {
    let mut model = open(FamilyOptions::default());
    let flat = admit(&mut model, packed(&changed("embed_tokens", |bytes| bytes.fill(0)))).unwrap();
    assert!(logits(&mut model, &[flat]).unwrap()[0].iter().all(|bits| f32::from_bits(*bits) == 0.0));
    let (ids, run, tokenizer) = (ids(), Run::default(), tokenizer());
    let mut text = |tenant: TenantId, sampling: Sampling| {
        let request = Request::new(&ids, 5).with_sampling(sampling);
        generate(&mut model, tenant, tokenizer.pieces(), request, &run, |_| Ok(true)).map(|found| found.ids)
    };
    assert_eq!(text(flat, Sampling::default()).unwrap(), [0; 5]);
    let drawn = text(flat, Sampling { temperature: 1.0, seed: 3, ..Sampling::default() }).unwrap();
    assert!(drawn.len() == 5 && drawn.iter().any(|id| *id != drawn[0]), "{drawn:?}");
    let logit_bias: Vec<(u32, f32)> = (0..).take(ROWS).map(|id| (id, f32::NEG_INFINITY)).collect();
    let but_one = Sampling { logit_bias: logit_bias[1..].to_vec(), ..Sampling::default() };
    assert_eq!(text(Model::BASE, but_one).unwrap(), [0; 5]);
    for temperature in [0.0, 1.0] {
        let none = Sampling { logit_bias: logit_bias.clone(), temperature, ..Sampling::default() };
        told(text(Model::BASE, none), "no token is possible");
    }
    let options = PerplexityOptions::new(40);
    let found = perplexity(&mut model, flat, &ids, &options, &run, |_| Ok(())).unwrap();
    assert!((found.loss - 96_f64.ln()).abs() < 1e-6, "{}", found.loss);
}

#[test]
fn broken_containers_are_errors_and_never_other_numbers() {
    let good = packed(&changed("proj", |bytes| bytes.iter_mut().step_by(14).for_each(|byte| *byte ^= 1)));
    let right = {
        let mut model = open(FamilyOptions::default());
        let tenant = admit(&mut model, good.clone()).unwrap();
        logits(&mut model, &[tenant]).unwrap()
    };
    for end in (0..good.len()).step_by(good.len() / 40) {
        let mut model = open(FamilyOptions::default());
        let found = admit(&mut model, good[..end].to_vec()).and_then(|tenant| logits(&mut model, &[tenant]));
        assert!(found.is_err(), "{end} of {} bytes", good.len());
    }
    let mut refused = 0;
    for at in (0..good.len()).step_by(good.len() / 150) {
        for budget in [u64::MAX, 0] {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            let mut model = open(FamilyOptions::default().with_budget(budget));
            match admit(&mut model, bytes).and_then(|tenant| logits(&mut model, &[tenant])) {
                Ok(found) => assert!(found == right, "byte {at} with a budget of {budget}"),
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 100, "{refused}");
}
