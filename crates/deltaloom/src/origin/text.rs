//! A small file that is a new state of a file of a base: a tokenizer with one token more, a
//! configuration, a log that grew. It is packed as patches, whatever the two lengths are. If the
//! state is JSON in another layout, the file of the base is laid out like it first.

use std::collections::BTreeMap;
use std::ops::Range;

use super::anchors::{Anchors, Sequence};
use super::subject::Subject;
use super::{Origin, codes, json, reference_name};
use crate::bases::{Bases, TensorSource, predict_into};
use crate::checkpoint::Contents;
use crate::codec::patch::{self, MOST_PREFIX_BYTES};
use crate::entropy::frame;
use crate::error::Result;
use crate::limits::to_usize;
use crate::plan::{self, Preset};
use crate::predict::json::Layout;
use crate::predict::{MOST_LAID_OUT, Predictor, Text};
use crate::scratch::Bytes;
use crate::tensor::{ChunkGrid, DType, TensorInfo};

/// Patches are looked for in text up to this size, and in other bytes up to that one: what changes
/// everywhere, as weights do, has none.
const MOST_TEXT_BYTES: u64 = 256 << 20;
const MOST_OTHER_BYTES: u64 = 4 << 20;
/// Bytes of a longer reference that a chunk may refer to.
const PART_BYTES: u64 = 4 << 20;
/// Bytes by which insertions may move the parts of a run apart.
const DRIFT: u64 = 1 << 16;
/// Chunks that are packed to find out what patches cost.
const SAMPLED: u64 = 4;
/// Files of bases that are tried.
const MOST_TRIED: usize = 2;
/// Bytes of a file that costs so little that nothing is looked for.
const LITTLE_BYTES: u64 = 48;

/// Whether patches may pay for a file of a checkpoint, from its size and a sample.
fn applies(subject: &Subject<'_>, sample: &[u8]) -> bool {
    let Subject::Member { checkpoint, member, info } = subject else { return false };
    let is_text = |byte: &&u8| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..);
    let most = match sample.iter().filter(is_text).count() * 100 >= sample.len() * 99 {
        true => MOST_TEXT_BYTES,
        false => MOST_OTHER_BYTES,
    };
    let is_file = checkpoint.members[*member].contents == Contents::Opaque;
    is_file && info.dtype == DType::U8 && (1..=most).contains(&info.len_bytes())
}

/// The small files of the bases.
pub(super) fn files(bases: &Bases) -> Vec<&TensorSource> {
    let tensors = bases.direct().flat_map(|base| base.tensors());
    let fits = |source: &&TensorSource| {
        let info = source.info();
        !source.is_typed() && info.dtype == DType::U8 && info.len_bytes() > 0
    };
    tensors.filter(fits).collect()
}

/// The files of bases that this one may be a new state of, the likeliest first: of the same name,
/// with the same end of the path, with the same ending and about the same size.
fn counterparts<'a>(info: &TensorInfo, files: &[&'a TensorSource]) -> Vec<&'a TensorSource> {
    let ending =
        |path: &str| path.rsplit('/').next().and_then(|name| name.rsplit_once('.')).map(|e| e.1.to_owned());
    let own_ending = ending(&info.name);
    let parts: Vec<&str> = info.name.rsplit('/').collect();
    let likeness = |source: &TensorSource| {
        let other = source.info();
        let same_parts = parts.iter().zip(other.name.rsplit('/')).take_while(|(a, b)| **a == *b).count();
        let (small, large) =
            (info.len_bytes().min(other.len_bytes()), info.len_bytes().max(other.len_bytes()));
        let is_alike = own_ending.is_some() && own_ending == ending(&other.name) && large / 4 <= small;
        // Parts of a file that is patched itself cost too much if it is long.
        let is_readable = !source.is_patched() || other.len_bytes() <= MOST_PREFIX_BYTES;
        let key = (other.name == info.name, same_parts, small * 256 / large);
        ((same_parts > 0 || is_alike) && is_readable).then_some(key)
    };
    let mut likely: Vec<_> = files.iter().filter_map(|source| Some((likeness(source)?, *source))).collect();
    likely.sort_by(|(a, _), (b, _)| b.cmp(a));
    likely.into_iter().map(|(_, source)| source).take(MOST_TRIED).collect()
}

