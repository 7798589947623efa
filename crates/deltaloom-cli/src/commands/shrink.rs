//! `deltaloom shrink`: students of a model, and what they cost.

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
        ShrinkCommand::Materialise(arguments) => materialise(arguments),
    }
}

fn make(arguments: &RunArguments) -> Result<Answer> {
    let path = arguments.recipe();
    let loaded = Recipe::read(&path)?;
    let mut loaded = arguments.overrides().apply(loaded).map_err(deltaloom::Error::from)?;
    loaded.recipe.output.overwrite |= arguments.overwrite;
    let overwrite = loaded.recipe.output.overwrite;
    let output = loaded.path(&loaded.recipe.output.dir);
    let model = |path: &Option<String>| path.as_deref().map(|path| loaded.path(path));
    let (teacher, base) = (model(&loaded.recipe.teacher.model), model(&loaded.recipe.teacher.base));
    // Before anything is computed, which takes long.
    for (model, why) in [(&teacher, "is the teacher"), (&base, "is the base")] {
        if let Some(model) = model.as_ref().and_then(|path| path.canonicalize().ok())
            && output.canonicalize().is_ok_and(|output| output == model)
        {
            let why = why.to_owned();
            return Err(deltaloom::Error::Protected { path: output, why, is_input: true }.into());
        }
    }
    let inputs = target::inputs([Some(&path), teacher.as_ref(), base.as_ref()].into_iter().flatten());
    Target::Path(output.clone()).check(overwrite, &inputs)?;
    let bar = Bar::new("shrinking");
    let made = models::on_threads(arguments.threads.count, || Ok(run::run(&loaded, &bar)?))?;
    bar.finish();
    made.report.warnings.iter().for_each(|warning| ui::warn(warning));
    let inputs = target::inputs([&path, &made.teacher].into_iter().chain(&made.base).chain(&made.files));
    made.write(&output, overwrite, &inputs)?;
    if arguments.json {
        ui::print_json(&made.report)?;
    } else {
        ui::print(&describe(&made.report, &output))?;
    }
    Ok(if made.report.verdict == Verdict::Feasible { Answer::Yes } else { Answer::No })
}

fn describe(report: &Report, output: &Path) -> String {
    let verdict = match report.verdict {
        Verdict::Feasible => "feasible: every target is met",
        Verdict::Infeasible => "infeasible: a target is missed",
        Verdict::Useless => "useless: no nearer to the teacher than a table of token frequencies",
    };
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
    text.push_str(verdict);
    text.push('\n');
    text
}

fn materialise(arguments: &MaterialiseArguments) -> Result<Answer> {
    let MaterialiseArguments { student, base, output, overwrite } = arguments;
    if !student::is_student(student) {
        bail!("{}: there is no {} in it, so it is no student", student.display(), student::DESCRIPTION);
    }
    models::check_base(student, base.as_deref())?;
    let inputs = target::inputs([student].into_iter().chain(base));
    Target::Path(output.clone()).check(*overwrite, &inputs)?;
    student::materialise(student, base.as_deref(), output, *overwrite, &inputs)
        .with_context(|| student.display().to_string())?;
    ui::note(&format!("wrote the dense model of a LOSSY student to {}", output.display()));
    Ok(Answer::Yes)
}
