//! A student on disk: a directory with the numbers of its forms in `student.safetensors`, and in
//! `student.json` what they mean and what they cost. docs/student.md describes both.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use deltaloom::checkpoint::output::{Inputs, NewDirectory};
use deltaloom::checkpoint::{Checkpoint, NewTensor};
use deltaloom::tensor::{DType, TensorInfo};
use deltaloom::{Access, Bases, Error, Limits, Missing, PackOptions, Result, Silent, pack_to};
use deltaloom_lm::model::{HEAD, ModelConfig, Parts};
use serde::{Deserialize, Serialize};

use crate::forms::{Form, FormRecord, Source, Tensors};
use crate::network::Network;

mod tenant;

pub use tenant::{Tenant, tenant};

/// The file of all numbers.
pub const WEIGHTS: &str = "student.safetensors";
/// The file that says what they mean.
pub const DESCRIPTION: &str = "student.json";
/// Bytes of `student.json` at most.
const LARGEST_DESCRIPTION: u64 = 16 << 20;

/// What `student.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// Version of this description: 1.
    pub schema: u32,
    /// Always true: a student is not its teacher.
    pub lossy: bool,
    /// The program that wrote it.
    pub tool: String,
    /// What it was made from.
    pub teacher: Origin,
    /// The model that it needs, because it stores only what the teacher adds to it: the digest of
    /// its tensors, as of those of the teacher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Tensors that are those of the base.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub from_base: BTreeSet<String>,
    /// How it was made: digest of the recipe.
    pub recipe: String,
    /// BLAKE3-256 of `student.safetensors`.
    pub weights: String,
    /// Texts that were used, with their digests.
    #[serde(default)]
    pub texts: Vec<UsedText>,
    /// The forms of all matrices that were changed.
    pub matrices: BTreeMap<String, MatrixRecord>,
    /// What was measured; only for people.
    #[serde(default)]
    pub measured: serde_json::Value,
}

/// The weights that a student was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// BLAKE3-256 of its tensors: for each in the order of names, the name and its bytes.
    pub digest: String,
    /// Bytes of its tensors.
    pub bytes: u64,
}

/// A text that a student was calibrated or measured with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedText {
    /// The name of its file.
    pub name: String,
    /// BLAKE3-256 of the file.
    pub digest: String,
    /// Tokens that matrices were fitted to.
    pub calibrated: usize,
    /// Tokens that the student was compared on.
    pub evaluated: usize,
}

/// A matrix of a student.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MatrixRecord {
    /// Rows and columns.
    pub shape: [usize; 2],
    /// How it is stored.
    pub form: FormRecord,
}

/// What weights take in a packed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Bytes of the file, with index, tables and digests.
    pub bytes: u64,
    /// Those of them that are not payloads of tensors which stayed as they are.
    pub shrunk: u64,
    /// Weights that `shrunk` stands for.
    pub shrunk_weights: u64,
    /// Tensors with the bytes of their payloads.
    pub tensors: Vec<(String, u64)>,
}

/// A student before it is written.
pub struct Student {
    /// The configuration: that of the teacher, with an untied head if it has one of its own.
    config_text: String,
    tensors: Vec<NewTensor>,
    matrices: BTreeMap<String, MatrixRecord>,
    from_base: BTreeSet<String>,
}

impl Student {
    /// A student of a teacher with new forms for some matrices. All other tensors stay as they are,
    /// and are not stored if the teacher's base has the same.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a form of a matrix that the teacher does not have;
    /// [`Error::InvalidArgument`] for a configuration that is not a JSON object.
    pub fn new(teacher: &Network, forms: &BTreeMap<String, Form>) -> Result<Self> {
        let parts = teacher.parts();
        let mut written = Tensors::new();
        let mut matrices = BTreeMap::new();
        for (name, form) in forms {
            let shape = match name.as_str() {
                HEAD if parts.globals.head.is_none() => teacher.shape(&parts.globals.embedding)?,
                _ => teacher.shape(name)?,
            };
            matrices
                .insert(name.clone(), MatrixRecord { shape, form: form.write(name, shape, &mut written) });
        }
        let (mut tensors, mut from_base) = (Vec::new(), BTreeSet::new());
        for (member, info) in parts.checkpoint.weights() {
            // A head beside one that is tied says the same again.
            let is_double = info.name == HEAD && parts.config.has_tied_head;
            if forms.contains_key(&info.name) || is_double {
                continue;
            }
            let bytes = parts.checkpoint.read_tensor(member, info)?;
            if let Some(base) = teacher.base() {
                let (member, of_base) = base.parts().tensor(&info.name)?;
                let is_alike = info.dtype == of_base.dtype && info.shape == of_base.shape;
                if is_alike && base.parts().checkpoint.read_tensor(member, of_base)? == bytes {
                    from_base.insert(info.name.clone());
                    continue;
                }
            }
            tensors.push(new_tensor(info.name.clone(), info.dtype.clone(), info.shape.clone(), bytes));
        }
        for (name, part) in written {
            let dtype = match part.dtype {
                "I8" => DType::I8,
                "U8" => DType::U8,
                "F16" => DType::F16,
                "BF16" => DType::BF16,
                _ => DType::F32,
            };
            tensors.push(new_tensor(name, dtype, part.shape, part.bytes));
        }
        let is_untied = parts.config.has_tied_head && forms.contains_key(HEAD);
        let config_text = if is_untied { untied(&parts.config_text)? } else { parts.config_text.clone() };
        Ok(Self { config_text, tensors, matrices, from_base })
    }

