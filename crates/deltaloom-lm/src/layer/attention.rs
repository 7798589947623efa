//! Attention of grouped heads within each sequence.
//!
//! The layer computes the projections to and from the heads.

use std::slice;

use deltaloom_kernels::functions;
use rayon::prelude::*;

use super::batch::Batch;
use super::config::Heads;
use super::plan::{AttentionPlan, Reach};
use super::rotary::Rotary;

/// The attention of a layer, without its weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention<'a> {
    pub(super) heads: Heads,
    pub(super) plan: &'a AttentionPlan,
    /// What turns queries and keys when they are read, if they have not turned.
    pub(super) late: Option<&'a Rotary>,
}

impl Attention<'_> {
    /// The factor of the scores of a query.
    pub(super) fn scale(&self, head: usize, position: usize) -> f32 {
        self.plan.query_scale(self.heads, head, position)
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
/// scale, among whole sequences: `[tokens, heads x size]`. Queries and keys have turned.
pub(super) fn attend(
    attention: &Attention<'_>,
    batch: &Batch,
    query: Part<'_>,
    key: Part<'_>,
    value: Part<'_>,
) -> Vec<f32> {
    let Attention { heads, plan, .. } = *attention;
    let width = heads.query * heads.size;
    let mut out = vec![0.0; batch.tokens() * width];
    // The position of each token, and the tokens that it sees.
    let seen: Vec<_> = batch
        .places()
        .flat_map(|(sequence, place)| {
            place.clone().zip(sequence.position..).map(move |(token, position)| {
                let first = plan.first_seen(position).saturating_sub(sequence.position) + place.start;
                let seen = if plan.reach == Reach::Full { place.clone() } else { first..token + 1 };
                (position, seen)
            })
        })
        .collect();
    let each = |scores: &mut Vec<f32>, (token, out): (usize, &mut [f32])| {
        let (position, seen) = &seen[token];
        for (head, out) in out.chunks_exact_mut(heads.size).enumerate() {
            let shared = head / (heads.query / heads.key_value);
            let query = query.head(token, head, heads.size);
            let scale = attention.scale(head, *position);
            scores.resize(seen.len(), 0.0);
            for (at, score) in seen.clone().zip(scores.iter_mut()) {
                let score = slice::from_mut(score);
                functions::scores(query, key.head(at, shared, heads.size), scale, score);
            }
            functions::softmax(scores);
            for (at, weight) in seen.clone().zip(scores.iter()) {
                functions::add_weighted(slice::from_ref(weight), value.head(at, shared, heads.size), out);
            }
        }
    };
    out.par_chunks_mut(width).enumerate().with_min_len(4).for_each_init(Vec::new, each);
    out
}
