//! The changed elements and the gaps between them; docs/format.md section 8. Its cost depends on
//! the number of changes.

use deltaloom_kernels::bits::{BitReader, BitWriter};
use deltaloom_kernels::rans::Contexts;
use deltaloom_kernels::{Number, keys, tokens, ulp};

use super::ulp::{UlpSymbols, read_row_scales};
use super::{ChunkInput, ChunkShape, Decoder, Encoder, GroupScales};
use crate::entropy::block::{self, Lanes};
use crate::entropy::bytes::{ByteReader, push_varint};
use crate::entropy::rice;
use crate::error::{Error, Result};
use crate::scratch::Scratch;

/// Unchanged elements before each changed one.
pub(crate) fn gaps(positions: &[u32]) -> impl Iterator<Item = u32> {
    let before = std::iter::once(None).chain(positions.iter().map(|p| Some(*p)));
    positions.iter().zip(before).map(|(at, before)| before.map_or(*at, |before| at - before - 1))
}

/// Residuals of the elements at `positions`.
pub(crate) fn changed_symbols(
    number: Number,
    target: &[u8],
    prediction: &[u8],
    positions: &[u32],
) -> UlpSymbols {
    UlpSymbols::of(
        number,
        &ulp::gather(number, target, positions),
        &ulp::gather(number, prediction, positions),
    )
}

pub(super) fn encode(input: &ChunkInput<'_>, tables: &Encoder, scales: &GroupScales) -> Vec<u8> {
    let number = input.shape.number;
    let positions = ulp::changed_positions(number, input.target, input.prediction);
    let lanes = Lanes::choose(positions.len(), input.estimated_bytes / 2);
    let mut payload = input.empty_payload();
    if scales.has_rows {
        rice::push_scales(&mut payload, input.row_scales);
    }
    push_varint(&mut payload, positions.len() as u64);

    let mut raw = BitWriter::default();
    let mut gap_symbol = |gap: u32| {
        let token = tokens::token(u64::from(gap));
        raw.push(token.raw, token.raw_bits);
        token.symbol
    };
    let symbols: Vec<u8> = gaps(&positions).map(&mut gap_symbol).collect();
    block::push_with_raw(&mut payload, &tables.coder, lanes, &symbols, Contexts::Single, &raw.finish());

    let symbols = changed_symbols(number, input.target, input.prediction, &positions);
    let map = tables.set.key_map(1);
    let mut contexts = scales.key_rule(&input.shape, input.row_scales).keys_at(input.prediction, &positions);
    keys::map_keys(&mut contexts, &map);
    symbols.push_to(&mut payload, tables, lanes, Contexts::PerSymbol(&contexts));
    payload
}

pub(super) fn decode(
    shape: &ChunkShape,
    tables: &Decoder,
    scales: &GroupScales,
    payload: &[u8],
    values: &mut [u8],
) -> Result<()> {
    let mut reader = ByteReader::new(payload, "a sparse chunk");
    let row_scales = read_row_scales(&mut reader, shape, scales)?;
    let count = reader.size()?;
    if !(1..=shape.elems()).contains(&count) {
        return Err(Error::corrupt("a sparse chunk changes no elements, or more than it has"));
    }
    let map = tables.sparse_map()?;

    let mut symbols = Scratch::of_len(count);
    let raw_bits = |symbols: &[u8]| symbols.iter().map(|symbol| u64::from(tokens::raw_bits(*symbol))).sum();
    let block = block::read_block(&mut reader, count)?;
    let raw = block.decode_with_raw(&tables.coder, Contexts::Single, &mut symbols, &mut reader, raw_bits)?;
    let mut bits = raw.bits();
    let positions = read_positions(&symbols, &mut bits, shape.elems())?;
    raw.finish(bits)?;

    let mut contexts = scales.key_rule(shape, &row_scales).keys_at(values, &positions);
    keys::map_keys(&mut contexts, &map);
    let block = block::read_block(&mut reader, count)?;
    let raw = block.decode_with_rest(&tables.coder, Contexts::PerSymbol(&contexts), &mut symbols, reader)?;
    let mut bits = raw.bits();
    let mut elements = ulp::gather(shape.number, values, &positions);
    ulp::apply(shape.number, &mut elements, &symbols, &mut bits)?;
    raw.finish(bits)?;
    ulp::scatter(shape.number, values, &positions, &elements);
    Ok(())
}

fn read_positions(symbols: &[u8], bits: &mut BitReader<'_>, elems: usize) -> Result<Vec<u32>> {
    let mut positions = Vec::with_capacity(symbols.len());
    let mut next = 0u64;
    for symbol in symbols {
        let at = next.saturating_add(tokens::read_token(*symbol, bits)?);
        let inside = u32::try_from(at).ok().filter(|at| (*at as usize) < elems);
        let beyond = || Error::corrupt("a sparse chunk refers to an element beyond its end");
        positions.push(inside.ok_or_else(beyond)?);
        next = at + 1;
    }
    Ok(positions)
}
