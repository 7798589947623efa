//! `deltaloom context`: layers, tests and recipes, on tiny random models.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use std::path::Path;

use common::{Scratch, safetensors};

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A file with two layers, each with a matrix of queries and one of the feed-forward network.
fn layers(values: [[f32; 4]; 4]) -> Vec<u8> {
    let names = [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    ];
    let tensors: Vec<_> = names
        .into_iter()
        .zip(values)
        .map(|(name, values)| (name, "F32", &[2, 2][..], floats(&values)))
        .collect();
    safetensors(&tensors)
}

#[test]
fn layers_are_ranked_by_their_change() {
    let scratch = Scratch::new();
    let base = [[3.0, 4.0, 0.0, 0.0]; 4];
    let mut tuned = base;
    tuned[0][2] = 1.0;
    tuned[3][3] = 2.0;
    scratch.write("base.safetensors", &layers(base));
    scratch.write("tuned.safetensors", &layers(tuned));
    scratch.ok("pack tuned.safetensors --base base.safetensors -o tuned.loom");
    let report = scratch.ok("context layers base.safetensors tuned.safetensors --json").json();
    let close = |value: &serde_json::Value, wanted: f64| (value.as_f64().unwrap() - wanted).abs() < 1e-12;
    // Changes of 1 and 2 over the root of 25 + 25.
    assert!(close(&report["layers"][0]["relative_l2"], (1.0f64 / 50.0).sqrt()), "{report}");
    assert!(close(&report["layers"][1]["relative_l2"], (4.0f64 / 50.0).sqrt()));
    assert!(close(&report["layers"][0]["relative_l2_qk"], 0.2));
    assert_eq!(report["layers"][1]["relative_l2_qk"], 0.0);
    assert_eq!(report["layers"][0]["changed_fraction"], 0.125);
    assert_eq!(
        (&report["by_all"], &report["by_qk"]),
        (&serde_json::json!([0, 1]), &serde_json::json!([1, 0]))
    );
    assert_eq!(report["rank_correlation"], -1.0);
    let packed = scratch.ok("context layers base.safetensors tuned.loom --json").json();
    assert_eq!(packed["layers"], report["layers"]);
    let text = scratch.ok("context layers base.safetensors tuned.safetensors");
    assert!(text.text().contains("least moved first: 0, 1"), "{}", text.text());
    assert!(text.text().contains("no layer is frozen"), "{}", text.text());
}

#[test]
fn layers_of_other_models_are_refused() {
    let scratch = Scratch::new();
    let base = [[3.0, 4.0, 0.0, 0.0]; 4];
    scratch.write("base.safetensors", &layers(base));
    let mut nan = base;
    nan[2][0] = f32::NAN;
    scratch.write("nan.safetensors", &layers(nan));
    let name = "model.layers.0.self_attn.q_proj.weight";
    scratch.write("wide.safetensors", &safetensors(&[(name, "F32", &[4, 1], floats(&base[0]))]));
    scratch.write("second.safetensors", &safetensors(&[("layers.1.w", "F32", &[2, 2], floats(&base[0]))]));
    scratch.write("none.safetensors", &safetensors(&[("w", "F32", &[2, 2], floats(&base[0]))]));
    for (pair, words) in [
        ("base.safetensors base.safetensors", "no layer moved"),
        ("base.safetensors wide.safetensors", "another shape or dtype"),
        ("base.safetensors nan.safetensors", "layer 1 are not finite"),
        ("none.safetensors none.safetensors", "no layers"),
        ("second.safetensors second.safetensors", "none with the number 0"),
        ("base.safetensors nothing.safetensors", "nothing.safetensors"),
    ] {
        let ended = scratch.run(&format!("context layers {pair}"));
        assert!(ended.code != Some(0) && ended.err.contains(words), "{pair}: {}", ended.err);
    }
}

/// With a tiny model, ids for it and recipes.
fn scratch() -> Scratch {
    scratch_of("llama3")
}

