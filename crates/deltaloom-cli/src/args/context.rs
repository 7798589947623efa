//! The options of `deltaloom context`.

use std::path::PathBuf;

use clap::{Args, Subcommand, value_parser};

use super::eval::{ComputingArguments, KvFileArguments, ModelArguments};
use super::{BaseArguments, ThreadsArgument};
use crate::values::compute::{FamilyName, TaskName};

/// Change what a model attends to, without training, and measure what that gains.
///
/// Weights never change. What a method gains is always measured against cutting the text to the
/// length that the model was trained for, which costs nothing.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_long_help = "Examples:
  deltaloom context layers base/ tuned.loom
  deltaloom context test base/ --recipe long.yaml --text held-out.u16 --lengths 256,1024
  deltaloom context apply base/ --recipe long.yaml -o longer.loom
  deltaloom context limit base/ --recipe long.yaml --memory 8G"
)]
pub(crate) struct ContextArguments {
    #[command(subcommand)]
    pub(crate) command: ContextCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    Layers(LayersArguments),
    Test(Box<TestArguments>),
    Apply(ApplyArguments),
    Limit(LimitArguments),
}

/// Show how far each layer moved from a base to a fine-tune.
///
/// The measure is the L2 norm of the change over that of the base: of all matrices of a layer, and
/// of those of queries and keys alone. No model runs. The ranking says which layers moved least; it
/// does not say that they need no positions.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom context layers base.safetensors tuned.safetensors
  deltaloom context layers ./base-model tuned.loom
  deltaloom context layers base/ tuned/ --json | jq .by_all")]
pub(crate) struct LayersArguments {
    /// The base: a file, a folder or a container
    #[arg(value_name = "BASE")]
    pub(crate) first: PathBuf,
    /// The fine-tune: a file, a folder, or a container of BASE or of a --base
    #[arg(value_name = "TUNED")]
    pub(crate) tuned: PathBuf,
    #[command(flatten)]
    pub(crate) bases: BaseArguments,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Measure what recipes gain over cutting the text to the trained length.
///
/// All are measured on the same tokens: the model as it is, each recipe, and truncation, which is
/// the model as it is with only the last tokens before each one: windows of the trained length,
/// moved by half of it. A gain is the loss of truncation less that of the recipe, behind the
/// trained length, with an interval of 95 % over the sequences. In words: a recipe extends if its
/// interval is above 0, degrades if it is below 0, is harmless if it contains 0 and is narrow (0.01
/// nats to either side), and else it is unclear.
///
/// Besides, it prints what a recipe costs in texts of the trained length, what an earlier copy of
/// a passage gains, the bytes of keys and values, and the speed, in turns with the model as it is.
/// On running text a model that hardly uses far tokens can only be shown to be harmed or not.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom context test demo --text demo:text --lengths 64,128 --sequences 4   # bundled
  deltaloom context test base/ --recipe long.yaml --text held-out.u16 --lengths 256,1024
  deltaloom context test base/ --recipe a.yaml --recipe b.yaml --text held-out.txt --lengths 1024 \\
      --sequences 12 --kv f32 --report context.html --json")]
pub(crate) struct TestArguments {
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    /// What tokens attend to, as YAML (docs/context.md); may be repeated
    #[arg(long = "recipe", value_name = "RECIPE")]
    pub(crate) recipes: Vec<PathBuf>,
    /// A text file; or token ids: a file of little-endian 16-bit (.u16) or 32-bit (.u32) numbers
    #[arg(long, value_name = "TEXT")]
    pub(crate) text: PathBuf,
    /// Tokens of a sequence; several are separated by commas
    #[arg(long, value_name = "N,...", value_delimiter = ',', required = true, value_parser = value_parser!(u32).range(2..=16_777_216))]
    pub(crate) lengths: Vec<u32>,
    /// Sequences of each length, evenly spaced in the text
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = value_parser!(u32).range(1..=65_536))]
    pub(crate) sequences: u32,
    /// Passages of the probe of copies; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = value_parser!(u32).range(..=4096))]
    pub(crate) passages: u32,
    /// Plant facts in the text and ask for them, in as many texts as sequences
    #[arg(long, value_enum, value_name = "TASK")]
    pub(crate) retrieval: Option<TaskName>,
    /// Rounds of the timing; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = value_parser!(u32).range(..=1000))]
    pub(crate) rounds: u32,
    /// Tokens that the model was trained for, where config.json does not say it
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(2..=16_777_216))]
    pub(crate) trained: Option<u32>,
    /// Seed of intervals and passages
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Also write the results as one self-contained HTML page
    #[cfg(feature = "report")]
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
    /// Replace an existing page
    #[cfg(feature = "report")]
    #[arg(long, requires = "report")]
    pub(crate) overwrite: bool,
    #[command(flatten)]
    pub(crate) computing: ComputingArguments,
    #[command(flatten)]
    pub(crate) kv_file: KvFileArguments,
    /// Print everything as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Write a container that runs a model with a recipe.
