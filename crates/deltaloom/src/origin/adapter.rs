//! Finds out how an adapter was merged: tries the orders of operations that libraries use on some
//! rows, and keeps the one that reproduces most elements.
//! [`crate::predict::Adapter`] has the arithmetic.

use crate::bases::{self, Bases, TensorSource};
use crate::error::Result;
use crate::limits::to_usize;
use crate::predict::{Adapter, Element, MAX_RANK, Merge, Predictor};
use crate::tensor::TensorInfo;

use super::Origin;
use super::subject::Subject;

/// Number of rows for comparing the orders of operations.
const SAMPLE_ROWS: u64 = 16;

/// The arithmetic of a tensor that an adapter may change.
fn applies(info: &TensorInfo) -> Option<Element> {
    Element::of(&info.dtype).filter(|_| info.shape.len() == 2)
}

/// The prediction of a tensor from `reference` and the adapter that changes it. `None` if there is
/// none, or if it explains less than half of the differences.
pub(super) fn fit(subject: Subject<'_>, reference: &TensorSource, bases: &Bases) -> Result<Option<Origin>> {
    let info = subject.info();
    let Some(element) = applies(info) else { return Ok(None) };
    let names = [info.name.as_str(), &reference.info().name];
    let mut best: Option<(u64, Origin)> = None;
    for (module, [a, b]) in bases.direct().flat_map(|base| base.modules_of(names)) {
        let Some(dtype) = Element::of(&a.info().dtype).filter(|_| module.rank <= MAX_RANK) else { continue };
        let fits = |transposed: bool| {
            let [inputs, outputs] = [a.info().shape[1], b.info().shape[0]];
            info.shape == if transposed { [inputs, outputs] } else { [outputs, inputs] }
        };
        let Some(transposed) =
            [module.fan_in_fan_out, !module.fan_in_fan_out].into_iter().find(|transposed| fits(*transposed))
        else {
            continue;
        };
        let references = vec![reference.clone(), a.clone(), b.clone()];
        let sample = SampleRows::read(subject, element, reference)?;
        for merge in merges(element, dtype, transposed) {
            let adapter = Adapter {
                reference: super::reference_name(info, reference),
                factors: [a.info().name.clone(), b.info().name.clone()],
                rank: module.rank,
                #[expect(clippy::cast_possible_truncation, reason = "libraries scale F32 tensors")]
                scale: module.scale as f32,
                merge,
                dtype,
            };
            let predictor = Predictor::Adapter(Box::new(adapter));
            let wrong = sample.score(&predictor, &references, info)?;
            if wrong * 2 < sample.changed && best.as_ref().is_none_or(|(least, _)| wrong < *least) {
                best = Some((wrong, Origin::coded(predictor, references.clone())));
            }
        }
    }
    best.map(|(_, origin)| origin.with_reference_digests()).transpose()
}

/// The orders of operations. The usual ones come first.
fn merges(element: Element, dtype: Element, transposed: bool) -> Vec<Merge> {
    let narrow = |element: Element| Some(element).filter(|element| *element != Element::F32);
    let mut narrower: Vec<Element> = [narrow(dtype), narrow(element)].into_iter().flatten().collect();
    narrower.dedup();
    let rounded = narrower.into_iter().flat_map(|to| [(None, Some(to)), (Some(to), Some(to))]);
    let roundings: Vec<_> = std::iter::once((None, None)).chain(rounded).collect();
    let with = |scale_first: bool, fused: bool| {
        let merge = move |(product, update)| Merge { fused, scale_first, transposed, product, update };
        roundings.clone().into_iter().map(merge)
    };
    [(false, true), (false, false), (true, true), (true, false)]
        .into_iter()
        .flat_map(|(scale_first, fused)| with(scale_first, fused))
        .collect()
}

/// Evenly spaced rows of a tensor.
struct SampleRows {
    row_bytes: u64,
    starts: Vec<u64>,
    rows: Vec<Vec<u8>>,
    size: usize,
    /// Elements that differ from the reference.
    changed: u64,
}

impl SampleRows {
    fn read(subject: Subject<'_>, element: Element, reference: &TensorSource) -> Result<Self> {
        let size = element.bytes();
        let (count, row_bytes) = (subject.info().shape[0], subject.info().shape[1] * size as u64);
        let step = count.div_ceil(SAMPLE_ROWS).max(1);
        let starts: Vec<u64> = (0..count).step_by(to_usize(step)).map(|row| row * row_bytes).collect();
        let rows: Vec<Vec<u8>> =
            starts.iter().map(|start| subject.read(*start, to_usize(row_bytes))).collect::<Result<_>>()?;
        let mut sample = Self { row_bytes, starts, rows, size, changed: 0 };
        sample.changed = sample.count_different(|start| reference.read(start, to_usize(sample.row_bytes)))?;
        Ok(sample)
    }

    /// Elements that the predictor gets wrong.
    fn score(&self, predictor: &Predictor, references: &[TensorSource], info: &TensorInfo) -> Result<u64> {
        self.count_different(|start| {
            let mut out = vec![0; to_usize(self.row_bytes)];
            bases::predict_into(predictor, references, None, info, start, &mut out)?;
            Ok(out)
        })
    }

    fn count_different(&self, read: impl Fn(u64) -> Result<Vec<u8>>) -> Result<u64> {
        let mut different = 0;
        for (start, row) in self.starts.iter().zip(&self.rows) {
            let other = read(*start)?;
            let pairs = row.chunks_exact(self.size).zip(other.chunks_exact(self.size));
            different += pairs.filter(|(a, b)| a != b).count() as u64;
        }
        Ok(different)
    }
}
