//! The golden containers in assets/golden, one folder per format version: small files of every kind
//! that every later reader must restore.
//!
//! Writing only adds missing ones; checking restores all of them and packs their originals again.

mod blocks;
mod cases;
mod computed;
mod history;
mod k_quants;
mod merges;
mod numbers;
mod quantised;
mod said;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{
    Bases, Container, Limits, PackOptions, Preset, ResolvedContainer, Silent, Texts, UnpackOptions,
    Verifiable,
};
use serde::{Deserialize, Serialize};

use crate::{Mode, root, say, settle};
use cases::{Case, Input};

type Cases = fn() -> Vec<Case>;
/// The folders, each with its cases.
const FOLDERS: [(&str, Cases); 4] = [
    ("assets/golden/v1", cases::all),
    ("assets/golden/v2", cases::since_2),
    ("assets/golden/v3", history::since_3),
    ("assets/golden/v4", said::since_4),
];
const MANIFEST: &str = "manifest.json";
/// BLAKE3 of what each original is packed into today.
const PACKED_AGAIN: &str = "assets/golden/packed_again.json";
/// Most bytes of all containers, originals and bases of a folder together.
const MAX_BYTES: u64 = 640_000;

/// One container; paths are relative to its folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The container.
    pub container: String,
    /// The file or directory that it restores.
    pub original: String,
    /// The bases it is packed against.
    pub bases: Vec<String>,
    /// What it covers.
    pub covers: String,
    /// The preset it was packed with.
    pub preset: String,
    /// log2 of the elements of a chunk.
    pub chunk_log2: u8,
    /// Whether the bases are the steps before it, newest first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_history: bool,
    /// What the container says about itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
}

/// Names of the bases, and texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// One name per base.
    pub base_names: Vec<String>,
    /// The texts by their keys.
    pub texts: Texts,
}

/// The containers of a folder.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// In the order in which they were added.
    pub containers: Vec<Entry>,
}

impl Manifest {
    pub(crate) fn to_json(&self) -> Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(json)
    }
}

/// Adds the missing golden files, or checks them all.
///
/// # Errors
/// What is wrong with them; errors of reading and writing.
pub fn run(mode: Mode) -> Result<()> {
    for (folder, cases) in FOLDERS {
        let cases = cases();
        if mode == Mode::Write {
            fs::create_dir_all(root().join(folder))?;
            for case in &cases {
                add(folder, case)?;
            }
        }
        let expected = Manifest { containers: cases.iter().map(Case::entry).collect() };
        settle(mode, &format!("{folder}/{MANIFEST}"), &expected.to_json()?, "golden")?;
    }
    check_all(mode)
}

/// The folders of golden containers.
pub(crate) fn folders() -> impl Iterator<Item = &'static str> {
    FOLDERS.into_iter().map(|(folder, _)| folder)
}

impl Manifest {
    /// Reads the manifest of a folder of golden containers.
    pub(crate) fn of(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let json = fs::read(&path).with_context(|| path.display().to_string())?;
        serde_json::from_slice(&json).with_context(|| path.display().to_string())
    }
}

impl Case {
    fn entry(&self) -> Entry {
        let suffix = |input: &Input| if matches!(input, Input::File(_)) { ".safetensors" } else { "" };
        let base = |(i, input): (usize, &Input)| format!("{}.base{}{}", self.name, i + 1, suffix(input));
        Entry {
            container: format!("{}.loom", self.name),
            original: format!("{}{}", self.name, suffix(&self.original)),
            bases: self.bases.iter().enumerate().map(base).collect(),
            covers: self.covers.to_owned(),
            preset: self.preset.name().to_owned(),
            chunk_log2: self.chunk_log2,
            has_history: self.has_history,
            identity: self.said.as_ref().map(|said| Identity {
                base_names: said.base_names.iter().map(|name| (*name).to_owned()).collect(),
                texts: said.texts.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect(),
            }),
        }
    }
}

