//! Any text as the `config.json` of a model: as what a model computes, and as its sizes.

#![no_main]

use deltaloom_lm::model::ModelConfig;
use deltaloom_lm::tenancy::ModelSizes;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(config) = ModelConfig::parse(text) {
        assert!(!config.layers.is_empty() && config.width > 0 && config.vocabulary > 0);
        for layer in &config.layers {
            layer.check().expect("a layer that was accepted");
        }
    }
    if let Ok(sizes) = ModelSizes::parse(text) {
        let (long, short) = (sizes.cache_bytes(1 << 20, 8, 2), sizes.cache_bytes(1, 1, 2));
        assert!(long.is_none() || long >= short);
        let _ = (sizes.activation_bytes(1), sizes.activation_bytes(1 << 20));
    }
});
