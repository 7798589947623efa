//! A language model with fine-tunes of it that stay packed. Thin over `deltaloom-lm`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use deltaloom::{Container, Error, Limits, Progress, Result};
use deltaloom_compute::{Mode, Run};
use deltaloom_lm::generate::{Event, Generated, Request, generate};
use deltaloom_lm::layer::TenantId;
use deltaloom_lm::model::{PerplexityOptions, perplexity};
use deltaloom_lm::sample::Sampling;
use deltaloom_lm::tenancy::FamilyOptions;
use deltaloom_lm::text::{ChatTemplate, Conversation, Special, Stop, Tokenizer};
use pyo3::exceptions::{PyKeyError, PyRuntimeError};
use pyo3::prelude::*;

use crate::progress::run;
use crate::report::to_json;

/// The longest window of a perplexity, in tokens.
const WINDOW: usize = 1024;

/// A model and its fine-tunes by name. The base has none.
struct Opened {
    model: deltaloom_lm::model::Model,
    speakers: BTreeMap<Option<String>, Speaker>,
}

/// The base or a fine-tune, whose container may have a tokenizer of its own.
struct Speaker {
    tenant: TenantId,
    tokenizer: Tokenizer,
}

/// An open language model. One call computes at a time.
#[pyclass(frozen, module = "deltaloom._lib")]
pub(crate) struct Model {
    opened: Mutex<Opened>,
}

/// How a text is continued.
#[derive(FromPyObject)]
struct Options {
    #[pyo3(item)]
    max_tokens: usize,
    #[pyo3(item)]
    temperature: f32,
    #[pyo3(item)]
    top_k: u32,
    #[pyo3(item)]
    top_p: f32,
    #[pyo3(item)]
    min_p: f32,
    #[pyo3(item)]
    repetition_penalty: f32,
    #[pyo3(item)]
    seed: u64,
    #[pyo3(item)]
    stop: Vec<String>,
    #[pyo3(item)]
    chat: bool,
    #[pyo3(item)]
    system: Option<String>,
}

impl Opened {
    fn open(path: &Path, tenants: &BTreeMap<String, PathBuf>) -> Result<Self> {
        let mut model = deltaloom_lm::context::open(path, FamilyOptions::default())?;
        let mut ids = vec![(None, deltaloom_lm::model::Model::BASE)];
        for (name, path) in tenants {
            let prepared = model.prepare(Container::open(path, &Limits::default())?)?;
            ids.push((Some(name.clone()), model.admit(prepared)?));
        }
        let speaker = |(name, tenant)| {
            let own = |file: &str, limit: u64| model.file(tenant, file, limit);
            let tokenizer = Tokenizer::open_with(path, model.config().vocabulary, &own)?;
            Ok((name, Speaker { tenant, tokenizer }))
        };
        let speakers = ids.into_iter().map(speaker).collect::<Result<_>>()?;
        Ok(Self { model, speakers })
    }
}

impl Speaker {
    fn ids(&self, prompt: &str, options: &Options) -> Result<Vec<u32>> {
        let special = self.tokenizer.special();
        if !options.chat {
            let mut ids = self.tokenizer.encode(prompt, Special::Add)?;
            if ids.is_empty() {
                ids.extend(special.begin);
            }
            return Ok(ids);
        }
        let none =
            || Error::InvalidArgument("the model has no chat template; leave out chat=True".to_owned());
        let source = special.chat_template.as_ref().ok_or_else(none)?;
        let template =
            ChatTemplate::parse(source, special.begin_text.as_deref(), special.end_text.as_deref())?;
        let text = template.render(&Conversation::of_user(options.system.as_deref(), prompt))?;
        self.tokenizer.encode(&text, Special::Omit)
    }

    fn generate(
        &self,
        model: &mut deltaloom_lm::model::Model,
        prompt: &str,
        options: Options,
        progress: &dyn Progress,
        mut each: impl FnMut(&str) -> Result<()>,
    ) -> Result<Generated> {
        let ids = self.ids(prompt, &options)?;
        let Options { max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop, .. } =
            options;
        let sampling =
            Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed, ..Sampling::default() };
        let request = Request::new(&ids, max_tokens)
            .with_sampling(sampling)
            .with_stop(Stop::new(self.tokenizer.special().end.clone(), stop)?);
        let each = |event: Event<'_>| {
            if let Event::Token(text) | Event::Rest(text) = event
                && !text.is_empty()
            {
                each(text)?;
            }
            Ok(!progress.is_cancelled())
        };
        generate(model, self.tenant, self.tokenizer.pieces(), request, &Run::new(Mode::Exact), each)
    }
}

