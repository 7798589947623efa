//! Matrices that zstd has compressed piece by piece, decoded during the product: what one would
//! build without this library.
//!
//! They use the same panels, products and transpositions as our forms; only the way to make rows
//! differs.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use zstd::bulk::{Compressor, Decompressor};

use deltaloom::{Error, Result};
use deltaloom_compute::__internals::{Rows, multiply_by, panel_rows};
use deltaloom_compute::{DenseMatrix, MatrixShape, Phase, Run};

/// Compression level; the others decode about as fast.
const LEVEL: i32 = 1;
/// Bytes of a tile, rounded down to whole rows.
const TILE_BYTES: usize = 64 << 10;
/// Rows and columns of a block.
const SIDE: usize = 16;

/// How a matrix is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// Into tiles of whole rows.
    Tiles,
    /// Into blocks of 16 x 16 elements.
    Blocks,
}

/// A compressed matrix.
pub(super) struct Compressed {
    shape: MatrixShape,
    /// The base, if the matrix was XORed with it.
    base: Option<DenseMatrix>,
    /// Rows of a piece, and bytes of a row of it; pieces at the edges are smaller.
    piece_rows: usize,
    piece_row_bytes: usize,
    frames: Vec<u8>,
    /// Ends of the frames, after a 0.
    ends: Vec<u32>,
    /// Idle decoders, each with memory for a piece.
    decoders: Mutex<Vec<(Decompressor<'static>, Vec<u8>)>>,
}

impl Compressed {
    pub(super) fn new(base: Option<&DenseMatrix>, tuned: &DenseMatrix, cut: Cut) -> Result<Self> {
        let shape = tuned.shape();
        let row_bytes = shape.row_bytes();
        let (piece_rows, piece_row_bytes) = match cut {
            Cut::Tiles => ((TILE_BYTES / row_bytes.max(1)).max(1), row_bytes),
            Cut::Blocks => (SIDE, SIDE * shape.weight.bytes()),
        };
        let (frames, ends, decoders) = (Vec::new(), vec![0], Mutex::default());
        let base = base.cloned();
        let mut compressed = Self { shape, base, piece_rows, piece_row_bytes, frames, ends, decoders };
        compressed.compress(tuned)?;
        Ok(compressed)
    }

    fn compress(&mut self, tuned: &DenseMatrix) -> Result<()> {
        let mut compressor = Compressor::new(LEVEL).map_err(failed)?;
        let (mut piece, row_bytes) = (Vec::new(), self.shape.row_bytes());
        for start in (0..self.shape.rows).step_by(self.piece_rows) {
            let rows = start..(start + self.piece_rows).min(self.shape.rows);
            for place in self.places() {
                piece.clear();
                for row in rows.clone() {
                    let at = row * row_bytes + place.start..row * row_bytes + place.end;
                    piece.extend_from_slice(&tuned.bytes()[at.clone()]);
                    if let Some(base) = &self.base {
                        let start = piece.len() - place.len();
                        xor(&mut piece[start..], &base.bytes()[at]);
                    }
                }
                self.frames.extend_from_slice(&compressor.compress(&piece).map_err(failed)?);
                self.ends.push(u32::try_from(self.frames.len()).map_err(|_| Error::LimitExceeded {
                    what: "the size of a compressed matrix",
                    found: self.frames.len() as u64,
                    limit: u64::from(u32::MAX),
                })?);
            }
        }
        self.frames.shrink_to_fit();
        self.ends.shrink_to_fit();
        Ok(())
    }

    /// The byte ranges of the pieces within a row.
    fn places(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (row_bytes, step) = (self.shape.row_bytes(), self.piece_row_bytes);
        (0..row_bytes).step_by(step.max(1)).map(move |start| start..(start + step).min(row_bytes))
    }

    pub(super) fn resident_bytes(&self) -> u64 {
        (self.frames.len() + size_of_val(&self.ends[..])) as u64
    }

    pub(super) fn matmul(&self, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()> {
        let shape = self.shape;
        let tokens = shape.tokens(x, y)?;
        // Whole pieces, and at least as many rows as a panel of our forms.
        let rows = panel_rows(shape, tokens).next_multiple_of(self.piece_rows);
        multiply_by(shape, rows, tokens, x, y, run, &|rows, panel| {
            self.rows_into(rows.clone(), panel.bytes(rows.len() * shape.row_bytes()), run)?;
            Ok(Rows::Patched)
        })
    }

    /// Makes rows; the first one must begin a piece.
    fn rows_into(&self, rows: Range<usize>, out: &mut [u8], run: &Run<'_>) -> Result<()> {
        let waiting = self.decoders.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut decoder = match waiting {
            Some(decoder) => decoder,
            None => (Decompressor::new().map_err(failed)?, vec![0; self.piece_rows * self.piece_row_bytes]),
        };
        let per_row = self.places().count();
        let mut number = rows.start / self.piece_rows * per_row;
        for (i, out) in out.chunks_mut(self.piece_rows * self.shape.row_bytes()).enumerate() {
            let row = rows.start + i * self.piece_rows;
            self.pieces_into(row, number, out, &mut decoder, run)?;
            number += per_row;
        }
        self.decoders.lock().unwrap_or_else(PoisonError::into_inner).push(decoder);
        Ok(())
    }

    /// Makes the rows of one row of pieces, of which `number` is the first.
    fn pieces_into(
        &self,
        row: usize,
        number: usize,
        out: &mut [u8],
        (decoder, piece): &mut (Decompressor<'static>, Vec<u8>),
        run: &Run<'_>,
    ) -> Result<()> {
        let row_bytes = self.shape.row_bytes();
        let rows = out.len() / row_bytes;
        let base = self.base.as_ref().map(|base| base.rows(row..row + rows));
        let frame = |number: usize| &self.frames[self.ends[number] as usize..self.ends[number + 1] as usize];
        if self.piece_row_bytes == row_bytes {
            let decoded = run.time(Phase::Decode, || decoder.decompress_to_buffer(frame(number), out));
            check_length(decoded, out.len())?;
            if let Some(base) = base {
                run.time(Phase::Patch, || xor(out, base));
            }
            return Ok(());
        }
        if let Some(base) = base {
            run.time(Phase::Patch, || out.copy_from_slice(base));
        }
        for (number, place) in (number..).zip(self.places()) {
            let piece = &mut piece[..rows * place.len()];
            let decoded = run.time(Phase::Decode, || decoder.decompress_to_buffer(frame(number), piece));
            check_length(decoded, piece.len())?;
            run.time(Phase::Patch, || {
                let rows = out.chunks_exact_mut(row_bytes).zip(piece.chunks_exact(place.len()));
                rows.for_each(|(out, piece)| xor(&mut out[place.clone()], piece));
            });
        }
        Ok(())
    }
}

fn xor(out: &mut [u8], other: &[u8]) {
    out.iter_mut().zip(other).for_each(|(out, other)| *out ^= other);
}

fn check_length(decoded: io::Result<usize>, expected: usize) -> Result<()> {
    match decoded {
        Ok(length) if length == expected => Ok(()),
        Ok(_) => Err(Error::corrupt("a zstd frame is shorter than its piece")),
        Err(e) => Err(failed(e)),
    }
}

fn failed(e: io::Error) -> Error {
    Error::corrupt(format!("zstd: {e}"))
}
