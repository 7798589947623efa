//! From a recipe to one plan of attention per layer.

use deltaloom::{Error, Result};
use serde::{Deserialize, Serialize};

use super::recipe::{
    self, Change, Controls, Frozen, Law as LawWord, Loaded, Map, MapKind, Place, ReachSetting, Rope,
    RopeKind, ScaleSetting, Select, Sensitivity,
};
use super::statistics::some_of;
use crate::layer::{
    AttentionPlan, By, Gain, Law, MAX_POSITIONS, Norm, NormPlace, PositionMap, Positions, QkNorm, Reach,
    Table,
};
use crate::model::ModelConfig;

/// Finds layers that a recipe does not name: what needs files or a model.
pub trait Finder {
    /// The layers that moved least in a fine-tune.
    ///
    /// # Errors
    /// A file that cannot be compared with the model.
    fn frozen(&mut self, loaded: &Loaded, frozen: &Frozen) -> Result<Vec<usize>>;

    /// The layers whose plan can be replaced at the least loss. `plans` has, for each layer, its
    /// plan before and after.
    ///
    /// # Errors
    /// A text that cannot be read, or a plan that cannot be computed.
    fn sensitivity(
        &mut self,
        loaded: &Loaded,
        sensitivity: &Sensitivity,
        plans: &[[AttentionPlan; 2]],
    ) -> Result<Vec<usize>>;
}

/// A recipe for one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Resolved {
    /// Version of this form: 1.
    pub version: u64,
    /// Whether the model computes something else without it.
    pub required: bool,
    /// What reports call it.
    pub name: String,
    /// Number of tokens that the model was trained for.
    pub trained_tokens: usize,
    /// Number of tokens that are wanted.
    pub target_tokens: Option<usize>,
    /// The layers of each entry of the recipe.
    pub selections: Vec<Vec<usize>>,
    /// One plan per layer.
    pub layers: Vec<AttentionPlan>,
}

/// The length that a model was trained for: what `trained` says, else its configuration.
///
/// # Errors
/// [`Error::InvalidArgument`] if neither says it.
pub fn trained_tokens(config: &ModelConfig, trained: Option<u64>) -> Result<usize> {
    let given = trained.and_then(|trained| usize::try_from(trained).ok());
    let found = given.or(config.max_positions);
    found.filter(|tokens| (2..=MAX_POSITIONS).contains(tokens)).ok_or_else(|| {
        Error::InvalidArgument(
            "the trained length is not known: config.json has no max_position_embeddings from 2 to 2^24, and \
             the recipe no `trained`"
                .to_owned(),
        )
    })
}

/// Resolves a recipe for a model whose layers have `plans` now.
///
/// # Errors
/// [`Error::InvalidArgument`] names the field of the recipe that does not fit the model; errors of
/// `finder`.
pub fn resolve(
    loaded: &Loaded,
    config: &ModelConfig,
    plans: &[AttentionPlan],
    finder: &mut dyn Finder,
) -> Result<Resolved> {
    let recipe = &loaded.recipe;
    let trained = trained_tokens(config, recipe.trained)?;
    let target = recipe.target.and_then(|target| usize::try_from(target).ok());
    let context = Context { loaded, config, trained, target };
    let all = (0..plans.len()).collect::<Vec<_>>();
    let mut changes = vec![Change::default(); plans.len()];
    context.apply("default", &recipe.default, &all, &mut changes)?;
    let mut selections = Vec::with_capacity(recipe.layers.len());
    for (number, entry) in recipe.layers.iter().enumerate() {
        let field = format!("layers[{number}]");
        let change = entry.change();
        let layers = context.select(&field, &entry.select, &change, &changes, plans, finder)?;
        context.apply(&field, &change, &layers, &mut changes)?;
        selections.push(layers);
    }
    let changed = all.iter().map(|layer| context.plan(*layer, &plans[*layer], &changes[*layer]));
    let layers = changed.collect::<Result<Vec<_>>>()?;
    Ok(Resolved {
        version: 1,
        required: layers != plans,
        name: loaded.name(),
        trained_tokens: trained,
        target_tokens: target,
        selections,
        layers,
    })
}

/// Resolutions with random layers, as many, in place of those that were found by a fine-tune or by
/// their cost: what the choice is compared with. Empty without such an entry, or if the recipe
/// wants none.
///
/// # Errors
/// As [`resolve`].
pub fn controls(
    loaded: &Loaded,
    config: &ModelConfig,
    plans: &[AttentionPlan],
    resolved: &Resolved,
) -> Result<Vec<Resolved>> {
    let is_found = |entry: &recipe::Entry| match &entry.select {
        Select::Rule(rule) => rule.frozen.is_some() || rule.sensitivity.is_some(),
        Select::List(_) => false,
    };
    let recipe = &loaded.recipe;
    if recipe.controls == Some(Controls::None) || !recipe.layers.iter().any(is_found) {
        return Ok(Vec::new());
    }
    let mut found: Vec<Resolved> = Vec::new();
    for seed in 0..CONTROLS {
        let control = resolve(loaded, config, plans, &mut Random { layers: plans.len(), seed, entry: 0 })?;
        let is_new = |other: &Resolved| other.layers != control.layers;
        if is_new(resolved) && found.iter().all(is_new) {
            found.push(control);
        }
    }
    Ok(found)
}

