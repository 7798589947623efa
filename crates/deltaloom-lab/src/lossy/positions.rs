//! Codes which elements are kept, with the smallest of a bitmap and Rice, Elias and rANS codes of
//! the gaps between them.
//!
//! It knows no values and no shapes: positions count elements of the whole tensor.
//! [`Positions::Dense`] does not use it.

use deltaloom_kernels::bits::{BitReader, BitWriter};
use deltaloom_kernels::rans::{Contexts, DecodeTables, EncodeTables};
use deltaloom_kernels::tokens;
use serde::{Deserialize, Serialize};

use crate::entropy::elias;
use deltaloom::__internals::block;
use deltaloom::__internals::block::Lanes;
use deltaloom::__internals::bytes::ByteReader;
use deltaloom::__internals::table::{Counts, TableSet, normalise};
use deltaloom::{Error, Result};

/// Rice parameters to try.
const PARAMETERS: std::ops::Range<u32> = 0..40;

/// How positions are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Positions {
    /// Every element is kept, or none, so nothing is stored.
    Implied,
    /// A bit for every element.
    Bitmap,
    /// Rice codes of the number of elements omitted before each kept one.
    Rice,
    /// Elias delta codes of the distances between kept elements.
    Elias,
    /// Tokens of the number of elements omitted before each kept one, in rANS.
    Rans,
    /// Every element has a residual, which is zero if it is not kept.
    Dense,
}

/// Number of elements omitted before each kept one.
fn skips(positions: &[usize]) -> impl Iterator<Item = u64> + Clone {
    let before = std::iter::once(0).chain(positions.iter().map(|at| at + 1));
    positions.iter().zip(before).map(|(at, from)| (at - from) as u64)
}

/// Codes strictly increasing positions among `elems` elements in the fewest bytes.
pub(super) fn encode(positions: &[usize], elems: usize) -> (Positions, Vec<u8>) {
    if positions.is_empty() || positions.len() == elems {
        return (Positions::Implied, Vec::new());
    }
    let rans = rans(positions);
    let rice_bits =
        |k: u32| skips(positions).map(|skip| (skip >> k).saturating_add(u64::from(k) + 1)).sum::<u64>();
    let parameter = PARAMETERS.min_by_key(|k| rice_bits(*k)).unwrap_or(0);
    let elias_bits: u64 = skips(positions).map(|skip| elias::code_bits(skip + 1)).sum();
    let bytes = [
        (rans.len() as u64, Positions::Rans),
        (1 + rice_bits(parameter).div_ceil(8), Positions::Rice),
        (elias_bits.div_ceil(8), Positions::Elias),
        (elems.div_ceil(8) as u64, Positions::Bitmap),
    ];
    let cheapest = bytes.into_iter().min_by_key(|(bytes, _)| *bytes).map_or(Positions::Rans, |(_, how)| how);
    let coded = match cheapest {
        Positions::Bitmap => bitmap(positions, elems),
        Positions::Rice => rice(positions, parameter),
        Positions::Elias => elias::encode(skips(positions).map(|skip| skip + 1)),
        Positions::Rans | Positions::Implied | Positions::Dense => rans,
    };
    (cheapest, coded)
}

fn bitmap(positions: &[usize], elems: usize) -> Vec<u8> {
    let mut bytes = vec![0; elems.div_ceil(8)];
    positions.iter().for_each(|at| bytes[at / 8] |= 1 << (at % 8));
    bytes
}

fn rice(positions: &[usize], parameter: u32) -> Vec<u8> {
    let mut bits = BitWriter::default();
    for skip in skips(positions) {
        let mut ones = skip >> parameter;
        while ones > 0 {
            let run = ones.min(32);
            bits.push((1 << run) - 1, u32::try_from(run).unwrap_or(0));
            ones -= run;
        }
        bits.push(0, 1);
        bits.push(skip & ((1 << parameter) - 1), parameter);
    }
    let mut out = vec![u8::try_from(parameter).unwrap_or(0)];
    out.extend(bits.finish());
    out
}

fn rans(positions: &[usize]) -> Vec<u8> {
    let mut raw = BitWriter::default();
    let mut counts: Counts = [0; 256];
    let symbol = |skip| {
        let token = tokens::token(skip);
        raw.push(token.raw, token.raw_bits);
        counts[usize::from(token.symbol)] += 1;
        token.symbol
    };
    let symbols: Vec<u8> = skips(positions).map(symbol).collect();
    let set = TableSet::of_keys(vec![], vec![normalise(&counts)]);
    let mut out = Vec::new();
    set.push_to(&mut out);
    let lanes = Lanes::choose(symbols.len(), symbols.len() as u64 / 2);
    let tables = EncodeTables::new(&set.tables);
    block::push_with_raw(&mut out, &tables, lanes, &symbols, Contexts::Single, &raw.finish());
    out
}

