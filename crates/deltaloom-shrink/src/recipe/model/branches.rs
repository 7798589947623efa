//! The settings of each branch.

use serde::{Deserialize, Serialize};

use super::{Branch, Switch, section, words};

words! {
    /// What a rank must reach.
    Criterion {
        /// A share of the energy: of the sum of squared singular values.
        Energy = "energy",
        /// A share of the spectral entropy.
        Entropy = "entropy",
        /// The exponential of the spectral entropy.
        RelativeEntropy = "relative-entropy",
        /// The least loss over all tensors together.
        Loss = "loss",
        /// A share of the sum of singular values, as the published toolkit does.
        SingularSum = "singular-sum",
    }
}

words! {
    /// What becomes of the part that a low rank leaves over.
    Residual {
        /// It is dropped.
        Drop = "drop",
        /// Later branches get it.
        Keep = "keep",
    }
}

section! {
    /// Bounds of ranks. Shares are of the break-even rank `mn/(m+n)` of an `m` x `n` matrix.
    Guard {
        /// Least rank.
        min_rank: usize = 8,
        /// Largest share of all.
        max_share: f64 = 0.95,
        /// Ranks are multiples of it.
        multiple_of: usize = 8,
        /// Least and largest share in attention.
        attention: [f64; 2] = [0.05, 1.0],
        /// Least and largest share in the MLP.
        mlp: [f64; 2] = [0.05, 1.0],
        /// Least and largest share in an expert.
        expert: [f64; 2] = [0.02, 1.0],
    }
}

section! {
    /// Singular vectors from random projections.
    Randomised {
        /// Whether it is done.
        enabled: Switch = Switch::Auto,
        /// Columns beyond the rank.
        oversample: usize = 8,
        /// Power steps.
        power: usize = 2,
    }
}

section! {
    /// Low rank: a matrix becomes the product of two thin ones.
    Lra {
        /// Whether it is done.
        enabled: Switch = Switch::Auto,
        /// Rank of every matrix. Excludes `ratio`. With neither, the criterion decides.
        rank: Option<usize> = None,
        /// Weights of a matrix over those of its factors. Excludes `rank`.
        ratio: Option<f64> = None,
        /// What a rank must reach.
        criterion: Criterion = Criterion::Energy,
        /// The share that the criterion asks for.
        threshold: f64 = 0.95,
        /// Exponents of the inputs' covariance that are tried. 0 is a plain SVD.
        whitening: Vec<f64> = vec![0.0, 0.125, 0.25, 0.5],
        /// Weights rows by the covariance of gradients, too. Comes with training.
        two_sided: bool = false,
        /// Bounds of ranks.
        guard: Guard = Guard::default(),
        /// What becomes of the part that is left over.
        residual: Residual = Residual::Drop,
        /// Share of zeros in the factors.
        sparsity: f64 = 0.0,
        /// Singular vectors from random projections.
        randomised: Randomised = Randomised::default(),
    }
}

words! {
    /// Which key and value projections share a factor.
    Grouping {
        /// Those of a head.
        Head = "head",
        /// Those of a group of heads that share keys.
        Group = "group",
        /// Those of a layer.
        Joint = "joint",
    }
}

words! {
    /// How rotary positions go with factored keys.
    Rope {
        /// Keys are rebuilt, then rotated.
        Latent = "latent",
        /// There are none.
        None = "none",
    }
}

words! {
    /// What `cache_tokens` means.
    KvAs {
        /// Tokens that the cache keeps.
        Cache = "cache",
        /// A rank, as in the source of the published toolkit.
        Rank = "rank",
    }
}

section! {
    /// Training of the key and value factors.
    KvAlign {
        /// Steps.
        steps: usize = 0,
    }
}

section! {
    /// Keys and values. Not built yet.
    Kv {
        /// Whether it is done.
        enabled: Switch = Switch::Auto,
        /// Rank per group. Excludes `share`.
        rank: Option<usize> = None,
        /// Rank as a share of the width of a group. Excludes `rank`.
        share: Option<f64> = None,
        /// Which projections share a factor.
        grouping: Grouping = Grouping::Group,
        /// How rotary positions are handled.
        rope: Rope = Rope::Latent,
        /// Multiplies the second factor of values into the output projection.
        absorb_values: bool = true,
        /// Bits of cached numbers: 8, 4 or 2.
        cache_bits: Option<usize> = None,
        /// Tokens that the cache keeps at most.
        cache_tokens: Option<usize> = None,
        /// What `cache_tokens` means.
        #[serde(rename = "as")]
        means: KvAs = KvAs::Cache,
        /// First tokens, which the cache always keeps.
        sinks: usize = 4,
        /// Training of the factors.
        align: KvAlign = KvAlign::default(),
    }
}

