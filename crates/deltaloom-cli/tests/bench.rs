//! `deltaloom bench`: what it measures, except for the speed.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use std::collections::BTreeSet;

use common::{Scratch, asset, safetensors, tensors_of};
use serde_json::{Value, json};

const WITH_BASE: [&str; 11] = [
    "deltaloom",
    "deltaloom+digests",
    "in-place",
    "changes",
    "memcpy",
    "zstd-1",
    "zstd-3",
    "lz4",
    "pco",
    "xor+zstd-1",
    "bitx",
];

fn names(report: &Value) -> Vec<&str> {
    report["rows"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect()
}

fn packed_bytes(report: &Value, name: &str) -> u64 {
    let row = report["rows"].as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
    row["packed_bytes"].as_u64().unwrap()
}

#[test]
fn json_has_its_keys_and_the_sizes_are_those_of_pack() {
    let scratch = Scratch::with_assets(&["base", "ft_bf16"]);
    scratch.ok("pack ft_bf16.safetensors --base base.safetensors -o tuned.loom");
    let before = scratch.tree();
    let ended = scratch.ok("bench ft_bf16.safetensors --base base.safetensors --rounds 2 --json");
    assert!(before == scratch.tree(), "nothing is written");
    assert_eq!(ended.err, "");
    let report = ended.json();
    let keys = |value: &Value| {
        let keys: BTreeSet<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        keys.into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        keys(&report),
        "bases deltaloom dtype_bytes file machine original_bytes rounds rows threads warnings"
    );
    assert_eq!(keys(&report["machine"]), "cores cpu isa os");
    assert_eq!(report["deltaloom"], env!("CARGO_PKG_VERSION"));
    assert!(report["machine"]["cores"].as_u64().unwrap() > 0);
    assert!(["scalar", "avx2", "avx512", "amx"].contains(&report["machine"]["isa"].as_str().unwrap()));
    assert_eq!(report["file"], "ft_bf16.safetensors");
    assert_eq!(report["bases"], json!(["base.safetensors"]));
    assert_eq!((&report["threads"], &report["rounds"]), (&json!(1), &json!(2)));
    assert_eq!(report["original_bytes"], asset("ft_bf16").len());
    let data_bytes: usize = tensors_of(&asset("ft_bf16")).iter().map(|(.., bytes)| bytes.len()).sum();
    assert_eq!(report["dtype_bytes"], json!({"BF16": data_bytes}));

    assert_eq!(names(&report), WITH_BASE);
    for row in report["rows"].as_array().unwrap() {
        assert_eq!(keys(row), "decode_seconds encode_seconds name packed_bytes");
        for seconds in ["encode_seconds", "decode_seconds"] {
            let seconds = row[seconds].as_array().unwrap();
            assert!(seconds.len() == 2 && seconds.iter().all(|s| s.as_f64().unwrap() > 0.0), "{row}");
        }
    }
    let ours = scratch.read("tuned.loom").len() as u64;
    assert_eq!(packed_bytes(&report, "deltaloom"), ours);
    assert_eq!(packed_bytes(&report, "deltaloom+digests"), ours);
    assert_eq!(packed_bytes(&report, "memcpy"), data_bytes as u64);
    for name in ["zstd-1", "zstd-3", "pco", "xor+zstd-1", "bitx"] {
        let packed = packed_bytes(&report, name);
        assert!(ours < packed && packed < data_bytes as u64, "{name}: {packed}");
    }
    assert!(packed_bytes(&report, "xor+zstd-1") < packed_bytes(&report, "zstd-1"));
}

#[test]
fn presets_and_threads_are_those_of_pack() {
    let scratch = Scratch::with_assets(&["base", "ft_master"]);
    for preset in ["fast", "max"] {
        scratch.ok(&format!(
            "pack ft_master.safetensors -b base.safetensors --preset {preset} -o {preset}.loom"
        ));
        let report = scratch.ok(&format!(
            "bench ft_master.safetensors -b base.safetensors --preset {preset} --threads 2 --rounds 1 --only deltaloom --json"
        ));
        let packed = scratch.read(&format!("{preset}.loom")).len() as u64;
        assert_eq!(packed_bytes(&report.json(), "deltaloom"), packed, "{preset}");
        assert_eq!(report.json()["threads"], 2);
    }
}

#[test]
fn rows_can_be_chosen_and_those_of_a_base_need_one() {
    let scratch = Scratch::with_small_pair();
    let alone = scratch.ok("bench tuned.safetensors --rounds 1 --json").json();
    let needs_base = ["in-place", "changes", "xor+zstd-1", "bitx"];
    let without: Vec<&str> = WITH_BASE.into_iter().filter(|name| !needs_base.contains(name)).collect();
    assert_eq!(names(&alone), without);
    let some =
        scratch.ok("bench tuned.safetensors --rounds 1 --json --only lz4 --only memcpy --only lz4").json();
    assert_eq!(names(&some), ["memcpy", "lz4"]);

    let unknown = scratch.refused("bench tuned.safetensors --only gzip");
    assert!(WITH_BASE.iter().all(|name| unknown.contains(name)), "{unknown}");
    let needs_base = scratch.refused("bench tuned.safetensors --only bitx");
    assert!(needs_base.contains("--base"), "{needs_base}");
}

#[test]
fn the_table_has_a_line_for_every_row() {
    let scratch = Scratch::with_small_pair();
    let ended = scratch.ok("bench tuned.safetensors --base base.safetensors --rounds 1");
    for name in WITH_BASE {
        assert!(ended.text().lines().any(|line| line.split(' ').next() == Some(name)), "{name}");
    }
    assert!(ended.text().contains("decode MB/s  of memcpy"), "{}", ended.text());
    assert_eq!(ended.err, "");
    // Without memcpy there is nothing to compare with.
    assert!(scratch.ok("bench tuned.safetensors --only lz4 --rounds 1").text().contains("  -\n"));
}

/// A row that does not restore its input is an error, so this is a round trip of every coder.
#[test]
fn every_dtype_and_odd_shapes_come_back_from_every_row() {
    let scratch = Scratch::new();
    let mut state = 9u32;
    let mut noise = |count: usize, mask: u8| -> Vec<u8> {
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0] & mask
        };
        (0..count).map(next).collect()
    };
    let dtypes = [
        ("BOOL", 1),
        ("U8", 1),
        ("I8", 1),
        ("F8_E4M3", 1),
        ("U16", 2),
        ("I16", 2),
        ("F16", 2),
        ("BF16", 2),
        ("U32", 4),
        ("I32", 4),
        ("F32", 4),
        ("U64", 8),
        ("I64", 8),
        ("F64", 8),
        ("F8_E8M0", 1),
    ];
    let (mut base, mut tuned) = (Vec::new(), Vec::new());
    for (dtype, size) in dtypes {
        // Every pattern of bits, NaNs among them; then patterns that are close.
        let before = noise(1001 * size, 0xff);
        let after = before.iter().zip(noise(1001 * size, 1)).map(|(byte, step)| byte ^ step).collect();
        base.push((dtype, dtype, &[7, 11, 13][..], before));
        tuned.push((dtype, dtype, &[7, 11, 13][..], after));
    }
    let large = noise(2 * 300_000, 0x3f);
    base.push(("of another shape", "BF16", &[2], vec![0; 4]));
    tuned.push(("of another shape", "BF16", &[3], vec![1; 6]));
    base.push(("more than a piece", "BF16", &[300_000], large.clone()));
    tuned.push(("more than a piece", "BF16", &[300_000], large));
    tuned.push(("only here", "F32", &[], vec![0, 0, 0xc0, 0x7f]));
    tuned.push(("nothing", "F32", &[0, 4], Vec::new()));
    scratch.write("base.safetensors", &safetensors(&base));
    scratch.write("tuned.safetensors", &safetensors(&tuned));
    scratch.write("none.safetensors", &safetensors(&[]));
    let with_base = scratch.ok("bench tuned.safetensors --base base.safetensors --rounds 1 --json").json();
    assert_eq!(names(&with_base), WITH_BASE);
    assert_eq!(with_base["dtype_bytes"]["F64"], 8008);
    scratch.ok("bench tuned.safetensors --rounds 1");
    scratch.ok("bench none.safetensors --base base.safetensors --rounds 1");
    // Of several bases each tensor gets the nearest.
    scratch.write("far.safetensors", &safetensors(&[("BF16", "BF16", &[7, 11, 13], noise(2002, 0xff))]));
    let sizes = ["--base far.safetensors --base base.safetensors", "--base base.safetensors"].map(|bases| {
        let only = "--only xor+zstd-1 --only pco --rounds 1 --json";
        let report = scratch.ok(&format!("bench tuned.safetensors {bases} {only}")).json();
        ["xor+zstd-1", "pco"].map(|name| packed_bytes(&report, name))
    });
    assert_eq!(sizes[0], sizes[1]);
}

