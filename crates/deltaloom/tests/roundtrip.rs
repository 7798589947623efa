//! Everything comes back bit for bit: every dtype, odd shapes, special values, every kind of
//! predictor, files and directories.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Bases, Container, Limits, PackReport, Preset, ResolvedContainer, Silent};
use proptest::prelude::*;

/// Names and bits of an element. The last ones are opaque to the coder, and F3_X is unknown even to
/// us: one byte per element.
const DTYPES: [(&str, u64); 19] = [
    ("BOOL", 8),
    ("U8", 8),
    ("U16", 16),
    ("U32", 32),
    ("U64", 64),
    ("I8", 8),
    ("I16", 16),
    ("I32", 32),
    ("I64", 64),
    ("F8_E4M3", 8),
    ("F8_E5M2", 8),
    ("F16", 16),
    ("BF16", 16),
    ("F32", 32),
    ("F64", 64),
    ("F4", 4),
    ("F8_E8M0", 8),
    ("C64", 64),
    ("F3_X", 8),
];

/// Scalars, empty, one element, one row, one column, three dimensions, rows longer than a chunk,
/// several chunks, and several groups of chunks.
const SHAPES: [&[u64]; 16] = [
    &[],
    &[0],
    &[1],
    &[5, 0],
    &[2, 3, 4],
    &[7],
    &[1, 700],
    &[700, 1],
    &[1024],
    &[1537],
    &[33, 77],
    &[2, 1024],
    &[3, 1025],
    &[4, 16, 96],
    &[150, 100],
    &[20_000],
];

#[derive(Debug, Clone, Copy)]
enum Fill {
    Weights,
    Special,
    Zero,
    Constant,
    Noise,
}

#[derive(Debug, Clone, Copy)]
enum Distance {
    Identical,
    Sparse,
    Drift,
    ScaledByRowAndColumn,
    HalfTheSame,
    Unrelated,
    Noise,
}

fn bytes_of(rng: &mut Random, dtype: &str, count: usize, fill: Fill) -> Vec<u8> {
    let size = size_of(dtype);
    let (mask, top) = (u64::MAX >> (64 - 8 * size), 1u64 << (8 * size - 1));
    // Infinity, if the dtype is a float.
    let inf = match dtype {
        "BF16" => 0x7f80,
        "F16" => 0x7c00,
        "F32" => 0x7f80_0000,
        "F64" => 0x7ff0_0000_0000_0000,
        "F8_E5M2" => 0x7c,
        _ => top - 1,
    };
    let constant = rng.next();
    let mut element = || match fill {
        Fill::Zero => 0,
        Fill::Constant => constant,
        Fill::Noise => rng.next(),
        Fill::Special => {
            let payload = rng.below(inf & inf.wrapping_neg());
            let pick = usize::try_from(rng.below(8)).unwrap();
            [0, top, inf, inf | top, inf | payload, inf | top | payload, payload, top | 1][pick]
        }
        Fill::Weights => {
            let weight = 0.02 * rng.normal();
            match dtype {
                "BF16" => half::bf16::from_f32(weight).to_bits().into(),
                "F16" => half::f16::from_f32(weight).to_bits().into(),
                "F8_E5M2" | "F8_E4M3" => u64::from(half::f16::from_f32(weight).to_bits() >> 8),
                "F64" => f64::from(weight).to_bits(),
                "F32" => weight.to_bits().into(),
                _ => rng.around_zero(20).cast_unsigned(),
            }
        }
    };
    (0..count).flat_map(|_| (element() & mask).to_le_bytes()[..size].to_vec()).collect()
}

/// Bytes that are moved as one number. Nibbles are moved in pairs.
fn size_of(dtype: &str) -> usize {
    let bits = DTYPES.iter().find(|(name, _)| *name == dtype).unwrap().1;
    usize::try_from(bits / 8).unwrap().max(1)
}

fn moved(rng: &mut Random, base: &Tensor, distance: Distance) -> Vec<u8> {
    let size = size_of(&base.dtype);
    let count = base.bytes.len() / size;
    let cols = usize::try_from(base.shape.last().copied().unwrap_or(1).max(1)).unwrap();
    match distance {
        Distance::Identical => base.bytes.clone(),
        Distance::Sparse => {
            stepped(&base.bytes, size, |_| if rng.below(50) == 0 { rng.around_zero(9) } else { 0 })
        }
        Distance::Drift => stepped(&base.bytes, size, |_| rng.around_zero(3)),
        Distance::ScaledByRowAndColumn => {
            stepped(&base.bytes, size, |i| rng.around_zero(1 << (i / cols % 5 + i % cols % 4)))
        }
        Distance::HalfTheSame => {
            stepped(&base.bytes, size, |i| if i < count / 2 { 0 } else { rng.next().cast_signed() })
        }
        Distance::Unrelated => bytes_of(rng, &base.dtype, count, Fill::Weights),
        Distance::Noise => bytes_of(rng, &base.dtype, count, Fill::Noise),
    }
}

