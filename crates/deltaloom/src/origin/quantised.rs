//! A tensor that has the numbers which codes of a base stand for, or the codes of a base's numbers
//! with scales of its own file.
//! Names limit the candidates: codes, scales and zeros belong to a tensor whose name has the same
//! stem. Layouts are tried on a sample, once for all tensors of a kind.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

use super::layouts::{self, Layout};
use super::subject::{Subject, predict_from};
use super::{Origin, nearest, reference_name};
use crate::bases::{Bases, TensorSource};
use crate::error::Result;
use crate::limits::to_usize;
use crate::plan;
use crate::predict::{MOST_HELD, Operand, Place, Predictor};
use crate::progress::{Progress, check_cancelled};
use crate::tensor::{DType, TensorInfo};

/// Runs of elements of a sample, and elements of a run. A seventh of a matrix seldom is a whole
/// number of words, so that all codes of a word are seen, and not only the first and the last.
const RUNS: u64 = 8;
const RUN_ELEMS: u64 = 256;
/// Tensors with the same stem that are looked at.
const MOST_SIBLINGS: usize = 12;
/// In the name of the tensor in which bitsandbytes describes codes as JSON, and its largest size.
const QUANT_STATE: &str = ".quant_state.";
const MOST_STATE_BYTES: u64 = 4096;
/// Leading parts of a name that may differ.
const MOST_PREFIXES: usize = 2;

/// A tensor whose name has the stem of the subject.
#[derive(Clone, Copy)]
pub(super) enum Sibling<'a> {
    OfBase(&'a TensorSource),
    /// Of the same file, by number.
    Own(usize, &'a TensorInfo),
}

impl<'a> Sibling<'a> {
    pub(super) fn info(self) -> &'a TensorInfo {
        match self {
            Self::OfBase(source) => source.info(),
            Self::Own(_, info) => info,
        }
    }

    pub(super) fn is_own(self) -> bool {
        matches!(self, Self::Own(..))
    }

    fn operand(self, info: &TensorInfo) -> Operand {
        let own = self.info();
        let place = match self {
            Self::OfBase(source) => Place::Base(reference_name(info, source)),
            Self::Own(number, _) => Place::Own(number),
        };
        Operand { place, dtype: own.dtype.clone(), shape: own.shape.clone() }
    }
}

/// Whether a tensor can have numbers or codes.
fn applies(info: &TensorInfo) -> bool {
    info.elems() >= RUN_ELEMS && (layouts::is_number(&info.dtype) || layouts::is_code(&info.dtype))
}

/// Tensors by the stems of their names.
pub(super) struct Stems<'a>(HashMap<&'a str, Vec<Sibling<'a>>>);

impl<'a> Stems<'a> {
    pub(super) fn new(tensors: impl Iterator<Item = Sibling<'a>>) -> Self {
        let mut by_stem: HashMap<&'a str, Vec<Sibling<'a>>> = HashMap::new();
        for tensor in tensors {
            for stem in stems(&tensor.info().name) {
                let siblings = by_stem.entry(stem).or_default();
                if siblings.len() < MOST_SIBLINGS {
                    siblings.push(tensor);
                }
            }
        }
        Self(by_stem)
    }

    /// The siblings of a tensor, those under more telling stems first.
    pub(super) fn of(&self, info: &TensorInfo) -> Vec<Sibling<'a>> {
        let mut found: Vec<Sibling<'a>> = Vec::new();
        for stem in stems(&info.name) {
            for sibling in self.0.get(stem).into_iter().flatten() {
                let is_known = |known: &Sibling<'_>| std::ptr::eq(known.info(), sibling.info());
                if found.len() < MOST_SIBLINGS
                    && !std::ptr::eq(sibling.info(), info)
                    && !found.iter().any(is_known)
                {
                    found.push(*sibling);
                }
            }
        }
        found
    }
}

