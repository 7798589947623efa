//! The program `xtask`: makes the generated files of this repository, or checks them with
//! `--check`. The library does the work.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use xtask::{
    Mode, api, assets, breakdown, cli_reference, comments, corpus, golden, history, instructions, merges,
    readme, rooms, series_scale, sizes, wire,
};

/// Makes the generated files of this repository; with --check, only reports whether they are up to
/// date.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add missing golden containers; existing ones are never changed
    Golden(CheckArgument),
    /// Check that imports between crates and rooms follow the order in ARCHITECTURE.md
    Rooms(CheckArgument),
    /// Check that comments are at most 100 columns wide
    Comments(CheckArgument),
    /// Record the packed sizes of the lm12m pairs and the demo weights
    Sizes(DataArguments),
    /// Write the table of ratios in the README from the recorded sizes
    ReadmeNumbers(CheckArgument),
    /// Write docs/api.md from the routes of the server
    Api(CheckArgument),
    /// Write docs/cli.md from the definitions behind --help
    CliReference(CheckArgument),
    /// Cut the demo weights from lm12m
    Assets(DataArguments),
    /// Make the seeds of the fuzz targets from the golden containers
    Corpus(CheckArgument),
    /// Count the instructions per element of the kernels with valgrind
    Instructions(CheckArgument),
    /// Sample the processor time of each stage of pack and unpack with Linux perf
    Breakdown(BreakdownArguments),
    /// Merge the lm12m models by common rules, pack the merges against the models, and print their
    /// sizes
    Merges(DataArgument),
    /// Count the requests of adding, listing and restoring as a series grows
    SeriesScale {
        /// Number of steps to add; from 10,000 on, the page and the picture are written
        #[arg(long, value_name = "N", default_value_t = 10_040)]
        steps: u64,
    },
    /// Pack a series step by step, with and without histories, and print the sizes of the steps
    History(HistoryArguments),
    /// Print what a training step takes in the formats that steps are sent in, and in a container
    Wire(WireArguments),
    /// Pack the lm12m pairs into a folder, with a manifest for the Python reader
    Pairs(PairsArguments),
}

#[derive(Debug, Args)]
struct CheckArgument {
    /// Change nothing; exit code 1 if something would change
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Args)]
struct WireArguments {
    /// The weights before the step, a safetensors file
    base: PathBuf,
    /// The weights after it, with the same header
    step: PathBuf,
    /// Percentages of changed elements; fewer changes than the step has are drawn from it
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [3.0, 1.0, 0.05])]
    changed: Vec<f64>,
}

#[derive(Debug, Args)]
struct DataArguments {
    #[command(flatten)]
    check: CheckArgument,
    #[command(flatten)]
    data: DataArgument,
}

#[derive(Debug, Args)]
struct DataArgument {
    /// Folder that holds lm12m/
    #[arg(long = "data", env = "DELTALOOM_DATA", value_name = "DIR", default_value = "../shared/data")]
    folder: PathBuf,
}

#[derive(Debug, Args)]
struct PairsArguments {
    /// Folder for the containers
    target: PathBuf,
    #[command(flatten)]
    data: DataArgument,
}

#[derive(Debug, Args)]
struct HistoryArguments {
    /// Folder with one directory per step, as made by `just make-series`
    folder: PathBuf,
    /// Maximum number of steps that a step depends on; the next one is a keyframe
    #[arg(long, value_name = "N", default_value_t = 9)]
    chain: usize,
    /// Use every Nth step
    #[arg(long, value_name = "N", default_value_t = 1)]
    stride: usize,
    /// Number of steps to pack; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    steps: usize,
    /// log2 of the number of elements per chunk
    #[arg(long, value_name = "N", default_value_t = 17)]
    chunk_log2: u8,
    /// Pack against plain files instead of containers, which is faster
    #[arg(long)]
    plain: bool,
    /// Keep the containers in this folder
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct BreakdownArguments {
    /// Number of runs of each command
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    #[command(flatten)]
    data: DataArgument,
}

impl CheckArgument {
    fn mode(&self) -> Mode {
        if self.check { Mode::Check } else { Mode::Write }
    }
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Golden(arguments) => golden::run(arguments.mode()),
        Command::Rooms(_) => rooms::run(),
        Command::Comments(_) => comments::run(),
        Command::Sizes(arguments) => sizes::run(arguments.check.mode(), &arguments.data.folder),
        Command::ReadmeNumbers(arguments) => readme::run(arguments.mode()),
        Command::CliReference(arguments) => cli_reference::run(arguments.mode()),
        Command::Api(arguments) => api::run(arguments.mode()),
        Command::Assets(arguments) => assets::run(arguments.check.mode(), &arguments.data.folder),
        Command::Corpus(arguments) => corpus::run(arguments.mode()),
        Command::Instructions(arguments) => instructions::run(arguments.mode()),
        Command::Breakdown(arguments) => breakdown::run(arguments.runs, &arguments.data.folder),
        Command::Merges(arguments) => merges::run(&arguments.folder),
        Command::SeriesScale { steps } => series_scale::run(steps),
        Command::History(HistoryArguments { folder, chain, stride, steps, chunk_log2, plain, keep }) => {
            let keep = keep.as_deref();
            history::run(&history::Series { folder: &folder, chain, stride, steps, chunk_log2, plain, keep })
        }
        Command::Wire(arguments) => wire::run(&arguments.base, &arguments.step, &arguments.changed),
        Command::Pairs(arguments) => sizes::write_pairs(&arguments.target, &arguments.data.folder),
    }
}