type Recipe = (usize, usize, Fill, Distance, u64);

fn recipe() -> impl Strategy<Value = Recipe> {
    let fill = prop_oneof![
        4 => Just(Fill::Weights),
        2 => Just(Fill::Special),
        1 => Just(Fill::Zero),
        1 => Just(Fill::Constant),
        1 => Just(Fill::Noise),
    ];
    let distance = prop_oneof![
        Just(Distance::Identical),
        Just(Distance::Sparse),
        Just(Distance::Drift),
        Just(Distance::ScaledByRowAndColumn),
        Just(Distance::HalfTheSame),
        Just(Distance::Unrelated),
        Just(Distance::Noise),
    ];
    (0..DTYPES.len(), 0..SHAPES.len(), fill, distance, any::<u64>())
}

/// A tensor of the base and its changed version.
fn pair(number: usize, &(dtype, shape, fill, distance, seed): &Recipe) -> (Tensor, Tensor) {
    let mut rng = Random::new(seed);
    let ((dtype, bits), mut shape) = (DTYPES[dtype], SHAPES[shape].to_vec());
    if bits < 8 {
        shape.push(2);
    }
    let bytes = shape.iter().product::<u64>() * bits / 8;
    let count = usize::try_from(bytes).unwrap() / size_of(dtype);
    let base = tensor(&format!("t{number}"), dtype, &shape, bytes_of(&mut rng, dtype, count, fill));
    let tuned = Tensor { bytes: moved(&mut rng, &base, distance), ..base.clone() };
    (base, tuned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]
    #[test]
    fn any_tensors_come_back(recipes in prop::collection::vec(recipe(), 1..6), preset in 0usize..3, large_chunks in any::<bool>()) {
        let (base, tuned): (Vec<_>, Vec<_>) = recipes.iter().enumerate().map(|(i, recipe)| pair(i, recipe)).unzip();
        let (base, tuned) = (safetensors(&base), safetensors(&tuned));
        // Larger chunks have streams of many lanes.
        let options = options().with_preset(Preset::ALL[preset]).with_chunk_log2(if large_chunks { 13 } else { 10 });
        roundtrip_with(&tuned, &[&base], &options);
        roundtrip_with(&tuned, &[], &options);
    }
}

/// The random test above reaches a given pair of these only now and then.
#[test]
fn every_dtype_comes_back_in_every_shape() {
    for preset in Preset::ALL {
        for (d, (dtype, _)) in DTYPES.iter().enumerate() {
            let shapes = 0..SHAPES.len();
            let recipe =
                |shape| (d, shape, Fill::Special, Distance::ScaledByRowAndColumn, (d * 100 + shape) as u64);
            let (base, tuned): (Vec<_>, Vec<_>) = shapes.map(|shape| pair(shape, &recipe(shape))).unzip();
            let report =
                roundtrip_with(&safetensors(&tuned), &[&safetensors(&base)], &options().with_preset(preset))
                    .1;
            assert!(report.tensors.iter().all(|tensor| tensor.dtype == *dtype));
        }
    }
}

#[test]
fn chunks_of_every_size_come_back() {
    let mut rng = Random::new(3);
    let base = tensor("w", "BF16", &[700, 400], bf16_bytes(&rng.weights(280_000)));
    let tuned = Tensor { bytes: stepped(&base.bytes, 2, |_| rng.around_zero(2)), ..base.clone() };
    let (base, tuned) = (safetensors(&[base]), safetensors(&[tuned]));
    for chunk_log2 in 10..=20 {
        roundtrip_with(&tuned, &[&base], &options().with_chunk_log2(chunk_log2));
    }
    for chunk_log2 in [0, 9, 21, 255] {
        let options = options().with_chunk_log2(chunk_log2);
        let packed =
            deltaloom::pack_to(&checkpoint(&tuned).unwrap(), &bases(&[&base]), Vec::new(), &options, &Silent);
        assert!(matches!(packed, Err(deltaloom::Error::InvalidArgument(_))), "{chunk_log2}");
    }
}