words! {
    /// How tokens count when the embedding is factored.
    Weighting {
        /// All alike.
        None = "none",
        /// By how often they occur in the calibration text.
        Frequency = "frequency",
    }
}

words! {
    /// How the head goes with the embedding.
    Head {
        /// Both are the same factors.
        Tied = "tied",
        /// One table of rows, two projections.
        SharedTable = "shared-table",
        /// Each has factors of its own.
        Separate = "separate",
        /// The head stays as it is.
        Full = "full",
    }
}

words! {
    /// How bits are shared out among rows of the embedding.
    RowCoding {
        /// Evenly.
        None = "none",
        /// Rare tokens get fewer.
        Waterfill = "waterfill",
    }
}

words! {
    /// What is done to the embedding.
    BltMethod {
        /// It is factored.
        Factors = "factors",
        /// What the other branches do to the matrices of the layers.
        Layers = "layers",
        /// It becomes that of the base.
        Base = "base",
    }
}

section! {
    /// Embedding factorisation. It is not Meta's Byte Latent Transformer.
    Blt {
        /// Whether it is done.
        enabled: Switch = Switch::Auto,
        /// What is done: all settings but `enabled` and `smoothing` are for factors.
        method: BltMethod = BltMethod::Factors,
        /// Width of the rows that are stored. Excludes `embedding_reduction`.
        latent_dim: Option<usize> = None,
        /// 1 - `latent_dim` / width of the model. Excludes `latent_dim`.
        embedding_reduction: Option<f64> = None,
        /// How tokens count.
        weighting: Weighting = Weighting::Frequency,
        /// Added to the count of every token.
        smoothing: f64 = 0.5,
        /// Powers of frequencies that are tried as weights of rows.
        powers: Vec<f64> = vec![1.0, 0.75, 0.5, 0.25],
        /// Stores the mean row apart.
        offset: bool = true,
        /// How the head goes with it.
        head: Head = Head::Separate,
        /// How bits are shared out among rows.
        rows: RowCoding = RowCoding::Waterfill,
    }
}

words! {
    /// Which weights become zero.
    SparsityMethod {
        /// The smallest.
        Magnitude = "magnitude",
        /// The smallest, times the size of their inputs.
        Wanda = "wanda",
        /// Those that harm the output least, and the others make up for it.
        SparseGpt = "sparsegpt",
    }
}

words! {
    /// How sparsity is shared out among matrices.
    Allocation {
        /// By the planner.
        Planner = "planner",
        /// Evenly.
        Uniform = "uniform",
        /// By the share of outliers in their inputs.
        Owl = "owl",
    }
}

words! {
    /// Where Wanda compares weights.
    Scope {
        /// In a matrix.
        Matrix = "matrix",
        /// In a row.
        Row = "row",
    }
}

/// Where zeros may be. Spelled `unstructured`, `row`, or as two numbers such as `2:4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pattern {
    /// Anywhere.
    Unstructured,
    /// The same number in each row.
    Row,
    /// `zeros` of each `of` neighbours in a row.
    Blocks {
        /// Weights that become zero.
        zeros: usize,
        /// Weights of a block.
        of: usize,
    },
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        let blocks = word
            .split_once(':')
            .and_then(|(zeros, of)| Some(Self::Blocks { zeros: zeros.parse().ok()?, of: of.parse().ok()? }));
        match (word.as_str(), blocks) {
            ("unstructured", _) => Ok(Self::Unstructured),
            ("row", _) => Ok(Self::Row),
            (_, Some(blocks)) => Ok(blocks),
            _ => Err("wanted unstructured, row, or two numbers such as 2:4".to_owned()),
        }
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        match pattern {
            Pattern::Unstructured => "unstructured".to_owned(),
            Pattern::Row => "row".to_owned(),
            Pattern::Blocks { zeros, of } => format!("{zeros}:{of}"),
        }
    }
}

section! {
    /// Sparsity: most weights become zero.
    Sparsity {
        /// Whether it is done.
        enabled: Switch = Switch::Auto,
        /// Which weights become zero.
        method: SparsityMethod = SparsityMethod::SparseGpt,
        /// Share of zeros. `None`: the planner decides, or the pattern says it.
        target_sparsity: Option<f64> = None,
        /// Where zeros may be.
        pattern: Pattern = Pattern::Unstructured,
        /// How it is shared out among matrices.
        allocation: Allocation = Allocation::Planner,
        /// Where Wanda compares weights.
        scope: Scope = Scope::Matrix,
        /// What becomes of the part that it leaves over. `drop`: nothing, and quantisation is that
        /// of the weights that stay.
        residual: Residual = Residual::Keep,
    }
}

words! {
    /// How weights are rounded.
    QuantiseMethod {
        /// To the nearest.
        Rtn = "rtn",
        /// To the nearest, after columns are scaled by their inputs.
        Awq = "awq",
        /// With errors fed back into later columns (GPTQ).
        Feedback = "feedback",
        /// With feedback, and a step for each column.
        Waterfill = "waterfill",
    }
}

