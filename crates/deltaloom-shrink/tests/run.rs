//! Recipes on a small random model: what a student must be like whatever its forms.
#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use deltaloom::checkpoint::output::Inputs;
use deltaloom::checkpoint::{Checkpoint, NewTensor};
use deltaloom::tensor::DType;
use deltaloom::{Limits, Silent};
use deltaloom_lm::model::Parts;
use deltaloom_shrink::measure::Reference;
use deltaloom_shrink::network::Network;
use deltaloom_shrink::recipe::Recipe;
use deltaloom_shrink::run::{Made, Report, Verdict, curve, run};
use deltaloom_shrink::student;

const WIDTH: u64 = 64;
const HIDDEN: u64 = 96;
const VOCABULARY: u64 = 256;

/// Numbers that look random, the same on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
    }
}

/// A teacher of two layers with a tied head, and texts beside it.
fn teacher(folder: &Path) -> PathBuf {
    let path = folder.join("teacher");
    std::fs::create_dir(&path).unwrap();
    let config = format!(
        r#"{{"model_type": "llama", "hidden_size": {WIDTH}, "intermediate_size": {HIDDEN},
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": {VOCABULARY}, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "max_position_embeddings": 32, "tie_word_embeddings": true}}"#
    );
    std::fs::write(path.join("config.json"), config).unwrap();
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, WIDTH]),
        ("model.norm.weight".to_owned(), vec![WIDTH]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", vec![WIDTH]),
            ("post_attention_layernorm", vec![WIDTH]),
            ("self_attn.q_proj", vec![WIDTH, WIDTH]),
            ("self_attn.k_proj", vec![WIDTH / 2, WIDTH]),
            ("self_attn.v_proj", vec![WIDTH / 2, WIDTH]),
            ("self_attn.o_proj", vec![WIDTH, WIDTH]),
            ("mlp.gate_proj", vec![HIDDEN, WIDTH]),
            ("mlp.up_proj", vec![HIDDEN, WIDTH]),
            ("mlp.down_proj", vec![WIDTH, HIDDEN]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let mut random = Random(1);
    let tensors = shapes.into_iter().map(|(name, shape)| {
        let count = shape.iter().product::<u64>();
        let value =
            |random: &mut Random| if shape.len() == 1 { 1.0 + random.next() } else { random.next() / 2.0 };
        let bytes: Vec<u8> =
            (0..count).flat_map(|_| value(&mut random).to_le_bytes()[2..].to_vec()).collect();
        NewTensor { name, dtype: DType::BF16, shape, source: Arc::new(bytes) }
    });
    let file =
        Checkpoint::from_tensors("m", tensors.collect(), &BTreeMap::new(), &Limits::default()).unwrap();
    std::fs::write(path.join("model.safetensors"), file.read_file(0).unwrap()).unwrap();
    for (name, tokens, seed) in [("val_english.u16", 4096, 2), ("val_code.u16", 2048, 3)] {
        let mut random = Random(seed);
        // Small ids are frequent.
        let id = |x: f32| ((x + 0.5).powi(3) * 255.0) as u16;
        let ids: Vec<u8> = (0..tokens).flat_map(|_| id(random.next()).to_le_bytes()).collect();
        std::fs::write(path.join(name), ids).unwrap();
    }
    path
}

fn made(folder: &Path, recipe: &str) -> deltaloom::Result<Made> {
    let text = format!("version: 1\nteacher: {{model: teacher}}\nplanner: {{mode: fixed}}\n{recipe}");
    run(&Recipe::parse(&text, &folder.join("recipe.yaml"))?, &Silent)
}

/// Recipes with the divergence that they stay below, and what their packed bytes stay below.
const RECIPES: [(&str, f64, f64); 7] = [
    ("branches: {quantise: {bits: 4}}", 0.1, 0.7),
    ("branches: {quantise: {method: waterfill, rate: 3.0}}", 0.5, 0.7),
    ("branches: {sparsity: {target_sparsity: 0.3}}", 0.3, 0.9),
    ("branches: {sparsity: {pattern: \"2:4\", method: wanda}}", 0.8, 0.8),
    ("branches: {lra: {ratio: 1.3, whitening: [0.0, 0.5], residual: keep}, quantise: {bits: 3}}", 0.1, 1.1),
    ("branches: {blt: {latent_dim: 48, head: tied}, quantise: {bits: 6}}", 0.5, 0.7),
    ("branches: {blt: {latent_dim: 50, head: separate}}", 1.0, 1.1),
];

#[test]
fn a_student_on_disk_is_the_one_that_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let path = teacher(folder.path());
    let network = Network::new(Arc::new(Parts::open(&path).unwrap())).unwrap();
    let ids = std::fs::read(path.join("val_english.u16")).unwrap();
    let ids: Vec<u32> = ids.as_chunks::<2>().0.iter().map(|id| u32::from(u16::from_le_bytes(*id))).collect();
    let windows = ids[ids.len() - 64 * 32..].chunks(32).map(<[u32]>::to_vec).collect();
    let reference = Reference::new(network.clone(), windows, &|_| Ok(())).unwrap();
    assert_eq!(reference.compare(&network, &|_| Ok(())).unwrap().kl(), 0.0);
    for (number, (recipe, kl, share)) in RECIPES.into_iter().enumerate() {
        let made = made(folder.path(), recipe).unwrap();
        let report = &made.report;
        assert!(report.texts[0].kl < kl && report.texts[0].kl > 0.0, "{recipe}: {}", report.texts[0].kl);
        assert!(
            (report.student_bytes as f64) < share * report.teacher_bytes as f64,
            "{recipe}: {}",
            report.ratio
        );
        assert_eq!(
            report.texts.iter().map(|text| &text.name[..]).collect::<Vec<_>>(),
            ["val_english.u16", "val_code.u16"]
        );
        let target = folder.path().join(format!("student-{number}"));
        made.write(&target, false, &Inputs::default()).unwrap();
        assert!(made.write(&target, false, &Inputs::default()).is_err());
        let (config, weights) = student::open(&target, None).unwrap();
        let student = Network::new(Arc::new(Parts::of_checkpoint(weights, &config).unwrap())).unwrap();
        let again = reference.compare(&student, &|_| Ok(())).unwrap();
        assert_eq!(again.kl(), report.texts[0].kl, "{recipe}");
        let dense = folder.path().join(format!("dense-{number}"));
        student::materialise(&target, None, &dense, false, &Inputs::default()).unwrap();
        let dense = Network::new(Arc::new(Parts::open(&dense).unwrap())).unwrap();
        assert_eq!(reference.compare(&dense, &|_| Ok(())).unwrap().kl(), report.texts[0].kl, "{recipe}");
    }
}

