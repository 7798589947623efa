//! Chainable setters for options. Options may gain fields, so callers outside this crate cannot
//! write them as literals.

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
