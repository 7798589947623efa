//! The measuring loop of every harness. Variants take turns in rounds, so that anything that slows
//! the machine for a while slows all of them.

use deltaloom::__internals::check_cancelled;
use deltaloom::{Error, Progress, Result};

/// A number of counted rounds, after one warm-up round that brings code and data into caches.
#[derive(Debug, Clone, Copy)]
pub struct Rounds(usize);

/// One turn of a variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Index of the variant.
    pub variant: usize,
    /// Whether its result is dropped, as in the first round.
    pub is_warm_up: bool,
}

impl Rounds {
    /// A run of `counted` rounds.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `counted` is 0.
    pub fn new(counted: usize) -> Result<Self> {
        match counted {
            0 => Err(Error::InvalidArgument("0 rounds: nothing would be measured".into())),
            counted => Ok(Self(counted)),
        }
    }

    /// Number of turns of this many variants, for a progress bar.
    #[must_use]
    pub fn turns(self, variants: usize) -> u64 {
        (self.0 as u64 + 1).saturating_mul(variants as u64)
    }

    /// Runs every variant once per round and returns the counted results of each. The first round
    /// begins with variant 0, each later round with the next one.
    ///
    /// # Errors
    /// Those of `turn`; [`Error::Cancelled`], checked before each turn.
    pub fn run<V, T, E: From<Error>>(
        self,
        variants: &mut [V],
        progress: &dyn Progress,
        mut turn: impl FnMut(&mut V, Turn) -> Result<T, E>,
    ) -> Result<Vec<Vec<T>>, E> {
        let mut results: Vec<Vec<T>> = variants.iter().map(|_| Vec::new()).collect();
        for round in 0..=self.0 {
            for place in 0..variants.len() {
                check_cancelled(progress)?;
                let variant = (round + place) % variants.len();
                let result = turn(&mut variants[variant], Turn { variant, is_warm_up: round == 0 })?;
                if round > 0 {
                    results[variant].push(result);
                }
            }
        }
        Ok(results)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deltaloom::Silent;

    #[test]
    fn variants_take_turns_and_the_first_round_does_not_count() {
        let mut order = Vec::new();
        let mut variants = [10, 20, 30];
        let rounds = Rounds::new(2).unwrap();
        let results = rounds.run(&mut variants, &Silent, |variant, turn| -> Result<_> {
            *variant += 1;
            order.push((turn.variant, turn.is_warm_up));
            Ok(*variant)
        });
        assert_eq!(results.unwrap(), [[12, 13], [22, 23], [32, 33]]);
        let first = [(0, true), (1, true), (2, true)];
        assert_eq!(order[..3], first);
        assert_eq!(order[3..], [(1, false), (2, false), (0, false), (2, false), (0, false), (1, false)]);
        assert_eq!(rounds.turns(3), 9);
        assert!(Rounds::new(0).is_err());
    }

    #[test]
    fn a_fault_or_a_wish_to_stop_ends_it() {
        let rounds = Rounds::new(5).unwrap();
        let failed = rounds.run(&mut [()], &Silent, |(), _| Err::<(), Error>(Error::Cancelled));
        assert!(matches!(failed, Err(Error::Cancelled)));
        struct Stop;
        impl Progress for Stop {
            fn start(&self, _: u64) {}
            fn advance(&self, _: u64) {}
            fn is_cancelled(&self) -> bool {
                true
            }
        }
        let stopped = rounds.run(&mut [()], &Stop, |(), _| -> Result<()> { unreachable!() });
        assert!(matches!(stopped, Err(Error::Cancelled)));
    }
}
