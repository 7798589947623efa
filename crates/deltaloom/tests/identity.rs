//! What a container says about itself: the names of its bases, what they cost, how the bases are
//! found, and hostile forms of it.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{
    Bases, Container, Error, FoundBases, Limits, NamedBase, PackOptions, PackReport, ResolvedContainer,
    Silent, Texts, find_needed_bases,
};

fn model(seed: u64, step: i64) -> Vec<Tensor> {
    let mut rng = Random::new(seed);
    let (large, small) = (bf16_bytes(&rng.weights(6000)), f32_bytes(&rng.weights(30)));
    let large = stepped(&large, 2, |i| if i % 5 == 0 { step } else { 0 });
    vec![tensor("large.weight", "BF16", &[60, 100], large), tensor("norm.weight", "F32", &[30], small)]
}

fn named() -> PackOptions {
    options().with_identity(Some(Texts::new()))
}

fn pack(file: &[u8], bases: &Bases, options: &PackOptions) -> (Vec<u8>, PackReport) {
    let mut out = Vec::new();
    let checkpoint = checkpoint(file).unwrap();
    let report = deltaloom::pack_to(&checkpoint, bases, &mut out, options, &Silent).unwrap();
    (out, report)
}

fn inspect(container: &[u8]) -> PackReport {
    deltaloom::inspect(&open(container).unwrap())
}

fn names(report: &PackReport) -> Vec<&str> {
    report.bases.iter().map(|base| base.name.as_str()).collect()
}

/// Bases on disk, opened by the supplied paths.
fn open_bases(folder: &Path, files: &[(&str, Vec<u8>)]) -> Bases {
    write_tree(folder, files);
    let paths: Vec<PathBuf> = files.iter().map(|(name, _)| folder.join(name)).collect();
    Bases::open(&paths, &Limits::default()).unwrap()
}

#[test]
fn a_container_without_identity_and_tail_is_of_version_3_and_has_the_same_bytes() {
    let (base, tuned) = (safetensors(&model(1, 0)), safetensors(&model(1, 3)));
    let (plain, report) = pack(&tuned, &bases(&[&base]), &options());
    assert_eq!((plain[8], report.format_version, report.bases.len()), (3, 3, 0));
    // Without a base and a text, nothing is stored.
    assert_eq!(pack(&tuned, &Bases::default(), &named()).0, pack(&tuned, &Bases::default(), &options()).0);
    let (with, report) = pack(&tuned, &bases(&[&base]), &named());
    assert_eq!((with[8], report.format_version, report.bases.len(), report.needs_base), (4, 4, 1, true));
    assert!(with.len() > plain.len());
    assert!(unpack_with(&with, &bases(&[&base])).unwrap() == tuned);
    assert_eq!(inspect(&with).bases, report.bases);
}

#[test]
fn it_costs_at_most_48_bytes_beside_names_and_texts() {
    let demo = |name: &str| {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo").join(name)).unwrap()
    };
    let (base, other) = (demo("base.safetensors"), demo("ft_bf16.safetensors"));
    for name in
        ["b", "base.safetensors", "an-organisation/a-model-of-seven-billions@5f0b02c75b57c5855da9ae46"]
    {
        let mut bases = bases(&[&base]);
        bases.set_names([(Path::new("base-0"), name)]).unwrap();
        let size =
            |texts: &Texts| pack(&other, &bases, &options().with_identity(Some(texts.clone()))).0.len();
        let without = pack(&other, &bases, &options()).0.len();
        let with = size(&Texts::new());
        assert!(with <= without + 48 + name.len(), "{name}: {}", with - without);
        let text = Texts::from([("licence".to_owned(), "CC-BY-4.0, see the card".to_owned())]);
        assert!(size(&text) <= with + 12 + 30, "{name}: {}", size(&text) - with);
    }
}

#[test]
fn used_bases_are_named_in_the_order_given_and_all_if_none_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (model(1, 0), model(2, 0));
    let tuned = safetensors(&[model(1, 2).remove(0), model(2, 0).remove(1)]);
    let unrelated = safetensors(&[tensor("other", "F32", &[4], vec![1; 16])]);
    let files = [
        ("a/model.safetensors", safetensors(&first)),
        ("unrelated.safetensors", unrelated),
        ("b/model.safetensors", safetensors(&second)),
    ];
    let mut bases = open_bases(folder.path(), &files);
    // The paths are absolute, so only the last part is shown.
    let (_, report) = pack(&tuned, &bases, &named());
    assert_eq!(names(&report), ["model.safetensors"; 2]);
    assert_ne!(report.bases[0].digest, report.bases[1].digest);
    let path = folder.path().join("b/model.safetensors");
    bases.set_names([(path.as_path(), "org/second@1")]).unwrap();
    assert_eq!(names(&pack(&tuned, &bases, &named()).1), ["model.safetensors", "org/second@1"]);
    assert!(matches!(bases.set_names([(Path::new("x"), "x")]), Err(Error::InvalidArgument(_))));

    // A tensor that equals its reference uses a base too, and so does a rounded one.
    let identical = pack(&safetensors(&second), &bases, &named()).1;
    assert_eq!(names(&identical), ["org/second@1"]);
    let stranger = safetensors(&[tensor("stranger", "F64", &[8], Random::new(9).bytes(64))]);
    let (container, report) = pack(&stranger, &bases, &named());
    assert_eq!((names(&report).len(), report.needs_base), (3, false));
    assert!(unpack_with(&container, &Bases::default()).unwrap() == stranger);
}

