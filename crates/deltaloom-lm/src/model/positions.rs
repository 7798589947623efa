//! A table of learned positions, a row of which is added to the embedding of each token, and how it
//! goes on behind its last row.

use crate::layer::MAX_POSITIONS;
use deltaloom::{Error, Result};

/// A table of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct PositionTable {
    /// Number of positions that have a row.
    pub positions: usize,
    /// The row of position 0.
    pub first_row: usize,
    /// How it goes on, if it does.
    pub extension: Option<Extension>,
}

/// A longer table of positions that is computed from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extension {
    /// The rule.
    pub extend: Extend,
    /// Number of positions that it has.
    pub target: usize,
}

/// How a longer table is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Extend {
    /// The last row stands for all positions behind it.
    Repeat,
    /// All positions lie evenly between the first and the last row: none but these two stays.
    Interpolate,
    /// The table begins again.
    Tile,
    /// Row `i L + j` of a table of `L` rows is `p(j) + c (p(i) - p(0))` with `c` of 2/3: the
    /// hierarchy of Su with his alpha of 0.4. It ends at the square of `L`.
    Hierarchical,
}

/// `row(base) + share * (row(to) - row(from))`; a share of 0 is the row itself.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Blend {
    base: usize,
    share: f32,
    to: usize,
    from: usize,
}

impl PositionTable {
    /// A table as it is.
    #[must_use]
    pub fn new(positions: usize, first_row: usize) -> Self {
        Self { positions, first_row, extension: None }
    }

