//! What packing and inspecting say of a container, with stable keys; docs/cli.md lists them.
//! It computes from the index only.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::checkpoint::{Contents, Role, Roles};
use crate::codec::Codec;
use crate::container::{Index, NamedBase, PackedTensor, Texts};
use crate::predict::Predictor;

/// A part of a container: how many of a kind, and their packed bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Share {
    /// Tensors, or chunks.
    pub count: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
}

impl Share {
    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The tensors of a container that have the same role: its weights, the states of the training, or
/// plain bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Portion {
    /// Number of tensors.
    pub tensors: u64,
    /// Number of their elements. For unknown dtypes: bytes.
    pub elems: u64,
    /// Their size.
    pub original_bytes: u64,
    /// Size of their payloads.
    pub packed_bytes: u64,
    /// Payload bits over elements; none without elements.
    pub bits_per_elem: Option<f64>,
    /// Share of elements that differ from the tensor of a base; none where no tensor is stored as a
    /// difference to one.
    pub changed_fraction: Option<f64>,
}

impl Portion {
    fn of(index: &Index, roles: &Roles, role: Role) -> Self {
        let mut portion = Self::default();
        let (mut changed, mut compared) = (0u64, 0u64);
        for tensor in index.tensors.iter().filter(|tensor| roles.role(tensor.place) == role) {
            let elems = tensor.grid.rows.saturating_mul(tensor.grid.cols);
            portion.tensors += 1;
            portion.elems = portion.elems.saturating_add(elems);
            portion.original_bytes = portion.original_bytes.saturating_add(index.info(tensor).len_bytes());
            portion.packed_bytes = portion.packed_bytes.saturating_add(tensor.packed_bytes());
            if tensor.predictor.is_reference() {
                changed = changed.saturating_add(tensor.changed);
                compared = compared.saturating_add(elems);
            }
        }
        portion.bits_per_elem = (portion.elems > 0).then(|| 8.0 * ratio(portion.packed_bytes, portion.elems));
        portion.changed_fraction = (compared > 0).then(|| ratio(changed, compared));
        portion
    }
}

/// A tensor in a container.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TensorReport {
    /// Name; the path for opaque files.
    pub name: String,
    /// Safetensors dtype.
    pub dtype: String,
    /// Sizes of the dimensions.
    pub shape: Vec<u64>,
    /// Kind of predictor.
    pub predictor: &'static str,
    /// Name of the reference in its base, where there is one; the first of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Names of the other references of a computed prediction.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_references: Vec<String>,
    /// The rule of a computed prediction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Codec of most of its bytes; `same` when it has none.
    pub codec: &'static str,
    /// Size of the tensor.
    pub original_bytes: u64,
    /// Size of its payloads.
    pub packed_bytes: u64,
    /// Share of elements that differ from the prediction; none for stand-alone tensors.
    pub changed_fraction: Option<f64>,
}

/// What packing used of an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AdapterReport {
    /// Path it was opened by.
    pub path: String,
    /// Modules with factors.
    pub modules: u64,
    /// Modules that a tensor is predicted from.
    pub used_modules: u64,
    /// Names of the others: they explain nothing. At most 20.
    pub unused: Vec<String>,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PackReport {
    /// Size of the checkpoint's files.
    pub original_bytes: u64,
    /// Size of the container.
    pub packed_bytes: u64,
    /// Original over packed.
    pub ratio: f64,
    /// Size of the index, tables and digests included, as stored.
    pub index_bytes: u64,
    /// Time it took; not for `inspect`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Threads it ran on; not for `inspect`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Version of the container's format.
    pub format_version: u16,
    /// Whether a base is needed to restore it.
    pub needs_base: bool,
    /// The bases that it names.
    pub bases: Vec<NamedBase>,
    /// Texts that it was given.
    pub texts: Texts,
    /// The adapters that were given; only where there are any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<AdapterReport>,
    /// Files of the checkpoint.
    pub files: Vec<String>,
    /// Its weights: what trained models are compared by.
    pub weights: Portion,
    /// States of the training beside them, such as the moments of an optimizer.
    pub states: Portion,
    /// All other bytes: small files, and what surrounds tensors in their files.
    pub other: Portion,
    /// Files without weights, as far as can be told, that are stored without help of the bases;
    /// only if anything else needs a base.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stored_alone: Vec<String>,
    /// Tensors by kind of predictor.
    pub predictors: BTreeMap<&'static str, Share>,
    /// Chunks by codec.
    pub codecs: BTreeMap<&'static str, Share>,
    /// The tensors, in file order.
    pub tensors: Vec<TensorReport>,
}

