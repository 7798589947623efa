//! The options of `deltaloom shrink`.

use std::path::PathBuf;

use clap::{Args, Subcommand, value_parser};
use deltaloom_shrink::recipe::Overrides;

use super::ThreadsArgument;
use super::page::PageArguments;

/// Make a language model smaller, and measure what that costs. LOSSY: a student is not its teacher.
///
/// A recipe says what is done: low rank, factored embeddings, sparsity, quantisation. Each matrix
/// is first fitted to the inputs that the student gives it, so that it makes up for what was lost
/// before it. The cost is the divergence from the teacher (Kullback-Leibler, in nats per token) on
/// text that nothing was fitted to, and the size is that of the packed file.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_long_help = "Examples:
  deltaloom shrink run recipes/goals/int4.yaml --teacher model/ -o student/
  deltaloom shrink plan recipe.yaml --teacher model/ --ratio 10
  deltaloom shrink curve recipe.yaml --teacher model/ --html curve.html
  deltaloom shrink eval model/ student/ --tokens held-out.txt
  deltaloom shrink ablate recipe.yaml --teacher model/ --state results/
  deltaloom shrink quick-test                            # no model needed
  deltaloom shrink materialise student/ -o dense/"
)]
pub(crate) struct ShrinkArguments {
    #[command(subcommand)]
    pub(crate) command: ShrinkCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ShrinkCommand {
    Run(Box<RunArguments>),
    Plan(Box<PlanArguments>),
    Curve(Box<CurveArguments>),
    Eval(MeasureArguments),
    Ablate(Box<AblateArguments>),
    Materialise(MaterialiseArguments),
    QuickTest(QuickTestArguments),
}

/// Make a student by a recipe, measure it, and write its folder.
///
/// The student is a folder: student.safetensors with codes, steps and factors, student.json with
/// what they mean and what was measured, the configuration and the tokenizer. `deltaloom eval` and
/// `deltaloom generate` run it like any model. `deltaloom pack` makes one file of it; the size
/// reported here is that of its weights in such a file.
///
/// Texts that the recipe does not name are the files val_*.u16 beside the teacher: their last
/// windows are measured, and the first ones fitted to. The folder is written whatever the verdict.
/// The exit code is 0 if the student meets every target of the recipe, and 1 if it does not:
/// \"infeasible\", or \"useless\" if a table of token frequencies is as near to the teacher.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom shrink run recipes/goals/int4.yaml --teacher model/ -o student/
  deltaloom shrink run recipe.yaml -o student/ --json
  deltaloom shrink run recipes/deltas/ours2.yaml --teacher tuned/ --base base/ -o student/
  deltaloom shrink run recipe.yaml --teacher model.gguf --seq-len 512 --max-chunks 32 -o student/")]
pub(crate) struct RunArguments {
    #[command(flatten)]
    pub(crate) recipe: SizedRecipeArguments,
    /// Folder of the student, instead of the one in the recipe
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) output: Option<PathBuf>,
    /// Replace the files of a student that exists
    #[arg(long)]
    pub(crate) overwrite: bool,
    #[command(flatten)]
    pub(crate) look: LookArguments,
}

/// Choose how to store each matrix, make the student and measure it, but write nothing.
///
/// The planner makes candidates of each matrix: codes at several rates, two factors, zeros. What a
/// candidate costs is estimated from the error of its outputs and one measurement of each matrix.
/// It then makes the student that should cost least within the size of the recipe, and measures it.
///
/// Printed are what each kind of matrix became, what other sizes should cost, the least possible
/// size, and the verdict. The exit code is that of `shrink run`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom shrink plan recipe.yaml --teacher model/ --ratio 10
  deltaloom shrink plan recipes/thousand.yaml --teacher model/ --json")]
pub(crate) struct PlanArguments {
    #[command(flatten)]
    pub(crate) recipe: SizedRecipeArguments,
    #[command(flatten)]
    pub(crate) look: LookArguments,
}

