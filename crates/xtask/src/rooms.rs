//! Checks that imports between crates and between rooms, the top-level modules of a crate, only go
//! down the order that ARCHITECTURE.md lists.
//!
//! It reads text and parses no Rust: paths that begin with `crate::` or `super::`, without tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{root, say};

const MAP: &str = "ARCHITECTURE.md";
/// Packages that a user of the plain library builds, itself counted.
const MOST_PACKAGES: usize = 48;

/// How many packages a crate needs, itself counted.
fn packages(name: &str) -> Result<usize> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["tree", "--package", name, "--edges", "normal", "--prefix", "none", "--format", "{p}"];
    let output = Command::new(cargo).args(arguments).current_dir(root()).output().context("cargo tree")?;
    if !output.status.success() {
        bail!("cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8(output.stdout)?;
    let lines = text.lines().map(|line| line.trim_end_matches(" (*)")).filter(|line| !line.is_empty());
    Ok(lines.collect::<BTreeSet<_>>().len())
}

/// The order of crates and rooms, lowest first.
#[derive(Debug, Default, PartialEq, Eq)]
struct Order {
    crates: Vec<String>,
    /// Rooms of each crate that has several.
    rooms: BTreeMap<String, Vec<String>>,
}

/// Checks every crate of the workspace.
///
/// # Errors
/// If an import goes up, or the list lacks a crate or room or has one that does not exist.
pub fn run() -> Result<()> {
    let map = fs::read_to_string(root().join(MAP)).context(MAP)?;
    let order = Order::parse(&map)?;
    let mut faults = Vec::new();
    let mut arrows = 0;
    let found = crates_of(&root().join("crates"))?;
    for name in order.crates.iter().filter(|name| !found.contains(*name)) {
        faults.push(format!("{MAP} lists the crate {name}, which does not exist"));
    }
    for name in &found {
        let Some(place) = order.crates.iter().position(|listed| listed == name) else {
            faults.push(format!("{MAP} does not list the crate {name}"));
            continue;
        };
        for used in dependencies(name, &found)? {
            arrows += 1;
            if !order.crates[..place].contains(&used) {
                faults.push(format!("{name} depends on {used}, which {MAP} lists after it"));
            }
        }
        let none = Vec::new();
        let rooms = order.rooms.get(name).unwrap_or(&none);
        arrows += check_rooms(name, rooms, &mut faults)?;
    }
    let packages = packages("deltaloom")?;
    if packages > MOST_PACKAGES {
        faults.push(format!("deltaloom needs {packages} packages, itself counted: at most {MOST_PACKAGES}"));
    }
    if faults.is_empty() {
        say(&format!("deltaloom needs {packages} packages, itself counted"))?;
        return say(&format!("{arrows} imports between {} crates and their rooms go down", found.len()));
    }
    faults.iter().try_for_each(|fault| say(fault))?;
    bail!("{} faults; change the imports, or the order in {MAP} if it is wrong", faults.len())
}

impl Order {
    /// Reads the tables below the headings `## Crates...` and `## Rooms...`. A row of the table of
    /// rooms names a crate and its rooms; a row of the table of the library's rooms names one room.
    fn parse(map: &str) -> Result<Self> {
        let mut order = Self::default();
        let mut section = "";
        for line in map.lines() {
            if let Some(heading) = line.strip_prefix("## ") {
                section = heading;
            }
            let Some((first, second)) = cells(line) else { continue };
            let names = names_in(first);
            let Some(name) = names.first() else { continue };
            if section.starts_with("Crates") {
                order.crates.push(name.clone());
            } else if section.starts_with("Rooms of the library") {
                order.rooms.entry("deltaloom".to_owned()).or_default().extend(names);
            } else if section.starts_with("Rooms of the other crates") {
                order.rooms.insert(name.clone(), names_in(second));
            }
        }
        if order.crates.is_empty() || order.rooms.is_empty() {
            bail!("{MAP} has no tables of crates and rooms");
        }
        Ok(order)
    }
}

/// The first two cells of a row of a Markdown table.
fn cells(line: &str) -> Option<(&str, &str)> {
    let mut cells = line.strip_prefix('|')?.split('|');
    let first = cells.next()?.trim();
    (!first.starts_with("--")).then_some((first, cells.next()?.trim()))
}

/// The words in backquotes.
fn names_in(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn crates_of(folder: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().join("Cargo.toml").is_file() {
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// The crates of the workspace on which a crate depends, including for its tests.
fn dependencies(name: &str, all: &BTreeSet<String>) -> Result<Vec<String>> {
    let path = root().join("crates").join(name).join("Cargo.toml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let keys = text.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
    Ok(keys.filter(|key| *key != name && all.contains(*key)).map(str::to_owned).collect())
}

/// Compares the imports of a crate's rooms with their order. Returns the number of imports.
fn check_rooms(name: &str, rooms: &[String], faults: &mut Vec<String>) -> Result<usize> {
    let source = root().join("crates").join(name).join("src");
    let library = fs::read_to_string(source.join("lib.rs")).unwrap_or_default();
    let exports = exports(&library);
    let mut files = Vec::new();
    list(&source, &mut files)?;
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut arrows: BTreeMap<(String, String), String> = BTreeMap::new();
    let test_files = test_files(&files)?;
    for path in files.iter().filter(|path| !test_files.contains(*path)) {
        let modules = modules_of(path.strip_prefix(&source)?);
        let Some(room) = modules.first().filter(|room| !["lib", "main"].contains(&room.as_str())) else {
            continue;
        };
        seen.extend(rooms.iter().find(|listed| *listed == room).map(String::as_str));
        let text = fs::read_to_string(path)?;
        for used in imports(&text, modules.len()) {
            let used = exports.get(&used).cloned().unwrap_or(used);
            if used != *room {
                let place = path.strip_prefix(root())?.display().to_string();
                arrows.entry((room.clone(), used)).or_insert(place);
            }
        }
        // A crate of one room needs no list.
        if !rooms.is_empty() && !rooms.contains(room) {
            faults.push(format!("{MAP} does not list the room {room} of {name}"));
        }
    }
    if rooms.is_empty() {
        if let Some(((room, used), path)) = arrows.first_key_value() {
            faults.push(format!("{path}: {room} imports {used}, and {MAP} lists no rooms of {name}"));
        }
        return Ok(0);
    }
    for missing in rooms.iter().filter(|room| !seen.contains(room.as_str())) {
        faults.push(format!("{MAP} lists the room {missing} of {name}, which does not exist"));
    }
    let place = |room: &str| rooms.iter().position(|listed| listed == room);
    for ((room, used), path) in &arrows {
        // A name that is not a room is an item of the crate root.
        if let (Some(room_at), Some(used_at)) = (place(room), place(used))
            && used_at > room_at
        {
            faults.push(format!("{path}: {room} imports {used}, which {MAP} lists after it"));
        }
    }
    Ok(arrows.len())
}

/// The room behind each name that the root of a crate exports.
fn exports(library: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for statement in library.split(';') {
        let Some(start) = statement.find("pub use ") else { continue };
        let Some((room, items)) = statement[start + 8..].trim().split_once("::") else { continue };
        for item in items.trim_matches(['{', '}', ' ', '\n']).split(',') {
            let item = item.trim().rsplit([' ', ':']).next().unwrap_or_default();
            found.insert(item.to_owned(), room.to_owned());
        }
    }
    found
}

/// Names below the root of the crate that a file imports, where the file's module is `depth`
/// modules below the root. Everything from the first test module on is ignored.
fn imports(text: &str, depth: usize) -> BTreeSet<String> {
    let code: String = text.lines().map(|line| line.split("//").next().unwrap_or_default()).fold(
        String::new(),
        |mut code, line| {
            code.push_str(line);
            code.push('\n');
            code
        },
    );
    let end = code.match_indices("#[cfg(test)]").find(|(at, _)| {
        let next = code[*at..].lines().nth(1).unwrap_or_default();
        next.contains("mod ") && next.trim_end().ends_with('{')
    });
    let code = &code[..end.map_or(code.len(), |(at, _)| at)];
    let mut found = BTreeSet::new();
    let mut rest = code;
    while let Some(at) = ["crate::", "super::"].iter().filter_map(|word| rest.find(word)).min() {
        let begins_word = !rest[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
        let mut path = &rest[at..];
        let mut supers = 0;
        let from_root = path.starts_with("crate::");
        if from_root {
            path = &path[7..];
        }
        while let Some(behind) = path.strip_prefix("super::") {
            (supers, path) = (supers + 1, behind);
        }
        if begins_word && (from_root || supers == depth) {
            found.extend(first_names(path));
        }
        rest = path;
    }
    found
}

/// The first name of a path, or those of a group `{a::b, c}`.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = path.strip_prefix('{') else { return vec![name(path)] };
    let (mut names, mut level, mut start) = (Vec::new(), 0u32, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => level += 1,
            ',' | '}' if level == 0 => {
                names.push(name(&group[start..at]));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => level -= 1,
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// The modules that lead to a file below `src`.
fn modules_of(path: &Path) -> Vec<String> {
    let stem = path.with_extension("");
    let mut modules: Vec<String> = stem.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if modules.len() > 1 && modules.last().is_some_and(|last| last == "mod") {
        modules.pop();
    }
    modules
}

/// Files of modules that only tests use.
fn test_files(files: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for path in files {
        let text = fs::read_to_string(path)?;
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let declared = if line.trim() == "#[cfg(test)]" { lines.next() } else { None };
            let name = declared.and_then(|line| line.trim().strip_suffix(';')?.split("mod ").nth(1));
            let Some(name) = name else { continue };
            let folder = match path.file_stem() {
                Some(stem) if stem != "mod" && stem != "lib" => path.with_extension(""),
                _ => path.with_file_name(""),
            };
            found.insert(folder.join(format!("{name}.rs")));
            found.extend(files.iter().filter(|file| file.starts_with(folder.join(name))).cloned());
        }
    }
    Ok(found)
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn imports_are_found_wherever_they_are_written() {
        let text = [
            "use crate::{a::{b, c}, d};",
            "use super::super::e::f;",
            "fn g() -> crate::h::I { super::own() }",
            "// use crate::comment;",
            "use xcrate::no;",
            "#[cfg(test)]",
            "mod tests {",
            "    use crate::test;",
            "}",
        ];
        assert_eq!(imports(&text.join("\n"), 2), set(&["a", "d", "e", "h"]));
        assert_eq!(imports("use super::e::f;", 1), set(&["e"]));
        assert_eq!(imports("use super::e::f;", 2), set(&[]));
    }

    #[test]
    fn names_of_the_root_lead_to_their_rooms() {
        let library = "mod a;\npub use a::{B, C as D};\npub use e::F;\n";
        let found = exports(library);
        assert_eq!((&found["B"][..], &found["D"][..], &found["F"][..]), ("a", "a", "e"));
    }

    #[test]
    fn the_order_is_read_from_the_tables() {
        let map = "## Crates, lowest first\n| crate | job |\n|---|---|\n| [`x`](p) | j |\n| `y` | j |\n\
                   ## Rooms of the library\n| room | job |\n|---|---|\n| `a` | uses `b` |\n| `b` | j |\n\
                   ## Rooms of the other crates\n| `y` | `c`, `d` |\n";
        let order = Order::parse(map).unwrap();
        assert_eq!(order.crates, ["x", "y"]);
        assert_eq!(order.rooms["deltaloom"], ["a", "b"]);
        assert_eq!(order.rooms["y"], ["c", "d"]);
        assert!(Order::parse("# nothing").is_err());
    }
}
