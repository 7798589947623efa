//! What the program does when it is asked to stop: it finishes the current chunk and cleans up. If
//! it is asked again, it quits at once.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use anyhow::Result;

use crate::{host, ui};

/// The first signal received; 0 if there was none.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// Whether work is running that checks for signals and may have files to clean up.
static CAN_STOP: AtomicBool = AtomicBool::new(false);

/// Forgets the signals of an earlier run.
pub(crate) fn begin() {
    SIGNAL.store(0, Ordering::SeqCst);
    CAN_STOP.store(false, Ordering::SeqCst);
}

/// From now on, the first signal stops the work instead of the process.
pub(crate) fn work_can_stop() {
    CAN_STOP.store(true, Ordering::SeqCst);
}

/// Whether work should stop.
pub(crate) fn is_interrupted() -> bool {
    SIGNAL.load(Ordering::SeqCst) != 0 || host::is_interrupted()
}

/// 130 after Ctrl-C and 143 after SIGTERM, as in shells.
pub(crate) fn exit_code() -> u8 {
    match SIGNAL.load(Ordering::SeqCst) {
        0 => 130,
        signal => u8::try_from(128 + signal).unwrap_or(u8::MAX),
    }
}

/// Handles the signals that ask the process to stop. Catches the one for a file that is too large,
/// whose write then fails like any other. `last_words` runs before the process quits at once.
#[cfg(unix)]
pub(crate) fn watch(last_words: fn()) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
    static WATCHED: AtomicBool = AtomicBool::new(false);
    if WATCHED.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP, SIGXFSZ])?;
    std::thread::spawn(move || {
        signals.forever().filter(|signal| *signal != SIGXFSZ).for_each(|signal| stop(signal, last_words));
    });
    Ok(())
}

/// Other systems have one signal.
#[cfg(not(unix))]
pub(crate) fn watch(last_words: fn()) -> Result<()> {
    match ctrlc::set_handler(move || stop(2, last_words)) {
        Err(ctrlc::Error::MultipleHandlers) => Ok(()),
        watched => Ok(watched?),
    }
}

fn stop(signal: i32, last_words: fn()) {
    let is_first = SIGNAL.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    if is_first && CAN_STOP.load(Ordering::SeqCst) {
        ui::say_stopping();
        return;
    }
    last_words();
    #[expect(clippy::exit, reason = "nothing was begun; or asked twice, and temporary files may stay")]
    std::process::exit(exit_code().into());
}
