//! A layer on packed weights has the bits of the dense layer, for every parameter, form, number of
//! tokens, number of threads and instruction set.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

#[path = "../../deltaloom/tests/common/mod.rs"]
mod common;

use std::sync::Arc;

use common::{Random, bf16_bytes, checkpoint, safetensors, stepped, tensor};
use deltaloom::{Error, Silent};
use deltaloom_compute::{Choice, Form, Mode, Run};
use deltaloom_kernels::isa::{Isa, isa, lower_to};
use deltaloom_lab::layer::{LayerCase, LayerOptions, run};
use deltaloom_lab::reference::{self, Layer, ReferenceCase};
use deltaloom_lm::layer::{Batch, LayerHints, LayerWeights, MatrixRole, PackedLayer, TenantId, forward};

const TOKENS: [usize; 4] = [1, 3, 8, 17];

fn activations(tokens: usize, width: usize) -> Vec<f32> {
    let mut random = Random::new(5);
    (0..tokens * width).map(|_| random.normal()).collect()
}

fn compute(layer: &PackedLayer, tokens: usize, mode: Mode) -> Vec<f32> {
    let x = activations(tokens, layer.config().width);
    forward(layer.config(), layer, &Batch::of_one(tokens), &x, &Run::new(mode)).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    length(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b)))
        / length(&mut expected.iter().map(|x| f64::from(*x)))
}

/// The reference layer and a fine-tune of it.
fn reference_pair() -> (Layer, Layer) {
    let case = ReferenceCase::default();
    let base = case.base();
    let tuned = case.tuned(&base, 0).unwrap();
    (base, tuned)
}

fn reference_case(base: &Layer, tuned: &Layer) -> LayerCase {
    let heads = usize::try_from(reference::HEADS).ok();
    let hints = LayerHints::default().with_heads(heads);
    LayerCase::new(&base.to_checkpoint().unwrap(), &tuned.to_checkpoint().unwrap(), &hints, &Silent).unwrap()
}

/// Compares every form of a layer with the fine-tune's own weights, on every instruction set and
/// with one and two threads.
fn assert_exact(name: &str, layers: &[(Form, PackedLayer)], expected: &[Vec<u32>]) {
    for (form, layer) in layers {
        for (tokens, expected) in TOKENS.iter().zip(expected) {
            let found = compute(layer, *tokens, Mode::Exact);
            assert!(bits(&found) == *expected, "{name} {form:?} {tokens} tokens on {:?}", isa());
        }
    }
}

#[test]
fn every_parameter_alone_and_all_together_have_the_bits_of_the_dense_layer() {
    let (base, tuned) = reference_pair();
    let mut variants = vec![("all".to_owned(), tuned.clone())];
    for (i, parameter) in tuned.parameters.iter().enumerate() {
        let mut variant = base.clone();
        variant.parameters[i] = parameter.clone();
        variants.push((parameter.name.to_owned(), variant));
    }
    assert_eq!(variants.len(), 13);
    let untouched = compute(&reference_case(&base, &base).dense().unwrap(), 17, Mode::Exact);
    let mut cases = Vec::new();
    for (name, variant) in variants {
        let case = reference_case(&base, &variant);
        let dense = case.dense().unwrap();
        let expected: Vec<Vec<u32>> =
            TOKENS.iter().map(|tokens| bits(&compute(&dense, *tokens, Mode::Exact))).collect();
        assert_ne!(expected[3], bits(&untouched), "{name} changes nothing");
        let layers: Vec<(Form, PackedLayer)> =
            Form::ALL.iter().map(|form| (*form, case.open(Choice::Form(*form)).unwrap())).collect();
        for (form, layer) in &layers {
            let error = relative_error(&compute(layer, 33, Mode::Fast), &compute(&dense, 33, Mode::Exact));
            assert!(error < 1e-5, "{name} {form:?}: {error}");
        }
        cases.push((name, layers, expected));
    }
    let before = isa();
    for set in Isa::available() {
        lower_to(set);
        for threads in [1, 2] {
            let all = || {
                cases.iter().for_each(|(name, layers, expected)| assert_exact(name, layers, expected));
                Ok(())
            };
            deltaloom::with_threads(threads, all).unwrap();
        }
    }
    lower_to(before);
}

const CONFIG: &str =
    r#"{"model_type": "llama", "num_attention_heads": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}"#;

/// A small layer of LLaMA's shape in BF16; element i is `step(i)` ULPs further.
fn llama(mut step: impl FnMut(usize) -> i64) -> Vec<u8> {
    let shapes: [(&str, &[u64]); 9] = [
        ("input_layernorm.weight", &[48]),
        ("mlp.down_proj.weight", &[48, 130]),
        ("mlp.gate_proj.weight", &[130, 48]),
        ("mlp.up_proj.weight", &[130, 48]),
        ("post_attention_layernorm.weight", &[48]),
        ("self_attn.k_proj.weight", &[16, 48]),
        ("self_attn.o_proj.weight", &[48, 48]),
        ("self_attn.q_proj.weight", &[48, 48]),
        ("self_attn.v_proj.weight", &[16, 48]),
    ];
    let mut random = Random::new(3);
    let mut one = |(name, shape): &(&str, &[u64])| {
        let count = usize::try_from(shape.iter().product::<u64>()).unwrap();
        let about = if shape.len() == 1 { 1.0 } else { 0.0 };
        let values: Vec<f32> = random.weights(count).iter().map(|x| about + 5.0 * x).collect();
        let bytes = stepped(&bf16_bytes(&values), 2, &mut step);
        tensor(&format!("model.layers.4.{name}"), "BF16", shape, bytes)
    };
    safetensors(&shapes.iter().map(&mut one).collect::<Vec<_>>())
}

