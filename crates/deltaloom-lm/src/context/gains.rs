//! The gains of queries with which a norm of queries and keys keeps the size of scores, measured on
//! a text.

use deltaloom::{Error, Result};
use deltaloom_kernels::functions;
use rayon::prelude::*;

use super::losses::Measuring;
use super::tester::starts;
use crate::layer::{Layer, LayerConfig, QkNorm};
use crate::model::{Chunk, Model};

/// Sums over the pairs of a query and a key that it sees: squares of their products as they are,
/// and with the norm.
type Squares = [f64; 2];

/// For each layer, a gain of each query head: the root of the mean square of the products of
/// queries and keys as the model has them, over that with `norm`. About `tokens` tokens are read,
/// in sequences of at most `trained`. Gains have four digits.
///
/// # Errors
/// [`Error::InvalidArgument`] for a text that is too short, for layers that cannot have such a
/// norm, for positions that depend on the query, and for products that are all 0 or not finite;
/// errors of [`Model::forward`].
pub fn gains(
    model: &mut Model,
    ids: &[u32],
    tokens: usize,
    trained: usize,
    norm: &QkNorm,
    how: &Measuring<'_>,
) -> Result<Vec<Vec<f32>>> {
    let window = trained.min(tokens).max(1);
    let count = (tokens / window).max(1);
    if ids.len() < window.saturating_mul(count).saturating_add(2) {
        let what = format!("{} token ids: {count} sequences of {window} need more", ids.len());
        return Err(Error::InvalidArgument(what));
    }
    let normed: Vec<LayerConfig> = model.config().layers.iter().map(|layer| with(layer, norm)).collect();
    normed.iter().try_for_each(LayerConfig::check)?;
    let mut sums: Vec<Vec<Squares>> =
        normed.iter().map(|layer| vec![Squares::default(); layer.query_heads]).collect();
    for start in starts(ids.len(), window, count) {
        let mut memory = model.memory(how.memory);
        let sequence = memory.begin(how.tenant);
        let chunk = Chunk { sequence, tokens: &ids[start..start + window] };
        model.forward_seen(&mut memory, &[chunk], how.run, |number, layer, x| {
            let own = squares(layer, x)?;
            let with_norm = squares(&Layer { config: &normed[number], ..*layer }, x)?;
            for (sum, found) in sums[number].iter_mut().zip(own.into_iter().zip(with_norm)) {
                *sum = [sum[0] + found.0, sum[1] + found.1];
            }
            Ok(())
        })?;
    }
    let gain = |layer: usize, head: usize, [own, with_norm]: Squares| {
        let gain = rounded((own / with_norm).sqrt());
        if gain > 0.0 && gain.is_finite() {
            return Ok(gain);
        }
        let what = format!("layer {layer}, head {head}: its queries and keys give a gain of {gain}");
        Err(Error::InvalidArgument(what))
    };
    let of_layer = |(layer, sums): (usize, Vec<Squares>)| {
        sums.into_iter().enumerate().map(|(head, sums)| gain(layer, head, sums)).collect()
    };
    sums.into_iter().enumerate().map(of_layer).collect()
}

fn with(layer: &LayerConfig, norm: &QkNorm) -> LayerConfig {
    layer.clone().with_attention(layer.attention.clone().with_qk_norm(Some(norm.clone())))
}

/// Four digits: more are noise of the text, and a container has a number for each head.
fn rounded(gain: f64) -> f32 {
    format!("{gain:.3e}").parse().unwrap_or(f32::NAN)
}

/// For each query head, the sum of the squares of the products of its queries with the keys that
/// they see.
fn squares(layer: &Layer<'_>, x: &[f32]) -> Result<Vec<f64>> {
    let [queries, keys] = layer.queries_and_keys(x)?;
    let LayerConfig { query_heads, key_value_heads, head_size: size, .. } = *layer.config;
    let of_head = |head: usize| {
        let key_head = head * key_value_heads / query_heads;
        let part = |values: &[f32], heads: usize, head: usize| -> Vec<f32> {
            values
                .chunks_exact(heads * size)
                .flat_map(|token| &token[head * size..][..size])
                .copied()
                .collect()
        };
        let (queries, keys) = (part(&queries, query_heads, head), part(&keys, key_value_heads, key_head));
        let mut scores = vec![0.0; keys.len() / size];
        let mut sum = 0.0;
        for (position, query) in queries.chunks_exact(size).enumerate() {
            let first = layer.config.attention.first_seen(position);
            let scores = &mut scores[first..=position];
            functions::scores(query, &keys[first * size..(position + 1) * size], 1.0, scores);
            sum += f64::from(functions::squares(scores, 0.0));
        }
        sum
    };
    Ok((0..query_heads).into_par_iter().map(of_head).collect())
}
