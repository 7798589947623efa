//! Crashes at every operation, wrong bases and hostile journals, on a disk in memory.

use std::sync::atomic::{AtomicU64, Ordering};

use super::fake_disk::{FakeDisk, Fault, Kept, State};
use super::*;
use crate::{PackOptions, ResolvedContainer, Silent, UnpackOptions};

/// Small enough for a dozen batches.
const TEST_BATCH_BYTES: u64 = 6 << 10;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// Distributed approximately as weights are.
    fn weights(&mut self, count: usize) -> Vec<f32> {
        let mut weight = || (0..8).map(|_| f32::from((self.next() & 0xff) as u8) - 127.5).sum::<f32>() / 2e4;
        (0..count).map(|_| weight()).collect()
    }

    fn halves(&mut self, count: usize) -> Vec<u8> {
        rounded(&self.weights(count))
    }

    /// Moves those 16-bit elements for which `moves` holds by one or two ULPs.
    fn stepped(&mut self, bytes: &[u8], moves: impl Fn(usize) -> bool) -> Vec<u8> {
        let step = |(i, word): (usize, &[u8])| {
            let step = if moves(i) { u16::try_from(1 + self.next() % 2).unwrap() } else { 0 };
            u16::from_le_bytes([word[0], word[1]]).wrapping_add(step).to_le_bytes()
        };
        bytes.chunks_exact(2).enumerate().flat_map(step).collect()
    }
}

fn rounded(weights: &[f32]) -> Vec<u8> {
    weights.iter().flat_map(|w| half::bf16::from_f32(*w).to_le_bytes()).collect()
}

fn singles(weights: &[f32]) -> Vec<u8> {
    weights.iter().flat_map(|w| w.to_le_bytes()).collect()
}

type Tensor = (&'static str, &'static str, Vec<u64>, Vec<u8>);

fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let end = data.len() + bytes.len();
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{},{end}]}}"#,
            data.len()
        ));
        data.extend_from_slice(bytes);
    }
    let header = format!("{{{}}}", entries.join(","));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

fn checkpoint(file: &[u8]) -> Checkpoint {
    Checkpoint::from_bytes("x.safetensors", file.to_vec(), &Limits::default()).unwrap()
}

fn bases(files: &[&[u8]]) -> Bases {
    let mut bases = Bases::default();
    files.iter().for_each(|file| bases.push_checkpoint(Path::new("other"), checkpoint(file)));
    bases
}

fn pack(tuned: &[u8], against: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    let options = PackOptions::default().with_threads(1).with_chunk_log2(10);
    crate::pack_to(&checkpoint(tuned), &bases(against), &mut out, &options, &Silent).unwrap();
    out
}

fn open(container: &[u8]) -> Container {
    Container::from_source(Path::new("x.loom"), Box::new(container.to_vec()), &Limits::default()).unwrap()
}

struct Model {
    base: Vec<u8>,
    tuned: Vec<u8>,
    container: Vec<u8>,
}

/// Numbers of about the same magnitudes as those given.
fn of_size(rng: &mut Random, sizes: &[f32]) -> Vec<f32> {
    sizes.iter().zip(rng.weights(sizes.len())).map(|(size, w)| size * (w * 50.0).exp2()).collect()
}

