//! The sections around the branches: removal, merge, training, measurement, logs and output.

use std::collections::BTreeMap;

use super::{Branch, Switch, section, words};

words! {
    /// How experts are ranked.
    ExpertMethod {
        /// By the mean size of what they add, times the router's weight.
        Reap = "reap",
    }
}

section! {
    /// Experts that are removed. Not built yet.
    Experts {
        /// Experts of a layer that are kept. `None`: all.
        keep: Option<usize> = None,
        /// How experts are ranked.
        method: ExpertMethod = ExpertMethod::Reap,
        /// An expert with fewer calibration tokens borrows the statistics of its layer.
        min_tokens: usize = 256,
    }
}

section! {
    /// Heads, neurons and layers that are removed. Not built yet.
    Width {
        /// Whether it is done.
        enabled: bool = false,
        /// Heads that are kept.
        heads: Option<usize> = None,
        /// Neurons of the MLP that are kept.
        neurons: Option<usize> = None,
        /// Layers that are kept.
        layers: Option<usize> = None,
    }
}

words! {
    /// How the results of branches are joined.
    MergeMode {
        /// Each branch gets what the one before left over.
        Sequential = "sequential",
        /// The results are averaged, as the published toolkit does.
        Blend = "blend",
    }
}

section! {
    /// How the results of branches are joined.
    Merge {
        /// How.
        mode: MergeMode = MergeMode::Sequential,
        /// Weights of the branches in `blend`. Their sum is 1.
        weights: Option<BTreeMap<Branch, f64>> = None,
    }
}

section! {
    /// Refits each matrix to the student's inputs before it is made smaller.
    Correct {
        /// Whether it is done.
        enabled: bool = true,
        /// Added to the diagonal of the covariance, as a share of its mean.
        damping: f64 = 0.1,
    }
}

section! {
    /// Low-rank corrections without gradients. Comes with training.
    ClosedForm {
        /// Whether it is done.
        enabled: Switch = Switch::Auto,
        /// Their rank.
        rank: usize = 8,
    }
}

words! {
    /// What alignment makes small.
    AlignLoss {
        /// The mean squared error.
        Mse = "mse",
    }
}

section! {
    /// Training of one block at a time. Comes with training.
    Align {
        /// Steps per block.
        steps: usize = 0,
        /// Learning rate.
        lr: f64 = 1e-3,
        /// What it makes small.
        loss: AlignLoss = AlignLoss::Mse,
    }
}

words! {
    /// Where the teacher's distributions come from.
    TeacherSource {
        /// They are computed once and stored.
        Cached = "cached",
        /// They are computed at each step.
        Live = "live",
    }
}

section! {
    /// Training against the teacher's distributions. Comes with training.
    Distil {
        /// Tokens.
        tokens: u64 = 0,
        /// Weight of the divergence.
        kl: f64 = 1.0,
        /// Weight of the cross entropy.
        ce: f64 = 0.1,
        /// Weight of hidden states.
        hidden: f64 = 0.0,
        /// Temperature of both distributions.
        temperature: f64 = 1.0,
        /// Where the teacher's distributions come from.
        teacher: TeacherSource = TeacherSource::Cached,
        /// Tokens that are stored for each position.
        top_k: usize = 64,
    }
}

words! {
    /// What adapters are trained for.
    Level {
        /// Each matrix alone.
        Matrix = "matrix",
        /// Each block alone.
        Block = "block",
        /// The whole model.
        Model = "model",
    }
}

section! {
    /// Adapters that are trained. Comes with training.
    Lora {
        /// Levels, in turn.
        levels: Vec<Level> = vec![Level::Matrix, Level::Block, Level::Model],
        /// Rank at each level.
        rank: Vec<usize> = vec![4, 8, 16],
        /// Scale of an adapter, times its rank.
        alpha: f64 = 16.0,
        /// `all`, or patterns of matrices.
        targets: Vec<String> = vec!["all".to_owned()],
    }
}

section! {
    /// Adapters that are merged and restarted. Comes with training.
    Relora {
        /// Steps between restarts. 0: never.
        every: usize = 0,
        /// Steps of warm-up after a restart.
        restart_warmup: usize = 20,
        /// Share of the optimizer's state that a restart keeps.
        keep_optimizer: f64 = 0.1,
    }
}

words! {
    /// Optimizers.
    OptimizerName {
        /// AdamW.
        AdamW = "adamw",
        /// Adapprox: a low-rank second moment.
        Adapprox = "adapprox",
    }
}

