//! Whether the weights of a step look like those of a training. Counts NaN and infinite weights,
//! and finds tensors with a single value. It sees the bytes that packing has in memory, and judges
//! nothing.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::likeness::part_of;
use crate::bases::ResolvedContainer;
use crate::checkpoint::{Checkpoint, Roles};
use crate::container::Index;
use crate::error::Result;
use crate::limits::to_usize;
use crate::predict::Predictor;
use crate::tensor::{DType, TensorInfo};

/// Bytes that are read at a time if packing did not read a tensor.
const BLOCK_BYTES: u64 = 1 << 20;
/// With more tensors than this whose prediction is computed, an entry does not have their shares.
const MOST_COMPUTED: usize = 1024;

/// The bits of a word that tell whether it is a finite number, and their value if it is not.
#[derive(Debug, Clone, Copy)]
enum NoNumber {
    Byte(u8, u8),
    Half(u16),
    Word(u32),
    Double(u64),
}

impl NoNumber {
    /// For the dtypes that have NaN or infinities.
    fn of(dtype: &DType) -> Option<Self> {
        Some(match dtype {
            DType::F8E4M3 => Self::Byte(0x7f, 0x7f),
            DType::F8E5M2 => Self::Byte(0x7c, 0x7c),
            DType::F16 => Self::Half(0x7c00),
            DType::BF16 => Self::Half(0x7f80),
            DType::F32 => Self::Word(0x7f80_0000),
            DType::F64 => Self::Double(0x7ff0_0000_0000_0000),
            DType::Opaque(name) if matches!(&**name, "F8_E4M3FNUZ" | "F8_E5M2FNUZ") => Self::Byte(0xff, 0x80),
            _ => return None,
        })
    }

    fn count(self, bytes: &[u8]) -> u64 {
        // Counts in lanes of the words' width, summed before they can overflow, so that the loops
        // are vectorised.
        macro_rules! count {
            ($word:ty, $block:expr, $is:expr) => {{
                let words = bytes.as_chunks::<{ size_of::<$word>() }>().0;
                let block = |block: &[[u8; size_of::<$word>()]]| -> u64 {
                    let is =
                        |word: &[u8; size_of::<$word>()]| <$word>::from($is(<$word>::from_le_bytes(*word)));
                    block.iter().map(is).fold(0, <$word>::wrapping_add).into()
                };
                words.chunks($block).map(block).sum()
            }};
        }
        match self {
            Self::Byte(mask, none) => count!(u8, 255, |word| word & mask == none),
            Self::Half(mask) => count!(u16, 32_768, |word| word & mask == mask),
            Self::Word(mask) => count!(u32, 32_768, |word| word & mask == mask),
            Self::Double(mask) => count!(u64, 32_768, |word| word & mask == mask),
        }
    }
}

/// Whether all elements so far have the same value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Values {
    #[default]
    None,
    One(Vec<u8>),
    Many,
}

impl Values {
    fn see(&mut self, bytes: &[u8], elem_bytes: usize) {
        let first = match (&*self, bytes.get(..elem_bytes)) {
            (Self::Many, _) | (_, None) => return,
            (Self::One(first), _) => first.clone(),
            (Self::None, Some(first)) => first.to_vec(),
        };
        // The first equals `first`, and each other one equals the one before it.
        let is_one = bytes[..elem_bytes] == first && bytes[elem_bytes..] == bytes[..bytes.len() - elem_bytes];
        *self = if is_one { Self::One(first) } else { Self::Many };
    }
}

/// What is known about a tensor.
#[derive(Debug, Default)]
struct Seen {
    nonfinite: u64,
    values: Values,
    bytes: u64,
}

/// Inspects the tensors of a checkpoint.
pub(super) struct Inspection<'a> {
    checkpoint: &'a Checkpoint,
    /// Its tensors, and whether they are weights.
    tensors: Vec<(usize, &'a TensorInfo, bool)>,
    seen: Vec<Mutex<Seen>>,
}

/// Unusual weights of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Oddities {
    /// Weights that are NaN or infinite.
    pub(super) nonfinite: u64,
    /// Matrices with a single value: part and name.
    pub(super) constant: Vec<(String, String)>,
}

