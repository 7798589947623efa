//! Recipes: the defaults, the recipes of the project, every bad recipe of the corpus, and any text.

use std::fs;
use std::path::{Path, PathBuf};

use deltaloom_shrink::recipe::{
    Allocation, Branch, Loaded, Matrix, Overrides, PlannerMode, Recipe, Residual, Switch, check_shapes,
    published_rules,
};
use proptest::prelude::*;

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|end| end == "yaml")).collect();
    files.sort();
    files
}

fn parse(text: &str) -> Result<Loaded, String> {
    Recipe::parse(text, Path::new("r.yaml")).map_err(|error| error.to_string())
}

#[test]
fn the_default_recipe_is_the_default() {
    let loaded = Recipe::read(&project("recipes/default.yaml")).unwrap();
    assert_eq!(loaded.recipe, Recipe::default());
    assert_eq!(loaded.warnings, [""; 0]);
    assert_eq!(parse("version: 1").unwrap().recipe, Recipe::default());
}

#[test]
fn the_documents_have_every_field_with_its_default() {
    let yaml = fs::read_to_string(project("recipes/default.yaml")).unwrap();
    let page = fs::read_to_string(project("docs/recipes.md")).unwrap();
    let mut fields = leaves("", &serde_json::to_value(Recipe::default()).unwrap());
    for (name, default) in &fields {
        let key = name.rsplit('.').next().unwrap();
        assert!(yaml.contains(&format!("{key}:")), "{name} is missing");
        let default = default.to_string().replace('"', "").replace(',', ", ");
        let documented = documented(&page, name).map(|default| default.replace('"', ""));
        assert_eq!(documented, Some(default), "{name}");
    }
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(fields.len() > 120 && fields.windows(2).all(|pair| pair[0].0 != pair[1].0));
}

/// The default that `page` has for a field: its section is a heading, its row begins with its name.
fn documented(page: &str, field: &str) -> Option<String> {
    let (section, key) = field.rsplit_once('.').unwrap_or(("Outermost", field));
    let sections = page.split("\n## ").filter(|part| {
        part.lines().next().is_some_and(|heading| heading.split(", ").any(|name| name == section))
    });
    let row = sections.flat_map(str::lines).find_map(|line| line.strip_prefix(&format!("| `{key}` | `")));
    row.and_then(|row| row.split_once('`')).map(|(default, _)| default.to_owned())
}

/// Dotted names of all values that hold no others.
fn leaves(name: &str, value: &serde_json::Value) -> Vec<(String, serde_json::Value)> {
    match value {
        serde_json::Value::Object(fields) if !fields.is_empty() => {
            let dot = if name.is_empty() { "" } else { "." };
            fields.iter().flat_map(|(key, value)| leaves(&format!("{name}{dot}{key}"), value)).collect()
        }
        _ => vec![(name.to_owned(), value.clone())],
    }
}

#[test]
fn the_recipes_of_the_project_can_be_read() {
    let folders = ["recipes", "recipes/goals", "recipes/deltas"];
    let all = folders.map(|folder| yaml_files(&project(folder))).concat();
    assert_eq!(all.len(), 7 + 17 + 6);
    for path in all {
        let loaded = Recipe::read(&path).unwrap_or_else(|error| panic!("{error}"));
        let name = path.file_stem().unwrap().to_str().unwrap();
        let expected = if name == "default" { "unnamed" } else { name };
        assert_eq!(loaded.recipe.logging.experiment, expected);
        assert_eq!(loaded.warnings.is_empty(), name != "public_example", "{:?}", loaded.warnings);
    }
}

#[test]
fn a_goal_uses_one_branch() {
    for path in yaml_files(&project("recipes/goals")) {
        let recipe = Recipe::read(&path).unwrap().recipe;
        let used: Vec<_> = Branch::ALL.into_iter().filter(|&branch| recipe.uses(branch)).collect();
        assert_eq!(used.len(), 1, "{}: {used:?}", path.display());
    }
}

