//! What a training step costs on the wire: the formats that reinforcement learning sends updates
//! in, written anew from their descriptions, beside a container.
//!
//! Headers of the other formats are not counted; a container is counted whole. Fewer changes are
//! simulated: each change of the step is kept with the same probability.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Bases, Container, Limits, PackOptions, ResolvedContainer, Silent, Texts, UnpackOptions};
use deltaloom_kernels::Number;

use crate::say;

const ZSTD_LEVEL: i32 = 1;
/// Residuals beyond this count as one in the entropy.
const MOST_ULPS: i64 = 7;

/// Where a tensor is in both files.
struct Place {
    number: Number,
    /// Elements of the last dim.
    cols: usize,
    bytes: Range<usize>,
}

/// A tensor before and after a step.
struct Update<'a> {
    number: Number,
    cols: usize,
    before: &'a [u8],
    after: &'a [u8],
    /// Elements that differ.
    changed: Vec<usize>,
}

/// Prints a table for each percentage of changed elements, the largest of which is that of the
/// step itself at most.
///
/// # Errors
/// Files with different headers; errors of reading, packing and restoring.
pub fn run(base: &Path, step: &Path, percentages: &[f64]) -> Result<()> {
    let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
    let (before, after) = (read(base)?, read(step)?);
    let checkpoint = Checkpoint::open(step, &Limits::default())?;
    let places = places(&checkpoint, &before, &after)?;
    let updates = updates(&places, &before, &after);
    let elems: usize = updates.iter().map(|update| update.before.len() / update.number.bytes()).sum();
    let all: usize = updates.iter().map(|update| update.changed.len()).sum();
    ensure!(all > 0, "the step changes nothing");
    say(&format!("{all} of {elems} elements change: {:.3} %", 100.0 * all as f64 / elems as f64))?;
    for percentage in percentages {
        let part = percentage / 100.0 * elems as f64 / all as f64;
        ensure!(part > 0.0, "a percentage is above 0");
        let thinned = thinned(&updates, &places, &before, &after, part);
        measure(base, &before, &thinned, &places, after.len())?;
    }
    Ok(())
}

/// Type, columns and bytes of every tensor in two safetensors files that have the same header.
fn places(checkpoint: &Checkpoint, before: &[u8], after: &[u8]) -> Result<Vec<Place>> {
    let header = after.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let start = usize::try_from(header)?.saturating_add(8);
    let is_same = before.len() == after.len() && before.get(..start) == after.get(..start);
    ensure!(is_same, "the two files must be safetensors files with the same header");
    let place = |(_, info): (_, &deltaloom::tensor::TensorInfo)| {
        let bytes = start + usize::try_from(info.begin)?..start + usize::try_from(info.end)?;
        let cols = info.shape.last().map_or(Ok(1), |cols| usize::try_from(*cols))?;
        Ok(Place { number: info.number(), cols: cols.max(1), bytes })
    };
    checkpoint.tensors().map(place).collect()
}

fn updates<'a>(places: &[Place], before: &'a [u8], after: &'a [u8]) -> Vec<Update<'a>> {
    let update = |Place { number, cols, bytes }: &Place| {
        let (before, after) = (&before[bytes.clone()], &after[bytes.clone()]);
        let pairs = before.chunks_exact(number.bytes()).zip(after.chunks_exact(number.bytes()));
        let changed = pairs.enumerate().filter(|(_, (a, b))| a != b).map(|(at, _)| at).collect();
        Update { number: *number, cols: *cols, before, after, changed }
    };
    places.iter().map(update).collect()
}

/// The file with a part of the changes.
fn thinned(updates: &[Update<'_>], places: &[Place], before: &[u8], after: &[u8], part: f64) -> Vec<u8> {
    let mut out = before.to_vec();
    let mut state = 1u64;
    for (update, Place { number, bytes, .. }) in updates.iter().zip(places) {
        for at in &update.changed {
            // SplitMix64, so that every machine keeps the same changes.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            if ((mixed ^ mixed >> 31) >> 11) as f64 / (1u64 << 53) as f64 >= part {
                continue;
            }
            let element = bytes.start + at * number.bytes()..bytes.start + (at + 1) * number.bytes();
            out[element.clone()].copy_from_slice(&after[element]);
        }
    }
    out
}

