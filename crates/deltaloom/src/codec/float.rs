//! Elements without a prediction: exponent and top mantissa bits are coded, the rest is raw;
//! docs/format.md section 9.
//! Also for the numbers inside other payloads that are coded this way.

use deltaloom_kernels::bits::{BitReader, BitWriter};
use deltaloom_kernels::fields::{FieldSplit, common_zero_bits, escape_bits};
use deltaloom_kernels::rans::Contexts;

use super::{ChunkInput, Decoder, Encoder};
use crate::entropy::block::{self, Lanes};
use crate::entropy::bytes::ByteReader;
use crate::error::{Error, Result};
use crate::limits::{narrow, to_usize};
use crate::scratch::Scratch;

pub(super) fn encode(input: &ChunkInput<'_>, tables: &Encoder, split: FieldSplit) -> Vec<u8> {
    let lanes = Lanes::choose(input.shape.elems(), input.estimated_bytes);
    let mut payload = input.empty_payload();
    push(&mut payload, tables, Contexts::Single, lanes, split, input.target);
    payload
}

/// Appends `elements`.
pub(super) fn push(
    payload: &mut Vec<u8>,
    tables: &Encoder,
    contexts: Contexts<'_>,
    lanes: Lanes,
    split: FieldSplit,
    elements: &[u8],
) {
    let number = split.number();
    let zero_bits = common_zero_bits(number, elements).min(split.max_zero_bits());
    let mut symbols = Scratch::of_len(elements.len() / number.bytes());
    let mut escapes = BitWriter::default();
    let mut fields = BitWriter::with_buffer(Scratch::vec(elements.len()));
    split.encode(elements, zero_bits, &mut symbols, &mut escapes, &mut fields);
    payload.push(narrow(zero_bits, "fewer than an element has"));
    block::push_with_raw(payload, &tables.coder, lanes, &symbols, contexts, &escapes.finish());
    payload.extend_from_slice(&Scratch::from(fields.finish()));
}

pub(super) fn decode(split: FieldSplit, tables: &Decoder, payload: &[u8], values: &mut [u8]) -> Result<()> {
    let mut reader = ByteReader::new(payload, "a float chunk");
    read(&mut reader, tables, Contexts::Single, split, values)?;
    reader.finish()
}

/// Reads as many elements as `values` has.
pub(super) fn read(
    reader: &mut ByteReader<'_>,
    tables: &Decoder,
    contexts: Contexts<'_>,
    split: FieldSplit,
    values: &mut [u8],
) -> Result<()> {
    let elems = values.len() / split.number().bytes();
    let zero_bits = u32::from(reader.u8()?);
    if zero_bits > split.max_zero_bits() {
        return Err(Error::corrupt("floats have more zero bits than mantissa bits"));
    }
    let mut symbols = Scratch::of_len(elems);
    let block = block::read_block(reader, elems)?;
    let raw = block.decode_with_raw(&tables.coder, contexts, &mut symbols, reader, |symbols| {
        escape_bits(split, symbols)
    })?;
    let field_bytes = (elems as u64 * u64::from(split.field_bits(zero_bits))).div_ceil(8);
    let fields = reader.take(to_usize(field_bytes))?;
    let (mut escapes, mut fields) = (raw.bits(), BitReader::new(fields));
    split.decode(&symbols, zero_bits, &mut escapes, &mut fields, values)?;
    raw.finish(escapes)?;
    Ok(fields.finish(0)?)
}
