//! Reads each container back: body to gaps, and gaps to bits. A check compares the bits with the
//! source, which is generated or read again block by block.
//!
//! Memory stays within a few blocks, whatever a container says.

use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use deltaloom_kernels::gaps::{Since, scatter};
use rayon::prelude::*;

use super::backend::{Stream, decompress};
use super::container::Header;
use super::encode::EncodedMethod;
use super::method::{Coder, Method, Own};
use super::pattern::Source;
use super::{BLOCK_BYTES, own};
use crate::clock::Clock;
use crate::entropy::elias::EliasDecoder;
use crate::entropy::golomb::GolombDecoder;
use deltaloom::__internals::{check_cancelled, to_usize};
use deltaloom::{Error, Limits, Progress, Result};

/// Number of gaps that are decoded at once.
const BATCH: u64 = 1 << 15;

/// Where the time of reading a container goes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DecodeSeconds {
    pub(super) decompress: f64,
    pub(super) reconstruct: f64,
    pub(super) verify: f64,
}

/// Result of a check.
pub(super) struct Checked {
    pub(super) seconds: DecodeSeconds,
    /// Why the data did not come back, if it did not.
    pub(super) fault: Option<String>,
}

/// Gaps from a body.
enum Gaps<'a> {
    Words(Words<'a>),
    Golomb(GolombDecoder<Stream<'a>>),
    Elias(EliasDecoder<Stream<'a>>),
}

impl<'a> Gaps<'a> {
    fn new(coder: Coder, divisor: u32, stream: Stream<'a>) -> Result<Self> {
        Ok(match coder {
            Coder::Words(backend) => Self::Words(Words::new(decompress(backend, stream)?)),
            Coder::Golomb => Self::Golomb(GolombDecoder::new(u64::from(divisor), stream)?),
            Coder::EliasDelta => Self::Elias(EliasDecoder::new(stream)),
        })
    }

    fn fill(&mut self, gaps: &mut [u64]) -> Result<()> {
        match self {
            Self::Words(words) => words.fill(gaps),
            Self::Golomb(decoder) => decoder.fill(gaps),
            Self::Elias(decoder) => decoder.fill(gaps),
        }
    }

    fn finish(self) -> Result<()> {
        match self {
            Self::Words(mut words) => expect_end(&mut words.stream),
            Self::Golomb(decoder) => decoder.finish(),
            Self::Elias(decoder) => decoder.finish(),
        }
    }
}

/// Gaps as words of 32 bits, or as a zero followed by 64 bits.
struct Words<'a> {
    stream: Stream<'a>,
    buffer: Vec<u8>,
}

impl<'a> Words<'a> {
    fn new(stream: Stream<'a>) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    fn fill(&mut self, gaps: &mut [u64]) -> Result<()> {
        self.buffer.resize(4 * gaps.len(), 0);
        read_exact(&mut self.stream, &mut self.buffer)?;
        let mut words = self.buffer.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        // A gap of 64 bits needs three words, so words beyond the buffered ones are read from the
        // stream.
        let mut stream = &mut self.stream;
        let mut next = move || -> Result<u32> {
            if let Some(word) = words.next() {
                return Ok(word);
            }
            let mut word = [0; 4];
            read_exact(&mut stream, &mut word)?;
            Ok(u32::from_le_bytes(word))
        };
        for gap in gaps {
            *gap = u64::from(next()?);
            if *gap == 0 {
                let low = u64::from(next()?);
                *gap = low | u64::from(next()?) << 32;
                if *gap >> 32 == 0 {
                    return Err(Error::corrupt("a gap of 32 bits is stored in 64"));
                }
            }
        }
        Ok(())
    }
}

/// The body of a container. The caller can check how much of it is left while a decoder reads it.
struct BodyStream<'a> {
    container: &'a mut (dyn Read + Send),
    left_bytes: Arc<AtomicU64>,
}

