//! Keys and values in a file: the same bits as in memory, with room for few pages, and what is
//! wrong with files.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../deltaloom/tests/common/mod.rs"]
mod common;
#[expect(dead_code, reason = "shared with other tests")]
mod tiny;

use std::fs::{self, OpenOptions};
use std::path::Path;

use deltaloom::{Error, ErrorKind};
use deltaloom_compute::Run;
use deltaloom_lm::layer::{
    AttentionPlan, KvType, Memory, MemoryOptions, PositionMap, Positions, Reach, SequenceId, Table,
};
use deltaloom_lm::model::{Chunk, Model};
use deltaloom_lm::tenancy::FamilyOptions;
use tiny::folder;

const TOKENS: usize = 150;

fn open(plan: &AttentionPlan) -> Model {
    let model = Model::open(&folder("llama3"), FamilyOptions::default()).unwrap();
    let layers = model.attention().len();
    model.with_attention(vec![plan.clone(); layers]).unwrap()
}

fn plain() -> AttentionPlan {
    AttentionPlan::new(Reach::Causal).with_positions(Positions::rotary(1e4, Table::Default))
}

fn plans() -> [AttentionPlan; 3] {
    let map = PositionMap::Grouped { group: 4, neighbours: 30 };
    let self_extend = Positions::Rotary { theta: 1e4, table: Table::Default, map };
    [plain(), plain().with_positions(self_extend), plain().with_reach(Reach::Window { tokens: 50, sinks: 4 })]
}

fn ids() -> Vec<u32> {
    (0..u32::try_from(TOKENS).unwrap()).map(|at| (at * at * 7 + at * 3) % 96).collect()
}

fn step(
    model: &mut Model,
    memory: &mut Memory,
    sequence: SequenceId,
    tokens: &[u32],
) -> deltaloom::Result<Vec<u32>> {
    let hidden = model.forward(memory, &[Chunk { sequence, tokens }], &Run::default())?;
    let logits = hidden.logits(&(0..tokens.len()).collect::<Vec<_>>(), &Run::default())?;
    Ok(logits.iter().map(|logit| logit.to_bits()).collect())
}

/// Logits of all tokens, in chunks, of a sequence and of a copy of it that goes elsewhere first.
fn logits(model: &mut Model, kv: KvType, chunk: usize) -> Vec<u32> {
    let mut memory = model.memory(MemoryOptions::default().with_kv(kv));
    let one = memory.begin(Model::BASE);
    let (ids, mut found) = (ids(), Vec::new());
    for tokens in ids[..77].chunks(chunk) {
        found.extend(step(model, &mut memory, one, tokens).unwrap());
    }
    let two = memory.fork(one).unwrap();
    found.extend(step(model, &mut memory, one, &ids[..40]).unwrap());
    memory.end(one).unwrap();
    for tokens in ids[77..].chunks(chunk) {
        found.extend(step(model, &mut memory, two, tokens).unwrap());
    }
    found
}

/// Bytes of a page of one layer.
fn page(model: &Model, kv: KvType) -> u64 {
    let memory = model.memory(MemoryOptions::default().with_kv(kv));
    memory.bytes_of(1).unwrap() / model.attention().len() as u64
}

#[test]
fn a_file_changes_no_bit() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("kv");
    for plan in plans() {
        for kv in [KvType::Bf16, KvType::F32] {
            for chunk in [1, 60] {
                let expected = logits(&mut open(&plan), kv, chunk);
                for pages in [0, 4, 1000] {
                    let model = open(&plan);
                    let room = pages * page(&model, kv);
                    let mut model = model.with_kv_file(&path, room).unwrap();
                    assert!(logits(&mut model, kv, chunk) == expected, "{plan:?} {kv:?} {chunk} {pages}");
                    let file = model.kv_file().unwrap();
                    assert_eq!(file.resident_bytes(), 0, "memory that is gone leaves nothing");
                    assert_eq!(file.read_bytes() > 0, pages < 1000);
                    drop(model);
                    assert!(!path.exists());
                }
            }
        }
    }
}