#[test]
fn headers_come_back_as_they_were_written() {
    let data = Random::new(4).bytes(24);
    for header in [
        "{}".to_owned(),
        r#"{"__metadata__":{"only":"metadata"}}  "#.to_owned(),
        // Members in another order than their places, metadata in between, spaces, escapes, unknown
        // keys.
        format!(
            "{{ \"b\" : {{\"shape\":[4],\"data_offsets\":[8,24],\"dtype\":\"F32\",\"more\":[{{}}]}},\n\t\"__metadata__\":{{\"z\":\"\\u00e9\",\"a\":\"\"}}, \
            \"a\":{{\"dtype\":\"U8\",\"data_offsets\":[0,8],\"shape\":[2,4]}} }}{}",
            " ".repeat(77)
        ),
    ] {
        let has_data = header.contains("U8");
        let file = file(&header, if has_data { &data } else { &[] });
        let report = roundtrip(&file, &[]);
        assert_eq!(report.tensors.len(), if has_data { 2 } else { 0 });
        roundtrip(&file, &[&file]);
    }
}

#[test]
fn names_are_only_names() {
    let names = [
        "",
        ".",
        "../../up",
        "/root",
        "a/b",
        "line\nbreak",
        "quote\"\\",
        "\u{0}",
        "C:\\x",
        "naïve ☃",
        "__proto__",
    ];
    let mut rng = Random::new(5);
    let of = |rng: &mut Random, name: &&str| tensor(name, "F32", &[3], rng.bytes(12));
    let base = safetensors(&names.iter().map(|name| of(&mut rng, name)).collect::<Vec<_>>());
    let tuned = safetensors(&names.iter().map(|name| of(&mut rng, name)).collect::<Vec<_>>());
    let report = roundtrip(&tuned, &[&base]);
    assert!(names.iter().all(|name| report.tensors.iter().any(|tensor| tensor.name == *name)));
    roundtrip(&base, &[&base]);
}

#[test]
fn only_tensors_that_are_near_are_references() {
    let mut rng = Random::new(6);
    let weights = bf16_bytes(&rng.weights(2000));
    let near = stepped(&weights, 2, |_| rng.around_zero(1));
    let noise = rng.bytes(4000);
    let base = safetensors(&[
        tensor("kept", "BF16", &[2000], weights.clone()),
        tensor("only base", "BF16", &[2000], weights.clone()),
        tensor("retyped", "F16", &[2000], weights.clone()),
        tensor("reshaped", "BF16", &[40, 50], weights.clone()),
        tensor("unrelated", "BF16", &[2000], weights),
    ]);
    let tuned = safetensors(&[
        tensor("only tuned", "BF16", &[2000], stepped(&near, 2, |i| i64::from(i == 0))),
        tensor("kept", "BF16", &[2000], near.clone()),
        tensor("retyped", "BF16", &[2000], stepped(&near, 2, |i| i64::from(i == 1))),
        tensor("reshaped", "BF16", &[50, 40], stepped(&near, 2, |i| i64::from(i == 2))),
        tensor("unrelated", "BF16", &[2000], noise),
    ]);
    let report = roundtrip(&tuned, &[&base]);
    let predictors = predictors(&report);
    // Two of them have no tensor of their name and type in the base, but one of another name.
    for name in ["kept", "only tuned", "retyped"] {
        assert_eq!(predictors[name], "reference", "{name}");
    }
    assert_eq!((predictors["reshaped"], predictors["unrelated"]), ("view", "zero"));
}

#[test]
fn a_prefix_of_all_names_is_seen_through() {
    let mut rng = Random::new(7);
    let weights = bf16_bytes(&rng.weights(3000));
    let near = stepped(&weights, 2, |_| rng.around_zero(1));
    let plain = safetensors(&[
        tensor("a.w", "BF16", &[3000], weights.clone()),
        tensor("b.w", "BF16", &[3000], near.clone()),
    ]);
    let prefixed = safetensors(&[
        tensor("model.a.w", "BF16", &[3000], near),
        tensor("model.b.w", "BF16", &[3000], weights),
    ]);
    for (file, base, name) in [(&prefixed, &plain, "a.w"), (&plain, &prefixed, "model.a.w")] {
        let report = roundtrip(file, &[base]);
        assert_eq!(
            (report.tensors[0].predictor, report.tensors[0].reference.as_deref()),
            ("reference", Some(name))
        );
    }
}

