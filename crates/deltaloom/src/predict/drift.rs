//! Two factors of small integers with a step for each rank, and their bytes; docs/format.md section
//! 3.12.
//! How they were found is not known here.

use deltaloom_kernels::Number;
use deltaloom_kernels::bits::BitWriter;
use deltaloom_kernels::drift::{DriftFactor, DriftRows};
use deltaloom_kernels::rans::{ALPHABET, Contexts, DecodeTables, EncodeTables};
use deltaloom_kernels::tokens::{read_token, token};

use super::factors::MAX_FACTORS_RANK;
use crate::entropy::block::{self, Lanes};
use crate::entropy::bytes::{ByteReader, from_zigzag, push_varint, to_zigzag};
use crate::entropy::log2::{self, ONE_BIT};
use crate::entropy::rows::{KeyRun, Row, join_neighbours};
use crate::entropy::table::{self, Counts, TableSet};
use crate::error::{Error, Result};
use crate::limits::narrow;

/// Largest step, and largest magnitude of a number of the left factor, or of a step times one of
/// the right factor.
pub(crate) const MAX_NUMBER: i32 = 32767;
/// Sums of products are below this: they are exact in 32 bits.
const MAX_SUM: i64 = 1 << 31;
/// Keys for each octave of the mean magnitude of a column, as a shift of its logarithm.
const KEY_SHIFT: u32 = log2::FRACTION_BITS - 2;

/// A matrix as `unit * left * (steps * right)`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DriftFactors {
    pub(crate) unit: f32,
    /// One for each rank.
    pub(crate) steps: Vec<u16>,
    /// Columns, one for each rank, of as many numbers as the matrix has rows.
    pub(crate) left: Vec<i16>,
    /// Rows, one for each rank, of as many numbers as the matrix has columns.
    pub(crate) right: Vec<i16>,
}

/// What is coded of some factors.
struct Symbols {
    /// Keys of the columns of the left factor, then of the rows of the right one.
    keys: Vec<u8>,
    symbols: Vec<u8>,
    raw: BitWriter,
}

impl DriftFactors {
    fn rank(&self) -> usize {
        self.steps.len()
    }

    /// Columns of the left factor, then rows of the right one.
    fn runs(&self) -> impl Iterator<Item = &[i16]> {
        let (rows, cols) = (self.left.len() / self.rank(), self.right.len() / self.rank());
        self.left.chunks_exact(rows).chain(self.right.chunks_exact(cols))
    }

    fn symbols(&self) -> Symbols {
        let mut coded = Symbols { keys: Vec::new(), symbols: Vec::new(), raw: BitWriter::default() };
        for run in self.runs() {
            coded.keys.push(key(run));
            for number in run {
                let token = token(to_zigzag((*number).into()));
                coded.symbols.push(token.symbol);
                coded.raw.push(token.raw, token.raw_bits);
            }
        }
        coded
    }

    /// The length of each column of the left factor, and of each row of the right one, in order.
    fn lengths(&self) -> impl Iterator<Item = usize> {
        self.runs().map(<[i16]>::len)
    }

    /// Keys that share a table, in rising order.
    fn runs_of_keys(&self, coded: &Symbols) -> Vec<KeyRun> {
        let mut by_key: Vec<Option<Box<Counts>>> = vec![None; usize::from(u8::MAX) + 1];
        let mut rest = &coded.symbols[..];
        for (key, len) in coded.keys.iter().zip(self.lengths()) {
            let (run, later) = rest.split_at(len);
            let counts = by_key[usize::from(*key)].get_or_insert_with(|| Box::new([0; ALPHABET]));
            run.iter().for_each(|symbol| counts[usize::from(*symbol)] += 1);
            rest = later;
        }
        let runs = (0..).zip(by_key).filter_map(|(key, counts)| Some(KeyRun::new(key, Row::new(&*counts?))));
        join_neighbours(runs.collect())
    }

    /// The bytes that [`Self::parse`] reads. `None` if they are so few that a reader refuses them.
    pub(crate) fn to_bytes(&self) -> Option<Vec<u8>> {
        let coded = self.symbols();
        let runs = self.runs_of_keys(&coded);
        let first_keys = runs.iter().skip(1).map(KeyRun::first_key).collect();
        let frequencies = runs.iter().map(|run| table::normalise(&run.row.to_counts())).collect();
        let set = TableSet::of_keys(first_keys, frequencies);
        let bits: u64 = runs.iter().map(|run| run.cost / ONE_BIT).sum();
        let mut out = self.unit.to_le_bytes().to_vec();
        self.steps.iter().for_each(|step| push_varint(&mut out, (*step).into()));
        out.extend_from_slice(&coded.keys);
        set.push_to(&mut out);
        let contexts = contexts(&set, &coded.keys, self.lengths());
        let raw = coded.raw.finish();
        let lanes = Lanes::choose_for_raw(coded.symbols.len(), bits / 8, raw.len());
        let tables = EncodeTables::new(&set.tables);
        block::push_with_raw(&mut out, &tables, lanes, &coded.symbols, Contexts::PerSymbol(&contexts), &raw);
        (coded.symbols.len() <= out.len() * 8).then_some(out)
    }

