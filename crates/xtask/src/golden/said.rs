//! Golden cases for the features of version 4: what a container says about itself, tails of files,
//! views, conversions, files of other formats, and patches of text.
//!
//! Like all cases, they never change once their container is in the repository.

use super::blocks::blocks;
use super::cases::{Case, Input};
use super::computed::{drift, low_ranks};
use super::k_quants::{k_quants, nested};
use super::merges::merges;
use super::numbers::{Random, bf16s, f8_e4m3s, f8_e5m2s, f16s, f32s};
use super::quantised::{nibbles, quantised};
use crate::files::{Tensor, gguf, safetensors, torch_archive};

/// Cases of format version 4, in the order in which they were added.
pub(super) fn since_4() -> Vec<Case> {
    vec![
        identity(),
        tails(),
        views(),
        own_views(),
        conversions(),
        quantised(),
        nibbles(),
        frames(),
        merges(),
        texts(),
        blocks(),
        low_ranks(),
        layouts(),
        k_quants(),
        nested(),
        drift(),
    ]
}

/// Names and texts with multi-byte characters; a base whose samples are a part of its tensors.
fn identity() -> Case {
    let mut random = Random::new(41);
    let (mut large, small) = (random.normals(3000, 0.02), random.normals(40, 1.0));
    let file = |large: &[f64]| {
        [
            Tensor::new("large.weight", "BF16", &[60, 50], bf16s(large)),
            Tensor::new("norm.weight", "F32", &[40], f32s(&small)),
        ]
    };
    let base = file(&large);
    large.iter_mut().step_by(7).for_each(|value| *value *= 1.01);
    let case = Case::new("identity", "names of bases and texts", &file(&large), &[&base]);
    let said = Said {
        base_names: vec!["org/base@5f0b02c"],
        texts: vec![("licence", "MIT"), ("note", "two lines\nand \u{fc}"), ("\u{e9}poque", "")],
    };
    Case { said: Some(said), ..case }
}

/// Shards with bytes after their last tensor, one of them with a tensor that has the name of a
/// tail.
fn tails() -> Case {
    let mut random = Random::new(42);
    let (mut first, mut second) = (random.normals(1200, 0.02), random.normals(900, 0.02));
    let mut bytes: Vec<u8> = (0..3000u32).map(|i| (i * i % 251).to_le_bytes()[0]).collect();
    let folder = |first: &[f64], second: &[f64], bytes: &[u8]| {
        let one = safetensors(&[Tensor::new("a.weight", "BF16", &[30, 40], bf16s(first))]);
        let two = safetensors(&[Tensor::new("__tail__", "BF16", &[900], bf16s(second))]);
        Input::Directory(vec![
            ("model-00001-of-00002.safetensors", [&one[..], b"more"].concat()),
            ("model-00002-of-00002.safetensors", [&two[..], bytes].concat()),
        ])
    };
    let base = folder(&first, &second, &bytes);
    first.iter_mut().step_by(5).for_each(|value| *value *= 1.01);
    second.iter_mut().step_by(3).for_each(|value| *value *= 0.99);
    bytes.iter_mut().step_by(100).for_each(|byte| *byte ^= 1);
    let case = Case::new("tails", "bytes behind the last tensor", &[], &[]);
    Case { original: folder(&first, &second, &bytes), bases: vec![base], ..case }
}

/// A folder of small files: one that grew, one with edits everywhere, one of another folder, and
/// one that is new.
fn texts() -> Case {
    let line = |i: u32| format!("  \"token{}\": {i}", i * i % 7919);
    let lines = |separator: &str, numbers: &mut dyn Iterator<Item = u32>| {
        let lines: Vec<String> = numbers.map(line).collect();
        format!("{{\n{}\n}}\n", lines.join(separator)).into_bytes()
    };
    let base = Input::Directory(vec![
        ("old/vocab.json", lines(",\n", &mut (0..60))),
        ("tokenizer.json", lines(",\n", &mut (0..180))),
        ("trainer_state.json", lines(",\n", &mut (100..160))),
    ]);
    let original = Input::Directory(vec![
        ("new/vocab.json", lines(", ", &mut (0..60).rev())),
        ("notes.txt", b"nothing like it is in the base".to_vec()),
        ("tokenizer.json", lines(" ,\n", &mut (0..180).filter(|i| i % 50 != 3))),
        ("trainer_state.json", lines(",\n", &mut (100..170))),
    ]);
    let case = Case::new("texts", "files that are patches of files of a base", &[], &[]);
    Case { original, bases: vec![base], ..case }
}