/// Every kind of predictor, and tensors that moved to their neighbour's place, so that the last one
/// must be written first.
fn model() -> Model {
    let mut rng = Random(1);
    let master = rng.weights(1500);
    let halves: Vec<Vec<u8>> = (0..4).map(|_| rng.halves(2400)).collect();
    let sparse = rng.halves(64 * 64);
    // Almost a product of row and column, as Adam's second moments are.
    let factors: Vec<f32> = rng.weights(100).iter().map(|w| (w * 500.0).exp2()).collect();
    let sizes: Vec<f32> = (0..2400).map(|i| factors[i / 60] * factors[40 + i % 60]).collect();
    let old = of_size(&mut rng, &sizes);
    let new = of_size(&mut rng, &old);
    let roots = |squares: &[f32]| -> Vec<f32> { squares.iter().map(|v| v.sqrt()).collect() };
    let [old_first, new_first] = [&old, &new].map(|second| of_size(&mut rng, &roots(second)));
    let moment = |name, values: &[f32]| (name, "F32", vec![40, 60], singles(values));
    let bf16 = |name, bytes: &Vec<u8>| (name, "BF16", vec![40, 60], bytes.clone());
    let base = safetensors(&[
        ("m", "F32", vec![1500], singles(&master)),
        bf16("a", &halves[0]),
        bf16("b", &halves[1]),
        bf16("c", &halves[2]),
        ("s", "BF16", vec![64, 64], sparse.clone()),
        ("i", "BF16", vec![500], halves[0][..1000].to_vec()),
        bf16("t", &halves[3]),
        ("d", "BF16", vec![1500], halves[1][..3000].to_vec()),
        moment("x.v", &old),
        moment("x.m", &old_first),
        ("e", "F32", vec![0], Vec::new()),
    ]);
    let moved = rng.stepped(&halves[0], |i| i % 3 > 0);
    let moved_master: Vec<f32> = master.iter().map(|w| w * 1.001 + 1e-5).collect();
    let tuned = safetensors(&[
        ("m", "F32", vec![1500], singles(&moved_master)),
        ("z", "BF16", vec![40, 60], rng.halves(2400)),
        bf16("a", &moved),
        bf16("b", &rng.stepped(&halves[1], |i| i % 3 > 0)),
        // The first and the last chunk are unchanged.
        ("s", "BF16", vec![64, 64], rng.stepped(&sparse, |i| (1100..2900).contains(&i) && i % 50 == 0)),
        ("i", "BF16", vec![500], halves[0][..1000].to_vec()),
        bf16("t", &moved),
        ("d", "BF16", vec![1500], rounded(&master)),
        moment("x.v", &new),
        moment("x.m", &new_first),
        ("e", "F32", vec![0], Vec::new()),
    ]);
    let container = pack(&tuned, &[&base]);
    let kinds: Vec<_> = open(&container).index().tensors.iter().map(|t| t.predictor.clone()).collect();
    use crate::predict::Predictor::*;
    let cast = Cast(Some("m".to_owned()));
    let own = Reference(None);
    // The last but one is written before the tensor from which its companion is predicted.
    let expected = [
        own.clone(),
        Zero,
        own.clone(),
        own.clone(),
        own.clone(),
        Identical(None),
        Tied(2),
        cast,
        own,
        Companion(8),
        Zero,
    ];
    assert_eq!(kinds, expected);
    Model { base, tuned, container }
}

/// Runs on a disk. Returns the result and the contents of the disk.
fn run_on(
    disk: FakeDisk,
    container: &[u8],
    others: &[&[u8]],
    check: Check,
    progress: &dyn Progress,
) -> (Result<InPlaceReport>, State) {
    let disk = Arc::new(disk);
    let task = Task {
        disk: Arc::clone(&disk) as Arc<dyn Disk>,
        path: PathBuf::from("base"),
        journal: PathBuf::from("journal"),
        batch_bytes: TEST_BATCH_BYTES,
    };
    let options = InPlaceOptions::default().with_threads(1).with_check(check);
    let answer = task.run(open(container), &bases(others), &options, progress);
    let state = disk.state.lock().unwrap().clone();
    (answer, state)
}

fn run(state: State, container: &[u8], check: Check) -> (Result<InPlaceReport>, State) {
    run_on(FakeDisk::new(state, u64::MAX, Fault::NotBegun), container, &[], check, &Silent)
}

const CHECKS: [Check; 3] = [Check::Changed, Check::All, Check::One];

#[test]
fn the_file_becomes_the_fine_tune_and_stays_it() {
    let model = model();
    for check in CHECKS {
        let (report, state) = run(State::new(&model.base), &model.container, check);
        let report = report.unwrap();
        assert!(state.file() == model.tuned && state.journal.is_none() && state.draft.is_none());
        assert_eq!(report.written_bytes, state.written_bytes as u64);
        assert!(!report.already_applied && !report.resumed);
        // Two chunks of one tensor and one whole tensor are left out, and nothing else.
        assert_eq!(model.base.len() - state.written_bytes, 2 * 2048 + 1000);

        let before = state.written_bytes;
        let (report, state) = run(state, &model.container, check);
        let report = report.unwrap();
        assert!(state.file() == model.tuned);
        assert_eq!((report.already_applied, report.written_bytes, state.written_bytes), (true, 0, before));
    }
}

