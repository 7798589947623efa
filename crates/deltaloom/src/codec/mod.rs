//! One chunk in, bytes out, and back: the codecs of docs/format.md sections 5, 8 to 10 and 13.
//! What the index stores of a codec stands here, too: its id, and the parameters of a group.
//! It does not choose parameters; [`crate::plan`] does. A payload never has more bytes than the
//! chunk.

mod float;
pub(crate) mod grid;
mod mixed;
pub(crate) mod nibbles;
pub(crate) mod patch;
mod planes;
mod ready;
mod scaled;
mod sparse;
mod ulp;

use deltaloom_kernels::Number;
use deltaloom_kernels::fields::FieldSplit;
use deltaloom_kernels::keys::KeyRule;

use crate::entropy::bytes::{ByteReader, push_varint, push_zigzag};
use crate::entropy::rice;
use crate::error::{Error, Result};
use crate::limits::to_usize;
use crate::scratch::Scratch;
use crate::tensor::ChunkGrid;

pub(crate) use grid::{GridSymbols, ValueGrid};
pub(crate) use mixed::encode as encode_mixed;
pub(crate) use nibbles::Nibbles;
pub(crate) use planes::sample_cost as planes_sample_cost;
pub(crate) use ready::{Decoder, Encoder, decoder, encoder};
pub(crate) use scaled::MagnitudeRule;
pub(crate) use sparse::{changed_symbols, gaps};
pub(crate) use ulp::UlpSymbols;

/// How the bytes of a chunk are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Codec {
    /// Equal to the prediction: no bytes.
    Same,
    /// One element, repeated.
    Constant,
    /// The elements as they are.
    Raw,
    /// Byte planes of the difference, each compressed by zstd.
    Planes,
    /// Exponent and top mantissa bits by rANS, the rest raw.
    Float,
    /// A residual in ULPs for every element, by rANS in the context of the prediction.
    Ulp,
    /// Residuals of the changed elements only, and the gaps between them.
    Sparse,
    /// A residual for every element, bit by bit in mixed contexts that adapt while coding.
    Mixed,
    /// Points of a grid: multiples of a step per block of elements, or a palette.
    Grid,
    /// As `Float`, with magnitudes relative to those that prediction, row and column suggest.
    Scaled,
    /// A zstd frame that refers to bytes of a file of a base.
    Patch,
}

/// A codec as files and reports name it.
struct CodecFacts {
    id: u8,
    /// The first version of the format that has it.
    since: u16,
    name: &'static str,
    /// Whether decoding a chunk needs its prediction.
    uses_prediction: bool,
}

impl Codec {
    const ALL: [Self; 11] = [
        Self::Same,
        Self::Constant,
        Self::Raw,
        Self::Planes,
        Self::Float,
        Self::Ulp,
        Self::Sparse,
        Self::Mixed,
        Self::Grid,
        Self::Scaled,
        Self::Patch,
    ];

    fn facts(self) -> CodecFacts {
        let (id, since, name, uses_prediction) = match self {
            Self::Same => (0, 1, "same", true),
            Self::Constant => (1, 1, "constant", false),
            Self::Raw => (2, 1, "raw", false),
            Self::Planes => (3, 1, "planes", true),
            Self::Float => (4, 1, "float", false),
            Self::Ulp => (5, 1, "ulp", true),
            Self::Sparse => (6, 1, "sparse", true),
            Self::Mixed => (7, 2, "mixed", true),
            Self::Grid => (8, 2, "grid", false),
            Self::Scaled => (9, 2, "scaled", true),
            Self::Patch => (10, 4, "patch", false),
        };
        CodecFacts { id, since, name, uses_prediction }
    }

    /// Its id in files.
    pub(crate) fn id(self) -> u8 {
        self.facts().id
    }

    /// The codec with an id in files of this version of the format.
    pub(crate) fn of_id(id: u8, version: u16) -> Result<Self> {
        let is_wanted = |codec: &Self| codec.facts().id == id && codec.facts().since <= version;
        let found = Self::ALL.into_iter().find(is_wanted);
        found.ok_or_else(|| Error::corrupt(format!("codec {id} does not exist")))
    }

    /// Whether decoding a chunk needs its prediction. Otherwise the old contents of the buffer do
    /// not matter.
    pub(crate) fn uses_prediction(self) -> bool {
        self.facts().uses_prediction
    }

    /// Name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().name
    }
}

/// Shape and type of a chunk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChunkShape {
    pub(crate) number: Number,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl ChunkShape {
    pub(crate) fn elems(&self) -> usize {
        self.rows * self.cols
    }
}

/// Where a group's keys start, and its column scales. Row scales are in the chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupScales {
    pub(crate) offset: i32,
    pub(crate) has_rows: bool,
    pub(crate) cols: Option<Vec<i32>>,
}

