//! Compares the layer with formulas in F64, and checks its promises about batches, threads and bad
//! input.

use std::sync::Arc;

use serde_json::json;

use super::naive::{Dense, Tenant, forward_f64, random};
use super::*;
use deltaloom::Limits;
use deltaloom::checkpoint::Checkpoint;
use deltaloom_compute::Mode;

fn pytorch() -> LayerConfig {
    LayerConfig {
        width: 24,
        query_heads: 4,
        key_value_heads: 4,
        head_size: 6,
        hidden_width: 40,
        norm: Norm::LayerNorm { epsilon: 1e-5 },
        has_post_norms: false,
        projection: Projection::Fused,
        feed_forward: FeedForward::Gelu(Gelu::Erf),
        attention: AttentionPlan::new(Reach::Full),
    }
}

/// With a head size that is not the width over the number of heads, and with shared keys and
/// values.
fn llama() -> LayerConfig {
    LayerConfig {
        width: 20,
        query_heads: 6,
        key_value_heads: 2,
        head_size: 4,
        hidden_width: 27,
        norm: Norm::RmsNorm { epsilon: 1e-6 },
        has_post_norms: false,
        projection: Projection::Separate,
        feed_forward: FeedForward::SwiGlu,
        attention: rotary(10_000.0),
    }
}

fn rotary(theta: f32) -> AttentionPlan {
    AttentionPlan::new(Reach::Causal).with_positions(Positions::rotary(theta, Table::Default))
}

/// With a window, and with norms of queries and keys.
fn qwen3() -> LayerConfig {
    let plan = AttentionPlan { reach: Reach::Window { tokens: 5, sinks: 0 }, ..rotary(1e6) };
    llama().with_attention(plan.with_qk_norm(Some(QkNorm::of_weights(Norm::RmsNorm { epsilon: 1e-6 }))))
}

/// With norms on both sides, whose weights are stored less 1.
fn gemma() -> LayerConfig {
    let norm = Norm::ZeroCentredRmsNorm { epsilon: 1e-6 };
    let plan = rotary(1e6).with_qk_norm(Some(QkNorm::of_weights(norm))).with_scale(Scale::Constant(0.3));
    let config = llama().with_norm(norm).with_post_norms(true).with_attention(plan);
    config.with_feed_forward(FeedForward::GeGlu(Gelu::Tanh))
}

fn configs() -> Vec<LayerConfig> {
    let mixed =
        LayerConfig { projection: Projection::Fused, feed_forward: FeedForward::Gelu(Gelu::Tanh), ..llama() };
    let causal = pytorch().with_attention(AttentionPlan::new(Reach::Causal));
    let opt = llama().with_norm(Norm::LayerNorm { epsilon: 1e-5 }).with_feed_forward(FeedForward::Relu);
    let opt = opt.with_attention(AttentionPlan::new(Reach::Causal));
    vec![pytorch(), llama(), mixed, causal, qwen3(), gemma(), opt]
}