/// Make and measure a student for each of several ratios, but write none of them.
///
/// If the recipe gives branches a size (lra.rank, sparsity.target_sparsity and so on), a second
/// curve shows what the published rules make of it: above a ratio of 10 low rank is on, above 50
/// ranks are halved and sparsity grows by 5 points.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom shrink curve recipe.yaml --teacher model/ --html curve.html
  deltaloom shrink curve recipe.yaml --teacher model/ --ratios 4,8,16 --json")]
pub(crate) struct CurveArguments {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,
    /// Bytes of the teacher over bytes of a student
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "2,4,8,10,20,50,100,1000")]
    pub(crate) ratios: Vec<f64>,
    #[command(flatten)]
    pub(crate) look: LookArguments,
    #[command(flatten)]
    pub(crate) page: PageArguments,
}

/// A recipe, and what replaces fields of it.
#[derive(Debug, Args)]
pub(crate) struct RecipeArguments {
    /// Recipe: docs/recipes.md describes its fields
    #[arg(value_name = "RECIPE", required_unless_present = "config")]
    recipe: Option<PathBuf>,
    /// The same as RECIPE
    #[arg(long, value_name = "RECIPE", conflicts_with = "recipe")]
    config: Option<PathBuf>,
    /// Model to make smaller: a folder or a GGUF file; instead of the one in the recipe
    #[arg(long, visible_alias = "teacher-model", value_name = "MODEL")]
    teacher: Option<PathBuf>,
    /// Model that the teacher is a fine-tune of: only what the teacher adds to it is stored, and
    /// the student needs it, too; instead of the one in the recipe
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// Another model to start from, which is not built yet
    #[arg(long, visible_alias = "student-model", value_name = "MODEL", hide = true)]
    student: Option<PathBuf>,
    /// Text for distillation, which is not built yet
    #[arg(long, value_name = "TEXT", hide = true)]
    distill_data: Option<PathBuf>,
    /// Text for fine-tuning, which is not built yet
    #[arg(long, value_name = "TEXT", hide = true)]
    finetune_data: Option<PathBuf>,
    /// Tokens of a window; default: what the teacher was trained for, at most 2048
    #[arg(long, value_name = "N")]
    seq_len: Option<usize>,
    /// From the start of a window to that of the next; default: the window
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Windows that run together
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Use at most N windows
    #[arg(long, value_name = "N")]
    max_chunks: Option<usize>,
}

/// The same, with a size.
#[derive(Debug, Args)]
pub(crate) struct SizedRecipeArguments {
    #[command(flatten)]
    recipe: RecipeArguments,
    /// Bytes of the teacher over bytes of the student, instead of the target in the recipe
    #[arg(long, value_name = "N")]
    ratio: Option<f64>,
}