#[test]
fn equal_tensors_are_tied_and_equal_references_cost_nothing() {
    let mut rng = Random::new(8);
    let (shared, other) = (bf16_bytes(&rng.weights(4000)), bf16_bytes(&rng.weights(4000)));
    let same = |name: &str, bytes: &[u8]| tensor(name, "BF16", &[40, 100], bytes.to_vec());
    let tuned =
        safetensors(&[same("z", &shared), same("kept", &other), same("y", &shared), same("x", &shared)]);
    let report = roundtrip(&tuned, &[&safetensors(&[same("kept", &other)])]);
    let by_name = predictors(&report);
    assert_eq!(
        (by_name["z"], by_name["y"], by_name["x"], by_name["kept"]),
        ("zero", "tied", "tied", "identical")
    );
    assert!(report.tensors[1..].iter().all(|tensor| tensor.packed_bytes == 0));
}

#[test]
fn moments_are_coded_by_how_large_they_should_be() {
    let mut rng = Random::new(14);
    let (_, old) = moments(&mut rng, 96, 80);
    let mut second: Vec<f32> = old.iter().map(|v| v * (0.7 * rng.normal()).exp2()).collect();
    // One row of zeros, one of the smallest values and one of the largest.
    for (row, value) in [(3, 0.0), (4, f32::from_bits(1)), (5, f32::MAX)] {
        second[row * 80..(row + 1) * 80].fill(value);
    }
    let first: Vec<f32> = second.iter().map(|v| v.sqrt() * rng.normal()).collect();
    let base = safetensors(&[tensor("v.w", "F32", &[96, 80], f32_bytes(&old))]);
    let file = safetensors(&[
        tensor("m.w", "F32", &[96, 80], f32_bytes(&first)),
        tensor("v.w", "F32", &[96, 80], f32_bytes(&second)),
    ]);
    let alone = |against: &[&[u8]]| {
        let report = roundtrip(&file, against);
        let kinds: Vec<_> = report.tensors.iter().map(|t| (t.predictor, t.codec)).collect();
        (kinds, report.packed_bytes)
    };
    let (kinds, bytes) = alone(&[&base]);
    assert_eq!(kinds, [("companion", "scaled"), ("reference", "scaled")]);
    let (kinds, bytes_alone) = alone(&[]);
    assert_eq!(kinds, [("companion", "scaled"), ("zero", "scaled")]);
    assert!(bytes < bytes_alone && bytes_alone < file.len() as u64 * 7 / 8, "{bytes} {bytes_alone}");
    // Renamed so that nothing shows that they belong together.
    let apart = safetensors(&[
        tensor("m.w", "F32", &[96, 80], f32_bytes(&first)),
        tensor("v.x", "F32", &[96, 80], f32_bytes(&second)),
    ]);
    let report = roundtrip(&apart, &[]);
    assert!(report.tensors.iter().all(|t| t.predictor == "zero") && report.packed_bytes > bytes_alone);
}

#[test]
fn an_average_of_weights_is_coded_against_them() {
    let mut rng = Random::new(15);
    let weights = rng.weights(9000);
    let average: Vec<f32> = weights.iter().map(|w| w + 1e-4 * rng.normal()).collect();
    let file = safetensors(&[
        tensor("ema.w", "F32", &[90, 100], f32_bytes(&average)),
        tensor("model.w", "F32", &[90, 100], f32_bytes(&weights)),
    ]);
    let report = roundtrip(&file, &[]);
    let mut tensors: Vec<_> = report.tensors.iter().map(|t| (t.predictor, t.codec, t.packed_bytes)).collect();
    tensors.sort_unstable();
    let [("companion", "ulp", small), ("zero", _, large)] = tensors[..] else { panic!("{tensors:?}") };
    assert!(small * 5 < large * 4, "{tensors:?}");
}

