//! What forms take when they are packed, before anything is packed.

use super::{Form, Quantised, Steps};

/// Groups of columns of like spread that a coder has tables for.
const GROUPS: usize = 16;
/// Bits of a table for each value that occurs in it.
const VALUE_BITS: f64 = 8.0;
/// Bits of a step or a factor.
const HALF_BITS: f64 = 16.0;

/// Bits of codes with a table for each of 16 groups of columns, and of those tables.
pub(crate) struct CodedBits {
    pub(crate) codes: f64,
    pub(crate) tables: f64,
}

impl CodedBits {
    /// What a coder makes of codes.
    pub(crate) fn of(codes: &[i8], cols: usize) -> Self {
        let mut spreads = vec![(0_u64, 0); cols];
        spreads.iter_mut().enumerate().for_each(|(col, spread)| spread.1 = col);
        for row in codes.chunks_exact(cols.max(1)) {
            spreads.iter_mut().zip(row).for_each(|(spread, code)| spread.0 += u64::from(code.unsigned_abs()));
        }
        spreads.sort_unstable();
        let mut group_of = vec![0; cols];
        let per_group = cols.div_ceil(GROUPS).max(1);
        spreads.iter().enumerate().for_each(|(rank, (_, col))| group_of[*col] = rank / per_group);
        let mut counts = vec![[0_u32; 256]; GROUPS];
        for row in codes.chunks_exact(cols.max(1)) {
            for (code, group) in row.iter().zip(&group_of) {
                counts[*group][usize::from(code.cast_unsigned())] += 1;
            }
        }
        let mut sum = Self { codes: 0.0, tables: 0.0 };
        for counts in &counts {
            let total: u32 = counts.iter().sum();
            for count in counts.iter().filter(|count| **count > 0) {
                sum.codes += f64::from(*count) * libm::log2(f64::from(total) / f64::from(*count));
                sum.tables += VALUE_BITS;
            }
        }
        sum
    }
}

impl Form {
    /// Bits that a form of a matrix `[rows, cols]` takes in a packed file, about: codes by the
    /// entropy of groups of columns, places of zeros by their entropy, all other numbers in full.
    #[must_use]
    pub fn coded_bits(&self, [rows, cols]: [usize; 2]) -> f64 {
        match self {
            Self::Dense(dense) => (dense.values().len() * dense.dtype().bits()) as f64,
            Self::Quantised(codes) => of_codes(codes, cols),
            Self::Sparse(sparse) => {
                let (count, all) = (sparse.count(), rows * cols);
                let share = count as f64 / all.max(1) as f64;
                let of = |share: f64| if share > 0.0 { -share * libm::log2(share) } else { 0.0 };
                (of(share) + of(1.0 - share)) * all as f64 + sparse.values().coded_bits([1, count])
            }
            Self::LowRank { left, right, rank } => {
                left.coded_bits([rows, *rank]) + right.coded_bits([*rank, cols])
            }
            Self::Sum(parts) => parts.iter().map(|part| part.coded_bits([rows, cols])).sum(),
            Self::Turned(form) => form.coded_bits([cols, rows]),
            Self::Base(_) | Self::Zero => 0.0,
        }
    }
}

fn of_codes(codes: &Quantised, cols: usize) -> f64 {
    let scales = codes.scales();
    let steps = match &scales.steps {
        Steps::Matrix(_) => 1,
        Steps::Groups { steps, .. } => steps.len(),
    };
    let factors = [&scales.columns, &scales.rows].into_iter().flatten().map(Vec::len).sum::<usize>();
    let CodedBits { codes, tables } = CodedBits::of(codes.codes(), cols);
    codes + tables + HALF_BITS * (steps + factors) as f64
}

#[cfg(test)]
mod tests {
    use super::super::{Dense, FloatType, Pattern, Sparse, half};
    use super::*;

    #[test]
    fn bits_are_those_of_entropies_and_numbers() {
        // Half of the codes are 0 in each of 4 columns: a bit for each code, a table of 2 values.
        let codes: Vec<i8> = (0..64).map(|i| i8::from(i / 4 % 2 == 0)).collect();
        let codes = Quantised::new(16, 4, codes, Steps::Matrix(half(1.0)).into()).unwrap();
        let codes = Form::Quantised(codes);
        assert_eq!(codes.coded_bits([16, 4]), 64.0 + 4.0 * 2.0 * 8.0 + 16.0);
        let dense = |count: usize| Form::Dense(Dense::new(FloatType::BF16, vec![1.0; count]));
        let kept: Vec<bool> = (0..64).map(|i| i % 2 == 0).collect();
        let bits = Sparse::bits_of(&kept, 4);
        let sparse = Form::Sparse(Sparse::new(16, 4, Pattern::Any, bits, dense(32)).unwrap());
        assert_eq!(sparse.coded_bits([16, 4]), 64.0 + 32.0 * 16.0);
        let (left, right) = (Box::new(dense(16)), Box::new(dense(4)));
        assert_eq!(Form::LowRank { left, right, rank: 1 }.coded_bits([16, 4]), 20.0 * 16.0);
        assert_eq!(Form::Sum(vec![Form::Zero, dense(64)]).coded_bits([16, 4]), 1024.0);
    }
}
