//! Any bytes as the pickle of a sound PyTorch archive with a few storages.

#![no_main]

libfuzzer_sys::fuzz_target!(|pickle: &[u8]| {
    let storages = [1usize, 4, 16, 64].map(|len| vec![7; len]);
    let mut files = vec![("a/data.pkl".to_owned(), pickle)];
    files.extend(storages.iter().enumerate().map(|(key, bytes)| (format!("a/data/{key}"), &bytes[..])));
    deltaloom_fuzz::archive_roundtrip(&deltaloom_fuzz::assemble::zip(&files));
});
