//! Everything about a recipe that can be refused before a weight is read.

use std::ops::{Bound, RangeBounds};

use super::model::{
    Blt, BltMethod, Branch, Branches, Distortion, Kv, MergeMode, Mode, Pattern, PlannerMode, Quantise,
    QuantiseMethod, Recipe, Residual, SizeMeasure, Switch,
};
use deltaloom_lm::yaml::Fault;

type Range = (Bound<f64>, Bound<f64>);

const COUNT: Range = (Bound::Included(1.0), Bound::Unbounded);
const POSITIVE: Range = (Bound::Excluded(0.0), Bound::Unbounded);
const NOT_NEGATIVE: Range = (Bound::Included(0.0), Bound::Unbounded);
const ABOVE_ONE: Range = (Bound::Excluded(1.0), Bound::Unbounded);
const SHARE: Range = (Bound::Included(0.0), Bound::Included(1.0));
const PART: Range = (Bound::Excluded(0.0), Bound::Included(1.0));
const BELOW_ONE: Range = (Bound::Included(0.0), Bound::Excluded(1.0));
const INSIDE: Range = (Bound::Excluded(0.0), Bound::Excluded(1.0));

/// The numbers that a field holds: none, one or some.
trait Numbers {
    fn numbers(&self) -> Vec<f64>;
}

macro_rules! numbers {
    ($($kind:ty)*) => {$(
        impl Numbers for $kind {
            fn numbers(&self) -> Vec<f64> {
                vec![*self as f64]
            }
        }
    )*};
}

numbers! { f64 usize u64 }

impl<T: Numbers> Numbers for Option<T> {
    fn numbers(&self) -> Vec<f64> {
        self.iter().flat_map(T::numbers).collect()
    }
}

impl<T: Numbers> Numbers for Vec<T> {
    fn numbers(&self) -> Vec<f64> {
        self.iter().flat_map(T::numbers).collect()
    }
}

impl<T: Numbers, const N: usize> Numbers for [T; N] {
    fn numbers(&self) -> Vec<f64> {
        self.iter().flat_map(T::numbers).collect()
    }
}

