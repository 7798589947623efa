//! Results of one run of the comparison, as data with stable names. It draws nothing.

use serde::Serialize;

use deltaloom_compute::Times;

/// The report of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MatmulReport {
    /// Where the matrix comes from.
    pub source: String,
    /// Whether it was generated from a seed.
    pub is_made: bool,
    /// Its name.
    pub tensor: String,
    /// Number of rows: the length of a result.
    pub rows: usize,
    /// Number of columns: the length of an activation.
    pub cols: usize,
    /// BF16 or F32.
    pub dtype: &'static str,
    /// Bytes of the matrix.
    pub weight_bytes: u64,
    /// Elements that differ from the base.
    pub changed_elems: u64,
    /// Their fraction.
    pub changed_fraction: f64,
    /// Instruction set.
    pub isa: &'static str,
    /// Number of threads.
    pub threads: usize,
    /// Number of rounds behind each median.
    pub rounds: usize,
    /// Median bandwidth of copying the bytes of the matrix, in bytes copied per second.
    pub memcpy_bytes_per_second: f64,
    /// The ways, with their memory.
    pub ways: Vec<WayReport>,
    /// Every product that was measured.
    pub products: Vec<ProductReport>,
    /// The goals for which this run has a result.
    pub goals: Vec<Goal>,
    /// Whether every product was right.
    pub verified: bool,
}

/// A way of multiplying.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WayReport {
    /// Its name.
    pub way: &'static str,
    /// dense, ours, part or zstd.
    pub group: &'static str,
    /// Bytes of memory without the base.
    pub resident_bytes: Option<u64>,
    /// Their fraction of the bytes of the matrix.
    pub resident_fraction: Option<f64>,
    /// Why the matrix cannot have this form.
    pub missing: Option<String>,
}

/// The products of one way, in one mode, with one token count.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProductReport {
    /// Name of the way.
    pub way: &'static str,
    /// fast, exact or exact16.
    pub mode: &'static str,
    /// Number of tokens.
    pub tokens: usize,
    /// Median over the rounds: processor time on one thread, wall time on several.
    pub median_seconds: f64,
    /// Median over the rounds of the ratio to raw in the same round.
    pub times_raw: Option<f64>,
    /// Bytes of the dense matrix per second, from the median.
    pub weight_bytes_per_second: f64,
    /// Two operations for each weight and token, per second, from the median.
    pub flops_per_second: f64,
    /// Seconds in each phase, as wall time of the fastest of a few separate runs, because reading
    /// the clock takes time.
    pub phases: Times,
    /// Largest error, as a fraction of the sum of the absolute products; 0 if all bits are equal.
    pub error: f64,
    /// Whether the product was right.
    pub verified: bool,
}

impl MatmulReport {
    /// Finds a measured product.
    #[must_use]
    pub fn product(&self, way: &str, mode: &str, tokens: usize) -> Option<&ProductReport> {
        self.products.iter().find(|row| row.way == way && row.mode == mode && row.tokens == tokens)
    }
}

/// A goal and the run's result for it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Goal {
    /// Name.
    pub goal: &'static str,
    /// What is compared with what.
    pub measures: String,
    /// What was measured.
    pub measured: f64,
    /// Whether the limit is a minimum rather than a maximum.
    pub is_minimum: bool,
    /// The limit.
    pub limit: f64,
    /// Whether the goal is reached.
    pub reached: bool,
    /// Whether the goal was set for matrices like this one.
    pub is_about_this_matrix: bool,
}
