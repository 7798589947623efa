//! What it costs to replace the plan of one layer, measured on a text.

use deltaloom::{Error, Result};

use super::losses::{Measuring, losses, whole};
use super::moved::{ranking, stillest};
use super::tester::starts;
use crate::layer::AttentionPlan;
use crate::model::Model;

/// For each layer, the loss with its second plan less that with the first one, in nats per token.
/// All other layers have their first plan. Sequences have `trained` tokens, and about `tokens` all
/// together.
///
/// # Errors
/// [`Error::InvalidArgument`] for a text that is too short; errors of [`Model::forward`].
pub fn sensitivities(
    model: Model,
    ids: &[u32],
    tokens: usize,
    trained: usize,
    plans: &[[AttentionPlan; 2]],
    how: &Measuring<'_>,
) -> Result<(Model, Vec<f64>)> {
    let count = (tokens / trained).max(1);
    if ids.len() < trained + count {
        let what = format!("{} token ids: {count} sequences of {trained} need more", ids.len());
        return Err(Error::InvalidArgument(what));
    }
    let starts = starts(ids.len(), trained, count);
    let sequences: Vec<&[u32]> = starts.iter().map(|start| &ids[*start..=start + trained]).collect();
    let before: Vec<AttentionPlan> = plans.iter().map(|[before, _]| before.clone()).collect();
    let original: Vec<AttentionPlan> = model.attention().cloned().collect();
    let loss = |model: Model, plans: Vec<AttentionPlan>| -> Result<(Model, f64)> {
        let mut model = model.with_attention(plans)?;
        let found = losses(&mut model, &sequences, &whole(trained), how, &mut |_| Ok(()))?;
        let sum: f64 = found.iter().flatten().sum();
        Ok((model, sum / (count * trained) as f64))
    };
    let (mut model, unchanged) = loss(model, before.clone())?;
    let mut costs = Vec::with_capacity(plans.len());
    for (layer, [_, after]) in plans.iter().enumerate() {
        let mut plans = before.clone();
        plans[layer] = after.clone();
        let found;
        (model, found) = loss(model, plans)?;
        costs.push(found - unchanged);
    }
    Ok((model.with_attention(original)?, costs))
}

/// The layers with the least costs, in ascending order.
#[must_use]
pub fn least(costs: &[f64], count: usize) -> Vec<usize> {
    stillest(&ranking(costs), count)
}