    /// Reads the factors of a matrix of `rows` and `cols`.
    pub(crate) fn parse(bytes: &[u8], rank: usize, rows: usize, cols: usize) -> Result<Self> {
        let bad = || Error::corrupt("factors are not well-formed");
        if !(1..=MAX_FACTORS_RANK.min(rows).min(cols)).contains(&rank) {
            return Err(bad());
        }
        // A number takes at least one bit, so the bytes that exist bound the allocations.
        let count = rows.checked_add(cols).and_then(|sum| sum.checked_mul(rank)).ok_or_else(bad)?;
        if count > bytes.len().saturating_mul(8) {
            return Err(bad());
        }
        let mut reader = ByteReader::new(bytes, "the factors of a tensor");
        let unit = f32::from_le_bytes(reader.array()?);
        let step = |_| u16::try_from(reader.varint()?).ok().filter(|step| *step > 0).ok_or_else(bad);
        let steps = (0..rank).map(step).collect::<Result<Vec<u16>>>()?;
        let keys = reader.take(2 * rank)?;
        let set = TableSet::parse(&mut reader, false)?;
        let tables = DecodeTables::new(&set.tables).ok_or_else(bad)?;
        let lengths = || std::iter::repeat_n(rows, rank).chain(std::iter::repeat_n(cols, rank));
        let contexts = contexts(&set, keys, lengths());
        let mut symbols = vec![0; count];
        let block = block::read_block(&mut reader, count)?;
        let raw = block.decode_with_rest(&tables, Contexts::PerSymbol(&contexts), &mut symbols, reader)?;
        let mut bits = raw.bits();
        let mut numbers = Vec::with_capacity(count);
        for symbol in symbols {
            let number = from_zigzag(read_token(symbol, &mut bits)?);
            numbers.push(i16::try_from(number).map_err(|_| bad())?);
        }
        raw.finish(bits)?;
        let right = numbers.split_off(rows * rank);
        let factors = Self { unit, steps, left: numbers, right };
        if factors.is_bounded() { Ok(factors) } else { Err(bad()) }
    }

    /// Whether no number is too large, and every sum of products is exact.
    pub(crate) fn is_bounded(&self) -> bool {
        let largest = |run: &[i16]| run.iter().map(|x| i32::from(*x).abs()).max().unwrap_or(0);
        let bounds = self.runs().map(largest).collect::<Vec<_>>();
        let (left, right) = bounds.split_at(self.rank());
        let scaled = || right.iter().zip(&self.steps).map(|(v, step)| i64::from(*v) * i64::from(*step));
        let is_in_range = left.iter().all(|u| *u <= MAX_NUMBER)
            && self.steps.iter().all(|step| i32::from(*step) <= MAX_NUMBER)
            && scaled().all(|w| w <= i64::from(MAX_NUMBER));
        is_in_range && left.iter().zip(scaled()).map(|(u, w)| i64::from(*u) * w).sum::<i64>() < MAX_SUM
    }

    /// The factors in the form that predicting needs.
    pub(crate) fn ready(&self, number: Number) -> Result<(DriftRows, DriftFactor)> {
        let rank = self.rank();
        let (rows, cols) = (self.left.len() / rank, self.right.len() / rank);
        let of_run = |(run, step): (&[i16], &u16)| {
            let scaled = |v: &i16| narrow(i32::from(*v) * i32::from(*step), "factors are bounded");
            run.iter().map(scaled).collect::<Vec<i16>>()
        };
        let right: Vec<i16> = self.right.chunks_exact(cols).zip(&self.steps).flat_map(of_run).collect();
        let left: Vec<i16> = (0..rows * rank).map(|at| self.left[at % rank * rows + at / rank]).collect();
        let factor = DriftFactor::new(number, self.unit, &right, rank, cols)
            .ok_or_else(|| Error::corrupt("the unit or size of the factors is not allowed"))?;
        Ok((DriftRows::new(&left, rank), factor))
    }
}

