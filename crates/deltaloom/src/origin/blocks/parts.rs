//! Tensors and slices of them that may be the other side of blocks, by the numbers that they have,
//! and what is compared of each.

use crate::bases::TensorSource;
use crate::checkpoint::gguf::{self, BlockKind};
use crate::error::Result;
use crate::limits::to_usize;
use crate::predict::{Element, load_singles};
use crate::tensor::{DType, TensorInfo};

/// Numbers of a row that are looked at: a block of any kind.
const ROW_NUMBERS: u64 = 256;
/// Numbers of a row that are looked at first.
const FIRST_NUMBERS: usize = 32;
/// The square of the distance of rows that have nothing in common is near 2, relative to the rows.
const UNRELATED: f32 = 1.0;
/// Most slices of a tensor.
const MOST_SLICES: u64 = 4096;

/// Rows and columns of numbers, the blocks that have them, and which of the two a tensor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Size {
    pub(super) rows: u64,
    pub(super) cols: u64,
    pub(super) kind: BlockKind,
    pub(super) is_blocks: bool,
}

impl Size {
    /// That of the other side.
    pub(super) fn other(self) -> Self {
        Self { is_blocks: !self.is_blocks, ..self }
    }
}

/// Rows of a tensor that follow each other: all of them, or a slice.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) info: &'a TensorInfo,
    pub(super) first: u64,
    pub(super) count: u64,
}

impl<'a> Rows<'a> {
    pub(super) fn all(info: &'a TensorInfo) -> Option<Self> {
        let last = *info.shape.last().filter(|_| info.len_bytes() > 0)?;
        Some(Self { info, first: 0, count: info.elems() / last })
    }

    /// The matrices of a tensor that has several.
    pub(super) fn slices(info: &'a TensorInfo) -> Vec<Self> {
        let [.., rows, _] = info.shape[..] else { return Vec::new() };
        let Some(all) = Self::all(info) else { return Vec::new() };
        let count = all.count / rows;
        if !(2..=MOST_SLICES).contains(&count) {
            return Vec::new();
        }
        (0..count).map(|slice| Self { info, first: slice * rows, count: rows }).collect()
    }

    pub(super) fn is_all(self) -> bool {
        Self::all(self.info).is_some_and(|all| all.count == self.count)
    }

    /// Elements of a row.
    pub(super) fn cols(self) -> u64 {
        self.info.shape.last().copied().unwrap_or(1)
    }

    /// The sizes that it may have.
    pub(super) fn sizes(self) -> Vec<Size> {
        let cols = self.cols();
        let is_blocks = self.info.dtype == DType::U8;
        let is_possible = is_blocks || Element::of(&self.info.dtype).is_some();
        let of_kind = |kind: BlockKind| {
            let of_block = kind.numbers() as u64;
            let unit = if is_blocks { kind.bytes() as u64 } else { of_block };
            let size = Size { rows: self.count, cols: cols / unit * of_block, kind, is_blocks };
            (is_possible && cols.is_multiple_of(unit)).then_some(size)
        };
        BlockKind::ALL.into_iter().filter_map(of_kind).collect()
    }

    /// The sketch of rows of a base's tensor.
    pub(super) fn sketch_of(self, source: &TensorSource, kind: BlockKind) -> Result<Sketch> {
        self.sketch(kind, |at, len| source.read(at, len))
    }

    /// Numbers of the first, the middle and the last row.
    pub(super) fn sketch(
        self,
        kind: BlockKind,
        read: impl Fn(u64, usize) -> Result<Vec<u8>>,
    ) -> Result<Sketch> {
        let row_bytes = self.cols() * self.info.number().bytes() as u64;
        let element = Element::of(&self.info.dtype);
        let row = |row: u64| {
            let block = element.map_or(kind.bytes(), |element| kind.numbers() * element.bytes()) as u64;
            let len = row_bytes.min(ROW_NUMBERS / kind.numbers() as u64 * block);
            let bytes = read((self.first + row) * row_bytes, to_usize(len))?;
            Ok(match element {
                Some(element) => load_singles(element, &bytes),
                None => {
                    let mut numbers = vec![0.0; bytes.len() / kind.bytes() * kind.numbers()];
                    gguf::dequantise(kind, &bytes, &mut numbers)?;
                    numbers
                }
            })
        };
        [0, self.count / 2, self.count - 1].into_iter().map(row).collect::<Result<_>>().map(Sketch)
    }
}

