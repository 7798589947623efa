//! Predicts the step of an element from the rows before it and the elements to its left;
//! docs/format.md section 13. The prediction is a low-rank product that is learned along the way.
//!
//! It uses single precision in a fixed order of operations without contraction, so every machine
//! computes the same bits. Its results are contexts and predictions, never probabilities.

/// Rank of the product. Each doubling saves 4 % more on a fine-tune with an FP32 master and costs
/// four times the arithmetic.
pub(super) const RANK: usize = 24;
/// Factor by which each row's contribution to the statistics decays with every further row.
const MEMORY: f32 = 0.999;
/// Steps and predicted steps are clamped to this, in units of the chunk's scale.
pub(super) const STEP_MAX: f32 = 64.0;

type Vector = [f32; RANK];
type Matrix = [Vector; RANK];

/// Sum of products in eight sums, which are added in pairs.
#[inline(always)]
fn dot(a: &Vector, b: &Vector) -> f32 {
    let mut sums = [0f32; 8];
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]))
}

/// Product of a symmetric matrix and a vector; rows are added in order.
#[inline(always)]
fn product(matrix: &Matrix, vector: &Vector) -> Vector {
    let mut out = [0f32; RANK];
    for (row, x) in matrix.iter().zip(vector) {
        for i in 0..RANK {
            out[i] += row[i] * x;
        }
    }
    out
}

/// `matrix - (gain * by) gain^T`.
#[inline(always)]
fn downdate(matrix: &mut Matrix, gain: &Vector, by: f32) {
    for (row, x) in matrix.iter_mut().zip(gain) {
        let x = x * by;
        for i in 0..RANK {
            row[i] -= x * gain[i];
        }
    }
}

fn identity() -> Matrix {
    let mut matrix = [[0.0; RANK]; RANK];
    (0..RANK).for_each(|i| matrix[i][i] = 1.0);
    matrix
}

/// Factors of the columns, and factors of the current row as a Kalman filter estimates them from
/// left to right.
pub(super) struct StepFilter {
    columns: Vec<Vector>,
    row: Vector,
    /// Covariance of `row`.
    spread: Matrix,
    /// Sum of the outer products of the previous rows.
    rows: Matrix,
    row_count: f32,
    /// Inverse of that sum, for the least-squares fit of columns.
    inverse: Matrix,
    /// `spread` times the factors of the current column.
    gain: Vector,
}

/// A predicted step.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Foreseen {
    pub(super) step: f32,
    /// Variance of the step due to the uncertain factors.
    pub(super) variance: f32,
}

impl StepFilter {
    pub(super) fn new(cols: usize) -> Self {
        let first = |column: u64| {
            // SplitMix64: the bits are signs.
            let mut z = (column + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            std::array::from_fn(|i| if z >> i & 1 == 1 { 0.125 } else { -0.125 })
        };
        Self {
            columns: (0..cols as u64).map(first).collect(),
            row: [0.0; RANK],
            spread: identity(),
            rows: identity(),
            row_count: 1.0,
            inverse: identity(),
            gain: [0.0; RANK],
        }
    }

    pub(super) fn start_row(&mut self) {
        for i in 0..RANK {
            for k in 0..RANK {
                self.spread[i][k] = self.rows[i][k] / self.row_count;
            }
            self.spread[i][i] += 0.01;
        }
        self.row = [0.0; RANK];
    }

    #[inline(always)]
    pub(super) fn foresee(&mut self, column: usize) -> Foreseen {
        let factors = &self.columns[column];
        self.gain = product(&self.spread, factors);
        let (step, variance) = (dot(factors, &self.row), dot(factors, &self.gain));
        // Also replaces NaN.
        let step = if step.abs() <= STEP_MAX { step } else { 0.0 };
        Foreseen { step, variance: if variance > 0.0 { variance } else { 0.0 } }
    }

    /// Learns the step of the last predicted column, which was `error` above the prediction, given
    /// the noise of steps.
    #[inline(always)]
    pub(super) fn learn(&mut self, foreseen: Foreseen, error: f32, noise: f32) {
        let by = 1.0 / (foreseen.variance + noise);
        let weight = error * by;
        for i in 0..RANK {
            self.row[i] += self.gain[i] * weight;
        }
        downdate(&mut self.spread, &self.gain, by);
    }

    /// Learns the columns from the steps of a whole row; steps that are NaN carry no information.
    pub(super) fn end_row(&mut self, steps: &[f32]) {
        for i in 0..RANK {
            for k in 0..RANK {
                self.rows[i][k] = self.rows[i][k] * MEMORY + self.row[i] * self.row[k];
            }
        }
        self.row_count = self.row_count * MEMORY + 1.0;
        let gain = product(&self.inverse, &self.row);
        let by = 1.0 / (MEMORY + dot(&self.row, &gain));
        for (factors, step) in self.columns.iter_mut().zip(steps).filter(|(_, step)| !step.is_nan()) {
            let weight = (step - dot(factors, &self.row)) * by;
            for i in 0..RANK {
                factors[i] += gain[i] * weight;
            }
        }
        downdate(&mut self.inverse, &gain, by);
        for i in 0..RANK {
            for k in 0..RANK {
                self.inverse[i][k] *= 1.0 / MEMORY;
            }
        }
    }
}

/// Mean square of the prediction errors of steps: of all elements, and of the current row relative
/// to that.
pub(super) struct Noise {
    all: f32,
    row: f32,
}

impl Noise {
    pub(super) fn new() -> Self {
        Self { all: 1.0, row: 1.0 }
    }

    pub(super) fn start_row(&mut self) {
        self.row = self.row * 0.5 + 0.5;
    }

    #[inline(always)]
    pub(super) fn of_element(&self) -> f32 {
        self.all * self.row
    }

    /// Mean square of the prediction error of the next element.
    #[inline(always)]
    pub(super) fn with(&self, variance: f32) -> f32 {
        (variance + self.all) * self.row
    }

    #[inline(always)]
    pub(super) fn learn(&mut self, variance: f32, error: f32) {
        let square = error * error;
        self.all += (square / self.row - self.all) * 0.0005;
        let relative = square / (self.all + variance);
        let relative = if relative < 8.0 { relative } else { 8.0 };
        self.row += (relative - self.row) * 0.01;
        self.row = if self.row > 0.001 { self.row } else { 0.001 };
    }
}
