//! Files of a folder that are new states of files of a base: tokenizers, configurations, logs and
//! code, of any length and with edits anywhere.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Bases, Container, Limits, PackReport, ResolvedContainer, Silent};

/// A folder with one file.
struct Folder {
    root: tempfile::TempDir,
    path: PathBuf,
}

impl Folder {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("model");
        write_tree(&path, &[(name, bytes.to_vec())]);
        Self { root, path }
    }

    fn open(&self) -> Checkpoint {
        Checkpoint::open(&self.path, &Limits::default()).unwrap()
    }

    fn container(&self) -> PathBuf {
        self.root.path().join("packed.loom")
    }

    /// Packs and restores it, on one thread and on three.
    fn pack(&self, bases: &[&Path]) -> PackReport {
        let bases: Vec<PathBuf> = bases.iter().map(|path| path.to_path_buf()).collect();
        let bases = Bases::open(&bases, &Limits::default()).unwrap();
        let pack = |threads| {
            let mut container = Vec::new();
            let options = options().with_threads(threads);
            let packed = deltaloom::pack_to(&self.open(), &bases, &mut container, &options, &Silent);
            (container, packed.unwrap())
        };
        let (container, report) = pack(1);
        assert!(pack(3).0 == container, "the number of threads shows");
        std::fs::write(self.container(), &container).unwrap();
        let resolved = resolve(&container, &bases).unwrap();
        let back = self.root.path().join("back");
        deltaloom::unpack(&resolved, &back, &one_thread(), &Silent).unwrap();
        assert!(tree(&back) == tree(&self.path));
        std::fs::remove_dir_all(back).unwrap();
        report
    }
}

/// Packs one state of a file against another one, and returns the predictor and the packed bytes.
fn packed(old: &str, new: &str) -> (&'static str, u64) {
    let (base, tuned) =
        (Folder::new("tokenizer.json", old.as_bytes()), Folder::new("tokenizer.json", new.as_bytes()));
    let report = tuned.pack(&[&base.path]);
    (report.tensors[0].predictor, report.packed_bytes)
}

fn tokens(rng: &mut Random, count: usize) -> Vec<String> {
    let letter = |byte: u8| char::from(b'a' + byte % 26);
    (0..count).map(|_| rng.bytes(7).into_iter().map(letter).collect()).collect()
}

