//! `deltaloom context limit`: how many tokens fit in memory, by arithmetic.

use anyhow::Result;
use deltaloom_lm::context::{Limit, limit, trained_tokens};
use deltaloom_lm::layer::AttentionPlan;
use deltaloom_lm::model::ModelConfig;
use serde::Serialize;

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
}

pub(crate) fn run(arguments: &LimitArguments) -> Result<Answer> {
    let loaded = recipes::read(arguments.recipe.as_slice())?;
    let (report, warnings) = models::on_threads(arguments.computing.threads.count, || {
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
        };
        anyhow::Ok((report, warnings))
    })?;
    if arguments.json {
        inputs::print_json(&report, &warnings)?;
    } else {
        ui::print(&describe(&report))?;
    }
    Ok(Answer::Yes)
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
    format!(
        "{} tokens ({}) in {} of {}{trained}\n{as_it_is}this is arithmetic on keys and values; weights and steps are not counted\n",
        limit.tokens,
        limit.ends_by.words(),
        ui::bytes(limit.bytes),
        ui::bytes(report.memory_bytes),
    )
}