/// Files of JSON with the tokens of others in another layout, with escapes of all kinds.
fn layouts() -> Case {
    let token = |i: u32| format!("t{}\u{e9}\u{1f600}", i * i % 7919);
    let lines =
        |separator: &str, lines: &mut dyn Iterator<Item = String>| lines.collect::<Vec<_>>().join(separator);
    let vocab = |token: &dyn Fn(u32) -> String, separator: &str, colon: &str| {
        lines(separator, &mut (0..200).map(|i| format!("\"{}\"{colon}{i}", token(i))))
    };
    let ascii = |i: u32| token(i).replace('\u{e9}', "\\u00e9").replace('\u{1f600}', "\\ud83d\\ude00");
    let odd = r#""\ud800x","\q","a\/b","\u007f""#;
    let records = |colon: &str, comma: &str, separator: &str| {
        let record = |i: u32| format!("{{\"id\"{colon}{}{comma}\"on\"{colon}[true{comma}null]}}", i * 7);
        lines(separator, &mut (0..80).map(record))
    };
    let base = Input::Directory(vec![
        ("records.json", format!("[{}]", records(": ", ", ", ", ")).into_bytes()),
        ("tokens.json", format!("{{{}, \"odd\": [{odd}]}}", vocab(&token, ", ", ": ")).into_bytes()),
        ("vocab.json", format!("{{\n  {}\n}}\n", vocab(&ascii, ",\n  ", ": ")).into_bytes()),
    ]);
    let odd = "\"\\ud800x\",\r\n\t\t\"\\q\",\r\n\t\t\"a/b\",\r\n\t\t\"\\u007f\"";
    let tokens = vocab(&ascii, ",\r\n\t", ":");
    let original = Input::Directory(vec![
        ("records.json", format!("[\n{}\n]\n", records(":", ",", ",\n")).into_bytes()),
        ("tokens.json", format!("{{\r\n\t{tokens},\r\n\t\"odd\":[\r\n\t\t{odd}\r\n\t]\r\n}}").into_bytes()),
        ("vocab.json", format!("{{{}}}", vocab(&token, ",", ":")).into_bytes()),
    ]);
    let case = Case::new("layouts", "patches of texts that are laid out anew", &[], &[]);
    Case { original, bases: vec![base], ..case }
}

/// Tensors with other rows, fused, stacked and transposed, in another order, and of another shape.
fn views() -> Case {
    let mut random = Random::new(43);
    let mut matrix = || random.normals(1920, 0.02);
    let [a, b, c, d] = [matrix(), matrix(), matrix(), matrix()];
    let trained = |values: &[f64]| -> Vec<f64> {
        values.iter().enumerate().map(|(i, value)| if i % 5 == 0 { value * 1.01 } else { *value }).collect()
    };
    let rows = |values: &[f64], of: &[usize]| -> Vec<f64> {
        of.iter().flat_map(|row| values[row * 48..(row + 1) * 48].to_vec()).collect()
    };
    let turned = |values: &[f64]| -> Vec<f64> {
        (0..48).flat_map(|column| (0..40).map(move |row| values[row * 48 + column])).collect()
    };
    let matrix = |name, shape: &[usize], values: &[f64]| Tensor::new(name, "BF16", shape, bf16s(values));
    let base =
        [("a", &a), ("b", &b), ("c", &c), ("d", &d)].map(|(name, values)| matrix(name, &[40, 48], values));
    let grown = [trained(&a), vec![0.0; 96], vec![0.5; 48]].concat();
    let kept: Vec<usize> = (0..40).filter(|row| row % 3 != 1).collect();
    let halves: Vec<usize> = (0..40).map(|row| row % 2 * 20 + row / 2).collect();
    let woven: Vec<f64> = a.iter().zip(trained(&c)).flat_map(|(a, c)| [*a, c]).collect();
    let original = [
        matrix("grown", &[43, 48], &grown),
        matrix("trimmed", &[kept.len(), 48], &rows(&b, &kept)),
        matrix("interleaved", &[40, 48], &trained(&rows(&c, &halves))),
        matrix("fused", &[80, 48], &trained(&[a.clone(), d.clone()].concat())),
        matrix("stacked", &[2, 48, 40], &[turned(&trained(&b)), turned(&c)].concat()),
        matrix("reshaped", &[40, 48, 1], &d),
        matrix("woven", &[40, 96], &woven),
    ];
    Case { chunk_log2: 10, ..Case::new("views", "pieces of tensors of a base", &original, &[&base]) }
}

/// Pieces of tensors of the same file, and of none that has a base.
fn own_views() -> Case {
    let mut random = Random::new(47);
    let (a, b) = (random.normals(2048, 0.02), random.normals(2048, 0.02));
    let trained = |values: &[f64]| -> Vec<f64> {
        values.iter().enumerate().map(|(i, value)| if i % 5 == 0 { value * 1.01 } else { *value }).collect()
    };
    let turned: Vec<f64> =
        (0..64).flat_map(|column| (0..32).map(move |row| row * 64 + column)).map(|place| b[place]).collect();
    let matrix = |name, shape: &[usize], values: &[f64]| Tensor::new(name, "BF16", shape, bf16s(values));
    let original = [
        matrix("a", &[32, 64], &a),
        matrix("b", &[32, 64], &b),
        matrix("grown", &[35, 64], &[trained(&a), vec![0.0; 128], vec![0.5; 64]].concat()),
        matrix("halves", &[32, 64], &[&b[1024..], &trained(&a)[..1024]].concat()),
        matrix("turned", &[64, 32], &trained(&turned)),
        Tensor::new("wide", "F32", &[30, 64], f32s(&a[128..2048])),
    ];
    Case { chunk_log2: 10, ..Case::new("own_views", "pieces of tensors of the same file", &original, &[]) }
}

