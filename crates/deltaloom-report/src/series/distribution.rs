//! Sections about the weights of one checkpoint: their histogram and the entropy of their fields.
//! `deltaloom::weights` does the counting.

use super::section;
use crate::figure::{Arrangement, Axis, Bar, Bars, Figure, Histogram, Unit};
use crate::page::{Cell, Section, Table};
use crate::svg::human;
use deltaloom::WeightStatistics;

pub(super) fn distribution(weights: &WeightStatistics) -> Section {
    let sampled = weights.sampled_elems.max(1) as f64;
    let heights: Vec<f64> = weights.counts.iter().map(|count| *count as f64 / sampled).collect();
    let mut table = Table::new(&["from", "to", "weights"]);
    for (edges, height) in weights.edges.windows(2).zip(&heights) {
        let edge = |value| Cell::Value(value, Unit::Number);
        table.rows.push(vec![edge(edges[0]), edge(edges[1]), Cell::Value(*height, Unit::Percent)]);
    }
    let number = |value: f64| human(value, Unit::Number);
    let percent = |value: f64| human(value, Unit::Percent);
    let text = format!(
        "{} of {} {} elements of the newest step, taken from every tensor. Mean {}, standard deviation {}; {} are zero, {} lie outside the picture, {} are not finite.",
        number(weights.sampled_elems as f64),
        number(weights.elems as f64),
        weights.dtype,
        number(weights.mean),
        number(weights.deviation),
        percent(weights.zero_fraction),
        percent(weights.outside as f64 / sampled),
        percent(weights.non_finite_fraction),
    );
    let chart = Histogram {
        x: Axis::linear("weight", Unit::Number),
        y: Axis::linear("share of weights", Unit::Percent),
        edges: weights.edges.clone(),
        heights,
    };
    section("Weights", text, Figure::Histogram(chart), table)
}

pub(super) fn fields(weights: &WeightStatistics) -> Section {
    let mut table = Table::new(&["field", "stored bits", "entropy in bits"]);
    let mut bars = Vec::new();
    let (mut stored, mut entropy) = (0, 0.0);
    for field in &weights.fields {
        table.rows.push(vec![
            Cell::text(field.name.as_str()),
            Cell::Value(f64::from(field.stored_bits), Unit::Number),
            Cell::Value(field.entropy_bits, Unit::Number),
        ]);
        bars.push(Bar {
            name: field.name.clone(),
            values: vec![field.entropy_bits / f64::from(field.stored_bits.max(1))],
        });
        stored += field.stored_bits;
        entropy += field.entropy_bits;
    }
    let text = format!(
        "Entropy of each field of {} by the frequencies of its values alone: {} of {stored} bits in all. Mantissa bits are counted from the most significant one.",
        weights.dtype,
        human(entropy, Unit::Number),
    );
    let chart = Bars {
        axis: Axis::linear("entropy / stored bits", Unit::Percent),
        parts: vec!["entropy".to_owned()],
        bars,
        arrangement: Arrangement::Stacked,
    };
    section("Bits that carry information", text, Figure::Bars(chart), table)
}
