//! Cuts a source into segments with their gaps, which all methods share.
//!
//! The cuts depend only on the data, so the same data gives the same bytes on any number of
//! threads.

use deltaloom_kernels::gaps::{Since, extract};

use super::BLOCK_BYTES;
use super::pattern::Source;
use crate::clock::Clock;
use deltaloom::Result;

/// Bytes whose gaps are extracted at once.
const STEP_BYTES: usize = 64 << 10;
/// A segment ends after the step in which it reaches this many gaps, so it has at most
/// [`MOST_GAPS`].
const ENOUGH_GAPS: usize = 1 << 19;
/// No segment has more gaps.
pub(super) const MOST_GAPS: usize = ENOUGH_GAPS + 8 * STEP_BYTES;

/// A piece of a block, and the gaps of its set bits.
pub(super) struct Segment {
    pub(super) bytes: Vec<u8>,
    pub(super) gaps: Vec<u64>,
}

/// Reads a source from start to end.
pub(super) struct Segments<'a> {
    source: &'a Source,
    next_block: u64,
    block: Vec<u8>,
    at_byte: usize,
    since: Since,
    pub(super) extract_seconds: f64,
    pub(super) gaps: u64,
    pub(super) crc: crc32fast::Hasher,
}

impl<'a> Segments<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        Self {
            source,
            next_block: 0,
            block: Vec::new(),
            at_byte: 0,
            since: Since::default(),
            extract_seconds: 0.0,
            gaps: 0,
            crc: crc32fast::Hasher::new(),
        }
    }

    /// The next segment, without gaps if no method needs them. `None` at the end.
    pub(super) fn next(&mut self, with_gaps: bool) -> Result<Option<Segment>> {
        if self.at_byte == self.block.len() {
            if !self.source.block(self.next_block, &mut self.block)? {
                return Ok(None);
            }
            self.crc.update(&self.block);
            self.next_block += 1;
            self.at_byte = 0;
        }
        let started = Clock::start();
        let mut gaps = Vec::new();
        let first = self.at_byte;
        while self.at_byte < self.block.len() && gaps.len() < ENOUGH_GAPS {
            let end =
                if with_gaps { (self.at_byte + STEP_BYTES).min(self.block.len()) } else { self.block.len() };
            if with_gaps {
                extract(&self.block[self.at_byte..end], &mut self.since, &mut gaps);
            }
            self.at_byte = end;
        }
        self.extract_seconds += started.seconds();
        self.gaps += gaps.len() as u64;
        let is_whole = first == 0 && self.at_byte == self.block.len();
        let bytes = if is_whole {
            self.at_byte = 0;
            std::mem::take(&mut self.block)
        } else {
            self.block[first..self.at_byte].to_vec()
        };
        debug_assert!(gaps.len() <= MOST_GAPS && bytes.len() <= BLOCK_BYTES);
        Ok(Some(Segment { bytes, gaps }))
    }
}