#[test]
fn threads_change_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    teacher(folder.path());
    for recipe in [RECIPES[1].0, RECIPES[4].0] {
        let bytes = [1, 2, 3].map(|threads| {
            let target = folder.path().join(format!("student-{threads}"));
            let made = deltaloom::with_threads(threads, || made(folder.path(), recipe)).unwrap();
            made.write(&target, true, &Inputs::default()).unwrap();
            std::fs::read(target.join(student::WEIGHTS)).unwrap()
        });
        assert!(bytes[0] == bytes[1] && bytes[1] == bytes[2], "{recipe}");
    }
}

/// What a planner makes on the small teacher.
fn searched(folder: &Path, targets: &str, planner: &str) -> Report {
    let text = format!(
        "version: 1\nteacher: {{model: teacher}}\ntargets: {{{targets}}}\n\
         planner: {{mode: search, repair: {{tokens: 256}}{planner}}}\n\
         branches: {{lra: {{whitening: [0.125]}}}}"
    );
    run(&Recipe::parse(&text, &folder.join("recipe.yaml")).unwrap(), &Silent).unwrap().report
}

#[test]
fn a_search_meets_the_size_and_loses_less_than_one_rate_for_all() {
    let folder = tempfile::tempdir().unwrap();
    teacher(folder.path());
    let one_rate =
        made(folder.path(), "branches: {quantise: {method: waterfill, rate: 3.0}}").unwrap().report;
    let found =
        searched(folder.path(), &format!("bytes: {}, kl: {{limit: null}}", one_rate.student_bytes), "");
    assert!(found.student_bytes <= one_rate.student_bytes, "{}", found.student_bytes);
    assert!(found.student_bytes as f64 > 0.97 * one_rate.student_bytes as f64, "{:?}", found.plan);
    assert!(found.texts[0].kl < 0.5 * one_rate.texts[0].kl, "{}", found.texts[0].kl);
    assert_eq!(found.verdict, Verdict::Feasible);
    // Nothing is this small.
    let least = searched(folder.path(), "bytes: 100", "");
    assert_eq!(least.verdict, Verdict::Infeasible);
    assert!(least.student_bytes < found.student_bytes / 4);
    let plan = least.plan.unwrap();
    assert_eq!((plan.budget, plan.least_bytes), (Some(100), least.student_bytes));
    // More bytes are expected to cost less, and the limit lies between.
    assert!(plan.curve.windows(2).all(|pair| pair[0].bytes > pair[1].bytes && pair[0].kl <= pair[1].kl));
    assert!(plan.bytes_for_limit.unwrap() > plan.least_bytes);
}