///
/// The container has no weights: every tensor is that of the base. deltaloom_context.json in it has
/// the plan of every layer. Commands that open the container as a model, with --base, run that
/// plan, and `unpack` restores a folder of Hugging Face that they open, too. Other programs do not
/// know the plan. With --export, a folder is written in the words of transformers, or an error
/// lists what these cannot say.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom context apply base/ --recipe long.yaml -o longer.loom
  deltaloom eval perplexity longer.loom held-out.u16 --base base/
  deltaloom unpack longer.loom --base base/ -o longer/
  deltaloom context apply base/ --recipe llama3.yaml --export longer/ --as llama")]
pub(crate) struct ApplyArguments {
    /// Model: a folder of Hugging Face
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// What tokens attend to, as YAML (docs/context.md)
    #[arg(long, value_name = "RECIPE")]
    pub(crate) recipe: PathBuf,
    /// Container to write
    #[arg(short, long, value_name = "FILE.loom", required_unless_present = "export")]
    pub(crate) output: Option<PathBuf>,
    /// Folder to write that transformers reads, where it can compute the plan; it must not exist
    #[arg(long, value_name = "FOLDER", requires = "family")]
    pub(crate) export: Option<PathBuf>,
    /// With --export: the family of the folder
    #[arg(long = "as", id = "family", value_enum, value_name = "FAMILY", requires = "export")]
    pub(crate) family: Option<FamilyName>,
    /// Replace an existing output
    #[arg(long)]
    pub(crate) overwrite: bool,
    #[command(flatten)]
    pub(crate) computing: ComputingArguments,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Compute how many tokens fit in memory.
///
/// It is arithmetic: bytes of keys and values, which windows and chunks bound, and the end of a
/// table of positions. With --measure, sequences are computed as well, each in a process of its
/// own: their length doubles until one needs more memory in all, then the range is halved down to a
/// sixteenth. Linux tells the memory of a process; elsewhere only keys and values are limited. That
/// a number of tokens fits does not mean that the model makes use of them: `context test` measures
/// that.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom context limit base/ --memory 8G
  deltaloom context limit base/ --recipe long.yaml --memory 512M --kv f32 --json
  deltaloom context limit base/ --memory 2G --measure --up-to 16384")]
pub(crate) struct LimitArguments {
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    /// What tokens attend to, as YAML (docs/context.md)
    #[arg(long, value_name = "RECIPE")]
    pub(crate) recipe: Option<PathBuf>,
    /// Memory for keys and values; with --measure, also for all of a process
    #[arg(long, value_name = "BYTES", value_parser = crate::values::measure::parse_size)]
    pub(crate) memory: u64,
    /// Compute sequences as well, each in a process of its own
    #[arg(long)]
    pub(crate) measure: bool,
    /// With --measure: the most tokens of a sequence
    #[arg(long, value_name = "N", default_value_t = 32_768, requires = "measure", value_parser = value_parser!(u32).range(1..=16_777_216))]
    pub(crate) up_to: u32,
    /// Compute a sequence of this many tokens in this process, for --measure
    #[arg(long, value_name = "N", hide = true)]
    pub(crate) probe: Option<u32>,
    #[command(flatten)]
    pub(crate) computing: ComputingArguments,
    /// Print everything as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
