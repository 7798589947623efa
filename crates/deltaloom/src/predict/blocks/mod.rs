//! What quantisers compute from blocks of numbers: blocks of codes with their scale, or the scales
//! alone; and the numbers that such blocks stand for. docs/format.md section 3.9.
//! It computes with a known format. [`crate::origin`] finds which one it is.

mod coded;
mod ggml;
mod scales;

pub(crate) use coded::CodedBlocks;
pub(crate) use ggml::{Arithmetic, BLOCK, BlockKind};
pub(crate) use scales::{Measure, Scales};

use std::fmt;

use super::{ReadInputs, fields};
use crate::entropy::bytes::ByteReader;
use crate::error::Result;
use crate::tensor::{DType, TensorInfo};

const MAX_DIMENSIONS: u64 = 16;

/// What is predicted from a tensor of a base.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Blocks {
    Coded(CodedBlocks),
    Scales(Scales),
}

impl Blocks {
    pub(super) fn of_base(&self) -> (&Option<String>, &DType, &[u64]) {
        match self {
            Self::Coded(coded) => coded.of_base(),
            Self::Scales(scales) => scales.of_base(),
        }
    }

    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        match self {
            Self::Coded(coded) => {
                meta.push(u8::from(!coded.is_to_blocks));
                coded.push_to(meta);
            }
            Self::Scales(scales) => {
                meta.push(2);
                scales.push_to(meta);
            }
        }
    }

    /// Reads the record of the tensor `info`. All sizes fit each other.
    pub(super) fn parse(meta: &mut ByteReader<'_>, info: &TensorInfo) -> Result<Self> {
        Ok(match meta.u8()? {
            form @ (0 | 1) => Self::Coded(CodedBlocks::parse(meta, form == 0, info)?),
            2 => Self::Scales(Scales::parse(meta, info)?),
            _ => return Err(fields::bad("form")),
        })
    }

    /// Fills `out` with the prediction of the tensor from byte `start` on.
    pub(super) fn predict<'a>(
        &self,
        info: &TensorInfo,
        start: u64,
        inputs: &mut impl ReadInputs<'a>,
        out: &mut [u8],
    ) -> Result<()> {
        match self {
            Self::Coded(coded) => coded.predict(info, start, inputs, out),
            Self::Scales(scales) => scales.predict(info, start, inputs, out),
        }
    }
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coded(coded) => coded.fmt(f),
            Self::Scales(scales) => scales.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::error::Error;
    use crate::limits::to_usize;
    use crate::predict::{Element, ReadyFactors};
    use crate::scratch::Bytes;

    /// A tensor of zeros of so many bytes.
    struct Zeros(u64);

    impl<'a> ReadInputs<'a> for Zeros {
        fn bytes(&self, input: usize, range: Range<u64>) -> Result<Bytes<'a>> {
            assert!(input == 0 && range.start <= range.end && range.end <= self.0, "bytes {range:?}");
            Ok(Bytes::Read(vec![0; to_usize(range.end - range.start)].into()))
        }

        fn read_into(&mut self, input: usize, start: u64, out: &mut [u8]) -> Result<()> {
            self.bytes(input, start..start + out.len() as u64)?;
            out.fill(0);
            Ok(())
        }

        fn is_decoded(&self, _: usize) -> bool {
            false
        }

        fn factors(&self) -> Result<&ReadyFactors> {
            Err(Error::corrupt("none"))
        }
    }

    fn coded(is_to_blocks: bool, other: (DType, Vec<u64>)) -> Blocks {
        Blocks::Coded(CodedBlocks {
            is_to_blocks,
            reference: Some("r".to_owned()),
            dtype: other.0,
            shape: other.1,
            kind: BlockKind::Q5_1,
            arithmetic: Arithmetic::Each,
            head: 4,
        })
    }

    fn records() -> Vec<(Blocks, TensorInfo)> {
        let (numbers, blocks) = ((DType::F16, vec![2, 4, 64]), (DType::U8, vec![8, 48]));
        let info = |(dtype, shape)| TensorInfo::sized("w".to_owned(), dtype, shape);
        let scales = Blocks::Scales(Scales {
            reference: None,
            dtype: DType::BF16,
            shape: vec![2, 12, 20],
            is_transposed: true,
            group: (3, 5),
            measure: Measure::Span,
            is_divided: true,
            factor: 15.0,
            rounding: Element::F16,
        });
        vec![
            (coded(true, numbers.clone()), info(blocks.clone())),
            (coded(false, blocks), info(numbers)),
            (scales, info((DType::F32, vec![2, 7, 3]))),
        ]
    }

    fn parse(bytes: &[u8], info: &TensorInfo) -> Result<Blocks> {
        let mut reader = ByteReader::new(bytes, "a test");
        let parsed = Blocks::parse(&mut reader, info)?;
        reader.finish()?;
        Ok(parsed)
    }

    #[test]
    fn records_are_stored_and_whatever_one_says_reads_its_reference_only() {
        for (record, info) in records() {
            let mut bytes = Vec::new();
            record.push_to(&mut bytes);
            assert_eq!(parse(&bytes, &info).unwrap(), record);
            for cut in 0..bytes.len() {
                assert!(parse(&bytes[..cut], &info).is_err(), "{cut}");
            }
            let mut good = 0;
            for at in 0..bytes.len() {
                for value in 0..=255 {
                    let mut changed = bytes.clone();
                    changed[at] = value;
                    let Ok(record) = parse(&changed, &info) else { continue };
                    good += 1;
                    let (_, dtype, shape) = record.of_base();
                    let reference = TensorInfo::sized(String::new(), dtype.clone(), shape.to_vec());
                    let mut inputs = Zeros(reference.len_bytes());
                    for range in [0..info.len_bytes(), 4..info.len_bytes() - 4] {
                        let mut out = vec![0; to_usize(range.end - range.start)];
                        record.predict(&info, range.start, &mut inputs, &mut out).unwrap();
                    }
                }
            }
            assert!(good > 100, "{good} records could be read");
        }
    }
}
