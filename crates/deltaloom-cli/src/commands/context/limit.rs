//! `deltaloom context limit`: how many tokens fit in memory, by arithmetic and by trying.

use anyhow::Result;
use deltaloom_lm::context::{Limit, Outcome, limit, trained_tokens};
use deltaloom_lm::layer::AttentionPlan;
use deltaloom_lm::model::ModelConfig;
use serde::Serialize;

use super::probe::{self, Measured};
use super::recipes::{self, Prepared};
use crate::args::context::LimitArguments;
use crate::models;
use crate::{Answer, inputs, ui};

#[derive(Serialize)]
struct Report {
    memory_bytes: u64,
    /// `None` if the configuration does not say it.
    trained_tokens: Option<usize>,
    #[serde(flatten)]
    limit: Limit,
    /// The model as it is.
    unchanged: Limit,
    /// What processes have shown; `None` if that was not asked for.
    measured: Option<Measured>,
}

pub(crate) fn run(arguments: &LimitArguments) -> Result<Answer> {
    if let Some(tokens) = arguments.probe {
        return probe::run(arguments, usize::try_from(tokens)?);
    }
    let loaded = recipes::read(arguments.recipe.as_slice())?;
    let (mut report, warnings) = models::on_threads(arguments.computing.threads.count, || {
        let opened = models::open_chosen(&arguments.model)?;
        let warnings = opened.warnings.clone();
        let plans: Vec<AttentionPlan> = opened.model.attention().cloned().collect();
        let memory = arguments.computing.memory();
        let run = arguments.computing.run();
        let Prepared { opened, resolved, .. } = recipes::prepare(opened, loaded, None, memory, &run)?;
        let config = opened.model.config();
        let of =
            |config: &ModelConfig, plans: &[AttentionPlan]| limit(config, plans, memory.kv, arguments.memory);
        let unchanged = of(config, &plans);
        let changed = match resolved.first() {
            Some(it) => of(&config.clone().with_extension(it.positions)?, &it.layers),
            None => unchanged,
        };
        let report = Report {
            memory_bytes: arguments.memory,
            trained_tokens: trained_tokens(config, None).ok(),
            limit: changed,
            unchanged,
            measured: None,
        };
        anyhow::Ok((report, warnings))
    })?;
    if arguments.measure {
        // The model of this process is gone: its memory is free for the others.
        let most = report.limit.tokens.min(usize::try_from(arguments.up_to)?);
        report.measured = Some(probe::measure(arguments, most)?);
    }
    if arguments.json {
        inputs::print_json(&report, &warnings)?;
    } else {
        ui::print(&describe(&report))?;
    }
    Ok(Answer::Yes)
}

/// Why no longer sequence was computed.
fn end(measured: &Measured) -> String {
    match measured
        .tried
        .iter()
        .map(|tried| &tried.outcome)
        .rfind(|outcome| !matches!(outcome, Outcome::Worked(_)))
    {
        None => String::new(),
        Some(Outcome::NoMemory) => ", by memory".to_owned(),
        Some(Outcome::Failed { reason }) => format!(", then: {reason}"),
        Some(_) => ", then logits were not finite".to_owned(),
    }
}

fn describe(report: &Report) -> String {
    let Report { limit, unchanged, .. } = report;
    let trained = match report.trained_tokens {
        Some(tokens) => format!("; trained for {tokens}"),
        None => String::new(),
    };
    let as_it_is = match limit == unchanged {
        true => String::new(),
        false => format!("as it is: {} tokens\n", unchanged.tokens),
    };
    let measured = report.measured.as_ref().map_or(String::new(), |measured| match &measured.longest {
        Some(longest) => {
            let peak = longest.peak_bytes.map_or(String::new(), |peak| format!(" in {}", ui::bytes(peak)));
            format!("measured, with weights and steps: {} tokens{peak}{}\n", longest.tokens, end(measured))
        }
        None => format!("measured, with weights and steps: none{}\n", end(measured)),
    });
    format!(
        "{} tokens ({}) in {} of {}{trained}\n{as_it_is}this is arithmetic on keys and values; weights and steps are not counted\n{measured}",
        limit.tokens,
        limit.ends_by.words(),
        ui::bytes(limit.bytes),
        ui::bytes(report.memory_bytes),
    )
}
