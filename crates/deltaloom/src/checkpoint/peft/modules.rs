//! The modules of an adapter: which tensors are their factors, by the names that tools give them.

use std::collections::HashMap;

use super::super::Checkpoint;
use super::config::Config;
use crate::error::Result;
use crate::tensor::{DType, TensorInfo};

/// Prefixes of names: libraries wrap the model.
const WRAPPERS: [&str; 2] = ["base_model.model.", "base_model."];
/// What stands between a module's name and the rest of the name of its tensor.
const PARTS: [(&str, Part); 15] = [
    (".lora_A.", Part::A),
    (".lora_B.", Part::B),
    (".lora_embedding_A", Part::EmbeddingA),
    (".lora_embedding_B", Part::EmbeddingB),
    (".lora_magnitude_vector", Part::Magnitude),
    (".lora_down.", Part::A),
    (".lora_up.", Part::B),
    (".lora.down.", Part::A),
    (".lora.up.", Part::B),
    ("_lora.down.", Part::A),
    ("_lora.up.", Part::B),
    (".lora_linear_layer.down.", Part::A),
    (".lora_linear_layer.up.", Part::B),
    (".dora_scale", Part::Magnitude),
    (".alpha", Part::Alpha),
];
/// Parts of adapters whose change is not one product of two matrices.
const OTHERS: [(&str, &str); 6] = [
    (".lokr_", "LOKR"),
    (".hada_", "LOHA"),
    (".oft_", "OFT"),
    (".ia3_", "IA3"),
    (".boft_", "BOFT"),
    (".lora_mid.", "LoCon with three factors"),
];

/// What a tensor is in its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    A,
    B,
    EmbeddingA,
    EmbeddingB,
    Magnitude,
    Alpha,
}

/// The factors of a module, by their numbers in the list of tensors.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Module {
    /// Name of the module that they change.
    pub(crate) name: String,
    pub(crate) a: usize,
    pub(crate) b: usize,
    /// Trained lengths of the rows.
    pub(crate) magnitude: Option<usize>,
    /// Rows of A and columns of B.
    pub(crate) rank: u64,
    /// Columns of A.
    pub(crate) inputs: u64,
    /// Rows of B.
    pub(crate) outputs: u64,
    /// Scale of the product, as far as the adapter says.
    pub(crate) scale: f64,
    /// Whether a square tensor is stored as (inputs, outputs).
    pub(crate) is_transposed: bool,
}

/// What an adapter has.
pub(super) struct Found {
    pub(super) modules: Vec<Module>,
    pub(super) is_flat: bool,
    /// Modules whose factors do not fit together.
    pub(super) unfit: Vec<String>,
    /// Kinds of other adapters that have tensors here.
    pub(super) others: Vec<&'static str>,
}

/// The tensors of a module.
#[derive(Default)]
struct Slots {
    a: Option<usize>,
    b: Option<usize>,
    magnitude: Option<usize>,
    alpha: Option<usize>,
    is_embedding: bool,
}

/// The modules of the adapter in `checkpoint`, in the order of their tensors.
pub(super) fn find(checkpoint: &Checkpoint, config: Option<&Config>) -> Result<Found> {
    let tensors: Vec<(usize, &TensorInfo)> = checkpoint.tensors().collect();
    let mut numbers: HashMap<(&str, &str), usize> = HashMap::new();
    let mut all: Vec<(&str, Slots)> = Vec::new();
    let mut others = Vec::new();
    for (i, (_, info)) in tensors.iter().enumerate() {
        if let Some((_, kind)) = OTHERS.iter().find(|(part, _)| info.name.contains(part)) {
            others.push(*kind);
        }
        let Some((module, part, variant)) = parse(&info.name) else { continue };
        let number = *numbers.entry((module, variant)).or_insert(all.len());
        if number == all.len() {
            all.push((module, Slots::default()));
        }
        let slots = &mut all[number].1;
        slots.is_embedding |= matches!(part, Part::EmbeddingA | Part::EmbeddingB);
        *match part {
            Part::A | Part::EmbeddingA => &mut slots.a,
            Part::B | Part::EmbeddingB => &mut slots.b,
            Part::Magnitude => &mut slots.magnitude,
            Part::Alpha => &mut slots.alpha,
        } = Some(i);
    }
    all.retain(|(_, slots)| slots.a.is_some() && slots.b.is_some());
    let mut unfit = Vec::new();
    let mut found = Vec::new();
    for (name, slots) in all {
        let (Some(a), Some(b)) = (slots.a, slots.b) else { continue };
        match sizes(tensors[a].1, tensors[b].1) {
            Some(sizes) => found.push((unwrapped(name), slots, a, b, sizes)),
            None => unfit.push(name.to_owned()),
        }
    }
    let ranks: Vec<(&str, u64)> = found.iter().map(|(name, .., [rank, ..])| (*name, *rank)).collect();
    let scales = config.map(|config| config.scales(&ranks));
    let is_flat = !found.is_empty() && found.iter().all(|(name, ..)| !name.contains('.'));
    let is_dora = config.is_none_or(Config::is_dora);
    let mut modules = Vec::new();
    for (i, (name, slots, a, b, [rank, inputs, outputs])) in found.into_iter().enumerate() {
        let scale = match (&scales, slots.alpha) {
            (Some(scales), _) => scales[i],
            (None, Some(alpha)) => {
                number_of(checkpoint, tensors[alpha])?.unwrap_or(rank as f64) / rank as f64
            }
            (None, None) => 1.0,
        };
        let is_transposed =
            slots.is_embedding || config.and_then(|config| config.fan_in_fan_out) == Some(true);
        let magnitude = slots.magnitude.filter(|_| is_dora);
        modules.push(Module {
            name: name.to_owned(),
            a,
            b,
            magnitude,
            rank,
            inputs,
            outputs,
            scale,
            is_transposed,
        });
    }
    Ok(Found { modules, is_flat, unfit, others })
}

