//! The options of `deltaloom series`.

#[cfg(feature = "report")]
pub(crate) mod plot;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use deltaloom::series::KeepRules;

use super::ThreadsArgument;
use crate::values::series::{ExistingStep, NewStep, parse_existing_step, parse_interval, parse_new_step};
use crate::values::{Preset, parse_pair};

/// Keep every checkpoint of a training run: exact, small, and safe from writers that are killed.
///
/// STORE is a folder, or the URL of a place in an object store: s3://bucket/prefix, gs://..., az://..., with credentials and endpoints from the usual environment variables
/// (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME and so on).
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_long_help = "Examples:
  deltaloom series init runs/7b
  deltaloom series add runs/7b out/checkpoint-500 --step 500 --meta loss=2.31
  deltaloom series ls runs/7b
  deltaloom series get runs/7b --step 500 -o restored
  deltaloom series watch s3://bucket/runs/7b out --interval 30s
  deltaloom series prune runs/7b --keep 'last 20, every 1000, best loss 3'"
)]
pub(crate) struct SeriesArguments {
    #[command(subcommand)]
    pub(crate) command: SeriesCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SeriesCommand {
    Init(InitArguments),
    Add(AddArguments),
    Ls(ListArguments),
    Log(ListArguments),
    Show(ShowArguments),
    #[cfg(feature = "report")]
    Plot(plot::PlotArguments),
    #[cfg(feature = "report")]
    Health(plot::HealthArguments),
    Get(GetArguments),
    Set(SetArguments),
    Rm(RemoveArguments),
    Prune(PruneArguments),
    Repack(RepackArguments),
    Gc(GcArguments),
    Verify(VerifySeriesArguments),
    Watch(WatchArguments),
    Flush(FlushArguments),
}

#[derive(Debug, Args)]
pub(crate) struct StoreArgument {
    /// A folder or a URL
    #[arg(value_name = "STORE", env = STORE_VARIABLE, hide_env_values = true)]
    pub(crate) location: String,
}

/// What names the series where the command line does not.
const STORE_VARIABLE: &str = "DELTALOOM_SERIES";

/// A series, and what is to be added to it. One optional value before one that is not.
#[derive(Debug, Args)]
pub(crate) struct StoreAndInput {
    /// The series, a folder or a URL [env: DELTALOOM_SERIES]; then what to add: a .safetensors
    /// file, or a folder with shards and small files; for `watch` the folder that a trainer writes
    /// into
    #[arg(value_names = ["STORE", "INPUT"], num_args = 1..=2, required = true)]
    words: Vec<PathBuf>,
}

impl StoreAndInput {
    /// The location of the series, and the path of the input.
    pub(crate) fn split(&self) -> Result<(String, &Path)> {
        match &self.words[..] {
            [input] => {
                let store = std::env::var(STORE_VARIABLE).ok().filter(|store| !store.is_empty());
                let store = store.with_context(|| {
                    format!(
                        "only {} is given: name the series before it, or in {STORE_VARIABLE}",
                        input.display()
                    )
                })?;
                Ok((store, input))
            }
            [store, input] => {
                let location = store.to_str().with_context(|| format!("{}: not UTF-8", store.display()))?;
                Ok((location.to_owned(), input))
            }
            _ => bail!("there is one series and one input"),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct BranchArgument {
    /// Steps of this branch instead of the main line
    #[arg(long = "branch", id = "branch", value_name = "NAME")]
    pub(crate) name: Option<String>,
}

/// Make an empty series.
#[derive(Debug, Args)]
pub(crate) struct InitArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// Steps from one keyframe, which is packed on its own, to the next at most
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) keyframe_every: u32,
    /// Containers besides a keyframe that must be decoded for any step at most
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) max_chain: u32,
}

/// Add a checkpoint as the newest step.
///
/// It is packed against an earlier step and appears in the series whole or not at all. Adding the
/// same content under the same step again changes nothing; other content, or a step before the
/// newest one, is an error, and so is a checkpoint of which over a quarter of the bytes are tensors
/// that the newest step does not have in that dtype and shape. Weights that are NaN or infinite,
/// and matrices that have become constant, are stored, counted and warned of.
#[derive(Debug, Args)]
#[command(
    override_usage = "deltaloom series add [OPTIONS] --step <N|next> [STORE] <CKPT>",
    after_long_help = "Examples:
  deltaloom series add runs/7b model.safetensors --step 500
  deltaloom series add runs/7b out/checkpoint-500 --step 500 --optimizer out/optimizer-500.safetensors --meta loss=2.31 --meta lr=1e-5
  deltaloom series add runs/7b out/checkpoint-500 --step 500 --background
  deltaloom series add runs/7b out/checkpoint-300 --step 300 --rewind   # steps 300 to 500 become branch after-200"
)]
pub(crate) struct AddArguments {
    #[command(flatten)]
    pub(crate) places: StoreAndInput,
    /// The number of the step, or `next` for one more than the newest
    #[arg(long, value_name = "N|next", value_parser = parse_new_step)]
    pub(crate) step: NewStep,
    /// The optimizer's state: a .safetensors file or a directory
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) optimizer: Option<PathBuf>,
    /// Text to keep with the step; may be repeated
    #[arg(long, value_name = "K=V", value_parser = parse_pair)]
    pub(crate) meta: Vec<(String, String)>,
    /// Pack it on its own
    #[arg(long)]
    pub(crate) keyframe: bool,
    /// Add it even if a quarter of its tensors, by bytes, are not those of the newest step
    #[arg(long)]
    pub(crate) force: bool,
    /// For a run that went back: close the steps from this one on as a branch, and go on from the
    /// step before
    #[arg(long)]
    pub(crate) rewind: bool,
    /// With --rewind: the name of that branch, instead of `after-N` for the step N that it leaves
    #[arg(long, value_name = "NAME", requires = "rewind")]
    pub(crate) branch: Option<String>,
    /// Return when a copy is safe on the local disk, and add that in the background; `flush` waits for it
    #[arg(long)]
    pub(crate) background: bool,
    /// How much time packing may take
    #[arg(long, value_enum, default_value_t = Preset::Default)]
    pub(crate) preset: Preset,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// List steps, oldest first (`log`: newest first, with text and times).
