//! Bytes of the parameters of a grid group: docs/format.md section 5.
//! The points themselves are in payloads, which this file does not read.

use deltaloom_kernels::Number;

use crate::codec::ValueGrid;
use crate::entropy::bytes::{ByteReader, push_varint};
use crate::error::{Error, Result};
use crate::limits::narrow;

pub(super) fn push_grid(meta: &mut Vec<u8>, grid: &ValueGrid, number: Number) {
    match grid {
        ValueGrid::Palette(elements) => {
            meta.push(0);
            meta.push(narrow(elements.len(), "a palette has at most 255 elements"));
            meta.extend(elements.iter().flat_map(|x| x.to_le_bytes().into_iter().take(number.bytes())));
        }
        ValueGrid::Blocks { block_elems, lowest_step, lowest_origin } => {
            meta.push(if lowest_origin.is_some() { 2 } else { 1 });
            push_varint(meta, *block_elems as u64);
            push_varint(meta, *lowest_step);
            lowest_origin.iter().for_each(|lowest| push_varint(meta, *lowest));
        }
    }
}

pub(super) fn parse_grid(meta: &mut ByteReader<'_>, number: Number) -> Result<ValueGrid> {
    let bad = || Error::corrupt("a grid is not well-formed");
    let grid = match meta.u8()? {
        0 if number.bits() >= 16 => {
            let count = usize::from(meta.u8()?);
            let element = |bytes: &[u8]| bytes.iter().rev().fold(0, |x, byte| x << 8 | u64::from(*byte));
            let elements: Vec<u64> =
                meta.take(count * number.bytes())?.chunks_exact(number.bytes()).map(element).collect();
            if elements.windows(2).any(|w| w[0] >= w[1]) {
                return Err(bad());
            }
            ValueGrid::Palette(elements)
        }
        kind @ (1 | 2) => ValueGrid::Blocks {
            block_elems: meta.size()?,
            lowest_step: meta.varint()?,
            lowest_origin: if kind == 2 { Some(meta.varint()?) } else { None },
        },
        _ => return Err(bad()),
    };
    if grid.fits(number) { Ok(grid) } else { Err(bad()) }
}
