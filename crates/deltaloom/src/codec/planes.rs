//! Byte planes of the difference to the prediction, each compressed by zstd or stored;
//! docs/format.md section 10. For integers and structured bytes.

use deltaloom_kernels::Number;

use super::ChunkInput;
use crate::entropy::bytes::{ByteReader, push_varint};
use crate::entropy::frame;
use crate::error::{Error, Result};
use crate::limits::to_usize;

/// Bytes at position `plane` of every difference.
fn plane_of(number: Number, target: &[u8], prediction: &[u8], plane: usize) -> Vec<u8> {
    let size = number.bytes();
    let difference = |(t, p): (&[u8], &[u8])| {
        // The borrow into this byte comes from all lower ones.
        let mut borrow = false;
        let mut byte = 0;
        for i in 0..=plane {
            let (d, under) = t[i].overflowing_sub(p[i]);
            let (d, under_again) = d.overflowing_sub(u8::from(borrow));
            byte = d;
            borrow = under || under_again;
        }
        byte
    };
    target.chunks_exact(size).zip(prediction.chunks_exact(size)).map(difference).collect()
}

/// A zstd frame of the plane, if it is smaller.
fn compress(plane: &[u8], level: i32) -> Option<Vec<u8>> {
    frame::compress(plane, level).ok().filter(|packed| packed.len() < plane.len())
}

pub(super) fn encode(input: &ChunkInput<'_>) -> Vec<u8> {
    let number = input.shape.number;
    let mut payload = input.empty_payload();
    let mut body = Vec::new();
    for plane in 0..number.bytes() {
        let bytes = plane_of(number, input.target, input.prediction, plane);
        let (stored, is_raw) = match compress(&bytes, input.zstd_level) {
            Some(packed) => (packed, 0),
            None => (bytes, 1),
        };
        push_varint(&mut payload, 2 * stored.len() as u64 + is_raw);
        body.extend_from_slice(&stored);
    }
    payload.extend_from_slice(&body);
    payload
}

/// Estimated size of the planes of a sample, in bytes.
pub(crate) fn sample_cost(number: Number, target: &[u8], prediction: &[u8]) -> u64 {
    let plane_cost = |plane| {
        let bytes = plane_of(number, target, prediction, plane);
        compress(&bytes, 1).map_or(bytes.len(), |packed| packed.len()) as u64
    };
    (0..number.bytes()).map(plane_cost).sum()
}

pub(super) fn decode(number: Number, payload: &[u8], values: &mut [u8]) -> Result<()> {
    let size = number.bytes();
    let elems = values.len() / size;
    let mut reader = ByteReader::new(payload, "a planes chunk");
    let headers = (0..size).map(|_| reader.varint()).collect::<Result<Vec<_>>>()?;
    let mut planes = Vec::with_capacity(size);
    for header in headers {
        let length = to_usize(header >> 1);
        let stored = reader.take(length)?;
        let plane = if header & 1 == 1 {
            stored.to_vec()
        } else {
            zstd::bulk::decompress(stored, elems).map_err(|e| Error::corrupt(format!("a plane: {e}")))?
        };
        if plane.len() != elems {
            return Err(Error::corrupt("a plane does not have a byte for every element"));
        }
        planes.push(plane);
    }
    reader.finish()?;
    for (i, value) in values.chunks_exact_mut(size).enumerate() {
        let mut carry = false;
        for (byte, plane) in value.iter_mut().zip(&planes) {
            let (sum, over) = byte.overflowing_add(plane[i]);
            let (sum, over_again) = sum.overflowing_add(u8::from(carry));
            *byte = sum;
            carry = over || over_again;
        }
    }
    Ok(())
}
