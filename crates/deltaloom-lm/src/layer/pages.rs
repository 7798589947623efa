//! Keys and values of the tokens that a model has seen, in pages of 32 positions: of one sequence
//! and one layer each. It counts every byte against a budget; [`super::paged`] reads them.
//!
//! Sequences grow only at their end, in steps: room is reserved before a step, keys and values are
//! stored layer by layer, and the tokens count when the step has succeeded.
//!
//! A full page is never written again. So sequences that begin with the same tokens may share the
//! pages of those ([`super::prefix`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::attention::Part;
use super::batch::{Batch, TenantId};
use super::config::{Heads, LayerConfig};
use super::kv_file::KvFile;
use super::page::{KvType, Page, Pages};
use super::plan::AttentionPlan;
use super::prefix::{Chain, Prefixes};
use super::table::MAX_POSITIONS;
use deltaloom::{Error, Result};

/// Number of positions of a page.
pub(crate) const PAGE_POSITIONS: usize = 32;

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
    prefixes: Prefixes,
    /// Has the pages, if they are not in memory.
    file: Option<Arc<KvFile>>,
}

/// What a layer keeps of every sequence.
#[derive(Debug, Clone)]
struct Kept {
    heads: Heads,
    plan: AttentionPlan,
}

impl Kept {
    fn page_elems(&self) -> usize {
        2 * self.heads.key_value * PAGE_POSITIONS * self.heads.size
    }

    fn new_page(&self, kv: KvType, file: Option<&Arc<KvFile>>) -> Page {
        match file {
            None => Page::new(kv, self.page_elems()),
            Some(file) => Page::File(kv, file.page(2 * self.heads.key_value, self.part_bytes(kv))),
        }
    }

    /// Bytes of the keys of one head in a page.
    fn part_bytes(&self, kv: KvType) -> usize {
        PAGE_POSITIONS * self.heads.size * kv.bytes()
    }

    /// Number of pages with sinks.
    fn sinks(&self) -> usize {
        self.plan.sinks().div_ceil(PAGE_POSITIONS)
    }

    /// The first page that a sequence of this many tokens needs behind the sinks.
    fn first(&self, tokens: usize) -> usize {
        self.plan.first_seen(tokens) / PAGE_POSITIONS
    }
}