/// The module that a tensor belongs to, what it is there, and which of several adapters of one file
/// it is from.
fn parse(name: &str) -> Option<(&str, Part, &str)> {
    PARTS.iter().find_map(|(infix, part)| {
        let at = name.rfind(infix)?;
        let rest = name[at + infix.len()..].trim_start_matches('.');
        let variant = match rest.strip_suffix("weight") {
            Some(variant) => variant.trim_end_matches('.'),
            None if infix.ends_with('.') => return None,
            None => rest,
        };
        (!variant.contains('.')).then_some((&name[..at], *part, variant))
    })
}

fn unwrapped(mut name: &str) -> &str {
    while let Some(rest) = WRAPPERS.iter().find_map(|wrapper| name.strip_prefix(wrapper)) {
        name = rest;
    }
    name
}

/// Rank, inputs and outputs of the factors A and B, if they fit together. Those of convolutions
/// have more dimensions, which count as columns of A and must be 1 in B.
fn sizes(a: &TensorInfo, b: &TensorInfo) -> Option<[u64; 3]> {
    let ([rank, inputs @ ..], [outputs, other_rank, ones @ ..]) = (&a.shape[..], &b.shape[..]) else {
        return None;
    };
    let inputs = inputs.iter().try_fold(1, |product: u64, dim| product.checked_mul(*dim))?;
    let fits = rank == other_rank && ones.iter().all(|dim| *dim == 1) && a.shape.len() > 1;
    let has_dtypes = [a, b].iter().all(|info| matches!(info.dtype, DType::F32 | DType::BF16 | DType::F16));
    (fits && has_dtypes && *rank > 0 && inputs > 0 && *outputs > 0).then_some([*rank, inputs, *outputs])
}

/// The only element of a tensor, if it is a float.
fn number_of(checkpoint: &Checkpoint, (member, info): (usize, &TensorInfo)) -> Result<Option<f64>> {
    let mut bytes = [0; 4];
    let bytes = match info.dtype {
        DType::F32 => &mut bytes[..],
        DType::BF16 | DType::F16 => &mut bytes[..2],
        _ => return Ok(None),
    };
    if info.len_bytes() != bytes.len() as u64 {
        return Ok(None);
    }
    checkpoint.read(member, info, 0, bytes)?;
    let number = match (&info.dtype, &*bytes) {
        (DType::BF16, &[low, high]) => half::bf16::from_le_bytes([low, high]).to_f64(),
        (_, &[low, high]) => half::f16::from_le_bytes([low, high]).to_f64(),
        (_, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]).into(),
        _ => return Ok(None),
    };
    Ok(Some(number).filter(|number| number.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_many_tools_are_known() {
        for (name, module, part, variant) in [
            ("base_model.model.l.1.q.lora_A.weight", "base_model.model.l.1.q", Part::A, ""),
            ("q.lora_B.default.weight", "q", Part::B, "default"),
            ("e.lora_embedding_A", "e", Part::EmbeddingA, ""),
            ("e.lora_embedding_B.default", "e", Part::EmbeddingB, "default"),
            ("q.lora_magnitude_vector", "q", Part::Magnitude, ""),
            ("q.lora_magnitude_vector.default.weight", "q", Part::Magnitude, "default"),
            ("lora_unet_a_to_q.lora_down.weight", "lora_unet_a_to_q", Part::A, ""),
            ("lora_unet_a_to_q.alpha", "lora_unet_a_to_q", Part::Alpha, ""),
            ("attn.to_q.lora.up.weight", "attn.to_q", Part::B, ""),
            ("attn.processor.to_q_lora.down.weight", "attn.processor.to_q", Part::A, ""),
        ] {
            assert_eq!(parse(name), Some((module, part, variant)), "{name}");
        }
        for name in ["q.weight", "q.lora_A.bias", "q.lora_B.a.b.weight", "", "lora_A"] {
            assert_eq!(parse(name), None, "{name}");
        }
        assert_eq!(unwrapped("base_model.model.base_model.model.q"), "q");
        assert_eq!(unwrapped("model.q"), "model.q");
    }

    #[test]
    fn factors_must_fit() {
        let tensor = |shape: &[u64]| TensorInfo::sized(String::new(), DType::F32, shape.to_vec());
        let sizes = |a: &[u64], b: &[u64]| sizes(&tensor(a), &tensor(b));
        assert_eq!(sizes(&[2, 6], &[4, 2]), Some([2, 6, 4]));
        assert_eq!(sizes(&[8, 96, 3, 3], &[96, 8, 1, 1]), Some([8, 864, 96]));
        for (a, b) in [
            (&[2, 6][..], &[4, 3][..]),
            (&[2], &[4, 2]),
            (&[2, 6], &[4]),
            (&[0, 6], &[4, 0]),
            (&[8, 96], &[96, 8, 3]),
            (&[], &[]),
        ] {
            assert_eq!(sizes(a, b), None, "{a:?} {b:?}");
        }
    }
}
