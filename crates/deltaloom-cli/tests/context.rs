//! `deltaloom context`: layers, tests and recipes, on tiny random models.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use std::path::Path;

use common::{Scratch, safetensors};

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A file with two layers, each with a matrix of queries and one of the feed-forward network.
fn layers(values: [[f32; 4]; 4]) -> Vec<u8> {
    let names = [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    ];
    let tensors: Vec<_> = names
        .into_iter()
        .zip(values)
        .map(|(name, values)| (name, "F32", &[2, 2][..], floats(&values)))
        .collect();
    safetensors(&tensors)
}

#[test]
fn layers_are_ranked_by_their_change() {
    let scratch = Scratch::new();
    let base = [[3.0, 4.0, 0.0, 0.0]; 4];
    let mut tuned = base;
    tuned[0][2] = 1.0;
    tuned[3][3] = 2.0;
    scratch.write("base.safetensors", &layers(base));
    scratch.write("tuned.safetensors", &layers(tuned));
    scratch.ok("pack tuned.safetensors --base base.safetensors -o tuned.loom");
    let report = scratch.ok("context layers base.safetensors tuned.safetensors --json").json();
    let close = |value: &serde_json::Value, wanted: f64| (value.as_f64().unwrap() - wanted).abs() < 1e-12;
    // Changes of 1 and 2 over the root of 25 + 25.
    assert!(close(&report["layers"][0]["relative_l2"], (1.0f64 / 50.0).sqrt()), "{report}");
    assert!(close(&report["layers"][1]["relative_l2"], (4.0f64 / 50.0).sqrt()));
    assert!(close(&report["layers"][0]["relative_l2_qk"], 0.2));
    assert_eq!(report["layers"][1]["relative_l2_qk"], 0.0);
    assert_eq!(report["layers"][0]["changed_fraction"], 0.125);
    assert_eq!(
        (&report["by_all"], &report["by_qk"]),
        (&serde_json::json!([0, 1]), &serde_json::json!([1, 0]))
    );
    assert_eq!(report["rank_correlation"], -1.0);
    let packed = scratch.ok("context layers base.safetensors tuned.loom --json").json();
    assert_eq!(packed["layers"], report["layers"]);
    let text = scratch.ok("context layers base.safetensors tuned.safetensors");
    assert!(text.text().contains("least moved first: 0, 1"), "{}", text.text());
    assert!(text.text().contains("no layer is frozen"), "{}", text.text());
}

#[test]
fn layers_of_other_models_are_refused() {
    let scratch = Scratch::new();
    let base = [[3.0, 4.0, 0.0, 0.0]; 4];
    scratch.write("base.safetensors", &layers(base));
    let mut nan = base;
    nan[2][0] = f32::NAN;
    scratch.write("nan.safetensors", &layers(nan));
    let name = "model.layers.0.self_attn.q_proj.weight";
    scratch.write("wide.safetensors", &safetensors(&[(name, "F32", &[4, 1], floats(&base[0]))]));
    scratch.write("second.safetensors", &safetensors(&[("layers.1.w", "F32", &[2, 2], floats(&base[0]))]));
    scratch.write("none.safetensors", &safetensors(&[("w", "F32", &[2, 2], floats(&base[0]))]));
    for (pair, words) in [
        ("base.safetensors base.safetensors", "no layer moved"),
        ("base.safetensors wide.safetensors", "another shape or dtype"),
        ("base.safetensors nan.safetensors", "layer 1 are not finite"),
        ("none.safetensors none.safetensors", "no layers"),
        ("second.safetensors second.safetensors", "none with the number 0"),
        ("base.safetensors nothing.safetensors", "nothing.safetensors"),
    ] {
        let ended = scratch.run(&format!("context layers {pair}"));
        assert!(ended.code != Some(0) && ended.err.contains(words), "{pair}: {}", ended.err);
    }
}
