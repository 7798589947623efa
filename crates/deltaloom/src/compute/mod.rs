//! Computing on packed weights: products and layers whose weights are never resident whole.
//! It neither packs nor searches; it reads containers that are there.

pub mod layer;

/// What products are told beside their operands.
#[derive(Debug, Clone, Copy, Default)]
pub struct Run<'a> {
    _placeholder: std::marker::PhantomData<&'a ()>,
}
