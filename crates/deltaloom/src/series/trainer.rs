//! The log that the Trainer of transformers writes beside the weights, `trainer_state.json`: the
//! numbers that belong to a step, such as its loss.
//! What is not a finite number of a known step is left out.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, Result};
use crate::limits::Limits;

const FILE_NAME: &str = "trainer_state.json";
/// A log of a line a step has about 150 bytes a line.
const MAX_BYTES: u64 = 64 << 20;
/// Numbers of a step that are kept, so that the manifest of a series stays small.
const MAX_METRICS: usize = 12;
const MAX_NAME_BYTES: usize = 64;
/// Names that are remembered while the log is read.
const MAX_NAMES: usize = 1024;
/// If there are more numbers than are kept, these come first.
const FIRST: [&str; 5] = ["loss", "eval_loss", "learning_rate", "grad_norm", "epoch"];

/// The numbers of a step from `trainer_state.json`: in the folder of a checkpoint, or beside its
/// file. They are those of the newest line up to that step; what was evaluated counts if no line of
/// training is newer. The log of a folder knows its step; that of a file is searched for `step`.
/// Empty if there is no log.
///
/// # Errors
/// [`Error::Io`], [`Error::LimitExceeded`], or [`Error::Corrupt`] if it is not such a log.
pub fn trainer_metrics(checkpoint: &Path, step: Option<u64>) -> Result<BTreeMap<String, String>> {
    let is_folder = checkpoint.is_dir();
    let folder = if is_folder { checkpoint } else { checkpoint.parent().unwrap_or(checkpoint) };
    let path = folder.join(FILE_NAME);
    if !path.is_file() {
        return Ok(BTreeMap::new());
    }
    let mut bytes = Vec::new();
    let file = File::open(&path).map_err(Error::io(&path))?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io(&path))?;
    let checked = Limits::check("the log of a trainer in bytes", bytes.len() as u64, MAX_BYTES);
    checked.and_then(|()| metrics(&mut bytes, step, is_folder)).map_err(|e| e.in_file(&path))
}

fn metrics(bytes: &mut [u8], step: Option<u64>, knows_step: bool) -> Result<BTreeMap<String, String>> {
    blank_nonfinite(bytes);
    let corrupt = |e: serde_json::Error| Error::corrupt(format!("not the log of a trainer: {e}"));
    let Own { global_step } = serde_json::from_slice(bytes).map_err(corrupt)?;
    let global_step = global_step.and_then(|Number(number)| number).and_then(whole);
    let last = if knows_step { global_step.or(step) } else { step.or(global_step) };
    let mut log = Log { last: last.unwrap_or(u64::MAX), newest: BTreeMap::new(), lines: [0; 3] };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    State(&mut log).deserialize(&mut json).map_err(corrupt)?;
    let place = |name: &str| FIRST.iter().position(|first| *first == name).unwrap_or(FIRST.len());
    let lines = log.lines;
    let is_current = |(name, (step, _)): &(String, (u64, f64))| {
        *step >= lines[Kind::of(name) as usize] && *step >= lines[Kind::Training as usize]
    };
    let mut found: Vec<(String, f64)> =
        log.newest.into_iter().filter(is_current).map(|(name, (_, value))| (name, value)).collect();
    found.sort_by_key(|(name, _)| place(name));
    found.truncate(MAX_METRICS);
    Ok(found.into_iter().map(|(name, value)| (name, text(value))).collect())
}

/// Python writes `NaN` and `Infinity`, which JSON does not have. Outside of texts they become empty
/// texts of the same length.
fn blank_nonfinite(bytes: &mut [u8]) {
    const WORDS: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
    let (mut at, mut is_text) = (0, false);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if is_text => at += 1,
            b'"' => is_text = !is_text,
            _ if is_text => {}
            _ => {
                if let Some(word) = WORDS.iter().find(|word| bytes[at..].starts_with(word)) {
                    bytes[at..at + word.len()].fill(b' ');
                    bytes[at..at + 2].fill(b'"');
                    at += word.len() - 1;
                }
            }
        }
        at += 1;
    }
}

