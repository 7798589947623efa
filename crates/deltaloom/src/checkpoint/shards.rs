//! Compares the index of a sharded checkpoint with the files that exist, since an interrupted
//! download leaves half a model. It reads the index only, and keeps only what is missing.

use std::collections::{BTreeSet, HashSet};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::{Checkpoint, Contents, LeftOut};
use crate::error::{Error, Result};
use crate::limits::{Limits, to_usize};

/// Missing names that a warning shows.
const TOLD: usize = 5;

/// Something about an input that is no error, but probably a mistake.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Warning {
    /// An index of shards names files that do not exist.
    MissingFiles {
        /// Path of the index.
        index: String,
        /// Number of missing files.
        count: u64,
        /// The first of them, by name.
        names: Vec<String>,
    },
    /// An index of shards names tensors that are in no file, although their shards exist.
    MissingTensors {
        /// Path of the index.
        index: String,
        /// Number of missing tensors.
        count: u64,
        /// The first of them, in the order of the index.
        names: Vec<String>,
    },
    /// An index of shards cannot be read.
    UnreadableIndex {
        /// Path of the index.
        index: String,
        /// What is wrong with it.
        why: String,
    },
    /// An adapter is of a type whose merge is not computed. Only tensors that it has as they are
    /// can be used.
    IgnoredAdapter {
        /// Path of the adapter.
        adapter: String,
        /// Its type.
        adapter_type: String,
    },
    /// Modules of an adapter have factors that do not fit together, and are not used.
    UnfitModules {
        /// Path of the adapter.
        adapter: String,
        /// Number of such modules.
        count: u64,
        /// The first of them, in the order of their tensors.
        names: Vec<String>,
    },
    /// Parts of a folder are no part of the checkpoint.
    LeftOut {
        /// Path of the folder.
        folder: String,
        /// Why they are left out.
        why: LeftOut,
        /// Number of files, links or folders.
        count: u64,
        /// The first of them, by name.
        paths: Vec<String>,
    },
}

impl Warning {
    /// The warning about modules that do not fit, if there are any.
    pub(super) fn unfit_modules(adapter: String, mut names: Vec<String>) -> Option<Self> {
        let count = names.len() as u64;
        names.truncate(TOLD);
        (count > 0).then_some(Self::UnfitModules { adapter, count, names })
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut missing = |index: &str, count: &u64, names: &[String], (one, many): (&str, &str)| {
            let what = if *count == 1 { one.to_owned() } else { format!("{count} {many}") };
            let more = if *count > names.len() as u64 { ", ..." } else { "" };
            write!(f, "{index} names {what}: {}{more}; the checkpoint is incomplete", names.join(", "))
        };
        match self {
            Self::MissingFiles { index, count, names } => {
                missing(index, count, names, ("a file that is not there", "files that are not there"))
            }
            Self::MissingTensors { index, count, names } => {
                missing(index, count, names, ("a tensor that no file has", "tensors that no file has"))
            }
            Self::UnreadableIndex { index, why } => write!(f, "{index} cannot be read: {why}"),
            Self::IgnoredAdapter { adapter, adapter_type } => {
                write!(
                    f,
                    "{adapter}: merges of adapters of type {adapter_type} are not computed; only tensors that it has whole are used"
                )
            }
            Self::UnfitModules { adapter, count, names } => {
                let more = if *count > names.len() as u64 { ", ..." } else { "" };
                let names = names.join(", ");
                write!(
                    f,
                    "{adapter}: factors of {count} modules do not fit together and are not used: {names}{more}"
                )
            }
            Self::LeftOut { folder, why, count, paths } => {
                let more = if *count > paths.len() as u64 { ", ..." } else { "" };
                write!(f, "{folder}: {why} are left out: {}{more}", paths.join(", "))
            }
        }
    }
}

/// Whether a file is the index of shards, as in `model.safetensors.index.json`.
pub(crate) fn is_index(path: &str) -> bool {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    name.contains(".safetensors.index.") && name.ends_with(".json")
}

impl Checkpoint {
    /// What of its folder is left out, and statements of its own indexes that are not true.
    ///
    /// # Errors
    /// [`Error::Io`] with the file's path.
    pub fn warnings(&self, limits: &Limits) -> Result<Vec<Warning>> {
        let is_opaque_index =
            |m: &usize| self.members[*m].contents == Contents::Opaque && is_index(&self.members[*m].path);
        let indexes: Vec<usize> = (0..self.members.len()).filter(is_opaque_index).collect();
        let mut warnings = self.of_folder.clone();
        if indexes.is_empty() {
            return Ok(warnings);
        }
        let files: HashSet<&str> = self.members.iter().map(|member| member.path.as_str()).collect();
        let weights = self.members.iter().filter(|member| member.contents != Contents::Opaque);
        let tensors: HashSet<&str> =
            weights.flat_map(|member| &member.tensors).map(|tensor| tensor.name.as_str()).collect();
        for member in indexes {
            let folder = self.members[member].path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let index = self.sources[member].0.display().to_string();
            let mut missing =
                Missing { folder, files: &files, tensors: &tensors, limits, found: Found::default() };
            match self.read_index(member, &mut missing) {
                Ok(()) => warnings.extend(missing.found.warnings(&index)),
                Err(e @ Error::Io { .. }) => return Err(e),
                Err(e) => warnings.push(Warning::UnreadableIndex { index, why: e.detail() }),
            }
        }
        Ok(warnings)
    }

