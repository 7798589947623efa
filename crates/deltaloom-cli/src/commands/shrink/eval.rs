//! `deltaloom shrink eval`: how far a student is from its teacher, and where its bytes are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use deltaloom::Progress as _;
use deltaloom_compute::{Mode, Run};
use deltaloom_lm::evaluate::{DivergenceReport, Frequency, Group, Seen, compare};
use deltaloom_lm::layer::{KvType, MemoryOptions};
use deltaloom_shrink::data;
use deltaloom_shrink::sizes::Sizes;
use deltaloom_shrink::student;
use serde::Serialize;

use crate::args::shrink::MeasureArguments;
use crate::models::{self, ID_BYTES, Opened, counting};
use crate::progress::Bar;
use crate::{Answer, inputs, ui};

/// Tokens of a window at most, if nothing else is said.
const LONGEST_WINDOW: usize = 2048;

#[derive(Serialize)]
struct Report {
    /// Bytes of the weights of the teacher.
    teacher_bytes: u64,
    /// Bytes of the packed weights of the student; none for a model that is no student.
    sizes: Option<Sizes>,
    /// The one over the other.
    ratio: Option<f64>,
    /// Tokens of the text in which tokens were counted.
    seen_tokens: Option<u64>,
    window_tokens: usize,
    texts: Vec<OnText>,
    seconds: f64,
}

#[derive(Serialize)]
struct OnText {
    name: String,
    /// BLAKE3-256 of the file.
    digest: String,
    windows: usize,
    kl: f64,
    /// The larger of its standard errors: by tokens, and by windows.
    kl_error: f64,
    divergence: DivergenceReport,
    by_frequency: Option<BTreeMap<Frequency, Group>>,
}

/// A text, with the ids that are measured.
struct Text {
    name: String,
    digest: String,
    ids: Vec<u32>,
}

pub(super) fn run(arguments: &MeasureArguments) -> Result<Answer> {
    let bar = Bar::new("computing");
    let (report, warnings) = models::on_threads(arguments.look.threads.count, || report(arguments, &bar))?;
    bar.finish();
    if arguments.look.json {
        inputs::print_json(&report, &warnings)?;
    } else {
        ui::print(&describe(&report))?;
    }
    Ok(Answer::Yes)
}

fn report(arguments: &MeasureArguments, bar: &Bar) -> Result<(Report, Vec<deltaloom::checkpoint::Warning>)> {
    let start = Instant::now();
    let mut opened = models::open(&arguments.teacher, None, None)?;
    let mut compared = models::compared(&mut opened, &arguments.student, arguments.base.as_deref())?;
    let trained = opened.model.config().max_positions.unwrap_or(LONGEST_WINDOW);
    let window = arguments.window.map(usize::try_from).transpose()?;
    let window = window.unwrap_or(trained.min(LONGEST_WINDOW));
    if window > trained {
        bail!("--window {window}: the teacher has {trained} positions");
    }
    let (texts, seen) = texts(arguments, &opened, window)?;
    let sizes = match student::is_student(&arguments.student) {
        true => Some(
            Sizes::of_folder(&arguments.student, arguments.base.as_deref())
                .with_context(|| arguments.student.display().to_string())?,
        ),
        false => None,
    };
    let Opened { mut model, warnings, .. } = opened;
    let teacher_bytes: u64 = model.base().weights().map(|(_, info)| info.end - info.begin).sum();
    let tokens: usize = texts.iter().map(|text| text.ids.len()).sum();
    bar.start(tokens as u64 * ID_BYTES);
    // As `shrink run`: no key, value or activation is rounded to BF16.
    let (memory, exact) = (MemoryOptions::default().with_kv(KvType::F32), Run::new(Mode::Exact));
    let mut on_texts = Vec::new();
    for Text { name, digest, ids } in texts {
        let found = compare(&mut model, compared.student(), &ids, window, memory, &exact, counting(bar))
            .with_context(|| name.clone())?;
        let divergence = found.report().context("no token was scored")?;
        on_texts.push(OnText {
            name,
            digest,
            windows: ids.len().div_ceil(window),
            kl: divergence.mean_kl,
            kl_error: divergence.kl.standard_error.max(divergence.kl_window_error.unwrap_or(0.0)),
            divergence,
            by_frequency: seen.as_ref().map(|seen| found.by_kind(|id| seen.of(id))),
        });
    }
    let report = Report {
        teacher_bytes,
        ratio: sizes.as_ref().map(|sizes| teacher_bytes as f64 / sizes.bytes.max(1) as f64),
        sizes,
        seen_tokens: seen.map(|seen| seen.tokens()),
        window_tokens: window,
        texts: on_texts,
        seconds: start.elapsed().as_secs_f64(),
    };
    Ok((report, warnings))
}

