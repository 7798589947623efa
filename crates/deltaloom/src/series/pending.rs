//! Checkpoints that are safe on the local disk and wait to be added, so that adding delays no
//! training.
//! A waiting step does not belong to the series yet. It does when somebody drains the folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{AddOptions, Added, Input, NewStep, Series};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::output::{Inputs, NewDirectory, sync_folder};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::progress::{Progress, check_cancelled};

const REQUEST: &str = "step.json";
const MODEL: &str = "model";
const OPTIMIZER: &str = "optimizer";
const LOCK: &str = "lock";

/// The path of a part. Only files can wait.
fn path_of(input: &Input) -> Result<&Path> {
    match input {
        Input::Path(path) => Ok(path),
        Input::Checkpoint(_) => {
            Err(Error::InvalidArgument("a checkpoint in memory cannot wait in a folder".to_owned()))
        }
    }
}

/// The file that describes a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Request {
    step: Option<u64>,
    keyframe: bool,
    /// Whether the step need not be compared with the one before: that was done when it was copied,
    /// or is not wanted.
    #[serde(default)]
    force: bool,
    #[serde(default)]
    rewind: bool,
    #[serde(default)]
    branch: Option<String>,
    meta: BTreeMap<String, String>,
    /// File names of the parts that are single files.
    model_file: Option<String>,
    optimizer_file: Option<String>,
}

/// How a snapshot takes the files of a checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Taking {
    /// Copies them, and waits until the copies are on the disk.
    #[default]
    Copies,
    /// Gives them another name, which takes no time and no space; copies where the file system
    /// cannot. For files that may be removed or replaced, but that nobody writes to any more.
    Links,
}

/// A folder of waiting checkpoints.
#[derive(Debug, Clone)]
pub struct Pending {
    folder: PathBuf,
}

impl Pending {
    /// The folder `folder`, which need not exist yet.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf() }
    }

    /// Takes a checkpoint into the folder, completely or not at all. [`Series::check_new`] tells in
    /// advance whether it can be added.
    ///
    /// # Errors
    /// What is wrong with the checkpoint; what reading and writing give.
    pub fn snapshot(
        &self,
        new: &NewStep,
        options: &AddOptions,
        taking: Taking,
        limits: &Limits,
        progress: &dyn Progress,
    ) -> Result<()> {
        fs::create_dir_all(&self.folder).map_err(Error::writing(&self.folder))?;
        let model = path_of(&new.model)?;
        let optimizer = new.optimizer.as_ref().map(path_of).transpose()?;
        let parts = [Some((MODEL, model)), optimizer.map(|path| (OPTIMIZER, path))];
        let opened = parts.into_iter().flatten().map(|(name, path)| {
            Checkpoint::open_without(path, &new.exclude, limits).map(|checkpoint| (name, checkpoint))
        });
        let opened = opened.collect::<Result<Vec<_>>>()?;
        progress.start(opened.iter().map(|(_, checkpoint)| checkpoint.len_bytes()).sum());
        let number = self.next_number()?;
        let snapshot =
            NewDirectory::create(&self.folder.join(format!("{number:012}")), false, &Inputs::default())?;
        for (name, checkpoint) in &opened {
            for (from, member) in checkpoint.file_paths().zip(&*checkpoint.members) {
                check_cancelled(progress)?;
                let place = format!("{name}/{}", member.path);
                if taking == Taking::Links && snapshot.link_file(&place, from)? {
                    progress.advance(member.len_bytes());
                    continue;
                }
                let mut target = snapshot.create_file(&place)?;
                let mut source = File::open(from).map_err(Error::io(from))?;
                let copied = io::copy(&mut source, &mut target).map_err(Error::writing(&self.folder))?;
                target.sync_all().map_err(Error::writing(&self.folder))?;
                progress.advance(copied);
            }
        }
        let file_name = |path: &Path| {
            let name = path.file_name()?.to_string_lossy().into_owned();
            path.is_file().then_some(name)
        };
        let request = Request {
            step: new.step,
            keyframe: options.keyframe,
            force: true,
            rewind: options.rewind,
            branch: options.branch.clone(),
            meta: new.texts(),
            model_file: file_name(model),
            optimizer_file: optimizer.and_then(file_name),
        };
        let text = serde_json::to_vec(&request).map_err(|e| Error::InvalidArgument(e.to_string()))?;
        let mut target = snapshot.create_file(REQUEST)?;
        target.write_all(&text).and_then(|()| target.sync_all()).map_err(Error::writing(&self.folder))?;
        snapshot.commit()
    }

    /// Number of waiting checkpoints.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn count(&self) -> Result<usize> {
        Ok(self.waiting()?.len())
    }

    /// Adds all waiting checkpoints in order, and removes each when the series has it. Only one
    /// process does this at a time. Others wait for it and then add the rest.
    ///
    /// # Errors
    /// What [`Series::add`] gives for the first that fails. It and those after it keep waiting.
    pub fn drain(
        &self,
        series: &Series,
        options: &AddOptions,
        progress: &dyn Progress,
        mut done: impl FnMut(&Added) -> Result<()>,
    ) -> Result<()> {
        if !self.folder.is_dir() {
            return Ok(());
        }
        let path = self.folder.join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(Error::writing(&path))?;
        lock.lock().map_err(Error::writing(&path))?;
        while let Some(snapshot) = self.waiting()?.first() {
            let (new, request) = read_request(snapshot)?;
            let options = AddOptions {
                keyframe: options.keyframe || request.keyframe,
                force: options.force || request.force,
                rewind: options.rewind || request.rewind,
                branch: request.branch.or_else(|| options.branch.clone()),
                ..options.clone()
            };
            let added = series.add(&new, &options, progress).map_err(|e| e.in_file(snapshot))?;
            fs::remove_dir_all(snapshot).map_err(Error::writing(snapshot))?;
            sync_folder(&self.folder)?;
            done(&added)?;
        }
        Ok(())
    }

    /// Snapshots in the order in which they were made.
    fn waiting(&self) -> Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::io(&self.folder))?,
        };
        let mut waiting = Vec::new();
        for entry in entries {
            let path = entry.map_err(Error::io(&self.folder))?.path();
            if number_of(&path).is_some() {
                waiting.push(path);
            }
        }
        waiting.sort();
        Ok(waiting)
    }

    fn next_number(&self) -> Result<u64> {
        let last = self.waiting()?.last().and_then(|path| number_of(path));
        Ok(last.map_or(0, |last| last + 1))
    }
}

fn number_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    (name.len() == 12).then(|| name.parse().ok()).flatten()
}

fn read_request(snapshot: &Path) -> Result<(NewStep, Request)> {
    let path = snapshot.join(REQUEST);
    let bytes = fs::read(&path).map_err(Error::io(&path))?;
    let request: Request =
        serde_json::from_slice(&bytes).map_err(|e| Error::corrupt(e.to_string()).in_file(&path))?;
    let part = |name: &str, file: &Option<String>| {
        file.as_ref().map_or_else(|| snapshot.join(name), |file| snapshot.join(name).join(file))
    };
    let optimizer = snapshot.join(OPTIMIZER);
    let new = NewStep {
        step: request.step,
        model: part(MODEL, &request.model_file).into(),
        optimizer: optimizer.is_dir().then(|| part(OPTIMIZER, &request.optimizer_file).into()),
        previous: None,
        exclude: Vec::new(),
        meta: request.meta.clone(),
        metrics: BTreeMap::new(),
    };
    Ok((new, request))
}