#[test]
fn a_step_reads_each_page_once() {
    let place = tempfile::tempdir().unwrap();
    for pages in [4, 7] {
        let model = open(&plain());
        let (page, layers) = (page(&model, KvType::Bf16), model.attention().len() as u64);
        let mut model = model.with_kv_file(&place.path().join("kv"), pages * page).unwrap();
        let mut memory = model.memory(MemoryOptions::default());
        let one = memory.begin(Model::BASE);
        step(&mut model, &mut memory, one, &ids()).unwrap();
        let before = model.kv_file().unwrap().read_bytes();
        step(&mut model, &mut memory, one, &[1]).unwrap();
        let file = model.kv_file().unwrap();
        let read = file.read_bytes() - before;
        // The last page of a layer may be read before it is written and leave before it is seen.
        assert!(read > 0 && read <= layers * 6 * page, "{read} of {}", layers * 5 * page);
        assert!(file.resident_bytes() <= pages * page);
    }
}

#[test]
fn places_are_used_again() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("kv");
    let mut model = open(&plain()).with_kv_file(&path, 0).unwrap();
    let mut memory = model.memory(MemoryOptions::default());
    let mut lengths = Vec::new();
    for _ in 0..3 {
        let one = memory.begin(Model::BASE);
        step(&mut model, &mut memory, one, &ids()).unwrap();
        memory.end(one).unwrap();
        lengths.push(fs::metadata(&path).unwrap().len());
    }
    assert_eq!(lengths, [lengths[0]; 3]);
}

fn refused(path: &Path, plan: &AttentionPlan) -> Error {
    open(plan).with_kv_file(path, 1 << 20).err().unwrap()
}

#[test]
fn only_a_file_of_this_model_is_taken() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("kv");
    // A process that was killed leaves its file.
    let model = open(&plain()).with_kv_file(&path, 0).unwrap();
    let left = fs::read(&path).unwrap();
    assert!(
        matches!(refused(&path, &plain()), Error::Protected { why, .. } if why.contains("another process"))
    );
    drop(model);
    fs::write(&path, [&left[..], &[7; 9000]].concat()).unwrap();
    let other = plain().with_reach(Reach::Chunk { tokens: 64 });
    assert!(matches!(refused(&path, &other), Error::Protected { why, .. } if why.contains("another model")));
    fs::write(&path, &left[..40]).unwrap();
    assert!(matches!(refused(&path, &plain()), Error::Protected { .. }));
    fs::write(&path, &left).unwrap();
    drop(open(&plain()).with_kv_file(&path, 0).unwrap());
    assert!(!path.exists());

    for bytes in [&b""[..], b"notes of somebody"] {
        fs::write(&path, bytes).unwrap();
        assert!(matches!(refused(&path, &plain()), Error::Protected { why, .. } if why.contains("exists")));
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    assert!(matches!(refused(place.path(), &plain()), Error::Protected { .. }));
    let nowhere = refused(&place.path().join("none/kv"), &plain());
    assert_eq!(nowhere.kind(), ErrorKind::CannotWrite);
    #[cfg(unix)]
    {
        let link = place.path().join("link");
        fs::write(&path, &left).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(refused(&link, &plain()), Error::Protected { .. }));
        assert_eq!(fs::read(&path).unwrap(), left);
    }
}

/// The error of a step after the file was spoiled. The sequence and the model stay usable.
fn spoiled(spoil: impl FnOnce(&Path)) -> Error {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("kv");
    let mut model = open(&plain()).with_kv_file(&path, 0).unwrap();
    let mut memory = model.memory(MemoryOptions::default());
    let one = memory.begin(Model::BASE);
    step(&mut model, &mut memory, one, &ids()).unwrap();
    spoil(&path);
    let error = step(&mut model, &mut memory, one, &[1]).unwrap_err();
    assert_eq!(memory.tokens(one).unwrap(), TOKENS);
    memory.end(one).unwrap();
    let two = memory.begin(Model::BASE);
    step(&mut model, &mut memory, two, &ids()).unwrap();
    error
}

#[test]
fn a_file_that_was_spoiled_is_an_error() {
    let shortened = spoiled(|path| {
        OpenOptions::new().write(true).open(path).unwrap().set_len(5000).unwrap();
    });
    assert_eq!((shortened.kind(), shortened.path().is_some()), (ErrorKind::Truncated, true));
    let changed = spoiled(|path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[4096..].iter_mut().for_each(|byte| *byte ^= 1);
        fs::write(path, bytes).unwrap();
    });
    assert_eq!((changed.kind(), changed.path().is_some()), (ErrorKind::Corrupt, true));
}