/// The texts to measure, and how often tokens occur in what is not measured.
fn texts(arguments: &MeasureArguments, opened: &Opened, window: usize) -> Result<(Vec<Text>, Option<Seen>)> {
    let last = arguments.last.map(usize::try_from).transpose()?;
    let read = |path: &PathBuf| -> Result<Text> {
        let text = models::text(path, opened, None)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Text { name, digest: text.digest.to_hex().to_string(), ids: text.ids })
    };
    let mut measured = arguments.tokens.iter().map(read).collect::<Result<Vec<Text>>>()?;
    for Text { ids, .. } in &mut measured {
        // What is left over behind the last window is not measured, unless it is all there is.
        let windows = ids.len() / window;
        if windows > 0 {
            ids.truncate(windows * window);
            ids.drain(..windows.saturating_sub(last.unwrap_or(windows)) * window);
        }
    }
    // Without a folder that can be listed, there are no texts in it.
    let beside = data::files_beside(opened.path()).unwrap_or_default();
    let mut beside = beside.iter().map(read).collect::<Result<Vec<Text>>>()?;
    beside.sort_by_key(|text| std::cmp::Reverse(text.ids.len() / window));
    let mut seen = Vec::new();
    for (number, text) in beside.iter_mut().enumerate() {
        let windows = text.ids.len() / window;
        text.ids.truncate(windows * window);
        let count = last.map_or(data::measured_windows(number, windows), |last| last.min(windows));
        let own = text.ids.split_off((windows - count) * window);
        seen.append(&mut std::mem::replace(&mut text.ids, own));
    }
    if measured.is_empty() {
        measured = beside;
        measured.retain(|text| !text.ids.is_empty());
    }
    if measured.is_empty() {
        let folder = arguments.teacher.display();
        bail!(
            "{folder}: there are no files val_*.u16 of {window} tokens or more in it; name a text with --tokens"
        );
    }
    let seen = match &arguments.seen {
        Some(path) => models::text(path, opened, None)?.ids,
        None => seen,
    };
    let vocabulary = opened.model.config().vocabulary;
    Ok((measured, (!seen.is_empty()).then(|| Seen::new(seen, vocabulary))))
}

fn describe(report: &Report) -> String {
    let mut text = String::new();
    if let (Some(sizes), Some(ratio)) = (&report.sizes, report.ratio) {
        let list = |parts: &mut dyn Iterator<Item = (&'static str, u64)>| -> String {
            parts.map(|(name, bytes)| format!("{name} {}", ui::bytes(bytes))).collect::<Vec<_>>().join(", ")
        };
        text.push_str(&format!(
            "LOSSY student: {} of {} ({})\nby place: {}\nby kind: {}\n",
            ui::bytes(sizes.bytes),
            ui::bytes(report.teacher_bytes),
            ui::ratio(ratio),
            list(&mut sizes.by_place.iter().map(|(place, bytes)| (place.name(), *bytes))),
            list(&mut sizes.by_kind.iter().map(|(kind, bytes)| (kind.name(), *bytes))),
        ));
    }
    for on in &report.texts {
        let it = &on.divergence;
        text.push_str(&format!(
            "{} ({} of {} tokens)\n  KL {:.6} ± {:.6} nats per token, reverse {:.6} ± {:.6}\n  same top token {}, \
             overlap of the top 5 {}, perplexity {:.3} (teacher {:.3})\n",
            ui::printable(&on.name),
            ui::count(on.windows as u64, "window"),
            report.window_tokens,
            on.kl,
            on.kl_error,
            it.reverse_kl,
            it.reverse_kl_error,
            ui::percent(it.same_top.value, 2),
            ui::percent(it.top5_overlap, 2),
            it.student_perplexity,
            it.base_perplexity,
        ));
        for (frequency, group) in on.by_frequency.iter().flatten() {
            let name = match frequency {
                Frequency::Unseen => "unseen",
                Frequency::Rare => "rare",
                Frequency::Common => "common",
            };
            let Group { tokens, kl, kl_error } = group;
            text.push_str(&format!("  {name:7} {tokens:>7} tokens, KL {kl:.6} ± {kl_error:.6}\n"));
        }
    }
    text
}
