//! Finds the weights of a first moment where names do not tell, as in a file that numbers its
//! moments. A step moves almost every weight against the sign of its moment.
//! It compares samples. [`super::adam`] decides.

use std::cmp::Reverse;
use std::collections::HashMap;

use rayon::prelude::*;

use super::subject::Subject;
use crate::bases::Bases;
use crate::error::Result;
use crate::sample;

/// Elements that are compared.
const ELEMS: usize = 1024;
/// The share that must move against the moment: so many of ten.
const LEAST_OF_TEN: usize = 9;
/// Fewer moved weights say nothing.
const LEAST_MOVED: usize = 16;

/// In which direction weights moved since the bases, by the number of their tensor.
pub(super) struct Steps(HashMap<usize, Vec<i8>>);

impl Steps {
    /// No steps, where there are no moments.
    pub(super) fn none() -> Self {
        Self(HashMap::new())
    }

    /// The steps of F32 tensors that have a counterpart in a base.
    pub(super) fn of(
        subjects: &[Subject<'_>],
        samples: &[Vec<u8>],
        tensors: Vec<usize>,
        bases: &Bases,
    ) -> Result<Self> {
        let of_one = |i: usize| {
            let info = subjects[i].info();
            let mut old = bases.direct().filter_map(|base| base.counterpart(&info.name, |t| t.is_like(info)));
            let Some(old) = old.next().map(sample::of).transpose()? else { return Ok(None) };
            let pairs = values(&samples[i]).zip(values(&old));
            Ok(Some((i, pairs.map(|(new, old)| sign(new - old)).collect())))
        };
        let steps: Vec<_> = tensors.into_par_iter().map(of_one).collect::<Result<_>>()?;
        Ok(Self(steps.into_iter().flatten().collect()))
    }

    /// The tensors that moved against a moment, given by its sample: the likeliest first.
    pub(super) fn against(&self, moment: &[u8], may_be: impl Fn(&usize) -> bool) -> Vec<usize> {
        let moment: Vec<i8> = values(moment).map(sign).collect();
        let score = |(i, steps): (&usize, &Vec<i8>)| {
            let moved = steps.iter().zip(&moment).filter(|(step, moment)| **step * **moment != 0);
            let (against, all) = moved.fold((0, 0), |(against, all), (step, moment)| {
                (against + usize::from(step != moment), all + 1)
            });
            let is_likely = all >= LEAST_MOVED && against * 10 >= all * LEAST_OF_TEN;
            is_likely.then_some((Reverse(against), *i))
        };
        let mut found: Vec<_> = self.0.iter().filter(|(i, _)| may_be(i)).filter_map(score).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, i)| i).collect()
    }
}

fn values(sample: &[u8]) -> impl Iterator<Item = f32> {
    sample.as_chunks::<4>().0.iter().take(ELEMS).map(|bytes| f32::from_le_bytes(*bytes))
}

fn sign(x: f32) -> i8 {
    i8::from(x > 0.0) - i8::from(x < 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_found_by_the_direction_of_their_step() {
        let bytes = |signs: &[i8]| -> Vec<u8> {
            signs.iter().flat_map(|sign| f32::from(*sign).to_le_bytes()).collect()
        };
        let a: Vec<i8> = (0..100).map(|i| if i * i % 7 < 3 { 1 } else { -1 }).collect();
        let b: Vec<i8> = (0..100).map(|i| if i * i % 11 < 5 { 1 } else { -1 }).collect();
        let still = vec![0; 100];
        let steps = Steps(HashMap::from([(3, a.clone()), (5, b.clone()), (7, still)]));
        let against = |signs: &[i8]| {
            let moment: Vec<i8> = signs.iter().map(|sign| -sign).collect();
            steps.against(&bytes(&moment), |_| true)
        };
        assert_eq!((against(&a), against(&b)), (vec![3], vec![5]));
        assert!(steps.against(&bytes(&a), |_| true).is_empty(), "they moved along with it");
        let moment: Vec<i8> = a.iter().map(|sign| -sign).collect();
        assert!(steps.against(&bytes(&moment), |i| *i != 3).is_empty());
    }
}
