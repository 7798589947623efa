//! Least squares with a few unknowns, and snapping to numbers that people use.
//! The callers decide what is fitted.

/// Sums of products of rows. The last number of a row is the one to approximate.
pub(super) struct NormalEquations {
    /// One line for every unknown, followed by its right side.
    lines: Vec<Vec<f64>>,
}

impl NormalEquations {
    pub(super) fn new(unknowns: usize) -> Self {
        Self { lines: vec![vec![0.0; unknowns + 1]; unknowns] }
    }

    /// Adds a row, unless one of its numbers is not finite.
    pub(super) fn add(&mut self, row: &[f64]) {
        if row.iter().any(|x| !x.is_finite()) {
            return;
        }
        for (line, a) in self.lines.iter_mut().zip(row) {
            line.iter_mut().zip(row).for_each(|(sum, b)| *sum += a * b);
        }
    }

    /// Solves them by elimination. Unknowns without influence are 0.
    pub(super) fn solve(self) -> Vec<f64> {
        let mut lines = self.lines;
        let count = lines.len();
        let scale: Vec<f64> = (0..count).map(|k| lines[k][k]).collect();
        for k in 0..count {
            if lines[k][k].abs() <= scale[k] * 1e-12 {
                lines[k].fill(0.0);
                lines[k][k] = 1.0;
            }
            let pivot = lines[k].clone();
            for (_, line) in lines.iter_mut().enumerate().filter(|(other, _)| *other != k) {
                let factor = line[k] / pivot[k];
                line.iter_mut().zip(&pivot).skip(k).for_each(|(x, pivot)| *x -= factor * pivot);
            }
        }
        (0..count).map(|k| lines[k][count] / lines[k][k]).collect()
    }
}

/// The nearest multiple of a step.
pub(super) fn snap(number: f64, step: f64) -> f64 {
    // Dividing gives the number that people write: 3 / 10, not 3 times a tenth.
    (number / step).round() / (1.0 / step).round()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systems_are_solved_and_what_depends_left_out() {
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-12);
        // Rows of two regressors and a goal.
        let solve = |rows: &[[f64; 3]]| {
            let mut equations = NormalEquations::new(2);
            rows.iter().for_each(|row| equations.add(row));
            equations.solve()
        };
        assert!(close(&solve(&[[2.0, 1.0, 5.0], [0.0, 1.0, 1.5], [1.0, 0.0, 1.75]]), &[1.75, 1.5]));
        assert!(close(&solve(&[[2.0, 2.0, 4.0], [f64::NAN, 1.0, 1.0]]), &[2.0, 0.0]));
        assert!(close(&solve(&[[0.0, 2.0, 1.0]]), &[0.0, 0.5]));
        assert!(NormalEquations::new(0).solve().is_empty());
    }
}
