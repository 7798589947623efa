//! A container together with the references of its tensors, so that any chunk can be decoded.
//! It does not look for references; [`super::Bases`] does.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::Bases;
use super::history::Memo;
use super::prediction::Inputs;
use super::source::TensorSource;
use crate::checkpoint::output;
use crate::codec::patch::{self, MOST_PREFIX_BYTES};
use crate::codec::{Codec, Coding};
use crate::container::{Container, Digest, PackedTensor};
use crate::error::{Error, Result};
use crate::limits::to_usize;
use crate::predict::{Predictor, Text, cast};
use crate::scratch::{Bytes, Scratch};
use crate::tensor::TensorInfo;

/// A container whose references are known, so that any of its tensors can be read.
pub struct ResolvedContainer {
    container: Container,
    /// For each tensor, the references of its predictor. Empty if the tensor cannot be read.
    references: Vec<Vec<TensorSource>>,
    inputs: output::Inputs,
    /// References of patches that are patched themselves, by the numbers of the tensors.
    patched: Mutex<VecDeque<(usize, Arc<Vec<u8>>)>>,
}

/// The error for a buffer that does not have the length of what is decoded into it.
pub(super) fn wrong_length(given: u64, needed: u64) -> Error {
    Error::InvalidArgument(format!("the buffer has {given} bytes, {needed} are needed"))
}

/// References of patches that are kept. Each has at most 8 MiB.
const PATCHED_COUNT: usize = 4;

impl ResolvedContainer {
    /// Finds the references of all tensors of `container` in `bases`. Hashes on the threads of the
    /// current rayon pool.
    ///
    /// # Errors
    /// [`Error::BaseMismatch`] for the first tensor whose reference no base has.
    pub fn new(container: Container, bases: &Bases) -> Result<Self> {
        Self::resolve(container, bases, |_| true)
    }

    /// Finds only what one tensor needs, so that reading it costs no more than necessary. Other
    /// tensors cannot be read then.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a tensor that it does not have, [`Error::BaseMismatch`].
    pub fn for_tensor(container: Container, bases: &Bases, name: &str) -> Result<Self> {
        let number = container.find(name)?;
        let needed = container.index().needed_for(number);
        Self::resolve(container, bases, |i| needed.contains(&i))
    }

    /// With references that were found without their digests: for each tensor, those of its
    /// predictor.
    pub(crate) fn with_references(container: Container, references: Vec<Vec<TensorSource>>) -> Self {
        Self { container, references, inputs: output::Inputs::default(), patched: Mutex::default() }
    }

    fn resolve(container: Container, bases: &Bases, wanted: impl Fn(usize) -> bool + Sync) -> Result<Self> {
        let references = Self::find_references(&container, bases, wanted);
        let references = references.map_err(|e| container.index().named_in(e).in_file(container.path()))?;
        tracing::info!(container = %container.path().display(), "found every reference");
        let mut inputs = bases.inputs();
        inputs.add(container.path());
        Ok(Self { container, references, inputs, patched: Mutex::default() })
    }

    /// The files of the container and of all bases, so that no target replaces one.
    #[must_use]
    pub fn inputs(&self) -> &output::Inputs {
        &self.inputs
    }

    fn find_references(
        container: &Container,
        bases: &Bases,
        wanted: impl Fn(usize) -> bool + Sync,
    ) -> Result<Vec<Vec<TensorSource>>> {
        let index = container.index();
        let find = |(i, tensor): (usize, &PackedTensor)| {
            let references =
                if wanted(i) { tensor.predictor.references(index.info(tensor)) } else { Vec::new() };
            let found = references.iter().zip(&tensor.reference_digests);
            found.map(|(reference, digest)| bases.find(reference, *digest)).collect()
        };
        // Candidates are hashed, which takes as long as reading them. The error of the first tensor
        // is reported.
        let found: Vec<Result<_>> = index.tensors.par_iter().enumerate().map(find).collect();
        found.into_iter().collect()
    }

