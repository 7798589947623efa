//! Wrong inputs: other kinds of files, incomplete checkpoints, odd names, missing names and rows.

mod common;

use std::fs;

use common::{Scratch, safetensors};

/// The beginning of a zip archive whose first file has this name.
fn zip(name: &str) -> Vec<u8> {
    let length = u16::try_from(name.len()).unwrap_or_default().to_le_bytes();
    [b"PK\x03\x04", &[0; 22][..], &length, &[0; 2], name.as_bytes(), &[0; 100]].concat()
}

fn tar() -> Vec<u8> {
    let mut tar = vec![0; 1024];
    tar[..5].copy_from_slice(b"a.bin");
    tar[257..262].copy_from_slice(b"ustar");
    tar
}

/// Files that are no checkpoints, with their description and advice in the error.
fn strangers() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 4970000000\n",
        "9".repeat(64)
    );
    let with_zeros = |start: &[u8]| [start, &[0; 64]].concat();
    vec![
        ("a Git LFS pointer", pointer.into_bytes(), "git lfs pull"),
        ("an HTML page", b"<!DOCTYPE html><html><title>404</title></html>".to_vec(), "download failed"),
        (
            "XML text",
            b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>".to_vec(),
            "why it failed",
        ),
        ("JSON text", b"{\"error\": \"Repository not found\"}".to_vec(), "why it failed"),
        (
            "the index of a sharded checkpoint",
            br#"{"metadata":{"total_size":5},"weight_map":{"a":"model-00001-of-00002.safetensors"}}"#
                .to_vec(),
            "name the folder",
        ),
        ("a GGUF model", with_zeros(b"GGUF\x03\0\0\0"), "made from"),
        (
            "an ONNX model",
            with_zeros(b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:\x80\x01\x0a\x0b"),
            "as safetensors",
        ),
        ("a PyTorch archive", zip("archive/data.pkl"), "save_file"),
        ("a Python pickle", with_zeros(b"\x80\x02}q\0."), "save_file"),
        ("a tar archive", tar(), "extract it"),
        ("a zip archive", zip("README.txt"), "extract it"),
        ("compressed by gzip", with_zeros(b"\x1f\x8b\x08\0"), "decompress it"),
        ("compressed by zstd", with_zeros(b"\x28\xb5\x2f\xfd"), "decompress it"),
        ("a NumPy array", with_zeros(b"\x93NUMPY\x01\0"), "as safetensors"),
        ("a NumPy archive", zip("arr_0.npy"), "as safetensors"),
        ("an HDF5 file", with_zeros(b"\x89HDF\r\n\x1a\n"), "as safetensors"),
        ("a TensorFlow model", with_zeros(b"\x08\x01\x12\x80\x01\x0a\x10\x12\x03Add"), "as safetensors"),
        ("an empty file", Vec::new(), "again"),
    ]
}

#[test]
fn what_is_no_checkpoint_is_named_by_its_content() {
    let scratch = Scratch::with_small_pair();
    let container = scratch.read("tuned.loom");
    let mut strangers = strangers();
    strangers.push(("a deltaloom container", container, "deltaloom unpack"));
    for (kind, bytes, advice) in &strangers {
        // The same in a folder of a model, as one of its shards.
        scratch.write("odd.safetensors", bytes);
        scratch.write("model/model.safetensors", bytes);
        scratch.write("model/notes.txt", b"notes");
        for arguments in [
            "pack odd.safetensors -o out.loom",
            "pack model -o out.loom",
            "pack tuned.safetensors --base model -o out.loom",
            "unpack tuned.loom --base model -o out.safetensors",
            "verify tuned.loom --base model",
            "diff base.safetensors model",
            "lineage model base.safetensors",
            "estimate model --tenants 1",
            "bench odd.safetensors",
        ] {
            let error = scratch.refused(arguments);
            let file = if arguments.contains("odd") { "odd.safetensors" } else { "model.safetensors" };
            for words in [file, kind, "not a safetensors file", "hint: ", advice] {
                assert!(error.contains(words), "{arguments}: {words}: {error}");
            }
        }
        if *kind != "a deltaloom container" {
            for command in
                ["inspect odd.safetensors", "verify odd.safetensors", "unpack odd.safetensors -o out"]
            {
                let error = scratch.refused(command);
                assert!(error.contains(kind) && error.contains("not a deltaloom container"), "{error}");
                assert!(error.contains(advice), "{error}");
            }
        }
    }
    let error = scratch.refused("inspect tuned.safetensors");
    assert!(error.contains("a safetensors checkpoint") && error.contains("pack it first"), "{error}");
}

