//! Numbers for Prometheus. Where vLLM has a metric, ours has its name with another prefix. Series
//! of a fine-tune go when it is removed.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use deltaloom_lm::engine::{StepReport, Usage};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

use crate::wire::FinishReason;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model_name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SuccessLabels {
    model_name: String,
    finished_reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

type Times = Family<ModelLabel, Histogram>;

/// What is counted while requests and steps come and go.
#[derive(Debug)]
pub(crate) struct Metrics {
    prompt_tokens: Family<ModelLabel, Counter>,
    generation_tokens: Family<ModelLabel, Counter>,
    success: Family<SuccessLabels, Counter>,
    first_token: Times,
    between_tokens: Times,
    whole: Times,
    queue: Times,
    prefill: Times,
    decode: Times,
    refused: Family<CodeLabel, Counter>,
    cancelled: Counter,
    step_seconds: Histogram,
    step_tenants: Histogram,
    iteration_tokens: Histogram,
    step_tokens: Family<KindLabel, Counter>,
    phases: Family<PhaseLabel, Counter<f64, AtomicU64>>,
    panics: Counter,
}

/// From a millisecond to about nine minutes.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 20))
}

fn counts() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 12))
}

impl Metrics {
    /// Registers all of them.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let times = || Times::new_with_constructor(seconds);
        let metrics = Self {
            prompt_tokens: Family::default(),
            generation_tokens: Family::default(),
            success: Family::default(),
            first_token: times(),
            between_tokens: times(),
            whole: times(),
            queue: times(),
            prefill: times(),
            decode: times(),
            refused: Family::default(),
            cancelled: Counter::default(),
            step_seconds: seconds(),
            step_tenants: counts(),
            iteration_tokens: counts(),
            step_tokens: Family::default(),
            phases: Family::default(),
            panics: Counter::default(),
        };
        add(registry, "prompt_tokens", "Tokens of prompts", &metrics.prompt_tokens);
        add(registry, "generation_tokens", "Generated tokens", &metrics.generation_tokens);
        add(registry, "request_success", "Texts that ended", &metrics.success);
        add(registry, "time_to_first_token_seconds", "Until the first token", &metrics.first_token);
        add(registry, "time_per_output_token_seconds", "Between tokens", &metrics.between_tokens);
        add(registry, "e2e_request_latency_seconds", "Whole requests", &metrics.whole);
        add(registry, "request_queue_time_seconds", "Until the first step", &metrics.queue);
        add(registry, "request_prefill_time_seconds", "For prompts", &metrics.prefill);
        add(registry, "request_decode_time_seconds", "For texts", &metrics.decode);
        add(registry, "requests_refused", "Refused requests", &metrics.refused);
        add(registry, "requests_cancelled", "Requests whose clients left", &metrics.cancelled);
        add(registry, "step_seconds", "Steps of the engine", &metrics.step_seconds);
        add(registry, "step_tenants", "Fine-tunes of a step", &metrics.step_tenants);
        add(registry, "iteration_tokens_total", "Tokens of a step", &metrics.iteration_tokens);
        add(registry, "step_tokens", "Tokens of steps", &metrics.step_tokens);
        add(registry, "engine_phase_seconds", "Products, summed over threads", &metrics.phases);
        add(registry, "engine_panics", "Defects that ended requests", &metrics.panics);
        metrics
    }

    /// A step of the engine.
    pub(crate) fn step(&self, report: &StepReport, took: Duration) {
        let tokens = report.prefill_tokens + report.decode_tokens;
        if tokens > 0 {
            self.step_seconds.observe(took.as_secs_f64());
            self.step_tenants.observe(report.tenants as f64);
            self.iteration_tokens.observe(tokens as f64);
        }
        for (kind, tokens) in [("prefill", report.prefill_tokens), ("decode", report.decode_tokens)] {
            self.step_tokens.get_or_create(&KindLabel { kind }).inc_by(tokens as u64);
        }
        let phases = &report.phases;
        for (phase, seconds) in [
            ("load", phases.load),
            ("decode", phases.decode),
            ("patch", phases.patch),
            ("multiply", phases.multiply),
            ("finish", phases.finish),
        ] {
            self.phases.get_or_create(&PhaseLabel { phase }).inc_by(seconds);
        }
        self.panics.inc_by(u64::from(report.has_panicked));
    }

    /// The first token of a text.
    pub(crate) fn first_token(&self, model: &str, after: Duration) {
        self.first_token.get_or_create(&label(model)).observe(after.as_secs_f64());
    }

    /// A later token.
    pub(crate) fn next_token(&self, model: &str, after: Duration) {
        self.between_tokens.get_or_create(&label(model)).observe(after.as_secs_f64());
    }

    /// A text that ended.
    pub(crate) fn ended(&self, model: &str, reason: FinishReason) {
        let labels = SuccessLabels { model_name: model.to_owned(), finished_reason: reason.name() };
        self.success.get_or_create(&labels).inc();
    }

    /// What a text took.
    pub(crate) fn used(&self, model: &str, usage: &Usage, whole: Duration) {
        let label = label(model);
        self.prompt_tokens.get_or_create(&label).inc_by(usage.prompt_tokens as u64);
        self.generation_tokens.get_or_create(&label).inc_by(usage.tokens as u64);
        for (times, took) in [
            (&self.whole, whole),
            (&self.queue, usage.queued),
            (&self.prefill, usage.prefill),
            (&self.decode, usage.decode),
        ] {
            times.get_or_create(&label).observe(took.as_secs_f64());
        }
    }

    /// A request that was refused.
    pub(crate) fn refused(&self, code: &'static str) {
        self.refused.get_or_create(&CodeLabel { code }).inc();
    }

    /// A request that nobody waits for any more.
    pub(crate) fn cancelled(&self) {
        self.cancelled.inc();
    }

    /// Removes the series of a fine-tune.
    pub(crate) fn forget(&self, model: &str) {
        let label = label(model);
        for family in [&self.prompt_tokens, &self.generation_tokens] {
            family.remove(&label);
        }
        for times in
            [&self.first_token, &self.between_tokens, &self.whole, &self.queue, &self.prefill, &self.decode]
        {
            times.remove(&label);
        }
        for reason in
            [FinishReason::Stop, FinishReason::Length, FinishReason::ToolCalls, FinishReason::Cancelled]
        {
            let labels = SuccessLabels { model_name: model.to_owned(), finished_reason: reason.name() };
            self.success.remove(&labels);
        }
    }
}

fn label(model: &str) -> ModelLabel {
    ModelLabel { model_name: model.to_owned() }
}

/// Registers a metric under our prefix.
fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: &M) {
    registry.register(format!("deltaloom:{name}"), help, metric.clone());
}
