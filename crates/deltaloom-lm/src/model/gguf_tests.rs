//! A GGUF file made of a tiny model of Hugging Face computes the same, and files that lie are
//! refused.

use std::path::Path;

use super::super::{Chunk, Model};
use super::*;
use crate::gguf::writer::Writer;
use crate::layer::{AttentionPlan, MemoryOptions, Positions, Reach};
use crate::tenancy::FamilyOptions;
use deltaloom::checkpoint::gguf::{BlockKind, dequantise};
use deltaloom::{Error, Limits};
use deltaloom_compute::Run;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/assets/tiny/");

/// Settings of LLaMA for a model of this name, with these sizes.
fn settings(family: &str, width: u32, hidden: u32, head: u32, layers: u32) -> Writer {
    let mut file = Writer::default();
    file.text("general.architecture", family);
    for (key, value) in [
        ("block_count", layers),
        ("embedding_length", width),
        ("feed_forward_length", hidden),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", head),
        ("context_length", 64),
    ] {
        file.integer(&format!("{family}.{key}"), value);
    }
    file.number(&format!("{family}.attention.layer_norm_rms_epsilon"), 1e-5);
    file.number(&format!("{family}.rope.freq_base"), 1e4);
    // Arrays of texts, as tokenizers have.
    file.texts("tokenizer.ggml.tokens", &["a", "b"]);
    file
}

/// The tiny model `name` as a GGUF file, as llama.cpp converts it.
fn converted(name: &str) -> Writer {
    let checkpoint = Checkpoint::open(&Path::new(TINY).join(name), &Limits::default()).unwrap();
    let family = if name == "qwen3" { "qwen3" } else { "llama" };
    let mut file = settings(family, 32, 48, if family == "qwen3" { 16 } else { 8 }, 3);
    if family == "llama" {
        file.text("llama.rope.scaling.type", "linear");
        file.number("llama.rope.scaling.factor", 2.5);
    }
    for (member, info) in checkpoint.weights() {
        let mut bytes = checkpoint.read_tensor(member, info).unwrap();
        let heads = match info.name.as_str() {
            name if family == "llama" && name.contains("q_proj") => Some(4),
            name if family == "llama" && name.contains("k_proj") => Some(2),
            _ => None,
        };
        if let Some(heads) = heads {
            // [heads, 2, half, width] becomes [heads, half, 2, width].
            let (rows, width) = (usize::try_from(info.shape[0]).unwrap(), 2 * 32);
            let size = rows / heads;
            let old = bytes.clone();
            for (row, out) in bytes.chunks_mut(width).enumerate() {
                let (head, pair, part) = (row / size, row % size / 2, row % 2);
                out.copy_from_slice(&old[(head * size + part * (size / 2) + pair) * width..][..width]);
            }
        }
        let old = GLOBALS.iter().find(|(_, new)| *new == info.name).map(|(old, _)| (*old).to_owned());
        let old = old.unwrap_or_else(|| {
            let (layer, part) = info.name.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
            let (old, new) = PARTS.iter().find(|(_, new)| part.starts_with(&format!("{new}."))).unwrap();
            format!("blk.{layer}.{old}{}", &part[new.len()..])
        });
        file.tensor(&old, 30, &info.shape, &bytes);
    }
    file
}

fn logits(mut model: Model) -> Vec<u32> {
    let mut memory = model.memory(MemoryOptions::default());
    let ids: Vec<u32> = (0..40).map(|i| i * i % 96).collect();
    let chunk = Chunk { sequence: memory.begin(Model::BASE), tokens: &ids };
    let hidden = model.forward(&mut memory, &[chunk], &Run::default()).unwrap();
    hidden.logits(&[0, 20, 39], &Run::default()).unwrap().into_iter().map(f32::to_bits).collect()
}

fn model(file: &Gguf) -> Result<Model> {
    Model::of_gguf(Path::new("model.gguf"), file, FamilyOptions::default())
}

fn of_bytes(bytes: &[u8]) -> Result<Model> {
    model(&Gguf::from_source(Box::new(bytes.to_vec()))?)
}