/// What tensors that belong together have in common: the name, the name without a last part that
/// says what the tensor is for, and what is above it; also without leading parts. The most telling
/// first.
fn stems(name: &str) -> Vec<&str> {
    let parent = name.rfind('.').map(|end| &name[..end]);
    let last = parent.map_or(name, |parent| &name[parent.len() + 1..]);
    let of_parts = last.match_indices('_').map(|(at, _)| &name[..name.len() - last.len() + at]);
    let mut whole: Vec<&str> = std::iter::once(name).chain(of_parts.rev()).chain(parent).collect();
    whole.retain(|stem| !stem.is_empty());
    // The description of codes of bitsandbytes belongs to what it describes.
    whole.extend(name.find(QUANT_STATE).map(|end| &name[..end]));
    let mut found = whole.clone();
    for prefixes in 1..=MOST_PREFIXES {
        let shorter = whole.iter().filter_map(|stem| stem.splitn(prefixes + 1, '.').nth(prefixes));
        found.extend(shorter.filter(|stem| stem.contains('.')));
    }
    found
}

/// What a subject is made of, if it is: its predictor, the bases' tensors, and the cost.
pub(super) struct Found {
    pub(super) origin: Origin,
    pub(super) cost: u128,
}

/// The origins of subjects that are `wanted`, as numbers of codes or as codes of numbers.
///
/// # Errors
/// What reading gives.
pub(super) fn find(
    subjects: &[Subject<'_>],
    wanted: impl Fn(usize) -> Result<bool> + Sync,
    bases: &Bases,
    progress: &dyn Progress,
) -> Result<Vec<Option<Found>>> {
    let nothing = || subjects.iter().map(|_| None).collect();
    let sources: Vec<&TensorSource> = bases.direct().flat_map(|base| base.tensors()).collect();
    let has_codes = |info: &TensorInfo| applies(info) && layouts::is_code(&info.dtype);
    let to_numbers = sources.iter().any(|source| has_codes(source.info()));
    let to_codes = subjects.iter().any(|subject| has_codes(subject.info()));
    if sources.is_empty() || !(to_numbers || to_codes) {
        return Ok(nothing());
    }
    let of_bases = Stems::new(sources.into_iter().map(Sibling::OfBase));
    let numbered = subjects.iter().enumerate();
    let own = Stems::new(numbered.map(|(number, subject)| Sibling::Own(number, subject.info())));
    let siblings_of = |i: usize| -> Vec<Sibling<'_>> {
        let info = subjects[i].info();
        let mut found = of_bases.of(info);
        if layouts::is_code(&info.dtype) {
            found.extend(own.of(info));
        }
        found
    };
    let is_tried = |i: usize| -> Result<bool> {
        let info = subjects[i].info();
        let is_possible = layouts::is_code(&info.dtype) || to_numbers;
        let is_tried = applies(info) && is_possible && !siblings_of(i).is_empty();
        Ok(is_tried && wanted(i)?)
    };
    let is_tried: Vec<bool> = (0..subjects.len()).into_par_iter().map(is_tried).collect::<Result<_>>()?;
    // Tensors with siblings of the same shapes have the same layout.
    let mut kinds: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for i in (0..subjects.len()).filter(|i| is_tried[*i]) {
        kinds.entry(kind_of(subjects[i].info(), &siblings_of(i))).or_default().push(i);
    }
    let kinds: Vec<Vec<usize>> = kinds.into_values().collect();
    let of_kind = |members: &Vec<usize>| -> Result<Vec<(usize, Found)>> {
        check_cancelled(progress)?;
        let first = members[0];
        let siblings = siblings_of(first);
        let subject = Probed::new(subjects, first)?;
        let Some(layout) = best_layout(&subject, &siblings)? else { return Ok(Vec::new()) };
        let of_one = |i: &usize| -> Result<Option<(usize, Found)>> {
            let (subject, siblings) = (Probed::new(subjects, *i)?, siblings_of(*i));
            Ok(subject.found(&layout, &siblings)?.map(|found| (*i, found)))
        };
        let found: Vec<Option<(usize, Found)>> = members.par_iter().map(of_one).collect::<Result<_>>()?;
        Ok(found.into_iter().flatten().collect())
    };
    let found: Vec<Vec<(usize, Found)>> = kinds.par_iter().map(of_kind).collect::<Result<_>>()?;
    let mut all: Vec<Option<Found>> = nothing();
    found.into_iter().flatten().for_each(|(i, found)| all[i] = Some(found));
    Ok(all)
}

