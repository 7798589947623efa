//! Makes and measures a student for every subset of the branches of a recipe, and shares out size
//! and divergence among the branches. Results may be kept in a folder, so that work that was
//! stopped goes on where it was.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use deltaloom::checkpoint::output::{Inputs, NewFile};
use deltaloom::{Error, Progress, Result};
use deltaloom_lm::model::Parts;
use serde::{Deserialize, Serialize};

use crate::attribution::shapley;
use crate::data::Texts;
use crate::recipe::{Branch, Loaded, Logging, Output, PlannerMode, Switch};
use crate::run::{self, Report};
use crate::student;

/// What progress counts for each student.
const UNIT: u64 = 1 << 20;
/// Bytes of a kept result at most.
const LARGEST_RESULT: u64 = 1 << 16;

/// A student with some of the branches.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Subset {
    /// The branches that are on.
    pub branches: Vec<Branch>,
    /// Bytes of its packed weights.
    pub student_bytes: u64,
    /// Bytes of the teacher over those.
    pub ratio: f64,
    /// Divergence from the teacher on the first text, in nats per token.
    pub kl: f64,
    /// Its standard error.
    pub kl_error: f64,
}

/// What a branch contributes to the student that has all of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Contribution {
    /// The branch.
    pub branch: Branch,
    /// Shapley value of the natural logarithm of the ratio.
    pub ln_ratio: f64,
    /// Its exponential. Those of all branches times the ratio of packing alone give the ratio.
    pub factor: f64,
    /// Shapley value of the divergence, in nats per token.
    pub kl: f64,
}

/// All subsets, and what follows from them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ablation {
    /// The branches of the recipe.
    pub branches: Vec<Branch>,
    /// A student for each subset: the branch of bit `i` is on in those whose number has this bit.
    pub subsets: Vec<Subset>,
    /// Ratio of the packed teacher, without any branch: packing loses nothing.
    pub packing_ratio: f64,
    /// Ratio with all branches.
    pub ratio: f64,
    /// Divergence with all branches.
    pub kl: f64,
    /// What each branch contributes to both.
    pub contributions: Vec<Contribution>,
}

impl Subset {
    fn of(branches: Vec<Branch>, report: &Report) -> Self {
        let Report { student_bytes, ratio, .. } = *report;
        let [kl, kl_error] = report.texts.first().map_or([f64::NAN; 2], |text| [text.kl, text.kl_error]);
        Self { branches, student_bytes, ratio, kl, kl_error }
    }
}

impl Ablation {
    fn new(branches: Vec<Branch>, subsets: Vec<Subset>) -> Result<Self> {
        let whole =
            |subsets: &[Subset]| Some((subsets.first()?.ratio, subsets.last()?.ratio, subsets.last()?.kl));
        let shares = |value: fn(&Subset) -> f64| shapley(&subsets.iter().map(value).collect::<Vec<_>>());
        let (Some((packing_ratio, ratio, kl)), Some(ratios), Some(kls)) =
            (whole(&subsets), shares(|subset| libm::log(subset.ratio)), shares(|subset| subset.kl))
        else {
            return Err(Error::InvalidArgument(format!("{} subsets of branches", subsets.len())));
        };
        let each = branches.iter().zip(ratios.into_iter().zip(kls));
        let each = each.map(|(branch, (ln_ratio, kl))| Contribution {
            branch: *branch,
            ln_ratio,
            factor: libm::exp(ln_ratio),
            kl,
        });
        let contributions = each.collect();
        Ok(Self { branches, subsets, packing_ratio, ratio, kl, contributions })
    }
}

/// Makes all students. `state` is a folder where results are kept and found again; it is made if it
/// does not exist. `each` is told of every result, and how many there are.
///
/// # Errors
/// As [`run::run`]; [`Error::InvalidArgument`] for a recipe that leaves sizes to the planner;
/// errors of writing to `state`.
pub fn ablate(
    loaded: &Loaded,
    state: Option<&Path>,
    progress: &dyn Progress,
    each: &dyn Fn(&Subset, usize),
) -> Result<Ablation> {
    loaded.ready()?;
    if loaded.recipe.planner.mode != PlannerMode::Fixed {
        let what = "one size is shared out among all branches, so that none has a part of its own".to_owned();
        let hint = Some("use fixed, with the size of each branch".to_owned());
        return Err(loaded.error("planner.mode", what, hint).into());
    }
    let branches: Vec<Branch> =
        Branch::ALL.into_iter().filter(|branch| loaded.recipe.uses(*branch)).collect();
    let recipes: Vec<(Loaded, Vec<Branch>)> =
        (0..1_usize << branches.len()).map(|set| with_only(loaded, &branches, set)).collect();
    let folder = state.map(|path| State::open(path, loaded)).transpose()?;
    let kept = |(recipe, on): &(Loaded, Vec<Branch>)| folder.as_ref().and_then(|it| it.find(recipe, on));
    let found: Vec<Option<Subset>> = recipes.iter().map(kept).collect();
    progress.start(UNIT * found.iter().filter(|subset| subset.is_none()).count() as u64);
    let mut subsets = Vec::new();
    for ((recipe, on), found) in recipes.into_iter().zip(found) {
        let subset = match found {
            Some(subset) => subset,
            None => {
                let part = Part { whole: progress, state: Mutex::default() };
                let made = run::run(&recipe, &part)?;
                part.end();
                let subset = Subset::of(on, &made.report);
                if let Some(folder) = &folder {
                    folder.keep(&recipe, &subset)?;
                }
                subset
            }
        };
        each(&subset, 1 << branches.len());
        subsets.push(subset);
    }
    Ablation::new(branches, subsets)
}