#[test]
fn a_file_computes_what_its_model_computes() {
    for name in ["llama_linear", "qwen3"] {
        let found = logits(model(&converted(name).open().unwrap()).unwrap());
        let original = Model::open(&Path::new(TINY).join(name), FamilyOptions::default()).unwrap();
        assert_eq!(found, logits(original), "{name}");
    }
}

/// Tensors of one layer of 256 elements, in blocks of a kind whose bytes look random.
fn quantised(kind: BlockKind, number: u32) -> Writer {
    let mut file = settings("llama", 256, 256, 64, 1);
    let mut seed = number;
    let mut byte = move || {
        seed = seed.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
        seed.to_be_bytes()[0]
    };
    let mut blocks = |rows: usize| -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..rows * (256 / kind.numbers()) * kind.bytes()).map(|_| byte()).collect();
        // Every number of 16 bits is small, whichever are scales.
        bytes.chunks_exact_mut(2).for_each(|pair| pair[1] &= 0x9f);
        bytes
    };
    for (name, rows) in [
        ("token_embd", 96),
        ("blk.0.attn_q", 256),
        ("blk.0.attn_k", 128),
        ("blk.0.attn_v", 128),
        ("blk.0.attn_output", 256),
        ("blk.0.ffn_gate", 256),
        ("blk.0.ffn_up", 256),
        ("blk.0.ffn_down", 256),
    ] {
        file.tensor(&format!("{name}.weight"), number, &[rows as u64, 256], &blocks(rows));
    }
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
        file.tensor(&format!("{name}.weight"), 0, &[256], &1_f32.to_le_bytes().repeat(256));
    }
    file
}

#[test]
fn every_kind_of_block_is_the_numbers_of_the_library() {
    let numbers = (0..40).filter_map(|number| Some((BlockKind::of_type(number)?, number)));
    assert_eq!(numbers.clone().count(), BlockKind::ALL.len());
    for (kind, number) in numbers {
        let file = quantised(kind, number).open().unwrap();
        let (_, checkpoint) = read(&file).unwrap();
        for (old, new) in [("token_embd", "embed_tokens"), ("blk.0.attn_q", "layers.0.self_attn.q_proj")] {
            let tensor = &file.tensors()[&format!("{old}.weight")];
            let found = checkpoint.weights().find(|(_, info)| info.name == format!("model.{new}.weight"));
            let (member, info) = found.unwrap();
            let found = checkpoint.read_tensor(member, info).unwrap();
            let mut bytes = file.numbers(tensor).unwrap();
            if old == "blk.0.attn_q" {
                assert_ne!(found, bytes, "{kind:?}");
                bytes = in_halves(&bytes, 256, 4).unwrap();
            }
            assert_eq!(found, bytes, "{kind:?}");
        }
        // Blocks of one row, as the library has them.
        let last = &quantised(kind, number).bytes();
        let tensor = &file.tensors()["token_embd.weight"];
        let start = usize::try_from(tensor.start()).unwrap();
        let mut row = vec![0.0; 256];
        dequantise(kind, &last[start..][..256 / kind.numbers() * kind.bytes()], &mut row).unwrap();
        let bytes: Vec<u8> = row.into_iter().flat_map(f32::to_le_bytes).collect();
        assert_eq!(file.numbers(tensor).unwrap()[..1024], bytes, "{kind:?}");
    }
}

fn plan(change: impl FnOnce(&mut Writer)) -> Result<AttentionPlan> {
    let mut file = settings("llama", 32, 48, 8, 1);
    file.tensor("token_embd.weight", 0, &[96, 32], &[0; 96 * 32 * 4]);
    change(&mut file);
    let text = Json::Object(config(&file.open()?)?).to_string();
    Ok(crate::model::ModelConfig::parse(&text)?.layers.remove(0).attention)
}

