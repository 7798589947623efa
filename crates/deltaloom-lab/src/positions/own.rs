//! Our codings, a frame per segment: kind (0 raw, 1 coded), length of the data, length of the
//! payload, payload.
//!
//! A segment that would not shrink is stored raw, so nothing grows by more than the head of a
//! frame.

use std::io::Read;

use deltaloom_kernels::bits::BitWriter;
use deltaloom_kernels::gaps::{Since, scatter};
use deltaloom_kernels::rans::{Contexts, DecodeTables, EncodeTables};
use deltaloom_kernels::tokens;

use super::BLOCK_BYTES;
use super::method::Own;
use super::segment::{MOST_GAPS, Segment};
use crate::entropy::golomb;
use crate::entropy::golomb::Divisors;
use deltaloom::__internals::block::Lanes;
use deltaloom::__internals::bytes::{ByteReader, push_varint};
use deltaloom::__internals::table::{Counts, TableSet, normalise, own_table_cost};
use deltaloom::__internals::{block, log2, table};
use deltaloom::{Error, Result};

const RAW: u8 = 0;
const CODED: u8 = 1;

/// Whether a method codes gaps between bits, which continue from segment to segment.
pub(super) fn takes_gaps(own: Own) -> bool {
    match own {
        Own::Rice | Own::Golomb | Own::Rans => true,
        Own::ByteRice | Own::Bitmap | Own::RunLength => false,
    }
}

/// Appends the frame of a segment.
pub(super) fn push_frame(own: Own, segment: &Segment, out: &mut Vec<u8>) -> Result<()> {
    let bytes = &segment.bytes[..];
    let payload = payload(own, segment)?;
    let is_coded = payload.len() < bytes.len();
    out.push(if is_coded { CODED } else { RAW });
    push_varint(out, bytes.len() as u64);
    if is_coded {
        push_varint(out, payload.len() as u64);
        out.extend_from_slice(&payload);
    } else {
        out.extend_from_slice(bytes);
    }
    Ok(())
}

fn payload(own: Own, Segment { bytes, gaps }: &Segment) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    match own {
        Own::Rice => push_golomb(gaps, Divisors::PowersOfTwo, &mut out)?,
        Own::Golomb => push_golomb(gaps, Divisors::All, &mut out)?,
        Own::Rans => push_rans(gaps, &mut out),
        Own::ByteRice => {
            push_golomb(&byte_gaps(bytes), Divisors::PowersOfTwo, &mut out)?;
            push_values(bytes, &mut out);
        }
        Own::Bitmap => {
            let flags =
                |eight: &[u8]| (0..).zip(eight).fold(0, |flags, (k, byte)| flags | u8::from(*byte != 0) << k);
            out.extend(bytes.chunks(8).map(flags));
            push_values(bytes, &mut out);
        }
        Own::RunLength => push_runs(bytes, &mut out),
    }
    Ok(out)
}

/// Distances of nonzero bytes, each from the one before; the first is from just before the segment.
fn byte_gaps(bytes: &[u8]) -> Vec<u64> {
    let (mut gaps, mut next) = (Vec::with_capacity(bytes.len() / 16), 0);
    for_each_value(bytes, |at, _| {
        gaps.push((at + 1 - next) as u64);
        next = at + 1;
    });
    gaps
}

fn push_values(bytes: &[u8], out: &mut Vec<u8>) {
    for_each_value(bytes, |_, byte| out.push(byte));
}

/// Calls `see` with position and value of every nonzero byte.
#[inline(always)]
fn for_each_value(bytes: &[u8], mut see: impl FnMut(usize, u8)) {
    for (word, eight) in bytes.chunks(8).enumerate() {
        if eight.iter().fold(0, |all, byte| all | byte) == 0 {
            continue;
        }
        let values = eight.iter().enumerate().filter(|(_, byte)| **byte != 0);
        values.for_each(|(at, byte)| see(8 * word + at, *byte));
    }
}

