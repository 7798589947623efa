//! `deltaloom series watch`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use deltaloom::checkpoint::Exclude;
use deltaloom::series::{AddOptions, Incoming, NewStep, Series, StepEntry, incoming};
use deltaloom::{Error, Limits, Progress as _};

use super::common::{metrics, pack_options, tell};
use crate::args::series::{WatchArguments, store_and_input};
use crate::progress::Bar;
use crate::store::open;
use crate::{Answer, ui};

/// How soon an interrupt is noticed between two scans.
const PATIENCE: Duration = Duration::from_millis(50);
/// A checkpoint that is incomplete and unchanged for this long is passed over, if a later one is
/// complete.
const ABANDONED: Duration = Duration::from_secs(60);

pub(super) fn run(arguments: &WatchArguments) -> Result<Answer> {
    let (location, folder) = store_and_input(&arguments.store, arguments.folder.as_ref())?;
    let series = open(&location)?;
    let pack = pack_options(arguments.preset, &arguments.threads);
    let options = AddOptions::default().with_pack(pack);
    let bar = Bar::new("adding");
    let abandoned = arguments.timeout.map_or(ABANDONED, |timeout| timeout.min(ABANDONED));
    let mut watch = Watch::new(folder, &arguments.exclude.patterns, abandoned, arguments.once);
    let mut last_news = Instant::now();
    loop {
        let look = watch.look(&series, &options, &bar)?;
        if look.has_news {
            last_news = Instant::now();
        }
        let start = Instant::now();
        while !bar.is_cancelled() && start.elapsed() < arguments.interval {
            std::thread::sleep(PATIENCE.min(arguments.interval));
        }
        if bar.is_cancelled() {
            return Err(Error::Cancelled.into());
        }
        if arguments.once && !look.is_waiting {
            return Ok(watch.end());
        }
        if let Some(timeout) = arguments.timeout.filter(|timeout| last_news.elapsed() >= *timeout) {
            ui::note(&format!("nothing new for {}", humantime::format_duration(timeout)));
            return Ok(watch.end());
        }
    }
}

/// A checkpoint's files, as [`Incoming`] has them.
type State = Vec<(PathBuf, u64, Option<SystemTime>)>;

/// What a scan has found.
#[derive(Default)]
struct Look {
    /// Whether a checkpoint may yet be added.
    is_waiting: bool,
    /// Whether anything has changed since the scan before.
    has_news: bool,
}

/// What earlier scans have found.
struct Watch<'a> {
    folder: &'a Path,
    exclude: &'a [Exclude],
    /// How long an incomplete checkpoint may stay unchanged.
    abandoned: Duration,
    is_once: bool,
    /// Whether there was an earlier scan.
    has_looked: bool,
    /// Checkpoints, and since when they are unchanged.
    seen: HashMap<PathBuf, (Incoming, Instant)>,
    /// Finished checkpoints and their state: added, already in the series, or skipped.
    settled: HashMap<PathBuf, State>,
    /// Incomplete or damaged checkpoints that are there and were not added, and why.
    left_out: BTreeMap<PathBuf, String>,
    added: u64,
    /// Messages that were printed already.
    said: HashSet<String>,
}

impl<'a> Watch<'a> {
    fn new(folder: &'a Path, exclude: &'a [Exclude], abandoned: Duration, is_once: bool) -> Self {
        Self {
            folder,
            exclude,
            abandoned,
            is_once,
            has_looked: false,
            seen: HashMap::new(),
            settled: HashMap::new(),
            left_out: BTreeMap::new(),
            added: 0,
            said: HashSet::new(),
        }
    }

    /// Adds what is complete and new, in order of steps.
    fn look(&mut self, series: &Series, options: &AddOptions, bar: &Bar) -> Result<Look> {
        let newest = series.last(1)?.pop();
        let Some(found) = self.list()? else { return Ok(Look { is_waiting: true, has_news: false }) };
        let mut look = Look { has_news: found.len() != self.seen.len(), is_waiting: false };
        let mut seen = HashMap::new();
        // The newest step, including those that this scan has added.
        let mut last = newest.as_ref().map(|newest| newest.step);
        self.left_out.retain(|path, _| found.iter().any(|checkpoint| checkpoint.path == *path));
        let complete = found.iter().filter(|checkpoint| checkpoint.incomplete.is_none());
        let last_complete = complete.map(|checkpoint| checkpoint.step).max();
        for checkpoint in found {
            let before = self.seen.get(&checkpoint.path).filter(|(before, _)| *before == checkpoint);
            let since = before.map_or_else(Instant::now, |(_, since)| *since);
            let is_still = before.is_some();
            look.has_news |= !is_still;
            seen.insert(checkpoint.path.clone(), (checkpoint.clone(), since));
            if self.settled.get(&checkpoint.path) == Some(&checkpoint.state) {
                continue;
            }
            let is_earlier = last.is_some_and(|last| checkpoint.step <= last);
            let was_passed = self.left_out.contains_key(&checkpoint.path);
            if is_earlier && (was_passed || !self.is_newly_written(&checkpoint, newest.as_ref())) {
                if series.find(checkpoint.step)?.is_none() {
                    self.say(format!(
                        "{}: skipped, the series already has a later step",
                        checkpoint.path.display()
                    ));
                }
                self.settled.insert(checkpoint.path, checkpoint.state);
                continue;
            }
            // Steps are added in order: those after an incomplete one wait too.
            if look.is_waiting || !is_still {
                look.is_waiting = true;
                continue;
            }
            let added = match &checkpoint.incomplete {
                Some(why) => Err(why.clone()),
                None => self.add(&checkpoint, series, is_earlier, options, bar)?,
            };
            match added {
                Ok(is_new) => {
                    if is_new {
                        last = Some(checkpoint.step);
                        self.added += 1;
                        look.has_news = true;
                    }
                    self.left_out.remove(&checkpoint.path);
                    self.settled.insert(checkpoint.path, checkpoint.state);
                }
                Err(why) => {
                    let has_later = last_complete.is_some_and(|last| last > checkpoint.step);
                    if since.elapsed() >= self.abandoned && (has_later || self.is_once) {
                        self.say(format!("{}: left out: {why}", checkpoint.path.display()));
                        self.settled.insert(checkpoint.path.clone(), checkpoint.state);
                        look.has_news = true;
                    } else {
                        look.is_waiting = true;
                        self.say(format!("waiting for {}: {why}", checkpoint.path.display()));
                    }
                    self.left_out.insert(checkpoint.path, why);
                }
            }
        }
        self.seen = seen;
        self.has_looked = true;
        Ok(look)
    }