/// Most random choices.
const CONTROLS: u64 = 16;

/// Finds random layers.
struct Random {
    layers: usize,
    seed: u64,
    entry: u64,
}

impl Random {
    fn some(&mut self, count: u64) -> Vec<usize> {
        self.entry += 1;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        some_of(self.layers, count, self.seed.wrapping_add(self.entry << 32))
    }
}

impl Finder for Random {
    fn frozen(&mut self, _: &Loaded, frozen: &Frozen) -> Result<Vec<usize>> {
        Ok(self.some(frozen.count))
    }

    fn sensitivity(
        &mut self,
        _: &Loaded,
        sensitivity: &Sensitivity,
        _: &[[AttentionPlan; 2]],
    ) -> Result<Vec<usize>> {
        Ok(self.some(sensitivity.count))
    }
}

struct Context<'a> {
    loaded: &'a Loaded,
    config: &'a ModelConfig,
    trained: usize,
    target: Option<usize>,
}

impl Context<'_> {
    fn wrong<T>(&self, field: &str, what: impl Into<String>) -> Result<T> {
        Err(self.loaded.error(field, what).into())
    }

    /// Puts a change on top of those of some layers.
    fn apply(&self, field: &str, change: &Change, layers: &[usize], changes: &mut [Change]) -> Result<()> {
        if self.config.has_position_table && (change.rope.is_some() || change.map.is_some()) {
            return self
                .wrong(field, "this model adds positions once, to the embedding: it has no rope and no map");
        }
        for layer in layers {
            changes[*layer] = changes[*layer].then(change);
        }
        Ok(())
    }

    fn select(
        &self,
        field: &str,
        select: &Select,
        change: &Change,
        changes: &[Change],
        plans: &[AttentionPlan],
        finder: &mut dyn Finder,
    ) -> Result<Vec<usize>> {
        let layers = plans.len();
        let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        let counted = |rule: &str, count: u64| match size(count) {
            count if count <= layers => Ok(count),
            count => {
                self.wrong(&format!("{field}.select.{rule}.count"), format!("{count} of {layers} layers"))
            }
        };
        let rule = match select {
            Select::List(list) => {
                if let Some(layer) = list.iter().find(|layer| size(**layer) >= layers) {
                    let what = format!("layer {layer}: the model has {layers}, from 0 on");
                    return self.wrong(&format!("{field}.select"), what);
                }
                let mut list: Vec<usize> = list.iter().map(|layer| size(*layer)).collect();
                list.sort_unstable();
                list.dedup();
                return Ok(list);
            }
            Select::Rule(rule) => rule,
        };
        if let Some(every) = rule.every {
            let found: Vec<usize> =
                (0..layers).filter(|layer| (layer + 1).is_multiple_of(size(every))).collect();
            if found.is_empty() {
                let what = format!("every {every} layers: the model has {layers}");
                return self.wrong(&format!("{field}.select.every"), what);
            }
            return Ok(found);
        }
        if let Some(random) = rule.random {
            return Ok(some_of(layers, counted("random", random.count)?, random.seed));
        }
        if let Some(frozen) = &rule.frozen {
            counted("frozen", frozen.count)?;
            return finder.frozen(self.loaded, frozen);
        }
        let Some(sensitivity) = &rule.sensitivity else { return Ok(Vec::new()) };
        counted("sensitivity", sensitivity.count)?;
        let both = |layer: usize| {
            let before = self.plan(layer, &plans[layer], &changes[layer])?;
            let after = self.plan(layer, &plans[layer], &changes[layer].then(change))?;
            Ok([before, after])
        };
        let both = (0..layers).map(both).collect::<Result<Vec<_>>>()?;
        finder.sensitivity(self.loaded, sensitivity, &both)
    }

    /// The plan of a layer with its change.
    fn plan(&self, layer: usize, plan: &AttentionPlan, change: &Change) -> Result<AttentionPlan> {
        let field = format!("layer {layer}");
        let mut plan = plan.clone();
        if let Some(rope) = &change.rope {
            plan.positions = self.positions(&field, &plan.positions, rope)?;
        }
        // Without positions, which a later entry may have taken away, there is nothing to map.
        if let (Some(map), Positions::Rotary { map: place, .. }) = (change.map, &mut plan.positions) {
            *place = self.map(&field, map)?;
        }
        let size = |tokens: u64| usize::try_from(tokens).unwrap_or(usize::MAX);
        plan.reach = match change.reach {
            None => plan.reach,
            Some(ReachSetting::Causal) => Reach::Causal,
            Some(ReachSetting::Window { tokens, sinks }) => {
                Reach::Window { tokens: size(tokens), sinks: size(sinks) }
            }
            Some(ReachSetting::Chunk { tokens }) => Reach::Chunk { tokens: size(tokens) },
        };
        if let Some(scale) = change.scale {
            plan.law = Some(self.law(scale));
        }
        if let Some(norm) = change.qk_norm {
            if plan.qk_norm.is_some() {
                return self.wrong(&field, "qk_norm: the model was trained with a norm of queries and keys");
            }
            let place = match norm.place {
                Place::Before => NormPlace::Before,
                Place::After => NormPlace::After,
            };
            plan.qk_norm = Some(QkNorm {
                norm: Norm::RmsNorm { epsilon: single(norm.epsilon) },
                place,
                gain: Gain::One,
            });
        }
        let check = || {
            self.config.layers[layer].clone().with_attention(plan.clone()).check()?;
            plan.check_trained(self.trained)
        };
        match check() {
            Ok(()) => Ok(plan),
            Err(error) => self.wrong(&field, error.to_string()),
        }
    }

    fn positions(&self, field: &str, now: &Positions, rope: &Rope) -> Result<Positions> {
        let numbers = &rope.numbers;
        let (theta, map) = match now {
            Positions::Rotary { theta, map, .. } => (Some(*theta), *map),
            _ => (None, PositionMap::Identity),
        };
        if rope.kind == RopeKind::None {
            return Ok(Positions::None);
        }
        let Some(theta) = numbers.rope_theta.map(single).or(theta) else {
            return self.wrong(field, "rope: the model has no positions here, so rope_theta must be given");
        };
        let factor = numbers.factor.unwrap_or(1.0);
        let tokens = |tokens: u64| usize::try_from(tokens).unwrap_or(usize::MAX);
        let trained = numbers.original_max_position_embeddings.map_or(self.trained, tokens);
        let by = match numbers.by {
            None | Some(recipe::By::Query) => By::Query,
            Some(recipe::By::Sequence) => match self.target {
                Some(tokens) => By::Sequence { tokens },
                None => return self.wrong(field, "rope.by: a length of the sequence needs `target`"),
            },
        };
        let list = |list: &Option<Vec<f64>>| list.iter().flatten().copied().map(single).collect::<Vec<f32>>();
        let table = match rope.kind {
            RopeKind::None | RopeKind::Default => Table::Default,
            RopeKind::Linear => Table::Linear { factor },
            RopeKind::Ntk => Table::Ntk { factor },
            RopeKind::Dynamic => Table::Dynamic { factor, trained, by },
            RopeKind::Yarn => Table::Yarn {
                factor,
                trained,
                beta_fast: numbers.beta_fast.unwrap_or(32.0),
                beta_slow: numbers.beta_slow.unwrap_or(1.0),
                attention_factor: numbers.attention_factor,
                mscale: numbers.mscale,
                mscale_all_dim: numbers.mscale_all_dim,
                truncate: numbers.truncate.unwrap_or(true),
            },
            RopeKind::Longrope => Table::Longrope {
                short: list(&numbers.short_factor),
                long: list(&numbers.long_factor),
                trained,
                factor: numbers.factor.or_else(|| self.growth()).unwrap_or(1.0),
                attention_factor: numbers.attention_factor,
                by,
            },
            RopeKind::Llama3 => Table::Llama3 {
                factor,
                low: numbers.low_freq_factor.unwrap_or(1.0),
                high: numbers.high_freq_factor.unwrap_or(4.0),
                trained,
            },
            RopeKind::Proportional => {
                Table::Proportional { share: numbers.partial_rotary_factor.unwrap_or(1.0) }
            }
            RopeKind::Custom => Table::Custom(list(&numbers.inv_freq)),
        };
        Ok(Positions::Rotary { theta, table, map })
    }

    /// The target over the trained length.
    fn growth(&self) -> Option<f64> {
        self.target.map(|target| (target as f64 / self.trained as f64).max(1.0))
    }

    fn map(&self, field: &str, map: Map) -> Result<PositionMap> {
        let size =
            |tokens: Option<u64>| tokens.map_or(0, |tokens| usize::try_from(tokens).unwrap_or(usize::MAX));
        let (group, window, trained) = (size(map.group), size(map.window), self.trained);
        Ok(match map.kind {
            MapKind::Identity => PositionMap::Identity,
            MapKind::SelfExtend => {
                let reached = trained.saturating_sub(window).saturating_mul(group).saturating_add(window);
                if let Some(target) = self.target.filter(|target| *target > reached) {
                    let what =
                        format!("map: these groups reach {reached} tokens, and the target is {target}");
                    return self.wrong(field, what);
                }
                PositionMap::Grouped { group, neighbours: window }
            }
            MapKind::DualChunk => PositionMap::DualChunk {
                chunk: size(map.chunk),
                local: size(map.local),
                saturate: map.saturate.map(|most| size(Some(most))),
            },
            MapKind::Rerope => PositionMap::Clipped { at: window },
        })
    }

    fn law(&self, scale: ScaleSetting) -> Law {
        match scale.law {
            LawWord::LogLength => Law::LogLength { trained: self.trained },
            LawWord::Floor => Law::Floor {
                every: scale.every.map_or(0, |every| usize::try_from(every).unwrap_or(usize::MAX)),
                slope: scale.slope.unwrap_or(0.1),
            },
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "plans are FP32")]
fn single(number: f64) -> f32 {
    number as f32
}
