//! Texts of a recipe, cut into windows: some to calibrate with, others to measure on. No window is
//! used for both.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use deltaloom::{Error, Result};
use deltaloom_lm::model::Parts;
use deltaloom_lm::text::{TextInput, Tokenizer, has_ids, read_text_input};

use crate::measure::Windows;
use crate::recipe::{Loaded, Text};
use crate::student::UsedText;

/// Windows of the texts beside a teacher that are measured: of the longest, and of each other one.
const EVALUATED: [usize; 2] = [64, 32];
/// Windows of them that are calibrated with.
const CALIBRATED: [usize; 2] = [48, 16];
/// Tokens of a window at most, if the recipe does not say it.
const LONGEST_WINDOW: usize = 2048;

/// The texts of a run.
#[derive(Debug, Default)]
pub struct Texts {
    /// Windows that matrices are fitted to.
    pub calibrate: Windows,
    /// Windows that students are compared on, by the name of their text. The first is the one that
    /// targets are for.
    pub evaluate: Vec<(String, Windows)>,
    /// All that is known of how often tokens occur, without what is measured.
    pub seen: Windows,
    /// What was used of each file.
    pub used: Vec<UsedText>,
    /// What is doubtful about them.
    pub warnings: Vec<String>,
    /// Files that were read.
    pub files: Vec<PathBuf>,
}

/// Windows to calibrate with, divided.
#[derive(Debug, Default, PartialEq)]
pub struct Divided {
    /// Those that matrices are fitted to.
    pub fitted: Windows,
    /// Those that students are compared on.
    pub compared: Windows,
}

/// A text, cut.
struct Cut {
    name: String,
    path: PathBuf,
    digest: String,
    windows: Windows,
}