impl Entry {
    fn options(&self) -> Result<PackOptions> {
        let Some(preset) = Preset::ALL.into_iter().find(|preset| preset.name() == self.preset) else {
            bail!("{}: preset {:?}", self.container, self.preset);
        };
        let identity = self.identity.as_ref().map(|identity| identity.texts.clone());
        Ok(PackOptions::default()
            .with_preset(preset)
            .with_chunk_log2(self.chunk_log2)
            .with_threads(1)
            .with_identity(identity))
    }

    fn open_bases(&self, folder: &Path) -> Result<Bases> {
        let paths: Vec<PathBuf> = self.bases.iter().map(|base| folder.join(base)).collect();
        let mut bases = Bases::default();
        let (adapters, others): (Vec<PathBuf>, Vec<PathBuf>) =
            paths.into_iter().partition(|path| path.join("adapter_config.json").exists());
        adapters.iter().try_for_each(|adapter| bases.push_adapter(adapter, &Limits::default()))?;
        bases.push_paths(&others, &Limits::default())?;
        if self.has_history {
            bases.set_history(&others)?;
        }
        let names = self.identity.iter().flat_map(|identity| &identity.base_names);
        bases.set_names(others.iter().map(PathBuf::as_path).zip(names.map(String::as_str)))?;
        Ok(bases)
    }
}

/// Writes the files of a case unless its container exists.
fn add(name: &str, case: &Case) -> Result<()> {
    let folder = &root().join(name);
    let entry = case.entry();
    let container = folder.join(&entry.container);
    if container.exists() {
        return Ok(());
    }
    let inputs = entry.bases.iter().zip(&case.bases).chain([(&entry.original, &case.original)]);
    for (name, input) in inputs {
        match input {
            Input::File(bytes) => fs::write(folder.join(name), bytes)?,
            Input::Directory(files) => {
                for (path, bytes) in files {
                    let path = folder.join(name).join(path);
                    path.parent().map_or(Ok(()), fs::create_dir_all)?;
                    fs::write(path, bytes)?;
                }
            }
        }
    }
    let checkpoint = Checkpoint::open(&folder.join(&entry.original), &Limits::default())?;
    let report =
        deltaloom::pack(&checkpoint, &entry.open_bases(folder)?, &container, &entry.options()?, &Silent)?;
    say(&format!("{name}/{}: added, {} bytes", entry.container, report.packed_bytes))
}

/// Restores every container of the repository, compares it with its original, and packs that again.
/// Older containers may differ from what the program writes today, but that changes only together
/// with its list of digests.
///
/// # Errors
/// The first fault found.
pub fn check_all(mode: Mode) -> Result<()> {
    let mut seen = Seen::default();
    folders().try_for_each(|folder| check(folder, &mut seen))?;
    seen.check()?;
    let mut json = serde_json::to_vec_pretty(&seen.packed_again)?;
    json.push(b'\n');
    settle(mode, PACKED_AGAIN, &json, "golden")
}

fn check(name: &str, seen: &mut Seen) -> Result<()> {
    let folder = &root().join(name);
    let manifest = Manifest::of(folder)?;
    for entry in &manifest.containers {
        let key = format!("{name}/{}", entry.container);
        let digest = check_one(folder, entry, seen).with_context(|| key.clone())?;
        seen.packed_again.insert(key, digest);
    }
    let listed: BTreeSet<&str> = manifest.containers.iter().map(|entry| entry.container.as_str()).collect();
    for file in fs::read_dir(folder)? {
        let file = file?.file_name().to_string_lossy().into_owned();
        ensure!(!file.ends_with(".loom") || listed.contains(file.as_str()), "{name}/{file} is not listed");
    }
    let total = files(folder)?.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
    ensure!(total <= MAX_BYTES, "{name} has {total} bytes, more than {MAX_BYTES}");
    say(&format!("{name}: {} containers restored, {total} bytes", manifest.containers.len()))
}