words! {
    /// How the learning rate moves after the warm-up.
    Schedule {
        /// Down, as a half cosine.
        Cosine = "cosine",
        /// Not at all.
        Constant = "constant",
    }
}

section! {
    /// The optimizer. Comes with training.
    Optimizer {
        /// Which.
        name: OptimizerName = OptimizerName::AdamW,
        /// Learning rate.
        lr: f64 = 1e-3,
        /// Decay of the two moments.
        betas: [f64; 2] = [0.9, 0.95],
        /// Weight decay.
        weight_decay: f64 = 0.1,
        /// Largest norm of a gradient.
        clip: f64 = 1.0,
        /// Share of the steps that warm up.
        warmup: f64 = 0.05,
        /// How the learning rate moves.
        schedule: Schedule = Schedule::Cosine,
        /// Learning rate at the end, as a share of `lr`.
        min_lr: f64 = 0.1,
    }
}

section! {
    /// Settings of Adapprox. Comes with training.
    Adapprox {
        /// First rank.
        k_init: usize = 1,
        /// Largest rank, as a share of the smaller side.
        k_max_share: f64 = 0.25,
        /// Relative error at which the rank grows.
        error: f64 = 0.01,
        /// Steps between changes of the rank.
        every: usize = 10,
        /// Columns beyond the rank.
        oversample: usize = 5,
        /// Power steps.
        power: usize = 5,
        /// Largest root mean square of an update.
        clip: f64 = 1.0,
        /// Whether there is a first moment.
        first_moment: bool = true,
    }
}

section! {
    /// Training of the student. Comes with training.
    Recover {
        /// Low-rank corrections without gradients.
        closed_form: ClosedForm = ClosedForm::default(),
        /// One block at a time.
        align: Align = Align::default(),
        /// Against the teacher's distributions.
        distil: Distil = Distil::default(),
        /// Adapters.
        lora: Lora = Lora::default(),
        /// Adapters that are merged and restarted.
        relora: Relora = Relora::default(),
        /// The optimizer.
        optimizer: Optimizer = Optimizer::default(),
        /// Settings of Adapprox.
        adapprox: Adapprox = Adapprox::default(),
    }
}

words! {
    /// How size and divergence are attributed to branches.
    Attribution {
        /// By Shapley values, from every subset of the branches.
        Shapley = "shapley",
        /// To each branch after those before it.
        Sequential = "sequential",
        /// Not at all.
        None = "none",
    }
}

words! {
    /// Formats of tasks.
    TaskFormat {
        /// Folders of MMLU.
        MmluCsv = "mmlu-csv",
        /// Questions of GSM8K.
        Gsm8kJsonl = "gsm8k-jsonl",
        /// Tables of GLUE.
        GlueTsv = "glue-tsv",
        /// Contexts with choices.
        ChoicesJsonl = "choices-jsonl",
    }
}

section! {
    /// A task. Tasks are not built yet.
    Task {
        /// Its name.
        name: String = String::new(),
        /// Its file or folder.
        path: String = String::new(),
        /// Its format.
        format: TaskFormat = TaskFormat::ChoicesJsonl,
        /// Examples that are shown before a question.
        shots: usize = 0,
        /// Items at most. `None`: all.
        limit: Option<usize> = None,
    }
}

section! {
    /// What is measured at the end.
    Evaluate {
        /// How size and divergence are attributed to branches.
        attribution: Attribution = Attribution::Shapley,
        /// Branches that are left out in turn.
        ablations: Vec<Branch> =
            vec![Branch::Blt, Branch::Lra, Branch::Kv, Branch::Sparsity, Branch::Quantise],
        /// Tasks. Not built yet.
        tasks: Vec<Task> = Vec::new(),
    }
}

section! {
    /// What is logged.
    Logging {
        /// Name of the run.
        experiment: String = "unnamed".to_owned(),
        /// Writes event files of TensorBoard.
        tensorboard: bool = true,
        /// Writes `history.jsonl`.
        jsonl: bool = true,
        /// Steps between entries.
        every: usize = 10,
    }
}

section! {
    /// Where the student goes.
    Output {
        /// The folder.
        dir: String = "out".to_owned(),
        /// Stores what is needed to restore the teacher exactly. Not built yet.
        exact_back: bool = false,
        /// Writes the dense weights, too.
        materialise: bool = false,
        /// Replaces files that exist.
        overwrite: bool = false,
    }
}
