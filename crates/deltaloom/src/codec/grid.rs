//! Elements that lie on a grid: the number of the grid point by rANS, and the step and origin of
//! every block; docs/format.md section 14.
//! It does not find grids; [`crate::plan`] does.

use deltaloom_kernels::bits::BitReader;
use deltaloom_kernels::fields::FieldSplit;
use deltaloom_kernels::rans::Contexts;
use deltaloom_kernels::{Number, NumberKind};

use super::{ChunkInput, ChunkShape, Decoder, Encoder, Material, float};
use crate::entropy::block::{self, Lanes};
use crate::entropy::bytes::{ByteReader, push_varint};
use crate::error::{Error, Result};
use crate::limits::narrow;
use crate::scratch::Scratch;

/// The symbol that is followed by the element itself.
pub(crate) const ESCAPE: u8 = 255;
/// The symbol of level 0 of a grid without origins, whose levels have both signs.
pub(crate) const MIDDLE: u8 = 127;
/// Type of steps and origins, and how many of their mantissa bits are in the symbol.
const SINGLE: Number = Number::float(8, 23);
const MODELLED_BITS: u32 = 3;

/// The points that elements of a group may lie on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ValueGrid {
    /// These elements, in rising order.
    Palette(Vec<u64>),
    /// Multiples of a step, counted from an origin if there is one. Every `block_elems` elements of
    /// a row have their own step and origin. `lowest_step` and `lowest_origin` are the modelled
    /// parts that get symbol 0.
    Blocks { block_elems: usize, lowest_step: u64, lowest_origin: Option<u64> },
}

impl ValueGrid {
    pub(crate) fn fits(&self, number: Number) -> bool {
        match self {
            Self::Palette(elements) => (1..=usize::from(ESCAPE)).contains(&elements.len()),
            Self::Blocks { block_elems, lowest_step, lowest_origin } => {
                let lowest = [Some(*lowest_step), *lowest_origin];
                has_blocks(number)
                    && *block_elems > 0
                    && lowest.iter().flatten().all(|lowest| split_of_numbers(*lowest).is_some())
            }
        }
    }

    /// Number of tables in a set.
    pub(crate) fn table_count(&self) -> usize {
        match self {
            Self::Palette(_) => 1,
            Self::Blocks { lowest_origin: None, .. } => 2,
            Self::Blocks { .. } => 3,
        }
    }

    /// Appends it; docs/format.md section 5.
    pub(super) fn push_to(&self, meta: &mut Vec<u8>, number: Number) {
        match self {
            Self::Palette(elements) => {
                meta.push(0);
                meta.push(narrow(elements.len(), "a palette has at most 255 elements"));
                meta.extend(elements.iter().flat_map(|x| x.to_le_bytes().into_iter().take(number.bytes())));
            }
            Self::Blocks { block_elems, lowest_step, lowest_origin } => {
                meta.push(if lowest_origin.is_some() { 2 } else { 1 });
                push_varint(meta, *block_elems as u64);
                push_varint(meta, *lowest_step);
                lowest_origin.iter().for_each(|lowest| push_varint(meta, *lowest));
            }
        }
    }

    pub(super) fn parse(meta: &mut ByteReader<'_>, number: Number) -> Result<Self> {
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
                Self::Palette(elements)
            }
            kind @ (1 | 2) => Self::Blocks {
                block_elems: meta.size()?,
                lowest_step: meta.varint()?,
                lowest_origin: if kind == 2 { Some(meta.varint()?) } else { None },
            },
            _ => return Err(bad()),
        };
        if grid.fits(number) { Ok(grid) } else { Err(bad()) }
    }
}

/// Whether elements of this type can be products of steps.
pub(crate) fn has_blocks(number: Number) -> bool {
    number.kind() == NumberKind::Float && matches!(number.bits(), 16 | 32)
}

/// How steps and origins are split into symbol and raw bits.
pub(crate) fn split_of_numbers(lowest: u64) -> Option<FieldSplit> {
    FieldSplit::new(SINGLE, MODELLED_BITS, lowest)
}

/// The point of a symbol, as bits. Product and sum are rounded separately, the same way on every
/// machine.
#[inline]
pub(crate) fn point(number: Number, step: f32, origin: Option<f32>, symbol: u8) -> u64 {
    let value = match origin {
        None => step * (f32::from(symbol) - f32::from(MIDDLE)),
        Some(origin) => step * f32::from(symbol) + origin,
    };
    match number.mantissa_bits() {
        7 => half::bf16::from_f32(value).to_bits().into(),
        10 => half::f16::from_f32(value).to_bits().into(),
        _ => value.to_bits().into(),
    }
}

