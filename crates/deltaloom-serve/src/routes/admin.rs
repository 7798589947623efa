//! Fine-tunes that come and go while others run.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Response, StatusCode};

use crate::call::{Call, blocking, json};
use crate::catalog::Tenant;
use crate::error::{Failure, Result};
use crate::wire::{Lora, NewTenant, State, TenantEntry, TenantList, Unloaded};

pub(super) async fn list(call: Call) -> Result<Response<Body>> {
    let tenants = call.app.catalog.tenants().iter().map(|tenant| entry(&call, tenant)).collect();
    Ok(json(StatusCode::OK, &TenantList { tenants }))
}

pub(super) async fn load(call: Call) -> Result<Response<Body>> {
    let NewTenant { name, path, pinned, replace } = call.body.read()?;
    let tenant = load_from(&call, name, path, pinned.unwrap_or(false), replace.unwrap_or(false)).await?;
    Ok(json(StatusCode::CREATED, &entry(&call, &tenant)))
}

pub(super) async fn remove(call: Call) -> Result<Response<Body>> {
    let force = match call.uri.query() {
        None | Some("" | "force=false") => false,
        Some("force" | "force=true") => true,
        Some(_) => return Err(Failure::field("force", "must be true or false, and is the only parameter")),
    };
    let unloaded = unload(&call, &call.name, force)?;
    if unloaded.in_flight > 0 {
        return Ok(json(StatusCode::ACCEPTED, &unloaded));
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

pub(super) async fn load_lora(call: Call) -> Result<Response<Body>> {
    let Lora { lora_name: name, lora_path, load_inplace } = call.body.read()?;
    let path = lora_path.ok_or_else(|| Failure::field("lora_path", "is missing"))?;
    let text = format!("Success: LoRA adapter '{name}' added successfully.");
    load_from(&call, name, path, false, load_inplace.unwrap_or(false)).await?;
    Ok(Response::new(Body::from(text)))
}

pub(super) async fn unload_lora(call: Call) -> Result<Response<Body>> {
    let Lora { lora_name: name, .. } = call.body.read()?;
    unload(&call, &name, false)?;
    Ok(Response::new(Body::from(format!("Success: LoRA adapter '{name}' removed successfully."))))
}

/// Opens a container of the folder, on a thread that may block.
async fn load_from(
    call: &Call,
    name: String,
    path: String,
    pinned: bool,
    replace: bool,
) -> Result<Arc<Tenant>> {
    let catalog = Arc::clone(&call.app.catalog);
    let tenant = blocking(move || {
        let path = catalog.confined(&path)?;
        catalog.load(&name, &path, pinned, replace)
    });
    let tenant = tenant.await?;
    tracing::info!(name = tenant.name, digest = %tenant.digest, "a fine-tune was loaded");
    Ok(tenant)
}

fn unload(call: &Call, name: &str, force: bool) -> Result<Unloaded> {
    let tenant = call.app.catalog.remove(name, force)?;
    call.app.metrics.forget(name);
    let in_flight = tenant.in_flight();
    tracing::info!(name, in_flight, "a fine-tune was removed");
    Ok(Unloaded { name: name.to_owned(), in_flight })
}

fn entry(call: &Call, tenant: &Tenant) -> TenantEntry {
    let residency = call.app.worker.residents().get(&tenant.id).cloned().unwrap_or_default();
    TenantEntry {
        name: tenant.name.clone(),
        digest: tenant.digest.to_hex().to_string(),
        packed_bytes: tenant.packed_bytes,
        created: tenant.created,
        in_flight: tenant.in_flight(),
        pinned: tenant.pinned,
        state: State::of(&residency),
        resident_bytes: residency.resident_bytes,
        forms: residency.forms.iter().map(|(form, count)| (form.name(), *count)).collect(),
        hits: residency.uses.hits,
        misses: residency.uses.misses,
        direct: residency.uses.direct,
        evictions: residency.uses.evictions,
        last_used: tenant.last_used(),
    }
}