#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// The newest so many
    #[arg(long, value_name = "N", default_value_t = 20, conflicts_with = "all")]
    pub(crate) last: usize,
    /// All steps
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) branch: BranchArgument,
    /// List the branches instead
    #[arg(long, conflicts_with_all = ["branch", "csv", "all", "last"])]
    pub(crate) branches: bool,
    /// Print them as JSON
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// Print them as CSV
    #[arg(long)]
    pub(crate) csv: bool,
}

/// Describe the series, or one step of it.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom series show runs/7b
  deltaloom series show runs/7b --step newest --tensors")]
pub(crate) struct ShowArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// A step, or `newest`
    #[arg(long, value_name = "N|newest", value_parser = parse_existing_step)]
    pub(crate) step: Option<ExistingStep>,
    #[command(flatten)]
    pub(crate) branch: BranchArgument,
    /// With --step: a line for every tensor
    #[arg(long, requires = "step")]
    pub(crate) tensors: bool,
    /// Print it as JSON
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// With --step: print a line for every tensor as CSV
    #[arg(long, requires = "step")]
    pub(crate) csv: bool,
}

/// Restore a step, byte for byte.
///
/// With a model only, OUT is the file or directory that was added; with an optimizer's state too, OUT is a directory with `model` and `optimizer` in it.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom series get runs/7b --step 500 -o checkpoint-500
  deltaloom series get runs/7b --step newest --only optimizer -o optimizer.safetensors
  deltaloom series get runs/7b --step 500 --only model.norm.weight -o norm.bin")]
pub(crate) struct GetArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// The step, or `newest`
    #[arg(long, value_name = "N|newest", value_parser = parse_existing_step)]
    pub(crate) step: ExistingStep,
    #[command(flatten)]
    pub(crate) branch: BranchArgument,
    /// File or directory to restore
    #[arg(short, long, value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// `model`, `optimizer`, or the name of a tensor, whose bytes are written
    #[arg(long, value_name = "model|optimizer|TENSOR")]
    pub(crate) only: Option<String>,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Replace an existing output
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Print a report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Change the text that is kept with a step.
///
/// A name with a value is added or replaced, a name without one (`k=`) is removed.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom series set runs/7b --step 500 --meta loss=2.29 --meta note='before the restart'
  deltaloom series set runs/7b --step newest --meta note=")]
pub(crate) struct SetArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// The step, or `newest`
    #[arg(long, value_name = "N|newest", value_parser = parse_existing_step)]
    pub(crate) step: ExistingStep,
    /// Text to set, or to remove where nothing follows the `=`; may be repeated
    #[arg(long, value_name = "K=V", required = true, value_parser = parse_pair)]
    pub(crate) meta: Vec<(String, String)>,
    /// Print the step as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Remove steps, such as one that was added by mistake.
