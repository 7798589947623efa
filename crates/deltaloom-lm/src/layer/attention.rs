//! Attention of grouped heads within each sequence, and rotary positions (Su et al., 2021) in the
//! half-split convention of Hugging Face's LLaMA.
//!
//! The layer computes the projections to and from the heads.

use std::iter;

use rayon::prelude::*;

use super::batch::Batch;
use super::config::{Heads, LayerConfig};
use super::plan::{AttentionPlan, Reach};
use super::vector::{add_scaled, dot};

/// The attention of a layer, without its weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention {
    pub(super) heads: Heads,
    pub(super) reach: Reach,
    /// The factor of scores.
    pub(super) scale: f32,
}

impl Attention {
    pub(super) fn of(config: &LayerConfig) -> Self {
        let heads =
            Heads { query: config.query_heads, key_value: config.key_value_heads, size: config.head_size };
        let AttentionPlan { reach, scale, .. } = config.attention;
        Self { heads, reach, scale: scale.of(config.head_size) }
    }
}

/// Queries, keys or values: they begin at `first` in each token's row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
    pub(super) first: usize,
}

impl<'a> Part<'a> {
    pub(super) fn head(&self, token: usize, head: usize, size: usize) -> &'a [f32] {
        let start = token * self.stride + self.first + head * size;
        &self.values[start..start + size]
    }
}

/// For every token and head, the mean of values weighted by softmax of query times key times the
/// scale, among whole sequences: `[tokens, heads x size]`.
pub(super) fn attend(
    attention: &Attention,
    batch: &Batch,
    query: Part<'_>,
    key: Part<'_>,
    value: Part<'_>,
) -> Vec<f32> {
    let Attention { heads, reach, scale } = *attention;
    let width = heads.query * heads.size;
    let mut out = vec![0.0; batch.tokens() * width];
    let seen: Vec<_> = batch
        .places()
        .flat_map(|(_, place)| {
            place.clone().map(move |token| match reach {
                Reach::Causal => place.start..token + 1,
                Reach::Window { tokens } => place.start.max((token + 1).saturating_sub(tokens))..token + 1,
                Reach::Full => place.clone(),
            })
        })
        .collect();
    let each = |scores: &mut Vec<f32>, (token, out): (usize, &mut [f32])| {
        for (head, out) in out.chunks_exact_mut(heads.size).enumerate() {
            let shared = head / (heads.query / heads.key_value);
            let query = query.head(token, head, heads.size);
            scores.clear();
            scores.extend(seen[token].clone().map(|at| scale * dot(query, key.head(at, shared, heads.size))));
            softmax(scores);
            for (at, weight) in seen[token].clone().zip(scores.iter()) {
                add_scaled(*weight, value.head(at, shared, heads.size), out);
            }
        }
    };
    out.par_chunks_mut(width).enumerate().with_min_len(4).for_each_init(Vec::new, each);
    out
}

/// Turns scores into fractions that add up to 1. A NaN makes all of them NaN.
fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = libm::expf(*score - largest));
    let factor = 1.0 / scores.iter().sum::<f32>();
    scores.iter_mut().for_each(|score| *score *= factor);
}

/// Cosine and sine for every token and every pair of elements of a head: `[tokens, pairs]`. In
/// FP32, which the models were trained with. `rates` are radians per position.
pub(crate) fn turns(rates: &[f32], batch: &Batch) -> Vec<[f32; 2]> {
    let of_token = |position: usize| {
        rates.iter().map(move |rate| {
            let (sin, cos) = libm::sincosf(position as f32 * rate);
            [cos, sin]
        })
    };
    batch
        .sequences()
        .iter()
        .flat_map(|sequence| sequence.position..sequence.position + sequence.tokens)
        .flat_map(of_token)
        .collect()
}

/// Rotates the heads in the first `width` of each `stride` elements: element `i` of a head and
/// element `i + size / 2` form a pair.
pub(super) fn rotate(table: &[[f32; 2]], size: usize, stride: usize, width: usize, values: &mut [f32]) {
    let half = size / 2;
    for (row, turns) in iter::zip(values.chunks_exact_mut(stride), table.chunks_exact(half)) {
        for head in row[..width].chunks_exact_mut(size) {
            let (low, high) = head.split_at_mut(half);
            for ((a, b), [cos, sin]) in low.iter_mut().zip(high).zip(turns) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}
