//! How far each layer moved from a base to a fine-tune, from a comparison of their tensors.

use std::collections::BTreeMap;

use deltaloom::{DiffReport, Error, Result, Squares, TensorDiff};
use serde::Serialize;

/// The layers of a fine-tune.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Moved {
    /// One entry per layer, by number.
    pub layers: Vec<MovedLayer>,
    /// Numbers of the layers, the one that moved least first.
    pub by_all: Vec<usize>,
    /// The same by queries and keys alone; `None` if their matrices are not apart.
    pub by_qk: Option<Vec<usize>>,
    /// Rank correlation of the two measures over the layers.
    pub rank_correlation: Option<f64>,
}

/// How far a layer moved.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MovedLayer {
    /// Its number, from 0.
    pub layer: usize,
    /// L2 norm of the change over that of the base, of all its matrices together.
    pub relative_l2: f64,
    /// The same of the matrices of queries and keys.
    pub relative_l2_qk: Option<f64>,
    /// Share of the elements of its matrices whose bits differ.
    pub changed_fraction: f64,
}

/// The first layers of a ranking, in ascending order.
#[must_use]
pub fn stillest(ranking: &[usize], count: usize) -> Vec<usize> {
    let mut first: Vec<usize> = ranking.iter().take(count).copied().collect();
    first.sort_unstable();
    first
}

/// Sums over the matrices of a layer.
#[derive(Default)]
struct Sums {
    all: Squares,
    qk: Option<Squares>,
    changed: f64,
    elems: f64,
}

/// Adds up, layer by layer, how far the matrices of a fine-tune moved.
///
/// # Errors
/// [`Error::InvalidArgument`] if the two have other layers or shapes, if no layer moved, or if
/// weights are not numbers.
pub fn moved(report: &DiffReport) -> Result<Moved> {
    let wrong = |what: String| Err(Error::InvalidArgument(what));
    let mut layers: BTreeMap<usize, Sums> = BTreeMap::new();
    for tensor in report.tensors.iter().filter(|tensor| tensor.shape.len() == 2) {
        let Some(layer) = layer_of(&tensor.name) else { continue };
        let Some(squares) = tensor.squares else {
            if tensor.changed_fraction.is_some() {
                return wrong(format!("weights of layer {layer} are not finite numbers"));
            }
            return wrong(format!(
                "{:?} is in only one of the two, or has another shape or dtype in the second: \
                 only a fine-tune of the same shape can be compared layer by layer",
                tensor.name
            ));
        };
        layers.entry(layer).or_default().add(tensor, squares);
    }
    if layers.is_empty() {
        return wrong("no layers: matrices with names such as model.layers.0.mlp.up_proj.weight".to_owned());
    }
    if let Some((missing, _)) = (0..).zip(layers.keys()).find(|(number, layer)| *number != **layer) {
        return wrong(format!("there are layers, and none with the number {missing}"));
    }
    if layers.values().all(|sums| sums.all.difference == 0.0) {
        return wrong("no layer moved: the matrices of all layers are those of the base".to_owned());
    }
    let layers: Vec<MovedLayer> = layers.iter().map(|(layer, sums)| sums.result(*layer)).collect();
    if let Some(layer) = layers.iter().find(|layer| !layer.is_finite()) {
        return wrong(format!("weights of layer {} are not finite numbers", layer.layer));
    }
    let all: Vec<f64> = layers.iter().map(|layer| layer.relative_l2).collect();
    let qk: Option<Vec<f64>> = layers.iter().map(|layer| layer.relative_l2_qk).collect();
    Ok(Moved {
        by_all: ranking(&all),
        by_qk: qk.as_deref().map(ranking),
        rank_correlation: qk.and_then(|qk| rank_correlation(&all, &qk)),
        layers,
    })
}

impl Sums {
    fn add(&mut self, tensor: &TensorDiff, squares: Squares) {
        let add = |sum: &mut Squares| {
            sum.first += squares.first;
            sum.difference += squares.difference;
        };
        add(&mut self.all);
        if is_query_or_key(&tensor.name) {
            add(self.qk.get_or_insert_default());
        }
        let elems = tensor.shape.iter().map(|size| *size as f64).product::<f64>();
        self.changed += elems * tensor.changed_fraction.unwrap_or(0.0);
        self.elems += elems;
    }

    fn result(&self, layer: usize) -> MovedLayer {
        let relative = |squares: Squares| (squares.difference / squares.first).sqrt();
        MovedLayer {
            layer,
            relative_l2: relative(self.all),
            relative_l2_qk: self.qk.map(relative),
            changed_fraction: self.changed / self.elems,
        }
    }
}

impl MovedLayer {
    fn is_finite(&self) -> bool {
        self.relative_l2.is_finite() && self.relative_l2_qk.is_none_or(f64::is_finite)
    }
}

/// The number of the layer in a name of Hugging Face or GGUF.
fn layer_of(name: &str) -> Option<usize> {
    let mut parts = name.split('.');
    parts.find(|part| matches!(*part, "layers" | "layer" | "h" | "blk" | "blocks"))?;
    parts.next()?.parse().ok()
}

fn is_query_or_key(name: &str) -> bool {
    name.split('.').any(|part| matches!(part, "q_proj" | "k_proj" | "attn_q" | "attn_k"))
}

/// Numbers from the smallest value to the largest; equal values by their number.
pub(super) fn ranking(values: &[f64]) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..values.len()).collect();
    numbers.sort_by(|a, b| values[*a].total_cmp(&values[*b]).then(a.cmp(b)));
    numbers
}

/// Spearman's rank correlation; `None` for fewer than two values.
fn rank_correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let ranks = |values: &[f64]| {
        let mut ranks = vec![0.0; values.len()];
        ranking(values).into_iter().enumerate().for_each(|(rank, number)| ranks[number] = rank as f64);
        ranks
    };
    let n = a.len() as f64;
    let squares: f64 = ranks(a).iter().zip(ranks(b)).map(|(a, b)| (a - b).powi(2)).sum();
    (a.len() > 1).then(|| 1.0 - 6.0 * squares / (n * (n * n - 1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_layer() {
        for (name, layer, qk) in [
            ("model.layers.12.self_attn.q_proj.weight", Some(12), true),
            ("blk.3.attn_k.weight", Some(3), true),
            ("transformer.h.0.attn.c_attn.weight", Some(0), false),
            ("model.layers.1.self_attn.k_norm.weight", Some(1), false),
            ("model.embed_tokens.weight", None, false),
            ("layers.x.weight", None, false),
        ] {
            assert_eq!((layer_of(name), is_query_or_key(name)), (layer, qk), "{name}");
        }
    }

    #[test]
    fn ranks_are_of_values() {
        assert_eq!(ranking(&[3.0, 1.0, 2.0, 1.0]), [1, 3, 2, 0]);
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[1.0, 2.0, 9.0]), Some(1.0));
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), Some(-1.0));
        assert_eq!(rank_correlation(&[1.0], &[3.0]), None);
    }
}
