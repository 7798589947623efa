//! `deltaloom lab mixed`: texts of many fine-tunes in one engine, beside dense copies.

use anyhow::Result;
use deltaloom_compute::Mode;
use deltaloom_lab::mixed::{self, MixedOptions, MixedReport};
use deltaloom_lm::tenancy::Forms;

use crate::args::lab::mixed::MixedArguments;
use crate::progress::Bar;
use crate::{Answer, ui};

pub(crate) fn run(arguments: &MixedArguments) -> Result<Answer> {
    let options = MixedOptions {
        tenants: arguments.tenants,
        changed: arguments.changed,
        prompt_tokens: usize::from(arguments.prompt_tokens),
        tokens: usize::from(arguments.tokens),
        forms: arguments.form.map_or(Forms::ByShare, |form| Forms::All(form.form())),
        mode: if arguments.fast { Mode::Fast } else { Mode::Exact },
        rounds: arguments.rounds,
        seed: arguments.seed,
    };
    let bar = Bar::new("computing");
    let report = deltaloom::with_threads(arguments.threads, || mixed::run(&arguments.base, &options, &bar))?;
    bar.finish();
    if arguments.json {
        ui::print_json(&report)?;
    } else {
        ui::print(&describe(&report))?;
    }
    let is_right = arguments.fast || report.different_texts == 0;
    Ok(if is_right { Answer::Yes } else { Answer::No })
}

fn describe(report: &MixedReport) -> String {
    let ratio = report.tokens_per_second / report.dense_tokens_per_second;
    format!(
        "{} of {} on {}, {}\n\
         one engine:       {} tokens/s, {} beside the base\n\
         dense copies:     {} tokens/s, {}\n\
         base alone:       {} tokens/s\n\
         one engine is {ratio:.2} times as fast as dense copies; {} differ\n",
        ui::count(report.tenants as u64, "fine-tune"),
        ui::bytes(report.base_bytes),
        report.isa,
        ui::count(report.threads as u64, "thread"),
        ui::significant(report.tokens_per_second),
        ui::bytes(report.tenant_bytes),
        ui::significant(report.dense_tokens_per_second),
        ui::bytes(report.base_bytes * report.tenants as u64),
        ui::significant(report.base_tokens_per_second),
        ui::count(report.different_texts as u64, "text"),
    )
}