#[test]
fn the_published_sample_means_what_it_says() {
    let loaded = Recipe::read(&project("recipes/public_example.yaml")).unwrap();
    let recipe = &loaded.recipe;
    assert_eq!(recipe.planner.mode, PlannerMode::PublishedRules);
    assert_eq!(recipe.targets.compression_ratio, Some(1000.0));
    assert_eq!((recipe.branches.lra.rank, recipe.branches.lra.sparsity), (Some(64), 0.99));
    assert_eq!(recipe.branches.kv.cache_tokens, Some(128));
    assert_eq!(recipe.branches.blt.embedding_reduction, Some(0.9));
    assert_eq!(recipe.branches.sparsity.target_sparsity, Some(0.99));
    let warned = ["version", "lra: the spelling", "kv: not applied", "retained_accuracy: not applied"];
    assert_eq!(loaded.warnings.len(), warned.len(), "{:?}", loaded.warnings);
    for part in warned {
        assert!(loaded.warnings.iter().any(|warning| warning.contains(part)), "{part}");
    }
}

#[test]
fn bad_recipes_are_refused_where_they_are_wrong() {
    let files = yaml_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad-recipes"));
    assert!(files.len() > 50);
    for path in &files {
        let text = fs::read_to_string(path).unwrap();
        let wanted = text.lines().next().and_then(|line| line.strip_prefix("# ")).expect("a comment first");
        let error = Recipe::read(path).map(|loaded| loaded.recipe).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "wanted: {wanted}\nfound:  {error}");
    }
}

#[test]
fn a_file_that_is_not_a_recipe_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Recipe::read(folder.path()).is_err());
    assert!(Recipe::read(&folder.path().join("missing.yaml")).is_err());
    let path = folder.path().join("bytes.yaml");
    fs::write(&path, b"version: 1\nlogging: {experiment: \xff}\n").unwrap();
    assert!(Recipe::read(&path).unwrap_err().to_string().contains("not UTF-8"));
    fs::write(&path, format!("version: 1 # {}", "\u{e9}".repeat(1 << 20))).unwrap();
    assert!(Recipe::read(&path).unwrap_err().to_string().contains("longer than 1 MiB"));
    let scalar = format!("version: 1\nlogging: {{experiment: {}}}", "a".repeat(10 << 20));
    assert!(parse(&scalar).unwrap_err().contains("longer than 1 MiB"));
}

#[test]
fn what_multiplies_is_bounded() {
    let mut bomb = "a: &a [x, x, x, x, x, x, x, x]\n".to_owned();
    for (name, of) in "bcdefgh".chars().zip("abcdefg".chars()) {
        bomb += &format!("{name}: &{name} [{}]\n", vec![format!("*{of}"); 8].join(", "));
    }
    assert!(parse(&bomb).unwrap_err().contains("r.yaml:5: too many values, aliases or levels"));
    let deep = format!("version: 1\nseed: {}", "[".repeat(5000));
    assert!(parse(&deep).is_err());
    let blocks: String = (0..200).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
    assert!(parse(&blocks).is_err());
    let many = format!("version: 1\ndata: {{calibrate: [{}]}}", "1, ".repeat(100_000));
    assert!(parse(&many).unwrap_err().contains("too many values"));
    let key = format!("version: 1\n{}: 1", "k".repeat(900));
    assert!(parse(&key).unwrap_err().contains("is too long"));
    let escape = parse("version: 1\n\"\\e[31m\": 1").unwrap_err();
    assert!(!escape.contains(char::is_control) && escape.contains("not printable"), "{escape}");
}

#[test]
fn an_alias_is_its_value() {
    let text = "version: 1\ndata:\n  distil: &text {path: a.txt, windows: 3}\n  finetune: *text\n";
    let recipe = parse(text).unwrap().recipe;
    assert_eq!(recipe.data.finetune, recipe.data.distil);
}

#[test]
fn a_mode_leaves_one_branch() {
    let recipe = parse("version: 1\nmode: lra\nbranches: {lra: {rank: 8}}").unwrap().recipe;
    for branch in Branch::ALL {
        let expected = if branch == Branch::Lra { Switch::On } else { Switch::Off };
        assert_eq!(recipe.branches.switch(branch), expected);
        assert_eq!(recipe.uses(branch), branch == Branch::Lra);
    }
    let hybrid = parse("version: 1").unwrap().recipe;
    assert!(hybrid.uses(Branch::Quantise) && !hybrid.uses(Branch::Kv));
}

#[test]
fn a_single_value_is_a_list_of_one() {
    let recipe =
        parse("version: 1\ndata: {calibrate: {path: a.txt, windows: 3}}\nbranches: {lra: {whitening: 0.5}}");
    let recipe = recipe.unwrap().recipe;
    assert_eq!(recipe.data.calibrate[0].path.as_deref(), Some("a.txt"));
    assert_eq!(recipe.branches.lra.whitening, [0.5]);
}