/// What decides the layout: dtypes and shapes, and how names of siblings end.
fn kind_of(info: &TensorInfo, siblings: &[Sibling<'_>]) -> String {
    let mut kind = format!("{} {:?}", info.dtype, info.shape);
    for sibling in siblings {
        let other = sibling.info();
        let end = other.name.rsplit('.').next().unwrap_or_default();
        // The length of a description depends on its digits.
        let shape = if other.name.contains(QUANT_STATE) { &[][..] } else { &other.shape };
        kind += &format!("|{} {end} {} {shape:?}", sibling.is_own(), other.dtype);
    }
    kind
}

/// The layout that predicts a subject best.
fn best_layout(subject: &Probed<'_>, siblings: &[Sibling<'_>]) -> Result<Option<Layout>> {
    let info = subject.subject().info();
    let mut best: Option<(u64, Layout)> = None;
    for layout in layouts::all(info, siblings) {
        if let Some(cost) = subject.cost(&layout, siblings)?
            && best.as_ref().is_none_or(|(least, _)| cost < *least)
        {
            best = Some((cost, layout));
        }
    }
    // Roundings matter less, and are tried on what is best so far.
    let Some((mut least, mut layout)) = best.filter(|(cost, _)| *cost < subject.enough()) else {
        return Ok(None);
    };
    for refined in layouts::refinements(&layout) {
        let mut kept = layout.clone();
        for other in refined {
            let changed = other(&layout);
            if let Some(cost) = subject.cost(&changed, siblings)?
                && cost < least
            {
                (least, kept) = (cost, changed);
            }
        }
        layout = kept;
    }
    Ok(Some(layout))
}

/// A subject with a sample of whole runs.
pub(super) struct Probed<'a> {
    subjects: &'a [Subject<'a>],
    number: usize,
    sample: Vec<u8>,
    runs: Vec<(u64, usize)>,
}

