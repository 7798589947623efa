//! The golden case of adapters that change a tensor in turn, or parts of one.
//!
//! Like all cases, it never changes once its container is in the repository.

use half::{bf16, f16};

use super::cases::{Case, Input};
use super::numbers::{Random, bf16s, f16s, f32s};
use crate::files::{Tensor, safetensors};

/// A product of factors, row by row.
fn product(b: &[f64], a: &[f64], [rows, rank, cols]: [usize; 3]) -> Vec<f64> {
    let element = |i: usize, j: usize| (0..rank).map(|k| b[i * rank + k] * a[k * cols + j]).sum::<f64>();
    (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))).map(|(i, j)| element(i, j)).collect()
}

/// Numbers that a dtype has.
fn rounded(numbers: &[f64], dtype: &str) -> Vec<f64> {
    let round = |x: &f64| match dtype {
        "BF16" => bf16::from_f64(*x).to_f64(),
        _ => f16::from_f64(*x).to_f64(),
    };
    numbers.iter().map(round).collect()
}

/// What the case is made of.
struct Files {
    random: Random,
    base: Vec<Tensor>,
    tuned: Vec<Tensor>,
    adapters: [Vec<Tensor>; 2],
}

impl Files {
    /// Adds factors of a module to an adapter, in the shapes of its layer.
    fn factors(&mut self, adapter: usize, module: &str, a: &[usize], b: &[usize]) -> [Vec<f64>; 2] {
        let mut factor = |part: &str, shape: &[usize], deviation: f64| {
            let numbers = rounded(&self.random.normals(shape.iter().product(), deviation), "BF16");
            let name = format!("base_model.model.{module}.{part}.weight");
            self.adapters[adapter].push(Tensor::new(&name, "F32", shape, f32s(&numbers)));
            numbers
        };
        [factor("lora_A", a, 0.2), factor("lora_B", b, 0.05)]
    }

    fn weights(&mut self, count: usize, dtype: &str) -> Vec<f64> {
        rounded(&self.random.normals(count, 0.02), dtype)
    }

    fn push(&mut self, name: &str, dtype: &'static str, shape: &[usize], before: &[f64], after: &[f64]) {
        let bytes = |numbers: &[f64]| if dtype == "BF16" { bf16s(numbers) } else { f16s(numbers) };
        self.base.push(Tensor::new(name, dtype, shape, bytes(before)));
        self.tuned.push(Tensor::new(name, dtype, shape, bytes(after)));
    }

    /// Two adapters, each rounded; the second at 0.75 of its scale.
    fn in_turn(&mut self) {
        let before = self.weights(40 * 32, "BF16");
        let mut after = before.clone();
        for (adapter, scale) in [(0, 2.0), (1, 1.5)] {
            let [a, b] = self.factors(adapter, "turn", &[3, 32], &[40, 3]);
            let update = product(&b, &a, [40, 3, 32]);
            let sums: Vec<f64> = after.iter().zip(update).map(|(x, d)| x + scale * d).collect();
            after = rounded(&sums, "BF16");
        }
        self.push("turn.weight", "BF16", &[40, 32], &before, &after);
    }

    /// Three pairs of factors for the rows of one tensor.
    fn fused(&mut self) {
        let before = self.weights(48 * 32, "BF16");
        let mut update = Vec::new();
        for (part, rows) in [("q", 24), ("k", 12), ("v", 12)] {
            let [a, b] = self.factors(0, &format!("attn.{part}_proj"), &[2, 32], &[rows, 2]);
            update.extend(product(&b, &a, [rows, 2, 32]));
        }
        let after: Vec<f64> = before.iter().zip(update).map(|(x, d)| x + 2.0 * d).collect();
        self.push("attn.qkv_proj.weight", "BF16", &[48, 32], &before, &after);
    }

    /// A pair of factors for each matrix of a stack.
    fn stacked(&mut self) {
        let (count, rows, rank, cols) = (4, 12, 2, 16);
        let before = self.weights(count * rows * cols, "BF16");
        let [a, b] = self.factors(0, "mlp.experts", &[count * rank, cols], &[rows, count * rank]);
        let mut update = Vec::new();
        for expert in 0..count {
            let a = &a[expert * rank * cols..(expert + 1) * rank * cols];
            let of_b = |i: usize, k: usize| b[i * rank * count + k * count + expert];
            let b: Vec<f64> = (0..rows * rank).map(|at| of_b(at / rank, at % rank)).collect();
            update.extend(product(&b, a, [rows, rank, cols]));
        }
        let after: Vec<f64> = before.iter().zip(update).map(|(x, d)| x + 2.0 * d).collect();
        self.push("mlp.experts.up_proj", "BF16", &[count, rows, cols], &before, &after);
    }

    /// Factors of a convolution; chunks end within rows of the matrix.
    fn convolution(&mut self) {
        let before = self.weights(70 * 36, "F16");
        let [a, b] = self.factors(0, "conv", &[2, 4, 3, 3], &[70, 2, 1, 1]);
        let update = product(&b, &a, [70, 2, 36]);
        let after: Vec<f64> = before.iter().zip(update).map(|(x, d)| x + 2.0 * d).collect();
        self.push("conv.weight", "F16", &[70, 4, 3, 3], &before, &after);
    }

    /// Rows with trained lengths.
    fn with_lengths(&mut self) {
        let before = self.weights(40 * 32, "BF16");
        let [a, b] = self.factors(1, "lengths", &[3, 32], &[40, 3]);
        let lengths = rounded(&self.random.normals(40, 0.01), "BF16");
        let lengths: Vec<f64> = lengths.iter().map(|x| x.abs() + 0.125).collect();
        let name = "base_model.model.lengths.lora_magnitude_vector";
        self.adapters[1].push(Tensor::new(name, "F32", &[40], f32s(&lengths)));
        let update = product(&b, &a, [40, 3, 32]);
        let sums: Vec<f64> = before.iter().zip(update).map(|(x, d)| x + 2.0 * d).collect();
        let row = |(row, length): (&[f64], &f64)| {
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter().map(|x| x * (length / norm)).collect::<Vec<f64>>()
        };
        let after: Vec<f64> = sums.chunks_exact(32).zip(&lengths).flat_map(row).collect();
        self.push("lengths.weight", "BF16", &[40, 32], &before, &after);
    }
}

/// All of them.
pub(super) fn merges() -> Case {
    let mut files =
        Files { random: Random::new(46), base: Vec::new(), tuned: Vec::new(), adapters: Default::default() };
    files.in_turn();
    files.fused();
    files.stacked();
    files.convolution();
    files.with_lengths();
    let adapter = |tensors: &[Tensor], config: &[u8]| {
        Input::Directory(vec![
            ("adapter_config.json", config.to_vec()),
            ("adapter_model.safetensors", safetensors(tensors)),
        ])
    };
    let (base, tuned) = (files.base, files.tuned);
    let config = br#"{"peft_type": "LORA", "r": 3, "lora_alpha": 6, "use_dora": null,
        "rank_pattern": {"(attn|mlp)\\..*|conv": 2}, "alpha_pattern": {"(attn|mlp)\\..*|conv": 4}}"#;
    let second = br#"{"peft_type": "LORA", "r": 3, "lora_alpha": 6, "use_dora": true}"#;
    let [one, two] = &files.adapters;
    let covers = "adapters in turn, for parts of tensors, and with lengths";
    let mut case = Case::new("merges", covers, &tuned, &[&base]);
    case.bases.extend([adapter(one, config), adapter(two, second)]);
    case.chunk_log2 = 10;
    case
}
