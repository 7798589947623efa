//! A recipe as plain types. Each field has its default beside it.

mod branches;
mod rest;

use std::collections::BTreeMap;

pub use branches::{
    Allocation, Blt, BltMethod, Branches, Criterion, Grouping, Guard, Head, Kv, KvAlign, KvAs, Lra, Order,
    Pattern, Quantise, QuantiseMethod, Randomised, Rescale, Residual, Rope, RowCoding, Scope, Sparsity,
    SparsityMethod, Weighting,
};
pub use rest::{
    Adapprox, Align, AlignLoss, Attribution, ClosedForm, Correct, Distil, Evaluate, ExpertMethod, Experts,
    Level, Logging, Lora, Merge, MergeMode, Optimizer, OptimizerName, Output, Recover, Relora, Schedule,
    Task, TaskFormat, TeacherSource, Width,
};
/// Defines a section of a recipe: each field with its type, its default and its documentation.
macro_rules! section {
    ($(#[$about:meta])* $name:ident { $($(#[$note:meta])* $field:ident: $kind:ty = $default:expr,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[$note])* pub $field: $kind,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

/// Defines a closed set of words: each with its spelling and its documentation.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$note:meta])* $word:ident = $spelling:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$note])* #[serde(rename = $spelling)] $word,)* }

        impl $name {
            /// Its spelling in a recipe.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$word => $spelling,)* }
            }
        }
    };
}

pub(crate) use {section, words};

words! {
    /// Which branches a recipe may use.
    Mode {
        /// All of them.
        Hybrid = "hybrid",
        /// Low rank only.
        Lra = "lra",
        /// Keys and values only.
        Kv = "kv",
        /// The embedding only.
        Blt = "blt",
        /// Sparsity only.
        Sparsity = "sparsity",
        /// Quantisation only.
        Quantise = "quantise",
        /// Distillation only.
        Distil = "distil",
    }
}

words! {
    /// One way of making a tensor smaller.
    Branch {
        /// Low rank.
        Lra = "lra",
        /// Keys and values.
        Kv = "kv",
        /// The embedding and the head.
        Blt = "blt",
        /// Sparsity.
        Sparsity = "sparsity",
        /// Quantisation.
        Quantise = "quantise",
    }
}

impl Branch {
    /// All branches, in the order in which a recipe lists them.
    pub const ALL: [Self; 5] = [Self::Lra, Self::Kv, Self::Blt, Self::Sparsity, Self::Quantise];
}

words! {
    /// Whether something is done.
    Switch {
        /// The planner decides.
        Auto = "auto",
        /// Yes.
        On = "true",
        /// No.
        Off = "false",
    }
}

words! {
    /// The numbers in which the teacher runs.
    Dtype {
        /// FP32.
        F32 = "f32",
    }
}

section! {
    /// The model that is made smaller.
    Teacher {
        /// A folder, a file or a container. The program's `--teacher` replaces it.
        model: Option<String> = None,
        /// The model that it is a fine-tune of: what it adds to this is made smaller. The program's
        /// `--base` replaces it.
        base: Option<String> = None,
        /// The numbers in which it runs.
        dtype: Dtype = Dtype::F32,
    }
}

section! {
    /// Another model that takes the teacher's place at the start.
    Student {
        /// The model. `None`: the teacher itself is made smaller. Not built yet.
        model: Option<String> = None,
    }
}

section! {
    /// Text, or token ids, of one file.
    Text {
        /// The file: `.txt`, `.jsonl`, or ids in `.u16` or `.u32`.
        path: Option<String> = None,
        /// How many windows of it are used at most. `None`: all.
        windows: Option<usize> = None,
    }
}

section! {
    /// The texts.
    Data {
        /// Texts that show which inputs the matrices get. Empty: the files beside the teacher.
        calibrate: Vec<Text> = Vec::new(),
        /// Text of another kind, which is only measured.
        foreign: Text = Text::default(),
        /// Text for distillation.
        distil: Text = Text::default(),
        /// Text for fine-tuning.
        finetune: Text = Text::default(),
        /// Text that is measured, and used for nothing else.
        evaluate: Text = Text::default(),
        /// Tokens of a window. `None`: the context of the model, at most 2048.
        seq_len: Option<usize> = None,
        /// Tokens from one window to the next. `None`: `seq_len`.
        stride: Option<usize> = None,
        /// How many windows all texts give together at most. `None`: no bound.
        max_chunks: Option<usize> = None,
        /// Windows that run together.
        batch_size: usize = 8,
    }
}

section! {
    /// The divergence that is allowed.
    KlTarget {
        /// Nats per token on `data.evaluate`. `None`: it is only reported.
        limit: Option<f64> = Some(0.05),
        /// Probability that the true mean is below the bound that is compared with the limit.
        confidence: f64 = 0.95,
    }
}

