//! Threshold methods over series: the published forms lose what the corrected ones keep, and files
//! are checked.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

#[path = "../../deltaloom/tests/common/mod.rs"]
mod common;

use std::fs;
use std::path::Path;

use common::{Random, Tensor, bf16_bytes, checkpoint, f32_bytes, safetensors, tensor};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Error, Limits, Silent};
use deltaloom_lab::lossy::{Laboratory, LossyFile, Method, Row, RowReport, Rule, verify, verify_steps};

fn weights(name: &str, shape: &[u64], values: &[f32]) -> Tensor {
    tensor(name, "F32", shape, f32_bytes(values))
}

fn open(tensors: &[Tensor]) -> Checkpoint {
    checkpoint(&safetensors(tensors)).unwrap()
}

/// F32 values of a tensor.
fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let (member, info) = checkpoint.tensors().find(|(_, info)| info.name == name).unwrap();
    let mut bytes = vec![0; usize::try_from(info.len_bytes()).unwrap()];
    checkpoint.read(member, info, 0, &mut bytes).unwrap();
    bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Stores a series with one row. Returns what its reader has of a tensor after each step, and the
/// report.
fn run(row: Row, steps: &[Vec<Tensor>], name: &str) -> (Vec<Vec<f32>>, RowReport) {
    let mut laboratory = Laboratory::new(vec![row], None, 1).unwrap();
    let mut seen = Vec::new();
    for (number, step) in (0..).zip(steps) {
        let original = open(step);
        laboratory.push(number, &original, &Silent).unwrap();
        let path = laboratory.reconstruction(0).map(Path::to_path_buf);
        let reader = path.map(|path| Checkpoint::open(&path, &Limits::default()).unwrap());
        seen.push(values(reader.as_ref().unwrap_or(&original), name));
    }
    (seen, laboratory.finish().unwrap().remove(0))
}

fn published(method: Method, steps: &[Vec<Tensor>]) -> (Vec<Vec<f32>>, RowReport) {
    run(Row::Published(method), steps, "weight")
}

fn corrected(rule: Rule, steps: &[Vec<Tensor>]) -> (Vec<Vec<f32>>, RowReport) {
    run(Row::Corrected("test".to_owned(), rule), steps, "weight")
}

