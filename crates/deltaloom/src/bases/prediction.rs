//! Reads references and computes the prediction of a part of a tensor from them.
//! It does not know where the residual of that part is.

use std::ops::Range;

use super::source::TensorSource;
use crate::error::{Error, Result};
use crate::limits::to_usize;
use crate::predict::{ADAM_INPUTS, Adam, Adapter, Blend, Element, Predictor, ReadyFactors, cast};
use crate::tensor::TensorInfo;

/// Fills `out` with the prediction of a tensor from byte `start` on. If the predictor works by
/// rows, `out` must be whole rows. `references` and `factors` belong to the predictor.
pub(crate) fn predict_into(
    predictor: &Predictor,
    references: &[TensorSource],
    factors: Option<&ReadyFactors>,
    info: &TensorInfo,
    start: u64,
    out: &mut [u8],
) -> Result<()> {
    match (predictor, references) {
        (Predictor::Zero, _) => {
            out.fill(0);
            Ok(())
        }
        (Predictor::Reference(_) | Predictor::Identical(_), [reference])
        | (Predictor::History { .. }, [reference, ..]) => reference.read_into(start, out),
        (Predictor::Cast(_), [reference]) => {
            let singles = reference.read(2 * start, 2 * out.len())?;
            cast::round_into(&info.dtype, &singles, out);
            Ok(())
        }
        (Predictor::LowRank { .. }, [reference]) => {
            reference.read_into(start, out)?;
            let missing = || Error::corrupt("factors are missing");
            factors.ok_or_else(missing)?.apply(to_usize(rows_of(info, start, out).start), out);
            Ok(())
        }
        (Predictor::Adapter(adapter), [reference, a, b]) => {
            reference.read_into(start, out)?;
            add_adapter(adapter, a, b, info, start, out)
        }
        (Predictor::Blend(blend), references) if references.len() == blend.references.len() => {
            blend_into(blend, references, info, start, out)
        }
        _ => Err(Error::corrupt("a reference is missing")),
    }
}

/// Fills `out` with the prediction of an F32 tensor from byte `start` on. `tensors` are the same
/// bytes of the tensors that it needs from the same file.
pub(crate) fn adam_into(
    adam: &Adam,
    references: &[TensorSource],
    tensors: &[&[u8]],
    start: u64,
    out: &mut [u8],
) -> Result<()> {
    let range = start..start + out.len() as u64;
    let of_bases =
        references.iter().map(|reference| reference.bytes(range.clone())).collect::<Result<Vec<_>>>()?;
    let inputs: Vec<&[u8]> = of_bases.iter().map(|bytes| &**bytes).chain(tensors.iter().copied()).collect();
    let missing = |_| Error::corrupt("a reference is missing");
    adam.predict(<[&[u8]; ADAM_INPUTS]>::try_from(inputs).map_err(missing)?, out);
    Ok(())
}

fn element_of(info: &TensorInfo) -> Result<Element> {
    Element::of(&info.dtype)
        .ok_or_else(|| Error::corrupt(format!("{} has no computed predictions", info.dtype)))
}

/// The rows of a matrix that `out` holds, from byte `start` on.
fn rows_of(info: &TensorInfo, start: u64, out: &[u8]) -> Range<u64> {
    let cols = info.shape.last().copied().unwrap_or(1).max(1);
    let row_bytes = cols * info.number().bytes() as u64;
    start / row_bytes..(start + out.len() as u64) / row_bytes
}

fn blend_into(
    blend: &Blend,
    references: &[TensorSource],
    info: &TensorInfo,
    start: u64,
    out: &mut [u8],
) -> Result<()> {
    let range = start..start + out.len() as u64;
    let bytes =
        references.iter().map(|reference| reference.bytes(range.clone())).collect::<Result<Vec<_>>>()?;
    let bytes: Vec<&[u8]> = bytes.iter().map(|bytes| &**bytes).collect();
    blend.predict(element_of(info)?, &bytes, out);
    Ok(())
}

fn add_adapter(
    adapter: &Adapter,
    a: &TensorSource,
    b: &TensorSource,
    info: &TensorInfo,
    start: u64,
    out: &mut [u8],
) -> Result<()> {
    let element = element_of(info)?;
    let rows = rows_of(info, start, out);
    // All of V is in A. Of B only the rows of U are needed, or the reverse.
    let b_row_bytes = b.info().len_bytes() / b.info().shape.first().copied().unwrap_or(1).max(1);
    let part_of_b = if adapter.merge.transposed {
        0..b.info().len_bytes()
    } else {
        rows.start * b_row_bytes..rows.end * b_row_bytes
    };
    let a = a.bytes(0..a.info().len_bytes())?;
    let b = b.bytes(part_of_b)?;
    let factors = adapter.factors(&a, &b, to_usize(rows.start)..to_usize(rows.end));
    adapter.apply(element, &factors, out);
    Ok(())
}
