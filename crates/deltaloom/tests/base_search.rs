//! The best base in a folder of files: which files are compared, chosen and refused.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::Path;

use common::{Random, bf16_bytes, f32_bytes, safetensors, stepped, tensor, write_tree};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{BaseSearch, Bases, Error, ErrorKind, Limits, PackOptions, Silent, find_base, pack};

const ELEMS: usize = 30_000;

fn weights(seed: u64) -> Vec<f32> {
    Random::new(seed).weights(ELEMS)
}

/// A model of two matrices and a norm.
fn model(prefix: &str, values: &[f32]) -> Vec<u8> {
    let name = |tail: &str| format!("{prefix}{tail}");
    safetensors(&[
        tensor(&name("up.weight"), "BF16", &[100, 200], bf16_bytes(&values[..20_000])),
        tensor(&name("down.weight"), "BF16", &[100, 90], bf16_bytes(&values[20_000..29_000])),
        tensor(&name("norm.weight"), "BF16", &[1000], bf16_bytes(&values[29_000..])),
    ])
}

/// Values that moved slightly.
fn tuned(values: &[f32], size: f32) -> Vec<f32> {
    let mut random = Random::new(99);
    values.iter().map(|value| value + size * random.normal()).collect()
}

fn search(folder: &Path, checkpoint: &str, exclude: &[&str]) -> BaseSearch {
    let limits = Limits::default();
    let checkpoint = Checkpoint::open(&folder.join(checkpoint), &limits).unwrap();
    let exclude: Vec<_> = exclude.iter().map(|name| folder.join(name)).collect();
    let exclude: Vec<&Path> = exclude.iter().map(std::path::PathBuf::as_path).collect();
    find_base(&checkpoint, &folder.join("models"), &exclude, &limits, 1, &Silent).unwrap()
}

/// Paths of the candidates below the folder, best first.
fn order(folder: &Path, found: &BaseSearch) -> Vec<String> {
    let below = |path: &String| {
        let relative = Path::new(path).strip_prefix(folder.join("models")).unwrap();
        relative.to_str().unwrap().replace('\\', "/")
    };
    found.report.candidates.iter().map(|candidate| below(&candidate.path)).collect()
}

#[test]
fn the_nearest_is_chosen_wherever_it_is_and_whatever_its_prefix() {
    let folder = tempfile::tempdir().unwrap();
    let base = weights(1);
    let near = tuned(&base, 1e-4);
    write_tree(
        folder.path(),
        &[
            ("tuned.safetensors", model("", &tuned(&near, 2e-5))),
            ("models/a/other.safetensors", model("", &weights(2))),
            ("models/base.safetensors", model("", &base)),
            ("models/deep/er/near.safetensors", model("model.", &near)),
            ("models/notes.txt", b"not weights".to_vec()),
            ("models/small.safetensors", safetensors(&[tensor("x", "F32", &[4], vec![0; 16])])),
            ("models/broken.safetensors", b"not safetensors at all".to_vec()),
            ("models/.hidden.safetensors", model("", &near)),
        ],
    );
    let found = search(folder.path(), "tuned.safetensors", &[]);
    let ordered = order(folder.path(), &found);
    assert_eq!(ordered[..2], ["deep/er/near.safetensors", "base.safetensors"]);
    assert_eq!(ordered.len(), 4);
    let [near, base, others @ ..] = &found.report.candidates[..] else { panic!("too few") };
    assert!(near.estimated_ratio > base.estimated_ratio && base.estimated_ratio > found.report.alone_ratio);
    assert_eq!((near.matched_fraction, near.identical_fraction), (1.0, 0.0));
    assert!(others.iter().all(|other| other.estimated_changed_saving < 0.02), "{others:?}");
    let [skipped] = &found.report.skipped[..] else { panic!("{:?}", found.report.skipped) };
    assert!(skipped.path.ends_with("broken.safetensors"));
    assert_eq!(found.report.chosen.as_deref(), Some(near.path.as_str()));

    // The estimates are close to what packing gives.
    let estimated = near.estimated_ratio;
    let bases = found.into_bases(folder.path()).unwrap();
    let checkpoint = Checkpoint::open(&folder.path().join("tuned.safetensors"), &Limits::default()).unwrap();
    let target = folder.path().join("tuned.loom");
    let report = pack(&checkpoint, &bases, &target, &PackOptions::default(), &Silent).unwrap();
    assert!((0.7..1.3).contains(&(estimated / report.ratio)), "{estimated} {}", report.ratio);
    assert_eq!(report.tensors[0].reference.as_deref(), Some("model.up.weight"));
}

