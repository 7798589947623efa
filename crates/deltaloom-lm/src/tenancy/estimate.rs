//! Estimates the memory for serving a number of fine-tunes of a base, form by form, before anything
//! is loaded. It can also load one, to check an estimate.
//!
//! It allocates for one tensor at a time. Programs find out what the machine has, and how much a
//! process really uses.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::TensorInfo;
use deltaloom::{Error, ResolvedContainer, Result};
use deltaloom_compute::{Changes, Choice, Form, MatrixShape, PackedMatrix};

/// Bytes of one tenant in addition to its base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct TenantBytes {
    /// Number of elements that differ.
    pub changed_elems: u64,
    /// Number of all elements.
    pub elems: u64,
    /// Number of tensors.
    pub tensors: u64,
    /// Number of tensors that the base has too, with the same type and shape.
    pub matched_tensors: u64,
    /// Bytes of a raw copy.
    pub raw: u64,
    /// Bytes of the container.
    pub packed: u64,
    /// The container, and its frequency tables in memory. Decoders that are kept ready during
    /// products are not included.
    pub tiles: u64,
    /// Masks and the bytes that change.
    pub planes: u64,
    /// Masks and the values that change.
    pub bitmap: u64,
    /// Compressed sparse rows of FP32 differences; as planes if one is not finite.
    pub csr: u64,
    /// Coordinates of 32 bits and a value: 12 bytes per changed element.
    pub coo32: u64,
    /// Coordinates of 64 bits and a value: 20 bytes.
    pub coo64: u64,
}

impl TenantBytes {
    /// Counts the differences, tensor by tensor. Tensors that are not matrices count fully if they
    /// differ; small files do not count.
    ///
    /// # Errors
    /// Errors of decoding.
    pub fn of(resolved: &ResolvedContainer, base: &Checkpoint) -> Result<Self> {
        let container = resolved.container();
        let packed = container.len_bytes();
        let mut sum = Self { packed, tiles: packed + container.table_bytes(), ..Self::default() };
        let of_base: Vec<(usize, &TensorInfo)> = base.weights().collect();
        for (number, info) in resolved.weights() {
            let tuned = resolved.read(number)?;
            let same = |(_, other): &(usize, &TensorInfo)| other.name == info.name && other.same_type(info);
            let counterpart = of_base.iter().copied().find(same);
            sum.tensors += 1;
            sum.matched_tensors += u64::from(counterpart.is_some());
            let reference = counterpart.and_then(|(member, info)| base.in_memory(member, info));
            sum.add(info, reference, &tuned);
        }
        Ok(sum)
    }

