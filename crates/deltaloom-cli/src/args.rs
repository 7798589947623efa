//! All commands and options: the one place where flags are defined.

#[cfg(feature = "demo")]
pub(crate) mod demo;
#[cfg(feature = "compute")]
pub(crate) mod estimate;
#[cfg(feature = "lab")]
pub(crate) mod lab;
#[cfg(feature = "report")]
pub(crate) mod page;
pub(crate) mod series;

use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

#[cfg(feature = "lab")]
use crate::values::bench::Row;
use crate::values::{self, Color, Preset, ProgressStyle, Rows, parse_pair, parse_rows};

/// Store fine-tuned models as exact differences to their base.
///
/// A model is packed against a base that its reader has already, and every file of it comes back
/// byte for byte. Models are safetensors files, or folders with them.
#[derive(Debug, Parser)]
#[command(name = "deltaloom", version, max_term_width = 110)]
#[command(after_help = "Examples:
  deltaloom pack tuned.safetensors --base base.safetensors -o tuned.loom
  deltaloom unpack tuned.loom --base base.safetensors -o tuned.safetensors
  deltaloom diff base.safetensors tuned.safetensors

`deltaloom COMMAND --help` has more of each command; README.md and docs/cli.md come with the source.")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) global: GlobalArguments,
}

/// The command line, with the exit codes in the help of every command.
pub(crate) fn command() -> clap::Command {
    fn with_codes(command: clap::Command) -> clap::Command {
        let help = match command.get_after_long_help() {
            Some(examples) => format!("{examples}\n\n{EXIT_CODES}"),
            None => EXIT_CODES.to_owned(),
        };
        command.after_long_help(help).mut_subcommands(with_codes)
    }
    with_codes(Arguments::command())
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 the answer is no; 2 refused (usage, base, input or target); 3 a named file or object is not there or cannot be read; \
4 cannot write; 5 a store cannot be reached or denies access; 130 or 143 stopped by a signal";

/// How the program talks, whatever the command.
#[derive(Debug, Args, Default)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArguments {
    /// Print results, warnings and errors only: no summary and no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Log what is done to standard error; -vv also logs choices, -vvv everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// When to use colours on standard error
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t)]
    pub(crate) color: Color,
    /// How to show progress on standard error: a bar (on a terminal only), lines of JSON, or not at
    /// all
    #[arg(long, global = true, value_enum, value_name = "HOW", default_value_t)]
    pub(crate) progress: ProgressStyle,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Pack(PackArguments),
    Unpack(UnpackArguments),
    Inspect(InspectArguments),
    Verify(VerifyArguments),
    Diff(DiffArguments),
    Lineage(LineageArguments),
    Cat(CatArguments),
    #[cfg(feature = "lab")]
    Bench(BenchArguments),
    #[cfg(feature = "compute")]
    Estimate(estimate::EstimateArguments),
    Series(series::SeriesArguments),
    #[cfg(feature = "lab")]
    Lab(lab::LabArguments),
    #[cfg(feature = "demo")]
    Demo(demo::DemoArguments),
    Completions(CompletionsArguments),
    Man(ManArguments),
}

/// Pack a checkpoint, exactly, as its difference to what the reader already has.
///
/// Each tensor is predicted from the base that costs least (or from another tensor of the checkpoint, or not at all), and only the residual is stored.
/// Without --base the checkpoint is packed stand-alone.
///
/// With --base-dir the best base is looked for among the files of a folder: each is compared by samples, and a table says how near it is. If none is near enough, nothing is
/// packed.
///
/// The container names the bases that it takes tensors from, so that a reader finds them. Of a
/// relative path the name has the last two parts, of any other the last one; a snapshot in a cache
/// of a hub is called org/model@revision. --base-name gives another name, --meta adds texts, and
/// --no-identity leaves all of that out.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom pack tuned.safetensors --base base.safetensors -o tuned.loom
  deltaloom pack ./tuned-model --base ./base-model -o tuned.loom --json
  deltaloom pack step3.safetensors --base base.safetensors --base step2.loom -o step3.loom
  deltaloom pack merged.safetensors --base base.safetensors --adapter ./lora -o merged.loom
  deltaloom pack ./tuned --base ./llama --base-name org/llama@5f0b -o tuned.loom
  deltaloom pack tuned.safetensors --base-dir ./models -o tuned.loom
  deltaloom pack tuned.safetensors --base-dir ./models --dry-run
  deltaloom pack model.safetensors -o model.loom")]
