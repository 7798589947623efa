//! Keys and values of the tokens that a model has seen, in pages of 32 positions: of one sequence
//! and one layer each. It counts every byte against a budget; [`super::paged`] reads them.
//!
//! Sequences grow only at their end, in steps: room is reserved before a step, keys and values are
//! stored layer by layer, and the tokens count when the step has succeeded.

use std::collections::{BTreeMap, VecDeque};

use super::attention::Part;
use super::batch::{Batch, TenantId};
use super::config::{Heads, LayerConfig};
use super::plan::Reach;
use deltaloom::{Error, Result};

/// Number of positions of a page.
pub(crate) const PAGE_POSITIONS: usize = 32;
/// Positions are exact in FP32 up to here.
const MAX_POSITIONS: usize = 1 << 24;

/// The type of stored keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// Rounded to BF16, ties to even.
    #[default]
    Bf16,
    /// As they are computed.
    F32,
}

impl KvType {
    fn bytes(self) -> u64 {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct MemoryOptions {
    /// Their type.
    pub kv: KvType,
    /// Most bytes of all pages; `None` for no limit.
    pub budget_bytes: Option<u64>,
}

impl MemoryOptions {
    /// Sets the type.
    #[must_use]
    pub fn with_kv(self, kv: KvType) -> Self {
        Self { kv, ..self }
    }

    /// Limits the bytes of all pages.
    #[must_use]
    pub fn with_budget(self, budget_bytes: Option<u64>) -> Self {
        Self { budget_bytes, ..self }
    }
}

/// A sequence in a [`Memory`], which never gives its number to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

/// Keys and values of sequences.
#[derive(Debug)]
pub struct Memory {
    options: MemoryOptions,
    layers: Vec<Kept>,
    sequences: BTreeMap<SequenceId, Sequence>,
    next: u64,
    used_bytes: u64,
}

/// What a layer keeps of every sequence.
#[derive(Debug, Clone, Copy)]
struct Kept {
    heads: Heads,
    /// How many tokens a token sees; `None` for all.
    window: Option<usize>,
}

impl Kept {
    fn page_elems(self) -> usize {
        2 * self.heads.key_value * PAGE_POSITIONS * self.heads.size
    }
}

#[derive(Debug)]
struct Sequence {
    tenant: TenantId,
    tokens: usize,
    layers: Vec<Pages>,
}

/// The pages of one layer, without the first ones that nobody will see again.
#[derive(Debug, Default)]
struct Pages {
    dropped: usize,
    pages: VecDeque<Page>,
}

/// Keys as `[head][position][size]`, then values.
#[derive(Debug)]
enum Page {
    Bf16(Box<[u16]>),
    F32(Box<[f32]>),
}

impl Page {
    fn new(kv: KvType, elems: usize) -> Self {
        match kv {
            KvType::Bf16 => Self::Bf16(vec![0; elems].into()),
            KvType::F32 => Self::F32(vec![0.0; elems].into()),
        }
    }

    fn write(&mut self, start: usize, values: &[f32]) {
        match self {
            Self::Bf16(page) => {
                let page = page[start..].iter_mut().zip(values);
                page.for_each(|(to, from)| *to = rounded(*from));
            }
            Self::F32(page) => page[start..start + values.len()].copy_from_slice(values),
        }
    }

    fn read(&self, start: usize, out: &mut [f32]) {
        match self {
            Self::Bf16(page) => {
                let page = page[start..].iter().zip(out);
                page.for_each(|(from, to)| *to = f32::from_bits(u32::from(*from) << 16));
            }
            Self::F32(page) => out.copy_from_slice(&page[start..start + out.len()]),
        }
    }
}

/// The nearest BF16 number, ties to even. A NaN stays one.
fn rounded(x: f32) -> u16 {
    let bits = x.to_bits();
    let high = (bits >> 16) as u16;
    if x.is_nan() {
        return high | 0x40;
    }
    let is_up = bits & 0xffff > 0x8000 || (bits & 0xffff == 0x8000 && high & 1 == 1);
    high + u16::from(is_up)
}

/// Where the tokens of a step find those before them, for one layer.
pub(crate) struct Past<'a> {
    pub(crate) memory: &'a mut Memory,
    /// The sequence that each sequence of the batch continues.
    pub(crate) sequences: &'a [SequenceId],
    pub(crate) layer: usize,
}

impl Memory {
    /// Memory for a model with these layers. It allocates pages as sequences grow.
    #[must_use]
    pub fn new<'a>(layers: impl IntoIterator<Item = &'a LayerConfig>, options: MemoryOptions) -> Self {
        let kept = |config: &LayerConfig| Kept {
            heads: Heads {
                query: config.query_heads,
                key_value: config.key_value_heads,
                size: config.head_size,
            },
            window: match config.attention.reach {
                Reach::Window { tokens } => Some(tokens),
                Reach::Causal | Reach::Full => None,
            },
        };
        let layers = layers.into_iter().map(kept).collect();
        Self { options, layers, sequences: BTreeMap::new(), next: 0, used_bytes: 0 }
    }

    /// Begins an empty sequence of a tenant.
    pub fn begin(&mut self, tenant: TenantId) -> SequenceId {
        let id = SequenceId(self.next);
        self.next += 1;
        let layers = self.layers.iter().map(|_| Pages::default()).collect();
        self.sequences.insert(id, Sequence { tenant, tokens: 0, layers });
        id
    }

