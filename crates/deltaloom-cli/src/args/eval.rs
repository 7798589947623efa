//! The options of `deltaloom eval`.

use std::path::PathBuf;

use clap::{Args, Subcommand, value_parser};
use deltaloom_compute::Run;
use deltaloom_lm::layer::MemoryOptions;

use super::ThreadsArgument;
use crate::values::compute::{ActivationType, CacheType};
use crate::values::measure::parse_size;

/// Measure how well a language model predicts, with its weights packed.
///
/// MODEL is a folder of Hugging Face with config.json and weights in BF16, F16 or FP32, of the
/// families LLaMA, Mistral, Qwen2, Qwen3, Gemma 3, GPT-2 and OPT; a GGUF file of LLaMA, Mistral,
/// Qwen2 or Qwen3 in F32, F16, BF16, Q4_0 to Q8_0, Q2_K to Q6_K, IQ4_NL or IQ4_XS, with its own
/// tokenizer; or a container of a fine-tune, with --base. demo is a small bundled model, where no
/// file has that name. A folder is mapped: do not change its files while the command runs.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_long_help = "Examples:
  deltaloom eval perplexity demo demo:text               # a bundled model and a text for it
  deltaloom eval perplexity base/ held-out.u16
  deltaloom eval perplexity tuned.loom held-out.u16 --base base/
  deltaloom eval divergence base/ tuned.loom --tokens held-out.txt
  deltaloom eval choices base/ questions.jsonl --tenant tuned.loom"
)]
pub(crate) struct EvalArguments {
    #[command(subcommand)]
    pub(crate) command: EvalCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EvalCommand {
    Perplexity(PerplexityArguments),
    Divergence(DivergenceArguments),
    Choices(ChoicesArguments),
    Generate(AnswersArguments),
}

/// Compute the loss of a model on a text, in nats per token.
///
/// The ids are cut into windows. Each token is scored once, in the first window that has it, with
/// what comes before it there; the first token of a window is not scored if no other window has it.
/// With a stride below the window, windows overlap, and most tokens are scored with more before
/// them. The standard error comes from the differences between windows.
///
/// The number does not depend on threads, on --chunk, nor on how a fine-tune is stored.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom eval perplexity demo demo:text               # a bundled model and a text for it
  deltaloom eval perplexity demo demo:text --tenant demo:pirate
  deltaloom eval perplexity base/ held-out.u16
  deltaloom eval perplexity base/ held-out.u16 --window 256 --stride 128 --json
  deltaloom eval perplexity base/ held-out.u16 --tenant tuned.loom
  deltaloom eval perplexity tuned.loom held-out.u16 --base base/ --kv f32")]
pub(crate) struct PerplexityArguments {
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    /// A text file; or token ids: a file of little-endian 16-bit (.u16) or 32-bit (.u32) numbers
    #[arg(value_name = "TEXT")]
    pub(crate) tokens: PathBuf,
    /// Tokens of a window; default: what the model was trained for, at most 1024
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(2..=16_777_216))]
    pub(crate) window: Option<u32>,
    /// From the start of a window to that of the next; default: the window, so that none overlap
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(crate) stride: Option<u32>,
    /// Use only the first N ids
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(2..))]
    pub(crate) limit: Option<u64>,
    /// Tokens of a window that are computed together
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = value_parser!(u32).range(1..=65_536))]
    pub(crate) chunk: u32,
    #[command(flatten)]
    pub(crate) computing: ComputingArguments,
    #[command(flatten)]
    pub(crate) kv_file: KvFileArguments,
    /// Print everything as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A model, or a fine-tune of it.
#[derive(Debug, Args)]
pub(crate) struct ModelArguments {
    /// Model: a folder, a GGUF file, or a container of a fine-tune
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// Folder of the base of a container, or of a student of a fine-tune
    #[arg(long, value_name = "FOLDER")]
    pub(crate) base: Option<PathBuf>,
    /// Compute a fine-tune of MODEL instead: its container, or a student of it that has MODEL as
    /// its base
    #[arg(long, value_name = "FILE", conflicts_with = "base")]
    pub(crate) tenant: Option<PathBuf>,
}

/// Where keys and values are.
#[derive(Debug, Args)]
pub(crate) struct KvFileArguments {
    /// Keep keys and values in this file, which must not exist and goes at the end
    #[arg(long = "kv-file", value_name = "FILE")]
    pub(crate) path: Option<PathBuf>,
    /// With --kv-file: how much of them stays in memory
    #[arg(long = "kv-memory", value_name = "BYTES", default_value = "64MB", requires = "path", value_parser = parse_size)]
    pub(crate) memory_bytes: u64,
}

