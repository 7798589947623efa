//! The bundled weights: one layer of a small trained model, and three fine-tunes of it.

macro_rules! asset {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../../assets/demo/", $name)).as_slice())
    };
}

pub(crate) const BASE: (&str, &[u8]) = asset!("base.safetensors");
pub(crate) const FINE_TUNES: [(&str, &str, &[u8]); 3] = [
    ("fine-tune, BF16 parameters", "ft_bf16.safetensors", asset!("ft_bf16.safetensors").1),
    ("fine-tune, FP32 master", "ft_master.safetensors", asset!("ft_master.safetensors").1),
    ("LoRA, merged", "ft_lora_merged.safetensors", asset!("ft_lora_merged.safetensors").1),
];