/// A number to ten digits: the last ones of a float are noise, and parsing may change them.
fn text(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return format!("{value:.0}");
    }
    let rounded = format!("{value:.9e}").parse().unwrap_or(value);
    serde_json::Number::from_f64(rounded).map_or_else(String::new, |number| number.to_string())
}

fn whole(value: f64) -> Option<u64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and in range")]
    (value.fract() == 0.0 && (0.0..9e15).contains(&value)).then_some(value as u64)
}

/// The step of the checkpoint itself.
#[derive(serde::Deserialize)]
struct Own {
    global_step: Option<Number>,
}

/// What a line of the log is about, by the names of its numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Training,
    /// `eval_...`
    Evaluation,
    /// `train_...`, once at the end.
    Summary,
}

impl Kind {
    fn of(name: &str) -> Self {
        match name {
            _ if name.starts_with("eval_") => Self::Evaluation,
            _ if name.starts_with("train_") => Self::Summary,
            _ => Self::Training,
        }
    }
}

/// The newest value of each name, with its step, up to the last step that counts.
struct Log {
    last: u64,
    newest: BTreeMap<String, (u64, f64)>,
    /// The step of the newest line of each kind.
    lines: [u64; 3],
}

impl Log {
    fn add(&mut self, line: BTreeMap<String, Number>) {
        let Some(step) = line.get("step").and_then(|number| whole(number.0?)) else { return };
        if step > self.last {
            return;
        }
        let kinds = || line.keys().map(|name| Kind::of(name));
        let kind = kinds().find(|kind| *kind != Kind::Training).unwrap_or(Kind::Training);
        let newest = &mut self.lines[kind as usize];
        *newest = step.max(*newest);
        for (name, Number(value)) in line {
            let Some(value) = value.filter(|_| is_metric(&name)) else { continue };
            let is_full = self.newest.len() >= MAX_NAMES;
            match self.newest.get_mut(&name) {
                Some(newest) if newest.0 <= step => *newest = (step, value),
                None if !is_full => drop(self.newest.insert(name, (step, value))),
                _ => {}
            }
        }
    }
}

/// Whether a name is that of a number about the model, not about the time it took.
fn is_metric(name: &str) -> bool {
    let is_plain = (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'=');
    let is_of_time = name.ends_with("_runtime") || name.ends_with("_per_second");
    is_plain && !is_of_time && !matches!(name, "step" | "total_flos")
}

/// A finite number; none for any other value.
#[derive(Clone, Copy)]
struct Number(Option<f64>);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(NumberVisitor)
    }
}

struct NumberVisitor;

type Found<T, E> = std::result::Result<T, E>;

impl<'de> Visitor<'de> for NumberVisitor {
    type Value = Number;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_f64<E>(self, value: f64) -> Found<Number, E> {
        Ok(Number(Some(value).filter(|value| value.is_finite())))
    }

    fn visit_u64<E>(self, value: u64) -> Found<Number, E> {
        Ok(Number(Some(value as f64)))
    }

    fn visit_i64<E>(self, value: i64) -> Found<Number, E> {
        Ok(Number(Some(value as f64)))
    }

    fn visit_bool<E>(self, _: bool) -> Found<Number, E> {
        Ok(Number(None))
    }

    fn visit_str<E>(self, _: &str) -> Found<Number, E> {
        Ok(Number(None))
    }

