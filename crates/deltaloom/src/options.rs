//! Chainable setters of options: their fields may grow, so they cannot be written as literals outside
//! this crate.

/// Gives a type one setter for each of the named fields.
macro_rules! setters {
    ($options:ty { $($setter:ident($field:ident: $kind:ty),)+ }) => {
        impl $options {
            $(
                #[doc = concat!("Sets [`", stringify!($field), "`](Self::", stringify!($field), ").")]
                #[must_use]
                pub fn $setter(mut self, $field: $kind) -> Self {
                    self.$field = $field;
                    self
                }
            )+
        }
    };
}

pub(crate) use setters;
