//! The layouts of codes, scales and zeros that known writers use, by the shapes that they have.
//! Which one it is, only the numbers say: see [`super::quantised`].

use super::quantised::Sibling;
use crate::predict::{Element, Groups, NF4, Numbers, Operand, Order, Packing, Quantised, Ties, Values};
use crate::tensor::{DType, TensorInfo};

/// Sizes of groups that writers use.
const GROUP_SIZES: [u64; 7] = [16, 32, 64, 128, 256, 512, 1024];

/// A layout. Tensors are numbers of siblings.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    is_to_codes: bool,
    is_transposed: bool,
    scales_first: bool,
    is_reciprocal: bool,
    reference: usize,
    packing: Packing,
    values: Values,
    scales: Vec<Shared>,
    zero: Option<Shared>,
    bias: Option<Shared>,
    /// The row of groups of each row of codes.
    index: Option<usize>,
    rounding: Element,
    ties: Ties,
    range: (i64, i64),
}

/// What groups of codes share.
#[derive(Debug, Clone)]
struct Shared {
    rows: u64,
    cols: u64,
    numbers: OfGroup,
    plus: f32,
}

#[derive(Debug, Clone)]
enum OfGroup {
    Tensor(usize, Packing, bool),
    Number(f32),
    /// Codes, table and scales of nested scales.
    Nested([usize; 3]),
    Largest,
}

/// Scales that share one of the nested scales of bitsandbytes.
const NESTED: u64 = 256;

impl Layout {
    /// Siblings that are read, in the order of the record.
    pub(super) fn operands(&self) -> Vec<usize> {
        let shared = self.scales.iter().chain(&self.zero).chain(&self.bias);
        let tensors = shared.flat_map(|shared| match &shared.numbers {
            OfGroup::Tensor(which, ..) => std::slice::from_ref(which),
            OfGroup::Nested(all) => &all[..],
            OfGroup::Number(_) | OfGroup::Largest => &[],
        });
        let tensors = tensors.copied();
        std::iter::once(self.reference).chain(tensors).chain(self.index).collect()
    }