#[test]
fn both_spellings_mean_the_same() {
    let theirs = "version: 1\nplanner: {mode: search}\nlra: {rank: 8, enable_structural: false}\n\
                  sparsity: {enable_outlier_weighting: true}\nlogging: {enable_wandb: false}\n\
                  distillation: {kl_weight: 0.5}\nevaluation: {ablation_branches: [lra]}\n";
    let ours = "version: 1\nbranches:\n  lra: {rank: 8, residual: keep}\n  sparsity: {allocation: owl}\n\
                recover: {distil: {kl: 0.5}}\nevaluate: {ablations: [lra]}\n";
    let theirs = parse(theirs).unwrap().recipe;
    assert_eq!(theirs, parse(ours).unwrap().recipe);
    assert_eq!(theirs.branches.sparsity.allocation, Allocation::Owl);
    let embedding = parse("version: 1\nbranches: {embedding: {latent_dim: 80}}").unwrap().recipe;
    assert_eq!(embedding.branches.blt.latent_dim, Some(80));
}

#[test]
fn a_digest_changes_with_every_setting() {
    let default = Recipe::default().digest();
    assert_eq!(default.len(), 64);
    assert_eq!(default, parse("version: 1").unwrap().recipe.digest());
    for change in ["seed: 1", "data: {stride: 3}", "teacher: {model: a}", "planner: {floor_bits: {a: 2}}"] {
        assert_ne!(parse(&format!("version: 1\n{change}")).unwrap().recipe.digest(), default, "{change}");
    }
}

#[test]
fn options_replace_what_the_recipe_says() {
    let text = "version: 1\ntargets: {bytes: 5000}\noutput: {dir: there}";
    let options = Overrides {
        teacher: Some("model".into()),
        base: Some("of".into()),
        ratio: Some(20.0),
        seq_len: Some(64),
        stride: Some(32),
        output: Some("here".into()),
        ..Overrides::default()
    };
    let loaded = parse(text).unwrap();
    assert!(loaded.ready().unwrap_err().to_string().contains("teacher.model: no teacher is named"));
    let loaded = options.apply(loaded).unwrap();
    let recipe = &loaded.recipe;
    let of = std::path::absolute("of").unwrap();
    assert_eq!(recipe.teacher.base.as_deref(), of.to_str());
    assert_eq!((recipe.targets.bytes, recipe.targets.compression_ratio), (None, Some(20.0)));
    assert_eq!((recipe.data.seq_len, recipe.data.stride), (Some(64), Some(32)));
    assert_eq!(loaded.path(&recipe.output.dir), std::path::absolute("here").unwrap());
}

#[test]
fn a_bad_option_is_named() {
    let apply =
        |options: Overrides| options.apply(parse("version: 1\ntargets: {compression_ratio: 4}").unwrap());
    let ratio = apply(Overrides { ratio: Some(f64::NAN), ..Overrides::default() }).unwrap_err();
    assert_eq!(ratio.to_string(), "r.yaml: --ratio: found NaN, wanted above 1");
    let stride = apply(Overrides { seq_len: Some(8), stride: Some(9), ..Overrides::default() }).unwrap_err();
    assert_eq!(stride.field, "--stride");
    let student = apply(Overrides { student: Some("other".into()), ..Overrides::default() }).unwrap_err();
    assert_eq!(student.field, "--student");
}

#[test]
fn a_run_needs_a_size_or_a_limit() {
    let ready = |rest: &str| parse(&format!("version: 1\nteacher: {{model: m}}\n{rest}")).unwrap().ready();
    let size = ready("targets: {kl: {limit: null}}").unwrap_err();
    assert_eq!(
        size.to_string(),
        "r.yaml:3: targets: no size is asked for; hint: give compression_ratio, bytes, bits_per_weight or \
         kl.limit"
    );
    assert!(ready("targets: {kl: {limit: 0.1}}").is_ok());
    assert!(ready("targets: {bytes: 99}\nplanner: {mode: published-rules}").is_err());
    let fixed = "version: 1\nteacher: {model: m}\nplanner: {mode: fixed}\nbranches: {quantise: {bits: 4}}";
    assert!(parse(fixed).unwrap().ready().is_ok());
}

