//! Numbers that are looked up when Prometheus asks: the state of the engine and of its memory, and
//! which fine-tunes there are.

use std::fmt;
use std::sync::Arc;

use deltaloom_lm::tenancy::TenantResidency;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::catalog::Catalog;
use crate::wire::State;
use crate::worker::Worker;

/// A number of a fine-tune.
type Count = fn(&TenantResidency) -> u64;

/// Looks up numbers.
#[derive(Debug)]
pub(crate) struct Scrape {
    catalog: Arc<Catalog>,
    worker: Worker,
}

impl Scrape {
    pub(crate) fn new(catalog: Arc<Catalog>, worker: Worker) -> Self {
        Self { catalog, worker }
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let status = self.worker.status();
        let residency = status.residency;
        let mut gauge = |name: &str, help: &str, value: u64| {
            let name = format!("deltaloom:{name}");
            ConstGauge::new(value).encode(encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?)
        };
        gauge("num_requests_running", "Requests with keys and values", status.running as u64)?;
        gauge("num_requests_waiting", "Requests that wait", status.waiting as u64)?;
        gauge("waiting_tokens", "Tokens of requests that wait", status.waiting_tokens as u64)?;
        gauge("requests_parked", "Requests whose clients take nothing", status.parked as u64)?;
        gauge("kv_cache_bytes", "Keys and values", status.memory_bytes)?;
        gauge("budget_bytes", "Most bytes of fine-tunes in memory", residency.budget_bytes)?;
        gauge("resident_bytes", "Fine-tunes in memory", residency.matrix_bytes + residency.vector_bytes)?;
        gauge("mapped_bytes", "The base and containers", self.mapped_bytes())?;
        let budget = status.memory_budget_bytes.unwrap_or(0);
        let used = if budget == 0 { 0.0 } else { status.memory_bytes as f64 / budget as f64 };
        let help = "Share of the memory for keys and values that is used";
        let name = "deltaloom:kv_cache_usage_perc";
        ConstGauge::new(used).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        for (name, help, value) in [
            ("prefix_cache_queries", "Tokens of prompts that were looked for", status.prefix_tokens),
            ("prefix_cache_hits", "Those that were in memory", status.prefix_hit_tokens),
            ("num_preemptions", "Requests whose memory was given to others", status.preemptions),
            ("decoded_bytes", "Dense bytes of everything decoded", residency.decoded_bytes),
        ] {
            let name = format!("deltaloom:{name}");
            let descriptor = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(descriptor)?;
        }
        let labels =
            [("version", env!("CARGO_PKG_VERSION")), ("order", "pair"), ("isa", deltaloom::isa_name())];
        let (name, help) = ("deltaloom:build_info", "What computes");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(1_u64).encode(family.encode_family(&labels)?)?;
        self.encode_tenants(&mut encoder)
    }
}

impl Scrape {
    /// Series of each fine-tune. They go with it, since they are made of those that there are.
    fn encode_tenants(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (tenants, residents) = (self.catalog.tenants(), self.worker.residents());
        let found: Vec<(&str, bool, TenantResidency)> = tenants
            .iter()
            .map(|it| (it.name.as_str(), it.pinned, residents.get(&it.id).cloned().unwrap_or_default()))
            .collect();
        let (name, help) = ("deltaloom:tenant_loaded", "Fine-tunes that are served");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (tenant, is_pinned, residency) in &found {
            let pinned = if *is_pinned { "true" } else { "false" };
            let labels = [("tenant", *tenant), ("state", State::of(residency).name()), ("pinned", pinned)];
            ConstGauge::new(1_u64).encode(family.encode_family(&labels)?)?;
        }
        let (name, help) = ("deltaloom:tenant_resident_bytes", "Bytes in memory");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (tenant, _, residency) in &found {
            let labels = [("tenant", *tenant)];
            ConstGauge::new(residency.resident_bytes).encode(family.encode_family(&labels)?)?;
        }
        let counters: [(&str, &str, Count); 4] = [
            ("tenant_hits", "Uses of a matrix in memory", |it| it.uses.hits),
            ("tenant_misses", "Uses of a matrix that was not", |it| it.uses.misses),
            ("tenant_direct", "Uses that were multiplied from the container", |it| it.uses.direct),
            ("tenant_evictions", "Matrices that went for others", |it| it.uses.evictions),
        ];
        for (name, help, value) in counters {
            let name = format!("deltaloom:{name}");
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            for (tenant, _, residency) in &found {
                let labels = [("tenant", *tenant)];
                ConstCounter::new(value(residency)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn mapped_bytes(&self) -> u64 {
        let tenants: u64 = self.catalog.tenants().iter().map(|tenant| tenant.packed_bytes).sum();
        self.catalog.base().packed_bytes.saturating_add(tenants)
    }
}
