//! The options of `deltaloom lab`.

pub(crate) mod layer;
pub(crate) mod matmul;
pub(crate) mod mixed;
pub(crate) mod positions;
pub(crate) mod serve;
pub(crate) mod simhash;
pub(crate) mod tenants;
pub(crate) mod tpde;

use clap::{Args, Subcommand};

use super::page::PageArguments;

/// Compare other methods for storing and multiplying weights with deltaloom's own.
///
/// These are experiments. Nothing here is needed to pack or unpack.
///
/// Some of them map the files of models: do not change those files while a command runs.
#[derive(Debug, Args)]
pub(crate) struct LabArguments {
    #[command(subcommand)]
    pub(crate) experiment: Experiment,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Experiment {
    Layer(layer::LayerArguments),
    Matmul(matmul::MatmulArguments),
    Mixed(mixed::MixedArguments),
    Positions(positions::PositionsArguments),
    Serve(serve::ServeArguments),
    #[command(name = "simhash")]
    SimHash(Box<simhash::SimHashArguments>),
    Tenants(Box<tenants::TenantsArguments>),
    Tpde(tpde::TpdeArguments),
}

/// How an experiment reports its results.
#[derive(Debug, Args)]
pub(crate) struct ReportArguments {
    /// Print the report as JSON on standard output
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// Print the rows as CSV on standard output
    #[arg(long)]
    pub(crate) csv: bool,
    #[command(flatten)]
    pub(crate) page: PageArguments,
}
