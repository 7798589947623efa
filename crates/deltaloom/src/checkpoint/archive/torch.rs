//! The tensors of a PyTorch archive: a zip archive with a pickle, which names the tensors, and a
//! file for each storage.
//! It compares the names of functions with those that it knows, and calls none.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::ops::Range;

use super::pickle::{self, Call, Id, Pickle, Value};
use super::{File, Found, zip};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::tensor::DType;

/// Depth of nested values.
const MAX_DEPTH: usize = 64;

/// The tensors of the archive, one for each storage that the pickle names.
pub(super) fn read(file: &File<'_>) -> Result<Vec<Found>> {
    let entries = zip::read(file)?;
    let pickles = entries.iter().filter_map(|entry| Some((entry, entry.name.strip_suffix("/data.pkl")?)));
    let pickles: Vec<_> = pickles.filter(|(_, folder)| !folder.contains('/')).collect();
    let &[(data, folder)] = &pickles[..] else {
        return Err(Error::corrupt("the archive has no data.pkl, or several"));
    };
    let order = entries.iter().find(|entry| entry.name.strip_prefix(folder) == Some("/byteorder"));
    if let Some(order) = order
        && zip::read_entry(file, order)? != b"little"
    {
        return Err(Error::corrupt("its numbers are not little-endian"));
    }
    let bytes = zip::read_entry(file, data)?;
    let pickle = pickle::read(&bytes, file.limits)?;
    let prefix = format!("{folder}/data/");
    let places =
        entries.iter().filter_map(|entry| Some((entry.name.strip_prefix(&prefix)?, entry.data.clone())));
    let places = places.collect();
    let states = vec![State::New; pickle.count()];
    let mut walk =
        Walk { pickle: &pickle, limits: file.limits, states, path: String::new(), storages: BTreeMap::new() };
    walk.visit(pickle.root, 0)?;
    found(walk.storages, &places)
}

/// The tensors of the storages, with the places of the files that hold them.
fn found(
    storages: BTreeMap<&str, Storage>,
    places: &HashMap<&str, Option<Range<u64>>>,
) -> Result<Vec<Found>> {
    let mut names: HashMap<String, &str> = HashMap::with_capacity(storages.len());
    let mut found = Vec::with_capacity(storages.len());
    for (key, storage) in storages {
        let place = places.get(key).cloned().flatten();
        let place =
            place.ok_or_else(|| Error::corrupt(format!("storage {key:?} is not in the archive as it is")))?;
        if Some(place.end - place.start) != storage.len_bytes() {
            return Err(Error::corrupt(format!("storage {key:?} has another size than the pickle says")));
        }
        let Storage { mut name, dtype, shape, .. } = storage;
        // Keys may contain dots, so that two paths may be spelled the same.
        if name.is_empty() || names.contains_key(&name) {
            write!(name, "{}data/{key}", if name.is_empty() { "" } else { "." }).unwrap_or_default();
        }
        names.insert(name.clone(), key);
        found.push(Found { name, dtype, shape, place });
    }
    Ok(found)
}

/// A storage, and the tensor that it becomes.
struct Storage {
    /// Elements of the type that the storage has.
    elems: u64,
    elem_bytes: u64,
    name: String,
    dtype: DType,
    shape: Vec<u64>,
    /// Whether dtype and shape are those of a tensor that is all of it.
    is_whole: bool,
}

impl Storage {
    fn len_bytes(&self) -> Option<u64> {
        self.elems.checked_mul(self.elem_bytes)
    }
}

/// How far a value has been looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Open,
    Done,
}

struct Walk<'a, 'p> {
    pickle: &'p Pickle<'a>,
    limits: &'p Limits,
    /// Each value is looked at once, so that a value that is repeated many times costs nothing.
    states: Vec<State>,
    /// The keys that lead to the present value.
    path: String,
    storages: BTreeMap<&'a str, Storage>,
}

