//! Bytes of predictors in the index: docs/format.md section 3, and nothing else.
//! It checks their fields against each other and against the tensor. Tensors of the same file are
//! checked when all are known.

use crate::entropy::bytes::{ByteReader, push_text, push_varint};
use crate::error::{Error, Result};
use crate::limits::to_usize;
use crate::predict::{
    ADAM_INPUTS, Adam, AdamForm, Adapter, Blend, BlendForm, Element, MAX_FACTORS_RANK, MAX_HOPS, MAX_RANK,
    Merge, Precision, Predictor, cast,
};
use crate::tensor::{ChunkGrid, DType, TensorInfo};

pub(super) fn push(meta: &mut Vec<u8>, predictor: &Predictor) {
    meta.push(match predictor {
        Predictor::Zero => 0,
        Predictor::Reference(_) => 1,
        Predictor::Identical(_) => 2,
        Predictor::Tied(_) => 3,
        Predictor::Cast(_) => 4,
        Predictor::CastInternal(_) => 5,
        Predictor::LowRank { .. } => 6,
        Predictor::Adapter(_) => 7,
        Predictor::Blend(_) => 8,
        Predictor::Companion(_) => 9,
        Predictor::Adam(_) => 10,
        Predictor::History { .. } => 11,
    });
    match predictor {
        Predictor::Zero => {}
        Predictor::Reference(name) | Predictor::Identical(name) | Predictor::Cast(name) => {
            push_name(meta, name)
        }
        Predictor::LowRank { reference, rank } => {
            push_name(meta, reference);
            push_varint(meta, *rank as u64);
        }
        Predictor::Tied(target) | Predictor::CastInternal(target) | Predictor::Companion(target) => {
            push_varint(meta, *target as u64)
        }
        Predictor::Adapter(adapter) => push_adapter(meta, adapter),
        Predictor::Blend(blend) => push_blend(meta, blend),
        Predictor::Adam(adam) => push_adam(meta, adam),
        Predictor::History { reference, hops } => {
            push_name(meta, reference);
            push_varint(meta, *hops as u64);
        }
    }
}

/// Reads the predictor of a tensor in a file of this version of the format.
pub(super) fn parse(
    meta: &mut ByteReader<'_>,
    info: &TensorInfo,
    grid: &ChunkGrid,
    version: u16,
) -> Result<Predictor> {
    let id = meta.u8()?;
    let unknown = || Error::corrupt(format!("predictor {id} does not exist"));
    let highest_id = match version {
        1 => 5,
        2 => 10,
        _ => 11,
    };
    if id > highest_id {
        return Err(unknown());
    }
    let predictor = match id {
        0 => Predictor::Zero,
        1 => Predictor::Reference(name(meta)?),
        2 => Predictor::Identical(name(meta)?),
        3 => Predictor::Tied(meta.size()?),
        4 => Predictor::Cast(name(meta)?),
        5 => Predictor::CastInternal(meta.size()?),
        6 => Predictor::LowRank {
            reference: name(meta)?,
            rank: to_usize(rank(meta, MAX_FACTORS_RANK as u64)?),
        },
        7 => Predictor::Adapter(Box::new(parse_adapter(meta)?)),
        8 => Predictor::Blend(Box::new(parse_blend(meta)?)),
        9 => Predictor::Companion(meta.size()?),
        10 => Predictor::Adam(Box::new(parse_adam(meta)?)),
        11 => Predictor::History { reference: name(meta)?, hops: hops(meta)? },
        _ => return Err(unknown()),
    };
    let fits = match &predictor {
        Predictor::Cast(_) | Predictor::CastInternal(_) => cast::is_target(&info.dtype),
        Predictor::LowRank { .. } => is_computed(info) && grid.is_matrix,
        Predictor::Adapter(_) => is_computed(info) && info.shape.len() == 2 && grid.is_matrix,
        Predictor::Blend(_) => is_computed(info),
        Predictor::Adam(_) => info.dtype == DType::F32,
        _ => true,
    };
    if fits {
        return Ok(predictor);
    }
    let (name, dtype, shape, kind) = (&info.name, &info.dtype, &info.shape, predictor.kind());
    Err(Error::corrupt(format!("tensor {name:?} of {dtype} {shape:?} cannot have the predictor {kind}")))
}

fn is_computed(info: &TensorInfo) -> bool {
    Element::of(&info.dtype).is_some()
}

fn push_name(meta: &mut Vec<u8>, name: &Option<String>) {
    push_text(meta, name.as_deref().unwrap_or_default());
}

fn name(meta: &mut ByteReader<'_>) -> Result<Option<String>> {
    Ok(Some(meta.text()?).filter(|name| !name.is_empty()).map(str::to_owned))
}

fn bad(what: &str) -> Error {
    Error::corrupt(format!("a predictor has an invalid {what}"))
}

const ELEMENTS: [Element; 3] = [Element::F32, Element::BF16, Element::F16];

fn element_id(element: Element) -> u8 {
    match element {
        Element::F32 => 0,
        Element::BF16 => 1,
        Element::F16 => 2,
    }
}

fn element(meta: &mut ByteReader<'_>) -> Result<Element> {
    ELEMENTS.get(usize::from(meta.u8()?)).copied().ok_or_else(|| bad("dtype"))
}

