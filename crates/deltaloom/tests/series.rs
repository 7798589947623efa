//! A series keeps every step exactly, whatever happens to its writers.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::*;
use deltaloom::checkpoint::{Checkpoint, ReadAt};
use deltaloom::series::*;
use deltaloom::{Error, Limits, Progress, Result, Silent, UnpackOptions};

fn path(input: &Input) -> &Path {
    match input {
        Input::Path(path) => path,
        Input::Checkpoint(_) => panic!("not a path"),
    }
}

fn model(step: &NewStep) -> &Path {
    path(&step.model)
}

/// A training run: weights that drift in memory and an optimizer's state, saved the way a trainer
/// saves them.
struct Run {
    rng: Random,
    master: Vec<f32>,
    second: Vec<f32>,
    step: u64,
}

const ROWS: usize = 96;
const COLS: usize = 64;

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Random::new(seed);
        let master = rng.weights(ROWS * COLS);
        let second = master.iter().map(|w| w * w * 1e-4).collect();
        Self { rng, master, second, step: 0 }
    }

    fn next(&mut self) {
        self.step += 1;
        for (weight, second) in self.master.iter_mut().zip(&mut self.second) {
            *weight += 2e-6 * self.rng.normal();
            *second *= 1.0 + 1e-2 * self.rng.normal();
        }
    }

    fn model(&self) -> Vec<u8> {
        let shape = [ROWS as u64, COLS as u64];
        let head = bf16_bytes(&self.master);
        let mut tensors =
            vec![tensor("model.w", "BF16", &shape, head.clone()), tensor("lm_head", "BF16", &shape, head)];
        // Tensors appear, disappear, and change their names and shapes.
        match self.step % 4 {
            1 => tensors.push(tensor("extra", "F32", &[2, 3], f32_bytes(&self.master[..6]))),
            2 => tensors.push(tensor("extra", "F32", &[6], f32_bytes(&self.master[..6]))),
            3 => tensors[1].name = "head".to_owned(),
            _ => {}
        }
        safetensors(&tensors)
    }

    fn optimizer(&self) -> Vec<u8> {
        let shape = [ROWS as u64, COLS as u64];
        safetensors(&[
            tensor("master.model.w", "F32", &shape, f32_bytes(&self.master)),
            tensor("exp_avg_sq.model.w", "F32", &shape, f32_bytes(&self.second)),
        ])
    }

    /// Writes a directory with a shard, an index and small files.
    fn write(&self, folder: &Path) -> NewStep {
        let model = folder.join(format!("step-{}", self.step));
        let state = format!("{{\"step\": {}, \"loss\": {}}}", self.step, 5.0 - 0.01 * self.step as f64);
        write_tree(
            &model,
            &[
                ("model-00001-of-00001.safetensors", self.model()),
                ("config.json", b"{\"layers\": 1}".to_vec()),
                ("deep/trainer_state.json", state.into_bytes()),
                ("empty", Vec::new()),
            ],
        );
        let optimizer = folder.join(format!("optimizer-{}.safetensors", self.step));
        std::fs::write(&optimizer, self.optimizer()).unwrap();
        let loss = format!("{}", (self.step % 5) as f64 / 10.0);
        NewStep::new(model)
            .with_step(Some(self.step))
            .with_optimizer(Some(optimizer.into()))
            .with_meta(BTreeMap::from([("loss".into(), loss)]))
    }
}

/// Some steps of a run rename a tensor, which is no mistake here.
fn add_options() -> AddOptions {
    AddOptions::default().with_pack(options()).with_force(true)
}

fn init(root: &Path, keyframe_every: u32, max_chain: u32) -> Series {
    Series::init(
        Box::new(Directory::new(root)),
        &SeriesOptions::default().with_keyframe_every(keyframe_every).with_max_chain(max_chain),
    )
    .unwrap()
}