    /// The checkpoints of the folder, one for each step. None if the folder has vanished; it may
    /// come back.
    fn list(&mut self) -> Result<Option<Vec<Incoming>>> {
        let found = match incoming(self.folder, self.exclude, &Limits::default()) {
            Err(error @ Error::Io { .. }) if self.has_looked => {
                self.say(format!("waiting for {}: {error}", self.folder.display()));
                return Ok(None);
            }
            found => found?,
        };
        for path in &found.without_step {
            self.say(format!("{}: skipped, there is no step in its name", path.display()));
        }
        let mut chosen: Vec<Incoming> = Vec::new();
        for checkpoint in found.checkpoints {
            match chosen.last_mut().filter(|other| other.step == checkpoint.step) {
                None => chosen.push(checkpoint),
                Some(other) => {
                    let skipped = match self.rank(&checkpoint) < self.rank(other) {
                        true => std::mem::replace(other, checkpoint),
                        false => checkpoint,
                    };
                    let (path, other) = (skipped.path.display(), other.path.display());
                    self.say(format!("{path}: skipped, {other} is step {} too", skipped.step));
                }
            }
        }
        Ok(Some(chosen))
    }

    /// Of several checkpoints of a step, the one with the least rank counts: one that was added,
    /// else one that is complete, else the one that was written first.
    fn rank(&self, checkpoint: &Incoming) -> (bool, bool, Option<SystemTime>) {
        let written = checkpoint.state.iter().filter_map(|(_, _, written)| *written).max();
        (!self.settled.contains_key(&checkpoint.path), checkpoint.incomplete.is_some(), written)
    }

    /// Adds a checkpoint. Returns whether it is new, or what is wrong with its files.
    fn add(
        &mut self,
        checkpoint: &Incoming,
        series: &Series,
        is_earlier: bool,
        options: &AddOptions,
        bar: &Bar,
    ) -> Result<Result<bool, String>> {
        let path = &checkpoint.path;
        let step = Some(checkpoint.step);
        let metrics = metrics(path, step).unwrap_or_else(|why| {
            self.warn(why);
            BTreeMap::new()
        });
        let new =
            NewStep::new(path).with_step(step).with_exclude(self.exclude.to_vec()).with_metrics(metrics);
        // A trainer that went back writes earlier steps with other content.
        let options = options.clone().with_rewind(is_earlier);
        let added = match series.branch_with(&new, bar) {
            Ok(Some(branch)) => {
                bar.finish();
                self.say(format!("{}: skipped, already on branch {branch}", path.display()));
                return Ok(Ok(false));
            }
            Ok(None) => series.add(&new, &options, bar),
            Err(error) => Err(error),
        };
        bar.finish();
        match added {
            Ok(added) => {
                if added.is_new {
                    tell(&added, &series.location());
                }
                Ok(Ok(added.is_new))
            }
            Err(odd @ Error::StepDiffers { .. }) => {
                self.warn(ui::printable(&format!("{}: skipped: {odd}", path.display())));
                Ok(Ok(false))
            }
            // Another writer was faster; the next scan sees its step.
            Err(error @ (Error::StepTaken { .. } | Error::StepOutOfOrder { .. })) => {
                Ok(Err(error.to_string()))
            }
            // It may have been removed or changed meanwhile; the next scan sees that.
            Err(error) if error.path().is_some_and(|fault| fault.starts_with(path)) => {
                Ok(Err(error.with_path()))
            }
            Err(error) => Err(error.into()),
        }
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
        let text = ui::printable(&text);
        if self.said.insert(text.clone()) {
            ui::note(&text);
        }
    }

    fn warn(&mut self, text: String) {
        if !self.said.contains(&text) {
            ui::warn(&text);
            self.said.insert(text);
        }
    }

    /// Sums up. The answer is no if something was left out.
    fn end(&self) -> Answer {
        let folder = ui::printable(&self.folder.display().to_string());
        if self.added > 0 {
            ui::note(&format!("{} added", ui::count(self.added, "step")));
        } else if self.seen.is_empty() {
            ui::note(&format!("nothing to add: there is no checkpoint in {folder}"));
        } else if self.left_out.is_empty() {
            ui::note(&format!("nothing to add: the checkpoints in {folder} were added or skipped before"));
        }
        for (path, why) in &self.left_out {
            let path = path.display();
            ui::warn(&ui::printable(&format!("{path} was not added: {why}")));
        }
        if self.left_out.is_empty() { Answer::Yes } else { Answer::No }
    }
}
