//! Which steps pruning keeps: rules as people write them, such as `last 20, every 100, best loss
//! 3`.
//! It removes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::manifest::StepEntry;
use crate::error::{Error, Result};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    /// The newest N steps.
    Last(usize),
    /// Steps whose number is a multiple.
    Every(u64),
    /// The N steps with the least (or greatest) number under a name.
    Extreme { name: String, count: usize, greatest: bool },
    /// A single step.
    Step(u64),
    /// All keyframes.
    Keyframes,
}

/// A step that is kept, and the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KeptStep {
    /// The step.
    pub step: u64,
    /// The rules that keep it. `newest` stands for the newest step.
    pub rules: Vec<String>,
}

/// Rules that each keep some steps. The newest step is always kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepRules(Vec<Rule>);

impl KeepRules {
    /// The possible rules, for messages.
    pub const SYNTAX: &str =
        "last N | every N | best NAME [N] | highest NAME [N] | step N | keyframes, with commas between";

    /// The steps that are kept, in order, with the rules that keep them.
    ///
    /// # Errors
    /// [`Error::KeepRule`] for a name or step that does not exist, and if no rule keeps anything.
    /// Each is a mistake that would lose steps.
    pub(crate) fn kept(&self, entries: &[StepEntry]) -> Result<Vec<KeptStep>> {
        let mut kept: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        let Some(newest) = entries.last() else { return Ok(Vec::new()) };
        for rule in &self.0 {
            rule.check(entries)?;
            for step in rule.kept(entries) {
                kept.entry(step).or_default().push(rule.to_string());
            }
        }
        if kept.is_empty() {
            let what = format!("{:?} keeps none of the {} steps", self.to_string(), entries.len());
            return Err(Error::KeepRule { what });
        }
        kept.entry(newest.step).or_default().push("newest".to_owned());
        Ok(kept.into_iter().map(|(step, rules)| KeptStep { step, rules }).collect())
    }
}

impl Rule {
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let positive = |count: &str| count.parse().ok().filter(|count: &usize| *count > 0);
        let extreme = |word: &str, name: &str, count: usize| Self::Extreme {
            name: name.to_owned(),
            count,
            greatest: word == "highest",
        };
        Some(match words[..] {
            ["last", count] => Self::Last(positive(count)?),
            ["every", count] => Self::Every(count.parse().ok().filter(|count| *count > 0)?),
            [word @ ("best" | "highest"), name] => extreme(word, name, 1),
            [word @ ("best" | "highest"), name, count] => extreme(word, name, positive(count)?),
            ["step", step] => Self::Step(step.parse().ok()?),
            ["keyframes"] => Self::Keyframes,
            _ => return None,
        })
    }

    /// Checks that the names and steps in it exist.
    fn check(&self, entries: &[StepEntry]) -> Result<()> {
        let what = match self {
            Self::Step(step) if entries.iter().all(|entry| entry.step != *step) => {
                format!("there is no step {step}")
            }
            Self::Extreme { name, .. } if entries.iter().all(|entry| number(entry, name).is_none()) => {
                let all = entries.iter().flat_map(|entry| entry.meta.keys().map(move |key| (entry, key)));
                let numbers = all.filter(|(entry, key)| number(entry, key).is_some());
                let names: BTreeSet<&str> = numbers.map(|(_, key)| key.as_str()).collect();
                let there = match names.into_iter().collect::<Vec<_>>().join(", ") {
                    none if none.is_empty() => "no step has any".to_owned(),
                    names => format!("there are: {names}"),
                };
                format!("no step has a number under {name:?} in its text; {there}")
            }
            _ => return Ok(()),
        };
        Err(Error::KeepRule { what })
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
                let numbered = |entry: &StepEntry| Some((number(entry, name)?, entry.step));
                let mut numbers: Vec<(f64, u64)> = entries.iter().filter_map(numbered).collect();
                numbers.sort_by(|(a, _), (b, _)| if *greatest { b.total_cmp(a) } else { a.total_cmp(b) });
                numbers.into_iter().take(*count).map(|(_, step)| step).collect()
            }
        }
    }
}

/// The number that a step has under a name.
fn number(entry: &StepEntry, name: &str) -> Option<f64> {
    let number: f64 = entry.meta.get(name)?.parse().ok()?;
    (!number.is_nan()).then_some(number)
}

impl FromStr for KeepRules {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let rule = |part: &str| {
            let wrong = || {
                Error::InvalidArgument(format!(
                    "{:?} is not a rule; the rules are: {}",
                    part.trim(),
                    Self::SYNTAX
                ))
            };
            Rule::parse(part).ok_or_else(wrong)
        };
        text.split(',').map(rule).collect::<Result<_>>().map(Self)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Last(count) => write!(f, "last {count}"),
            Self::Every(count) => write!(f, "every {count}"),
            Self::Extreme { name, count, greatest } => {
                write!(f, "{} {name} {count}", if *greatest { "highest" } else { "best" })
            }
            Self::Step(step) => write!(f, "step {step}"),
            Self::Keyframes => f.write_str("keyframes"),
        }
    }
}

impl fmt::Display for KeepRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, rule) in self.0.iter().enumerate() {
            write!(f, "{}{rule}", if i == 0 { "" } else { ", " })?;
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
        rules.kept(entries).unwrap().into_iter().map(|kept| kept.step).collect()
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
        let why: KeepRules = "last 1, every 30".parse().unwrap();
        let why = why.kept(&entries).unwrap();
        assert_eq!(
            why[3],
            KeptStep { step: 90, rules: vec!["last 1".into(), "every 30".into(), "newest".into()] }
        );
        assert!(why[0].rules == ["every 30"] && kept("last 1", &[]).is_empty());
    }

    #[test]
    fn rules_that_miss_are_refused() {
        let mut entries: Vec<StepEntry> = (1..4).map(|step| entry(step, None, 0, 0)).collect();
        entries[0].meta.insert("note".into(), "x".into());
        let cases = [
            ("best los 3, last 2", "\"los\" in its text; there are: loss"),
            ("highest note", "there are: loss"),
            ("step 7, last 2", "there is no step 7"),
            ("every 1000", "keeps none of the 3 steps"),
        ];
        for (rules, said) in cases {
            let error = rules.parse::<KeepRules>().unwrap().kept(&entries).unwrap_err().to_string();
            assert!(error.contains(said), "{rules}: {error}");
        }
    }

    #[test]
    fn other_words_are_refused() {
        for text in
            ["", "last", "last x", "every 0", "last 3,", "all", "best", "step -1", "last 0", "best loss 0"]
        {
            assert!(text.parse::<KeepRules>().is_err(), "{text:?}");
        }
    }
}
