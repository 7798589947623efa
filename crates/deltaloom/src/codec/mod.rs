//! One chunk in, bytes out, and back: the codecs of docs/format.md sections 5, 8 to 10 and 13.
//! It does not choose parameters; [`crate::plan`] does. A payload never has more bytes than the
//! chunk.

mod float;
pub(crate) mod grid;
mod mixed;
mod planes;
mod scaled;
mod sparse;
mod ulp;

use std::sync::Arc;

use deltaloom_kernels::Number;
use deltaloom_kernels::fields::FieldSplit;
use deltaloom_kernels::history::{self, CellMap};
use deltaloom_kernels::keys::{self, KEYS, KeyRule};
use deltaloom_kernels::rans::{DecodeTables, EncodeTables};

use crate::entropy::table::TableSet;
use crate::error::{Error, Result};
use crate::scratch::Scratch;

pub(crate) use grid::{GridSymbols, ValueGrid};
pub(crate) use mixed::encode as encode_mixed;
pub(crate) use planes::sample_cost as planes_sample_cost;
pub(crate) use scaled::MagnitudeRule;
pub(crate) use sparse::{changed_symbols, gaps};
pub(crate) use ulp::UlpSymbols;

/// How the bytes of a chunk are coded. The wire ids are in the container's layout.
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
}

impl Codec {
    /// Whether decoding a chunk needs its prediction. Otherwise the old contents of the buffer do
    /// not matter.
    pub(crate) fn uses_prediction(self) -> bool {
        match self {
            Self::Same | Self::Planes | Self::Ulp | Self::Sparse | Self::Mixed | Self::Scaled => true,
            Self::Constant | Self::Raw | Self::Float | Self::Grid => false,
        }
    }

    /// Name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Constant => "constant",
            Self::Raw => "raw",
            Self::Planes => "planes",
            Self::Float => "float",
            Self::Ulp => "ulp",
            Self::Sparse => "sparse",
            Self::Mixed => "mixed",
            Self::Grid => "grid",
            Self::Scaled => "scaled",
        }
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
}

/// What the chunks of a group share. `T` is a table set or a name of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Coding<T> {
    Plain,
    Float {
        tables: T,
        modelled_bits: u8,
        lowest: u64,
    },
    Ulp {
        tables: T,
        scales: GroupScales,
    },
    Sparse {
        tables: T,
        scales: GroupScales,
    },
    Mixed,
    Grid {
        tables: T,
        grid: ValueGrid,
    },
    Scaled {
        tables: T,
        modelled_bits: u8,
        lowest: u64,
        rule: MagnitudeRule,
    },
    /// As `Ulp`, with the history of an element as a further context.
    History {
        tables: T,
        scales: GroupScales,
        kind: HistoryKind,
    },
}

/// What the class of an element says about its history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HistoryKind {
    /// The direction of its last change, how long ago that was, and how often it changed.
    Changes,
    /// The size of its last residual, and the sign of the one before.
    Residuals,
}

impl<T> Coding<T> {
    /// The same coding with other names or holders of its tables.
    pub(crate) fn map<'a, U, E>(&'a self, f: impl FnOnce(&'a T) -> Result<U, E>) -> Result<Coding<U>, E> {
        Ok(match self {
            Self::Plain => Coding::Plain,
            Self::Float { tables, modelled_bits, lowest } => {
                Coding::Float { tables: f(tables)?, modelled_bits: *modelled_bits, lowest: *lowest }
            }
            Self::Ulp { tables, scales } => Coding::Ulp { tables: f(tables)?, scales: scales.clone() },
            Self::Sparse { tables, scales } => Coding::Sparse { tables: f(tables)?, scales: scales.clone() },
            Self::Mixed => Coding::Mixed,
            Self::Grid { tables, grid } => Coding::Grid { tables: f(tables)?, grid: grid.clone() },
            Self::Scaled { tables, modelled_bits, lowest, rule } => Coding::Scaled {
                tables: f(tables)?,
                modelled_bits: *modelled_bits,
                lowest: *lowest,
                rule: rule.clone(),
            },
            Self::History { tables, scales, kind } => {
                Coding::History { tables: f(tables)?, scales: scales.clone(), kind: *kind }
            }
        })
    }

    pub(crate) fn tables(&self) -> Option<&T> {
        match self {
            Self::Plain | Self::Mixed => None,
            Self::Float { tables, .. }
            | Self::Ulp { tables, .. }
            | Self::Sparse { tables, .. }
            | Self::Grid { tables, .. }
            | Self::Scaled { tables, .. }
            | Self::History { tables, .. } => Some(tables),
        }
    }
}

/// A table set ready for one direction, with the map from keys to tables.
#[derive(Debug)]
pub(crate) struct ReadyTables<K> {
    coder: K,
    count: usize,
    set: TableSet,
    /// Of a set for histories only.
    cells: Option<Box<CellMap>>,
}

pub(crate) type Encoder = Arc<ReadyTables<EncodeTables>>;
pub(crate) type Decoder = Arc<ReadyTables<DecodeTables>>;

pub(crate) fn encoder(set: &TableSet) -> Encoder {
    Arc::new(ReadyTables::new(EncodeTables::new(&set.tables), set))
}

pub(crate) fn decoder(set: &TableSet) -> Result<Decoder> {
    let coder = DecodeTables::new(&set.tables)
        .ok_or_else(|| Error::corrupt("the frequencies of a table have a wrong sum"))?;
    Ok(Arc::new(ReadyTables::new(coder, set)))
}

