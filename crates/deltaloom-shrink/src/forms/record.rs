//! Forms in files: what `student.json` says of a form, and the tensors that hold its numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use deltaloom::Result;
use half::f16;
use serde::{Deserialize, Serialize};

use super::{DEEPEST, Dense, FloatType, Form, Pattern, Quantised, Scales, Sparse, Steps, wrong};

/// What `student.json` says of a form. Sizes follow from the shape of the matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[expect(missing_docs, reason = "docs/student.md describes them")]
pub enum FormRecord {
    Dense { dtype: FloatType },
    Quantised { group: Option<usize>, column_factors: bool, row_factors: bool },
    Sparse { pattern: Pattern, count: usize, values: Box<FormRecord> },
    LowRank { rank: usize, left: Box<FormRecord>, right: Box<FormRecord> },
    Turned { form: Box<FormRecord> },
    Sum { parts: Vec<FormRecord> },
    Zero,
    Base,
}

/// A tensor of a student: its dtype in safetensors, its shape and its little-endian bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Dtype in safetensors.
    pub dtype: &'static str,
    /// Dimensions.
    pub shape: Vec<u64>,
    /// Bytes.
    pub bytes: Vec<u8>,
}

/// Gives the bytes of a tensor by its name, its dtype in safetensors and its shape.
pub type Find<'a> = dyn Fn(&str, &str, &[usize]) -> Result<Vec<u8>> + 'a;

/// What a form is read from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Gives the tensors of the student.
    pub find: &'a Find<'a>,
    /// The base's matrix of the same name and shape, row by row.
    pub base: Option<&'a Arc<[f32]>>,
}

/// Tensors by name.
pub type Tensors = BTreeMap<String, Part>;