    /// The container.
    #[must_use]
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// The references of a tensor.
    pub(crate) fn references(&self, number: usize) -> &[TensorSource] {
        &self.references[number]
    }

    /// Whether a reference comes from the same checkpoint or container as this tensor.
    pub(crate) fn rests_on(&self, source: &TensorSource) -> bool {
        self.references.iter().flatten().any(|reference| reference.has_origin_of(source))
    }

    pub(crate) fn tensor(&self, number: usize) -> &PackedTensor {
        &self.container.index().tensors[number]
    }

    /// The tensors of all files. Their order in the container is the order of their numbers.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        let index = self.container.index();
        index.tensors.iter().map(|tensor| index.info(tensor))
    }

    /// Decodes a tensor, given by its number in [`Self::tensors`], into `out`, which must have its
    /// length. Works chunk by chunk on the threads of the current rayon pool. Checks the CRC-32 of
    /// every chunk; [`Self::check`] also checks the digest.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an unknown number or a buffer of another length; what reading
    /// or decoding gives. `out` may be partly written then.
    pub fn read_into(&self, number: usize, out: &mut [u8]) -> Result<()> {
        self.check_number(number)?;
        self.read_run_into(number..number + 1, out)
    }

    /// Decodes all tensors into `out`, one after another in the order of [`Self::tensors`]. `out`
    /// must have the length of all. Otherwise as [`Self::read_into`].
    ///
    /// # Errors
    /// As [`Self::read_into`].
    pub fn read_all_into(&self, out: &mut [u8]) -> Result<()> {
        self.read_run_into(self.numbers(), out)
    }

    pub(super) fn check_number(&self, number: usize) -> Result<()> {
        if self.numbers().contains(&number) {
            return Ok(());
        }
        Err(Error::InvalidArgument(format!("tensor number {number} does not exist")))
    }

    /// The numbers of all tensors.
    fn numbers(&self) -> Range<usize> {
        0..self.container.index().tensors.len()
    }

    fn read_run_into(&self, numbers: Range<usize>, out: &mut [u8]) -> Result<()> {
        self.for_chunks(numbers, out, |number, i, values| self.chunk_into(number, i, values))
    }

    /// Turns references into tensors where they are. `values` holds all tensors one after another
    /// in the order of [`Self::tensors`], and starts with the bytes of their references. These are
    /// not examined, and only changed bytes are written.
    ///
    /// Runs on the threads of the current rayon pool, and checks the CRC-32 of every chunk that it
    /// decodes. [`Self::check`] shows whether the references were the right ones.
    ///
    /// # Errors
    /// As [`Self::read_into`]; `values` may be partly changed then.
    pub fn apply_all(&self, values: &mut [u8]) -> Result<()> {
        self.for_chunks(self.numbers(), values, |number, i, values| {
            let tensor = self.tensor(number);
            match &tensor.predictor {
                Predictor::Reference(_) => self.container.decode_chunk(tensor, i, None, values),
                Predictor::Identical(_) => Ok(()),
                _ => self.chunk_into(number, i, values),
            }
        })
    }

    /// Fills `values` as [`Self::apply_all`] needs it: with the references of all tensors that have
    /// one of their size. The bytes of other tensors may be anything.
    ///
    /// # Errors
    /// As [`Self::read_into`].
    pub fn read_references_into(&self, values: &mut [u8]) -> Result<()> {
        self.for_chunks(self.numbers(), values, |number, i, values| {
            let tensor = self.tensor(number);
            match (&tensor.predictor, &self.references[number][..]) {
                (Predictor::Reference(_) | Predictor::Identical(_), [reference]) => {
                    reference.read_into(tensor.grid.chunk_bytes(i as u64).start, values)
                }
                _ => Ok(()),
            }
        })
    }

    /// Calls `each` for all chunks of tensors that are stored one after another in `values`.
    fn for_chunks(
        &self,
        numbers: Range<usize>,
        values: &mut [u8],
        each: impl Fn(usize, usize, &mut [u8]) -> Result<()> + Sync,
    ) -> Result<()> {
        let (given, needed) =
            (values.len() as u64, numbers.clone().map(|number| self.info(number).len_bytes()).sum::<u64>());
        let wrong = || wrong_length(given, needed);
        if given != needed {
            return Err(wrong());
        }
        let mut rest = values;
        let mut chunks = Vec::new();
        for number in numbers {
            let grid = self.tensor(number).grid;
            for i in 0..grid.chunk_count() {
                let place = grid.chunk_bytes(i);
                let values = rest.split_off_mut(..to_usize(place.end - place.start)).ok_or_else(wrong)?;
                chunks.push((number, to_usize(i), values));
            }
        }
        chunks.into_par_iter().try_for_each(|(number, i, values)| each(number, i, values))
    }

    /// Checks that `bytes` are those of the packed tensor with this number in [`Self::tensors`].
    ///
    /// # Errors
    /// [`Error::DigestMismatch`]; [`Error::InvalidArgument`] for an unknown number.
    pub fn check(&self, number: usize, bytes: &[u8]) -> Result<()> {
        self.check_digest(number, blake3::hash(bytes))
    }

    /// Checks that this is the digest of the packed tensor with this number.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_digest(&self, number: usize, found: blake3::Hash) -> Result<()> {
        self.check_number(number)?;
        let expected = self.tensor(number).digest;
        if found == expected {
            return Ok(());
        }
        let hex = |digest: Digest| digest.to_hex().to_string();
        let tensor = self.info(number).name.clone();
        let mismatch = Error::DigestMismatch { tensor, expected: hex(expected), found: hex(found) };
        Err(mismatch.in_file(self.container.path()))
    }

    /// Decodes chunk `i` of a tensor.
    pub(crate) fn chunk(&self, number: usize, i: usize) -> Result<Scratch> {
        let place = self.tensor(number).grid.chunk_bytes(i as u64);
        let mut values = Scratch::of_len(to_usize(place.end - place.start));
        self.chunk_into(number, i, &mut values)?;
        Ok(values)
    }

    /// Decodes chunk `i` of a tensor into `out`, which must have its length and may hold anything.
    pub(crate) fn chunk_into(&self, number: usize, i: usize, out: &mut [u8]) -> Result<()> {
        let keeps = matches!(self.tensor(number).predictor, Predictor::History { .. });
        self.chunk_with(&mut Memo::new(keeps), number, i, out)
    }

    /// The same, reusing what was read for the chunk before.
    fn chunk_with(&self, memo: &mut Memo, number: usize, i: usize, out: &mut [u8]) -> Result<()> {
        let tensor = self.tensor(number);
        let Some(dtype) = tensor.predictor.coded_dtype() else {
            return self.coded_chunk_with(memo, number, i, out);
        };
        let place = tensor.coded_grid().chunk_bytes(i as u64);
        let mut coded = Scratch::of_len(to_usize(place.end - place.start));
        self.coded_chunk_with(memo, number, i, &mut coded)?;
        cast::convert_into(dtype, &self.info(number).dtype, &coded, out);
        Ok(())
    }

    /// Decodes what is coded of a chunk.
    fn coded_chunk_with(&self, memo: &mut Memo, number: usize, i: usize, out: &mut [u8]) -> Result<()> {
        let tensor = self.tensor(number);
        let (info, predictor) = tensor.predictor.coded(self.info(number));
        let has_chunks = predictor.has_chunks();
        if let (Predictor::Text(text), Some(chunk)) = (predictor, tensor.chunks.get(i))
            && chunk.codec == Codec::Patch
        {
            let payload = self.container.read_payload(tensor, &chunk.payload)?;
            let reference = self.references[number].first();
            let reference = reference.ok_or_else(|| Error::corrupt("a reference is missing"))?;
            let read = |range| self.bytes_to_patch(number, text, reference, range);
            let patched = patch::decode(&payload, text.patched_bytes(), read, out);
            return patched.map_err(|e| e.in_file(self.container.path()));
        }
        if !has_chunks || tensor.chunks[i].codec.uses_prediction() {
            let payload = self.container.own_payload(tensor)?;
            let mut inputs = Inputs {
                references: &self.references[number],
                tensors: predictor.internals(),
                // Chains of tensors are so short that this ends.
                own: |other, start, out: &mut [u8]| self.read_part_into(other, start, out),
                payload: payload.as_deref(),
                memo: Some(memo),
            };
            let start = tensor.coded_grid().chunk_bytes(i as u64).start;
            predictor.predict(&info, start, &mut inputs, out)?;
        }
        if !has_chunks {
            return Ok(());
        }
        let classes = self.classes(memo, number, i)?;
        self.container.decode_chunk(tensor, i, classes.as_ref().map(|classes| &***classes), out)
    }

    /// Bytes of the reference that a chunk of a tensor is a patch of. Every chunk needs nearly all
    /// of it, so one that is patched itself is decoded once: otherwise each step of a chain would
    /// multiply the work. One that is laid out anew is laid out once.
    fn bytes_to_patch<'a>(
        &self,
        number: usize,
        text: &Text,
        reference: &'a TensorSource,
        range: Range<u64>,
    ) -> Result<Bytes<'a>> {
        let len_bytes = reference.info().len_bytes();
        let is_kept = reference.is_patched() && len_bytes <= MOST_PREFIX_BYTES;
        if !is_kept && text.layout.is_none() {
            return reference.bytes(range);
        }
        let mut kept = self.patched.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kept.iter().find(|(of, _)| *of == number).map(|(_, whole)| Arc::clone(whole));
        let whole = match known {
            Some(whole) => whole,
            None => {
                let read = || reference.read(0, to_usize(len_bytes));
                let whole = match text.laid_out(read)? {
                    Some(laid_out) => laid_out,
                    None => read()?,
                };
                let whole = Arc::new(whole);
                if kept.len() == PATCHED_COUNT {
                    kept.pop_front();
                }
                kept.push_back((number, Arc::clone(&whole)));
                whole
            }
        };
        drop(kept);
        let part = &whole[to_usize(range.start)..to_usize(range.end)];
        Ok(Bytes::Read(part.to_vec().into()))
    }

    /// Classes of the elements of a chunk by their history, if its coding has them.
    fn classes(&self, memo: &mut Memo, number: usize, i: usize) -> Result<Option<Rc<Scratch>>> {
        let tensor = self.tensor(number);
        let chunk = &tensor.chunks[i];
        let (&Coding::History { kind, .. }, Codec::Ulp) = (&tensor.groups[chunk.group].coding, chunk.codec)
        else {
            return Ok(None);
        };
        let range = tensor.grid.chunk_bytes(i as u64);
        memo.classes(kind, self.info(number).number(), &self.references[number], range).map(Some)
    }

    /// [`Self::read_part_into`], reusing what was read before for the same chunk.
    pub(super) fn read_part_with(
        &self,
        memo: &mut Memo,
        number: usize,
        offset: u64,
        out: &mut [u8],
    ) -> Result<()> {
        self.for_parts(number, offset, out, |i, part| self.chunk_with(memo, number, i, part))
    }

    pub(super) fn for_parts(
        &self,
        number: usize,
        offset: u64,
        out: &mut [u8],
        mut chunk_into: impl FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let grid = self.tensor(number).grid;
        for (i, held) in grid.cut(&(offset..offset + out.len() as u64)) {
            let place = grid.chunk_bytes(i);
            let part = &mut out[to_usize(held.start - offset)..to_usize(held.end - offset)];
            if held == place {
                chunk_into(to_usize(i), part)?;
            } else {
                let mut chunk = Scratch::of_len(to_usize(place.end - place.start));
                chunk_into(to_usize(i), &mut chunk)?;
                part.copy_from_slice(
                    &chunk[to_usize(held.start - place.start)..to_usize(held.end - place.start)],
                );
            }
        }
        Ok(())
    }
}