fn json(tokens: &[String], indent: &str) -> String {
    let line = |(i, token): (usize, &String)| format!("{indent}\"{token}\": {i}");
    let lines: Vec<String> = tokens.iter().enumerate().map(line).collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

#[test]
fn edits_anywhere_cost_little() {
    let mut rng = Random::new(1);
    let old = tokens(&mut rng, 20_000);
    let edited = |edit: &dyn Fn(&mut Vec<String>)| {
        let mut new = old.clone();
        edit(&mut new);
        packed(&json(&old, "  "), &json(&new, "  "))
    };
    let (_, bytes) = edited(&|new| new.push("<|im_start|>".to_owned()));
    assert!(bytes < 700, "one token more: {bytes}");
    // Here, a view costs about the same.
    let (kind, bytes) = edited(&|new| (0..100).for_each(|i| new[i * 190] = format!("new token {i}")));
    assert!(bytes < 1600, "tokens of other lengths: {kind}, {bytes}");
    let (kind, bytes) = edited(&|new| new[5000..15_000].reverse());
    assert!(kind == "text" && bytes < 80_000, "another order: {kind}, {bytes}");
    let (kind, bytes) = packed(&json(&old, "  "), &json(&old, "\t\t"));
    assert!(bytes < 90_000, "another indentation: {kind}, {bytes}");
}

#[test]
fn small_files_are_patches_of_their_earlier_state() {
    let old = "{\n  \"hidden_size\": 4096,\n  \"rope_theta\": 500000.0,\n  \"torch_dtype\": \"bfloat16\",\n  \"architectures\": [\"LlamaForCausalLM\"],\n  \"vocab_size\": 128256,\n  \"transformers_version\": \"4.40.0\"\n}\n";
    let new =
        old.replace("4.40.0\"", "4.43.0.dev0\",\n  \"use_cache\": false").replace("bfloat16", "float32");
    let (kind, bytes) = packed(old, &new);
    assert_eq!(kind, "text", "{bytes} bytes");
    assert!(packed(old, old).0 == "identical");
}

#[test]
fn any_two_states_come_back() {
    let mut rng = Random::new(7);
    for round in 0..60 {
        let count = 20 + usize::try_from(rng.below(3000)).unwrap();
        let old = tokens(&mut rng, count);
        let mut new = old.clone();
        for _ in 0..=rng.below(40) {
            let len = new.len() as u64;
            let (at, other) = (rng.below(len), rng.below(len));
            let (at, other) = (usize::try_from(at).unwrap(), usize::try_from(other).unwrap());
            match rng.below(5) {
                0 => new[at].push_str("grown"),
                1 => new[at].truncate(2),
                2 => new.insert(at, old[other % old.len()].clone()),
                3 if new.len() > 2 => drop(new.remove(at)),
                _ => new.swap(at, other),
            }
        }
        let indent = ["", " ", "    "];
        packed(&json(&old, indent[round % 3]), &json(&new, indent[round / 3 % 3]));
    }
}

#[test]
fn a_growing_log_is_patched_step_after_step() {
    let entry = |i: usize| format!("{{\"loss\": {}, \"step\": {}}}", 1.0 / (i + 3) as f64, i * 10);
    let log = |count: usize| {
        let entries: Vec<String> = (0..count).map(entry).collect();
        format!("{{\n\"global_step\": {count},\n\"log\": [\n{}\n]\n}}\n", entries.join(",\n"))
    };
    // Long enough for several chunks.
    let states: Vec<Folder> =
        (0..4).map(|i| Folder::new("trainer_state.json", log(60_000 + 50 * i).as_bytes())).collect();
    states[0].pack(&[]);
    let mut bases = vec![states[0].container()];
    for state in &states[1..] {
        let paths: Vec<&Path> = bases.iter().map(PathBuf::as_path).collect();
        let report = state.pack(&paths);
        assert!(report.packed_bytes < 3000, "{} bytes", report.packed_bytes);
        bases.push(state.container());
    }
    let all = Bases::open(&bases[..3], &Limits::default()).unwrap();
    let container = Container::open(&bases[3], &Limits::default()).unwrap();
    let last = ResolvedContainer::new(container, &all).unwrap();
    let mut part = vec![0; 100];
    last.read_part_into(0, 1_500_000, &mut part).unwrap();
    assert!(part == log(60_150).as_bytes()[1_500_000..1_500_100]);
}

#[test]
fn a_long_reference_is_used_part_by_part() {
    let mut rng = Random::new(3);
    let old = json(&tokens(&mut rng, 550_000), "  ");
    assert!(old.len() > 9 << 20);
    let half = old.len() / 2;
    let new = [&old[half..], "inserted\n", &old[..half]].concat();
    let (_, bytes) = packed(&old, &new.replace("77\n", "seventy\n").replace("3,\n", "3 ,\n"));
    assert!(bytes < 2_500_000, "{bytes} of {}", new.len());
}

#[test]
fn the_base_may_have_the_file_in_another_folder() {
    let old = json(&tokens(&mut Random::new(9), 500), " ");
    let new = old.replace(": 17", ": seventeen").replace("aa", "a a a");
    let base = Folder::new("tokenizer/vocab.json", old.as_bytes());
    for (name, known) in [("other/vocab.json", true), ("names.json", true), ("names.txt", false)] {
        let report = Folder::new(name, new.as_bytes()).pack(&[&base.path]);
        assert_eq!(report.tensors[0].predictor == "text", known, "{name}");
    }
}

/// Packs one state of a file against another one, and decodes the container with each of its bits
/// flipped.
fn assert_flipped_bits_are_found(old: &str, new: &str) {
    let (base, tuned) =
        (Folder::new("vocab.json", old.as_bytes()), Folder::new("vocab.json", new.as_bytes()));
    assert_eq!(tuned.pack(&[&base.path]).tensors[0].predictor, "text");
    let container = std::fs::read(tuned.container()).unwrap();
    let bases = Bases::open(std::slice::from_ref(&base.path), &Limits::default()).unwrap();
    let back = tuned.root.path().join("back");
    for bit in 0..container.len() * 8 {
        let mut flipped = container.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let unpacked = resolve(&flipped, &bases)
            .and_then(|resolved| deltaloom::unpack(&resolved, &back, &one_thread(), &Silent));
        assert!(unpacked.is_err(), "bit {bit}");
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let old = json(&tokens(&mut Random::new(5), 60), " ");
    assert_flipped_bits_are_found(&old, &old.replace("1,", "1 ,"));
    let all = layouts();
    assert_flipped_bits_are_found(&all[0], &all[3]);
}

/// A file of JSON and the same tokens in other layouts.
fn layouts() -> Vec<String> {
    let words = tokens(&mut Random::new(6), 3000);
    let vocab: serde_json::Map<String, serde_json::Value> =
        words.iter().enumerate().map(|(i, word)| (format!("\u{120}{word}\u{fc}"), i.into())).collect();
    let merges: Vec<&[String]> = words.chunks(2).collect();
    let value = serde_json::json!({"model": {"vocab": vocab, "merges": merges}, "added": [{"id": 1}, {}]});
    let compact = serde_json::to_string(&value).unwrap();
    let pretty = serde_json::to_string_pretty(&value).unwrap();
    let ascii = compact.replace('\u{120}', "\\u0120").replace('\u{fc}', "\\u00fc");
    let windows = pretty.replace('\n', "\r\n").replace("  ", "\t");
    vec![compact, pretty, ascii, windows]
}

#[test]
fn another_layout_of_json_costs_little() {
    let all = layouts();
    for (i, old) in all.iter().enumerate() {
        for new in all.iter().enumerate().filter(|(j, _)| i != *j).map(|(_, new)| new) {
            for edited in [new.clone(), new.replace("99", "ninety-nine")] {
                let (base, tuned) =
                    (Folder::new("a.json", old.as_bytes()), Folder::new("a.json", edited.as_bytes()));
                let report = tuned.pack(&[&base.path]);
                assert_eq!(report.tensors[0].rule.as_deref(), Some("laid out anew"));
                let most = if edited == *new { 420 } else { 3000 };
                assert!(report.packed_bytes <= most, "{} bytes of {}", report.packed_bytes, edited.len());
            }
        }
    }
}