/// Reads `count` positions among `elems` elements; nothing may be left over.
pub(super) fn decode(how: Positions, bytes: &[u8], count: usize, elems: usize) -> Result<Vec<usize>> {
    let bad = |what: &str| Error::corrupt(format!("positions: {what}"));
    if count > elems {
        return Err(bad("more elements are kept than exist"));
    }
    let mut positions = Vec::new();
    let mut next = 0usize;
    let mut push = |skip: u64| {
        let at = usize::try_from(skip).ok().and_then(|skip| next.checked_add(skip));
        let at = at.filter(|at| *at < elems).ok_or_else(|| bad("one is outside of its tensor"))?;
        positions.push(at);
        next = at + 1;
        Ok::<_, Error>(())
    };
    match how {
        Positions::Implied if bytes.is_empty() && (count == 0 || count == elems) => {
            return Ok((0..count).collect());
        }
        Positions::Implied | Positions::Dense => return Err(bad("they cannot be implied")),
        Positions::Bitmap => {
            let is_kept = |at: usize| bytes[at / 8] >> (at % 8) & 1 == 1;
            if bytes.len() != elems.div_ceil(8) || (elems..bytes.len() * 8).any(is_kept) {
                return Err(bad("a bitmap does not have the size of its tensor"));
            }
            positions = (0..elems).filter(|at| is_kept(*at)).collect();
        }
        Positions::Rice => {
            let (parameter, coded) = bytes.split_first().ok_or_else(|| bad("Rice codes are missing"))?;
            let parameter = u32::from(*parameter);
            if !PARAMETERS.contains(&parameter) || count > coded.len().saturating_mul(8) {
                return Err(bad("malformed Rice codes"));
            }
            let mut bits = BitReader::new(coded);
            for _ in 0..count {
                let mut ones = 0u64;
                while bits.take(1) == 1 {
                    ones += 1;
                }
                let whole = ones.checked_mul(1 << parameter).ok_or_else(|| bad("a Rice code is too long"))?;
                push(whole | bits.take(parameter))?;
            }
            bits.finish(0)?;
        }
        Positions::Elias => {
            elias::decode(bytes, count)?.into_iter().try_for_each(|distance| push(distance - 1))?;
        }
        Positions::Rans => {
            let mut reader = ByteReader::new(bytes, "positions");
            let set = TableSet::parse(&mut reader, false)?;
            let tables = DecodeTables::new(&set.tables).ok_or_else(|| bad("malformed tables"))?;
            let mut symbols = vec![0; count];
            let header = block::read_block(&mut reader, count)?;
            let raw = header.decode_with_rest(&tables, Contexts::Single, &mut symbols, reader)?;
            let mut bits = raw.bits();
            symbols.iter().try_for_each(|symbol| push(tokens::read_token(*symbol, &mut bits)?))?;
            raw.finish(bits)?;
        }
    }
    if positions.len() == count { Ok(positions) } else { Err(bad("wrong number of positions")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(positions: &[usize], elems: usize) -> Vec<(Positions, Vec<u8>)> {
        let mut codes = vec![encode(positions, elems)];
        if !positions.is_empty() && positions.len() < elems {
            codes.extend([
                (Positions::Bitmap, bitmap(positions, elems)),
                (Positions::Rice, rice(positions, 3)),
                (Positions::Elias, elias::encode(skips(positions).map(|skip| skip + 1))),
                (Positions::Rans, rans(positions)),
            ]);
        }
        codes
    }

    proptest! {
        #[test]
        fn every_coding_gives_the_positions_back(kept in prop::collection::vec(prop::bool::weighted(0.1), 0..3000), dense in any::<bool>()) {
            let positions: Vec<usize> = (0..kept.len()).filter(|i| kept[*i] != dense).collect();
            let codes = all(&positions, kept.len());
            let least = codes.iter().map(|(_, bytes)| bytes.len()).min();
            prop_assert_eq!(Some(codes[0].1.len()), least);
            for (how, bytes) in codes {
                prop_assert_eq!(&decode(how, &bytes, positions.len(), kept.len()).unwrap(), &positions);
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), count in 0usize..70, elems in 0usize..70) {
            for how in [Positions::Implied, Positions::Bitmap, Positions::Rice, Positions::Elias, Positions::Rans] {
                if let Ok(positions) = decode(how, &bytes, count, elems) {
                    prop_assert!(positions.iter().all(|at| *at < elems) && positions.is_sorted());
                }
            }
        }
    }

    #[test]
    fn each_coding_wins_somewhere() {
        let choice = |positions: &[usize], elems| encode(positions, elems).0;
        assert_eq!(choice(&[], 9), Positions::Implied);
        assert_eq!(choice(&[0, 1, 2], 3), Positions::Implied);
        let irregular: Vec<usize> = (0..4000).filter(|i| (i * i / 7 + i / 3) % 2 == 0).collect();
        assert_eq!(choice(&irregular[..60], irregular[59] + 1), Positions::Bitmap);
        let regular: Vec<usize> = (0..100_000).step_by(50).collect();
        assert_eq!(choice(&regular, 100_000), Positions::Rans);
        assert_eq!(choice(&[70, 140, 230], 1 << 20), Positions::Rice);
        assert_eq!(choice(&[1, 2, 3, 500_000], 1 << 20), Positions::Elias);
    }
}