/// How a model is computed.
#[derive(Debug, Args)]
pub(crate) struct ComputingArguments {
    /// Data type of stored keys and values
    #[arg(long, value_enum, value_name = "DTYPE", default_value_t = CacheType::Bf16)]
    kv: CacheType,
    /// Data type of activations that are multiplied by BF16 weights
    #[arg(long, value_enum, value_name = "DTYPE", default_value_t = ActivationType::F32)]
    activations: ActivationType,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
}

impl ComputingArguments {
    /// How keys and values are stored.
    pub(crate) fn memory(&self) -> MemoryOptions {
        MemoryOptions::default().with_kv(self.kv.kv_type())
    }

    /// How products are computed.
    pub(crate) fn run(&self) -> Run<'static> {
        Run::new(self.activations.mode())
    }
}

/// Compute how far a model is from a base: Kullback-Leibler divergence on a text.
///
/// STUDENT is a container of a fine-tune of BASE, a folder or a GGUF file with the same token ids,
/// or BASE again. Both are computed at once, so no file of logits is needed. Besides the
/// divergence, in nats, the changes of probabilities of the tokens of the text are listed, how
/// often both have the same most probable token, and the ratio of perplexities.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom eval divergence demo demo:pirate --tokens demo:text   # bundled
  deltaloom eval divergence base/ tuned.loom --tokens held-out.txt
  deltaloom eval divergence base/ quantised.gguf --tokens held-out.txt
  deltaloom eval divergence tuned/ student/ --base base/ --tokens held-out.txt
  deltaloom eval divergence base/ tuned.loom --tokens held-out.u16 --limit 10000 --json")]
pub(crate) struct DivergenceArguments {
    /// Model: a folder or a GGUF file
    #[arg(value_name = "BASE")]
    pub(crate) base: PathBuf,
    /// Container of a fine-tune of it, or another model with the same token ids
    #[arg(value_name = "STUDENT")]
    pub(crate) student: PathBuf,
    /// Folder of the base of a student of a fine-tune (`shrink run --base`)
    #[arg(long = "base", value_name = "FOLDER")]
    pub(crate) base_of_student: Option<PathBuf>,
    /// A text file; or token ids: a file of little-endian 16-bit (.u16) or 32-bit (.u32) numbers
    #[arg(long, value_name = "TEXT")]
    pub(crate) tokens: PathBuf,
    /// Tokens of a window; windows do not overlap, and the first token of each is not scored
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = value_parser!(u32).range(2..=16_777_216))]
    pub(crate) window: u32,
    /// Use only the first N ids
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(2..))]
    pub(crate) limit: Option<u64>,
    #[command(flatten)]
    pub(crate) computing: ComputingArguments,
    /// Print everything as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Let a model choose answers: the choice that is most probable after the question.
///
/// FILE is one of:
///
/// - JSON lines with a context (or question), choices, and an answer: a number from 0, a letter, or
///   the text of a choice;
///
/// - a folder of CSV files, or one, as MMLU has them;
///
/// - a TSV file as GLUE has them: CoLA, MNLI, MRPC, QNLI, QQP, RTE, SST-2 or WNLI.
///
/// acc compares sums of log-probabilities, and acc_norm the sums for each character of a choice.
/// Both have an interval of 95 % (Wilson). From fewer than 500 items they are a sample, not a
/// score.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom eval choices demo demo:questions             # bundled
  deltaloom eval choices base/ questions.jsonl
  deltaloom eval choices base/ mmlu/ --shots 5 --tenant tuned.loom --json
  deltaloom eval choices tuned.loom SST-2/dev.tsv --base base/")]
pub(crate) struct ChoicesArguments {
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    /// Questions
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// For MMLU: solved questions before each, from its folder dev
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = value_parser!(u8).range(..=64))]
    pub(crate) shots: u8,
    /// Use only the first N questions
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    #[command(flatten)]
    pub(crate) computing: ComputingArguments,
    /// Print everything as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Let a model write answers that are numbers, and count the right ones.
///
/// FILE has lines as GSM8K has them: {"question": .., "answer": ".. #### 42"}. An answer is right
/// strictly if its first number behind #### is, and flexibly if its last number is. From fewer than
/// 500 problems the shares are a sample, not a score.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom eval generate demo demo:problems             # bundled
  deltaloom eval generate base/ test.jsonl --examples train.jsonl --shots 5
  deltaloom eval generate base/ test.jsonl --tenant tuned.loom --limit 100 --json")]
pub(crate) struct AnswersArguments {
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    /// Problems
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Solved problems to show before each
    #[arg(long, value_name = "FILE")]
    pub(crate) examples: Option<PathBuf>,
    /// Number of solved problems to show
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = value_parser!(u8).range(1..=64), requires = "examples")]
    pub(crate) shots: u8,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = value_parser!(u32).range(1..=65_536))]
    pub(crate) max_tokens: u32,
    /// Use only the first N problems
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    #[command(flatten)]
    pub(crate) computing: ComputingArguments,
    /// Print everything as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
