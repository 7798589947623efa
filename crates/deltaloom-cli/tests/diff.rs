//! `deltaloom diff`: the total, and containers that need bases.

mod common;

use common::{Scratch, asset, safetensors, tensors_of};
use serde_json::json;

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

#[test]
fn the_total_counts_all_weights_and_no_other_files() {
    let scratch = Scratch::new();
    let word = vec![1; 8];
    scratch.write(
        "a/model.safetensors",
        &safetensors(&[
            ("f", "F32", &[4], floats(&[3.0, 4.0, 0.0, 0.0])),
            ("gone", "F32", &[2], word.clone()),
            ("half", "F16", &[2], vec![0, 0x3c, 0, 0x3c]),
            ("int", "I8", &[4], vec![1, 2, 3, 4]),
            ("other", "F32", &[2], word.clone()),
        ]),
    );
    scratch.write("a/tokenizer.json", &[b'x'; 1000]);
    scratch.write(
        "b/model.safetensors",
        &safetensors(&[
            ("f", "F32", &[4], floats(&[3.0, 4.0, 1.0, 0.0])),
            ("half", "F16", &[2], vec![0, 0x3c, 0, 0x3c]),
            ("int", "I8", &[4], vec![1, 2, 3, 100]),
            ("new", "U8", &[8], word.clone()),
            ("other", "BF16", &[4], word),
        ]),
    );
    scratch.write("b/tokenizer.json", &[b'y'; 1000]);
    let ended = scratch.run("diff a b --json");
    assert_eq!(ended.code, Some(1));
    let part = |tensors, weights, bytes| json!({"tensors": tensors, "weights": weights, "bytes": bytes});
    let total = ended.json()["total"].clone();
    assert_eq!((&total["weights"], &total["changed_weights"]), (&10.into(), &2.into()));
    assert_eq!(total["changed_fraction"], 0.2);
    // 1 over the square root of 9 + 16 + 1 + 1: of the floats alone, identical ones among them.
    let relative = total["relative_l2"].as_f64().unwrap_or_default();
    assert!((relative - (1.0f64 / 27.0).sqrt()).abs() < 1e-12, "{relative}");
    assert_eq!((&total["only_a"], &total["only_b"]), (&part(1, 2, 8), &part(1, 8, 8)));
    assert_eq!(total["retyped"], part(1, 4, 8));
    let text = scratch.run("diff a b");
    let line = last_line(text.text());
    for words in [
        "total: 2 of 10 weights changed (20.00 %), relative L2 1.92e-1",
        "only in the first: 2 weights",
        "only in the second: 8 weights",
        "type or shape: 4 weights",
    ] {
        assert!(line.contains(words), "{words}: {line}");
    }
    let same = scratch.ok("diff a a");
    assert_eq!(last_line(same.text()), "total: 0 of 14 weights changed (0.00 %), relative L2 0.00e0");
}

#[test]
fn a_total_that_is_no_number_is_null_and_said() {
    let scratch = Scratch::new();
    let file = |values: &[f32]| safetensors(&[("w", "F32", &[2], floats(values))]);
    scratch.write("a.safetensors", &file(&[f32::NAN, 1.0]));
    scratch.write("b.safetensors", &file(&[f32::NAN, 2.0]));
    scratch.write("empty.safetensors", &safetensors(&[]));
    let changed = scratch.run("diff a.safetensors b.safetensors --json");
    let total = &changed.json()["total"];
    assert!(total["relative_l2"].is_null() && total["changed_fraction"] == 0.5, "{total}");
    let text = scratch.run("diff a.safetensors b.safetensors");
    assert!(last_line(text.text()).contains("relative L2 is not a number"), "{}", text.text());
    // Bits that are the same are no difference, whatever they stand for.
    let same = scratch.ok("diff a.safetensors a.safetensors --json").json();
    assert_eq!(same["total"]["relative_l2"], 0.0);
    let none = scratch.ok("diff empty.safetensors empty.safetensors --json").json();
    assert!(none["total"]["changed_fraction"].is_null() && none["total"]["relative_l2"].is_null());
    assert_eq!(
        last_line(scratch.ok("diff empty.safetensors empty.safetensors").text()),
        "total: 0 of 0 weights changed"
    );
}