/// Elements of a row of blocks: a row of a matrix, or else the whole chunk.
pub(crate) fn row_elems(shape: &ChunkShape) -> usize {
    if shape.cols == 1 { shape.rows } else { shape.cols }
}

/// A chunk as points of a grid.
#[derive(Debug, Default)]
pub(crate) struct GridSymbols {
    pub(crate) symbols: Scratch,
    /// Raw bits of the elements that are not points.
    pub(crate) escapes: Vec<u8>,
    /// One F32 number per block in each, or nothing.
    pub(crate) steps: Vec<u8>,
    pub(crate) origins: Vec<u8>,
}

/// `None` if the plan has found no points in the chunk.
pub(super) fn encode(input: &ChunkInput<'_>, tables: &Encoder, grid: &ValueGrid) -> Option<Vec<u8>> {
    let Some(Material::Points(points)) = input.material else { return None };
    let mut payload = input.empty_payload();
    if let ValueGrid::Blocks { lowest_step, lowest_origin, .. } = grid {
        let lowest_of = [Some(*lowest_step), *lowest_origin];
        for (i, (lowest, numbers)) in lowest_of.into_iter().zip([&points.steps, &points.origins]).enumerate()
        {
            let Some(lowest) = lowest else { continue };
            let contexts = contexts_of_numbers(i, numbers.len() / SINGLE.bytes());
            let lanes = Lanes::choose(contexts.len(), numbers.len() as u64 / 4);
            let split = split_of_numbers(lowest)?;
            float::push(&mut payload, tables, Contexts::PerSymbol(&contexts), lanes, split, numbers);
        }
    }
    let lanes = Lanes::choose(points.symbols.len(), input.estimated_bytes);
    block::push_with_raw(
        &mut payload,
        &tables.coder,
        lanes,
        &points.symbols,
        Contexts::Single,
        &points.escapes,
    );
    Some(payload)
}

/// Table 1 for steps, 2 for origins.
fn contexts_of_numbers(which: usize, count: usize) -> Vec<u8> {
    vec![if which == 0 { 1 } else { 2 }; count]
}

pub(super) fn decode(
    shape: &ChunkShape,
    tables: &Decoder,
    grid: &ValueGrid,
    payload: &[u8],
    values: &mut [u8],
) -> Result<()> {
    if !grid.fits(shape.number) || tables.count != grid.table_count() {
        return Err(Error::corrupt(
            "a grid group has parameters or tables that are not allowed for its dtype",
        ));
    }
    let mut reader = ByteReader::new(payload, "a grid chunk");
    let row_elems = row_elems(shape);
    let numbers = match grid {
        ValueGrid::Palette(_) => (Vec::new(), Vec::new()),
        ValueGrid::Blocks { block_elems, lowest_step, lowest_origin } => {
            let count = shape.elems() / row_elems.max(1) * row_elems.div_ceil(*block_elems);
            let steps = read_numbers(&mut reader, tables, 0, *lowest_step, count)?;
            let origins = lowest_origin.map(|lowest| read_numbers(&mut reader, tables, 1, lowest, count));
            (steps, origins.transpose()?.unwrap_or_default())
        }
    };
    let mut symbols = Scratch::of_len(shape.elems());
    let block = block::read_block(&mut reader, shape.elems())?;
    let raw = block.decode_with_rest(&tables.coder, Contexts::Single, &mut symbols, reader)?;
    match grid {
        ValueGrid::Palette(elements) => look_up(shape.number, elements, &symbols, values)?,
        ValueGrid::Blocks { block_elems, .. } => {
            multiply(shape.number, row_elems, *block_elems, &numbers, &symbols, values);
        }
    }
    let mut bits = raw.bits();
    fill_escapes(shape.number, &symbols, &mut bits, values);
    raw.finish(bits)
}

