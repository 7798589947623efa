//! What decoding one chunk has read of references and their ancestors. Each part is read once,
//! however many steps of a chain need it.
//! It lives while the chunk is decoded. It does not find references.

use std::ops::Range;
use std::rc::Rc;

use deltaloom_kernels::{Number, history};

use super::source::{TensorId, TensorSource};
use crate::codec::HistoryKind;
use crate::error::{Error, Result};
use crate::limits::to_usize;
use crate::scratch::Scratch;

/// Parts of tensors, and states of changes that lead to them.
#[derive(Default)]
pub(crate) struct Memo {
    /// Whether parts are kept. Without a history, nothing is read twice.
    keeps: bool,
    parts: Vec<(TensorId, Range<u64>, Rc<Scratch>)>,
    /// By the tensors that led to the state, newest first.
    states: Vec<(Vec<TensorId>, Range<u64>, Rc<Scratch>)>,
}

impl Memo {
    /// Keeps what it reads if `keeps` is set.
    pub(crate) fn new(keeps: bool) -> Self {
        Self { keeps, ..Self::default() }
    }

    /// Fills `out` with bytes of a tensor from `start` on.
    pub(super) fn read_into(&mut self, source: &TensorSource, start: u64, out: &mut [u8]) -> Result<()> {
        if self.keeps {
            out.copy_from_slice(&self.part(source, start..start + out.len() as u64)?);
            return Ok(());
        }
        source.read_with(self, start, out)
    }

    /// Bytes of a tensor.
    pub(crate) fn part(&mut self, source: &TensorSource, range: Range<u64>) -> Result<Rc<Scratch>> {
        let id = source.id();
        if let Some((.., part)) = self.parts.iter().find(|(of, at, _)| *of == id && *at == range) {
            return Ok(Rc::clone(part));
        }
        let mut bytes = Scratch::of_len(to_usize(range.end - range.start));
        source.read_with(self, range.start, &mut bytes)?;
        let part = Rc::new(bytes);
        self.parts.push((id, range, Rc::clone(&part)));
        Ok(part)
    }

    /// Classes of the elements in a range by their history. `references` are the reference and its
    /// ancestors, newest first.
    pub(crate) fn classes(
        &mut self,
        kind: HistoryKind,
        number: Number,
        references: &[TensorSource],
        range: Range<u64>,
    ) -> Result<Rc<Scratch>> {
        match kind {
            HistoryKind::Changes => self.states(number, references, range),
            HistoryKind::Residuals => {
                let [newer, older, rest @ ..] = references else { return Err(missing()) };
                let newer = self.part(newer, range.clone())?;
                let older = self.part(older, range.clone())?;
                let oldest = rest.first().map(|oldest| self.part(oldest, range.clone())).transpose()?;
                let mut classes = Scratch::of_len(newer.len() / number.bytes());
                let oldest = oldest.as_ref().map(|part| &***part);
                history::residual_classes(number, oldest, &older, &newer, &mut classes);
                Ok(Rc::new(classes))
            }
        }
    }

    /// States of changes up to the newest of `references`. Continues from the one before it if its
    /// state is known, otherwise from the oldest.
    fn states(
        &mut self,
        number: Number,
        references: &[TensorSource],
        range: Range<u64>,
    ) -> Result<Rc<Scratch>> {
        let ids: Vec<TensorId> = references.iter().map(TensorSource::id).collect();
        // Newest first, and so are the parts: while a chain is decoded, the reference's own history
        // came last.
        let known = |followed: &[TensorId]| {
            let found = self.states.iter().rev().find(|(ids, at, _)| ids == followed && *at == range);
            found.map(|(.., states)| Rc::clone(states))
        };
        let oldest = references.len().checked_sub(1).ok_or_else(missing)?;
        let start = (0..oldest).find_map(|first| Some((first, known(&ids[first..])?)));
        if let Some((0, states)) = start {
            return Ok(states);
        }
        let (first, mut states) = match start {
            Some((first, states)) => (first, (*states).clone()),
            None => {
                let mut states = Scratch::of_len(to_usize(range.end - range.start) / number.bytes());
                states.fill(0);
                (oldest, states)
            }
        };
        for pair in (0..first).rev() {
            let older = self.part(&references[pair + 1], range.clone())?;
            let newer = self.part(&references[pair], range.clone())?;
            history::follow_changes(number, &older, &newer, &mut states);
        }
        let states = Rc::new(states);
        self.states.push((ids, range, Rc::clone(&states)));
        Ok(states)
    }
}

fn missing() -> Error {
    Error::corrupt("a history has no ancestors")
}
