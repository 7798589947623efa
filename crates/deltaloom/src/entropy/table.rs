//! Frequency tables: from counts to 12-bit frequencies that the format can write, and their bytes;
//! docs/format.md section 6.
//! The number of tables is decided in [`crate::plan`].

use deltaloom_kernels::history::CellMap;
use deltaloom_kernels::keys::KEYS;
use deltaloom_kernels::rans::{ALPHABET, PROB_BITS, PROB_SCALE};

use super::bytes::{ByteReader, push_varint};
use super::log2;
use crate::error::{Error, Result};
use crate::limits::narrow;

/// Frequencies of a table.
pub type Frequencies = [u16; ALPHABET];
/// Counts of symbols.
pub type Counts = [u32; ALPHABET];

/// Most tables of a set.
pub const MAX_TABLES: usize = 64;
/// Most runs of cells of a set: one per cell.
const MAX_CELL_RUNS: usize = 1 << 16;
/// Frequencies up to this value have codes of their own.
const DIRECT: u16 = 32;
const MAX_CODE: u8 = 143;
/// Bits that a used symbol adds to a table after compression, as measured on the lm12m pairs; see
/// docs/adr/0008.
const BITS_PER_USED_SYMBOL: u64 = 5;
const BITS_PER_TABLE: u64 = 24;

/// The frequency of a code.
fn frequency_of(code: u8) -> u16 {
    match code.checked_sub(33) {
        None => u16::from(code),
        Some(above) => (17 + u16::from(above & 15)) << ((above >> 4) + 1),
    }
}

/// The code of the largest frequency that is at most `frequency`.
fn code_of(frequency: u16) -> u8 {
    if frequency <= DIRECT {
        return (frequency & 0xff) as u8;
    }
    let (mut low, mut high) = (32u8, MAX_CODE);
    while low < high {
        let middle = low.midpoint(high + 1);
        if frequency_of(middle) <= frequency { low = middle } else { high = middle - 1 }
    }
    low
}

/// The code of the frequency nearest to `frequency`.
fn nearest_code(frequency: u16) -> u8 {
    let below = code_of(frequency);
    let above = (below + 1).min(MAX_CODE);
    if frequency_of(above).abs_diff(frequency) < frequency_of(below).abs_diff(frequency) {
        above
    } else {
        below
    }
}

fn mode_of<T: Ord + Copy>(values: &[T]) -> usize {
    // The first of the largest. max_by_key returns the last, so iterate backwards.
    values.iter().enumerate().rev().max_by_key(|(_, value)| **value).map_or(0, |(symbol, _)| symbol)
}

/// Frequencies for `counts` that can be written, sum to 4096, and are at least 1 for every symbol
/// that occurs. At least one count must be positive.
pub fn normalise(counts: &Counts) -> Frequencies {
    let total: u64 = counts.iter().map(|&c| u64::from(c)).sum::<u64>().max(1);
    let mode = mode_of(counts);
    let mut frequencies = [0u16; ALPHABET];
    for (frequency, &count) in frequencies.iter_mut().zip(counts).filter(|(_, count)| **count > 0) {
        let exact = (u64::from(count) * u64::from(PROB_SCALE) + total / 2) / total;
        *frequency = frequency_of(nearest_code(exact.clamp(1, 4095) as u16));
    }
    frequencies[mode] = 0;
    // The mode gets what the others leave. If they leave nothing, the largest of them are lowered.
    let others = |f: &Frequencies| f.iter().map(|&f| u32::from(f)).sum::<u32>();
    while others(&frequencies) >= PROB_SCALE {
        let largest = mode_of(&frequencies);
        frequencies[largest] = frequency_of(code_of(frequencies[largest]).saturating_sub(1).max(1));
    }
    frequencies[mode] = narrow(PROB_SCALE - others(&frequencies), "at most 4096");
    frequencies
}

/// Estimated bits that a table with this many used symbols takes in the index.
pub fn table_bits(used_symbols: usize) -> u64 {
    BITS_PER_TABLE + BITS_PER_USED_SYMBOL * used_symbols as u64
}

