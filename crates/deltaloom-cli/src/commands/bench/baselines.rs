//! The compressors that deltaloom is compared with. They run in this process, on one tensor at a
//! time. This module does no timing and prints nothing.

use anyhow::{Context as _, Result, ensure};
use lz4_flex::block::CompressTable;
use zstd::bulk::{Compressor, Decompressor};

use super::frames::{Frames, Tensor};
use super::pco;

/// Bytes of a plane that bitx passes to zstd at a time.
const BITX_PIECE_BYTES: usize = 1 << 20;
const BITX_LEVEL: i32 = 3;

/// A method for coding a tensor's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Baseline {
    /// Copies them.
    Memcpy,
    /// zstd at a level.
    Zstd(i32),
    /// LZ4 blocks.
    Lz4,
    /// pco on differences of ordered integers, or on the numbers if there is no reference.
    Pco,
    /// zstd at a level on the XOR with the reference.
    XorZstd(i32),
    /// zstd on pieces of the byte planes of that XOR.
    Bitx,
}

/// A baseline with the contexts and buffers that it keeps from tensor to tensor.
pub(super) struct Coder {
    baseline: Baseline,
    compressor: Compressor<'static>,
    decompressor: Decompressor<'static>,
    lz4: CompressTable,
    scratch: Vec<u8>,
}

impl Coder {
    pub(super) fn new(baseline: Baseline) -> Result<Self> {
        let level = match baseline {
            Baseline::Zstd(level) | Baseline::XorZstd(level) => level,
            _ => BITX_LEVEL,
        };
        Ok(Self {
            baseline,
            compressor: Compressor::new(level)?,
            decompressor: Decompressor::new()?,
            lz4: CompressTable::large(),
            scratch: Vec::new(),
        })
    }

    /// Appends a tensor to `frames`.
    pub(super) fn encode(&mut self, tensor: &Tensor<'_>, frames: &mut Frames) -> Result<()> {
        let bytes = tensor.bytes;
        if bytes.is_empty() {
            return Ok(());
        }
        match self.baseline {
            Baseline::Memcpy => frames.push(|room| {
                room[..bytes.len()].copy_from_slice(bytes);
                Ok(bytes.len())
            }),
            Baseline::Zstd(_) => frames.push(|room| Ok(self.compressor.compress_to_buffer(bytes, room)?)),
            Baseline::Lz4 => {
                frames.push(|room| Ok(lz4_flex::block::compress_into_with_table(bytes, room, &mut self.lz4)?))
            }
            Baseline::Pco => pco::encode(tensor, frames),
            Baseline::XorZstd(_) => {
                let mixed = xored(bytes, tensor.reference, &mut self.scratch);
                frames.push(|room| Ok(self.compressor.compress_to_buffer(mixed, room)?))
            }
            Baseline::Bitx => self.encode_bitx(tensor, frames),
        }
    }

    /// Decodes the frames of a tensor into `out`, which has its length.
    pub(super) fn decode<'f>(
        &mut self,
        tensor: &Tensor<'_>,
        frames: &mut impl Iterator<Item = &'f [u8]>,
        out: &mut [u8],
    ) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let mut next = || frames.next().context("a frame is missing");
        let length = match self.baseline {
            Baseline::Memcpy => {
                out.copy_from_slice(next()?);
                out.len()
            }
            Baseline::Zstd(_) => self.decompressor.decompress_to_buffer(next()?, out)?,
            Baseline::Lz4 => lz4_flex::block::decompress_into(next()?, out)?,
            Baseline::Pco => pco::decode(tensor, frames, out)?,
            Baseline::XorZstd(_) => {
                let length = self.decompressor.decompress_to_buffer(next()?, out)?;
                xor(out, tensor.reference);
                length
            }
            Baseline::Bitx => self.decode_bitx(tensor, frames, out)?,
        };
        ensure!(length == out.len(), "decoded {length} of {} bytes", out.len());
        Ok(())
    }

    fn encode_bitx(&mut self, tensor: &Tensor<'_>, frames: &mut Frames) -> Result<()> {
        let size = tensor.info.number().bytes();
        let block_bytes = size * BITX_PIECE_BYTES;
        let mut mixed = Vec::new();
        for (i, bytes) in tensor.bytes.chunks(block_bytes).enumerate() {
            let reference = tensor.reference.map(|r| &r[i * block_bytes..i * block_bytes + bytes.len()]);
            let mixed = xored(bytes, reference, &mut mixed);
            self.scratch.resize(bytes.len(), 0);
            match size {
                1 => self.scratch.copy_from_slice(mixed),
                2 => split::<2>(mixed, &mut self.scratch),
                4 => split::<4>(mixed, &mut self.scratch),
                _ => split::<8>(mixed, &mut self.scratch),
            }
            for plane in self.scratch.chunks(bytes.len() / size) {
                frames.push(|room| Ok(self.compressor.compress_to_buffer(plane, room)?))?;
            }
        }
        Ok(())
    }

    fn decode_bitx<'f>(
        &mut self,
        tensor: &Tensor<'_>,
        frames: &mut impl Iterator<Item = &'f [u8]>,
        out: &mut [u8],
    ) -> Result<usize> {
        let size = tensor.info.number().bytes();
        for values in out.chunks_mut(size * BITX_PIECE_BYTES) {
            self.scratch.resize(values.len(), 0);
            for plane in self.scratch.chunks_mut(values.len() / size) {
                let frame = frames.next().context("a frame is missing")?;
                let length = self.decompressor.decompress_to_buffer(frame, plane)?;
                ensure!(length == plane.len(), "decoded {length} of {} bytes", plane.len());
            }
            match size {
                1 => values.copy_from_slice(&self.scratch),
                2 => merge::<2>(&self.scratch, values),
                4 => merge::<4>(&self.scratch, values),
                _ => merge::<8>(&self.scratch, values),
            }
        }
        xor(out, tensor.reference);
        Ok(out.len())
    }
}

/// The XOR with the reference, in `scratch`; without a reference, the bytes themselves.
fn xored<'a>(bytes: &'a [u8], reference: Option<&[u8]>, scratch: &'a mut Vec<u8>) -> &'a [u8] {
    let Some(reference) = reference else { return bytes };
    scratch.resize(bytes.len(), 0);
    for ((mixed, byte), other) in scratch.iter_mut().zip(bytes).zip(reference) {
        *mixed = byte ^ other;
    }
    scratch
}

fn xor(values: &mut [u8], reference: Option<&[u8]>) {
    for (value, other) in values.iter_mut().zip(reference.unwrap_or_default()) {
        *value ^= other;
    }
}

/// Byte 0 of all elements, then byte 1, and so on.
fn split<const B: usize>(values: &[u8], planes: &mut [u8]) {
    let count = values.len() / B;
    for (p, plane) in planes.chunks_exact_mut(count).enumerate() {
        for (byte, value) in plane.iter_mut().zip(values.as_chunks::<B>().0) {
            *byte = value[p];
        }
    }
}

fn merge<const B: usize>(planes: &[u8], values: &mut [u8]) {
    let values = values.as_chunks_mut::<B>().0;
    let count = values.len();
    let planes: [&[u8]; B] = std::array::from_fn(|p| &planes[p * count..(p + 1) * count]);
    for (i, value) in values.iter_mut().enumerate() {
        *value = std::array::from_fn(|p| planes[p][i]);
    }
}
