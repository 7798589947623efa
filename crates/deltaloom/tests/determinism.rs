//! The container depends on the input and the options, not on threads or on the run.

mod common;

use common::*;
use deltaloom::{Preset, UnpackOptions};

/// Many windows of many groups: all codecs, shared table sets, ties and casts.
fn model() -> (Vec<u8>, Vec<u8>) {
    let mut rng = Random::new(1);
    let (mut base, mut tuned) = (Vec::new(), Vec::new());
    for i in 0..12u64 {
        let weights = rng.weights(40_000);
        let before = tensor(&format!("layer.{i}"), "BF16", &[200, 200], bf16_bytes(&weights));
        let span = 1 << (i % 4);
        let bytes = stepped(&before.bytes, 2, |at| match i % 3 {
            0 => rng.around_zero(span << (at % 200 % 3)),
            1 => i64::from(rng.below(40) == 0),
            _ => i64::from(at < 20_000) * rng.around_zero(span),
        });
        tuned.push(Tensor { bytes, ..before.clone() });
        base.push(before);
    }
    let master = rng.weights(20_000);
    tuned.push(tensor("copy", "BF16", &[20_000], bf16_bytes(&master)));
    tuned.push(tensor("master", "F32", &[20_000], f32_bytes(&master)));
    tuned.push(Tensor { name: "tied".to_owned(), ..tuned[0].clone() });
    tuned.push(tensor("ids", "I32", &[5000], (0..5000u32).flat_map(|i| (i / 7).to_le_bytes()).collect()));
    (safetensors(&base), safetensors(&tuned))
}

#[test]
fn threads_and_runs_do_not_change_a_byte() {
    let (base, tuned) = model();
    for preset in Preset::ALL {
        let with =
            |threads| pack_with(&tuned, &[&base], &options().with_preset(preset).with_threads(threads)).0;
        let first = with(1);
        for threads in [1, 2, 3, 0] {
            assert!(with(threads) == first, "{preset:?} with {threads} threads");
        }
        let resolved = resolve(&first, &bases(&[&base])).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for threads in [1, 2, 3] {
            let out = folder.path().join(threads.to_string());
            let options = UnpackOptions::default().with_threads(threads);
            let report = deltaloom::unpack(&resolved, &out, &options, &deltaloom::Silent).unwrap();
            assert_eq!(report.threads, threads);
            assert!(std::fs::read(&out).unwrap() == tuned);
        }
    }
}
