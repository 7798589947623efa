//! Adapters that were merged in turn, or into parts of tensors, or that other tools wrote: they are
//! found, and named if they explain nothing.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::*;
use deltaloom::{Bases, InPlaceOptions, Limits, PackReport, Silent};

const CONFIG: &str = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8}"#;
const RANK: usize = 4;
const SCALE: f32 = 2.0;

fn halves(values: &[f32]) -> Vec<f32> {
    values.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect()
}

fn product(b: &[f32], a: &[f32], rank: usize) -> Vec<f32> {
    let cols = a.len() / rank;
    let element =
        |u: &[f32], j: usize| (1..rank).fold(u[0] * a[j], |sum, k| u[k].mul_add(a[k * cols + j], sum));
    b.chunks_exact(rank).flat_map(|u| (0..cols).map(move |j| element(u, j))).collect()
}

fn added(values: &[f32], update: &[f32], scale: f32) -> Vec<f32> {
    halves(&values.iter().zip(update).map(|(x, d)| x + scale * d).collect::<Vec<f32>>())
}

fn stored(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
    let shape: Vec<u64> = shape.iter().map(|dim| *dim as u64).collect();
    tensor(name, "BF16", &shape, bf16_bytes(values))
}

/// Adapters, and where they are written.
struct Adapters {
    random: Random,
    files: Vec<Vec<Tensor>>,
}

impl Adapters {
    fn new(count: usize) -> Self {
        Self { random: Random::new(9), files: (0..count).map(|_| Vec::new()).collect() }
    }

    fn factor(&mut self, adapter: usize, name: &str, shape: &[usize]) -> Vec<f32> {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| 0.05 * self.random.normal()).collect();
        let shape: Vec<u64> = shape.iter().map(|dim| *dim as u64).collect();
        self.files[adapter].push(tensor(name, "F32", &shape, f32_bytes(&values)));
        values
    }

    /// The product of the factors of a module, which it gets.
    fn module(&mut self, adapter: usize, module: &str, [rows, cols]: [usize; 2]) -> Vec<f32> {
        let a = self.factor(adapter, &format!("base_model.model.{module}.lora_A.weight"), &[RANK, cols]);
        let b = self.factor(adapter, &format!("base_model.model.{module}.lora_B.weight"), &[rows, RANK]);
        product(&b, &a, RANK)
    }

    /// Packs with the adapters as folders, restores, and restores some rows of each tensor.
    fn packed(&self, base: &[Tensor], tuned: &[Tensor]) -> (PackReport, Bases) {
        let (base, file) = (safetensors(base), safetensors(tuned));
        let folder = tempfile::tempdir().unwrap();
        let mut all = bases(&[&base]);
        for (i, tensors) in self.files.iter().enumerate() {
            let path = folder.path().join(i.to_string());
            let files = [
                ("adapter_config.json", CONFIG.as_bytes().to_vec()),
                ("adapter_model.safetensors", safetensors(tensors)),
            ];
            write_tree(&path, &files);
            all.push_adapter(&path, &Limits::default()).unwrap();
        }
        let mut container = Vec::new();
        let options = options().with_chunk_log2(10);
        let report =
            deltaloom::pack_to(&checkpoint(&file).unwrap(), &all, &mut container, &options, &Silent).unwrap();
        assert!(unpack_with(&container, &all).unwrap() == file);
        let resolved = resolve(&container, &all).unwrap();
        for tensor in tuned {
            let rows = tensor.shape[0];
            let row_bytes = tensor.bytes.len() / usize::try_from(rows).unwrap();
            let mut part = Vec::new();
            deltaloom::read_tensor(&resolved, &tensor.name, rows / 2..rows / 2 + 2, &mut part).unwrap();
            let start = usize::try_from(rows / 2).unwrap() * row_bytes;
            assert!(part == tensor.bytes[start..start + 2 * row_bytes], "{}", tensor.name);
        }
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, &base).unwrap();
        let (opened, options) = (open(&container).unwrap(), InPlaceOptions::default());
        deltaloom::unpack_in_place(opened, &path, &all, &options, &Silent).unwrap();
        assert!(std::fs::read(&path).unwrap() == file, "in place");
        (report, all)
    }
}

fn assert_explained(report: &PackReport, predictor: &str) {
    for tensor in &report.tensors {
        assert_eq!(tensor.predictor, predictor, "{}", tensor.name);
        assert!(tensor.changed_fraction.unwrap() < 0.002, "{}: {:?}", tensor.name, tensor.changed_fraction);
    }
    assert!(report.adapters.iter().all(|adapter| adapter.unused.is_empty()), "{:?}", report.adapters);
}