impl GroupScales {
    pub(crate) fn key_rule<'a>(&'a self, shape: &ChunkShape, row_scales: &'a [i32]) -> KeyRule<'a> {
        KeyRule {
            number: shape.number,
            cols: shape.cols,
            offset: self.offset,
            row_scales,
            col_scales: self.cols.as_deref().unwrap_or_default(),
        }
    }

    fn push_to(&self, meta: &mut Vec<u8>) {
        meta.push(u8::from(self.has_rows) | u8::from(self.cols.is_some()) << 1);
        push_zigzag(meta, i64::from(self.offset));
        if let Some(cols) = &self.cols {
            rice::push_scales(meta, cols);
        }
    }

    fn parse(meta: &mut ByteReader<'_>, grid: &ChunkGrid) -> Result<Self> {
        let mode = meta.u8()?;
        if mode > 3 || (mode != 0 && !grid.is_matrix) {
            return Err(Error::corrupt(format!("scale mode {mode} is not allowed here")));
        }
        let bad_offset = || Error::corrupt("a key offset is out of range");
        let offset = i32::try_from(meta.zigzag()?).map_err(|_| bad_offset())?;
        if offset.unsigned_abs() > rice::MAX_SCALE.unsigned_abs() {
            return Err(bad_offset());
        }
        let columns = to_usize(grid.cols);
        let cols = if mode & 2 != 0 { Some(rice::read_scales(meta, columns)?) } else { None };
        Ok(Self { offset, has_rows: mode & 1 != 0, cols })
    }
}

/// How the chunks of a group are coded, with the parameters that they share. Most codings also need
/// a table set: [`Family::has_tables`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Coding {
    Plain,
    Float {
        modelled_bits: u8,
        lowest: u64,
    },
    Ulp(GroupScales),
    Sparse(GroupScales),
    Mixed,
    Grid(ValueGrid),
    Scaled {
        modelled_bits: u8,
        lowest: u64,
        rule: MagnitudeRule,
    },
    /// As `Ulp`, with the history of an element as a further context.
    History {
        scales: GroupScales,
        kind: HistoryKind,
    },
    /// As `Ulp` or `Sparse`, for each code of words of 4-bit codes.
    Nibbles(Nibbles),
}

/// Which coding it is, as files name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Plain,
    Float,
    Ulp,
    Sparse,
    Mixed,
    Grid,
    Scaled,
    History,
    Nibbles,
}

impl Family {
    const ALL: [Self; 9] = [
        Self::Plain,
        Self::Float,
        Self::Ulp,
        Self::Sparse,
        Self::Mixed,
        Self::Grid,
        Self::Scaled,
        Self::History,
        Self::Nibbles,
    ];

    /// Its id in files, and the first version of the format that has it.
    fn id_and_version(self) -> (u8, u16) {
        match self {
            Self::Plain => (0, 1),
            Self::Float => (1, 1),
            Self::Ulp => (2, 1),
            Self::Sparse => (3, 1),
            Self::Mixed => (4, 2),
            Self::Grid => (5, 2),
            Self::Scaled => (6, 2),
            Self::History => (7, 3),
            Self::Nibbles => (8, 4),
        }
    }

    pub(crate) fn id(self) -> u8 {
        self.id_and_version().0
    }

    /// The family with an id in files of this version of the format.
    pub(crate) fn of_id(id: u8, version: u16) -> Result<Self> {
        let is_wanted = |family: &Self| {
            let (own, since) = family.id_and_version();
            own == id && since <= version
        };
        let found = Self::ALL.into_iter().find(is_wanted);
        found.ok_or_else(|| Error::corrupt(format!("group family {id} does not exist")))
    }

    /// Whether files of this version of the format may have it.
    pub(crate) fn is_in(self, version: u16) -> bool {
        self.id_and_version().1 <= version
    }

    /// Whether its groups need a table set.
    pub(crate) fn has_tables(self) -> bool {
        !matches!(self, Self::Plain | Self::Mixed)
    }
}

impl Coding {
    pub(crate) fn family(&self) -> Family {
        match self {
            Self::Plain => Family::Plain,
            Self::Float { .. } => Family::Float,
            Self::Ulp(_) => Family::Ulp,
            Self::Sparse(_) => Family::Sparse,
            Self::Mixed => Family::Mixed,
            Self::Grid(_) => Family::Grid,
            Self::Scaled { .. } => Family::Scaled,
            Self::History { .. } => Family::History,
            Self::Nibbles(_) => Family::Nibbles,
        }
    }

