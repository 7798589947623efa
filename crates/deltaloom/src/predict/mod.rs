//! How a reader guesses a tensor before the residual corrects it; docs/format.md section 3. A
//! predictor lists its inputs, computes the prediction from their bytes, and says what the index
//! stores of it.
//! It names references. [`crate::bases`] finds and reads them.

mod adam;
mod adapter;
mod adapters;
mod blend;
mod blocks;
pub(crate) mod cast;
mod drift;
mod factors;
mod fields;
mod inputs;
pub(crate) mod json;
mod kind;
mod low_ranks;
pub(crate) mod names;
pub(crate) mod number;
mod quantised;
mod text;
mod view;

pub(crate) use adam::{Adam, AdamForm};
pub(crate) use adapter::{Adapter, Merge};
pub(crate) use adapters::{Adapters, Factor, MAX_STEPS, Step, Strided};
pub(crate) use blend::{Blend, BlendForm, Precision};
pub(crate) use blocks::{
    Arithmetic, Blocks, CodedBlocks, Form, Measure, PART_BLOCKS, Reference, Scales, StoredScales,
    has_quantiser, push_part,
};

pub(crate) use adam::ADAM_INPUTS;
pub(crate) use adapter::MAX_RANK;
pub(crate) use blend::MAX_REFERENCES;
pub(crate) use drift::{DriftFactors, MAX_NUMBER};
pub(crate) use factors::{Factors, MAX_FACTORS_RANK, Products, ReadyFactors};
pub(crate) use fields::Place;
pub(crate) use inputs::{Input, OwnPayload, ReadInputs};
pub(crate) use low_ranks::{LowRanks, MAX_MATRICES};
pub use number::{Element, load};
pub(crate) use number::{load_singles, store_singles_or};
pub(crate) use quantised::{Groups, NF4, Numbers, Operand, Order, Packing, Quantised, Ties, Values};
pub(crate) use text::{MOST_LAID_OUT, Text};
pub(crate) use view::{MAX_PIECES, MAX_VIEWED, MOST_HELD, Piece, View, Viewed};

use std::borrow::Cow;
use std::ops::Range;

use crate::entropy::bytes::{ByteReader, push_varint};
use crate::error::{Error, Result};
use crate::limits::to_usize;
use crate::scratch::Bytes;
use crate::tensor::{ChunkGrid, DType, TensorInfo};
use kind::Kind;

/// Where the prediction of a tensor comes from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Predictor {
    /// All bits zero: the tensor is packed on its own.
    Zero,
    /// A tensor of a base with the same dtype and shape. `None` means that its name is the same,
    /// too.
    Reference(Option<String>),
    /// Equal to such a tensor.
    Identical(Option<String>),
    /// Equal to another tensor of the same container.
    Tied(usize),
    /// A rounded F32 tensor of a base. `None` means that its name is the same.
    Cast(Option<String>),
    /// A rounded F32 tensor of the same container.
    CastInternal(usize),
    /// A tensor of a base plus a product of two factors, which are in the container. `None` means
    /// that its name is the same.
    LowRank {
        /// Name of that tensor.
        reference: Option<String>,
        /// Columns of the left factor, rows of the right one.
        rank: usize,
    },
    /// A tensor of a base plus a merged low-rank adapter.
    Adapter(Box<Adapter>),
    /// A combination of several tensors of bases.
    Blend(Box<Blend>),
    /// Another tensor of the same container with the same dtype and shape. It is similar, or at
    /// least of similar magnitude.
    Companion(usize),
    /// A step of Adam from tensors of a base and of the same container.
    Adam(Box<Adam>),
    /// As `Reference`, with earlier states of the tensor as a context.
    History {
        /// Name of the reference and of its ancestors. `None` stands for the tensor's own name.
        reference: Option<String>,
        /// Number of ancestors.
        hops: usize,
    },
    /// Pieces of tensors of bases or of the same container, which may have another shape or dtype.
    View(Box<View>),
    /// A tensor of another dtype, with this predictor and the chunks that follow, then converted.
    Converted(DType, Box<Self>),
    /// A tensor of a base plus adapters that were merged in turn, or into parts of it.
    Adapters(Box<Adapters>),
    /// The numbers that codes stand for, or the codes of numbers.
    Quantised(Box<Quantised>),
    /// All bits zero, as `Zero`. Chunks may be patches of a file of a base, of any length, perhaps
    /// laid out anew.
    Text(Text),
    /// Blocks with codes and scales, or the numbers that they stand for.
    Blocks(Box<Blocks>),
    /// A tensor of a base plus a product of two factors that explains a part of the difference.
    /// They are in the container. `None` means that its name is the same.
    Drift {
        /// Name of that tensor.
        reference: Option<String>,
        /// Columns of the left factor, rows of the right one.
        rank: usize,
    },
    /// As `LowRank`, with a product for each of the matrices that the tensor consists of.
    LowRanks(Box<LowRanks>),
}

