//! The commands as a person or a script runs them.

mod common;

use std::io::Read as _;

use common::{Scratch, asset, finish, safetensors, tensors_of};

const PROJECTION: &str = "model.layers.0.self_attn.q_proj.weight";

#[test]
fn a_file_comes_back_and_can_be_read_in_parts() {
    let scratch = Scratch::with_assets(&["base", "ft_bf16"]);
    scratch.ok("pack ft_bf16.safetensors --base base.safetensors -o tuned.loom");
    assert!(scratch.read("tuned.loom").len() < asset("ft_bf16").len() / 9);
    assert!(scratch.ok("inspect tuned.loom").text().contains("reference"));
    assert!(scratch.ok("verify tuned.loom").text().contains("digests need --base"));
    assert!(scratch.ok("verify tuned.loom --base base.safetensors").text().contains("every digest"));
    scratch.ok("unpack tuned.loom -b base.safetensors -o out.safetensors");
    assert!(scratch.read("out.safetensors") == asset("ft_bf16"));

    let tensors = tensors_of(&asset("ft_bf16"));
    let (_, shape, bytes) = tensors.iter().find(|(name, ..)| name == PROJECTION).unwrap();
    let whole = scratch.ok(&format!("cat tuned.loom {PROJECTION} --base base.safetensors"));
    assert!(whole.out == *bytes);
    let rows = scratch.ok(&format!("cat tuned.loom {PROJECTION} --rows 7..9 --base base.safetensors"));
    let row_bytes = bytes.len() / usize::try_from(shape[0]).unwrap();
    assert!(rows.out == bytes[7 * row_bytes..9 * row_bytes]);
    assert_eq!(scratch.ok(&format!("cat tuned.loom {PROJECTION} --rows 9..9 -b base.safetensors")).out, b"");
}

/// The instruction set is chosen once per process, so two processes are compared.
#[test]
fn every_instruction_set_writes_and_reads_the_same_bytes() {
    let scratch = Scratch::with_assets(&["base", "ft_master"]);
    scratch.ok("pack ft_master.safetensors -b base.safetensors -o detected.loom --threads 1");
    scratch.ok("pack ft_master.safetensors -o alone.loom");
    let on_any_machine = |arguments: &str| {
        let mut command = scratch.command(arguments);
        command.env("DELTALOOM_ISA", "scalar");
        assert!(command.status().unwrap().success(), "{arguments}");
    };
    on_any_machine("pack ft_master.safetensors -b base.safetensors -o scalar.loom --threads 2");
    on_any_machine("pack ft_master.safetensors -o scalar-alone.loom");
    assert!(scratch.read("detected.loom") == scratch.read("scalar.loom"));
    assert!(scratch.read("alone.loom") == scratch.read("scalar-alone.loom"));
    on_any_machine("unpack detected.loom -b base.safetensors -o out.safetensors");
    on_any_machine("unpack alone.loom -o out-alone.safetensors");
    assert!(scratch.read("out.safetensors") == asset("ft_master"));
    assert!(scratch.read("out-alone.safetensors") == asset("ft_master"));
}