    /// Number of rows of the tensor.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.positions.saturating_add(self.first_row)
    }

    /// Number of positions, with those that are computed.
    #[must_use]
    pub fn end(&self) -> usize {
        self.extension.map_or(self.positions, |extension| extension.target)
    }

    /// The same table with another extension, or without one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a length that is not longer, or that the rule does not reach.
    pub fn with_extension(self, extension: Option<Extension>) -> Result<Self> {
        let wrong = |what: String| Err(Error::InvalidArgument(what));
        if let Some(Extension { extend, target }) = extension {
            let length = self.positions;
            if target <= length {
                return wrong(format!("a table of {length} positions: {target} is no extension of it"));
            }
            if target > MAX_POSITIONS {
                return wrong(format!("{target} positions: at most {MAX_POSITIONS} are computed"));
            }
            let square = length.saturating_mul(length);
            if extend == Extend::Hierarchical && target > square {
                return wrong(format!("a hierarchy of {length} positions ends at {square}, not {target}"));
            }
        }
        Ok(Self { extension, ..self })
    }

    /// What a position is made of.
    #[expect(clippy::cast_possible_truncation, reason = "rows are FP32")]
    fn blend(&self, position: usize) -> Blend {
        /// alpha / (1 - alpha), with alpha of 0.4.
        const HIERARCHY: f32 = 2.0 / 3.0;
        let length = self.positions.max(1);
        let plain = |row: usize| Blend { base: row, share: 0.0, to: row, from: row };
        let blend = match self.extension.map(|it| (it.extend, it.target)) {
            None => plain(position),
            Some((Extend::Repeat, _)) => plain(position.min(length - 1)),
            Some((Extend::Tile, _)) => plain(position % length),
            Some((Extend::Hierarchical, _)) if position < length => plain(position),
            Some((Extend::Hierarchical, _)) => {
                Blend { base: position % length, share: HIERARCHY, to: position / length, from: 0 }
            }
            Some((Extend::Interpolate, target)) => {
                let (scaled, steps) = (position.saturating_mul(length - 1), target.max(2) - 1);
                let (base, rest) = (scaled / steps, scaled % steps);
                let share = (rest as f64 / steps as f64) as f32;
                Blend { base, share, to: (base + 1).min(length - 1), from: base }
            }
        };
        let row = |row: usize| row + self.first_row;
        Blend { base: row(blend.base), to: row(blend.to), from: row(blend.from), ..blend }
    }

    /// Adds its rows to `x`, the embeddings `[tokens, width]` of tokens at these positions.
    /// `gather` gives rows of the tensor by number, `[tokens, width]`.
    pub(crate) fn add(
        &self,
        positions: impl Iterator<Item = usize>,
        gather: impl Fn(&[usize]) -> Result<Vec<f32>>,
        x: &mut [f32],
    ) -> Result<()> {
        let blends: Vec<Blend> = positions.map(|position| self.blend(position)).collect();
        let rows = |of: fn(&Blend) -> usize| gather(&blends.iter().map(of).collect::<Vec<_>>());
        let mut table = rows(|blend| blend.base)?;
        if blends.iter().any(|blend| blend.share != 0.0) {
            let (to, from) = (rows(|blend| blend.to)?, rows(|blend| blend.from)?);
            let width = table.len() / blends.len();
            for (number, blend) in blends.iter().enumerate().filter(|(_, blend)| blend.share != 0.0) {
                for i in number * width..(number + 1) * width {
                    table[i] += blend.share * (to[i] - from[i]);
                }
            }
        }
        x.iter_mut().zip(table).for_each(|(x, of_position)| *x += of_position);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 3;

    /// The rows of the table of 4 positions behind 2 others, and of a longer one.
    fn rows(extension: Option<Extension>, positions: usize) -> Vec<Vec<f32>> {
        let table = PositionTable::new(4, 2).with_extension(extension).unwrap();
        let of = |row: usize, i: usize| (row * row + 5 * i) as f32 + 0.1;
        let gather =
            |rows: &[usize]| Ok(rows.iter().flat_map(|row| (0..WIDTH).map(|i| of(*row, i))).collect());
        let mut x = vec![0.0; positions * WIDTH];
        table.add(0..positions, gather, &mut x).unwrap();
        x.chunks(WIDTH).map(<[f32]>::to_vec).collect()
    }

    #[test]
    fn longer_tables_are_those_of_the_formulas() {
        let plain = rows(None, 4);
        let longer = |extend| rows(Some(Extension { extend, target: 13 }), 13);
        for extend in [Extend::Repeat, Extend::Tile, Extend::Hierarchical] {
            assert_eq!(longer(extend)[..4], plain, "{extend:?}");
        }
        assert!(longer(Extend::Repeat)[4..].iter().all(|row| *row == plain[3]));
        assert_eq!(longer(Extend::Tile)[4..12], [&plain[..], &plain].concat());
        // u(k) = (p(k) - a p(0)) / (1 - a), and row i L + j is a u(i) + (1 - a) u(j).
        let hierarchy = longer(Extend::Hierarchical);
        for (number, row) in hierarchy.iter().enumerate() {
            for (i, found) in row.iter().enumerate() {
                let unit = |k: usize| f64::from(plain[k][i]) - 0.4 * f64::from(plain[0][i]);
                let wanted = (0.4 * unit(number / 4) + 0.6 * unit(number % 4)) / 0.6;
                assert!((f64::from(*found) - wanted).abs() < 1e-5, "{number} {found} {wanted}");
            }
        }
        // 12 steps over 3 of the table: every fourth is a row of it.
        let between = longer(Extend::Interpolate);
        for (number, row) in between.iter().enumerate() {
            if number % 4 == 0 {
                assert_eq!(*row, plain[number / 4]);
            }
        }
        assert!((between[1][0] - (0.75 * plain[0][0] + 0.25 * plain[1][0])).abs() < 1e-6);
    }

    #[test]
    fn impossible_lengths_are_refused() {
        let table = PositionTable::new(4, 2);
        let of = |extend, target| table.with_extension(Some(Extension { extend, target }));
        for (extend, target, words) in [
            (Extend::Repeat, 4, "no extension"),
            (Extend::Interpolate, 0, "no extension"),
            (Extend::Tile, MAX_POSITIONS + 1, "at most"),
            (Extend::Hierarchical, 17, "ends at 16"),
        ] {
            let error = of(extend, target).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(of(Extend::Hierarchical, 16).unwrap().end(), 16);
        assert_eq!((table.end(), table.rows()), (4, 6));
    }
}
