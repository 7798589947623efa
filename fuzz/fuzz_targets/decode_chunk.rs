//! Meta, tables (each after its length as a u16) and payloads, assembled into a container with
//! correct checksums and decoded against the golden bases.

#![no_main]

use deltaloom_fuzz::{assemble, decode_all, golden_bases};

fn part<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (part, rest) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
    *bytes = rest;
    Some(part)
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    let (Some(meta), Some(tables)) = (part(&mut rest), part(&mut rest)) else { return };
    let bases = golden_bases();
    if let Some(container) = assemble::assemble(meta, tables, rest, bases) {
        let _ = decode_all(container, &bases.bases);
    }
});