#[test]
fn a_base_whose_tensors_have_other_names_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let base = weights(1);
    let file = |values: &[f32], names: [&str; 4]| {
        let part = values.len() / 4;
        let tensor_of = |(values, name): (&[f32], &str)| tensor(name, "BF16", &[20, 375], bf16_bytes(values));
        safetensors(&values.chunks(part).zip(names).map(tensor_of).collect::<Vec<_>>())
    };
    let names = ["layers.0.w", "layers.1.w", "layers.2.w", "layers.3.w"];
    write_tree(
        folder.path(),
        &[
            ("tuned.safetensors", file(&tuned(&base, 1e-4), names)),
            ("models/moved.safetensors", file(&base, ["q", "c", "x", "a"])),
            ("models/other.safetensors", file(&weights(2), names)),
        ],
    );
    let found = search(folder.path(), "tuned.safetensors", &[]);
    assert_eq!(order(folder.path(), &found)[0], "moved.safetensors");
    assert_eq!(found.report.candidates[0].matched_fraction, 1.0);
    let bases = found.into_bases(folder.path()).unwrap();
    let checkpoint = Checkpoint::open(&folder.path().join("tuned.safetensors"), &Limits::default()).unwrap();
    let target = folder.path().join("tuned.loom");
    let report = pack(&checkpoint, &bases, &target, &PackOptions::default(), &Silent).unwrap();
    assert!(report.tensors.iter().all(|tensor| tensor.predictor == "reference"));
}

#[test]
fn a_base_of_another_dtype_or_shape_is_found() {
    let base = weights(21);
    let near = tuned(&base, 2e-5);
    let rounded = bf16_bytes(&near);
    let widened: Vec<u8> = rounded.as_chunks().0.iter().flat_map(|[a, b]| [0, 0, *a, *b]).collect();
    let of = |dtype: &str, shape: &[u64], bytes: Vec<u8>| safetensors(&[tensor("w", dtype, shape, bytes)]);
    for (case, file) in [
        ("rounded", of("BF16", &[100, 300], rounded.clone())),
        ("widened", of("F32", &[100, 300], widened)),
        ("reshaped", of("BF16", &[30_000], rounded)),
    ] {
        for (dtype, bytes) in [("BF16", bf16_bytes(&base)), ("F32", f32_bytes(&base))] {
            let folder = tempfile::tempdir().unwrap();
            let models = [
                ("tuned.safetensors", file.clone()),
                ("models/base.safetensors", of(dtype, &[100, 300], bytes)),
                ("models/other.safetensors", of("BF16", &[100, 300], bf16_bytes(&weights(22)))),
            ];
            write_tree(folder.path(), &models);
            let found = search(folder.path(), "tuned.safetensors", &[]);
            assert_eq!(order(folder.path(), &found)[0], "base.safetensors", "{case} from {dtype}");
            assert!(found.into_bases(folder.path()).is_ok(), "{case} from {dtype}");
        }
    }
}