    /// Estimated memory of a tenant in which the fraction `changed` of the elements differs, by one
    /// or a few ULPs each.
    ///
    /// The container is the entropy of the positions plus 4.5 bits per change, as measured on a
    /// fine-tune of lm12m in BF16 that changed 13 %.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless the fraction is between 0 and 1.
    pub fn assumed(base: &Checkpoint, changed: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&changed) {
            return Err(Error::InvalidArgument(format!(
                "changed fraction {changed}: must be between 0 and 1"
            )));
        }
        let entropy = |p: f64| if p > 0.0 { -p * p.log2() } else { 0.0 };
        let packed_bits = entropy(changed) + entropy(1.0 - changed) + 4.5 * changed;
        let mut sum = Self::default();
        for (_, info) in base.weights() {
            sum.tensors += 1;
            sum.matched_tensors += 1;
            let Some((elems, shape)) = elems_of(info) else {
                sum.add(info, None, &[]);
                continue;
            };
            let differ = share(elems, changed);
            // A step of one ULP reaches the top byte of BF16 once in 256; larger steps reach it
            // more often.
            let changes = Changes::new(differ, differ / 32, Some(differ));
            sum.add_changes(info, elems, shape, &changes);
            let packed = share(elems, packed_bits / 8.0);
            sum.packed += packed;
            sum.tiles += packed;
        }
        Ok(sum)
    }

    fn add(&mut self, info: &TensorInfo, base: Option<&[u8]>, tuned: &[u8]) {
        let (Some(base), Some((elems, shape))) = (base, elems_of(info)) else {
            self.add_raw(info);
            return;
        };
        let mut changes = Changes::none();
        changes.add(shape.weight, base, tuned);
        self.add_changes(info, elems, shape, &changes);
    }

    fn add_raw(&mut self, info: &TensorInfo) {
        let bytes = info.len_bytes();
        for sum in [
            &mut self.raw,
            &mut self.planes,
            &mut self.bitmap,
            &mut self.csr,
            &mut self.coo32,
            &mut self.coo64,
        ] {
            *sum += bytes;
        }
    }

    fn add_changes(&mut self, info: &TensorInfo, elems: u64, shape: MatrixShape, changes: &Changes) {
        self.changed_elems += changes.elems;
        self.elems += elems;
        self.raw += info.len_bytes();
        self.coo32 += 12 * changes.elems;
        self.coo64 += 20 * changes.elems;
        if changes.elems == 0 {
            return;
        }
        let bytes = |form| changes.resident_bytes(shape, form);
        let planes = bytes(Form::Planes).unwrap_or(info.len_bytes());
        // Vectors are stored whole if a mask does not pay off.
        let most = if info.shape.len() == 2 { u64::MAX } else { info.len_bytes() };
        self.planes += planes.min(most);
        self.bitmap += bytes(Form::Bitmap).unwrap_or(info.len_bytes()).min(most);
        self.csr += bytes(Form::Csr).unwrap_or(planes).min(most);
    }

    /// Bytes in a resident form.
    #[must_use]
    pub fn in_form(&self, form: Form) -> u64 {
        match form {
            Form::Base => 0,
            Form::Tiles => self.tiles,
            Form::Planes => self.planes,
            Form::Bitmap => self.bitmap,
            Form::Csr => self.csr,
            // A form without a count of its own takes no more than a copy.
            _ => self.raw,
        }
    }
}

/// Number of elements of a BF16 or FP32 tensor, and its shape as a matrix: a vector is one row.
fn elems_of(info: &TensorInfo) -> Option<(u64, MatrixShape)> {
    let weight = deltaloom_compute::WeightType::of(info).ok()?;
    let shape = MatrixShape::of(info).or_else(|_| MatrixShape::row_of(info)).ok()?;
    Some((info.len_bytes() / weight.bytes() as u64, shape))
}

#[expect(clippy::cast_possible_truncation, reason = "an estimate")]
fn share(elems: u64, share: f64) -> u64 {
    (elems as f64 * share).round() as u64
}

/// The fields of a model's `config.json` on which memory depends.
#[derive(Debug, Clone, Deserialize)]
#[non_exhaustive]
pub struct ModelSizes {
    hidden_size: u64,
    num_hidden_layers: u64,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    intermediate_size: u64,
    vocab_size: u64,
}

impl ModelSizes {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a missing or invalid size.
    pub fn parse(config: &str) -> Result<Self> {
        let wrong = |what: String| Error::InvalidArgument(format!("config.json: {what}"));
        let sizes: Self = serde_json::from_str(config).map_err(|e| wrong(e.to_string()))?;
        if sizes.num_attention_heads == 0 { Err(wrong("num_attention_heads is 0".into())) } else { Ok(sizes) }
    }