#[test]
fn a_broken_adapter_is_named_as_well() {
    let scratch = Scratch::with_small_pair();
    let pack = "pack tuned.safetensors --base base.safetensors --adapter lora -o out.loom";
    for (kind, bytes, advice) in strangers() {
        scratch.write("lora/adapter_config.json", br#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8}"#);
        scratch.write("lora/adapter_model.safetensors", &bytes);
        let error = scratch.refused(pack);
        assert!(error.contains("adapter_model.safetensors") && error.contains(kind), "{error}");
        scratch.write("lora/adapter_config.json", &bytes);
        let error = scratch.refused(pack);
        assert!(error.contains("adapter_config.json"), "{error}");
        // A configuration is JSON itself.
        assert!(kind == "JSON text" || error.contains(kind) && error.contains(advice), "{kind}: {error}");
    }
    fs::remove_file(scratch.path().join("lora/adapter_model.safetensors")).unwrap();
    scratch.write("lora/adapter_config.json", br#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8}"#);
    scratch.write("lora/adapter_model.bin", &zip("archive/data.pkl"));
    let error = scratch.refused(pack);
    assert!(error.contains("adapter_model.bin") && error.contains("a PyTorch archive"), "{error}");
}

#[test]
fn a_search_passes_over_what_is_no_base_and_says_what_it_is() {
    let scratch = Scratch::with_assets(&["ft_bf16"]);
    scratch.write("models/base.safetensors", &common::asset("base"));
    for (number, (_, bytes, _)) in strangers().iter().enumerate() {
        scratch.write(&format!("models/odd{number:02}.safetensors"), bytes);
        scratch.write(&format!("models/odd{number:02}.loom"), bytes);
    }
    let search = scratch.ok("pack ft_bf16.safetensors --base-dir models --dry-run --json").json();
    let skipped = search["skipped"].as_array().unwrap();
    assert_eq!((search["candidates"].as_array().unwrap().len(), skipped.len()), (1, 2 * strangers().len()));
    for (number, (kind, ..)) in strangers().iter().enumerate() {
        for end in ["safetensors", "loom"] {
            let name = format!("odd{number:02}.{end}");
            let file = skipped.iter().find(|file| file["path"].as_str().unwrap().ends_with(&name)).unwrap();
            assert!(file["why"].as_str().unwrap().contains(kind), "{file}");
        }
    }
}

#[test]
fn valid_files_are_read_however_they_begin() {
    let scratch = Scratch::new();
    // Lengths of headers whose bytes are the magic of pickles and of ONNX.
    for (length, end) in [(640, ""), (896, ""), (1152, ""), (0x0a08, " "), (0x0708, "")] {
        let entry = r#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
        let padded = format!("{entry}{}{end}", " ".repeat(length - entry.len() - end.len()));
        scratch.write("odd.safetensors", &common::with_header(&padded, &[1; 4]));
        scratch.ok("pack odd.safetensors -o odd.loom --overwrite");
        scratch.ok("unpack odd.loom -o back.safetensors --overwrite");
        assert!(scratch.read("odd.safetensors") == scratch.read("back.safetensors"));
        // Cut off it is a safetensors file all the same.
        let whole = scratch.read("odd.safetensors");
        scratch.write("cut.safetensors", &whole[..whole.len() - 1]);
        let error = scratch.refused("pack cut.safetensors -o out.loom");
        assert!(error.contains("truncated"), "{error}");
    }
    // An unknown kind is reported as not being a safetensors file.
    scratch.write("notes.safetensors", b"some notes, and nothing that is a model");
    let error = scratch.refused("pack notes.safetensors -o out.loom");
    assert!(error.contains("not a safetensors file"), "{error}");
}

#[test]
fn a_folder_with_weights_of_other_formats_says_that_they_are_stored_as_they_are() {
    let scratch = Scratch::with_small_pair();
    scratch.write("model/model.safetensors", &scratch.read("tuned.safetensors"));
    scratch.write("model/config.json", b"{}");
    scratch.write("model/notes.bin", &[7; 1000]);
    let pack = "pack model --base base.safetensors -o out.loom --overwrite";
    assert!(!scratch.ok(pack).err.contains("stored as"));
    assert!(scratch.ok(&format!("{pack} --json")).json()["unread"].is_null());

    scratch.write("model/optimizer.pt", &zip("archive/data.pkl"));
    scratch.write("model/old.pt", &zip("old/data.pkl"));
    scratch.write("model/model.gguf", b"GGUF\x03\0\0\0");
    scratch.write("model/tokenizer.json", format!("{{\"a\": {:?}}}", "x".repeat(70_000)).as_bytes());
    scratch.write("model/large.bin", &[7; 100_000]);
    let told = scratch.ok(pack).err;
    for words in ["4 files (", "packed as plain bytes", "2 PyTorch files", "1 GGUF file"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let json = scratch.ok(&format!("{pack} --json"));
    assert_eq!(json.err, "");
    let unread = json.json()["unread"].clone();
    let names = ["optimizer.pt", "old.pt", "model.gguf", "tokenizer.json", "large.bin"];
    let unread_names = names.iter().filter(|name| !name.ends_with(".json"));
    let bytes: usize = unread_names.map(|name| scratch.read(&format!("model/{name}")).len()).sum();
    assert_eq!((&unread["files"], &unread["bytes"]), (&4.into(), &bytes.into()));
    assert_eq!(unread["kinds"], serde_json::json!({"torch_archive": 2, "gguf": 1}));
    scratch.ok("unpack out.loom --base base.safetensors -o back");
    for name in names {
        assert!(scratch.read(&format!("model/{name}")) == scratch.read(&format!("back/{name}")), "{name}");
    }
}

/// A model of two shards with their index.
fn write_shards(scratch: &Scratch, folder: &str, salt: u8) {
    let mut map = serde_json::Map::new();
    for shard in 1..=2 {
        let file = format!("model-0000{shard}-of-00002.safetensors");
        let name = format!("w{shard}");
        let bytes = (0..4096u32).map(|i| i.to_le_bytes()[0] % 13 + salt * u8::from(i % 9 == 0)).collect();
        scratch.write(&format!("{folder}/{file}"), &safetensors(&[(&name, "U8", &[64, 64], bytes)]));
        map.insert(name, file.into());
    }
    let index = serde_json::json!({"metadata": {"total_size": 8192}, "weight_map": map});
    scratch.write(&format!("{folder}/model.safetensors.index.json"), index.to_string().as_bytes());
}

#[test]
fn half_a_checkpoint_is_warned_about() {
    let scratch = Scratch::new();
    write_shards(&scratch, "base", 0);
    write_shards(&scratch, "tuned", 1);
    let pack = "pack tuned --base base -o tuned.loom --overwrite";
    let whole = scratch.ok(&format!("{pack} --json"));
    assert_eq!((whole.err.as_str(), &whole.json()["warnings"]), ("", &serde_json::json!([])));
    write_shards(&scratch, "other", 1);
    let shard = "model-00001-of-00002.safetensors";
    fs::remove_file(scratch.path().join("base").join(shard)).unwrap();

    // As a base.
    scratch.ok("pack other --base base -o half.loom");
    for (arguments, code) in [
        ("pack tuned --base base -o tuned.loom --overwrite", 0),
        ("pack tuned --base-dir base -o found.loom --overwrite", 0),
        ("unpack half.loom --base base -o back --overwrite", 0),
        ("verify half.loom --base base", 0),
        ("diff tuned base", 1),
        ("diff half.loom other --base base", 0),
        ("lineage tuned base", 0),
        ("bench tuned --base base --rounds 1 --only memcpy", 0),
        ("estimate base --tenants 1", 0),
    ] {
        for json in ["", "--json"] {
            let ended = scratch.run(&format!("{arguments} {json}"));
            assert_eq!(ended.code, Some(code), "{arguments}: {}", ended.err);
            for words in ["warning: ", "base/model.safetensors.index.json", shard, "incomplete"] {
                assert!(ended.err.contains(words), "{arguments} {words}: {}", ended.err);
            }
            if json == "--json" {
                let warnings = ended.json()["warnings"].clone();
                assert_eq!(warnings[0]["kind"], "missing_files", "{arguments}: {warnings}");
                assert_eq!((&warnings[0]["count"], &warnings[0]["names"][0]), (&1.into(), &shard.into()));
            }
        }
    }
    assert!(scratch.ok("cat half.loom w1 --base base").err.contains(shard));

    // As the input.
    let told = scratch.ok("pack base -o alone.loom");
    assert!(told.err.contains("warning: ") && told.err.contains(shard), "{}", told.err);
    scratch.ok("unpack alone.loom -o alone");
    assert_eq!(fs::read_dir(scratch.path().join("alone")).unwrap().count(), 2);
}

#[test]
fn tensors_that_no_shard_has_and_hostile_indexes_are_warned_about() {
    let scratch = Scratch::new();
    write_shards(&scratch, "model", 0);
    let index = "model/model.safetensors.index.json";
    let warning = |bytes: &[u8]| {
        scratch.write(index, bytes);
        let ended = scratch.ok("pack model -o model.loom --overwrite --json");
        let warnings = ended.json()["warnings"].clone();
        assert_eq!(warnings.as_array().unwrap().len(), 1, "{warnings}");
        (warnings[0].clone(), ended.err)
    };
    let map: Vec<String> = (0..9).map(|i| format!(r#""w{i}": "model-00001-of-00002.safetensors""#)).collect();
    let (missing, told) = warning(format!("{{\"weight_map\": {{{}}}}}", map.join(",")).as_bytes());
    assert_eq!((&missing["kind"], &missing["count"]), (&"missing_tensors".into(), &7.into()));
    assert!(told.contains("7 tensors that no file has: w0, w3, w4, w5, w6, ..."), "{told}");
    for bytes in [&b"{\"weight_map\": [1]}"[..], b"<html>", b"", b"\xff\xfe", &b"[".repeat(5000)] {
        let (unreadable, told) = warning(bytes);
        assert_eq!(unreadable["kind"], "unreadable_index");
        assert!(told.contains("index.json cannot be read"), "{told}");
    }
    let (_, told) = warning(b"{\"weight_map\": {\"w1\": \"a\\u001b[2J\"}}");
    assert!(!told.contains('\u{1b}'), "{told:?}");
    // The shards of PyTorch that lie beside them are another matter.
    write_shards(&scratch, "model", 0);
    scratch.write("model/pytorch_model.bin.index.json", br#"{"weight_map": {"w1": "pytorch_model-1.bin"}}"#);
    assert!(!scratch.ok("pack model -o model.loom --overwrite").err.contains("warning"));
    // In a folder of its own, as pipelines of diffusion models have it.
    fs::rename(scratch.path().join("model"), scratch.path().join("unet")).unwrap();
    fs::create_dir(scratch.path().join("pipeline")).unwrap();
    fs::rename(scratch.path().join("unet"), scratch.path().join("pipeline/unet")).unwrap();
    assert!(!scratch.ok("pack pipeline -o model.loom --overwrite").err.contains("warning"));
    fs::remove_file(scratch.path().join("pipeline/unet/model-00002-of-00002.safetensors")).unwrap();
    let told = scratch.ok("pack pipeline -o model.loom --overwrite").err;
    assert!(told.contains("pipeline/unet/model.safetensors.index.json names a file"), "{told}");
}

/// Such names are legal here, and would be paths elsewhere.
#[cfg(unix)]
#[test]
fn names_that_are_no_names_elsewhere_are_refused_by_name() {
    let scratch = Scratch::with_small_pair();
    for (folder, name, why) in [
        ("drive", "c:d.txt", "drive"),
        ("back", "back\\slash.txt", "backslash"),
        ("inner", "sub/a\\b", "backslash"),
        ("weights", "x\\y.safetensors", "backslash"),
    ] {
        scratch.write(&format!("{folder}/model.safetensors"), &scratch.read("tuned.safetensors"));
        let bytes =
            if name.ends_with("safetensors") { scratch.read("base.safetensors") } else { b"hi".to_vec() };
        scratch.write(&format!("{folder}/{name}"), &bytes);
        let error = scratch.refused(&format!("pack {folder} -o out.loom"));
        for words in [name, why, "not supported", "rename"] {
            assert!(error.contains(words), "{words}: {error}");
        }
        assert!(!error.contains("corrupt") && !error.contains("damaged"), "{error}");
    }
    // A single file is packed by its name, too.
    scratch.write("c:d.safetensors", &scratch.read("tuned.safetensors"));
    let error = scratch.refused("pack c:d.safetensors -o out.loom");
    assert!(error.contains("not supported"), "{error}");
}

#[test]
fn rows_may_be_open_and_what_is_not_there_is_said_plainly() {
    let scratch = Scratch::with_small_pair();
    let cat = |rest: &str| format!("cat tuned.loom {rest} --base base.safetensors");
    let whole = scratch.ok(&cat("weight")).out;
    assert_eq!(whole.len(), 6000);
    for (rows, range) in
        [("..4", 0..400), ("4..", 400..6000), ("..", 0..6000), ("58..60", 5800..6000), ("60..", 0..0)]
    {
        assert!(scratch.ok(&cat(&format!("weight --rows {rows}"))).out == whole[range], "{rows}");
    }
    for (rows, said) in [
        ("0..99999", "has 60 rows, 0..99999 was asked for"),
        ("61..", "has 60 rows, 61.. was asked for"),
        ("..61", "has 60 rows, 0..61 was asked for"),
        ("70..80", "has 60 rows, 70..80 was asked for"),
        ("4..2", "4 is after 2"),
        ("4", "expected A..B"),
        ("a..b", "\"a\""),
        ("0..-1", "\"-1\""),
    ] {
        let error = scratch.refused(&cat(&format!("weight --rows {rows}")));
        assert!(error.contains(said), "{rows}: {error}");
    }
    scratch.write("scalar.safetensors", &safetensors(&[("s", "F32", &[], vec![0; 4])]));
    scratch.ok("pack scalar.safetensors -o scalar.loom");
    assert_eq!(scratch.ok("cat scalar.loom s --rows ..").out, [0; 4]);
    assert!(scratch.refused("cat scalar.loom s --rows 0..1").contains("no rows"));
}

#[test]
fn the_nearest_name_of_a_tensor_is_offered() {
    let scratch = Scratch::new();
    let one = |name| (name, "U8", &[1][..], vec![1]);
    scratch.write(
        "model.safetensors",
        &safetensors(&[one("lm_head.weight"), one("model.norm.weight"), one("a\u{1b}[2J")]),
    );
    scratch.ok("pack model.safetensors -o model.loom");
    for (asked, offered) in [
        ("model.norm.weigth", "did you mean model.norm.weight?"),
        ("norm.weight", "did you mean model.norm.weight?"),
        ("lm_head.wieght", "did you mean lm_head.weight?"),
        ("a[2J", "did you mean a\\u{1b}[2J?"),
        ("something", "inspect --tensors"),
    ] {
        let error = scratch.refused(&format!("cat model.loom {asked}"));
        assert!(error.contains("not found") && error.contains(&format!("{asked:?}")), "{error}");
        assert_eq!(error.matches("hint: ").count(), 1, "{error}");
        assert!(error.contains(offered), "{asked}: {error}");
    }
}

#[test]
fn an_estimate_is_of_a_fine_tune_and_of_numbers_that_can_be() {
    let scratch = Scratch::with_small_pair();
    scratch.write(
        "other.safetensors",
        &safetensors(&[("other", "F32", &[2], vec![0; 8]), ("x", "F32", &[1], vec![0; 4])]),
    );
    scratch.ok("pack other.safetensors -o other.loom");
    for other in ["other.safetensors", "other.loom"] {
        for rest in ["", "--json", "--tuned tuned.loom"] {
            let error =
                scratch.refused(&format!("estimate base.safetensors --tenants 3 --tuned {other} {rest}"));
            assert!(
                error.contains(other) && error.contains("none of its 2 tensors has a counterpart"),
                "{error}"
            );
        }
    }
    for (wrong, said) in [
        ("--tenants 0", "1.."),
        ("--tenants -1", "--tenants"),
        ("--tenants 1 --changed 5", "from 0 to 1"),
        ("--tenants 1 --changed=-0.1", "from 0 to 1"),
        ("--tenants 1 --changed nan", "from 0 to 1"),
        ("--tenants 1 --batch 0", "1.."),
    ] {
        let error = scratch.refused(&format!("estimate base.safetensors {wrong}"));
        assert!(error.contains(said), "{wrong}: {error}");
    }
    // Small files of folders are no weights of anybody.
    for folder in ["base", "tuned"] {
        scratch
            .write(&format!("{folder}/model.safetensors"), &scratch.read(&format!("{folder}.safetensors")));
        scratch.write(&format!("{folder}/tokenizer.bin"), &folder.repeat(10_000).into_bytes());
    }
    let of = |arguments: &str| scratch.ok(&format!("estimate {arguments} --tenants 2 --json")).json();
    for (files, folders) in
        [("base.safetensors", "base"), ("base.safetensors --tuned tuned.safetensors", "base --tuned tuned")]
    {
        let (files, folders) = (of(files), of(folders));
        assert_eq!(files["base_bytes"], folders["base_bytes"]);
        assert_eq!(files["changed_fraction"], folders["changed_fraction"]);
        for form in ["raw copies", "bitmap", "COO, 32 bits"] {
            let bytes = |report: &serde_json::Value| {
                let rows = report["forms"].as_array().unwrap().clone();
                rows.iter().find(|row| row["form"] == form).unwrap()["tenant_bytes"].clone()
            };
            assert_eq!(bytes(&files), bytes(&folders), "{form}");
        }
    }
    // A fine-tune of a part of the base is reported.
    let mut part = common::tensors_of(&scratch.read("tuned.safetensors"));
    part.truncate(1);
    let (name, shape, bytes) = part.remove(0);
    scratch.write(
        "part.safetensors",
        &safetensors(&[(&name, "BF16", &shape, bytes), ("x", "U8", &[1], vec![0])]),
    );
    let told = scratch.ok("estimate base.safetensors --tenants 1 --tuned part.safetensors").err;
    assert!(told.contains("only 1 of 2 tensors have a counterpart"), "{told}");
}
