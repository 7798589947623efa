//! `deltaloom estimate`: the memory of a base and many tenants, and a check of that estimate.

use std::hint::black_box;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use deltaloom::checkpoint::{Checkpoint, FileSource, Warning};
use deltaloom::{Bases, Container, Limits, PackOptions, ResolvedContainer, Texts};
use deltaloom_lm::tenancy::{LoadedTenant, ModelSizes, TenantBytes};
use serde::Serialize;

use crate::args::estimate::EstimateArguments;
use crate::inputs::config_of;
use crate::progress::Bar;
use crate::ui::table::{Cell, Table};
use crate::values::compute::{CacheType, FormName};
use crate::{Answer, host, inputs, ui};

/// The largest relative error of an estimate.
const TOLERANCE: f64 = 0.1;

#[derive(Serialize)]
struct Report {
    base_bytes: u64,
    tenants: u32,
    changed_fraction: f64,
    is_assumed: bool,
    forms: Vec<FormRow>,
    cache_bytes: Option<u64>,
    activation_bytes: Option<u64>,
    check: Option<Check>,
    warnings: Vec<Warning>,
}

#[derive(Serialize)]
struct FormRow {
    form: &'static str,
    tenant_bytes: u64,
    /// Base and all tenants; raw copies need no base.
    weight_bytes: u64,
    /// With keys, values and activations, if they are known.
    total_bytes: u64,
}

#[derive(Serialize)]
struct Check {
    form: &'static str,
    estimated_bytes: u64,
    measured_bytes: u64,
    /// Measured over estimated.
    ratio: f64,
    is_within: bool,
}

/// One of a tenant's sizes.
type Bytes = fn(&TenantBytes) -> u64;

/// Settings of the allocator for a check: free memory is given back at once, and there are no huge
/// pages, whose gaps between blocks would count.
const EXACT_MEMORY: [(&str, &str); 2] = [("MIMALLOC_PURGE_DELAY", "0"), ("MIMALLOC_ALLOW_THP", "0")];

pub(crate) fn run(arguments: &EstimateArguments) -> Result<Answer> {
    if arguments.check && EXACT_MEMORY.iter().any(|(name, _)| std::env::var_os(name).is_none()) {
        // The allocator reads them when the process starts.
        let status = host::same_again()?.envs(EXACT_MEMORY).status()?;
        return match status.code() {
            Some(0) => Ok(Answer::Yes),
            Some(1) => Ok(Answer::No),
            _ => bail!("the check failed"),
        };
    }
    let config = config_of(&arguments.base);
    let sizes = config.as_deref().map(ModelSizes::parse).transpose()?;
    let bar = Bar::new("counting");
    let report =
        deltaloom::with_threads(arguments.threads.count, || Ok(report(arguments, sizes.as_ref(), &bar)))??;
    bar.finish();
    if arguments.json {
        ui::print_json(&report)?;
    } else {
        ui::print(&describe(&report))?;
    }
    Ok(if report.check.as_ref().is_none_or(|check| check.is_within) { Answer::Yes } else { Answer::No })
}