impl Read for BodyStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left_bytes.load(Ordering::Relaxed);
        let most = to_usize(left).min(buffer.len());
        let count = self.container.read(&mut buffer[..most])?;
        self.left_bytes.store(left - count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Reads the part of a body that a decoder did not need, such as the mark at the end of a frame.
/// All of it must be there.
fn expect_rest(container: &mut (dyn Read + Send), left_bytes: u64) -> Result<()> {
    let read = io::copy(&mut container.take(left_bytes), &mut io::sink()).map_err(bad_stream)?;
    let what = "a positions body";
    if read == left_bytes {
        Ok(())
    } else {
        Err(Error::Truncated { what, needed: left_bytes, available: read })
    }
}

fn bad_stream(e: io::Error) -> Error {
    Error::corrupt(format!("positions body: {e}"))
}

fn read_exact(stream: &mut dyn Read, bytes: &mut [u8]) -> Result<()> {
    stream.read_exact(bytes).map_err(bad_stream)
}

/// Reading to the end also lets a decompressor check its own checksums.
fn expect_end(stream: &mut dyn Read) -> Result<()> {
    match stream.read(&mut [0]).map_err(bad_stream)? {
        0 => Ok(()),
        _ => Err(Error::corrupt("a positions body continues past its end")),
    }
}

/// How a body becomes bytes.
enum Body<'a> {
    Gaps { source: Gaps<'a>, left: u64, batch: Vec<u64>, used: usize },
    Own { own: Own, stream: Stream<'a> },
    Data(Stream<'a>),
}

struct Reader<'a> {
    header: Header,
    body: Body<'a>,
    since: Since,
    left_bytes: u64,
    body_left_bytes: Arc<AtomicU64>,
    crc: crc32fast::Hasher,
    seconds: DecodeSeconds,
}

impl<'a> Reader<'a> {
    fn new(container: &'a mut (dyn Read + Send), limit_bytes: u64) -> Result<Self> {
        let header = Header::read(container)?;
        Limits::check("the size of the data in a positions container", header.original_bytes, limit_bytes)?;
        let body_left_bytes = Arc::new(AtomicU64::new(header.body_bytes));
        let stream: Stream<'a> = Box::new(BodyStream { container, left_bytes: Arc::clone(&body_left_bytes) });
        let body = match header.method {
            _ if header.is_raw => Body::Data(stream),
            Method::Baseline(backend) => Body::Data(decompress(backend, stream)?),
            Method::Own(own) => Body::Own { own, stream },
            Method::Published(coder, then) => {
                let stream = match then {
                    Some(then) => decompress(then, stream)?,
                    None => stream,
                };
                let source = Gaps::new(coder, header.divisor, stream)?;
                Body::Gaps { source, left: header.gaps, batch: Vec::new(), used: 0 }
            }
        };
        Ok(Self {
            header,
            body,
            since: Since::default(),
            left_bytes: header.original_bytes,
            body_left_bytes,
            crc: crc32fast::Hasher::new(),
            seconds: DecodeSeconds::default(),
        })
    }

    /// Reads the next piece of data into `piece`; `false` if there is none left.
    fn next(&mut self, piece: &mut Vec<u8>) -> Result<bool> {
        if self.left_bytes == 0 {
            return Ok(false);
        }
        let block_bytes = to_usize(self.left_bytes.min(BLOCK_BYTES as u64));
        let started = Clock::start();
        let seconds = &mut self.seconds;
        match &mut self.body {
            Body::Data(stream) => {
                piece.resize(block_bytes, 0);
                read_exact(stream, piece)?;
                seconds.decompress += started.seconds();
            }
            Body::Own { own, stream } => {
                let decoded = own::read_frame(stream, self.left_bytes)?.decode(*own)?;
                seconds.decompress += started.seconds();
                let middle = Clock::start();
                decoded.rebuild(*own, &mut self.since, piece)?;
                seconds.reconstruct += middle.seconds();
            }
            Body::Gaps { source, left, batch, used } => {
                piece.clear();
                piece.resize(block_bytes, 0);
                loop {
                    let middle = Clock::start();
                    *used += scatter(&batch[*used..], &mut self.since, piece)?;
                    seconds.reconstruct += middle.seconds();
                    if *used < batch.len() || *left == 0 {
                        break;
                    }
                    let started = Clock::start();
                    batch.resize(to_usize((*left).min(BATCH)), 0);
                    source.fill(batch)?;
                    *left -= batch.len() as u64;
                    *used = 0;
                    seconds.decompress += started.seconds();
                }
                self.since.pass(block_bytes);
            }
        }
        let started = Clock::start();
        self.crc.update(piece);
        self.seconds.verify += started.seconds();
        self.left_bytes -= piece.len() as u64;
        Ok(true)
    }

    /// Checks that the data is what was encoded. Returns how much of the body was not needed for
    /// that.
    fn finish(self) -> Result<(DecodeSeconds, u64)> {
        match self.body {
            Body::Data(mut stream) | Body::Own { mut stream, .. } => expect_end(&mut stream)?,
            Body::Gaps { source, left, batch, used } => {
                if left > 0 || used < batch.len() {
                    return Err(Error::corrupt("gaps lead past the end of the data"));
                }
                source.finish()?;
            }
        }
        if self.crc.finalize() != self.header.crc {
            return Err(Error::corrupt("wrong checksum of the data"));
        }
        Ok((self.seconds, self.body_left_bytes.load(Ordering::Relaxed)))
    }
}

pub(super) fn decode(
    container: &mut (dyn Read + Send),
    limit_bytes: u64,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Method> {
    let mut reader = Reader::new(&mut *container, limit_bytes)?;
    let method = reader.header.method;
    let mut piece = Vec::new();
    while reader.next(&mut piece)? {
        sink(&piece)?;
    }
    let (_, left_bytes) = reader.finish()?;
    expect_rest(container, left_bytes)?;
    Ok(method)
}

/// Reads every container and compares its data with the source.
pub(super) fn check_all(
    source: &Source,
    encoded: &[EncodedMethod],
    progress: &dyn Progress,
) -> Result<Vec<Checked>> {
    encoded.par_iter().with_max_len(1).map(|method| check(source, method, progress)).collect()
}

/// A fault of the container is a result; a fault of the source ends the check.
fn check(source: &Source, encoded: &EncodedMethod, progress: &dyn Progress) -> Result<Checked> {
    match compare(source, encoded, progress) {
        Ok(seconds) => Ok(Checked { seconds, fault: None }),
        Err(e @ (Error::Cancelled | Error::Io { .. })) => Err(e),
        Err(e) => Ok(Checked { seconds: DecodeSeconds::default(), fault: Some(e.to_string()) }),
    }
}

fn compare(source: &Source, encoded: &EncodedMethod, progress: &dyn Progress) -> Result<DecodeSeconds> {
    let mut container = BufReader::with_capacity(1 << 18, &encoded.stored.file);
    let mut reader = Reader::new(&mut container, source.len_bytes())?;
    let (mut block, mut number, mut at, mut piece) = (Vec::new(), 0, 0, Vec::new());
    let mut verify_seconds = 0.0;
    while reader.next(&mut piece)? {
        check_cancelled(progress)?;
        let mut rest = &piece[..];
        while !rest.is_empty() {
            if at == block.len() {
                if !source.block(number, &mut block)? {
                    return Err(Error::corrupt("there is more data than in the source"));
                }
                number += 1;
                at = 0;
            }
            let started = Clock::start();
            let (these, others) = rest.split_at(rest.len().min(block.len() - at));
            if these != &block[at..at + these.len()] {
                return Err(Error::corrupt(format!("block {} differs from the source", number - 1)));
            }
            verify_seconds += started.seconds();
            at += these.len();
            rest = others;
        }
        progress.advance(piece.len() as u64);
    }
    if reader.header.original_bytes != source.len_bytes() {
        return Err(Error::corrupt("there is less data than in the source"));
    }
    let (mut seconds, left_bytes) = reader.finish()?;
    expect_rest(&mut container, left_bytes)?;
    seconds.verify += verify_seconds;
    Ok(seconds)
}

/// Reads the gaps in a body of this coder.
#[cfg(test)]
pub(super) fn gaps_of(coder: Coder, mut body: &[u8], count: usize) -> Result<Vec<u64>> {
    let (mut source, mut gaps) = (Gaps::new(coder, 256, Box::new(&mut body))?, vec![0; count]);
    source.fill(&mut gaps)?;
    source.finish()?;
    Ok(gaps)
}