/// Most ancestors of a reference that a history has.
pub(crate) const MAX_HOPS: usize = 16;

impl Predictor {
    fn of_kind(&self) -> Kind {
        match self {
            Self::Zero => Kind::Zero,
            Self::Reference(_) => Kind::Reference,
            Self::Identical(_) => Kind::Identical,
            Self::Tied(_) => Kind::Tied,
            Self::Cast(_) => Kind::Cast,
            Self::CastInternal(_) => Kind::CastInternal,
            Self::LowRank { .. } => Kind::LowRank,
            Self::Adapter(_) => Kind::Adapter,
            Self::Blend(_) => Kind::Blend,
            Self::Companion(_) => Kind::Companion,
            Self::Adam(_) => Kind::Adam,
            Self::History { .. } => Kind::History,
            Self::View(_) => Kind::View,
            Self::Converted(..) => Kind::Converted,
            Self::Adapters(_) => Kind::Adapters,
            Self::Quantised(_) => Kind::Quantised,
            Self::Text(Text { layout: None, .. }) => Kind::Text,
            Self::Text(_) => Kind::LaidOut,
            Self::Blocks(_) => Kind::Blocks,
            Self::LowRanks(_) => Kind::LowRanks,
            Self::Drift { .. } => Kind::Drift,
        }
    }