#[test]
fn directories_are_measured_with_their_small_files() {
    let scratch = Scratch::new();
    for (folder, weights) in [("base", "base"), ("tuned", "ft_bf16")] {
        let tensors = tensors_of(&asset(weights));
        for (i, part) in tensors.chunks(4).enumerate() {
            let part =
                part.iter().map(|(name, shape, bytes)| (name.as_str(), "BF16", &shape[..], bytes.clone()));
            let shard = safetensors(&part.collect::<Vec<_>>());
            scratch.write(&format!("{folder}/model-{i}.safetensors"), &shard);
        }
        scratch.write(&format!("{folder}/config.json"), br#"{"model_type": "llama"}"#);
        scratch.write(&format!("{folder}/empty.txt"), b"");
    }
    scratch.ok("pack tuned --base base -o tuned.loom");
    let report = scratch.ok("bench tuned --base base --rounds 1 --json --threads 0").json();
    assert_eq!(packed_bytes(&report, "deltaloom"), scratch.read("tuned.loom").len() as u64);
    assert_eq!(report["dtype_bytes"]["U8"], 23);
    assert!(report["threads"].as_u64().unwrap() > 0);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let scratch = Scratch::with_small_pair();
    scratch.write("notes.txt", b"not a model, but long enough to have a length");
    for (arguments, said) in [
        ("bench tuned.loom --base base.safetensors", "restore it first"),
        ("bench tuned.safetensors --base tuned.loom", "restore it first"),
        ("bench notes.txt", "hint: "),
        ("bench tuned.safetensors --rounds 0", "from 1 to 1000"),
        ("bench tuned.safetensors --preset best", "possible values"),
    ] {
        let error = scratch.refused(arguments);
        assert!(error.contains(said), "{arguments}: {error}");
    }
    assert!(scratch.fails(3, "bench nowhere.safetensors").contains("nowhere.safetensors"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_model_that_does_not_fit_in_memory_is_refused_before_it_is_read() {
    let scratch = Scratch::new();
    let bytes = 1u64 << 41;
    let header = json!({"a": {"dtype": "U8", "shape": [bytes], "data_offsets": [0, bytes]}}).to_string();
    let start = common::with_header(&header, b"");
    scratch.write("large.safetensors", &start);
    let file = std::fs::File::options().write(true).open(scratch.path().join("large.safetensors")).unwrap();
    file.set_len(start.len() as u64 + bytes).unwrap();
    // Only asked for its size: reading back what is in the folder would take long.
    let ended = scratch.run("bench large.safetensors");
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("available; measure one shard"), "{}", ended.err);
}