#[derive(Debug)]
struct Sequence {
    tenant: TenantId,
    tokens: usize,
    layers: Vec<Pages>,
    /// Names its full pages to others; `None` if it shares none.
    chain: Option<Chain>,
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
        let kept = |config: &LayerConfig| Kept { heads: config.heads(), plan: config.attention.clone() };
        let layers = layers.into_iter().map(kept).collect();
        Self {
            options,
            layers,
            sequences: BTreeMap::new(),
            next: 0,
            used_bytes: 0,
            prefixes: Prefixes::default(),
            file: None,
        }
    }

    /// Keeps the pages in a file. It changes no bit of what is computed.
    #[must_use]
    pub fn with_file(self, file: Option<Arc<KvFile>>) -> Self {
        Self { file, ..self }
    }

    /// Begins an empty sequence of a tenant, which shares nothing.
    pub fn begin(&mut self, tenant: TenantId) -> SequenceId {
        let layers = self.layers.iter().map(|_| Pages::default()).collect();
        self.insert(Sequence { tenant, tokens: 0, layers, chain: None })
    }

    /// Begins a sequence that shares full pages with others of the same `key`, which must stand for
    /// everything but the ids on which keys and values depend. It has the longest start of `ids`
    /// that is in memory, but never all of them; [`Self::tokens`] tells how many.
    pub fn begin_shared(&mut self, tenant: TenantId, key: blake3::Hash, ids: &[u32]) -> SequenceId {
        let mut chain = Chain::new(key);
        let mut layers: Vec<Pages> = self.layers.iter().map(|_| Pages::default()).collect();
        let whole = ids.len().saturating_sub(1) / PAGE_POSITIONS;
        for block in ids.chunks(PAGE_POSITIONS).take(whole) {
            let Some(pages) = self.prefixes.get(chain.after(block)) else { break };
            for ((layer, page), kept) in layers.iter_mut().zip(pages).zip(&self.layers) {
                layer.push(Arc::clone(page), kept.sinks());
            }
            chain.push(block);
        }
        let tokens = chain.full_blocks() * PAGE_POSITIONS;
        let id = self.insert(Sequence { tenant, tokens, layers, chain: Some(chain) });
        self.drop_unseen(id);
        id
    }

    fn insert(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.next);
        self.next += 1;
        self.sequences.insert(id, sequence);
        id
    }

    /// Begins a copy of a sequence, which shares its full pages. Both may go on.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a sequence that is not there; [`Error::LimitExceeded`] if the
    /// budget does not have the last page of each layer; those of a file.
    pub fn fork(&mut self, id: SequenceId) -> Result<SequenceId> {
        let tokens = self.tokens(id)?;
        let last = (!tokens.is_multiple_of(PAGE_POSITIONS)).then_some(tokens / PAGE_POSITIONS);
        let needed = if last.is_some() { self.page_sizes().sum() } else { 0 };
        self.make_room(needed)?;
        let Sequence { tenant, layers, chain, .. } = self.sequences.get(&id).ok_or_else(unknown)?;
        let (tenant, mut layers, chain) = (*tenant, layers.clone(), chain.clone());
        if let Some(last) = last {
            let copied: Result<()> = layers.iter_mut().try_for_each(|pages| {
                let page = pages.get_mut(last);
                *page = Arc::new(page.copy()?);
                Ok(())
            });
            copied.inspect_err(|_| self.used_bytes -= needed)?;
        }
        Ok(self.insert(Sequence { tenant, tokens, layers, chain }))
    }

    /// Ends a sequence and gives its pages back. Those that it shares stay until their memory is
    /// needed.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a sequence that is not there.
    pub fn end(&mut self, id: SequenceId) -> Result<()> {
        let sequence = self.sequences.remove(&id).ok_or_else(unknown)?;
        for (pages, kept) in sequence.layers.into_iter().zip(&self.layers) {
            let bytes = page_bytes(self.options.kv, kept);
            self.used_bytes -= pages.into_all().map(|page| freed(page, bytes)).sum::<u64>();
        }
        if let Some(chain) = sequence.chain {
            self.prefixes.used(&chain);
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

    /// Most bytes of all pages.
    #[must_use]
    pub fn budget_bytes(&self) -> Option<u64> {
        self.options.budget_bytes
    }

    /// The most bytes of the pages of one sequence of this many tokens: while they are computed in
    /// one step, those that nobody will see again are there as well. `None` if it overflows.
    #[must_use]
    pub fn bytes_of(&self, tokens: usize) -> Option<u64> {
        self.bytes_from(tokens, |_| 0)
    }

    /// Bytes of the pages of one sequence of this many tokens that are kept for the next one.
    /// `None` if it overflows.
    #[must_use]
    pub fn kept_bytes(&self, tokens: usize) -> Option<u64> {
        let dropped = |kept: &Kept| kept.first(tokens).saturating_sub(kept.sinks());
        self.bytes_from(tokens, |kept| dropped(kept).min(tokens.div_ceil(PAGE_POSITIONS)))
    }

    fn bytes_from(&self, tokens: usize, dropped: impl Fn(&Kept) -> usize) -> Option<u64> {
        let pages = |kept: &Kept| (tokens.div_ceil(PAGE_POSITIONS) - dropped(kept)) as u64;
        let of_layer = |kept: &Kept| pages(kept).checked_mul(page_bytes(self.options.kv, kept));
        self.layers.iter().try_fold(0_u64, |sum, kept| sum.checked_add(of_layer(kept)?))
    }

    /// Whether these sequences may grow by so many tokens.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a sequence that is not there.
    pub fn has_room(&self, more: &[(SequenceId, usize)]) -> Result<bool> {
        let needed = self.needed(more)?;
        Ok(self
            .excess(needed)
            .is_none_or(|excess| self.prefixes.victims(excess, self.page_sizes()).is_some()))
    }

    /// Whether it was made for layers like these.
    pub(crate) fn fits<'a>(&self, layers: impl ExactSizeIterator<Item = &'a LayerConfig>) -> bool {
        layers.len() == self.layers.len()
            && layers
                .zip(&self.layers)
                .all(|(config, kept)| config.heads() == kept.heads && config.attention == kept.plan)
    }

    /// Makes room for more tokens of some sequences, or changes nothing.
    pub(crate) fn reserve(&mut self, more: &[(SequenceId, usize)]) -> Result<()> {
        let needed = self.needed(more)?;
        self.make_room(needed)?;
        for (id, tokens) in more {
            let Some(sequence) = self.sequences.get_mut(id) else { continue };
            let end = sequence.tokens + tokens;
            for (pages, kept) in sequence.layers.iter_mut().zip(&self.layers) {
                for _ in 0..pages.missing(end) {
                    let page = kept.new_page(self.options.kv, self.file.as_ref());
                    pages.push(Arc::new(page), kept.sinks());
                }
            }
        }
        Ok(())
    }

    /// Counts so many more bytes, and gives back what nobody uses if the budget needs it.
    fn make_room(&mut self, needed: u64) -> Result<()> {
        if let Some(excess) = self.excess(needed) {
            let Some(victims) = self.prefixes.victims(excess, self.page_sizes()) else {
                let what = "the size of keys and values in bytes";
                let limit = self.options.budget_bytes.unwrap_or(u64::MAX);
                return Err(Error::LimitExceeded {
                    what,
                    found: self.used_bytes.saturating_add(needed),
                    limit,
                });
            };
            for pages in victims.into_iter().filter_map(|victim| self.prefixes.remove(victim)) {
                for (page, kept) in pages.into_iter().zip(&self.layers) {
                    self.used_bytes -= freed(page, page_bytes(self.options.kv, kept));
                }
            }
        }
        self.used_bytes += needed;
        Ok(())
    }

    /// Bytes of the pages that so many more tokens need.
    fn needed(&self, more: &[(SequenceId, usize)]) -> Result<u64> {
        let mut needed = 0_u64;
        for (id, tokens) in more {
            let sequence = self.sequences.get(id).ok_or_else(unknown)?;
            let end = sequence.tokens.checked_add(*tokens).filter(|end| *end <= MAX_POSITIONS);
            let end = end.ok_or(Error::LimitExceeded {
                what: "the number of tokens of a sequence",
                found: sequence.tokens.saturating_add(*tokens) as u64,
                limit: MAX_POSITIONS as u64,
            })?;
            for (pages, bytes) in sequence.layers.iter().zip(self.page_sizes()) {
                needed = needed.saturating_add((pages.missing(end) as u64).saturating_mul(bytes));
            }
        }
        Ok(needed)
    }

    /// By how many bytes the budget would be exceeded; `None` if it would not be.
    fn excess(&self, needed: u64) -> Option<u64> {
        let excess = self.used_bytes.saturating_add(needed).saturating_sub(self.options.budget_bytes?);
        (excess > 0).then_some(excess)
    }

    /// Bytes of a page of each layer.
    fn page_sizes(&self) -> impl Iterator<Item = u64> + Clone {
        self.layers.iter().map(|kept| page_bytes(self.options.kv, kept))
    }

    /// Writes keys and values of a batch whose sequences continue those of the memory. They must
    /// have room. Only a file fails.
    pub(super) fn store(
        &mut self,
        layer: usize,
        ids: &[SequenceId],
        batch: &Batch,
        key: Part<'_>,
        value: Part<'_>,
    ) -> Result<()> {
        let Heads { key_value, size, .. } = self.layers[layer].heads;
        for ((sequence, place), id) in batch.places().zip(ids) {
            let pages =
                &mut self.sequences.get_mut(id).expect("a step has only known sequences").layers[layer];
            for (token, position) in place.zip(sequence.position..) {
                let page = Arc::get_mut(pages.get_mut(position / PAGE_POSITIONS))
                    .expect("a page that is not full belongs to one sequence");
                let position = position % PAGE_POSITIONS;
                for head in 0..key_value {
                    page.write(head, position, key.head(token, head, size))?;
                    page.write(key_value + head, position, value.head(token, head, size))?;
                }
            }
        }
        Ok(())
    }

    /// Counts the tokens of a step, lets others share the pages that became full, and gives back
    /// those that nobody will see again.
    pub(crate) fn advance(&mut self, more: &[(SequenceId, &[u32])]) {
        for (id, tokens) in more {
            let Some(Sequence { tokens: count, chain, layers, .. }) = self.sequences.get_mut(id) else {
                continue;
            };
            *count += tokens.len();
            if let Some(chain) = chain {
                chain.grow(tokens, |number, digest| {
                    let page = |pages: &Pages| Arc::clone(pages.get(number));
                    self.prefixes.insert(digest, layers.iter().map(page));
                });
            }
            self.drop_unseen(*id);
        }
    }

    /// Gives back the pages of a sequence that are outside of the windows.
    fn drop_unseen(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        for (pages, kept) in sequence.layers.iter_mut().zip(&self.layers) {
            let bytes = page_bytes(self.options.kv, kept);
            let dropped = pages.drop_below(kept.first(sequence.tokens));
            self.used_bytes -= dropped.map(|page| freed(page, bytes)).sum::<u64>();
        }
    }

    /// The keys of a head in block `block` of a sequence, or its values: `[32, size]`. Only a file
    /// fails.
    pub(super) fn read(&self, place: Place, block: usize, out: &mut [f32]) -> Result<()> {
        let key_value = self.layers[place.layer].heads.key_value;
        let pages = &self.sequences.get(&place.sequence).expect("a step has only known sequences").layers;
        let pages = &pages[place.layer];
        let half = if place.is_value { key_value } else { 0 };
        pages.get(block).read(half + place.head, out)
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

/// The bytes that a page gives back if nobody else has it.
fn freed(page: Arc<Page>, bytes: u64) -> u64 {
    Arc::into_inner(page).map_or(0, |_| bytes)
}

fn page_bytes(kv: KvType, kept: &Kept) -> u64 {
    kept.page_elems() as u64 * kv.bytes() as u64
}

fn unknown() -> Error {
    Error::InvalidArgument("this memory does not have the sequence".to_owned())
}
