//! The options of `deltaloom generate`.

use clap::{Args, value_parser};

use super::eval::{ComputingArguments, KvFileArguments, ModelArguments};

/// Let a language model continue a text, with its weights packed.
///
/// MODEL is a folder of Hugging Face with config.json, tokenizer.json and weights in BF16, F16 or
/// FP32, of the families LLaMA, Mistral, Qwen2, Qwen3, Gemma 3, GPT-2 and OPT; a GGUF file of the
/// first four with its own tokenizer, or tokenizer.json beside it; or a container of a fine-tune,
/// with --base. demo is a small bundled model, where no file has that name. A folder is mapped: do
/// not change its files while the command runs.
///
/// The text goes to standard output as it comes, and numbers to standard error. By default, each
/// token is the most probable one. With a temperature, tokens are drawn: the same --seed gives the
/// same text on every machine, with any number of threads and in whatever form weights are kept.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom generate demo \"Once upon a time\"                                  # a bundled model
  deltaloom generate demo \"Once upon a time\" --temperature 0.8 --seed 7
  deltaloom generate demo \"Once upon a time\" --tenant demo:pirate             # its fine-tunes
  deltaloom generate demo \"Tell me a story about a fox.\" --tenant demo:chat --chat
  deltaloom generate base/ \"It was a dark and stormy\"
  deltaloom generate base/ \"It was a dark and stormy\" --tenant tuned.loom --temperature 0.8 --seed 7
  deltaloom generate tuned.loom \"Why is the sky blue?\" --base base/ --chat --max-tokens 64
  deltaloom generate model.gguf \"Why is the sky blue?\" --chat
  deltaloom generate base/ - --stop \"\\n\\n\" --json < prompt.txt")]
pub(crate) struct GenerateArguments {
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    /// Text to continue; - reads it from standard input
    #[arg(value_name = "PROMPT")]
    pub(crate) prompt: String,
    /// Ask PROMPT as a user, by the chat template of the model
    #[arg(long)]
    pub(crate) chat: bool,
    /// With --chat: what the system says first
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// Most tokens
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = value_parser!(u32).range(1..=16_777_216))]
    pub(crate) max_tokens: u32,
    /// End at this text, which is not printed; may be repeated. \n, \t and \\ are escapes
    #[arg(long, value_name = "TEXT", value_parser = unescaped)]
    pub(crate) stop: Vec<String>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArguments,
    #[command(flatten)]
    pub(crate) computing: ComputingArguments,
    #[command(flatten)]
    pub(crate) kv_file: KvFileArguments,
    /// Print the text at the end, with everything else, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// How tokens are chosen.
#[derive(Debug, Args)]
pub(crate) struct SamplingArguments {
    /// Draw tokens, by logits divided by this; 0 takes the most probable
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) temperature: f32,
    /// Draw from the N most probable tokens only; 0 is no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) top_k: u32,
    /// Draw from the most probable tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub(crate) top_p: f32,
    /// Draw from tokens with at least this share of the largest probability
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub(crate) min_p: f32,
    /// Divide logits of tokens that were there before by this
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub(crate) repetition_penalty: f32,
    /// Number that selects the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
}

fn unescaped(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        out.push(match (letter, letter == '\\') {
            (letter, false) => letter,
            _ => match letters.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('\\') => '\\',
                _ => return Err("after a \\ must be n, t or \\".to_owned()),
            },
        });
    }
    Ok(out)
}