impl<'a> Walk<'a, '_> {
    fn visit(&mut self, id: Id, depth: usize) -> Result<()> {
        match self.states[id as usize] {
            State::Done => return Ok(()),
            State::Open => return Err(Error::corrupt("a value of the pickle contains itself")),
            State::New => {}
        }
        if depth > MAX_DEPTH {
            return Err(Error::corrupt(format!(
                "values of the pickle are nested more than {MAX_DEPTH} deep"
            )));
        }
        self.states[id as usize] = State::Open;
        let pickle = self.pickle;
        match pickle.value(id) {
            Value::Plain | Value::Int(_) | Value::Text(_) | Value::Global(..) => {}
            Value::Sequence(items) => self.visit_items(items.iter().map(|item| (None, *item)), depth)?,
            Value::Dict(items) => {
                self.visit_items(items.iter().map(|(key, item)| (Some(*key), *item)), depth)?
            }
            Value::Persistent(identity) => self.storage(*identity)?,
            Value::Called(call) => self.visit_call(call, depth)?,
        }
        self.states[id as usize] = State::Done;
        Ok(())
    }

    fn visit_items(&mut self, items: impl Iterator<Item = (Option<Id>, Id)>, depth: usize) -> Result<()> {
        for (number, (key, item)) in items.enumerate() {
            let length = self.path.len();
            if length > 0 {
                self.path.push('.');
            }
            match key.map(|key| self.pickle.value(key)) {
                Some(Value::Text(text)) => self.path.push_str(text),
                Some(Value::Int(int)) => write!(self.path, "{int}").unwrap_or_default(),
                _ => write!(self.path, "{number}").unwrap_or_default(),
            }
            let visited = self.visit(item, depth + 1);
            self.path.truncate(length);
            visited?;
        }
        Ok(())
    }

    fn visit_call(&mut self, call: &Call, depth: usize) -> Result<()> {
        let arguments = self.pickle.sequence(call.arguments).unwrap_or_default();
        match (self.pickle.global(call.function), arguments) {
            (Some(("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")), [data, ..]) => {
                self.visit(*data, depth + 1)?;
            }
            (Some(function), arguments) if is_tensor(function) => self.tensor(function.1, arguments)?,
            // A subclass: a function and its arguments, in those of another function.
            (Some(("torch._tensor", "_rebuild_from_type_v2")), [function, _, inner, ..]) => {
                let inner = self.pickle.sequence(*inner).unwrap_or_default();
                match self.pickle.global(*function).filter(|function| is_tensor(*function)) {
                    Some(function) => self.tensor(function.1, inner)?,
                    None => self.visit_items(inner.iter().map(|item| (None, *item)), depth)?,
                }
            }
            _ => self.visit(call.arguments, depth + 1)?,
        }
        if let Some(state) = call.state {
            self.visit(state, depth + 1)?;
        }
        self.visit_items(call.items.iter().map(|(key, item)| (Some(*key), *item)), depth)
    }

    /// A tensor: the arguments of a function that makes it from its storage.
    fn tensor(&mut self, function: &str, arguments: &[Id]) -> Result<()> {
        let bad = || Error::corrupt("a tensor of the pickle is not described as torch.save does");
        let &[storage, offset, shape, strides, ref rest @ ..] = arguments else { return Err(bad()) };
        let Value::Persistent(identity) = self.pickle.value(storage) else { return Err(bad()) };
        let sizes = |id: Id| -> Option<Vec<u64>> {
            self.pickle.sequence(id)?.iter().map(|item| self.pickle.size(*item)).collect()
        };
        let offset = self.pickle.size(offset).ok_or_else(bad)?;
        let (shape, strides) = (sizes(shape).ok_or_else(bad)?, sizes(strides).ok_or_else(bad)?);
        Limits::check("the number of dimensions", shape.len() as u64, self.limits.dimensions)?;
        self.storage(*identity)?;
        let key = self.storage_key(*identity).ok_or_else(bad)?;
        let storage = self.storages.get_mut(key).ok_or_else(bad)?;
        // The third version has the dtype, since its storage is one of bytes.
        let dtype = match (function, rest) {
            ("_rebuild_tensor_v3", [_, _, dtype, ..]) => self.pickle.global(*dtype).and_then(dtype_of),
            _ => Some(storage.dtype.clone()),
        };
        let elem_bytes = dtype.as_ref().and_then(DType::bits).map(|bits| bits / 8);
        let elems = shape.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim));
        let len_bytes = elems.zip(elem_bytes).and_then(|(elems, bytes)| elems.checked_mul(bytes));
        let is_whole = offset == 0 && is_row_major(&shape, &strides) && len_bytes == storage.len_bytes();
        if let Some(dtype) = dtype.filter(|_| is_whole && !storage.is_whole) {
            storage.name.clone_from(&self.path);
            (storage.dtype, storage.shape, storage.is_whole) = (dtype, shape, true);
        }
        Ok(())
    }

    fn storage_key(&self, identity: Id) -> Option<&'a str> {
        self.pickle.text(*self.pickle.sequence(identity)?.get(2)?)
    }

    /// A storage by what identifies it. Until a tensor is all of it, it is a row of numbers.
    fn storage(&mut self, identity: Id) -> Result<()> {
        let bad = || Error::corrupt("a storage of the pickle is not described as torch.save does");
        let Some(&[kind, class, key, _, elems]) = self.pickle.sequence(identity) else { return Err(bad()) };
        let (Some("storage"), Some(class)) = (self.pickle.text(kind), self.pickle.global(class)) else {
            return Err(bad());
        };
        let (key, elems) = self.pickle.text(key).zip(self.pickle.size(elems)).ok_or_else(bad)?;
        let Some(dtype) = storage_dtype(class) else {
            return Err(Error::corrupt(format!("a storage of type {}.{} is not known", class.0, class.1)));
        };
        let elem_bytes = dtype.bits().unwrap_or(8) / 8;
        let name = &self.path;
        let new =
            || Storage { elems, elem_bytes, name: name.clone(), dtype, shape: vec![elems], is_whole: false };
        let storage = self.storages.entry(key).or_insert_with(new);
        if storage.len_bytes() != elems.checked_mul(elem_bytes) {
            return Err(Error::corrupt(format!("storage {key:?} has several sizes")));
        }
        Ok(())
    }
}