#[test]
fn a_rounding_of_a_base_names_it() {
    let values = Random::new(3).weights(500);
    let base = safetensors(&[tensor("w", "F32", &[500], f32_bytes(&values))]);
    let tuned = safetensors(&[tensor("w", "BF16", &[500], bf16_bytes(&values))]);
    let (_, report) = pack(&tuned, &bases(&[&base]), &named());
    assert_eq!((report.tensors[0].predictor, names(&report)), ("cast", vec!["base-0"]));
}

/// The digest of a base, from a container that names it.
fn digest_in(folder: &Path, path: &str, tuned: &[u8]) -> NamedBase {
    let bases = Bases::open(&[folder.join(path)], &Limits::default()).unwrap();
    pack(tuned, &bases, &named()).1.bases.remove(0)
}

#[test]
fn the_digest_is_of_the_tensors_and_not_of_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let (base, tuned) = (model(1, 0), safetensors(&model(1, 5)));
    let [large, norm] = [0, 1].map(|i| safetensors(&base[i..=i]));
    let reversed: Vec<Tensor> = base.iter().rev().cloned().collect();
    write_tree(
        folder.path(),
        &[
            ("one.safetensors", safetensors(&base)),
            ("reversed.safetensors", safetensors(&reversed)),
            ("sharded/model-00001-of-00002.safetensors", norm),
            ("sharded/model-00002-of-00002.safetensors", large),
            ("sharded/config.json", b"{}".to_vec()),
            ("moved.safetensors", safetensors(&model(1, 1))),
            ("tailed.safetensors", [safetensors(&base), b"more".to_vec()].concat()),
        ],
    );
    let packed = folder.path().join("packed.loom");
    let checkpoint = Checkpoint::open(&folder.path().join("one.safetensors"), &Limits::default()).unwrap();
    deltaloom::pack(&checkpoint, &Bases::default(), &packed, &options(), &Silent).unwrap();
    let digest = |path: &str| digest_in(folder.path(), path, &tuned).digest;
    let one = digest("one.safetensors");
    for same in ["reversed.safetensors", "sharded", "packed.loom"] {
        assert_eq!(digest(same), one, "{same}");
    }
    for other in ["moved.safetensors", "tailed.safetensors"] {
        assert_ne!(digest(other), one, "{other}");
    }
    assert_eq!(one.to_string().len(), 32);
}

#[test]
fn errors_name_the_base_that_is_needed() {
    let (base, tuned) = (safetensors(&model(1, 0)), safetensors(&model(1, 3)));
    let mut given = bases(&[&base]);
    given.set_names([(Path::new("base-0"), "org/model@5f0b")]).unwrap();
    let (container, report) = pack(&tuned, &given, &named());
    let needed = format!("this container needs org/model@5f0b (digest {})", report.bases[0].digest);
    let message = |bases: &Bases| {
        let Err(fault) = ResolvedContainer::new(open(&container).unwrap(), bases) else { panic!() };
        let Error::InFile { source, .. } = fault else { panic!("{fault}") };
        source.to_string()
    };
    let without = message(&Bases::default());
    assert!(without.starts_with(&needed) && without.ends_with("no base was given"), "{without}");
    let wrong = message(&bases(&[&safetensors(&model(1, 1))]));
    assert!(wrong.starts_with(&needed) && wrong.contains("base-0 has"), "{wrong}");
    let foreign = message(&bases(&[&safetensors(&[tensor("x", "F32", &[1], vec![0; 4])])]));
    assert!(foreign.starts_with(&needed) && foreign.contains("large.weight"), "{foreign}");
    assert!(foreign.contains("base-0"), "{foreign}");
}

