//! Goals for computing on packed weights. Whether a run reached them is computed from its report.
//!
//! A goal that was set for certain matrices is also computed for others, and marked as not being
//! about them.

use super::report::{Goal, MatmulReport, ProductReport};

/// Name, way, tokens, limit relative to raw, and the matrices that it is about.
const OF_RAW: [(&str, &str, usize, f64, About); 6] = [
    ("bitmap-1-token", "bitmap", 1, 2.0, About::LargeSparse),
    ("bitmap-256-tokens", "bitmap", 256, 1.05, About::LargeSparse),
    ("tiles-256-tokens", "tiles", 256, 1.3, About::FineTune),
    ("planes-256-tokens", "planes", 256, 1.3, About::FineTune),
    ("csr-differences-1-token", "csr-differences", 1, 0.3, About::SmallSparse),
    ("csr-differences-64-tokens", "csr-differences", 64, 0.12, About::SmallSparse),
];

/// Our tiles should be this many times faster than the fastest tiles of zstd, with one token.
const FASTER_THAN_ZSTD: f64 = 5.0;
/// Fraction of the memcpy bandwidth that a product with one token should reach.
const OF_BANDWIDTH: f64 = 0.8;

/// Matrices for which a goal was set.
#[derive(Clone, Copy)]
enum About {
    /// 4096 x 4096 BF16, 3 % changed.
    LargeSparse,
    /// 3072 x 768 BF16, 3 % changed.
    SmallSparse,
    /// BF16 matrices of a fine-tune.
    FineTune,
    /// BF16.
    Any,
}

impl About {
    fn is_about(self, report: &MatmulReport) -> bool {
        let has_shape = |rows, cols| {
            let is_sparse = (0.025..=0.035).contains(&report.changed_fraction);
            is_sparse && (report.rows, report.cols) == (rows, cols)
        };
        let is_so = match self {
            Self::LargeSparse => has_shape(4096, 4096),
            Self::SmallSparse => has_shape(3072, 768),
            Self::FineTune => !report.is_made,
            Self::Any => true,
        };
        is_so && report.dtype == "BF16"
    }
}

/// The goals for which a report has numbers.
pub(super) fn of(report: &MatmulReport) -> Vec<Goal> {
    // Goals are about fast products; without those, bit-exact ones are better than nothing.
    let product = |way: &str, tokens| {
        report.product(way, "fast", tokens).or_else(|| report.product(way, "exact", tokens))
    };
    let goal = |goal, measures, measured: f64, is_minimum, limit: f64, about: About| Goal {
        goal,
        measures,
        measured,
        is_minimum,
        limit,
        reached: if is_minimum { measured >= limit } else { measured <= limit },
        is_about_this_matrix: about.is_about(report),
    };
    let mut goals = Vec::new();
    for (name, way, tokens, limit, about) in OF_RAW {
        if let Some(measured) = product(way, tokens).and_then(|row| row.times_raw) {
            let measures = format!("time of {way} over raw, {tokens} tokens");
            goals.push(goal(name, measures, measured, false, limit, about));
        }
    }
    let zstd = ["zstd-tiles", "xor-zstd-tiles"].into_iter().filter_map(|way| product(way, 1));
    if let Some(zstd) = zstd.min_by(|a, b| seconds(a).total_cmp(&seconds(b))) {
        for (name, way) in [("tiles-faster-than-zstd", "tiles"), ("planes-faster-than-zstd", "planes")] {
            if let Some(row) = product(way, 1) {
                let measures = format!("time of {} over {way}, 1 token", zstd.way);
                let measured = seconds(zstd) / seconds(row);
                goals.push(goal(name, measures, measured, true, FASTER_THAN_ZSTD, About::FineTune));
            }
        }
    }
    if let Some(raw) = product("raw", 1) {
        let measured = raw.weight_bytes_per_second / report.memcpy_bytes_per_second;
        let measures = "bandwidth of raw over memcpy, 1 token".to_owned();
        goals.push(goal("gemv-bandwidth", measures, measured, true, OF_BANDWIDTH, About::Any));
    }
    goals
}

fn seconds(row: &ProductReport) -> f64 {
    row.median_seconds
}
