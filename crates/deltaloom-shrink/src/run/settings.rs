//! From the fields of a recipe to what is done to each matrix.

use std::collections::BTreeMap;

use deltaloom::Result;
use deltaloom_lm::layer::MatrixRole;
use deltaloom_lm::model::Parts;

use crate::branches::low_rank::{self, Rank};
use crate::branches::{quantise, sparsity};
use crate::forms::{self, FloatType};
use crate::pipeline::{LowRank, Place, Treatment};
use crate::recipe::{
    Allocation, Branch, Candidates, Criterion, Loaded, Lra, Matrix, MergeMode, Order, Pattern, Quantise,
    QuantiseMethod, Recipe, Rescale, Residual, Scope, Sparsity, SparsityMethod, check_shapes,
};

/// The candidates of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowed {
    /// Codes of any tensor.
    pub(super) codes: bool,
    /// Two factors of a matrix.
    pub(super) low_rank: bool,
    /// Zeros in a matrix.
    pub(super) sparse: bool,
    /// Two factors of the embedding and the head.
    pub(super) tables: bool,
}

impl Allowed {
    /// What a recipe names, of the branches that are on.
    fn new(recipe: &Recipe) -> Self {
        let listed = &recipe.planner.candidates;
        let allows = |candidate, branch| {
            recipe.uses(branch) && (listed.contains(&Candidates::Auto) || listed.contains(&candidate))
        };
        Self {
            codes: allows(Candidates::Quantise, Branch::Quantise),
            low_rank: allows(Candidates::Lra, Branch::Lra),
            sparse: allows(Candidates::Sparsity, Branch::Sparsity),
            tables: allows(Candidates::Blt, Branch::Blt),
        }
    }
}

/// What is done to matrices.
pub(super) struct Settings {
    /// What a search may choose from.
    pub(super) candidates: Allowed,
    /// Powers of second moments that low rank tries, one in each round.
    pub(super) exponents: Vec<f64>,
    lra: Option<Lra>,
    sparse: Option<sparsity::Settings>,
    keep_unsparse: bool,
    pub(super) quantise: Option<quantise::Settings>,
    protect: Vec<String>,
    floors: BTreeMap<String, f64>,
}

impl Settings {
    /// Those of a recipe.
    ///
    /// # Errors
    /// [`deltaloom::Error::InvalidArgument`] for sizes that no matrix of the teacher has room for,
    /// and for what is not built yet.
    pub(super) fn new(loaded: &Loaded, parts: &Parts) -> Result<Self> {
        let recipe = &loaded.recipe;
        let linears: Vec<Matrix> = parts
            .config
            .layers
            .iter()
            .flat_map(|layer| {
                layer.matrices().into_iter().map(|role| {
                    let [rows, columns] = layer.shape(role);
                    Matrix { rows, columns }
                })
            })
            .collect();
        let embedding = Matrix { rows: parts.config.vocabulary, columns: parts.config.width };
        check_shapes(loaded, &linears, embedding)?;
        let later = |field: &str, what: &str, hint: &str| {
            loaded.error(field, format!("{what} is not built yet"), Some(hint.to_owned()))
        };
        if recipe.merge.mode != MergeMode::Sequential {
            return Err(later("merge.mode", "blending", "use sequential").into());
        }
        let branches = &recipe.branches;
        let lra = recipe.uses(Branch::Lra).then(|| branches.lra.clone());
        if let Some(lra) = &lra {
            if lra.criterion == Criterion::Loss {
                return Err(later("branches.lra.criterion", "the loss over all tensors", "use energy").into());
            }
            if lra.sparsity > 0.0 {
                return Err(later("branches.lra.sparsity", "sparsity of factors", "leave it out").into());
            }
        }
        let sparse = recipe.uses(Branch::Sparsity).then(|| sparse(&branches.sparsity));
        if sparse.is_some() && branches.sparsity.allocation == Allocation::Owl {
            return Err(later("branches.sparsity.allocation", "OWL", "use uniform").into());
        }
        let quantised = match recipe.uses(Branch::Quantise) {
            false => None,
            true if branches.quantise.method == QuantiseMethod::Awq => {
                return Err(later("branches.quantise.method", "AWQ", "use feedback").into());
            }
            true => Some(quantised(&branches.quantise)),
        };
        let exponents = lra.as_ref().map(|lra| lra.whitening.clone()).unwrap_or_default();
        let (protect, floors) = (recipe.planner.protect.clone(), recipe.planner.floor_bits.clone());
        let candidates = Allowed::new(recipe);
        let keep_unsparse = branches.sparsity.residual == Residual::Keep;
        Ok(Self { candidates, exponents, lra, sparse, keep_unsparse, quantise: quantised, protect, floors })
    }

    /// What is done to a matrix in a round; `None` keeps it.
    pub(super) fn of(&self, place: Place<'_>, round: usize) -> Option<Treatment> {
        if self.is_protected(place.name) { None } else { self.treatment(place.role, round) }
    }

