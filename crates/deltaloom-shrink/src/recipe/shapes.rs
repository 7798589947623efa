//! What can be refused once the shapes of the teacher are known.

use super::RecipeError;
use super::model::Pattern;
use super::parse::Loaded;
use crate::branches::low_rank;

/// A matrix of the teacher that a branch may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
}

impl Matrix {
    /// The largest rank whose two factors hold fewer numbers than the matrix.
    #[must_use]
    pub fn largest_rank(self) -> usize {
        low_rank::largest_rank(self.rows, self.columns)
    }
}

/// Compares the sizes that a recipe asks for with the linear matrices and the embedding of a
/// teacher.
///
/// # Errors
/// A rank that no matrix has room for, a `latent_dim` that saves nothing, or a pattern of zeros
/// whose blocks fill the rows of no matrix.
pub fn check_shapes(loaded: &Loaded, linears: &[Matrix], embedding: Matrix) -> Result<(), RecipeError> {
    let branches = &loaded.recipe.branches;
    let too_large = |field, rank: usize, of: Matrix| {
        let (rows, columns) = (of.rows, of.columns);
        let what = format!("rank {rank} of {rows}x{columns} stores more than the matrix");
        loaded.error(field, what, Some(format!("at most {}", of.largest_rank())))
    };
    let widest = linears.iter().copied().max_by_key(|linear| linear.largest_rank());
    if let (Some(rank), Some(widest)) = (branches.lra.rank, widest)
        && rank > widest.largest_rank()
    {
        return Err(too_large("branches.lra.rank", rank, widest));
    }
    if let Some(rank) = branches.blt.latent_dim
        && rank > embedding.largest_rank()
    {
        return Err(too_large("branches.blt.latent_dim", rank, embedding));
    }
    if let Pattern::Blocks { of, .. } = branches.sparsity.pattern
        && !linears.iter().any(|linear| linear.columns.is_multiple_of(of.max(1)))
    {
        let what = format!("no matrix has rows of a multiple of {of} weights");
        return Err(loaded.error("branches.sparsity.pattern", what, None));
    }
    Ok(())
}
