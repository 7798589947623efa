//! `deltaloom lab serve`: load on a server, and answers compared with dense fine-tunes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Bases, Container, Limits, ResolvedContainer, Silent, UnpackOptions};
use deltaloom_lab::load::{self, Answer as Answered, Checked, LoadOptions, LoadReport, Quantiles};
use deltaloom_lm::engine::{Engine, EngineOptions};
use deltaloom_lm::model::Model;
use serde::Serialize;
use tempfile::TempDir;

use crate::args::lab::serve::ServeArguments;
use crate::models;
use crate::progress::Bar;
use crate::{Answer, signals, ui};

#[derive(Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    report: &'a LoadReport,
    checked: Option<&'a Checked>,
}

pub(crate) fn run(arguments: &ServeArguments) -> Result<Answer> {
    signals::work_can_stop();
    let containers = arguments.tenants.as_deref().map(models::containers).transpose()?.unwrap_or_default();
    let mut names: Vec<String> = arguments.model.clone();
    names.extend(containers.iter().map(|(name, _)| name.clone()));
    let key = arguments.key.as_deref().map(read_key).transpose()?;
    let options = LoadOptions {
        address: arguments.address,
        key,
        models: names,
        zipf: arguments.zipf,
        clients: arguments.clients as usize,
        rate: arguments.rate,
        duration: Duration::from_secs(u64::from(arguments.seconds)),
        requests: arguments.requests,
        vocabulary: arguments.vocabulary,
        prompt_tokens: 1..=usize::from(arguments.prompt_tokens),
        max_tokens: 1..=usize::from(arguments.max_tokens),
        seed: arguments.seed,
    };
    let bar = Bar::new("answers");
    let (report, answers) = match &arguments.base {
        Some(base) if arguments.direct => directly(base, &containers, arguments, &options, &bar)?,
        _ => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(load::run(&options, &bar))?
        }
    };
    bar.finish();
    let checked = match &arguments.base {
        None => None,
        Some(base) => {
            let base = models::place(base)?;
            let dense = Dense::unpack(base.as_ref(), &containers)?;
            let bar = Bar::new("comparing");
            let checked = load::check(&dense.folders, &answers, &bar)?;
            bar.finish();
            Some(checked)
        }
    };
    if arguments.json {
        ui::print_json(&Printed { report: &report, checked: checked.as_ref() })?;
    } else {
        ui::print(&describe(&report, checked.as_ref()))?;
    }
    let is_right = report.failures.is_empty() && checked.is_none_or(|checked| checked.different == 0);
    Ok(if is_right { Answer::Yes } else { Answer::No })
}

/// The load on an engine of this process.
fn directly(
    base: &Path,
    containers: &[(String, PathBuf)],
    arguments: &ServeArguments,
    options: &LoadOptions,
    bar: &Bar,
) -> Result<(LoadReport, Vec<Answered>)> {
    let mut opened = models::open(base, None, None)?;
    let mut tenants = BTreeMap::from([("base".to_owned(), Model::BASE)]);
    for (name, path) in containers {
        let prepared = opened.model.prepare(Container::open(path, &Limits::default())?)?;
        tenants.insert(name.clone(), opened.model.admit(prepared)?);
    }
    let mut engine = Engine::new(opened.model, EngineOptions::default().with_threads(arguments.threads))?;
    if arguments.warm {
        // Other prompts, so that theirs are not in memory.
        let others = LoadOptions { seed: !options.seed, ..options.clone() };
        load::direct(&mut engine, &tenants, &others, bar)?;
    }
    Ok(load::direct(&mut engine, &tenants, options, bar)?)
}

fn read_key(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(text.trim().to_owned())
}

/// Folders of dense models, which are removed at the end.
struct Dense {
    folders: BTreeMap<String, PathBuf>,
    _temporary: TempDir,
}

impl Dense {
    fn unpack(base: &Path, containers: &[(String, PathBuf)]) -> Result<Self> {
        let temporary = tempfile::tempdir()?;
        let mut bases = Bases::default();
        bases.push_checkpoint(base, Checkpoint::open(base, &Limits::default())?);
        let mut folders = BTreeMap::from([("base".to_owned(), base.to_owned())]);
        for (name, path) in containers {
            let container = Container::open(path, &Limits::default())?;
            let is_file = container.single_file().is_some();
            let folder = temporary.path().join(name);
            if is_file {
                // The configuration is that of the base.
                std::fs::create_dir(&folder)?;
                std::fs::copy(base.join("config.json"), folder.join("config.json"))?;
            }
            let target = if is_file { folder.join("model.safetensors") } else { folder.clone() };
            let resolved = ResolvedContainer::new(container, &bases)?;
            deltaloom::unpack(&resolved, &target, &UnpackOptions::default(), &Silent)?;
            folders.insert(name.clone(), folder);
        }
        Ok(Self { folders, _temporary: temporary })
    }
}

fn describe(report: &LoadReport, checked: Option<&Checked>) -> String {
    let quantiles = |what: &str, of: Quantiles| {
        let [p50, p99, max] = [of.p50, of.p99, of.max].map(|seconds| ui::significant(1000.0 * seconds));
        format!("{what:<17} {p50} ms, 99 % below {p99} ms, longest {max} ms\n")
    };
    let mut out = format!(
        "{} in {} s: {} tokens/s\n",
        ui::count(report.requests as u64, "request"),
        ui::significant(report.seconds),
        ui::significant(report.tokens_per_second)
    );
    for (status, count) in &report.statuses {
        out.push_str(&format!("status {status:<10} {count}\n"));
    }
    if report.not_sent > 0 {
        out.push_str(&format!("not sent          {} (all clients were busy)\n", report.not_sent));
    }
    out.push_str(&quantiles("first token", report.first_token));
    out.push_str(&quantiles("between tokens", report.between_tokens));
    out.push_str(&quantiles("whole answers", report.whole));
    for (name, model) in &report.models {
        let answers = ui::count(model.answered as u64, "answer");
        out.push_str(&format!(
            "{}: {answers}, {}\n",
            ui::printable(name),
            ui::count(model.tokens as u64, "token")
        ));
    }
    for failure in &report.failures {
        out.push_str(&format!("failed: {}\n", ui::printable(failure)));
    }
    if let Some(Checked { answers, tokens, different, first }) = checked {
        let all = ui::count(*answers as u64, "answer");
        out.push_str(&format!(
            "{all} with {} compared: {different} differ\n",
            ui::count(*tokens as u64, "token")
        ));
        first.iter().for_each(|first| out.push_str(&format!("{first}\n")));
    }
    out
}