/// Cost of coding `counts` with a table of their own, table included, in 1/65536 bits. Estimated by
/// entropy.
pub fn own_table_cost(counts: &Counts) -> u64 {
    own_table_cost_of(counts.iter().copied().filter(|count| *count > 0))
}

/// The same, from the counts of the symbols that occur.
pub fn own_table_cost_of(counts: impl Iterator<Item = u32>) -> u64 {
    let add = |(total, used, parts): (u64, usize, u64), count: u32| {
        (total + u64::from(count), used + 1, parts + log2::n_log2(u64::from(count)))
    };
    let (total, used, parts) = counts.fold((0, 0, 0), add);
    log2::n_log2(total).saturating_sub(parts) + table_bits(used) * log2::ONE_BIT
}

/// Cost of coding symbols with `frequencies`, table not included. `None` if a symbol has no
/// frequency.
pub fn coded_cost(counts: impl Iterator<Item = (u8, u32)>, frequencies: &Frequencies) -> Option<u64> {
    counts.filter(|(_, count)| *count > 0).try_fold(0, |cost, (symbol, count)| {
        let frequency = frequencies[usize::from(symbol)];
        let bits = (u64::from(PROB_BITS) << log2::FRACTION_BITS) - log2::log2(u64::from(frequency));
        (frequency > 0).then(|| cost + u64::from(count) * bits)
    })
}

/// Tables of a group of chunks, and which keys each serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSet {
    /// First key of every table but the first; strictly rising.
    pub first_keys: Vec<u8>,
    /// In a set for histories, instead of first keys: which cells each table serves.
    pub cells: Vec<CellRun>,
    /// The tables.
    pub tables: Vec<Frequencies>,
}

/// A run of cells up to the first cell of the next run. Cells are numbered 256 * class + key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CellRun {
    /// Its first cell.
    pub first: u16,
    /// Number of its table.
    pub table: u8,
}

/// Marks the table count of a set that serves cells.
const SERVES_CELLS: u8 = 0x80;

impl TableSet {
    /// A set whose tables serve keys.
    pub fn of_keys(first_keys: Vec<u8>, tables: Vec<Frequencies>) -> Self {
        Self { first_keys, cells: Vec::new(), tables }
    }

    /// The table of every key in every class.
    pub fn cell_map(&self) -> Box<CellMap> {
        let mut map: Box<CellMap> = Box::new([[0; KEYS]; 256]);
        let cells = map.as_flattened_mut();
        let ends = self.cells.iter().skip(1).map(|next| usize::from(next.first)).chain([cells.len()]);
        for (run, end) in self.cells.iter().zip(ends) {
            cells[usize::from(run.first)..end].fill(run.table);
        }
        map
    }

    /// The table of every key. Keys below the first one have table `from`, which is 1 in sets that
    /// begin with a gap table, else 0.
    pub fn key_map(&self, from: u8) -> [u8; KEYS] {
        let mut map = [from; KEYS];
        let first_keys = self.first_keys.iter().skip(from.into());
        first_keys.zip(from + 1..).for_each(|(first, table)| map[usize::from(*first)..].fill(table));
        map
    }

    /// Appends the set as docs/format.md has it.
    pub fn push_to(&self, out: &mut Vec<u8>) {
        let count: u8 = narrow(self.tables.len(), "at most MAX_TABLES");
        if self.cells.is_empty() {
            out.push(count);
            out.extend_from_slice(&self.first_keys);
        } else {
            out.push(SERVES_CELLS | count);
            push_varint(out, self.cells.len() as u64);
            self.cells.windows(2).for_each(|w| push_varint(out, (w[1].first - w[0].first).into()));
            out.extend(self.cells.iter().map(|run| run.table));
        }
        for frequencies in &self.tables {
            // The frequency that has no code, if there is one, must be stored as the mode, which
            // needs none.
            let uncoded = frequencies.iter().position(|f| frequency_of(code_of(*f)) != *f);
            let mode = uncoded.unwrap_or_else(|| mode_of(frequencies));
            let last = frequencies.iter().rposition(|f| *f > 0).unwrap_or(0);
            out.extend([mode, last].map(|symbol| narrow::<u8>(symbol, "one of 256 symbols")));
            out.extend((0..=last).map(|s| if s == mode { 0 } else { code_of(frequencies[s]) }));
        }
    }