/// A series of `count` steps, and the steps added.
fn filled(folder: &Path, count: u64, keyframe_every: u32, max_chain: u32) -> (Series, Vec<NewStep>) {
    let series = init(&folder.join("store"), keyframe_every, max_chain);
    let mut run = Run::new(1);
    let steps = (0..count).map(|_| {
        run.next();
        let step = run.write(folder);
        assert!(series.add(&step, &add_options(), &Silent).unwrap().is_new);
        step
    });
    let steps = steps.collect();
    (series, steps)
}

/// Checks that every part of a step is restored byte for byte.
fn check_step(series: &Series, step: &NewStep) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let number = step.step.unwrap();
    let extract = |part, name: &str| series.extract(number, part, &at(name), &one_thread(), &Silent).unwrap();
    extract(Part::Model, "model");
    assert!(tree(&at("model")) == tree(model(step)), "step {number}");
    if let Some(optimizer) = &step.optimizer {
        extract(Part::Optimizer, "optimizer");
        assert!(
            std::fs::read(at("optimizer")).unwrap() == std::fs::read(path(optimizer)).unwrap(),
            "step {number}"
        );
        extract(Part::All, "all");
        assert!(tree(&at("all/model")) == tree(model(step)), "step {number}");
        assert_eq!(tree(&at("all/optimizer")).len(), 1);
    }
}

fn assert_clean(series: &Series) {
    let report = series.verify(true, 1, &Silent).unwrap();
    assert_eq!(report.faults, [""; 0]);
}

#[test]
fn every_step_comes_back_within_its_hops() {
    let folder = tempfile::tempdir().unwrap();
    let (series, steps) = filled(folder.path(), 22, 10, 3);
    for step in &steps {
        check_step(&series, step);
        let chain = series.chain(step.step.unwrap()).unwrap();
        assert!(chain.len() <= 4 && chain[0].is_keyframe());
    }
    assert_clean(&series);
    let entries = series.last(usize::MAX).unwrap();
    assert_eq!(entries.iter().filter(|entry| entry.is_keyframe()).count(), 3);
    let summary = series.summary().unwrap();
    assert_eq!(summary.totals.steps, 22);
    assert_eq!(summary.totals.stored_bytes, entries.iter().map(|entry| entry.stored_bytes).sum::<u64>());
    let mut tensor = Vec::new();
    series.read_tensor(22, "exp_avg_sq.model.w", &mut tensor).unwrap();
    assert!(data_of(&std::fs::read(path(steps[21].optimizer.as_ref().unwrap())).unwrap()).ends_with(&tensor));
    // The BF16 copy and its twin take nothing in addition to the master.
    let inspected = series.inspect(&entries[21]).unwrap();
    let predictors = predictors(&inspected);
    assert_eq!((predictors["model.w"], predictors["lm_head"]), ("cast", "cast"));
    assert_eq!((predictors["master.model.w"], predictors["model/config.json"]), ("reference", "identical"));
}

#[test]
fn a_step_is_added_once_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (series, steps) = filled(folder.path(), 3, 16, 8);
    let before = tree(&folder.path().join("store"));
    let again = series.add(&steps[1], &add_options(), &Silent).unwrap();
    assert!(!again.is_new && again.entry.step == 2);
    let other = steps[2].clone().with_step(Some(2));
    assert!(matches!(series.add(&other, &add_options(), &Silent), Err(Error::StepTaken { step: 2 })));
    let late = steps[2].clone().with_step(Some(0));
    assert!(matches!(
        series.add(&late, &add_options(), &Silent),
        Err(Error::StepOutOfOrder { step: 0, newest: 3 })
    ));
    let missing = NewStep::new(folder.path().join("nothing"));
    assert!(matches!(series.add(&missing, &add_options(), &Silent), Err(Error::Io { .. })));
    assert!(tree(&folder.path().join("store")) == before, "a refused step left something behind");
    let store = || Box::new(Directory::new(&folder.path().join("store")));
    assert!(matches!(Series::init(store(), &SeriesOptions::default()), Err(Error::AlreadyExists { .. })));
    let elsewhere = Directory::new(&folder.path().join("elsewhere"));
    assert!(matches!(Series::open(Box::new(elsewhere)), Err(Error::NotASeries { .. })));
}

