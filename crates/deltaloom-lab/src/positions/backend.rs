//! zlib, LZ4 frames and zstd behind one pair of streams, with the levels of the published runs.
//! Nothing is tuned.

use std::io::{self, BufReader, Read, Write};

use flate2::Compression;
use flate2::write::ZlibEncoder;
use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};

use super::method::Backend;
use deltaloom::{Error, Result};

/// Compresses a stream; output is collected in the vector inside.
pub(super) enum Compressor {
    Zlib(ZlibEncoder<Vec<u8>>),
    Lz4(Box<FrameEncoder<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

fn failed(e: io::Error) -> Error {
    Error::InvalidArgument(format!("compression failed: {e}"))
}

impl Compressor {
    pub(super) fn new(backend: Backend) -> Result<Self> {
        let zstd = |level| zstd::stream::write::Encoder::new(Vec::new(), level).map_err(failed);
        Ok(match backend {
            Backend::Zlib => Self::Zlib(ZlibEncoder::new(Vec::new(), Compression::new(9))),
            Backend::Lz4 => {
                // The defaults of the reference implementation.
                let info = FrameInfo::new().block_mode(BlockMode::Linked).block_size(BlockSize::Max64KB);
                Self::Lz4(Box::new(FrameEncoder::with_frame_info(info, Vec::new())))
            }
            Backend::Zstd3 => Self::Zstd(zstd(3)?),
            Backend::Zstd19 => Self::Zstd(zstd(19)?),
        })
    }

    /// Compresses `bytes` and appends the output that is available so far.
    pub(super) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Zlib(encoder) => encoder.write_all(bytes).map_err(failed)?,
            Self::Lz4(encoder) => encoder.write_all(bytes).map_err(failed)?,
            Self::Zstd(encoder) => encoder.write_all(bytes).map_err(failed)?,
        }
        out.append(match self {
            Self::Zlib(encoder) => encoder.get_mut(),
            Self::Lz4(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
        });
        Ok(())
    }

    /// Appends the end of the stream.
    pub(super) fn finish(self, out: &mut Vec<u8>) -> Result<()> {
        let end = match self {
            Self::Zlib(encoder) => encoder.finish().map_err(failed)?,
            Self::Lz4(encoder) => encoder.finish().map_err(|e| failed(e.into()))?,
            Self::Zstd(encoder) => encoder.finish().map_err(failed)?,
        };
        out.extend_from_slice(&end);
        Ok(())
    }
}

/// A stream that is being decoded.
pub(super) type Stream<'a> = Box<dyn Read + Send + 'a>;

/// Decompresses `stream`, which `backend` has compressed.
pub(super) fn decompress<'a>(backend: Backend, stream: Stream<'a>) -> Result<Stream<'a>> {
    Ok(match backend {
        Backend::Zlib => Box::new(flate2::read::ZlibDecoder::new(stream)),
        // The decoder reads nothing past the end of its frame.
        Backend::Lz4 => Box::new(FrameDecoder::new(stream)),
        Backend::Zstd3 | Backend::Zstd19 => {
            let decoder = zstd::stream::read::Decoder::with_buffer(BufReader::with_capacity(1 << 16, stream));
            let mut decoder = decoder.map_err(|e| Error::corrupt(format!("zstd: {e}")))?;
            // What level 19 needs; a hostile frame gets no more.
            decoder.window_log_max(23).map_err(|e| Error::corrupt(format!("zstd: {e}")))?;
            Box::new(decoder)
        }
    })
}
