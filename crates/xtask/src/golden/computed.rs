//! Golden cases whose predictions are computed: merged adapters, blends, low-rank updates.
//!
//! Like all cases, they never change once their container is in the repository.

use half::{bf16, f16};

use super::cases::{Case, Input};
use super::numbers::{Random, f32s};
use crate::files::{Tensor, safetensors};

const ROWS: usize = 40;
const COLS: usize = 32;
const RANK: usize = 4;

fn singles(random: &mut Random, count: usize, deviation: f64) -> Vec<f32> {
    random.normals(count, deviation).iter().map(|x| bf16::from_f64(*x).to_f32()).collect()
}

fn tensor(name: &str, dtype: &'static str, shape: [usize; 2], values: &[f32]) -> Tensor {
    let bytes = match dtype {
        "BF16" => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        "F16" => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    Tensor::new(name, dtype, &shape, bytes)
}

/// Sums of products in the order of the rank.
fn product(left: &[f32], right: &[f32], step: impl Fn(f32, f32, f32) -> f32) -> Vec<f32> {
    let element = |i: usize, j: usize| {
        let terms = (1..RANK).map(|k| (left[i * RANK + k], right[k * COLS + j]));
        terms.fold(left[i * RANK] * right[j], |sum, (u, v)| step(u, v, sum))
    };
    (0..ROWS).flat_map(|i| (0..COLS).map(move |j| element(i, j))).collect()
}

pub(super) fn all() -> Vec<Case> {
    vec![adapters(), blends(), low_rank()]
}

fn adapters() -> Case {
    let mut random = Random::new(21);
    let base = singles(&mut random, ROWS * COLS, 0.02);
    let other = singles(&mut random, ROWS * COLS, 0.02);
    let (a, b) = (singles(&mut random, RANK * COLS, 0.2), singles(&mut random, ROWS * RANK, 0.02));
    let fused = product(&b, &a, f32::mul_add);
    let plain = product(&b, &a, |u, v, sum| sum + u * v);
    let shape = [ROWS, COLS];
    let add_to =
        |base: &[f32], update: &[f32]| base.iter().zip(update).map(|(x, d)| x + d).collect::<Vec<f32>>();
    let add = |update: &[f32]| add_to(&base, update);
    let doubled = |update: &[f32]| update.iter().map(|x| x * 2.0).collect::<Vec<f32>>();
    let half = |x: &f32| bf16::from_f32(*x).to_f32();
    let tuned = [
        tensor("fused.weight", "F32", shape, &add(&doubled(&fused))),
        tensor("plain.weight", "F32", shape, &add_to(&other, &doubled(&plain))),
        tensor(
            "rounded.weight",
            "BF16",
            shape,
            &add(&fused.iter().map(|x| half(&(x * 2.0))).collect::<Vec<_>>()),
        ),
    ];
    let transposed = |values: &[f32]| -> Vec<f32> {
        (0..COLS).flat_map(|j| (0..ROWS).map(move |i| values[i * COLS + j])).collect()
    };
    let crosswise = add(&doubled(&fused));
    let crosswise = tensor("crosswise.weight", "F16", [COLS, ROWS], &transposed(&crosswise));
    let tuned: Vec<Tensor> = tuned.into_iter().chain([crosswise]).collect();
    let of_base = [
        tensor("fused.weight", "F32", shape, &base),
        tensor("plain.weight", "F32", shape, &other),
        tensor("rounded.weight", "BF16", shape, &base),
        tensor("crosswise.weight", "F16", [COLS, ROWS], &transposed(&base)),
    ];
    let factors = ["fused", "plain", "rounded", "crosswise"].iter().flat_map(|module| {
        [
            tensor(&format!("base_model.model.{module}.lora_A.weight"), "F32", [RANK, COLS], &a),
            tensor(&format!("base_model.model.{module}.lora_B.weight"), "F32", [ROWS, RANK], &b),
        ]
    });
    let config = br#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["fused"]}"#;
    let adapter = Input::Directory(vec![
        ("adapter_config.json", config.to_vec()),
        ("adapter_model.safetensors", safetensors(&factors.collect::<Vec<_>>())),
    ]);
    let mut case =
        Case::new("adapters", "merged adapters in several orders of operations", &tuned, &[&of_base]);
    case.bases.push(adapter);
    case
}

fn blends() -> Case {
    let mut random = Random::new(22);
    let count = 800;
    let base = singles(&mut random, count, 0.02);
    let mut near = || -> Vec<f32> {
        base.iter().zip(f32s_of(&mut random, count)).map(|(x, d)| bf16::from_f32(x + d).to_f32()).collect()
    };
    let (one, two) = (near(), near());
    let each = |f: &dyn Fn(f32, f32, f32) -> f32| -> Vec<f32> {
        (0..count).map(|i| f(base[i], one[i], two[i])).collect()
    };
    let trim = |d: f32| if d.abs() < 0.002 { 0.0 } else { d };
    let ties = |x: f32, y: f32, z: f32| {
        let (d, e) = (trim(y - x), trim(z - x));
        let agreeing: Vec<f32> = [d, e].into_iter().filter(|t| t * (d + e) > 0.0).collect();
        let count = f32::from(u8::try_from(agreeing.len()).unwrap_or(0));
        if agreeing.is_empty() { x } else { x + 0.8 * (agreeing.iter().sum::<f32>() / count) }
    };
    let shape = [32, 25];
    let names = ["linear", "halves", "task", "ties"];
    let dtypes = ["F32", "BF16", "F32", "F32"];
    let merged = [
        each(&|_, y, z| 0.3 * y + 0.7 * z),
        each(&|_, y, z| 0.5 * y + 0.5 * z),
        each(&|x, y, z| y + 0.4 * (z - x)),
        each(&ties),
    ];
    let file = |values: [&[f32]; 4]| -> Vec<Tensor> {
        (0..4).map(|i| tensor(names[i], dtypes[i], shape, values[i])).collect()
    };
    let tuned = file([&merged[0], &merged[1], &merged[2], &merged[3]]);
    let bases = [file([&base; 4]), file([&one; 4]), file([&two; 4])];
    Case::new(
        "blends",
        "weighted sums, task arithmetic and trimmed differences",
        &tuned,
        &[&bases[0], &bases[1], &bases[2]],
    )
}

fn f32s_of(random: &mut Random, count: usize) -> Vec<f32> {
    f32s(&random.normals(count, 0.002)).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn low_rank() -> Case {
    let mut random = Random::new(23);
    let names = [("single", "F32"), ("half", "BF16")];
    let (mut base, mut tuned) = (Vec::new(), Vec::new());
    for (name, dtype) in names {
        let values = singles(&mut random, ROWS * COLS, 0.02);
        let (left, right) = (singles(&mut random, ROWS * RANK, 0.2), singles(&mut random, RANK * COLS, 0.02));
        // Only two of the rank remain.
        let left: Vec<f32> =
            left.iter().enumerate().map(|(i, x)| if i % RANK < 2 { *x } else { 0.0 }).collect();
        let update = product(&left, &right, |u, v, sum| sum + u * v);
        let merged: Vec<f32> = values.iter().zip(&update).map(|(x, d)| x + d).collect();
        base.push(tensor(name, dtype, [ROWS, COLS], &values));
        tuned.push(tensor(name, dtype, [ROWS, COLS], &merged));
    }
    Case::new("low_rank", "updates of rank 2, without their factors", &tuned, &[&base])
}

/// Added products in tensors that are no matrices; since version 4. Rows of the matrices end
/// within chunks.
pub(super) fn low_ranks() -> Case {
    let mut random = Random::new(45);
    let shapes: [(&str, &str, &[usize], usize); 3] = [
        ("conv", "BF16", &[40, 8, 2, 2], 40 * COLS),
        ("experts", "F32", &[3, ROWS, COLS], ROWS * COLS),
        ("kernel", "F16", &[20, 16, 2, 2], 40 * COLS),
    ];
    let (mut base, mut tuned) = (Vec::new(), Vec::new());
    for (name, dtype, shape, matrix) in shapes {
        let elems = shape.iter().product();
        let values = singles(&mut random, elems, 0.02);
        let mut merged = values.clone();
        for (i, part) in merged.chunks_exact_mut(matrix).enumerate().filter(|(i, _)| *i != 1) {
            let left = singles(&mut random, ROWS * RANK, 0.2);
            let right = singles(&mut random, RANK * COLS, 0.02);
            // The first matrix gets rank 2, the third rank 1.
            let of_rank = |(at, x): (usize, &f32)| if at % RANK < 2 - i / 2 { *x } else { 0.0 };
            let left: Vec<f32> = left.iter().enumerate().map(of_rank).collect();
            let update = product(&left, &right, |u, v, sum| sum + u * v);
            part.iter_mut().zip(update).for_each(|(x, d)| *x += d);
        }
        let file = |values: &[f32]| {
            let bytes = tensor(name, dtype, [1, elems], values).bytes;
            Tensor::new(name, dtype, shape, bytes)
        };
        base.push(file(&values));
        tuned.push(file(&merged));
    }
    Case::new("low_ranks", "products added to convolutions and to experts", &tuned, &[&base])
}

/// Products that explain a part of each change, in every dtype; since version 4.
pub(super) fn drift() -> Case {
    const SIDES: [usize; 2] = [72, 64];
    let mut random = Random::new(87);
    let (mut base, mut tuned) = (Vec::new(), Vec::new());
    for (name, dtype) in [("single", "F32"), ("brain", "BF16"), ("half", "F16")] {
        let elems = SIDES[0] * SIDES[1];
        let values = singles(&mut random, elems, 0.02);
        let (left, right) = (random.normals(SIDES[0] * 2, 1.0), random.normals(2 * SIDES[1], 0.004));
        let rest = random.normals(elems, 0.001);
        let change = |at: usize| {
            let (i, j) = (at / SIDES[1], at % SIDES[1]);
            left[2 * i] * right[j] + left[2 * i + 1] * right[SIDES[1] + j] + rest[at]
        };
        #[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is intended")]
        let trained: Vec<f32> =
            values.iter().enumerate().map(|(at, x)| (f64::from(*x) + change(at)) as f32).collect();
        base.push(tensor(name, dtype, SIDES, &values));
        tuned.push(tensor(name, dtype, SIDES, &trained));
    }
    Case::new("drift", "products that explain a part of a change", &tuned, &[&base])
}
