//! The options of `deltaloom lab tpde`.

use std::path::PathBuf;

use clap::Args;

use crate::args::ThreadsArgument;
use crate::args::page::ReportArguments;
use crate::values::lab::{Adaptive, MethodForm, MethodName};

/// Run threshold methods ("TPDE") over checkpoints of one training run: LOSSY, measured beside the exact container.
///
/// The published form follows the published formulas, losses and all. The corrected form keeps the first checkpoint exact, compares every next one with what the reader
/// has, makes elements that differ by the threshold or more exact, and states the greatest error of each tensor. With -o its files are written, one folder for each method.
///
/// Ratios are all bytes in over all bytes out; the mean of the steps' ratios stands beside them. "update error" and "state error" are relative to the length of the true
/// update: 1 means that nothing of it came through. With --verify exit code 1 means that something is wrong.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom lab tpde step1.safetensors step2.safetensors step3.safetensors
  deltaloom lab tpde runs/7b --methods P1,P3+ --html methods.html
  deltaloom lab tpde step*.safetensors --methods P1,P3+ --form published --csv > steps.csv
  deltaloom lab tpde step*.safetensors --form corrected --adaptive quantile=0.97 --adaptive bytes=200000 -o lossy
  deltaloom lab tpde step*.safetensors --evaluate 'python3 evaluate.py {}'
  deltaloom lab tpde --verify lossy step*.safetensors")]
pub(crate) struct TpdeArguments {
    /// Checkpoints in the order of training: .safetensors files or directories; or a series
    #[arg(value_name = "CHECKPOINT|STORE", required_unless_present = "verify")]
    pub(crate) checkpoints: Vec<PathBuf>,
    /// Methods to run
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAMES", default_values_t = MethodName::usual())]
    pub(crate) methods: Vec<MethodName>,
    /// In which form; methods that are the same when corrected are run once
    #[arg(long, value_enum, default_value_t = MethodForm::Both)]
    pub(crate) form: MethodForm,
    /// A corrected row with its own thresholds: bytes=N (of each step's file), quantile=Q, lr-steps=LR,STEPS or threshold=T; may be repeated
    #[arg(long, value_name = "RULE", value_parser = Adaptive::parse)]
    pub(crate) adaptive: Vec<Adaptive>,
    /// Write the files of corrected rows into this new directory
    #[arg(short, long, value_name = "DIR", conflicts_with = "verify")]
    pub(crate) output: Option<PathBuf>,
    /// Run this for every reconstruction, its path in place of {}, and take the last number that it prints as the loss. Arguments are separated by blanks; there is no shell
    #[arg(long, value_name = "COMMAND")]
    pub(crate) evaluate: Option<String>,
    /// Check a directory that -o wrote, or one method's in it: every digest and, if the checkpoints are given, every bound
    #[arg(long, value_name = "DIR", conflicts_with_all = ["adaptive", "evaluate", "csv"])]
    pub(crate) verify: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
}