fn read_numbers(
    reader: &mut ByteReader<'_>,
    tables: &Decoder,
    which: usize,
    lowest: u64,
    count: usize,
) -> Result<Vec<f32>> {
    let split = split_of_numbers(lowest)
        .ok_or_else(|| Error::corrupt("the lowest step or origin of a grid is out of range"))?;
    let mut bytes = Scratch::of_len(count * SINGLE.bytes());
    let contexts = contexts_of_numbers(which, count);
    float::read(reader, tables, Contexts::PerSymbol(&contexts), split, &mut bytes)?;
    let numbers: Vec<f32> = singles(&bytes).collect();
    if !numbers.iter().all(|number| number.is_finite()) {
        return Err(Error::corrupt("a step or an origin of a grid is not finite"));
    }
    Ok(numbers)
}

fn singles(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn look_up(number: Number, elements: &[u64], symbols: &[u8], values: &mut [u8]) -> Result<()> {
    let size = number.bytes();
    let mut table = [0u64; 256];
    table[..elements.len()].copy_from_slice(elements);
    let mut highest = 0;
    for (value, symbol) in values.chunks_exact_mut(size).zip(symbols) {
        highest = highest.max(if *symbol == ESCAPE { 0 } else { *symbol });
        value.copy_from_slice(&table[usize::from(*symbol)].to_le_bytes()[..size]);
    }
    if usize::from(highest) >= elements.len() {
        return Err(Error::corrupt("a symbol is beyond the end of its palette"));
    }
    Ok(())
}

/// Points of all symbols. Escapes get one, too, which is replaced later.
fn multiply(
    number: Number,
    row_elems: usize,
    block_elems: usize,
    (steps, origins): &(Vec<f32>, Vec<f32>),
    symbols: &[u8],
    values: &mut [u8],
) {
    let (size, block_elems) = (number.bytes(), block_elems.min(row_elems));
    let rows = symbols.chunks(row_elems).zip(values.chunks_mut(row_elems * size));
    let blocks = rows
        .flat_map(|(symbols, values)| symbols.chunks(block_elems).zip(values.chunks_mut(block_elems * size)));
    for (i, ((symbols, values), step)) in blocks.zip(steps).enumerate() {
        match origins.get(i) {
            None => fill(number, symbols, values, |symbol| point(number, *step, None, symbol)),
            Some(origin) => {
                fill(number, symbols, values, |symbol| point(number, *step, Some(*origin), symbol));
            }
        }
    }
}

#[inline(always)]
fn fill(number: Number, symbols: &[u8], values: &mut [u8], point: impl Fn(u8) -> u64) {
    if number.bits() == 32 {
        let pairs = symbols.iter().zip(values.chunks_exact_mut(4));
        pairs.for_each(|(symbol, value)| value.copy_from_slice(&point(*symbol).to_le_bytes()[..4]));
    } else {
        let pairs = symbols.iter().zip(values.chunks_exact_mut(2));
        pairs.for_each(|(symbol, value)| value.copy_from_slice(&point(*symbol).to_le_bytes()[..2]));
    }
}

fn fill_escapes(number: Number, symbols: &[u8], bits: &mut BitReader<'_>, values: &mut [u8]) {
    let size = number.bytes();
    // Most blocks have no escapes. Without a branch for each symbol that is seen fastest.
    for (symbols, values) in symbols.chunks(64).zip(values.chunks_mut(64 * size)) {
        if symbols.iter().fold(false, |any, symbol| any | (*symbol == ESCAPE)) {
            let escaped = symbols.iter().zip(values.chunks_exact_mut(size));
            for (_, value) in escaped.filter(|(symbol, _)| **symbol == ESCAPE) {
                value.copy_from_slice(&bits.take(number.bits()).to_le_bytes()[..size]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decoder, encoder};
    use crate::entropy::table::{Counts, TableSet, normalise};
    use proptest::prelude::*;

    const BF16: Number = Number::float(8, 7);

    /// A chunk of 9 rows of 100 elements with blocks of 32: payload, tables, grid and elements.
    fn chunk(number: Number, has_origin: bool) -> (ChunkShape, Vec<u8>, TableSet, ValueGrid, Vec<u8>) {
        let shape = ChunkShape { number, rows: 9, cols: 100 };
        let symbols: Vec<u8> = (0..900u32)
            .map(|i| if i % 301 == 7 { ESCAPE } else { u8::try_from(i * i % 97).unwrap() })
            .collect();
        let numbers: Vec<f32> = (1..=36u8).map(|i| 0.125 + f32::from(i) / 64.0).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let mut escapes = deltaloom_kernels::bits::BitWriter::default();
        let mut elements = Vec::new();
        for (i, symbol) in symbols.iter().enumerate() {
            let step = numbers[i / 100 * 4 + i % 100 / 32];
            let mut bits = point(number, step, has_origin.then_some(step), *symbol);
            if *symbol == ESCAPE {
                bits = 0x7fc0 + i as u64;
                escapes.push(bits, number.bits());
            }
            elements.extend_from_slice(&bits.to_le_bytes()[..number.bytes()]);
        }
        let points = Material::Points(GridSymbols {
            symbols: symbols.into(),
            escapes: escapes.finish(),
            origins: if has_origin { bytes.clone() } else { Vec::new() },
            steps: bytes,
        });
        let lowest = 900;
        let grid = ValueGrid::Blocks {
            block_elems: 32,
            lowest_step: lowest,
            lowest_origin: has_origin.then_some(lowest),
        };
        let counts: Counts = [1; 256];
        let count = grid.table_count();
        let set = TableSet::of_keys((1..=2).take(count - 1).collect(), vec![normalise(&counts); count]);
        let input = ChunkInput {
            shape,
            target: &elements,
            prediction: &[],
            classes: None,
            row_scales: &[],
            material: Some(&points),
            estimated_bytes: 900,
            zstd_level: 1,
        };
        let payload = encode(&input, &encoder(&set), &grid).unwrap();
        (shape, payload, set, grid, elements)
    }

    #[test]
    fn chunks_come_back_and_no_cut_is_taken_for_one() {
        for number in [BF16, Number::float(5, 10), SINGLE] {
            for has_origin in [false, true] {
                let (shape, payload, set, grid, elements) = chunk(number, has_origin);
                let tables = decoder(&set).unwrap();
                let mut values = vec![0; elements.len()];
                decode(&shape, &tables, &grid, &payload, &mut values).unwrap();
                assert!(values == elements);
                for len in 0..payload.len() {
                    assert!(decode(&shape, &tables, &grid, &payload[..len], &mut values).is_err(), "{len}");
                }
                let long = [&payload[..], &[0]].concat();
                assert!(decode(&shape, &tables, &grid, &long, &mut values).is_err());
                let few = TableSet::of_keys(Vec::new(), set.tables[..1].to_vec());
                assert!(decode(&shape, &decoder(&few).unwrap(), &grid, &payload, &mut values).is_err());
            }
        }
    }

    #[test]
    fn points_are_rounded_after_every_operation() {
        // 3 (1 + 2^-23) = 3 + 3 * 2^-23 lies halfway between two numbers and becomes 3 + 2^-21. A
        // fused operation would subtract 2^-24 first, which is not halfway.
        let (step, origin) = (1.0 + f32::EPSILON, -f32::EPSILON / 2.0);
        assert_eq!(point(SINGLE, step, Some(origin), 3), u64::from((3.0 + 4.0 * f32::EPSILON).to_bits()));
        assert_ne!(step.mul_add(3.0, origin), 3.0 + 4.0 * f32::EPSILON);
        assert_eq!(point(SINGLE, 0.5, None, 127), 0);
        assert_eq!(point(SINGLE, -0.5, None, 127), 0x8000_0000);
        assert_eq!(
            point(BF16, 1.0 / 256.0, None, 0),
            u64::from(half::bf16::from_f32(-127.0 / 256.0).to_bits())
        );
        assert_eq!(point(Number::float(5, 10), 40_000.0, Some(0.0), 2), 0x7c00);
    }

    proptest! {
        /// Payloads that nobody has written: any answer will do, but there must be one.
        #[test]
        fn hostile_payloads(
            has_origin in any::<bool>(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            block_elems in 1usize..200, palette in prop::collection::vec(any::<u64>(), 1..255),
        ) {
            let (shape, mut payload, set, grid, elements) = chunk(BF16, has_origin);
            for (at, byte) in changes {
                *at.get_mut(&mut payload) = byte;
            }
            let tables = decoder(&set).unwrap();
            let mut values = vec![0; elements.len()];
            let _ = decode(&shape, &tables, &grid, &payload, &mut values);
            if let ValueGrid::Blocks { lowest_step, lowest_origin, .. } = grid {
                let other = ValueGrid::Blocks { block_elems, lowest_step, lowest_origin };
                let _ = decode(&shape, &tables, &other, &payload, &mut values);
            }
            let one = decoder(&TableSet::of_keys(Vec::new(), set.tables[..1].to_vec())).unwrap();
            let _ = decode(&shape, &one, &ValueGrid::Palette(palette), &payload, &mut values);
        }
    }
}
