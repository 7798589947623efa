//! The options of `deltaloom lab tpde`.

use std::path::PathBuf;

use clap::Args;

use super::ReportArguments;
use crate::args::ThreadsArgument;
use crate::values::lab::{Adaptive, MethodForm, MethodName};

/// LOSSY: measure threshold methods ("TPDE") on the checkpoints of one training run.
///
/// They are compared with the lossless container. The published form follows the published
/// formulas, including their losses. The corrected form stores the first checkpoint exactly,
/// compares each later one with what the recipient has, stores elements exactly that differ by the
/// threshold or more, and records the largest error of every tensor. With -o, its files are written
/// to one folder per method.
///
/// A ratio is all input bytes over all output bytes; the mean of the per-step ratios is shown next
/// to it. "update error" and "state error" are relative to the length of the true update: at 1,
/// nothing of the update was preserved. With --verify, exit code 1 if anything is wrong.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom lab tpde step1.safetensors step2.safetensors step3.safetensors
  deltaloom lab tpde runs/7b --methods P1,P3+ --html methods.html
  deltaloom lab tpde step*.safetensors --methods P1,P3+ --form published --csv > steps.csv
  deltaloom lab tpde step*.safetensors --form corrected --adaptive bytes=200000 -o lossy
  deltaloom lab tpde step*.safetensors --evaluate 'python3 evaluate.py {}'
  deltaloom lab tpde --verify lossy step*.safetensors")]
pub(crate) struct TpdeArguments {
    /// Checkpoints in training order: .safetensors files or folders; or one series
    #[arg(value_name = "CHECKPOINT|STORE", required_unless_present = "verify")]
    pub(crate) checkpoints: Vec<PathBuf>,
    /// Methods to run
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "P1,P1+,P2,P2+,P3,P3-first,P3+,P4"
    )]
    pub(crate) methods: Vec<MethodName>,
    /// Form of the methods; methods that do not differ once corrected run only once
    #[arg(long, value_enum, default_value_t = MethodForm::Both)]
    pub(crate) form: MethodForm,
    /// Add a corrected row with its own rule for thresholds: bytes=N (size of each step's file),
    /// quantile=Q, lr-steps=LR,STEPS or threshold=T; may be repeated
    #[arg(long, value_name = "RULE", value_parser = Adaptive::parse)]
    pub(crate) adaptive: Vec<Adaptive>,
    /// Write the files of the corrected rows to this new folder
    #[arg(short, long, value_name = "DIR", conflicts_with = "verify")]
    pub(crate) output: Option<PathBuf>,
    /// Command that measures the loss of a reconstruction: {} is replaced by its path, and the last
    /// number printed is the loss. Arguments are separated by spaces; no shell is involved
    #[arg(long, value_name = "COMMAND")]
    pub(crate) evaluate: Option<String>,
    /// Check a folder written by -o, or the folder of one method in it: every digest and, with the
    /// original checkpoints, every error bound
    #[arg(long, value_name = "DIR", conflicts_with_all = ["adaptive", "evaluate", "csv"])]
    pub(crate) verify: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
}
