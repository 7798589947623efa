//! Elements without a prediction: exponent and top mantissa bits coded, the rest raw; docs/format.md section 9.

use deltaloom_kernels::bits::{BitReader, BitWriter};
use deltaloom_kernels::fields::{FieldSplit, common_zero_bits, escape_bits};
use deltaloom_kernels::rans::Contexts;

use super::{ChunkInput, Decoder, Encoder};
use crate::entropy::block::{self, Lanes};
use crate::entropy::bytes::ByteReader;
use crate::error::{Error, Result};
use crate::scratch::Scratch;

pub(super) fn encode(input: &ChunkInput<'_>, tables: &Encoder, split: FieldSplit) -> Vec<u8> {
    let mut payload = input.empty_payload();
    push(&mut payload, input.target, input, tables, split);
    payload
}

/// Appends `values`, which stand for the elements of the input.
pub(super) fn push(
    payload: &mut Vec<u8>,
    values: &[u8],
    input: &ChunkInput<'_>,
    tables: &Encoder,
    split: FieldSplit,
) {
    let elems = input.shape.elems();
    let zero_bits = common_zero_bits(input.shape.number, values).min(split.max_zero_bits());
    let mut symbols = Scratch::of_len(elems);
    let mut escapes = BitWriter::default();
    let mut fields = BitWriter::with_buffer(Scratch::vec(values.len()));
    split.encode(values, zero_bits, &mut symbols, &mut escapes, &mut fields);
    payload.push(u8::try_from(zero_bits).unwrap_or(0));
    let lanes = Lanes::choose(elems, input.estimated_bytes);
    block::push_with_raw(payload, &tables.coder, lanes, &symbols, Contexts::Single, &escapes.finish());
    payload.extend_from_slice(&Scratch::from(fields.finish()));
}

pub(super) fn decode(
    split: FieldSplit,
    tables: &Decoder,
    mut reader: ByteReader<'_>,
    values: &mut [u8],
) -> Result<()> {
    let elems = values.len() / split.number().bytes();
    let zero_bits = u32::from(reader.u8()?);
    if zero_bits > split.max_zero_bits() {
        return Err(Error::corrupt("a float chunk has more zero bits than mantissa bits"));
    }
    let mut symbols = Scratch::of_len(elems);
    let block = block::read_block(&mut reader, elems)?;
    let raw =
        block.decode_with_raw(&tables.coder, Contexts::Single, &mut symbols, &mut reader, |symbols| {
            escape_bits(split, symbols)
        })?;
    let (mut escapes, mut fields) = (raw.bits(), BitReader::new(reader.rest()));
    split.decode(&symbols, zero_bits, &mut escapes, &mut fields, values)?;
    raw.finish(escapes)?;
    Ok(fields.finish(0)?)
}
