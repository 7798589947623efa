//! `deltaloom serve`: a model and its fine-tunes behind the API of OpenAI.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use deltaloom::Error;
use deltaloom_lm::engine::{EngineOptions, MemoryBudget};
use deltaloom_lm::model::{Model, ModelConfig};
use deltaloom_serve::{Keys, ServeOptions};
use serde::Serialize;

use crate::args::serve::{AccessArguments, LimitArguments, ServeArguments, Tenant};
use crate::models::{self, Opened, Place};
use crate::{Answer, inputs, signals, ui};

/// Keys and values where nothing is said, unless one sequence needs more.
const KV_BYTES: u64 = 256 << 20;

/// What is printed when the server listens.
#[derive(Serialize)]
struct Listening {
    url: String,
    address: SocketAddr,
    tenants: Vec<String>,
    /// `None` for fine-tunes without a limit.
    tenant_bytes: Option<u64>,
    kv_bytes: u64,
    step_bytes: u64,
}

pub(crate) fn run(arguments: &ServeArguments) -> Result<Answer> {
    signals::work_can_stop();
    let AccessArguments { keys, no_key, .. } = &arguments.access;
    if !arguments.host.is_loopback() && keys.is_none() && !no_key {
        let host = arguments.host;
        bail!("--host {host}: other machines could ask; add --keys FILE, or --no-key to let all of them");
    }
    let places = arguments.tenant.iter().map(named).collect::<Result<Vec<(String, Place)>>>()?;
    let tenants = places.iter().map(|(name, place)| (name.clone(), place.as_ref().to_owned())).collect();
    let options = options(arguments, tenants)?;
    // Before a model is loaded for nothing.
    let listener = listen(&options)?;
    let mut opened = models::open(&arguments.base, None, None)?;
    inputs::warn(&opened.warnings);
    let budget = budget(arguments, opened.model.config())?;
    opened.model.set_budget(budget.tenant_bytes)?;
    let engine = engine(arguments, &budget);
    let Opened { model, base, .. } = opened;
    describe(&model, &arguments.base, &budget);
    let names = names(arguments, &places)?;
    let ready = |address: SocketAddr| announce(arguments, address, names, &budget);
    deltaloom_serve::serve(listener, model, base.as_ref(), engine, options, ready)?;
    ui::note("all requests have ended");
    Ok(Answer::Yes)
}

/// A fine-tune with its name, and where it is.
fn named(tenant: &Tenant) -> Result<(String, Place)> {
    let place = models::place(&tenant.path)?;
    let stem = || place.as_ref().file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
    let name = tenant.name.clone().or_else(stem);
    let name = name.with_context(|| format!("{}: give it a name: NAME=FILE", tenant.path.display()))?;
    Ok((name, place))
}

fn listen(options: &ServeOptions) -> Result<TcpListener> {
    let address = options.address;
    deltaloom_serve::listen(options).map_err(|error| match &error {
        Error::Io { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
            anyhow!("another program listens at {address}: choose another --port, or 0 for any")
        }
        _ => error.into(),
    })
}

