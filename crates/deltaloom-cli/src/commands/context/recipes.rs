//! Reads recipes and finds the layers that they mean.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use deltaloom::{Bases, Limits, Silent};
use deltaloom_compute::Run;
use deltaloom_lm::context::recipe::{Frozen, Loaded, Of, Recipe, Sensitivity};
use deltaloom_lm::context::{
    Finder, Measuring, Resolved, controls, gains, moved, resolve, sensitivities, stillest, trained_tokens,
};
use deltaloom_lm::layer::{AttentionPlan, MemoryOptions, QkNorm};
use deltaloom_lm::model::Model;

use crate::models::{self, Opened};
use crate::{inputs, ui};

/// A model with recipes for it.
pub(super) struct Prepared {
    pub(super) opened: Opened,
    pub(super) resolved: Vec<Resolved>,
    /// Of each recipe, the same with random layers.
    pub(super) controls: Vec<Vec<Resolved>>,
}

/// Reads recipes: what is wrong in one is said before a model is opened.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<Loaded>> {
    paths.iter().map(|path| Ok(Recipe::read(path)?)).collect()
}

/// Resolves recipes for a model. `trained` is its trained length, if the command line says it.
pub(super) fn prepare(
    opened: Opened,
    recipes: Vec<Loaded>,
    trained: Option<u64>,
    memory: MemoryOptions,
    run: &Run<'_>,
) -> Result<Prepared> {
    let (config, plans) =
        (opened.model.config().clone(), opened.model.attention().cloned().collect::<Vec<_>>());
    let mut files = Files { opened: Some(opened), memory, run, gains: Vec::new() };
    let mut resolved = Vec::with_capacity(recipes.len());
    let mut others = Vec::with_capacity(recipes.len());
    for mut loaded in recipes {
        loaded.recipe.trained = trained.or(loaded.recipe.trained);
        let found = resolve(&loaded, &config, &plans, &mut files)?;
        others.push(controls(&loaded, &config, &plans, &found, &mut files)?);
        resolved.push(found);
    }
    let opened = files.opened.context("a model that failed")?;
    Ok(Prepared { opened, resolved, controls: others })
}

/// Finds layers with files and the model itself.
struct Files<'a> {
    /// `None` only after an error.
    opened: Option<Opened>,
    memory: MemoryOptions,
    run: &'a Run<'a>,
    /// Gains that were measured.
    gains: Vec<Measured>,
}

/// Gains of a norm on some tokens of a text.
struct Measured {
    text: PathBuf,
    tokens: u64,
    norm: QkNorm,
    gains: Vec<Vec<f32>>,
}

impl Finder for Files<'_> {
    fn frozen(&mut self, loaded: &Loaded, frozen: &Frozen) -> deltaloom::Result<Vec<usize>> {
        let path = loaded.path(&frozen.from);
        let moved = self.compare(&path)?;
        let count = usize::try_from(frozen.count).unwrap_or(usize::MAX);
        let by_all = stillest(&moved.by_all, count);
        let by_qk = moved.by_qk.as_ref().map(|ranking| stillest(ranking, count));
        if let Some(by_qk) = by_qk.as_ref().filter(|by_qk| **by_qk != by_all) {
            ui::warn(&format!(
                "{}: layers {} moved least, but by queries and keys alone {}",
                path.display(),
                ui::list(&by_all),
                ui::list(by_qk)
            ));
        }
        if moved.layers.iter().all(|layer| layer.changed_fraction > 0.0) {
            ui::warn(&format!("{}: no layer is frozen, all of them moved", path.display()));
        }
        match (frozen.of, by_qk) {
            (Of::Qk, Some(by_qk)) => Ok(by_qk),
            (Of::Qk, None) => Err(loaded
                .error("select.frozen.of", "the matrices of queries and keys of this model are not apart")
                .into()),
            _ => Ok(by_all),
        }
    }

    fn sensitivity(
        &mut self,
        loaded: &Loaded,
        sensitivity: &Sensitivity,
        plans: &[[AttentionPlan; 2]],
    ) -> deltaloom::Result<Vec<usize>> {
        let path = loaded.path(&sensitivity.text);
        let tokens = usize::try_from(sensitivity.tokens).unwrap_or(usize::MAX);
        let costs = self.on_text(loaded, &path, |model, ids, trained, how| {
            sensitivities(model, ids, tokens, trained, plans, how)
        })?;
        let count = usize::try_from(sensitivity.count).unwrap_or(usize::MAX);
        let shown: Vec<String> = costs.iter().map(|cost| format!("{cost:+.4}")).collect();
        ui::note(&format!(
            "{}: what each layer costs, in nats per token: {}",
            path.display(),
            shown.join(" ")
        ));
        Ok(deltaloom_lm::context::least(&costs, count))
    }

    fn gains(
        &mut self,
        loaded: &Loaded,
        text: &str,
        tokens: u64,
        norm: &QkNorm,
    ) -> deltaloom::Result<Vec<Vec<f32>>> {
        let text = loaded.path(text);
        let known = |it: &&Measured| it.text == text && it.tokens == tokens && it.norm == *norm;
        if let Some(measured) = self.gains.iter().find(known) {
            return Ok(measured.gains.clone());
        }
        let count = usize::try_from(tokens).unwrap_or(usize::MAX);
        let found = self.on_text(loaded, &text, |mut model, ids, trained, how| {
            let found = gains(&mut model, ids, count, trained, norm, how)?;
            Ok((model, found))
        })?;
        for (layer, gains) in found.iter().enumerate() {
            let shown: Vec<String> = gains.iter().map(|gain| format!("{gain:.2}")).collect();
            ui::note(&format!("gains of layer {layer}: {}", shown.join(" ")));
        }
        self.gains.push(Measured { text, tokens, norm: norm.clone(), gains: found.clone() });
        Ok(found)
    }
}

impl Files<'_> {
    /// Measures something with the model on a text. After an error the model is gone.
    fn on_text<T>(
        &mut self,
        loaded: &Loaded,
        path: &Path,
        measure: impl FnOnce(Model, &[u32], usize, &Measuring<'_>) -> deltaloom::Result<(Model, T)>,
    ) -> deltaloom::Result<T> {
        let failed = || deltaloom::Error::InvalidArgument("a model that failed".to_owned());
        let opened = self.opened.take().ok_or_else(failed)?;
        let text = models::text(path, &opened, None).map_err(library_error)?;
        let trained = trained_tokens(opened.model.config(), loaded.recipe.trained)?;
        let how = Measuring { tenant: opened.tenant, memory: self.memory, run: self.run };
        let (opened, found) = opened.with_model(|model| measure(model, &text.ids, trained, &how))?;
        self.opened = Some(opened);
        Ok(found)
    }

    fn compare(&self, path: &Path) -> deltaloom::Result<deltaloom_lm::context::Moved> {
        let limits = Limits::default();
        let Some(opened) = &self.opened else { return Err(deltaloom::Error::Cancelled) };
        let first = Bases::open(&[opened.base.as_ref().to_owned()], &limits)?;
        let tuned = first.open_against(path, &limits)?;
        inputs::warn(tuned.warnings());
        moved(&deltaloom::diff(&first, &tuned, 0, &Silent)?)
    }
}

/// The error of the library that `error` is, or one with its text.
fn library_error(error: anyhow::Error) -> deltaloom::Error {
    error.downcast().unwrap_or_else(|error| deltaloom::Error::InvalidArgument(format!("{error:#}")))
}