/// Writes count, divisor, length of the codes, codes.
fn push_golomb(gaps: &[u64], divisors: Divisors, out: &mut Vec<u8>) -> Result<()> {
    let divisor = golomb::fit(gaps, divisors);
    let mut codes = Vec::new();
    golomb::push_distances(divisor, gaps, &mut codes)?;
    [gaps.len() as u64, divisor, codes.len() as u64].into_iter().for_each(|n| push_varint(out, n));
    out.append(&mut codes);
    Ok(())
}

/// Writes count, table, and a rANS block with the raw bits of the tokens.
fn push_rans(gaps: &[u64], out: &mut Vec<u8>) {
    push_varint(out, gaps.len() as u64);
    if gaps.is_empty() {
        return;
    }
    let mut raw = BitWriter::default();
    let mut counts: Counts = [0; 256];
    let symbol_of = |gap: &u64| {
        let token = tokens::token(gap - 1);
        raw.push(token.raw, token.raw_bits);
        counts[usize::from(token.symbol)] += 1;
        token.symbol
    };
    let symbols: Vec<u8> = gaps.iter().map(symbol_of).collect();
    let lanes = Lanes::choose(symbols.len(), own_table_cost(&counts) / log2::ONE_BIT / 8);
    let set = TableSet::of_keys(Vec::new(), vec![normalise(&counts)]);
    set.push_to(out);
    let tables = EncodeTables::new(&set.tables);
    block::push_with_raw(out, &tables, lanes, &symbols, Contexts::Single, &raw.finish());
}

/// Writes alternating runs of zero and nonzero bytes, each with its length, and the nonzero bytes.
fn push_runs(bytes: &[u8], out: &mut Vec<u8>) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let zeros = rest.iter().position(|byte| *byte != 0).unwrap_or(rest.len());
        rest = &rest[zeros..];
        let values = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
        push_varint(out, zeros as u64);
        push_varint(out, values as u64);
        let (run, after) = rest.split_at(values);
        out.extend_from_slice(run);
        rest = after;
    }
}

/// Contents of a frame, still coded.
pub(super) struct Frame {
    kind: u8,
    len_bytes: usize,
    payload: Vec<u8>,
}

/// Reads the next frame, which holds at most `left_bytes` of data.
pub(super) fn read_frame(stream: &mut dyn Read, left_bytes: u64) -> Result<Frame> {
    let kind = read_byte(stream)?;
    let len_bytes = read_size(stream)?;
    if len_bytes == 0 || len_bytes > BLOCK_BYTES || len_bytes as u64 > left_bytes {
        return Err(Error::corrupt("a positions segment has an impossible length"));
    }
    let payload_bytes = match kind {
        RAW => len_bytes,
        CODED => read_size(stream)?,
        _ => return Err(Error::corrupt("a positions segment has an unknown kind")),
    };
    if payload_bytes > len_bytes {
        return Err(Error::corrupt("a positions segment is larger than its data"));
    }
    let mut payload = vec![0; payload_bytes];
    stream.read_exact(&mut payload).map_err(short)?;
    Ok(Frame { kind, len_bytes, payload })
}

fn short(e: std::io::Error) -> Error {
    Error::corrupt(format!("a positions segment ends early: {e}"))
}

fn read_byte(stream: &mut dyn Read) -> Result<u8> {
    let mut byte = [0];
    stream.read_exact(&mut byte).map_err(short)?;
    Ok(byte[0])
}

/// Reads a varint byte by byte, because its length is not known in advance.
fn read_size(stream: &mut dyn Read) -> Result<usize> {
    let mut bytes = Vec::new();
    while bytes.last().is_none_or(|byte| byte & 0x80 != 0) && bytes.len() < 10 {
        bytes.push(read_byte(stream)?);
    }
    ByteReader::new(&bytes, "a positions segment").size()
}

/// Contents of a frame, decoded except for putting the bits in place.
pub(super) enum Decoded {
    Bytes(Vec<u8>),
    Gaps { gaps: Vec<u64>, len_bytes: usize },
}

