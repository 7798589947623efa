//! Finds runs of weights anywhere in another tensor, whatever the names, shapes and dtypes
//! are and wherever the run was cut.
//! Some places of every tensor are *anchors*: a hash of the elements around them chooses them, so
//! equal runs have equal anchors. That is content-defined sampling, as of Schleimer, Wilkerson and
//! Aiken, "Winnowing: Local Algorithms for Document Fingerprinting", 2003.

use std::ops::Range;

use rayon::prelude::*;

use super::subject::Subject;
use super::{codes, reference_name};
use crate::error::Result;
use crate::limits::{narrow, to_usize};
use crate::predict::{Place, Viewed};
use crate::tensor::TensorInfo;

/// Elements that a hash sees: each is shifted out after as many others.
pub(super) const WINDOW: usize = 13;
const SHIFT: u32 = 5;
/// One place in 2^this is an anchor, at most.
const LEAST_LOG2: u32 = 4;
/// Anchors of an index, about. Each takes 16 bytes.
const MOST_ANCHORS: u64 = 1 << 22;
/// Anchors with equal hashes. What is more frequent says nothing.
const MOST_EQUAL: usize = 8;
/// Elements that are read at once.
const BLOCK: u64 = 1 << 20;
/// Columns of a matrix that are read at once.
const COLUMNS: u64 = 256;

/// A place of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Anchor {
    key: u32,
    /// Number of the sequence.
    pub(super) source: u32,
    /// The first element that was hashed.
    pub(super) at: u64,
}

/// A tensor as a sequence of elements: row by row, or column by column.
#[derive(Clone, Copy)]
pub(super) struct Sequence<'a> {
    pub(super) subject: Subject<'a>,
    /// Its number, if it belongs to the file that is packed.
    pub(super) own: Option<usize>,
    pub(super) is_transposed: bool,
}

/// The anchors of some tensors.
pub(super) struct Anchors<'a> {
    sequences: Vec<Sequence<'a>>,
    log2: u32,
    /// In the order of their keys.
    sorted: Vec<Anchor>,
}

impl<'a> Anchors<'a> {
    /// Reads all tensors, on the threads of the current rayon pool.
    ///
    /// # Errors
    /// What reading gives.
    pub(super) fn new(sequences: Vec<Sequence<'a>>) -> Result<Self> {
        let elems: u64 = sequences.iter().map(|sequence| sequence.info().elems()).sum();
        let log2 = (elems / MOST_ANCHORS).checked_ilog2().map_or(LEAST_LOG2, |log2| LEAST_LOG2.max(log2 + 1));
        let found = sequences.par_iter().enumerate().map(|(number, sequence)| {
            let mut found = Vec::new();
            let source = narrow(number, "a checkpoint has at most 2^20 tensors");
            sequence.scan(log2, |at, key| found.push(Anchor { key, source, at }))?;
            Ok(found)
        });
        let found: Vec<Vec<Anchor>> = found.collect::<Result<_>>()?;
        let mut sorted = found.concat();
        sorted.par_sort_unstable();
        let is_rare = |equal: &&[Anchor]| equal.len() <= MOST_EQUAL;
        let sorted: Vec<Anchor> =
            sorted.chunk_by(|a, b| a.key == b.key).filter(is_rare).flatten().copied().collect();
        Ok(Self { sequences, log2, sorted })
    }

    pub(super) fn sequence(&self, number: usize) -> Sequence<'a> {
        self.sequences[number]
    }

    /// Calls `each` for every anchor of a run of elements that an indexed tensor has, too: with its
    /// place, and with those there.
    pub(super) fn for_each(
        &self,
        codes: &[u16],
        mut each: impl FnMut(usize, &[Anchor]) -> Result<()>,
    ) -> Result<()> {
        let mut found = Vec::new();
        scan(codes, self.log2, |at, key| found.push((at, key)));
        for (at, key) in found {
            let start = self.sorted.partition_point(|anchor| anchor.key < key);
            let equal = self.sorted[start..].iter().take_while(|anchor| anchor.key == key).count();
            if equal > 0 {
                each(at, &self.sorted[start..start + equal])?;
            }
        }
        Ok(())
    }
}