fn weights(config: &LayerConfig, tenants: u64) -> Dense {
    let tenants = (0..tenants).map(|tenant| Tenant::random(config, 1000 * tenant)).collect();
    Dense { config: config.clone(), tenants }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn it_computes_the_formulas() {
    for config in configs() {
        let weights = weights(&config, 1);
        for (tokens, position) in [(1, 0), (2, 5), (17, 100)] {
            let sequence = Sequence { tenant: TenantId::ONLY, tokens, position };
            let batch = Batch::new(vec![sequence]).unwrap();
            let x = random(7, tokens * config.width);
            let found = forward(&config, &weights, &batch, &x, &Run::default()).unwrap();
            let expected = forward_f64(&config, &weights.tenants[0], position, &x);
            let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
            let error = norm(&mut found.iter().zip(&expected).map(|(a, b)| f64::from(*a) - b));
            assert!(error < 1e-6 * norm(&mut expected.iter().copied()), "{error} {tokens} {config:?}");
        }
    }
}

/// A layer in a file, with the names of its convention.
fn checkpoint(weights: &Tenant, names: &LayerNames, config: &LayerConfig) -> Checkpoint {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut push = |name: &str, shape: &[usize], values: &[f32]| {
        let begin = data.len();
        data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(name.to_owned(), entry);
    };
    names.matrices().for_each(|(role, name)| push(name, &config.shape(role), &weights.matrices[&role]));
    names
        .vectors()
        .for_each(|(role, name)| push(name, &[weights.vectors[&role].len()], &weights.vectors[&role]));
    let header = serde_json::to_vec(&header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes(), &header[..], &data].concat();
    Checkpoint::from_bytes("layer.safetensors", file, &Limits::default()).unwrap()
}

#[test]
fn a_layer_of_a_file_computes_the_formulas() {
    let heads = LayerHints { heads: Some(4), ..LayerHints::default() };
    let config_text = LayerHints { config: Some(LLAMA_CONFIG), ..LayerHints::default() };
    let files =
        [(reference_tensors(""), heads, pytorch()), (llama_tensors("model.layers.0."), config_text, llama())];
    for (tensors, hints, config) in files {
        let (found, names) = recognise(&tensors, &hints).unwrap();
        assert_eq!(found, config);
        let mut weights = Tenant::random(&config, 9);
        // Keep only the vectors that the file has.
        weights.vectors.retain(|role, _| names.vector(*role).is_some());
        let checkpoint = Arc::new(checkpoint(&weights, &names, &config));
        let layer = PackedLayer::of_checkpoint(&checkpoint, &config, &names).unwrap();
        let x = random(4, 9 * config.width);
        let expected = forward_f64(&config, &weights, 0, &x);
        for mode in [Mode::Exact, Mode::Fast] {
            let output = forward(&config, &layer, &Batch::of_one(9), &x, &Run::new(mode)).unwrap();
            assert!(output.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
        }
    }
}

#[test]
fn vectors_may_be_absent() {
    for config in configs() {
        let mut weights = weights(&config, 1);
        weights.tenants[0].vectors.clear();
        let x = random(7, 3 * config.width);
        let found = forward(&config, &weights, &Batch::of_one(3), &x, &Run::default()).unwrap();
        let expected = forward_f64(&config, &weights.tenants[0], 0, &x);
        assert!(found.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
    }
}

#[test]
fn a_sequence_in_a_batch_is_what_it_is_alone() {
    for config in configs() {
        let weights = weights(&config, 3);
        let sequences = [(2, 3, 0), (0, 1, 9), (1, 0, 0), (2, 5, 3)]
            .map(|(tenant, tokens, position)| Sequence { tenant: TenantId::new(tenant), tokens, position });
        let batch = Batch::new(sequences.to_vec()).unwrap();
        let x = random(3, batch.tokens() * config.width);
        let together = forward(&config, &weights, &batch, &x, &Run::default()).unwrap();
        for (sequence, tokens) in batch.places() {
            let place = tokens.start * config.width..tokens.end * config.width;
            let alone = Batch::new(vec![*sequence]).unwrap();
            let alone = forward(&config, &weights, &alone, &x[place.clone()], &Run::default()).unwrap();
            assert_eq!(bits(&alone), bits(&together[place]));
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for config in configs() {
        let weights = weights(&config, 1);
        let x = random(3, 200 * config.width);
        let run = |threads| {
            let run = || forward(&config, &weights, &Batch::of_one(200), &x, &Run::default());
            bits(&deltaloom::with_threads(threads, run).unwrap())
        };
        assert_eq!(run(1), run(3));
    }
}

#[test]
fn nan_stays_in_what_can_see_it() {
    for config in configs() {
        let weights = weights(&config, 1);
        let sequence = Sequence { tenant: TenantId::ONLY, tokens: 4, position: 0 };
        let batch = Batch::new(vec![sequence; 2]).unwrap();
        let mut x = random(3, 8 * config.width);
        x[2 * config.width + 1] = f32::NAN;
        let out = forward(&config, &weights, &batch, &x, &Run::default()).unwrap();
        let is_nan: Vec<bool> =
            out.chunks(config.width).map(|token| token.iter().all(|x| x.is_nan())).collect();
        let finite = out.chunks(config.width).map(|token| token.iter().all(|x| x.is_finite()));
        let early = config.attention.reach == Reach::Full;
        assert_eq!(is_nan, [early, early, true, true, false, false, false, false]);
        assert!(finite.eq(is_nan.iter().map(|is_nan| !is_nan)));
    }
}

#[test]
fn no_tokens_are_no_output() {
    let weights = weights(&pytorch(), 1);
    for batch in [Batch::default(), Batch::of_one(0)] {
        assert!(forward(&pytorch(), &weights, &batch, &[], &Run::default()).unwrap().is_empty());
    }
}

#[test]
fn wrong_shapes_are_told() {
    let config = pytorch();
    let weights = weights(&config, 1);
    let error = |config: &LayerConfig, weights: &Dense, x: &[f32]| {
        forward(config, weights, &Batch::of_one(2), x, &Run::default()).unwrap_err().to_string()
    };
    assert_eq!(
        error(&config, &weights, &[0.0; 47]),
        "activations have 47 elements, which do not fit 2 tokens of width 24"
    );
    let mut short = Dense { config: config.clone(), tenants: weights.tenants.clone() };
    short.tenants[0].vectors.insert(VectorRole::UpBias, vec![0.0; 3]);
    assert_eq!(error(&config, &short, &[0.0; 48]), "UpBias of tenant 0 has 3 elements, the layer needs 40");
    let impossible = [
        LayerConfig { width: 0, ..config.clone() },
        LayerConfig { key_value_heads: 3, ..config.clone() },
        LayerConfig { query_heads: 1 << 20, head_size: 1 << 20, key_value_heads: 1, ..config.clone() },
        LayerConfig { hidden_width: usize::MAX, ..config.clone() },
        LayerConfig { norm: Norm::RmsNorm { epsilon: f32::NAN }, ..config.clone() },
        LayerConfig { attention: rotary(0.0), ..config.clone() },
        LayerConfig { attention: rotary(1e4), head_size: 3, ..config.clone() },
        LayerConfig { projection: Projection::Fused, ..qwen3() },
    ];
    for config in impossible {
        assert!(matches!(config.check(), Err(Error::InvalidArgument(_))), "{config:?}");
    }
    let long = Sequence { tenant: TenantId::ONLY, tokens: usize::MAX, position: 0 };
    assert!(Batch::new(vec![long, long]).is_err());
    assert!(Batch::new(vec![Sequence { position: 1, ..long }]).is_err());
}

/// The names of a layer in a convention, with shapes for a configuration.
fn tensors(config: &LayerConfig, prefix: &str, names: &[(&str, &[usize])]) -> Vec<(String, Vec<u64>)> {
    config.check().unwrap();
    let tensor = |(name, shape): &(&str, &[usize])| {
        (format!("{prefix}{name}"), shape.iter().map(|size| *size as u64).collect())
    };
    names.iter().map(tensor).collect()
}

fn reference_tensors(prefix: &str) -> Vec<(String, Vec<u64>)> {
    let names: [(&str, &[usize]); 12] = [
        ("norm1.weight", &[24]),
        ("norm1.bias", &[24]),
        ("self_attn.in_proj_weight", &[72, 24]),
        ("self_attn.in_proj_bias", &[72]),
        ("self_attn.out_proj.weight", &[24, 24]),
        ("self_attn.out_proj.bias", &[24]),
        ("norm2.weight", &[24]),
        ("norm2.bias", &[24]),
        ("linear1.weight", &[40, 24]),
        ("linear1.bias", &[40]),
        ("linear2.weight", &[24, 40]),
        ("linear2.bias", &[24]),
    ];
    tensors(&pytorch(), prefix, &names)
}

fn llama_tensors(prefix: &str) -> Vec<(String, Vec<u64>)> {
    let names: [(&str, &[usize]); 9] = [
        ("input_layernorm.weight", &[20]),
        ("self_attn.q_proj.weight", &[24, 20]),
        ("self_attn.k_proj.weight", &[8, 20]),
        ("self_attn.v_proj.weight", &[8, 20]),
        ("self_attn.o_proj.weight", &[20, 24]),
        ("post_attention_layernorm.weight", &[20]),
        ("mlp.gate_proj.weight", &[27, 20]),
        ("mlp.up_proj.weight", &[27, 20]),
        ("mlp.down_proj.weight", &[20, 27]),
    ];
    tensors(&llama(), prefix, &names)
}

const LLAMA_CONFIG: &str = r#"{"model_type": "llama", "num_attention_heads": 6, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "head_dim": 4}"#;

fn recognise(tensors: &[(String, Vec<u64>)], hints: &LayerHints<'_>) -> Result<(LayerConfig, LayerNames)> {
    LayerNames::recognise(tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())), hints)
}

#[test]
fn known_layers_are_recognised() {
    let heads = LayerHints { heads: Some(4), ..LayerHints::default() };
    let (config, names) = recognise(&reference_tensors(""), &heads).unwrap();
    assert_eq!(config, pytorch());
    assert_eq!((names.matrices().count(), names.vectors().count()), (4, 8));
    assert_eq!(names.vector(VectorRole::QkvBias), Some("self_attn.in_proj_bias"));
    assert!(config.matrices().iter().all(|role| names.matrix(*role).is_some()));

    let mut model = [llama_tensors("model.layers.0."), llama_tensors("model.layers.10.")].concat();
    model.push(("model.embed_tokens.weight".to_owned(), vec![8, 20]));
    model.push(("model.layers.10.self_attn.rotary_emb.inv_freq".to_owned(), vec![2]));
    let hints = LayerHints { layer: 10, config: Some(LLAMA_CONFIG), ..LayerHints::default() };
    let (config, names) = recognise(&model, &hints).unwrap();
    assert_eq!(config, llama());
    assert_eq!(names.matrix(MatrixRole::Gate), Some("model.layers.10.mlp.gate_proj.weight"));
    assert_eq!(names.vector(VectorRole::QueryBias), None);
}

#[test]
fn unknown_layers_are_refused() {
    let heads = LayerHints { heads: Some(4), ..LayerHints::default() };
    let llama_hints = LayerHints { config: Some(LLAMA_CONFIG), ..LayerHints::default() };
    let told = |tensors: &[(String, Vec<u64>)], hints: &LayerHints<'_>, words: &str| {
        let error = recognise(tensors, hints).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    told(&[("weight".to_owned(), vec![3, 3])], &heads, "with the names of");
    told(&reference_tensors(""), &LayerHints::default(), "number of heads");
    told(&reference_tensors(""), &LayerHints { heads: Some(5), ..heads }, "into 5 heads");
    told(&reference_tensors("layers.3."), &heads, "layer 0 (of 1");
    let twice = [reference_tensors("encoder.layers.0."), reference_tensors("decoder.layers.0.")].concat();
    told(&twice, &heads, "2 layers have the number 0");
    let mut decoder = reference_tensors("layers.0.");
    decoder.push(("layers.0.multihead_attn.in_proj_weight".to_owned(), vec![72, 24]));
    told(&decoder, &heads, "multihead_attn");
    told(&reference_tensors("")[..10], &heads, "\"linear2.weight\" of the layer not found");
    told(&llama_tensors("model.layers.0."), &heads, "config.json");
    let mut wide = reference_tensors("");
    wide[4].1 = vec![24, 25];
    told(&wide, &heads, "has shape [24, 25], the layer needs [24, 24]");
    wide[2].1 = vec![1728];
    told(&wide, &heads, "not a matrix");
    for (setting, other, words) in [
        ("\"llama\"", "\"gemma\"", "model_type \"gemma\""),
        ("\"silu\"", "\"gelu\"", "hidden_act \"gelu\""),
        ("\"head_dim\": 4", "\"rope_scaling\": {\"type\": \"axial\"}", "rope_type \"axial\""),
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 0", "key and value heads"),
        ("\"head_dim\": 4", "\"head_dim\": 6", "has shape"),
        ("6", "x", "config.json"),
    ] {
        let text = LLAMA_CONFIG.replace(setting, other);
        told(&llama_tensors("layers.0."), &LayerHints { config: Some(&text), ..llama_hints }, words);
    }
}
