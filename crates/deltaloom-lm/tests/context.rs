//! Models whose attention was replaced: the same bits however sequences are computed, copies of
//! sequences, and the memory that windows need.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../deltaloom/tests/common/mod.rs"]
mod common;
#[expect(dead_code, reason = "shared with other tests")]
mod tiny;

use deltaloom::Error;
use deltaloom_compute::Run;
use deltaloom_lm::layer::{
    AttentionPlan, By, KvType, Law, Memory, MemoryOptions, PositionMap, Positions, Reach, SequenceId, Table,
};
use deltaloom_lm::model::{Chunk, Model};
use deltaloom_lm::tenancy::FamilyOptions;
use tiny::folder;

const TOKENS: usize = 150;

/// A model of two layers that share keys and was trained for 64 tokens.
fn open(plan: &AttentionPlan) -> Model {
    let model = Model::open(&folder("llama3"), FamilyOptions::default()).unwrap();
    let layers = model.attention().len();
    model.with_attention(vec![plan.clone(); layers]).unwrap()
}

fn ids(seed: u32, tokens: usize) -> Vec<u32> {
    (0..u32::try_from(tokens).unwrap()).map(|at| (at * at * 7 + at * seed) % 96).collect()
}

/// The last values of the new tokens of each sequence.
fn step(model: &mut Model, memory: &mut Memory, chunks: &[(SequenceId, &[u32])]) -> Vec<Vec<u32>> {
    let chunks: Vec<Chunk<'_>> =
        chunks.iter().map(|(sequence, tokens)| Chunk { sequence: *sequence, tokens }).collect();
    let hidden = model.forward(memory, &chunks, &Run::default()).unwrap();
    let width = hidden.values().len() / chunks.iter().map(|chunk| chunk.tokens.len()).sum::<usize>();
    let mut rest = hidden.values();
    let mut found = Vec::new();
    for chunk in chunks {
        let (own, after) = rest.split_at(chunk.tokens.len() * width);
        found.push(own.iter().map(|x| x.to_bits()).collect());
        rest = after;
    }
    found
}

fn plans() -> Vec<AttentionPlan> {
    let rotary = |table: Table, map| {
        AttentionPlan::new(Reach::Causal).with_positions(Positions::Rotary { theta: 1e4, table, map })
    };
    let plain = || rotary(Table::Default, PositionMap::Identity);
    let of_map = |map| rotary(Table::Default, map);
    let dynamic = Table::Dynamic { factor: 1.5, trained: 40, by: By::Query };
    vec![
        plain(),
        AttentionPlan::new(Reach::Causal).with_law(Some(Law::Floor { every: 32, slope: 0.1 })),
        rotary(dynamic.clone(), PositionMap::Identity),
        rotary(dynamic, PositionMap::Grouped { group: 4, neighbours: 30 }),
        of_map(PositionMap::Grouped { group: 4, neighbours: 30 }),
        of_map(PositionMap::DualChunk { chunk: 40, local: 8, saturate: None }),
        of_map(PositionMap::Clipped { at: 33 }),
        plain().with_reach(Reach::Window { tokens: 50, sinks: 4 }),
        plain().with_reach(Reach::Window { tokens: 33, sinks: 0 }),
        plain().with_reach(Reach::Chunk { tokens: 48 }),
    ]
}

#[test]
fn chunks_and_batches_change_no_bit() {
    let (ids, other) = (ids(3, TOKENS), ids(5, TOKENS));
    for plan in plans() {
        let mut model = open(&plan);
        for kv in [KvType::Bf16, KvType::F32] {
            let mut memory = model.memory(MemoryOptions::default().with_kv(kv));
            let whole = memory.begin(Model::BASE);
            let expected = step(&mut model, &mut memory, &[(whole, &ids)]).remove(0);
            for chunk in [1, 13, 64] {
                let [one, two] = [Model::BASE; 2].map(|tenant| memory.begin(tenant));
                // The other sequence is ahead of this one.
                step(&mut model, &mut memory, &[(two, &other[..70])]);
                let mut found = Vec::new();
                for tokens in ids.chunks(chunk) {
                    found.extend(
                        step(&mut model, &mut memory, &[(two, &other[..3]), (one, tokens)]).remove(1),
                    );
                }
                assert!(found == expected, "{plan:?} {kv:?} {chunk}");
            }
        }
    }
}

