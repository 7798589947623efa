//! Residuals coded bit by bit in mixed contexts; docs/format.md section 13.
//! The model is in deltaloom-kernels. This file has the first fields of the payload and their
//! bounds.

use deltaloom_kernels::mixing::{self, MIN_TRACKED_ROWS, MixRule, MixShape, SCALE_MAX};

use super::{ChunkInput, ChunkShape, Material};
use crate::entropy::bytes::{ByteReader, push_varint, push_zigzag};
use crate::error::{Error, Result};

/// Elements without columns form one row.
fn mix_shape(shape: &ChunkShape) -> MixShape {
    let cols = if shape.cols == 1 { shape.elems() } else { shape.cols };
    MixShape { number: shape.number, cols }
}

pub(crate) fn encode(shape: &ChunkShape, target: &[u8], prediction: &[u8]) -> Vec<u8> {
    let shape = mix_shape(shape);
    let rule = MixRule::fit(shape, target, prediction);
    let mut payload = vec![u8::from(rule.tracks) | u8::from(rule.shifts) << 1];
    push_zigzag(&mut payload, rule.scale.into());
    push_varint(&mut payload, rule.highest.into());
    mixing::encode(shape, rule, target, prediction, payload)
}

/// The payload that the plan has made, or a new one.
pub(super) fn encode_input(input: &ChunkInput<'_>) -> Vec<u8> {
    match input.material {
        Some(Material::Payload(payload)) => payload.to_vec(),
        _ => encode(&input.shape, input.target, input.prediction),
    }
}

pub(super) fn decode(shape: &ChunkShape, payload: &[u8], values: &mut [u8]) -> Result<()> {
    let mut reader = ByteReader::new(payload, "a mixed chunk");
    let shape = mix_shape(shape);
    let flags = reader.u8()?;
    let scale = i32::try_from(reader.zigzag()?).ok().filter(|scale| scale.abs() <= SCALE_MAX);
    let highest = u32::try_from(reader.varint()?).ok();
    let rows = values.len() / shape.number.bytes() / shape.cols.max(1);
    let (tracks, shifts) = (flags & 1 == 1, flags & 2 == 2);
    match (scale, highest) {
        (Some(scale), Some(highest)) if flags < 4 && (!tracks || rows >= MIN_TRACKED_ROWS) => {
            let rule = MixRule { tracks, shifts, scale, highest };
            Ok(mixing::decode(shape, rule, reader.rest(), values)?)
        }
        _ => Err(Error::corrupt("the first fields of a mixed chunk are out of range")),
    }
}
