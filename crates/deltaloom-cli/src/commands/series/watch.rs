//! `deltaloom series watch`.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use deltaloom::series::{AddOptions, Incoming, NewStep, Series, incoming};
use deltaloom::{Error, Limits, Progress as _};

use super::{add, open, pack_options};
use crate::args::series::WatchArguments;
use crate::{Answer, ui};

/// How soon an interrupt is noticed between two looks.
const PATIENCE: Duration = Duration::from_millis(50);

pub(super) fn run(arguments: &WatchArguments) -> Result<Answer> {
    let series = open(&arguments.store.location)?;
    let pack = pack_options(arguments.preset, &arguments.threads);
    let options = AddOptions { pack, ..AddOptions::default() };
    let bar = ui::Bar::new("adding");
    let mut watch = Watch::default();
    loop {
        let is_done = match watch.look(&series, &arguments.folder, &options, &bar) {
            Err(e) if is_interrupt(&e) => break,
            done => done?,
        };
        let start = Instant::now();
        while !bar.is_cancelled() && start.elapsed() < arguments.interval {
            std::thread::sleep(PATIENCE.min(arguments.interval));
        }
        if bar.is_cancelled() || (arguments.once && is_done) {
            break;
        }
    }
    Ok(Answer::Yes)
}

fn is_interrupt(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<Error>(), Some(Error::Cancelled))
}

/// What earlier looks have seen.
#[derive(Default)]
struct Watch {
    seen: HashMap<PathBuf, Incoming>,
    /// What was said, so that it is said once.
    said: HashSet<String>,
}

impl Watch {
    /// Adds what is complete and new, in order of steps; gives whether nothing is left to wait for.
    fn look(&mut self, series: &Series, folder: &Path, options: &AddOptions, bar: &ui::Bar) -> Result<bool> {
        let newest = series.summary()?.newest;
        let found = incoming(folder, &Limits::default())?;
        let mut seen = HashMap::new();
        let mut is_waiting = false;
        for checkpoint in found {
            let is_settled = self.seen.get(&checkpoint.path).is_some_and(|before| *before == checkpoint);
            seen.insert(checkpoint.path.clone(), checkpoint.clone());
            let Incoming { step, path, incomplete, .. } = checkpoint;
            if newest.is_some_and(|newest| step <= newest) {
                if series.find(step)?.is_none() {
                    self.say(format!("{}: skipped, the series is at a later step", path.display()));
                }
                continue;
            }
            // Steps are added in order: what comes after one that is not complete waits too.
            if is_waiting || !is_settled || incomplete.is_some() {
                is_waiting = true;
                if let (true, Some(why)) = (is_settled, incomplete) {
                    self.say(format!("waiting for {}: {why}", path.display()));
                }
                continue;
            }
            let model = path.clone();
            let new = NewStep { step: Some(step), model, optimizer: None, meta: Default::default() };
            let added = match series.add(&new, options, bar) {
                Err(odd @ Error::StepDiffers { .. }) => {
                    bar.finish();
                    self.say(format!("warning: {}: skipped: {odd}", path.display()));
                    continue;
                }
                added => added?,
            };
            bar.finish();
            add::tell(&added, &series.location());
        }
        self.seen = seen;
        Ok(!is_waiting)
    }

    fn say(&mut self, text: String) {
        if self.said.insert(text.clone()) {
            ui::note(&text);
        }
    }
}