#[test]
fn without_a_size_the_smallest_student_within_the_limit_is_made() {
    let folder = tempfile::tempdir().unwrap();
    teacher(folder.path());
    let [near, far] = [0.01, 0.1].map(|limit| {
        let report = searched(folder.path(), &format!("kl: {{limit: {limit}}}"), "");
        assert!(report.texts[0].kl < 1.5 * limit, "{} of {limit}", report.texts[0].kl);
        report.student_bytes
    });
    assert!(far < near, "{far} {near}");
}

#[test]
fn a_planner_chooses_from_what_the_recipe_allows() {
    let folder = tempfile::tempdir().unwrap();
    teacher(folder.path());
    let of = |candidates: &str| {
        // All zeros would do for much of a model of random numbers.
        let planner = format!(", candidates: [{candidates}], floor_bits: {{\"*\": 1}}");
        let report = searched(folder.path(), "compression_ratio: 2, kl: {limit: null}", &planner);
        assert!(report.ratio >= 2.0, "{candidates}: {}", report.ratio);
        report.forms.into_keys().collect::<Vec<_>>().join(", ")
    };
    let low_rank = of("lra, blt");
    assert!(
        low_rank.contains("rank ") && !low_rank.split(", ").any(|form| form == "quantised"),
        "{low_rank}"
    );
    let sparse = of("sparsity");
    assert!(sparse.contains("sparse"), "{sparse}");
    assert!(of("quantise").split(", ").all(|form| form == "quantised" || form == "zero"));
}

#[test]
fn a_curve_has_both_planners_and_rules_say_what_they_change() {
    let folder = tempfile::tempdir().unwrap();
    teacher(folder.path());
    let text = "version: 1\nteacher: {model: teacher}\ntargets: {compression_ratio: 60}\n\
                planner: {mode: published-rules}\n\
                branches: {lra: {rank: 16}, sparsity: {target_sparsity: 0.9}, kv: {cache_tokens: 8}}";
    let loaded = Recipe::parse(text, &folder.path().join("recipe.yaml")).unwrap();
    let found = curve(&loaded, &[4.0, 60.0], &Silent).unwrap();
    let searched: Vec<&Report> = found.searched.iter().map(|point| &point.report).collect();
    assert!(searched[0].student_bytes > searched[1].student_bytes);
    assert!(searched[0].texts[0].kl < searched[1].texts[0].kl);
    // The rules ignore the size: low rank and sparsity are what they are.
    let by_rules: Vec<&Report> = found.published.iter().map(|point| &point.report).collect();
    assert!(by_rules.iter().all(|report| report.verdict != Verdict::Feasible));
    let made = run(&loaded, &Silent).unwrap().report;
    assert_eq!(made.student_bytes, by_rules[1].student_bytes);
    for words in ["lra.rank 16 becomes 8", "target_sparsity 0.9 becomes 0.95", "branches.kv is not applied"] {
        assert!(made.warnings.iter().any(|warning| warning.contains(words)), "{words}: {:?}", made.warnings);
    }
    assert!(curve(&loaded, &[1.0], &Silent).is_err() && curve(&loaded, &[], &Silent).is_err());
}

#[test]
fn verdicts_follow_targets() {
    let folder = tempfile::tempdir().unwrap();
    teacher(folder.path());
    let verdict = |targets: &str, branch: &str| {
        let made = made(folder.path(), &format!("targets: {{{targets}}}\nbranches: {{{branch}}}")).unwrap();
        made.report.verdict
    };
    let four = "quantise: {bits: 4}";
    assert_eq!(verdict("kl: {limit: 0.5}", four), Verdict::Feasible);
    assert_eq!(verdict("kl: {limit: 0.000001}", four), Verdict::Infeasible);
    assert_eq!(verdict("compression_ratio: 100, kl: {limit: 0.5}", four), Verdict::Infeasible);
}

