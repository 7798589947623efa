//! The options of `deltaloom series`.

#[cfg(feature = "report")]
pub(crate) mod plot;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use deltaloom::series::KeepRules;

use super::{ExcludeArgument, ThreadsArgument};
use crate::values::series::{ExistingStep, NewStep, parse_existing_step, parse_interval, parse_new_step};
use crate::values::{Preset, parse_pair};

/// Store every checkpoint of a training run: lossless, small, and safe if a writer is killed.
///
/// STORE is a folder, or a location in an object store: s3://bucket/prefix, gs://..., az://...
/// Credentials and endpoints come from the usual environment variables, such as AWS_ACCESS_KEY_ID,
/// AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS and AZURE_STORAGE_ACCOUNT_NAME.
///
/// Each step is stored as a difference from an earlier step, except for keyframes, which are packed
/// on their own.
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
    /// List steps, oldest first
    Ls(ListArguments),
    /// List steps with their texts and times, newest first
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
    /// The series: a folder or a URL
    #[arg(value_name = "STORE", env = STORE_VARIABLE, hide_env_values = true)]
    pub(crate) location: String,
}

/// Names the series if the command line does not.
const STORE_VARIABLE: &str = "DELTALOOM_SERIES";

/// The series and the input. If there is only one word, it is the input, and the environment names
/// the series.
pub(crate) fn store_and_input<'a>(
    first: &'a Path,
    second: Option<&'a PathBuf>,
) -> Result<(String, &'a Path)> {
    if let Some(input) = second {
        let location = first.to_str().with_context(|| format!("{}: not UTF-8", first.display()))?;
        return Ok((location.to_owned(), input));
    }
    let store = std::env::var(STORE_VARIABLE).ok().filter(|store| !store.is_empty());
    let store = store.with_context(|| {
        format!("no series for {}: name it before the input, or in {STORE_VARIABLE}", first.display())
    })?;
    Ok((store, first))
}

#[derive(Debug, Args)]
pub(crate) struct BranchArgument {
    /// Use this branch instead of the main line
    #[arg(long = "branch", id = "branch", value_name = "NAME")]
    pub(crate) name: Option<String>,
}

/// Create an empty series.
#[derive(Debug, Args)]
pub(crate) struct InitArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// Maximum number of steps between keyframes
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) keyframe_every: u32,
    /// Maximum number of deltas to decode on top of a keyframe, to restore any step
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) max_chain: u32,
}

/// Add a checkpoint as the newest step.
///
/// It is packed against an earlier step, and appears in the series completely or not at all. Adding
/// the same content as the same step again changes nothing. It is an error to add other content as
/// an existing step, to add a step older than the newest one, or to add a checkpoint of another
/// model: one in which more than a quarter of the bytes of its weights are in tensors that the
/// newest step does not have in the same dtype and shape. NaN and infinite weights, and matrices
/// that have become constant, are stored, counted and reported.
///
/// If there is a trainer_state.json in the folder of the checkpoint, or beside its file, the
/// numbers that were logged last (loss, learning rate and others) are stored like those given with
/// --meta.
#[derive(Debug, Args)]
#[command(
    override_usage = "deltaloom series add [OPTIONS] --step <N|next> [STORE] <CHECKPOINT>",
    after_long_help = "Examples:
  deltaloom series add runs/7b model.safetensors --step 500
  deltaloom series add runs/7b out/checkpoint-500 --step 500 --meta loss=2.31 --meta lr=1e-5
  deltaloom series add runs/7b model --step 500 --optimizer optimizer-500.safetensors
  deltaloom series add runs/7b out/checkpoint-500 --step 500 --background
  # Steps 300 to 500 become the branch after-200:
  deltaloom series add runs/7b out/checkpoint-300 --step 300 --rewind"
)]
pub(crate) struct AddArguments {
    /// The series: a folder or a URL; may be omitted if DELTALOOM_SERIES names it
    #[arg(value_name = "STORE")]
    pub(crate) store: PathBuf,
    /// The checkpoint: a .safetensors, .gguf, .bin, .pt or .pth file, or a folder of such and other
    /// files
    #[arg(value_name = "CHECKPOINT")]
    pub(crate) checkpoint: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) exclude: ExcludeArgument,
    /// Number of the step, or `next` for the newest step plus one
    #[arg(long, value_name = "N|next", value_parser = parse_new_step, allow_negative_numbers = true)]
    pub(crate) step: NewStep,
    /// Optimizer state to store with it: a file or a folder, as the checkpoint
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) optimizer: Option<PathBuf>,
    /// Text to store with the step; may be repeated
    #[arg(long, value_name = "K=V", value_parser = parse_pair)]
    pub(crate) meta: Vec<(String, String)>,
    /// Make it a keyframe
    #[arg(long)]
    pub(crate) keyframe: bool,
    /// Add it even if it looks like a checkpoint of another model
    #[arg(long)]
    pub(crate) force: bool,
    /// Continue from an earlier step: move this and all later steps to a branch, and add the
    /// checkpoint after the step before them
    #[arg(long)]
    pub(crate) rewind: bool,
    /// With --rewind: name of that branch [default: `after-N`, where N is the step it forks from]
    #[arg(long, value_name = "NAME", requires = "rewind")]
    pub(crate) branch: Option<String>,
    /// Return once a copy is on the local disk, and add that copy in the background; `flush` waits
    /// for it
    #[arg(long)]
    pub(crate) background: bool,
    /// With --background: link the files instead of copying them, which takes no time; for files
    /// that may be removed or replaced, but that nobody writes to any more
    #[arg(long, requires = "background")]
    pub(crate) link: bool,
    /// Trade packing time for size
    #[arg(long, value_enum, default_value_t = Preset::Default)]
    pub(crate) preset: Preset,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which steps or branches to list, and how.
