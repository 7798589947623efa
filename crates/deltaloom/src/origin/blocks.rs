//! A tensor of blocks that were quantised from a base's numbers, or of numbers that a base's blocks
//! stand for, as GGUF files have them.
//! Writers of GGUF rename tensors. So candidates are those of the right shape, and the numbers of a
//! few rows tell which one it is. The first and the last row stay where they are when rows of heads
//! are paired.

use std::collections::HashMap;

use rayon::prelude::*;

use super::quantised::{Found, Probed};
use super::subject::Subject;
use super::{Origin, reference_name};
use crate::bases::{Bases, TensorSource};
use crate::error::Result;
use crate::limits::to_usize;
use crate::predict::{Arithmetic, BLOCK, BlockKind, Blocks, CodedBlocks, Element, Predictor, load_singles};
use crate::progress::{Progress, check_cancelled};
use crate::tensor::{DType, TensorInfo};

/// Numbers of a row that are looked at.
const ROW_NUMBERS: u64 = 512;
/// Tensors of a shape that are compared.
const MOST_OF_SHAPE: usize = 2048;
/// The square of the largest distance of a row, relative to the row.
const FARTHEST: f32 = 0.25;
/// Sizes of heads.
const HEADS: [u64; 14] = [8, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128, 160, 192, 256];

/// Numbers of the first, the middle and the last row.
type Sketch = Vec<Vec<f32>>;

/// The origins of subjects that are `wanted`.
///
/// # Errors
/// What reading gives.
pub(super) fn find(
    subjects: &[Subject<'_>],
    wanted: impl Fn(usize) -> Result<bool> + Sync,
    bases: &Bases,
    progress: &dyn Progress,
) -> Result<Vec<Option<Found>>> {
    let sources: Vec<&TensorSource> = bases.direct().flat_map(|base| base.tensors()).collect();
    let mut by_size: HashMap<(u64, u64, BlockKind, bool), Vec<&TensorSource>> = HashMap::new();
    for source in sources {
        for (rows, cols, kind, is_blocks) in sizes(source.info()) {
            let of_size = by_size.entry((rows, cols, kind, is_blocks)).or_default();
            if of_size.len() < MOST_OF_SHAPE {
                of_size.push(source);
            }
        }
    }
    // What a subject may be, with the tensors that it may come from.
    let possible = |i: usize| {
        let sizes = sizes(subjects[i].info()).into_iter();
        sizes.filter(|(rows, cols, kind, is_blocks)| by_size.contains_key(&(*rows, *cols, *kind, !is_blocks)))
    };
    let is_tried: Vec<bool> = (0..subjects.len())
        .into_par_iter()
        .map(|i| Ok(possible(i).next().is_some() && wanted(i)?))
        .collect::<Result<_>>()?;
    let mut needed: Vec<(u64, u64, BlockKind, bool)> = Vec::new();
    for i in (0..subjects.len()).filter(|i| is_tried[*i]) {
        needed.extend(possible(i).map(|(rows, cols, kind, is_blocks)| (rows, cols, kind, !is_blocks)));
    }
    needed.sort_unstable();
    needed.dedup();
    let sketches_of = |key: &(u64, u64, BlockKind, bool)| {
        check_cancelled(progress)?;
        let sketch = |source: &&TensorSource| sketch(source.info(), key.2, |at, len| source.read(at, len));
        Ok((*key, by_size[key].par_iter().map(sketch).collect::<Result<Vec<Sketch>>>()?))
    };
    let sketches: HashMap<_, Vec<Sketch>> = needed.iter().map(sketches_of).collect::<Result<_>>()?;
    let of_one = |i: usize| -> Result<Option<Found>> {
        if !is_tried[i] {
            return Ok(None);
        }
        check_cancelled(progress)?;
        let info = subjects[i].info();
        let mut best: Option<(f32, BlockKind, &TensorSource)> = None;
        for (rows, cols, kind, is_blocks) in possible(i) {
            let key = (rows, cols, kind, !is_blocks);
            let own = sketch(info, kind, |at, len| subjects[i].read(at, len))?;
            for (source, other) in by_size[&key].iter().zip(&sketches[&key]) {
                if let Some(far) = distance(&own, other)
                    && far < best.map_or(FARTHEST, |(least, ..)| least)
                {
                    best = Some((far, kind, source));
                }
            }
        }
        let Some((_, kind, source)) = best else { return Ok(None) };
        fit(&Probed::new(subjects, i)?, kind, source)
    };
    (0..subjects.len()).into_par_iter().map(of_one).collect()
}

/// Rows and columns of numbers that a tensor may have, in blocks of which kind, and whether it has
/// the blocks.
fn sizes(info: &TensorInfo) -> Vec<(u64, u64, BlockKind, bool)> {
    let Some(&last) = info.shape.last().filter(|_| info.len_bytes() > 0) else { return Vec::new() };
    let rows = info.elems() / last;
    let is_blocks = info.dtype == DType::U8;
    let of_kind = |kind: BlockKind| {
        let unit = if is_blocks { kind.bytes() as u64 } else { BLOCK as u64 };
        let is_possible = last.is_multiple_of(unit) && (is_blocks || Element::of(&info.dtype).is_some());
        is_possible.then(|| (rows, last / unit * BLOCK as u64, kind, is_blocks))
    };
    BlockKind::ALL.into_iter().filter_map(of_kind).collect()
}

fn sketch(
    info: &TensorInfo,
    kind: BlockKind,
    read: impl Fn(u64, usize) -> Result<Vec<u8>>,
) -> Result<Sketch> {
    let last = info.shape.last().copied().unwrap_or(1);
    let rows = info.elems() / last.max(1);
    let row_bytes = last * info.number().bytes() as u64;
    let row = |row: u64| {
        let element = Element::of(&info.dtype);
        let block = element.map_or(kind.bytes(), |element| BLOCK * element.bytes()) as u64;
        let len = row_bytes.min(ROW_NUMBERS / BLOCK as u64 * block);
        let bytes = read(row * row_bytes, to_usize(len))?;
        let numbers = |block: &[u8]| kind.numbers(Arithmetic::Each, block);
        Ok(match element {
            Some(element) => load_singles(element, &bytes),
            None => bytes.chunks_exact(kind.bytes()).flat_map(numbers).collect(),
        })
    };
    [0, rows / 2, rows - 1].into_iter().map(row).collect()
}

/// The square of the distance of those rows that are nearest: all but one. Rows of zeros say
/// nothing.
fn distance(a: &Sketch, b: &Sketch) -> Option<f32> {
    let of_row = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        let sum = |terms: &mut dyn Iterator<Item = f32>| terms.sum::<f32>();
        let size = sum(&mut a.iter().map(|x| x * x)) + sum(&mut b.iter().map(|x| x * x));
        let apart = sum(&mut a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)));
        Some(2.0 * apart / size).filter(|far| far.is_finite())
    };
    let mut rows: Vec<f32> = a.iter().zip(b).filter_map(of_row).collect();
    rows.sort_by(f32::total_cmp);
    rows.truncate(2);
    let count: u8 = u8::try_from(rows.len()).ok().filter(|count| *count > 0)?;
    Some(rows.iter().sum::<f32>() / f32::from(count))
}

