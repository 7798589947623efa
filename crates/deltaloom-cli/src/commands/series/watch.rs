//! `deltaloom series watch`.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use deltaloom::checkpoint::Exclude;
use deltaloom::series::{AddOptions, Incoming, NewStep, Series, StepEntry, incoming};
use deltaloom::{Error, Limits, Progress as _};

use super::common::{pack_options, tell};
use crate::args::series::{WatchArguments, store_and_input};
use crate::progress::Bar;
use crate::store::open;
use crate::{Answer, ui};

/// How soon an interrupt is noticed between two scans.
const PATIENCE: Duration = Duration::from_millis(50);

pub(super) fn run(arguments: &WatchArguments) -> Result<Answer> {
    let (location, folder) = store_and_input(&arguments.store, arguments.folder.as_ref())?;
    let series = open(&location)?;
    let pack = pack_options(arguments.preset, &arguments.threads);
    let options = AddOptions::default().with_pack(pack);
    let bar = Bar::new("adding");
    let mut watch = Watch::default();
    loop {
        let is_done = watch.look(&series, folder, &arguments.exclude.patterns, &options, &bar)?;
        let start = Instant::now();
        while !bar.is_cancelled() && start.elapsed() < arguments.interval {
            std::thread::sleep(PATIENCE.min(arguments.interval));
        }
        if bar.is_cancelled() {
            return Err(Error::Cancelled.into());
        }
        if arguments.once && is_done {
            return Ok(Answer::Yes);
        }
    }
}

/// A checkpoint's files, as [`Incoming`] has them.
type State = Vec<(PathBuf, u64, Option<SystemTime>)>;

/// What earlier scans have found.
#[derive(Default)]
struct Watch {
    /// Whether there was an earlier scan.
    has_looked: bool,
    seen: HashMap<PathBuf, Incoming>,
    /// Finished checkpoints and their state: added, already in the series, or skipped.
    settled: HashMap<PathBuf, State>,
    /// Messages that were printed already.
    said: HashSet<String>,
}

impl Watch {
    /// Adds what is complete and new, in order of steps. Returns whether nothing is left to wait
    /// for.
    fn look(
        &mut self,
        series: &Series,
        folder: &Path,
        exclude: &[Exclude],
        options: &AddOptions,
        bar: &Bar,
    ) -> Result<bool> {
        let newest = series.last(1)?.pop();
        let found = incoming(folder, exclude, &Limits::default())?;
        let mut seen = HashMap::new();
        let mut is_waiting = false;
        // The newest step, including those that this scan has added.
        let mut last = newest.as_ref().map(|newest| newest.step);
        for checkpoint in found {
            let is_still = self.seen.get(&checkpoint.path).is_some_and(|before| *before == checkpoint);
            seen.insert(checkpoint.path.clone(), checkpoint.clone());
            if self.settled.get(&checkpoint.path) == Some(&checkpoint.state) {
                continue;
            }
            let is_earlier = last.is_some_and(|last| checkpoint.step <= last);
            if is_earlier && !self.is_newly_written(&checkpoint, newest.as_ref()) {
                if series.find(checkpoint.step)?.is_none() {
                    let path = checkpoint.path.display();
                    self.say(format!("{path}: skipped, the series already has a later step"));
                }
                self.settled.insert(checkpoint.path, checkpoint.state);
                continue;
            }
            // Steps are added in order: those after an incomplete one wait too.
            if is_waiting || !is_still || checkpoint.incomplete.is_some() {
                is_waiting = true;
                if let (true, Some(why)) = (is_still, checkpoint.incomplete) {
                    self.say(format!("waiting for {}: {why}", checkpoint.path.display()));
                }
                continue;
            }
            let (step, path) = (Some(checkpoint.step), checkpoint.path.clone());
            let new = NewStep::new(&path).with_step(step).with_exclude(exclude.to_vec());
            if let Some(branch) = series.branch_with(&new, bar)? {
                bar.finish();
                self.say(format!("{}: skipped, already on branch {branch}", path.display()));
            } else {
                // A trainer that went back writes earlier steps with other content.
                let options = options.clone().with_rewind(is_earlier);
                match series.add(&new, &options, bar) {
                    Err(odd @ Error::StepDiffers { .. }) => {
                        bar.finish();
                        let text = format!("{}: skipped: {odd}", path.display());
                        if self.said.insert(text.clone()) {
                            ui::warn(&text);
                        }
                    }
                    added => {
                        let added = added?;
                        bar.finish();
                        if added.is_new {
                            last = step;
                            tell(&added, &series.location());
                        }
                    }
                }
            }
            self.settled.insert(checkpoint.path, checkpoint.state);
        }
        self.seen = seen;
        self.has_looked = true;
        Ok(!is_waiting)
    }

    /// Whether a checkpoint of an earlier step was written after the newest step was added.
    fn is_newly_written(&self, checkpoint: &Incoming, newest: Option<&StepEntry>) -> bool {
        // It has appeared or changed since the earlier scan, or was new then.
        if self.has_looked {
            return true;
        }
        // The time of the newest step is in whole seconds; a file of the same second may be older.
        let added = newest.map_or(0, |newest| newest.added_unix.saturating_add(1));
        let added = UNIX_EPOCH.checked_add(Duration::from_secs(added));
        let is_later = |written: SystemTime| added.is_some_and(|added| written > added);
        checkpoint.state.iter().any(|(_, _, written)| written.is_some_and(is_later))
    }

    fn say(&mut self, text: String) {
        if self.said.insert(text.clone()) {
            ui::note(&text);
        }
    }
}
