//! Tensors of blocks from those of numbers, and the reverse.

use std::fmt;
use std::ops::Range;

use super::MAX_DIMENSIONS;
use super::ggml::{Arithmetic, BLOCK, BlockKind};
use crate::entropy::bytes::{ByteReader, push_text, push_varint};
use crate::error::Result;
use crate::limits::to_usize;
use crate::predict::number::load_singles;
use crate::predict::{Element, MOST_HELD, ReadInputs, cast, fields};
use crate::scratch::Scratch;
use crate::tensor::{DType, TensorInfo};

/// Most rows of a head.
const MAX_HEAD: u64 = 1 << 16;

/// Blocks from numbers, or the reverse.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CodedBlocks {
    /// Whether the tensor has blocks, and the reference numbers.
    pub(crate) is_to_blocks: bool,
    /// `None` stands for the name of the predicted tensor.
    pub(crate) reference: Option<String>,
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
    pub(super) fn of_base(&self) -> (&Option<String>, &DType, &[u64]) {
        (&self.reference, &self.dtype, &self.shape)
    }

    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        fields::push_name(meta, &self.reference);
        push_text(meta, self.dtype.name());
        fields::push_shape(meta, &self.shape);
        meta.extend([self.kind.id(), self.arithmetic.id()]);
        push_varint(meta, self.head);
    }

    /// Reads the record of the tensor `info`, after its form. All sizes fit each other.
    pub(super) fn parse(meta: &mut ByteReader<'_>, is_to_blocks: bool, info: &TensorInfo) -> Result<Self> {
        let reference = fields::name(meta)?;
        let dtype = DType::from_name(meta.text()?);
        let shape = fields::shape(meta, MAX_DIMENSIONS)?;
        let [kind, arithmetic] = meta.array()?;
        let kind = BlockKind::ALL.get(usize::from(kind)).ok_or_else(|| fields::bad("kind of blocks"))?;
        let arithmetic = Arithmetic::ALL.get(usize::from(arithmetic));
        let arithmetic = arithmetic.filter(|way| is_to_blocks || **way != Arithmetic::Double);
        let arithmetic = *arithmetic.ok_or_else(|| fields::bad("arithmetic"))?;
        let head = fields::within(meta, 0..=MAX_HEAD, "number of rows of a head")?;
        let blocks = Self { is_to_blocks, reference, dtype, shape, kind: *kind, arithmetic, head };
        if blocks.size(info).is_none() {
            return Err(fields::bad("shape"));
        }
        Ok(blocks)
    }

    /// Whether a tensor can have this record.
    pub(crate) fn is_valid(&self, info: &TensorInfo) -> bool {
        self.size(info).is_some()
    }

    /// Sizes, if the predicted tensor is `info`. `None` if they do not fit each other.
    fn size(&self, info: &TensorInfo) -> Option<Size> {
        let (own, other) = ((&info.dtype, &info.shape), (&self.dtype, &self.shape));
        let (numbers, blocks) = if self.is_to_blocks { (other, own) } else { (own, other) };
        let element = Element::of(numbers.0)?;
        let cols = *numbers.1.last()?;
        let product = |shape: &[u64]| {
            shape.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim)).filter(|n| *n < 1 << 56)
        };
        let elems = product(numbers.1).filter(|elems| *elems > 0)?;
        let rows = elems / cols;
        let block_bytes = cols / BLOCK as u64 * self.kind.bytes() as u64;
        let fits = *blocks.0 == DType::U8
            && cols.is_multiple_of(BLOCK as u64)
            && product(blocks.1) == rows.checked_mul(block_bytes)
            && (self.head == 0 || (self.head.is_multiple_of(2) && rows.is_multiple_of(self.head)));
        fits.then_some(Size { rows, block_bytes, number_bytes: cols * element.bytes() as u64 })
    }

    /// The row of the reference for a row of the predicted tensor.
    fn row_of(&self, row: u64) -> u64 {
        if self.head == 0 {
            return row;
        }
        let (start, place, half) = (row / self.head * self.head, row % self.head, self.head / 2);
        // Pairs of the blocks are halves of the numbers.
        start
            + match self.is_to_blocks {
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
        let (own_row, other_row) = match self.is_to_blocks {
            true => (size.block_bytes, size.number_bytes),
            false => (size.number_bytes, size.block_bytes),
        };
        let numbers = if self.is_to_blocks { &self.dtype } else { &info.dtype };
        let of_numbers = BLOCK * to_usize(numbers.bits().unwrap_or(8) / 8);
        let (own_block, other_block) = match self.is_to_blocks {
            true => (self.kind.bytes(), of_numbers),
            false => (of_numbers, self.kind.bytes()),
        };
        let end = start + out.len() as u64;
        let rows = Rows::new(self, start / own_row..end.div_ceil(own_row), size.rows, other_row, inputs)?;
        let mut whole = vec![0; own_block];
        let mut rest = out;
        let mut at = start;
        while !rest.is_empty() {
            let row = at / own_row;
            let range = to_usize(at % own_row)..to_usize((end - row * own_row).min(own_row));
            // The blocks that this part of a row touches.
            let blocks = range.start / own_block..range.end.div_ceil(own_block);
            let bytes =
                rows.read(self.row_of(row), blocks.start * other_block..blocks.end * other_block, inputs)?;
            for (block, bytes) in blocks.zip(bytes.chunks_exact(other_block)) {
                self.convert(numbers, bytes, &mut whole);
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

    /// The other side of a block.
    fn convert(&self, numbers: &DType, block: &[u8], out: &mut [u8]) {
        if self.is_to_blocks {
            let element = Element::of(numbers).unwrap_or(Element::F32);
            let mut singles = [0.0; BLOCK];
            singles.iter_mut().zip(load_singles(element, block)).for_each(|(to, x)| *to = x);
            self.kind.quantise(self.arithmetic, &singles, out);
        } else {
            let singles = self.kind.numbers(self.arithmetic, block).map(f32::to_le_bytes);
            cast::convert_into(&DType::F32, numbers, singles.as_flattened(), out);
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
        let is_near = unit == 1 || inputs.is_decoded(0);
        let held = if is_near && len <= MOST_HELD {
            let mut all = Scratch::of_len(to_usize(len));
            inputs.read_into(0, rows.start * row_bytes, &mut all)?;
            Some((rows.start, all))
        } else {
            None
        };
        Ok(Self { row_bytes, held })
    }

    /// Bytes of a row.
    fn read<'a>(&self, row: u64, range: Range<usize>, inputs: &mut impl ReadInputs<'a>) -> Result<Scratch> {
        let mut out = Scratch::of_len(range.len());
        if let Some((first, all)) = &self.held {
            let start = to_usize((row - first) * self.row_bytes);
            out.copy_from_slice(&all[start + range.start..start + range.end]);
        } else {
            inputs.read_into(0, row * self.row_bytes + range.start as u64, &mut out)?;
        }
        Ok(out)
    }
}

impl fmt::Display for CodedBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.is_to_blocks { "" } else { "from " }, self.kind.name())?;
        if self.head > 0 {
            write!(f, ", heads of {} rows", self.head)?;
        }
        Ok(())
    }
}
