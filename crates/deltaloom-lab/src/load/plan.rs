//! Requests from a seed: number n is the same in every run.

use std::ops::RangeInclusive;
use std::time::Duration;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

use super::LoadOptions;

/// Beginnings that many prompts share, as system prompts are.
const SHARED: u64 = 4;
const SHARED_TOKENS: usize = 48;

/// A request to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// The model's name.
    pub model: String,
    /// Ids.
    pub prompt: Vec<u32>,
    /// Tokens to generate. End ids do not end it.
    pub max_tokens: usize,
    /// 0 or 0.8.
    pub temperature: f32,
    /// Selects the random numbers.
    pub seed: u64,
}

/// Makes requests.
pub(super) struct Planner {
    models: Vec<String>,
    /// The share of each model and those before it.
    shares: Vec<f64>,
    prompt_tokens: RangeInclusive<usize>,
    max_tokens: RangeInclusive<usize>,
    vocabulary: u32,
    seed: u64,
}

impl Planner {
    pub(super) fn new(options: &LoadOptions) -> Self {
        let mut sum = 0.0;
        let weight = |place: usize| (place as f64 + 1.0).powf(-options.zipf);
        let sums: Vec<f64> = (0..options.models.len())
            .map(|place| {
                sum += weight(place);
                sum
            })
            .collect();
        Self {
            models: options.models.clone(),
            shares: sums.iter().map(|passed| passed / sum).collect(),
            prompt_tokens: options.prompt_tokens.clone(),
            max_tokens: options.max_tokens.clone(),
            vocabulary: options.vocabulary,
            seed: options.seed,
        }
    }

    fn random(&self, number: u64, stream: u64) -> Random {
        let mut hasher = blake3::Hasher::new_derive_key("deltaloom load of requests");
        [self.seed, number, stream].iter().for_each(|part| {
            hasher.update(&part.to_le_bytes());
        });
        Random(Xoshiro256PlusPlus::from_seed(hasher.finalize().into()))
    }

    /// The request with this number.
    pub(super) fn request(&self, number: u64) -> Planned {
        let mut random = self.random(number, 0);
        let drawn = random.unit();
        let place = self.shares.iter().position(|share| drawn < *share).unwrap_or(0);
        let tokens = random.within(&self.prompt_tokens);
        let beginning = random.below(2 * SHARED);
        let mut shared = self.random(beginning, 1);
        let ids = u64::from(self.vocabulary);
        let prompt = (0..tokens).map(|at| {
            let is_shared = beginning < SHARED && at < SHARED_TOKENS;
            if is_shared { shared.below(ids) } else { random.below(ids) }
        });
        Planned {
            model: self.models[place].clone(),
            prompt: prompt.map(|id| u32::try_from(id).unwrap_or(0)).collect(),
            max_tokens: random.within(&self.max_tokens),
            temperature: if random.below(2) == 0 { 0.0 } else { 0.8 },
            seed: random.below(1 << 20),
        }
    }

    /// The time between two arrivals.
    pub(super) fn pause(&self, number: u64, rate: f64) -> Duration {
        let unit = self.random(number, 2).unit();
        Duration::try_from_secs_f64(-(1.0 - unit).ln() / rate).unwrap_or(Duration::MAX)
    }
}

struct Random(Xoshiro256PlusPlus);

impl Random {
    /// From 0 up to but not including 1.
    fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0.next_u64() % limit.max(1)
    }

    fn within(&mut self, range: &RangeInclusive<usize>) -> usize {
        let more = self.below((range.end() - range.start() + 1) as u64);
        range.start() + usize::try_from(more).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn planner(zipf: f64) -> Planner {
        Planner::new(&LoadOptions {
            address: ([127, 0, 0, 1], 1).into(),
            key: None,
            models: ["a", "b", "c"].map(str::to_owned).into(),
            zipf,
            clients: 1,
            rate: None,
            duration: Duration::ZERO,
            requests: 0,
            vocabulary: 100,
            prompt_tokens: 1..=80,
            max_tokens: 3..=5,
            seed: 7,
        })
    }

    #[test]
    fn requests_depend_on_their_number_alone() {
        let planner = planner(1.0);
        let all: Vec<Planned> = (0..600).map(|number| planner.request(number)).collect();
        assert_eq!(planner.request(17), all[17]);
        assert!(all.iter().all(|it| (1..=80).contains(&it.prompt.len()) && (3..=5).contains(&it.max_tokens)));
        assert!(all.iter().all(|it| it.prompt.iter().all(|id| *id < 100)));
        let count = |model: &str| all.iter().filter(|it| it.model == model).count();
        // Weights 1, 1/2 and 1/3.
        assert!((280..380).contains(&count("a")) && count("b") > count("c") && count("c") > 70);
        let long: Vec<&[u32]> = all.iter().filter_map(|it| it.prompt.get(..SHARED_TOKENS)).collect();
        let alike =
            long.iter().filter(|start| long.iter().filter(|other| other == start).count() > 1).count();
        assert!(alike > long.len() / 4, "{alike} of {}", long.len());
    }

    #[test]
    fn arrivals_have_the_rate() {
        let planner = planner(0.0);
        let sum: Duration = (0..4000).map(|number| planner.pause(number, 50.0)).sum();
        assert!((sum.as_secs_f64() - 80.0).abs() < 4.0, "{sum:?}");
    }
}
