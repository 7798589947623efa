//! A page of keys and values, and the pages of one layer of a sequence.

use std::collections::VecDeque;
use std::sync::Arc;

use super::pages::PAGE_POSITIONS;

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
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }

    /// Bytes of a number.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Keys as `[head][position][size]`, then values.
#[derive(Debug, Clone)]
pub(super) enum Page {
    Bf16(Box<[u16]>),
    F32(Box<[f32]>),
}

impl Page {
    pub(super) fn new(kv: KvType, elems: usize) -> Self {
        match kv {
            KvType::Bf16 => Self::Bf16(vec![0; elems].into()),
            KvType::F32 => Self::F32(vec![0.0; elems].into()),
        }
    }

    pub(super) fn write(&mut self, start: usize, values: &[f32]) {
        match self {
            Self::Bf16(page) => {
                let page = page[start..].iter_mut().zip(values);
                page.for_each(|(to, from)| *to = rounded(*from));
            }
            Self::F32(page) => page[start..start + values.len()].copy_from_slice(values),
        }
    }

    pub(super) fn read(&self, start: usize, out: &mut [f32]) {
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

/// The pages of one layer: those of the sinks, then the others without the first ones that nobody
/// will see again.
#[derive(Debug, Default, Clone)]
pub(super) struct Pages {
    sinks: Vec<Arc<Page>>,
    dropped: usize,
    rest: VecDeque<Arc<Page>>,
}

impl Pages {
    /// Number of pages to add for a sequence of this many tokens.
    pub(super) fn missing(&self, tokens: usize) -> usize {
        tokens.div_ceil(PAGE_POSITIONS).saturating_sub(self.sinks.len() + self.dropped + self.rest.len())
    }

    /// Adds the next page. The first `sinks` ones stay.
    pub(super) fn push(&mut self, page: Arc<Page>, sinks: usize) {
        match self.sinks.len() < sinks {
            true => self.sinks.push(page),
            false => self.rest.push_back(page),
        }
    }

    /// The page with this number, which must be there.
    pub(super) fn get(&self, number: usize) -> &Arc<Page> {
        match self.sinks.get(number) {
            Some(page) => page,
            None => &self.rest[number - self.sinks.len() - self.dropped],
        }
    }

    /// As [`Self::get`].
    pub(super) fn get_mut(&mut self, number: usize) -> &mut Arc<Page> {
        match number.checked_sub(self.sinks.len()) {
            None => &mut self.sinks[number],
            Some(number) => &mut self.rest[number - self.dropped],
        }
    }

    /// Takes the pages below this number out, but for those of the sinks.
    pub(super) fn drop_below(&mut self, number: usize) -> impl Iterator<Item = Arc<Page>> {
        let dropped = number.saturating_sub(self.sinks.len() + self.dropped).min(self.rest.len());
        self.dropped += dropped;
        self.rest.drain(..dropped)
    }

    /// Takes all of them.
    pub(super) fn into_all(self) -> impl Iterator<Item = Arc<Page>> {
        self.sinks.into_iter().chain(self.rest)
    }
}
