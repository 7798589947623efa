//! All commands and options: the one place where flags are defined.

#[cfg(feature = "compute")]
pub(crate) mod context;
#[cfg(feature = "demo")]
pub(crate) mod demo;
#[cfg(feature = "compute")]
pub(crate) mod estimate;
#[cfg(feature = "compute")]
pub(crate) mod eval;
#[cfg(feature = "compute")]
pub(crate) mod generate;
#[cfg(feature = "lab")]
pub(crate) mod lab;
#[cfg(feature = "report")]
pub(crate) mod page;
pub(crate) mod series;
#[cfg(feature = "serve")]
pub(crate) mod serve;
#[cfg(feature = "shrink")]
pub(crate) mod shrink;

use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use deltaloom::checkpoint::Exclude;

#[cfg(feature = "lab")]
use crate::values::bench::Row;
use crate::values::{self, Color, Preset, ProgressStyle, Rows, parse_pair, parse_rows};

/// Store fine-tuned models as exact differences from a base model.
///
/// A model is packed against a base that the recipient already has, and every file is restored byte
/// for byte. A model is a safetensors, GGUF or PyTorch file, or a folder of them.
#[derive(Debug, Parser)]
#[command(name = "deltaloom", version, max_term_width = 110)]
#[command(after_help = "Examples:
  deltaloom pack tuned.safetensors --base base.safetensors -o tuned.loom
  deltaloom unpack tuned.loom --base base.safetensors -o tuned.safetensors
  deltaloom diff base.safetensors tuned.safetensors

`deltaloom COMMAND --help` describes one command in full. README.md and docs/cli.md come with the source.")]
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
Exit codes: 0 success; 1 the answer is no; 2 refused (usage, base, input or output); \
3 a named file or object is missing or unreadable; 4 cannot write; \
5 an object store is unreachable or denies access; 130 or 143 stopped by a signal";

/// How the program talks, whatever the command.
#[derive(Debug, Args, Default)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArguments {
    /// Print only results, warnings and errors, no summary and no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Log each operation to standard error; -vv also logs decisions, -vvv everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// When to colour messages on standard error
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t)]
    pub(crate) color: Color,
    /// How to show progress on standard error
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
    Context(context::ContextArguments),
    #[cfg(feature = "compute")]
    Estimate(estimate::EstimateArguments),
    #[cfg(feature = "compute")]
    Eval(eval::EvalArguments),
    #[cfg(feature = "compute")]
    Generate(Box<generate::GenerateArguments>),
    #[cfg(feature = "serve")]
    Serve(Box<serve::ServeArguments>),
    Series(series::SeriesArguments),
    #[cfg(feature = "shrink")]
    Shrink(shrink::ShrinkArguments),
    #[cfg(feature = "lab")]
    Lab(lab::LabArguments),
    #[cfg(feature = "demo")]
    Demo(demo::DemoArguments),
    Completions(CompletionsArguments),
    Man(ManArguments),
}

/// Pack a checkpoint losslessly, as its difference from what the recipient already has.
///
/// Each tensor is predicted from a tensor of a base, or of the checkpoint itself, whichever makes
/// it smallest. Only the difference from that prediction is stored. Without --base, the checkpoint
/// is packed on its own.
///
/// --base-dir searches a folder for the best base: it compares samples of every file in it and
/// prints how close each one is. If none is close enough, nothing is packed.
///
/// A folder is packed with everything in it, and links are packed as the files that they lead to.
/// Left out, with a warning, are: folders named .git; pipes, sockets and devices; links that lead
/// nowhere, or to a folder that they are in; and blobs of a Hugging Face cache, which its snapshots
/// have under their names. What --exclude fits is left out, too.
///
/// The container records the names and digests of its bases, so that `unpack` can find them. By
/// default a name is the last part of the base's path, or the last two parts if the path is
/// relative; a snapshot in a Hugging Face cache is named org/model@revision. Use --base-name to set
/// another name, --meta to add texts, and --no-identity to record none of this.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom pack tuned.safetensors --base base.safetensors -o tuned.loom
  deltaloom pack ./tuned-model --base ./base-model -o tuned.loom --json
  deltaloom pack ./tuned-model --base ./base-model --exclude '*.pt' --exclude 'runs/**' -o tuned.loom
  deltaloom pack step3.safetensors --base base.safetensors --base step2.loom -o step3.loom
  deltaloom pack merged.safetensors --base base.safetensors --adapter ./lora -o merged.loom
  deltaloom pack ./tuned --base ./llama --base-name org/llama@5f0b -o tuned.loom
  deltaloom pack tuned.safetensors --base-dir ./models -o tuned.loom
  deltaloom pack tuned.safetensors --base-dir ./models --dry-run
  deltaloom pack model.safetensors -o model.loom")]