impl<'a> Inspection<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Self {
        let roles = Roles::of(&checkpoint.members);
        let places = checkpoint.places().map(|place| roles.is_weights(place));
        let tensors: Vec<_> =
            checkpoint.tensors().zip(places).map(|((member, info), is)| (member, info, is)).collect();
        let seen = tensors.iter().map(|_| Mutex::default()).collect();
        Self { checkpoint, tensors, seen }
    }

    /// Inspects bytes of a tensor. They must be whole elements, in any order and from any thread.
    pub(super) fn see(&self, number: usize, bytes: &[u8]) {
        let (_, info, is_weights) = self.tensors[number];
        if !is_weights {
            return;
        }
        let none = NoNumber::of(&info.dtype);
        let nonfinite = none.map_or(0, |none| none.count(bytes));
        let mut seen = self.seen[number].lock().unwrap_or_else(PoisonError::into_inner);
        seen.nonfinite += nonfinite;
        seen.bytes += bytes.len() as u64;
        if none.is_some() && is_matrix(info) {
            seen.values.see(bytes, info.number().bytes());
        }
    }

    /// The unusual weights, after the checkpoint was packed. Reads what packing did not read.
    /// Tensors that are taken from a sound reference are sound.
    pub(super) fn finish(self, index: &Index, is_reference_sound: bool) -> Result<Oddities> {
        let mut counts = vec![0; self.tensors.len()];
        for (number, packed) in index.tensors.iter().enumerate() {
            let (member, info, is_weights) = self.tensors[number];
            let is_known = match packed.predictor {
                _ if !is_weights => true,
                Predictor::Identical(_) => is_reference_sound,
                Predictor::Tied(target) => self.tensors[target].2,
                _ => packed.predictor.has_chunks(),
            };
            if !is_known {
                for start in (0..info.len_bytes()).step_by(to_usize(BLOCK_BYTES)) {
                    let range = start..(start + BLOCK_BYTES).min(info.len_bytes());
                    self.see(number, &self.checkpoint.bytes(member, info, range)?);
                }
            }
            counts[number] = self.seen_of(number).0;
        }
        let mut oddities = Oddities::default();
        for (number, packed) in index.tensors.iter().enumerate() {
            let (member, info, is_weights) = self.tensors[number];
            if !is_weights {
                continue;
            }
            let counted = match packed.predictor {
                Predictor::Tied(target) if self.tensors[target].2 => target,
                _ => number,
            };
            oddities.nonfinite += counts[counted];
            if self.seen_of(number).1 {
                let part = part_of(&self.checkpoint.members[member].path).to_owned();
                oddities.constant.push((part, info.name.clone()));
            }
        }
        Ok(oddities)
    }

    /// Number of non-finite weights of a tensor, and whether it has a single value.
    fn seen_of(&self, number: usize) -> (u64, bool) {
        let seen = self.seen[number].lock().unwrap_or_else(PoisonError::into_inner);
        let is_whole = seen.bytes == self.tensors[number].1.len_bytes();
        (seen.nonfinite, is_whole && matches!(seen.values, Values::One(_)))
    }
}

fn is_matrix(info: &TensorInfo) -> bool {
    info.shape.iter().filter(|size| **size > 1).count() >= 2
}

/// How many of the matrices that have a single value now existed before with several.
pub(super) fn became_constant(constant: &[(String, String)], before: &ResolvedContainer) -> Result<u64> {
    if constant.is_empty() {
        return Ok(0);
    }
    let index = before.container().index();
    let mut by_name = HashMap::new();
    for (number, tensor) in index.tensors.iter().enumerate() {
        let part = part_of(&index.members[tensor.place.0].path);
        by_name.entry((part, index.info(tensor).name.as_str())).or_insert(number);
    }
    let mut count = 0;
    for (part, name) in constant {
        let Some(&number) = by_name.get(&(part.as_str(), name.as_str())) else { continue };
        let mut values = Values::None;
        for i in 0..before.tensor(number).grid.chunk_count() {
            values.see(&before.chunk(number, to_usize(i))?, before.info(number).number().bytes());
            if values == Values::Many {
                count += 1;
                break;
            }
        }
    }
    Ok(count)
}

/// Elements of a tensor, and how many of them differ from those of another.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Changed {
    pub(super) changed: u64,
    pub(super) elems: u64,
}

/// For each tensor of weights whose prediction is no tensor of another checkpoint: how it differs
/// from the tensor of the same name in that; `None` if there is no such tensor.
pub(super) fn changed_of_computed<'a>(
    checkpoint: &'a Checkpoint,
    index: &Index,
    other: &'a Checkpoint,
) -> Result<Vec<Option<Changed>>> {
    let key = |checkpoint: &'a Checkpoint, member: usize, info: &'a TensorInfo| {
        (part_of(&checkpoint.members[member].path), info.name.as_str(), &info.dtype, &info.shape[..])
    };
    let mut by_name = HashMap::new();
    for (of, info) in other.tensors() {
        by_name.entry(key(other, of, info)).or_insert((of, info));
    }
    let roles = index.roles();
    let mut all = Vec::new();
    for ((member, info), packed) in checkpoint.tensors().zip(&index.tensors) {
        if packed.predictor.is_reference() || !roles.is_weights(packed.place) {
            continue;
        }
        let Some(&(of, before)) = by_name.get(&key(checkpoint, member, info)) else {
            all.push(None);
            continue;
        };
        let elem_bytes = info.number().bytes();
        let mut found = Changed { changed: 0, elems: info.len_bytes() / elem_bytes as u64 };
        for start in (0..info.len_bytes()).step_by(to_usize(BLOCK_BYTES)) {
            let range = start..(start + BLOCK_BYTES).min(info.len_bytes());
            let (now, before) =
                (checkpoint.bytes(member, info, range.clone())?, other.bytes(of, before, range)?);
            let pairs = now.chunks_exact(elem_bytes).zip(before.chunks_exact(elem_bytes));
            found.changed += pairs.filter(|(a, b)| a != b).count() as u64;
        }
        all.push(Some(found));
    }
    Ok(all)
}

