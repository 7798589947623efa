//! Packs the reference layer against its base: it must reach the sizes and return every byte.

#[path = "../../deltaloom/tests/common/mod.rs"]
mod common;

use common::{open, roundtrip_with};
use deltaloom::{PackOptions, Preset};
use deltaloom_lab::reference::ReferenceCase;

/// Payloads of such a layer by XOR and zstd 10, as published; ours is smaller including index and
/// digests.
const XOR_ZSTD_BYTES: u64 = 5633;
/// For chunks and tables.
const CODED_BYTES: u64 = 4000;

#[test]
fn the_reference_layer_takes_less_than_its_xor_compressed_and_comes_back() {
    for seed in 0..6 {
        let case = ReferenceCase { seed, ..ReferenceCase::default() };
        let base = case.base();
        let tuned = case.tuned(&base, 0).unwrap().to_safetensors().unwrap();
        let base = base.to_safetensors().unwrap();
        for preset in [Preset::Default, Preset::Max] {
            let options = PackOptions::default().with_preset(preset).with_threads(1);
            let (container, report) = roundtrip_with(&tuned, &[&base], &options);
            let parts = open(&container).unwrap().part_bytes();
            assert!(report.tensors.iter().all(|tensor| tensor.predictor == "reference"), "{report:?}");
            assert!(parts.payload_bytes + parts.tables_bytes < CODED_BYTES, "seed {seed}: {parts:?}");
            assert!((container.len() as u64) < XOR_ZSTD_BYTES, "seed {seed}: {}", container.len());
        }
    }
}
