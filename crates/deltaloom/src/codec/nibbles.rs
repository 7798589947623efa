//! Words of 4-bit codes, as packed quantised weights have them, code by code; docs/format.md
//! section 8.1.

use deltaloom_kernels::{Number, NumberKind};

use super::{ChunkInput, ChunkShape, Codec, Decoder, Encoder, GroupScales, sparse, ulp};
use crate::error::{Error, Result};
use crate::scratch::Scratch;

/// Which codes of a chunk are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nibbles {
    /// All.
    All,
    /// Those that differ from the prediction.
    Changed,
}

/// Codes have no exponents, so that all have the same key.
const SCALES: GroupScales = GroupScales { offset: 0, has_rows: false, cols: None };

impl Nibbles {
    pub(super) fn id(self) -> u8 {
        match self {
            Self::All => 0,
            Self::Changed => 1,
        }
    }

    pub(super) fn of_id(id: u8, number: Number) -> Result<Self> {
        let found = [Self::All, Self::Changed].into_iter().find(|kind| kind.id() == id);
        found
            .filter(|_| applies(number))
            .ok_or_else(|| Error::corrupt("a group of nibbles is not allowed here"))
    }

    fn codec(self) -> Codec {
        match self {
            Self::All => Codec::Ulp,
            Self::Changed => Codec::Sparse,
        }
    }
}

/// Whether elements may be words of codes: integers of 8 or 32 bits.
pub(crate) fn applies(number: Number) -> bool {
    number.kind() != NumberKind::Float && matches!(number.bits(), 8 | 32)
}

/// The number type of a code, which has a byte.
pub(crate) fn number() -> Number {
    Number::unsigned(8)
}

/// The codes of words, one in each byte, the lowest bits of a word first.
pub(crate) fn split(words: &[u8]) -> Scratch {
    let mut out = Scratch::of_len(2 * words.len());
    for (codes, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(words) {
        *codes = [byte & 15, byte >> 4];
    }
    out
}

/// The reverse. Codes have 4 bits.
fn join(codes: &[u8], words: &mut [u8]) -> Result<()> {
    let mut all = 0;
    for (byte, [low, high]) in words.iter_mut().zip(codes.as_chunks::<2>().0) {
        all |= low | high;
        *byte = low | high << 4;
    }
    if all > 15 { Err(Error::corrupt("a code has more than 4 bits")) } else { Ok(()) }
}

fn shape_of(shape: &ChunkShape) -> ChunkShape {
    ChunkShape { number: number(), rows: shape.rows, cols: 2 * shape.number.bytes() * shape.cols }
}

pub(super) fn encode(input: &ChunkInput<'_>, tables: &Encoder, kind: Nibbles) -> Option<(Codec, Vec<u8>)> {
    let (target, prediction) = (split(input.target), split(input.prediction));
    let codes = ChunkInput {
        shape: shape_of(&input.shape),
        target: &target,
        prediction: &prediction,
        classes: None,
        row_scales: &[],
        material: None,
        ..*input
    };
    let payload = match kind {
        Nibbles::All => ulp::encode(&codes, tables, &SCALES)?,
        Nibbles::Changed => sparse::encode(&codes, tables, &SCALES),
    };
    Some((kind.codec(), payload))
}

pub(super) fn decode(
    shape: &ChunkShape,
    codec: Codec,
    tables: &Decoder,
    kind: Nibbles,
    payload: &[u8],
    values: &mut [u8],
) -> Result<()> {
    if codec != kind.codec() {
        return Err(Error::corrupt("the codec of a chunk does not match its group"));
    }
    let mut codes = split(values);
    match kind {
        Nibbles::All => ulp::decode(&shape_of(shape), tables, &SCALES, payload, None, &mut codes)?,
        Nibbles::Changed => sparse::decode(&shape_of(shape), tables, &SCALES, payload, &mut codes)?,
    }
    join(&codes, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_and_joined() {
        let words = [0x21, 0x43, 0xfe];
        let codes = split(&words);
        assert_eq!(*codes, [1, 2, 3, 4, 14, 15]);
        let mut back = [0; 3];
        join(&codes, &mut back).unwrap();
        assert_eq!(back, words);
        assert!(join(&[16, 0], &mut [0]).is_err());
    }
}
