//! Attention whose keys and values are in pages. It knows [`super::spans`] and nothing of the
//! methods that make them. The order of all sums depends on positions alone: scores one by one,
//! their largest, exponentials in sixteen lanes from the first position that is seen, then values
//! by growing position. So chunks, batches and threads change no bit.

use std::ops::Range;

use deltaloom::Result;
use deltaloom_kernels::functions;
use rayon::prelude::*;

use super::attention::{Attention, Part};
use super::batch::Batch;
use super::pages::{PAGE_POSITIONS, Past, Place, SequenceId};
use super::spans::{KeyMap, spans};

/// Tokens that share the reading of a page.
const TILE_TOKENS: usize = 16;

/// Some consecutive tokens of a sequence.
struct Tile {
    sequence: SequenceId,
    /// Of the first token in the batch.
    token: usize,
    positions: Range<usize>,
}

/// What the tokens of a tile see.
#[derive(Default)]
struct View {
    pieces: Vec<Piece>,
    /// The ways in which keys turn: the number of a table, and a map of positions.
    ways: Vec<(usize, KeyMap)>,
    /// Turns of the query of each piece, `[pieces, size]`, if they turn late.
    turns: Vec<f32>,
    /// Pages that somebody sees, by growing number.
    blocks: Vec<usize>,
    /// The most keys that a token sees.
    stride: usize,
    /// The factor of scores, `[tokens, query heads]`.
    scales: Vec<f32>,
}

/// A span of a token of the tile.
struct Piece {
    token: usize,
    keys: Range<usize>,
    /// Number of keys in the spans before it.
    before: usize,
    /// Which of the ways its keys turn.
    way: usize,
}

impl Piece {
    /// The part in a block: positions, and places among the scores of the token.
    fn within(&self, block: usize) -> Option<(Range<usize>, Range<usize>)> {
        let first = block * PAGE_POSITIONS;
        let keys = self.keys.start.max(first)..self.keys.end.min(first + PAGE_POSITIONS);
        let place = |key: usize| key - self.keys.start + self.before;
        (!keys.is_empty()).then(|| (keys.clone(), place(keys.start)..place(keys.end)))
    }
}

impl View {
    fn of(attention: &Attention<'_>, tile: &Tile) -> Self {
        let mut view = Self::default();
        for (token, position) in tile.positions.clone().enumerate() {
            let table = attention.late.map_or(0, |rotary| rotary.table(position));
            let mut before = 0;
            for span in spans(attention.plan, position) {
                let way = (table, span.map);
                let known = view.ways.iter().position(|other| *other == way);
                let way = known.unwrap_or_else(|| {
                    view.ways.push(way);
                    view.ways.len() - 1
                });
                if let Some(rotary) = attention.late {
                    rotary.push_query(table, span.query, &mut view.turns);
                }
                let keys = span.keys.len();
                view.pieces.push(Piece { token, keys: span.keys, before, way });
                before += keys;
            }
            view.stride = view.stride.max(before);
            view.scales.extend((0..attention.heads.query).map(|head| attention.scale(head, position)));
        }
        let mut ranges: Vec<Range<usize>> = view.pieces.iter().map(|piece| piece.keys.clone()).collect();
        ranges.sort_unstable_by_key(|keys| keys.start);
        for keys in ranges {
            let next = view.blocks.last().map_or(0, |last| last + 1);
            view.blocks.extend(next.max(keys.start / PAGE_POSITIONS)..keys.end.div_ceil(PAGE_POSITIONS));
        }
        view
    }
}

/// Memory that a thread uses again.
#[derive(Default)]
struct Scratch {
    page: Vec<f32>,
    turned: Vec<f32>,
    places: Vec<usize>,
    queries: Vec<f32>,
    scores: Vec<f32>,
}

/// For every token and head, the mean of values weighted by softmax of query times key times the
/// scale: `[tokens, heads x size]`. Only pages in a file fail.
pub(super) fn attend(
    attention: &Attention<'_>,
    past: &Past<'_>,
    batch: &Batch,
    query: Part<'_>,
) -> Result<Vec<f32>> {
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
        let view = View::of(attention, &tile);
        (0..attention.heads.key_value).try_for_each(|head| {
            let of_head = TileHead { attention, past, tile: &tile, view: &view, head };
            of_head.attend(query, scratch, out)
        })
    };
    tiles.into_par_iter().try_for_each_init(Scratch::default, each)?;
    Ok(out)
}

/// The queries of one tile that share a key head.
struct TileHead<'a> {
    attention: &'a Attention<'a>,
    past: &'a Past<'a>,
    tile: &'a Tile,
    view: &'a View,
    head: usize,
}

