//! Tables of rotary positions: radians per position for each pair of elements of a head. Pure
//! functions, computed in F64 and rounded to FP32 once.

use std::f64::consts::TAU;

use deltaloom::{Error, Result};

/// The most tokens of any number, and the largest factor: positions are exact in FP32 up to there.
pub(crate) const MAX_POSITIONS: usize = 1 << 24;

/// How fast pairs of elements turn. Settings have the meaning that they have in transformers.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Table {
    /// `theta^(-2 i / size)`.
    Default,
    /// All of them slower: position interpolation (2306.15595).
    Linear {
        /// How much slower.
        factor: f64,
    },
    /// A theta that grows with the length of the text.
    Dynamic {
        /// 1 for the growth of [`Self::Ntk`] by length over `trained`; more for a steeper one.
        factor: f64,
        /// The trained length.
        trained: usize,
        /// Whose length.
        #[serde(default)]
        by: By,
    },
    /// A larger theta, so that the last pair is slower by the factor and the first stays.
    Ntk {
        /// How much slower the last pair is.
        factor: f64,
    },
    /// Slow pairs slower, fast ones as they are, a ramp between, and larger scores (2309.00071).
    Yarn {
        /// How much slower.
        factor: f64,
        /// The trained length.
        trained: usize,
        /// Pairs that turn more often within the trained length stay.
        beta_fast: f64,
        /// Pairs that turn less often are slower by the factor.
        beta_slow: f64,
        /// The factor of cosines and sines, if it is said.
        #[serde(default)]
        attention_factor: Option<f64>,
        /// With `mscale_all_dim`, what it is computed from.
        #[serde(default)]
        mscale: Option<f64>,
        /// See `mscale`.
        #[serde(default)]
        mscale_all_dim: Option<f64>,
        /// Whether the ends of the ramp are whole pairs.
        #[serde(default = "yes")]
        truncate: bool,
    },
    /// A divisor for each pair (2402.13753).
    Longrope {
        /// Divisors up to the trained length.
        short: Vec<f32>,
        /// Divisors above it.
        long: Vec<f32>,
        /// The trained length.
        trained: usize,
        /// The target over the trained length; scores are larger by it.
        factor: f64,
        /// The factor of cosines and sines, if it is said.
        #[serde(default)]
        attention_factor: Option<f64>,
        /// Whose length.
        #[serde(default)]
        by: By,
    },
    /// Slow pairs slower, fast ones as they are, and a mix between: LLaMA 3.1.
    Llama3 {
        /// How much slower.
        factor: f64,
        /// Pairs that turn less often within the trained length are slower by the factor.
        low: f64,
        /// Pairs that turn more often stay.
        high: f64,
        /// The trained length.
        trained: usize,
    },
    /// Only the first pairs turn.
    Proportional {
        /// Their share.
        share: f64,
    },
    /// These radians per position.
    Custom(Vec<f32>),
}

/// Which length chooses a table that depends on length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum By {
    /// The position of the query: within the trained length, twice that, four times, and so on. All
    /// keys that it sees turn by its table, so a text computed at once is the text token by token.
    #[default]
    Query,
    /// One length for the whole sequence, which is told: what transformers does with a prompt.
    Sequence {
        /// The length.
        tokens: usize,
    },
}

fn yes() -> bool {
    true
}

