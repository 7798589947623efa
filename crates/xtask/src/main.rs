//! The program `xtask`: makes the generated files of this repository, or checks them with `--check`.
//! The work is in the library.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use xtask::{
    Mode, assets, breakdown, cli_reference, comments, corpus, golden, history, instructions, merges, readme,
    rooms, series_scale, sizes,
};

/// Makes the generated files of this repository; with --check, only says whether they are as they would be made.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Golden containers: adds those that are missing, never touches one that is there
    Golden(CheckArgument),
    /// Whether imports between crates and rooms go down the order of ARCHITECTURE.md
    Rooms(CheckArgument),
    /// Whether comments are at most 100 columns wide
    Comments(CheckArgument),
    /// Packed sizes of the lm12m pairs and the demo weights
    Sizes(DataArguments),
    /// The table of ratios in the README, from the recorded sizes
    ReadmeNumbers(CheckArgument),
    /// docs/cli.md, from the definitions behind --help
    CliReference(CheckArgument),
    /// The demo weights, cut from lm12m
    Assets(DataArguments),
    /// Seeds of the fuzz targets, from the golden containers
    Corpus(CheckArgument),
    /// Instructions per element of the kernels, counted by valgrind
    Instructions(CheckArgument),
    /// Where the processor time of pack and unpack goes, sampled by Linux perf
    Breakdown(BreakdownArguments),
    /// Merge the lm12m models by usual rules, pack the merges against them, and say how small they become
    Merges(DataArgument),
    /// Count what adding, listing and restoring ask of a store as a series grows
    SeriesScale {
        /// Steps to add; the page and the picture are written from 10,000 on
        #[arg(long, value_name = "N", default_value_t = 10_040)]
        steps: u64,
    },
    /// Pack a series step by step with and without histories, and say how small the steps become
    History(HistoryArguments),
    /// Pack the lm12m pairs into a folder, with a manifest for the Python reader
    Pairs(PairsArguments),
}

#[derive(Debug, Args)]
struct CheckArgument {
    /// Change nothing; exit code 1 when something would change
    #[arg(long)]
    check: bool,
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
    /// The folder that holds lm12m/
    #[arg(long = "data", env = "DELTALOOM_DATA", value_name = "DIR", default_value = "../shared/data")]
    folder: PathBuf,
}

#[derive(Debug, Args)]
struct PairsArguments {
    /// Where to write the containers
    target: PathBuf,
    #[command(flatten)]
    data: DataArgument,
}

#[derive(Debug, Args)]
struct HistoryArguments {
    /// Folder with a directory for each step, as `just make-series` makes it
    folder: PathBuf,
    /// Most steps that a step rests on; the next one then is a keyframe
    #[arg(long, value_name = "N", default_value_t = 9)]
    chain: usize,
    /// Take every so manieth step
    #[arg(long, value_name = "N", default_value_t = 1)]
    stride: usize,
    /// Steps to pack; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    steps: usize,
    /// log2 of the elements of a chunk
    #[arg(long, value_name = "N", default_value_t = 17)]
    chunk_log2: u8,
    /// Rest on the steps as they are and not on their containers, which is faster
    #[arg(long)]
    plain: bool,
    /// Leave the containers in this folder
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct BreakdownArguments {
    /// Runs of each command
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
        Command::Pairs(arguments) => sizes::write_pairs(&arguments.target, &arguments.data.folder),
    }
}