#[test]
fn bad_texts_and_weights_are_errors_that_say_where() {
    let folder = tempfile::tempdir().unwrap();
    let path = teacher(folder.path());
    let error = |recipe: &str| made(folder.path(), recipe).map(|_| ()).unwrap_err().with_path();
    let four = "branches: {quantise: {bits: 4}}";
    let with = |data: &str| format!("data: {{{data}}}\n{four}");
    std::fs::write(folder.path().join("short.u16"), [1, 0]).unwrap();
    std::fs::write(folder.path().join("odd.u16"), [1, 0, 0]).unwrap();
    std::fs::write(folder.path().join("large.u16"), vec![9; 4096]).unwrap();
    let english = "{path: teacher/val_english.u16}";
    for (data, words) in [
        (format!("calibrate: {english}, evaluate: {english}"), "calibrated with, too"),
        (format!("calibrate: {english}"), "neither"),
        (format!("calibrate: {{path: short.u16}}, evaluate: {english}"), "less than a window"),
        (format!("calibrate: {{path: odd.u16}}, evaluate: {english}"), "no whole number of ids"),
        (format!("calibrate: {{path: large.u16}}, evaluate: {english}"), "id 2313"),
        (format!("calibrate: {{path: none.u16}}, evaluate: {english}"), "none.u16"),
        ("seq_len: 64".to_owned(), "32 positions"),
        ("max_chunks: 0".to_owned(), "max_chunks"),
    ] {
        let found = error(&with(&data));
        assert!(found.contains(words), "{data}: {found}");
    }
    for (recipe, words) in [
        ("branches: {lra: {rank: 200}}", "rank 200"),
        ("branches: {blt: {latent_dim: 64}}", "latent_dim"),
        ("branches: {quantise: {bits: 4, method: awq}}", "AWQ is not built yet"),
    ] {
        let found = error(recipe);
        assert!(found.contains(words), "{recipe}: {found}");
    }
    let weights = path.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len() - 2;
    bytes[end..].copy_from_slice(&[0xc0, 0x7f]);
    std::fs::write(&weights, bytes).unwrap();
    let found = error(four);
    assert!(found.contains("NaN") && found.contains("\"model.norm.weight\""), "{found}");
}

#[test]
fn a_damaged_student_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    teacher(folder.path());
    let target = folder.path().join("student");
    made(folder.path(), RECIPES[0].0).unwrap().write(&target, false, &Inputs::default()).unwrap();
    let file = target.join(student::WEIGHTS);
    let whole = std::fs::read(&file).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 40) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert!(student::open(&target, None).is_err(), "byte {at}");
    }
    std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    assert!(student::open(&target, None).is_err());
    std::fs::write(&file, &whole).unwrap();
    assert!(student::open(&target, None).is_ok());
    let description = target.join(student::DESCRIPTION);
    let text = std::fs::read_to_string(&description).unwrap();
    for (from, to) in [
        ("\"schema\": 1", "\"schema\": 2"),
        ("\"lossy\": true", "\"lossy\": false"),
        ("\"group\": 64", "\"group\": 0"),
        ("\"group\": 64", "\"group\": 32"),
        ("\"kind\": \"quantised\"", "\"kind\": \"unknown\""),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(&description, text.replacen(from, to, 1)).unwrap();
        assert!(student::open(&target, None).is_err(), "{from} to {to}");
    }
}

/// A fine-tune of the teacher: all matrices but those of the second layer's MLP moved a little.
fn tuned(folder: &Path) -> PathBuf {
    let (base, path) = (folder.join("teacher"), folder.join("tuned"));
    let mut random = Random(9);
    copied(&base, &path, |name, bytes| {
        if name.contains("norm") || name.contains("1.mlp") {
            return;
        }
        for pair in bytes.chunks_exact_mut(2) {
            let value = f32::from_le_bytes([0, 0, pair[0], pair[1]]) + random.next() / 10.0;
            pair.copy_from_slice(&value.to_le_bytes()[2..]);
        }
    });
    path
}

