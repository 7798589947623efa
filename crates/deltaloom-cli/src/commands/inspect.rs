//! `deltaloom inspect`.

use anyhow::Result;
use deltaloom::{Bases, Container, Limits, ResolvedContainer};
use serde::{Deserialize, Serialize};

use crate::args::InspectArguments;
use crate::ui::container;
use crate::{Answer, ui};

/// The file that says of a folder that it is a lossy student (docs/student.md).
const STUDENT: &str = "student.json";
/// Bytes of it at most.
const LARGEST_STUDENT: u64 = 16 << 20;

pub(crate) fn run(arguments: &InspectArguments) -> Result<Answer> {
    let opened = Container::open(&arguments.container, &Limits::default())?;
    let report = deltaloom::inspect(&opened);
    let is_student = report.files.iter().any(|file| file == STUDENT);
    let student = if is_student { student(opened)? } else { None };
    if arguments.json {
        #[derive(Serialize)]
        struct Labelled<'a> {
            #[serde(flatten)]
            report: &'a deltaloom::PackReport,
            #[serde(skip_serializing_if = "Option::is_none")]
            lossy_student: Option<&'a Student>,
        }
        ui::print_json(&Labelled { report: &report, lossy_student: student.as_ref() })?;
    } else {
        let label = student.map_or_else(String::new, |student| student.label());
        let (head, body) = (container::head(&report), container::body(&report, arguments.tensors));
        ui::print(&(label + &head + &container::identity(&report) + &body))?;
    }
    Ok(Answer::Yes)
}

/// What a packed student says of itself; the container restores it exactly, and the student is not
/// its teacher.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Student {
    lossy: bool,
    teacher: Teacher,
    /// The digest of the base that it needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<String>,
    measured: Measurement,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Teacher {
    digest: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Measurement {
    texts: Vec<OnText>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct OnText {
    name: String,
    kl: f64,
    kl_error: f64,
}

/// Reads the description, if it can be read without a base.
fn student(container: Container) -> Result<Option<Student>> {
    let unread = || Some(Student { lossy: true, ..Student::default() });
    let Ok(resolved) = ResolvedContainer::for_tensor(container, &Bases::default(), STUDENT) else {
        return Ok(unread());
    };
    let number = resolved.find(STUDENT)?;
    Limits::check("bytes of a description", resolved.info(number).len_bytes(), LARGEST_STUDENT)?;
    let bytes = resolved.read(number)?;
    resolved.check(number, &bytes)?;
    Ok(serde_json::from_slice(&bytes).ok().or_else(unread).filter(|student: &Student| student.lossy))
}

impl Student {
    fn label(&self) -> String {
        let teacher = match self.teacher.digest.get(..16) {
            Some(digest) => ui::printable(digest),
            None => "an unknown teacher".to_owned(),
        };
        let mut label = format!("LOSSY student of {teacher}");
        if let Some(base) = self.base.as_deref().and_then(|base| base.get(..16)) {
            label.push_str(&format!(", needs base {}", ui::printable(base)));
        }
        if let Some(OnText { name, kl, kl_error }) = self.measured.texts.first() {
            let name = ui::printable(name);
            label.push_str(&format!(", KL {kl:.4} ± {kl_error:.4} nats per token on {name}"));
        }
        label + "\n"
    }
}
