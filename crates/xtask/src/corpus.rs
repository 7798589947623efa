//! Seeds of the fuzz targets in fuzz/corpus, made from the golden containers. Each target defines
//! the form of its input, in fuzz/.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::golden::{self, Manifest};
use crate::{Mode, root, say, settle_quietly};

/// Larger containers would only slow the fuzzer down.
const MAX_SEED_BYTES: usize = 8192;
const HEAD_BYTES: usize = 16;
const TRAILER_BYTES: usize = 48;

/// Writes or checks the seeds.
///
/// # Errors
/// In check mode, what would change; errors of reading and writing.
pub fn run(mode: Mode) -> Result<()> {
    let (mut seeds_written, mut seeds_there) = (0, 0);
    let of_folder = |folder: &'static str| {
        let folder = root().join(folder);
        let containers = Manifest::of(&folder)?.containers;
        Ok(containers.into_iter().map(move |entry| (folder.clone(), entry)))
    };
    let entries = golden::folders().map(of_folder).collect::<Result<Vec<_>>>()?;
    for (folder, entry) in entries.into_iter().flatten() {
        let name = entry.container.trim_end_matches(".loom");
        let container = fs::read(folder.join(&entry.container))?;
        let seeds = [
            ("open_container", container.clone()),
            ("decode_chunk", opened(&container).with_context(|| entry.container.clone())?),
            ("roundtrip", pair(&folder, &entry.original, entry.bases.first())?),
        ];
        for (target, seed) in seeds.into_iter().filter(|(_, seed)| seed.len() <= MAX_SEED_BYTES) {
            let path = format!("fuzz/corpus/{target}/{name}");
            match settle_quietly(mode, &path, &seed, "golden")? {
                true => seeds_written += 1,
                false => seeds_there += 1,
            }
        }
    }
    say(&format!("fuzz/corpus: {seeds_written} seeds written, {seeds_there} up to date"))
}

/// Input of `decode_chunk`: meta and tables decompressed, each after its length as a u16, then the
/// payloads.
fn opened(container: &[u8]) -> Result<Vec<u8>> {
    let trailer = container.last_chunk::<TRAILER_BYTES>().context("no trailer")?;
    let number = |at: usize| -> Result<usize> {
        let bytes = trailer.get(at..at + 4).and_then(|bytes| bytes.first_chunk()).context("no number")?;
        Ok(usize::try_from(u32::from_le_bytes(*bytes))?)
    };
    let (index, meta_packed, meta_len, tables_packed, tables_len) =
        (number(0)?, number(8)?, number(12)?, number(16)?, number(20)?);
    let part = |start: usize, packed: usize, length: usize| -> Result<Vec<u8>> {
        Ok(zstd::bulk::decompress(container.get(start..start + packed).context("no part")?, length)?)
    };
    let (meta, tables) =
        (part(index, meta_packed, meta_len)?, part(index + meta_packed, tables_packed, tables_len)?);
    let mut out = Vec::new();
    for part in [meta, tables] {
        out.extend(u16::try_from(part.len())?.to_le_bytes());
        out.extend(part);
    }
    out.extend(container.get(HEAD_BYTES..index).context("no payloads")?);
    Ok(out)
}

/// Input of `roundtrip`: four bytes of choices, then the data of the original and of its base.
fn pair(folder: &Path, original: &str, base: Option<&String>) -> Result<Vec<u8>> {
    let data = |name: &str| -> Result<Vec<u8>> {
        let path = folder.join(name);
        if path.is_dir() {
            return Ok(Vec::new());
        }
        let file = fs::read(path)?;
        Ok(crate::files::split(&file).map_or_else(|_| Vec::new(), |(_, data)| data.to_vec()))
    };
    let tuned = data(original)?;
    let base = base.map(|name| data(name)).transpose()?.unwrap_or_default();
    let length = tuned.len().min(MAX_SEED_BYTES / 2 - 4);
    let mut out = vec![12, 16, u8::from(base.len() >= length), 0];
    out.extend(&tuned[..length]);
    out.extend(base.iter().take(length));
    Ok(out)
}
