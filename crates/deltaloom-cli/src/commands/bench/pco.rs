//! Passes tensors to pco in the form that suits it: residuals as signed integers of the element's
//! width, or the numbers themselves. Tensors are cut where pco would cut them, to stay in the
//! cache.

use anyhow::{Context as _, Result};
use deltaloom::tensor::DType;
use pco::ChunkConfig;
use pco::data_types::Number;
use pco::standalone;

use super::frames::{Frames, Tensor};

/// Elements per call of pco: its default size of a page.
const PIECE_ELEMS: usize = 1 << 18;

/// A number type of pco, and its bytes in files.
trait Word: Number + Default {
    const BYTES: usize;
    fn load(bytes: &[u8]) -> Self;
    fn store(self, bytes: &mut [u8]);
}

macro_rules! words {
    ($($word:ty)*) => {$(
        impl Word for $word {
            const BYTES: usize = size_of::<$word>();

            #[inline]
            fn load(bytes: &[u8]) -> Self {
                let mut word = [0; size_of::<$word>()];
                word.copy_from_slice(bytes);
                Self::from_le_bytes(word)
            }

            #[inline]
            fn store(self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
words!(u8 u16 u32 u64 i8 i16 i32 i64 f32 f64);

/// The type of a residual.
trait Residual: Word {
    /// Maps the bits of a float to an integer of the same order, and back; leaves integers alone.
    fn ordered(self, is_float: bool) -> Self;
    fn minus(self, other: Self) -> Self;
    fn plus(self, other: Self) -> Self;
}

macro_rules! residuals {
    ($($word:ty)*) => {$(
        impl Residual for $word {
            #[inline]
            fn ordered(self, is_float: bool) -> Self {
                let magnitude = if is_float { <$word>::MAX } else { 0 };
                self ^ ((self >> (<$word>::BITS - 1)) & magnitude)
            }

            #[inline]
            fn minus(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }

            #[inline]
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
        }
    )*};
}
residuals!(i8 i16 i32 i64);

/// Calls `$residuals` with the signed integer of the tensor's width, or, if the tensor has no
/// reference, `$plain` with the tensor's own type.
macro_rules! by_type {
    ($tensor:expr, $residuals:ident or $plain:ident, ($($arg:expr),*)) => {
        match ($tensor.info.number().bytes(), &$tensor.info.dtype, $tensor.reference.is_some()) {
            (1, _, true) => $residuals::<i8>($($arg),*),
            (2, _, true) => $residuals::<i16>($($arg),*),
            (4, _, true) => $residuals::<i32>($($arg),*),
            (_, _, true) => $residuals::<i64>($($arg),*),
            (_, DType::F32, _) => $plain::<f32>($($arg),*),
            (_, DType::F64, _) => $plain::<f64>($($arg),*),
            (_, DType::I8, _) => $plain::<i8>($($arg),*),
            (_, DType::I16, _) => $plain::<i16>($($arg),*),
            (_, DType::I32, _) => $plain::<i32>($($arg),*),
            (_, DType::I64, _) => $plain::<i64>($($arg),*),
            (1, ..) => $plain::<u8>($($arg),*),
            (2, ..) => $plain::<u16>($($arg),*),
            (4, ..) => $plain::<u32>($($arg),*),
            _ => $plain::<u64>($($arg),*),
        }
    };
}

/// Appends a tensor to `frames`.
pub(super) fn encode(tensor: &Tensor<'_>, frames: &mut Frames) -> Result<()> {
    by_type!(tensor, encode_residuals or encode_plain, (tensor, frames))
}

/// Decodes the frames of a tensor into `out`, and returns how many bytes it filled.
pub(super) fn decode<'f>(
    tensor: &Tensor<'_>,
    frames: &mut impl Iterator<Item = &'f [u8]>,
    out: &mut [u8],
) -> Result<usize> {
    let mut next = || frames.next().context("a frame is missing");
    by_type!(tensor, decode_residuals or decode_plain, (tensor, &mut next, out))
}

/// Returns the next frame.
type Next<'n, 'f> = &'n mut dyn FnMut() -> Result<&'f [u8]>;

fn encode_plain<T: Word>(tensor: &Tensor<'_>, frames: &mut Frames) -> Result<()> {
    encode_pieces(tensor, frames, |value, _| T::load(value))
}

fn encode_residuals<T: Residual>(tensor: &Tensor<'_>, frames: &mut Frames) -> Result<()> {
    let ordered = ordering::<T>(tensor);
    encode_pieces(tensor, frames, |value, other| ordered(T::load(value)).minus(ordered(T::load(other))))
}

fn decode_plain<T: Word>(tensor: &Tensor<'_>, next: Next<'_, '_>, out: &mut [u8]) -> Result<usize> {
    decode_pieces(tensor, next, out, |number: T, _| number)
}

fn decode_residuals<T: Residual>(tensor: &Tensor<'_>, next: Next<'_, '_>, out: &mut [u8]) -> Result<usize> {
    let ordered = ordering::<T>(tensor);
    decode_pieces(tensor, next, out, |number: T, other| ordered(ordered(T::load(other)).plus(number)))
}

fn ordering<T: Residual>(tensor: &Tensor<'_>) -> impl Fn(T) -> T + use<T> {
    let is_float = tensor.info.number().exponent_bits() > 0;
    move |word| word.ordered(is_float)
}

/// The bytes of the reference; without one, placeholder bytes of the same length.
fn others<'a>(tensor: &Tensor<'a>) -> &'a [u8] {
    tensor.reference.unwrap_or(tensor.bytes)
}

fn encode_pieces<T: Word>(
    tensor: &Tensor<'_>,
    frames: &mut Frames,
    number: impl Fn(&[u8], &[u8]) -> T,
) -> Result<()> {
    let config = ChunkConfig::default().with_enable_8_bit(true);
    let piece_bytes = PIECE_ELEMS * T::BYTES;
    let mut numbers: Vec<T> = Vec::with_capacity(PIECE_ELEMS.min(tensor.bytes.len() / T::BYTES));
    for (values, others) in tensor.bytes.chunks(piece_bytes).zip(others(tensor).chunks(piece_bytes)) {
        numbers.clear();
        let pairs = values.chunks_exact(T::BYTES).zip(others.chunks_exact(T::BYTES));
        numbers.extend(pairs.map(|(value, other)| number(value, other)));
        frames.push(|room| {
            let before = room.len();
            Ok(before - standalone::simple_compress_into(&numbers, &config, room)?.len())
        })?;
    }
    Ok(())
}

fn decode_pieces<T: Word>(
    tensor: &Tensor<'_>,
    next: Next<'_, '_>,
    out: &mut [u8],
    value: impl Fn(T, &[u8]) -> T,
) -> Result<usize> {
    let piece_bytes = PIECE_ELEMS * T::BYTES;
    let mut numbers = vec![T::default(); PIECE_ELEMS.min(out.len() / T::BYTES)];
    let mut filled = 0;
    for (values, others) in out.chunks_mut(piece_bytes).zip(others(tensor).chunks(piece_bytes)) {
        let count = values.len() / T::BYTES;
        let progress = standalone::simple_decompress_into(next()?, &mut numbers[..count])?;
        let places = values.chunks_exact_mut(T::BYTES).zip(others.chunks_exact(T::BYTES));
        for ((place, other), number) in places.zip(&numbers) {
            value(*number, other).store(place);
        }
        filled += progress.n_processed * T::BYTES;
    }
    Ok(filled)
}