/// The recipe with the branches of a set, and these.
fn with_only(loaded: &Loaded, branches: &[Branch], set: usize) -> (Loaded, Vec<Branch>) {
    let mut loaded = loaded.clone();
    let mut on = Vec::new();
    for (number, branch) in branches.iter().enumerate() {
        if set >> number & 1 == 1 {
            on.push(*branch);
        } else {
            loaded.recipe.branches.set(*branch, Switch::Off);
        }
    }
    (loaded, on)
}

/// A result in a file: numbers as their bits, so that none is rounded.
#[derive(Serialize, Deserialize)]
struct Kept {
    branches: Vec<Branch>,
    student_bytes: u64,
    /// Ratio, divergence and its error.
    bits: [u64; 3],
}

/// A folder of results.
struct State<'a> {
    folder: &'a Path,
    /// What all of them depend on besides the recipe: the program, the teacher, the texts.
    common: String,
}

impl<'a> State<'a> {
    fn open(folder: &'a Path, loaded: &Loaded) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::writing(folder))?;
        let path = loaded.path(loaded.recipe.teacher.model.as_deref().unwrap_or_default());
        let parts = Parts::open(&path).map_err(|error| error.in_file(&path))?;
        let texts = Texts::read(loaded, &path, &parts)?.used;
        let origin = student::origin(&parts.checkpoint)?.digest;
        let texts: Vec<String> = texts.into_iter().map(|text| text.digest).collect();
        let common = format!("{} {origin} {}", env!("CARGO_PKG_VERSION"), texts.join(" "));
        Ok(Self { folder, common })
    }

    /// The name of a result: a digest of all that it depends on.
    fn file(&self, loaded: &Loaded) -> std::path::PathBuf {
        let mut recipe = loaded.recipe.clone();
        (recipe.output, recipe.logging) = (Output::default(), Logging::default());
        for branch in Branch::ALL.into_iter().filter(|branch| !loaded.recipe.uses(*branch)) {
            recipe.branches.forget(branch);
        }
        let digest = blake3::hash(format!("{} {}", self.common, recipe.digest()).as_bytes());
        self.folder.join(format!("{}.json", digest.to_hex()))
    }

    /// A result that was kept. One that cannot be read, or is of other branches, is made anew.
    fn find(&self, loaded: &Loaded, on: &[Branch]) -> Option<Subset> {
        let mut text = String::new();
        let file = std::fs::File::open(self.file(loaded)).ok()?;
        file.take(LARGEST_RESULT).read_to_string(&mut text).ok()?;
        let Kept { branches, student_bytes, bits } = serde_json::from_str(&text).ok()?;
        let [ratio, kl, kl_error] = bits.map(f64::from_bits);
        (branches == on && ratio > 0.0).then_some(Subset { branches, student_bytes, ratio, kl, kl_error })
    }

    fn keep(&self, loaded: &Loaded, subset: &Subset) -> Result<()> {
        let path = self.file(loaded);
        let Subset { branches, student_bytes, ratio, kl, kl_error } = subset.clone();
        let kept = Kept { branches, student_bytes, bits: [ratio, kl, kl_error].map(f64::to_bits) };
        let text = serde_json::to_string(&kept)
            .map_err(|error| Error::InvalidArgument(format!("a result cannot be written: {error}")))?;
        let mut file = NewFile::create(&path, true, &Inputs::default())?;
        file.file().write_all(text.as_bytes()).map_err(Error::writing(&path))?;
        file.commit()
    }
}

/// The progress of one student as a part of the whole.
struct Part<'a> {
    whole: &'a dyn Progress,
    state: Mutex<Done>,
}

#[derive(Default)]
struct Done {
    total: u64,
    done: u64,
    /// What the whole was told.
    told: u64,
}

impl Part<'_> {
    fn tell(&self, change: impl FnOnce(&mut Done)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        let share = u128::from(state.done.min(state.total)) * u128::from(UNIT);
        let share = u64::try_from(share / u128::from(state.total.max(1))).unwrap_or(UNIT);
        let new = share.saturating_sub(state.told);
        state.told += new;
        self.whole.advance(new);
    }

    fn end(&self) {
        self.tell(|state| (state.total, state.done) = (1, 1));
    }
}

impl Progress for Part<'_> {
    fn start(&self, total_bytes: u64) {
        self.tell(|state| state.total = total_bytes);
    }

    fn advance(&self, bytes: u64) {
        self.tell(|state| state.done = state.done.saturating_add(bytes));
    }

    fn is_cancelled(&self) -> bool {
        self.whole.is_cancelled()
    }
}
