//! Encodes a source by many methods in one pass. Gaps are extracted once, and steps that methods
//! share are computed once.
//!
//! All coders run side by side on each segment. Each has its own stream, so nothing depends on the
//! number of threads.

use rayon::prelude::*;

use super::backend::Compressor;
use super::container::{Header, Spool, Stored};
use super::method::{Backend, Coder, Method, Own};
use super::own;
use super::pattern::Source;
use super::segment::{Segment, Segments};
use crate::clock::Clock;
use crate::entropy::elias::EliasEncoder;
use crate::entropy::golomb::GolombEncoder;
use deltaloom::__internals::check_cancelled;
use deltaloom::{Progress, Result};

/// Divisor of the published Golomb code.
const DIVISOR: u32 = 256;
/// Number of gaps that become words at once.
const WORDS: usize = 1 << 13;

/// All containers, and statistics gathered on the way.
pub(super) struct Encoded {
    pub(super) methods: Vec<EncodedMethod>,
    pub(super) extract_seconds: f64,
    pub(super) gaps: u64,
    /// How often each byte occurs.
    pub(super) counts: Vec<u64>,
}

/// The container of a method.
pub(super) struct EncodedMethod {
    pub(super) stored: Stored,
    pub(super) compress_seconds: f64,
    pub(super) takes_gaps: bool,
}

impl EncodedMethod {
    pub(super) fn copy_to(self, out: &mut dyn std::io::Write) -> Result<u64> {
        self.stored.copy_to(out)
    }
}

/// The first step of a method: from segments to bytes.
enum Stage {
    Words(Compressor),
    Golomb(GolombEncoder),
    Elias(EliasEncoder),
    Own(Own),
    Data(Compressor),
}

impl Stage {
    fn new(method: Method) -> Result<Self> {
        Ok(match method {
            Method::Published(Coder::Words(backend), _) => Self::Words(Compressor::new(backend)?),
            Method::Published(Coder::Golomb, _) => Self::Golomb(GolombEncoder::new(u64::from(DIVISOR))?),
            Method::Published(Coder::EliasDelta, _) => Self::Elias(EliasEncoder::default()),
            Method::Own(own) => Self::Own(own),
            Method::Baseline(backend) => Self::Data(Compressor::new(backend)?),
        })
    }

    fn push(&mut self, segment: &Segment, out: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Words(compressor) => {
                let mut words = Vec::with_capacity(4 * WORDS);
                for gaps in segment.gaps.chunks(WORDS) {
                    words.clear();
                    push_words(gaps, &mut words);
                    compressor.push(&words, out)?;
                }
                Ok(())
            }
            Self::Golomb(encoder) => encoder.push(&segment.gaps, out),
            Self::Elias(encoder) => {
                encoder.push(&segment.gaps, out);
                Ok(())
            }
            Self::Own(own) => own::push_frame(*own, segment, out),
            Self::Data(compressor) => compressor.push(&segment.bytes, out),
        }
    }

    fn finish(self, out: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Words(compressor) | Self::Data(compressor) => compressor.finish(out)?,
            Self::Golomb(mut encoder) => encoder.finish(out),
            Self::Elias(mut encoder) => encoder.finish(out),
            Self::Own(_) => {}
        }
        Ok(())
    }
}

/// Gaps as little-endian words of 32 bits. A larger gap is stored in 64 bits after a zero, because
/// no gap is zero.
fn push_words(gaps: &[u64], out: &mut Vec<u8>) {
    for &gap in gaps {
        match u32::try_from(gap) {
            Ok(word) => out.extend_from_slice(&word.to_le_bytes()),
            Err(_) => {
                out.extend_from_slice(&[0; 4]);
                out.extend_from_slice(&gap.to_le_bytes());
            }
        }
    }
}

/// Compression of a stage's output: the second step of a method.
struct Second {
    method: Method,
    compressor: Compressor,
    spool: Spool,
    seconds: f64,
    out: Vec<u8>,
}

impl Second {
    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let started = Clock::start();
        self.out.clear();
        self.compressor.push(bytes, &mut self.out)?;
        self.seconds += started.seconds();
        self.spool.push(&self.out)
    }

    fn finish(mut self, last: &[u8]) -> Result<(Method, Spool, f64)> {
        self.push(last)?;
        let started = Clock::start();
        self.out.clear();
        self.compressor.finish(&mut self.out)?;
        self.seconds += started.seconds();
        self.spool.push(&self.out)?;
        Ok((self.method, self.spool, self.seconds))
    }
}

/// All methods that share a first step.
struct Line {
    first: Method,
    stage: Stage,
    /// Present if the first step was requested as a method of its own.
    spool: Option<Spool>,
    seconds: f64,
    second_steps: Vec<Second>,
    out: Vec<u8>,
}

impl Line {
    fn push(&mut self, segment: &Segment) -> Result<()> {
        let started = Clock::start();
        self.out.clear();
        self.stage.push(segment, &mut self.out)?;
        self.seconds += started.seconds();
        if let Some(spool) = &mut self.spool {
            spool.push(&self.out)?;
        }
        let out = &self.out;
        self.second_steps.par_iter_mut().with_max_len(1).try_for_each(|second| second.push(out))
    }