#[test]
fn adapters_merged_in_turn_are_found_in_any_order_and_at_any_strength() {
    let mut adapters = Adapters::new(2);
    let base = halves(&adapters.random.weights(96 * 40));
    let updates = [0, 1].map(|i| adapters.module(i, "w", [96, 40]));
    for (first, second, scale) in [(0, 1, SCALE), (1, 0, SCALE), (0, 1, 1.4), (0, 1, -0.3)] {
        let tuned = added(&added(&base, &updates[first], SCALE), &updates[second], scale);
        let [base, tuned] = [&base, &tuned].map(|values| stored("w.weight", &[96, 40], values));
        let (report, _) = adapters.packed(&[base], &[tuned]);
        assert_explained(&report, "adapters");
    }
    // One of the two was not merged.
    let tuned = added(&base, &updates[1], SCALE);
    let [base, tuned] = [&base, &tuned].map(|values| stored("w.weight", &[96, 40], values));
    let (report, _) = adapters.packed(&[base], &[tuned]);
    assert_eq!(report.tensors[0].predictor, "adapter");
    assert_eq!((report.adapters[0].used_modules, report.adapters[1].used_modules), (0, 1));
    assert_eq!(report.adapters[0].unused, ["w"]);
}

#[test]
fn parts_of_tensors_are_changed() {
    let mut adapters = Adapters::new(1);
    let fused = halves(&adapters.random.weights(80 * 32));
    let parts = [("q", 48), ("k", 16), ("v", 16)];
    let update: Vec<f32> = parts
        .iter()
        .flat_map(|(part, rows)| adapters.module(0, &format!("l.0.attn.{part}_proj"), [*rows, 32]))
        .collect();
    let after = added(&fused, &update, SCALE);
    // The reverse: the factors are fused, the tensors are not.
    let split = halves(&adapters.random.weights(64 * 32));
    let update = adapters.module(0, "l.0.mlp.gate_up", [64, 32]);
    let split_after = added(&split, &update, SCALE);
    let file = |fused: &[f32], split: &[f32]| {
        let (gate, up) = split.split_at(32 * 32);
        [
            stored("l.0.attn.qkv_proj.weight", &[80, 32], fused),
            stored("l.0.mlp.gate.weight", &[32, 32], gate),
            stored("l.0.mlp.up.weight", &[32, 32], up),
        ]
    };
    let (report, _) = adapters.packed(&file(&fused, &split), &file(&after, &split_after));
    assert_explained(&report, "adapters");
}

#[test]
fn factors_of_stacks_and_of_convolutions_are_found() {
    let (count, rows, rank, cols) = (4, 24, 2, 20);
    for ranks_are_adjacent in [false, true] {
        let mut adapters = Adapters::new(1);
        let conv = halves(&adapters.random.weights(70 * 36));
        let a = adapters.factor(0, "conv.lora_A.weight", &[RANK, 4, 3, 3]);
        let b = adapters.factor(0, "conv.lora_B.weight", &[70, RANK, 1, 1]);
        let conv_after = added(&conv, &product(&b, &a, RANK), SCALE);
        let experts = halves(&adapters.random.weights(count * rows * cols));
        let a = adapters.factor(0, "mlp.experts.base_layer.lora_A.weight", &[count * rank, cols]);
        let b = adapters.factor(0, "mlp.experts.base_layer.lora_B.weight", &[rows, count * rank]);
        let of_one = |i: usize| {
            let at = |k: usize| if ranks_are_adjacent { i * rank + k } else { k * count + i };
            let u: Vec<f32> = (0..rows * rank).map(|x| b[x / rank * count * rank + at(x % rank)]).collect();
            product(&u, &a[i * rank * cols..(i + 1) * rank * cols], rank)
        };
        let update: Vec<f32> = (0..count).flat_map(of_one).collect();
        let after = added(&experts, &update, SCALE);
        let file = |conv: &[f32], experts: &[f32]| {
            [
                stored("conv.weight", &[70, 4, 3, 3], conv),
                stored("mlp.experts.gate_up_proj", &[count, rows, cols], experts),
            ]
        };
        let (report, _) = adapters.packed(&file(&conv, &experts), &file(&conv_after, &after));
        assert_explained(&report, "adapters");
    }
}

