//! `deltaloom shrink`: students of a model, and what they cost.

mod ablate;
mod curve;
mod describe;
mod eval;
mod page;
mod quick_test;
mod samples;
mod summary;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use deltaloom_shrink::recipe::{Loaded, Recipe};
use deltaloom_shrink::run::{self, Verdict};
use deltaloom_shrink::student;

use crate::args::shrink::{
    Asked, CurveArguments, MaterialiseArguments, PlanArguments, RunArguments, ShrinkArguments, ShrinkCommand,
};
use crate::progress::Bar;
use crate::target::{self, Target};
use crate::{Answer, models, pages, ui};

pub(crate) fn run(arguments: &ShrinkArguments) -> Result<Answer> {
    match &arguments.command {
        ShrinkCommand::Run(arguments) => make(arguments),
        ShrinkCommand::Plan(arguments) => plan(arguments),
        ShrinkCommand::Curve(arguments) => curve(arguments),
        ShrinkCommand::Eval(arguments) => eval::run(arguments),
        ShrinkCommand::Ablate(arguments) => ablate::run(arguments),
        ShrinkCommand::Materialise(arguments) => materialise(arguments),
        ShrinkCommand::QuickTest(arguments) => quick_test::run(arguments),
    }
}

/// A recipe, its file and the models that it names.
struct Read {
    loaded: Loaded,
    recipe: PathBuf,
    teacher: Option<PathBuf>,
    base: Option<PathBuf>,
}

fn read(Asked { recipe, overrides }: Asked) -> Result<Read> {
    let loaded = overrides.apply(Recipe::read(&recipe)?).map_err(deltaloom::Error::from)?;
    let model = |path: &Option<String>| path.as_deref().map(|path| loaded.path(path));
    let (teacher, base) = (model(&loaded.recipe.teacher.model), model(&loaded.recipe.teacher.base));
    Ok(Read { loaded, recipe, teacher, base })
}

fn make(arguments: &RunArguments) -> Result<Answer> {
    let Read { loaded, recipe, teacher, base } = read(arguments.recipe.asked(arguments.output.clone()))?;
    // The option is no part of the recipe, whose digest the student bears.
    let overwrite = loaded.recipe.output.overwrite || arguments.overwrite;
    let output = loaded.path(&loaded.recipe.output.dir);
    // Before anything is computed, which takes long.
    for (model, why) in [(&teacher, "is the teacher"), (&base, "is the base")] {
        if let Some(model) = model.as_ref().and_then(|path| path.canonicalize().ok())
            && output.canonicalize().is_ok_and(|output| output == model)
        {
            let why = why.to_owned();
            return Err(deltaloom::Error::Protected { path: output, why, is_input: true }.into());
        }
    }
    let inputs = target::inputs([Some(&recipe), teacher.as_ref(), base.as_ref()].into_iter().flatten());
    Target::Path(output.clone()).check(overwrite, &inputs)?;
    let bar = Bar::new("shrinking");
    let made = models::on_threads(arguments.look.threads.count, || Ok(run::run(&loaded, &bar)?))?;
    bar.finish();
    made.report.warnings.iter().for_each(|warning| ui::warn(warning));
    let inputs = target::inputs([&recipe, &made.teacher].into_iter().chain(&made.base).chain(&made.files));
    made.write(&output, overwrite, &inputs)?;
    models::on_threads(arguments.look.threads.count, || summary::write(&loaded, &made, &output, overwrite))?;
    if arguments.look.json {
        ui::print_json(&made.report)?;
    } else {
        let head = format!("LOSSY student in {}", output.display());
        ui::print(&describe::report(&made.report, &head))?;
    }
    Ok(answer(made.report.verdict))
}

fn plan(arguments: &PlanArguments) -> Result<Answer> {
    let Read { loaded, .. } = read(arguments.recipe.asked(None))?;
    let bar = Bar::new("planning");
    let made = models::on_threads(arguments.look.threads.count, || Ok(run::run(&loaded, &bar)?))?;
    bar.finish();
    let report = made.report;
    report.warnings.iter().for_each(|warning| ui::warn(warning));
    if arguments.look.json {
        ui::print_json(&report)?;
    } else {
        ui::print(&describe::report(&report, "plan of a LOSSY student; nothing is written"))?;
    }
    Ok(answer(report.verdict))
}

fn curve(arguments: &CurveArguments) -> Result<Answer> {
    let Read { loaded, recipe, teacher, base } = read(arguments.recipe.asked())?;
    let inputs = target::inputs([Some(&recipe), teacher.as_ref(), base.as_ref()].into_iter().flatten());
    pages::check(&arguments.page, &inputs)?;
    let bar = Bar::new("shrinking");
    let ratios = &arguments.ratios;
    let curve = models::on_threads(arguments.look.threads.count, || Ok(run::curve(&loaded, ratios, &bar)?))?;
    bar.finish();
    curve.warnings.iter().for_each(|warning| ui::warn(warning));
    pages::write_asked(|| curve::page(&curve), &arguments.page, &inputs)?;
    if arguments.look.json {
        ui::print_json(&curve)?;
    } else {
        ui::print(&describe::curve(&curve))?;
    }
    Ok(Answer::Yes)
}

fn answer(verdict: Verdict) -> Answer {
    if verdict == Verdict::Feasible { Answer::Yes } else { Answer::No }
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