/// References of every float dtype, and tensors that were stored in a wider one, equal or not.
fn conversions() -> Case {
    let mut random = Random::new(44);
    let of = |name, dtype, values: &[f64]| {
        let bytes = match dtype {
            "F32" => f32s(values),
            "F16" => f16s(values),
            "F8_E4M3" => f8_e4m3s(values),
            "F8_E5M2" => f8_e5m2s(values),
            _ => bf16s(values),
        };
        Tensor::new(name, dtype, &[30, 40], bytes)
    };
    let rounded = |values: &[f64]| -> Vec<f64> {
        let widened = |b: &[u8]| f64::from(f32::from_le_bytes([0, 0, b[0], b[1]]));
        bf16s(values).chunks_exact(2).map(widened).collect()
    };
    let (mut base, mut original) = (Vec::new(), Vec::new());
    let pairs = [
        ("f32_to_bf16", "F32", "BF16"),
        ("bf16_to_f16", "BF16", "F16"),
        ("f16_to_f32", "F16", "F32"),
        ("f32_to_e4m3", "F32", "F8_E4M3"),
        ("f16_to_e5m2", "F16", "F8_E5M2"),
        ("e4m3_to_bf16", "F8_E4M3", "BF16"),
        ("e5m2_to_f32", "F8_E5M2", "F32"),
    ];
    for (name, from, to) in pairs {
        let values = random.normals(1200, 0.02);
        let moved: Vec<f64> = values.iter().map(|value| value * 1.002).collect();
        base.push(of(name, from, &values));
        original.push(of(name, to, &moved));
    }
    for (name, wide, step) in [("wide", "F32", 1.002), ("wide_16", "F16", 1.002), ("equal", "F32", 1.0)] {
        let values = random.normals(1200, 0.02);
        let moved: Vec<f64> = values.iter().map(|value| value * step).collect();
        base.push(of(name, "BF16", &values));
        original.push(of(name, wide, &rounded(&moved)));
    }
    Case::new("conversions", "references of other dtypes", &original, &[&base])
}

/// A PyTorch archive that differs from one of the base, and a GGUF file whose tensors are in a
/// safetensors file of the base.
fn frames() -> Case {
    let mut random = Random::new(45);
    let mut values = || random.normals(1280, 0.02);
    let (mut weights, mut moments, mut other) = (values(), values(), values());
    let mut blocks: Vec<u8> = (0..34 * 30u32).map(|i| (i * i % 241).to_le_bytes()[0]).collect();
    let archive = |weights: &[f64], moments: &[f64]| {
        torch_archive(&[
            Tensor::new("model.weight", "BF16", &[32, 40], bf16s(weights)),
            Tensor::new("state.0.step", "F32", &[], f32s(&[3.0])),
            Tensor::new("state.0.exp_avg", "F32", &[32, 40], f32s(moments)),
            Tensor::new("__frame__", "U8", &[0], Vec::new()),
        ])
    };
    let in_gguf = |other: &[f64], blocks: &[u8]| {
        [
            Tensor::new("other", "F32", &[32, 40], f32s(other)),
            Tensor::new("blocks", "U8", &[15, 68], blocks.to_vec()),
        ]
    };
    let base = Input::Directory(vec![
        ("other.safetensors", safetensors(&in_gguf(&other, &blocks))),
        ("training.pt", archive(&weights, &moments)),
    ]);
    weights.iter_mut().step_by(5).for_each(|value| *value *= 1.01);
    moments.iter_mut().for_each(|value| *value *= 0.9);
    other.iter_mut().step_by(3).for_each(|value| *value *= 0.99);
    blocks.iter_mut().step_by(100).for_each(|byte| *byte ^= 1);
    let key = [&13u64.to_le_bytes()[..], b"general.words", &9u32.to_le_bytes(), &8u32.to_le_bytes()].concat();
    let words = [&1u64.to_le_bytes()[..], &4u64.to_le_bytes(), b"word"].concat();
    let original = Input::Directory(vec![
        ("model.gguf", gguf((1, &[key, words].concat()), &in_gguf(&other, &blocks))),
        ("training.pt", archive(&weights, &moments)),
    ]);
    let case = Case::new("frames", "tensors in files of other formats", &[], &[]);
    Case { original, bases: vec![base], ..case }
}

/// What a container says about itself.
pub(crate) struct Said {
    pub(super) base_names: Vec<&'static str>,
    pub(super) texts: Vec<(&'static str, &'static str)>,
}