impl<'a> Probed<'a> {
    pub(super) fn new(subjects: &'a [Subject<'a>], number: usize) -> Result<Self> {
        let subject = &subjects[number];
        let info = subject.info();
        let (elems, size) = (info.elems(), info.number().bytes() as u64);
        let len = RUN_ELEMS.min(elems);
        let last = elems - len;
        let runs: Vec<(u64, usize)> =
            (0..RUNS).map(|run| (last * run / (RUNS - 1) * size, to_usize(len * size))).collect();
        let mut sample = Vec::new();
        for (start, len) in &runs {
            sample.extend(subject.read(*start, *len)?);
        }
        Ok(Self { subjects, number, sample, runs })
    }

    pub(super) fn subject(&self) -> &'a Subject<'a> {
        &self.subjects[self.number]
    }

    pub(super) fn sample_bytes(&self) -> u64 {
        self.sample.len() as u64
    }

    /// What must be saved: an eighth.
    pub(super) fn enough(&self) -> u64 {
        plan::stand_alone_cost(self.subject().info().number(), &self.sample) / 8 * 7
    }

    /// What bitsandbytes adds to nested scales: it says so in a tensor of JSON.
    fn nested_offset(&self, siblings: &[Sibling<'a>]) -> Option<f32> {
        let mut states = siblings.iter().filter(|sibling| {
            let info = sibling.info();
            info.name.contains(QUANT_STATE) && info.dtype == DType::U8 && info.len_bytes() <= MOST_STATE_BYTES
        });
        let sibling = states.next()?;
        let len = to_usize(sibling.info().len_bytes());
        let json = match sibling {
            Sibling::OfBase(source) => source.read(0, len),
            Sibling::Own(number, _) => self.subjects[*number].read(0, len),
        };
        let state: serde_json::Value = serde_json::from_slice(&json.ok()?).ok()?;
        let offset = state.get("nested_offset")?.as_f64()?;
        #[expect(clippy::cast_possible_truncation, reason = "it was an F32 number")]
        let offset = offset as f32;
        Some(offset).filter(|offset| offset.is_finite())
    }

    /// The origin by a layout.
    fn origin(&self, layout: &Layout, siblings: &[Sibling<'a>]) -> Option<Origin> {
        let info = self.subject().info();
        let operand = |which: usize| siblings[which].operand(info);
        let offset = if layout.is_nested() { self.nested_offset(siblings)? } else { 0.0 };
        let quantised = layout.record(info, operand, offset)?;
        let is_slow = |sibling: &Sibling<'_>| match sibling {
            Sibling::OfBase(source) => source.is_in_container() && source.info().len_bytes() > MOST_HELD,
            Sibling::Own(_, info) => info.len_bytes() > MOST_HELD,
        };
        if quantised.is_transposed && layout.operands().iter().any(|which| is_slow(&siblings[*which])) {
            return None;
        }
        let source = |which: &usize| match siblings[*which] {
            Sibling::OfBase(source) => Some(source.clone()),
            Sibling::Own(..) => None,
        };
        let references = layout.operands().iter().filter_map(source).collect();
        Some(Origin::coded(Predictor::Quantised(Box::new(quantised)), references))
    }

    /// What the sample costs with a layout.
    fn cost(&self, layout: &Layout, siblings: &[Sibling<'a>]) -> Result<Option<u64>> {
        self.origin(layout, siblings).map(|origin| self.cost_of(&origin)).transpose()
    }

    /// What the sample costs with an origin.
    pub(super) fn cost_of(&self, origin: &Origin) -> Result<u64> {
        let info = self.subject().info();
        let mut prediction = vec![0; self.sample.len()];
        let mut rest = &mut prediction[..];
        for (start, len) in &self.runs {
            let (now, later) = rest.split_at_mut(*len);
            predict_from(self.subjects, origin, info, *start, now)?;
            rest = later;
        }
        Ok(plan::residual_cost(info.number(), &self.sample, &prediction))
    }

    /// The origin by a layout, if it pays.
    fn found(&self, layout: &Layout, siblings: &[Sibling<'a>]) -> Result<Option<Found>> {
        let Some(origin) = self.origin(layout, siblings) else { return Ok(None) };
        let cost = self.cost_of(&origin)?;
        Ok(self.if_it_pays(origin, cost))
    }

    /// An origin with which the sample costs `cost`.
    pub(super) fn if_it_pays(&self, origin: Origin, cost: u64) -> Option<Found> {
        let cost_of_all = nearest::of_tensor(self.subject().info(), &self.sample, cost)
            + nearest::DIGEST_COST * origin.references.len() as u128;
        (cost < self.enough()).then_some(Found { origin, cost: cost_of_all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_codes_scales_and_numbers_have_a_stem_in_common() {
        let common = |a: &str, b: &str| stems(a).iter().any(|stem| stems(b).contains(stem));
        assert!(common("model.layers.0.q_proj.weight", "model.layers.0.q_proj.qweight"));
        assert!(common("model.layers.0.q_proj.weight", "model.layers.0.q_proj.weight_scale_inv"));
        assert!(common("layers.0.experts.gate_up_proj", "model.layers.0.experts.gate_up_proj_blocks"));
        assert!(!common("model.layers.0.q_proj.weight", "model.layers.1.q_proj.qweight"));
    }
}
