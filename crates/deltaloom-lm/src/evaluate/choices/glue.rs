//! GLUE: TSV files with a header line, whose columns tell which task it is. CoLA has no header.
//! Questions are put as lm-evaluation-harness puts them. STS-B has numbers and no choices.

use super::Item;
use deltaloom::{Error, Result};

struct Task {
    name: &'static str,
    /// Columns that only this task has together.
    columns: &'static [&'static str],
    label: &'static str,
    /// Labels of the file, in the order of the choices.
    labels: &'static [&'static str],
    choices: &'static [&'static str],
    /// With `{0}` and `{1}` for the columns.
    context: &'static str,
}

/// The first one fits whose columns and labels are those of the file.
const TASKS: &[Task] = &[
    Task {
        name: "MNLI",
        columns: &["sentence1", "sentence2"],
        label: "gold_label",
        labels: &["entailment", "neutral", "contradiction"],
        choices: &[" True", " Neither", " False"],
        context: "{0}\nQuestion: {1} True, False or Neither?\nAnswer:",
    },
    Task {
        name: "RTE",
        columns: &["sentence1", "sentence2"],
        label: "label",
        labels: &["entailment", "not_entailment"],
        choices: &[" True", " False"],
        context: "{0}\nQuestion: {1} True or False?\nAnswer:",
    },
    Task {
        name: "WNLI",
        columns: &["sentence1", "sentence2"],
        label: "label",
        labels: &["0", "1"],
        choices: &[" False", " True"],
        context: "{0}\nQuestion: {1} True or False?\nAnswer:",
    },
    Task {
        name: "QNLI",
        columns: &["question", "sentence"],
        label: "label",
        labels: &["entailment", "not_entailment"],
        choices: &[" yes", " no"],
        context: "{0}\n{1}\nQuestion: Does this response answer the question?\nAnswer:",
    },
    Task {
        name: "QQP",
        columns: &["question1", "question2"],
        label: "is_duplicate",
        labels: &["0", "1"],
        choices: &[" no", " yes"],
        context: "Question 1: {0}\nQuestion 2: {1}\nQuestion: Do both questions ask the same thing?\nAnswer:",
    },
    Task {
        name: "MRPC",
        columns: &["#1 String", "#2 String"],
        label: "Quality",
        labels: &["0", "1"],
        choices: &[" no", " yes"],
        context: "Sentence 1: {0}\nSentence 2: {1}\nQuestion: Do both sentences mean the same thing?\nAnswer:",
    },
    Task {
        name: "SST-2",
        columns: &["sentence"],
        label: "label",
        labels: &["0", "1"],
        choices: &[" negative", " positive"],
        context: "{0}\nQuestion: Is this sentence positive or negative?\nAnswer:",
    },
];

const COLA: Task = Task {
    name: "CoLA",
    columns: &["sentence"],
    label: "label",
    labels: &["0", "1"],
    choices: &[" no", " yes"],
    context: "{0}\nQuestion: Does this sentence make sense?\nAnswer:",
};
const COLA_COLUMNS: [&str; 4] = ["source", "label", "star", "sentence"];

pub(super) fn items(text: &str) -> Result<Vec<Item>> {
    let lines: Vec<Vec<&str>> =
        text.lines().filter(|line| !line.is_empty()).map(|line| line.split('\t').collect()).collect();
    let first = lines.first().ok_or_else(|| Error::corrupt("an empty file"))?;
    let cola = first.len() == 4 && ["0", "1"].contains(&first[1]) && ["", "*"].contains(&first[2]);
    let (header, rows) = if cola { (&COLA_COLUMNS[..], &lines[..]) } else { (&first[..], &lines[1..]) };
    let place = |name: &str| header.iter().position(|column| *column == name);
    let has = |task: &&Task| {
        let label = place(task.label).and_then(|label| rows.first()?.get(label));
        task.columns.iter().all(|column| place(column).is_some())
            && label.is_some_and(|label| task.labels.contains(label))
    };
    let task = if cola { Some(&COLA) } else { TASKS.iter().find(has) };
    let task = task.ok_or_else(|| {
        let names: Vec<&str> = TASKS.iter().chain([&COLA]).map(|task| task.name).collect();
        Error::InvalidArgument(format!(
            "columns {header:?} are those of no labelled task of GLUE that has choices: {}",
            names.join(", ")
        ))
    })?;
    let cell = |row: &[&str], name: &str, number: u64| {
        let cell = place(name).and_then(|place| row.get(place)).map(|cell| (*cell).to_owned());
        cell.ok_or_else(|| Error::corrupt(format!("row {number} has no {name:?}")))
    };
    rows.iter()
        .zip(1_u64..)
        .map(|(row, number)| {
            let label = cell(row, task.label, number)?;
            let right = task.labels.iter().position(|known| *known == label);
            let right = right.ok_or_else(|| {
                Error::corrupt(format!("row {number} of {} has label {label:?}", task.name))
            })?;
            let mut context = String::new();
            // Texts may have braces themselves, so each mark is replaced once and in order.
            let mut rest = task.context;
            for (column, mark) in task.columns.iter().zip(["{0}", "{1}"]) {
                let (before, after) = rest.split_once(mark).unwrap_or((rest, ""));
                context.push_str(before);
                context.push_str(cell(row, column, number)?.trim());
                rest = after;
            }
            context.push_str(rest);
            let choices = task.choices.iter().map(|choice| (*choice).to_owned()).collect();
            Ok(Item { context, choices, right, group: task.name.to_owned() })
        })
        .collect()
}