fn one(values: &[f32]) -> Vec<Tensor> {
    vec![weights("weight", &[values.len() as u64], values)]
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn farthest(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn the_case_of_five_weights_comes_back_exactly_or_within_the_bound() {
    let last = [0.1, 0.1201, 0.09, 0.1001, 0.1];
    let steps = [one(&[0.1, 0.12, 0.09, 0.1, 0.1]), one(&last)];
    let (exact, report) = corrected(Rule::Fixed(0.0), &steps);
    assert_eq!(bits(&exact[1]), bits(&last));
    assert_eq!(report.steps[1].max_error, Some(0.0));
    assert_eq!(report.steps[1].kept_elems, 2);
    for bound in [5e-5, 1e-4, 1e-3] {
        let (bounded, report) = corrected(Rule::Fixed(bound), &steps);
        assert!(farthest(&bounded[1], &last) < bound);
        assert!(report.steps[1].max_error.unwrap() < f64::from(bound));
    }
    let (lost, _) = published(Method::P1, &steps);
    assert_eq!(bits(&lost[1]), bits(&lost[0]), "P1 drops both updates");
}

#[test]
fn small_updates_that_go_one_way_arrive_in_the_closed_loop_only() {
    let at = |step: u16| one(&[0.5 + 1e-4 * f32::from(step), 0.25 - 3e-4 * f32::from(step)]);
    let steps: Vec<_> = (0..40).map(at).collect();
    let (open_loop, report) = published(Method::P1, &steps);
    assert_eq!(bits(&open_loop[39]), bits(&open_loop[0]), "no weight has moved");
    assert!(report.steps[39].max_error.unwrap() > 0.011);
    let errors: Vec<f64> = report.steps.iter().map(|step| step.max_error.unwrap()).collect();
    assert!(errors[1..].is_sorted(), "errors add up");
    let (closed_loop, report) = corrected(Method::P1.rule(), &steps);
    assert!(report.steps.iter().all(|step| step.max_error.unwrap() < 1e-3));
    assert!(farthest(&closed_loop[39], &values(&open(&steps[39]), "weight")) < 1e-3);
}

#[test]
fn the_first_checkpoint_survives_where_it_is_not_thresholded() {
    let small = [2e-4, -9e-4, 1e-5, 0.5];
    let steps = [one(&small), one(&small)];
    assert_eq!(published(Method::P1, &steps).0[0], [0.0, 0.0, 0.0, 0.5]);
    assert_eq!(bits(&corrected(Method::P1.rule(), &steps).0[0]), bits(&small));
}

#[test]
fn what_is_kept_is_exact_though_differences_of_singles_are_not() {
    let (before, after) = ([1e8, 3.0, -0.0], [0.1, 3.000_000_2, 0.25]);
    let steps = [one(&before), one(&after)];
    let (rounded, _) = published(Method::P1, &steps);
    assert_eq!(rounded[1][0], 0.0, "1e8 + (0.1 - 1e8)");
    assert_eq!(bits(&corrected(Rule::Fixed(0.0), &steps).0[1]), bits(&after));
    assert_eq!(corrected(Method::P1.rule(), &steps).0[1][0].to_bits(), 0.1f32.to_bits());
}

#[test]
fn what_is_no_number_is_exact() {
    let strange = [f32::NAN, f32::INFINITY, -0.0, f32::from_bits(0x7fa0_0001), 1e-42];
    for (first, second) in [([0.0; 5], strange), (strange, [1.0; 5]), (strange, strange)] {
        let steps = [one(&first), one(&second)];
        assert_eq!(bits(&corrected(Rule::Fixed(0.0), &steps).0[1]), bits(&second));
        let (bounded, _) = corrected(Rule::Quantile(0.9), &steps);
        assert_eq!(bounded[1][0].is_nan(), second[0].is_nan());
        assert_eq!(bounded[1][1].to_bits(), second[1].to_bits());
        published(Method::P3Plus, &steps);
        published(Method::P3First, &steps);
    }
}

#[test]
fn tied_tensors_are_stored_once_and_counted_twice_by_the_published_forms() {
    let mut random = Random::new(7);
    let first = random.weights(4000);
    let second: Vec<f32> = first.iter().map(|w| w + 4e-3 * random.normal()).collect();
    let alone = [one(&first), one(&second)];
    let twice = |v: &[f32]| vec![weights("tied", &[4000], v), weights("weight", &[4000], v)];
    let tied = [twice(&first), twice(&second)];
    let bytes = |report: &RowReport| report.steps[1].out_bytes;
    let (once, both) = (published(Method::P1, &alone).1, published(Method::P1, &tied).1);
    assert!(bytes(&both) + 10 >= 2 * bytes(&once));
    let (once, both) = (corrected(Rule::Fixed(1e-3), &alone), corrected(Rule::Fixed(1e-3), &tied));
    assert!(bytes(&both.1) < bytes(&once.1) + 120);
    assert_eq!(bits(&both.0[1]), bits(&once.0[1]));
}

#[test]
fn state_of_the_optimiser_is_left_out_by_the_published_forms_and_exact_in_the_corrected() {
    let state = |scale: f32| {
        let values: Vec<f32> = (1..=64u16).map(|i| scale * f32::from(i) * 1e-9).collect();
        vec![weights("optimizer.exp_avg_sq.weight", &[64], &values), weights("weight", &[2], &[scale, 1.0])]
    };
    let steps = [state(1.0), state(1.5)];
    let name = "optimizer.exp_avg_sq.weight";
    let (_, report) = run(Row::Published(Method::P1), &steps, name);
    assert_eq!((report.steps[1].left_out_bytes, report.steps[1].in_bytes), (256, 8));
    let (exact, report) = run(Row::Corrected("test".to_owned(), Method::P1.rule()), &steps, name);
    assert_eq!(bits(&exact[1]), bits(&values(&open(&steps[1]), name)));
    assert_eq!(report.steps[1].left_out_bytes, 0);
}

#[test]
fn total_ratios_are_not_means_of_ratios() {
    let first = Random::new(3).weights(3000);
    let steps = [one(&first), one(&first)];
    let (_, report) = published(Method::P1, &steps);
    let [a, b] = [0, 1].map(|i| report.steps[i].ratio());
    assert!((report.mean_ratio - (a + b) / 2.0).abs() < 1e-9);
    assert!(report.ratio < 3.0 && report.mean_ratio > 20.0, "{} {}", report.ratio, report.mean_ratio);
}

/// BF16 weights of two layers that drift, a tensor of integers, and optimiser state.
fn training(count: u64) -> Vec<Vec<Tensor>> {
    let mut random = Random::new(11);
    let mut master = random.weights(6000);
    let mut steps = Vec::new();
    for step in 0..count {
        let second: Vec<f32> = master.iter().map(|w| w * w * 1e-4).collect();
        steps.push(vec![
            tensor("a", "BF16", &[40, 100], bf16_bytes(&master[..4000])),
            tensor("b", "BF16", &[2000], bf16_bytes(&master[4000..])),
            tensor("c", "I64", &[1], step.to_le_bytes().to_vec()),
            weights("exp_avg_sq.a", &[4000], &second[..4000]),
        ]);
        master.iter_mut().for_each(|w| *w += 3e-4 * random.normal());
    }
    steps
}

/// Writes the corrected series of `rule` to a new folder, with the steps in `test`.
fn write(rule: Rule, steps: &[Vec<Tensor>], threads: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let rows = vec![Row::Corrected("test".to_owned(), rule)];
    let mut laboratory = Laboratory::new(rows, Some(&folder.path().join("out")), threads).unwrap();
    for (number, step) in (5..).zip(steps) {
        laboratory.push(number, &open(step), &Silent).unwrap();
    }
    assert!(!folder.path().join("out").exists(), "it appears when it is whole");
    laboratory.finish().unwrap();
    folder
}

fn path(folder: &tempfile::TempDir, file: &str) -> std::path::PathBuf {
    folder.path().join("out/test").join(file)
}

#[test]
fn files_are_verified_with_and_without_their_originals() {
    let steps = training(4);
    let folder = write(Rule::Fixed(5e-4), &steps, 1);
    let originals: Vec<Checkpoint> = steps.iter().map(|step| open(step)).collect();
    for originals in [&[][..], &originals] {
        let checks = verify_steps(&folder.path().join("out/test"), originals, &Silent).unwrap();
        assert_eq!(checks.iter().map(|check| check.step).collect::<Vec<_>>(), [5, 6, 7, 8]);
        assert_eq!(
            checks.iter().map(|check| check.lossless).collect::<Vec<_>>(),
            [true, false, false, false]
        );
        for check in &checks {
            assert_eq!(check.faults, [""; 0]);
            assert_eq!(check.max_error.is_some(), !originals.is_empty());
            assert!(check.bound < 5e-4 && check.max_error.is_none_or(|error| error <= check.bound));
        }
        assert!(checks[1].bound > 1e-4);
    }
    // The wrong originals are farther away than the bound allows.
    let mut others = originals;
    others.swap(2, 3);
    let checks = verify_steps(&folder.path().join("out/test"), &others, &Silent).unwrap();
    assert!(checks[0].faults.is_empty() && checks[1].faults.is_empty());
    assert!(checks[2].faults.iter().any(|fault| fault.contains("the bound is")), "{:?}", checks[2].faults);
    // The step after a missing one notices it.
    fs::remove_file(path(&folder, "step-00000006.lossy.loom")).unwrap();
    let checks = verify_steps(&folder.path().join("out/test"), &[], &Silent).unwrap();
    assert!(checks[1].faults[0].contains("is missing"));
}

#[test]
fn lossy_files_are_refused_where_something_exact_is_wanted() {
    let folder = write(Rule::Fixed(5e-4), &training(2), 1);
    let file = path(&folder, "step-00000006.lossy.loom");
    let limits = Limits::default();
    let is_lossy = |e: Error| match e {
        Error::InFile { source, .. } => matches!(*source, Error::Lossy),
        _ => false,
    };
    assert!(is_lossy(deltaloom::Container::open(&file, &limits).err().unwrap()));
    assert!(is_lossy(Checkpoint::open(&file, &limits).err().unwrap()));
    assert!(is_lossy(deltaloom::Bases::open(&[file], &limits).err().unwrap()));
    assert!(LossyFile::open(&path(&folder, "step-00000005.loom"), &limits).is_err());
}

#[test]
fn the_same_bytes_come_from_any_number_of_threads() {
    let steps = training(3);
    for rule in [Rule::Quantile(0.7), Rule::Bytes(9000), Rule::Zone] {
        let [one, three] = [1, 3].map(|threads| write(rule, &steps, threads));
        for file in ["step-00000005.loom", "step-00000006.lossy.loom", "step-00000007.lossy.loom"] {
            assert!(fs::read(path(&one, file)).unwrap() == fs::read(path(&three, file)).unwrap(), "{file}");
        }
    }
}

#[test]
fn a_target_size_is_met_and_used() {
    let mut steps = training(3);
    steps.iter_mut().for_each(|step| step.truncate(2));
    let sizes = |target| {
        let folder = write(Rule::Bytes(target), &steps, 1);
        [6, 7].map(|i| fs::metadata(path(&folder, &format!("step-0000000{i}.lossy.loom"))).unwrap().len())
    };
    let all = sizes(1 << 20);
    for target in [2000, 3000, 4000] {
        assert!(all.iter().all(|size| *size > target));
        assert!(
            sizes(target).iter().all(|size| (target * 3 / 4..=target).contains(size)),
            "{target}: {:?}",
            sizes(target)
        );
    }
}

#[test]
fn every_changed_byte_and_every_cut_is_noticed_without_panic() {
    let mut steps = training(2);
    steps.iter_mut().for_each(|step| {
        step[0] = tensor("a", "BF16", &[30], step[0].bytes[..60].to_vec());
        step.truncate(1);
    });
    let folder = write(Rule::Fixed(1e-4), &steps, 1);
    let file = path(&folder, "step-00000006.lossy.loom");
    let (bytes, first) = (fs::read(&file).unwrap(), open(&steps[0]));
    let broken = folder.path().join("broken");
    let is_noticed = |bytes: &[u8]| {
        fs::write(&broken, bytes).unwrap();
        match LossyFile::open(&broken, &Limits::default()) {
            Ok(file) => !verify(&file, &first, None, &Silent).unwrap().faults.is_empty(),
            Err(_) => true,
        }
    };
    assert!(!is_noticed(&bytes));
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(is_noticed(&changed), "byte {at}");
        assert!(is_noticed(&bytes[..at]), "cut at {at}");
    }
}

#[test]
fn steps_come_in_order() {
    let mut laboratory = Laboratory::new(vec![Row::Exact], None, 1).unwrap();
    let step = open(&one(&[1.0]));
    laboratory.push(4, &step, &Silent).unwrap();
    assert!(matches!(laboratory.push(4, &step, &Silent), Err(Error::InvalidArgument(_))));
}

#[test]
fn threshold_methods_have_no_place_for_a_tail() {
    let weights = safetensors(&[tensor("w", "F32", &[2, 2], vec![0; 16])]);
    let mut laboratory = Laboratory::new(vec![Row::Exact], None, 1).unwrap();
    let with = checkpoint(&[&weights[..], b"tail"].concat()).unwrap();
    let Err(Error::InvalidArgument(why)) = laboratory.push(1, &with, &Silent) else { panic!() };
    assert!(why.contains("model.safetensors"), "{why}");
    laboratory.push(1, &checkpoint(&weights).unwrap(), &Silent).unwrap();
}