#[test]
fn a_base_is_for_fixed_recipes() {
    let ready = |text: &str| {
        let loaded = parse(&format!("version: 1\n{text}")).unwrap();
        loaded.ready().map_err(|error| error.to_string())
    };
    let fixed = "planner: {mode: fixed}\nbranches: {blt: {method: base}}";
    assert_eq!(ready(&format!("teacher: {{model: m, base: b}}\n{fixed}")), Ok(()));
    let without = ready(&format!("teacher: {{model: m}}\n{fixed}")).unwrap_err();
    assert!(without.contains("r.yaml:4: branches.blt.method: base, and the teacher has none"), "{without}");
    let searched = ready("teacher: {model: m, base: b}\ntargets: {bytes: 5}").unwrap_err();
    assert!(searched.contains("planner.mode: only fixed makes students of a base yet"), "{searched}");
}

#[test]
fn paths_are_relative_to_the_recipe() {
    let loaded = Recipe::parse("version: 1", Path::new("some/where/r.yaml")).unwrap();
    assert_eq!(loaded.path("texts/a.txt"), Path::new("some/where/texts/a.txt"));
}

#[test]
fn shapes_bound_ranks() {
    let square = Matrix { rows: 320, columns: 320 };
    assert_eq!(square.largest_rank(), 159);
    assert_eq!(Matrix { rows: 0, columns: 0 }.largest_rank(), 0);
    let huge = Matrix { rows: usize::MAX, columns: usize::MAX };
    assert_eq!(huge.largest_rank(), usize::MAX / 2);
    let embedding = Matrix { rows: 8192, columns: 320 };
    let check = |settings: &str| {
        let loaded = parse(&format!("version: 1\nbranches:\n  {settings}")).unwrap();
        check_shapes(&loaded, &[square], embedding).map_err(|error| error.to_string())
    };
    assert_eq!(check("lra: {rank: 159}"), Ok(()));
    assert_eq!(
        check("lra: {rank: 200}").unwrap_err(),
        "r.yaml:3: branches.lra.rank: rank 200 of 320x320 stores more than the matrix; hint: at most 159"
    );
    assert_eq!(check("blt: {latent_dim: 307}"), Ok(()));
    assert!(check("blt: {latent_dim: 308}").unwrap_err().contains("at most 307"));
    assert_eq!(check("sparsity: {pattern: 2:4}"), Ok(()));
    assert!(check("sparsity: {pattern: 3:7}").unwrap_err().contains("a multiple of 7"));
}

#[test]
fn the_published_rules_are_those_of_the_sample() {
    let sample = Recipe::read(&project("recipes/public_example.yaml")).unwrap().recipe;
    let (same, notes) = published_rules(sample.clone(), 10.0);
    assert_eq!((same, notes.len()), (sample.clone(), 0));
    let (on, notes) = published_rules(sample.clone(), 11.0);
    assert_eq!((on.branches.lra.enabled, on.branches.lra.residual), (Switch::On, Residual::Drop));
    assert_eq!((on.branches.lra.rank, notes.len()), (Some(64), 1));
    let (high, notes) = published_rules(sample, 1000.0);
    assert_eq!(high.branches.lra.rank, Some(32));
    assert_eq!(high.branches.kv.cache_tokens, Some(64));
    assert!((high.branches.blt.embedding_reduction.unwrap() - 0.95).abs() < 1e-12);
    assert_eq!(high.branches.sparsity.target_sparsity, Some(0.999));
    assert_eq!(notes.len(), 5, "{notes:?}");
    let mut odd = Recipe::default();
    (odd.branches.lra.rank, odd.branches.kv.cache_tokens) = (Some(24), Some(1));
    let (odd, _) = published_rules(odd, 51.0);
    assert_eq!((odd.branches.lra.rank, odd.branches.kv.cache_tokens), (Some(8), Some(1)));
}

proptest! {
    #[test]
    fn any_text_is_a_recipe_or_an_error(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn any_document_is_a_recipe_or_an_error(text in "[a-z0-9:\\-\\[\\]{}&*!?|>'\"#, \n.]{0,200}") {
        let _ = parse(&format!("version: 1\n{text}"));
    }

    #[test]
    fn a_changed_recipe_is_a_recipe_or_an_error(
        at in 0_usize..5000,
        cut in 0_usize..20,
        with in "[0-9a-z:{}\\[\\], \n-]{0,12}",
    ) {
        let mut text = fs::read_to_string(project("recipes/default.yaml")).unwrap();
        let at = at.min(text.len());
        text.replace_range(at..(at + cut).min(text.len()), &with);
        let _ = parse(&text);
    }
}
