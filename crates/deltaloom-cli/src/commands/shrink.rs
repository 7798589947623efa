//! `deltaloom shrink`: students of a model, and what they cost.

mod ablate;
mod eval;
mod page;
mod quick_test;
mod samples;
mod summary;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use deltaloom_shrink::recipe::Recipe;
use deltaloom_shrink::run::{self, Report, Verdict};
use deltaloom_shrink::student;

use crate::args::shrink::{MaterialiseArguments, RunArguments, ShrinkArguments, ShrinkCommand};
use crate::progress::Bar;
use crate::target::{self, Target};
use crate::{Answer, models, ui};

pub(crate) fn run(arguments: &ShrinkArguments) -> Result<Answer> {
    match &arguments.command {
        ShrinkCommand::Run(arguments) => make(arguments),
        ShrinkCommand::Eval(arguments) => eval::run(arguments),
        ShrinkCommand::Ablate(arguments) => ablate::run(arguments),
        ShrinkCommand::Materialise(arguments) => materialise(arguments),
        ShrinkCommand::QuickTest(arguments) => quick_test::run(arguments),
    }
}

fn make(arguments: &RunArguments) -> Result<Answer> {
    let path = arguments.recipe();
    let loaded = Recipe::read(&path)?;
    let loaded = arguments.overrides().apply(loaded).map_err(deltaloom::Error::from)?;
    // The option is no part of the recipe, whose digest the student bears.
    let overwrite = loaded.recipe.output.overwrite || arguments.overwrite;
    let output = loaded.path(&loaded.recipe.output.dir);
    let teacher = loaded.recipe.teacher.model.as_deref().map(|teacher| loaded.path(teacher));
    // Before anything is computed, which takes long.
    if let Some(teacher) = teacher.as_ref().and_then(|path| path.canonicalize().ok())
        && output.canonicalize().is_ok_and(|output| output == teacher)
    {
        let why = "is the teacher".to_owned();
        return Err(deltaloom::Error::Protected { path: output, why, is_input: true }.into());
    }
    let inputs = target::inputs([Some(&path), teacher.as_ref()].into_iter().flatten());
    Target::Path(output.clone()).check(overwrite, &inputs)?;
    let bar = Bar::new("shrinking");
    let made = models::on_threads(arguments.threads.count, || Ok(run::run(&loaded, &bar)?))?;
    bar.finish();
    made.report.warnings.iter().for_each(|warning| ui::warn(warning));
    let inputs = target::inputs([&path, &made.teacher].into_iter().chain(&made.files));
    made.write(&output, overwrite, &inputs)?;
    models::on_threads(arguments.threads.count, || summary::write(&loaded, &made, &output, overwrite))?;
    if arguments.json {
        ui::print_json(&made.report)?;
    } else {
        ui::print(&describe(&made.report, &output))?;
    }
    Ok(if made.report.verdict == Verdict::Feasible { Answer::Yes } else { Answer::No })
}

fn describe(report: &Report, output: &Path) -> String {
    let mut text = format!(
        "LOSSY student in {}\n{} of {} ({}, {:.3} bits per weight; {:.3} for each weight that was shrunk)\n",
        output.display(),
        ui::bytes(report.student_bytes),
        ui::bytes(report.teacher_bytes),
        ui::ratio(report.ratio),
        report.bits_per_weight,
        report.bits_per_shrunk_weight,
    );
    for on in &report.texts {
        let divergence = &on.divergence;
        text.push_str(&format!(
            "{}: KL {:.5} ± {:.5} nats per token, same top token {}, perplexity {:.2} (teacher {:.2})\n",
            on.name,
            on.kl,
            on.kl_error,
            ui::percent(divergence.same_top.value, 1),
            divergence.student_perplexity,
            divergence.base_perplexity,
        ));
    }
    text.push_str(&format!("a table of token frequencies: KL {:.3}\n", report.table_kl));
    for (form, count) in &report.forms {
        text.push_str(&format!("{count:>4} x {form}\n"));
    }
    text.push_str(verdict(report.verdict));
    text.push('\n');
    text
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Feasible => "feasible: every target is met",
        Verdict::Infeasible => "infeasible: a target is missed",
        Verdict::Useless => "useless: no nearer to the teacher than a table of token frequencies",
    }
}

fn materialise(arguments: &MaterialiseArguments) -> Result<Answer> {
    let MaterialiseArguments { student, output, overwrite } = arguments;
    if !student::is_student(student) {
        bail!("{}: there is no {} in it, so it is no student", student.display(), student::DESCRIPTION);
    }
    let inputs = target::inputs([student]);
    Target::Path(output.clone()).check(*overwrite, &inputs)?;
    student::materialise(student, output, *overwrite, &inputs)
        .with_context(|| student.display().to_string())?;
    ui::note(&format!("wrote the dense model of a LOSSY student to {}", output.display()));
    Ok(Answer::Yes)
}