/// A copy of a model in which `change` gets each tensor by its name.
fn copied(from: &Path, to: &Path, mut change: impl FnMut(&str, &mut Vec<u8>)) {
    std::fs::create_dir(to).unwrap();
    for entry in from.read_dir().unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    let opened = Checkpoint::open(&from.join("model.safetensors"), &Limits::default()).unwrap();
    let tensor = |(member, info): (usize, &deltaloom::tensor::TensorInfo)| {
        let mut bytes = opened.read_tensor(member, info).unwrap();
        change(&info.name, &mut bytes);
        let (name, dtype, shape) = (info.name.clone(), info.dtype.clone(), info.shape.clone());
        NewTensor { name, dtype, shape, source: Arc::new(bytes) }
    };
    let tensors = opened.weights().map(tensor).filter(|tensor| tensor.source.len_bytes() > 0).collect();
    let file = Checkpoint::from_tensors("m", tensors, &BTreeMap::new(), &Limits::default()).unwrap();
    std::fs::write(to.join("model.safetensors"), file.read_file(0).unwrap()).unwrap();
}

fn made_on_base(folder: &Path, base: &str, recipe: &str) -> deltaloom::Result<Made> {
    let text =
        format!("version: 1\nteacher: {{model: tuned, base: {base}}}\nplanner: {{mode: fixed}}\n{recipe}");
    run(&Recipe::parse(&text, &folder.join("recipe.yaml"))?, &Silent)
}

/// Recipes for deltas with the divergence that they stay below, as a share of what the base alone
/// has, and what their packed bytes stay below.
const DELTAS: [(&str, f64, f64); 6] = [
    ("branches: {quantise: {method: waterfill, rate: 2.5}, blt: {method: layers}}", 0.2, 0.25),
    ("branches: {quantise: {method: waterfill, step: 0.02, rescale: none}, blt: {method: layers}}", 0.2, 0.3),
    ("branches: {quantise: {method: rtn, bits: 1}, blt: {method: layers}}", 0.7, 0.12),
    (
        "branches: {sparsity: {pattern: 6:8, residual: drop}, quantise: {bits: 4}, blt: {method: layers}}",
        0.9,
        0.2,
    ),
    (
        "branches: {lra: {rank: 4, whitening: 0.5, residual: keep}, \
         quantise: {step: 0.02, threshold: 0.6}, blt: {method: layers}}",
        0.3,
        0.3,
    ),
    ("branches: {lra: {rank: 12, whitening: 0.5}, quantise: {bits: 6}, blt: {method: base}}", 1.1, 0.2),
];

#[test]
fn a_delta_on_disk_is_the_student_that_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let base = teacher(folder.path());
    tuned(folder.path());
    let nothing = "branches: {blt: {method: base}, sparsity: {target_sparsity: 0.999}}";
    let of_base = made_on_base(folder.path(), "teacher", nothing).unwrap().report.texts[0].kl;
    assert!(of_base > 0.01, "{of_base}");
    let network = Network::new(Arc::new(Parts::open(&folder.path().join("tuned")).unwrap())).unwrap();
    let ids = std::fs::read(base.join("val_english.u16")).unwrap();
    let ids: Vec<u32> = ids.as_chunks::<2>().0.iter().map(|id| u32::from(u16::from_le_bytes(*id))).collect();
    let windows = ids[ids.len() - 64 * 32..].chunks(32).map(<[u32]>::to_vec).collect();
    let reference = Reference::new(network, windows, &|_| Ok(())).unwrap();
    for (number, (recipe, share, bytes)) in DELTAS.into_iter().enumerate() {
        let made = made_on_base(folder.path(), "teacher", recipe).unwrap();
        let report = &made.report;
        let found = report.texts[0].kl / of_base;
        assert!(found < share, "{recipe}: {found} of the base's divergence");
        let found = report.student_bytes as f64 / report.teacher_bytes as f64;
        assert!(found < bytes, "{recipe}: {found} of the bytes");
        let target = folder.path().join(format!("student-{number}"));
        made.write(&target, false, &Inputs::default()).unwrap();
        // Norms are those of the base.
        let description = student::describe(&target).unwrap();
        assert_eq!(description.from_base.len(), 5, "{recipe}");
        let (config, weights) = student::open(&target, Some(&base)).unwrap();
        let student = Network::new(Arc::new(Parts::of_checkpoint(weights, &config).unwrap())).unwrap();
        assert_eq!(reference.compare(&student, &|_| Ok(())).unwrap().kl(), report.texts[0].kl, "{recipe}");
        let dense = folder.path().join(format!("dense-{number}"));
        student::materialise(&target, Some(&base), &dense, false, &Inputs::default()).unwrap();
        let dense = Network::new(Arc::new(Parts::open(&dense).unwrap())).unwrap();
        assert_eq!(reference.compare(&dense, &|_| Ok(())).unwrap().kl(), report.texts[0].kl, "{recipe}");
    }
}

