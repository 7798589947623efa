//! What a teacher and its student say after the same words.

use std::path::Path;

use anyhow::{Context as _, Result};
use deltaloom_compute::Run;
use deltaloom_lm::generate::{Request, generate};
use deltaloom_lm::text::{Stop, Tokenizer};
use serde::Serialize;

use crate::{models, signals};

/// Tokens of a prompt.
const PROMPT: usize = 16;
/// How far before the end of the text the prompt begins, in tokens.
const BEFORE_END: usize = 64;
/// Tokens that are generated at most.
const TOKENS: usize = 48;

/// Texts of both, each the most probable token after the other.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Samples {
    pub(super) prompt: String,
    pub(super) teacher: String,
    pub(super) student: String,
}

/// Lets both continue words from near the end of a text, which is what was measured. `None` without
/// a tokenizer: then nobody could read it. `base` is that of a student of a fine-tune.
pub(super) fn samples(
    teacher: &Path,
    student: &Path,
    base: Option<&Path>,
    text: &Path,
) -> Result<Option<Samples>> {
    let opened = models::open(teacher, None, None)?;
    let Ok(tokenizer) = opened.tokenizer() else { return Ok(None) };
    let ids = models::text(text, &opened, None)?.ids;
    let prompt = &ids[ids.len().saturating_sub(BEFORE_END)..];
    let prompt = &prompt[..prompt.len().min(PROMPT)];
    if prompt.is_empty() {
        return Ok(None);
    }
    let of_teacher = continued(opened, &tokenizer, prompt)?;
    let of_student = continued(models::open(student, base, None)?, &tokenizer, prompt)?;
    let prompt = tokenizer.pieces().text(prompt, true);
    Ok(Some(Samples { prompt, teacher: of_teacher, student: of_student }))
}

fn continued(opened: models::Opened, tokenizer: &Tokenizer, prompt: &[u32]) -> Result<String> {
    let models::Opened { mut model, tenant, .. } = opened;
    let stop = Stop::new(tokenizer.special().end.clone(), Vec::new())?;
    let request = Request::new(prompt, TOKENS).with_stop(stop);
    let each = |_: deltaloom_lm::generate::Event<'_>| Ok(!signals::is_interrupted());
    let found = generate(&mut model, tenant, tokenizer.pieces(), request, &Run::default(), each);
    Ok(found.context("a sample of its text")?.text)
}