    /// Appends the parameters, as [`Self::parse`] reads them.
    pub(crate) fn push_to(&self, meta: &mut Vec<u8>, number: Number) {
        match self {
            Self::Plain | Self::Mixed => {}
            Self::Float { modelled_bits, lowest } => {
                meta.push(*modelled_bits);
                push_varint(meta, *lowest);
            }
            Self::Ulp(scales) | Self::Sparse(scales) => scales.push_to(meta),
            Self::Grid(grid) => grid.push_to(meta, number),
            Self::Scaled { modelled_bits, lowest, rule } => {
                meta.push(*modelled_bits);
                push_varint(meta, *lowest);
                rule.push_to(meta);
            }
            Self::History { scales, kind } => {
                meta.push(kind.id());
                scales.push_to(meta);
            }
            Self::Nibbles(kind) => meta.push(kind.id()),
        }
    }

    /// Reads the parameters of a group of a tensor with this grid; docs/format.md section 5.
    pub(crate) fn parse(
        family: Family,
        meta: &mut ByteReader<'_>,
        grid: &ChunkGrid,
        number: Number,
    ) -> Result<Self> {
        Ok(match family {
            Family::Plain => Self::Plain,
            Family::Float => Self::Float { modelled_bits: meta.u8()?, lowest: meta.varint()? },
            Family::Ulp => Self::Ulp(GroupScales::parse(meta, grid)?),
            Family::Sparse => Self::Sparse(GroupScales::parse(meta, grid)?),
            Family::Mixed => Self::Mixed,
            Family::Grid => Self::Grid(ValueGrid::parse(meta, number)?),
            Family::Scaled => Self::Scaled {
                modelled_bits: meta.u8()?,
                lowest: meta.varint()?,
                rule: MagnitudeRule::parse(meta, grid)?,
            },
            Family::History => {
                let kind = HistoryKind::of_id(meta.u8()?)?;
                Self::History { scales: GroupScales::parse(meta, grid)?, kind }
            }
            Family::Nibbles => Self::Nibbles(Nibbles::of_id(meta.u8()?, number)?),
        })
    }
}

/// What the class of an element says about its history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HistoryKind {
    /// The direction of its last change, how long ago that was, and how often it changed.
    Changes,
    /// The size of its last residual, and the sign of the one before.
    Residuals,
}

impl HistoryKind {
    fn id(self) -> u8 {
        match self {
            Self::Changes => 0,
            Self::Residuals => 1,
        }
    }

    fn of_id(id: u8) -> Result<Self> {
        let found = [Self::Changes, Self::Residuals].into_iter().find(|kind| kind.id() == id);
        found.ok_or_else(|| Error::corrupt(format!("history kind {id} does not exist")))
    }
}

fn split_of(number: Number, modelled_bits: u8, lowest: u64) -> Result<FieldSplit> {
    FieldSplit::new(number, modelled_bits.into(), lowest)
        .ok_or_else(|| Error::corrupt("a float group has parameters that are not allowed for its dtype"))
}

/// Whether all elements are equal.
pub(crate) fn is_constant(number: Number, target: &[u8]) -> bool {
    let size = number.bytes();
    target.len() > size && target[size..] == target[..target.len() - size]
}

/// A chunk to encode.
pub(crate) struct ChunkInput<'a> {
    pub(crate) shape: ChunkShape,
    pub(crate) target: &'a [u8],
    pub(crate) prediction: &'a [u8],
    /// Classes of the elements by their history, if the group's coding has them.
    pub(crate) classes: Option<&'a [u8]>,
    /// One per row, or empty.
    pub(crate) row_scales: &'a [i32],
    pub(crate) material: Option<&'a Material>,
    /// The size that the plan expects, for choosing lanes.
    pub(crate) estimated_bytes: u64,
    pub(crate) zstd_level: i32,
}

/// What the plan has computed of a chunk, ready to encode. Each coding has one kind.
#[derive(Debug)]
pub(crate) enum Material {
    /// Residuals of all elements, for `Ulp` and `History`.
    Residuals(UlpSymbols),
    /// The whole payload, for `Mixed`, and of patches for `Plain`.
    Payload(Scratch),
    /// Points, for `Grid`.
    Points(GridSymbols),
}

impl ChunkInput<'_> {
    /// An empty buffer with room for a usual payload.
    fn empty_payload(&self) -> Vec<u8> {
        Scratch::vec(self.target.len() / 2)
    }
}