    /// What is done in a round to a matrix that is not protected.
    pub(super) fn treatment(&self, role: MatrixRole, round: usize) -> Option<Treatment> {
        let low_rank = self.lra.as_ref().map(|lra| LowRank {
            settings: low_rank::Settings {
                rank: rank(lra, role),
                exponent: self.exponents.get(round).copied().unwrap_or(0.0),
                dtype: FloatType::BF16,
            },
            keep_residual: lra.residual == Residual::Keep,
        });
        let (sparse, quantise) = (self.sparse, self.quantise.clone());
        let treatment =
            Treatment { low_rank, sparse, keep_unsparse: self.keep_unsparse, quantise, is_dropped: false };
        let is_any = self.lra.is_some() || self.sparse.is_some() || self.quantise.is_some();
        is_any.then_some(treatment)
    }

    /// What is done to an embedding like a matrix of a layer, in the first round: its guard is that
    /// of the MLP.
    pub(super) fn table_treatment(&self) -> Option<Treatment> {
        self.treatment(MatrixRole::Up, 0)
    }

    /// Whether a tensor stays as it is.
    pub(super) fn is_protected(&self, name: &str) -> bool {
        self.protect.iter().any(|pattern| matches(pattern, name))
    }

    /// Least bits per weight of a matrix.
    pub(super) fn floor(&self, name: &str) -> f64 {
        let floors = self.floors.iter().filter(|(pattern, _)| matches(pattern, name));
        floors.map(|(_, bits)| *bits).fold(0.0, f64::max)
    }
}

fn rank(lra: &Lra, role: MatrixRole) -> Rank {
    let criterion = match lra.criterion {
        Criterion::Entropy => low_rank::Criterion::Entropy(lra.threshold),
        Criterion::RelativeEntropy => low_rank::Criterion::RelativeEntropy,
        Criterion::SingularSum => low_rank::Criterion::SingularSum(lra.threshold),
        _ => low_rank::Criterion::Energy(lra.threshold),
    };
    let guard = &lra.guard;
    let [low, high] = match role {
        MatrixRole::Up | MatrixRole::Gate | MatrixRole::Down => guard.mlp,
        _ => guard.attention,
    };
    match (lra.rank, lra.ratio) {
        (Some(rank), _) => Rank::Fixed(rank),
        (None, Some(ratio)) => Rank::Ratio(ratio),
        (None, None) => Rank::Found {
            criterion,
            shares: [low, high.min(guard.max_share)],
            least: guard.min_rank,
            multiple_of: guard.multiple_of,
        },
    }
}

fn sparse(branch: &Sparsity) -> sparsity::Settings {
    let (pattern, is_in_rows) = match branch.pattern {
        Pattern::Blocks { zeros, of } => (forms::Pattern::NOfM { keep: of.saturating_sub(zeros), of }, false),
        Pattern::Row => (forms::Pattern::Any, true),
        Pattern::Unstructured => (forms::Pattern::Any, false),
    };
    sparsity::Settings {
        method: match branch.method {
            SparsityMethod::Magnitude => sparsity::Method::Magnitude,
            SparsityMethod::Wanda => sparsity::Method::Wanda,
            SparsityMethod::SparseGpt => sparsity::Method::SparseGpt,
        },
        scope: if is_in_rows || branch.scope == Scope::Row {
            sparsity::Scope::Row
        } else {
            sparsity::Scope::Matrix
        },
        pattern,
        ..sparsity::Settings::new(branch.target_sparsity.unwrap_or(0.5))
    }
}

fn quantised(branch: &Quantise) -> quantise::Settings {
    let per_column = branch.method == QuantiseMethod::Waterfill;
    let rate = match (branch.bits, branch.step) {
        (Some(bits), _) => quantise::Rate::Fixed {
            bits: u32::try_from(bits).unwrap_or(u32::MAX),
            group: branch.group,
            is_symmetric: branch.symmetric,
        },
        (None, Some(step)) => quantise::Rate::Step { step, per_column },
        (None, None) => quantise::Rate::Entropy { bits: branch.rate.unwrap_or(4.0), per_column },
    };
    quantise::Settings {
        feedback: branch.method != QuantiseMethod::Rtn,
        damping: branch.damping,
        clips: branch.clip_search.clone(),
        by_activation: branch.order == Order::Activation,
        rescale: branch.rescale == Rescale::Rows && branch.bits.is_none(),
        threshold: branch.threshold,
        ..quantise::Settings::new(rate)
    }
}

/// Whether a name fits a pattern in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, name, fits) in [
            ("*norm*", "model.norm.weight", true),
            ("*v_proj*", "layers.0.v_proj.weight", true),
            ("*v_proj", "layers.0.v_proj.weight", false),
            ("a*b", "ab", true),
            ("a*ba", "aba", true),
            ("ab*ba", "aba", false),
            ("same", "same", true),
            ("same", "same.weight", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }
}
