//! Records of quantised tensors are stored, and whatever one says reads its operands only.

use super::*;
use crate::error::Error;
use crate::predict::{Element, ReadyFactors, StoredScales};
use crate::scratch::Bytes;

/// Inputs of zeros, which end where their tensors do.
struct Zeros(Vec<u64>);

impl<'a> ReadInputs<'a> for Zeros {
    fn bytes(&self, input: usize, range: Range<u64>) -> Result<Bytes<'a>> {
        assert!(range.start <= range.end && range.end <= self.0[input], "input {input}, bytes {range:?}");
        Ok(Bytes::Read(vec![0; to_usize(range.end - range.start)].into()))
    }

    fn read_into(&mut self, input: usize, start: u64, out: &mut [u8]) -> Result<()> {
        self.bytes(input, start..start + out.len() as u64)?;
        out.fill(0);
        Ok(())
    }

    fn is_decoded(&self, input: usize) -> bool {
        input.is_multiple_of(2)
    }

    fn factors(&self) -> Result<&ReadyFactors> {
        Err(Error::corrupt("none"))
    }

    fn scales(&self) -> Result<&StoredScales> {
        Err(Error::corrupt("none"))
    }
}

fn operand(place: Place, dtype: DType, shape: &[u64]) -> Operand {
    Operand { place, dtype, shape: shape.to_vec() }
}

fn groups(rows: u64, cols: u64, operand: Operand, packing: Packing) -> Groups {
    Groups { rows, cols, source: Numbers::Tensor { operand, packing, is_exponent: false }, plus: 1.0 }
}

/// Words of codes in columns, with everything that a record can have.
fn quantised(is_to_codes: bool) -> (Quantised, TensorInfo) {
    let codes = Packing { bits: 4, order: Order::LowFirst, by_columns: true };
    let zeros = Packing { by_columns: false, ..codes };
    let base = |name: &str| Place::Base(Some(name.to_owned()));
    let stored = Groups { rows: 16, cols: 8, source: Numbers::Stored(vec![0.5]), plus: 0.0 };
    let (words, numbers) = ((DType::I32, vec![2, 8]), (DType::F16, vec![8, 16]));
    let (own, other) = if is_to_codes { (words, numbers) } else { (numbers, words) };
    let record = Quantised {
        is_to_codes,
        is_transposed: true,
        scales_first: true,
        is_reciprocal: true,
        reference: operand(base("r"), other.0, &other.1),
        packing: codes,
        values: Values::Numbers,
        scales: vec![groups(4, 1, operand(Place::Own(1), DType::F16, &[4, 8]), Packing::ELEMENTS), stored],
        zero: Some(groups(4, 1, operand(base("z"), DType::I32, &[4, 1]), zeros)),
        bias: Some(groups(16, 8, operand(base("b"), DType::F32, &[1]), Packing::ELEMENTS)),
        index: Some(operand(Place::Own(2), DType::I32, &[4, 4])),
        rounding: Element::BF16,
        ties: Ties::Away,
        range: (0, 15),
    };
    (record, TensorInfo::sized("w".to_owned(), own.0, own.1))
}

/// The same with nested scales, and the largest of the reference if it has the numbers.
fn with_nested(is_to_codes: bool) -> (Quantised, TensorInfo) {
    let (mut record, info) = quantised(is_to_codes);
    let base = |name: &str| Place::Base(Some(name.to_owned()));
    let nested = Numbers::Nested {
        codes: operand(base("c"), DType::U8, &[32, 1]),
        table: operand(base("t"), DType::F32, &[256]),
        scales: operand(base("s"), DType::F32, &[7]),
        each: 5,
    };
    record.scales[1] = Groups { rows: 4, cols: 1, source: nested, plus: 0.5 };
    if is_to_codes {
        record.index = None;
        record.scales[0] = Groups { rows: 1, cols: 4, source: Numbers::Largest, plus: 0.0 };
    }
    (record, info)
}

fn parse(bytes: &[u8], info: &TensorInfo) -> Result<Quantised> {
    let mut reader = ByteReader::new(bytes, "a test");
    let parsed = Quantised::parse(&mut reader, info)?;
    reader.finish()?;
    Ok(parsed)
}

#[test]
fn records_are_stored_and_whatever_one_says_reads_its_operands_only() {
    let all = [quantised(false), quantised(true), with_nested(false), with_nested(true)];
    for (record, info) in all {
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
                let len = |dtype: &DType, shape: &[u64]| {
                    TensorInfo::sized(String::new(), dtype.clone(), shape.to_vec()).len_bytes()
                };
                let of_bases = record.of_bases().map(|(_, dtype, shape)| len(dtype, shape));
                let own = record.own().map(|(_, dtype, shape)| len(dtype, shape));
                let mut inputs = Zeros(of_bases.chain(own).collect());
                for range in [0..info.len_bytes(), 4..info.len_bytes() - 4] {
                    let mut out = vec![0; to_usize(range.end - range.start)];
                    record.predict(&info, range.start, &mut inputs, &mut out).unwrap();
                }
            }
        }
        assert!(good > 500, "{good} records could be read");
    }
}

#[test]
fn codes_are_numbers_of_the_nearest_values() {
    let info = TensorInfo::sized("w".to_owned(), DType::BF16, vec![1, 8]);
    let record = Quantised {
        is_to_codes: false,
        is_transposed: false,
        scales_first: false,
        is_reciprocal: false,
        reference: operand(Place::Base(None), DType::U8, &[4]),
        packing: Packing { bits: 4, order: Order::HighFirst, by_columns: false },
        values: Values::E2m1,
        scales: Vec::new(),
        zero: None,
        bias: None,
        index: None,
        rounding: Element::F32,
        ties: Ties::Even,
        range: (0, 15),
    };
    assert!(record.is_valid(&info));
    let coder = record.values.coder(record.packing, &DType::U8, Ties::Even, (0, 15));
    // In the middle of 0.5 and 1, and of 1 and 1.5, the even code is that of 1.
    let codes = [0.0, -0.0, 0.75, 1.25, -6.0, 100.0].map(|x| coder.code(x, 0.0));
    assert_eq!(codes, [0, 8, 2, 2, 15, 7]);
    let integers = |ties| {
        let coder = Values::Signed.coder(record.packing, &DType::U8, ties, (-8, 7));
        [0.5, 1.5, -0.5, -2.5, 9.0, f32::NAN].map(|x| coder.code(x, 0.0).cast_signed())
    };
    assert_eq!(integers(Ties::Even), [0, 2, 0, -2, 7, 0]);
    assert_eq!(integers(Ties::Away), [1, 2, -1, -3, 7, 0]);
    assert_eq!(integers(Ties::ToZero), [0, 1, 0, -2, 7, 0]);
}
