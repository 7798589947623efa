//! PyTorch archives, as the Trainer writes them, are packed tensor by tensor and come back byte for
//! byte: in a folder, alone, in a series, and against safetensors files.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use deltaloom::checkpoint::{Checkpoint, Contents};
use deltaloom::series::{AddOptions, Directory, NewStep, Part, Series, SeriesOptions};
use deltaloom::{Bases, Container, Limits, PackReport, Silent, UnpackOptions, Verifiable};

fn step(number: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../assets/trainer/step-{number}"))
}

fn open_path(path: &Path) -> Checkpoint {
    Checkpoint::open(path, &Limits::default()).unwrap()
}

fn open_bases(paths: &[PathBuf]) -> Bases {
    Bases::open(paths, &Limits::default()).unwrap()
}

/// Packs and restores a file or folder, and compares them.
fn roundtrip_path(path: &Path, against: &[PathBuf]) -> (Vec<u8>, PackReport) {
    let bases = open_bases(against);
    let mut container = Vec::new();
    let report = deltaloom::pack_to(&open_path(path), &bases, &mut container, &options(), &Silent).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("restored");
    let resolved = resolve(&container, &bases).unwrap();
    deltaloom::unpack(&resolved, &target, &UnpackOptions::default(), &Silent).unwrap();
    if path.is_dir() {
        assert!(tree(&target) == tree(path));
    } else {
        assert!(std::fs::read(&target).unwrap() == std::fs::read(path).unwrap());
        let mut stream = Vec::new();
        deltaloom::unpack_to(&resolved, &mut stream, &one_thread(), &Silent).unwrap();
        assert!(stream == std::fs::read(path).unwrap());
    }
    let verified = deltaloom::verify(&Verifiable::Resolved(&resolved), 1, &Silent).unwrap();
    assert_eq!(verified.faults, [""; 0]);
    (container, report)
}

/// The tensors of an archive as a safetensors file.
fn as_safetensors(path: &Path) -> Vec<u8> {
    let checkpoint = open_path(path);
    let tensors: Vec<Tensor> = checkpoint
        .typed()
        .map(|(member, info)| {
            let bytes = checkpoint.read_tensor(member, info).unwrap();
            tensor(&info.name, info.dtype.name(), &info.shape, bytes)
        })
        .collect();
    safetensors(&tensors)
}

#[test]
fn a_step_of_the_trainer_comes_back_and_its_moments_are_tensors() {
    let checkpoint = open_path(&step(11));
    assert_eq!(checkpoint.unread_files(), []);
    let names: Vec<&str> = checkpoint.typed().map(|(_, info)| info.name.as_str()).collect();
    for name in ["model.norm.weight", "state.0.exp_avg", "state.0.exp_avg_sq", "state.9.step", "cpu"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    let is_framed = |path: &str| {
        let member = checkpoint.members.iter().find(|member| member.path == path);
        matches!(member.unwrap().contents, Contents::Framed(_))
    };
    assert!(is_framed("optimizer.pt") && is_framed("rng_state.pth"));
    assert!(!is_framed("scheduler.pt"), "it has no tensors");
    let (container, alone) = roundtrip_path(&step(11), &[]);
    assert_eq!(container[8], 4);
    let (_, second) = roundtrip_path(&step(12), &[step(11)]);
    assert!(second.packed_bytes < alone.packed_bytes);
    let moments = second.tensors.iter().find(|tensor| tensor.name == "state.3.exp_avg_sq").unwrap();
    assert_eq!(moments.predictor, "adam");
}

#[test]
fn an_archive_costs_little_more_than_its_tensors_in_a_safetensors_file() {
    let [old, new] = [11, 12].map(|number| as_safetensors(&step(number).join("optimizer.pt")));
    let (plain, _) = pack(&new, &[&old]);
    let (archive, _) = roundtrip_path(&step(12).join("optimizer.pt"), &[step(11).join("optimizer.pt")]);
    assert!(archive.len() * 10 <= plain.len() * 11, "{} and {}", archive.len(), plain.len());
    // Names and contents decide, not kinds of files.
    let folder = tempfile::tempdir().unwrap();
    write_tree(folder.path(), &[("old.safetensors", old), ("new.safetensors", new)]);
    let path = |name: &str| folder.path().join(name);
    let (mixed, _) = roundtrip_path(&step(12).join("optimizer.pt"), &[path("old.safetensors")]);
    assert!(mixed.len() * 10 <= plain.len() * 12, "{} and {}", mixed.len(), plain.len());
    let (mixed, _) = roundtrip_path(&path("new.safetensors"), &[step(11).join("optimizer.pt")]);
    assert!(mixed.len() * 10 <= plain.len() * 11, "{} and {}", mixed.len(), plain.len());
}

#[test]
fn tensors_of_an_archive_are_read_one_by_one_and_compared() {
    let (old, new) = (step(11).join("optimizer.pt"), step(12).join("optimizer.pt"));
    let (container, _) = roundtrip_path(&new, std::slice::from_ref(&old));
    let resolved = resolve(&container, &open_bases(std::slice::from_ref(&old))).unwrap();
    let checkpoint = open_path(&new);
    let (member, info) = checkpoint.typed().find(|(_, info)| info.name == "state.2.exp_avg").unwrap();
    let mut bytes = Vec::new();
    deltaloom::read_tensor(&resolved, &info.name, .., &mut bytes).unwrap();
    assert!(bytes == checkpoint.read_tensor(member, info).unwrap());
    let in_memory = checkpoint.clone().into_memory().unwrap();
    assert!(in_memory.in_memory(member, info) == Some(&bytes));
    assert_eq!(in_memory.in_memory(0, &in_memory.members[0].tensors[0]), None, "the frame is in pieces");
    let report = deltaloom::diff(&open_bases(&[old]), &open_bases(&[new]), 1, &Silent).unwrap();
    assert_eq!((report.total.only_a.tensors, report.total.only_b.tensors), (0, 0));
    // A container of an archive is a base like any other.
    let folder = tempfile::tempdir().unwrap();
    write_tree(folder.path(), &[("step.loom", container)]);
    let path = folder.path().join("step.loom");
    let (again, _) = roundtrip_path(&step(12).join("optimizer.pt"), &[path, step(11).join("optimizer.pt")]);
    assert!(again.len() < 8000, "{}", again.len());
}

#[test]
fn what_cannot_be_read_is_stored_as_it_is_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut broken = std::fs::read(step(11).join("optimizer.pt")).unwrap();
    let protocol = broken.windows(3).position(|bytes| bytes == b"\x80\x02}").unwrap();
    broken[protocol + 1] = 5;
    write_tree(
        folder.path(),
        &[("step/optimizer.pt", broken.clone()), ("step/old.bin", b"\x80\x02}q\0.".to_vec())],
    );
    let (container, report) = roundtrip_path(&folder.path().join("step"), &[]);
    assert_eq!((container[8], report.tensors.len()), (3, 2));
    let unread = open_path(&folder.path().join("step")).unread_files();
    let why: Vec<_> = unread.iter().map(|file| (file.path.as_str(), file.why.as_deref())).collect();
    let fault = "a pickle of protocol 5, not 2";
    assert_eq!(why, [("old.bin", None), ("optimizer.pt", Some(fault))]);
    let alone = Checkpoint::open(&folder.path().join("step/optimizer.pt"), &Limits::default());
    assert!(alone.err().unwrap().to_string().ends_with("optimizer.pt"));
}