fn measure(base: &Path, before: &[u8], after: &[u8], places: &[Place], file_bytes: usize) -> Result<()> {
    let updates = updates(places, before, after);
    let changed: usize = updates.iter().map(|update| update.changed.len()).sum();
    let elems: usize = updates.iter().map(|update| update.before.len() / update.number.bytes()).sum();
    let entropy = entropy_bytes(&updates);
    let (container, index) = packed_bytes(base, after)?;
    let mut rows = others(&updates)?;
    rows.push((format!("**deltaloom** (index: {index})"), container));
    rows.push(("entropy of changes, given the exponents of the base".to_owned(), entropy));
    say(&format!(
        "\n{:.3} % changed: {changed} elements; a container is {:.2} times the entropy\n",
        100.0 * changed as f64 / elems as f64,
        container as f64 / entropy.max(1) as f64
    ))?;
    say("| format | bytes | ratio | bits per change | of the container |")?;
    say("|---|--:|--:|--:|--:|")?;
    for (name, bytes) in rows {
        let bytes = bytes.max(1) as f64;
        say(&format!(
            "| {name} | {bytes} | {:.1} | {:.1} | {:.2} |",
            file_bytes as f64 / bytes,
            8.0 * bytes / changed.max(1) as f64,
            bytes / container as f64
        ))?;
    }
    Ok(())
}

/// Bytes of the container and of its index. It is restored and compared.
fn packed_bytes(base: &Path, after: &[u8]) -> Result<(u64, u64)> {
    let scratch = tempfile::tempdir()?;
    let [step, packed, restored] =
        ["step.safetensors", "step.loom", "restored"].map(|n| scratch.path().join(n));
    std::fs::write(&step, after)?;
    let limits = Limits::default();
    let bases = Bases::open(&[base.to_path_buf()], &limits)?;
    let options = PackOptions::default().with_identity(Some(Texts::new()));
    let report = deltaloom::pack(&Checkpoint::open(&step, &limits)?, &bases, &packed, &options, &Silent)?;
    let resolved = ResolvedContainer::new(Container::open(&packed, &limits)?, &bases)?;
    deltaloom::unpack(&resolved, &restored, &UnpackOptions::default(), &Silent)?;
    ensure!(std::fs::read(&restored)? == after, "the step is not restored exactly");
    Ok((report.packed_bytes, report.index_bytes))
}

/// Names and bytes of the other formats.
fn others(updates: &[Update<'_>]) -> Result<Vec<(String, u64)>> {
    let zstd = |bytes: &[u8]| Ok::<_, anyhow::Error>(zstd::bulk::compress(bytes, ZSTD_LEVEL)?.len() as u64);
    let [mut plain, mut gaps_values, mut gaps_zstd, mut overwrite, mut xor] = [0; 5];
    let [mut all_gaps, mut all_values, mut all_xors, mut coordinates] = [const { Vec::new() }; 4];
    for update in updates.iter().filter(|update| !update.changed.is_empty()) {
        let values = update.changed_bytes(|_, after| after);
        let xors = update.changed_bytes(|before, after| before ^ after);
        let gaps = narrow(&gaps(&update.changed));
        let positions: Vec<u8> =
            update.changed.iter().flat_map(|at| at.to_le_bytes().into_iter().take(4)).collect();
        let difference: Vec<u8> = update.before.iter().zip(update.after).map(|(a, b)| a ^ b).collect();
        plain += (positions.len() + values.len()) as u64;
        gaps_values += (gaps.len() + values.len()) as u64;
        gaps_zstd += zstd(&[&gaps[..], &values].concat())?;
        overwrite += zstd(&[&positions[..], &values].concat())?;
        xor += zstd(&difference)?;
        coordinates.extend([&update.coordinates()[..], &values].concat());
        all_gaps.extend(gaps);
        all_values.extend(values);
        all_xors.extend(xors);
    }
    let rows = [
        ("32-bit positions and values (vLLM, verl, TRL)", plain),
        ("positions and values, zstd by tensor (slime)", overwrite),
        ("16-bit gaps and values", gaps_values),
        ("row and column steps and values, one zstd (PULSE)", zstd(&coordinates)?),
        ("16-bit gaps and values, zstd by tensor", gaps_zstd),
        ("gaps and values, zstd each (NeMo-RL)", zstd(&[all_gaps.clone(), all_values].concat())?),
        ("XOR, zstd by tensor (slime, miles, ModelExpress)", xor),
        ("gaps and XORs, zstd (NeMo-RL)", zstd(&[all_gaps, all_xors].concat())?),
    ];
    Ok(rows.map(|(name, bytes)| (name.to_owned(), bytes)).to_vec())
}

impl Update<'_> {
    /// Bytes of the changed elements, made of those before and after.
    fn changed_bytes(&self, of: impl Fn(u8, u8) -> u8) -> Vec<u8> {
        let size = self.number.bytes();
        let bytes = self.changed.iter().flat_map(|at| at * size..(at + 1) * size);
        bytes.map(|i| of(self.before[i], self.after[i])).collect()
    }

    /// Steps from the row of the change before, and from its column or the start of the row.
    fn coordinates(&self) -> Vec<u8> {
        let (mut rows, mut cols) = (Vec::new(), Vec::new());
        let mut last = (0, 0);
        for at in &self.changed {
            let (row, col) = (at / self.cols, at % self.cols);
            rows.push(row - last.0);
            cols.push(if row == last.0 { col - last.1 } else { col });
            last = (row, col);
        }
        [narrow(&rows), narrow(&cols)].concat()
    }

    /// The order of bits as numbers, negative differences away from zero.
    fn ulps(&self, at: usize) -> (u32, i64) {
        let load = |bytes: &[u8]| {
            let mut word = [0; 8];
            word[..self.number.bytes()]
                .copy_from_slice(&bytes[at * self.number.bytes()..][..self.number.bytes()]);
            u64::from_le_bytes(word)
        };
        let (before, after) = (load(self.before), load(self.after));
        let steps = self.number.ordered(after).wrapping_sub(self.number.ordered(before)).cast_signed();
        let is_negative = before & self.number.top_bit() != 0;
        (
            self.number.exponent(before),
            (if is_negative { -steps } else { steps }).clamp(-MOST_ULPS, MOST_ULPS),
        )
    }
}

