//! How much memory serving so many fine-tunes of a base takes, form by form, before anything is loaded; and loading one, so that an estimate can be checked.
//! It allocates for a tensor at a time. What the machine has, and what a process really takes, is for programs to find out.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::TensorInfo;
use deltaloom::{Error, ResolvedContainer, Result};
use deltaloom_compute::{Changes, Choice, Form, MatrixShape, PackedMatrix};

/// Bytes of one tenant beside its base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct TenantBytes {
    /// Elements that differ.
    pub changed_elems: u64,
    /// All elements.
    pub elems: u64,
    /// Tensors.
    pub tensors: u64,
    /// Those that the base has too, with the same type and shape.
    pub matched_tensors: u64,
    /// A raw copy.
    pub raw: u64,
    /// The container.
    pub packed: u64,
    /// The container, and its frequency tables in memory. Decoders that are kept ready while tiles are multiplied come on top.
    pub tiles: u64,
    /// Masks and the bytes that change.
    pub planes: u64,
    /// Masks and the values that change.
    pub bitmap: u64,
    /// Compressed sparse rows of FP32 differences; as planes where one is not finite.
    pub csr: u64,
    /// Coordinates of 32 bits and a value: 12 bytes of each element that differs.
    pub coo32: u64,
    /// Coordinates of 64 bits and a value: 20 bytes.
    pub coo64: u64,
}

impl TenantBytes {
    /// Counts what differs, tensor by tensor. What is no matrix counts as it is where it differs;
    /// small files do not count.
    ///
    /// # Errors
    /// What decoding gives.
    pub fn of(resolved: &ResolvedContainer, base: &Checkpoint) -> Result<Self> {
        let container = resolved.container();
        let packed = container.len_bytes();
        let mut sum = Self { packed, tiles: packed + container.table_bytes(), ..Self::default() };
        for (number, info) in resolved.weights() {
            let tuned = resolved.read(number)?;
            let same = |(_, other): &(usize, &TensorInfo)| other.name == info.name && other.same_type(info);
            let counterpart = base.weights().find(same);
            sum.tensors += 1;
            sum.matched_tensors += u64::from(counterpart.is_some());
            let reference = counterpart.and_then(|(member, info)| base.in_memory(member, info));
            sum.add(info, reference, &tuned);
        }
        Ok(sum)
    }

    /// What a tenant takes of which a share of the elements differs, by one or a few ULPs each. The container is then the entropy of the places and 4.5 bits of each: so much were they of a fine-tune of lm12m in BF16 that changed 13 %.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a share that is not from 0 to 1.
    pub fn assumed(base: &Checkpoint, changed: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&changed) {
            return Err(Error::InvalidArgument(format!("a share of {changed} of the elements")));
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
            // A step of an ULP reaches the top byte of BF16 once in 256, larger ones more often.
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
        // Vectors are whole where a mask does not pay.
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

/// Elements of a tensor of BF16 or FP32, and its shape as a matrix: a vector is one row.
fn elems_of(info: &TensorInfo) -> Option<(u64, MatrixShape)> {
    let weight = deltaloom_compute::WeightType::of(info).ok()?;
    let shape = MatrixShape::of(info).or_else(|_| MatrixShape::row_of(info)).ok()?;
    Some((info.len_bytes() / weight.bytes() as u64, shape))
}

#[expect(clippy::cast_possible_truncation, reason = "an estimate")]
fn share(elems: u64, share: f64) -> u64 {
    (elems as f64 * share).round() as u64
}

/// What `config.json` says of a model, as far as memory depends on it.
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
    /// Reads it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where a size is missing or cannot be.
    pub fn parse(config: &str) -> Result<Self> {
        let wrong = |what: String| Error::InvalidArgument(format!("config.json: {what}"));
        let sizes: Self = serde_json::from_str(config).map_err(|e| wrong(e.to_string()))?;
        if sizes.num_attention_heads == 0 { Err(wrong("0 attention heads".into())) } else { Ok(sizes) }
    }

    fn head(&self) -> u64 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    fn keys(&self) -> Option<u64> {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads).checked_mul(self.head())
    }

    /// Bytes of keys and values of so many sequences of so many tokens: two for every layer, head and token. None where that cannot be counted.
    #[must_use]
    pub fn cache_bytes(&self, context: u64, batch: u64, element_bytes: u64) -> Option<u64> {
        let factors = [2, self.num_hidden_layers, self.keys()?, context, batch, element_bytes];
        factors.into_iter().try_fold(1u64, u64::checked_mul)
    }

    /// Bytes of FP32 activations of a step of so many tokens at their most: attention's, the feed-forward network's or, with the last layer's output, the logits.
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

/// A fine-tune in memory, all of its weights.
pub struct LoadedTenant {
    matrices: Vec<PackedMatrix>,
    others: Vec<Vec<u8>>,
}

impl LoadedTenant {
    /// Loads one with all matrices in a form. Where a matrix cannot be in it, it is in planes; what is no matrix is there as it is, where it differs.
    ///
    /// # Errors
    /// What decoding gives.
    pub fn load(resolved: &Arc<ResolvedContainer>, base: &Checkpoint, form: Form) -> Result<Self> {
        let mut loaded = Self { matrices: Vec::new(), others: Vec::new() };
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
            let reference = base.weights().find(same).and_then(|(member, info)| base.in_memory(member, info));
            if reference != Some(&bytes[..]) {
                loaded.others.push(bytes);
            }
        }
        Ok(loaded)
    }

    /// Bytes that it takes, its base not counted; of tiles the payloads.
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
        // Logits, as in all small models.
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