/// The table of each number, whose column or row has one of these keys and lengths.
fn contexts(set: &TableSet, keys: &[u8], lengths: impl Iterator<Item = usize>) -> Vec<u8> {
    let map = set.key_map(0);
    let runs = keys.iter().zip(lengths);
    runs.flat_map(|(key, len)| std::iter::repeat_n(map[usize::from(*key)], len)).collect()
}

/// About four times the logarithm of the mean magnitude.
fn key(run: &[i16]) -> u8 {
    let sum: u64 = run.iter().map(|x| u64::from(x.unsigned_abs())).sum();
    narrow(log2::log2(1 + 16 * sum / run.len().max(1) as u64) >> KEY_SHIFT, "at most 4 times 20")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn factors(rows: usize, cols: usize, rank: usize, value: impl Fn(usize) -> i16) -> DriftFactors {
        DriftFactors {
            unit: 0.25,
            steps: (1..=rank).map(|k| u16::try_from(k * 7).unwrap()).collect(),
            left: (0..rows * rank).map(&value).collect(),
            right: (0..rank * cols).map(|i| value(i * 3 + 1)).collect(),
        }
    }

    proptest! {
        #[test]
        fn roundtrip(rows in 4usize..60, cols in 4usize..60, rank in 1usize..5, values in prop::collection::vec(-900i16..900, 1..50), shift in 0u32..6) {
            let factors = factors(rows, cols, rank, |i| values[i % values.len()] >> shift);
            let Some(bytes) = factors.to_bytes() else { return Ok(()) };
            prop_assert_eq!(&DriftFactors::parse(&bytes, rank, rows, cols).unwrap(), &factors);
            prop_assert!(DriftFactors::parse(&[&bytes[..], &[0]].concat(), rank, rows, cols).is_err());
            for cut in 0..bytes.len() {
                prop_assert!(DriftFactors::parse(&bytes[..cut], rank, rows, cols).is_err());
            }
        }

        #[test]
        fn flipped_bytes_are_read_or_refused(at in 0usize..200, with in 1u8..=255) {
            let factors = factors(20, 30, 3, |i| i16::try_from(i * i % 23).unwrap() - 11);
            let mut bytes = factors.to_bytes().unwrap();
            let at = at % bytes.len();
            bytes[at] ^= with;
            if let Ok(read) = DriftFactors::parse(&bytes, 3, 20, 30) {
                prop_assert!(read.is_bounded());
                let _ = read.ready(Number::float(8, 7));
            }
        }
    }

    #[test]
    fn hostile_sizes_do_not_allocate() {
        let bytes = factors(4, 4, 1, |i| i16::try_from(i).unwrap()).to_bytes().unwrap();
        for (rows, cols) in [(usize::MAX, 1), (usize::MAX / 2, 1), (1, 1 << 40), (1 << 12, 1 << 12)] {
            assert!(DriftFactors::parse(&bytes, 1, rows, cols).is_err());
        }
    }

    #[test]
    fn ranks_steps_and_sums_have_bounds() {
        let good = factors(8, 6, 2, |i| i16::try_from(i * 5 % 17).unwrap());
        let bytes = good.to_bytes().unwrap();
        assert!(DriftFactors::parse(&bytes, 2, 8, 6).is_ok());
        for (rank, rows, cols) in [(0, 8, 6), (7, 8, 6), (2, 1, 13), (257, 300, 300)] {
            assert!(DriftFactors::parse(&bytes, rank, rows, cols).is_err(), "{rank}");
        }
        let refused = |change: &dyn Fn(&mut DriftFactors)| {
            let mut bad = good.clone();
            change(&mut bad);
            let read = DriftFactors::parse(&bad.to_bytes().unwrap(), 2, 8, 6);
            read.and_then(|factors| factors.ready(Number::float(8, 7))).is_err()
        };
        assert!(!refused(&|_| {}));
        assert!(refused(&|factors| factors.steps[1] = 0) && refused(&|factors| factors.steps[0] = 40_000));
        assert!(refused(&|factors| factors.steps[0] = 30_000));
        assert!(refused(&|factors| factors.left[0] = i16::MIN));
        for unit in [f32::NAN, f32::INFINITY, 0.0, -1.0, f32::MIN_POSITIVE / 2.0, f32::MAX] {
            assert!(refused(&|factors| factors.unit = unit), "{unit}");
        }
        // Each product is allowed, but not their sum.
        let mut large = factors(8, 6, 3, |_| 0);
        (large.steps, large.left, large.right) = (vec![1; 3], vec![32_767; 24], vec![32_767; 18]);
        assert!(!large.is_bounded());
    }
}
