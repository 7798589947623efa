//! Which modules of an adapter may change a tensor, by their names: that of the tensor, or a longer
//! or shorter one with the same end.
//! It does not look at shapes; [`crate::origin`] does.

use std::borrow::Cow;

use crate::checkpoint::peft::Module;
use crate::predict::names::Names;

/// Parts of names that say how a module is wrapped.
const INFIXES: [&str; 4] = ["base_layer", "_orig_mod", "_fsdp_wrapped_module", "module"];
/// More modules with one end have nothing to do with each other.
const MOST_ALIKE: usize = 8;

/// The modules of one adapter.
#[derive(Clone)]
pub(crate) struct Modules {
    modules: Vec<Module>,
    /// Their names without wrappers, and what these names start with, up to the last dot.
    names: Vec<String>,
    by_name: Names,
    by_parent: Names,
    is_flat: bool,
}

impl Modules {
    pub(crate) fn new(modules: Vec<Module>, is_flat: bool) -> Self {
        let names: Vec<String> = modules.iter().map(|module| plain(&module.name, is_flat)).collect();
        let by_name = Names::new(names.len(), |i| &names[i]);
        let by_parent = Names::new(names.len(), |i| parent(&names[i]));
        Self { modules, names, by_name, by_parent, is_flat }
    }

    pub(crate) fn all(&self) -> &[Module] {
        &self.modules
    }

    /// Numbers of the modules with the place of a tensor.
    pub(crate) fn of(&self, tensor: &str) -> Vec<usize> {
        self.find(&self.plain(tensor), &self.by_name, |i| &self.names[i])
    }

    /// Numbers of the modules that a tensor is made of, or one of which it is a part: those in the
    /// same module; and the module that the tensor is in.
    pub(crate) fn around(&self, tensor: &str) -> [Vec<usize>; 2] {
        let name = self.plain(tensor);
        let parent_name = parent(&name);
        if parent_name.is_empty() || self.is_flat {
            return [Vec::new(), Vec::new()];
        }
        let siblings = self.find(parent_name, &self.by_parent, |i| parent(&self.names[i]));
        [siblings, self.find(parent_name, &self.by_name, |i| &self.names[i])]
    }

    fn plain(&self, tensor: &str) -> String {
        plain(tensor.strip_suffix(".weight").unwrap_or(tensor), self.is_flat)
    }

    /// Numbers of the things with a name, or else with the longest end of it that any has.
    fn find<'a>(&self, wanted: &str, by: &Names, name: impl Fn(usize) -> &'a str + Copy) -> Vec<usize> {
        let same = by.named(wanted, name);
        if !same.is_empty() {
            return same.to_vec();
        }
        let mut end = wanted;
        loop {
            let mut found = by.renamed(end, name);
            if !found.is_empty() {
                found.sort_unstable();
                found.dedup();
                found.truncate(MOST_ALIKE + 1);
                return if found.len() > MOST_ALIKE { Vec::new() } else { found };
            }
            match end.split_once('.') {
                Some((_, shorter)) if shorter.contains('.') => end = shorter,
                _ => return Vec::new(),
            }
        }
    }
}

/// A name without parts that only say how something is wrapped.
fn plain(name: &str, is_flat: bool) -> String {
    let name = if is_flat { Cow::Owned(name.replace('_', ".")) } else { Cow::Borrowed(name) };
    let parts: Vec<&str> = name.split('.').filter(|part| !INFIXES.contains(part)).collect();
    parts.join(".")
}

fn parent(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(parent, _)| parent)
}
