//! The same load on an engine, without a server between: what HTTP costs is the difference.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::plan::Planner;
use super::{Answer, LoadOptions, LoadReport};
use deltaloom::__internals::check_cancelled;
use deltaloom::{Error, Progress, Result};
use deltaloom_lm::engine::{Engine, Event, Flow, Request, Sink, Want};
use deltaloom_lm::layer::TenantId;

/// The answer that grows.
#[derive(Clone)]
struct Growing(Arc<Mutex<(Answer, Instant, Option<Instant>)>>);

impl Sink for Growing {
    fn push(&mut self, event: Event) {
        let mut growing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (answer, start, last) = &mut *growing;
        let now = Instant::now();
        match event {
            Event::Token { scored: Some(scored), .. } => {
                answer.tokens.push((scored.id, scored.log_prob));
                match last.replace(now) {
                    None => answer.first = Some(now - *start),
                    Some(before) => answer.gaps.push(now - before),
                }
            }
            Event::Done(..) => {
                answer.status = 200;
                answer.total = now - *start;
            }
            Event::Failed(error) => {
                answer.status = 500;
                answer.failure = Some(error.to_string());
            }
            _ => {}
        }
    }

    fn flow(&self) -> Flow {
        Flow::Go
    }
}

/// Keeps as many requests in the engine as there are clients, until the time is over or all are
/// sent. `tenants` has every model by name.
///
/// # Errors
/// As [`super::run`]; [`Error::InvalidArgument`] for a request that the engine refuses.
pub fn direct(
    engine: &mut Engine,
    tenants: &BTreeMap<String, TenantId>,
    options: &LoadOptions,
    progress: &dyn Progress,
) -> Result<(LoadReport, Vec<Answer>)> {
    options.check()?;
    let planner = Planner::new(options);
    let (mut running, mut answers): (Vec<Growing>, Vec<Answer>) = (Vec::new(), Vec::new());
    let (start, mut sent) = (Instant::now(), 0);
    loop {
        check_cancelled(progress)?;
        while running.len() < options.clients.max(1)
            && sent < options.requests
            && start.elapsed() < options.duration
        {
            let planned = planner.request(sent);
            let tenant = tenants.get(&planned.model).copied();
            let missing = || Error::InvalidArgument(format!("no model {:?}", planned.model));
            let mut request =
                Request::new(tenant.ok_or_else(missing)?, planned.prompt.clone(), planned.max_tokens);
            request.sampling.temperature = planned.temperature;
            request.sampling.seed = planned.seed;
            request.want = Want { prompt: None, tokens: Some(0) };
            let growing = Growing(Arc::new(Mutex::new((Answer::of(planned), Instant::now(), None))));
            let refused = engine.submit(request, Box::new(growing.clone()));
            refused.map_err(|refused| Error::InvalidArgument(refused.to_string()))?;
            running.push(growing);
            sent += 1;
        }
        if running.is_empty() {
            break;
        }
        engine.step();
        running.retain(|growing| {
            let growing = growing.0.lock().unwrap_or_else(PoisonError::into_inner);
            let has_ended = growing.0.status != 0;
            if has_ended {
                progress.advance(1);
                answers.push(growing.0.clone());
            }
            !has_ended
        });
    }
    Ok((LoadReport::of(&answers, 0, start.elapsed().as_secs_f64()), answers))
}
