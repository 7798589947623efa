//! The command line of deltaloom: one module per subcommand, thin over the library. Results go to
//! standard output, everything else to standard error. [`failure`] and docs/cli.md list the exit
//! codes.
//!
//! Imports go one way: from `commands` to `models`, `inputs`, `pages`, `target`, `store`,
//! `failure`, `hints`, `progress`, `signals`, `host`, `ui`, `args`, `values` and `assets`. Commands
//! do not import each other.

mod args;
#[cfg(feature = "demo")]
mod assets;
mod commands;
mod failure;
mod hints;
mod host;
mod inputs;
#[cfg(feature = "compute")]
mod models;
#[cfg(feature = "report")]
mod pages;
mod progress;
mod signals;
mod store;
mod target;
mod ui;
mod values;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use host::Host;

use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _};

use args::{Arguments, Command, GlobalArguments};
use failure::Failure;
use values::Color;

/// The answer of a command that succeeded.
enum Answer {
    Yes,
    No,
}

/// Runs the program on the arguments of the process.
#[must_use]
pub fn run() -> ExitCode {
    run_from(std::env::args_os(), Host::default()).into()
}

/// Runs the program on a command line, of which the first word is the name of the program, and
/// returns its exit code. It writes to the standard output and error of the process. One run at a
/// time.
#[must_use]
pub fn run_from(words: impl IntoIterator<Item = OsString>, host: Host) -> u8 {
    let words: Vec<OsString> = words.into_iter().collect();
    let has_signals = host.is_interrupted.is_none();
    host::begin(host, words.get(1..).unwrap_or_default());
    signals::begin();
    let has_json = words.iter().take_while(|word| *word != "--").any(|word| word == "--json");
    let command = args::command().color(Color::of_words(&words).into());
    let parsed = command.try_get_matches_from(&words);
    let parsed = parsed.and_then(|found| Ok((Arguments::from_arg_matches(&found)?, found)));
    let (arguments, found) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => return answer_clap(&e, has_json),
    };
    ui::set_look(has_json, &arguments.global);
    start_log(arguments.global.verbose);
    #[cfg(feature = "object-store")]
    deltaloom_object_store::when_slow(|| ui::note("waiting for an answer of the store"));
    let watch = || if has_signals { signals::watch(|| Failure::interrupted().say()) } else { Ok(()) };
    let answer = refuse_stdin(&found).and_then(|()| watch()).and_then(|()| dispatch(&arguments.command));
    match answer {
        Ok(Answer::Yes) => 0,
        Ok(Answer::No) => 1,
        Err(e) if ui::is_broken_pipe(&e) => 0,
        Err(e) => {
            let failure = Failure::new(&e);
            failure.say();
            failure.code()
        }
    }
}

fn dispatch(command: &Command) -> anyhow::Result<Answer> {
    match command {
        Command::Pack(arguments) => commands::pack::run(arguments),
        Command::Unpack(arguments) => commands::unpack::run(arguments),
        Command::Inspect(arguments) => commands::inspect::run(arguments),
        Command::Verify(arguments) => commands::verify::run(arguments),
        Command::Diff(arguments) => commands::diff::run(arguments),
        Command::Lineage(arguments) => commands::lineage::run(arguments),
        Command::Cat(arguments) => commands::cat::run(arguments),
        #[cfg(feature = "lab")]
        Command::Bench(arguments) => commands::bench::run(arguments),
        #[cfg(feature = "compute")]
        Command::Context(arguments) => commands::context::run(arguments),
        #[cfg(feature = "compute")]
        Command::Estimate(arguments) => commands::estimate::run(arguments),
        #[cfg(feature = "compute")]
        Command::Eval(arguments) => commands::eval::run(arguments),
        #[cfg(feature = "compute")]
        Command::Generate(arguments) => commands::generate::run(arguments),
        #[cfg(feature = "serve")]
        Command::Serve(arguments) => commands::serve::run(arguments),
        Command::Series(arguments) => commands::series::run(arguments),
        #[cfg(feature = "shrink")]
        Command::Shrink(arguments) => commands::shrink::run(arguments),
        #[cfg(feature = "lab")]
        Command::Lab(arguments) => commands::lab::run(arguments),
        #[cfg(feature = "demo")]
        Command::Demo(arguments) => commands::demo::run(arguments),
        Command::Completions(arguments) => commands::help::completions(arguments),
        Command::Man(arguments) => commands::help::man(arguments),
    }
}

/// Refuses `-` as an input: inputs are read at arbitrary positions, most of them more than once.
fn refuse_stdin(found: &ArgMatches) -> anyhow::Result<()> {
    let is_dash = |id: &str| {
        let paths = found.try_get_many::<PathBuf>(id).ok().flatten();
        paths.is_some_and(|mut paths| paths.any(|path| path == Path::new(target::DASH)))
    };
    let mut names = found.ids().map(clap::Id::as_str);
    if names.any(|id| !matches!(id, "output" | "html") && is_dash(id)) {
        anyhow::bail!(
            "cannot read standard input: checkpoints and containers are read more than once and at arbitrary positions; write it to a file first"
        );
    }
    found.subcommand().map_or(Ok(()), |(_, inner)| refuse_stdin(inner))
}

/// Help and version are data; mistakes are errors.
fn answer_clap(error: &clap::Error, has_json: bool) -> u8 {
    if !error.use_stderr() {
        return if error.print().is_ok() { 0 } else { failure::REFUSED };
    }
    if has_json {
        ui::set_look(true, &GlobalArguments::default());
        let text = error.to_string();
        Failure::usage(text.trim().trim_start_matches("error: ").to_owned()).say();
    } else {
        // Nothing can be reported if standard error is closed.
        let _ignored = error.print();
    }
    failure::REFUSED
}

/// Logs to standard error: operations with one `-v`, decisions with two, everything with three.
fn start_log(verbose: u8) {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::layer::SubscriberExt as _;
    let (ours, others) = match verbose {
        0 => return,
        1 => (LevelFilter::INFO, LevelFilter::WARN),
        2 => (LevelFilter::DEBUG, LevelFilter::WARN),
        _ => (LevelFilter::TRACE, LevelFilter::TRACE),
    };
    let targets = Targets::new().with_default(others).with_target("deltaloom", ours);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ui::has_color());
    let log = tracing_subscriber::registry().with(targets).with(lines);
    // It is set only here. A second run in this process keeps the log of the first.
    let _ignored = tracing::subscriber::set_global_default(log);
}

/// The reference of all commands and options in Markdown, made from the same definitions as
/// `--help`.
#[must_use]
pub fn reference() -> String {
    // A fixed width, whatever terminal this runs in.
    let mut root = Arguments::command().term_width(100);
    root.build();
    let mut out = String::new();
    describe("deltaloom", &mut root, &mut out);
    out
}

/// Describes a command and its subcommands. The options that all commands have are described once.
fn describe(name: &str, command: &mut clap::Command, out: &mut String) {
    let help = command.render_long_help();
    out.push_str(&format!("## {name}\n\n```text\n{}\n```\n\n", help.to_string().trim_end()));
    for command in command.get_subcommands_mut().filter(|command| command.get_name() != "help") {
        let name = format!("{name} {}", command.get_name());
        let is_shared = |arg: &clap::Arg| arg.is_global_set() || arg.get_id() == "help";
        let mut command = command.clone().mut_args(|arg| if is_shared(&arg) { arg.hide(true) } else { arg });
        describe(&name, &mut command, out);
    }
}