fn scratch_of(name: &str) -> Scratch {
    let scratch = Scratch::new();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deltaloom-lm/tests/assets/tiny").join(name);
    for name in ["config.json", "model.safetensors"] {
        scratch.write(&format!("model/{name}"), &std::fs::read(assets.join(name)).unwrap());
    }
    let ids: Vec<u8> = (0..2000u32).flat_map(|i| ((i * i / 7 % 90) as u16).to_le_bytes()).collect();
    scratch.write("ids.u16", &ids);
    scratch.write("window.yaml", b"context: 1\ndefault: { reach: { window: 16 } }\n");
    scratch.write("none.yaml", b"context: 1\nname: no positions\nlayers: [ { select: [0], rope: none } ]\n");
    scratch.write("same.yaml", b"context: 1\n");
    scratch
}

#[test]
fn recipes_are_measured_against_truncation() {
    let scratch = scratch();
    let words = "context test model --text ids.u16 --trained 16 --lengths 48,16 --sequences 3 --passages 2 --kv f32 \
                 --recipe same.yaml --recipe window.yaml --recipe none.yaml --json";
    let report = scratch.ok(words).json();
    assert_eq!(report["trained_tokens"], 16);
    let long = &report["lengths"][1];
    assert_eq!((&long["tokens"], &long["starts"]), (&48.into(), &serde_json::json!([0, 975, 1950])));
    assert_eq!(long["buckets"], serde_json::json!([[0, 8], [8, 16], [16, 32], [32, 48]]));
    let names: Vec<&str> =
        long["methods"].as_array().unwrap().iter().map(|method| method["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["unchanged", "same", "window", "no positions"]);
    // An empty recipe is the model, bit for bit, and a window of the trained length is it inside.
    assert_eq!(long["methods"][0]["buckets"], long["methods"][1]["buckets"]);
    assert_eq!(long["unchanged"]["buckets"], long["methods"][0]["buckets"]);
    let inside = |method: usize| long["methods"][method]["buckets"][1].clone();
    assert_eq!((inside(2), long["truncation"]["buckets"][1].clone()), (inside(0), inside(0)));
    assert_ne!(inside(3), inside(0));
    let price = |method: usize| report["price"][method]["difference"]["mean"].as_f64().unwrap();
    assert_eq!((price(1), price(2)), (0.0, 0.0));
    assert_ne!(price(3), 0.0);
    for method in long["methods"].as_array().unwrap() {
        let gain = |key: &str| method["gain"][key].as_f64().unwrap();
        assert!(gain("low") <= gain("mean") && gain("mean") <= gain("high"), "{method}");
        let word = method["word"].as_str().unwrap();
        assert!(["extends", "harmless", "unclear", "degrades"].contains(&word), "{word}");
    }
    assert!(report["lengths"][0]["methods"][0]["gain"].is_null());
    // A window needs fewer bytes, and counted pages are whole.
    let bytes = |method: usize, key: &str| report["memory"][method][key].as_u64().unwrap();
    assert_eq!(3 * bytes(2, "formula_bytes"), bytes(0, "formula_bytes"));
    assert!(bytes(0, "counted_bytes") >= bytes(0, "formula_bytes"));
    assert_eq!(report["copies"].as_array().unwrap().len(), 12);
    assert_eq!(report["effective_length"][0]["name"], "unchanged");
    assert_eq!(report["recipes"][2]["selections"], serde_json::json!([[0]]));
    let mut again = scratch.ok(&format!("{words} --threads 1")).json();
    again["seconds"] = report["seconds"].clone();
    assert_eq!(again, report);
}

#[test]
fn a_test_writes_a_page_and_never_replaces_an_input() {
    let scratch = scratch();
    let words =
        "context test model --text ids.u16 --trained 16 --lengths 32 --sequences 2 --passages 0 --rounds 1";
    let text = scratch.ok(&format!("{words} --recipe window.yaml --report page.html"));
    assert!(
        text.text().contains("truncation to 16") && text.text().contains("speed of window"),
        "{}",
        text.text()
    );
    let page = String::from_utf8(scratch.read("page.html")).unwrap();
    assert!(page.contains("truncation") && page.contains("prefers-color-scheme"), "{page}");
    let before = scratch.tree();
    for (more, words_of_error) in [
        ("--report page.html", "page.html"),
        ("--report ids.u16 --overwrite", "ids.u16"),
        ("--recipe nothing.yaml", "nothing.yaml"),
        ("--lengths 3000", "too short"),
        ("--retrieval passkey", "tokenizer.json"),
    ] {
        let ended = scratch.run(
            &format!("{words} {more}")
                .replace("--lengths 32 --sequences 2 --passages 0 --rounds 1 --lengths", "--lengths"),
        );
        assert!(ended.code != Some(0) && ended.err.contains(words_of_error), "{more}: {}", ended.err);
    }
    assert_eq!(scratch.tree(), before);
}

#[test]
fn recipes_that_do_not_fit_the_model_are_refused() {
    let scratch = scratch();
    for (recipe, words) in [
        ("layers: [ { select: [99], rope: none } ]", "layer 99: the model has"),
        ("layers: [ { select: { every: 99 }, rope: none } ]", "every 99 layers"),
        ("layers: [ { select: { random: { count: 99 } }, rope: none } ]", "99 of"),
        ("layers: [ { select: { frozen: { from: nothing, count: 1 } }, rope: none } ]", "nothing"),
        ("layers: [ { select: { frozen: { from: model, count: 1 } }, rope: none } ]", "no layer moved"),
        (
            "layers: [ { select: { sensitivity: { text: nothing.u16, count: 1 } }, rope: none } ]",
            "nothing.u16",
        ),
        ("default: { map: { type: self_extend, group: 2, window: 99999 } }", "trained"),
        ("target: 99999\ndefault: { map: { type: self_extend, group: 2, window: 8 } }", "reach"),
        ("default: { rope: { type: longrope, short_factor: [1], long_factor: [1] } }", "factors"),
        ("default: { rope: { type: dynamic, factor: 1, by: sequence } }", "target"),
        ("target: 256\npositions: { extend: tile }", "no table of positions: it turns queries and keys"),
        ("positions: { extend: tile }", "it needs `target`"),
        ("default: { qk_norm: { place: before, gain: calibrated, text: nothing.u16 } }", "nothing.u16"),
        (
            "default: { qk_norm: { place: before, gain: calibrated, text: ids.u16, tokens: 9999 } }",
            "need more",
        ),
    ] {
        scratch.write("bad.yaml", format!("context: 1\ntrained: 64\n{recipe}\n").as_bytes());
        for command in ["test model --text ids.u16 --lengths 8 --sequences 1", "apply model -o new.loom"] {
            let ended = scratch.run(&format!("context {command} --recipe bad.yaml"));
            assert!(ended.code != Some(0) && ended.err.contains(words), "{recipe}: {}", ended.err);
        }
    }
    assert!(!scratch.path().join("new.loom").exists());
}

#[test]
fn a_container_runs_its_recipe() {
    let scratch = scratch();
    let loss = |arguments: &str| {
        scratch.ok(&format!("eval perplexity {arguments} --window 48 --json")).json()["loss"].clone()
    };
    let applied = scratch.ok("context apply model --recipe none.yaml -o longer.loom --json").json();
    assert_eq!(applied["changed_layers"], 1);
    assert!(applied["packed_bytes"].as_u64().unwrap() < 16 << 10, "{applied}");
    assert_eq!(scratch.read("longer.loom").len() as u64, applied["packed_bytes"].as_u64().unwrap());
    let (plain, changed) = (loss("model ids.u16"), loss("longer.loom ids.u16 --base model"));
    assert_ne!(plain, changed);
    scratch.ok("unpack longer.loom --base model -o restored");
    assert_eq!(scratch.read("restored/model.safetensors"), scratch.read("model/model.safetensors"));
    assert_eq!(loss("restored ids.u16"), changed);
    assert_eq!(loss("model ids.u16 --tenant longer.loom"), changed);
    // Beside a model with other plans, it is a model of its own.
    let divergence = |student: &str| {
        let words = format!("eval divergence model {student} --tokens ids.u16 --window 48 --json");
        scratch.ok(&words).json()["mean_kl"].as_f64().unwrap()
    };
    assert!(divergence("longer.loom") > 0.0);
    assert_eq!(divergence("longer.loom"), divergence("restored"));
    let before = scratch.tree();
    for (arguments, words) in [
        ("model --recipe none.yaml -o longer.loom", "longer.loom"),
        ("model --recipe none.yaml -o model/config.json --overwrite", "config.json"),
        ("model --recipe same.yaml -o new.loom", "changes no layer"),
        ("longer.loom --recipe none.yaml -o new.loom", "base"),
    ] {
        let ended = scratch.run(&format!("context apply {arguments}"));
        assert!(ended.code != Some(0) && ended.err.contains(words), "{arguments}: {}", ended.err);
    }
    assert_eq!(scratch.tree(), before);
    for (from, to) in [
        ("\"version\":1", "\"version\":2"),
        ("\"layers\":[{\"positions", "\"layers\":[{},{\"positions"),
        ("\"selections\"", "\"selection\""),
        ("{", "["),
    ] {
        let plan = String::from_utf8(scratch.read("restored/deltaloom_context.json")).unwrap();
        scratch.write("damaged/deltaloom_context.json", plan.replacen(from, to, 1).as_bytes());
        for name in ["config.json", "model.safetensors"] {
            scratch.write(&format!("damaged/{name}"), &scratch.read(&format!("model/{name}")));
        }
        scratch.refused("eval perplexity damaged ids.u16");
    }
}

#[test]
fn layers_are_found_by_change_and_by_cost() {
    let scratch = scratch();
    let mut tuned = scratch.read("model/model.safetensors");
    // The embedding and the head come first, so this is in a layer.
    let middle = tuned.len() / 2;
    tuned[middle] ^= 1;
    scratch.write("tuned.safetensors", &tuned);
    let moved = scratch.ok("context layers model/model.safetensors tuned.safetensors --json").json();
    scratch.write(
        "frozen.yaml",
        b"context: 1\nlayers: [ { select: { frozen: { from: tuned.safetensors, count: 1 } }, rope: none } ]\n",
    );
    let applied = scratch.ok("context apply model --recipe frozen.yaml -o frozen.loom --json").json();
    assert_eq!(applied["selections"][0][0], moved["by_all"][0]);
    scratch.write(
        "cheap.yaml",
        b"context: 1\ntrained: 32\nlayers: [ { select: { sensitivity: { text: ids.u16, tokens: 96, count: 1 } }, rope: none } ]\n",
    );
    let words = "context test model --text ids.u16 --trained 32 --lengths 32 --sequences 3 --passages 0";
    let report = scratch.ok(&format!("{words} --recipe cheap.yaml --json")).json();
    let choice = &report["controls"][0];
    // Of three layers, two are others.
    assert_eq!((choice["controls"].as_array().unwrap().len(), &choice["name"]), (2, &"cheap".into()));
    assert_eq!((&choice["rank"], choice["p_value"].as_f64().unwrap()), (&1.into(), 1.0 / 3.0));
    let applied = scratch.ok("context apply model --recipe cheap.yaml -o cheap.loom --json").json();
    let chosen = applied["selections"][0][0].as_u64().unwrap();
    let costs: Vec<f64> = (0..3)
        .map(|layer| {
            let recipe = format!("context: 1\nlayers: [ {{ select: [{layer}], rope: none }} ]\n");
            scratch.write("one.yaml", recipe.as_bytes());
            let words =
                "context test model --text ids.u16 --trained 32 --lengths 32 --sequences 3 --passages 0";
            let report = scratch.ok(&format!("{words} --recipe one.yaml --json")).json();
            report["price"][1]["loss"].as_f64().unwrap()
        })
        .collect();
    let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(costs[usize::try_from(chosen).unwrap()], least, "{costs:?}");
}

#[test]
fn tables_of_positions_go_on() {
    for name in ["gpt2", "opt"] {
        let scratch = scratch_of(name);
        // 128 positions; the copies need 272.
        let mut words =
            "context test model --text ids.u16 --lengths 64,200 --sequences 2 --passages 2 --rounds 1 \
                         --kv f32 --json"
                .to_owned();
        let ended = scratch.run(&words);
        assert!(ended.code != Some(0) && ended.err.contains("ends at 128"), "{}", ended.err);
        for rule in ["repeat", "interpolate", "tile", "hierarchical"] {
            let recipe = format!("context: 1\ntarget: 300\npositions: {{ extend: {rule} }}\n");
            scratch.write(&format!("{rule}.yaml"), recipe.as_bytes());
            words.push_str(&format!(" --recipe {rule}.yaml"));
        }
        let report = scratch.ok(&words).json();
        let long = &report["lengths"][1];
        // The model as it is ends at its table, so that it is truncation there.
        assert_eq!(long["methods"][0]["buckets"], long["truncation"]["buckets"]);
        assert_eq!(long["methods"][0]["gain"]["mean"], 0.0);
        let loss = |method: usize| long["methods"][method]["loss"].as_f64().unwrap();
        let price = |method: usize| report["price"][method]["difference"]["mean"].as_f64().unwrap();
        assert!((1..5).all(|method| loss(method).is_finite() && loss(method) != loss(0)), "{long}");
        assert_eq!([1, 3, 4].map(price), [0.0; 3]);
        assert_ne!(price(2), 0.0);
        assert_eq!(report["recipes"][0]["positions"]["extend"], "repeat");
        assert_eq!(
            (&report["memory"][0]["tokens"], &report["memory"][1]["tokens"]),
            (&128.into(), &200.into())
        );

        let applied =
            scratch.ok("context apply model --recipe hierarchical.yaml -o longer.loom --json").json();
        assert_eq!((&applied["changed_layers"], &applied["positions"]["target"]), (&0.into(), &300.into()));
        assert!(applied["packed_bytes"].as_u64().unwrap() < 16 << 10, "{applied}");
        let loss = |arguments: &str| {
            scratch.ok(&format!("eval perplexity {arguments} --window 300 --json")).json()["loss"].clone()
        };
        let found = loss("longer.loom ids.u16 --base model");
        scratch.ok("unpack longer.loom --base model -o restored");
        assert_eq!(loss("restored ids.u16"), found);
        let ended = scratch.run("eval perplexity model ids.u16 --window 300");
        assert!(ended.code != Some(0) && ended.err.contains("128 positions"), "{}", ended.err);
        let limit = scratch.ok("context limit model --memory 1GB --recipe tile.yaml --json").json();
        assert_eq!((&limit["tokens"], &limit["ends_by"]), (&300.into(), &"table".into()));
        assert_eq!(limit["unchanged"]["tokens"], 128);
        let export = "context apply model --recipe tile.yaml --export folder --as llama";
        let ended = scratch.run(export);
        assert!(
            ended.code != Some(0) && ended.err.contains("a table of positions that goes on"),
            "{}",
            ended.err
        );

        for (recipe, words) in [
            ("positions: { extend: tile }", "it needs `target`"),
            ("target: 128\npositions: { extend: tile }", "no extension"),
            ("target: 20000\npositions: { extend: hierarchical }", "ends at 16384"),
            ("target: 99999999\npositions: { extend: repeat }", "at most"),
            ("target: 256\npositions: { extend: tiles }", "did you mean tile?"),
            ("target: 256\npositions: { extnd: tile }", "did you mean extend?"),
            ("target: 256\npositions: {}", "extend"),
            ("default: { rope: { type: linear, factor: 2 } }", "adds positions once"),
            ("default: { rope: none }", "adds positions once"),
            ("layers: [ { select: [0], map: { type: rerope, window: 8 } } ]", "adds positions once"),
        ] {
            scratch.write("bad.yaml", format!("context: 1\n{recipe}\n").as_bytes());
            let ended = scratch.run("context apply model --recipe bad.yaml -o new.loom");
            assert!(ended.code != Some(0) && ended.err.contains(words), "{recipe}: {}", ended.err);
        }
        assert!(!scratch.path().join("new.loom").exists());
    }
}

#[test]
fn gains_of_norms_are_measured_and_stored() {
    let scratch = scratch();
    for place in ["before", "after"] {
        let recipe = format!(
            "context: 1\ntrained: 64\ndefault: {{ qk_norm: {{ place: {place}, gain: calibrated, text: ids.u16, tokens: 256 }} }}\n"
        );
        scratch.write("gain.yaml", recipe.as_bytes());
        let applied =
            scratch.ok("context apply model --recipe gain.yaml -o gain.loom --overwrite --json").json();
        assert!(applied["packed_bytes"].as_u64().unwrap() < 16 << 10, "{applied}");
        assert_eq!(applied["changed_layers"], 3);
        for layer in applied["layers"].as_array().unwrap() {
            let gains = layer["qk_norm"]["gain"]["calibrated"].as_array().unwrap();
            assert!(gains.len() == 4 && gains.iter().all(|gain| gain.as_f64().unwrap() > 0.0), "{layer}");
        }
        let words = "context test model --text ids.u16 --lengths 64 --sequences 4 --passages 0 --json";
        scratch.write("one.yaml", format!("context: 1\ndefault: {{ qk_norm: {place} }}\n").as_bytes());
        let report = scratch.ok(&format!("{words} --recipe gain.yaml --recipe one.yaml")).json();
        assert_eq!(report["recipes"][0]["layers"], applied["layers"]);
        assert_ne!(report["price"][1]["loss"], report["price"][2]["loss"]);
    }
    // Random layers have the gains of the same text.
    scratch.write(
        "some.yaml",
        b"context: 1\ntrained: 32\nlayers: [ { select: { sensitivity: { text: ids.u16, tokens: 64, count: 1 } }, \
          qk_norm: { place: before, gain: calibrated, text: ids.u16, tokens: 64 } } ]\n",
    );
    let words =
        "context test model --text ids.u16 --trained 32 --lengths 32 --sequences 2 --passages 0 --json";
    let report = scratch.ok(&format!("{words} --recipe some.yaml")).json();
    assert_eq!(report["controls"][0]["controls"].as_array().unwrap().len(), 2);

    // Norms of its own, and one matrix of queries, keys and values.
    for (name, words) in [("qwen3", "was trained with a norm"), ("gpt2", "separate projections")] {
        let scratch = scratch_of(name);
        let recipe = "context: 1\ndefault: { qk_norm: { place: before, gain: calibrated, text: ids.u16, tokens: 64 } }\n";
        scratch.write("gain.yaml", recipe.as_bytes());
        let ended = scratch.run("context apply model --recipe gain.yaml -o gain.loom");
        assert!(ended.code != Some(0) && ended.err.contains(words), "{}", ended.err);
    }
}

#[test]
fn limits_are_arithmetic() {
    let scratch = scratch();
    let limit = |words: &str| scratch.ok(&format!("context limit model {words} --json")).json();
    let plain = limit("--memory 1MB");
    assert_eq!(plain["ends_by"], "memory");
    let tokens = plain["tokens"].as_u64().unwrap();
    let bytes = plain["bytes"].as_u64().unwrap();
    assert!(bytes <= 1_000_000 && bytes + bytes / tokens > 1_000_000, "{plain}");
    assert_eq!(limit("--memory 1MB --kv f32")["tokens"].as_u64().unwrap(), tokens / 2);
    let window = limit("--memory 1M --recipe window.yaml");
    assert_eq!((&window["ends_by"], &window["unchanged"]["tokens"]), (&"positions".into(), &tokens.into()));
    assert_eq!(limit("--memory 1")["tokens"], 0);
    scratch.refused("context limit model --memory much");
}