#[test]
fn containers_are_compared_with_their_bases() {
    let scratch = Scratch::with_assets(&["base", "ft_bf16", "ft_master"]);
    scratch.ok("pack ft_bf16.safetensors --base base.safetensors -o first.loom");
    scratch.ok("pack ft_master.safetensors --base first.loom --base base.safetensors -o second.loom");
    let plain = scratch.run("diff base.safetensors ft_bf16.safetensors --json");
    assert_eq!(plain.code, Some(1));
    let expected = plain.json();
    let weights: usize = tensors_of(&asset("base")).iter().map(|tensor| tensor.2.len() / 2).sum();
    assert_eq!(expected["total"]["weights"], weights);
    for arguments in [
        "base.safetensors first.loom --base base.safetensors",
        "base.safetensors first.loom -b second.loom -b first.loom -b base.safetensors",
    ] {
        let packed = scratch.run(&format!("diff {arguments} --json"));
        assert_eq!(
            (packed.code, packed.json()["total"].clone()),
            (Some(1), expected["total"].clone()),
            "{arguments}"
        );
        assert_eq!(packed.json()["tensors"], expected["tensors"]);
    }
    // Both may be containers, and rest on one another.
    let both = scratch.run("diff first.loom second.loom -b first.loom -b base.safetensors --json");
    assert_eq!(both.code, Some(1));
    assert_eq!(
        both.json()["tensors"],
        scratch.run("diff ft_bf16.safetensors ft_master.safetensors --json").json()["tensors"]
    );
    let same = scratch.ok("diff first.loom ft_bf16.safetensors --base base.safetensors");
    assert!(same.text().contains("total: 0 of"), "{}", same.text());

    for bases in ["", "--base ft_bf16.safetensors"] {
        let error = scratch.refused(&format!("diff base.safetensors first.loom {bases}"));
        for words in ["first.loom", "no base has the reference of tensor", "hint: ", "--base"] {
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}

#[test]
fn a_container_of_a_merged_adapter_is_compared_with_the_adapter() {
    let scratch = Scratch::with_small_pair();
    let (rows, cols) = (60usize, 50usize);
    // Numbers around zero, each some steps after the one before.
    let numbers = |count: usize, step: usize, period: u16, scale: f32| -> Vec<f32> {
        let numbers = (0..period).cycle().step_by(step).take(count);
        numbers.map(|number| (f32::from(number) - f32::from(period / 2)) / scale).collect()
    };
    let (a, b) = (numbers(4 * cols, 5, 17, 64.0), numbers(rows * 4, 7, 17, 64.0));
    let weights = numbers(rows * cols, 31, 101, 50.0);
    let merged: Vec<f32> = (0..rows * cols)
        .map(|i| {
            let (row, col) = (i / cols, i % cols);
            let product: f32 = (0..4).map(|k| b[row * 4 + k] * a[k * cols + col]).sum();
            weights[i] + 2.0 * product
        })
        .collect();
    let file = |values: &[f32]| safetensors(&[("m.weight", "F32", &[60, 50], floats(values))]);
    scratch.write("plain.safetensors", &file(&weights));
    scratch.write("merged.safetensors", &file(&merged));
    scratch.write("lora/adapter_config.json", br#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8}"#);
    scratch.write(
        "lora/adapter_model.safetensors",
        &safetensors(&[
            ("base_model.model.m.lora_A.weight", "F32", &[4, 50], floats(&a)),
            ("base_model.model.m.lora_B.weight", "F32", &[60, 4], floats(&b)),
        ]),
    );
    let report = scratch
        .ok("pack merged.safetensors --base plain.safetensors --adapter lora -o merged.loom --json")
        .json();
    assert_eq!(report["predictors"]["adapter"]["count"], 1, "{}", report["predictors"]);
    let same = "diff merged.loom merged.safetensors --base plain.safetensors";
    assert!(
        scratch.ok(&format!("{same} --adapter lora")).text().contains("total: 0 of 3000 weights changed")
    );
    assert!(scratch.refused(same).contains("no base has the reference"));
}
