use super::*;

fn parse(text: &str) -> Result<Loaded, RecipeError> {
    Recipe::parse(text, Path::new("long.yaml"))
}

#[test]
fn all_settings_are_read() {
    let loaded = parse(
        "context: 1
target: 1024
positions: { extend: interpolate }
default: { rope: { type: yarn, factor: 4 }, reach: causal }
layers:
  - { select: { every: 4 }, rope: none, scale: { type: floor, every: 256, slope: 0.1 } }
  - { select: { frozen: { from: tuned.safetensors, measure: relative_l2, of: qk, count: 2 } }, rope: none }
  - { select: { sensitivity: { text: calib.u16, count: 2 } }, rope: none }
  - { select: { random: { count: 2, seed: 7 } }, map: { type: self_extend, group: 8, window: 128 } }
  - { select: [0, 1, 2], reach: { chunk: 256 }, qk_norm: before }
  - { select: [3], reach: { window: 252, sinks: 4 }, qk_norm: { place: after, gain: calibrated, text: calib.u16 } }
",
    )
    .unwrap();
    let Recipe { target, default, layers, .. } = &loaded.recipe;
    assert_eq!((*target, loaded.name().as_str()), (Some(1024), "long"));
    let rope = default.rope.as_ref().unwrap();
    assert_eq!((rope.kind, rope.numbers.factor), (RopeKind::Yarn, Some(4.0)));
    assert_eq!(default.reach, Some(ReachSetting::Causal));
    assert_eq!(layers.len(), 6);
    assert_eq!(layers[0].rope.as_ref().unwrap().kind, RopeKind::None);
    assert_eq!(layers[0].scale.unwrap().law, Law::Floor);
    assert_eq!(layers[3].map.unwrap().group, Some(8));
    assert_eq!(layers[4].select, Select::List(vec![0, 1, 2]));
    let norm = layers[4].qk_norm.as_ref().unwrap();
    assert_eq!((norm.place, norm.epsilon, norm.calibration()), (Place::Before, 1e-6, None));
    let norm = layers[5].qk_norm.as_ref().unwrap();
    assert_eq!((norm.place, norm.calibration()), (Place::After, Some(("calib.u16", 4096))));
    assert_eq!(loaded.recipe.positions.unwrap().extend, Extend::Interpolate);
    assert_eq!(layers[5].reach, Some(ReachSetting::Window { tokens: 252, sinks: 4 }));
    let Select::Rule(rule) = &layers[2].select else { panic!("a rule") };
    assert_eq!(rule.sensitivity.as_ref().unwrap().tokens, 4096);
}

#[test]
fn wrong_recipes_have_a_line_and_a_hint() {
    let list = "1.0, ".repeat(20_000);
    let long = format!("default: {{ rope: {{ type: custom, inv_freq: [{list}1.0] }} }}");
    let deep = format!("default: {}1{}", "[".repeat(40), "]".repeat(40));
    for (text, words) in [
        ("", "begin with context: 1"),
        ("default: {}", "begin with context: 1"),
        ("context: 2", "only version 1"),
        ("context: 1\ncontext: 1", "there twice"),
        ("context: 1\ntraget: 5", "did you mean target?"),
        ("context: 1\ntarget: 0", "from 1 to 2^31"),
        ("context: 1\ntarget: 9999999999", "from 1 to 2^31"),
        ("context: 1\ndefault: { rope: yarm }", "did you mean yarn?"),
        ("context: 1\ndefault: { rope: yarn }", "rope.factor: missing"),
        ("context: 1\ndefault: { rope: { type: yarn, factr: 4 } }", "did you mean factor?"),
        ("context: 1\ndefault: { rope: { type: linear, factor: 0.5 } }", "not from 1"),
        ("context: 1\ndefault: { rope: { type: linear, factor: .nan } }", "finite"),
        ("context: 1\ndefault: { rope: { type: linear, factor: .inf } }", "finite"),
        ("context: 1\ndefault: { rope: { type: linear, factor: 1e30 } }", "not from 1"),
        ("context: 1\ndefault: { rope: { type: linear, factor: 2, beta_fast: 3 } }", "does not have it"),
        (
            "context: 1\ndefault: { rope: { type: llama3, factor: 2, low_freq_factor: 4 } }",
            "above low_freq_factor",
        ),
        ("context: 1\ndefault: { rope: { type: yarn, factor: 2, beta_fast: 0.5 } }", "above beta_slow"),
        (
            "context: 1\ndefault: { rope: { type: yarn, factor: 2, original_max_position_embeddings: 0 } }",
            "0 tokens",
        ),
        ("context: 1\ndefault: { rope: { type: proportional, partial_rotary_factor: 1.5 } }", "at most 1"),
        (
            "context: 1\ndefault: { rope: { type: longrope, short_factor: [1], long_factor: [-1] } }",
            "must be positive",
        ),
        (&format!("context: 1\n{long}"), "too many values"),
        (&format!("context: 1\n{deep}"), "long.yaml"),
        ("context: 1\ndefault: { reach: { window: 0 } }", "show nothing"),
        ("context: 1\ndefault: { reach: { window: 4, sinks: 4 } }", "fewer than the window"),
        ("context: 1\ndefault: { reach: { windw: 4 } }", "did you mean window?"),
        ("context: 1\ndefault: { reach: { window: 4, chunk: 4 } }", "or chunk"),
        ("context: 1\ndefault: { map: { type: self_extend, group: 0, window: 4 } }", "1 or more"),
        ("context: 1\ndefault: { map: { type: self_extend, group: 2 } }", "map.window: missing"),
        ("context: 1\ndefault: { map: rerope, rope: none }", "map.window"),
        ("context: 1\ndefault: { map: { type: rerope, window: 4 }, rope: none }", "no positions to map"),
        ("context: 1\ndefault: { scale: { type: floor } }", "scale.every"),
        ("context: 1\ntarget: 9\npositions: { extend: tils }", "did you mean tile?"),
        ("context: 1\npositions: { extend: tile }", "it needs `target`"),
        ("context: 1\ndefault: { qk_norm: { place: before, gain: calibrated } }", "qk_norm.text: missing"),
        ("context: 1\ndefault: { qk_norm: { place: before, text: a } }", "only a calibrated gain has it"),
        (
            "context: 1\ndefault: { qk_norm: { place: before, gain: one, tokens: 9 } }",
            "only a calibrated gain",
        ),
        (
            "context: 1\ndefault: { qk_norm: { place: before, gain: calibrated, text: a, tokens: 0 } }",
            "1 or more",
        ),
        ("context: 1\ndefault: { qk_norm: { place: before, epsilon: 2 } }", "not from 0 to 1"),
        ("context: 1\nlayers: [ { select: [], rope: none } ]", "no layer"),
        ("context: 1\nlayers: [ { select: [0] } ]", "changes nothing"),
        ("context: 1\nlayers: [ { select: { every: 0 }, rope: none } ]", "1 or more"),
        (
            "context: 1\nlayers: [ { select: { every: 2, random: { count: 1 } }, rope: none } ]",
            "one of every",
        ),
        ("context: 1\nlayers: [ { select: { frozen: { from: a } }, rope: none } ]", "count"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        let shown = text.get(..200).unwrap_or(text);
        assert!(error.starts_with("long.yaml") && error.contains(words), "{shown}: {error}, not {words}");
    }
    assert_eq!(parse("context: 1\n\ntraget: 5").unwrap_err().line, Some(3));
}