#[test]
fn a_container_may_need_a_whole_archive_as_it_was_before_it_could_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let bytes = |number: u32| std::fs::read(step(number).join("optimizer.pt")).unwrap();
    write_tree(folder.path(), &[("old/optimizer.pt", bytes(11)), ("new/optimizer.pt", bytes(12))]);
    // Such a reader is one whose limits allow no directory.
    let mut limits = Limits::default();
    limits.header_bytes = 10;
    let new = Checkpoint::open(&path("new"), &limits).unwrap();
    let bases = Bases::open(&[path("old")], &limits).unwrap();
    let report = deltaloom::pack(&new, &bases, &path("packed.loom"), &options(), &Silent).unwrap();
    assert_eq!(predictors(&report), [("optimizer.pt", "reference")].into());

    let container = Container::open(&path("packed.loom"), &Limits::default()).unwrap();
    let resolved = deltaloom::ResolvedContainer::new(container, &open_bases(&[path("old")])).unwrap();
    deltaloom::unpack(&resolved, &path("back"), &UnpackOptions::default(), &Silent).unwrap();
    assert!(tree(&path("back")) == tree(&path("new")));
}

#[test]
fn a_folder_with_archives_is_a_step_of_a_series() {
    let folder = tempfile::tempdir().unwrap();
    let store = Box::new(Directory::new(&folder.path().join("series")));
    let series = Series::init(store, &SeriesOptions::default()).unwrap();
    for number in [11, 12] {
        let new = NewStep::new(step(number)).with_step(Some(number.into()));
        series.add(&new, &AddOptions::default().with_pack(options()), &Silent).unwrap();
    }
    for number in [11, 12] {
        let target = folder.path().join(format!("restored-{number}"));
        series.extract(number.into(), Part::Model, &target, &one_thread(), &Silent).unwrap();
        assert!(tree(&target) == tree(&step(number)));
    }
    assert_eq!(series.verify(true, 1, &Silent).unwrap().faults, [""; 0]);
    // Added again, the step is known by its content.
    let again = NewStep::new(step(12)).with_step(Some(12));
    assert!(!series.add(&again, &AddOptions::default().with_pack(options()), &Silent).unwrap().is_new);
    let records = series.records(&series.last(2).unwrap(), &Silent).unwrap();
    let names: Vec<&str> = records[1].tensors.iter().map(|tensor| &*tensor.name).collect();
    assert!(names.contains(&"model.norm.weight"), "{names:?}");
    assert!(names.iter().all(|name| name.starts_with("model.")), "only weights count: {names:?}");
}