/// Whether a function makes a tensor from its storage.
fn is_tensor((module, name): (&str, &str)) -> bool {
    module == "torch._utils"
        && matches!(name, "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3")
}

/// Whether the elements of a tensor lie in row-major order without gaps. The stride of a dimension
/// of one element does not matter.
fn is_row_major(shape: &[u64], strides: &[u64]) -> bool {
    let mut expected = Some(1u64);
    shape.len() == strides.len()
        && shape.iter().zip(strides).rev().all(|(dim, stride)| {
            let fits = *dim <= 1 || expected == Some(*stride);
            expected = expected.and_then(|expected| expected.checked_mul(*dim));
            fits
        })
}

fn storage_dtype((module, class): (&str, &str)) -> Option<DType> {
    if (module, class) == ("torch.storage", "UntypedStorage") {
        return Some(DType::U8);
    }
    Some(match class.strip_suffix("Storage").filter(|_| module == "torch")? {
        "Double" => DType::F64,
        "Float" => DType::F32,
        "Half" => DType::F16,
        "BFloat16" => DType::BF16,
        "Long" => DType::I64,
        "Int" => DType::I32,
        "Short" => DType::I16,
        "Char" => DType::I8,
        "Byte" | "Untyped" => DType::U8,
        "Bool" => DType::Bool,
        _ => return None,
    })
}

fn dtype_of((module, name): (&str, &str)) -> Option<DType> {
    Some(match (module, name) {
        ("torch", "float8_e4m3fn") => DType::F8E4M3,
        ("torch", "float8_e5m2") => DType::F8E5M2,
        ("torch", "uint16") => DType::U16,
        ("torch", "uint32") => DType::U32,
        ("torch", "uint64") => DType::U64,
        _ => return None,
    })
}