/// Quotient for people to read.
pub fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b.max(1) as f64
}

pub(crate) fn of(index: &Index, packed_bytes: u64, index_bytes: u64) -> PackReport {
    let mut predictors: BTreeMap<&'static str, Share> = BTreeMap::new();
    let mut codecs: BTreeMap<&'static str, Share> = BTreeMap::new();
    let add = |map: &mut BTreeMap<&'static str, Share>, kind, bytes| {
        let share = map.entry(kind).or_default();
        share.count += 1;
        share.bytes += bytes;
    };
    for tensor in &index.tensors {
        add(&mut predictors, tensor.predictor.kind(), tensor.packed_bytes());
        for chunk in &tensor.chunks {
            add(&mut codecs, chunk.codec.name(), chunk.payload.len_bytes as u64);
        }
    }
    let original_bytes = index.original_bytes();
    let roles = index.roles();
    let portion = |role| Portion::of(index, &roles, role);
    PackReport {
        original_bytes,
        packed_bytes,
        ratio: ratio(original_bytes, packed_bytes),
        index_bytes,
        seconds: None,
        threads: None,
        format_version: index.version,
        needs_base: index.needs_base(),
        bases: index.identity.bases.clone(),
        texts: index.identity.texts.clone(),
        adapters: Vec::new(),
        files: index.members.iter().map(|member| member.path.clone()).collect(),
        weights: portion(Role::Weights),
        states: portion(Role::State),
        other: portion(Role::Bytes),
        stored_alone: stored_alone(index),
        predictors,
        codecs,
        tensors: index.tensors.iter().map(|tensor| tensor_report(index, tensor)).collect(),
    }
}

fn stored_alone(index: &Index) -> Vec<String> {
    let is_alone = |tensor: &&PackedTensor| {
        let is_file = index.members[tensor.place.0].contents == Contents::Opaque;
        is_file && tensor.predictor == Predictor::Zero && tensor.packed_bytes() > 0
    };
    match index.needs_base() {
        true => index.tensors.iter().filter(is_alone).map(|tensor| index.info(tensor).name.clone()).collect(),
        false => Vec::new(),
    }
}

fn tensor_report(index: &Index, tensor: &PackedTensor) -> TensorReport {
    let info = index.info(tensor);
    let mut by_codec: BTreeMap<Codec, u64> = BTreeMap::new();
    for chunk in &tensor.chunks {
        *by_codec.entry(chunk.codec).or_default() += chunk.payload.len_bytes as u64;
    }
    let codec =
        by_codec.iter().rev().max_by_key(|(_, bytes)| **bytes).map_or(Codec::Same, |(codec, _)| *codec);
    let elems = tensor.grid.rows * tensor.grid.cols;
    let mut references = tensor.predictor.references(info).into_iter().map(|reference| reference.name);
    TensorReport {
        name: info.name.clone(),
        dtype: info.dtype.to_string(),
        shape: info.shape.clone(),
        predictor: tensor.predictor.kind(),
        reference: references.next(),
        other_references: references.collect(),
        rule: tensor.predictor.rule(),
        codec: codec.name(),
        original_bytes: info.len_bytes(),
        packed_bytes: tensor.packed_bytes(),
        changed_fraction: (!tensor.predictor.is_zero()
            && !matches!(tensor.predictor, Predictor::Companion(_)))
        .then(|| ratio(tensor.changed, elems)),
    }
}