/// How the weights differ from those of the reference: as a whole, if anything was compared, and
/// the shares of the tensors whose prediction is computed, as [`super::StepEntry`] has them.
pub(super) fn changes(
    checkpoint: &Checkpoint,
    index: &Index,
    before: &Checkpoint,
) -> Result<(Option<f64>, Vec<Option<f64>>)> {
    let computed = changed_of_computed(checkpoint, index, before)?;
    let roles = index.roles();
    let counted = index.tensors.iter().filter(|tensor| roles.is_weights(tensor.place));
    let of_references = counted.filter(|tensor| tensor.predictor.is_reference());
    let of_references = of_references.map(|tensor| Changed {
        changed: tensor.changed,
        elems: tensor.grid.rows.saturating_mul(tensor.grid.cols),
    });
    let (mut changed, mut elems) = (0, 0);
    for tensor in of_references.chain(computed.iter().copied().flatten()) {
        changed += tensor.changed;
        elems += tensor.elems;
    }
    let share = |changed: u64, elems: u64| (elems > 0).then(|| changed as f64 / elems as f64);
    let shares = computed.into_iter().map(|tensor| {
        // Four digits, since every entry of the manifest may have hundreds of these.
        let exact = tensor.and_then(|Changed { changed, elems }| share(changed, elems))?;
        format!("{exact:.3e}").parse().ok()
    });
    let shares: Vec<Option<f64>> = shares.collect();
    Ok((share(changed, elems), if shares.len() <= MOST_COMPUTED { shares } else { Vec::new() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_nan_and_infinity_is_counted() {
        let float = |dtype: &DType, values: &[f32]| -> Vec<u8> {
            let bits = |v: &f32| match dtype {
                DType::BF16 => v.to_bits().to_le_bytes()[2..].to_vec(),
                DType::F32 => v.to_bits().to_le_bytes().to_vec(),
                _ => f64::from(*v).to_bits().to_le_bytes().to_vec(),
            };
            values.iter().flat_map(bits).collect()
        };
        let many: Vec<f32> = (0..70_000u32).map(|i| if i % 7 == 0 { f32::NAN } else { 1.5 }).collect();
        for dtype in [DType::BF16, DType::F32, DType::F64] {
            let count = |values: &[f32]| NoNumber::of(&dtype).unwrap().count(&float(&dtype, values));
            assert_eq!(count(&[1.0, f32::NAN, f32::INFINITY, f32::MAX, -f32::INFINITY, -0.0]), 3, "{dtype}");
            assert_eq!(count(&many), 10_000, "{dtype}");
        }
        let count = |name: &str, bytes: &[u8]| NoNumber::of(&DType::from_name(name)).unwrap().count(bytes);
        assert_eq!(count("F16", &[0x00, 0x7c, 0x01, 0xfe, 0xff, 0x7b]), 2);
        assert_eq!(count("F8_E4M3", &[0x7f, 0xff, 0x7e, 0x80]), 2);
        assert_eq!(count("F8_E5M2", &[0x7c, 0xff, 0x7b, 0x80]), 2);
        assert_eq!(count("F8_E4M3FNUZ", &[0x7f, 0xff, 0x80]), 1);
        assert_eq!(count("F8_E5M2", &vec![0xfc; 1000]), 1000);
        assert!(NoNumber::of(&DType::I64).is_none() && NoNumber::of(&DType::Bool).is_none());
    }

    #[test]
    fn one_value_over_many_pieces() {
        let seen = |pieces: &[&[u8]]| {
            let mut values = Values::None;
            pieces.iter().for_each(|piece| values.see(piece, 2));
            matches!(values, Values::One(_))
        };
        assert!(seen(&[&[1, 2, 1, 2], &[], &[1, 2]]));
        assert!(!seen(&[&[1, 2, 1, 2], &[2, 1]]) && !seen(&[&[1, 2, 1, 3]]) && !seen(&[]));
    }
}
