//! Opens language models, fine-tunes, and texts for them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use deltaloom::checkpoint::Warning;
use deltaloom::{Container, Error, Limits, Progress as _};
use deltaloom_lm::context::CONTEXT_FILE;
use deltaloom_lm::evaluate::Student;
use deltaloom_lm::layer::TenantId;
use deltaloom_lm::model::Model;
use deltaloom_lm::tenancy::{FamilyOptions, PreparedTenant};
use deltaloom_lm::text::{TextInput, Tokenizer, has_ids, read_text_input};
use tempfile::TempDir;

use crate::args::eval::{KvFileArguments, ModelArguments};
use crate::inputs;
use crate::progress::Bar;

/// A path that the user gave, or the bundled file or folder that it names.
pub(crate) struct Place {
    path: PathBuf,
    /// Holds the bundled file, and is removed at the end.
    _folder: Option<TempDir>,
}

impl AsRef<Path> for Place {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

/// Where `path` is. Without such a file or folder, `demo` is the bundled model, and `demo:NAME` a
/// bundled file.
pub(crate) fn place(path: &Path) -> Result<Place> {
    let name = match path.to_str() {
        Some("demo") => Some(""),
        text => text.and_then(|text| text.strip_prefix("demo:")),
    };
    match name {
        Some(name) if path.symlink_metadata().is_err() => {
            bundled(name).with_context(|| path.display().to_string())
        }
        _ => Ok(Place { path: path.to_owned(), _folder: None }),
    }
}

#[cfg(feature = "demo")]
fn bundled(name: &str) -> Result<Place> {
    let folder = tempfile::tempdir()?;
    let path = crate::assets::put(name, folder.path())?;
    Ok(Place { path, _folder: Some(folder) })
}

#[cfg(not(feature = "demo"))]
fn bundled(_: &str) -> Result<Place> {
    bail!("no file has this name, and this program was built without the bundled model (feature `demo`)")
}

/// A model with the tenant to compute, and problems with its files.
pub(crate) struct Opened {
    pub(crate) model: Model,
    pub(crate) tenant: TenantId,
    /// The base, and where its tokenizer is: a folder, or a GGUF file.
    pub(crate) base: Place,
    /// What the user calls the base.
    name: PathBuf,
    pub(crate) warnings: Vec<Warning>,
}

impl Opened {
    /// Where the base is.
    #[cfg(feature = "shrink")]
    pub(crate) fn path(&self) -> &Path {
        self.base.as_ref()
    }

    /// Replaces the model.
    pub(crate) fn with_model<R>(
        self,
        replace: impl FnOnce(Model) -> deltaloom::Result<(Model, R)>,
    ) -> deltaloom::Result<(Self, R)> {
        let Self { model, tenant, base, name, warnings } = self;
        let (model, result) = replace(model)?;
        Ok((Self { model, tenant, base, name, warnings }, result))
    }

    /// Keeps keys and values in a file, if one is named.
    pub(crate) fn with_kv_file(self, kv_file: &KvFileArguments) -> deltaloom::Result<Self> {
        let Some(path) = &kv_file.path else { return Ok(self) };
        let replace = |model: Model| Ok((model.with_kv_file(path, kv_file.memory_bytes)?, ()));
        Ok(self.with_model(replace)?.0)
    }

    /// The tokenizer of the base, where the fine-tune does not carry files of its own.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        let own = |name: &str, limit| self.model.file(self.tenant, name, limit);
        Ok(Tokenizer::open_with(self.base.as_ref(), self.model.config().vocabulary, &own)?)
    }
}