#[test]
fn impossible_names_and_texts_are_refused_before_anything_is_written() {
    let (base, tuned) = (safetensors(&model(1, 0)), safetensors(&model(1, 3)));
    let checkpoint = checkpoint(&tuned).unwrap();
    let try_with = |name: &str, texts: Texts| {
        let mut bases = bases(&[&base]);
        bases.set_names([(Path::new("base-0"), name)]).unwrap();
        let mut out = Vec::new();
        let options = options().with_identity(Some(texts));
        let answer = deltaloom::pack_to(&checkpoint, &bases, &mut out, &options, &Silent);
        assert_eq!(answer.is_err(), out.is_empty());
        answer.map(|_| ())
    };
    let text = |key: &str, text: &str| Texts::from([(key.to_owned(), text.to_owned())]);
    try_with(&"n".repeat(1024), text(&"k".repeat(256), "")).unwrap();
    for (name, texts) in [
        (String::new(), Texts::new()),
        ("n".repeat(1025), Texts::new()),
        ("n".to_owned(), text("", "x")),
        ("n".to_owned(), text(&"k".repeat(257), "x")),
    ] {
        assert!(matches!(try_with(&name, texts), Err(Error::InvalidArgument(_))));
    }
    let too_long = text("k", &"x".repeat(1 << 20));
    assert!(matches!(try_with("n", too_long), Err(Error::LimitExceeded { .. })));
}

fn search(
    folder: &Path,
    container: &[u8],
    given: Bases,
    tensor: Option<&str>,
) -> deltaloom::Result<FoundBases> {
    let path = folder.join("models/tuned.loom");
    let container = Container::from_source(&path, Box::new(container.to_vec()), &Limits::default()).unwrap();
    find_needed_bases(&container, tensor, given, &folder.join("models"), &Limits::default(), 2, &Silent)
}

/// Paths of the bases that were found, relative to the folder. Restoring the container with them
/// must work.
fn found(folder: &Path, container: &[u8], original: &[u8]) -> Vec<String> {
    let found = search(folder, container, Bases::default(), None).unwrap();
    assert!(unpack_with(container, &found.bases).unwrap() == original);
    let below = |path: &PathBuf| {
        path.strip_prefix(folder.join("models")).unwrap().to_str().unwrap().replace('\\', "/")
    };
    found.paths.iter().map(below).collect()
}

#[test]
fn the_base_is_found_among_siblings_that_share_what_is_small() {
    let folder = tempfile::tempdir().unwrap();
    let tuned = safetensors(&model(1, 9));
    let files: Vec<(String, Vec<u8>)> = (0..6)
        .map(|i| (format!("models/run/step{i}.safetensors"), safetensors(&model(1, i))))
        .chain([
            ("models/broken.safetensors".to_owned(), b"no model".to_vec()),
            ("models/other/model.safetensors".to_owned(), safetensors(&model(7, 0))),
        ])
        .collect();
    let files: Vec<(&str, Vec<u8>)> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    write_tree(folder.path(), &files);
    let base =
        Bases::open(&[folder.path().join("models/run/step4.safetensors")], &Limits::default()).unwrap();
    // With the digest, and with only the digests of tensors.
    for options in [named(), options()] {
        let (container, _) = pack(&tuned, &base, &options);
        assert_eq!(found(folder.path(), &container, &tuned), ["run/step4.safetensors"]);
    }
    let (container, _) = pack(&tuned, &base, &named());
    // If nothing is missing, nothing is searched.
    assert!(search(Path::new("/nowhere"), &container, base, None).unwrap().paths.is_empty());
    // A single tensor needs fewer bases.
    let norm = search(folder.path(), &container, Bases::default(), Some("norm.weight")).unwrap();
    assert_eq!(norm.paths.len(), 1);
    assert!(matches!(
        search(folder.path(), &container, Bases::default(), Some("nothing")),
        Err(Error::InFile { .. } | Error::NotFound { .. })
    ));

    std::fs::remove_file(folder.path().join("models/run/step4.safetensors")).unwrap();
    let Err(fault) = search(folder.path(), &container, Bases::default(), None) else { panic!() };
    let Error::BaseNotFound { needed, tensor, candidates, skipped, .. } = &fault else { panic!("{fault}") };
    assert!(needed.contains("step4.safetensors") && skipped.contains("broken.safetensors"), "{fault}");
    assert_eq!((tensor.as_str(), *candidates), ("large.weight", 7));
    let nowhere = search(Path::new("/nowhere"), &container, Bases::default(), None);
    assert!(matches!(nowhere, Err(Error::Io { .. })));
}