/// Returns the BLAKE3 of what the original is packed into today.
fn check_one(folder: &Path, entry: &Entry, seen: &mut Seen) -> Result<String> {
    let limits = Limits::default();
    let path = folder.join(&entry.container);
    let original = folder.join(&entry.original);
    let bases = entry.open_bases(folder)?;
    let resolved = ResolvedContainer::new(Container::open(&path, &limits)?, &bases)?;
    seen.add(resolved.container(), &fs::read(&path)?);
    let said = deltaloom::inspect(resolved.container());
    let names: Vec<&str> = said.bases.iter().map(|base| base.name.as_str()).collect();
    let expected = entry.identity.as_ref();
    ensure!(
        names == expected.map_or(&[][..], |identity| &identity.base_names)
            && said.texts == expected.map_or_else(Texts::new, |identity| identity.texts.clone()),
        "its names and texts differ from the manifest"
    );
    let verified = deltaloom::verify(&Verifiable::Resolved(&resolved), 1, &Silent)?;
    ensure!(verified.ok, "{:?}", verified.faults);
    let scratch = tempfile::tempdir()?;
    let restored = scratch.path().join("restored");
    deltaloom::unpack(&resolved, &restored, &UnpackOptions::default().with_threads(1), &Silent)?;
    ensure!(files(&restored)? == files(&original)?, "the restored files differ from {}", entry.original);
    let checkpoint = Checkpoint::open(&original, &limits)?;
    let mut again = Vec::new();
    deltaloom::pack_to(&checkpoint, &bases, &mut again, &entry.options()?, &Silent)?;
    let golden = resolved.container().len_bytes();
    ensure!(again.len() as u64 <= golden, "packed again, it has {} bytes instead of {golden}", again.len());
    Ok(blake3::hash(&again).to_hex().to_string())
}

/// All files of a directory by their relative path, or a single file under an empty path.
fn files(path: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    if !path.is_dir() {
        return Ok(vec![(PathBuf::new(), fs::read(path).with_context(|| path.display().to_string())?)]);
    }
    let mut out = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let inner = files(&entry.path())?;
        out.extend(inner.into_iter().map(|(rest, bytes)| (Path::new(&entry.file_name()).join(rest), bytes)));
    }
    out.sort();
    Ok(out)
}

/// Features that occur in the containers, and what their originals are packed into.
#[derive(Debug, Default)]
struct Seen {
    predictors: BTreeSet<&'static str>,
    codecs: BTreeSet<&'static str>,
    /// First bytes of unscaled ulp payloads, which encode the number of lanes.
    lanes: BTreeSet<u8>,
    packed_again: BTreeMap<String, String>,
}

impl Seen {
    fn add(&mut self, container: &Container, bytes: &[u8]) {
        let report = deltaloom::inspect(container);
        self.codecs.extend(report.codecs.keys());
        // Payloads follow one another from byte 16 on, in the order of the tensors.
        let mut offset = 16;
        for tensor in &report.tensors {
            let kind = match (tensor.predictor, &tensor.reference) {
                ("cast", None) => "cast in the file",
                (kind, _) => kind,
            };
            self.predictors.insert(kind);
            if tensor.codec == "ulp" && tensor.shape.len() == 1 {
                self.lanes.extend(usize::try_from(offset).ok().and_then(|at| bytes.get(at)));
            }
            offset += tensor.packed_bytes;
        }
    }

    fn check(&self) -> Result<()> {
        let missing = |what: &str, seen: &BTreeSet<&'static str>, wanted: &[&str]| {
            let missing: Vec<&&str> = wanted.iter().filter(|name| !seen.contains(*name)).collect();
            ensure!(missing.is_empty(), "no golden container has the {what} {missing:?}");
            Ok(())
        };
        let predictors = [
            "zero",
            "reference",
            "identical",
            "tied",
            "cast",
            "cast in the file",
            "lowrank",
            "adapter",
            "blend",
            "companion",
            "adam",
            "history",
            "text",
        ];
        missing("predictor", &self.predictors, &predictors)?;
        missing(
            "codec",
            &self.codecs,
            &[
                "same", "constant", "raw", "planes", "float", "ulp", "sparse", "mixed", "grid", "scaled",
                "patch",
            ],
        )?;
        ensure!(
            self.lanes.iter().eq([1, 32, 64].iter()),
            "golden containers have ulp payloads of {:?} lanes instead of 1, 32 and 64",
            self.lanes
        );
        Ok(())
    }
}