    /// The weights as a file in memory.
    fn checkpoint(&self) -> Result<Checkpoint> {
        Checkpoint::from_tensors(WEIGHTS, self.tensors.clone(), &BTreeMap::new(), &Limits::default())
    }

    /// What its weights take when they are packed.
    ///
    /// # Errors
    /// Errors of packing.
    pub fn packed(&self) -> Result<Packed> {
        packed(&self.checkpoint()?, &self.matrices)
    }

    /// BLAKE3-256 of `student.safetensors`.
    ///
    /// # Errors
    /// Errors of reading.
    pub fn weights_digest(&self) -> Result<String> {
        Ok(blake3::hash(&self.checkpoint()?.read_file(0)?).to_hex().to_string())
    }

    /// What `student.json` is to say of its matrices.
    #[must_use]
    pub fn matrices(&self) -> &BTreeMap<String, MatrixRecord> {
        &self.matrices
    }

    /// Tensors that `student.json` is to say are those of the base.
    #[must_use]
    pub fn from_base(&self) -> &BTreeSet<String> {
        &self.from_base
    }

    /// Writes the directory. `teacher` is where the tokenizer is, if that is a folder.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] without `overwrite`, [`Error::Protected`], [`Error::Io`].
    pub fn write(
        &self,
        target: &Path,
        description: &Description,
        teacher: &Path,
        overwrite: bool,
        inputs: &Inputs,
    ) -> Result<()> {
        let weights = self.checkpoint()?.read_file(0)?;
        let json = serde_json::to_string_pretty(description)
            .map_err(|error| Error::InvalidArgument(format!("{DESCRIPTION} cannot be written: {error}")))?;
        let files = [
            (DESCRIPTION, json.as_bytes()),
            ("config.json", self.config_text.as_bytes()),
            (WEIGHTS, &weights),
        ];
        write_directory(target, &files, teacher, overwrite, inputs)
    }
}

/// What a file of weights takes when it is packed.
///
/// # Errors
/// Errors of packing.
pub fn packed(weights: &Checkpoint, matrices: &BTreeMap<String, MatrixRecord>) -> Result<Packed> {
    let mut counted = Counter(0);
    let report = pack_to(weights, &Bases::default(), &mut counted, &PackOptions::default(), &Silent)?;
    let tensors = report.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.packed_bytes));
    let tensors: Vec<(String, u64)> = tensors.collect();
    let kept = tensors.iter().filter(|(name, _)| matrix_of(matrices, name).is_none());
    let kept: u64 = kept.map(|(_, bytes)| bytes).sum();
    let shrunk_weights = matrices.values().map(|matrix| matrix.shape.iter().product::<usize>() as u64);
    Ok(Packed {
        bytes: counted.0,
        shrunk: counted.0.saturating_sub(kept),
        shrunk_weights: shrunk_weights.sum(),
        tensors,
    })
}

/// Writes the dense model that a student stands for, for other tools: its forms in F32, all other
/// tensors as they are. `base` is as for [`open`].
///
/// # Errors
/// As [`open`] and [`Student::write`].
pub fn materialise(
    student: &Path,
    base: Option<&Path>,
    target: &Path,
    overwrite: bool,
    inputs: &Inputs,
) -> Result<()> {
    let (config_text, checkpoint) = open(student, base)?;
    let weights = checkpoint.read_file(0)?;
    let files = [("config.json", config_text.as_bytes()), ("model.safetensors", &weights[..])];
    write_directory(target, &files, student, overwrite, inputs)
}

