//! Turns a base file into the fine-tune in place. Only chunks that change are written, and a crash
//! at any point can be repaired.
//!
//! **Which files.** Base and fine-tune are single safetensors files whose tensors have the same
//! places, so that data never shifts. A chunk that equals the base's costs nothing. References that
//! are not in the file come from other bases, by digest.
//!
//! **Nothing is written before it is proven.** By default, every tensor that changes is decoded
//! once without being written, and must come out with its digest. The base then needs no check of
//! its own. The checksums of the chunks are kept, and what is decoded again for writing must agree
//! with them. [`Check`] has the details, and what is not checked.
//!
//! **The journal holds what will be written, not what was there.** The bytes of a batch of chunks
//! go to a journal next to the file. The journal gets its name when it is whole and synced. Only
//! then is the batch written to the file. Only when that is synced does the next batch's journal
//! take the name. So a journal is always whole. The file is always as complete batches left it,
//! except for the chunks of the current one, and writing these again repairs it, however often that
//! takes. No torn chunk is ever decoded. This needs disk space for two batches. docs/adr/0015
//! compares the alternatives.
//!
//! **Order.** A chunk at its own place reads only the bytes that it replaces. Some tensors read
//! another place of the file: they were renamed, cast, or tied to such a tensor. They are written
//! before that place is. If that is impossible because tensors change places, the file is refused.

mod check;
mod disk;
mod journal;
mod work;

#[cfg(test)]
mod fake_disk;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;

use crate::bases::Bases;
use crate::checkpoint::Checkpoint;
use crate::container::Container;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::options::setters;
use crate::pipeline;
use crate::progress::{Progress, check_cancelled};

use check::Checked;
use disk::{Disk, RealDisk};
use journal::{Journal, Record, Repaired};
use work::{Job, What, Work};

/// New bytes in memory and in the journal at a time, unless a single chunk has more.
const BATCH_BYTES: u64 = 16 << 20;

/// How much of the file is checked before anything is written. The checksums of the container's
/// stored bytes are checked in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Check {
    /// Every tensor that changes must come out with its digest. Of the others only places and sizes
    /// are compared. If nothing changes, every tensor is checked.
    #[default]
    Changed,
    /// Every tensor must come out with its digest, even if it does not change: the whole file is
    /// read.
    All,
    /// Only the smallest of the tensors that change must be the base's. If the base is wrong
    /// anywhere else, the file is destroyed, and nobody notices.
    One,
}

/// How to unpack in place.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct InPlaceOptions {
    /// Threads; 0 means one per core.
    pub threads: usize,
    /// What is checked before anything is written.
    pub check: Check,
    /// Change the file even if it is a link or has hard links.
    pub overwrite: bool,
}

setters!(InPlaceOptions {
    with_threads(threads: usize),
    with_check(check: Check),
    with_overwrite(overwrite: bool),
});

/// What unpacking in place did.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct InPlaceReport {
    /// Size of the file.
    pub original_bytes: u64,
    /// Size of the container.
    pub packed_bytes: u64,
    /// Bytes of the file that were written.
    pub written_bytes: u64,
    /// Tensors that were compared with their digests.
    pub checked_tensors: usize,
    /// Whether the file was the fine-tune already, so that nothing was written.
    pub already_applied: bool,
    /// Whether an earlier run was interrupted and this one resumed it.
    pub resumed: bool,
    /// Time it took.
    pub seconds: f64,
    /// Threads it ran on.
    pub threads: usize,
}