/// The prediction from `source`, if it pays.
fn fit(subject: &Probed<'_>, kind: BlockKind, source: &TensorSource) -> Result<Option<Found>> {
    let info = subject.subject().info();
    let is_to_blocks = info.dtype == DType::U8;
    let plain = CodedBlocks {
        is_to_blocks,
        reference: reference_name(info, source),
        dtype: source.info().dtype.clone(),
        shape: source.info().shape.clone(),
        kind,
        arithmetic: Arithmetic::Each,
        head: 0,
    };
    if !plain.is_valid(info) {
        return Ok(None);
    }
    let origin = |blocks: CodedBlocks| {
        let predictor = Predictor::Blocks(Box::new(Blocks::Coded(blocks)));
        Origin::coded(predictor, vec![source.clone()])
    };
    let cost = |blocks: &CodedBlocks| subject.cost_of(&origin(blocks.clone()));
    let mut least = cost(&plain)?;
    let mut best = plain;
    let keep_best =
        |all: Vec<CodedBlocks>, (mut least, mut best): (u64, CodedBlocks)| -> Result<(u64, CodedBlocks)> {
            for changed in all.into_iter().filter(|changed| changed.is_valid(info)) {
                let cost = cost(&changed)?;
                if cost < least {
                    (least, best) = (cost, changed);
                }
            }
            Ok((least, best))
        };
    if least > subject.enough() / 8 {
        let heads = HEADS.into_iter().map(|head| CodedBlocks { head, ..best.clone() }).collect();
        (least, best) = keep_best(heads, (least, best))?;
    }
    let with = |arithmetic| CodedBlocks { arithmetic, ..best.clone() };
    let ways = Arithmetic::ALL.into_iter().filter(|way| is_to_blocks || *way != Arithmetic::Double);
    let others = ways.map(with).collect();
    (least, best) = keep_best(others, (least, best))?;
    Ok(subject.if_it_pays(origin(best), least))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_moved_or_are_zero_do_not_hide_what_is_near() {
        let row = |x: f32| vec![x, -x, 1.0, 0.5];
        let own = vec![row(1.0), row(2.0), row(3.0)];
        assert!(distance(&own, &vec![row(1.0), row(-9.0), row(3.0)]).unwrap() < 0.01);
        assert!(distance(&own, &vec![row(-1.0), row(-9.0), row(3.0)]).unwrap() > FARTHEST);
        let zeros = vec![vec![0.0; 4]; 3];
        assert!(distance(&zeros, &zeros).is_none());
    }
}
