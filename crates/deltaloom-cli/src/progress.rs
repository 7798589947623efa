//! Progress on standard error: a bar on a terminal, JSON lines for programs, or nothing. Operations
//! also ask here whether to stop.

use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde::Serialize;

use crate::values::ProgressStyle;
use crate::{signals, ui};

const TEMPLATE: &str = "{prefix} {bar:20} {percent}% {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}";
/// Finding out how tensors were made, before they are packed.
const SEARCH: &str = "searching";
/// Time between two lines of JSON.
const LINE_INTERVAL: Duration = Duration::from_millis(200);

/// The progress of one operation.
pub(crate) struct Bar {
    verb: &'static str,
    bar: OnceLock<ProgressBar>,
    lines: Option<Lines>,
}

impl Bar {
    pub(crate) fn new(verb: &'static str) -> Self {
        signals::work_can_stop();
        let is_json = ui::look().progress == ProgressStyle::Json;
        Self { verb, bar: OnceLock::new(), lines: is_json.then(Lines::default) }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
        if let Some(lines) = &self.lines {
            lines.finish(self.verb);
        }
    }

    fn begin(&self, verb: &'static str, total_bytes: u64) {
        if let Some(lines) = &self.lines {
            lines.start(verb, total_bytes);
        }
        if !Self::is_drawn() {
            return;
        }
        let bar = self.bar.get_or_init(|| ProgressBar::new(total_bytes));
        bar.set_length(total_bytes);
        bar.set_position(0);
        bar.reset_eta();
        if let Ok(style) = indicatif::ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        bar.set_prefix(verb);
    }

    fn count(&self, verb: &str, bytes: u64) {
        if let Some(bar) = self.bar.get() {
            bar.inc(bytes);
        }
        if let Some(lines) = &self.lines {
            lines.advance(verb, bytes);
        }
    }

    fn is_drawn() -> bool {
        ui::look().progress == ProgressStyle::Bar && !ui::look().quiet
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}

impl deltaloom::Progress for Bar {
    fn start(&self, total_bytes: u64) {
        self.begin(self.verb, total_bytes);
    }

    fn advance(&self, bytes: u64) {
        self.count(self.verb, bytes);
    }

    fn search(&self, total_bytes: u64) {
        self.begin(SEARCH, total_bytes);
    }

    fn searched(&self, bytes: u64) {
        self.count(SEARCH, bytes);
    }

    fn is_cancelled(&self) -> bool {
        signals::is_interrupted()
    }
}

/// Progress as lines of JSON.
#[derive(Default)]
struct Lines {
    done: AtomicU64,
    total: AtomicU64,
    /// When the operation began, and when the last line was written.
    times: Mutex<Option<(Instant, Instant)>>,
}

/// One line.
#[derive(Serialize)]
struct Line<'a> {
    progress: State<'a>,
}

#[derive(Serialize)]
struct State<'a> {
    verb: &'a str,
    done_bytes: u64,
    total_bytes: u64,
    seconds: f64,
}

impl Lines {
    fn start(&self, verb: &str, total_bytes: u64) {
        self.total.store(total_bytes, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        let now = Instant::now();
        *self.times.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, now));
        self.write(verb, now);
    }

    fn advance(&self, verb: &str, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        // If another thread is writing a line, that one is newer.
        let Ok(mut times) = self.times.try_lock() else { return };
        if let Some((start, last)) = &mut *times
            && last.elapsed() >= LINE_INTERVAL
        {
            *last = Instant::now();
            self.write(verb, *start);
        }
    }

    fn finish(&self, verb: &str) {
        if let Some((start, _)) = self.times.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.write(verb, start);
        }
    }

    fn write(&self, verb: &str, start: Instant) {
        let state = State {
            verb,
            done_bytes: self.done.load(Ordering::Relaxed),
            total_bytes: self.total.load(Ordering::Relaxed),
            seconds: start.elapsed().as_secs_f64(),
        };
        let Ok(line) = serde_json::to_string(&Line { progress: state }) else { return };
        // Nothing can be reported if standard error is closed.
        let _ignored = writeln!(io::stderr().lock(), "{line}");
    }
}
