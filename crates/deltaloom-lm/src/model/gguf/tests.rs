//! A GGUF file made of a tiny model of Hugging Face computes the same, and files that lie are
//! refused.

use std::path::Path;

use super::super::{Chunk, Model};
use super::*;
use crate::layer::MemoryOptions;
use crate::tenancy::FamilyOptions;
use deltaloom::checkpoint::gguf::BlockKind;
use deltaloom::{Error, Limits};
use deltaloom_compute::Run;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/assets/tiny/");

/// A file under construction.
#[derive(Default)]
struct File {
    values: Vec<u8>,
    value_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

impl File {
    fn text(into: &mut Vec<u8>, text: &str) {
        into.extend((text.len() as u64).to_le_bytes());
        into.extend(text.as_bytes());
    }

    fn value(&mut self, key: &str, kind: u32, bytes: &[u8]) {
        Self::text(&mut self.values, key);
        self.values.extend(kind.to_le_bytes());
        self.values.extend(bytes);
        self.value_count += 1;
    }

    fn architecture(&mut self, name: &str) {
        let mut bytes = Vec::new();
        Self::text(&mut bytes, name);
        self.value("general.architecture", 8, &bytes);
    }

    fn tensor(&mut self, name: &str, kind: u32, shape: &[u64], bytes: &[u8]) {
        Self::text(&mut self.tensors, name);
        self.tensors.extend(u32::try_from(shape.len()).unwrap().to_le_bytes());
        shape.iter().rev().for_each(|size| self.tensors.extend(size.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.tensor_count += 1;
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(self.tensor_count.to_le_bytes());
        bytes.extend(self.value_count.to_le_bytes());
        bytes.extend(&self.values);
        bytes.extend(&self.tensors);
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }
}

/// The tiny model `name` as a GGUF file, as llama.cpp converts it.
fn converted(name: &str) -> File {
    let checkpoint = Checkpoint::open(&Path::new(TINY).join(name), &Limits::default()).unwrap();
    let mut file = File::default();
    let family = if name == "qwen3" { "qwen3" } else { "llama" };
    file.architecture(family);
    let mut number = |key: &str, value: u32| file.value(&format!("{family}.{key}"), 4, &value.to_le_bytes());
    for (key, value) in [
        ("block_count", 3),
        ("embedding_length", 32),
        ("feed_forward_length", 48),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", if family == "qwen3" { 16 } else { 8 }),
        ("context_length", 64),
    ] {
        number(key, value);
    }
    file.value(&format!("{family}.attention.layer_norm_rms_epsilon"), 6, &1e-5_f32.to_le_bytes());
    file.value(&format!("{family}.rope.freq_base"), 6, &1e4_f32.to_le_bytes());
    if family == "llama" {
        let mut linear = Vec::new();
        File::text(&mut linear, "linear");
        file.value("llama.rope.scaling.type", 8, &linear);
        file.value("llama.rope.scaling.factor", 6, &2.5_f32.to_le_bytes());
    }
    // An array of texts, as tokenizers have.
    let mut array = [8_u32.to_le_bytes().to_vec(), 2_u64.to_le_bytes().to_vec()].concat();
    File::text(&mut array, "a");
    File::text(&mut array, "b");
    file.value("tokenizer.ggml.tokens", 9, &array);
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

fn of_bytes(bytes: &[u8]) -> Result<Model> {
    let (text, checkpoint) = read(bytes)?;
    Model::of_checkpoint(Path::new("model.gguf"), checkpoint, &text, FamilyOptions::default())
}

#[test]
fn a_file_computes_what_its_model_computes() {
    for name in ["llama_linear", "qwen3"] {
        let found = logits(of_bytes(&converted(name).bytes()).unwrap());
        // FP32 and BF16 weights may be added up in other orders, so the original is widened too.
        let folder = Path::new(TINY).join(name);
        let original = Checkpoint::open(&folder, &Limits::default()).unwrap();
        let mut wide = Safetensors::default();
        for (member, info) in original.weights() {
            let numbers = Kind::Bf16.numbers(&original.read_tensor(member, info).unwrap()).unwrap();
            wide.push(&info.name, "F32", &info.shape, numbers.into_iter().map(f32::to_le_bytes));
        }
        let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let options = FamilyOptions::default();
        let original = Model::of_checkpoint(&folder, wide.checkpoint().unwrap(), &text, options).unwrap();
        assert_eq!(found, logits(original), "{name}");
    }
}

#[test]
fn blocks_are_their_numbers() {
    let scale = half::f16::from_f32(0.5).to_le_bytes();
    let least = half::f16::from_f32(-3.0).to_le_bytes();
    let codes: [u8; 16] = std::array::from_fn(|i| u8::try_from(i).unwrap() | 0xa0);
    let check = |kind: BlockKind, block: &[u8], first: f32, last: f32| {
        let kind = Kind::Blocks(kind);
        assert_eq!(kind.bytes(64), Some(2 * block.len() as u64));
        let numbers = kind.numbers(&[block, block].concat()).unwrap();
        assert_eq!((numbers.len(), numbers[0], numbers[1 + 32], numbers[31]), (64, first, numbers[1], last));
    };
    check(BlockKind::Q4_0, &[&scale[..], &codes].concat(), -4.0, 1.0);
    check(BlockKind::Q4_1, &[&scale[..], &least, &codes].concat(), -3.0, 2.0);
    check(BlockKind::Q5_0, &[&scale[..], &[1, 0, 0, 0x80], &codes].concat(), 0.0, 5.0);
    let bytes: [u8; 32] = std::array::from_fn(|i| if i == 0 { 0x80 } else { 3 });
    check(BlockKind::Q8_0, &[&scale[..], &bytes].concat(), -64.0, 1.5);
    assert_eq!((Kind::Blocks(BlockKind::Q8_0).bytes(33), Kind::F32.bytes(u64::MAX)), (None, None));
}

#[test]
fn files_that_lie_are_refused() {
    let good = converted("llama_linear").bytes();
    let told = |bytes: &[u8], words: &str| {
        let error = of_bytes(bytes).err().unwrap();
        assert!(matches!(error, Error::InvalidArgument(_) | Error::NotFound { .. }), "{error:?}");
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
    told(&with(8, &u64::MAX.to_le_bytes()), "ends before");
    told(&with(16, &(1_u64 << 63).to_le_bytes()), "GGUF");
    told(&with(24, &u64::MAX.to_le_bytes()), "ends before");
    let changed = |change: &dyn Fn(&mut File)| {
        let mut file = converted("llama_linear");
        change(&mut file);
        file.bytes()
    };
    told(&changed(&|file| file.tensor("rope_freqs.weight", 0, &[4], &[0; 16])), "rope_freqs.weight");
    told(&changed(&|file| file.tensor("blk.0.ffn_gate_exps.weight", 0, &[4], &[0; 16])), "exps");
    told(&changed(&|file| file.tensor("output.weight", 12, &[96, 32], &[0; 96])), "type 12");
    told(&changed(&|file| file.tensor("output.weight", 2, &[96, 33], &[0; 96])), "within a block");
    told(&changed(&|file| file.tensor("output.weight", 0, &[1 << 63, 8], &[0; 96])), "behind the file");
    told(&changed(&|file| file.tensor("output_norm.weight", 0, &[32], &[0; 128])), "comes twice");
    let overlapping = |file: &mut File| {
        let data = std::mem::take(&mut file.data);
        file.tensor("output.weight", 0, &[96, 32], &[]);
        file.data = data;
    };
    told(&changed(&overlapping), "overlap");
    told(&changed(&|file| file.value("llama.expert_count", 4, &8_u32.to_le_bytes())), "experts");
    told(&changed(&|file| file.value("llama.rope.dimension_count", 4, &4_u32.to_le_bytes())), "only 4 of 8");
    told(&changed(&|file| file.value("general.alignment", 4, &3_u32.to_le_bytes())), "alignment");
    told(&changed(&|file| file.value("llama.attention.sliding_window", 4, &9_u32.to_le_bytes())), "window");
    let mut nested = Vec::new();
    (0..9).for_each(|_| nested.extend([&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat()));
    told(&changed(&|file| file.value("deep", 9, &nested)), "type 9");
    let mut other = converted("llama_linear");
    other.values.clear();
    other.value_count = 0;
    told(&other.bytes(), "general.architecture");
}