#[test]
fn a_copy_goes_on_as_its_original() {
    let ids = ids(3, TOKENS);
    for plan in plans() {
        let mut model = open(&plan);
        let mut memory = model.memory(MemoryOptions::default());
        for start in [0, 1, 64, 77] {
            let one = memory.begin(Model::BASE);
            if start > 0 {
                step(&mut model, &mut memory, &[(one, &ids[..start])]);
            }
            let before = memory.used_bytes();
            let two = memory.fork(one).unwrap();
            assert_eq!(memory.tokens(two).unwrap(), start);
            // At most the last page is copied.
            assert!(memory.used_bytes() - before <= memory.bytes_of(1).unwrap());
            // The original goes elsewhere first.
            step(&mut model, &mut memory, &[(one, &ids[..40])]);
            let found = step(&mut model, &mut memory, &[(two, &ids[start..])]).remove(0);
            let alone = memory.begin(Model::BASE);
            let expected = step(&mut model, &mut memory, &[(alone, &ids)]).remove(0);
            assert!(found[..] == expected[expected.len() - found.len()..], "{plan:?} {start}");
            for id in [one, two, alone] {
                memory.end(id).unwrap();
            }
            assert_eq!(memory.used_bytes(), 0);
        }
    }
}

#[test]
fn a_copy_needs_room_for_its_last_page() {
    let mut model = open(&plans()[0]);
    let page = model.memory(MemoryOptions::default()).bytes_of(1).unwrap();
    let mut memory = model.memory(MemoryOptions::default().with_budget(Some(2 * page)));
    let one = memory.begin(Model::BASE);
    step(&mut model, &mut memory, &[(one, &ids(3, 33))]);
    assert!(matches!(memory.fork(one), Err(Error::LimitExceeded { .. })));
    assert_eq!(memory.used_bytes(), 2 * page);
    let [two, _] = [Model::BASE; 2].map(|tenant| memory.begin(tenant));
    assert!(memory.fork(two).is_ok());
    memory.end(one).unwrap();
    assert!(memory.fork(one).is_err());
}

#[test]
fn windows_and_chunks_give_pages_back() {
    let (ids, plain) = (ids(3, TOKENS), plans().remove(0));
    for (reach, pages) in [
        (Reach::Causal, 5),
        (Reach::Window { tokens: 33, sinks: 0 }, 2),
        (Reach::Window { tokens: 33, sinks: 4 }, 3),
        (Reach::Chunk { tokens: 50 }, 1),
        (Reach::Chunk { tokens: 64 }, 1),
    ] {
        let mut model = open(&plain.clone().with_reach(reach));
        let mut memory = model.memory(MemoryOptions::default());
        let one = memory.begin(Model::BASE);
        step(&mut model, &mut memory, &[(one, &ids)]);
        let page = memory.bytes_of(1).unwrap();
        assert_eq!((memory.used_bytes(), memory.kept_bytes(TOKENS)), (pages * page, Some(pages * page)));
        assert_eq!(memory.bytes_of(TOKENS), Some(5 * page));
    }
}

#[test]
fn memory_is_of_one_attention() {
    let [one, mut two] = [&plans()[0], &plans()[4]].map(open);
    let mut memory = one.memory(MemoryOptions::default());
    let sequence = memory.begin(Model::BASE);
    let refused = two.forward(&mut memory, &[Chunk { sequence, tokens: &[1] }], &Run::default()).err();
    assert!(refused.unwrap().to_string().contains("another model"));
}