#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// List only the newest N steps
    #[arg(long, value_name = "N", default_value_t = 20, conflicts_with = "all")]
    pub(crate) last: usize,
    /// List all steps
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) branch: BranchArgument,
    /// List branches instead of steps
    #[arg(long, conflicts_with_all = ["branch", "csv", "all", "last"])]
    pub(crate) branches: bool,
    /// Print the list as JSON
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// Print the list as CSV
    #[arg(long)]
    pub(crate) csv: bool,
}

/// Describe a series, or one of its steps.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom series show runs/7b
  deltaloom series show runs/7b --step newest --tensors")]
pub(crate) struct ShowArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// Describe this step; `newest` is the last one
    #[arg(long, value_name = "N|newest", value_parser = parse_existing_step, allow_negative_numbers = true)]
    pub(crate) step: Option<ExistingStep>,
    #[command(flatten)]
    pub(crate) branch: BranchArgument,
    /// With --step: also list every tensor
    #[arg(long, requires = "step")]
    pub(crate) tensors: bool,
    /// Print the description as JSON
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// With --step: print the list of tensors as CSV
    #[arg(long, requires = "step")]
    pub(crate) csv: bool,
}

/// Restore a step, byte for byte.
///
/// OUT becomes the file or folder that was added. If optimizer state was stored too, OUT is a
/// folder that contains `model` and `optimizer`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom series get runs/7b --step 500 -o checkpoint-500
  deltaloom series get runs/7b --step newest --only optimizer -o optimizer.safetensors
  deltaloom series get runs/7b --step 500 --only model.norm.weight -o norm.bin")]
pub(crate) struct GetArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// Number of the step, or `newest`
    #[arg(long, value_name = "N|newest", value_parser = parse_existing_step, allow_negative_numbers = true)]
    pub(crate) step: ExistingStep,
    #[command(flatten)]
    pub(crate) branch: BranchArgument,
    /// File or folder to write; `-` is standard output (one file only)
    #[arg(short, long, value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// Restore only the model, the optimizer state, or the raw bytes of one tensor
    #[arg(long, value_name = "model|optimizer|TENSOR")]
    pub(crate) only: Option<String>,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Replace an existing output
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Change the texts stored with a step.
///
/// K=V adds or replaces a text. K= removes it.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom series set runs/7b --step 500 --meta loss=2.29 --meta note='before the restart'
  deltaloom series set runs/7b --step newest --meta note=")]
pub(crate) struct SetArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// Number of the step, or `newest`
    #[arg(long, value_name = "N|newest", value_parser = parse_existing_step, allow_negative_numbers = true)]
    pub(crate) step: ExistingStep,
    /// Text to set, or to remove if V is empty; may be repeated
    #[arg(long, value_name = "K=V", required = true, value_parser = parse_pair)]
    pub(crate) meta: Vec<(String, String)>,
    /// Print the changed step as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Remove steps, such as one that was added by mistake.
///
/// Only steps that depended on a removed step are repacked. The newest step can be removed too. Run
/// `gc` afterwards to free the space.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom series rm runs/7b --step 301
  deltaloom series rm runs/7b --step 301 --step 302 --dry-run")]
pub(crate) struct RemoveArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// Number of a step to remove, or `newest`; may be repeated
    #[arg(long, value_name = "N|newest", required = true, value_parser = parse_existing_step, allow_negative_numbers = true)]
    pub(crate) step: Vec<ExistingStep>,
    /// Only print what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Remove all steps except those that a rule keeps.