/// Rows of a base's tensor, and what they look like.
pub(super) struct Candidate<'a> {
    pub(super) source: &'a TensorSource,
    pub(super) rows: Rows<'a>,
    pub(super) sketch: Sketch,
}

/// Numbers of some rows.
pub(super) struct Sketch(Vec<Vec<f32>>);

impl Sketch {
    /// The square of the distance of those rows that are nearest: all but one, which may have
    /// another place. Rows of zeros say nothing.
    pub(super) fn distance(&self, other: &Self) -> Option<f32> {
        let pairs = || self.0.iter().zip(&other.0);
        // Most pairs have nothing in common, which a few numbers tell.
        let first = |(a, b): (&Vec<f32>, &Vec<f32>)| {
            let len = FIRST_NUMBERS.min(a.len()).min(b.len());
            apart(&a[..len], &b[..len])
        };
        let near = pairs().filter(|pair| first(*pair).is_none_or(|far| far < UNRELATED)).count();
        if near + 1 < self.0.len() {
            return None;
        }
        let mut rows: Vec<f32> = pairs().filter_map(|(a, b)| apart(a, b)).collect();
        rows.sort_by(f32::total_cmp);
        rows.truncate(2);
        let count: u8 = u8::try_from(rows.len()).ok().filter(|count| *count > 0)?;
        Some(rows.iter().sum::<f32>() / f32::from(count))
    }
}

/// The square of a distance, relative to both rows. Rows of zeros have none.
fn apart(a: &[f32], b: &[f32]) -> Option<f32> {
    let (mut size, mut apart) = (0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        size += x * x + y * y;
        apart += (x - y) * (x - y);
    }
    Some(2.0 * apart / size).filter(|far| far.is_finite())
}

#[cfg(test)]
mod tests {
    use super::super::FARTHEST;
    use super::*;

    #[test]
    fn rows_that_moved_or_are_zero_do_not_hide_what_is_near() {
        let row = |x: f32| vec![x, -x, 1.0, 0.5];
        let near = |rows: [f32; 3]| Sketch(rows.map(row).to_vec());
        let own = near([1.0, 2.0, 3.0]);
        assert!(own.distance(&near([1.0, -9.0, 3.0])).unwrap() < 0.01);
        assert!(own.distance(&near([-1.0, -9.0, 3.0])).is_none_or(|far| far > FARTHEST));
        let zeros = || Sketch(vec![vec![0.0; 4]; 3]);
        assert!(zeros().distance(&zeros()).is_none());
    }

    #[test]
    fn sizes_are_those_of_all_kinds_that_fit() {
        let info = |dtype, shape: &[u64]| TensorInfo::sized("w".to_owned(), dtype, shape.to_vec());
        let sizes = |info: &TensorInfo| Rows::all(info).unwrap().sizes();
        let blocks = info(DType::U8, &[4, 2, 288]);
        let kinds: Vec<&str> = sizes(&blocks).into_iter().map(|size| size.kind.name()).collect();
        assert_eq!(kinds, ["Q4_0", "Q5_1", "Q4_K", "IQ4_NL"]);
        assert_eq!(Rows::slices(&blocks).len(), 4);
        assert!(Rows::slices(&info(DType::BF16, &[4, 512])).is_empty());
        assert!(sizes(&info(DType::BF16, &[4, 100])).is_empty());
        assert_eq!(sizes(&info(DType::F32, &[4, 32])).len(), 6);
    }
}