impl TileHead<'_> {
    /// Number of queries that share a key.
    fn group(&self) -> usize {
        self.attention.heads.query / self.attention.heads.key_value
    }

    fn place(&self, is_value: bool) -> Place {
        Place { sequence: self.tile.sequence, layer: self.past.layer, head: self.head, is_value }
    }

    fn attend(&self, query: Part<'_>, scratch: &mut Scratch, out: &mut [f32]) -> Result<()> {
        let (heads, view, group) = (self.attention.heads, self.view, self.group());
        let rows = self.tile.positions.len() * group;
        scratch.scores.clear();
        scratch.scores.resize(rows * view.stride, 0.0);
        scratch.page.resize(PAGE_POSITIONS * heads.size, 0.0);
        scratch.turned.resize(PAGE_POSITIONS * heads.size, 0.0);
        self.turn_queries(query, &mut scratch.queries);
        for block in &view.blocks {
            self.score(query, *block, scratch)?;
        }
        let Scratch { page, scores, .. } = scratch;
        let mut seen = vec![0; self.tile.positions.len()];
        view.pieces.iter().for_each(|piece| seen[piece.token] += piece.keys.len());
        for (row, scores) in scores.chunks_exact_mut(view.stride).enumerate() {
            functions::softmax(&mut scores[..seen[row / group]]);
        }
        let width = heads.query * heads.size;
        for block in &view.blocks {
            self.past.memory.read(self.place(true), *block, page)?;
            for piece in &view.pieces {
                let Some((keys, places)) = piece.within(*block) else { continue };
                let values = &page[keys.start % PAGE_POSITIONS * heads.size..];
                for of_group in 0..group {
                    let scores = &scores[(piece.token * group + of_group) * view.stride..][places.clone()];
                    let out = &mut out[piece.token * width + (self.head * group + of_group) * heads.size..];
                    functions::add_weighted(scores, values, &mut out[..heads.size]);
                }
            }
        }
        Ok(())
    }

    /// The queries of all pieces as they turn: `[pieces, group, size]`. Nothing if they have.
    fn turn_queries(&self, query: Part<'_>, queries: &mut Vec<f32>) {
        queries.clear();
        if self.attention.late.is_none() {
            return;
        }
        let (size, group) = (self.attention.heads.size, self.group());
        queries.resize(self.view.pieces.len() * group * size, 0.0);
        let each = self.view.pieces.iter().enumerate().zip(queries.chunks_exact_mut(group * size));
        for ((number, piece), turned) in each {
            for (of_group, turned) in turned.chunks_exact_mut(size).enumerate() {
                let query = query.head(self.tile.token + piece.token, self.head * group + of_group, size);
                functions::turn(&self.view.turns, &[number], query, turned);
            }
        }
    }

    /// The scores of all queries with the keys of a block.
    fn score(&self, query: Part<'_>, block: usize, scratch: &mut Scratch) -> Result<()> {
        let (size, view, group) = (self.attention.heads.size, self.view, self.group());
        let Scratch { page, turned, places, queries, scores } = scratch;
        self.past.memory.read(self.place(false), block, page)?;
        for (way, (table, map)) in view.ways.iter().enumerate() {
            let pieces = view.pieces.iter().enumerate().filter(|(_, piece)| piece.way == way);
            let within = pieces.filter_map(|(number, piece)| Some((number, piece, piece.within(block)?)));
            let keys = match self.attention.late {
                None => &page[..],
                Some(rotary) => {
                    let ends = within.clone().map(|(_, _, (keys, _))| (keys.start, keys.end));
                    let Some((first, end)) = ends.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))) else {
                        continue;
                    };
                    let part = (first % PAGE_POSITIONS) * size..(first % PAGE_POSITIONS + end - first) * size;
                    let turned_part = &mut turned[part.clone()];
                    rotary.turn_keys(*table, *map, first, &page[part], places, turned_part);
                    &turned[..]
                }
            };
            for (number, piece, (seen, places)) in within {
                let keys = &keys[seen.start % PAGE_POSITIONS * size..];
                for of_group in 0..group {
                    let head = self.head * group + of_group;
                    let query = match self.attention.late {
                        None => query.head(self.tile.token + piece.token, head, size),
                        Some(_) => &queries[(number * group + of_group) * size..][..size],
                    };
                    let scale = view.scales[piece.token * self.attention.heads.query + head];
                    let row = (piece.token * group + of_group) * view.stride;
                    functions::scores(query, keys, scale, &mut scores[row..][places.clone()]);
                }
            }
        }
        Ok(())
    }
}
