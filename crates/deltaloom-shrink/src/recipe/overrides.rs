//! Options of a program on top of a recipe.

use std::path::PathBuf;

use super::RecipeError;
use super::parse::Loaded;

/// Options of a program, which replace fields of the recipe. Their paths are relative to the
/// working directory, not to the recipe.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overrides {
    /// The model that is made smaller.
    pub teacher: Option<PathBuf>,
    /// The model that the teacher is a fine-tune of.
    pub base: Option<PathBuf>,
    /// Another model to start from.
    pub student: Option<PathBuf>,
    /// Bytes of the teacher over bytes of the student. It replaces any size that the recipe asks
    /// for.
    pub ratio: Option<f64>,
    /// Text for distillation.
    pub distil_data: Option<PathBuf>,
    /// Text for fine-tuning.
    pub finetune_data: Option<PathBuf>,
    /// Tokens of a window.
    pub seq_len: Option<usize>,
    /// Tokens from one window to the next.
    pub stride: Option<usize>,
    /// Windows that run together.
    pub batch_size: Option<usize>,
    /// How many windows all texts give together at most.
    pub max_chunks: Option<usize>,
    /// Folder of the student.
    pub output: Option<PathBuf>,
}

impl Overrides {
    /// Puts the options on top of `loaded`, and checks the result.
    ///
    /// # Errors
    /// A rule that the result breaks, named by the option where one is the cause; a path that is
    /// not UTF-8.
    pub fn apply(self, mut loaded: Loaded) -> Result<Loaded, RecipeError> {
        let Loaded { recipe, tree, .. } = &mut loaded;
        let (data, mut wrong) = (&mut recipe.data, None);
        let mut dir = self.output.is_some().then(String::new);
        let paths = [
            ("--teacher", "teacher.model", self.teacher, &mut recipe.teacher.model),
            ("--base", "teacher.base", self.base, &mut recipe.teacher.base),
            ("--student", "student.model", self.student, &mut recipe.student.model),
            ("--distill-data", "data.distil.path", self.distil_data, &mut data.distil.path),
            ("--finetune-data", "data.finetune.path", self.finetune_data, &mut data.finetune.path),
            ("--output", "output.dir", self.output, &mut dir),
        ];
        for (option, field, path, setting) in paths {
            let Some(path) = path else { continue };
            *setting =
                std::path::absolute(path).ok().and_then(|path| path.into_os_string().into_string().ok());
            if setting.is_none() {
                wrong = Some(field);
            }
            tree.mark(field, option);
        }
        if let Some(dir) = dir {
            recipe.output.dir = dir;
        }
        let counts = [
            ("--seq-len", "data.seq_len", self.seq_len, &mut data.seq_len),
            ("--stride", "data.stride", self.stride, &mut data.stride),
            ("--max-chunks", "data.max_chunks", self.max_chunks, &mut data.max_chunks),
        ];
        for (option, field, count, setting) in counts {
            if count.is_some() {
                *setting = count;
                tree.mark(field, option);
            }
        }
        if let Some(size) = self.batch_size {
            data.batch_size = size;
            tree.mark("data.batch_size", "--batch-size");
        }
        if let Some(ratio) = self.ratio {
            recipe.targets.compression_ratio = Some(ratio);
            (recipe.targets.bytes, recipe.targets.bits_per_weight) = (None, None);
            tree.mark("targets.compression_ratio", "--ratio");
        }
        if let Some(field) = wrong {
            return Err(loaded.error(field, "a path that is not UTF-8".to_owned(), None));
        }
        loaded.check()?;
        Ok(loaded)
    }
}