/// How a command runs and reports.
#[derive(Debug, Args)]
pub(crate) struct LookArguments {
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print everything as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A recipe that a command names, and what replaces fields of it.
pub(crate) struct Asked {
    /// The recipe's file.
    pub(crate) recipe: PathBuf,
    /// What the command line says.
    pub(crate) overrides: Overrides,
}

impl RecipeArguments {
    /// What is asked for.
    pub(crate) fn asked(&self) -> Asked {
        Asked {
            recipe: self.recipe.as_ref().or(self.config.as_ref()).cloned().unwrap_or_default(),
            overrides: Overrides {
                teacher: self.teacher.clone(),
                base: self.base.clone(),
                student: self.student.clone(),
                ratio: None,
                distil_data: self.distill_data.clone(),
                finetune_data: self.finetune_data.clone(),
                seq_len: self.seq_len,
                stride: self.stride,
                batch_size: self.batch_size,
                max_chunks: self.max_chunks,
                output: None,
            },
        }
    }
}

impl SizedRecipeArguments {
    /// What is asked for, and where the student goes.
    pub(crate) fn asked(&self, output: Option<PathBuf>) -> Asked {
        let Asked { recipe, overrides } = self.recipe.asked();
        Asked { recipe, overrides: Overrides { ratio: self.ratio, output, ..overrides } }
    }
}

/// Measure how far a student is from its teacher, and where its bytes are.
///
/// The divergence is that of `deltaloom eval divergence` on each text: Kullback-Leibler, in nats
/// per token, in both directions, how often both have the same most probable token, and how many of
/// the five most probable they share. It is also given for tokens by how often they were seen in a
/// text that is not measured: unseen, rare (less often than if all ids of the model were equally
/// frequent) or common; the token that counts is the one to be predicted. Windows do not overlap,
/// and what is left over behind the last one is not measured.
///
/// Bytes are those of the student's weights when they are packed: for the embedding with the head,
/// attention, the MLP, and tensors that stayed as they are; and for codes, steps, bits of sparse
/// matrices, factors and other values.
///
/// Texts that are not named are the files val_*.u16 beside the teacher, of which the last windows
/// are measured, as `deltaloom shrink run` does it. It gives the same numbers but for roundings in
/// the last digits, because it adds up in another order.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom shrink eval model/ student/
  deltaloom shrink eval model/ student/ --tokens held-out.txt --seen training.txt
  deltaloom shrink eval model/ student/ --tokens prose.u16 --tokens code.u16 --last 64 --json")]
pub(crate) struct MeasureArguments {
    /// Model that the student was made from: a folder or a GGUF file
    #[arg(value_name = "TEACHER")]
    pub(crate) teacher: PathBuf,
    /// Folder of a student, or another model with the same token ids
    #[arg(value_name = "STUDENT")]
    pub(crate) student: PathBuf,
    /// Model that a student of a fine-tune was made with
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: Option<PathBuf>,
    /// Text to measure on, or token ids in a .u16 or .u32 file; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) tokens: Vec<PathBuf>,
    /// Measure only the last N windows of each text
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(crate) last: Option<u32>,
    /// Tokens of a window; default: what the teacher was trained for, at most 2048
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(2..=16_777_216))]
    pub(crate) window: Option<u32>,
    /// Text in which tokens are counted; default: what is not measured of the files val_*.u16
    #[arg(long, value_name = "TEXT")]
    pub(crate) seen: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) look: LookArguments,
}

/// Find out what each branch of a recipe contributes to size and divergence.
///
/// A student is made and measured for every subset of the branches that the recipe uses (blt, lra,
/// sparsity, quantise): 2, 4, 8 or 16 students. No student is written. A branch gets the mean of
/// what it adds over all orders in which branches can be switched on, its Shapley value. So the
/// parts add up: factors of the ratio multiply to the ratio, and parts of the divergence, in nats
/// per token, sum to the divergence. A part may be negative, if a branch makes it easier for
/// others.
///
/// The recipe must give the size of each branch (planner.mode: fixed). With --state, every result
/// is kept in a folder, and found again by a digest of the recipe, the teacher and the texts: a run
/// that was stopped goes on where it was.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom shrink ablate recipe.yaml --teacher model/
  deltaloom shrink ablate recipe.yaml --teacher model/ --state results/ --json")]
pub(crate) struct AblateArguments {
    #[command(flatten)]
    pub(crate) recipe: SizedRecipeArguments,
    /// Folder where results are kept and found again
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) look: LookArguments,
}

/// Try every branch and the search on a tiny made-up model, in a few seconds.
///
/// The model has random weights from a fixed seed. It is written to a temporary folder, which is
/// removed at the end; nothing is downloaded. Each line is a step, with the ratio of bytes and the
/// divergence from the teacher, in nats per token. The exit code is 0 if all went well, and 2 if a
/// step failed.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom shrink quick-test")]
pub(crate) struct QuickTestArguments {
    #[command(flatten)]
    pub(crate) look: LookArguments,
}

/// Write the dense model that a student stands for, for other tools.
///
/// Matrices of the student become FP32, everything else stays as it is. The same student gives the
/// same bytes on every machine.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom shrink materialise student/ -o dense/
  deltaloom shrink materialise student/ --base base/ -o dense/")]
pub(crate) struct MaterialiseArguments {
    /// Folder of a student
    #[arg(value_name = "STUDENT")]
    pub(crate) student: PathBuf,
    /// Model that a student of a fine-tune was made with
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: Option<PathBuf>,
    /// Folder to write
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) output: PathBuf,
    /// Replace the files of a model that exists
    #[arg(long)]
    pub(crate) overwrite: bool,
}