impl Frame {
    pub(super) fn decode(self, own: Own) -> Result<Decoded> {
        if self.kind == RAW {
            return Ok(Decoded::Bytes(self.payload));
        }
        let len_bytes = self.len_bytes;
        let mut reader = ByteReader::new(&self.payload, "a positions segment");
        let decoded = match own {
            Own::Rice | Own::Golomb => Decoded::Gaps { gaps: read_golomb(&mut reader)?, len_bytes },
            Own::Rans => return Ok(Decoded::Gaps { gaps: read_rans(reader)?, len_bytes }),
            Own::ByteRice => {
                let gaps = read_golomb(&mut reader)?;
                let mut bytes = vec![0; len_bytes];
                let mut next = 0u64;
                for (gap, value) in gaps.iter().zip(reader.take(gaps.len())?) {
                    let at = next.saturating_add(gap - 1);
                    let place = usize::try_from(at).ok().and_then(|at| bytes.get_mut(at));
                    *place.ok_or_else(outside)? = *value;
                    next = at.saturating_add(1);
                }
                Decoded::Bytes(bytes)
            }
            Own::Bitmap => {
                let flags = reader.take(len_bytes.div_ceil(8))?;
                let mut bytes = vec![0; len_bytes];
                for (eight, flags) in bytes.chunks_mut(8).zip(flags) {
                    for (k, byte) in eight.iter_mut().enumerate().filter(|(k, _)| flags >> k & 1 == 1) {
                        debug_assert!(k < 8);
                        *byte = reader.u8()?;
                    }
                }
                Decoded::Bytes(bytes)
            }
            Own::RunLength => Decoded::Bytes(read_runs(&mut reader, len_bytes)?),
        };
        reader.finish()?;
        Ok(decoded)
    }
}

fn outside() -> Error {
    Error::corrupt("a position lies outside its segment")
}

fn read_golomb(reader: &mut ByteReader<'_>) -> Result<Vec<u64>> {
    let (count, divisor, len_bytes) = (reader.size()?, reader.varint()?, reader.size()?);
    golomb::read_distances(divisor, reader.take(len_bytes)?, count)
}

fn read_rans(mut reader: ByteReader<'_>) -> Result<Vec<u64>> {
    let count = reader.size()?;
    if count == 0 {
        reader.finish()?;
        return Ok(Vec::new());
    }
    // A symbol can need less than a bit, so the available bytes are no bound.
    if count > MOST_GAPS {
        return Err(Error::corrupt("a segment has more positions than fit"));
    }
    let set = table::TableSet::parse(&mut reader, false)?;
    let tables = DecodeTables::new(&set.tables).ok_or_else(|| Error::corrupt("malformed frequency table"))?;
    let block = block::read_block(&mut reader, count)?;
    let mut symbols = vec![0; count];
    let raw = block.decode_with_rest(&tables, Contexts::Single, &mut symbols, reader)?;
    let mut bits = raw.bits();
    let gap_of = |symbol: &u8| tokens::read_token(*symbol, &mut bits)?.checked_add(1).ok_or_else(outside);
    let gaps = symbols.iter().map(gap_of).collect::<Result<Vec<u64>>>()?;
    raw.finish(bits)?;
    Ok(gaps)
}

fn read_runs(reader: &mut ByteReader<'_>, len_bytes: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len_bytes);
    while bytes.len() < len_bytes {
        let (zeros, values) = (reader.size()?, reader.size()?);
        let total = zeros.checked_add(values).and_then(|run| run.checked_add(bytes.len()));
        if total.is_none_or(|total| total > len_bytes) || (zeros, values) == (0, 0) {
            return Err(outside());
        }
        bytes.resize(bytes.len() + zeros, 0);
        bytes.extend_from_slice(reader.take(values)?);
    }
    Ok(bytes)
}

impl Decoded {
    /// Writes the bytes to `piece` and moves past them.
    pub(super) fn rebuild(self, own: Own, since: &mut Since, piece: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Bytes(bytes) => {
                if takes_gaps(own) {
                    since.skip(&bytes);
                }
                *piece = bytes;
            }
            Self::Gaps { gaps, len_bytes } => {
                piece.clear();
                piece.resize(len_bytes, 0);
                if scatter(&gaps, since, piece)? != gaps.len() {
                    return Err(outside());
                }
                since.pass(len_bytes);
            }
        }
        Ok(())
    }
}
