//! One module per subcommand. They do not import each other.

#[cfg(feature = "lab")]
pub(crate) mod bench;
pub(crate) mod cat;
#[cfg(feature = "demo")]
pub(crate) mod demo;
pub(crate) mod diff;
#[cfg(feature = "compute")]
pub(crate) mod estimate;
#[cfg(feature = "compute")]
pub(crate) mod eval;
#[cfg(feature = "compute")]
pub(crate) mod generate;
pub(crate) mod help;
pub(crate) mod inspect;
#[cfg(feature = "lab")]
pub(crate) mod lab;
pub(crate) mod lineage;
pub(crate) mod pack;
pub(crate) mod series;
#[cfg(feature = "serve")]
pub(crate) mod serve;
#[cfg(feature = "shrink")]
pub(crate) mod shrink;
pub(crate) mod unpack;
pub(crate) mod verify;
