//! What quantisers compute from blocks of numbers: blocks of codes with their scale, or the scales
//! alone; and the numbers that such blocks stand for. docs/format.md section 3.9.
//! It computes with a known format. [`crate::origin`] finds which one it is.

mod coded;
mod ggml;
mod scales;
mod stored;

pub(crate) use coded::{CodedBlocks, Form, Reference};
pub(crate) use ggml::{Arithmetic, has_quantiser};
pub(crate) use scales::{Measure, Scales};
pub(crate) use stored::{PART_BLOCKS, StoredScales, push_part};

use std::fmt;

use super::{Input, ReadInputs, fields};
use crate::entropy::bytes::ByteReader;
use crate::error::Result;
use crate::tensor::TensorInfo;

const MAX_DIMENSIONS: u64 = 16;
/// In the byte of the form: the reference is a view.
const VIEWED: u8 = 4;

/// What is predicted from a tensor of a base.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Blocks {
    Coded(CodedBlocks),
    Scales(Scales),
}

impl Blocks {
    pub(super) fn inputs(&self) -> Vec<Input<'_>> {
        match self {
            Self::Coded(coded) => coded.inputs(),
            Self::Scales(scales) => vec![scales.input()],
        }
    }

    pub(super) fn part_count(&self) -> usize {
        if let Self::Coded(coded) = self { coded.part_count() } else { 0 }
    }

    /// The type of blocks, as ggml names it, if there are some.
    pub(crate) fn block_type(&self) -> Option<&'static str> {
        match self {
            Self::Coded(coded) => Some(coded.kind.name()),
            Self::Scales(_) => None,
        }
    }

    /// What the tensor has.
    pub(crate) fn content(&self) -> &'static str {
        match self {
            Self::Coded(coded) if coded.form == Form::Numbers => "numbers",
            Self::Coded(_) => "blocks",
            Self::Scales(_) => "scales",
        }
    }

    /// Whether scales are a payload of the tensor.
    pub(super) fn has_payload(&self) -> bool {
        matches!(self, Self::Coded(coded) if coded.form == Form::Codes)
    }

    /// Reads that payload of the tensor `info`.
    pub(super) fn stored_scales(&self, info: &TensorInfo, payload: Vec<u8>) -> Result<StoredScales> {
        match self {
            Self::Coded(coded) => coded.stored_scales(info, payload),
            Self::Scales(_) => Err(fields::bad("form")),
        }
    }

    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        match self {
            Self::Coded(coded) => {
                let form = match coded.form {
                    Form::Blocks => 0,
                    Form::Numbers => 1,
                    Form::Codes => 3,
                };
                let is_viewed = matches!(coded.reference, Reference::View(_));
                meta.push(form | if is_viewed { VIEWED } else { 0 });
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
        let form = meta.u8()?;
        let coded = match form & !VIEWED {
            0 => Form::Blocks,
            1 => Form::Numbers,
            2 if form == 2 => return Ok(Self::Scales(Scales::parse(meta, info)?)),
            3 => Form::Codes,
            _ => return Err(fields::bad("form")),
        };
        Ok(Self::Coded(CodedBlocks::parse(meta, coded, form & VIEWED != 0, info)?))
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
    use crate::checkpoint::gguf::BlockKind;
    use crate::error::Error;
    use crate::limits::to_usize;
    use crate::predict::{Element, Piece, Place, ReadyFactors, View, Viewed};
    use crate::scratch::Bytes;
    use crate::tensor::DType;

    /// Tensors of zeros of so many bytes, and scales.
    struct Zeros(Vec<u64>, Option<StoredScales>);

    impl<'a> ReadInputs<'a> for Zeros {
        fn bytes(&self, input: usize, range: Range<u64>) -> Result<Bytes<'a>> {
            assert!(range.start <= range.end && range.end <= self.0[input], "bytes {range:?}");
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

        fn scales(&self) -> Result<&StoredScales> {
            Ok(self.1.as_ref().unwrap())
        }
    }

    fn coded(form: Form, kind: BlockKind, reference: Reference, other: (DType, Vec<u64>)) -> Blocks {
        let (dtype, shape) = other;
        Blocks::Coded(CodedBlocks {
            form,
            reference,
            dtype,
            shape,
            kind,
            arithmetic: Arithmetic::Each,
            head: 4,
        })
    }

    fn records() -> Vec<(Blocks, TensorInfo)> {
        let (numbers, blocks) = ((DType::F16, vec![2, 4, 64]), (DType::U8, vec![8, 48]));
        let (of_256, in_256) = ((DType::BF16, vec![8, 512]), (DType::U8, vec![8, 288]));
        let named = || Reference::Tensor(Some("r".to_owned()));
        let half = |name: &str| Viewed {
            place: Place::Base(Some(name.to_owned())),
            shape: vec![4, 512],
            is_transposed: false,
        };
        let piece = |source| Piece { source: Some(source), start: 0, count: 4 * 512 };
        let view =
            View::new(&DType::BF16, false, DType::BF16, vec![half("a"), half("b")], &[piece(1), piece(0)]);
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
            (coded(Form::Blocks, BlockKind::Q5_1, named(), numbers.clone()), info(blocks.clone())),
            (coded(Form::Numbers, BlockKind::Q5_1, named(), blocks), info(numbers)),
            (coded(Form::Numbers, BlockKind::Q4K, named(), in_256.clone()), info(of_256.clone())),
            (coded(Form::Codes, BlockKind::Q4K, named(), of_256.clone()), info(in_256.clone())),
            (coded(Form::Codes, BlockKind::Q4K, Reference::View(Box::new(view)), of_256), info(in_256)),
            (scales, info((DType::F32, vec![2, 7, 3]))),
        ]
    }

    /// Scales that are 0.
    fn scales_of(record: &Blocks, info: &TensorInfo) -> StoredScales {
        let Blocks::Coded(coded) = record else { panic!("only codes have scales") };
        let mut payload = Vec::new();
        push_part(coded.kind, &vec![0; to_usize(info.len_bytes())], &mut payload);
        record.stored_scales(info, payload).unwrap()
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
                    let len = |input: Input<'_>| match input {
                        Input::Shaped(_, dtype, shape) => {
                            TensorInfo::sized(String::new(), dtype.clone(), shape.to_vec()).len_bytes()
                        }
                        other => panic!("{other:?} is no tensor of a base"),
                    };
                    let scales = record.has_payload().then(|| scales_of(&record, &info));
                    let mut inputs = Zeros(record.inputs().into_iter().map(len).collect(), scales);
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