#[test]
fn rows_get_their_trained_lengths() {
    let mut adapters = Adapters::new(1);
    let base = halves(&adapters.random.weights(96 * 40));
    let update = adapters.module(0, "w", [96, 40]);
    let lengths: Vec<f32> = (0..96).map(|_| 0.13 + 0.01 * adapters.random.normal()).collect();
    let name = "base_model.model.w.lora_magnitude_vector";
    adapters.files[0].push(tensor(name, "F32", &[96], f32_bytes(&lengths)));
    let sums: Vec<f32> = base.iter().zip(&update).map(|(x, d)| x + SCALE * d).collect();
    let row = |(row, length): (&[f32], &f32)| {
        let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
        let factor = f64::from(*length) / squares.sqrt();
        row.iter().map(|x| half::bf16::from_f64(f64::from(*x) * factor).to_f32()).collect::<Vec<f32>>()
    };
    let tuned: Vec<f32> = sums.chunks_exact(40).zip(&lengths).flat_map(row).collect();
    let folder = tempfile::tempdir().unwrap();
    let files = [
        ("adapter_config.json", CONFIG.replace('}', r#", "use_dora": true}"#).into_bytes()),
        ("adapter_model.safetensors", safetensors(&adapters.files[0])),
    ];
    write_tree(folder.path(), &files);
    let [base, tuned] = [&base, &tuned].map(|values| safetensors(&[stored("w.weight", &[96, 40], values)]));
    let mut all = bases(&[&base]);
    all.push_adapter(folder.path(), &Limits::default()).unwrap();
    let mut container = Vec::new();
    let report =
        deltaloom::pack_to(&checkpoint(&tuned).unwrap(), &all, &mut container, &options(), &Silent).unwrap();
    assert_explained(&report, "adapters");
    assert!(unpack_with(&container, &all).unwrap() == tuned);
}

#[test]
fn layers_may_be_copies_and_names_longer() {
    let mut adapters = Adapters::new(1);
    let layers = [0, 1].map(|_| halves(&adapters.random.weights(64 * 32)));
    let name = |layer: usize| format!("h.{layer}.attn.c_proj.weight");
    let base = [0, 1].map(|layer| stored(&name(layer), &[64, 32], &layers[layer]));
    let tuned = [0, 1, 2, 3].map(|layer| {
        let update = adapters.module(0, &format!("transformer.h.{layer}.attn.c_proj"), [64, 32]);
        stored(&name(layer), &[64, 32], &added(&layers[layer / 2], &update, SCALE))
    });
    let folder = tempfile::tempdir().unwrap();
    let files = [
        ("adapter_config.json", CONFIG.as_bytes().to_vec()),
        ("adapter_model.safetensors", safetensors(&adapters.files[0])),
    ];
    write_tree(folder.path(), &files);
    let tuned = safetensors(&tuned);
    let mut all = bases(&[&safetensors(&base)]);
    all.push_adapter(folder.path(), &Limits::default()).unwrap();
    let mut container = Vec::new();
    let report =
        deltaloom::pack_to(&checkpoint(&tuned).unwrap(), &all, &mut container, &options(), &Silent).unwrap();
    assert_explained(&report, "adapter");
    assert!(unpack_with(&container, &all).unwrap() == tuned);
}

#[test]
fn a_file_of_factors_is_an_adapter() {
    let mut adapters = Adapters::new(1);
    let base = halves(&adapters.random.weights(64 * 32));
    let down = adapters.factor(0, "lora_unet_down_0_to_q.lora_down.weight", &[RANK, 32]);
    let up = adapters.factor(0, "lora_unet_down_0_to_q.lora_up.weight", &[64, RANK]);
    adapters.files[0].push(tensor("lora_unet_down_0_to_q.alpha", "F16", &[], f16_bytes(&[2.0])));
    // Factors that do not fit together, and a number that is none.
    adapters.factor(0, "odd.lora_down.weight", &[RANK, 32]);
    adapters.factor(0, "odd.lora_up.weight", &[64, RANK + 1]);
    let tuned = added(&base, &product(&up, &down, RANK), 0.5);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    std::fs::write(&path, safetensors(&adapters.files[0])).unwrap();
    let [base, tuned] =
        [&base, &tuned].map(|values| safetensors(&[stored("down.0.to_q.weight", &[64, 32], values)]));
    let mut all = bases(&[&base]);
    all.push_adapter(&path, &Limits::default()).unwrap();
    let warnings: Vec<String> = all.warnings().iter().map(ToString::to_string).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("odd"), "{warnings:?}");
    let mut container = Vec::new();
    let report =
        deltaloom::pack_to(&checkpoint(&tuned).unwrap(), &all, &mut container, &options(), &Silent).unwrap();
    assert_explained(&report, "adapter");
    assert!(unpack_with(&container, &all).unwrap() == tuned);
    // A file without factors is none.
    std::fs::write(&path, &base).unwrap();
    assert!(Bases::default().push_adapter(&path, &Limits::default()).is_err());
}
