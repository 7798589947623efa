//! From a recipe to one plan of attention per layer.

use deltaloom::{Error, Result};
use serde::{Deserialize, Serialize};

use super::recipe::{
    self, Change, Controls, Frozen, Law as LawWord, Loaded, Map, MapKind, NormSetting, Place, ReachSetting,
    Rope, RopeKind, ScaleSetting, Select, Sensitivity, TableSetting,
};
use super::statistics::some_of;
use crate::layer::{
    AttentionPlan, By, Gain, Law, MAX_POSITIONS, Norm, NormPlace, PositionMap, Positions, QkNorm, Reach,
    Table,
};
use crate::model::{Extension, Model, ModelConfig};

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

    /// For each layer, the gains of query heads with which `norm` keeps the size of scores on some
    /// tokens of this text.
    ///
    /// # Errors
    /// A text that cannot be read, or a model that cannot have such a norm.
    fn gains(&mut self, loaded: &Loaded, text: &str, tokens: u64, norm: &QkNorm) -> Result<Vec<Vec<f32>>>;
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
    /// How the table of positions goes on, if the model has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positions: Option<Extension>,
    /// One plan per layer.
    pub layers: Vec<AttentionPlan>,
}

impl Resolved {
    /// The model with these plans.
    ///
    /// # Errors
    /// As [`Model::with_attention`] and [`Model::with_extension`].
    pub fn on(&self, model: Model) -> Result<Model> {
        model.with_attention(self.layers.clone())?.with_extension(self.positions)
    }
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
    let mut context = Context { loaded, config, trained, target, gains: Vec::new() };
    let current = config.position_table.and_then(|table| table.extension);
    let positions = match recipe.positions {
        Some(setting) => Some(context.extension(setting)?),
        None => current,
    };
    context.calibrate(plans, finder)?;
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
        required: layers != plans || positions != current,
        name: loaded.name(),
        trained_tokens: trained,
        target_tokens: target,
        selections,
        positions,
        layers,
    })
}

/// Resolutions with random layers, as many, in place of those that were found by a fine-tune or by
/// their cost: what the choice is compared with. Empty without such an entry, or if the recipe
/// wants none. Only for gains is `finder` asked.
///
/// # Errors
/// As [`resolve`].
pub fn controls(
    loaded: &Loaded,
    config: &ModelConfig,
    plans: &[AttentionPlan],
    resolved: &Resolved,
    finder: &mut dyn Finder,
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
        let mut random = Random { layers: plans.len(), seed, entry: 0, finder };
        let control = resolve(loaded, config, plans, &mut random)?;
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
struct Random<'a> {
    layers: usize,
    seed: u64,
    entry: u64,
    /// For what is no choice of layers.
    finder: &'a mut dyn Finder,
}

impl Random<'_> {
    fn some(&mut self, count: u64) -> Vec<usize> {
        self.entry += 1;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        some_of(self.layers, count, self.seed.wrapping_add(self.entry << 32))
    }
}

impl Finder for Random<'_> {
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

    fn gains(&mut self, loaded: &Loaded, text: &str, tokens: u64, norm: &QkNorm) -> Result<Vec<Vec<f32>>> {
        self.finder.gains(loaded, text, tokens, norm)
    }
}

struct Context<'a> {
    loaded: &'a Loaded,
    config: &'a ModelConfig,
    trained: usize,
    target: Option<usize>,
    /// Of each norm with calibrated gains, those of all layers.
    gains: Vec<(NormSetting, Vec<Vec<f32>>)>,
}

impl Context<'_> {
    fn wrong<T>(&self, field: &str, what: impl Into<String>) -> Result<T> {
        Err(self.loaded.error(field, what).into())
    }

    /// Measures the gains that the recipe wants, each once.
    fn calibrate(&mut self, plans: &[AttentionPlan], finder: &mut dyn Finder) -> Result<()> {
        let recipe = &self.loaded.recipe;
        let norms = recipe.layers.iter().map(|entry| &entry.qk_norm).chain([&recipe.default.qk_norm]);
        for setting in norms.flatten() {
            let Some((text, tokens)) = setting.calibration() else { continue };
            if self.gains.iter().any(|(other, _)| other == setting) {
                continue;
            }
            if plans.iter().any(|plan| plan.qk_norm.is_some()) {
                return self.wrong("qk_norm", TRAINED_NORM);
            }
            let found = finder.gains(self.loaded, text, tokens, &norm_of(setting, Gain::One))?;
            if found.len() != plans.len() {
                return self.wrong("qk_norm.gain", "gains of another number of layers");
            }
            self.gains.push((setting.clone(), found));
        }
        Ok(())
    }

    /// The extension of the model's table to the target.
    fn extension(&self, setting: TableSetting) -> Result<Extension> {
        const FIELD: &str = "positions.extend";
        let Some(table) = self.config.position_table else {
            let what = "this model has no table of positions: it turns queries and keys, see rope";
            return self.wrong(FIELD, what);
        };
        let target = self.target.unwrap_or(0);
        let extension = Extension { extend: setting.extend, target };
        match table.with_extension(Some(extension)) {
            Ok(_) => Ok(extension),
            Err(error) => self.wrong(FIELD, error.to_string()),
        }
    }

    /// Puts a change on top of those of some layers.
    fn apply(&self, field: &str, change: &Change, layers: &[usize], changes: &mut [Change]) -> Result<()> {
        if self.config.position_table.is_some() && (change.rope.is_some() || change.map.is_some()) {
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
        if let Some(norm) = &change.qk_norm {
            if plan.qk_norm.is_some() {
                return self.wrong(&field, TRAINED_NORM);
            }
            let gains = self.gains.iter().find(|(setting, _)| setting == norm);
            let gain = gains.map_or(Gain::One, |(_, of_layers)| Gain::Calibrated(of_layers[layer].clone()));
            plan.qk_norm = Some(norm_of(norm, gain));
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

/// Why a model with norms gets no others.
const TRAINED_NORM: &str = "qk_norm: the model was trained with a norm of queries and keys";

fn norm_of(setting: &NormSetting, gain: Gain) -> QkNorm {
    let place = match setting.place {
        Place::Before => NormPlace::Before,
        Place::After => NormPlace::After,
    };
    QkNorm { norm: Norm::RmsNorm { epsilon: single(setting.epsilon) }, place, gain }
}

#[expect(clippy::cast_possible_truncation, reason = "plans are FP32")]
fn single(number: f64) -> f32 {
    number as f32
}