#[test]
fn independent_weights_are_no_base_even_with_equal_constants() {
    let folder = tempfile::tempdir().unwrap();
    // An eighth of the bytes is a constant that any model may have.
    let with_constant = |seed| {
        let constant: Vec<f32> = (0..ELEMS / 8).map(|i| f32::from(u16::try_from(i).unwrap()).sin()).collect();
        safetensors(&[
            tensor("basis", "F32", &[constant.len() as u64], f32_bytes(&constant)),
            tensor("weight", "F32", &[150, 200], f32_bytes(&weights(seed))),
        ])
    };
    let files = [("tuned.safetensors", 1), ("models/a.safetensors", 2), ("models/b.safetensors", 3)];
    write_tree(folder.path(), &files.map(|(name, seed)| (name, with_constant(seed))));
    let found = search(folder.path(), "tuned.safetensors", &[]);
    assert_eq!(found.report.chosen, None);
    for candidate in &found.report.candidates {
        assert!((0.1..0.13).contains(&candidate.identical_fraction), "{candidate:?}");
        assert!(candidate.estimated_saving > 0.02 && candidate.estimated_changed_saving < 0.02);
    }
    match found.into_bases(folder.path()) {
        Err(e @ Error::NoUsefulBase { candidates: 2, .. }) => assert_eq!(e.kind(), ErrorKind::NoUsefulBase),
        _ => panic!("two independent models were taken for bases"),
    }
    std::fs::remove_dir_all(folder.path().join("models")).unwrap();
    std::fs::create_dir(folder.path().join("models")).unwrap();
    assert!(search(folder.path(), "tuned.safetensors", &[]).report.candidates.is_empty());
}

#[test]
fn the_checkpoint_itself_and_the_output_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let base = weights(1);
    let near = model("", &tuned(&base, 1e-4));
    let files = ["models/tuned.safetensors", "models/out.safetensors", "models/copy.safetensors"];
    write_tree(folder.path(), &files.map(|name| (name, near.clone())));
    let found = search(folder.path(), "models/tuned.safetensors", &["models/out.safetensors", "nothing"]);
    assert_eq!(order(folder.path(), &found), ["copy.safetensors"]);
    assert_eq!(found.report.candidates[0].identical_fraction, 1.0);
    assert!(found.report.chosen.is_some());
}

#[cfg(unix)]
#[test]
fn links_are_followed_once() {
    let folder = tempfile::tempdir().unwrap();
    write_tree(
        folder.path(),
        &[("tuned.safetensors", model("", &weights(1))), ("blob", model("", &tuned(&weights(1), 1e-4)))],
    );
    let models = folder.path().join("models");
    std::fs::create_dir_all(models.join("sub")).unwrap();
    std::os::unix::fs::symlink("../../blob", models.join("sub/a.safetensors")).unwrap();
    std::os::unix::fs::symlink("../blob", models.join("b.safetensors")).unwrap();
    std::os::unix::fs::symlink("..", models.join("sub/loop")).unwrap();
    std::os::unix::fs::symlink("gone", models.join("gone.safetensors")).unwrap();
    let found = search(folder.path(), "tuned.safetensors", &[]);
    assert_eq!(found.report.candidates.len(), 1);
    assert!(found.report.chosen.is_some());
}