fn halves(numbers: &[f16]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

impl Form {
    /// Puts the tensors of a form `[rows, cols]` under names that begin with `name`, and gives its
    /// record.
    pub fn write(&self, name: &str, [rows, cols]: [usize; 2], out: &mut Tensors) -> FormRecord {
        let mut put = |end: &str, dtype, shape: &[usize], bytes| {
            let shape = shape.iter().map(|size| *size as u64).collect();
            out.insert(format!("{name}.{end}"), Part { dtype, shape, bytes });
        };
        match self {
            Self::Dense(dense) => {
                put("values", dense.dtype().name(), &[rows, cols], dense.bytes());
                FormRecord::Dense { dtype: dense.dtype() }
            }
            Self::Quantised(quantised) => {
                let codes = quantised.codes().iter().map(|code| code.cast_unsigned()).collect();
                put("codes", "I8", &[rows, cols], codes);
                let Scales { steps, columns, rows: row_factors } = quantised.scales();
                let group = match steps {
                    Steps::Matrix(step) => {
                        put("steps", "F16", &[1], step.to_le_bytes().to_vec());
                        None
                    }
                    Steps::Groups { size, steps } => {
                        put("steps", "F16", &[rows, cols.div_ceil(*size)], halves(steps));
                        Some(*size)
                    }
                };
                if let Some(columns) = columns {
                    put("columns", "F16", &[cols], halves(columns));
                }
                if let Some(factors) = row_factors {
                    put("rows", "F16", &[rows], halves(factors));
                }
                let (column_factors, row_factors) = (columns.is_some(), row_factors.is_some());
                FormRecord::Quantised { group, column_factors, row_factors }
            }
            Self::Sparse(sparse) => {
                put("bits", "U8", &[rows, cols.div_ceil(8)], sparse.bits().to_vec());
                let values = sparse.values().write(&format!("{name}.kept"), [1, sparse.count()], out);
                FormRecord::Sparse {
                    pattern: sparse.pattern(),
                    count: sparse.count(),
                    values: Box::new(values),
                }
            }
            Self::LowRank { left, right, rank } => FormRecord::LowRank {
                rank: *rank,
                left: Box::new(left.write(&format!("{name}.left"), [rows, *rank], out)),
                right: Box::new(right.write(&format!("{name}.right"), [*rank, cols], out)),
            },
            Self::Turned(form) => FormRecord::Turned {
                form: Box::new(form.write(&format!("{name}.turned"), [cols, rows], out)),
            },
            Self::Sum(parts) => {
                let part = |(number, part): (usize, &Self)| {
                    part.write(&format!("{name}.{number}"), [rows, cols], out)
                };
                FormRecord::Sum { parts: parts.iter().enumerate().map(part).collect() }
            }
            Self::Zero => FormRecord::Zero,
            Self::Base(_) => FormRecord::Base,
        }
    }

    /// Reads a form `[rows, cols]`.
    ///
    /// # Errors
    /// [`deltaloom::Error::InvalidArgument`] for a record that does not fit its tensors, for a rank
    /// that is 0 or larger than the matrix, for values that are not finite, for forms that nest too
    /// deep, and for a base that is not there; errors of `source.find`.
    pub fn read(record: &FormRecord, name: &str, shape: [usize; 2], source: &Source<'_>) -> Result<Self> {
        Self::read_at(record, name, shape, *source, 0)
    }

    fn read_at(
        record: &FormRecord,
        name: &str,
        [rows, cols]: [usize; 2],
        source: Source<'_>,
        depth: usize,
    ) -> Result<Self> {
        if depth > DEEPEST {
            return wrong(format!("forms of {name:?} nest deeper than {DEEPEST}"));
        }
        let get =
            |end: &str, dtype: &str, shape: &[usize]| (source.find)(&format!("{name}.{end}"), dtype, shape);
        let numbers = |bytes: Vec<u8>| -> Vec<f16> {
            bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect()
        };
        let inner = |record: &FormRecord, end: &str, shape| {
            // Only a whole matrix is that of the base: the form itself, or a part of a sum.
            let source = Source { base: None, ..source };
            Self::read_at(record, &format!("{name}.{end}"), shape, source, depth + 1)
        };
        Ok(match record {
            FormRecord::Dense { dtype } => {
                let dense = Dense::of_bytes(*dtype, &get("values", dtype.name(), &[rows, cols])?);
                // The bits of a NaN that follows from infinities differ between processors.
                if let Some(value) = dense.values().iter().find(|value| !value.is_finite()) {
                    return wrong(format!("{name:?} has the value {value}"));
                }
                Self::Dense(dense)
            }
            FormRecord::Quantised { group, column_factors, row_factors } => {
                let codes = get("codes", "I8", &[rows, cols])?;
                let codes = codes.into_iter().map(u8::cast_signed).collect();
                let steps = match group {
                    None => {
                        let steps = numbers(get("steps", "F16", &[1])?);
                        Steps::Matrix(steps.first().copied().unwrap_or_default())
                    }
                    Some(0) => return wrong(format!("{name:?} has groups of 0 columns")),
                    Some(size) => {
                        let steps = numbers(get("steps", "F16", &[rows, cols.div_ceil(*size)])?);
                        Steps::Groups { size: *size, steps }
                    }
                };
                let factors = |is_there: bool, end: &str, len: usize| {
                    is_there.then(|| get(end, "F16", &[len]).map(numbers)).transpose()
                };
                let scales = Scales::from(steps)
                    .with_columns(factors(*column_factors, "columns", cols)?)
                    .with_rows(factors(*row_factors, "rows", rows)?);
                Self::Quantised(Quantised::new(rows, cols, codes, scales)?)
            }
            FormRecord::Sparse { pattern, count, values } => {
                let bits = get("bits", "U8", &[rows, cols.div_ceil(8)])?;
                let set: usize = bits.iter().map(|byte| byte.count_ones() as usize).sum();
                if set != *count {
                    return wrong(format!("{name:?} has {set} set bits and {count} values"));
                }
                Self::Sparse(Sparse::new(rows, cols, *pattern, bits, inner(values, "kept", [1, *count])?)?)
            }
            // So no factor takes more memory than the matrix.
            FormRecord::LowRank { rank, .. } if !(1..=rows.min(cols)).contains(rank) => {
                return wrong(format!("{name:?} is [{rows}, {cols}] and has rank {rank}"));
            }
            FormRecord::LowRank { rank, left, right } => Self::LowRank {
                rank: *rank,
                left: Box::new(inner(left, "left", [rows, *rank])?),
                right: Box::new(inner(right, "right", [*rank, cols])?),
            },
            FormRecord::Turned { form } => Self::Turned(Box::new(inner(form, "turned", [cols, rows])?)),
            FormRecord::Sum { parts } => {
                let part = |(number, part): (usize, &FormRecord)| {
                    Self::read_at(part, &format!("{name}.{number}"), [rows, cols], source, depth + 1)
                };
                Self::Sum(parts.iter().enumerate().map(part).collect::<Result<_>>()?)
            }
            FormRecord::Zero => Self::Zero,
            FormRecord::Base => match source.base {
                Some(values) if rows.checked_mul(cols) == Some(values.len()) => {
                    Self::Base(Arc::clone(values))
                }
                _ => {
                    return wrong(format!(
                        "{name:?} is that of a base, which has no such matrix [{rows}, {cols}]"
                    ));
                }
            },
        })
    }
}
