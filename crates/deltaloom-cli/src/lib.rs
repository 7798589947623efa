//! The command line of deltaloom: one module per subcommand, thin over the library.
//! Data goes to standard output, everything else to standard error; exit codes are 0, 1 (verify, diff or a dry run says no) and 2 (failed).

mod args;
mod commands;
mod ui;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use args::{Arguments, Command};

/// What a command that did its work answers.
enum Answer {
    Yes,
    No,
}

/// Runs the program on the arguments of the process.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(e) => {
            // Help and version are data; mistakes are errors.
            let is_mistake = e.use_stderr();
            return if e.print().is_err() || is_mistake { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let answer = ui::catch_interrupts().and_then(|()| match arguments.command {
        Command::Pack(arguments) => commands::pack::run(&arguments),
        Command::Unpack(arguments) => commands::unpack::run(&arguments),
        Command::Inspect(arguments) => commands::inspect::run(&arguments),
        Command::Verify(arguments) => commands::verify::run(&arguments),
        Command::Diff(arguments) => commands::diff::run(&arguments),
        Command::Lineage(arguments) => commands::lineage::run(&arguments),
        Command::Cat(arguments) => commands::cat::run(&arguments),
        Command::Bench(arguments) => commands::bench::run(&arguments),
        Command::Estimate(arguments) => commands::estimate::run(&arguments),
        Command::Series(arguments) => commands::series::run(&arguments),
        Command::Lab(arguments) => commands::lab::run(&arguments),
        Command::Demo(arguments) => commands::demo::run(&arguments),
    });
    match answer {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Err(e) if ui::is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            ui::print_error(&e);
            ExitCode::from(2)
        }
    }
}

/// The reference of all commands and options in Markdown, made from the same definitions as `--help`.
#[must_use]
pub fn reference() -> String {
    // A fixed width, whatever terminal this runs in.
    let mut root = Arguments::command().term_width(100);
    root.build();
    let mut out = String::new();
    root.get_subcommands_mut().for_each(|command| describe("deltaloom", command, &mut out));
    out
}

fn describe(parent: &str, command: &mut clap::Command, out: &mut String) {
    if command.get_name() == "help" {
        return;
    }
    let name = format!("{parent} {}", command.get_name());
    let help = command.render_long_help();
    out.push_str(&format!("## {name}\n\n```text\n{}\n```\n\n", help.to_string().trim_end()));
    command.get_subcommands_mut().for_each(|command| describe(&name, command, out));
}
