//! Published methods beside ours, for comparison on the same bytes.
//! Nothing here is used to pack a checkpoint.

mod clock;
pub mod positions;
pub mod simhash;