#[test]
fn positions_are_scaled_by_settings_or_by_a_tensor() {
    let table = |change: &dyn Fn(&mut Writer)| match plan(change).unwrap().positions {
        Positions::Rotary { table, .. } => table,
        other => panic!("{other:?}"),
    };
    assert_eq!(table(&|_| ()), Table::Default);
    assert_eq!(table(&|file| file.number("llama.rope.scale_linear", 4.0)), Table::Linear { factor: 4.0 });
    assert_eq!(
        table(&|file| {
            file.text("llama.rope.scaling.type", "none");
            file.number("llama.rope.scaling.factor", 4.0);
        }),
        Table::Default
    );
    let llama3 = Table::Llama3 { factor: 32.0, low: 1.0, high: 4.0, trained: 8192 };
    let factors = |table: Table| -> Vec<u8> {
        let pairs = Table::Default.rates(1e4, 8, 0).into_iter().zip(table.rates(1e4, 8, 0));
        pairs.flat_map(|(plain, changed)| (plain / changed).to_le_bytes()).collect()
    };
    assert_eq!(table(&|file| file.tensor(ROPE_FREQS, 0, &[4], &factors(Table::Default))), Table::Default);
    let refused = |kind: u32, shape: &[u64], bytes: &[u8]| {
        plan(|file| file.tensor(ROPE_FREQS, kind, shape, bytes)).unwrap_err().to_string()
    };
    // The longest wavelength of this head is not long enough to show the factor.
    for (kind, shape, bytes) in [
        (0, &[4_u64][..], factors(llama3)),
        (0, &[4], vec![0; 16]),
        (0, &[4], f32::NAN.to_le_bytes().repeat(4)),
        (0, &[2], factors(Table::Default)[..8].to_vec()),
        (1, &[4], vec![0; 8]),
    ] {
        assert!(refused(kind, shape, &bytes).contains("other factors"), "{kind} {shape:?}");
    }
    let both = |file: &mut Writer| {
        file.number("llama.rope.scale_linear", 4.0);
        file.tensor(ROPE_FREQS, 0, &[4], &factors(Table::Default));
    };
    assert!(plan(both).unwrap_err().to_string().contains("and by settings"));
    let yarn = |file: &mut Writer| file.text("llama.rope.scaling.type", "yarn");
    assert!(plan(yarn).unwrap_err().to_string().contains("\"yarn\""));
}

#[test]
fn factors_of_llama_3_are_found() {
    let mut file = settings("llama", 32, 48, 128, 1);
    let llama3 = Table::Llama3 { factor: 8.0, low: 1.0, high: 4.0, trained: 8192 };
    let theta = 500_000.0;
    let pairs = Table::Default.rates(theta, 128, 0).into_iter().zip(llama3.rates(theta, 128, 0));
    let factors: Vec<u8> = pairs.flat_map(|(plain, changed)| (plain / changed).to_le_bytes()).collect();
    file.tensor(ROPE_FREQS, 0, &[64], &factors);
    let found = scaling(&file.open().unwrap(), "llama", theta.into(), 128).unwrap().unwrap();
    assert_eq!((found["rope_type"].as_str(), found["factor"].as_f64()), (Some("llama3"), Some(8.0)));
    assert!(scaling(&file.open().unwrap(), "llama", 1e4, 128).is_err());
}

#[test]
fn windows_and_sizes_are_read() {
    let window = plan(|file| file.integer("llama.attention.sliding_window", 9)).unwrap();
    assert_eq!(window.reach, Reach::Window { tokens: 9, sinks: 0 });
    assert_eq!(plan(|_| ()).unwrap().reach, Reach::Causal);
    let told = |change: &dyn Fn(&mut Writer), words: &str| {
        let error = plan(change).unwrap_err().to_string();
        assert!(error.contains(words), "{error}, not {words}");
    };
    told(&|file| file.integer("llama.expert_count", 8), "expert_count");
    told(&|file| file.number("llama.attention.scale", 0.5), "attention.scale");
    told(&|file| file.integer("llama.rope.dimension_count", 4), "4 with positions");
    told(&|file| file.integer("llama.attention.value_length", 4), "4 in values");
    let without = |file: Writer| config(&file.open().unwrap()).unwrap_err().to_string();
    let mut other = Writer::default();
    assert!(without(other).contains("general.architecture is missing"));
    for name in ["gemma3", "llama4", "qwen2moe", "deepseek2", "gpt2", ""] {
        other = Writer::default();
        other.text("general.architecture", name);
        assert!(without(other).contains(&format!("architecture {name:?}")));
    }
    other = Writer::default();
    other.text("general.architecture", "llama");
    assert!(without(other).contains("llama.block_count is missing"));
    let mut qwen = settings("qwen2", 32, 48, 8, 1);
    qwen.integer("qwen2.attention.sliding_window", 9);
    assert!(without(qwen).contains("sliding_window is 9"));
}