/// Elements between a change and the one before it.
fn gaps(changed: &[usize]) -> Vec<usize> {
    let before = std::iter::once(0).chain(changed.iter().map(|at| at + 1));
    changed.iter().zip(before).map(|(at, next)| at - next).collect()
}

/// Unsigned numbers of 1, 2 or 4 bytes, as the largest needs.
fn narrow(values: &[usize]) -> Vec<u8> {
    let bytes = match values.iter().max().copied().unwrap_or(0) {
        ..=0xff => 1,
        0x100..=0xffff => 2,
        _ => 4,
    };
    values.iter().flat_map(|value| value.to_le_bytes().into_iter().take(bytes)).collect()
}

/// The entropy of what happens to an element, given the exponent of the base: nothing, or a
/// residual in ULPs.
fn entropy_bytes(updates: &[Update<'_>]) -> u64 {
    let mut counts: BTreeMap<(usize, u32), BTreeMap<i64, u64>> = BTreeMap::new();
    for update in updates {
        let size = update.number.bytes();
        for at in 0..update.before.len() / size {
            let (exponent, ulps) = update.ulps(at);
            *counts.entry((size, exponent)).or_default().entry(ulps).or_default() += 1;
        }
    }
    let bits = |row: &BTreeMap<i64, u64>| -> f64 {
        let all = row.values().sum::<u64>() as f64;
        row.values().map(|count| *count as f64 * (all / *count as f64).log2()).sum()
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of bytes")]
    let bytes = (counts.values().map(bits).sum::<f64>() / 8.0).ceil() as u64;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update<'a>(before: &'a [u8], after: &'a [u8]) -> Update<'a> {
        let places = [Place { number: Number::float(8, 7), cols: 4, bytes: 0..before.len() }];
        updates(&places, before, after).pop().unwrap()
    }

    #[test]
    fn changes_are_numbered_by_gaps_and_by_rows() {
        let before = [0x80, 0x3f].repeat(12);
        let mut after = before.clone();
        for at in [1, 2, 9] {
            after[2 * at] += 1;
        }
        let update = update(&before, &after);
        assert_eq!(update.changed, [1, 2, 9]);
        assert_eq!(gaps(&update.changed), [1, 0, 6]);
        assert_eq!(update.coordinates(), [0, 0, 2, 1, 1, 1]);
        assert_eq!(update.changed_bytes(|a, b| a ^ b), [1, 0].repeat(3));
        assert_eq!(update.ulps(1), (0x7f, 1));
        // 9 of 12 stay and 3 rise: 12 times the entropy of a quarter is 9.7 bits.
        assert_eq!(entropy_bytes(&[update]), 2);
        assert_eq!(narrow(&[300, 2]), [44, 1, 2, 0]);
    }

    #[test]
    fn a_part_of_the_changes_is_kept() {
        let before = [0x80, 0x3f].repeat(4000);
        let after = [0x81, 0x3f].repeat(4000);
        let places = [Place { number: Number::float(8, 7), cols: 40, bytes: 0..before.len() }];
        let all = updates(&places, &before, &after);
        let thinned = thinned(&all, &places, &before, &after, 0.25);
        let kept = update(&before, &thinned).changed.len();
        assert!((900..1100).contains(&kept), "{kept}");
        assert_eq!(super::thinned(&all, &places, &before, &after, 1.0), after);
    }
}