pub(crate) struct PackArguments {
    /// A .safetensors file, or a directory with shards and small files
    #[arg(value_name = "TUNED")]
    pub(crate) checkpoint: PathBuf,
    #[command(flatten)]
    pub(crate) bases: BaseArguments,
    /// Pack against the best base in this folder and those inside it, instead of against given ones
    #[arg(long, value_name = "MODELS", conflicts_with_all = ["paths", "adapters"])]
    pub(crate) base_dir: Option<PathBuf>,
    /// With --base-dir: only say how near each base is. Exit code 1 means that none is near enough
    #[arg(long, requires = "base_dir")]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) identity: IdentityArguments,
    /// Where to write the container; `-` is standard output [default: the checkpoint's name with
    /// .loom, beside it]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// How much time packing may take
    #[arg(long, value_enum, default_value_t = Preset::Default)]
    pub(crate) preset: Preset,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print the report as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// Replace an existing output
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Restore the files of a container, byte for byte.
///
/// The result is checked against the digests in the container before it gets its name.
///
/// With --in-place the base file itself becomes the fine-tune and only chunks that change are written. It is checked first that every tensor that changes will
/// come out with its digest; of the others only places and sizes are compared. Doing it again writes nothing. Stopped in the middle, even by a power failure, the
/// same command goes on where it stopped, with the journal .NAME.loom-journal beside the file. Until then the file is neither base nor fine-tune, and nobody else may
/// use it.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom unpack tuned.loom --base base.safetensors -o tuned.safetensors
  deltaloom unpack tuned.loom --base ./base-model -o ./tuned-model --overwrite
  deltaloom unpack tuned.loom --base-dir ~/.cache/huggingface -o tuned.safetensors
  deltaloom unpack tuned.loom --in-place model.safetensors
  deltaloom unpack step8.loom --in-place /dev/shm/policy.safetensors --trust-base")]
pub(crate) struct UnpackArguments {
    /// The container
    #[arg(value_name = "FILE.loom")]
    pub(crate) container: PathBuf,
    #[command(flatten)]
    pub(crate) bases: BaseArguments,
    /// Look in this folder and those inside it for bases that are not given; a cache of a hub will
    /// do
    #[arg(long, value_name = "MODELS", conflicts_with = "in_place")]
    pub(crate) base_dir: Option<PathBuf>,
    /// File or directory to restore, as it was packed; `-` is standard output, for a single file
    /// [default: the container's name without .loom, beside it]
    #[arg(short, long, value_name = "OUT")]
    pub(crate) output: Option<PathBuf>,
    /// Change this base, a .safetensors file, into the fine-tune; --base then names other bases, if there are any
    #[arg(long, value_name = "BASE", conflicts_with = "output")]
    pub(crate) in_place: Option<PathBuf>,
    /// With --in-place: check also the tensors that do not change, which reads the whole file
    #[arg(long, requires = "in_place", conflicts_with_all = ["output", "trust_base"])]
    pub(crate) check_all: bool,
    /// With --in-place: check one small tensor of the base only, and no result. A base that is wrong elsewhere is ruined
    #[arg(long, requires = "in_place", conflicts_with = "output")]
    pub(crate) trust_base: bool,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print a report as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// Replace the output's files and no others; with --in-place: change the file also if it is a
    /// link or has hard links
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Describe a container without its base and without decoding: sizes, bases, texts.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom inspect tuned.loom --tensors
  deltaloom inspect tuned.loom --json | jq .ratio")]
pub(crate) struct InspectArguments {
    /// The container
    #[arg(value_name = "FILE.loom")]
    pub(crate) container: PathBuf,
    /// A line for every tensor
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Print everything as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Check a container: every checksum; with its bases (or when it needs none) also the digest of every decoded tensor.
///
/// Exit code 1 means that something is wrong.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom verify tuned.loom
  deltaloom verify tuned.loom --base base.safetensors --json
  deltaloom verify tuned.loom --base-dir ./models")]
pub(crate) struct VerifyArguments {
    /// The container
    #[arg(value_name = "FILE.loom")]
    pub(crate) container: PathBuf,
    #[command(flatten)]
    pub(crate) bases: BaseArguments,
    /// Look in this folder and those inside it for bases that are not given; a cache of a hub will
    /// do
    #[arg(long, value_name = "MODELS")]
    pub(crate) base_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Compare two checkpoints tensor by tensor: changed weights, distances in ULPs, relative L2; the
/// last line has the total.
///
/// Exit code 1 means that they differ. Files that are no weights are compared too, but the total
/// leaves them out.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom diff base.safetensors tuned.safetensors
  deltaloom diff base.safetensors tuned.loom --base base.safetensors
  deltaloom diff ./base-model ./tuned-model --json | jq .total")]
pub(crate) struct DiffArguments {
    /// The first checkpoint: a file, a directory, or a container
    pub(crate) a: PathBuf,
    /// The second checkpoint
    pub(crate) b: PathBuf,
    #[command(flatten)]
    pub(crate) bases: BaseArguments,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Tell how the tensors of a checkpoint came from those of possible ancestors: identical, rounded, blended, low rank, sparse or dense change, or unrelated.
///
/// Each finding has its evidence: the share of elements that changed; the relative L2 of the change; or, where an operation explains everything, the residual, which is
/// about 1 when nothing but rounding is left.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom lineage tuned.safetensors base.safetensors
  deltaloom lineage merged.safetensors a.safetensors b.safetensors --tensors
  deltaloom lineage ./tuned-model ./base-model --json | jq .findings")]
pub(crate) struct LineageArguments {
    /// The checkpoint in question: a file, a directory, or a container that needs no base but the ancestors
    #[arg(value_name = "TUNED")]
    pub(crate) checkpoint: PathBuf,
    /// Checkpoints or containers that it may come from
    #[arg(value_name = "ANCESTOR", required = true)]
    pub(crate) ancestors: Vec<PathBuf>,
    /// A line for every tensor
    #[arg(long)]
    pub(crate) tensors: bool,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Write the raw bytes of one tensor, reading no more of the container than it needs.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom cat tuned.loom model.norm.weight --base base.safetensors > norm.bin
  deltaloom cat tuned.loom model.embed_tokens.weight --rows ..16 --base base.safetensors > rows.bin")]
pub(crate) struct CatArguments {
    /// The container
    #[arg(value_name = "FILE.loom")]
    pub(crate) container: PathBuf,
    /// Name of the tensor, or path of a small file
    pub(crate) tensor: String,
    /// Only these rows (of the first dimension), B not included; A.. goes to the end, ..B begins at
    /// the first
    #[arg(long, value_name = "A..B", value_parser = parse_rows)]
    pub(crate) rows: Option<Rows>,
    #[command(flatten)]
    pub(crate) bases: BaseArguments,
    /// Look in this folder and those inside it for bases that are not given; a cache of a hub will
    /// do
    #[arg(long, value_name = "MODELS")]
    pub(crate) base_dir: Option<PathBuf>,
    /// Where to write the bytes; `-` is standard output, which must not be a terminal
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub(crate) output: PathBuf,
    /// Replace an existing output
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[cfg(feature = "lab")]
/// Measure size and speed on your own weights, beside other coders on the same bytes, all in memory.
///
/// The rows take turns: every round runs each of them once, encoding and then decoding. A first round is not counted; in it, every row must give back every
/// byte. Nothing is written. All that is measured lies in memory: five times the size of the checkpoint, its bases, and 300 MB; that much must be available.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom bench tuned.safetensors --base base.safetensors
  deltaloom bench ./tuned-model --base ./base-model --threads 0 --rounds 9
  deltaloom bench model.safetensors --only deltaloom --only zstd-3 --only memcpy
  deltaloom bench tuned.safetensors --base base.safetensors --json | jq .rows")]
pub(crate) struct BenchArguments {
    /// A .safetensors file, or a directory with shards and small files
    #[arg(value_name = "FILE")]
    pub(crate) checkpoint: PathBuf,
    /// What the reader already has: a .safetensors file or a directory; may be repeated, in any order
    #[arg(short = 'b', long = "base", value_name = "BASE")]
    pub(crate) bases: Vec<PathBuf>,
    /// Threads that deltaloom uses; 0 means one per core. The others use one
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = values::threads())]
    pub(crate) threads: usize,
    /// Rounds that are counted
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = values::measure::rounds())]
    pub(crate) rounds: usize,
    /// Only this row; may be repeated
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) only: Vec<Row>,
    /// How much time packing may take
    #[arg(long, value_enum, default_value_t = Preset::Default)]
    pub(crate) preset: Preset,
    /// Print sizes and the seconds of every round as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print a script that completes commands and options in a shell.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom completions bash > ~/.local/share/bash-completion/completions/deltaloom
  deltaloom completions zsh > \"${fpath[1]}/_deltaloom\"
  deltaloom completions fish > ~/.config/fish/completions/deltaloom.fish")]
pub(crate) struct CompletionsArguments {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// Print the manual page of the program or of one command.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom man > deltaloom.1
  deltaloom man series add | man -l -")]
pub(crate) struct ManArguments {
    /// The command, such as `pack` or `series add`
    #[arg(value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct BaseArguments {
    /// What the reader already has: a .safetensors file, a directory, or a container; may be repeated, in any order
    #[arg(short = 'b', long = "base", value_name = "BASE")]
    pub(crate) paths: Vec<PathBuf>,
    /// A LoRA adapter that was merged into a base: a directory with peft's adapter_config.json and adapter_model.safetensors
    #[arg(long = "adapter", value_name = "DIR")]
    pub(crate) adapters: Vec<PathBuf>,
}

impl BaseArguments {
    /// Whether nothing is given.
    pub(crate) fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.adapters.is_empty()
    }
}

/// What a container says of itself.
#[derive(Debug, Args)]
pub(crate) struct IdentityArguments {
    /// What the container calls a base: the first for the first --base, and so on; or for the one
    /// that --base-dir finds
    #[arg(long = "base-name", value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) base_names: Vec<String>,
    /// A text for the container, which `inspect` shows; may be repeated
    #[arg(long = "meta", value_name = "KEY=TEXT", value_parser = parse_pair)]
    pub(crate) texts: Vec<(String, String)>,
    /// Leave names and digests of the bases out of the container
    #[arg(long, conflicts_with_all = ["base_names", "texts"])]
    pub(crate) no_identity: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ThreadsArgument {
    /// Threads to use; 0 means one per core. The result does not depend on it
    #[arg(long = "threads", value_name = "N", default_value_t = 0, value_parser = values::threads())]
    pub(crate) count: usize,
}