fn report(arguments: &EstimateArguments, sizes: Option<&ModelSizes>, bar: &Bar) -> Result<Report> {
    let (base, mut warnings) = inputs::open_checkpoint(&arguments.base, &[])?;
    let base = inputs::mapped(base)?;
    let base_bytes: u64 = base.weights().map(|(_, info)| info.len_bytes()).sum();
    let folder = tempfile::tempdir()?;
    let containers = containers(arguments, &base, folder.path(), bar, &mut warnings)?;
    // Before anything else: memory freed later might not be given back to the system.
    let measured = arguments.check.then(|| measure(arguments, &containers)).transpose()?;
    let mut tenants = Vec::new();
    for (container, path) in containers.iter().zip(&arguments.tuned) {
        let tenant = TenantBytes::of(&*resolve(container, arguments, &base)?, &base)?;
        let (matched, tensors) = (tenant.matched_tensors, tenant.tensors);
        if matched == 0 {
            let (path, base) = (path.display(), arguments.base.display());
            bail!(
                "{path} is not a fine-tune of {base}: none of its {tensors} tensors has a counterpart of the \
                 same name, dtype and shape"
            );
        }
        if matched < tensors {
            let path = path.display().to_string();
            let path = ui::printable(&path);
            ui::warn(&format!("{path}: only {matched} of {tensors} tensors have a counterpart in the base"));
        }
        tenants.push(tenant);
    }
    let is_assumed = tenants.is_empty();
    if is_assumed {
        tenants.push(TenantBytes::assumed(&base, arguments.changed)?);
    }
    let mean = |of: Bytes| tenants.iter().map(of).sum::<u64>() / (tenants.len() as u64).max(1);
    let cache_type = match arguments.dtype_cache {
        CacheType::Bf16 => 2,
        CacheType::F32 => 4,
    };
    let (context, batch) = (u64::from(arguments.context), u64::from(arguments.batch));
    let too_large = "the size of keys, values or activations overflows 64 bits";
    let cache_bytes =
        sizes.map(|sizes| sizes.cache_bytes(context, batch, cache_type).context(too_large)).transpose()?;
    let activation_bytes = sizes.map(|sizes| sizes.activation_bytes(batch).context(too_large)).transpose()?;
    let forms: [(&'static str, Bytes); 8] = [
        ("raw copies", |tenant| tenant.raw),
        ("packed container", |tenant| tenant.packed),
        ("tiles", |tenant| tenant.tiles),
        ("planes", |tenant| tenant.planes),
        ("bitmap", |tenant| tenant.bitmap),
        ("csr", |tenant| tenant.csr),
        ("COO, 32 bits", |tenant| tenant.coo32),
        ("COO, 64 bits", |tenant| tenant.coo64),
    ];
    let row = |(form, of): (&'static str, Bytes)| {
        let base_bytes = if form == "raw copies" { 0 } else { base_bytes };
        let weight_bytes =
            mean(of).checked_mul(u64::from(arguments.tenants)).and_then(|all| all.checked_add(base_bytes));
        let weight_bytes = weight_bytes.context("the total size overflows 64 bits")?;
        let total = weight_bytes
            .checked_add(cache_bytes.unwrap_or(0))
            .and_then(|sum| sum.checked_add(activation_bytes.unwrap_or(0)));
        Ok(FormRow {
            form,
            tenant_bytes: mean(of),
            weight_bytes,
            total_bytes: total.context("the total size overflows 64 bits")?,
        })
    };
    let forms = forms.into_iter().map(row).collect::<Result<Vec<_>>>()?;
    let changed_fraction =
        mean(|tenant| tenant.changed_elems) as f64 / mean(|tenant| tenant.elems).max(1) as f64;
    let check = measured.map(|measured| check(arguments, measured, base_bytes, &tenants));
    Ok(Report {
        base_bytes,
        tenants: arguments.tenants,
        changed_fraction,
        is_assumed,
        forms,
        cache_bytes,
        activation_bytes,
        check,
        warnings,
    })
}

/// A container of a fine-tune: in memory, if it was packed for an estimate alone.
enum Source {
    File(std::path::PathBuf),
    Packed(Arc<Vec<u8>>),
}

fn containers(
    arguments: &EstimateArguments,
    base: &Checkpoint,
    folder: &Path,
    bar: &Bar,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Source>> {
    let pack = |(number, path): (usize, &std::path::PathBuf)| {
        if path.is_file() && Container::is_container(path)? {
            return Ok(Source::File(path.clone()));
        }
        if arguments.check {
            return pack_elsewhere(arguments, path, folder.join(format!("{number}.loom")));
        }
        let (tuned, of_tuned) = inputs::open_checkpoint(path, &[])?;
        warnings.extend(of_tuned);
        let mut bases = Bases::default();
        bases.push_checkpoint(&arguments.base, base.clone());
        let mut out = Vec::new();
        // Sizes are those of `pack`.
        let (threads, identity) = (arguments.threads.count, Some(Texts::new()));
        let options = PackOptions::default().with_threads(threads).with_identity(identity);
        deltaloom::pack_to(&tuned, &bases, &mut out, &options, bar)?;
        out.shrink_to_fit();
        Ok(Source::Packed(Arc::new(out)))
    };
    arguments.tuned.iter().enumerate().map(pack).collect()
}

/// Packs in a process of its own, whose memory is not measured.
fn pack_elsewhere(arguments: &EstimateArguments, tuned: &Path, output: std::path::PathBuf) -> Result<Source> {
    let mut command = host::program()?;
    command.arg("pack").arg(tuned).arg("--base").arg(&arguments.base).arg("-o").arg(&output);
    command.arg("--threads").arg(arguments.threads.count.to_string()).stdout(Stdio::null());
    if !command.status()?.success() {
        bail!("cannot pack {}", tuned.display());
    }
    Ok(Source::File(output))
}

fn resolve(
    source: &Source,
    arguments: &EstimateArguments,
    base: &Checkpoint,
) -> Result<Arc<ResolvedContainer>> {
    let (name, limits) = (Path::new("packed"), Limits::default());
    let container = match source {
        // Tiles stay in memory. Other forms are decoded once, and mapped pages would count.
        Source::File(path) if arguments.form == FormName::Tiles => {
            let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
            Container::from_source(path, Box::new(bytes), &limits)?
        }
        Source::File(path) => Container::from_source(path, Box::new(FileSource::open(path)?), &limits)?,
        Source::Packed(bytes) => Container::from_source(name, Box::new(bytes.to_vec()), &limits)?,
    };
    let mut bases = Bases::default();
    bases.push_checkpoint(&arguments.base, base.clone());
    Ok(Arc::new(ResolvedContainer::new(container, &bases)?))
}

/// Loads everything and returns how much the memory of this process grew.
fn measure(arguments: &EstimateArguments, containers: &[Source]) -> Result<u64> {
    let base = inputs::mapped(Checkpoint::open(&arguments.base, &Limits::default())?)?;
    // One is loaded and dropped first, so that temporary memory of decoding is already allocated.
    if let Some(first) = containers.first() {
        LoadedTenant::load(&resolve(first, arguments, &base)?, &base, arguments.form.form())?;
    }
    drop(base);
    let before = resident_bytes()?;
    let base = inputs::mapped(Checkpoint::open(&arguments.base, &Limits::default())?)?;
    for (member, info) in base.weights() {
        let bytes = base.in_memory(member, info).unwrap_or_default();
        black_box(bytes.iter().step_by(1024).map(|byte| u64::from(*byte)).sum::<u64>());
    }
    let mut loaded = Vec::new();
    for source in containers.iter().cycle().take(usize::try_from(arguments.tenants)?) {
        loaded.push(LoadedTenant::load(&resolve(source, arguments, &base)?, &base, arguments.form.form())?);
    }
    let after = resident_bytes()?;
    black_box(&loaded);
    Ok(after.saturating_sub(before))
}

/// Compares that with the estimate.
fn check(arguments: &EstimateArguments, measured: u64, base_bytes: u64, tenants: &[TenantBytes]) -> Check {
    let form = arguments.form.form();
    let count = usize::try_from(arguments.tenants).unwrap_or(usize::MAX);
    let all: u64 = tenants.iter().cycle().take(count).map(|tenant| tenant.in_form(form)).sum();
    let estimated = base_bytes + all;
    let ratio = measured as f64 / estimated.max(1) as f64;
    Check {
        form: form.name(),
        estimated_bytes: estimated,
        measured_bytes: measured,
        ratio,
        is_within: (ratio - 1.0).abs() <= TOLERANCE,
    }
}

/// The resident memory of this process, as Linux counts it.
fn resident_bytes() -> Result<u64> {
    const PATH: &str = "/proc/self/smaps_rollup";
    let text = std::fs::read_to_string(PATH).with_context(|| format!("{PATH}: --check needs Linux"))?;
    let Some(line) = text.lines().find_map(|line| line.strip_prefix("Rss:")) else {
        bail!("{PATH} has no line `Rss:`");
    };
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().context(PATH)?;
    Ok(kilobytes * 1024)
}

fn describe(report: &Report) -> String {
    let assumed = if report.is_assumed { " (assumed)" } else { "" };
    let mut out = format!(
        "base {}, {}, {:.1} % of elements changed{assumed}\n",
        ui::bytes(report.base_bytes),
        ui::count(report.tenants.into(), "tenant"),
        100.0 * report.changed_fraction
    );
    if let (Some(cache), Some(activations)) = (report.cache_bytes, report.activation_bytes) {
        out.push_str(&format!(
            "keys and values {}, activations {}\n",
            ui::bytes(cache),
            ui::bytes(activations)
        ));
    } else {
        out.push_str("keys, values and activations are not included: no config.json next to the base\n");
    }
    let table = Table::of(&report.forms)
        .shown("form", |row| Cell::text(row.form))
        .shown("per tenant", |row| Cell::bytes(row.tenant_bytes))
        .shown("base and tenants", |row| Cell::bytes(row.weight_bytes))
        .shown("total", |row| Cell::bytes(row.total_bytes));
    out.push_str(&format!("\n{}", table.text()));
    if let Some(check) = &report.check {
        out.push_str(&format!(
            "\nloaded as {}: estimated {}, measured {}, which is {:.3} of the estimate: {}\n",
            check.form,
            ui::bytes(check.estimated_bytes),
            ui::bytes(check.measured_bytes),
            check.ratio,
            if check.is_within { "within 10 %" } else { "NOT within 10 %" }
        ));
    }
    out
}
