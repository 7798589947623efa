//! Warnings, frozen layers and names of layers on made-up steps. Whole series are in
//! tests/report.rs.

use super::*;
use deltaloom::series::TensorRecord;

const ELEMS: u64 = 1000;

/// A step with one tensor per changed fraction; without any, it is a keyframe.
fn step(step: u64, distance: u64, fractions: &[f64]) -> StepRecord {
    let tensor = |(i, changed): (usize, &f64)| TensorRecord {
        name: format!("model.layers.{i}.weight").into(),
        elems: ELEMS,
        changed_fraction: Some(*changed),
        below_fraction: None,
        stored_bytes: 100,
        predictor: "reference".into(),
        codec: "sparse".into(),
    };
    StepRecord {
        step,
        reference: (distance > 0).then(|| step - distance),
        seconds: 1.0,
        original_bytes: 2000 * fractions.len() as u64,
        stored_bytes: 100 * fractions.len() as u64,
        is_keyframe: distance == 0,
        tensors: fractions.iter().enumerate().map(tensor).collect(),
        ..StepRecord::default()
    }
}

/// About 3 %, with some noise.
fn usual(i: u64) -> f64 {
    0.03 + 0.0004 * ((i * 7) % 5) as f64
}

fn warned(records: &[StepRecord]) -> Vec<(WarningKind, u64, u64)> {
    let found = health(records, &WarningRule::default()).warnings;
    found.into_iter().map(|warning| (warning.kind, warning.step, warning.last_step)).collect()
}

#[test]
fn steps_that_depart_are_named_and_joined() {
    let mut records: Vec<StepRecord> = (10..60).map(|i| step(i, 1, &[usual(i)])).collect();
    assert_eq!(warned(&records), []);
    records[20] = step(30, 1, &[0.09]);
    records[21] = step(31, 1, &[0.12]);
    records[30] = step(40, 1, &[0.01]);
    records[35] = step(45, 1, &[0.0]);
    records[36] = step(46, 1, &[0.0]);
    records[40] = step(50, 1, &[1.0]);
    let expected = [
        (WarningKind::More, 30, 31),
        (WarningKind::Less, 40, 40),
        (WarningKind::Nothing, 45, 46),
        (WarningKind::Everything, 50, 50),
    ];
    assert_eq!(warned(&records), expected);
    let found = health(&records, &WarningRule::default());
    let first = &found.warnings[0];
    assert_eq!(first.changed_fraction, Some(0.12), "the farther one of both");
    assert!((first.expected_fraction.unwrap() - 0.0308).abs() < 1e-3);
}

#[test]
fn steps_are_compared_with_those_as_far_from_their_references() {
    let far =
        |i: u64| if i.is_multiple_of(8) { step(i, 8, &[4.0 * usual(i)]) } else { step(i, 1, &[usual(i)]) };
    let records: Vec<StepRecord> = (10..200).map(far).collect();
    assert_eq!(warned(&records), []);
}

#[test]
fn master_weights_that_always_change_and_keyframes_are_no_news() {
    let records: Vec<StepRecord> =
        (10..60).map(|i| if i % 16 == 0 { step(i, 0, &[1.0]) } else { step(i, 1, &[1.0]) }).collect();
    assert_eq!(warned(&records), []);
    let found = health(&records, &WarningRule::default());
    assert_eq!(found.steps[6].changed_fraction, None, "step 16 is a keyframe");
    assert_eq!(found.layers[0].changed_fractions[6], None);
}

#[test]
fn frozen_layers_are_found_with_the_step_they_stopped_at() {
    let records: Vec<StepRecord> =
        (10..60).map(|i| step(i, 1, &[usual(i), if i < 30 { 0.03 } else { 0.0 }])).collect();
    let found = health(&records, &WarningRule::default());
    let [moving, frozen] = &found.layers[..] else { panic!("two layers") };
    assert!(!moving.is_frozen && moving.unchanged_since.is_none() && moving.identical_share < Some(0.98));
    assert!(frozen.is_frozen && frozen.window_steps == 20);
    assert_eq!((frozen.identical_share, frozen.unchanged_since), (Some(1.0), Some(30)));
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["layers"][1]["name"], "model.layers.1");
    assert_eq!(json["layers"][1]["is_frozen"], true);
    assert_eq!(json["rule"]["window"], 50);
}

#[test]
fn sums_are_over_elements() {
    let mut record = step(5, 1, &[0.5, 0.0]);
    record.tensors[1].elems = 9 * ELEMS;
    let found = health(&[record], &WarningRule::default());
    assert_eq!(found.steps[0].changed_fraction, Some(0.05));
    assert_eq!(found.steps[0].bits_per_weight, 200.0 * 8.0 / 10_000.0);
    assert_eq!(found.steps[0].ratio, 20.0);
}

#[test]
fn layers_are_told_by_name() {
    let cases = [
        ("model.layers.3.self_attn.q_proj.weight", LayerKind::Numbered, "model.layers.3"),
        ("model.layers.3.mlp.experts.7.w1", LayerKind::Numbered, "model.layers.3"),
        ("transformer.h.11.ln_1.bias", LayerKind::Numbered, "transformer.h.11"),
        ("layer1.0.conv1.weight", LayerKind::Numbered, "layer1.0"),
        ("params/block_4/kernel", LayerKind::Numbered, "params/block_4"),
        ("model.embed_tokens.weight", LayerKind::Embedding, "model.embed_tokens"),
        ("transformer.wpe.weight", LayerKind::Embedding, "transformer.wpe"),
        ("model.norm.weight", LayerKind::Norm, "model.norm"),
        ("lm_head.weight", LayerKind::Head, "lm_head"),
        ("fc.weight", LayerKind::Other, "fc"),
        ("scale", LayerKind::Other, "scale"),
        ("", LayerKind::Other, ""),
        ("..", LayerKind::Other, "."),
    ];
    for (tensor, kind, name) in cases {
        assert_eq!(Layer::of(tensor), Layer { kind, name: name.to_owned() }, "{tensor}");
    }
    let mut layers = ["lm_head.w", "a.layers.10.w", "a.layers.9.w", "a.embed.w"].map(Layer::of);
    layers.sort_by_cached_key(Layer::order);
    assert_eq!(layers.map(|layer| layer.name), ["a.embed", "a.layers.9", "a.layers.10", "lm_head"]);
}

#[test]
fn the_median_does_not_depend_on_order_or_outliers() {
    assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median(vec![4.0, 1.0, 2.0, 900.0]), Some(3.0));
    assert_eq!(median(Vec::new()), None);
}
