//! A tiny model of random weights with texts beside it, for trying out everything where there is no
//! model. The same bytes on every machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use deltaloom::checkpoint::{Checkpoint, NewTensor};
use deltaloom::tensor::DType;
use deltaloom::{Error, Limits, Result};

const WIDTH: u64 = 64;
const HIDDEN: u64 = 96;
const VOCABULARY: u64 = 256;
const LAYERS: usize = 2;

/// Numbers that look random: a linear congruential generator, of which the high bits are used.
struct Random(u64);

impl Random {
    /// From -1/2 to 1/2.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
    }
}

/// Writes a LLaMA of two layers with a tied head, in BF16, and two texts `val_*.u16` of token ids.
/// `folder` is created.
///
/// # Errors
/// [`Error::Io`].
pub fn write(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::writing(folder))?;
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(Error::writing(&path))
    };
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "max_position_embeddings": 32, "tie_word_embeddings": true,
    });
    put("config.json", config.to_string().as_bytes())?;
    let mut random = Random(1);
    let tensors = shapes().into_iter().map(|(name, shape)| tensor(name, shape, &mut random)).collect();
    let weights = Checkpoint::from_tensors("model", tensors, &BTreeMap::new(), &Limits::default())?;
    put("model.safetensors", &weights.read_file(0)?)?;
    for (name, tokens, seed) in [("val_first.u16", 2048, 2), ("val_second.u16", 1024, 3)] {
        let mut random = Random(seed);
        let ids = (0..tokens).flat_map(|_| id(random.next()).to_le_bytes());
        put(name, &ids.collect::<Vec<u8>>())?;
    }
    Ok(())
}

/// Small ids are frequent.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 255")]
fn id(x: f32) -> u16 {
    ((x + 0.5).powi(3) * (VOCABULARY - 1) as f32) as u16
}

fn shapes() -> Vec<(String, Vec<u64>)> {
    let outside = [("model.embed_tokens", vec![VOCABULARY, WIDTH]), ("model.norm", vec![WIDTH])];
    let of_layer = [
        ("input_layernorm", vec![WIDTH]),
        ("post_attention_layernorm", vec![WIDTH]),
        ("self_attn.q_proj", vec![WIDTH, WIDTH]),
        ("self_attn.k_proj", vec![WIDTH / 2, WIDTH]),
        ("self_attn.v_proj", vec![WIDTH / 2, WIDTH]),
        ("self_attn.o_proj", vec![WIDTH, WIDTH]),
        ("mlp.gate_proj", vec![HIDDEN, WIDTH]),
        ("mlp.up_proj", vec![HIDDEN, WIDTH]),
        ("mlp.down_proj", vec![WIDTH, HIDDEN]),
    ];
    let outside = outside.into_iter().map(|(name, shape)| (format!("{name}.weight"), shape));
    let of_layers = (0..LAYERS).flat_map(|layer| {
        let named = |(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape);
        of_layer.clone().map(named)
    });
    outside.chain(of_layers).collect()
}

/// A matrix of numbers around 0, or a norm of numbers around 1.
fn tensor(name: String, shape: Vec<u64>, random: &mut Random) -> NewTensor {
    let is_norm = shape.len() == 1;
    let mut value = || if is_norm { 1.0 + random.next() } else { random.next() / 2.0 };
    let bf16 = (0..shape.iter().product()).flat_map(|_: u64| value().to_le_bytes()[2..].to_vec());
    let bytes: Vec<u8> = bf16.collect();
    NewTensor { name, dtype: DType::BF16, shape, source: Arc::new(bytes) }
}
