//! Which ids a sequence has, for penalties.

use std::collections::{BTreeMap, BTreeSet};

/// Ids of a prompt, and how often each is in the answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    prompt: BTreeSet<u32>,
    answer: BTreeMap<u32, u32>,
}

impl Seen {
    pub(super) fn new(prompt: &[u32]) -> Self {
        Self { prompt: prompt.iter().copied().collect(), answer: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, id: u32) {
        let count = self.answer.entry(id).or_default();
        *count = count.saturating_add(1);
    }

    /// Ids of the prompt and the answer, each once.
    pub(super) fn all(&self) -> impl Iterator<Item = u32> {
        let answer = self.answer.keys().filter(|id| !self.prompt.contains(id));
        self.prompt.iter().chain(answer).copied()
    }

    /// Ids of the answer with their number.
    pub(super) fn answer(&self) -> impl Iterator<Item = (u32, u32)> {
        self.answer.iter().map(|(id, count)| (*id, *count))
    }
}
