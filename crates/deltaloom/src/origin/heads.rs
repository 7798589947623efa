//! Finds tensors of one file that have rows or columns in common, by the first elements of rows.
//! It reads little of each, so what it finds must be covered and costed.

use std::collections::HashMap;

use rayon::prelude::*;

use super::codes;
use super::subject::Subject;
use crate::error::Result;
use crate::limits::to_usize;
use crate::tensor::TensorInfo;

/// Elements of a head.
const HEAD: u64 = 13;
/// Rows shorter than this are taken together with those of the dimension before.
const LEAST_ROW: u64 = 64;
/// Rows of a tensor that are indexed.
const MOST_ROWS: u64 = 1 << 13;
/// Heads of a tensor that are looked up.
const LOOKED_UP: usize = 64;
/// Rows that are longer than this are not read whole.
const MOST_SKIPPED: u64 = 4096;
/// Bytes of rows that are read at a time.
const BLOCK_BYTES: u64 = 1 << 20;
/// The golden ratio, as hashes multiply with it.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
/// Heads with equal hashes. What is more frequent says nothing.
const MOST_EQUAL: usize = 4;

/// Tensors that may consist of pieces of others, and those others.
#[derive(Default)]
pub(super) struct Found {
    pub(super) wanted: Vec<usize>,
    pub(super) sources: Vec<usize>,
}

/// Looks for the heads of `open` subjects, in file order, in `others` and in earlier open ones that
/// are not found to have pieces of others themselves.
///
/// # Errors
/// What reading gives.
pub(super) fn find(subjects: &[Subject<'_>], open: &[usize], others: &[usize]) -> Result<Found> {
    let of_rows = |i: &usize| Ok((*i, rows_of(subjects[*i])?));
    let indexed: Vec<(usize, Vec<u64>)> = others.par_iter().map(of_rows).collect::<Result<_>>()?;
    let both = |i: &usize| {
        let of_rows = rows_of(subjects[*i])?;
        Ok((*i, of_rows, columns_of(subjects[*i])?))
    };
    let open: Vec<(usize, Vec<u64>, Vec<u64>)> = open.par_iter().map(both).collect::<Result<_>>()?;
    let mut index: HashMap<u64, Vec<usize>> = HashMap::new();
    let add = |index: &mut HashMap<u64, Vec<usize>>, i: usize, heads: &[u64]| {
        for head in heads.iter().copied() {
            let equal = index.entry(head).or_default();
            if equal.len() < MOST_EQUAL && !equal.contains(&i) {
                equal.push(i);
            }
        }
    };
    indexed.iter().for_each(|(i, heads)| add(&mut index, *i, heads));
    let mut found = Found::default();
    for (i, of_rows, of_columns) in open {
        let looked_up = [&of_rows, &of_columns].map(|heads| &heads[..heads.len().min(LOOKED_UP)]);
        let known = |head: &&u64| index.contains_key(head);
        let is_known = |heads: &&[u64]| heads.iter().filter(known).count() * 4 > heads.len();
        match looked_up.into_iter().find(is_known) {
            Some(heads) => {
                found.wanted.push(i);
                found.sources.extend(heads.iter().filter_map(|head| index.get(head)).flatten());
            }
            None => add(&mut index, i, &of_rows),
        }
    }
    found.sources.sort_unstable();
    found.sources.dedup();
    Ok(found)
}

/// Rows and the elements of each, whatever the last dimensions are.
fn rows(info: &TensorInfo) -> Option<(u64, u64)> {
    let mut cols = 1;
    for dim in info.shape.iter().rev() {
        if cols >= LEAST_ROW {
            break;
        }
        cols *= dim;
    }
    let is_usable = info.dtype.number().is_some() && cols >= LEAST_ROW && info.elems() > 0;
    is_usable.then(|| (info.elems() / cols, cols))
}

/// Heads of rows, and of their second halves.
fn rows_of(subject: Subject<'_>) -> Result<Vec<u64>> {
    let info = subject.info();
    let Some((count, cols)) = rows(info) else { return Ok(Vec::new()) };
    let mut heads = Vec::new();
    let size = info.number().bytes() as u64;
    let count = count.min(MOST_ROWS);
    if cols * size > MOST_SKIPPED {
        for row in 0..count {
            for start in [0, cols / 2] {
                heads.extend(head(&run(subject, row * cols + start, HEAD)?));
            }
        }
        return Ok(heads);
    }
    let per_block = BLOCK_BYTES / (cols * size);
    let (row_bytes, head_bytes) = (to_usize(cols * size), to_usize(HEAD * size));
    let mut runs = Vec::new();
    for first in (0..count).step_by(to_usize(per_block)) {
        let bytes = subject.bytes(first * cols * size..count.min(first + per_block) * cols * size)?;
        runs.clear();
        for row in bytes.chunks_exact(row_bytes) {
            for start in [0, to_usize(cols / 2 * size)] {
                runs.extend_from_slice(&row[start..][..head_bytes]);
            }
        }
        heads.extend(codes::of(info, &runs).chunks_exact(to_usize(HEAD)).filter_map(head));
    }
    Ok(heads)
}

/// Heads of columns of the first matrix.
fn columns_of(subject: Subject<'_>) -> Result<Vec<u64>> {
    let info = subject.info();
    let [.., rows, cols] = info.shape[..] else { return Ok(Vec::new()) };
    if rows < HEAD || cols == 0 || info.dtype.number().is_none() {
        return Ok(Vec::new());
    }
    let head_len = to_usize(HEAD);
    let mut columns = vec![0; to_usize(cols) * head_len];
    for row in 0..head_len {
        let codes = run(subject, row as u64 * cols, cols)?;
        columns.iter_mut().skip(row).step_by(head_len).zip(codes).for_each(|(place, code)| *place = code);
    }
    Ok(columns.chunks_exact(head_len).filter_map(head).collect())
}

/// Codes of a run of elements.
fn run(subject: Subject<'_>, start: u64, count: u64) -> Result<Vec<u16>> {
    let info = subject.info();
    let size = info.number().bytes() as u64;
    Ok(codes::of(info, &subject.bytes(start * size..(start + count) * size)?))
}

/// The hash of a head, of one in eight: which ones depends on the hash. Equal elements say nothing.
fn head(codes: &[u16]) -> Option<u64> {
    let mix = |hash: u64, code: &u16| (hash.rotate_left(23) ^ u64::from(*code)).wrapping_mul(MIX);
    let hash = codes.iter().fold(0, mix);
    (hash >> 61 == 0 && codes.iter().any(|code| *code != codes[0])).then_some(hash)
}