///
/// Rules are separated by commas: `last N`, `every N` (steps that are multiples of N), `best NAME
/// [N]` (the N smallest numbers stored as NAME with --meta), `highest NAME [N]`, `step N`,
/// `keyframes`. The newest step is always kept. It is an error if a rule names something that does
/// not exist, or if the rules keep nothing. Only steps that depended on a removed step are
/// repacked. Run `gc` afterwards to free the space.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom series prune runs/7b --keep 'last 20, every 100, best loss 3' --dry-run
  deltaloom series prune runs/7b --keep 'last 20, highest accuracy' && deltaloom series gc runs/7b
  deltaloom series prune runs/7b --branch after-200")]
pub(crate) struct PruneArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// Rules for the steps to keep
    #[arg(long, value_name = "RULES", required_unless_present = "branch")]
    pub(crate) keep: Option<KeepRules>,
    /// Remove this whole branch instead
    #[arg(long, value_name = "NAME", conflicts_with = "keep")]
    pub(crate) branch: Option<String>,
    /// Only print what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Repack every step with other options.
#[derive(Debug, Args)]
pub(crate) struct RepackArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// Maximum number of steps between keyframes; also applies to steps added later
    #[arg(long, value_name = "N")]
    pub(crate) keyframe_every: Option<u32>,
    /// Maximum number of deltas to decode on top of a keyframe, to restore any step; also applies
    /// to steps added later
    #[arg(long, value_name = "N")]
    pub(crate) max_chain: Option<u32>,
    /// Trade packing time for size
    #[arg(long, value_enum, default_value_t = Preset::Default)]
    pub(crate) preset: Preset,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Delete objects that no step needs.
///
/// They are left over from pruning or from interrupted writers.
#[derive(Debug, Args)]
pub(crate) struct GcArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// Keep objects younger than this, such as 30s, 90m, 2h or 1day: another process may be about
    /// to use them
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    pub(crate) grace: Duration,
    /// Only print what would be deleted
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Check that every step can be restored.
///
/// Checks the manifest, its pages, and the stored bytes of every container. With --deep, every
/// tensor is decoded too. Exit code 1 if anything is wrong.
#[derive(Debug, Args)]
pub(crate) struct VerifySeriesArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// Also decode every step and verify every digest
    #[arg(long)]
    pub(crate) deep: bool,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Add every checkpoint that a training program writes to a folder, as soon as it is complete.
///
/// A folder or .safetensors file with a number in its name, such as checkpoint-500 or
/// global_step500, is the checkpoint of that step. It is complete when its headers match its
/// length, all shards listed in its index exist, and nothing has changed between two scans. The
/// numbers of its trainer_state.json become texts of the step, as with `add`. If the trainer
/// restarts from an earlier step, the later steps become a branch, as with `add --rewind`.
///
/// Checkpoints of another model, without a step in their name, or of a step that another one has
/// are skipped. One that stays incomplete for a minute is left out once a later one is complete.
/// Runs until it is interrupted, or as long as --once and --timeout say. Exit code 1 if a
/// checkpoint was left out because it is incomplete or damaged.
#[derive(Debug, Args)]
#[command(
    override_usage = "deltaloom series watch [OPTIONS] [STORE] <DIR>",
    after_long_help = "Examples:
  deltaloom series watch runs/7b out
  deltaloom series watch s3://bucket/runs/7b out --interval 1m
  deltaloom series watch runs/7b out --once
  deltaloom series watch runs/7b out --timeout 2h"
)]
pub(crate) struct WatchArguments {
    /// The series: a folder or a URL; may be omitted if DELTALOOM_SERIES names it
    #[arg(value_name = "STORE")]
    pub(crate) store: PathBuf,
    /// The folder to watch
    #[arg(value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) exclude: ExcludeArgument,
    /// Time between two scans of the folder, such as 5s or 1m
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_interval)]
    pub(crate) interval: Duration,
    /// Stop once all existing checkpoints have been added. An incomplete one is waited for as long
    /// as it changes, and a minute or --timeout more
    #[arg(long)]
    pub(crate) once: bool,
    /// Stop if nothing in the folder has changed for this long, such as 30m or 2h
    #[arg(long, value_name = "TIME", value_parser = parse_interval)]
    pub(crate) timeout: Option<Duration>,
    /// Trade packing time for size
    #[arg(long, value_enum, default_value_t = Preset::Default)]
    pub(crate) preset: Preset,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
}

/// Finish what `add --background` has started, and wait for it.
#[derive(Debug, Args)]
pub(crate) struct FlushArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// Trade packing time for size
    #[arg(long, value_enum, default_value_t = Preset::Default)]
    pub(crate) preset: Preset,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
}