    fn head(&self) -> u64 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    fn keys(&self) -> Option<u64> {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads).checked_mul(self.head())
    }

    /// Bytes of keys and values of `batch` sequences of `context` tokens: one key and one value per
    /// layer, head and token. `None` if it overflows.
    #[must_use]
    pub fn cache_bytes(&self, context: u64, batch: u64, element_bytes: u64) -> Option<u64> {
        let factors = [2, self.num_hidden_layers, self.keys()?, context, batch, element_bytes];
        factors.into_iter().try_fold(1u64, u64::checked_mul)
    }

    /// Peak bytes of FP32 activations in a step of this many tokens: the most of attention, the
    /// feed-forward network and, with the last layer's output, the logits.
    #[must_use]
    pub fn activation_bytes(&self, tokens: u64) -> Option<u64> {
        let sum = |parts: &[(u64, u64)]| {
            parts.iter().try_fold(0u64, |sum, (times, width)| sum.checked_add(times.checked_mul(*width)?))
        };
        let (width, queries) = (self.hidden_size, self.num_attention_heads.checked_mul(self.head())?);
        let attention = sum(&[(3, width), (2, queries), (2, self.keys()?)])?;
        let feed_forward = sum(&[(4, width), (2, self.intermediate_size)])?;
        let logits = sum(&[(2, width), (1, self.vocab_size)])?;
        attention.max(feed_forward).max(logits).checked_mul(tokens)?.checked_mul(4)
    }
}

/// A fine-tune with all weights in memory.
pub struct LoadedTenant {
    matrices: Vec<PackedMatrix>,
    others: Vec<Vec<u8>>,
}

impl LoadedTenant {
    /// Loads a fine-tune with all matrices in a form. A matrix that cannot have the form is in
    /// planes. Other tensors are stored whole if they differ.
    ///
    /// # Errors
    /// Errors of decoding.
    pub fn load(resolved: &Arc<ResolvedContainer>, base: &Checkpoint, form: Form) -> Result<Self> {
        let mut loaded = Self { matrices: Vec::new(), others: Vec::new() };
        let of_base: Vec<(usize, &TensorInfo)> = base.weights().collect();
        for (number, info) in resolved.weights() {
            if MatrixShape::of(info).is_ok() {
                let open = |form| PackedMatrix::open(resolved, &info.name, Choice::Form(form));
                let matrix = match open(form) {
                    Err(Error::InvalidArgument(_)) => open(Form::Planes),
                    other => other,
                };
                loaded.matrices.push(matrix?);
                continue;
            }
            let bytes = resolved.read(number)?;
            let same = |(_, other): &(usize, &TensorInfo)| other.name == info.name && other.same_type(info);
            let reference = of_base.iter().copied().find(same);
            let reference = reference.and_then(|(member, info)| base.in_memory(member, info));
            if reference != Some(&bytes[..]) {
                loaded.others.push(bytes);
            }
        }
        Ok(loaded)
    }

    /// Bytes in memory without its base; for tiles, the payloads.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let others: u64 = self.others.iter().map(|bytes| bytes.len() as u64).sum();
        others + self.matrices.iter().map(PackedMatrix::resident_bytes).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"hidden_size": 320, "num_hidden_layers": 8, "num_attention_heads": 5, "num_key_value_heads": 1,
        "intermediate_size": 864, "vocab_size": 8192, "other": true}"#;

    #[test]
    fn caches_grow_with_heads_of_keys_context_and_batch() {
        let sizes = ModelSizes::parse(CONFIG).unwrap();
        assert_eq!(sizes.cache_bytes(256, 4, 2), Some(2 * 8 * 64 * 256 * 4 * 2));
        assert_eq!(sizes.cache_bytes(u64::MAX, 4, 2), None);
        // The logits dominate, as in all small models.
        assert_eq!(sizes.activation_bytes(3), Some(3 * 4 * (640 + 8192)));
        let no_vocabulary = ModelSizes { vocab_size: 0, ..sizes.clone() };
        assert_eq!(no_vocabulary.activation_bytes(1), Some(4 * (4 * 320 + 2 * 864)));
        let wide = ModelSizes { head_dim: Some(640), num_key_value_heads: None, ..no_vocabulary };
        assert_eq!(wide.activation_bytes(1), Some(4 * (3 * 320 + 4 * 3200)));
        for (from, to) in [
            ("320", "-1"),
            ("\"num_attention_heads\": 5", "\"num_attention_heads\": 0"),
            ("\"hidden_size\"", "\"x\""),
        ] {
            assert!(matches!(ModelSizes::parse(&CONFIG.replace(from, to)), Err(Error::InvalidArgument(_))));
        }
    }
}