impl Model {
    fn lock(&self) -> PyResult<MutexGuard<'_, Opened>> {
        match self.opened.try_lock() {
            Ok(opened) => Ok(opened),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Ok(PoisonError::into_inner(poisoned)),
            Err(std::sync::TryLockError::WouldBlock) => {
                Err(PyRuntimeError::new_err("the model is in use by another call"))
            }
        }
    }
}

/// The speaker with a name, and the model.
fn speaker<'a>(
    opened: &'a mut Opened,
    name: Option<&str>,
) -> PyResult<(&'a mut deltaloom_lm::model::Model, &'a Speaker)> {
    let none = || PyKeyError::new_err(name.unwrap_or_default().to_owned());
    let speaker = opened.speakers.get(&name.map(str::to_owned)).ok_or_else(none)?;
    Ok((&mut opened.model, speaker))
}

#[pymethods]
impl Model {
    /// Opens a folder of Hugging Face or a GGUF file, and containers of fine-tunes of it.
    #[staticmethod]
    fn open(
        py: Python<'_>,
        path: PathBuf,
        tenants: BTreeMap<String, PathBuf>,
        threads: usize,
    ) -> PyResult<Self> {
        let opened = run(py, None, threads, |_| Opened::open(&path, &tenants))?;
        Ok(Self { opened: Mutex::new(opened) })
    }

    /// Continues a text. `each` is called with every new piece of text.
    fn generate(
        &self,
        py: Python<'_>,
        prompt: &str,
        tenant: Option<&str>,
        options: Options,
        each: Option<Bound<'_, PyAny>>,
        threads: usize,
    ) -> PyResult<String> {
        let mut opened = self.lock()?;
        let (model, speaker) = speaker(&mut opened, tenant)?;
        let each = each.map(Bound::unbind);
        let raised: Mutex<Option<PyErr>> = Mutex::new(None);
        let tell = |text: &str| {
            let Some(each) = &each else { return Ok(()) };
            Python::attach(|py| each.call1(py, (text,))).map(drop).map_err(|e| {
                *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                Error::Cancelled
            })
        };
        let generated =
            run(py, None, threads, |progress| speaker.generate(model, prompt, options, progress, tell));
        if let Some(raised) = raised.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(raised);
        }
        Ok(generated?.text)
    }

    /// The loss on a text or on token ids, as JSON.
    #[expect(clippy::too_many_arguments, reason = "the options of the Python function")]
    fn perplexity(
        &self,
        py: Python<'_>,
        text: Option<&str>,
        ids: Vec<u32>,
        tenant: Option<&str>,
        window: Option<usize>,
        threads: usize,
        report: Option<Bound<'_, PyAny>>,
    ) -> PyResult<String> {
        let mut opened = self.lock()?;
        let (model, speaker) = speaker(&mut opened, tenant)?;
        run(py, report.as_ref(), threads, |progress| {
            let ids = match text {
                Some(text) => speaker.tokenizer.encode(text, Special::Add)?,
                None => ids,
            };
            let longest = model.config().max_positions.unwrap_or(WINDOW).min(WINDOW);
            let options = PerplexityOptions::new(window.unwrap_or(longest));
            progress.start(options.work(ids.len()) as u64);
            let each = |tokens: usize| {
                progress.advance(tokens as u64);
                if progress.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
            };
            to_json(&perplexity(model, speaker.tenant, &ids, &options, &Run::new(Mode::Exact), each)?)
        })
    }

    /// The token ids of a text.
    fn encode(&self, py: Python<'_>, text: &str, tenant: Option<&str>) -> PyResult<Vec<u32>> {
        let mut opened = self.lock()?;
        let (_, speaker) = speaker(&mut opened, tenant)?;
        speaker.tokenizer.encode(text, Special::Add).map_err(|e| crate::errors::exception(py, &e))
    }
}
