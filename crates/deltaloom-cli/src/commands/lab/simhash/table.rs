//! The tables of `deltaloom lab simhash`.

use std::path::PathBuf;

use deltaloom_lab::simhash::measure::{MethodReport, SimHashReport};
use deltaloom_lab::simhash::{DuplicatePair, IndexReport};

use super::super::cells;
use crate::ui::table::{Cell, Table};

/// A row for each method.
pub(super) fn methods(report: &SimHashReport) -> Table<'_, MethodReport> {
    let nmse = |of: fn(&MethodReport) -> Option<f64>| {
        move |row: &MethodReport| Cell::maybe(of(row), |value| Cell::power(value, 2))
    };
    let time = |of: fn(&MethodReport) -> Option<f64>| {
        let us = |seconds: f64| Cell::number(seconds, format!("{:.1} us", seconds * 1e6));
        move |row: &MethodReport| Cell::maybe(of(row), us)
    };
    Table::of(&report.methods)
        .both("method", "method", |row| Cell::text(&*row.method))
        .exact("kind", |row| Cell::text(row.kind.words()))
        .both("bits/weight", "bits_per_weight", |row| Cell::fixed(row.bits_per_weight, 2))
        .both("read/token", "read_bits_per_weight", |row| Cell::fixed(row.read_bits_per_weight, 2))
        .both("NMSE", "nmse", nmse(|row| row.nmse))
        .both("predicted", "predicted_nmse", nmse(|row| row.predicted_nmse))
        .exact("output_nmse", nmse(|row| row.output_nmse))
        .both("time", "seconds", time(|row| row.seconds))
        .both("hashing", "hash_seconds", time(|row| row.hash_seconds))
        .both("x exact", "time_ratio", |row| Cell::maybe(row.time_ratio, |ratio| Cell::fixed(ratio, 2)))
        .both("frontier", "on_frontier", |row| cells::yes(row.on_frontier))
        .exact("rival", |row| Cell::maybe(row.rival.as_deref(), Cell::text))
        .exact("error_over_rival", |row| Cell::maybe(row.error_over_rival, |ratio| Cell::fixed(ratio, 1)))
        .shown("error / best quantised of its size", |row| {
            let rival = row.rival.as_ref().zip(row.error_over_rival);
            Cell::maybe(rival, |(name, ratio)| Cell::text(format!("{ratio:.1} x {name}")))
        })
}

/// A row for each pair of near-duplicates.
pub(super) fn pairs<'a>(report: &'a IndexReport, names: &[PathBuf]) -> Table<'a, DuplicatePair> {
    let name = |i: usize| names.get(i).map_or_else(String::new, |path| path.display().to_string());
    let full = |i: usize, tensor: &str| Cell::text(format!("{}: {tensor}", name(i)));
    Table::of(&report.pairs)
        .shown("tensor", |pair| full(pair.first_checkpoint, &pair.first_tensor))
        .shown("nearest", |pair| full(pair.second_checkpoint, &pair.second_tensor))
        .exact("first_checkpoint", |pair| Cell::text(name(pair.first_checkpoint)))
        .exact("first_tensor", |pair| Cell::text(&*pair.first_tensor))
        .exact("second_checkpoint", |pair| Cell::text(name(pair.second_checkpoint)))
        .exact("second_tensor", |pair| Cell::text(&*pair.second_tensor))
        .both("bits apart", "distance", |pair| Cell::count(pair.distance))
        .both("estimated cosine", "similarity", |pair| Cell::fixed(pair.similarity, 4))
        .both("cosine of samples", "sample_cosine", |pair| {
            Cell::maybe(pair.sample_cosine, |cosine| Cell::fixed(cosine, 6))
        })
        .exact("exact", |pair| cells::yes(pair.exact))
        .shown("", |pair| Cell::text(if pair.exact { "exact duplicate" } else { "near" }))
}