impl Table {
    /// Checks that it can be computed for heads of this size.
    pub(super) fn check(&self, theta: f32, size: usize) -> Result<()> {
        let wrong = |what: &str| {
            Err(Error::InvalidArgument(format!("rotary positions of type {}: {what}", self.name())))
        };
        let is_within = |number: f64, least: f64| number >= least && number <= MAX_POSITIONS as f64;
        let is_positive = |number: f64| number > 0.0 && number.is_finite();
        let (factor, trained, by) = match *self {
            Self::Linear { factor } | Self::Ntk { factor } => (factor, None, By::Query),
            Self::Dynamic { factor, trained, by } | Self::Longrope { factor, trained, by, .. } => {
                (factor, Some(trained), by)
            }
            Self::Yarn { factor, trained, .. } | Self::Llama3 { factor, trained, .. } => {
                (factor, Some(trained), By::Query)
            }
            Self::Default | Self::Proportional { .. } | Self::Custom(_) => (1.0, None, By::Query),
        };
        if !is_within(factor, 1.0) {
            return wrong(&format!("the factor is {factor}: must be from 1 to {MAX_POSITIONS}"));
        }
        if let Some(trained) = trained.filter(|trained| !(2..=MAX_POSITIONS).contains(trained)) {
            return wrong(&format!("the trained length is {trained}: must be from 2 to {MAX_POSITIONS}"));
        }
        if let By::Sequence { tokens } = by
            && !(1..=MAX_POSITIONS).contains(&tokens)
        {
            return wrong(&format!("the length is {tokens} tokens: must be from 1 to {MAX_POSITIONS}"));
        }
        match self {
            Self::Yarn { beta_fast, beta_slow, attention_factor, mscale, mscale_all_dim, .. } => {
                if !(is_positive(*beta_fast) && is_positive(*beta_slow) && beta_fast >= beta_slow) {
                    return wrong("beta_fast must be at least beta_slow, and both finite and positive");
                }
                let factors = [attention_factor, mscale, mscale_all_dim];
                if !factors.into_iter().flatten().all(|factor| is_positive(*factor)) {
                    return wrong("factors of attention must be finite and positive");
                }
            }
            Self::Llama3 { low, high, .. } => {
                if !(is_positive(*low) && is_positive(*high) && low < high) {
                    return wrong("the high factor must be above the low one, and both finite and positive");
                }
            }
            Self::Longrope { short, long, attention_factor, .. } => {
                for (name, list) in [("short", short), ("long", long)] {
                    if list.len() != size / 2 {
                        let (found, needed) = (list.len(), size / 2);
                        return wrong(&format!("{found} {name} factors, a head has {needed} pairs"));
                    }
                    if !list.iter().all(|factor| is_positive((*factor).into())) {
                        return wrong(&format!("the {name} factors must be finite and positive"));
                    }
                }
                if attention_factor.is_some_and(|factor| !is_positive(factor)) {
                    return wrong("the factor of attention must be finite and positive");
                }
            }
            Self::Proportional { share } => {
                let width = share * size as f64;
                let is_even = (width / 2.0 - (width / 2.0).round()).abs() < 1e-9;
                if !(*share > 0.0 && *share <= 1.0 && is_even && width >= 1.0) {
                    return wrong(&format!(
                        "a share of {share} of {size} elements: must be an even number of them, above 0"
                    ));
                }
            }
            Self::Custom(rates) => {
                if rates.len() != size / 2 {
                    let (found, needed) = (rates.len(), size / 2);
                    return wrong(&format!("{found} numbers, a head has {needed} pairs"));
                }
                if !rates.iter().all(|rate| *rate >= 0.0) {
                    return wrong("numbers must be finite and not negative");
                }
            }
            Self::Default | Self::Linear { .. } | Self::Dynamic { .. } | Self::Ntk { .. } => (),
        }
        let numbers = self.rates(theta, size, 0);
        if !(numbers.iter().all(|rate| rate.is_finite()) && is_positive(self.attention_factor())) {
            return wrong("its numbers overflow");
        }
        Ok(())
    }

