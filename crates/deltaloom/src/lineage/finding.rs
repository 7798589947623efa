//! What can be found out about a tensor's history, in words and for JSON, and how equal findings
//! are grouped.
//! It reads no weights.

use std::collections::BTreeMap;

use serde::Serialize;

/// How a tensor came from its ancestors, with the evidence. `residual` compares the L2 norm of what
/// the prediction of packing leaves with that of rounding to the dtype: 0 if nothing is left, and
/// at most about 1 if only rounding is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// Equal, bit for bit.
    Identical {
        /// The ancestor, by its path.
        ancestor: String,
        /// The tensor, if it has another name.
        #[serde(skip_serializing_if = "Option::is_none")]
        tensor: Option<String>,
    },
    /// Equal to another tensor of the same checkpoint.
    Tied {
        /// The other tensor.
        tensor: String,
    },
    /// A rounded F32 tensor.
    Cast {
        /// The ancestor that has it. `None` if it is in the same checkpoint.
        #[serde(skip_serializing_if = "Option::is_none")]
        ancestor: Option<String>,
        /// The F32 tensor.
        tensor: String,
    },
    /// A linear combination of several ancestors.
    Blend {
        /// Their weights, which sum to 1.
        parts: Vec<BlendPart>,
        /// Unexplained remainder, see above.
        residual: f64,
    },
    /// A multiple of an ancestor.
    Rescaled {
        /// The ancestor.
        ancestor: String,
        /// The factor.
        factor: f64,
        /// Unexplained remainder, see above.
        residual: f64,
    },
    /// The ancestor plus a low-rank matrix, such as a merged LoRA.
    LowRank {
        /// The ancestor.
        ancestor: String,
        /// Number of singular values above those that rounding causes. The largest one, if the
        /// tensor is a stack of matrices.
        rank: usize,
        /// Unexplained remainder, see above.
        residual: f64,
        /// Norm of the difference over that of the ancestor.
        relative_l2: f64,
    },
    /// Few elements changed.
    Sparse {
        /// The ancestor.
        ancestor: String,
        /// Share of elements whose bits differ.
        changed_fraction: f64,
        /// Norm of the difference over that of the ancestor.
        relative_l2: f64,
    },
    /// Most elements moved a little, as in training.
    Drift {
        /// The ancestor.
        ancestor: String,
        /// Norm of the difference over that of the ancestor.
        relative_l2: f64,
        /// Share of elements whose bits differ.
        changed_fraction: f64,
        /// Correlation of the elements.
        correlation: f64,
    },
    /// Pieces of tensors of ancestors, perhaps changed afterwards: with rows added or removed,
    /// fused, split, stacked, transposed, in another order, or of another dtype or shape.
    View {
        /// The ancestors that have the pieces.
        ancestors: Vec<String>,
        /// The tensors that have them.
        of: Vec<String>,
        /// What the view is, in words.
        rule: String,
        /// Share of elements whose bits differ from the pieces.
        changed_fraction: f64,
    },
    /// Codes of an ancestor's numbers, or numbers of its codes, perhaps changed afterwards; or rows
    /// or columns that are multiples of an ancestor's.
    Quantised {
        /// The ancestors that have the numbers or codes.
        ancestors: Vec<String>,
        /// The tensors that have them, and scales.
        of: Vec<String>,
        /// The layout, in words.
        rule: String,
        /// Share of elements whose bits differ from what the layout gives.
        changed_fraction: f64,
    },
    /// Blocks of GGUF of an ancestor's numbers, numbers of its blocks, or scales of its numbers,
    /// perhaps changed afterwards.
    Blocks {
        /// The ancestors that have the numbers or blocks.
        ancestors: Vec<String>,
        /// The tensors that have them.
        of: Vec<String>,
        /// The type of the blocks, as ggml names it. `None` for scales.
        #[serde(skip_serializing_if = "Option::is_none")]
        block_type: Option<&'static str>,
        /// `blocks`, `numbers` or `scales`: what the tensor has. The ancestor has the other side.
        has: &'static str,
        /// The layout, in words.
        rule: String,
        /// Share of elements whose bits differ from what the layout gives.
        changed_fraction: f64,
    },
    /// The ancestor says nothing about it.
    Unrelated {
        /// The most similar ancestor.
        ancestor: String,
        /// Correlation of the elements.
        correlation: f64,
        /// Estimated bits of an element on its own, and with the ancestor. `None` if their dtypes
        /// differ.
        bits_per_element: Option<[f64; 2]>,
    },
    /// No ancestor has a tensor with its place and shape.
    New,
}

/// A part of a blend.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BlendPart {
    /// The ancestor.
    pub ancestor: String,
    /// Its weight.
    pub weight: f64,
}

/// A tensor and its history.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TensorLineage {
    /// Name.
    pub name: String,
    /// dtype.
    pub dtype: String,
    /// Shape.
    pub shape: Vec<u64>,
    /// Size.
    pub bytes: u64,
    /// What was found.
    #[serde(flatten)]
    pub finding: Finding,
}

/// Tensors with the same history.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FindingGroup {
    /// In words.
    pub finding: String,
    /// How many tensors.
    pub tensors: u64,
    /// Their size.
    pub bytes: u64,
    /// The number that measures the finding, if it has one: its key, and its least and largest
    /// value among the tensors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
}

/// A number over several tensors.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Evidence {
    /// The number's key in the tensors' own entries.
    pub key: &'static str,
    /// The least value.
    pub least: f64,
    /// The largest value.
    pub most: f64,
}

