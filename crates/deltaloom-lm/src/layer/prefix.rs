//! Full pages by the tokens that lead to them, so that sequences with the same start compute it
//! once.
//!
//! A block is the pages of all layers for 32 positions. Its name is the BLAKE3 of the name before
//! it and of its 32 ids; the first follows the key of the sequence. A hit changes no bit of an
//! exact run: the pages hold what the sequence would have computed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use blake3::Hash;

use super::page::Page;
use super::pages::PAGE_POSITIONS;

/// The names of the blocks of one sequence.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    key: Hash,
    full: Vec<Hash>,
    /// Ids of the block that is not full.
    rest: Vec<u32>,
}

impl Chain {
    pub(super) fn new(key: Hash) -> Self {
        Self { key, full: Vec::new(), rest: Vec::new() }
    }

    pub(super) fn full_blocks(&self) -> usize {
        self.full.len()
    }

    /// The name of the next block if it has these ids.
    pub(super) fn after(&self, ids: &[u32]) -> Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.full.last().unwrap_or(&self.key).as_bytes());
        ids.iter().for_each(|id| {
            hasher.update(&id.to_le_bytes());
        });
        hasher.finalize()
    }

    /// Adds a full block.
    pub(super) fn push(&mut self, ids: &[u32]) {
        let name = self.after(ids);
        self.full.push(name);
    }

    /// Adds ids, and calls `each` with the number and the name of every block that became full.
    pub(super) fn grow(&mut self, ids: &[u32], mut each: impl FnMut(usize, Hash)) {
        self.rest.extend_from_slice(ids);
        let whole = self.rest.len() / PAGE_POSITIONS * PAGE_POSITIONS;
        let ids: Vec<u32> = self.rest.drain(..whole).collect();
        for block in ids.chunks_exact(PAGE_POSITIONS) {
            let name = self.after(block);
            each(self.full.len(), name);
            self.full.push(name);
        }
    }
}

/// Blocks that may be shared.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    blocks: HashMap<Hash, Block>,
    /// In order of last use.
    by_age: BTreeMap<u64, Hash>,
    uses: u64,
}

#[derive(Debug)]
struct Block {
    /// A page of each layer.
    pages: Vec<Arc<Page>>,
    age: u64,
}

impl Prefixes {
    pub(super) fn get(&self, name: Hash) -> Option<&[Arc<Page>]> {
        Some(&self.blocks.get(&name)?.pages)
    }

    /// Adds a block. If there is one of this name, which has the same values, it stays.
    pub(super) fn insert(&mut self, name: Hash, pages: impl Iterator<Item = Arc<Page>>) {
        if !self.blocks.contains_key(&name) {
            self.uses += 1;
            self.by_age.insert(self.uses, name);
            self.blocks.insert(name, Block { pages: pages.collect(), age: self.uses });
        }
    }

    /// Notes that a sequence has ended. Its last block becomes the oldest of its blocks, because
    /// nobody can use a block without those before it.
    pub(super) fn used(&mut self, chain: &Chain) {
        for name in chain.full.iter().rev() {
            let Some(block) = self.blocks.get_mut(name) else { continue };
            self.by_age.remove(&block.age);
            self.uses += 1;
            block.age = self.uses;
            self.by_age.insert(block.age, *name);
        }
    }

    /// The longest unused blocks that free at least this many bytes, given the bytes of a page of
    /// each layer; `None` if that is not possible.
    pub(super) fn victims(
        &self,
        bytes: u64,
        page_sizes: impl Iterator<Item = u64> + Clone,
    ) -> Option<Vec<Hash>> {
        let (mut freed, mut victims) = (0_u64, Vec::new());
        for name in self.by_age.values() {
            if freed >= bytes {
                break;
            }
            let pages = self.blocks.get(name).map_or(&[][..], |block| &block.pages);
            let own = pages.iter().zip(page_sizes.clone()).filter(|(page, _)| Arc::strong_count(page) == 1);
            let own: u64 = own.map(|(_, bytes)| bytes).sum();
            if own > 0 {
                freed += own;
                victims.push(*name);
            }
        }
        (freed >= bytes).then_some(victims)
    }

    pub(super) fn remove(&mut self, name: Hash) -> Option<Vec<Arc<Page>>> {
        let block = self.blocks.remove(&name)?;
        self.by_age.remove(&block.age);
        Some(block.pages)
    }
}