    /// Ends a sequence and gives its pages back.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a sequence that is not there.
    pub fn end(&mut self, id: SequenceId) -> Result<()> {
        let sequence = self.sequences.remove(&id).ok_or_else(unknown)?;
        for (pages, kept) in sequence.layers.iter().zip(&self.layers) {
            self.used_bytes -= pages.pages.len() as u64 * page_bytes(self.options.kv, *kept);
        }
        Ok(())
    }

    /// Number of tokens of a sequence.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a sequence that is not there.
    pub fn tokens(&self, id: SequenceId) -> Result<usize> {
        self.sequences.get(&id).map(|sequence| sequence.tokens).ok_or_else(unknown)
    }

    /// The tenant of a sequence.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a sequence that is not there.
    pub fn tenant(&self, id: SequenceId) -> Result<TenantId> {
        self.sequences.get(&id).map(|sequence| sequence.tenant).ok_or_else(unknown)
    }

    /// Bytes of all pages.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Whether it was made for layers like these.
    pub(crate) fn fits<'a>(&self, layers: impl ExactSizeIterator<Item = &'a LayerConfig>) -> bool {
        layers.len() == self.layers.len()
            && layers.zip(&self.layers).all(|(config, kept)| {
                (config.key_value_heads, config.head_size) == (kept.heads.key_value, kept.heads.size)
            })
    }

    /// Makes room for more tokens of some sequences, or changes nothing.
    pub(crate) fn reserve(&mut self, more: &[(SequenceId, usize)]) -> Result<()> {
        let mut needed = self.used_bytes;
        for (id, tokens) in more {
            let sequence = self.sequences.get(id).ok_or_else(unknown)?;
            let end = sequence.tokens.checked_add(*tokens).filter(|end| *end <= MAX_POSITIONS);
            let end = end.ok_or(Error::LimitExceeded {
                what: "the number of tokens of a sequence",
                found: sequence.tokens.saturating_add(*tokens) as u64,
                limit: MAX_POSITIONS as u64,
            })?;
            for (pages, kept) in sequence.layers.iter().zip(&self.layers) {
                let new = pages.missing(end) as u64;
                needed = needed.saturating_add(new.saturating_mul(page_bytes(self.options.kv, *kept)));
            }
        }
        if let Some(limit) = self.options.budget_bytes.filter(|limit| needed > *limit) {
            let what = "the size of keys and values in bytes";
            return Err(Error::LimitExceeded { what, found: needed, limit });
        }
        for (id, tokens) in more {
            let Some(sequence) = self.sequences.get_mut(id) else { continue };
            let end = sequence.tokens + tokens;
            for (pages, kept) in sequence.layers.iter_mut().zip(&self.layers) {
                let new = (0..pages.missing(end)).map(|_| Page::new(self.options.kv, kept.page_elems()));
                pages.pages.extend(new);
            }
        }
        self.used_bytes = needed;
        Ok(())
    }

    /// Writes keys and values of a batch whose sequences continue those of the memory. They must
    /// have room.
    pub(super) fn store(
        &mut self,
        layer: usize,
        ids: &[SequenceId],
        batch: &Batch,
        key: Part<'_>,
        value: Part<'_>,
    ) {
        let Heads { key_value, size, .. } = self.layers[layer].heads;
        for ((sequence, place), id) in batch.places().zip(ids) {
            let pages =
                &mut self.sequences.get_mut(id).expect("a step has only known sequences").layers[layer];
            for (token, position) in place.zip(sequence.position..) {
                let page = &mut pages.pages[position / PAGE_POSITIONS - pages.dropped];
                for head in 0..key_value {
                    let start = (head * PAGE_POSITIONS + position % PAGE_POSITIONS) * size;
                    page.write(start, key.head(token, head, size));
                    page.write(key_value * PAGE_POSITIONS * size + start, value.head(token, head, size));
                }
            }
        }
    }

    /// Counts the tokens of a step, and gives back pages that nobody will see again.
    pub(crate) fn advance(&mut self, more: &[(SequenceId, usize)]) {
        for (id, tokens) in more {
            let Some(sequence) = self.sequences.get_mut(id) else { continue };
            sequence.tokens += tokens;
            for (pages, kept) in sequence.layers.iter_mut().zip(&self.layers) {
                let Some(window) = kept.window else { continue };
                let first = (sequence.tokens + 1).saturating_sub(window) / PAGE_POSITIONS;
                while pages.dropped < first && pages.pages.pop_front().is_some() {
                    pages.dropped += 1;
                    self.used_bytes -= page_bytes(self.options.kv, *kept);
                }
            }
        }
    }

    /// The keys of a head in block `block` of a sequence, or its values: `[32, size]`.
    pub(super) fn read(&self, place: Place, block: usize, out: &mut [f32]) {
        let Heads { key_value, size, .. } = self.layers[place.layer].heads;
        let pages = &self.sequences.get(&place.sequence).expect("a step has only known sequences").layers;
        let pages = &pages[place.layer];
        let half = if place.is_value { key_value } else { 0 };
        pages.pages[block - pages.dropped].read((half + place.head) * PAGE_POSITIONS * size, out);
    }
}

/// Keys or values of one head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) sequence: SequenceId,
    pub(super) layer: usize,
    pub(super) head: usize,
    pub(super) is_value: bool,
}

impl Pages {
    /// Number of pages to add for a sequence of this many tokens.
    fn missing(&self, tokens: usize) -> usize {
        tokens.div_ceil(PAGE_POSITIONS).saturating_sub(self.dropped + self.pages.len())
    }
}

fn page_bytes(kv: KvType, kept: Kept) -> u64 {
    kept.page_elems() as u64 * kv.bytes()
}

fn unknown() -> Error {
    Error::InvalidArgument("this memory does not have the sequence".to_owned())
}
