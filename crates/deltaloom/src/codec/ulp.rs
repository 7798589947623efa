//! A residual for every element; docs/format.md section 8.

use deltaloom_kernels::bits::BitWriter;
use deltaloom_kernels::rans::Contexts;
use deltaloom_kernels::{Number, ulp};

use super::{ChunkInput, ChunkShape, Decoder, Encoder, GroupScales, Material};
use crate::entropy::block::{self, Lanes};
use crate::entropy::bytes::ByteReader;
use crate::entropy::rice;
use crate::error::Result;
use crate::scratch::Scratch;

/// Residuals of a chunk: symbols and raw bits. They do not depend on contexts, so several contexts
/// can be tried.
#[derive(Debug)]
pub(crate) struct UlpSymbols {
    pub(crate) symbols: Scratch,
    pub(crate) raw_bits: u64,
    raw: Scratch,
}

impl UlpSymbols {
    pub(crate) fn of(number: Number, target: &[u8], prediction: &[u8]) -> Self {
        let mut symbols = Scratch::of_len(target.len() / number.bytes());
        let mut raw = BitWriter::with_buffer(Scratch::vec(symbols.len()));
        ulp::encode(number, target, prediction, &mut symbols, &mut raw);
        Self { symbols, raw_bits: raw.len_bits(), raw: raw.finish().into() }
    }

    /// Appends them as a block and the rest of its raw bit stream.
    pub(super) fn push_to(
        &self,
        payload: &mut Vec<u8>,
        tables: &Encoder,
        lanes: Lanes,
        contexts: Contexts<'_>,
    ) {
        block::push_with_raw(payload, &tables.coder, lanes, &self.symbols, contexts, &self.raw);
    }
}

/// `None` if the tables need classes and there are none.
pub(super) fn encode(input: &ChunkInput<'_>, tables: &Encoder, scales: &GroupScales) -> Option<Vec<u8>> {
    let elems = input.shape.elems();
    let mut payload = input.empty_payload();
    if scales.has_rows {
        rice::push_scales(&mut payload, input.row_scales);
    }
    let mut contexts = Scratch::of_len(elems);
    scales.key_rule(&input.shape, input.row_scales).keys(input.prediction, &mut contexts);
    tables.map(&mut contexts, input.classes).ok()?;
    let mut push = |residuals: &UlpSymbols| {
        let lanes = Lanes::choose_for_raw(elems, input.estimated_bytes, residuals.raw.len());
        residuals.push_to(&mut payload, tables, lanes, Contexts::PerSymbol(&contexts));
    };
    match input.material {
        Some(Material::Residuals(residuals)) => push(residuals),
        _ => push(&UlpSymbols::of(input.shape.number, input.target, input.prediction)),
    }
    Some(payload)
}

pub(super) fn decode(
    shape: &ChunkShape,
    tables: &Decoder,
    scales: &GroupScales,
    payload: &[u8],
    classes: Option<&[u8]>,
    values: &mut [u8],
) -> Result<()> {
    let mut reader = ByteReader::new(payload, "an ulp chunk");
    let row_scales = read_row_scales(&mut reader, shape, scales)?;
    let block = block::read_block(&mut reader, shape.elems())?;
    let mut contexts = Scratch::of_len(shape.elems());
    scales.key_rule(shape, &row_scales).keys(values, &mut contexts);
    tables.map(&mut contexts, classes)?;
    let mut symbols = Scratch::of_len(shape.elems());
    let raw = block.decode_with_rest(&tables.coder, Contexts::PerSymbol(&contexts), &mut symbols, reader)?;
    let mut bits = raw.bits();
    ulp::apply(shape.number, values, &symbols, &mut bits)?;
    raw.finish(bits)
}

pub(super) fn read_row_scales(
    reader: &mut ByteReader<'_>,
    shape: &ChunkShape,
    scales: &GroupScales,
) -> Result<Vec<i32>> {
    if scales.has_rows { rice::read_scales(reader, shape.rows) } else { Ok(Vec::new()) }
}