/// Every operation fails in every possible way, each time with every outcome for writes that were
/// not synced.
#[test]
fn a_crash_at_any_operation_can_be_made_good() {
    let model = model();
    let start = State::new(&model.base);
    let operations = run(start.clone(), &model.container, Check::Changed).1.operations;
    assert!(operations > 30, "{operations}");
    let mut resumed = 0;
    for works_for in 0..operations {
        for fault in [Fault::NotBegun, Fault::Half, Fault::Done] {
            let disk = FakeDisk::new(start.clone(), works_for, fault);
            let (answer, crashed) = run_on(disk, &model.container, &[], Check::Changed, &Silent);
            let error = answer.unwrap_err();
            assert_eq!(matches!(error, Error::Unfinished { .. }), crashed.journal.is_some(), "{error}");
            for (i, kept) in
                [Kept::All, Kept::Nothing, Kept::EveryOther, Kept::LastHalves].into_iter().enumerate()
            {
                let what = format!("{works_for} {fault:?} {kept:?}");
                let again = crashed.clone().after_crash(kept);
                let (answer, after) = run(again.clone(), &model.container, CHECKS[i % CHECKS.len()]);
                let report = answer.unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(after.file() == model.tuned && after.pending.is_empty(), "{what}");
                assert!(after.journal.is_none() && after.draft.is_none(), "{what}");
                assert_eq!(report.resumed, crashed.journal.is_some(), "{what}");
                resumed += u64::from(report.resumed);

                // A second crash, while the first one is being repaired.
                let disk = FakeDisk::new(again, 1 + works_for % 7, fault);
                let (_, crashed) = run_on(disk, &model.container, &[], Check::Changed, &Silent);
                let (answer, after) =
                    run(crashed.after_crash(Kept::EveryOther), &model.container, Check::Changed);
                assert!(answer.is_ok() && after.file() == model.tuned, "{what}");
            }
        }
    }
    assert!(resumed > operations * 6, "{resumed}");
}

/// Every difference between the file and the base is found before the file is touched.
#[test]
fn a_wrong_base_is_left_as_it_is() {
    let model = model();
    let container = open(&model.container);
    let member = &container.index().members[0];
    let starts = |name: &str| {
        let tensor = member.tensors.iter().find(|t| t.name == name).unwrap();
        usize::try_from(member.data_offset() + tensor.begin).unwrap()
    };
    // The fine-tune's "a" and "b" are predicted from the places before theirs. Nothing needs what
    // was at the place of "b".
    for (name, is_needed) in [("m", true), ("z", true), ("a", true), ("b", false), ("s", true), ("i", false)]
    {
        let mut wrong = model.base.clone();
        wrong[starts(name) + 500] ^= 1;
        for check in [Check::Changed, Check::All] {
            let (answer, state) = run(State::new(&wrong), &model.container, check);
            let is_found = is_needed || (check == Check::All && name == "i");
            match answer {
                Err(Error::BaseMismatch { .. }) if is_found => {
                    assert!(state.operations == 0 && state.file() == wrong, "{name}");
                }
                Ok(_) if !is_found => assert!(name == "i" || state.file() == model.tuned),
                other => panic!("{name} {check:?}: {other:?}"),
            }
        }
    }
    // All of it is wrong, and one tensor shows it.
    let other: Vec<u8> = model.base.iter().rev().copied().collect();
    let header = usize::try_from(member.data_offset()).unwrap();
    let wrong = [&model.base[..header], &other[..other.len() - header]].concat();
    let (answer, state) = run(State::new(&wrong), &model.container, Check::One);
    assert!(matches!(answer, Err(Error::BaseMismatch { .. })), "{answer:?}");
    assert!(state.file() == wrong && state.operations == 0);
}

