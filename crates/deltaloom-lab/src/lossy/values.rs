//! Values of kept elements as residuals in ULPs from the reader's version. rANS codes them with the
//! exponent of that version as context.
//!
//! Which elements are kept is decided elsewhere.

use deltaloom_kernels::bits::BitWriter;
use deltaloom_kernels::rans::{Contexts, DecodeTables, EncodeTables};
use deltaloom_kernels::{Number, ulp};

use deltaloom::__internals::block::Lanes;
use deltaloom::__internals::bytes::ByteReader;
use deltaloom::__internals::table::{Counts, MAX_TABLES, TableSet, normalise, own_table_cost, table_bits};
use deltaloom::__internals::{block, log2};
use deltaloom::{Error, Result};

/// First byte: the elements themselves follow.
const RAW: u8 = 0;
/// First byte: a table set, a rANS block and raw bits follow.
const RESIDUALS: u8 = 1;

fn gather(number: Number, values: &[u8], positions: &[usize]) -> Vec<u8> {
    let size = number.bytes();
    positions.iter().flat_map(|at| &values[at * size..(at + 1) * size]).copied().collect()
}

fn scatter(number: Number, elements: &[u8], positions: &[usize], values: &mut [u8]) {
    let size = number.bytes();
    for (element, at) in elements.chunks_exact(size).zip(positions) {
        values[at * size..(at + 1) * size].copy_from_slice(element);
    }
}

/// Exponents of elements of two or four bytes, as keys of a table set.
fn exponents(number: Number, elements: &[u8]) -> Vec<u8> {
    let exponent = |element: &[u8]| {
        let mut word = [0; 8];
        word[..element.len()].copy_from_slice(element);
        u8::try_from(number.exponent(u64::from_le_bytes(word))).unwrap_or(u8::MAX)
    };
    elements.chunks_exact(number.bytes()).map(exponent).collect()
}

/// Cost of symbols including their table as it is written here, in 1/65536 bits.
fn cost(counts: &Counts) -> u64 {
    let used = counts.iter().filter(|count| **count > 0).count();
    let written = 3 + counts.iter().rposition(|count| *count > 0).unwrap_or(0) as u64;
    own_table_cost(counts) + (8 * written).saturating_sub(table_bits(used)) * log2::ONE_BIT
}

/// Tables for runs of exponents. A table is joined to the one before it if that is cheaper.
fn tables(symbols: &[u8], keys: &[u8]) -> TableSet {
    let mut by_key: Vec<Counts> = vec![[0; 256]; 256];
    for (symbol, key) in symbols.iter().zip(keys) {
        by_key[usize::from(*key)][usize::from(*symbol)] += 1;
    }
    let mut groups: Vec<(u8, Counts)> = Vec::new();
    for (key, counts) in (0..=u8::MAX).zip(by_key).filter(|(_, counts)| counts.iter().any(|c| *c > 0)) {
        let last = groups.last_mut().filter(|(_, before)| {
            let joined: Counts = std::array::from_fn(|s| before[s] + counts[s]);
            cost(&joined) <= cost(before) + cost(&counts)
        });
        match last {
            Some((_, before)) => before.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count),
            None => groups.push((key, counts)),
        }
    }
    while groups.len() > MAX_TABLES {
        if let (Some((_, counts)), Some((_, before))) = (groups.pop(), groups.last_mut()) {
            before.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
    }
    let first_keys = groups.iter().skip(1).map(|(key, _)| *key).collect();
    TableSet::of_keys(first_keys, groups.iter().map(|(_, counts)| normalise(counts)).collect())
}

fn contexts(set: &TableSet, keys: &[u8]) -> Vec<u8> {
    let map = set.key_map(0);
    keys.iter().map(|key| map[usize::from(*key)]).collect()
}

/// Codes the elements of `target` at `positions`, from the elements of `held` there.
pub(super) fn encode(number: Number, target: &[u8], held: &[u8], positions: &[usize]) -> Vec<u8> {
    encode_all(number, &gather(number, target, positions), &gather(number, held, positions))
}