fn llama_case(tuned: &[u8]) -> LayerCase {
    let hints = LayerHints::default().with_layer(4).with_config(Some(CONFIG));
    let base = llama(|_| 0);
    LayerCase::new(&checkpoint(&base).unwrap(), &checkpoint(tuned).unwrap(), &hints, &Silent).unwrap()
}

#[test]
fn a_llama_layer_in_bf16_has_the_bits_of_the_dense_one() {
    let mut random = Random::new(8);
    let case = llama_case(&llama(|_| if random.below(8) == 0 { random.around_zero(3) } else { 0 }));
    let dense = case.dense().unwrap();
    let expected: Vec<Vec<u32>> =
        TOKENS.iter().map(|tokens| bits(&compute(&dense, *tokens, Mode::Exact))).collect();
    let mut layers: Vec<(Form, PackedLayer)> =
        Form::ALL.iter().map(|form| (*form, case.open(Choice::Form(*form)).unwrap())).collect();
    layers.push((Form::Base, case.open(Choice::Budget(60_000)).unwrap()));
    assert_exact("llama", &layers, &expected);
    let budget = &layers[5].1;
    assert!(budget.resident_bytes() <= 60_000, "{}", budget.resident_bytes());
    for (form, layer) in &layers {
        let error = relative_error(&compute(layer, 8, Mode::Fast), &compute(&dense, 8, Mode::Exact));
        assert!(error < 1e-5, "{form:?}: {error}");
    }
    assert!(matches!(case.open(Choice::Budget(100)), Err(Error::LimitExceeded { .. })));
}

#[test]
fn a_layer_that_is_its_base_takes_no_memory() {
    let case = llama_case(&llama(|_| 0));
    for form in [Form::Planes, Form::Bitmap, Form::Csr] {
        let layer = case.open(Choice::Form(form)).unwrap();
        assert_eq!(layer.resident_bytes(), 0);
        assert_eq!(layer.matrix(MatrixRole::Up).unwrap().form(), Form::Base);
        assert_eq!(
            bits(&compute(&layer, 3, Mode::Fast)),
            bits(&compute(&case.dense().unwrap(), 3, Mode::Fast))
        );
    }
}

#[test]
fn one_fine_tune_has_one_tenant() {
    let (base, tuned) = reference_pair();
    let layer = reference_case(&base, &tuned).open(Choice::Form(Form::Planes)).unwrap();
    let sequence = deltaloom_lm::layer::Sequence { tenant: TenantId::new(1), tokens: 1, position: 0 };
    let batch = Batch::new(vec![sequence]).unwrap();
    let found = forward(layer.config(), &layer, &batch, &activations(1, 64), &Run::default());
    assert!(matches!(found, Err(Error::NotFound { .. })));
    let found = layer.matmul(MatrixRole::Up, &Batch::of_one(1), &[0.0; 3], &mut [0.0; 128], &Run::default());
    assert!(matches!(found, Err(Error::InvalidArgument(_))));
}

#[test]
fn a_layer_needs_its_base_in_memory_but_for_tiles() {
    let (base, tuned) = reference_pair();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.safetensors");
    std::fs::write(&path, base.to_safetensors().unwrap()).unwrap();
    let case = reference_case(&base, &tuned);
    let limits = deltaloom::Limits::default();
    let container = common::open(case.container()).unwrap();
    let bases = deltaloom::Bases::open(&[path], &limits).unwrap();
    let resolved = Arc::new(deltaloom::ResolvedContainer::new(container, &bases).unwrap());
    let open = |form| PackedLayer::open(&resolved, case.config(), case.names(), Choice::Form(form));
    assert_eq!(
        bits(&compute(&open(Form::Tiles).unwrap(), 3, Mode::Exact)),
        bits(&compute(&case.dense().unwrap(), 3, Mode::Exact))
    );
    assert!(matches!(open(Form::Bitmap), Err(Error::InvalidArgument(_))));
}

#[test]
fn the_report_says_what_is_exact_and_what_takes_how_much() {
    let (base, tuned) = reference_pair();
    let case = reference_case(&base, &tuned);
    let options =
        LayerOptions { tokens: vec![2], repeats: 2, tenants: vec![1, 3], ..LayerOptions::default() };
    let report = run(&case, &options, &Silent).unwrap();
    assert!(report.is_right);
    assert_eq!(report.runs.len(), 11, "the file, and five forms in two modes");
    assert!(report.runs.iter().filter(|run| run.mode == "exact").all(|run| run.is_bit_exact));
    let dense = report.runs.iter().find(|run| run.form == "dense").unwrap();
    assert_eq!(dense.resident_bytes - vectors_bytes(&case), 4 * 32_768);
    let tiles = report.runs.iter().find(|run| run.form == "tiles").unwrap();
    assert!(tiles.decode.mean > 0.0 && tiles.patch.mean < tiles.total.mean && tiles.resident_bytes < 6000);
    assert_eq!(tiles.parameters.len(), 12);
    let three = report.memory.iter().find(|row| row.form == "tiles" && row.tenants == 3).unwrap();
    assert_eq!(three.bytes, 4 * 33_472 + 3 * tiles.resident_bytes);
    assert!(run(&case, &LayerOptions { repeats: 0, ..options.clone() }, &Silent).is_err());
    let none = run(&case, &LayerOptions { tokens: vec![0], ..options }, &Silent).unwrap();
    assert!(none.is_right);
}

fn vectors_bytes(case: &LayerCase) -> u64 {
    let layer = case.open(Choice::Form(Form::Dense)).unwrap();
    case.names().vectors().filter_map(|(role, _)| layer.vector_bytes(role)).sum()
}