    /// Reads a set. `may_serve_cells` says whether the file's version has sets for cells.
    pub fn parse(reader: &mut ByteReader<'_>, may_serve_cells: bool) -> Result<Self> {
        let mut count = usize::from(reader.u8()?);
        let mut cells = Vec::new();
        if may_serve_cells && count & usize::from(SERVES_CELLS) != 0 {
            count &= !usize::from(SERVES_CELLS);
            cells = Self::parse_cells(reader, count)?;
        }
        if !(1..=MAX_TABLES).contains(&count) {
            return Err(Error::corrupt(format!(
                "a table set has {count} tables, 1 to {MAX_TABLES} are allowed"
            )));
        }
        let first_keys = if cells.is_empty() { reader.take(count - 1)?.to_vec() } else { Vec::new() };
        if first_keys.first() == Some(&0) || first_keys.windows(2).any(|w| w[0] >= w[1]) {
            return Err(Error::corrupt("the keys of a table set are not increasing"));
        }
        let tables = (0..count).map(|_| Self::parse_table(reader)).collect::<Result<_>>()?;
        Ok(Self { first_keys, cells, tables })
    }

    fn parse_cells(reader: &mut ByteReader<'_>, table_count: usize) -> Result<Vec<CellRun>> {
        let bad = || Error::corrupt("table-set cells are not increasing, or refer to a missing table");
        let run_count = reader.size()?;
        if !(1..=MAX_CELL_RUNS).contains(&run_count) {
            return Err(bad());
        }
        let mut firsts = vec![0u16];
        for _ in 1..run_count {
            let step = u16::try_from(reader.varint()?).ok().filter(|step| *step > 0).ok_or_else(bad)?;
            let last = firsts.last().copied().unwrap_or(0);
            firsts.push(last.checked_add(step).ok_or_else(bad)?);
        }
        let tables = reader.take(run_count)?;
        if tables.iter().any(|table| usize::from(*table) >= table_count) {
            return Err(bad());
        }
        Ok(firsts.into_iter().zip(tables).map(|(first, table)| CellRun { first, table: *table }).collect())
    }