    fn read_index(&self, member: usize, missing: &mut Missing<'_>) -> Result<()> {
        let length = self.members[member].len_bytes();
        Limits::check("an index of shards in bytes", length, missing.limits.header_bytes)?;
        let (path, source) = &self.sources[member];
        let mut json = vec![0; to_usize(length)];
        source.read_at(0, &mut json).map_err(Error::io(path))?;
        let mut deserializer = serde_json::Deserializer::from_slice(&json);
        let read = Index(missing).deserialize(&mut deserializer).and_then(|()| deserializer.end());
        read.map_err(|e| Error::corrupt(format!("index of shards: {e}")))
    }
}

/// Looks up the names in an index.
struct Missing<'a> {
    /// The folder of the index, and what exists.
    folder: &'a str,
    files: &'a HashSet<&'a str>,
    tensors: &'a HashSet<&'a str>,
    limits: &'a Limits,
    found: Found,
}

#[derive(Default)]
struct Found {
    files: BTreeSet<String>,
    tensors: u64,
    first_tensors: Vec<String>,
}

impl Missing<'_> {
    /// Returns whether reading the index may continue.
    fn look_up(&mut self, tensor: String, file: String) -> bool {
        let has_file = if self.folder.is_empty() {
            self.files.contains(file.as_str())
        } else {
            self.files.contains(format!("{}/{file}", self.folder).as_str())
        };
        if !has_file {
            self.found.files.insert(file);
        } else if !self.tensors.contains(tensor.as_str()) {
            self.found.tensors += 1;
            if self.found.first_tensors.len() < TOLD {
                self.found.first_tensors.push(tensor);
            }
        }
        self.found.files.len() as u64 <= self.limits.members
    }
}

impl Found {
    fn warnings(self, index: &str) -> impl Iterator<Item = Warning> {
        let count = self.files.len() as u64;
        let names = self.files.into_iter().take(TOLD).collect();
        let files = Warning::MissingFiles { index: index.to_owned(), count, names };
        let tensors = Warning::MissingTensors {
            index: index.to_owned(),
            count: self.tensors,
            names: self.first_tensors,
        };
        let files = (count > 0).then_some(files);
        files.into_iter().chain((self.tensors > 0).then_some(tensors))
    }
}

/// The whole file, of which only the map matters.
struct Index<'a, 'b>(&'a mut Missing<'b>);

/// A map from names of tensors to names of files.
struct WeightMap<'a, 'b>(&'a mut Missing<'b>);

impl<'de> DeserializeSeed<'de> for Index<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Index<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a weight_map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "weight_map" {
                map.next_value_seed(WeightMap(self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for WeightMap<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for WeightMap<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of files by tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((tensor, file)) = map.next_entry()? {
            if !self.0.look_up(tensor, file) {
                return Err(A::Error::custom("it names more files than a checkpoint may have"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Member;
    use crate::tensor::{DType, TensorInfo};

    fn found(json: &str, limits: &Limits) -> Result<Found> {
        let files = HashSet::from(["unet/here", "elsewhere"]);
        let tensors = HashSet::from(["a", "b"]);
        let found = Found::default();
        let mut missing = Missing { folder: "unet", files: &files, tensors: &tensors, limits, found };
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let read = Index(&mut missing).deserialize(&mut deserializer).and_then(|()| deserializer.end());
        read.map_err(|e| Error::corrupt(e.to_string()))?;
        Ok(missing.found)
    }

    #[test]
    fn what_is_missing_is_found_and_counted() {
        let json = r#"{"metadata": {"total_size": [1, {}]}, "weight_map": {"a": "here", "b": "here",
            "c": "here", "d": "gone", "e": "gone", "f": "elsewhere", "a": "here"}, "more": null}"#;
        let found = found(json, &Limits::default()).unwrap();
        assert_eq!(found.files, BTreeSet::from(["elsewhere".to_owned(), "gone".to_owned()]));
        let warnings: Vec<String> = found.warnings("i").map(|warning| warning.to_string()).collect();
        assert_eq!(
            warnings,
            [
                "i names 2 files that are not there: elsewhere, gone; the checkpoint is incomplete",
                "i names a tensor that no file has: c; the checkpoint is incomplete"
            ]
        );
    }

    #[test]
    fn a_hostile_index_is_bounded() {
        for json in ["[]", "{\"weight_map\": []}", "{\"weight_map\": {\"a\": 1}}", "{} x", "", "{"] {
            assert!(found(json, &Limits::default()).is_err(), "{json}");
        }
        let many: Vec<String> = (0..20).map(|i| format!("\"{i}\": \"f{i}\"")).collect();
        let json = format!("{{\"weight_map\": {{{}}}}}", many.join(","));
        let limits = |members| Limits { members, ..Limits::default() };
        assert!(found(&json, &limits(19)).is_err());
        let found = found(&json, &limits(20)).unwrap();
        let Some(Warning::MissingFiles { count: 20, names, .. }) = found.warnings("").next() else {
            panic!("20 files are missing")
        };
        assert_eq!(names.len(), TOLD);
    }

    #[test]
    fn a_checkpoint_without_an_index_has_no_warnings() {
        assert!(is_index("a/diffusion_pytorch_model.safetensors.index.fp16.json"));
        assert!(!is_index("pytorch_model.bin.index.json") && !is_index("x.safetensors.index.json/y"));
        let tensor = TensorInfo::sized("w".to_owned(), DType::U8, vec![2]);
        let contents = Contents::Safetensors(b"{}".to_vec());
        let member = Member {
            path: "x.safetensors.index.json".to_owned(),
            contents,
            tensors: vec![tensor],
            tail_bytes: 0,
        };
        let source: std::sync::Arc<dyn crate::checkpoint::ReadAt> = std::sync::Arc::new(vec![0u8; 12]);
        let checkpoint =
            Checkpoint::of_members(vec![member], vec![("x".into(), source)], &Limits::default()).unwrap();
        assert_eq!(checkpoint.warnings(&Limits::default()).unwrap(), []);
    }
}