/// Writes a model as hubs have it: shards, their index, and small files.
fn write_directory(scratch: &Scratch, folder: &str, weights: &[u8], shards: usize) {
    let tensors = tensors_of(weights);
    let mut map = serde_json::Map::new();
    for (i, part) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
        let name = format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
        let part: Vec<_> = part
            .iter()
            .map(|(name, shape, bytes)| (name.as_str(), "BF16", &shape[..], bytes.clone()))
            .collect();
        map.extend(part.iter().map(|(tensor, ..)| ((*tensor).to_owned(), name.clone().into())));
        scratch.write(&format!("{folder}/{name}"), &safetensors(&part));
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    scratch.write(&format!("{folder}/model.safetensors.index.json"), index.to_string().as_bytes());
    scratch
        .write(&format!("{folder}/config.json"), br#"{"model_type": "llama", "tie_word_embeddings": true}"#);
    let tokenizer: String = (0..3000).map(|i| format!("\"token{i}\": {i},\n")).collect();
    scratch.write(&format!("{folder}/tokenizer/tokenizer.json"), tokenizer.as_bytes());
    scratch.write(&format!("{folder}/empty.txt"), b"");
}

#[test]
fn a_directory_comes_back_with_every_file_whatever_the_sharding_of_its_base() {
    let scratch = Scratch::new();
    write_directory(&scratch, "base", &asset("base"), 3);
    write_directory(&scratch, "tuned", &asset("ft_bf16"), 2);
    let report = scratch.ok("pack tuned --base base -o tuned.loom --json").json();
    assert_eq!(report["files"].as_array().unwrap().len(), 6);
    assert!(report["ratio"].as_f64().unwrap() > 9.0, "{}", report["ratio"]);
    assert!(scratch.ok("verify tuned.loom --base base").text().contains("every digest"));
    scratch.ok("unpack tuned.loom --base base -o out");
    let files = |folder: &str| {
        let root = scratch.path().join(folder);
        let inside = scratch
            .tree()
            .into_iter()
            .filter_map(|(path, bytes)| Some((path.strip_prefix(&root).ok()?.to_path_buf(), bytes)));
        inside.collect::<Vec<_>>()
    };
    assert!(files("out") == files("tuned"));
    assert!(files("out").len() >= 7);
    let config = scratch.ok("cat tuned.loom config.json --base base");
    assert_eq!(config.out, scratch.read("tuned/config.json"));
    let same = scratch.ok("diff tuned out");
    assert!(same.text().contains("11 tensors: 11 identical, 0 different"), "{}", same.text());
}

#[test]
fn json_is_all_that_pack_prints_and_has_its_keys() {
    let scratch = Scratch::with_assets(&["base", "ft_bf16"]);
    let ended =
        scratch.ok("pack ft_bf16.safetensors --base base.safetensors -o tuned.loom --json --threads 2");
    assert_eq!(ended.err, "");
    let report = ended.json();
    assert_eq!(report["original_bytes"], asset("ft_bf16").len());
    assert_eq!(report["packed_bytes"], scratch.read("tuned.loom").len());
    let quotient = report["original_bytes"].as_f64().unwrap() / report["packed_bytes"].as_f64().unwrap();
    assert!((report["ratio"].as_f64().unwrap() - quotient).abs() < 1e-9);
    assert!(report["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(report["threads"], 2);
    let tensors = report["tensors"].as_array().unwrap();
    let total = |kinds: &str, key: &str| -> u64 {
        report[kinds].as_object().unwrap().values().map(|share| share[key].as_u64().unwrap()).sum()
    };
    let packed = || tensors.iter().map(|tensor| tensor["packed_bytes"].as_u64().unwrap());
    assert_eq!(total("predictors", "count"), tensors.len() as u64);
    // Every tensor with a payload has at least one chunk.
    let with_payload = packed().filter(|bytes| *bytes > 0).count() as u64;
    assert!(with_payload > 0 && total("codecs", "count") >= with_payload);
    for kinds in ["predictors", "codecs"] {
        assert_eq!(total(kinds, "bytes"), packed().sum::<u64>());
    }
    let projection = tensors.iter().find(|tensor| tensor["name"] == PROJECTION).unwrap();
    assert_eq!(projection["dtype"], "BF16");
    assert_eq!(projection["shape"], serde_json::json!([320, 320]));
    assert_eq!(projection["predictor"], "reference");
    assert_eq!(projection["codec"], "ulp");
    assert_eq!(projection["original_bytes"], 204_800);
    let changed = projection["changed_fraction"].as_f64().unwrap();
    assert!(changed > 0.1 && changed < 0.2, "{changed}");

    // What inspect reads from the index is what pack said, but for the run itself.
    let mut of_run = report;
    let inspected = scratch.ok("inspect tuned.loom --json").json();
    for key in ["seconds", "threads", "warnings"] {
        assert!(of_run.as_object_mut().unwrap().remove(key).is_some());
    }
    assert_eq!(inspected, of_run);
}

#[test]
fn data_goes_to_standard_output_and_all_else_to_standard_error() {
    let scratch = Scratch::with_small_pair();
    for (arguments, has_data) in [
        ("pack tuned.safetensors --base base.safetensors -o new.loom", false),
        ("unpack tuned.loom --base base.safetensors -o new.safetensors", false),
        ("inspect tuned.loom", true),
        ("verify tuned.loom", true),
        ("verify tuned.loom --base base.safetensors --json", true),
        ("diff base.safetensors tuned.safetensors", true),
        ("diff base.safetensors tuned.safetensors --json", true),
        ("cat tuned.loom norm --base base.safetensors", true),
    ] {
        let ended = scratch.run(arguments);
        assert_eq!((ended.out.is_empty(), ended.err.is_empty()), (!has_data, has_data), "{arguments}");
    }
    let unpacked = scratch.ok("unpack tuned.loom --base base.safetensors -o other.safetensors --json").json();
    assert_eq!(unpacked["original_bytes"], scratch.read("tuned.safetensors").len());
    assert_eq!(unpacked["files"], 1);
}

#[test]
fn the_best_base_of_a_folder_is_found_and_named() {
    let scratch = Scratch::with_assets(&["base", "ft_bf16", "ft_master"]);
    for name in ["base", "ft_master", "ft_lora_merged"] {
        scratch.write(&format!("models/{name}.safetensors"), &asset(name));
    }
    scratch.write("models/notes.safetensors", b"not a model, but long enough to have a length");
    let asked = scratch.run("pack ft_bf16.safetensors --base-dir models --dry-run");
    assert_eq!((asked.code, asked.text()), (Some(0), ""));
    insta::assert_snapshot!("base_dir", asked.err);
    let search = scratch.ok("pack ft_bf16.safetensors --base-dir models --dry-run --json").json();
    assert_eq!(search["chosen"], search["candidates"][0]["path"]);
    assert_eq!(search["candidates"].as_array().unwrap().len(), 3);
    assert_eq!(search["skipped"].as_array().unwrap().len(), 1);

    let report = scratch.ok("pack ft_bf16.safetensors --base-dir models -o found.loom --json").json();
    assert_eq!(report["base_search"]["chosen"], search["chosen"]);
    scratch.ok("pack ft_bf16.safetensors --base models/base.safetensors -o given.loom");
    assert!(scratch.read("found.loom") == scratch.read("given.loom"));
    let estimated = report["base_search"]["candidates"][0]["estimated_ratio"].as_f64().unwrap();
    let quotient = estimated / report["ratio"].as_f64().unwrap();
    assert!((0.8..1.2).contains(&quotient), "{quotient}");

    // The output is no candidate, even where it lies in the folder.
    scratch.ok("pack ft_bf16.safetensors --base-dir models -o models/own.loom");
    let again =
        scratch.ok("pack ft_bf16.safetensors --base-dir models -o models/own.loom --overwrite --json");
    assert_eq!(again.json()["base_search"]["candidates"], search["candidates"]);
}

#[test]
fn a_folder_without_a_related_model_is_refused() {
    let scratch = Scratch::with_assets(&["base"]);
    let mut shuffled = tensors_of(&asset("base"));
    for (_, _, bytes) in &mut shuffled {
        let part = bytes.len() / 5 * 2;
        bytes.rotate_left(part);
    }
    let shuffled: Vec<_> = shuffled
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), "BF16", &shape[..], bytes.clone()))
        .collect();
    scratch.write("models/other.safetensors", &safetensors(&shuffled));
    let pack = "pack base.safetensors --base-dir models";
    let asked = scratch.run(&format!("{pack} --dry-run --json"));
    assert_eq!((asked.code, asked.json()["chosen"].is_null()), (Some(1), true));
    let before = scratch.tree();
    let refused = scratch.run(&format!("{pack} -o out.loom"));
    assert_eq!((refused.code, refused.text()), (Some(2), ""));
    assert!(scratch.tree() == before);
    insta::assert_snapshot!("no_useful_base", refused.err);
    scratch.fails(3, "pack base.safetensors --base-dir nowhere -o out.loom");
    scratch.refused("pack base.safetensors --base-dir models --base base.safetensors -o out.loom");
    scratch.refused("pack base.safetensors -o out.loom --dry-run");
}

