//! Coders of gaps that only published methods use: Golomb and Elias codes.

mod bit_source;
pub(crate) mod elias;
pub(crate) mod golomb;