    fn visit_unit<E>(self) -> Found<Number, E> {
        Ok(Number(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Found<Number, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Number(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Found<Number, A::Error> {
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Number(None))
    }
}

/// The file, of which only `log_history` counts.
struct State<'a>(&'a mut Log);

impl<'de> DeserializeSeed<'de> for State<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Found<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for State<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Found<(), A::Error> {
        while let Some(name) = fields.next_key::<String>()? {
            if name == "log_history" {
                fields.next_value_seed(Lines(self.0))?;
            } else {
                fields.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// The lines of the log. One is held at a time.
struct Lines<'a>(&'a mut Log);

impl<'de> DeserializeSeed<'de> for Lines<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Found<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Lines<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut lines: A) -> Found<(), A::Error> {
        while let Some(line) = lines.next_element()? {
            self.0.add(line);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(json: &str, step: Option<u64>, knows_step: bool) -> String {
        let metrics = metrics(&mut json.as_bytes().to_vec(), step, knows_step).unwrap();
        metrics.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }

    const LOG: &str = r#"{"best_metric": null, "global_step": 12, "log_history": [
        {"epoch": 0.25, "grad_norm": NaN, "x": 0.9684236645698547, "learning_rate": 1e-05, "loss": 3.9114, "step": 4},
        {"eval_loss": 3.5, "eval_runtime": 2.5, "eval_samples_per_second": 7.1, "step": 8},
        {"epoch": 0.5, "learning_rate": 5e-06, "loss": Infinity, "note": "a NaN \" ]", "step": 8},
        {"epoch": 1.0, "learning_rate": 0.0, "loss": 3.8978, "rewards/margins": -0.5, "step": 12},
        {"loss": 1.5, "step": 16}, {"loss": 7}, {"loss": null, "step": "12"}, {}
    ], "x": [-Infinity, {"log_history": 3}]}"#;

    #[test]
    fn the_newest_numbers_up_to_the_step_count() {
        let own = "epoch=1 learning_rate=0 loss=3.8978 rewards/margins=-0.5";
        assert_eq!(found(LOG, Some(3), true), own);
        assert_eq!(found(LOG, None, false), own);
        // Of step 8 the loss is no number, and that of step 4 is not its own.
        assert_eq!(found(LOG, Some(11), false), "epoch=0.5 eval_loss=3.5 learning_rate=5e-6");
        assert_eq!(found(LOG, Some(4), false), "epoch=0.25 learning_rate=0.00001 loss=3.9114 x=0.9684236646");
        assert_eq!(found(LOG, Some(3), false), "");
        assert_eq!(found(LOG, Some(99), false), "loss=1.5");
        let between = r#"{"log_history": [{"loss": 2, "step": 5}, {"eval_loss": 3, "epoch": 1, "step": 6},
            {"train_loss": 4, "train_runtime": 9, "step": 6}]}"#;
        assert_eq!(found(between, Some(7), true), "epoch=1 eval_loss=3 loss=2 train_loss=4");
    }

    #[test]
    fn nonsense_is_refused_or_left_out() {
        for json in ["", "[]", "7", "{\"log_history\": 7}", "{\"log_history\": [[]]}", "NaN", "{\"a\": NaNN}"]
        {
            assert!(metrics(&mut json.as_bytes().to_vec(), None, true).is_err(), "{json}");
        }
        assert_eq!(found("{}", Some(1), true), "");
        assert_eq!(found(r#"{"global_step": -1, "log_history": []}"#, None, true), "");
        let names: Vec<String> = (0..2000).map(|i| format!("\"m{i:04}\": {i}")).collect();
        let line = format!("{{\"log_history\": [{{\"step\": 1, \"loss\": 2, {}}}]}}", names.join(","));
        let all = found(&line, None, true);
        assert!(all.starts_with("loss=2 m0000=0") && all.split(' ').count() == MAX_METRICS, "{all}");
        let odd = r#"{"log_history": [{"step": 1, "a b": 1, "a=b": 2, "": 3, "\u001b": 4, "loss": 1e999}]}"#;
        assert!(
            metrics(&mut odd.as_bytes().to_vec(), None, true).is_err() || found(odd, None, true).is_empty()
        );
    }
}
