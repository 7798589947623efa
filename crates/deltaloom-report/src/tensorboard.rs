//! Event files for TensorBoard: scalars as protobuf messages in TFRecord framing. It follows no
//! training run; the owner of a store writes its steps out.
//!
//! Messages by field number: Event {1: wall_time double, 2: step int64, 3: file_version string, 5:
//! Summary}, Summary {1: Value}, Value {1: tag string, 2: simple_value float}.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use deltaloom::{Error, Result};

/// Writes one event file.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: BufWriter<File>,
    wall_time: f64,
}

impl EventWriter {
    /// Creates a file in `dir`, and `dir` if it does not exist. Events get the time `wall_time`, in
    /// seconds since 1970. It is also part of the file's name, and orders runs.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if a file of that time exists, [`Error::Io`].
    pub fn create(dir: &Path, wall_time: f64) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(Error::writing(dir))?;
        let path = dir.join(format!("events.out.tfevents.{:010.0}.deltaloom", wall_time.floor()));
        let file = File::create_new(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => Error::AlreadyExists { path: path.clone() },
            _ => Error::writing(&path)(source),
        })?;
        let mut writer = Self { path, file: BufWriter::new(file), wall_time };
        let mut version = Vec::new();
        put_double(&mut version, 1, wall_time);
        put_bytes(&mut version, 3, b"brain.Event:2");
        writer.record(&version)?;
        Ok(writer)
    }

    /// Path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets the time of the events that follow.
    pub fn set_wall_time(&mut self, wall_time: f64) {
        self.wall_time = wall_time;
    }

    /// Writes a value of the curve `tag` at a step. Values are stored as F32.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn scalar(&mut self, tag: &str, step: u64, value: f64) -> Result<()> {
        let event = scalar_event(self.wall_time, tag, step, value);
        self.record(&event)
    }

    /// Hands everything to the operating system.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(mut self) -> Result<()> {
        self.file.flush().map_err(Error::writing(&self.path))
    }

    fn record(&mut self, message: &[u8]) -> Result<()> {
        self.file.write_all(&framed(message)).map_err(Error::writing(&self.path))
    }
}

fn scalar_event(wall_time: f64, tag: &str, step: u64, value: f64) -> Vec<u8> {
    let mut entry = Vec::new();
    put_bytes(&mut entry, 1, tag.as_bytes());
    put_key(&mut entry, 2, 5);
    #[expect(clippy::cast_possible_truncation, reason = "the message has single precision")]
    let single = value as f32;
    entry.extend(single.to_le_bytes());
    let mut summary = Vec::new();
    put_bytes(&mut summary, 1, &entry);
    let mut event = Vec::new();
    put_double(&mut event, 1, wall_time);
    put_key(&mut event, 2, 0);
    put_varint(&mut event, step);
    put_bytes(&mut event, 5, &summary);
    event
}

/// Length, its checksum, the message, its checksum.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(message.len() + 16);
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(message);
    out.extend(masked_crc(message).to_le_bytes());
    out
}

/// CRC-32C, rotated and shifted so that a checksum of bytes that contain checksums is not weak.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while let low @ 0x80.. = value {
        out.push(low.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn put_key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    put_varint(out, field << 3 | wire_type);
}

fn put_double(out: &mut Vec<u8>, field: u64, value: f64) {
    put_key(out, field, 1);
    out.extend(value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The bytes that the package tensorboard 2.21.0 writes for the same event.
    #[test]
    fn a_scalar_has_the_bytes_of_the_reference() {
        let event = framed(&scalar_event(1_700_000_000.5, "series/ratio", 300, 110.25));
        assert_eq!(
            hex(&event),
            "2300000000000000b09f77430900002040fc54d94110ac022a150a130a0c7365726965732f726174696f150080dc42535b9820"
        );
    }

    #[test]
    fn a_file_is_made_once_and_starts_with_its_version() {
        let folder = tempfile::tempdir().unwrap();
        let writer = EventWriter::create(folder.path(), 1_700_000_000.5).unwrap();
        let path = writer.path().to_path_buf();
        writer.finish().unwrap();
        assert_eq!(path.file_name().unwrap(), "events.out.tfevents.1700000000.deltaloom");
        assert_eq!(
            hex(&std::fs::read(&path).unwrap()),
            "1800000000000000a37f4b220900002040fc54d9411a0d627261696e2e4576656e743a322b353110"
        );
        let again = EventWriter::create(folder.path(), 1_700_000_000.5);
        assert!(matches!(again, Err(Error::AlreadyExists { .. })));
    }
}