#[test]
fn bases_in_shards_under_other_names_and_in_containers_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let (base, tuned) = (model(1, 0), safetensors(&model(1, 9)));
    let (container, _) = pack(&tuned, &bases(&[&safetensors(&base)]), &named());
    write_tree(
        folder.path(),
        &[
            ("models/m/model-00001-of-00002.safetensors", safetensors(&base[..1])),
            ("models/m/model-00002-of-00002.safetensors", safetensors(&base[1..])),
        ],
    );
    assert_eq!(found(folder.path(), &container, &tuned), ["m"]);

    // Tensors with other names have another digest, but small tensors are found under any name.
    std::fs::remove_dir_all(folder.path().join("models")).unwrap();
    let renamed: Vec<Tensor> =
        base.iter().map(|t| Tensor { name: format!("model.{}", t.name), ..t.clone() }).collect();
    write_tree(folder.path(), &[("models/renamed.safetensors", safetensors(&renamed))]);
    assert_eq!(found(folder.path(), &container, &tuned), ["renamed.safetensors"]);

    // As a container that needs another one.
    std::fs::remove_dir_all(folder.path().join("models")).unwrap();
    let origin = safetensors(&model(1, 40));
    let chain = pack(&safetensors(&base), &bases(&[&origin]), &named()).0;
    write_tree(
        folder.path(),
        &[
            ("models/a/base.loom", chain),
            ("models/origin.safetensors", origin),
            ("models/bad.loom", vec![0; 99]),
        ],
    );
    assert_eq!(found(folder.path(), &container, &tuned), ["origin.safetensors", "a/base.loom"]);
    std::fs::remove_file(folder.path().join("models/origin.safetensors")).unwrap();
    let missing = search(folder.path(), &container, Bases::default(), None);
    assert!(matches!(missing, Err(Error::BaseNotFound { .. })));
}

#[cfg(unix)]
#[test]
fn a_cache_of_a_hub_is_searched_through_its_links() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (model(1, 0), model(1, 1));
    let tuned = safetensors(&model(1, 9));
    let repository = "models/hub/models--org--model";
    // Two revisions that share a shard, and links that form a cycle.
    write_tree(
        folder.path(),
        &[
            (&format!("{repository}/blobs/aa"), safetensors(&old[..1])),
            (&format!("{repository}/blobs/bb"), safetensors(&new[..1])),
            (&format!("{repository}/blobs/cc"), safetensors(&old[1..])),
        ],
    );
    let root = folder.path().join(repository);
    for (revision, first) in [("rev1", "aa"), ("rev2", "bb")] {
        let snapshot = root.join("snapshots").join(revision);
        std::fs::create_dir_all(&snapshot).unwrap();
        for (i, blob) in [(1, first), (2, "cc")] {
            let link = snapshot.join(format!("model-0000{i}-of-00002.safetensors"));
            std::os::unix::fs::symlink(format!("../../blobs/{blob}"), link).unwrap();
        }
        std::os::unix::fs::symlink("../..", snapshot.join("round")).unwrap();
    }
    for (revision, base) in [("rev1", old), ("rev2", new)] {
        let path = root.join("snapshots").join(revision);
        let given = Bases::open(
            &[path.join("model-00001-of-00002.safetensors"), path.join("model-00002-of-00002.safetensors")],
            &Limits::default(),
        )
        .unwrap();
        let name = format!("org/model@{revision}");
        assert_eq!(names(&pack(&tuned, &given, &named()).1), [name.as_str(); 2]);
        let mut whole = bases(&[&safetensors(&base)]);
        whole.set_names([(Path::new("base-0"), format!("org/model@{revision}").as_str())]).unwrap();
        let (container, _) = pack(&tuned, &whole, &named());
        let snapshot = format!("hub/models--org--model/snapshots/{revision}");
        assert_eq!(found(folder.path(), &container, &tuned), [snapshot]);
    }
}

#[test]
fn small_files_beside_a_base_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let files = |step: i64| {
        vec![
            ("model.safetensors", safetensors(&model(1, step))),
            ("config.json", b"{\"a\": 1}".repeat(9)),
            ("tokenizer/vocab.json", b"{\"b\": 2}".repeat(9)),
        ]
    };
    write_tree(&folder.path().join("models/base"), &files(0));
    write_tree(&folder.path().join("tuned"), &files(4));
    let base = Bases::open(&[folder.path().join("models/base")], &Limits::default()).unwrap();
    let tuned = Checkpoint::open(&folder.path().join("tuned"), &Limits::default()).unwrap();
    let mut container = Vec::new();
    deltaloom::pack_to(&tuned, &base, &mut container, &named(), &Silent).unwrap();
    let found = search(folder.path(), &container, Bases::default(), None).unwrap();
    ResolvedContainer::new(open(&container).unwrap(), &found.bases).unwrap();
    assert_eq!(found.paths, [folder.path().join("models/base/model.safetensors")]);
}