/// Opens a folder, or a container of a fine-tune on top of its base. A student of a fine-tune may
/// need a base as well. `tenant` is a container of a fine-tune of the folder, or a student of one.
pub(crate) fn open(path: &Path, base: Option<&Path>, tenant: Option<&Path>) -> Result<Opened> {
    let given = place(path)?;
    let (opened, name, tenant, of_student) = match (is_container(given.as_ref())?, base) {
        (true, Some(base)) => (place(base)?, base, Some(path), None),
        (true, None) => bail!("{}: a container needs its base: --base FOLDER", path.display()),
        (false, of_student) => (given, path, tenant, of_student),
    };
    #[cfg(feature = "shrink")]
    if let Some(path) = tenant.filter(|path| needs_base(path)) {
        return with_student(opened, name, path);
    }
    let (mut model, warnings) = of_files(opened.as_ref(), of_student)?;
    let tenant = match tenant {
        None => Model::BASE,
        Some(path) => {
            let prepared = prepare(&model, path)?;
            let found;
            (model, found) = deltaloom_lm::context::admit(model, prepared)?;
            found
        }
    };
    Ok(Opened { model, tenant, base: opened, name: name.to_owned(), warnings })
}

/// Opens a base with a student of a fine-tune of it.
#[cfg(feature = "shrink")]
fn with_student(base: Place, name: &Path, path: &Path) -> Result<Opened> {
    let found = deltaloom_shrink::student::tenant(path, base.as_ref());
    let deltaloom_shrink::student::Tenant { config_text, base: widened, container } =
        found.with_context(|| path.display().to_string())?;
    let mut model = Model::of_checkpoint(base.as_ref(), widened, &config_text, FamilyOptions::default())?;
    let tenant = model.admit(model.prepare(container)?)?;
    Ok(Opened { model, tenant, base, name: name.to_owned(), warnings: Vec::new() })
}

fn is_container(path: &Path) -> Result<bool> {
    Ok(path.is_file() && Container::is_container(path)?)
}

/// A model to compare with a base.
pub(crate) enum Compared {
    /// A fine-tune of the base, or the base itself.
    Tenant(TenantId),
    /// A tenant of another model: one with plans of attention of its own, or the model itself.
    Other(Box<Model>, TenantId),
}

impl Compared {
    /// What is compared with the base.
    pub(crate) fn student(&mut self) -> Student<'_> {
        match self {
            Self::Tenant(tenant) => Student::Tenant(*tenant),
            Self::Other(model, tenant) => Student::Other(model, *tenant),
        }
    }
}

/// Opens a container of a fine-tune of `base` or another model. A student of a fine-tune needs
/// `of_student`.
pub(crate) fn compared(base: &mut Opened, path: &Path, of_student: Option<&Path>) -> Result<Compared> {
    if path == base.name {
        return Ok(Compared::Tenant(base.tenant));
    }
    let student = place(path)?;
    if is_container(student.as_ref())? {
        check_no_base(path, of_student)?;
        let prepared = prepare(&base.model, path)?;
        if !prepared.has_tensor(CONTEXT_FILE) {
            return Ok(Compared::Tenant(base.model.admit(prepared)?));
        }
        let (own, _) = of_files(base.base.as_ref(), None)?;
        let prepared = prepare(&own, path)?;
        let (own, tenant) = deltaloom_lm::context::admit(own, prepared)?;
        return Ok(Compared::Other(Box::new(own), tenant));
    }
    let (model, warnings) = of_files(student.as_ref(), of_student)?;
    base.warnings.extend(warnings);
    Ok(Compared::Other(Box::new(model), Model::BASE))
}

/// Opens what the options name.
pub(crate) fn open_chosen(chosen: &ModelArguments) -> Result<Opened> {
    open(&chosen.model, chosen.base.as_deref(), chosen.tenant.as_deref())
}

/// A base is given for what has none.
fn check_no_base(path: &Path, base: Option<&Path>) -> Result<()> {
    match base {
        Some(_) => bail!(
            "{}: --base is for a container and for a student of a fine-tune, and this is neither",
            path.display()
        ),
        None => Ok(()),
    }
}

/// Whether this is a student of a fine-tune.
#[cfg(feature = "shrink")]
pub(crate) fn needs_base(path: &Path) -> bool {
    deltaloom_shrink::student::describe(path).is_ok_and(|student| student.base.is_some())
}

