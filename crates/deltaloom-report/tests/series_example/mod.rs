//! A made-up series for tests and pictures: a model with a few layers whose steps change a few
//! percent of the weights.
//! Its numbers look like those of a training, but mean nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use deltaloom::series::{StepRecord, TensorRecord};
use deltaloom_report::{FrontierPoint, MethodRatios, SeriesSummary};

/// A small generator of numbers between 0 and 1, the same on every machine.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[expect(clippy::cast_possible_truncation, reason = "sizes of the example are small")]
fn whole(x: f64) -> u64 {
    x as u64
}

/// Keyframes every 64 steps, references one step back with skips of 8, an outlier at three
/// quarters, layer 2 frozen from the middle on.
pub(crate) fn series(steps: u64, layers: usize) -> SeriesSummary {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut names: Vec<(Arc<str>, u64)> = vec![("model.embed_tokens.weight".into(), 2_621_440)];
    for layer in 0..layers {
        names.push((format!("model.layers.{layer}.self_attn.q_proj.weight").into(), 102_400));
        names.push((format!("model.layers.{layer}.mlp.up_proj.weight").into(), 276_480));
        names.push((format!("model.layers.{layer}.input_layernorm.weight").into(), 320));
    }
    names.push(("model.norm.weight".into(), 320));
    names.push(("lm_head.weight".into(), 2_621_440));
    let kinds: [Arc<str>; 3] = ["zero".into(), "reference".into(), "identical".into()];
    let codec: Arc<str> = "sparse".into();
    let records = (0..steps).map(|step| {
        let is_keyframe = step % 64 == 0;
        let distance = if step % 8 == 0 { 8 } else { 1 };
        let run = if step == steps * 3 / 4 && steps > 20 { 6.0 } else { 1.0 };
        let mut tensors = Vec::new();
        for (i, (name, elems)) in names.iter().enumerate() {
            let is_frozen = name.starts_with("model.layers.2.") && step > steps / 2;
            let base = 0.012 + 0.03 * (i as f64 / names.len() as f64) + 0.004 * noise.next();
            let changed = if is_frozen { 0.0 } else { (base * run * (distance as f64).sqrt()).min(1.0) };
            let bits = if is_keyframe { 10.6 } else { changed * 7.0 };
            tensors.push(TensorRecord {
                name: name.clone(),
                elems: *elems,
                changed_fraction: (!is_keyframe).then_some(changed),
                below_fraction: None,
                stored_bytes: whole(*elems as f64 * bits / 8.0),
                predictor: kinds[if is_keyframe {
                    0
                } else if is_frozen {
                    2
                } else {
                    1
                }]
                .clone(),
                codec: codec.clone(),
            });
        }
        let elems: u64 = tensors.iter().map(|t| t.elems).sum();
        StepRecord {
            step,
            reference: (!is_keyframe).then(|| step.saturating_sub(distance)),
            seconds: 0.2 + 0.1 * noise.next(),
            original_bytes: elems * 2 + 4096,
            stored_bytes: tensors.iter().map(|t| t.stored_bytes).sum::<u64>() + 9000,
            is_keyframe,
            metrics: BTreeMap::from([
                ("loss".to_owned(), 2.0 + 3.0 / (1.0 + step as f64 / 20.0) + 0.1 * noise.next()),
                ("learning_rate".to_owned(), 1e-4 * (1.0 - step as f64 / steps as f64)),
                ("grad_norm".to_owned(), 0.5 + noise.next()),
            ]),
            tensors,
            ..StepRecord::default()
        }
    });
    SeriesSummary {
        name: "lm12m".to_owned(),
        command: "deltaloom series plot runs/lm12m --output page.html".to_owned(),
        steps: records.collect(),
        ..SeriesSummary::default()
    }
}

/// Methods to compare with the series: ratios that fluctuate, and errors that fall with the bytes.
pub(crate) fn add_methods(summary: &mut SeriesSummary, names: &[&str]) {
    let mut noise = Noise(77);
    summary.error_label = "relative L2 error of the update".to_owned();
    for (i, name) in names.iter().enumerate() {
        let level = 6.0 + 5.0 * i as f64;
        let steps = summary.steps.iter().map(|step| step.step);
        let ratios: Vec<(u64, f64)> = steps.map(|step| (step, level * (0.9 + 0.2 * noise.next()))).collect();
        let total_ratio = ratios.iter().map(|(_, ratio)| ratio).sum::<f64>() / ratios.len().max(1) as f64;
        summary.methods.push(MethodRatios { name: (*name).to_owned(), total_ratio, ratios });
        let group = if i % 2 == 0 { "published" } else { "corrected" };
        summary.frontier.push(FrontierPoint {
            group: group.to_owned(),
            name: (*name).to_owned(),
            bytes: 4e8 / level,
            error: 0.002 * level * (1.0 + noise.next()),
        });
    }
    let exact = summary.steps.iter().map(|step| step.stored_bytes).sum::<u64>();
    summary.frontier.push(FrontierPoint {
        group: "exact".to_owned(),
        name: "this series".to_owned(),
        bytes: exact as f64,
        error: 0.0,
    });
}