#[test]
fn files_that_lie_are_refused() {
    let good = converted("llama_linear").bytes();
    let told = |bytes: &[u8], words: &str| {
        let error = of_bytes(bytes).err().unwrap();
        let is_told =
            matches!(error, Error::InvalidArgument(_) | Error::NotFound { .. } | Error::LimitExceeded { .. });
        assert!(is_told, "{error:?}");
        assert!(error.to_string().contains(words), "{error}, not {words}");
    };
    for end in (0..good.len()).step_by(37) {
        assert!(of_bytes(&good[..end]).is_err(), "{end}");
    }
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    told(&with(0, b"GGML"), "does not begin");
    told(&with(4, &[9]), "version");
    told(&with(8, &u64::MAX.to_le_bytes()), "number of tensors");
    told(&with(8, &1000_u64.to_le_bytes()), "");
    told(&with(16, &(1_u64 << 63).to_le_bytes()), "");
    told(&with(24, &u64::MAX.to_le_bytes()), "a name in bytes");
    told(&with(24, &60_000_u64.to_le_bytes()), "GGUF");
    let changed = |change: &dyn Fn(&mut Writer)| {
        let mut file = converted("llama_linear");
        change(&mut file);
        file.bytes()
    };
    told(&changed(&|file| file.tensor("blk.0.ffn_gate_exps.weight", 0, &[4], &[0; 16])), "exps");
    told(&changed(&|file| file.tensor("output.weight", 16, &[96, 256], &[0; 96])), "type 16");
    told(&changed(&|file| file.tensor("output.weight", 12, &[96, 32], &[0; 96])), "within a block");
    told(&changed(&|file| file.tensor("output.weight", 2, &[96, 33], &[0; 96])), "within a block");
    told(&changed(&|file| file.tensor("output.weight", 0, &[1 << 63, 8], &[0; 96])), "behind the file");
    told(&changed(&|file| file.tensor("output.weight", 0, &[1 << 30, 8], &[0; 96])), "behind the file");
    told(&changed(&|file| file.tensor("output_norm.weight", 0, &[32], &[0; 128])), "comes twice");
    told(&changed(&|file| file.tensor_at("output.weight", 0, &[32], 0)), "overlaps");
    told(&changed(&|file| file.tensor_at("output.weight", 0, &[32], u64::MAX - 31)), "behind the file");
    told(&changed(&|file| file.tensor_at("output.weight", 0, &[32], 4)), "not aligned");
    told(&changed(&|file| file.tensor_at("output.weight", 0, &[1; 5], 0)), "5 dimensions");
    told(&changed(&|file| file.integer("general.alignment", 3)), "alignment");
    let mut nested = Vec::new();
    (0..9).for_each(|_| nested.extend([&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat()));
    told(&changed(&|file| file.value("deep", 9, &nested)), "type 9");
    let array = |count: u64| [&8_u32.to_le_bytes()[..], &count.to_le_bytes()].concat();
    told(&changed(&|file| file.value("long", 9, &array(1 << 63))), "GGUF");
    let array = |count: u64| [&10_u32.to_le_bytes()[..], &count.to_le_bytes()].concat();
    told(&changed(&|file| file.value("long", 9, &array(1 << 62))), "ends before");
    // Rows of queries that do not make up heads.
    told(&changed(&|file| file.tensor("blk.7.attn_q.weight", 0, &[6, 4], &[0; 96])), "4 heads");
}

proptest::proptest! {
    #[test]
    fn changed_bytes_never_panic(changes in proptest::collection::vec((0_usize..4096, proptest::prelude::any::<u8>()), 1..5)) {
        let mut bytes = std::fs::read(Path::new(TINY).join("mistral.gguf")).unwrap();
        for (place, byte) in changes {
            bytes[place] = byte;
        }
        if let Ok(file) = Gguf::from_source(Box::new(bytes)) {
            let _ = (model(&file).is_ok(), crate::text::Tokenizer::of_gguf(&file, 96).is_ok());
        }
    }
}
