//! A page of keys and values, and the pages of one layer of a sequence.

use std::collections::VecDeque;
use std::sync::Arc;

use deltaloom::Result;

use super::kv_file::FilePage;
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
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Keys as `[head][position][size]`, then values. Those of one head are a part.
#[derive(Debug)]
pub(super) enum Page {
    Bf16(Box<[u16]>),
    F32(Box<[f32]>),
    /// Numbers of this type, little-endian.
    File(KvType, FilePage),
}

impl Page {
    pub(super) fn new(kv: KvType, elems: usize) -> Self {
        match kv {
            KvType::Bf16 => Self::Bf16(vec![0; elems].into()),
            KvType::F32 => Self::F32(vec![0.0; elems].into()),
        }
    }

    /// Another page with the same values.
    pub(super) fn copy(&self) -> Result<Self> {
        Ok(match self {
            Self::Bf16(page) => Self::Bf16(page.clone()),
            Self::F32(page) => Self::F32(page.clone()),
            Self::File(kv, page) => Self::File(*kv, page.copy()?),
        })
    }

    /// Writes the values of a part at one position of the page.
    pub(super) fn write(&mut self, part: usize, position: usize, values: &[f32]) -> Result<()> {
        let start = (part * PAGE_POSITIONS + position) * values.len();
        match self {
            Self::Bf16(page) => {
                let page = page[start..].iter_mut().zip(values);
                page.for_each(|(to, from)| *to = rounded(*from));
            }
            Self::F32(page) => page[start..start + values.len()].copy_from_slice(values),
            Self::File(KvType::Bf16, page) => {
                let bytes = values.iter().flat_map(|value| rounded(*value).to_le_bytes());
                page.write(part, 2 * position * values.len(), bytes)?;
            }
            Self::File(KvType::F32, page) => {
                let bytes = values.iter().flat_map(|value| value.to_le_bytes());
                page.write(part, 4 * position * values.len(), bytes)?;
            }
        }
        Ok(())
    }

    /// Reads a part: `[32, size]`.
    pub(super) fn read(&self, part: usize, out: &mut [f32]) -> Result<()> {
        let start = part * out.len();
        match self {
            Self::Bf16(page) => widen(page[start..].iter().copied(), out),
            Self::F32(page) => out.copy_from_slice(&page[start..start + out.len()]),
            Self::File(KvType::Bf16, page) => {
                widen(page.read(part)?.as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes)), out);
            }
            Self::File(KvType::F32, page) => {
                let bytes = page.read(part)?;
                let values = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                out.iter_mut().zip(values).for_each(|(to, from)| *to = from);
            }
        }
        Ok(())
    }
}

/// Reads BF16 numbers.
fn widen(numbers: impl Iterator<Item = u16>, out: &mut [f32]) {
    out.iter_mut().zip(numbers).for_each(|(to, from)| *to = f32::from_bits(u32::from(from) << 16));
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