#[test]
fn pruning_packs_again_only_what_rested_on_what_goes() {
    let folder = tempfile::tempdir().unwrap();
    let (series, steps) = filled(folder.path(), 20, 6, 4);
    let before: BTreeMap<u64, String> =
        series.last(usize::MAX).unwrap().into_iter().map(|entry| (entry.step, entry.object)).collect();
    let keep: KeepRules = "last 4, every 7, best loss 2, step 8".parse().unwrap();
    let dry = RebuildOptions::default().with_dry_run(true).with_pack(options());
    let planned = series.prune(&keep, &dry, &Silent).unwrap();
    assert_eq!(series.summary().unwrap().totals.steps, 20);
    let report = series.prune(&keep, &dry.with_dry_run(false), &Silent).unwrap();
    assert_eq!((&planned.dropped, &planned.repacked), (&report.dropped, &report.repacked));
    let kept: Vec<u64> = series.last(usize::MAX).unwrap().iter().map(|entry| entry.step).collect();
    assert_eq!(kept, [5, 7, 8, 10, 14, 17, 18, 19, 20]);
    for entry in series.last(usize::MAX).unwrap() {
        let was_repacked = report.repacked.contains(&entry.step);
        assert!(was_repacked || before[&entry.step] == entry.object, "{}", entry.step);
    }
    // Steps 7 and 19 are keyframes. Steps 8 and 20 depend only on them.
    assert!([7, 8, 19, 20].iter().all(|step| !report.repacked.contains(step)), "{:?}", report.repacked);
    let gone = series.gc(Duration::ZERO, false).unwrap();
    assert!(gone.removed >= 11, "{gone:?}");
    assert_eq!(series.gc(Duration::ZERO, false).unwrap(), GcReport::default());
    for step in steps.iter().filter(|step| kept.contains(&step.step.unwrap())) {
        check_step(&series, step);
    }
    assert_clean(&series);
    let mut run = Run::new(9);
    run.step = 50;
    check_step(&series, &{
        let step = run.write(folder.path());
        series.add(&step, &add_options(), &Silent).unwrap();
        step
    });
    let repack = RebuildOptions::default()
        .with_pack(options())
        .with_series(Some(SeriesOptions::default().with_keyframe_every(100).with_max_chain(100)));
    let report = series.repack(&repack, &Silent).unwrap();
    assert_eq!(report.repacked.len(), 10);
    series.gc(Duration::ZERO, false).unwrap();
    assert_clean(&series);
}

#[test]
fn young_objects_without_a_name_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (series, _) = filled(folder.path(), 2, 16, 8);
    let store = Directory::new(&folder.path().join("store"));
    store.put("objects/ab/someone-is-about-to-name-this.loom", b"x").unwrap();
    std::fs::write(folder.path().join("store/README"), "not ours").unwrap();
    let report = series.gc(Duration::from_secs(3600), false).unwrap();
    assert_eq!((report.removed, report.removed_bytes, report.too_young), (0, 0, 1));
    assert_eq!(series.gc(Duration::ZERO, false).unwrap().removed, 1);
    assert!(folder.path().join("store/README").exists());
}

