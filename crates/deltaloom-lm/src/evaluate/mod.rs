//! What a model is worth, from its logits: divergence of two models, multiple choice, and answers
//! that are numbers. All but `measure` are functions of numbers and files.

mod answers;
mod choices;
mod divergence;
mod frequency;
mod measure;
mod share;

pub use answers::{Answer, Problem, read_problems};
pub use choices::{ChoiceFile, Choices, ChoicesReport, Item, read_choices};
pub use divergence::{Divergence, DivergenceReport, Group, Spread};
pub use frequency::{Frequency, Seen};
pub use measure::{Student, compare, score_choices};
pub use share::{Share, kind_of_number};
