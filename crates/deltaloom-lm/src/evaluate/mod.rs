//! What a model is worth, from its logits: divergence of two models, multiple choice, and answers
//! that are numbers. These are functions of numbers and files; whoever has a
//! model feeds them.

mod answers;
mod choices;
mod divergence;
mod share;

pub use answers::{Answer, Problem, read_problems};
pub use choices::{ChoiceFile, Choices, ChoicesReport, Item, read_choices};
pub use divergence::{Divergence, DivergenceReport, Spread};
pub use share::{Share, kind_of_number};
