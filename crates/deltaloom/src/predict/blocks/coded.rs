//! Tensors of blocks from those of numbers, and the reverse.

use std::fmt;
use std::ops::Range;

use super::MAX_DIMENSIONS;
use super::ggml::{self, Arithmetic};
use super::stored::{Loaded, StoredScales};
use crate::checkpoint::gguf::{BlockKind, MOST_NUMBERS};
use crate::entropy::bytes::{ByteReader, push_text, push_varint};
use crate::error::Result;
use crate::limits::to_usize;
use crate::predict::number::load_singles;
use crate::predict::{Element, Input, MOST_HELD, ReadInputs, View, cast, fields};
use crate::scratch::Scratch;
use crate::tensor::{DType, TensorInfo};

/// Most rows of a head.
const MAX_HEAD: u64 = 1 << 16;
/// NaN in numbers that blocks stand for.
const NAN: u32 = 0x7fc0_0000;

/// What is predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Blocks of the reference's numbers.
    Blocks,
    /// Numbers of the reference's blocks.
    Numbers,
    /// Blocks of the reference's numbers, with scales that are a payload of the tensor.
    Codes,
}

/// Where the reference is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reference {
    /// A tensor of a base. `None` stands for the name of the predicted tensor.
    Tensor(Option<String>),
    /// Pieces of tensors of bases.
    View(Box<View>),
}

/// Blocks from numbers, or the reverse.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CodedBlocks {
    pub(crate) form: Form,
    pub(crate) reference: Reference,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    pub(crate) kind: BlockKind,
    pub(crate) arithmetic: Arithmetic,
    /// Rows of a head, whose halves are pairs in the tensor of blocks; or 0.
    pub(crate) head: u64,
}

/// Rows, and the bytes of a row in both tensors.
struct Size {
    rows: u64,
    block_bytes: u64,
    number_bytes: u64,
}