#[test]
fn roundings_of_a_master_cost_nothing_whichever_comes_first() {
    let mut rng = Random::new(9);
    let mut weights = rng.weights(4000);
    weights[..6].copy_from_slice(&[f32::NAN, f32::INFINITY, -0.0, 1e-40, f32::MAX, 65520.0]);
    let master = tensor("master", "F32", &[40, 100], f32_bytes(&weights));
    let copies = [
        tensor("bf16", "BF16", &[40, 100], bf16_bytes(&weights)),
        tensor("f16", "F16", &[40, 100], f16_bytes(&weights)),
        // Equal to a tensor that is itself a rounding.
        tensor("again", "BF16", &[40, 100], bf16_bytes(&weights)),
    ];
    let all_cast =
        |report: &PackReport| copies.iter().all(|copy| predictors(report)[copy.name.as_str()] == "cast");
    let after = [std::slice::from_ref(&master), &copies].concat();
    let before = [&copies, std::slice::from_ref(&master)].concat();
    for file in [after, before] {
        let report = roundtrip(&safetensors(&file), &[]);
        assert!(all_cast(&report), "{report:?}");
    }
    // From a master in the base under any name.
    let renamed = Tensor { name: "other name".to_owned(), ..master.clone() };
    let base = safetensors(&[renamed]);
    let report = roundtrip(&safetensors(&copies), &[&base]);
    assert!(
        all_cast(&report) && report.tensors.iter().all(|t| t.reference.as_deref() == Some("other name")),
        "{report:?}"
    );
    // One element differs from the rounding, so the tensor is not a rounding.
    let mut almost = copies[0].clone();
    *almost.bytes.last_mut().unwrap() ^= 1;
    assert_eq!(roundtrip(&safetensors(&[almost, master]), &[]).tensors[0].predictor, "zero");
}

#[test]
fn of_several_bases_the_cheaper_is_taken_tensor_by_tensor() {
    let mut rng = Random::new(10);
    let weights = |rng: &mut Random| bf16_bytes(&rng.weights(3000));
    let (a, b) = (weights(&mut rng), weights(&mut rng));
    let of = |a: Vec<u8>, b: Vec<u8>| {
        safetensors(&[tensor("a", "BF16", &[3000], a), tensor("b", "BF16", &[3000], b)])
    };
    let far = |rng: &mut Random, bytes: &[u8]| stepped(bytes, 2, |_| rng.around_zero(60));
    let near = |rng: &mut Random, bytes: &[u8]| stepped(bytes, 2, |_| rng.around_zero(1));
    let tuned = of(a.clone(), b.clone());
    let near_a = of(near(&mut rng, &a), far(&mut rng, &b));
    let near_b = of(far(&mut rng, &a), near(&mut rng, &b));
    let alone = [&near_a, &near_b].map(|base| roundtrip(&tuned, &[base]));
    let both = roundtrip(&tuned, &[&near_a, &near_b]);
    assert!(both.packed_bytes * 3 < 2 * alone[0].packed_bytes.min(alone[1].packed_bytes));
    // Readers may supply them in any order, and more than are needed.
    let (container, _) = pack(&tuned, &[&near_b, &near_a]);
    for order in [[&near_a, &near_b, &tuned], [&tuned, &near_b, &near_a]] {
        assert!(unpack(&container, &order.map(Vec::as_slice)).unwrap() == tuned);
    }
}

/// Opaque dtypes of unknown size may have the same shape and different lengths. Such tensors cannot
/// be references.
#[test]
fn unknown_dtypes_of_one_shape_and_two_lengths_are_different_types() {
    let of = |seed, len| tensor("x", "F3_X", &[1000], Random::new(seed).bytes(len));
    let next = tensor("y", "U8", &[4000], Random::new(3).bytes(4000));
    let (short, long) = (safetensors(&[of(1, 2000), next.clone()]), safetensors(&[of(1, 3000), next]));
    for (file, base) in [(&long, &short), (&short, &long)] {
        assert_eq!(predictors(&roundtrip(file, &[base]))["x"], "zero");
        let (one, other) = (bases(&[file]), bases(&[base]));
        assert_eq!(deltaloom::diff(&one, &other, 1, &Silent).unwrap().tensors[0].status, "retyped");
    }
}

fn pack_path(path: &Path, against: &[PathBuf], target: &Path) -> PackReport {
    let limits = Limits::default();
    let (checkpoint, bases) =
        (Checkpoint::open(path, &limits).unwrap(), Bases::open(against, &limits).unwrap());
    deltaloom::pack(&checkpoint, &bases, target, &options(), &Silent).unwrap()
}

fn unpack_path(path: &Path, against: &[PathBuf], target: &Path) -> deltaloom::Result<()> {
    let limits = Limits::default();
    let resolved = ResolvedContainer::new(Container::open(path, &limits)?, &Bases::open(against, &limits)?)?;
    deltaloom::unpack(&resolved, target, &one_thread(), &Silent).map(|_| ())
}