#[test]
fn damage_is_found_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let (series, _) = filled(folder.path(), 4, 16, 8);
    let entries = series.last(4).unwrap();
    let path = |entry: &StepEntry| folder.path().join("store").join(entry.key());
    let target = folder.path().join("out");
    let extract = |step| series.extract(step, Part::All, &target, &one_thread(), &Silent);

    let whole = std::fs::read(path(&entries[1])).unwrap();
    let mut altered = whole.clone();
    altered[whole.len() / 2] ^= 1;
    std::fs::write(path(&entries[1]), &altered).unwrap();
    let report = series.verify(false, 1, &Silent).unwrap();
    assert!(!report.ok && report.faults.len() == 1 && report.faults[0].contains("step 2"), "{report:?}");
    assert!(extract(4).is_err() && extract(1).is_ok());
    std::fs::remove_dir_all(&target).unwrap();

    std::fs::write(path(&entries[1]), &whole[..whole.len() - 1]).unwrap();
    assert!(!series.verify(false, 1, &Silent).unwrap().ok);
    assert!(extract(3).is_err());
    std::fs::remove_file(path(&entries[1])).unwrap();
    assert!(matches!(extract(2), Err(Error::NotFound { .. })));
    assert!(!series.verify(true, 1, &Silent).unwrap().ok);
    assert!(!target.exists());
    std::fs::write(path(&entries[1]), &whole).unwrap();
    assert_clean(&series);
    // A container in another one's place has other content.
    std::fs::copy(path(&entries[2]), path(&entries[3])).unwrap();
    assert!(!series.verify(false, 1, &Silent).unwrap().ok);

    let manifest = folder.path().join("store/series.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("\"version\":1", "\"version\":7")).unwrap();
    assert!(
        matches!(series.summary(), Err(Error::InFile { source, .. }) if matches!(*source, Error::UnsupportedSeries { found: 7 }))
    );
    std::fs::write(&manifest, &text[..text.len() / 2]).unwrap();
    assert!(series.summary().is_err());
}

/// A store that fails before or after each change, as if its process had been killed there.
struct Failing {
    inner: Directory,
    rng: std::sync::Mutex<Random>,
    one_in: u64,
}

impl Failing {
    fn fails(&self) -> Result<()> {
        if self.rng.lock().unwrap().below(self.one_in) > 0 {
            return Ok(());
        }
        Err(Error::Io {
            path: PathBuf::from("killed"),
            access: deltaloom::Access::Write,
            source: std::io::Error::other("killed"),
        })
    }
}

impl Store for Failing {
    fn location(&self) -> String {
        self.inner.location()
    }
    fn scratch_folder(&self) -> Option<&Path> {
        self.inner.scratch_folder()
    }
    fn read_manifest(&self) -> Result<Option<(Vec<u8>, Revision)>> {
        self.inner.read_manifest()
    }
    fn replace_manifest(&self, bytes: &[u8], expected: Option<&Revision>) -> Result<bool> {
        self.fails()?;
        let replaced = self.inner.replace_manifest(bytes, expected)?;
        self.fails()?;
        Ok(replaced)
    }
    fn open(&self, key: &str) -> Result<Box<dyn ReadAt>> {
        self.inner.open(key)
    }
    fn len_bytes(&self, key: &str) -> Result<Option<u64>> {
        self.inner.len_bytes(key)
    }
    fn put_file(&self, key: &str, file: &Path) -> Result<()> {
        self.fails()?;
        self.inner.put_file(key, file)?;
        self.fails()
    }
    fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        self.fails()?;
        self.inner.put(key, bytes)?;
        self.fails()
    }
    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        self.inner.list(prefix)
    }
    fn delete(&self, key: &str) -> Result<()> {
        self.inner.delete(key)?;
        self.fails()
    }
}

#[test]
fn two_writers_that_fail_anywhere_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    init(&root, 8, 4);
    let added = AtomicU64::new(0);
    let writer = |seed: u64| {
        let files = folder.path().join(format!("writer-{seed}"));
        std::fs::create_dir(&files).unwrap();
        let mut run = Run::new(seed);
        for _ in 0..12 {
            run.next();
            let mut step = run.write(&files);
            step.step = None;
            step.optimizer = None;
            step.meta =
                BTreeMap::from([("writer".into(), seed.to_string()), ("own".into(), run.step.to_string())]);
            loop {
                let rng = Random::new(1000 * seed + added.fetch_add(1, Ordering::SeqCst));
                let store =
                    Failing { inner: Directory::new(&root), rng: std::sync::Mutex::new(rng), one_in: 6 };
                let done = Series::open(Box::new(store)).and_then(|s| s.add(&step, &add_options(), &Silent));
                // After a failure the writer checks whether its step exists, as a restarted writer
                // would.
                let entries =
                    Series::open(Box::new(Directory::new(&root))).unwrap().last(usize::MAX).unwrap();
                if entries.iter().any(|entry| entry.meta == step.meta) {
                    break;
                }
                assert!(done.is_err());
            }
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| writer(1));
        writer(2);
        other.join().unwrap();
    });
    let series = Series::open(Box::new(Directory::new(&root))).unwrap();
    let entries = series.last(usize::MAX).unwrap();
    let mut own: Vec<(String, u64)> =
        entries.iter().map(|e| (e.meta["writer"].clone(), e.meta["own"].parse().unwrap())).collect();
    own.sort();
    let expected = ["1", "2"].iter().flat_map(|w| (1..=12).map(|step| ((*w).to_owned(), step)));
    assert_eq!(own, expected.collect::<Vec<_>>());
    for entry in &entries {
        let files = folder.path().join(format!("writer-{}", entry.meta["writer"]));
        let model = files.join(format!("step-{}", entry.meta["own"]));
        check_step(&series, &NewStep::new(model).with_step(Some(entry.step)));
    }
    series.gc(Duration::ZERO, false).unwrap();
    assert_clean(&series);
}