fn options(arguments: &ServeArguments, tenants: Vec<(String, PathBuf)>) -> Result<ServeOptions> {
    let AccessArguments { keys, admin_key, no_key, open_metrics, allow_origin } = &arguments.access;
    let LimitArguments { max_per_key, request_seconds, drain_seconds, strict, .. } = arguments.limits;
    let keys = match keys {
        None => Keys::default(),
        Some(path) => {
            let keys = Keys::parse(&read(path)?).with_context(|| path.display().to_string())?;
            if keys.is_empty() {
                bail!("{}: no key is in this file", path.display());
            }
            keys
        }
    };
    let admin_key = admin_key.as_deref().map(admin_key_in).transpose()?;
    let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
    Ok(ServeOptions::default()
        .with_address(SocketAddr::new(arguments.host, arguments.port))
        .with_open(*no_key)
        .with_tenants(tenants)
        .with_folder(arguments.tenants.clone())
        .with_keys(keys)
        .with_admin_key(admin_key)
        .with_open_metrics(*open_metrics)
        .with_strict(strict)
        .with_origin(allow_origin.clone())
        .with_per_key(if max_per_key == 0 { usize::MAX } else { max_per_key as usize })
        .with_request_time((request_seconds > 0).then(|| seconds(request_seconds)))
        .with_drain_time(seconds(drain_seconds)))
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn admin_key_in(path: &Path) -> Result<String> {
    let key = read(path)?.trim().to_owned();
    if key.len() < 16 {
        bail!("{}: a key of {} bytes: the admin key needs 16 or more", path.display(), key.len());
    }
    Ok(key)
}

fn budget(arguments: &ServeArguments, config: &ModelConfig) -> Result<MemoryBudget> {
    let (memory, step_tokens) = (arguments.computing.memory(), arguments.limits.step_tokens as usize);
    let asked = match arguments.memory {
        Some(bytes) => MemoryBudget::of(bytes, config, step_tokens, memory)?,
        None => MemoryBudget::unlimited(config, step_tokens, memory, KV_BYTES),
    };
    match arguments.kv_memory {
        None => Ok(asked),
        Some(kv_bytes) => Ok(asked.with_kv(kv_bytes)?),
    }
}

fn engine(arguments: &ServeArguments, budget: &MemoryBudget) -> EngineOptions {
    let LimitArguments { step_tokens, step_tenants, max_running, max_waiting, max_waiting_tokens, .. } =
        arguments.limits;
    EngineOptions::default()
        .with_step(step_tokens as usize, step_tenants as usize)
        .with_sequences(max_running as usize)
        .with_waiting(max_waiting as usize, max_waiting_tokens as usize)
        .with_memory(arguments.computing.memory().with_budget(Some(budget.kv_bytes)))
        .with_mode(arguments.computing.run().mode)
        .with_threads(arguments.computing.threads.count)
}

fn describe(model: &Model, base: &Path, budget: &MemoryBudget) {
    let bytes = model.base().weights().map(|(_, info)| info.len_bytes()).sum();
    let tenants = match budget.tenant_bytes {
        u64::MAX => "no limit for fine-tunes".to_owned(),
        bytes => format!("{} for fine-tunes", ui::bytes(bytes)),
    };
    ui::note(&format!(
        "base {}: {}, {}; memory: {} for a step, {} for keys and values, {tenants}",
        base.display(),
        model.config().model_type,
        ui::bytes(bytes),
        ui::bytes(budget.step_bytes),
        ui::bytes(budget.kv_bytes),
    ));
}

/// Names of all fine-tunes that are served from the start.
fn names(arguments: &ServeArguments, places: &[(String, Place)]) -> Result<Vec<String>> {
    let mut names: Vec<String> = places.iter().map(|(name, _)| name.clone()).collect();
    if let Some(folder) = &arguments.tenants {
        names.extend(models::containers(folder)?.into_iter().map(|(name, _)| name));
    }
    names.sort();
    Ok(names)
}

fn announce(arguments: &ServeArguments, address: SocketAddr, tenants: Vec<String>, budget: &MemoryBudget) {
    let url = format!("http://{address}");
    let count = ui::count(tenants.len() as u64, "fine-tune");
    let shown: Vec<String> = tenants.iter().take(8).map(|name| ui::printable(name)).collect();
    let more = if tenants.len() > shown.len() { ", .." } else { "" };
    let list = if shown.is_empty() { String::new() } else { format!(" ({}{more})", shown.join(", ")) };
    ui::note(&format!("{count}{list} at {url}; Ctrl-C ends"));
    if arguments.json {
        let listening = Listening {
            url,
            address,
            tenants,
            tenant_bytes: (budget.tenant_bytes != u64::MAX).then_some(budget.tenant_bytes),
            kv_bytes: budget.kv_bytes,
            step_bytes: budget.step_bytes,
        };
        // The server runs whether anybody reads this or not.
        let _ = ui::print_json(&listening);
    }
}
