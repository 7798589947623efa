//! Computing with weights in other forms than the one in which they are stored.
//! It packs nothing.

pub mod simhash;
