//! The probe of copies: a passage, other text, and the passage again. What the first copy gains is
//! the loss of the second with another passage in the first place, less its loss.

use deltaloom::Result;

use super::gains::Found;
use super::report::Copies;
use super::{Measuring, TestOptions, losses, readable};
use crate::context::statistics::{Estimate, places};
use crate::model::Model;

/// Tokens of a passage.
const PASSAGE: usize = 48;
/// Its first tokens do not count: nothing tells yet that it is a copy.
const FIRST: usize = 4;

/// Texts that are measured: with the passage before, and with another one.
#[derive(Default)]
pub(super) struct Passages {
    /// By gap.
    texts: Vec<(usize, Vec<[Vec<u32>; 2]>)>,
}

/// Tokens between the copies: well inside the trained length, half of it, and more than all of it.
fn gaps(trained: usize) -> [usize; 3] {
    [16.min(trained), trained / 2, trained + PASSAGE]
}

fn tokens(gap: usize) -> usize {
    2 * PASSAGE + gap
}

pub(super) fn work(options: &TestOptions, runs: usize) -> usize {
    let all: usize = gaps(options.trained).map(|gap| tokens(gap) - 1).iter().sum();
    2 * options.passages * runs * all
}

impl Passages {
    /// Draws passages and what is between them.
    pub(super) fn find(ids: &[u32], options: &TestOptions) -> Result<Self, String> {
        if options.passages == 0 {
            return Err("no passages were asked for".to_owned());
        }
        let [.., longest] = gaps(options.trained);
        let room = ids.len().saturating_sub(longest);
        if room < 4 * tokens(longest) {
            return Err(format!("a text of {} tokens is too short for copies", ids.len()));
        }
        let drawn = [1, 2, 3].map(|stream| places(room, options.passages, options.seed, stream));
        let of = |gap: usize| {
            let texts = (0..options.passages).map(|number| {
                let [same, other, filler] = [0, 1, 2].map(|which| drawn[which][number]);
                let (same, other) = (&ids[same..same + PASSAGE], &ids[other..other + PASSAGE]);
                [same, other].map(|first| [first, &ids[filler..filler + gap], same].concat())
            });
            (gap, texts.collect())
        };
        Ok(Self { texts: gaps(options.trained).map(of).into() })
    }

    /// The gains by gap, then by passage.
    pub(super) fn measure(
        &self,
        model: &mut Model,
        trained: usize,
        how: &Measuring<'_>,
        progress: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Vec<f64>>> {
        let mut gains = Vec::new();
        for (gap, texts) in &self.texts {
            let targets = tokens(*gap) - 1;
            let windows = readable(model, targets, trained);
            let mut loss = |text: &[u32]| -> Result<f64> {
                let found = losses(model, &[text], &windows, how, progress)?;
                let last = &found[0][targets - (PASSAGE - FIRST)..];
                Ok(last.iter().sum::<f64>() / last.len() as f64)
            };
            let gain = |[copy, other]: &[Vec<u32>; 2]| Ok(loss(other)? - loss(copy)?);
            gains.push(texts.iter().map(gain).collect::<Result<_>>()?);
        }
        Ok(gains)
    }

    pub(super) fn report(&self, found: &[Found], options: &TestOptions) -> Vec<Copies> {
        let row = |(found, at): (&Found, usize)| Copies {
            name: found.name.clone(),
            gap_tokens: self.texts[at].0,
            passage_tokens: PASSAGE,
            passages: options.passages,
            gain: Estimate::of(&found.copies[at], options.seed),
        };
        let all = (0..self.texts.len()).flat_map(|at| found.iter().map(move |found| (found, at)));
        all.map(row).collect()
    }
}