section! {
    /// What is to be reached. At most one of the three sizes is given.
    Targets {
        /// Bytes of the teacher over bytes of the student, both on disk.
        compression_ratio: Option<f64> = None,
        /// Bytes of the student on disk.
        bytes: Option<u64> = None,
        /// Bits of the student on disk per weight of the teacher.
        bits_per_weight: Option<f64> = None,
        /// The divergence that is allowed.
        kl: KlTarget = KlTarget::default(),
        /// Share of the teacher's accuracy in tasks. Comes with tasks.
        retained_accuracy: Option<f64> = None,
    }
}

words! {
    /// Who chooses the settings of each tensor.
    PlannerMode {
        /// The planner, by measured divergence.
        Search = "search",
        /// The rules of the published toolkit.
        PublishedRules = "published-rules",
        /// The recipe: every branch that is on has its size.
        Fixed = "fixed",
    }
}

words! {
    /// What the size of a student is.
    SizeMeasure {
        /// Bytes of its packed file.
        Disk = "disk",
        /// Bytes in memory.
        Resident = "resident",
        /// Numbers that are stored.
        Parameters = "parameters",
    }
}

words! {
    /// What the planner may choose from.
    Candidates {
        /// Every branch that is on.
        Auto = "auto",
        /// Low rank.
        Lra = "lra",
        /// The embedding and the head.
        Blt = "blt",
        /// Sparsity.
        Sparsity = "sparsity",
        /// Quantisation.
        Quantise = "quantise",
    }
}

words! {
    /// How the harm of a candidate is estimated.
    Distortion {
        /// By gradients. Comes with training.
        Fisher = "fisher",
        /// By the error of the output, corrected by one measurement per tensor.
        Output = "output",
        /// By measuring each candidate alone.
        Measured = "measured",
    }
}

section! {
    /// Swaps of settings after the plan is made.
    Repair {
        /// Swaps that are tried.
        swaps: usize = 60,
        /// Tokens on which a swap is measured.
        tokens: usize = 2048,
    }
}

section! {
    /// How settings are chosen.
    Planner {
        /// Who chooses.
        mode: PlannerMode = PlannerMode::Search,
        /// What the size of a student is.
        measure: SizeMeasure = SizeMeasure::Disk,
        /// What may be chosen from: `auto`, or some branches.
        candidates: Vec<Candidates> = vec![Candidates::Auto],
        /// How the harm of a candidate is estimated.
        distortion: Distortion = Distortion::Output,
        /// Measurements of whole students that may be made.
        evaluations: usize = 200,
        /// Swaps after the plan is made.
        repair: Repair = Repair::default(),
        /// Patterns of tensors that are never changed.
        protect: Vec<String> = vec!["*norm*".to_owned(), "*router*".to_owned()],
        /// Least bits per weight of the tensors of a pattern.
        floor_bits: BTreeMap<String, f64> = BTreeMap::new(),
    }
}

section! {
    /// What to shrink, by how much, and how.
    Recipe {
        /// Version of the fields, always 1.
        version: u32 = 1,
        /// Which branches may be used.
        mode: Mode = Mode::Hybrid,
        /// Seed of everything random.
        seed: u64 = 0,
        /// The model that is made smaller.
        teacher: Teacher = Teacher::default(),
        /// Another model to start from.
        student: Student = Student::default(),
        /// The texts.
        data: Data = Data::default(),
        /// What is to be reached.
        targets: Targets = Targets::default(),
        /// How settings are chosen.
        planner: Planner = Planner::default(),
        /// The ways of making a tensor smaller.
        branches: Branches = Branches::default(),
        /// How the results of branches are joined.
        merge: Merge = Merge::default(),
        /// Refits each matrix to the student's inputs before it is made smaller.
        correct: Correct = Correct::default(),
        /// Training of the student.
        recover: Recover = Recover::default(),
        /// What is measured at the end.
        evaluate: Evaluate = Evaluate::default(),
        /// What is logged.
        logging: Logging = Logging::default(),
        /// Where the student goes.
        output: Output = Output::default(),
    }
}

impl Recipe {
    /// Digest of all settings: BLAKE3 of their JSON, in hexadecimal digits.
    ///
    /// # Panics
    /// Never: a recipe holds only what JSON can hold.
    #[must_use]
    pub fn digest(&self) -> String {
        let canonical = serde_json::to_vec(self).expect("words, numbers and texts are JSON");
        blake3::hash(&canonical).to_hex().to_string()
    }

    /// Whether `branch` takes part. What is `auto` does if the planner searches, else if the recipe
    /// gives it a size.
    #[must_use]
    pub fn uses(&self, branch: Branch) -> bool {
        match self.branches.switch(branch) {
            _ if branch == Branch::Kv => false,
            Switch::On => true,
            Switch::Off => false,
            Switch::Auto => self.planner.mode == PlannerMode::Search || self.branches.has_size(branch),
        }
    }
}