    fn parse_table(reader: &mut ByteReader<'_>) -> Result<Frequencies> {
        let (mode, last) = (usize::from(reader.u8()?), usize::from(reader.u8()?));
        let codes = reader.take(last + 1)?;
        if mode > last || codes[mode] != 0 || codes.iter().any(|code| *code > MAX_CODE) {
            return Err(Error::corrupt("a frequency table is not well-formed"));
        }
        let mut frequencies = [0; ALPHABET];
        for (frequency, &code) in frequencies.iter_mut().zip(codes) {
            *frequency = frequency_of(code);
        }
        let sum: u32 = frequencies.iter().map(|&f| u32::from(f)).sum();
        let rest = PROB_SCALE.checked_sub(sum).and_then(|rest| u16::try_from(rest).ok());
        frequencies[mode] = rest
            .filter(|rest| *rest > 0)
            .ok_or_else(|| Error::corrupt("the frequencies of a table sum to more than 4095"))?;
        Ok(frequencies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn codes_are_those_of_the_format() {
        assert_eq!(
            (frequency_of(32), frequency_of(33), frequency_of(48), frequency_of(49)),
            (32, 34, 64, 68)
        );
        assert_eq!(frequency_of(MAX_CODE), 3968);
        let all: Vec<u16> = (0..=MAX_CODE).map(frequency_of).collect();
        assert!(all.windows(2).all(|w| w[0] < w[1]));
        assert!((0..=MAX_CODE).all(|code| code_of(frequency_of(code)) == code));
        assert_eq!((nearest_code(35), nearest_code(67), nearest_code(65)), (33, 49, 48));
    }

    proptest! {
        #[test]
        fn tables_sum_and_roundtrip(counts in prop::collection::vec(prop_oneof![Just(0u32), 1u32..10, 1u32..1_000_000], 256), few in 1usize..256) {
            let mut array = [0u32; ALPHABET];
            array[..few].copy_from_slice(&counts[..few]);
            array[few / 2] += 1;
            let frequencies = normalise(&array);
            prop_assert_eq!(frequencies.iter().map(|&f| u32::from(f)).sum::<u32>(), PROB_SCALE);
            prop_assert!(array.iter().zip(&frequencies).all(|(&c, &f)| (c > 0) == (f > 0)));
            let set = TableSet::of_keys(vec![7], vec![frequencies, frequencies]);
            let mut bytes = Vec::new();
            set.push_to(&mut bytes);
            let mut reader = ByteReader::new(&bytes, "test");
            prop_assert_eq!(TableSet::parse(&mut reader, false).unwrap(), set);
            reader.finish().unwrap();
        }
    }

    #[test]
    fn the_mode_of_the_counts_may_end_up_with_less_than_others() {
        let mut counts = [0; ALPHABET];
        counts[..60].fill(1000);
        counts[30] = 1001;
        let set = TableSet::of_keys(vec![], vec![normalise(&counts)]);
        let mut bytes = Vec::new();
        set.push_to(&mut bytes);
        assert_eq!(TableSet::parse(&mut ByteReader::new(&bytes, "test"), false).unwrap(), set);
    }

    #[test]
    fn rounding_costs_little() {
        let counts: Counts = std::array::from_fn(|s| if s < 64 { 1_000_000 >> (s / 8) } else { 0 });
        let (ideal, coded) =
            (own_table_cost(&counts), coded_cost((0..=u8::MAX).zip(counts), &normalise(&counts)).unwrap());
        assert!(coded < ideal + ideal / 500, "{coded} against {ideal}");
    }

    #[test]
    fn bad_sets_are_refused() {
        let parse = |bytes: &[u8]| TableSet::parse(&mut ByteReader::new(bytes, "test"), true);
        assert!(parse(&[1, 0, 0, 0]).is_ok());
        for bad in [
            &[0][..],
            &[65],
            &[1, 1, 0, 0],
            &[1, 0, 1, 0, 144],
            &[1, 0, 0, 5],
            &[1, 0, 2, 0, 143, 143],
            &[2, 0, 0, 0, 0, 0, 0, 0],
            &[1, 0],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert!(parse(&[3, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn cells_roundtrip_and_lead_to_their_tables() {
        let tables = vec![normalise(&[1; ALPHABET]); 2];
        let run = |first, table| CellRun { first, table };
        let cells = vec![run(0, 1), run(200, 0), run(3 * 256 + 7, 1), run(u16::MAX, 0)];
        let set = TableSet { first_keys: Vec::new(), cells, tables };
        let mut bytes = Vec::new();
        set.push_to(&mut bytes);
        assert_eq!(TableSet::parse(&mut ByteReader::new(&bytes, "test"), true).unwrap(), set);
        assert!(TableSet::parse(&mut ByteReader::new(&bytes, "test"), false).is_err());
        let map = set.cell_map();
        assert_eq!(
            (map[0][199], map[0][200], map[3][6], map[3][7], map[255][254], map[255][255]),
            (1, 0, 0, 1, 1, 0)
        );
        let parse = |bytes: &[u8]| TableSet::parse(&mut ByteReader::new(bytes, "test"), true);
        let table = [0, 0, 0];
        assert!(parse(&[&[129, 2, 5, 0, 0][..], &table].concat()).is_ok());
        for bad in [
            // No runs, a step of 0, a step beyond the last cell, a table that does not exist, no
            // table at all, missing runs.
            &[129, 0][..],
            &[129, 2, 0, 0, 0],
            &[129, 2, 0x80, 0x80, 4, 0, 0],
            &[129, 2, 5, 0, 1],
            &[128, 1, 0],
            &[129, 0x80, 0x80, 4, 5],
        ] {
            assert!(parse(&[bad, &table].concat()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn key_map_counts_from_the_gap_table() {
        let set = TableSet::of_keys(vec![1, 100], vec![[0; ALPHABET]; 3]);
        let (dense, sparse) = (set.key_map(0), set.key_map(1));
        assert_eq!((dense[0], dense[1], dense[99], dense[100]), (0, 1, 1, 2));
        assert_eq!((sparse[0], sparse[99], sparse[100], sparse[255]), (1, 1, 2, 2));
    }
}