/// A directory of these files, and of the files of the tokenizer in another one.
fn write_directory(
    target: &Path,
    files: &[(&str, &[u8])],
    tokenizer: &Path,
    overwrite: bool,
    inputs: &Inputs,
) -> Result<()> {
    let folder = NewDirectory::create(target, overwrite, inputs)?;
    for name in TOKENIZER_FILES {
        match std::fs::read(tokenizer.join(name)) {
            Ok(bytes) => put(&folder, target, name, &bytes)?,
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(Error::io(&tokenizer.join(name))(error)),
        }
    }
    files.iter().try_for_each(|(name, bytes)| put(&folder, target, name, bytes))?;
    folder.commit()
}

/// Files of a tokenizer, and of how a model generates.
const TOKENIZER_FILES: [&str; 8] = [
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
];

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

fn put(folder: &NewDirectory, target: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    use std::io::Write as _;
    let mut file = folder.create_file(name)?;
    let path = target.join(name);
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|source| Error::Io {
        path,
        access: Access::Write,
        source,
    })
}

fn new_tensor(name: String, dtype: DType, shape: Vec<u64>, bytes: Vec<u8>) -> NewTensor {
    NewTensor { name, dtype, shape, source: Arc::new(bytes) }
}

struct Counter(u64);

impl std::io::Write for &mut Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A configuration whose head is not its embedding.
fn untied(config_text: &str) -> Result<String> {
    let wrong = |what: String| Error::InvalidArgument(format!("config.json: {what}"));
    let mut config: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(config_text).map_err(|error| wrong(error.to_string()))?;
    config.insert("tie_word_embeddings".to_owned(), false.into());
    serde_json::to_string_pretty(&config).map_err(|error| wrong(error.to_string()))
}

/// Whether a directory is a student.
#[must_use]
pub fn is_student(path: &Path) -> bool {
    path.join(DESCRIPTION).is_file()
}

/// Reads what a student says of itself.
///
/// # Errors
/// [`Error::Io`]; [`Error::InvalidArgument`] for anything but a description of version 1.
pub fn describe(path: &Path) -> Result<Description> {
    use std::io::Read as _;
    let file = path.join(DESCRIPTION);
    let mut text = String::new();
    let read =
        std::fs::File::open(&file).and_then(|it| it.take(LARGEST_DESCRIPTION + 1).read_to_string(&mut text));
    read.map_err(Error::io(&file))?;
    Limits::check("bytes of student.json", text.len() as u64, LARGEST_DESCRIPTION)?;
    let wrong = |what: String| Error::InvalidArgument(format!("{}: {what}", file.display()));
    let description: Description = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    if description.schema != 1 || !description.lossy {
        return Err(wrong(format!("schema {} is not one that this version reads", description.schema)));
    }
    Ok(description)
}