    /// Its name in transformers.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Linear { .. } => "linear",
            Self::Dynamic { .. } => "dynamic",
            Self::Ntk { .. } => "ntk",
            Self::Yarn { .. } => "yarn",
            Self::Longrope { .. } => "longrope",
            Self::Llama3 { .. } => "llama3",
            Self::Proportional { .. } => "proportional",
            Self::Custom(_) => "custom",
        }
    }

    /// Whether queries of one sequence may have different tables.
    pub(super) fn is_by_query(&self) -> bool {
        matches!(self, Self::Dynamic { by: By::Query, .. } | Self::Longrope { by: By::Query, .. })
    }

    /// The number of the table for a query at this position.
    pub(super) fn number(&self, position: usize) -> usize {
        match *self {
            Self::Dynamic { trained, by: By::Query, .. } => {
                // The exponent of the least power of two that is at least length over trained.
                (position + 1).div_ceil(trained).next_power_of_two().trailing_zeros() as usize
            }
            Self::Longrope { trained, by: By::Query, .. } => usize::from(position >= trained),
            _ => 0,
        }
    }

    /// The longest sequence for which queries take table `number`; `None` for any.
    pub(super) fn longest(&self, number: usize) -> Option<usize> {
        match *self {
            Self::Dynamic { trained, by: By::Query, .. } => {
                trained.checked_mul(1_usize.checked_shl(u32::try_from(number).ok()?)?)
            }
            Self::Longrope { trained, by: By::Query, .. } => (number == 0).then_some(trained),
            _ => None,
        }
    }

    /// Radians per position for each pair of elements of a head, in table `number`.
    ///
    /// The default ones are computed in FP32, as the models were trained with them; what changes
    /// them is computed in F64.
    #[expect(clippy::cast_possible_truncation, reason = "the table is FP32")]
    pub(crate) fn rates(&self, theta: f32, size: usize, number: usize) -> Vec<f32> {
        let single = |number: usize| number as f32;
        let default = (0..size / 2).map(|pair| 1.0 / libm::powf(theta, single(2 * pair) / single(size)));
        // What a theta that is larger by s^(size / (size - 2)) divides pair i by.
        let stretch = |s: f64, pair: usize| s.powf((2 * pair) as f64 / (size.max(3) - 2) as f64);
        let mix = |rate: f64, factor: f64, kept: f64| (1.0 - kept) * rate / factor + kept * rate;
        let ramp = self.ramp(theta, size);
        let changed =
            |(pair, rate): (usize, f32)| {
                let wide = f64::from(rate);
                let changed =
                    match self {
                        Self::Default => return rate,
                        Self::Linear { factor } => wide / factor,
                        Self::Ntk { factor } => wide / stretch(*factor, pair),
                        Self::Dynamic { factor, trained, by } => {
                            let length = match by {
                                By::Query => 2.0_f64.powi(number.min(64) as i32),
                                By::Sequence { tokens } => (*tokens).max(*trained) as f64 / *trained as f64,
                            };
                            wide / stretch(factor * length - (factor - 1.0), pair)
                        }
                        Self::Yarn { factor, .. } => {
                            let [low, high] = ramp;
                            mix(wide, *factor, 1.0 - ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0))
                        }
                        Self::Longrope { short, long, trained, by, .. } => {
                            let is_long = match by {
                                By::Query => number > 0,
                                By::Sequence { tokens } => tokens > trained,
                            };
                            wide / f64::from(if is_long { long[pair] } else { short[pair] })
                        }
                        Self::Llama3 { factor, low, high, trained } => {
                            // How often the pair turns within the trained length.
                            let turns = *trained as f64 * wide / TAU;
                            mix(wide, *factor, ((turns - low) / (high - low)).clamp(0.0, 1.0))
                        }
                        Self::Proportional { share } => {
                            if ((pair * 2) as f64) < (share * size as f64).round() { wide } else { 0.0 }
                        }
                        Self::Custom(rates) => return rates[pair],
                    };
                changed as f32
            };
        default.enumerate().map(changed).collect()
    }

    /// The ends of YaRN's ramp, as numbers of pairs.
    fn ramp(&self, theta: f32, size: usize) -> [f64; 2] {
        let Self::Yarn { trained, beta_fast, beta_slow, truncate, .. } = *self else { return [0.0, 1.0] };
        let pair =
            |turns: f64| size as f64 * (trained as f64 / (turns * TAU)).ln() / (2.0 * f64::from(theta).ln());
        let (low, high) = (pair(beta_fast), pair(beta_slow));
        let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(size as f64 - 1.0));
        [low, if low == high { high + 0.001 } else { high }]
    }

    /// The factor of cosines and sines.
    pub(crate) fn attention_factor(&self) -> f64 {
        match *self {
            Self::Yarn { attention_factor: Some(factor), .. }
            | Self::Longrope { attention_factor: Some(factor), .. } => factor,
            Self::Yarn { factor, mscale, mscale_all_dim, .. } => {
                let of = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
                match (mscale, mscale_all_dim) {
                    (Some(mscale), Some(all)) => of(mscale) / of(all),
                    _ => of(1.0),
                }
            }
            Self::Longrope { factor, trained, .. } if factor > 1.0 => {
                (1.0 + factor.ln() / (trained as f64).ln()).sqrt()
            }
            _ => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// What functions of transformers 5.24 give, in FP32.
    const GOLDEN: &str = include_str!("../../tests/assets/rope_golden.json");

    /// The table of a case, with its theta and the size of a head.
    fn case(config: &Value) -> (Table, f32, usize) {
        let number = |name: &str| config["rope"][name].as_f64();
        let whole = |name: &str| usize::try_from(config[name].as_u64().unwrap()).unwrap();
        let list = |name: &str| -> Vec<f32> { serde_json::from_value(config["rope"][name].clone()).unwrap() };
        let trained = whole("max_position_embeddings");
        let by = || By::Sequence { tokens: whole("seq_len") };
        let factor = number("factor").unwrap_or(1.0);
        let table = match config["rope"]["rope_type"].as_str().unwrap() {
            "linear" => Table::Linear { factor },
            "dynamic" => Table::Dynamic { factor, trained, by: by() },
            "yarn" => Table::Yarn {
                factor,
                trained,
                beta_fast: 32.0,
                beta_slow: 1.0,
                attention_factor: None,
                mscale: number("mscale"),
                mscale_all_dim: number("mscale_all_dim"),
                truncate: config["rope"]["truncate"].as_bool().unwrap_or(true),
            },
            "llama3" => Table::Llama3 { factor, low: 1.0, high: 4.0, trained },
            "longrope" => Table::Longrope {
                short: list("short_factor"),
                long: list("long_factor"),
                trained,
                factor,
                attention_factor: None,
                by: by(),
            },
            "proportional" => Table::Proportional { share: number("partial_rotary_factor").unwrap() },
            other => panic!("{other}"),
        };
        let theta: f32 = serde_json::from_value(config["rope"]["rope_theta"].clone()).unwrap();
        (table, theta, whole("hidden_size") / whole("heads"))
    }

    #[test]
    fn rope_tables_are_those_of_transformers() {
        let cases: Vec<Value> = serde_json::from_str(GOLDEN).unwrap();
        assert_eq!(cases.len(), 24);
        for golden in cases {
            let (table, theta, size) = case(&golden["config"]);
            table.check(theta, size).unwrap();
            let expected: Vec<f64> = serde_json::from_value(golden["inv_freq"].clone()).unwrap();
            let found = table.rates(theta, size, 0);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                let error = (f64::from(*found) - expected).abs();
                assert!(error <= 1e-6 * expected, "{}: {found} {expected}", golden["name"]);
            }
            let factor = golden["attention_factor"].as_f64().unwrap();
            assert!((table.attention_factor() - factor).abs() < 1e-9, "{}", golden["name"]);
        }
    }

    #[test]
    fn a_query_chooses_the_table_of_its_length() {
        let dynamic = |by| Table::Dynamic { factor: 1.0, trained: 256, by };
        let by_query = dynamic(By::Query);
        let numbers: Vec<usize> = [0, 255, 256, 511, 512, 1023, 1024].map(|at| by_query.number(at)).into();
        assert_eq!(numbers, [0, 0, 1, 1, 2, 2, 3]);
        for (number, tokens) in [(0, 100), (0, 256), (1, 512), (3, 2048)] {
            let sequence = dynamic(By::Sequence { tokens });
            assert_eq!(sequence.number(5000), 0);
            assert_eq!(by_query.rates(1e4, 64, number), sequence.rates(1e4, 64, 0));
        }
        assert_eq!(by_query.rates(1e4, 64, 0), Table::Default.rates(1e4, 64, 0));
    }

    #[test]
    fn long_wavelengths_grow_and_short_ones_stay() {
        let theta = 500_000.0;
        let plain = Table::Default.rates(theta, 64, 0);
        assert_eq!((plain.len(), plain[0]), (32, 1.0));
        let linear = Table::Linear { factor: 4.0 }.rates(theta, 64, 0);
        assert!(plain.iter().zip(&linear).all(|(a, b)| *b == a / 4.0));
        let ntk = Table::Ntk { factor: 4.0 }.rates(theta, 64, 0);
        assert!(ntk[0] == 1.0 && (ntk[31] / (plain[31] / 4.0) - 1.0).abs() < 1e-6);
        let llama3 = Table::Llama3 { factor: 8.0, low: 1.0, high: 4.0, trained: 8192 }.rates(theta, 64, 0);
        // Pair 31 turns once in 2 million tokens.
        assert!(llama3[0] == plain[0] && llama3[31] == plain[31] / 8.0);
        let between = plain.iter().zip(&llama3).filter(|(a, b)| a != b && **b > *a / 7.99).count();
        assert!((1..6).contains(&between), "{between}");
        for one in [Table::Linear { factor: 1.0 }, Table::Ntk { factor: 1.0 }] {
            assert_eq!(one.rates(theta, 64, 0), plain);
        }
    }

    #[test]
    fn impossible_tables_are_refused() {
        let yarn = |factor, trained, beta_fast, mscale| Table::Yarn {
            factor,
            trained,
            beta_fast,
            beta_slow: 1.0,
            attention_factor: None,
            mscale,
            mscale_all_dim: mscale,
            truncate: true,
        };
        let longrope = |short: &[f32], long: &[f32]| Table::Longrope {
            short: short.to_vec(),
            long: long.to_vec(),
            trained: 256,
            factor: 4.0,
            attention_factor: None,
            by: By::Query,
        };
        let llama3 = |low, high| Table::Llama3 { factor: 8.0, low, high, trained: 256 };
        let bad = [0.5, 0.0, -1.0, f64::NAN, f64::INFINITY, 1e30];
        let mut tables: Vec<Table> = bad.map(|factor| Table::Linear { factor }).into();
        tables.extend(bad.map(|factor| Table::Ntk { factor }));
        tables.extend(bad.map(|factor| Table::Dynamic { factor, trained: 256, by: By::Query }));
        tables.extend([
            Table::Dynamic { factor: 1.0, trained: 0, by: By::Query },
            Table::Dynamic { factor: 1.0, trained: 9, by: By::Sequence { tokens: 0 } },
            yarn(4.0, 0, 32.0, None),
            yarn(4.0, 256, 0.5, None),
            yarn(4.0, 256, f64::NAN, None),
            yarn(4.0, 256, 32.0, Some(0.0)),
            longrope(&[1.0; 3], &[1.0; 4]),
            longrope(&[1.0; 4], &[1.0; 400]),
            longrope(&[1.0; 4], &[1.0, 1.0, 0.0, 1.0]),
            longrope(&[1.0, f32::NAN, 1.0, 1.0], &[1.0; 4]),
            llama3(4.0, 4.0),
            llama3(4.0, 1.0),
            llama3(0.0, 1.0),
            Table::Proportional { share: 0.0 },
            Table::Proportional { share: 1.5 },
            Table::Proportional { share: 0.125 },
            Table::Proportional { share: f64::NAN },
            Table::Custom(vec![1.0; 3]),
            Table::Custom(vec![1.0, 1.0, f32::NAN, 1.0]),
            Table::Custom(vec![1.0, 1.0, f32::INFINITY, 1.0]),
            Table::Custom(vec![1.0, 1.0, -1.0, 1.0]),
        ]);
        for table in tables {
            let error = table.check(1e4, 8).unwrap_err().to_string();
            assert!(error.contains(table.name()), "{error}");
        }
        for good in [yarn(4.0, 256, 32.0, Some(1.0)), longrope(&[1.0; 4], &[2.0; 4]), llama3(1.0, 4.0)] {
            good.check(1e4, 8).unwrap();
        }
    }
}