impl<'a> Sequence<'a> {
    pub(super) fn info(&self) -> &'a TensorInfo {
        self.subject.info()
    }

    pub(super) fn elems(&self) -> u64 {
        self.info().elems()
    }

    /// Whether a reader must decode it.
    pub(super) fn is_decoded(&self) -> bool {
        match self.subject {
            Subject::Source(source) => source.is_in_container(),
            Subject::Member { .. } | Subject::Converted { .. } => true,
        }
    }

    /// The reference of a view of the tensor `info`.
    pub(super) fn viewed(&self, info: &TensorInfo) -> Viewed {
        let place = match (self.own, self.subject) {
            (Some(number), _) => Place::Own(number),
            (None, Subject::Source(source)) => Place::Base(reference_name(info, source)),
            (None, _) => Place::Base(Some(self.info().name.clone())),
        };
        Viewed { place, shape: self.info().shape.clone(), is_transposed: self.is_transposed }
    }

    /// Codes of a range of elements.
    pub(super) fn codes(&self, elems: Range<u64>) -> Result<Vec<u16>> {
        let info = self.info();
        let size = info.number().bytes() as u64;
        if !self.is_transposed {
            return Ok(codes::of(info, &self.subject.bytes(elems.start * size..elems.end * size)?));
        }
        let (rows, cols) = last_two(info);
        let mut out = Vec::new();
        for place in elems {
            let (matrix, inside) = (place / (rows * cols), place % (rows * cols));
            let element = matrix * rows * cols + inside % rows * cols + inside / rows;
            out.extend(codes::of(info, &self.subject.bytes(element * size..(element + 1) * size)?));
        }
        Ok(out)
    }

    /// Calls `each` with the place and the key of every anchor.
    fn scan(&self, log2: u32, mut each: impl FnMut(u64, u32)) -> Result<()> {
        if self.is_transposed {
            return self.scan_columns(log2, each);
        }
        let elems = self.elems();
        let step = BLOCK - WINDOW as u64 + 1;
        for start in (0..elems).step_by(to_usize(step)) {
            let codes = self.codes(start..elems.min(start + BLOCK))?;
            scan(&codes, log2, |at, key| each(start + at as u64, key));
        }
        Ok(())
    }

    /// The same for the columns of all matrices. No hash sees two columns.
    fn scan_columns(&self, log2: u32, mut each: impl FnMut(u64, u32)) -> Result<()> {
        let info = self.info();
        let size = info.number().bytes() as u64;
        let (rows, cols) = last_two(info);
        for matrix in 0..self.elems() / (rows * cols) {
            let first = matrix * rows * cols;
            for start in (0..cols).step_by(to_usize(COLUMNS)) {
                let columns = start..cols.min(start + COLUMNS);
                let mut hashes = vec![0u64; to_usize(columns.end - columns.start)];
                for row in 0..rows {
                    let at = first + row * cols;
                    let bytes = self.subject.bytes((at + columns.start) * size..(at + columns.end) * size)?;
                    for (column, (hash, code)) in
                        columns.clone().zip(hashes.iter_mut().zip(codes::of(info, &bytes)))
                    {
                        *hash = next(*hash, code);
                        if let Some(key) = key_of(*hash, log2)
                            && row + 1 >= WINDOW as u64
                        {
                            each(first + column * rows + row + 1 - WINDOW as u64, key);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Rows and columns of the matrices of a tensor.
pub(super) fn last_two(info: &TensorInfo) -> (u64, u64) {
    match info.shape[..] {
        [.., rows, cols] => (rows, cols),
        _ => (1, info.elems()),
    }
}

fn next(hash: u64, code: u16) -> u64 {
    (hash << SHIFT).wrapping_add((u64::from(code) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The key of an anchor, if the hash makes it one.
fn key_of(hash: u64, log2: u32) -> Option<u32> {
    let is_anchor = hash >> (64 - log2) == 0;
    is_anchor.then(|| narrow(hash << log2 >> 32, "the upper half of 64 bits"))
}

/// Anchors of a run of elements, by the first element that was hashed.
fn scan(codes: &[u16], log2: u32, mut each: impl FnMut(usize, u32)) {
    let mut hash = 0;
    for (i, code) in codes.iter().enumerate() {
        hash = next(hash, *code);
        if let (Some(key), Some(start)) = (key_of(hash, log2), (i + 1).checked_sub(WINDOW)) {
            // Equal elements say nothing.
            if codes[start..i].iter().any(|other| other != code) {
                each(start, key);
            }
        }
    }
}