/// The dense model that a student stands for: the text of its `config.json`, and its tensors, those
/// of forms in F32. `base` is the model that it stores differences from, if it has one: a folder or
/// a GGUF file.
///
/// # Errors
/// As [`describe`] and [`Parts::open`]; [`Error::BaseMismatch`] for another base;
/// [`Error::InvalidArgument`] without one that is needed, and for one that is not;
/// [`Error::NotFound`] for missing tensors; [`Error::InvalidArgument`] for forms that do not fit
/// their tensors.
pub fn open(path: &Path, base: Option<&Path>) -> Result<(String, Checkpoint)> {
    let description = describe(path)?;
    let base = match (base, &description.base) {
        (None, None) => None,
        (Some(base), Some(digest)) => Some(open_base(base, digest)?),
        (None, Some(_)) => return wrong(path, "it stores differences from a base, and none is given"),
        (Some(_), None) => return wrong(path, "a base is given, and it stores no differences from one"),
    };
    let config = path.join("config.json");
    let config_text = std::fs::read_to_string(&config).map_err(Error::io(&config))?;
    let file = path.join(WEIGHTS);
    let bytes = Checkpoint::open(&file, &Limits::default())?.read_file(0)?;
    if blake3::hash(&bytes).to_hex().as_str() != description.weights {
        let what = format!("it is not the file that {DESCRIPTION} describes: its digest differs");
        return Err(Error::corrupt(what).in_file(&file));
    }
    let weights = Checkpoint::from_bytes(WEIGHTS, bytes, &Limits::default())?;
    let stored: BTreeMap<&str, (usize, &TensorInfo)> =
        weights.weights().map(|(member, info)| (info.name.as_str(), (member, info))).collect();
    let find = |name: &str, dtype: &str, shape: &[usize]| -> Result<Vec<u8>> {
        let missing = || Error::not_found(Missing::Tensor, format!("tensor {name:?} of the student"));
        let (member, info) = *stored.get(name).ok_or_else(missing)?;
        let is_same = info.shape.iter().copied().eq(shape.iter().map(|size| *size as u64));
        if info.dtype.to_string() != dtype || !is_same {
            return Err(Error::InvalidArgument(format!(
                "tensor {name:?} is {} {:?}, and its form needs {dtype} {shape:?}",
                info.dtype, info.shape
            )));
        }
        weights.read_tensor(member, info)
    };
    // So that a small file cannot ask for much memory.
    let shapes = shapes(&ModelConfig::parse(&config_text)?);
    let mut tensors = Vec::new();
    for (name, MatrixRecord { shape: [rows, cols], form }) in &description.matrices {
        if !shapes.contains(&[*rows, *cols]) {
            let what = format!("matrix {name:?} is [{rows}, {cols}], which the model does not have");
            return Err(Error::InvalidArgument(what));
        }
        let of_base = base.as_ref().map(|base| of_base(base, name, [*rows, *cols])).transpose()?.flatten();
        let source = Source { find: &find, base: of_base.as_ref() };
        let values = Form::read(form, name, [*rows, *cols], &source)?.decode(*rows, *cols);
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::InvalidArgument(format!("matrix {name:?} has numbers that are not finite")));
        }
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let shape = vec![*rows as u64, *cols as u64];
        tensors.push(new_tensor(name.clone(), DType::F32, shape, bytes));
    }
    let kept = weights.weights().filter(|(_, info)| matrix_of(&description.matrices, &info.name).is_none());
    for (member, info) in kept {
        let bytes = weights.read_tensor(member, info)?;
        tensors.push(new_tensor(info.name.clone(), info.dtype.clone(), info.shape.clone(), bytes));
    }
    for name in &description.from_base {
        let Some(base) = base.as_ref().filter(|_| !tensors.iter().any(|tensor| tensor.name == *name)) else {
            return wrong(path, &format!("tensor {name:?} is said to be that of a base, and is not"));
        };
        let (member, info) = base.tensor(name)?;
        let bytes = base.checkpoint.read_tensor(member, info)?;
        tensors.push(new_tensor(name.clone(), info.dtype.clone(), info.shape.clone(), bytes));
    }
    let checkpoint =
        Checkpoint::from_tensors("model.safetensors", tensors, &BTreeMap::new(), &Limits::default())?;
    Ok((config_text, checkpoint.into_memory()?))
}

fn wrong<T>(path: &Path, what: &str) -> Result<T> {
    Err(Error::InvalidArgument(format!("{}: {what}", path.display())))
}

/// Opens the base of a student, and refuses another one.
fn open_base(path: &Path, expected: &str) -> Result<Parts> {
    let base = Parts::open(path).map_err(|error| error.in_file(path))?;
    let found = origin(&base.checkpoint)?.digest;
    if found == expected {
        return Ok(base);
    }
    let found = format!("{} has {found}", path.display());
    let (tensor, expected) = (WEIGHTS.to_owned(), expected.to_owned());
    Err(Error::BaseMismatch { tensor, expected, found, needed: String::new() })
}

/// Values of a matrix of the base; `None` if it has none of this shape.
fn of_base(base: &Parts, name: &str, [rows, cols]: [usize; 2]) -> Result<Option<Arc<[f32]>>> {
    let is_there = base.shape(name).is_ok_and(|shape| *shape == [rows as u64, cols as u64]);
    is_there.then(|| base.values(name).map(Arc::from)).transpose()
}

/// Rows and columns of the matrices of a model.
fn shapes(config: &ModelConfig) -> BTreeSet<[usize; 2]> {
    let of_layers =
        config.layers.iter().flat_map(|layer| layer.matrices().into_iter().map(|role| layer.shape(role)));
    of_layers.chain([[config.vocabulary, config.width]]).collect()
}

/// The matrix to whose form a tensor belongs: the name of the tensor is that of the matrix, then a
/// dot and more.
pub(crate) fn matrix_of<'a>(matrices: &'a BTreeMap<String, MatrixRecord>, tensor: &str) -> Option<&'a str> {
    let is_part =
        |matrix: &&String| tensor.strip_prefix(matrix.as_str()).is_some_and(|it| it.starts_with('.'));
    matrices.keys().find(is_part).map(String::as_str)
}

/// Digest and bytes of the tensors of a model.
///
/// # Errors
/// Errors of reading.
pub fn origin(checkpoint: &Checkpoint) -> Result<Origin> {
    let mut tensors: Vec<(usize, &TensorInfo)> = checkpoint.weights().collect();
    tensors.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
    for (member, info) in tensors {
        let tensor = checkpoint.read_tensor(member, info)?;
        hasher.update(info.name.as_bytes()).update(&tensor);
        bytes += tensor.len() as u64;
    }
    Ok(Origin { digest: hasher.finalize().to_hex().to_string(), bytes })
}