    /// Finishes the bodies; each comes with the seconds that it needed.
    fn finish(self) -> Result<Vec<(Method, Spool, f64)>> {
        let Self { first, stage, spool, mut seconds, second_steps, .. } = self;
        let started = Clock::start();
        let mut last = Vec::new();
        stage.finish(&mut last)?;
        seconds += started.seconds();
        let mut done = Vec::new();
        if let Some(mut spool) = spool {
            spool.push(&last)?;
            done.push((first, spool, seconds));
        }
        for second in second_steps {
            let (method, spool, of_second) = second.finish(&last)?;
            done.push((method, spool, seconds + of_second));
        }
        Ok(done)
    }
}

/// The first step of a method, as a method of its own.
fn first_of(method: Method) -> Method {
    match method {
        Method::Published(coder, _) => Method::Published(coder, None),
        alone => alone,
    }
}

/// Rank of a line by running time, longest first, so that the short ones fill up the other threads.
fn place(first: Method) -> usize {
    match first {
        Method::Baseline(Backend::Zstd19) => 0,
        Method::Published(Coder::Words(Backend::Zlib), _) => 1,
        Method::Baseline(Backend::Zlib) => 2,
        Method::Published(Coder::Golomb, _) => 3,
        Method::Published(Coder::Words(_), _) => 4,
        _ => 5,
    }
}

fn lines(methods: &[Method], original_bytes: u64) -> Result<Vec<Line>> {
    let mut lines: Vec<Line> = Vec::new();
    for &method in methods {
        let first = first_of(method);
        let at = match lines.iter().position(|line| line.first == first) {
            Some(at) => at,
            None => {
                lines.push(Line {
                    first,
                    stage: Stage::new(first)?,
                    spool: None,
                    seconds: 0.0,
                    second_steps: Vec::new(),
                    out: Vec::new(),
                });
                lines.len() - 1
            }
        };
        let spool = Spool::new(original_bytes)?;
        match method {
            Method::Published(_, Some(then)) => lines[at].second_steps.push(Second {
                method,
                compressor: Compressor::new(then)?,
                spool,
                seconds: 0.0,
                out: Vec::new(),
            }),
            _ => lines[at].spool = Some(spool),
        }
    }
    lines.sort_by_key(|line| place(line.first));
    Ok(lines)
}

/// Whether a method codes gaps between bits.
fn takes_gaps(method: Method) -> bool {
    match method {
        Method::Published(..) => true,
        Method::Own(own) => own::takes_gaps(own),
        Method::Baseline(_) => false,
    }
}

/// Encodes `source` by every one of `methods`, which are in the order of the table.
pub(super) fn encode(source: &Source, methods: &[Method], progress: &dyn Progress) -> Result<Encoded> {
    let mut lines = lines(methods, source.len_bytes())?;
    let with_gaps = methods.iter().any(|method| takes_gaps(*method));
    let is_stored = matches!(source, Source::Stored { .. });
    let mut segments = Segments::new(source);
    let mut counts = vec![0u64; 256];
    let mut current = segments.next(with_gaps)?;
    while let Some(segment) = current {
        check_cancelled(progress)?;
        let push = || {
            if is_stored {
                segment.bytes.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
            }
            lines.par_iter_mut().with_max_len(1).try_for_each(|line| line.push(&segment))
        };
        // Prepare the next segment while this one is coded.
        let (next, pushed) = rayon::join(|| segments.next(with_gaps), push);
        pushed?;
        progress.advance(segment.bytes.len() as u64 * methods.len() as u64);
        current = next?;
    }
    let (extract_seconds, gaps) = (segments.extract_seconds, segments.gaps);
    let crc = segments.crc.finalize();
    let mut done = lines
        .into_iter()
        .map(Line::finish)
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .flatten()
        .collect::<Vec<_>>();
    done.sort_by_key(|(method, ..)| method.wire_id());
    let stored = |(method, spool, compress_seconds): (Method, Spool, f64)| {
        let is_golomb = matches!(method, Method::Published(Coder::Golomb, _));
        let takes_gaps = takes_gaps(method);
        let header = Header {
            method,
            is_raw: false,
            divisor: if is_golomb { DIVISOR } else { 0 },
            original_bytes: source.len_bytes(),
            gaps: if takes_gaps { gaps } else { 0 },
            body_bytes: 0,
            crc,
        };
        Ok(EncodedMethod { stored: spool.finish(source, header)?, compress_seconds, takes_gaps })
    };
    let methods = done.into_iter().map(stored).collect::<Result<Vec<_>>>()?;
    Ok(Encoded { methods, extract_seconds, gaps, counts })
}

/// The body of a method without a second step, for a single segment.
#[cfg(test)]
pub(super) fn body_of(method: Method, segment: &Segment) -> Result<Vec<u8>> {
    let (mut stage, mut body) = (Stage::new(method)?, Vec::new());
    stage.push(segment, &mut body)?;
    stage.finish(&mut body)?;
    Ok(body)
}