/// Turns the file `base` into the checkpoint of a container. `others` are bases with references
/// that are not in that file.
///
/// If an error or a crash stops it at any point, the file is unchanged, or a journal is next to it
/// and the same call finishes the work.
///
/// # Errors
/// Before anything is written: [`Error::NotInPlace`], [`Error::SharedFile`],
/// [`Error::BaseMismatch`] and [`Error::Journal`]. For whatever interrupts the work:
/// [`Error::Unfinished`]. Also what reading, decoding and writing give.
pub fn unpack_in_place(
    container: Container,
    base: &Path,
    others: &Bases,
    options: &InPlaceOptions,
    progress: &dyn Progress,
) -> Result<InPlaceReport> {
    let disk = RealDisk::open(base, options.overwrite)?;
    if others.has_file(&base.canonicalize().map_err(Error::io(base))?) {
        let message = format!("{} cannot be changed and be another base too", base.display());
        return Err(Error::InvalidArgument(message));
    }
    let journal = disk.journal_path().to_path_buf();
    let task = Task { disk: Arc::new(disk), path: base.to_path_buf(), journal, batch_bytes: BATCH_BYTES };
    task.run(container, others, options, progress)
}

/// A file to change, and what that needs.
struct Task {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// Path of the journal, for messages.
    journal: PathBuf,
    batch_bytes: u64,
}

impl Task {
    fn run(
        &self,
        container: Container,
        others: &Bases,
        options: &InPlaceOptions,
        progress: &dyn Progress,
    ) -> Result<InPlaceReport> {
        let start = Instant::now();
        let journal = self.disk.read_journal()?.map(|bytes| self.open_journal(&bytes)).transpose()?;
        let source = Box::new(Repaired::new(Arc::clone(&self.disk), journal.as_ref()));
        let base = Checkpoint::from_source(&self.path, source, &Limits::default())?;
        let work = Work::new(&self.path, container, base, others)?;
        let done = match &journal {
            Some(journal) => journal.jobs_done(&work).map_err(|e| self.misfit(&e))?,
            None => 0,
        };
        let finished = self.finish(&work, journal, done, options, progress);
        let report = finished.map_err(|e| self.unfinished(e))?;
        Ok(InPlaceReport { seconds: start.elapsed().as_secs_f64(), ..report })
    }

    fn open_journal(&self, bytes: &[u8]) -> Result<Journal> {
        let journal = Journal::parse(bytes).map_err(|e| self.misfit(&e))?;
        if journal.file_bytes == self.disk.len_bytes() {
            return Ok(journal);
        }
        let (journal, file) = (journal.file_bytes, self.disk.len_bytes());
        let message = format!("it is of a file of {journal} bytes, and this one has {file}");
        Err(self.misfit(&Error::InvalidArgument(message)))
    }

    fn misfit(&self, why: &Error) -> Error {
        Error::Journal { path: self.journal.clone(), what: why.detail() }
    }

    /// The error, extended by the state in which it leaves the file.
    fn unfinished(&self, error: Error) -> Error {
        match (error, self.disk.read_journal()) {
            (e @ Error::Journal { .. }, _) | (e, Ok(None)) => e,
            (e, _) => Error::Unfinished { path: self.path.clone(), source: Box::new(e) },
        }
    }

    /// Checks, writes the records of the journal, does the jobs from number `done` on, and removes
    /// the journal. The duration in the report is not set yet.
    fn finish(
        &self,
        work: &Work,
        journal: Option<Journal>,
        done: usize,
        options: &InPlaceOptions,
        progress: &dyn Progress,
    ) -> Result<InPlaceReport> {
        let tensors = check::tensors_to_check(work, options.check, done);
        let check_bytes: u64 = tensors.iter().map(|tensor| work.resolved().info(*tensor).len_bytes()).sum();
        let write_bytes: u64 = work.jobs()[done..].iter().map(|job| job.len_bytes).sum();
        progress.start(check_bytes + write_bytes);
        let checked = match (options.check, &tensors[..]) {
            (Check::One, []) => Ok(Checked::default()),
            (Check::One, [tensor, ..]) => {
                progress.advance(check_bytes);
                check::check_one(work, *tensor, done)
            }
            _ => check::check_results(work, &tensors, done, options.threads, progress),
        };
        let checked = checked.map_err(|e| match e {
            // The journal is older than the file, which was replaced.
            mismatch if journal.is_some() && is_mismatch(&mismatch) => self.misfit(&mismatch),
            other => other,
        })?;
        let resumed = journal.is_some();
        let repaired_bytes = journal.map_or(Ok(0), |journal| self.write(&journal.records))?;
        let (applied_bytes, threads) = self.apply(work, &checked, done, options.threads, progress)?;
        self.disk.remove_journal()?;
        Ok(InPlaceReport {
            original_bytes: work.file_bytes(),
            packed_bytes: work.resolved().container().len_bytes(),
            written_bytes: repaired_bytes + applied_bytes,
            checked_tensors: tensors.len(),
            already_applied: repaired_bytes + applied_bytes == 0,
            resumed,
            seconds: 0.0,
            threads,
        })
    }

