//! `/v1/models`.

use axum::body::Body;
use axum::http::{Response, StatusCode};

use crate::call::{Call, json};
use crate::catalog::Tenant;
use crate::error::Result;
use crate::wire::{ModelEntry, ModelList, ModelMeta, State};

pub(super) async fn list(call: Call) -> Result<Response<Body>> {
    let catalog = &call.app.catalog;
    let all = std::iter::once(catalog.base().clone()).chain(catalog.tenants());
    let data = all.filter(|tenant| call.may_use(tenant)).map(|tenant| entry(&call, &tenant));
    Ok(json(StatusCode::OK, &ModelList { object: "list", data: data.collect() }))
}

pub(super) async fn one(call: Call) -> Result<Response<Body>> {
    let tenant = call.tenant(&call.name)?;
    Ok(json(StatusCode::OK, &entry(&call, &tenant)))
}

fn entry(call: &Call, tenant: &Tenant) -> ModelEntry {
    let residents = call.app.worker.residents();
    let resident = residents.get(&tenant.id);
    ModelEntry {
        id: tenant.name.clone(),
        object: "model",
        created: tenant.created,
        owned_by: "deltaloom",
        root: call.app.catalog.base().name.clone(),
        max_model_len: call.app.catalog.context,
        meta: ModelMeta {
            weights_digest: tenant.digest.to_hex().to_string(),
            packed_bytes: tenant.packed_bytes,
            resident_bytes: resident.map_or(0, |resident| resident.resident_bytes),
            state: resident.map_or(State::Mapped, State::of),
            pinned: tenant.pinned,
        },
    }
}