impl<K> ReadyTables<K> {
    fn new(coder: K, set: &TableSet) -> Self {
        let cells = (!set.cells.is_empty()).then(|| set.cell_map());
        Self { coder, count: set.tables.len(), set: set.clone(), cells }
    }

    /// Turns keys into tables. `classes` has one class per key in a history, and is `None`
    /// elsewhere.
    fn map(&self, keys: &mut [u8], classes: Option<&[u8]>) -> Result<()> {
        match (classes, &self.cells) {
            (None, None) => keys::map_keys(keys, &self.dense_map()),
            (Some(classes), Some(cells)) if classes.len() == keys.len() => {
                history::map_cells(keys, classes, cells);
            }
            _ => return Err(Error::corrupt("a group needs a history, or tables for one, that do not exist")),
        }
        Ok(())
    }

    fn dense_map(&self) -> [u8; KEYS] {
        self.set.key_map(0)
    }

    fn sparse_map(&self) -> Result<[u8; KEYS]> {
        if self.count < 2 {
            return Err(Error::corrupt("a sparse chunk needs a gap table and at least one other table"));
        }
        Ok(self.set.key_map(1))
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
    /// Residuals, if the plan has computed them.
    pub(crate) symbols: Option<&'a UlpSymbols>,
    /// The payload of a mixed chunk, if the plan has tried it.
    pub(crate) mixed: Option<&'a [u8]>,
    /// Points of a grid, if the plan has found one.
    pub(crate) points: Option<&'a GridSymbols>,
    /// The size that the plan expects, for choosing lanes.
    pub(crate) estimated_bytes: u64,
    pub(crate) zstd_level: i32,
}

impl ChunkInput<'_> {
    fn mixed_payload(&self) -> Vec<u8> {
        match self.mixed {
            Some(payload) => payload.to_vec(),
            None => mixed::encode(&self.shape, self.target, self.prediction),
        }
    }

    /// An empty buffer with room for a usual payload.
    fn empty_payload(&self) -> Vec<u8> {
        Scratch::vec(self.target.len() / 2)
    }
}

/// Encodes a chunk with its group's coding, or with a cheaper one if the chunk allows it.
pub(crate) fn encode(input: &ChunkInput<'_>, coding: &Coding<Encoder>) -> (Codec, Scratch) {
    let number = input.shape.number;
    if input.target == input.prediction {
        return (Codec::Same, Scratch::default());
    }
    if is_constant(number, input.target) {
        return (Codec::Constant, input.target[..number.bytes()].to_vec().into());
    }
    let coded = match coding {
        Coding::Plain => Some((Codec::Planes, planes::encode(input))),
        Coding::Float { tables, modelled_bits, lowest } => {
            FieldSplit::new(number, (*modelled_bits).into(), *lowest)
                .map(|split| (Codec::Float, float::encode(input, tables, split)))
        }
        Coding::Ulp { tables, scales } | Coding::History { tables, scales, .. } => {
            ulp::encode(input, tables, scales).map(|payload| (Codec::Ulp, payload))
        }
        Coding::Sparse { tables, scales } => Some((Codec::Sparse, sparse::encode(input, tables, scales))),
        Coding::Mixed => Some((Codec::Mixed, input.mixed_payload())),
        Coding::Grid { tables, grid } => {
            grid::encode(input, tables, grid).map(|payload| (Codec::Grid, payload))
        }
        Coding::Scaled { tables, modelled_bits, lowest, rule } => {
            FieldSplit::new(number, (*modelled_bits).into(), *lowest)
                .and_then(|split| scaled::encode(input, tables, split, rule))
                .map(|payload| (Codec::Scaled, payload))
        }
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
    coding: &Coding<Decoder>,
    payload: &[u8],
    classes: Option<&[u8]>,
    values: &mut [u8],
) -> Result<()> {
    let size = shape.number.bytes();
    match (codec, coding) {
        (Codec::Same, _) if payload.is_empty() => Ok(()),
        (Codec::Constant, _) if payload.len() == size => {
            values.chunks_exact_mut(size).for_each(|value| value.copy_from_slice(payload));
            Ok(())
        }
        (Codec::Raw, _) if payload.len() == values.len() => {
            values.copy_from_slice(payload);
            Ok(())
        }
        (Codec::Planes, _) => planes::decode(shape.number, payload, values),
        (Codec::Float, Coding::Float { tables, modelled_bits, lowest }) => {
            float::decode(split_of(shape.number, *modelled_bits, *lowest)?, tables, payload, values)
        }
        (Codec::Ulp, Coding::Ulp { tables, scales }) => {
            ulp::decode(shape, tables, scales, payload, None, values)
        }
        (Codec::Ulp, Coding::History { tables, scales, .. }) => {
            ulp::decode(shape, tables, scales, payload, classes, values)
        }
        (Codec::Sparse, Coding::Sparse { tables, scales }) => {
            sparse::decode(shape, tables, scales, payload, values)
        }
        (Codec::Mixed, Coding::Mixed) => mixed::decode(shape, payload, values),
        (Codec::Grid, Coding::Grid { tables, grid }) => grid::decode(shape, tables, grid, payload, values),
        (Codec::Scaled, Coding::Scaled { tables, modelled_bits, lowest, rule }) => {
            let split = split_of(shape.number, *modelled_bits, *lowest)?;
            scaled::decode(shape, tables, split, rule, payload, values)
        }
        _ => Err(Error::corrupt("the codec or length of a chunk does not match its group")),
    }
}