    /// Decodes and writes, batch by batch, the jobs from number `done` on. Returns the bytes
    /// written and the number of threads.
    fn apply(
        &self,
        work: &Work,
        checked: &Checked,
        done: usize,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<(u64, usize)> {
        let mut written_bytes = 0;
        let decode = |batch: Range<usize>| {
            check_cancelled(progress)?;
            let records = batch.clone().into_par_iter().map(|number| record(work, checked, number));
            let records: Vec<Option<Record>> = records.collect::<Result<_>>()?;
            Ok((batch, records.into_iter().flatten().collect()))
        };
        let threads = pipeline::with_threads(threads, || {
            pipeline::overlapped(
                batches(work.jobs(), done, self.batch_bytes),
                decode,
                |(batch, records): (Range<usize>, Vec<Record>)| {
                    if !records.is_empty() {
                        check_cancelled(progress)?;
                        self.write_journal(work, batch.end, &records)?;
                        written_bytes += self.write(&records)?;
                    }
                    progress.advance(work.jobs()[batch].iter().map(|job| job.len_bytes).sum());
                    Ok(())
                },
            )?;
            Ok(rayon::current_num_threads())
        })?;
        Ok((written_bytes, threads))
    }

    fn write_journal(&self, work: &Work, done: usize, records: &[Record]) -> Result<()> {
        let head = journal::head(work, done, records)?;
        let mut parts = vec![&head[..]];
        parts.extend(records.iter().map(|record| &record.bytes[..]));
        self.disk.draft_journal(&parts).map_err(Error::writing(&self.journal))?;
        self.disk.publish_journal()
    }

    /// Writes records to the file and syncs them. Returns their size.
    fn write(&self, records: &[Record]) -> Result<u64> {
        let write = |record: &Record| self.disk.write_at(record.offset, &record.bytes);
        records
            .iter()
            .try_for_each(write)
            .and_then(|()| self.disk.sync())
            .map_err(Error::writing(&self.path))?;
        Ok(records.iter().map(|record| record.bytes.len() as u64).sum())
    }
}

fn is_mismatch(error: &Error) -> bool {
    match error {
        Error::InFile { source, .. } => is_mismatch(source),
        Error::BaseMismatch { .. } | Error::DigestMismatch { .. } => true,
        _ => false,
    }
}

/// The bytes that a job writes, if any.
fn record(work: &Work, checked: &Checked, number: usize) -> Result<Option<Record>> {
    let job = &work.jobs()[number];
    if let What::Chunk(tensor, _) = job.what
        && checked.is_applied(tensor)
    {
        return Ok(None);
    }
    let Some(bytes) = work.new_bytes(job)? else { return Ok(None) };
    let record = Record::new(job.offset, bytes);
    if checked.agrees(number, record.crc) {
        return Ok(Some(record));
    }
    Err(Error::corrupt("the file was changed by another process").in_file(work.path()))
}

/// Consecutive jobs from number `done` on, of at most `batch_bytes` together unless one has more.
fn batches(jobs: &[Job], done: usize, batch_bytes: u64) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut filled = 0;
    for (number, job) in jobs.iter().enumerate().skip(done) {
        filled += job.len_bytes;
        match batches.last_mut() {
            Some(batch) if filled <= batch_bytes => batch.end = number + 1,
            _ => {
                batches.push(number..number + 1);
                filled = job.len_bytes;
            }
        }
    }
    batches
}
