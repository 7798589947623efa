//! rANS blocks: the symbols of a chunk as one or two interleaved streams. The states carry the
//! start of the raw bits. See docs/format.md section 7.
//! The coder itself is in deltaloom-kernels.

use deltaloom_kernels::bits::BitReader;
use deltaloom_kernels::rans::{self, Contexts, DecodeTables, EncodeTables, LANES, STATE_LOW, StreamReader};

use super::bytes::{ByteReader, push_varint};
use crate::error::{Error, Result};
use crate::limits::to_usize;
use crate::scratch::Scratch;

/// Up to this many symbols, one lane is enough: more lanes would cost more bytes than they save
/// time.
const ONE_LANE_SYMBOLS: usize = 4096;
/// Up to this many symbols, one lane is enough if they take few bytes: 31 more lanes take 34 bytes
/// (docs/adr/0034).
const FEW_BYTES_SYMBOLS: usize = 16 << 10;
const FEW_BYTES: u64 = 2 << 10;
/// From this estimated size on, two streams are used: the size of their states no longer matters.
const TWO_STREAM_BYTES: u64 = 16 << 10;
/// The same where the states carry nothing, which makes them larger by the words that they could
/// carry.
const TWO_BARE_STREAM_BYTES: u64 = 64 << 10;

const _: () = assert!(LANES == 32, "the format has blocks of 1, 32 and 64 lanes");

/// Lanes of a block, by the byte that the format has for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lanes {
    /// One lane: small blocks.
    One,
    /// As many lanes as a vector has.
    Wide,
    /// Two vectors of lanes, for long blocks.
    TwoWide,
}

impl Lanes {
    /// Lanes for `symbols` symbols that will take about `estimated_bytes`.
    pub fn choose(symbols: usize, estimated_bytes: u64) -> Self {
        match symbols {
            ..=ONE_LANE_SYMBOLS => Self::One,
            ..=FEW_BYTES_SYMBOLS if estimated_bytes < FEW_BYTES => Self::One,
            _ if estimated_bytes < TWO_STREAM_BYTES => Self::Wide,
            _ => Self::TwoWide,
        }
    }

    /// The same, for a block with `raw_bytes` bytes of raw bits for its states to carry.
    pub(crate) fn choose_for_raw(symbols: usize, estimated_bytes: u64, raw_bytes: usize) -> Self {
        match Self::choose(symbols, estimated_bytes) {
            Self::TwoWide if raw_bytes < 4 * LANES && estimated_bytes < TWO_BARE_STREAM_BYTES => Self::Wide,
            lanes => lanes,
        }
    }

    /// About how many bytes of a block's states hold nothing. A state holds a carried word, if
    /// there is one, and on average a byte of symbols.
    pub(crate) fn idle_bytes(self, symbol_bytes: u64, raw_bytes: u64) -> u64 {
        let lanes = self.count() as u64;
        4 * lanes - raw_bytes.min(2 * lanes) - symbol_bytes.min(lanes)
    }

    fn from_byte(byte: u8) -> Result<Self> {
        match byte {
            1 => Ok(Self::One),
            32 => Ok(Self::Wide),
            64 => Ok(Self::TwoWide),
            _ => Err(Error::corrupt(format!("a rANS block has {byte} lanes"))),
        }
    }

    fn to_byte(self) -> u8 {
        match self {
            Self::One => 1,
            Self::Wide => 32,
            Self::TwoWide => 64,
        }
    }

    /// Number of lanes, which is the number of carried words.
    pub(crate) fn count(self) -> usize {
        self.to_byte().into()
    }

    /// Symbols of each stream.
    fn split(self, symbols: usize) -> Vec<usize> {
        match self {
            Self::One | Self::Wide => vec![symbols],
            Self::TwoWide => {
                let first = (symbols.div_ceil(2).div_ceil(LANES) * LANES).min(symbols);
                vec![first, symbols - first]
            }
        }
    }
}