/// Codes all elements of `target`, from those of `held`.
pub(super) fn encode_all(number: Number, target: &[u8], held: &[u8]) -> Vec<u8> {
    if target.is_empty() {
        return Vec::new();
    }
    let mut symbols = vec![0; target.len() / number.bytes()];
    let mut raw = BitWriter::default();
    ulp::encode(number, target, held, &mut symbols, &mut raw);
    let keys = exponents(number, held);
    let set = tables(&symbols, &keys);
    let mut out = vec![RESIDUALS];
    set.push_to(&mut out);
    let lanes = Lanes::choose(symbols.len(), symbols.len() as u64 / 2);
    let coder = EncodeTables::new(&set.tables);
    let contexts = contexts(&set, &keys);
    block::push_with_raw(&mut out, &coder, lanes, &symbols, Contexts::PerSymbol(&contexts), &raw.finish());
    if out.len() > target.len() {
        out.clear();
        out.push(RAW);
        out.extend_from_slice(target);
    }
    out
}

/// Decodes the output of [`encode`] into the elements of `values` at `positions`, which must be
/// within it.
pub(super) fn decode(number: Number, coded: &[u8], positions: &[usize], values: &mut [u8]) -> Result<()> {
    let mut elements = gather(number, values, positions);
    decode_all(number, coded, &mut elements)?;
    scatter(number, &elements, positions, values);
    Ok(())
}

/// Turns `elements`, the reader's version, into what [`encode_all`] coded.
pub(super) fn decode_all(number: Number, coded: &[u8], elements: &mut [u8]) -> Result<()> {
    let mut reader = ByteReader::new(coded, "values");
    if elements.is_empty() {
        return reader.finish();
    }
    let count = elements.len() / number.bytes();
    match reader.u8()? {
        RAW => {
            let len_bytes = elements.len();
            elements.copy_from_slice(reader.take(len_bytes)?);
            reader.finish()?;
        }
        RESIDUALS => {
            let set = TableSet::parse(&mut reader, false)?;
            let coder =
                DecodeTables::new(&set.tables).ok_or_else(|| Error::corrupt("values: malformed tables"))?;
            let contexts = contexts(&set, &exponents(number, elements));
            let header = block::read_block(&mut reader, count)?;
            let mut symbols = vec![0; count];
            let contexts = Contexts::PerSymbol(&contexts);
            let raw = header.decode_with_rest(&coder, contexts, &mut symbols, reader)?;
            let mut bits = raw.bits();
            ulp::apply(number, elements, &symbols, &mut bits)?;
            raw.finish(bits)?;
        }
        other => return Err(Error::corrupt(format!("unknown coding of values, {other}"))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn values_come_back_whatever_their_bits(held in prop::collection::vec(any::<u32>(), 1..400), steps in prop::collection::vec(prop_oneof![-40i32..40, any::<i32>()], 400)) {
            for number in [Number::float(8, 23), Number::float(8, 7), Number::float(5, 10)] {
                let size = number.bytes();
                let bytes = |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|w| w.to_le_bytes()[..size].to_vec()).collect() };
                let moved: Vec<u32> = held.iter().zip(&steps).map(|(h, s)| h.wrapping_add_signed(*s)).collect();
                let (held, target) = (bytes(&held), bytes(&moved));
                let positions: Vec<usize> = (0..moved.len()).step_by(2).collect();
                let coded = encode(number, &target, &held, &positions);
                prop_assert!(coded.len() <= 1 + size * positions.len());
                let mut values = held.clone();
                decode(number, &coded, &positions, &mut values).unwrap();
                for (i, (value, (target, held))) in values.chunks(size).zip(target.chunks(size).zip(held.chunks(size))).enumerate() {
                    prop_assert_eq!(value, if i % 2 == 0 { target } else { held });
                }
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(coded in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut values = [0x3c; 40];
            let _any = decode(Number::float(8, 7), &coded, &[0, 3, 7, 19], &mut values);
        }
    }
}