#[test]
fn shards_are_one_candidate_and_small_files_serve_too() {
    let folder = tempfile::tempdir().unwrap();
    let base = weights(1);
    let shard = |name: &str, values: &[f32]| {
        safetensors(&[tensor(name, "BF16", &[values.len() as u64], bf16_bytes(values))])
    };
    let moved = tuned(&base, 1e-4);
    let config = b"{\"model_type\": \"llama\"}".repeat(50);
    write_tree(
        folder.path(),
        &[
            ("tuned/model-00001-of-00002.safetensors", shard("a", &moved[..10_000])),
            ("tuned/model-00002-of-00002.safetensors", shard("b", &moved[10_000..])),
            ("tuned/config.json", config.clone()),
            ("models/m/model-00001-of-00003.safetensors", shard("a", &base[..10_000])),
            ("models/m/model-00002-of-00003.safetensors", shard("b", &base[10_000..])),
            ("models/m/model-00003-of-00003.safetensors", shard("c", &base[..100])),
            ("models/m/config.json", config),
            ("models/m/checkpoint-5/one.safetensors", shard("a", &base[..10_000])),
        ],
    );
    let found = search(folder.path(), "tuned", &[]);
    assert_eq!(order(folder.path(), &found), ["m", "m/checkpoint-5/one.safetensors"]);
    assert_eq!(found.report.candidates[0].matched_fraction, 1.0);
    let bases = found.into_bases(folder.path()).unwrap();
    let checkpoint = Checkpoint::open(&folder.path().join("tuned"), &Limits::default()).unwrap();
    let target = folder.path().join("tuned.loom");
    let report = pack(&checkpoint, &bases, &target, &PackOptions::default(), &Silent).unwrap();
    let config = report.tensors.iter().find(|tensor| tensor.name == "config.json").unwrap();
    assert_eq!(config.predictor, "identical");
}

#[test]
fn containers_take_part_when_all_they_rest_on_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::default();
    let bytes = bf16_bytes(&weights(1));
    let file = |bytes: &[u8]| safetensors(&[tensor("weight", "BF16", &[ELEMS as u64], bytes.to_vec())]);
    let mut random = Random::new(5);
    let mut step = |bytes: &[u8]| stepped(bytes, 2, |_| i64::from(random.below(20) == 0));
    let first = step(&bytes);
    let second = step(&first);
    let third = step(&second);
    write_tree(
        folder.path(),
        &[
            ("models/base.safetensors", file(&bytes)),
            ("first.safetensors", file(&first)),
            ("second.safetensors", file(&second)),
            ("third.safetensors", file(&third)),
        ],
    );
    let path = |name: &str| folder.path().join(name);
    let pack_against = |name: &str, against: &[&str], target: &str| {
        let against: Vec<_> = against.iter().map(|name| path(name)).collect();
        let checkpoint = Checkpoint::open(&path(name), &limits).unwrap();
        let bases = Bases::open(&against, &limits).unwrap();
        pack(&checkpoint, &bases, &path(target), &PackOptions::default(), &Silent).unwrap();
    };
    pack_against("first.safetensors", &["models/base.safetensors"], "models/z.loom");
    pack_against("second.safetensors", &["models/base.safetensors", "models/z.loom"], "models/a.loom");
    pack_against("second.safetensors", &["first.safetensors"], "orphan.loom");
    std::fs::rename(path("orphan.loom"), path("models/orphan.loom")).unwrap();
    let found = search(folder.path(), "third.safetensors", &[]);
    // `orphan` needs tensors that z.loom holds.
    let ordered = order(folder.path(), &found);
    assert_eq!(ordered.len(), 4);
    assert_eq!(ordered[2..], ["z.loom", "base.safetensors"]);
    let best = &found.report.candidates[0];
    assert_eq!(
        best.needs,
        [path("models/base.safetensors"), path("models/z.loom")].map(|p| p.display().to_string())
    );
    // The bases that it needs are enough to open it as a base.
    let all: Vec<_> = std::iter::once(&best.path).chain(&best.needs).map(std::path::PathBuf::from).collect();
    Bases::open(&all, &limits).unwrap();
    let checkpoint = Checkpoint::open(&path("third.safetensors"), &limits).unwrap();
    let bases = found.into_bases(folder.path()).unwrap();
    let report = pack(&checkpoint, &bases, &path("third.loom"), &PackOptions::default(), &Silent).unwrap();
    assert!(report.ratio > 10.0, "{}", report.ratio);

    std::fs::remove_file(path("models/base.safetensors")).unwrap();
    let found = search(folder.path(), "third.safetensors", &[]);
    assert!(found.report.candidates.is_empty());
    assert_eq!(found.report.skipped.len(), 3);
}
