//! Numbers that are looked up when Prometheus asks: the state of the engine and of its memory, and
//! which fine-tunes there are.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::catalog::Catalog;
use crate::worker::Worker;

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
            ("matrix_hits", "Uses of a matrix in memory", residency.hits),
            ("matrix_misses", "Uses of a matrix that was not", residency.misses),
            ("matrix_direct", "Uses that were multiplied from the container", residency.direct),
            ("matrix_evictions", "Matrices that went for others", residency.evictions),
            ("decoded_bytes", "Dense bytes of everything decoded", residency.decoded_bytes),
        ] {
            let name = format!("deltaloom:{name}");
            let descriptor = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(descriptor)?;
        }
        let help = "Fine-tunes that are served";
        let name = "deltaloom:tenant_loaded";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for tenant in self.catalog.tenants() {
            let labels =
                [("tenant", tenant.name.as_str()), ("pinned", if tenant.pinned { "true" } else { "false" })];
            ConstGauge::new(1_u64).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Scrape {
    fn mapped_bytes(&self) -> u64 {
        let tenants: u64 = self.catalog.tenants().iter().map(|tenant| tenant.packed_bytes).sum();
        self.catalog.base().packed_bytes.saturating_add(tenants)
    }
}