///
/// Steps that rested on one that goes are packed again, and only those. The newest step may go too.
/// Space is free after `gc`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom series rm runs/7b --step 301
  deltaloom series rm runs/7b --step 301 --step 302 --dry-run")]
pub(crate) struct RemoveArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// A step, or `newest`; may be repeated
    #[arg(long, value_name = "N|newest", required = true, value_parser = parse_existing_step)]
    pub(crate) step: Vec<ExistingStep>,
    /// Only say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print a report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Leave out all steps but those that a rule keeps.
///
/// Rules, with commas between: `last N`, `every N` (steps that are multiples), `best NAME [N]` (least number under that name in --meta), `highest NAME [N]`, `step N`,
/// `keyframes`. The newest step is always kept. A rule that names what is not there, and rules that keep nothing at all, are an error. Steps that rested on one that goes are packed again, and only those. Space is free after `gc`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom series prune runs/7b --keep 'last 20, every 100, best loss 3' --dry-run
  deltaloom series prune runs/7b --keep 'last 20, highest accuracy' && deltaloom series gc runs/7b
  deltaloom series prune runs/7b --branch after-200")]
pub(crate) struct PruneArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// Which steps to keep
    #[arg(long, value_name = "RULES", required_unless_present = "branch")]
    pub(crate) keep: Option<KeepRules>,
    /// Leave out this branch, all of it, instead
    #[arg(long, value_name = "NAME", conflicts_with = "keep")]
    pub(crate) branch: Option<String>,
    /// Only say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print a report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Pack every step again, with other options.
#[derive(Debug, Args)]
pub(crate) struct RepackArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// Steps from one keyframe to the next at most, from now on
    #[arg(long, value_name = "N")]
    pub(crate) keyframe_every: Option<u32>,
    /// Containers besides a keyframe that must be decoded for any step at most, from now on
    #[arg(long, value_name = "N")]
    pub(crate) max_chain: Option<u32>,
    /// How much time packing may take
    #[arg(long, value_enum, default_value_t = Preset::Default)]
    pub(crate) preset: Preset,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print a report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Remove objects that no step needs: what pruning left, and what writers left that were killed.
#[derive(Debug, Args)]
pub(crate) struct GcArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// Leave alone what is younger, since someone may be about to add it: 30s, 90m, 2h, 1day
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    pub(crate) grace: Duration,
    /// Only say what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print a report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Check that every step can be restored: manifest, pages, the bytes of every container; with --deep also by decoding every tensor.
///
/// Exit code 1 means that something is wrong.
#[derive(Debug, Args)]
pub(crate) struct VerifySeriesArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// Decode every step and compare every digest
    #[arg(long)]
    pub(crate) deep: bool,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Add each checkpoint that a trainer writes into a folder, once it is complete.
///
/// Folders and .safetensors files whose names have a number, such as checkpoint-500 or
/// global_step500, are checkpoints of that step. One is complete when its headers and lengths
/// agree, every shard that its index names is there, and nothing has changed between two looks.
/// Where the trainer went back and writes earlier steps anew, the later steps become a branch, as
/// with `add --rewind`. A checkpoint of another model is skipped. Runs until it is interrupted.
#[derive(Debug, Args)]
#[command(
    override_usage = "deltaloom series watch [OPTIONS] [STORE] <DIR>",
    after_long_help = "Examples:
  deltaloom series watch runs/7b out
  deltaloom series watch s3://bucket/runs/7b out --interval 1m
  deltaloom series watch runs/7b out --once"
)]
pub(crate) struct WatchArguments {
    #[command(flatten)]
    pub(crate) places: StoreAndInput,
    /// Time between two looks
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_interval)]
    pub(crate) interval: Duration,
    /// Stop when everything that is there has been added
    #[arg(long)]
    pub(crate) once: bool,
    /// How much time packing may take
    #[arg(long, value_enum, default_value_t = Preset::Default)]
    pub(crate) preset: Preset,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
}

/// Add what `add --background` has left on the local disk, and wait for it.
#[derive(Debug, Args)]
pub(crate) struct FlushArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// How much time packing may take
    #[arg(long, value_enum, default_value_t = Preset::Default)]
    pub(crate) preset: Preset,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
}