words! {
    /// In which order columns are rounded.
    Order {
        /// As they are stored.
        Natural = "natural",
        /// Those with the largest inputs first.
        Activation = "activation",
    }
}

words! {
    /// What is rescaled after rounding.
    Rescale {
        /// Nothing.
        None = "none",
        /// Each row, by least squares.
        Rows = "rows",
    }
}

section! {
    /// Quantisation: weights become small integers.
    Quantise {
        /// Whether it is done.
        enabled: Switch = Switch::Auto,
        /// How weights are rounded.
        method: QuantiseMethod = QuantiseMethod::Feedback,
        /// Fixed bits of a code, and 1 for signs. Excludes `rate`. With neither, the planner gives
        /// a rate.
        bits: Option<usize> = None,
        /// Bits per weight of entropy-coded codes, tables and scales counted. Excludes `bits`.
        rate: Option<f64> = None,
        /// What an entropy-coded code of 1 adds to outputs. Excludes `bits` and `rate`.
        step: Option<f64> = None,
        /// Share of a step that a weight needs to become the next entropy-coded code.
        threshold: f64 = 0.5,
        /// Weights of a row that share a step. Fixed bits only.
        group: usize = 64,
        /// Whether steps have no offset.
        symmetric: bool = false,
        /// Shares of the range of a group that are tried.
        clip_search: Vec<f64> = vec![1.0, 0.93, 0.86, 0.79, 0.72],
        /// In which order columns are rounded.
        order: Order = Order::Activation,
        /// Rotates inputs by a Hadamard matrix. Not built yet.
        hadamard: bool = false,
        /// What is rescaled after rounding.
        rescale: Rescale = Rescale::Rows,
        /// Added to the diagonal of the covariance, as a share of its mean.
        damping: f64 = 0.01,
        /// Columns that are rounded before the others are updated.
        block: usize = 64,
    }
}

section! {
    /// The ways of making a tensor smaller.
    Branches {
        /// Low rank.
        lra: Lra = Lra::default(),
        /// Keys and values.
        kv: Kv = Kv::default(),
        /// The embedding and the head. `embedding` is the same.
        blt: Blt = Blt::default(),
        /// Sparsity.
        sparsity: Sparsity = Sparsity::default(),
        /// Quantisation.
        quantise: Quantise = Quantise::default(),
        /// Experts that are removed. Not built yet.
        experts: super::Experts = super::Experts::default(),
        /// Heads, neurons and layers that are removed. Not built yet.
        width: super::Width = super::Width::default(),
    }
}

impl Branches {
    /// Whether `branch` is on.
    #[must_use]
    pub fn switch(&self, branch: Branch) -> Switch {
        match branch {
            Branch::Lra => self.lra.enabled,
            Branch::Kv => self.kv.enabled,
            Branch::Blt => self.blt.enabled,
            Branch::Sparsity => self.sparsity.enabled,
            Branch::Quantise => self.quantise.enabled,
        }
    }

    /// Switches `branch`.
    pub fn set(&mut self, branch: Branch, to: Switch) {
        *(match branch {
            Branch::Lra => &mut self.lra.enabled,
            Branch::Kv => &mut self.kv.enabled,
            Branch::Blt => &mut self.blt.enabled,
            Branch::Sparsity => &mut self.sparsity.enabled,
            Branch::Quantise => &mut self.quantise.enabled,
        }) = to;
    }

    /// Gives `branch` its default settings: for one that is off, they mean nothing.
    pub fn forget(&mut self, branch: Branch) {
        match branch {
            Branch::Lra => self.lra = Lra::default(),
            Branch::Kv => self.kv = Kv::default(),
            Branch::Blt => self.blt = Blt::default(),
            Branch::Sparsity => self.sparsity = Sparsity::default(),
            Branch::Quantise => self.quantise = Quantise::default(),
        }
    }

    /// Whether the recipe says how far `branch` goes.
    #[must_use]
    pub fn has_size(&self, branch: Branch) -> bool {
        match branch {
            Branch::Lra => self.lra.rank.is_some() || self.lra.ratio.is_some(),
            Branch::Kv => self.kv.rank.is_some() || self.kv.share.is_some() || self.kv.cache_tokens.is_some(),
            Branch::Blt => {
                self.blt.method != BltMethod::Factors
                    || self.blt.latent_dim.is_some()
                    || self.blt.embedding_reduction.is_some()
            }
            Branch::Sparsity => {
                self.sparsity.target_sparsity.is_some()
                    || matches!(self.sparsity.pattern, Pattern::Blocks { .. })
            }
            Branch::Quantise => {
                let Quantise { bits, rate, step, .. } = &self.quantise;
                bits.is_some() || rate.is_some() || step.is_some()
            }
        }
    }
}
