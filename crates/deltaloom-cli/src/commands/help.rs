//! `deltaloom completions` and `man`: made from the same definitions as `--help`.

use crate::args::{CompletionsArguments, ManArguments};
use crate::{Answer, args, ui};
use anyhow::{Result, bail};

const NAME: &str = "deltaloom";

pub(crate) fn completions(arguments: &CompletionsArguments) -> Result<Answer> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut args::command(), NAME, &mut script);
    ui::print(&String::from_utf8(script)?)?;
    Ok(Answer::Yes)
}

pub(crate) fn man(arguments: &ManArguments) -> Result<Answer> {
    let mut command = args::command();
    command.build();
    for word in &arguments.command {
        let Some(found) = command.find_subcommand(word) else {
            bail!("unknown command `{NAME} {}`", arguments.command.join(" "));
        };
        command = found.clone();
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    ui::print(&String::from_utf8(page)?)?;
    Ok(Answer::Yes)
}