/// If a trusted base is wrong in most places, that may be noticed too late. Then nobody is advised
/// to resume.
#[test]
fn a_trusted_base_that_is_wrong_gives_an_answer() {
    let model = model();
    let header = usize::try_from(checkpoint(&model.base).members[0].data_offset()).unwrap();
    let mut given_up = 0;
    for at in (header..model.base.len()).step_by(501) {
        let mut wrong = model.base.clone();
        wrong[at] ^= 0x40;
        let (answer, state) = run(State::new(&wrong), &model.container, Check::One);
        if let Err(e @ Error::Unfinished { .. }) = answer {
            assert!(e.kind() == crate::ErrorKind::Unfinished && state.journal.is_some(), "{e}");
            let (again, after) = run(state.clone().after_crash(Kept::All), &model.container, Check::Changed);
            assert!(again.is_err() && after.file() == state.file());
            given_up += 1;
        }
    }
    assert!(given_up > 0);
}

#[test]
fn a_damaged_container_changes_nothing() {
    let model = model();
    for at in (16..model.container.len() / 2).step_by(97) {
        let mut damaged = model.container.clone();
        damaged[at] ^= 4;
        let Ok(container) = Container::from_source(Path::new("x"), Box::new(damaged), &Limits::default())
        else {
            continue;
        };
        let disk = Arc::new(FakeDisk::new(State::new(&model.base), u64::MAX, Fault::NotBegun));
        let task = Task {
            disk: Arc::clone(&disk) as Arc<dyn Disk>,
            path: PathBuf::from("base"),
            journal: PathBuf::from("journal"),
            batch_bytes: TEST_BATCH_BYTES,
        };
        let options = InPlaceOptions::default().with_threads(1);
        let error = task.run(container, &Bases::default(), &options, &Silent).unwrap_err();
        assert!(error.to_string().contains("x"), "{error}");
        assert_eq!(disk.state.lock().unwrap().operations, 0);
    }
}

#[test]
fn other_bases_are_found_by_digest() {
    let mut rng = Random(7);
    let (near, far) = (rng.halves(3000), rng.halves(3000));
    let tuned = rng.stepped(&near, |i| i % 9 == 0);
    let own =
        |w: &[u8]| safetensors(&[("w", "BF16", vec![50, 60], w.to_vec()), ("x", "U8", vec![4], vec![1; 4])]);
    // Both have the same name, and the other one is the reference.
    let (base, other, tuned) = (own(&far), own(&near), own(&tuned));
    let container = pack(&tuned, &[&base, &other]);
    let disk = || FakeDisk::new(State::new(&base), u64::MAX, Fault::NotBegun);
    let (answer, state) = run_on(disk(), &container, &[&other], Check::Changed, &Silent);
    assert!(state.file() == tuned, "{answer:?}");
    let (answer, state) = run_on(disk(), &container, &[], Check::Changed, &Silent);
    assert!(matches!(answer, Err(Error::BaseMismatch { .. })) && state.file() == base, "{answer:?}");
}

#[test]
fn what_cannot_be_done_in_place_is_refused() {
    let mut rng = Random(3);
    let (a, b) = (rng.halves(2000), rng.halves(2000));
    let file = |first: &'static str, x: &[u8], second: &'static str, y: &[u8]| {
        safetensors(&[
            (first, "BF16", vec![x.len() as u64 / 2], x.to_vec()),
            (second, "BF16", vec![y.len() as u64 / 2], y.to_vec()),
        ])
    };
    let base = file("a", &a, "b", &b);
    let cases = [
        (file("b", &b, "a", &a), "change places"),
        (file("aa", &a, "b", &b), "header takes"),
        (file("a", &a[..3998], "b", &[&b[..], &[0; 2]].concat()), "another place or size"),
    ];
    for (tuned, why) in cases {
        let container = pack(&tuned, &[&base]);
        let (answer, state) = run(State::new(&base), &container, Check::Changed);
        let error = answer.unwrap_err();
        assert!(matches!(error, Error::NotInPlace { .. }) && error.to_string().contains(why), "{error}");
        assert_eq!(state.operations, 0);
    }
}

