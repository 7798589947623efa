//! What branches contribute, on the synthetic model.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

use std::cell::RefCell;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use deltaloom::{Error, Progress, Silent};
use deltaloom_shrink::ablation::{Ablation, Subset, ablate};
use deltaloom_shrink::recipe::{Branch, Loaded, Recipe};
use deltaloom_shrink::synthetic;

fn recipe(folder: &Path, settings: &str) -> Loaded {
    let text = format!("version: 1\nteacher: {{model: model}}\n{settings}");
    Recipe::parse(&text, &folder.join("recipe.yaml")).unwrap()
}

const TWO: &str =
    "planner: {mode: fixed}\nbranches: {lra: {ratio: 1.3, residual: drop}, quantise: {bits: 4}}";

/// Counts students that were computed, and may stop when some are done and the next has begun.
#[derive(Default)]
struct Counted {
    total: AtomicU64,
    done: AtomicU64,
    stop_after: Option<u64>,
}

const UNIT: u64 = 1 << 20;

impl Progress for Counted {
    fn start(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.stop_after.is_some_and(|students| self.done.load(Ordering::Relaxed) > students * UNIT)
    }
}

#[test]
fn parts_make_the_whole_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    synthetic::write(&folder.path().join("model")).unwrap();
    let loaded = recipe(folder.path(), TWO);
    let found: [Ablation; 2] = [1, 2].map(|threads| {
        deltaloom::with_threads(threads, || ablate(&loaded, None, &Silent, &|_, _| ())).unwrap()
    });
    assert_eq!(found[0], found[1]);
    let [found, _] = found;
    assert_eq!(found.branches, [Branch::Lra, Branch::Quantise]);
    let on: Vec<usize> = found.subsets.iter().map(|subset| subset.branches.len()).collect();
    assert_eq!(on, [0, 1, 1, 2]);
    // Packing alone loses nothing.
    assert_eq!((found.subsets[0].kl, found.subsets[0].ratio), (0.0, found.packing_ratio));
    assert!(found.packing_ratio > 1.0 && found.ratio > found.packing_ratio);
    assert!(found.subsets[1..].iter().all(|subset| subset.kl > 0.0));
    let product: f64 = found.contributions.iter().map(|it| it.factor).product();
    assert!((product * found.packing_ratio / found.ratio - 1.0).abs() < 1e-9);
    let (ratios, kls): (Vec<f64>, Vec<f64>) =
        found.contributions.iter().map(|it| (it.ln_ratio, it.kl)).unzip();
    assert!((ratios.iter().sum::<f64>() - (found.ratio / found.packing_ratio).ln()).abs() < 1e-9);
    assert!((kls.iter().sum::<f64>() - found.kl).abs() < 1e-9);
    let last = found.subsets.last().unwrap();
    assert_eq!((last.ratio, last.kl), (found.ratio, found.kl));
}

#[test]
fn what_was_computed_is_not_computed_again() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    synthetic::write(&model).unwrap();
    let state = folder.path().join("state");
    let computed = |settings: &str, stop_after| {
        let progress = Counted { stop_after, ..Counted::default() };
        let told: RefCell<Vec<Subset>> = RefCell::default();
        let each = |subset: &Subset, of| {
            assert_eq!(of, 4);
            told.borrow_mut().push(subset.clone());
        };
        let found = ablate(&recipe(folder.path(), settings), Some(&state), &progress, &each);
        let total = progress.total.into_inner() / UNIT;
        if found.is_ok() {
            assert_eq!((told.into_inner().len() as u64, progress.done.into_inner() / UNIT), (4, total));
        }
        (found, total)
    };
    // Stopped when one is done: that one stays.
    let (stopped, total) = computed(TWO, Some(1));
    assert!(matches!(stopped, Err(Error::Cancelled)) && total == 4);
    let (first, total) = computed(TWO, None);
    assert_eq!(total, 3);
    let (again, total) = computed(TWO, None);
    assert_eq!((again.unwrap(), total), (first.unwrap(), 0));
    // Where the student would go changes nothing, and a size changes what it is for.
    assert_eq!(computed(&format!("{TWO}\noutput: {{dir: elsewhere}}"), None).1, 0);
    assert_eq!(computed(&TWO.replace("1.3", "1.4"), None).1, 2);
    // What cannot be read is made anew.
    for entry in state.read_dir().unwrap() {
        std::fs::write(entry.unwrap().path(), "{}").unwrap();
    }
    assert_eq!(computed(TWO, None).1, 4);
    // Another teacher, other results.
    let weights = model.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len() - 2;
    bytes[end] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    assert_eq!(computed(TWO, None).1, 4);
}

#[test]
fn a_recipe_that_leaves_sizes_to_the_planner_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    synthetic::write(&folder.path().join("model")).unwrap();
    let loaded = recipe(folder.path(), "targets: {compression_ratio: 4}");
    let error = ablate(&loaded, None, &Silent, &|_, _| ()).unwrap_err().to_string();
    assert!(error.contains("planner.mode") && error.contains("fixed"), "{error}");
}