#[test]
fn lineage_names_the_operations() {
    let scratch = Scratch::with_assets(&["base", "ft_bf16", "ft_lora_merged"]);
    let told =
        ["ft_lora_merged.safetensors base.safetensors --tensors", "ft_bf16.safetensors base.safetensors"]
            .map(|arguments| scratch.ok(&format!("lineage {arguments}")).text().to_owned());
    insta::assert_snapshot!("lineage", told.join("----------\n"));
    let report = scratch.ok("lineage ft_lora_merged.safetensors base.safetensors --json").json();
    let tensors = report["tensors"].as_array().unwrap();
    let projection = tensors.iter().find(|tensor| tensor["name"] == PROJECTION).unwrap();
    assert_eq!((projection["kind"].as_str(), projection["rank"].as_u64()), (Some("low_rank"), Some(8)));
    assert_eq!(projection["ancestor"], "base.safetensors");
    // Containers are told apart like files, with their own bases among the ancestors.
    scratch.ok("pack ft_lora_merged.safetensors --base base.safetensors -o merged.loom");
    let packed = scratch.ok("lineage merged.loom base.safetensors --json").json();
    assert_eq!(packed["findings"], report["findings"]);
    scratch.refused("lineage merged.loom ft_bf16.safetensors");
}

#[test]
fn exit_codes_tell_no_from_failed() {
    let scratch = Scratch::with_small_pair();
    let code = |arguments: &str| scratch.run(arguments).code.unwrap();
    for arguments in ["--help", "--version", "pack --help", "diff tuned.safetensors tuned.safetensors"] {
        assert_eq!(code(arguments), 0, "{arguments}");
    }
    assert_eq!(code("diff base.safetensors tuned.safetensors"), 1);
    for arguments in ["", "frob", "pack --frob", "pack tuned.safetensors"] {
        assert_eq!(code(arguments), 2, "{arguments}");
    }
    for arguments in ["inspect nowhere.loom", "verify nowhere.loom"] {
        assert_eq!(code(arguments), 3, "{arguments}");
    }

    let with_flipped = |name: &str, at: usize| {
        let mut bytes = scratch.read("tuned.loom");
        bytes[at] ^= 1;
        scratch.write(name, &bytes);
    };
    with_flipped("payload.loom", 20);
    let no = scratch.run("verify payload.loom --json");
    assert_eq!(no.code, Some(1));
    assert_eq!(no.json()["ok"], false);
    assert!(no.json()["faults"][0].as_str().unwrap().contains("checksum"));
    assert_eq!(code("verify payload.loom"), 1);
    with_flipped("index.loom", scratch.read("tuned.loom").len() - 60);
    assert_eq!(code("verify index.loom"), 2);
}