#[test]
fn a_single_file_comes_back_as_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let series = init(&folder.path().join("store"), 16, 8);
    let mut run = Run::new(4);
    for step in 0..3 {
        run.next();
        // A file name that does not show its type.
        let model = folder.path().join("weights.bin");
        std::fs::write(&model, run.model()).unwrap();
        let new = NewStep::new(&model);
        assert_eq!(series.add(&new, &add_options(), &Silent).unwrap().entry.step, step);
        let out = folder.path().join(format!("out-{step}"));
        series.extract(step, Part::All, &out, &UnpackOptions::default(), &Silent).unwrap();
        assert!(std::fs::read(&out).unwrap() == run.model());
        let optimizer =
            series.extract(step, Part::Optimizer, &folder.path().join("no"), &one_thread(), &Silent);
        assert!(matches!(optimizer, Err(Error::NotFound { .. })));
    }
    // Unrelated weights: a delta does not pay off, because a keyframe is as small.
    let model = folder.path().join("weights.bin");
    std::fs::write(&model, Run::new(77).model()).unwrap();
    let new = NewStep::new(model);
    assert!(series.add(&new, &add_options(), &Silent).unwrap().entry.is_keyframe());
}

#[test]
fn what_waits_is_added_in_order_and_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let series = init(&folder.path().join("store"), 16, 8);
    let pending = Pending::new(&folder.path().join("store/pending"));
    let mut run = Run::new(5);
    let mut steps = Vec::new();
    for _ in 0..3 {
        run.next();
        let step = run.write(folder.path());
        let options = add_options().with_keyframe(run.step == 3);
        pending.snapshot(&step, &options, Taking::Copies, &deltaloom::Limits::default(), &Silent).unwrap();
        steps.push((step.clone(), tree(model(&step))));
        // The trainer keeps writing to the same place.
        if run.step == 1 {
            std::fs::write(model(&step).join("config.json"), "overwritten").unwrap();
        }
    }
    assert_eq!(pending.count().unwrap(), 3);
    assert_eq!(series.summary().unwrap().totals.steps, 0);
    let mut added = Vec::new();
    let note = |step: &Added| {
        added.push((step.entry.step, step.entry.is_keyframe()));
        Ok(())
    };
    pending.drain(&series, &add_options(), &Silent, note).unwrap();
    assert_eq!(added, [(1, true), (2, false), (3, true)]);
    assert_eq!(pending.count().unwrap(), 0);
    for (step, files) in &steps {
        let out = folder.path().join(format!("out-{}", step.step.unwrap()));
        series.extract(step.step.unwrap(), Part::Model, &out, &one_thread(), &Silent).unwrap();
        assert!(tree(&out) == *files);
    }
    // A step that cannot be added keeps waiting, and so do those after it.
    let late = steps[2].0.clone().with_step(Some(2));
    pending.snapshot(&late, &add_options(), Taking::Copies, &deltaloom::Limits::default(), &Silent).unwrap();
    let drained = pending.drain(&series, &add_options(), &Silent, |_| Ok(()));
    assert!(drained.unwrap_err().to_string().contains("000000000000"));
    assert_eq!(pending.count().unwrap(), 1);
}