pub(crate) struct PackArguments {
    /// Checkpoint to pack: a .safetensors, .gguf, .bin, .pt or .pth file, or a folder of such and
    /// other files
    #[arg(value_name = "CHECKPOINT")]
    pub(crate) checkpoint: PathBuf,
    #[command(flatten)]
    pub(crate) exclude: ExcludeArgument,
    #[command(flatten)]
    pub(crate) bases: BaseArguments,
    /// Pack against the best base in this folder, searched recursively, instead of one named with
    /// --base
    #[arg(long, value_name = "MODELS", conflicts_with_all = ["paths", "adapters"])]
    pub(crate) base_dir: Option<PathBuf>,
    /// With --base-dir: only print how close each base is. Exit code 1 if none is close enough
    #[arg(long, requires = "base_dir")]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) identity: IdentityArguments,
    /// Container to write; `-` is standard output [default: the checkpoint's path, ending in .loom]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Trade packing time for size
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
/// The output appears under its name only after it has been checked against the digests in the
/// container.
///
/// With --in-place, the base file itself is turned into the fine-tune, and only the chunks that
/// change are written. First, every tensor that changes is decoded and checked against its digest;
/// for the other tensors, only position and size are compared. Running the command again writes
/// nothing. If it is interrupted, even by a power failure, rerun the same command to resume: it
/// keeps a journal, .NAME.loom-journal, next to the file. Until it has finished, the file is
/// neither the base nor the fine-tune and must not be used.
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
    /// Find bases that are not named with --base in this folder, searched recursively; a Hugging
    /// Face cache works
    #[arg(long, value_name = "MODELS", conflicts_with = "in_place")]
    pub(crate) base_dir: Option<PathBuf>,
    /// File or folder to restore, depending on what was packed; `-` is standard output (one file
    /// only) [default: the container's path without .loom]
    #[arg(short, long, value_name = "OUT")]
    pub(crate) output: Option<PathBuf>,
    /// Turn this base, a .safetensors file, into the fine-tune. Other bases, if any, are named with
    /// --base
    #[arg(long, value_name = "BASE", conflicts_with = "output")]
    pub(crate) in_place: Option<PathBuf>,
    /// With --in-place: also check the digests of tensors that do not change, which reads the whole
    /// file
    #[arg(long, requires = "in_place", conflicts_with_all = ["output", "trust_base"])]
    pub(crate) check_all: bool,
    /// With --in-place: skip full verification. Only one small tensor of the base is checked; if
    /// the base is wrong anywhere else, the file is destroyed
    #[arg(long, requires = "in_place", conflicts_with = "output")]
    pub(crate) trust_base: bool,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print the report as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// Replace existing files of the output, and no others. With --in-place: change the file even
    /// if it is a link or has hard links
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Describe a container: sizes, bases and texts.
///
/// Needs no base and decodes nothing.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom inspect tuned.loom --tensors
  deltaloom inspect tuned.loom --json | jq .ratio")]
pub(crate) struct InspectArguments {
    /// The container
    #[arg(value_name = "FILE.loom")]
    pub(crate) container: PathBuf,
    /// Also list every tensor
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Print everything as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Check a container for damage.
///
/// Every checksum is verified. With the bases, or if it needs none, every tensor is also decoded
/// and checked against its digest. Exit code 1 if anything is wrong.
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
    /// Find bases that are not named with --base in this folder, searched recursively; a Hugging
    /// Face cache works
    #[arg(long, value_name = "MODELS")]
    pub(crate) base_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Compare two checkpoints tensor by tensor: changed weights, distances in ULPs, relative L2.
///
/// The last line is the total over all weights. Files that are not weights are compared too, but
/// the total leaves them out. Exit code 1 if the checkpoints differ.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom diff base.safetensors tuned.safetensors
  deltaloom diff base.safetensors tuned.loom --base base.safetensors
  deltaloom diff ./base-model ./tuned-model --json | jq .total")]
pub(crate) struct DiffArguments {
    /// The first checkpoint: a file, a folder or a container
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

/// Find out how the tensors of a checkpoint were made from those of its ancestors.
///
/// A tensor is identical, rounded, blended, pieces of others (fused, split, transposed, with more
/// rows), a low-rank, sparse or dense change, or unrelated. Every finding comes with evidence: the
/// fraction of elements that changed, the relative L2 norm of the change, or, if an operation
/// explains the whole tensor, the residual: 0 when nothing is left, at most about 1 when only
/// rounding is.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom lineage tuned.safetensors base.safetensors
  deltaloom lineage merged.safetensors a.safetensors b.safetensors --tensors
  deltaloom lineage ./tuned-model ./base-model --json | jq .findings")]
pub(crate) struct LineageArguments {
    /// Checkpoint to explain: a file, a folder, or a container whose bases are among the ancestors
    #[arg(value_name = "CHECKPOINT")]
    pub(crate) checkpoint: PathBuf,
    /// Checkpoints or containers that it may have been made from
    #[arg(value_name = "ANCESTOR", required = true)]
    pub(crate) ancestors: Vec<PathBuf>,
    /// Also list every tensor
    #[arg(long)]
    pub(crate) tensors: bool,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Write the raw bytes of one tensor.
///
/// Reads and decodes only the parts of the container that hold it.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom cat tuned.loom model.norm.weight --base base.safetensors > norm.bin
  deltaloom cat tuned.loom model.embed_tokens.weight --rows ..16 --base base.safetensors > rows.bin")]
pub(crate) struct CatArguments {
    /// The container
    #[arg(value_name = "FILE.loom")]
    pub(crate) container: PathBuf,
    /// Name of the tensor, or path of a file that is not weights
    pub(crate) tensor: String,
    /// Only rows A to B of the first dimension, without B; A.. continues to the end, ..B starts at
    /// row 0
    #[arg(long, value_name = "A..B", value_parser = parse_rows)]
    pub(crate) rows: Option<Rows>,
    #[command(flatten)]
    pub(crate) bases: BaseArguments,
    /// Find bases that are not named with --base in this folder, searched recursively; a Hugging
    /// Face cache works
    #[arg(long, value_name = "MODELS")]
    pub(crate) base_dir: Option<PathBuf>,
    /// File to write; `-` is standard output, which must not be a terminal
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub(crate) output: PathBuf,
    /// Replace an existing output
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[cfg(feature = "lab")]
/// Measure size and speed on your own weights, next to other compressors.
///
/// The compressors take turns: in every round each of them encodes and then decodes the checkpoint
/// once. A warm-up round, which is not counted, checks that each one restores every byte. Nothing
/// is written to disk: everything runs in memory and needs about five times the size of the
/// checkpoint, plus the bases, plus 300 MB.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom bench tuned.safetensors --base base.safetensors
  deltaloom bench ./tuned-model --base ./base-model --threads 0 --rounds 9
  deltaloom bench model.safetensors --only deltaloom --only zstd-3 --only memcpy
  deltaloom bench tuned.safetensors --base base.safetensors --json | jq .rows")]
pub(crate) struct BenchArguments {
    /// Checkpoint to measure: a .safetensors, .gguf, .bin, .pt or .pth file, or a folder of such
    /// and other files
    #[arg(value_name = "CHECKPOINT")]
    pub(crate) checkpoint: PathBuf,
    /// A base that the recipient already has: a file or a folder, as the checkpoint; may be
    /// repeated, in any order
    #[arg(short = 'b', long = "base", value_name = "BASE")]
    pub(crate) bases: Vec<PathBuf>,
    /// Threads for deltaloom; 0 means one per core. The other compressors run on one thread
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = values::parse_threads, allow_negative_numbers = true)]
    pub(crate) threads: usize,
    /// Number of timed rounds, after one warm-up round
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = values::measure::parse_rounds)]
    pub(crate) rounds: usize,
    /// Measure only this row of the table; may be repeated
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) only: Vec<Row>,
    /// Trade packing time for size
    #[arg(long, value_enum, default_value_t = Preset::Default)]
    pub(crate) preset: Preset,
    /// Print sizes, and the times of every round in seconds, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print a shell script that completes commands and options.
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

/// Print the manual page of the program, or of one command.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom man > deltaloom.1
  deltaloom man series add | man -l -")]
pub(crate) struct ManArguments {
    /// A command, such as `pack` or `series add`
    #[arg(value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// What of a folder is not packed.
#[derive(Debug, Args)]
pub(crate) struct ExcludeArgument {
    /// Leave out the files and folders of the checkpoint that this pattern fits; may be repeated.
    /// `*` stands for any characters but `/`, `?` for one of them, and `**` for any characters. A
    /// pattern with `/` is one of paths in the checkpoint, another one of names in any folder
    #[arg(long = "exclude", id = "exclude", value_name = "GLOB")]
    pub(crate) patterns: Vec<Exclude>,
}

#[derive(Debug, Args)]
pub(crate) struct BaseArguments {
    /// A base that the recipient already has: a .safetensors, .gguf, .bin, .pt or .pth file, a
    /// folder or a container; may be repeated, in any order
    #[arg(short = 'b', long = "base", value_name = "BASE")]
    pub(crate) paths: Vec<PathBuf>,
    /// A LoRA adapter that was merged into a base: a PEFT folder with adapter_config.json and
    /// adapter_model.safetensors, or a .safetensors file of factors (lora_down, lora_up); may be
    /// repeated, in the order in which adapters were merged
    #[arg(long = "adapter", value_name = "PATH")]
    pub(crate) adapters: Vec<PathBuf>,
}

impl BaseArguments {
    /// Whether nothing is given.
    pub(crate) fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.adapters.is_empty()
    }
}

/// What a container records about its origin.
#[derive(Debug, Args)]
pub(crate) struct IdentityArguments {
    /// Name to record for a base; may be repeated, in the order of --base. With --base-dir, the
    /// name of the base that is found
    #[arg(long = "base-name", value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) base_names: Vec<String>,
    /// Text to record in the container, shown by `inspect`; may be repeated
    #[arg(long = "meta", value_name = "KEY=TEXT", value_parser = parse_pair)]
    pub(crate) texts: Vec<(String, String)>,
    /// Do not record names and digests of the bases
    #[arg(long, conflicts_with_all = ["base_names", "texts"])]
    pub(crate) no_identity: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ThreadsArgument {
    /// Number of threads; 0 means one per core. Does not affect the result
    #[arg(long = "threads", value_name = "N", default_value_t = 0, value_parser = values::parse_threads, allow_negative_numbers = true)]
    pub(crate) count: usize,
}
