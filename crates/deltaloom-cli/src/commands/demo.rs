//! `deltaloom demo`: the whole story on bundled weights.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context as _, Result, ensure};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::checkpoint::output::{Inputs, NewDirectory};
use deltaloom::{Bases, Container, Limits, PackOptions, ResolvedContainer, Texts, UnpackOptions, Verifiable};
use serde::Serialize;

use crate::args::demo::DemoArguments;
use crate::assets::{self, Asset, BASE, FINE_TUNES};
use crate::progress::Bar;
use crate::ui::table::{Cell, Table};
use crate::{Answer, ui};

/// Sizes of one fine-tune, in bytes.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    original_bytes: u64,
    deltaloom_bytes: u64,
    xor_planes_zstd10_bytes: u64,
    xor_zstd10_bytes: u64,
    zstd19_bytes: u64,
}

/// The files of the language model.
#[derive(Debug, Serialize)]
struct Written {
    folder: PathBuf,
    /// Paths in the folder.
    files: Vec<String>,
}

pub(crate) fn run(arguments: &DemoArguments) -> Result<Answer> {
    if let Some(folder) = &arguments.write {
        return write_model(folder, arguments);
    }
    let bar = Bar::new("showing");
    let scratch = tempfile::tempdir()?;
    let folder = arguments.keep.as_deref().unwrap_or(scratch.path());
    if arguments.keep.is_some() {
        fs::create_dir(folder).with_context(|| format!("{}: cannot create this folder", folder.display()))?;
    }
    let write =
        |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).with_context(|| name.to_owned());
    write(BASE.file, BASE.bytes)?;
    let mut rows = Vec::new();
    for tuned in &FINE_TUNES {
        write(tuned.file, tuned.bytes)?;
        rows.push(one(folder, tuned, &bar)?);
    }
    bar.finish();
    if arguments.json {
        ui::print_json(&rows)?;
    } else {
        ui::print(&describe(&rows))?;
    }
    Ok(Answer::Yes)
}

/// Writes the bundled language model, its fine-tunes and its texts.
fn write_model(folder: &Path, arguments: &DemoArguments) -> Result<Answer> {
    let target = NewDirectory::create(folder, arguments.overwrite, &Inputs::default())?;
    let scratch = tempfile::tempdir()?;
    assets::put_all(scratch.path())?;
    let mut files = Vec::new();
    for inside in ["", "base/"] {
        for entry in fs::read_dir(scratch.path().join(inside))? {
            let entry = entry?;
            let name = entry.file_name().into_string().ok().context("a name is not UTF-8")?;
            if entry.file_type()?.is_file() {
                files.push(format!("{inside}{name}"));
            }
        }
    }
    files.sort();
    for name in &files {
        let mut file = target.create_file(name)?;
        let fill = |mut bytes: fs::File| io::copy(&mut bytes, &mut file).and_then(|_| file.sync_all());
        fs::File::open(scratch.path().join(name)).and_then(fill).with_context(|| name.clone())?;
    }
    target.commit()?;
    if arguments.json {
        ui::print_json(&Written { folder: folder.to_owned(), files })?;
    } else {
        ui::print(&format!("{}\n", files.join("\n")))?;
    }
    Ok(Answer::Yes)
}

/// Packs, verifies, restores and compares one fine-tune.
fn one(folder: &Path, tuned: &Asset, bar: &Bar) -> Result<Row> {
    let Asset { title: name, file, bytes } = *tuned;
    let limits = Limits::default();
    let bases = Bases::open(&[folder.join(BASE.file)], &limits)?;
    let packed = folder.join(file).with_extension("loom");
    let restored = folder.join(format!("restored-{file}"));
    let checkpoint = Checkpoint::open(&folder.join(file), &limits)?;
    // As `pack` does.
    let options = PackOptions::default().with_identity(Some(Texts::new()));
    let report = deltaloom::pack(&checkpoint, &bases, &packed, &options, bar)?;
    let resolved = ResolvedContainer::new(Container::open(&packed, &limits)?, &bases)?;
    let verified = deltaloom::verify(&Verifiable::Resolved(&resolved), 0, bar)?;
    ensure!(verified.ok, "{name}: verification failed: {:?}", verified.faults);
    deltaloom::unpack(&resolved, &restored, &UnpackOptions::default(), bar)?;
    ensure!(fs::read(&restored)? == bytes, "{name}: the restored file differs");
    let xor: Vec<u8> = bytes.iter().zip(BASE.bytes).map(|(tuned, base)| tuned ^ base).collect();
    Ok(Row {
        name,
        original_bytes: report.original_bytes,
        deltaloom_bytes: report.packed_bytes,
        xor_planes_zstd10_bytes: zstd_bytes(&planes(&xor), 10)?,
        xor_zstd10_bytes: zstd_bytes(&xor, 10)?,
        zstd19_bytes: zstd_bytes(bytes, 19)?,
    })
}

fn zstd_bytes(bytes: &[u8], level: i32) -> Result<u64> {
    Ok(zstd::bulk::compress(bytes, level)?.len() as u64)
}

/// Low bytes of all BF16 words, then the high ones.
fn planes(bytes: &[u8]) -> Vec<u8> {
    let plane = |from: usize| bytes.iter().skip(from).step_by(2).copied();
    plane(0).chain(plane(1)).collect()
}

fn describe(rows: &[Row]) -> String {
    type Size = fn(&Row) -> u64;
    let packed = |size: Size| {
        move |row: &Row| {
            let ratio = row.original_bytes as f64 / size(row) as f64;
            Cell::number(ratio, format!("{} (ratio {})", ui::bytes(size(row)), ui::ratio(ratio)))
        }
    };
    let table = Table::of(rows)
        .shown("fine-tune of one base, restored", |row| Cell::text(row.name))
        .shown("original", |row| Cell::bytes(row.original_bytes))
        .shown("deltaloom", packed(|row| row.deltaloom_bytes))
        .shown("XOR planes+zstd-10", packed(|row| row.xor_planes_zstd10_bytes))
        .shown("XOR+zstd-10", packed(|row| row.xor_zstd10_bytes))
        .shown("zstd-19", packed(|row| row.zstd19_bytes));
    format!(
        "{}\nThe weights are part of a 12.5 M-parameter model that was trained for minutes. Larger models are not shown here.\n",
        table.text()
    )
}