/// Encodes a chunk with its group's coding and tables, or with a cheaper codec if the chunk allows
/// it.
pub(crate) fn encode(input: &ChunkInput<'_>, coding: &Coding, tables: Option<&Encoder>) -> (Codec, Scratch) {
    let number = input.shape.number;
    if input.target == input.prediction {
        return (Codec::Same, Scratch::default());
    }
    if is_constant(number, input.target) {
        return (Codec::Constant, input.target[..number.bytes()].to_vec().into());
    }
    let split = |modelled_bits: &u8, lowest: &u64| FieldSplit::new(number, (*modelled_bits).into(), *lowest);
    let coded = match (coding, tables) {
        (Coding::Plain, _) => Some(match input.material {
            Some(Material::Payload(patch)) => (Codec::Patch, patch.to_vec()),
            _ => (Codec::Planes, planes::encode(input)),
        }),
        (Coding::Mixed, _) => Some((Codec::Mixed, mixed::encode_input(input))),
        (Coding::Float { modelled_bits, lowest }, Some(tables)) => {
            split(modelled_bits, lowest).map(|split| (Codec::Float, float::encode(input, tables, split)))
        }
        (Coding::Ulp(scales) | Coding::History { scales, .. }, Some(tables)) => {
            ulp::encode(input, tables, scales).map(|payload| (Codec::Ulp, payload))
        }
        (Coding::Sparse(scales), Some(tables)) => {
            Some((Codec::Sparse, sparse::encode(input, tables, scales)))
        }
        (Coding::Grid(grid), Some(tables)) => {
            grid::encode(input, tables, grid).map(|payload| (Codec::Grid, payload))
        }
        (Coding::Scaled { modelled_bits, lowest, rule }, Some(tables)) => split(modelled_bits, lowest)
            .and_then(|split| scaled::encode(input, tables, split, rule))
            .map(|payload| (Codec::Scaled, payload)),
        (Coding::Nibbles(kind), Some(tables)) => nibbles::encode(input, tables, *kind),
        (_, None) => None,
    };
    match coded {
        Some((codec, payload)) if payload.len() < input.target.len() => (codec, payload.into()),
        _ => (Codec::Raw, input.target.to_vec().into()),
    }
}

/// Turns `values`, which holds the prediction of the chunk, into its elements. `classes` are the
/// classes of their history, if the coding has them.
pub(crate) fn decode(
    shape: &ChunkShape,
    codec: Codec,
    coding: &Coding,
    tables: Option<&Decoder>,
    payload: &[u8],
    classes: Option<&[u8]>,
    values: &mut [u8],
) -> Result<()> {
    let size = shape.number.bytes();
    match (codec, coding, tables) {
        (Codec::Same, ..) if payload.is_empty() => Ok(()),
        (Codec::Constant, ..) if payload.len() == size => {
            values.chunks_exact_mut(size).for_each(|value| value.copy_from_slice(payload));
            Ok(())
        }
        (Codec::Raw, ..) if payload.len() == values.len() => {
            values.copy_from_slice(payload);
            Ok(())
        }
        (Codec::Planes, ..) => planes::decode(shape.number, payload, values),
        (Codec::Mixed, Coding::Mixed, _) => mixed::decode(shape, payload, values),
        (Codec::Float, Coding::Float { modelled_bits, lowest }, Some(tables)) => {
            float::decode(split_of(shape.number, *modelled_bits, *lowest)?, tables, payload, values)
        }
        (Codec::Ulp, Coding::Ulp(scales), Some(tables)) => {
            ulp::decode(shape, tables, scales, payload, None, values)
        }
        (Codec::Ulp, Coding::History { scales, .. }, Some(tables)) => {
            ulp::decode(shape, tables, scales, payload, classes, values)
        }
        (Codec::Sparse, Coding::Sparse(scales), Some(tables)) => {
            sparse::decode(shape, tables, scales, payload, values)
        }
        (Codec::Grid, Coding::Grid(grid), Some(tables)) => grid::decode(shape, tables, grid, payload, values),
        (Codec::Scaled, Coding::Scaled { modelled_bits, lowest, rule }, Some(tables)) => {
            let split = split_of(shape.number, *modelled_bits, *lowest)?;
            scaled::decode(shape, tables, split, rule, payload, values)
        }
        (codec, Coding::Nibbles(kind), Some(tables)) => {
            nibbles::decode(shape, codec, tables, *kind, payload, values)
        }
        _ => Err(Error::corrupt("the codec or length of a chunk does not match its group")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_format() {
        for (id, codec) in (0u8..).zip(Codec::ALL) {
            assert_eq!((codec.id(), Codec::of_id(id, u16::MAX).unwrap()), (id, codec));
        }
        for (id, family) in (0u8..).zip(Family::ALL) {
            assert_eq!((family.id(), Family::of_id(id, u16::MAX).unwrap()), (id, family));
        }
        assert!(Codec::of_id(11, u16::MAX).is_err() && Family::of_id(9, u16::MAX).is_err());
        assert!(Codec::of_id(7, 1).is_err() && Family::of_id(7, 2).is_err());
    }
}
