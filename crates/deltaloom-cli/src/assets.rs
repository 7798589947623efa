//! The bundled weights: one layer of a small trained model, and three fine-tunes of it.

/// A bundled safetensors file.
pub(crate) struct Asset {
    pub(crate) title: &'static str,
    pub(crate) file: &'static str,
    pub(crate) bytes: &'static [u8],
}

macro_rules! asset {
    ($title:literal, $file:literal) => {
        Asset { title: $title, file: $file, bytes: include_bytes!(concat!("../../../assets/demo/", $file)) }
    };
}

pub(crate) static BASE: Asset = asset!("base", "base.safetensors");
pub(crate) static FINE_TUNES: [Asset; 3] = [
    asset!("fine-tune, BF16 parameters", "ft_bf16.safetensors"),
    asset!("fine-tune, FP32 master", "ft_master.safetensors"),
    asset!("LoRA, merged", "ft_lora_merged.safetensors"),
];
