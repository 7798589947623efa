//! Which steps pruning keeps: rules as people write them, such as `last 20, every 100, best loss 3`.
//! It removes nothing.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use super::manifest::StepEntry;
use crate::error::{Error, Result};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    /// The newest so many.
    Last(usize),
    /// Those whose step is a multiple.
    Every(u64),
    /// Those so many with the least (or greatest) number under a name.
    Extreme { name: String, count: usize, greatest: bool },
    /// One.
    Step(u64),
    /// Those that stand by themselves.
    Keyframes,
}

/// Rules of which each keeps some steps; the newest step is always kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepRules(Vec<Rule>);

impl KeepRules {
    /// What the rules may be, for messages.
    pub const SYNTAX: &str =
        "last N | every N | best NAME [N] | highest NAME [N] | step N | keyframes, with commas between";

    /// The steps that are kept.
    pub(crate) fn kept(&self, entries: &[StepEntry]) -> HashSet<u64> {
        let newest = entries.last().map(|entry| entry.step);
        self.0.iter().flat_map(|rule| rule.kept(entries)).chain(newest).collect()
    }
}

impl Rule {
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let extreme = |word: &str, name: &str, count: usize| Self::Extreme {
            name: name.to_owned(),
            count,
            greatest: word == "highest",
        };
        Some(match words[..] {
            ["last", count] => Self::Last(count.parse().ok()?),
            ["every", count] => Self::Every(count.parse().ok().filter(|count| *count > 0)?),
            [word @ ("best" | "highest"), name] => extreme(word, name, 1),
            [word @ ("best" | "highest"), name, count] => extreme(word, name, count.parse().ok()?),
            ["step", step] => Self::Step(step.parse().ok()?),
            ["keyframes"] => Self::Keyframes,
            _ => return None,
        })
    }

    fn kept(&self, entries: &[StepEntry]) -> Vec<u64> {
        let steps =
            |keep: &dyn Fn(&&StepEntry) -> bool| entries.iter().filter(keep).map(|e| e.step).collect();
        match self {
            Self::Last(count) => entries.iter().rev().take(*count).map(|entry| entry.step).collect(),
            Self::Every(count) => steps(&|entry| entry.step.is_multiple_of(*count)),
            Self::Step(step) => steps(&|entry| entry.step == *step),
            Self::Keyframes => steps(&|entry| entry.is_keyframe()),
            Self::Extreme { name, count, greatest } => {
                let number = |entry: &StepEntry| {
                    let number: f64 = entry.meta.get(name)?.parse().ok()?;
                    (!number.is_nan()).then_some((number, entry.step))
                };
                let mut numbers: Vec<(f64, u64)> = entries.iter().filter_map(number).collect();
                numbers.sort_by(|(a, _), (b, _)| if *greatest { b.total_cmp(a) } else { a.total_cmp(b) });
                numbers.into_iter().take(*count).map(|(_, step)| step).collect()
            }
        }
    }
}

impl FromStr for KeepRules {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let rule = |part: &str| {
            let wrong = || {
                Error::InvalidArgument(format!("{:?} is no rule; rules are: {}", part.trim(), Self::SYNTAX))
            };
            Rule::parse(part).ok_or_else(wrong)
        };
        text.split(',').map(rule).collect::<Result<_>>().map(Self)
    }
}

impl fmt::Display for KeepRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, rule) in self.0.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { ", " })?;
            match rule {
                Rule::Last(count) => write!(f, "last {count}"),
                Rule::Every(count) => write!(f, "every {count}"),
                Rule::Extreme { name, count, greatest } => {
                    write!(f, "{} {name} {count}", if *greatest { "highest" } else { "best" })
                }
                Rule::Step(step) => write!(f, "step {step}"),
                Rule::Keyframes => f.write_str("keyframes"),
            }?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::entry;
    use super::*;

    fn kept(rules: &str, entries: &[StepEntry]) -> Vec<u64> {
        let rules: KeepRules = rules.parse().unwrap();
        assert_eq!(rules.to_string().parse::<KeepRules>().unwrap(), rules);
        let mut kept: Vec<u64> = rules.kept(entries).into_iter().collect();
        kept.sort_unstable();
        kept
    }

    #[test]
    fn rules_add_up_and_the_newest_stays() {
        let mut entries: Vec<StepEntry> = (0..10)
            .map(|i| entry(10 * i, (i % 4 != 0).then(|| 10 * (i - 1)), u32::from(i % 4 != 0), 0))
            .collect();
        for (entry, loss) in entries.iter_mut().zip(["5", "3", "NaN", "x", "1", "2", "9", "8", "7", "6"]) {
            entry.meta.insert("loss".into(), loss.into());
        }
        assert_eq!(kept("last 2", &entries), [80, 90]);
        assert_eq!(kept("every 40, step 10", &entries), [0, 10, 40, 80, 90]);
        assert_eq!(kept("best loss 3", &entries), [10, 40, 50, 90]);
        assert_eq!(kept("highest loss", &entries), [60, 90]);
        assert_eq!(kept("keyframes", &entries), [0, 40, 80, 90]);
        assert_eq!(kept("best accuracy 3", &entries), [90]);
    }

    #[test]
    fn other_words_are_refused() {
        for text in ["", "last", "last x", "every 0", "last 3,", "all", "best", "step -1"] {
            assert!(text.parse::<KeepRules>().is_err(), "{text:?}");
        }
    }
}