/// 0 for no rounding, which here includes rounding to F32.
fn rounding(meta: &mut ByteReader<'_>) -> Result<Option<Element>> {
    Ok(Some(element(meta)?).filter(|element| *element != Element::F32))
}

fn finite(number: f64, what: &str) -> Result<f64> {
    if number.is_finite() { Ok(number) } else { Err(bad(what)) }
}

fn rank(meta: &mut ByteReader<'_>, most: u64) -> Result<u64> {
    let rank = meta.varint()?;
    if (1..=most).contains(&rank) { Ok(rank) } else { Err(bad("rank")) }
}

fn hops(meta: &mut ByteReader<'_>) -> Result<usize> {
    let hops = meta.size()?;
    if (1..=MAX_HOPS).contains(&hops) { Ok(hops) } else { Err(bad("number of ancestors")) }
}

fn push_adapter(meta: &mut Vec<u8>, adapter: &Adapter) {
    push_name(meta, &adapter.reference);
    adapter.factors.iter().for_each(|name| push_text(meta, name));
    meta.push(element_id(adapter.dtype));
    push_varint(meta, adapter.rank);
    meta.extend(adapter.scale.to_le_bytes());
    let Merge { fused, scale_first, transposed, product, update } = adapter.merge;
    meta.push(u8::from(fused) | u8::from(scale_first) << 1 | u8::from(transposed) << 2);
    meta.extend([product, update].map(|rounding| rounding.map_or(0, element_id)));
}

fn parse_adapter(meta: &mut ByteReader<'_>) -> Result<Adapter> {
    let reference = name(meta)?;
    let mut factor = || name(meta)?.ok_or_else(|| bad("name of a factor"));
    let factors = [factor()?, factor()?];
    let dtype = element(meta)?;
    let rank = rank(meta, MAX_RANK)?;
    let scale = f32::from_le_bytes(meta.array()?);
    finite(scale.into(), "scale")?;
    let flags = meta.u8()?;
    if flags > 7 {
        return Err(bad("flag"));
    }
    let (product, update) = (rounding(meta)?, rounding(meta)?);
    let merge = Merge {
        fused: flags & 1 != 0,
        scale_first: flags & 2 != 0,
        transposed: flags & 4 != 0,
        product,
        update,
    };
    Ok(Adapter { reference, factors, rank, scale, merge, dtype })
}

const FORMS: [BlendForm; 3] = [BlendForm::Linear, BlendForm::Task, BlendForm::Ties];
const PRECISIONS: [Precision; 3] = [Precision::Double, Precision::Single, Precision::Own];

fn push_blend(meta: &mut Vec<u8>, blend: &Blend) {
    meta.push(match blend.form {
        BlendForm::Linear => 0,
        BlendForm::Task => 1,
        BlendForm::Ties => 2,
    });
    meta.push(match blend.precision {
        Precision::Double => 0,
        Precision::Single => 1,
        Precision::Own => 2,
    });
    push_varint(meta, blend.references.len() as u64);
    blend.references.iter().for_each(|name| push_name(meta, name));
    meta.extend(blend.numbers.iter().flat_map(|number| number.to_le_bytes()));
}

fn parse_blend(meta: &mut ByteReader<'_>) -> Result<Blend> {
    let form = *FORMS.get(usize::from(meta.u8()?)).ok_or_else(|| bad("form"))?;
    let precision = *PRECISIONS.get(usize::from(meta.u8()?)).ok_or_else(|| bad("precision"))?;
    let reference_count = meta.size()?;
    let number_count = form.number_count(reference_count).ok_or_else(|| bad("number of references"))?;
    let references = (0..reference_count).map(|_| name(meta)).collect::<Result<_>>()?;
    let mut number = || finite(f64::from_le_bytes(meta.array()?), "number");
    let numbers = (0..number_count).map(|_| number()).collect::<Result<_>>()?;
    Ok(Blend { form, precision, references, numbers })
}

const ADAM_FORMS: [AdamForm; 2] = [AdamForm::SecondMoment, AdamForm::Weights];

fn push_adam(meta: &mut Vec<u8>, adam: &Adam) {
    meta.push(match adam.form {
        AdamForm::SecondMoment => 0,
        AdamForm::Weights => 1,
    });
    meta.push(u8::from(adam.is_single));
    adam.references.iter().for_each(|name| push_name(meta, name));
    adam.tensors.iter().for_each(|tensor| push_varint(meta, *tensor as u64));
    meta.extend(adam.numbers.iter().flat_map(|number| number.to_le_bytes()));
}

fn parse_adam(meta: &mut ByteReader<'_>) -> Result<Adam> {
    let form = *ADAM_FORMS.get(usize::from(meta.u8()?)).ok_or_else(|| bad("form"))?;
    let is_single = match meta.u8()? {
        0 => false,
        1 => true,
        _ => return Err(bad("precision")),
    };
    let reference_count = form.reference_count();
    let references = (0..reference_count).map(|_| name(meta)).collect::<Result<_>>()?;
    let tensors = (reference_count..ADAM_INPUTS).map(|_| meta.size()).collect::<Result<_>>()?;
    let mut number = || finite(f64::from_le_bytes(meta.array()?), "number");
    let numbers = (0..form.number_count()).map(|_| number()).collect::<Result<_>>()?;
    Ok(Adam { form, is_single, references, tensors, numbers })
}