impl CodedBlocks {
    pub(super) fn inputs(&self) -> Vec<Input<'_>> {
        match &self.reference {
            Reference::Tensor(name) => vec![Input::Shaped(name, &self.dtype, &self.shape)],
            Reference::View(view) => view.inputs().collect(),
        }
    }

    pub(super) fn part_count(&self) -> usize {
        if let Reference::View(view) = &self.reference { view.part_count() } else { 0 }
    }

    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        if let Reference::Tensor(name) = &self.reference {
            fields::push_name(meta, name);
        }
        push_text(meta, self.dtype.name());
        fields::push_shape(meta, &self.shape);
        if let Reference::View(view) = &self.reference {
            view.push_to(meta);
        }
        meta.extend([ggml::id(self.kind), self.arithmetic.id()]);
        push_varint(meta, self.head);
    }

    /// Reads the record of the tensor `info`, after its form. All sizes fit each other.
    pub(super) fn parse(
        meta: &mut ByteReader<'_>,
        form: Form,
        is_viewed: bool,
        info: &TensorInfo,
    ) -> Result<Self> {
        let name = if is_viewed { None } else { fields::name(meta)? };
        let dtype = DType::from_name(meta.text()?);
        let shape = fields::shape(meta, MAX_DIMENSIONS)?;
        let reference = if is_viewed {
            let view = View::parse(meta, &whole(&dtype, &shape))?;
            if view.has_own() {
                return Err(fields::bad("reference"));
            }
            Reference::View(Box::new(view))
        } else {
            Reference::Tensor(name)
        };
        let [kind, arithmetic] = meta.array()?;
        let kind = ggml::of_id(kind).filter(|kind| form != Form::Blocks || ggml::has_quantiser(*kind));
        let kind = kind.ok_or_else(|| fields::bad("kind of blocks"))?;
        let arithmetic = Arithmetic::ALL.get(usize::from(arithmetic));
        let arithmetic = arithmetic.filter(|way| form == Form::Blocks || **way == Arithmetic::Each);
        let arithmetic = *arithmetic.ok_or_else(|| fields::bad("arithmetic"))?;
        let head = fields::within(meta, 0..=MAX_HEAD, "number of rows of a head")?;
        let blocks = Self { form, reference, dtype, shape, kind, arithmetic, head };
        if blocks.size(info).is_none() {
            return Err(fields::bad("shape"));
        }
        Ok(blocks)
    }

    /// Whether a tensor can have this record.
    pub(crate) fn is_valid(&self, info: &TensorInfo) -> bool {
        self.size(info).is_some()
    }

    fn is_to_blocks(&self) -> bool {
        self.form != Form::Numbers
    }

    /// Sizes, if the predicted tensor is `info`. `None` if they do not fit each other.
    fn size(&self, info: &TensorInfo) -> Option<Size> {
        let (own, other) = ((&info.dtype, &info.shape), (&self.dtype, &self.shape));
        let (numbers, blocks) = if self.is_to_blocks() { (other, own) } else { (own, other) };
        let element = Element::of(numbers.0)?;
        let cols = *numbers.1.last()?;
        let product = |shape: &[u64]| {
            shape.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim)).filter(|n| *n < 1 << 56)
        };
        let elems = product(numbers.1).filter(|elems| *elems > 0)?;
        let rows = elems / cols;
        let of_block = self.kind.numbers() as u64;
        let block_bytes = cols / of_block * self.kind.bytes() as u64;
        let fits = *blocks.0 == DType::U8
            && cols.is_multiple_of(of_block)
            && product(blocks.1) == rows.checked_mul(block_bytes)
            && (self.head == 0 || (self.head.is_multiple_of(2) && rows.is_multiple_of(self.head)));
        fits.then_some(Size { rows, block_bytes, number_bytes: cols * element.bytes() as u64 })
    }

    /// The scales of the tensor's blocks, from the tensor's payload.
    pub(crate) fn stored_scales(&self, info: &TensorInfo, payload: Vec<u8>) -> Result<StoredScales> {
        StoredScales::new(self.kind, info.len_bytes() / self.kind.bytes() as u64, payload)
    }

    /// Fills `out` with bytes of the reference from `start` on.
    fn read_reference<'a>(&self, inputs: &mut impl ReadInputs<'a>, start: u64, out: &mut [u8]) -> Result<()> {
        match &self.reference {
            Reference::Tensor(_) => inputs.read_into(0, start, out),
            Reference::View(view) => view.predict(&whole(&self.dtype, &self.shape), start, inputs, out),
        }
    }

    /// The row of the reference for a row of the predicted tensor.
    fn row_of(&self, row: u64) -> u64 {
        if self.head == 0 {
            return row;
        }
        let (start, place, half) = (row / self.head * self.head, row % self.head, self.head / 2);
        // Pairs of the blocks are halves of the numbers.
        start
            + match self.is_to_blocks() {
                true => place % 2 * half + place / 2,
                false => place % half * 2 + place / half,
            }
    }

    /// Fills `out` with the prediction of the tensor from byte `start` on.
    pub(super) fn predict<'a>(
        &self,
        info: &TensorInfo,
        start: u64,
        inputs: &mut impl ReadInputs<'a>,
        out: &mut [u8],
    ) -> Result<()> {
        let size = self.size(info).ok_or_else(|| fields::bad("shape"))?;
        let (own_row, other_row) = match self.is_to_blocks() {
            true => (size.block_bytes, size.number_bytes),
            false => (size.number_bytes, size.block_bytes),
        };
        let numbers = if self.is_to_blocks() { &self.dtype } else { &info.dtype };
        let of_numbers = self.kind.numbers() * to_usize(numbers.bits().unwrap_or(8) / 8);
        let (own_block, other_block) = match self.is_to_blocks() {
            true => (self.kind.bytes(), of_numbers),
            false => (of_numbers, self.kind.bytes()),
        };
        let end = start + out.len() as u64;
        let of_row = own_row / own_block as u64;
        let scales = if self.form == Form::Codes {
            Some(inputs.scales()?.load(start / own_block as u64..end.div_ceil(own_block as u64))?)
        } else {
            None
        };
        let rows = Rows::new(self, start / own_row..end.div_ceil(own_row), size.rows, other_row, inputs)?;
        let mut whole = vec![0; own_block];
        let mut rest = out;
        let mut at = start;
        while !rest.is_empty() {
            let row = at / own_row;
            let range = to_usize(at % own_row)..to_usize((end - row * own_row).min(own_row));
            // The blocks that this part of a row touches.
            let blocks = range.start / own_block..range.end.div_ceil(own_block);
            let part = blocks.start * other_block..blocks.end * other_block;
            let bytes = rows.read(self, self.row_of(row), part, inputs)?;
            for (block, bytes) in blocks.zip(bytes.chunks_exact(other_block)) {
                self.convert(numbers, scales.as_ref(), row * of_row + block as u64, bytes, &mut whole);
                let first = range.start.max(block * own_block);
                let last = range.end.min((block + 1) * own_block);
                let (now, later) = rest.split_at_mut(last - first);
                now.copy_from_slice(&whole[first - block * own_block..last - block * own_block]);
                rest = later;
                at += (last - first) as u64;
            }
        }
        Ok(())
    }

    /// The other side of a block. `number` is that of the block in the predicted tensor.
    fn convert(&self, numbers: &DType, scales: Option<&Loaded>, number: u64, block: &[u8], out: &mut [u8]) {
        if !self.is_to_blocks() {
            let mut singles = [0.0; MOST_NUMBERS];
            let singles = &mut singles[..self.kind.numbers()];
            self.kind.dequantise(block, singles);
            // Which NaN it is depends on the machine.
            let known = |x: &f32| if x.is_nan() { f32::from_bits(NAN) } else { *x };
            let bytes: Vec<u8> = singles.iter().flat_map(|x| known(x).to_le_bytes()).collect();
            cast::convert_into(&DType::F32, numbers, &bytes, out);
            return;
        }
        let element = Element::of(numbers).unwrap_or(Element::F32);
        let singles = load_singles(element, block);
        match scales {
            Some(scales) => {
                scales.set(number, out);
                ggml::set_nearest(self.kind, &singles, out);
            }
            None => ggml::quantise(self.kind, self.arithmetic, &singles, out),
        }
    }
}

