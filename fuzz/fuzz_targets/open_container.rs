//! Opens any bytes as a container, unchanged and with corrected checksums of index and trailer. The
//! result must be an answer, never a panic.

#![no_main]

use deltaloom::Bases;
use deltaloom_fuzz::{assemble, decode_all};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let bases = Bases::default();
    let _ = decode_all(bytes.to_vec(), &bases);
    let mut fixed = bytes.to_vec();
    if assemble::fix_checksums(&mut fixed).is_some() {
        let _ = decode_all(fixed, &bases);
    }
});