    /// Name in reports.
    #[must_use]
    pub(crate) fn kind(&self) -> &'static str {
        self.of_kind().facts().2
    }

    /// Appends the bytes that [`Self::parse`] reads.
    pub(crate) fn push_to(&self, meta: &mut Vec<u8>) {
        meta.push(self.of_kind().facts().0);
        match self {
            Self::Zero => {}
            Self::Reference(name) | Self::Identical(name) | Self::Cast(name) => fields::push_name(meta, name),
            Self::Tied(tensor) | Self::CastInternal(tensor) | Self::Companion(tensor) => {
                push_varint(meta, *tensor as u64);
            }
            Self::LowRank { reference, rank: count }
            | Self::Drift { reference, rank: count }
            | Self::History { reference, hops: count } => {
                fields::push_name(meta, reference);
                push_varint(meta, *count as u64);
            }
            Self::Adapter(adapter) => adapter.push_to(meta),
            Self::Blend(blend) => blend.push_to(meta),
            Self::Adam(adam) => adam.push_to(meta),
            Self::View(view) => view.push_to(meta),
            Self::Quantised(quantised) => quantised.push_to(meta),
            Self::Text(text) => text.push_to(meta),
            Self::Blocks(blocks) => blocks.push_to(meta),
            Self::LowRanks(products) => products.push_to(meta),
            Self::Converted(dtype, inner) => {
                meta.push(view::dtype_id(dtype));
                inner.push_to(meta);
            }
            Self::Adapters(adapters) => adapters.push_to(meta),
        }
    }

    /// Reads the predictor of a tensor in a file of this version of the format. Tensors of the same
    /// file are checked when all are known.
    pub(crate) fn parse(
        meta: &mut ByteReader<'_>,
        info: &TensorInfo,
        grid: &ChunkGrid,
        version: u16,
    ) -> Result<Self> {
        let kind = Kind::of_id(meta.u8()?, version)?;
        if !kind.fits(info, grid) {
            let (name, dtype, shape, kind) = (&info.name, &info.dtype, &info.shape, kind.facts().2);
            return Err(Error::corrupt(format!(
                "tensor {name:?} of {dtype} {shape:?} cannot have the predictor {kind}"
            )));
        }
        Ok(match kind {
            Kind::Zero => Self::Zero,
            Kind::Reference => Self::Reference(fields::name(meta)?),
            Kind::Identical => Self::Identical(fields::name(meta)?),
            Kind::Tied => Self::Tied(meta.size()?),
            Kind::Cast => Self::Cast(fields::name(meta)?),
            Kind::CastInternal => Self::CastInternal(meta.size()?),
            Kind::LowRank => Self::LowRank {
                reference: fields::name(meta)?,
                rank: to_usize(fields::within(meta, 1..=MAX_FACTORS_RANK as u64, "rank")?),
            },
            Kind::Drift => {
                let most = grid.rows.min(grid.cols).min(MAX_FACTORS_RANK as u64);
                let reference = fields::name(meta)?;
                Self::Drift { reference, rank: to_usize(fields::within(meta, 1..=most, "rank")?) }
            }
            Kind::Adapter => Self::Adapter(Box::new(Adapter::parse(meta)?)),
            Kind::Blend => Self::Blend(Box::new(Blend::parse(meta)?)),
            Kind::Companion => Self::Companion(meta.size()?),
            Kind::Adam => Self::Adam(Box::new(Adam::parse(meta)?)),
            Kind::History => Self::History {
                reference: fields::name(meta)?,
                hops: to_usize(fields::within(meta, 1..=MAX_HOPS as u64, "number of ancestors")?),
            },
            Kind::View => Self::View(Box::new(View::parse(meta, info)?)),
            Kind::Quantised => Self::Quantised(Box::new(Quantised::parse(meta, info)?)),
            Kind::Text => Self::Text(Text::parse(meta, false)?),
            Kind::LaidOut => Self::Text(Text::parse(meta, true)?),
            Kind::Blocks => Self::Blocks(Box::new(Blocks::parse(meta, info)?)),
            Kind::LowRanks => Self::LowRanks(Box::new(LowRanks::parse(meta, info)?)),
            Kind::Converted => {
                let dtype = view::of_dtype_id(meta.u8()?, &info.dtype).filter(|dtype| *dtype != info.dtype);
                let dtype = dtype.filter(|dtype| cast::converts(dtype, &info.dtype));
                let dtype = dtype.ok_or_else(|| fields::bad("dtype"))?;
                let inner = Self::parse(meta, &info.of_dtype(dtype.clone()), grid, version)?;
                if !inner.can_be_converted() {
                    return Err(fields::bad("inner predictor"));
                }
                Self::Converted(dtype, Box::new(inner))
            }
            Kind::Adapters => Self::Adapters(Box::new(Adapters::parse(meta, info, grid)?)),
        })
    }

    /// What is coded of a tensor: the tensor itself, or the one that it is converted from.
    pub(crate) fn coded<'a>(&'a self, info: &'a TensorInfo) -> (Cow<'a, TensorInfo>, &'a Self) {
        match self {
            Self::Converted(dtype, inner) => (Cow::Owned(info.of_dtype(dtype.clone())), inner),
            _ => (Cow::Borrowed(info), self),
        }
    }

    /// The dtype that elements are coded in, if it is not the tensor's own.
    pub(crate) fn coded_dtype(&self) -> Option<&DType> {
        if let Self::Converted(dtype, _) = self { Some(dtype) } else { None }
    }

    /// The products whose factors are a payload of the tensor. `info` describes the tensor, and
    /// `grid` its chunks.
    fn products(&self, info: &TensorInfo, grid: &ChunkGrid) -> Option<Products<'_>> {
        match self {
            Self::LowRank { rank, .. } => Some(Products::of_matrix(grid, rank)),
            Self::LowRanks(products) => Some(products.products(info)),
            _ => None,
        }
    }

    /// Whether the prediction needs a payload of the tensor.
    pub(crate) fn has_payload(&self) -> bool {
        match self {
            Self::LowRank { .. } | Self::LowRanks(_) | Self::Drift { .. } => true,
            Self::Blocks(blocks) => blocks.has_payload(),
            Self::Converted(_, inner) => inner.has_payload(),
            _ => false,
        }
    }

    /// Reads that payload. `info` and `grid` are those of the coded tensor.
    pub(crate) fn parse_payload(
        &self,
        bytes: Vec<u8>,
        info: &TensorInfo,
        grid: &ChunkGrid,
    ) -> Result<OwnPayload> {
        if let Some(products) = self.products(info, grid) {
            return ReadyFactors::parse(info.number(), &products, &bytes).map(OwnPayload::Factors);
        }
        match self {
            Self::Drift { rank, .. } => {
                let (rows, cols) = (to_usize(grid.rows), to_usize(grid.cols));
                let factors = DriftFactors::parse(&bytes, *rank, rows, cols)?;
                ReadyFactors::of_drift(info.number(), (rows, cols), &factors).map(OwnPayload::Factors)
            }
            Self::Blocks(blocks) => Ok(OwnPayload::Scales(blocks.stored_scales(info, bytes)?)),
            Self::Converted(_, inner) => inner.parse_payload(bytes, info, grid),
            _ => Err(fields::bad("payload")),
        }
    }

    /// Whether each chunk is predicted from the places that its bytes have in the references.
    /// `info` describes the tensor.
    pub(crate) fn is_aligned(&self, info: &TensorInfo) -> bool {
        match self.coded(info) {
            (coded, Self::View(view)) => view.is_aligned(&coded),
            (_, Self::Quantised(_) | Self::Text(_) | Self::Blocks(_)) => false,
            _ => true,
        }
    }

    /// Number of pieces and references of a view, of steps and factors of adapters, or of numbers
    /// that the index has.
    pub(crate) fn part_count(&self) -> u64 {
        match self {
            Self::View(view) => view.part_count() as u64,
            Self::Adapters(adapters) => adapters.part_count() as u64,
            Self::Converted(_, inner) => inner.part_count(),
            Self::Quantised(quantised) => quantised.part_count() as u64,
            Self::Blocks(blocks) => blocks.part_count() as u64,
            Self::LowRanks(products) => products.ranks.len() as u64,
            _ => 0,
        }
    }

    /// Whether a tensor with this predictor can be converted. Then it needs only tensors of bases.
    pub(crate) fn can_be_converted(&self) -> bool {
        match self {
            Self::Reference(_)
            | Self::Identical(_)
            | Self::LowRank { .. }
            | Self::LowRanks(_)
            | Self::Adapter(_)
            | Self::Adapters(_)
            | Self::Blend(_) => true,
            Self::View(view) => !view.has_own(),
            _ => false,
        }
    }

    /// The first version of the format that has it.
    pub(crate) fn since(&self) -> u16 {
        self.of_kind().facts().1
    }

    /// All tensors that the prediction needs: first those of bases, in the order of their digests.
    pub(crate) fn inputs(&self) -> Vec<Input<'_>> {
        match self {
            Self::Zero => Vec::new(),
            Self::Reference(name)
            | Self::Identical(name)
            | Self::LowRank { reference: name, .. }
            | Self::Drift { reference: name, .. } => vec![Input::Base(name)],
            Self::LowRanks(products) => vec![Input::Base(&products.reference)],
            Self::History { reference, hops } => vec![Input::Base(reference); hops + 1],
            Self::Cast(name) => vec![Input::Master(name)],
            Self::Adapter(adapter) => {
                let factor = |which| Input::Factor(adapter, which);
                vec![Input::Base(&adapter.reference), factor(0), factor(1)]
            }
            Self::Adapters(adapters) => {
                let factors = (0..adapters.factors.len()).map(|which| Input::FactorOf(adapters, which));
                std::iter::once(Input::Base(&adapters.reference)).chain(factors).collect()
            }
            Self::Blend(blend) => blend.references.iter().map(Input::Base).collect(),
            Self::Adam(adam) => {
                let tensors = adam.tensors.iter().map(|tensor| Input::Own(*tensor));
                adam.references.iter().map(Input::Base).chain(tensors).collect()
            }
            Self::View(view) => view.inputs().collect(),
            Self::Quantised(quantised) => {
                let of_bases =
                    quantised.of_bases().map(|(name, dtype, shape)| Input::Shaped(name, dtype, shape));
                let own = quantised.own();
                let own = own.map(|(tensor, dtype, shape)| Input::OwnShaped(tensor, dtype, shape));
                of_bases.chain(own).collect()
            }
            Self::Blocks(blocks) => blocks.inputs(),
            Self::Text(text) => {
                let (name, dtype, shape) = text.shaped();
                vec![Input::Shaped(name, dtype, shape)]
            }
            Self::Converted(_, inner) => inner.inputs(),
            Self::Tied(tensor) | Self::CastInternal(tensor) | Self::Companion(tensor) => {
                vec![Input::Own(*tensor)]
            }
        }
    }

    /// Names, dtypes and shapes of the inputs from bases. `info` describes the predicted tensor.
    pub(crate) fn references(&self, info: &TensorInfo) -> Vec<TensorInfo> {
        let (info, coded) = self.coded(info);
        coded.inputs().into_iter().filter_map(|input| input.reference(&info)).collect()
    }

    /// Number of inputs from bases.
    pub(crate) fn reference_count(&self) -> usize {
        let is_own = |input: &&Input<'_>| matches!(input, Input::Own(_) | Input::OwnShaped(..));
        self.inputs().iter().filter(|input| !is_own(input)).count()
    }

    /// Numbers of the inputs from the same container.
    pub(crate) fn internals(&self) -> Vec<usize> {
        let own = |input: Input<'_>| match input {
            Input::Own(tensor) | Input::OwnShaped(tensor, ..) => Some(tensor),
            Input::Base(_)
            | Input::Master(_)
            | Input::Factor(..)
            | Input::FactorOf(..)
            | Input::Shaped(..) => None,
        };
        self.inputs().into_iter().filter_map(own).collect()
    }

    /// Fills `out` with the prediction of a tensor from byte `start` on. The tensor must be the
    /// coded one. If the predictor works by rows, `out` must be whole rows.
    pub(crate) fn predict<'a>(
        &self,
        info: &TensorInfo,
        start: u64,
        inputs: &mut impl ReadInputs<'a>,
        out: &mut [u8],
    ) -> Result<()> {
        let range = start..start + out.len() as u64;
        match self {
            Self::Zero | Self::Text(_) => out.fill(0),
            Self::Reference(_)
            | Self::Identical(_)
            | Self::History { .. }
            | Self::Tied(_)
            | Self::Companion(_) => inputs.read_into(0, start, out)?,
            Self::Cast(_) | Self::CastInternal(_) => {
                cast::round_into(&info.dtype, &inputs.bytes(0, 2 * range.start..2 * range.end)?, out);
            }
            Self::LowRank { .. } | Self::LowRanks(_) | Self::Drift { .. } => {
                inputs.read_into(0, start, out)?;
                inputs.factors()?.apply(start, out);
            }
            Self::Adapter(adapter) => {
                inputs.read_into(0, start, out)?;
                let rows = rows_of(info, &range);
                let [a, b] = adapter.parts(&rows, info);
                let (a, b) = (inputs.bytes(1, a)?, inputs.bytes(2, b)?);
                let factors = adapter.factors(&a, &b, to_usize(rows.start)..to_usize(rows.end));
                adapter.apply(element_of(info)?, &factors, out);
            }
            Self::Blend(blend) => {
                let all = self.all_bytes(inputs, range)?;
                let all: Vec<&[u8]> = all.iter().map(|bytes| &**bytes).collect();
                blend.predict(element_of(info)?, &all, out);
            }
            Self::Adam(adam) => {
                let all = self.all_bytes(inputs, range)?;
                let all: Vec<&[u8]> = all.iter().map(|bytes| &**bytes).collect();
                let missing = |_| Error::corrupt("a reference is missing");
                adam.predict(<[&[u8]; ADAM_INPUTS]>::try_from(all).map_err(missing)?, out);
            }
            Self::Adapters(adapters) => adapters.predict(info, start, inputs, out)?,
            Self::View(view) => view.predict(info, start, inputs, out)?,
            Self::Quantised(quantised) => quantised.predict(info, start, inputs, out)?,
            Self::Blocks(blocks) => blocks.predict(info, start, inputs, out)?,
            Self::Converted(..) => {
                return Err(Error::corrupt("a conversion has no prediction, only what it converts"));
            }
        }
        Ok(())
    }

    /// Whether chunks follow. Otherwise the tensor equals its prediction.
    #[must_use]
    pub(crate) fn has_chunks(&self) -> bool {
        match self {
            Self::Converted(_, inner) => inner.has_chunks(),
            Self::Zero
            | Self::Reference(_)
            | Self::LowRank { .. }
            | Self::LowRanks(_)
            | Self::Drift { .. }
            | Self::Adapter(_)
            | Self::Adapters(_)
            | Self::Blend(_)
            | Self::Companion(_)
            | Self::Adam(_)
            | Self::History { .. }
            | Self::View(_)
            | Self::Quantised(_)
            | Self::Text(_)
            | Self::Blocks(_) => true,
            Self::Identical(_) | Self::Tied(_) | Self::Cast(_) | Self::CastInternal(_) => false,
        }
    }

    /// A tensor may only depend on tensors of the same container with a lower level, so that
    /// decoding it ends soon.
    pub(crate) fn level(&self) -> u8 {
        match self {
            Self::Zero
            | Self::Reference(_)
            | Self::Identical(_)
            | Self::LowRank { .. }
            | Self::LowRanks(_)
            | Self::Drift { .. }
            | Self::Adapter(_)
            | Self::Adapters(_)
            | Self::Blend(_)
            | Self::History { .. }
            | Self::Blocks(_)
            | Self::Converted(..)
            | Self::Text(_) => 0,
            Self::View(view) => u8::from(view.has_own()),
            Self::Quantised(quantised) => u8::from(quantised.own().next().is_some()),
            Self::Adam(adam) => match adam.form {
                AdamForm::SecondMoment => 1,
                AdamForm::Weights => 2,
            },
            Self::Tied(_) | Self::Cast(_) | Self::CastInternal(_) | Self::Companion(_) => 3,
        }
    }

    /// Whether its level is 0, so that any other tensor may depend on it.
    pub(crate) fn is_root(&self) -> bool {
        self.level() == 0
    }

    /// Whether changed elements are counted. They are if their number says how much has changed.
    pub(crate) fn counts_changes(&self) -> bool {
        self.has_chunks() && !self.is_zero() && !matches!(self, Self::Companion(_))
    }

    /// Whether all bits of the prediction are 0.
    pub(crate) fn is_zero(&self) -> bool {
        matches!(self, Self::Zero | Self::Text(_))
    }

    /// The same range of all inputs.
    fn all_bytes<'a>(&self, inputs: &impl ReadInputs<'a>, range: Range<u64>) -> Result<Vec<Bytes<'a>>> {
        (0..self.inputs().len()).map(|input| inputs.bytes(input, range.clone())).collect()
    }

    /// Whether the prediction is an unmodified input, so that its bytes can be used where they are.
    pub(crate) fn is_unmodified(&self) -> bool {
        self.is_reference() || matches!(self, Self::Tied(_) | Self::Companion(_))
    }

    /// Whether the prediction is an unmodified tensor of a base. Then elements that differ from one
    /// differ from the other.
    pub(crate) fn is_reference(&self) -> bool {
        matches!(self, Self::Reference(_) | Self::Identical(_) | Self::History { .. })
    }

    /// The rule of a computed prediction, for people.
    pub(crate) fn rule(&self) -> Option<String> {
        match self {
            Self::LowRank { rank, .. } | Self::Drift { rank, .. } => Some(format!("rank {rank}")),
            Self::LowRanks(products) => Some(products.to_string()),
            Self::Text(Text { layout: Some(_), .. }) => Some("laid out anew".to_owned()),
            Self::Adapter(adapter) => Some(adapter.to_string()),
            Self::Adapters(adapters) => Some(adapters.to_string()),
            Self::Blend(blend) => Some(blend.to_string()),
            Self::Adam(adam) => Some(adam.to_string()),
            Self::History { hops, .. } => Some(format!("{hops} ancestors")),
            Self::View(view) => Some(view.to_string()),
            Self::Quantised(quantised) => Some(quantised.to_string()),
            Self::Blocks(blocks) => Some(blocks.to_string()),
            Self::Converted(dtype, inner) => {
                let rule = inner.rule().map_or_else(String::new, |rule| format!(", {rule}"));
                Some(format!("from {dtype}, {}{rule}", inner.kind()))
            }
            _ => None,
        }
    }
}

fn element_of(info: &TensorInfo) -> Result<Element> {
    Element::of(&info.dtype)
        .ok_or_else(|| Error::corrupt(format!("{} has no computed predictions", info.dtype)))
}

/// The rows of a matrix in a range of bytes.
fn rows_of(info: &TensorInfo, range: &Range<u64>) -> Range<u64> {
    let cols = info.shape.last().copied().unwrap_or(1).max(1);
    let row_bytes = cols * info.number().bytes() as u64;
    range.start / row_bytes..range.end / row_bytes
}