/// Patches of a file of a base, if they cost less than another origin.
pub(super) fn fit(
    subject: &Subject<'_>,
    sample: &[u8],
    grid: &ChunkGrid,
    files: &[&TensorSource],
    other: &Origin,
) -> Result<Option<Origin>> {
    let info = subject.info();
    if files.is_empty() || !applies(subject, sample) {
        return Ok(None);
    }
    let chunks = sampled(grid);
    let mut least = cost_of_other(subject, grid, &chunks, other)?;
    if least <= LITTLE_BYTES {
        return Ok(None);
    }
    let layout = layout_of(subject)?;
    let mut best = None;
    for source in counterparts(info, files) {
        let laid_out = laid_out(source, layout.as_ref())?;
        for laid_out in std::iter::once(None).chain(laid_out.map(Some)) {
            let len_bytes = source.info().len_bytes();
            let new = layout.zip(laid_out.as_ref()).map(|(layout, text)| (layout, text.len() as u64));
            let text = Text { name: reference_name(info, source), len_bytes, layout: new };
            let predictor = Predictor::Text(text);
            let prefixes = prefixes(subject, grid, source, laid_out.as_deref())?;
            let mut bytes = 0;
            for chunk in &chunks {
                let target = read_chunk(subject, grid, *chunk)?;
                let prefix = &prefixes[to_usize(*chunk)];
                bytes += encode(source, laid_out.as_deref(), prefix, &target, Preset::Default)?
                    .map_or(target.len(), |patch| patch.len()) as u64;
            }
            let cost = scaled(bytes, grid, &chunks) + index_bytes(&predictor);
            // What is simpler to read wins a tie.
            if cost + cost / 32 + 8 < least {
                least = cost;
                best = Some(Origin { prefixes, laid_out, ..Origin::coded(predictor, vec![source.clone()]) });
            }
        }
    }
    best.map(Origin::with_reference_digests).transpose()
}

/// The layout of a file of JSON.
fn layout_of(subject: &Subject<'_>) -> Result<Option<Layout>> {
    let len_bytes = subject.info().len_bytes();
    if len_bytes > MOST_LAID_OUT {
        return Ok(None);
    }
    Ok(json::layout_of(&subject.read(0, to_usize(len_bytes))?))
}

/// A file of a base in this layout, if that makes a difference.
fn laid_out(source: &TensorSource, layout: Option<&Layout>) -> Result<Option<Vec<u8>>> {
    let len_bytes = source.info().len_bytes();
    let Some(layout) = layout.filter(|_| len_bytes <= MOST_LAID_OUT) else { return Ok(None) };
    let text = source.read(0, to_usize(len_bytes))?;
    if json::layout_of(&text).is_none_or(|own| own == *layout) {
        return Ok(None);
    }
    Ok(layout.apply(&text, to_usize(MOST_LAID_OUT)).filter(|text| !text.is_empty()))
}

/// The patch of a chunk, if zstd has one. `laid_out` is what it applies to if it is not the file.
pub(crate) fn encode(
    source: &TensorSource,
    laid_out: Option<&[u8]>,
    prefix: &Range<u64>,
    target: &[u8],
    preset: Preset,
) -> Result<Option<Vec<u8>>> {
    let bytes = match laid_out {
        Some(text) => Bytes::Held(&text[to_usize(prefix.start)..to_usize(prefix.end)]),
        None => source.bytes(prefix.clone())?,
    };
    Ok(patch::encode(&bytes, prefix.start, target, preset.patch_level()))
}

/// The part of a file of a base for every chunk: all of it, or if it is long, the part around the
/// bytes that both have.
fn prefixes(
    subject: &Subject<'_>,
    grid: &ChunkGrid,
    source: &TensorSource,
    laid_out: Option<&[u8]>,
) -> Result<Vec<Range<u64>>> {
    let info = subject.info();
    let len_bytes = laid_out.map_or(source.info().len_bytes(), |text| text.len() as u64);
    if len_bytes <= MOST_PREFIX_BYTES {
        return Ok(vec![0..len_bytes; to_usize(grid.chunk_count())]);
    }
    let even = |chunk: u64| {
        let place = grid.chunk_bytes(chunk);
        // The place in a file that grew or shrank evenly, such as one that was laid out anew.
        let middle = u128::from((place.start + place.end) / 2);
        let scaled = middle * u128::from(len_bytes) / u128::from(info.len_bytes().max(1));
        u64::try_from(scaled).unwrap_or(len_bytes)
    };
    let part = |middle: u64| {
        let start = middle.saturating_sub(PART_BYTES / 2).min(len_bytes - PART_BYTES);
        start..start + PART_BYTES
    };
    if laid_out.is_some() {
        return Ok((0..grid.chunk_count()).map(|chunk| part(even(chunk))).collect());
    }
    let reference = Sequence { subject: Subject::Source(source), own: None, is_transposed: false };
    let anchors = Anchors::new(vec![reference])?;
    let of_chunk = |chunk: u64| {
        let place = grid.chunk_bytes(chunk);
        let bytes = subject.read(place.start, to_usize(place.end - place.start))?;
        let mut pairs = Vec::new();
        anchors.for_each(&codes::of(info, &bytes), |at, equal| {
            pairs.extend(equal.iter().map(|anchor| (place.start + at as u64, anchor.at)));
            Ok(())
        })?;
        let middle = counterpart((place.start + place.end) / 2, &pairs);
        Ok(part(middle.unwrap_or_else(|| even(chunk))))
    };
    (0..grid.chunk_count()).map(of_chunk).collect()
}