/// A disk after a crash in the middle of a batch, with a journal.
fn crashed(model: &Model) -> State {
    let operations = run(State::new(&model.base), &model.container, Check::Changed).1.operations;
    (operations / 2..)
        .map(|works_for| {
            let disk = FakeDisk::new(State::new(&model.base), works_for, Fault::Half);
            run_on(disk, &model.container, &[], Check::Changed, &Silent).1
        })
        .find(|state| !state.pending.is_empty())
        .unwrap()
        .after_crash(Kept::EveryOther)
}

#[test]
fn every_damage_to_a_journal_is_found() {
    let crashed = crashed(&model());
    let journal = crashed.journal.unwrap();
    Journal::parse(&journal).unwrap();
    for cut in 0..journal.len() {
        assert!(Journal::parse(&journal[..cut]).is_err(), "{cut} bytes");
    }
    assert!(Journal::parse(&[&journal[..], &[0]].concat()).is_err());
    for bit in 0..journal.len() * 8 {
        let mut flipped = journal.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Journal::parse(&flipped).is_err(), "bit {bit}");
    }
}

/// Replaces bytes of a journal's head and gives it the right checksum again.
fn forged(journal: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let number = |at: usize| u32::from_le_bytes(journal[at..at + 4].try_into().unwrap()) as usize;
    let head_bytes = 72 + number(64) + 16 * number(68);
    let mut forged = journal.to_vec();
    forged[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32fast::hash(&forged[..head_bytes]);
    forged[head_bytes..head_bytes + 4].copy_from_slice(&crc.to_le_bytes());
    forged
}

#[test]
fn a_journal_that_does_not_fit_changes_nothing() {
    let model = model();
    let crashed = crashed(&model);
    let journal = crashed.journal.clone().unwrap();
    let table = 72 + u32::from_le_bytes(journal[64..68].try_into().unwrap()) as usize;
    let done = u64::from_le_bytes(journal[56..64].try_into().unwrap());
    assert!(forged(&journal, 0, &[]) == journal);
    let journals = [
        (journal[..100].to_vec(), "ends early"),
        (forged(&journal, 16, &[7; 32]), "another container"),
        (forged(&journal, 48, &12u64.to_le_bytes()), ""),
        (forged(&journal, 48, &u64::MAX.to_le_bytes()), "a file of"),
        (forged(&journal, 56, &u64::MAX.to_le_bytes()), "more chunks than exist"),
        (forged(&journal, 56, &(done + 3).to_le_bytes()), ""),
        (forged(&journal, 56, &0u64.to_le_bytes()), "not to be written"),
        (forged(&journal, table, &3u64.to_le_bytes()), "not to be written"),
        (forged(&journal, table, &u64::MAX.to_le_bytes()), "outside the file"),
        (forged(&journal, 72 + 10, b"\""), ""),
    ];
    for (i, (forged, why)) in journals.into_iter().enumerate() {
        let state = State { journal: Some(forged), ..crashed.clone() };
        let (answer, after) = run(state.clone(), &model.container, Check::Changed);
        let error = answer.unwrap_err();
        assert!(error.to_string().contains(why), "{i}: {error}");
        assert!(after.operations == 0 && after.file() == state.file(), "{i}: {error}");
    }
}

#[test]
fn a_journal_beside_a_file_that_was_replaced_changes_nothing() {
    let model = model();
    let state = State { durable: model.base.clone(), ..crashed(&model) };
    for check in CHECKS {
        let (answer, after) = run(state.clone(), &model.container, check);
        assert!(matches!(answer, Err(Error::Journal { .. })), "{check:?}: {answer:?}");
        assert!(after.operations == 0 && after.file() == model.base);
    }
}

/// Asks to stop from the `after`-th question on.
struct Stop {
    after: u64,
    asked: AtomicU64,
}

impl Progress for Stop {
    fn start(&self, _total_bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn is_cancelled(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed) >= self.after
    }
}

#[test]
fn work_that_is_cancelled_again_and_again_gets_done() {
    let model = model();
    let mut state = State::new(&model.base);
    let mut stops = 0;
    for after in 0.. {
        let stop = Stop { after, asked: AtomicU64::new(0) };
        let disk = FakeDisk::new(state, u64::MAX, Fault::NotBegun);
        let (answer, now) = run_on(disk, &model.container, &[], Check::Changed, &stop);
        state = now.after_crash(Kept::Nothing);
        match answer {
            Ok(_) => break,
            Err(Error::Cancelled) => assert!(state.journal.is_none() && state.file() == model.base),
            Err(Error::Unfinished { source, .. }) => {
                assert!(matches!(*source, Error::Cancelled) && state.journal.is_some());
            }
            Err(e) => panic!("{e}"),
        }
        stops += 1;
    }
    assert!(stops > 3 && state.file() == model.tuned);
}

/// Changes a byte of the file at the `at`-th question, unexpectedly.
struct Meddler {
    disk: Arc<FakeDisk>,
    byte: usize,
    at: u64,
    asked: AtomicU64,
}

impl Progress for Meddler {
    fn start(&self, _total_bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn is_cancelled(&self) -> bool {
        if self.asked.fetch_add(1, Ordering::Relaxed) == self.at {
            self.disk.state.lock().unwrap().durable[self.byte] ^= 1;
        }
        false
    }
}

#[test]
fn a_file_that_changes_while_it_is_worked_on_is_noticed() {
    let model = model();
    let mut refused = 0;
    for at in 0.. {
        let disk = Arc::new(FakeDisk::new(State::new(&model.base), u64::MAX, Fault::NotBegun));
        let task = Task {
            disk: Arc::clone(&disk) as Arc<dyn Disk>,
            path: PathBuf::from("base"),
            journal: PathBuf::from("journal"),
            batch_bytes: TEST_BATCH_BYTES,
        };
        // The last chunk of the first tensor is written last.
        let byte = usize::try_from(checkpoint(&model.base).members[0].data_offset()).unwrap() + 5990;
        let meddler = Meddler { disk, byte, at, asked: AtomicU64::new(0) };
        let options = InPlaceOptions::default().with_threads(1);
        let answer = task.run(open(&model.container), &Bases::default(), &options, &meddler);
        if meddler.asked.into_inner() <= at {
            assert!(answer.is_ok() && refused > 5, "{refused} of {at}");
            return;
        }
        // A change after that byte is written comes too late.
        assert!(answer.is_ok() || refused == at, "{refused} of {at}");
        refused += u64::from(answer.is_err());
    }
}

/// The expected result is that of plain unpacking.
#[test]
fn plain_unpacking_gives_the_same() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    let resolved = ResolvedContainer::new(open(&model.container), &bases(&[&model.base])).unwrap();
    let target = folder.path().join("out");
    crate::unpack(&resolved, &target, &UnpackOptions::default(), &Silent).unwrap();
    assert!(std::fs::read(target).unwrap() == model.tuned);
}

#[test]
fn a_matrix_that_is_turned_where_it_lies_is_refused_and_one_that_moves_is_not() {
    let (rows, cols) = (40, 60);
    let old: Vec<[u8; 2]> =
        (0..rows * cols).map(|i| (0x3c00 + u16::try_from(i * i % 977).unwrap()).to_le_bytes()).collect();
    let turned: Vec<[u8; 2]> =
        (0..cols).flat_map(|c| (0..rows).map(move |r| r * cols + c)).map(|i| old[i]).collect();
    let tensor = |name, shape: [u64; 2], elements: &[[u8; 2]]| {
        (name, "BF16", shape.to_vec(), elements.as_flattened().to_vec())
    };
    let file = |tensors: [Tensor; 2]| safetensors(&tensors);
    let zeros = vec![[0; 2]; rows * cols];
    let base = file([tensor("a", [40, 60], &old), tensor("b", [60, 40], &zeros)]);
    let at_home = pack(&file([tensor("a", [60, 40], &turned), tensor("b", [60, 40], &zeros)]), &[&base]);
    let (report, state) = run(State::new(&base), &at_home, Check::All);
    assert!(matches!(report, Err(Error::NotInPlace { .. })), "{report:?}");
    assert!(state.file() == base && state.written_bytes == 0);
    let tuned = file([tensor("a", [40, 60], &old), tensor("b", [60, 40], &turned)]);
    let container = pack(&tuned, &[&base]);
    let (report, state) = run(State::new(&base), &container, Check::All);
    report.unwrap();
    assert!(state.file() == tuned);
}