    /// Siblings that may have scales, zeros or biases: they are in the file that has the codes.
    fn operand_candidates(&self, siblings: &[Sibling<'_>]) -> impl Iterator<Item = usize> {
        (0..siblings.len())
            .filter(|which| *which != self.reference && self.is_to_codes == siblings[*which].is_own())
    }

    /// Whether scales are nested, so that a number is added to each.
    pub(super) fn is_nested(&self) -> bool {
        self.scales.iter().any(|scale| matches!(scale.numbers, OfGroup::Nested(_)))
    }

    /// The record for a tensor, if its sizes fit. `offset` is added to nested scales.
    pub(super) fn record(
        &self,
        info: &TensorInfo,
        operand: impl Fn(usize) -> Operand,
        offset: f32,
    ) -> Option<Quantised> {
        let groups = |shared: &Shared| Groups {
            rows: shared.rows,
            cols: shared.cols,
            source: match shared.numbers {
                OfGroup::Tensor(which, packing, is_exponent) => {
                    Numbers::Tensor { operand: operand(which), packing, is_exponent }
                }
                OfGroup::Number(number) => Numbers::Stored(vec![number]),
                OfGroup::Nested([codes, table, scales]) => {
                    let [codes, table, scales] = [codes, table, scales].map(&operand);
                    Numbers::Nested { codes, table, scales, each: NESTED }
                }
                OfGroup::Largest => Numbers::Largest,
            },
            plus: if matches!(shared.numbers, OfGroup::Nested(_)) { offset } else { shared.plus },
        };
        let quantised = Quantised {
            is_to_codes: self.is_to_codes,
            is_transposed: self.is_transposed,
            scales_first: self.scales_first,
            is_reciprocal: self.is_reciprocal,
            reference: operand(self.reference),
            packing: self.packing,
            values: self.values.clone(),
            scales: self.scales.iter().map(groups).collect(),
            zero: self.zero.as_ref().map(groups),
            bias: self.bias.as_ref().map(groups),
            index: self.index.map(&operand),
            rounding: self.rounding,
            ties: self.ties,
            range: self.range,
        };
        quantised.is_valid(info).then_some(quantised)
    }
}

/// Whether elements of that dtype may be numbers that codes stand for.
pub(super) fn is_number(dtype: &DType) -> bool {
    Element::of(dtype).is_some()
}

/// Whether elements of that dtype may be codes, or words of codes.
pub(super) fn is_code(dtype: &DType) -> bool {
    matches!(dtype, DType::F8E4M3 | DType::F8E5M2 | DType::U8 | DType::I8 | DType::U32 | DType::I32)
}

/// All layouts that the shapes of a tensor and its siblings allow, without the roundings.
pub(super) fn all(info: &TensorInfo, siblings: &[Sibling<'_>]) -> Vec<Layout> {
    let is_to_codes = is_code(&info.dtype);
    let mut found = Vec::new();
    for (reference, sibling) in siblings.iter().enumerate() {
        let other = sibling.info();
        let (numbers, codes) = if is_to_codes { (other, info) } else { (info, other) };
        if sibling.is_own() || !is_number(&numbers.dtype) || !is_code(&codes.dtype) {
            continue;
        }
        for (packing, values) in codings(numbers, codes) {
            for is_transposed in [false, true] {
                let Some((rows, cols)) = matrix_of(numbers, codes, packing, is_transposed) else { continue };
                let plain = Layout {
                    is_to_codes,
                    is_transposed,
                    scales_first: false,
                    is_reciprocal: false,
                    reference,
                    packing,
                    values: values.clone(),
                    scales: Vec::new(),
                    zero: None,
                    bias: None,
                    index: None,
                    rounding: Element::F32,
                    ties: Ties::Even,
                    range: range_of(packing, &codes.dtype, &values),
                };
                let shape = Shape { batches: numbers.elems() / (rows * cols).max(1), rows, cols };
                let grouped = grouped(&plain, shape, siblings);
                let indexed = indexed(&grouped, shape, siblings);
                found.extend(grouped);
                found.extend(indexed);
            }
        }
    }
    found
}

/// How codes may be packed, and what they may stand for.
fn codings(numbers: &TensorInfo, codes: &TensorInfo) -> Vec<(Packing, Values)> {
    let (words, count) = (codes.elems(), numbers.elems());
    if words == count {
        return match codes.dtype {
            DType::U32 | DType::I32 => Vec::new(),
            _ => vec![(Packing::ELEMENTS, Values::Numbers)],
        };
    }
    let word_bits = if matches!(codes.dtype, DType::U32 | DType::I32) { 32 } else { 8 };
    let bits = match count.checked_div(words) {
        Some(per_word) if per_word * words == count && per_word > 0 && word_bits % per_word == 0 => {
            u8::try_from(word_bits / per_word).unwrap_or(0)
        }
        _ => return Vec::new(),
    };
    if !matches!(bits, 2 | 4 | 8) || !matches!(codes.dtype, DType::U8 | DType::I8 | DType::U32 | DType::I32) {
        return Vec::new();
    }
    let mut kinds = vec![Values::Numbers, Values::Signed];
    if bits == 4 {
        kinds.extend([Values::E2m1, Values::Table(NF4.to_vec())]);
    }
    let mut orders = vec![Order::LowFirst, Order::HighFirst];
    if (word_bits, bits) == (32, 4) {
        orders.push(Order::Interleaved);
    }
    let mut found = Vec::new();
    for order in orders {
        for by_columns in [false, true] {
            if by_columns && word_bits == 8 {
                continue;
            }
            for values in &kinds {
                found.push((Packing { bits, order, by_columns }, values.clone()));
            }
        }
    }
    found
}

/// Rows and columns of a matrix of codes. `None` if the shapes speak against it.
fn matrix_of(
    numbers: &TensorInfo,
    codes: &TensorInfo,
    packing: Packing,
    is_transposed: bool,
) -> Option<(u64, u64)> {
    let (rows, cols) = match numbers.shape[..] {
        [cols] => (1, cols),
        [.., rows, cols] => (rows, cols),
        [] => return None,
    };
    if is_transposed && numbers.shape.len() < 2 {
        return None;
    }
    let (rows, cols) = if is_transposed { (cols, rows) } else { (rows, cols) };
    // Shapes of as many dims tell rows from columns. Others have blocks.
    if codes.shape.len() == numbers.shape.len()
        && let [.., code_rows, code_cols] = codes.shape[..]
    {
        let per_word = packing.per_word(&codes.dtype)?;
        let expected = match packing.by_columns {
            true => (code_rows * per_word, code_cols),
            false => (code_rows, code_cols * per_word),
        };
        return (expected == (rows, cols) || code_cols == 1).then_some((rows, cols));
    }
    Some((rows, cols))
}

fn range_of(packing: Packing, dtype: &DType, values: &Values) -> (i64, i64) {
    let bits = if packing.bits == 0 { 8 } else { packing.bits };
    let is_signed = *values == Values::Signed || (packing.bits == 0 && *dtype == DType::I8);
    let all = 1i64 << bits;
    if is_signed { (-all / 2, all / 2 - 1) } else { (0, all - 1) }
}

/// The matrices of codes.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) batches: u64,
    pub(super) rows: u64,
    pub(super) cols: u64,
}

/// A layout with every choice of scales, zeros and biases.
fn grouped(plain: &Layout, shape: Shape, siblings: &[Sibling<'_>]) -> Vec<Layout> {
    let mut scales: Vec<Vec<Shared>> = Vec::new();
    let (mut firsts, mut singles) = (Vec::new(), Vec::new());
    for which in plain.operand_candidates(siblings) {
        let info = siblings[which].info();
        let is_exponent = info.dtype.may_be_exponents();
        if !is_exponent && !is_number(&info.dtype) && !matches!(info.dtype, DType::F8E4M3 | DType::F8E5M2) {
            continue;
        }
        let shared = |(rows, cols)| Shared {
            rows,
            cols,
            numbers: OfGroup::Tensor(which, Packing::ELEMENTS, is_exponent),
            plus: 0.0,
        };
        let sizes = group_sizes(info.elems(), shape);
        if info.elems() == 1 {
            singles.extend(sizes.into_iter().map(shared));
        } else {
            firsts.extend(sizes.into_iter().map(shared));
        }
    }
    scales.extend(nested(plain, shape, siblings).into_iter().map(|scale| vec![scale]));
    if plain.is_to_codes && matches!(plain.values, Values::Table(_)) {
        let largest = |cols| Shared { rows: 1, cols, numbers: OfGroup::Largest, plus: 0.0 };
        let sizes = GROUP_SIZES.into_iter().filter(|size| shape.cols.is_multiple_of(*size));
        scales.extend(sizes.map(|size| vec![largest(size)]));
    }
    for first in firsts.iter().chain(&singles) {
        scales.push(vec![first.clone()]);
        let others = singles.iter().filter(|other| !is_same(first, other));
        scales.extend(others.map(|other| vec![first.clone(), other.clone()]));
    }
    let mut found = Vec::new();
    for scales in scales {
        let with_scales = Layout { scales, ..plain.clone() };
        let [first, ..] = &with_scales.scales[..] else { continue };
        found.push(with_scales.clone());
        if plain.values != Values::Numbers {
            continue;
        }
        for zero in zeros(plain, first, shape, siblings) {
            found.push(Layout { zero: Some(zero), ..with_scales.clone() });
        }
        let biases = firsts.iter().filter(|other| !is_same(first, other) && has_size(first, other));
        for bias in biases {
            found.push(Layout { bias: Some(bias.clone()), ..with_scales.clone() });
        }
    }
    found
}

/// Scales of bitsandbytes that have codes and scales themselves.
fn nested(plain: &Layout, shape: Shape, siblings: &[Sibling<'_>]) -> Vec<Shared> {
    let named = |end: &str| {
        let mut all = plain.operand_candidates(siblings);
        all.find(|which| siblings[*which].info().name.ends_with(end))
    };
    let (Some(table), Some(scales)) = (named(".nested_quant_map"), named(".nested_absmax")) else {
        return Vec::new();
    };
    let Some(codes) = named(".absmax") else { return Vec::new() };
    let sizes = group_sizes(siblings[codes].info().elems(), shape).into_iter();
    let shared =
        |(rows, cols)| Shared { rows, cols, numbers: OfGroup::Nested([codes, table, scales]), plus: 0.0 };
    sizes.map(shared).collect()
}

/// The layouts whose rows have their groups by an index.
fn indexed(grouped: &[Layout], shape: Shape, siblings: &[Sibling<'_>]) -> Vec<Layout> {
    let is_several = |layout: &&Layout| layout.scales.iter().any(|scale| scale.rows < shape.rows);
    let with_index = |layout: &Layout| {
        let mut indices = layout.operand_candidates(siblings).filter(|which| {
            let info = siblings[*which].info();
            info.dtype == DType::I32 && info.elems() == shape.rows && info.name.ends_with("g_idx")
        });
        Some(Layout { index: Some(indices.next()?), ..layout.clone() })
    };
    if shape.batches > 1 {
        return Vec::new();
    }
    grouped.iter().filter(is_several).filter_map(with_index).collect()
}

fn is_same(a: &Shared, b: &Shared) -> bool {
    match (&a.numbers, &b.numbers) {
        (OfGroup::Tensor(a, ..), OfGroup::Tensor(b, ..)) => a == b,
        _ => false,
    }
}

fn has_size(a: &Shared, b: &Shared) -> bool {
    (a.rows, a.cols) == (b.rows, b.cols)
}

/// The sizes of groups that `count` numbers may belong to.
pub(super) fn group_sizes(count: u64, shape: Shape) -> Vec<(u64, u64)> {
    let Shape { batches, rows, cols } = shape;
    let mut sizes = vec![(rows, cols), (1, cols), (rows, 1)];
    for size in GROUP_SIZES {
        sizes.extend([(1, size), (size, 1), (size, size)]);
    }
    let per_matrix = count / batches.max(1);
    // Whatever divides rows and columns evenly.
    if per_matrix > 0 && per_matrix.is_multiple_of(rows) && cols.is_multiple_of(per_matrix / rows) {
        sizes.push((1, cols / (per_matrix / rows)));
    }
    if per_matrix > 0 && per_matrix.is_multiple_of(cols) && rows.is_multiple_of(per_matrix / cols) {
        sizes.push((rows / (per_matrix / cols), 1));
    }
    let fits = |(r, c): &(u64, u64)| {
        *r <= rows && *c <= cols && batches * rows.div_ceil(*r) * cols.div_ceil(*c) == count
    };
    sizes.retain(fits);
    sizes.sort_unstable();
    sizes.dedup();
    if sizes.is_empty() && count == 1 {
        sizes.push((rows, cols));
    }
    sizes
}

/// What codes may be counted from: the middle of their range, or tensors of zeros.
fn zeros(plain: &Layout, scale: &Shared, shape: Shape, siblings: &[Sibling<'_>]) -> Vec<Shared> {
    let (low, high) = plain.range;
    let at = |numbers, plus| Shared { rows: scale.rows, cols: scale.cols, numbers, plus };
    let mut found = Vec::new();
    if low == 0 {
        found.push(at(OfGroup::Number(((high + 1) / 2) as f32), 0.0));
    }
    let groups = shape.batches * shape.rows.div_ceil(scale.rows) * shape.cols.div_ceil(scale.cols);
    for which in plain.operand_candidates(siblings) {
        if is_same(scale, &at(OfGroup::Tensor(which, Packing::ELEMENTS, false), 0.0)) {
            continue;
        }
        let info = siblings[which].info();
        if info.elems() == groups && !matches!(info.dtype, DType::U32) {
            found.push(at(OfGroup::Tensor(which, Packing::ELEMENTS, false), 0.0));
        }
        let packing = Packing { by_columns: false, ..plain.packing };
        if packing.bits > 0 && packing.per_word(&info.dtype).is_some_and(|n| info.elems() * n == groups) {
            for plus in [0.0, 1.0] {
                found.push(at(OfGroup::Tensor(which, packing, false), plus));
            }
        }
    }
    found
}

/// A change of a layout.
pub(super) type Change = Box<dyn Fn(&Layout) -> Layout>;

/// Roundings and orders of operations: from each list, the best is kept.
pub(super) fn refinements(layout: &Layout) -> Vec<Vec<Change>> {
    let with = |change: fn(&mut Layout)| -> Change {
        Box::new(move |layout| {
            let mut changed = layout.clone();
            change(&mut changed);
            changed
        })
    };
    let mut lists = vec![vec![
        with(|layout| layout.rounding = Element::BF16),
        with(|layout| layout.rounding = Element::F16),
    ]];
    if layout.scales.len() > 1 {
        lists.push(vec![with(|layout| layout.scales_first = true)]);
    }
    if layout.is_to_codes {
        lists.push(vec![with(|layout| layout.is_reciprocal = true)]);
        lists.push(vec![with(|layout| layout.ties = Ties::Away), with(|layout| layout.ties = Ties::ToZero)]);
        lists.push(vec![with(|layout| layout.range.0 += 1)]);
    }
    lists
}