/// A trainer that keeps only its last checkpoints removes the others at once.
#[test]
fn a_link_outlives_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let series = init(&folder.path().join("store"), 16, 8);
    let pending = Pending::new(&folder.path().join("store/pending"));
    let mut run = Run::new(6);
    run.next();
    let step = run.write(folder.path());
    let files = tree(model(&step));
    let limits = deltaloom::Limits::default();
    pending.snapshot(&step, &add_options(), Taking::Links, &limits, &Silent).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let name = files.keys().next().unwrap();
        assert_eq!(std::fs::metadata(model(&step).join(name)).unwrap().nlink(), 2);
    }
    std::fs::remove_dir_all(model(&step)).unwrap();
    pending.drain(&series, &add_options(), &Silent, |_| Ok(())).unwrap();
    let out = folder.path().join("out");
    series.extract(step.step.unwrap(), Part::Model, &out, &one_thread(), &Silent).unwrap();
    assert!(tree(&out) == files);
}

/// Tensors in memory are added as the file that they would be.
/// Sums up the bytes that operations announce.
#[derive(Default)]
struct Announced(AtomicU64);

impl Progress for Announced {
    fn start(&self, total_bytes: u64) {
        self.0.fetch_add(total_bytes, Ordering::Relaxed);
    }

    fn advance(&self, _bytes: u64) {}
}

#[test]
fn a_model_that_is_held_is_not_decoded_again() {
    let folder = tempfile::tempdir().unwrap();
    let open = |step: &NewStep| Checkpoint::open(model(step), &Limits::default()).unwrap();
    let bytes = |model: &Checkpoint| model.tensors().map(|(_, info)| info.len_bytes()).sum::<u64>();
    let added = |series: &Series, step: &NewStep| {
        let announced = Announced::default();
        let entry = series.add(step, &add_options(), &announced).unwrap().entry;
        (entry.object, announced.0.into_inner())
    };
    let (plain, held) = (init(&folder.path().join("a"), 8, 8), init(&folder.path().join("b"), 8, 8));
    let (mut run, mut before, mut first) = (Run::new(3), None, None);
    for _ in 0..6 {
        run.next();
        let step = run.write(folder.path());
        let (object, all) = added(&plain, &step);
        let (same, fewer) = added(&held, &step.clone().with_previous(before.clone()));
        assert_eq!(object, same);
        assert_eq!(all - fewer, before.as_ref().map_or(0, bytes));
        before = Some(open(&step));
        first = first.or_else(|| before.clone());
    }
    // Files that are not those of the step are of no use, and do no harm.
    run.next();
    let step = run.write(folder.path());
    let (object, all) = added(&plain, &step);
    let (same, with_another) = added(&held, &step.with_previous(first));
    assert_eq!((object, all), (same, with_another + UNCHANGED_BYTES));
    assert_clean(&held);
}

/// `config.json` and `empty`, which every step has.
const UNCHANGED_BYTES: u64 = 13;

#[test]
fn a_step_may_be_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let series = init(&folder.path().join("store"), 16, 8);
    let mut rng = Random::new(7);
    let mut weights = rng.weights(6000);
    for step in 0..3u64 {
        weights.iter_mut().step_by(7).for_each(|weight| *weight *= 1.01);
        let file = safetensors(&[tensor("w", "BF16", &[60, 100], bf16_bytes(&weights))]);
        let new = NewStep::new(checkpoint(&file).unwrap()).with_step(Some(step));
        let added = series.add(&new, &add_options(), &Silent).unwrap();
        assert_eq!(added.entry.is_keyframe(), step == 0);
        let out = folder.path().join(format!("{step}.safetensors"));
        series.extract(step, Part::Model, &out, &one_thread(), &Silent).unwrap();
        assert!(std::fs::read(out).unwrap() == file);
        let waiting = Pending::new(&folder.path().join("pending"));
        let limits = deltaloom::Limits::default();
        let refused = waiting.snapshot(&new, &add_options(), Taking::Copies, &limits, &Silent);
        assert!(matches!(refused, Err(Error::InvalidArgument(_))));
    }
}