/// Appends a block. `carry` has one word per lane.
fn push_block(
    out: &mut Vec<u8>,
    tables: &EncodeTables,
    lanes: Lanes,
    symbols: &[u8],
    contexts: Contexts<'_>,
    carry: &[u16],
) {
    out.push(lanes.to_byte());
    let split = lanes.split(symbols.len());
    let per_stream = lanes.count() / split.len();
    let mut at = 0;
    let mut streams = Vec::with_capacity(split.len());
    for (count, carry) in split.into_iter().zip(carry.chunks(per_stream)) {
        let mut buffer = Scratch::of_len(rans::buffer_bytes(count));
        let (symbols, contexts) = (&symbols[at..at + count], contexts.slice(at..at + count));
        let encoded = rans::encode(tables, symbols, contexts, carry, &mut buffer);
        streams.push((encoded, buffer));
        at += count;
    }
    for (encoded, buffer) in &streams {
        push_varint(out, (buffer.len() - encoded.start) as u64 / 2);
    }
    for (encoded, _) in &streams {
        out.extend(encoded.states.iter().flat_map(|state| state.to_le_bytes()));
    }
    for (encoded, buffer) in &streams {
        out.extend_from_slice(&buffer[encoded.start..]);
    }
}

/// A block whose header was read, so that the reader can continue behind it.
pub struct BlockHeader<'a> {
    lanes: Lanes,
    states: Vec<u32>,
    words: Vec<&'a [u8]>,
}

/// Reads a block of `symbols` symbols up to its end without decoding it.
pub fn read_block<'a>(reader: &mut ByteReader<'a>, symbols: usize) -> Result<BlockHeader<'a>> {
    let lanes = Lanes::from_byte(reader.u8()?)?;
    let streams = lanes.split(symbols).len();
    let counts = (0..streams).map(|_| reader.size()).collect::<Result<Vec<_>>>()?;
    let states = (0..lanes.count()).map(|_| reader.u32()).collect::<Result<Vec<_>>>()?;
    if states.iter().any(|state| *state < STATE_LOW) {
        return Err(Error::corrupt("a rANS state is too small"));
    }
    let bytes =
        |count: usize| count.checked_mul(2).ok_or_else(|| Error::corrupt("a rANS stream is too long"));
    let words = counts.into_iter().map(|count| reader.take(bytes(count)?)).collect::<Result<Vec<_>>>()?;
    Ok(BlockHeader { lanes, states, words })
}

impl BlockHeader<'_> {
    /// Decodes the symbols into `out`; returns the carried words as bytes.
    fn decode(mut self, tables: &DecodeTables, contexts: Contexts<'_>, out: &mut [u8]) -> Result<Vec<u8>> {
        let split = self.lanes.split(out.len());
        let per_stream = self.lanes.count() / split.len();
        let mut rest = out;
        let mut at = 0;
        let mut streams = Vec::with_capacity(split.len());
        for ((count, words), states) in
            split.into_iter().zip(&self.words).zip(self.states.chunks_mut(per_stream))
        {
            let (out, after) = rest.split_at_mut(count);
            streams.push(StreamReader { states, words, contexts: contexts.slice(at..at + count), out });
            rest = after;
            at += count;
        }
        rans::decode(tables, &mut streams)?;
        let carry =
            self.states.iter().flat_map(|state| [*state, *state >> 8].map(|x| (x & 0xff) as u8)).collect();
        Ok(carry)
    }
}

/// Appends a block and its raw bit stream. The block carries the start of that stream.
pub fn push_with_raw(
    out: &mut Vec<u8>,
    tables: &EncodeTables,
    lanes: Lanes,
    symbols: &[u8],
    contexts: Contexts<'_>,
    raw: &[u8],
) {
    let (carry, rest) = split_carry(raw, lanes.count());
    push_block(out, tables, lanes, symbols, contexts, &carry);
    out.extend_from_slice(rest);
}

/// A raw bit stream, joined from what the lanes carried and the bytes behind the block.
pub struct RawBits {
    bytes: Scratch,
    carried_bytes: usize,
}

impl RawBits {
    fn new(carried: &[u8], rest: &[u8]) -> Self {
        let mut bytes = Scratch::vec(carried.len() + rest.len());
        bytes.extend_from_slice(carried);
        bytes.extend_from_slice(rest);
        Self { bytes: bytes.into(), carried_bytes: carried.len() }
    }

    /// The raw bits that go with the symbols.
    pub fn bits(&self) -> BitReader<'_> {
        BitReader::new(&self.bytes)
    }

    /// Checks that `bits`, a reader of this stream, has read all of it.
    pub fn finish(&self, bits: BitReader<'_>) -> Result<()> {
        Ok(bits.finish(self.carried_bytes)?)
    }
}