/// A rule for the numbers of a field.
type NumberRule = (&'static str, fn(&Recipe) -> Vec<f64>, Range);

macro_rules! number_rules {
    ($($first:ident $(. $next:ident)*: $range:expr,)*) => {
        &[$((
            concat!(stringify!($first) $(, ".", stringify!($next))*),
            |recipe| recipe.$first$(.$next)*.numbers(),
            $range,
        ),)*]
    };
}

const NUMBERS: &[NumberRule] = number_rules! {
    targets.compression_ratio: ABOVE_ONE,
    targets.bytes: COUNT,
    targets.bits_per_weight: (Bound::Excluded(0.0), Bound::Excluded(32.0)),
    targets.kl.limit: POSITIVE,
    targets.kl.confidence: INSIDE,
    targets.retained_accuracy: PART,
    data.foreign.windows: COUNT,
    data.distil.windows: COUNT,
    data.finetune.windows: COUNT,
    data.evaluate.windows: COUNT,
    data.seq_len: (Bound::Included(2.0), Bound::Unbounded),
    data.stride: COUNT,
    data.max_chunks: COUNT,
    data.batch_size: COUNT,
    planner.evaluations: COUNT,
    planner.repair.tokens: COUNT,
    branches.lra.rank: COUNT,
    branches.lra.ratio: ABOVE_ONE,
    branches.lra.threshold: PART,
    branches.lra.whitening: SHARE,
    branches.lra.guard.min_rank: COUNT,
    branches.lra.guard.max_share: PART,
    branches.lra.guard.multiple_of: COUNT,
    branches.lra.guard.attention: SHARE,
    branches.lra.guard.mlp: SHARE,
    branches.lra.guard.expert: SHARE,
    branches.lra.sparsity: BELOW_ONE,
    branches.kv.rank: COUNT,
    branches.kv.share: PART,
    branches.kv.cache_tokens: COUNT,
    branches.blt.latent_dim: COUNT,
    branches.blt.embedding_reduction: INSIDE,
    branches.blt.smoothing: NOT_NEGATIVE,
    branches.blt.powers: SHARE,
    branches.sparsity.target_sparsity: BELOW_ONE,
    branches.quantise.bits: (Bound::Included(1.0), Bound::Included(8.0)),
    branches.quantise.rate: (Bound::Excluded(0.0), Bound::Included(16.0)),
    branches.quantise.step: POSITIVE,
    branches.quantise.threshold: (Bound::Included(0.5), Bound::Excluded(1.0)),
    branches.quantise.group: COUNT,
    branches.quantise.clip_search: PART,
    branches.quantise.damping: NOT_NEGATIVE,
    branches.quantise.block: COUNT,
    branches.experts.keep: COUNT,
    branches.width.heads: COUNT,
    branches.width.neurons: COUNT,
    branches.width.layers: COUNT,
    correct.damping: NOT_NEGATIVE,
    recover.closed_form.rank: COUNT,
    recover.align.lr: POSITIVE,
    recover.distil.kl: NOT_NEGATIVE,
    recover.distil.ce: NOT_NEGATIVE,
    recover.distil.hidden: NOT_NEGATIVE,
    recover.distil.temperature: POSITIVE,
    recover.distil.top_k: COUNT,
    recover.lora.rank: COUNT,
    recover.lora.alpha: POSITIVE,
    recover.relora.keep_optimizer: SHARE,
    recover.optimizer.lr: POSITIVE,
    recover.optimizer.betas: BELOW_ONE,
    recover.optimizer.weight_decay: NOT_NEGATIVE,
    recover.optimizer.clip: POSITIVE,
    recover.optimizer.warmup: SHARE,
    recover.optimizer.min_lr: SHARE,
    recover.adapprox.k_init: COUNT,
    recover.adapprox.k_max_share: PART,
    recover.adapprox.error: INSIDE,
    recover.adapprox.every: COUNT,
    recover.adapprox.clip: POSITIVE,
    logging.every: COUNT,
};

/// A field, and whether the recipe gives it.
type Given = (&'static str, fn(&Recipe) -> bool);

/// Settings that say the same in different ways: at most one of each group is given.
const EXCLUSIVE: &[&[Given]] = &[
    &[
        ("targets.compression_ratio", |r| r.targets.compression_ratio.is_some()),
        ("targets.bytes", |r| r.targets.bytes.is_some()),
        ("targets.bits_per_weight", |r| r.targets.bits_per_weight.is_some()),
    ],
    &[
        ("branches.lra.rank", |r| r.branches.lra.rank.is_some()),
        ("branches.lra.ratio", |r| r.branches.lra.ratio.is_some()),
    ],
    &[
        ("branches.kv.rank", |r| r.branches.kv.rank.is_some()),
        ("branches.kv.share", |r| r.branches.kv.share.is_some()),
    ],
    &[
        ("branches.blt.latent_dim", |r| r.branches.blt.latent_dim.is_some()),
        ("branches.blt.embedding_reduction", |r| r.branches.blt.embedding_reduction.is_some()),
    ],
    &[
        ("branches.quantise.bits", |r| r.branches.quantise.bits.is_some()),
        ("branches.quantise.rate", |r| r.branches.quantise.rate.is_some()),
        ("branches.quantise.step", |r| r.branches.quantise.step.is_some()),
    ],
];

const TRAINING: &str = "this comes with training, which is not built yet";
const NOT_BUILT: &str = "this is not built yet";
const TASKS: &str = "this comes with tasks, which are not built yet";

/// A field, whether the recipe asks for it, and why it cannot be.
type Later = (&'static str, fn(&Recipe) -> bool, &'static str);

/// What a recipe may say and nothing does yet.
const LATER: &[Later] = &[
    ("mode", |r| r.mode == Mode::Kv, NOT_BUILT),
    ("mode", |r| r.mode == Mode::Distil, TRAINING),
    ("student.model", |r| r.student.model.is_some(), NOT_BUILT),
    ("targets.retained_accuracy", |r| !by_published_rules(r) && r.targets.retained_accuracy.is_some(), TASKS),
    ("planner.measure", |r| r.planner.measure != SizeMeasure::Disk, NOT_BUILT),
    ("planner.distortion", |r| r.planner.distortion == Distortion::Fisher, TRAINING),
    ("branches.lra.two_sided", |r| r.branches.lra.two_sided, TRAINING),
    ("branches.kv.enabled", |r| !by_published_rules(r) && r.branches.kv.enabled == Switch::On, NOT_BUILT),
    ("branches.kv.align.steps", |r| r.branches.kv.align.steps > 0, TRAINING),
    ("branches.quantise.hadamard", |r| r.branches.quantise.hadamard, NOT_BUILT),
    ("branches.experts.keep", |r| r.branches.experts.keep.is_some(), NOT_BUILT),
    ("branches.width.enabled", |r| r.branches.width.enabled, NOT_BUILT),
    ("recover.closed_form.enabled", |r| r.recover.closed_form.enabled == Switch::On, TRAINING),
    ("recover.align.steps", |r| r.recover.align.steps > 0, TRAINING),
    ("recover.distil.tokens", |r| r.recover.distil.tokens > 0, TRAINING),
    ("recover.relora.every", |r| r.recover.relora.every > 0, TRAINING),
    ("evaluate.tasks", |r| !r.evaluate.tasks.is_empty(), TASKS),
    ("output.exact_back", |r| r.output.exact_back, NOT_BUILT),
];

fn by_published_rules(recipe: &Recipe) -> bool {
    recipe.planner.mode == PlannerMode::PublishedRules
}

/// A rule between fields: the field, whether it is broken, what is wrong, and what to do.
type Relation = (&'static str, fn(&Recipe) -> bool, &'static str, &'static str);

const RELATIONS: &[Relation] = &[
    (
        "data.stride",
        |r| r.data.stride.zip(r.data.seq_len).is_some_and(|(stride, seq_len)| stride > seq_len),
        "above seq_len, so tokens between windows would be left out",
        "leave it out for stride = seq_len",
    ),
    (
        "branches.blt.powers",
        |r| r.branches.blt.powers.is_empty(),
        "no power is given",
        "[0.0] weighs all rows alike",
    ),
    (
        "branches.lra.whitening",
        |r| r.branches.lra.whitening.is_empty(),
        "no exponent is given",
        "[0.0] is a plain SVD",
    ),
    ("branches.lra.guard.attention", |r| falls(r.branches.lra.guard.attention), FALLS, FALLS_HINT),
    ("branches.lra.guard.mlp", |r| falls(r.branches.lra.guard.mlp), FALLS, FALLS_HINT),
    ("branches.lra.guard.expert", |r| falls(r.branches.lra.guard.expert), FALLS, FALLS_HINT),
    (
        "branches.kv.cache_bits",
        |r| r.branches.kv.cache_bits.is_some_and(|bits| ![2, 4, 8].contains(&bits)),
        "not a width of cached numbers",
        "8, 4 or 2",
    ),
    (
        "branches.kv.cache_tokens",
        |r| r.branches.kv.cache_tokens.is_some_and(|tokens| tokens <= r.branches.kv.sinks),
        "the first tokens, which are always kept, leave no room for others",
        "more than branches.kv.sinks",
    ),
    (
        "branches.sparsity.pattern",
        |r| matches!(r.branches.sparsity.pattern, Pattern::Blocks { zeros, of } if zeros == 0 || zeros >= of),
        "a block must have some zeros and some other weights",
        "2:4 makes 2 of each 4 weights zero",
    ),
    (
        "branches.sparsity.target_sparsity",
        |r| {
            r.branches
                .sparsity
                .target_sparsity
                .is_some_and(|share| contradicts(r.branches.sparsity.pattern, share))
        },
        "the pattern says another share of zeros",
        "leave it out with a pattern such as 2:4",
    ),
    (
        "branches.quantise.bits",
        |r| r.branches.quantise.bits.is_some() && r.branches.quantise.method == QuantiseMethod::Waterfill,
        "waterfill codes have no fixed width",
        "give rate instead",
    ),
    (
        "branches.sparsity.residual",
        |r| {
            let Quantise { rate, step, .. } = &r.branches.quantise;
            r.branches.sparsity.residual == Residual::Drop && (rate.is_some() || step.is_some())
        },
        "drop, and values of a sparse matrix have codes of fixed bits",
        "give branches.quantise.bits",
    ),
    (
        "branches.blt.method",
        |r| {
            let Blt { method, latent_dim, embedding_reduction, .. } = &r.branches.blt;
            *method != BltMethod::Factors && (latent_dim.is_some() || embedding_reduction.is_some())
        },
        "only factors have a width",
        "leave latent_dim and embedding_reduction out",
    ),
    (
        "branches.quantise.clip_search",
        |r| r.branches.quantise.clip_search.is_empty(),
        "no share is given",
        "[1.0] keeps the whole range",
    ),
    (
        "planner.candidates",
        |r| r.planner.candidates.is_empty(),
        "nothing is left to choose from",
        "leave it out for auto",
    ),
    (
        "data.calibrate",
        |r| r.data.calibrate.iter().any(|text| text.path.is_none()),
        "a text has no path",
        "leave data.calibrate out to take the files beside the teacher",
    ),
    (
        "data.calibrate",
        |r| r.data.calibrate.iter().any(|text| text.windows == Some(0)),
        "a text with 0 windows",
        "leave windows out for all of them",
    ),
    (
        "merge.weights",
        |r| r.merge.mode == MergeMode::Sequential && r.merge.weights.is_some(),
        "only blend has weights",
        "merge.mode: blend",
    ),
    (
        "merge.weights",
        |r| r.merge.weights.iter().flatten().any(|(_, weight)| !SHARE.contains(weight)),
        "a weight is outside 0 to 1",
        "their sum is 1",
    ),
    (
        "merge.weights",
        |r| r.merge.weights.as_ref().is_some_and(|w| (w.values().sum::<f64>() - 1.0).abs() > 1e-6),
        "the sum of the weights is not 1",
        "divide each by their sum",
    ),
    (
        "planner.floor_bits",
        |r| r.planner.floor_bits.values().any(|bits| !(0.0..=8.0).contains(bits)),
        "bits are outside 0 to 8",
        "an example is {\"*v_proj*\": 2.0}",
    ),
    (
        "planner.mode",
        |r| r.planner.mode == PlannerMode::Fixed && !Branch::ALL.iter().any(|&branch| r.uses(branch)),
        "fixed, and no branch has a size",
        "give branches.quantise.bits, rate or step, lra.rank or ratio, blt.latent_dim, or sparsity.target_sparsity",
    ),
];

const FALLS: &str = "the largest share is below the least";
const FALLS_HINT: &str = "[least, largest]";

fn falls([least, largest]: [f64; 2]) -> bool {
    least > largest
}

fn contradicts(pattern: Pattern, share: f64) -> bool {
    match pattern {
        Pattern::Blocks { zeros, of } => (share * of as f64 - zeros as f64).abs() > 1e-6,
        Pattern::Unstructured | Pattern::Row => false,
    }
}

/// Every rule that `recipe` breaks. Their places are not known yet.
pub(super) fn faults(recipe: &Recipe) -> Vec<Fault> {
    let numbers = NUMBERS.iter().flat_map(|(field, pick, range)| {
        let bad = pick(recipe).into_iter().find(|number| !range.contains(number));
        bad.map(|number| Fault::new(*field, format!("found {number}, wanted {}", in_words(*range))))
    });
    let exclusive = EXCLUSIVE.iter().filter_map(|group| {
        let mut given = group.iter().filter(|(_, is_given)| is_given(recipe));
        let (first, second) = (given.next()?.0, given.next()?.0);
        Some(Fault::new(second, format!("{first} is given, too")).hint("give one of them"))
    });
    let later = LATER.iter().filter(|(_, asked, _)| asked(recipe));
    let later = later.map(|(field, _, reason)| Fault::new(*field, *reason));
    let relations = RELATIONS.iter().filter(|(_, broken, ..)| broken(recipe));
    let relations = relations.map(|(field, _, what, hint)| Fault::new(*field, *what).hint(*hint));
    numbers.chain(exclusive).chain(later).chain(relations).chain(switched_by_mode(recipe)).collect()
}

fn in_words((low, high): Range) -> String {
    let low = match low {
        Bound::Included(low) => format!("at least {low}"),
        Bound::Excluded(low) => format!("above {low}"),
        Bound::Unbounded => String::new(),
    };
    match high {
        Bound::Included(high) => format!("{low} and at most {high}"),
        Bound::Excluded(high) => format!("{low} and below {high}"),
        Bound::Unbounded => low,
    }
}

/// The only branch of a mode.
fn only(mode: Mode) -> Option<Branch> {
    Branch::ALL.into_iter().find(|branch| branch.name() == mode.name())
}

/// Switches that say the opposite of the recipe's mode.
fn switched_by_mode(recipe: &Recipe) -> Vec<Fault> {
    let Some(only) = only(recipe.mode) else { return Vec::new() };
    let opposite = |branch| if branch == only { Switch::Off } else { Switch::On };
    let contrary =
        Branch::ALL.into_iter().filter(|&branch| recipe.branches.switch(branch) == opposite(branch));
    let fault = |branch: Branch| {
        let what = format!("mode: {} says the opposite", recipe.mode.name());
        Fault::new(format!("branches.{}.enabled", branch.name()), what).hint("mode: hybrid")
    };
    contrary.map(fault).collect()
}

/// Switches the branches as `mode` says.
pub(super) fn apply_mode(mode: Mode, branches: &mut Branches) {
    if let Some(only) = only(mode) {
        for branch in Branch::ALL {
            branches.set(branch, if branch == only { Switch::On } else { Switch::Off });
        }
    }
}

/// What a recipe says without effect, or at a risk.
pub(super) fn warnings(recipe: &Recipe) -> Vec<Fault> {
    let mut warnings = Vec::new();
    if recipe.branches.kv != Kv::default() && recipe.branches.kv.enabled != Switch::Off {
        warnings.push(Fault::new("branches.kv", "not applied: keys and values are not built yet"));
    }
    if recipe.targets.retained_accuracy.is_some() {
        warnings.push(Fault::new("targets.retained_accuracy", "not applied: there are no tasks yet"));
    }
    if recipe.data.calibrate.len() == 1 {
        let what = "one source: corrections can overfit it";
        warnings.push(Fault::new("data.calibrate", what).hint("add text of another kind"));
    }
    warnings
}

/// What a run needs and `recipe` does not have.
pub(super) fn missing(recipe: &Recipe) -> Option<Fault> {
    let targets = &recipe.targets;
    let sizes =
        [targets.compression_ratio.is_some(), targets.bytes.is_some(), targets.bits_per_weight.is_some()];
    if recipe.teacher.model.is_none() {
        return Some(Fault::new("teacher.model", "no teacher is named").hint("teacher: {model: FOLDER}"));
    }
    if recipe.branches.blt.method == BltMethod::Base && recipe.teacher.base.is_none() {
        let fault = Fault::new("branches.blt.method", "base, and the teacher has none");
        return Some(fault.hint("teacher: {base: FOLDER}"));
    }
    if recipe.teacher.base.is_some() && recipe.planner.mode != PlannerMode::Fixed {
        let fault = Fault::new("planner.mode", "only fixed makes students of a base yet");
        return Some(fault.hint("planner: {mode: fixed}"));
    }
    let has_size = sizes.contains(&true);
    match recipe.planner.mode {
        // Without a size, the smallest student within the limit is looked for.
        PlannerMode::Search if !has_size && targets.kl.limit.is_none() => {
            let fault = Fault::new("targets", "no size is asked for");
            Some(fault.hint("give compression_ratio, bytes, bits_per_weight or kl.limit"))
        }
        PlannerMode::PublishedRules if targets.compression_ratio.is_none() => {
            let fault = Fault::new("targets", "the published rules need a ratio");
            Some(fault.hint("give compression_ratio"))
        }
        _ => None,
    }
}