#[test]
fn bases_may_be_given_in_any_order_and_as_containers() {
    let scratch = Scratch::with_assets(&["base", "ft_bf16", "ft_master"]);
    scratch.ok("pack ft_bf16.safetensors --base base.safetensors -o first.loom");
    // Half of the next step comes from the first one, half from the base.
    let (base, first) = (tensors_of(&asset("base")), tensors_of(&asset("ft_bf16")));
    let mixed = base.iter().zip(&first).enumerate().map(|(i, pair)| if i % 2 == 0 { pair.0 } else { pair.1 });
    let mixed: Vec<_> =
        mixed.map(|(name, shape, bytes)| (name.as_str(), "BF16", &shape[..], bytes.clone())).collect();
    scratch.write("second.safetensors", &safetensors(&mixed));
    for (i, bases) in
        [["first.loom", "base.safetensors"], ["base.safetensors", "first.loom"]].iter().enumerate()
    {
        let bases = format!("--base {} --base {}", bases[0], bases[1]);
        let report = scratch.ok(&format!("pack second.safetensors {bases} -o second{i}.loom --json")).json();
        assert_eq!(report["predictors"]["identical"]["count"], mixed.len());
        // A base too many does no harm.
        scratch.ok(&format!("unpack second0.loom -b ft_master.safetensors {bases} -o out{i}.safetensors"));
        assert!(scratch.read(&format!("out{i}.safetensors")) == scratch.read("second.safetensors"));
    }
    assert!(scratch.read("second0.loom") == scratch.read("second1.loom"));
    scratch.refused("unpack second0.loom --base base.safetensors -o out.safetensors");
}

#[test]
fn a_reader_that_has_had_enough_is_no_error() {
    let scratch = Scratch::with_assets(&["base", "ft_bf16"]);
    scratch.ok("pack ft_bf16.safetensors --base base.safetensors -o tuned.loom");
    let stopped = |arguments: &str| {
        let mut child = scratch.command(arguments).spawn().unwrap();
        let mut pipe = child.stdout.take().unwrap();
        pipe.read_exact(&mut [0]).unwrap();
        drop(pipe);
        let ended = finish(child);
        assert_eq!(ended.err, "", "{arguments}");
        ended.code.unwrap()
    };
    assert_eq!(stopped(&format!("cat tuned.loom {PROJECTION} --base base.safetensors")), 0);
    assert_eq!(stopped("inspect tuned.loom --json"), 0);
    assert_eq!(stopped("diff base.safetensors ft_bf16.safetensors"), 1);
}