#[test]
fn a_delta_of_nothing_takes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let base = teacher(folder.path());
    copied(&base, &folder.path().join("tuned"), |_, _| ());
    let recipe = format!("correct: {{enabled: false}}\n{}", DELTAS[0].0);
    let made = made_on_base(folder.path(), "teacher", &recipe).unwrap();
    assert_eq!(made.report.texts[0].kl, 0.0);
    assert_eq!(made.report.forms, BTreeMap::from([("base".to_owned(), 15)]));
    assert!(made.report.student_bytes < 500, "{}", made.report.student_bytes);
}

#[test]
fn low_rates_are_met() {
    let folder = tempfile::tempdir().unwrap();
    teacher(folder.path());
    tuned(folder.path());
    let bytes = |rate: f64| {
        let recipe =
            format!("branches: {{quantise: {{method: waterfill, rate: {rate}}}, blt: {{method: layers}}}}");
        made_on_base(folder.path(), "teacher", &recipe).unwrap().report.student_bytes as f64
    };
    // What the container takes besides codes.
    let rest = 3_000.0;
    let weights = 76_800.0;
    for rate in [0.15, 0.3, 0.6] {
        let wanted = rate * weights / 8.0;
        assert!(bytes(rate) < 1.2 * wanted + rest, "{rate}: {} bytes, {wanted} wanted", bytes(rate));
    }
}

#[test]
fn bases_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let base = teacher(folder.path());
    tuned(folder.path());
    let path = |name: &str| folder.path().join(name);
    let error = |base: &str, recipe: &str| {
        made_on_base(folder.path(), base, recipe).map(|_| ()).unwrap_err().with_path()
    };
    copied(&base, &path("smaller"), |name, bytes| {
        if name.contains("layers.1") {
            bytes.clear();
        }
    });
    let config = path("smaller").join("config.json");
    let one_layer = std::fs::read_to_string(&config).unwrap().replace("layers\": 2", "layers\": 1");
    std::fs::write(&config, one_layer).unwrap();
    copied(&base, &path("moved"), |name, bytes| {
        if name == "model.norm.weight" {
            bytes[0] ^= 1;
        }
    });
    let recipe = DELTAS[0].0;
    assert!(error("none", recipe).contains("none/config.json"), "{}", error("none", recipe));
    let missing = error("smaller", recipe);
    assert!(
        missing.contains("teacher.base: it has no tensor \"model.layers.1.input_layernorm.weight\""),
        "{missing}"
    );
    let untied = error("teacher", "branches: {blt: {latent_dim: 8}}");
    assert!(untied.contains("branches.blt.head: separate gives a head of its own"), "{untied}");
    // A student opens with its own base only.
    let delta = made_on_base(folder.path(), "teacher", recipe).unwrap();
    delta.write(&path("delta"), false, &Inputs::default()).unwrap();
    let open = |student: &str, base: Option<&str>| {
        let base = base.map(path);
        student::open(&path(student), base.as_deref()).map(|_| ()).map_err(|error| error.to_string())
    };
    assert!(open("delta", None).unwrap_err().contains("none is given"));
    assert!(open("delta", Some("moved")).unwrap_err().contains("expected BLAKE3"));
    assert!(open("delta", Some("tuned")).unwrap_err().contains("expected BLAKE3"));
    assert_eq!(open("delta", Some("teacher")), Ok(()));
    let description = path("delta").join(student::DESCRIPTION);
    let text = std::fs::read_to_string(&description).unwrap();
    for (from, to) in [
        ("\"model.norm.weight\"", "\"model.nothing.weight\""),
        ("\"model.norm.weight\"", "\"model.embed_tokens.weight\""),
        ("\"base\": \"", "\"bases\": \""),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(&description, text.replacen(from, to, 1)).unwrap();
        assert!(open("delta", Some("teacher")).is_err(), "{from} to {to}");
    }
    made(folder.path(), RECIPES[0].0).unwrap().write(&path("whole"), false, &Inputs::default()).unwrap();
    assert!(open("whole", Some("teacher")).unwrap_err().contains("a base is given"));
}
