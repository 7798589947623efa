//! Two states of a small file, each half of the input: the second is packed as patches of the
//! first, which may be laid out anew, and must come back.

#![no_main]

use std::fs;
use std::path::Path;

use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Bases, Container, Limits, PackOptions, ResolvedContainer, Silent};

fn folder(root: &Path, name: &str, bytes: &[u8]) -> Checkpoint {
    let path = root.join(name);
    fs::create_dir(&path).expect("a new folder");
    fs::write(path.join("vocab.json"), bytes).expect("a new file");
    Checkpoint::open(&path, &Limits::default()).expect("a folder with a file")
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (old, new) = bytes.split_at(bytes.len() / 2);
    if new.is_empty() {
        return;
    }
    let root = tempfile::tempdir().expect("a temporary folder");
    let (base, tuned) = (folder(root.path(), "base", old), folder(root.path(), "tuned", new));
    let mut bases = Bases::default();
    bases.push_checkpoint(&root.path().join("base"), base);
    let mut packed = Vec::new();
    let options = PackOptions::default().with_threads(1);
    deltaloom::pack_to(&tuned, &bases, &mut packed, &options, &Silent).expect("any file can be packed");
    let container = Container::from_source(Path::new("packed"), Box::new(packed), &Limits::default())
        .expect("a container that was just written");
    let resolved = ResolvedContainer::new(container, &bases).expect("the bases that it was packed with");
    let mut back = Vec::new();
    deltaloom::read_tensor(&resolved, "vocab.json", .., &mut back).expect("a tensor that can be decoded");
    assert!(back == new, "other bytes came back");
});