impl Texts {
    /// Reads the texts that a recipe names; without any, the files `val_*.u16` beside the teacher,
    /// of which the last windows are measured and the first ones calibrated with.
    ///
    /// # Errors
    /// Errors of reading; [`Error::InvalidArgument`] for texts shorter than a window, windows
    /// longer than the teacher's context, and windows that are calibrated and measured.
    pub fn read(loaded: &Loaded, teacher: &Path, parts: &Parts) -> Result<Self> {
        let data = &loaded.recipe.data;
        let context = parts.config.max_positions.unwrap_or(LONGEST_WINDOW);
        let len = data.seq_len.unwrap_or(context.min(LONGEST_WINDOW));
        if len > context {
            let what = format!("windows of {len} tokens, and the teacher has {context} positions");
            return Err(loaded.error("data.seq_len", what, None).into());
        }
        let stride = data.stride.unwrap_or(len).min(len).max(1);
        let vocabulary = parts.config.vocabulary;
        let tokenizer = std::cell::OnceCell::new();
        let cut = |path: PathBuf| -> Result<Cut> {
            let found = match (has_ids(&path), tokenizer.get()) {
                (true, _) => None,
                (false, Some(found)) => Some(found),
                (false, None) => {
                    let opened = Tokenizer::open(teacher, vocabulary)?;
                    Some(tokenizer.get_or_init(|| opened))
                }
            };
            let TextInput { ids, digest, .. } = read_text_input(&path, found, vocabulary)?;
            let starts = (0..).step_by(stride).take_while(|start| start + len <= ids.len());
            let windows: Windows = starts.map(|start| ids[start..start + len].to_vec()).collect();
            if windows.is_empty() {
                let what =
                    format!("{}: {} tokens are less than a window of {len}", path.display(), ids.len());
                return Err(Error::InvalidArgument(what));
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok(Cut { name, path, digest: digest.to_hex().to_string(), windows })
        };
        let named = |text: &Text| -> Result<Option<Cut>> {
            let Some(path) = &text.path else { return Ok(None) };
            let mut found = cut(loaded.path(path))?;
            found.windows.truncate(text.windows.unwrap_or(usize::MAX));
            Ok(Some(found))
        };
        let calibrate: Vec<Cut> =
            data.calibrate.iter().filter_map(|text| named(text).transpose()).collect::<Result<_>>()?;
        let measured: Vec<Cut> = [&data.evaluate, &data.foreign]
            .into_iter()
            .filter_map(|text| named(text).transpose())
            .collect::<Result<_>>()?;
        let mut texts = match (calibrate.is_empty(), measured.is_empty()) {
            (true, true) => Self::beside(teacher, cut)?,
            (false, false) => Self::of(calibrate, measured),
            _ => {
                let what = "data.calibrate and data.evaluate need texts, or neither".to_owned();
                return Err(loaded.error("data.evaluate", what, None).into());
            }
        };
        if let Some(most) = data.max_chunks {
            texts.calibrate.truncate(most);
            texts.evaluate.iter_mut().for_each(|(_, windows)| windows.truncate(most.max(1)));
        }
        texts.check(loaded, parts)?;
        Ok(texts)
    }

    /// Divides the windows to calibrate with: `count` of them, evenly spread so that every text is
    /// among them, to compare students on, and the others to fit these to. At least one of each.
    #[must_use]
    pub fn divided(&self, count: usize) -> Divided {
        let all = &self.calibrate;
        let count = count.clamp(1, all.len().saturating_sub(1).max(1));
        let mut divided = Divided::default();
        for (number, window) in all.iter().enumerate() {
            // Where the multiple of count over all windows changes.
            let is_compared = (number + 1) * count / all.len() > number * count / all.len();
            let part = if is_compared { &mut divided.compared } else { &mut divided.fitted };
            part.push(window.clone());
        }
        divided
    }

    /// The texts beside a teacher.
    fn beside(teacher: &Path, cut: impl Fn(PathBuf) -> Result<Cut>) -> Result<Self> {
        let paths = files_beside(teacher)?;
        let mut texts = paths.into_iter().map(cut).collect::<Result<Vec<Cut>>>()?;
        texts.sort_by_key(|text| std::cmp::Reverse(text.windows.len()));
        if texts.is_empty() {
            let folder = folder_of(teacher).display();
            let what = format!("the recipe names no texts, and there are no files val_*.u16 in {folder}");
            return Err(Error::InvalidArgument(what));
        }
        let mut all = Self::default();
        for (number, Cut { name, path, digest, mut windows }) in texts.into_iter().enumerate() {
            let kind = number.min(1);
            let measured = windows.split_off(windows.len() - measured_windows(number, windows.len()));
            let calibrated = windows.len().min(CALIBRATED[kind]);
            all.used.push(used(&name, &digest, &windows[..calibrated], &measured));
            all.calibrate.extend_from_slice(&windows[..calibrated]);
            all.seen.append(&mut windows);
            all.evaluate.push((name, measured));
            all.files.push(path);
        }
        Ok(all)
    }

    /// Texts that are calibrated with, and others that are measured.
    fn of(calibrate: Vec<Cut>, measured: Vec<Cut>) -> Self {
        let mut all = Self::default();
        for text in calibrate {
            all.used.push(used(&text.name, &text.digest, &text.windows, &[]));
            all.seen.extend_from_slice(&text.windows);
            all.calibrate.extend(text.windows);
            all.files.push(text.path);
        }
        for text in measured {
            all.used.push(used(&text.name, &text.digest, &[], &text.windows));
            all.evaluate.push((text.name, text.windows));
            all.files.push(text.path);
        }
        all
    }

    fn check(&mut self, loaded: &Loaded, parts: &Parts) -> Result<()> {
        let calibrated: BTreeSet<&Vec<u32>> = self.calibrate.iter().collect();
        for (name, windows) in &self.evaluate {
            let shared = windows.iter().filter(|window| calibrated.contains(window)).count();
            if shared > 0 {
                let what =
                    format!("{shared} windows of {name} are calibrated with, too: nothing would be measured");
                return Err(loaded.error("data.evaluate", what, None).into());
            }
        }
        let tokens: usize = self.calibrate.iter().map(Vec::len).sum();
        let widest =
            parts.config.layers.iter().map(|layer| layer.hidden_width.max(layer.width)).max().unwrap_or(0);
        if tokens < widest / 4 {
            let what =
                format!("{tokens} tokens to calibrate with, and the widest matrix has {widest} inputs");
            let hint = Some(format!("give {widest} or more"));
            return Err(loaded.error("data.calibrate", what, hint).into());
        }
        if tokens < widest {
            let what =
                format!("{tokens} tokens to calibrate with, and the widest matrix has {widest} inputs");
            self.warnings.push(what);
        }
        Ok(())
    }
}

fn folder_of(teacher: &Path) -> &Path {
    if teacher.is_file() { teacher.parent().unwrap_or(Path::new("")) } else { teacher }
}

/// The files `val_*.u16` beside a teacher, in the order of their names.
///
/// # Errors
/// [`Error::Io`].
pub fn files_beside(teacher: &Path) -> Result<Vec<PathBuf>> {
    let folder = folder_of(teacher);
    let is_text = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("val_") && name.ends_with(".u16")
    };
    let entries = folder.read_dir().map_err(Error::io(folder))?;
    let mut paths: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_text).collect();
    paths.sort();
    Ok(paths)
}

/// How many windows at the end of a text beside a teacher are measured. Texts are numbered from the
/// longest one, which is 0.
#[must_use]
pub fn measured_windows(text: usize, windows: usize) -> usize {
    EVALUATED[text.min(1)].min(windows / 2)
}

fn used(name: &str, digest: &str, calibrated: &[Vec<u32>], measured: &[Vec<u32>]) -> UsedText {
    let tokens = |windows: &[Vec<u32>]| windows.iter().map(Vec::len).sum();
    UsedText {
        name: name.to_owned(),
        digest: digest.to_owned(),
        calibrated: tokens(calibrated),
        evaluated: tokens(measured),
    }
}
