//! Rotary positions (Su et al., 2021) in the half-split convention of Hugging Face's LLaMA: element
//! `i` of a head and element `i + size / 2` form a pair. In FP32, which the models were trained
//! with.

use std::iter;

use deltaloom_kernels::functions;

use super::batch::Batch;
use super::config::LayerConfig;
use super::plan::{NormPlace, Positions};
use super::spans::KeyMap;
use super::table::Table;

/// The rotary positions of layers that have the same ones.
#[derive(Debug, PartialEq)]
pub(crate) struct Rotary {
    theta: f32,
    /// `None` for layers without positions.
    table: Option<Table>,
    /// The factor of cosines and sines.
    factor: f32,
    /// Number of elements of a head.
    size: usize,
    is_late: bool,
    /// Radians per position of each table that is known so far.
    rates: Vec<Vec<f32>>,
    /// For those that turn late, the cosines and then the sines of each position from 0 on, by
    /// table.
    rows: Vec<Vec<f32>>,
}

/// When the queries and keys of a layer turn.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Turning<'a> {
    /// Never.
    Never,
    /// Before keys are stored: cosine and sine for every token and pair, `[tokens, pairs]`.
    Early(&'a [[f32; 2]]),
    /// When they are read.
    Late(&'a Rotary),
}

impl Rotary {
    #[expect(clippy::cast_possible_truncation, reason = "turns are FP32")]
    pub(crate) fn of(config: &LayerConfig) -> Self {
        let plan = &config.attention;
        let (theta, table) = match &plan.positions {
            Positions::None => (1.0, None),
            Positions::Rotary { theta, table, .. } => (*theta, Some(table.clone())),
        };
        // A norm behind it takes the factor away.
        let is_normed = plan.qk_norm.as_ref().is_some_and(|norm| norm.place == NormPlace::After);
        let factor = table.as_ref().filter(|_| !is_normed).map_or(1.0, Table::attention_factor);
        let size = config.head_size;
        let rates = table.iter().map(|table| table.rates(theta, size, 0)).collect();
        let is_late = plan.turns_late();
        Self { theta, table, factor: factor as f32, size, is_late, rates, rows: Vec::new() }
    }

    /// Whether both turn alike.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        (self.theta, &self.table, self.factor) == (other.theta, &other.table, other.factor)
            && (self.size, self.is_late) == (other.size, other.is_late)
    }

    /// Computes what the keys of sequences of this many tokens need.
    pub(crate) fn prepare(&mut self, tokens: usize) {
        let Some(table) = self.table.as_ref().filter(|_| self.is_late && tokens > 0) else { return };
        for number in 0..=table.number(tokens - 1) {
            if self.rates.len() == number {
                self.rates.push(table.rates(self.theta, self.size, number));
            }
            if self.rows.len() == number {
                self.rows.push(Vec::new());
            }
            let known = self.rows[number].len() / self.size;
            let needed = table.longest(number).map_or(tokens, |longest| longest.min(tokens));
            for position in known..needed {
                let turns = self.turns(number, position);
                self.rows[number].extend(turns);
            }
        }
    }

    /// Cosines, then sines.
    fn turns(&self, number: usize, position: usize) -> Vec<f32> {
        let turns = self.rates[number].iter().map(|rate| turn(position, *rate, self.factor));
        let (cos, sin): (Vec<f32>, Vec<f32>) = turns.map(|[cos, sin]| (cos, sin)).unzip();
        [cos, sin].concat()
    }

    /// The number of the table for the query at this position.
    pub(super) fn table(&self, position: usize) -> usize {
        self.table.as_ref().map_or(0, |table| table.number(position))
    }

    /// Adds the turns of a query to others.
    pub(super) fn push_query(&self, number: usize, position: usize, to: &mut Vec<f32>) {
        match self.rows[number].get(position * self.size..(position + 1) * self.size) {
            Some(row) => to.extend_from_slice(row),
            None => to.extend(self.turns(number, position)),
        }
    }

    /// Turns the keys from position `first` on, `[keys, size]`.
    pub(super) fn turn_keys(
        &self,
        number: usize,
        map: KeyMap,
        first: usize,
        keys: &[f32],
        places: &mut Vec<usize>,
        out: &mut [f32],
    ) {
        places.clear();
        places.extend((first..first + keys.len() / self.size).map(|position| map.of(position)));
        functions::turn(&self.rows[number], places, keys, out);
    }

    /// Cosine and sine for every token and pair, `[tokens, pairs]`, if they turn early.
    pub(crate) fn early(&self, batch: &Batch) -> Vec<[f32; 2]> {
        let Some(rates) = self.rates.first().filter(|_| !self.is_late) else { return Vec::new() };
        let of_token = |position| rates.iter().map(move |rate| turn(position, *rate, self.factor));
        batch
            .sequences()
            .iter()
            .flat_map(|sequence| sequence.position..sequence.position + sequence.tokens)
            .flat_map(of_token)
            .collect()
    }

    /// When queries and keys turn, given what [`Self::early`] says.
    pub(crate) fn turning<'a>(&'a self, early: &'a [[f32; 2]]) -> Turning<'a> {
        match (self.is_late, &self.table) {
            (true, _) => Turning::Late(self),
            (false, None) => Turning::Never,
            (false, Some(_)) => Turning::Early(early),
        }
    }
}

fn turn(position: usize, rate: f32, factor: f32) -> [f32; 2] {
    let (sin, cos) = libm::sincosf(position as f32 * rate);
    [factor * cos, factor * sin]
}

/// Turns the heads in the first `width` of each `stride` elements.
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