impl BlockHeader<'_> {
    /// Decodes the symbols. All bytes left in `reader` are the rest of the raw bit stream.
    pub fn decode_with_rest(
        self,
        tables: &DecodeTables,
        contexts: Contexts<'_>,
        out: &mut [u8],
        reader: ByteReader<'_>,
    ) -> Result<RawBits> {
        let carried = self.decode(tables, contexts, out)?;
        Ok(RawBits::new(&carried, reader.rest()))
    }

    /// Decodes the symbols and takes the rest of the raw bit stream from `reader`. `raw_bits`
    /// computes the stream's length in bits from the symbols.
    pub fn decode_with_raw(
        self,
        tables: &DecodeTables,
        contexts: Contexts<'_>,
        out: &mut [u8],
        reader: &mut ByteReader<'_>,
        raw_bits: impl FnOnce(&[u8]) -> u64,
    ) -> Result<RawBits> {
        let carried = self.decode(tables, contexts, out)?;
        let needed = to_usize(raw_bits(out).div_ceil(8));
        Ok(RawBits::new(&carried, reader.take(needed.saturating_sub(carried.len()))?))
    }
}

/// Splits a raw bit stream into the words that the lanes carry and the bytes behind the block.
fn split_carry(raw: &[u8], lanes: usize) -> (Vec<u16>, &[u8]) {
    let byte = |i: usize| raw.get(i).copied().unwrap_or(0);
    let words = (0..lanes).map(|lane| u16::from_le_bytes([byte(2 * lane), byte(2 * lane + 1)])).collect();
    (words, raw.get(2 * lanes..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::table::{Counts, normalise};

    #[test]
    fn blocks_of_all_layouts_roundtrip_with_their_carry() {
        for (count, lanes) in [
            (1, Lanes::One),
            (1, Lanes::TwoWide),
            (5000, Lanes::Wide),
            (5001, Lanes::TwoWide),
            (33, Lanes::TwoWide),
        ] {
            let symbols: Vec<u8> = (0..count).map(|i| u8::try_from(i * 7 % 31).unwrap()).collect();
            let counts: Counts = std::array::from_fn(|s| if s < 31 { 100 } else { 0 });
            let frequencies = [normalise(&counts)];
            let raw: Vec<u8> = (0..=255).collect();
            let (carry, rest) = split_carry(&raw, lanes.count());
            assert_eq!(rest.len(), 256 - 2 * lanes.count());
            let mut out = Vec::new();
            push_block(&mut out, &EncodeTables::new(&frequencies), lanes, &symbols, Contexts::Single, &carry);
            let mut reader = ByteReader::new(&out, "test");
            let block = read_block(&mut reader, count).unwrap();
            let mut decoded = vec![0; count];
            let carried = block
                .decode(&DecodeTables::new(&frequencies).unwrap(), Contexts::Single, &mut decoded)
                .unwrap();
            assert_eq!(decoded, symbols);
            assert_eq!(carried, raw[..2 * lanes.count()]);
            reader.finish().unwrap();
        }
    }

    #[test]
    fn few_bytes_have_one_lane() {
        let choose = |symbols, bytes| Lanes::choose(symbols, bytes);
        assert_eq!([choose(4096, 1 << 20), choose(16_384, 2047)], [Lanes::One; 2]);
        assert_eq!([choose(4097, 2048), choose(16_385, 0), choose(1 << 17, 16_383)], [Lanes::Wide; 3]);
        assert_eq!(choose(1 << 17, 16_384), Lanes::TwoWide);
        let with_raw = |bytes, raw_bytes| Lanes::choose_for_raw(1 << 17, bytes, raw_bytes);
        assert_eq!([with_raw(16_384, 127), with_raw(16_383, 128)], [Lanes::Wide; 2]);
        assert_eq!([with_raw(16_384, 128), with_raw(65_536, 0)], [Lanes::TwoWide; 2]);
    }

    #[test]
    fn states_that_carry_nothing_are_idle() {
        assert_eq!(Lanes::Wide.idle_bytes(0, 0), 128);
        assert_eq!(Lanes::Wide.idle_bytes(1 << 20, 10), 128 - 32 - 10);
        assert_eq!(Lanes::One.idle_bytes(100, 100), 1);
    }

    #[test]
    fn a_short_raw_stream_is_carried_whole() {
        assert_eq!(split_carry(&[1, 2, 3], 2), (vec![0x0201, 3], &[][..]));
    }
}
