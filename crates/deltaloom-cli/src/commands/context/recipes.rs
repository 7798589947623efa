//! Reads recipes and finds the layers that they mean.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use deltaloom::{Bases, Limits, Silent};
use deltaloom_compute::Run;
use deltaloom_lm::context::recipe::{Frozen, Loaded, Of, Recipe, Sensitivity};
use deltaloom_lm::context::{Finder, Measuring, Resolved, controls, moved, resolve, sensitivities, stillest};
use deltaloom_lm::layer::{AttentionPlan, MemoryOptions};

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
    let mut files = Files { opened: Some(opened), memory, run };
    let mut resolved = Vec::with_capacity(recipes.len());
    let mut others = Vec::with_capacity(recipes.len());
    for mut loaded in recipes {
        loaded.recipe.trained = trained.or(loaded.recipe.trained);
        let found = resolve(&loaded, &config, &plans, &mut files)?;
        others.push(controls(&loaded, &config, &plans, &found)?);
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
        let failed = || deltaloom::Error::InvalidArgument("a model that failed".to_owned());
        let opened = self.opened.take().ok_or_else(failed)?;
        let path = loaded.path(&sensitivity.text);
        let text = models::text(&path, &opened, None).map_err(library_error)?;
        let tokens = usize::try_from(sensitivity.tokens).unwrap_or(usize::MAX);
        let trained = deltaloom_lm::context::trained_tokens(opened.model.config(), loaded.recipe.trained)?;
        let how = Measuring { tenant: opened.tenant, memory: self.memory, run: self.run };
        let (opened, costs) =
            opened.with_model(|model| sensitivities(model, &text.ids, tokens, trained, plans, &how))?;
        self.opened = Some(opened);
        let count = usize::try_from(sensitivity.count).unwrap_or(usize::MAX);
        let shown: Vec<String> = costs.iter().map(|cost| format!("{cost:+.4}")).collect();
        ui::note(&format!(
            "{}: what each layer costs, in nats per token: {}",
            path.display(),
            shown.join(" ")
        ));
        Ok(deltaloom_lm::context::least(&costs, count))
    }
}

impl Files<'_> {
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