#[test]
fn directories_come_back_whole_against_any_sharding() {
    let mut rng = Random::new(11);
    let layers: Vec<Tensor> = (0..6)
        .map(|i| tensor(&format!("model.layers.{i}.w"), "BF16", &[30, 50], bf16_bytes(&rng.weights(1500))))
        .collect();
    let tuned: Vec<Tensor> = layers
        .iter()
        .map(|t| Tensor { bytes: stepped(&t.bytes, 2, |_| rng.around_zero(1)), ..t.clone() })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let tokenizer = rng.bytes(5000);
    write_tree(
        &at("tuned"),
        &[
            ("model-00001-of-00002.safetensors", safetensors(&tuned[..2])),
            ("model-00002-of-00002.safetensors", safetensors(&tuned[2..])),
            ("model.safetensors.index.json", br#"{"weight_map":{}}"#.to_vec()),
            ("config.json", b"{\"tuned\": true}\n".to_vec()),
            ("empty", Vec::new()),
            ("no tensors.safetensors", file("{}", b"")),
            ("deep/er/tokenizer.bin", tokenizer.clone()),
            ("deep/..hidden", b"x".to_vec()),
        ],
    );
    let reversed: Vec<Tensor> = layers.iter().rev().cloned().collect();
    write_tree(
        &at("base"),
        &[
            ("a.safetensors", safetensors(&reversed[..1])),
            ("b/c.safetensors", safetensors(&reversed[1..4])),
            ("d.safetensors", safetensors(&reversed[4..])),
            ("config.json", b"{}".to_vec()),
            ("deep/er/tokenizer.bin", tokenizer),
        ],
    );
    let report = pack_path(&at("tuned"), &[at("base")], &at("packed.loom"));
    assert_eq!(report.predictors["reference"].count, 6);
    assert_eq!(predictors(&report)["deep/er/tokenizer.bin"], "identical");
    assert_eq!(report.original_bytes, tree(&at("tuned")).values().map(|file| file.len() as u64).sum::<u64>());
    unpack_path(&at("packed.loom"), &[at("base")], &at("out")).unwrap();
    assert!(tree(&at("out")) == tree(&at("tuned")));

    std::fs::create_dir(at("nothing")).unwrap();
    assert!(Checkpoint::open(&at("nothing"), &Limits::default()).is_err());
}

#[test]
fn containers_are_bases_in_any_order() {
    let mut rng = Random::new(12);
    let mut generations = vec![vec![
        tensor("w", "BF16", &[80, 50], bf16_bytes(&rng.weights(4000))),
        tensor("tied", "BF16", &[3000], bf16_bytes(&rng.weights(3000))),
        tensor("empty", "F32", &[0], Vec::new()),
    ]];
    for _ in 0..3 {
        let mut next = generations.last().unwrap().clone();
        next[0].bytes = stepped(&next[0].bytes, 2, |_| rng.around_zero(1));
        generations.push(next);
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |i: usize, ending: &str| folder.path().join(format!("{i}.{ending}"));
    for (i, tensors) in generations.iter().enumerate() {
        std::fs::write(at(i, "safetensors"), safetensors(tensors)).unwrap();
    }
    // Each needs the one before: 0 <- 1 <- 2 <- 3. The last two are only ever reached through
    // containers.
    pack_path(&at(1, "safetensors"), &[at(0, "safetensors")], &at(1, "loom"));
    pack_path(&at(2, "safetensors"), &[at(1, "loom"), at(0, "safetensors")], &at(2, "loom"));
    let chain = [at(0, "safetensors"), at(1, "loom"), at(2, "loom")];
    let report = pack_path(&at(3, "safetensors"), &chain, &at(3, "loom"));
    assert_eq!(
        report.tensors.iter().map(|t| t.predictor).collect::<Vec<_>>(),
        ["reference", "identical", "zero"]
    );
    let [zero, one, two] = chain;
    for (i, order) in [[&zero, &one, &two], [&two, &one, &zero], [&one, &two, &zero]].into_iter().enumerate()
    {
        let out = folder.path().join(format!("out {i}"));
        unpack_path(&at(3, "loom"), &order.map(Clone::clone), &out).unwrap();
        assert!(std::fs::read(out).unwrap() == safetensors(&generations[3]));
    }
    let missing = unpack_path(&at(3, "loom"), &[zero, two], &folder.path().join("none")).unwrap_err();
    assert!(missing.to_string().contains("2.loom"), "{missing}");
    assert!(!folder.path().join("none").exists());
}