/// Rows of the reference. They are read at once if they are permuted, not many, and in a container.
struct Rows {
    row_bytes: u64,
    /// The first, and the bytes of all.
    held: Option<(u64, Scratch)>,
}

impl Rows {
    fn new<'a>(
        blocks: &CodedBlocks,
        rows: Range<u64>,
        count: u64,
        row_bytes: u64,
        inputs: &mut impl ReadInputs<'a>,
    ) -> Result<Self> {
        let unit = blocks.head.max(1);
        let rows = rows.start / unit * unit..rows.end.next_multiple_of(unit).min(count);
        let len = (rows.end - rows.start).saturating_mul(row_bytes);
        let is_near = unit == 1 || inputs.is_decoded(0) || matches!(blocks.reference, Reference::View(_));
        let held = if is_near && len <= MOST_HELD {
            let mut all = Scratch::of_len(to_usize(len));
            blocks.read_reference(inputs, rows.start * row_bytes, &mut all)?;
            Some((rows.start, all))
        } else {
            None
        };
        Ok(Self { row_bytes, held })
    }

    /// Bytes of a row.
    fn read<'a>(
        &self,
        blocks: &CodedBlocks,
        row: u64,
        range: Range<usize>,
        inputs: &mut impl ReadInputs<'a>,
    ) -> Result<Scratch> {
        let mut out = Scratch::of_len(range.len());
        if let Some((first, all)) = &self.held {
            let start = to_usize((row - first) * self.row_bytes);
            out.copy_from_slice(&all[start + range.start..start + range.end]);
        } else {
            blocks.read_reference(inputs, row * self.row_bytes + range.start as u64, &mut out)?;
        }
        Ok(out)
    }
}

impl fmt::Display for CodedBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.is_to_blocks() { "" } else { "from " }, self.kind.name())?;
        if self.form == Form::Codes {
            f.write_str(", scales stored")?;
        }
        if let Reference::View(view) = &self.reference {
            write!(f, ", of {view}")?;
        }
        if self.head > 0 {
            write!(f, ", heads of {} rows", self.head)?;
        }
        Ok(())
    }
}

/// The tensor that a view gives.
fn whole(dtype: &DType, shape: &[u64]) -> TensorInfo {
    TensorInfo::sized(String::new(), dtype.clone(), shape.to_vec())
}