/// The place in a reference that corresponds to one in a file: as far from it as most of these
/// pairs of equal places are from each other. A file has the same few words everywhere, but equal
/// runs are at one distance.
fn counterpart(place: u64, pairs: &[(u64, u64)]) -> Option<u64> {
    let most = pairs.iter().map(|(here, _)| *here).max()?;
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    pairs.iter().for_each(|(here, there)| *counts.entry((there + most - here) / DRIFT).or_default() += 1);
    let with_next = |bin: u64| counts.get(&bin).unwrap_or(&0) + counts.get(&(bin + 1)).unwrap_or(&0);
    let (bin, _) = counts.keys().map(|bin| (*bin, with_next(*bin))).rev().max_by_key(|(_, count)| *count)?;
    Some((place + (bin + 1) * DRIFT).saturating_sub(most))
}

/// Numbers of some evenly spaced chunks.
fn sampled(grid: &ChunkGrid) -> Vec<u64> {
    let count = grid.chunk_count();
    let step = count.div_ceil(SAMPLED).max(1);
    (0..count).step_by(to_usize(step)).collect()
}

fn read_chunk(subject: &Subject<'_>, grid: &ChunkGrid, chunk: u64) -> Result<Vec<u8>> {
    let place = grid.chunk_bytes(chunk);
    subject.read(place.start, to_usize(place.end - place.start))
}

/// Bytes of all chunks, from those of some.
fn scaled(bytes: u64, grid: &ChunkGrid, chunks: &[u64]) -> u64 {
    bytes * grid.chunk_count() / (chunks.len() as u64).max(1)
}

/// About what a predictor takes in the index, with the digests of its references.
fn index_bytes(predictor: &Predictor) -> u64 {
    let mut fields = Vec::new();
    predictor.push_to(&mut fields);
    let packed = frame::compress(&fields, 1).map_or(fields.len(), |packed| packed.len().min(fields.len()));
    (packed + 32 * predictor.reference_count()) as u64
}

/// About the bytes that a file takes with another origin.
fn cost_of_other(subject: &Subject<'_>, grid: &ChunkGrid, chunks: &[u64], other: &Origin) -> Result<u64> {
    let info = subject.info();
    let mut bits = 0;
    for chunk in chunks {
        let target = read_chunk(subject, grid, *chunk)?;
        let mut prediction = vec![0; target.len()];
        let start = grid.chunk_bytes(*chunk).start;
        predict_into(&other.predictor, &other.references, None, info, start, &mut prediction)?;
        let is_predicted = !other.predictor.is_zero();
        bits += plan::chunk_cost(info.number(), &target, &prediction, is_predicted);
    }
    Ok(scaled(bits / 8, grid, chunks) + index_bytes(&other.predictor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_told_from_words_that_occur_everywhere() {
        // A run of 1 MB from 20 MB on is at 3 MB now, and each word is also at seven other places.
        let run = (0..1000u64).map(|i| (3_000_000 + 1000 * i, 20_000_000 + 1010 * i));
        let words = (0..7000u64).map(|i| (3_000_000 + i / 7 * 1000, i * i * 7919 % 30_000_000));
        let pairs: Vec<(u64, u64)> = run.chain(words).collect();
        let found = counterpart(3_500_000, &pairs).unwrap();
        assert!((20_400_000..20_600_000).contains(&found), "{found}");
        assert_eq!(counterpart(5, &[]), None);
        // The file begins where the reference ends, and the reverse.
        assert!(counterpart(0, &[(0, 9_000_000)]).unwrap().abs_diff(9_000_000) <= DRIFT);
        assert_eq!(counterpart(0, &[(9_000_000, 0)]), Some(0));
    }
}
