//! Opens any bytes as a PyTorch archive or a GGUF file. What is opened is packed and restored, and
//! must be the same bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| deltaloom_fuzz::archive_roundtrip(bytes));