/// Without the feature there are no students.
#[cfg(not(feature = "shrink"))]
pub(crate) fn needs_base(_: &Path) -> bool {
    false
}

/// Whether a student has the base that it needs, and no other model has one.
#[cfg(feature = "shrink")]
pub(crate) fn check_base(path: &Path, base: Option<&Path>) -> Result<()> {
    let describe = || deltaloom_shrink::student::describe(path);
    match describe().with_context(|| path.display().to_string())?.base {
        None => check_no_base(path, base),
        Some(digest) if base.is_none() => bail!(
            "{}: a student of a fine-tune needs the base that it was made with: --base FOLDER \
             (the BLAKE3 of its tensors is {})",
            path.display(),
            crate::ui::printable(&digest)
        ),
        Some(_) => Ok(()),
    }
}

/// The model in a folder, which is mapped, or in a GGUF file or a student, which is read. A student
/// of a fine-tune needs a base.
fn of_files(path: &Path, base: Option<&Path>) -> Result<(Model, Vec<Warning>)> {
    let options = FamilyOptions::default();
    if path.is_file() {
        check_no_base(path, base)?;
        let model = Model::open(path, options).with_context(|| path.display().to_string())?;
        return Ok((model, Vec::new()));
    }
    #[cfg(feature = "shrink")]
    if deltaloom_shrink::student::is_student(path) {
        check_base(path, base)?;
        let base = base.map(place).transpose()?;
        let base = base.as_ref().map(AsRef::as_ref);
        let (text, checkpoint) =
            deltaloom_shrink::student::open(path, base).with_context(|| path.display().to_string())?;
        return Ok((Model::of_checkpoint(path, checkpoint, &text, options)?, Vec::new()));
    }
    check_no_base(path, base)?;
    let (checkpoint, warnings) = inputs::open_checkpoint(path, &[])?;
    let config = path.join("config.json");
    let text = std::fs::read_to_string(&config).with_context(|| config.display().to_string())?;
    let model = Model::of_checkpoint(path, inputs::mapped(checkpoint)?, &text, options)?;
    Ok((deltaloom_lm::context::with_plans_of(model, path)?, warnings))
}

/// Works on this many threads; 0 for all.
pub(crate) fn on_threads<T: Send>(count: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    deltaloom::with_threads(count, || Ok(work()))?
}

/// The containers of a folder, by the stems of their names.
#[cfg(feature = "serve")]
pub(crate) fn containers(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "loom")
            && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
        {
            found.push((stem.to_owned(), path));
        }
    }
    if found.is_empty() {
        bail!("{}: no containers (.loom) in this folder", folder.display());
    }
    found.sort();
    Ok(found)
}

fn prepare(model: &Model, path: &Path) -> Result<PreparedTenant> {
    Ok(model.prepare(Container::open(place(path)?.as_ref(), &Limits::default())?)?)
}

/// Reads a text, or token ids, for a model. At most `limit` ids count.
pub(crate) fn text(path: &Path, opened: &Opened, limit: Option<u64>) -> Result<TextInput> {
    let tokenizer = if has_ids(path) { None } else { Some(opened.tokenizer()?) };
    let rows = opened.model.config().vocabulary;
    let mut text = read_text_input(place(path)?.as_ref(), tokenizer.as_ref(), rows)?;
    if let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok())
        && limit < text.ids.len()
    {
        text.ids.truncate(limit);
        // What is left of the text is not known.
        text.text_bytes = None;
    }
    Ok(text)
}

/// Bytes of an id in memory, for the progress.
pub(crate) const ID_BYTES: u64 = size_of::<u32>() as u64;

/// Counts tokens that were computed.
pub(crate) fn counting(bar: &Bar) -> impl FnMut(usize) -> deltaloom::Result<()> {
    |tokens| {
        bar.advance(tokens as u64 * ID_BYTES);
        if bar.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}
