//! Attention whose keys and values are in pages. The order of all sums depends on positions alone:
//! scores one by one, their largest, exponentials in sixteen partial sums by position, then values
//! by growing position. So chunks, batches and threads change no bit.

use std::ops::Range;

use rayon::prelude::*;

use super::attention::{Attention, Part};
use super::batch::Batch;
use super::pages::{PAGE_POSITIONS, Past, Place, SequenceId};
use super::plan::Reach;
use super::vector::{add_scaled, dot};

/// Tokens that share the reading of a page.
const TILE_TOKENS: usize = 16;
/// Partial sums of exponentials.
const LANES: usize = 16;

/// Some consecutive tokens of a sequence.
struct Tile {
    sequence: SequenceId,
    /// Of the first token in the batch.
    token: usize,
    positions: Range<usize>,
}

/// Memory that a thread uses again.
#[derive(Default)]
struct Scratch {
    page: Vec<f32>,
    scores: Vec<f32>,
}

/// For every token and head, the mean of values weighted by softmax of query times key times the
/// scale: `[tokens, heads x size]`.
pub(super) fn attend(attention: &Attention, past: &Past<'_>, batch: &Batch, query: Part<'_>) -> Vec<f32> {
    let width = attention.heads.query * attention.heads.size;
    let mut out = vec![0.0; batch.tokens() * width];
    let mut tiles = Vec::new();
    let mut rest = &mut out[..];
    for ((sequence, place), id) in batch.places().zip(past.sequences) {
        for first in (0..sequence.tokens).step_by(TILE_TOKENS) {
            let tokens = TILE_TOKENS.min(sequence.tokens - first);
            let start = sequence.position + first;
            let (own, after) = rest.split_at_mut(tokens * width);
            rest = after;
            let tile = Tile { sequence: *id, token: place.start + first, positions: start..start + tokens };
            tiles.push((tile, own));
        }
    }
    let each = |scratch: &mut Scratch, (tile, out): (Tile, &mut [f32])| {
        for head in 0..attention.heads.key_value {
            attend_head(attention, past, &tile, head, query, scratch, out);
        }
    };
    tiles.into_par_iter().for_each_init(Scratch::default, each);
    out
}

/// The queries of one tile that share a key head.
fn attend_head(
    attention: &Attention,
    past: &Past<'_>,
    tile: &Tile,
    head: usize,
    query: Part<'_>,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let Attention { heads, reach, scale } = *attention;
    let group = heads.query / heads.key_value;
    let tokens = tile.positions.len();
    let seen = |token: usize| {
        let position = tile.positions.start + token;
        match reach {
            Reach::Window { tokens } => (position + 1).saturating_sub(tokens)..position + 1,
            Reach::Causal | Reach::Full => 0..position + 1,
        }
    };
    let blocks = seen(0).start / PAGE_POSITIONS..tile.positions.end.div_ceil(PAGE_POSITIONS);
    let origin = blocks.start * PAGE_POSITIONS;
    let stride = blocks.len() * PAGE_POSITIONS;
    scratch.scores.clear();
    scratch.scores.resize(tokens * group * stride, 0.0);
    scratch.page.resize(PAGE_POSITIONS * heads.size, 0.0);
    let Scratch { page, scores } = scratch;
    let place = |is_value| Place { sequence: tile.sequence, layer: past.layer, head, is_value };
    // The part of a block that a token sees.
    let in_block = |token: usize, block: usize| {
        let (seen, start) = (seen(token), block * PAGE_POSITIONS);
        seen.start.max(start)..seen.end.min(start + PAGE_POSITIONS)
    };
    let rows = || (0..tokens).flat_map(|token| (0..group).map(move |of_group| (token, of_group)));

    for block in blocks.clone() {
        past.memory.read(place(false), block, page);
        for ((token, of_group), scores) in rows().zip(scores.chunks_exact_mut(stride)) {
            let query = query.head(tile.token + token, head * group + of_group, heads.size);
            for position in in_block(token, block) {
                let key = &page[position % PAGE_POSITIONS * heads.size..][..heads.size];
                scores[position - origin] = scale * dot(query, key);
            }
        }
    }
    for ((token, _), scores) in rows().zip(scores.chunks_exact_mut(stride)) {
        let seen = seen(token);
        softmax(seen.start, &mut scores[seen.start - origin..seen.end - origin]);
    }
    let width = heads.query * heads.size;
    for block in blocks {
        past.memory.read(place(true), block, page);
        for ((token, of_group), scores) in rows().zip(scores.chunks_exact(stride)) {
            let out = &mut out[token * width + (head * group + of_group) * heads.size..][..heads.size];
            for position in in_block(token, block) {
                let value = &page[position % PAGE_POSITIONS * heads.size..][..heads.size];
                add_scaled(scores[position - origin], value, out);
            }
        }
    }
}

/// Turns the scores of consecutive positions into fractions that add up to 1. A NaN makes all of
/// them NaN.
fn softmax(first: usize, scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut lanes = [0.0_f32; LANES];
    for (position, score) in (first..).zip(scores.iter_mut()) {
        *score = libm::expf(*score - largest);
        lanes[position % LANES] += *score;
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        (0..width).for_each(|lane| lanes[lane] += lanes[lane + width]);
    }
    let factor = 1.0 / lanes[0];
    scores.iter_mut().for_each(|score| *score *= factor);
}