#[cfg(feature = "demo")]
#[test]
fn the_demo_shows_deltaloom_smallest_on_every_row() {
    let scratch = Scratch::new();
    let table = scratch.ok("demo --keep kept");
    for column in ["deltaloom", "XOR planes+zstd-10", "XOR+zstd-10", "zstd-19"] {
        assert!(table.text().contains(column), "{column}");
    }
    assert_eq!(table.err, "");
    assert!(scratch.read("kept/restored-ft_master.safetensors") == asset("ft_master"));
    let rows = scratch.ok("demo --json").json();
    assert_eq!(rows.as_array().unwrap().len(), 3);
    for row in rows.as_array().unwrap() {
        let ours = row["deltaloom_bytes"].as_u64().unwrap();
        for other in ["original_bytes", "xor_planes_zstd10_bytes", "xor_zstd10_bytes", "zstd19_bytes"] {
            assert!(ours < row[other].as_u64().unwrap(), "{other} of {row}");
        }
    }
}

#[test]
fn help_is_as_reviewed() {
    let scratch = Scratch::new();
    let series = "init add ls log show plot health get prune repack gc verify watch flush";
    let series = series.split(' ').map(|command| format!("series {command}"));
    let others = "pack unpack inspect verify diff lineage cat bench series estimate eval generate lab demo"
        .split(' ')
        .map(str::to_owned)
        .chain(["perplexity", "divergence", "choices", "generate"].map(|part| format!("eval {part}")));
    let lab = "layer matmul positions simhash tenants tpde";
    let lab = lab.split(' ').map(|experiment| format!("lab {experiment}"));
    let commands = [String::new()].into_iter().chain(others).chain(series).chain(lab);
    let help = commands.map(|command| {
        let ended = scratch.ok(&format!("{command} --help"));
        // Blank ends of lines do not survive editors.
        ended.text().lines().map(|line| format!("{}\n", line.trim_end())).collect::<String>()
    });
    insta::assert_snapshot!("help", help.collect::<Vec<_>>().join("----------\n"));
}

#[test]
fn inspect_shows_every_tensor_and_keeps_names_on_their_line() {
    let scratch = Scratch::new();
    let doubles = |values: &[f64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let base = safetensors(&[("same", "F64", &[10, 20], doubles(&[0.5; 200]))]);
    let tuned = safetensors(&[
        ("constant", "I16", &[300], [7, 0].repeat(300)),
        ("empty", "F32", &[0, 4], Vec::new()),
        ("name\n\u{1b}[2J", "U8", &[], vec![9]),
        ("same", "F64", &[10, 20], doubles(&[0.5; 200])),
        ("tied", "F64", &[2], doubles(&[1.5, -7.25])),
        ("tied again", "F64", &[2], doubles(&[1.5, -7.25])),
    ]);
    scratch.write("base.safetensors", &base);
    scratch.write("tuned.safetensors", &tuned);
    scratch.ok("pack tuned.safetensors --base base.safetensors -o tuned.loom");
    insta::assert_snapshot!("inspect_tensors", scratch.ok("inspect tuned.loom --tensors").text());
}

#[test]
fn errors_say_what_to_do() {
    let scratch = Scratch::with_small_pair();
    scratch.write("cut.loom", &scratch.read("tuned.loom")[..40]);
    scratch.write("notes.txt", b"not a model, but long enough to have a length");
    let said = [
        "unpack tuned.loom -o out.safetensors",
        "unpack tuned.loom --base tuned.safetensors -o out.safetensors",
        "unpack tuned.loom --base base.safetensors -o base.safetensors",
        "unpack base.safetensors -o out.safetensors",
        "inspect cut.loom",
        "pack notes.txt -o out.loom",
        "pack tuned.loom -o out.loom",
        "pack tuned.safetensors -o nowhere/out.loom",
        "cat tuned.loom nothing",
        "cat tuned.loom weight --rows 10..99 --base base.safetensors",
        "diff base.safetensors tuned.loom",
        "inspect nowhere.loom",
    ]
    .map(|arguments| {
        let ended = scratch.run(arguments);
        format!("$ deltaloom {arguments}\nexit {}\n{}", ended.code.unwrap(), ended.err)
    });
    insta::assert_snapshot!("errors", said.join("\n"));
}
