//! Steps of a series, and times.

use std::time::Duration;

/// The number that a new step gets.
#[derive(Debug, Clone, Copy)]
pub(crate) enum NewStep {
    Number(u64),
    Next,
}

/// A step that exists.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ExistingStep {
    Number(u64),
    Newest,
}

/// Why a text is no step.
const NO_STEP: &str = "steps are whole numbers from 0 on";

pub(crate) fn parse_new_step(text: &str) -> Result<NewStep, String> {
    match text {
        "next" => Ok(NewStep::Next),
        number => number.parse().map(NewStep::Number).map_err(|_| NO_STEP.to_owned()),
    }
}

pub(crate) fn parse_existing_step(text: &str) -> Result<ExistingStep, String> {
    match text {
        "newest" => Ok(ExistingStep::Newest),
        number => number.parse().map(ExistingStep::Number).map_err(|_| NO_STEP.to_owned()),
    }
}

/// The time between two scans of a folder.
pub(crate) fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if interval < Duration::from_millis(10) { Err("at least 10ms".to_owned()) } else { Ok(interval) }
}