impl Finding {
    /// The finding in words. Two tensors have the same history if these words are equal.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Identical { ancestor, .. } => format!("identical to {ancestor}"),
            Self::Tied { .. } => "tied to another tensor".to_owned(),
            Self::Cast { ancestor: Some(ancestor), .. } => format!("rounding of F32 in {ancestor}"),
            Self::Cast { ancestor: None, .. } => "rounding of another tensor".to_owned(),
            Self::Blend { parts, .. } => {
                let part = |(i, part): (usize, &BlendPart)| {
                    let sign = match (i, part.weight < 0.0) {
                        (0, false) => "",
                        (0, true) => "-",
                        (_, false) => " + ",
                        (_, true) => " - ",
                    };
                    format!("{sign}{} {}", hundredths(part.weight.abs()), part.ancestor)
                };
                format!("blend {}", parts.iter().enumerate().map(part).collect::<String>())
            }
            Self::Rescaled { ancestor, factor, .. } => format!("{} times {ancestor}", hundredths(*factor)),
            Self::LowRank { ancestor, rank, .. } => format!("low rank r = {rank} on {ancestor}"),
            Self::Sparse { ancestor, .. } => format!("sparse change of {ancestor}"),
            Self::Drift { ancestor, .. } => format!("dense drift of {ancestor}"),
            Self::View { ancestors, .. } => format!("pieces of {}", ancestors.join(" and ")),
            Self::Quantised { ancestors, .. } => format!("codes or numbers of {}", ancestors.join(" and ")),
            Self::Blocks { ancestors, block_type, has, .. } => {
                let ancestors = ancestors.join(" and ");
                match (block_type, *has) {
                    (Some(block_type), "blocks") => format!("{block_type} blocks of {ancestors}"),
                    (Some(block_type), _) => format!("numbers of {block_type} blocks of {ancestors}"),
                    (None, has) => format!("{has} of numbers of {ancestors}"),
                }
            }
            Self::Unrelated { .. } => "unrelated".to_owned(),
            Self::New => "no counterpart".to_owned(),
        }
    }

    /// The number that measures the finding.
    fn evidence(&self) -> Option<(&'static str, f64)> {
        match self {
            Self::Blend { residual, .. } | Self::Rescaled { residual, .. } => Some(("residual", *residual)),
            Self::LowRank { residual, .. } => Some(("residual", *residual)),
            Self::Sparse { changed_fraction, .. }
            | Self::View { changed_fraction, .. }
            | Self::Blocks { changed_fraction, .. }
            | Self::Quantised { changed_fraction, .. } => Some(("changed_fraction", *changed_fraction)),
            Self::Drift { relative_l2, .. } => Some(("relative_l2", *relative_l2)),
            Self::Unrelated { correlation, .. } => Some(("correlation", *correlation)),
            Self::Identical { .. } | Self::Tied { .. } | Self::Cast { .. } | Self::New => None,
        }
    }
}

/// At most two decimals, and no trailing zeros.
fn hundredths(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Groups findings with the same words. Groups with the most bytes come first.
pub(super) fn group(tensors: &[TensorLineage]) -> Vec<FindingGroup> {
    let mut groups: BTreeMap<String, FindingGroup> = BTreeMap::new();
    for tensor in tensors {
        let words = tensor.finding.words();
        let new = || FindingGroup { finding: words.clone(), tensors: 0, bytes: 0, evidence: None };
        let group = groups.entry(words.clone()).or_insert_with(new);
        group.tensors += 1;
        group.bytes += tensor.bytes;
        if let Some((key, value)) = tensor.finding.evidence() {
            let evidence = group.evidence.get_or_insert(Evidence { key, least: value, most: value });
            (evidence.least, evidence.most) = (evidence.least.min(value), evidence.most.max(value));
        }
    }
    let mut groups: Vec<FindingGroup> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.bytes));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_of_the_same_words_are_put_together() {
        let drift = |relative_l2| Finding::Drift {
            ancestor: "base".to_owned(),
            relative_l2,
            changed_fraction: 0.9,
            correlation: 1.0,
        };
        let tensor = |bytes, finding| TensorLineage {
            name: String::new(),
            dtype: "F32".to_owned(),
            shape: vec![bytes / 4],
            bytes,
            finding,
        };
        let groups = group(&[tensor(4, drift(0.02)), tensor(100, Finding::New), tensor(8, drift(0.01))]);
        assert_eq!(groups.len(), 2);
        assert_eq!((groups[0].finding.as_str(), groups[0].bytes), ("no counterpart", 100));
        let evidence = Evidence { key: "relative_l2", least: 0.01, most: 0.02 };
        assert_eq!((groups[1].tensors, groups[1].bytes), (2, 12));
        assert_eq!(groups[1].evidence, Some(evidence));
    }

    #[test]
    fn blends_read_as_sums() {
        let part = |ancestor: &str, weight| BlendPart { ancestor: ancestor.to_owned(), weight };
        let blend = |parts| Finding::Blend { parts, residual: 1.0 }.words();
        assert_eq!(blend(vec![part("a", 0.5), part("b", 0.5)]), "blend 0.5 a + 0.5 b");
        assert_eq!(
            blend(vec![part("a", 1.0), part("b", 0.701), part("c", -0.7)]),
            "blend 1 a + 0.7 b - 0.7 c"
        );
    }
}
