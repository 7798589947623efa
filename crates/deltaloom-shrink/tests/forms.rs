//! Students on disk: the golden student has the bytes that this version writes and the matrices
//! that it decodes, bad records are refused, and any form comes back as it was.
//! `UPDATE_STUDENTS=1` writes the golden student anew.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use deltaloom::checkpoint::{Checkpoint, Contents, NewTensor};
use deltaloom::tensor::{DType, TensorInfo};
use deltaloom::{Error, Limits, Result};
use deltaloom_shrink::forms::{
    Dense, FloatType, Form, FormRecord, Part, Pattern, Quantised, Scales, Source, Sparse, Steps, Tensors,
};
use half::f16;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Serialize, Deserialize)]
struct Student {
    schema: u32,
    lossy: bool,
    tool: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    from_base: Vec<String>,
    matrices: BTreeMap<String, MatrixRecord>,
}

#[derive(Serialize, Deserialize)]
struct MatrixRecord {
    shape: [usize; 2],
    form: FormRecord,
}

/// Numbers that look random, from -1 to 1.
fn numbers(seed: u32, len: usize) -> impl Iterator<Item = f32> {
    (seed << 16..).take(len).map(|at| {
        let mixed = (at.wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995).wrapping_mul(0x85eb_ca6b);
        f32::from_bits(mixed >> 9 | 0x4000_0000) - 3.0
    })
}

fn dense(dtype: FloatType, seed: u32, len: usize) -> Form {
    Form::Dense(Dense::new(dtype, numbers(seed, len).collect()))
}

fn halves(seed: u32, len: usize) -> Vec<f16> {
    numbers(seed, len).map(f16::from_f32).collect()
}

/// Codes in groups of `group` columns, or with one step; with factors of columns and rows.
fn codes(seed: u32, [rows, cols]: [usize; 2], group: Option<usize>, factors: [bool; 2]) -> Form {
    let codes =
        numbers(seed, rows * cols).map(|value| value.to_le_bytes()[1].cast_signed().max(-127)).collect();
    let steps = match group {
        None => Steps::Matrix(halves(seed + 1, 1)[0]),
        Some(size) => Steps::Groups { size, steps: halves(seed + 1, rows * cols.div_ceil(size)) },
    };
    let scales = Scales::from(steps)
        .with_columns(factors[0].then(|| halves(seed + 2, cols)))
        .with_rows(factors[1].then(|| halves(seed + 3, rows)));
    Form::Quantised(Quantised::new(rows, cols, codes, scales).unwrap())
}

/// A sparse matrix at the places that a pattern allows of those with `true`.
fn sparse(
    [rows, cols]: [usize; 2],
    pattern: Pattern,
    mut kept: Vec<bool>,
    values: impl FnOnce(usize) -> Form,
) -> Form {
    if let Pattern::NOfM { keep, of } = pattern {
        for some in kept.chunks_mut(cols).flat_map(|row| row.chunks_mut(of)) {
            some.iter_mut().filter(|kept| **kept).skip(keep).for_each(|kept| *kept = false);
        }
    }
    let count = kept.iter().filter(|kept| **kept).count();
    Form::Sparse(Sparse::new(rows, cols, pattern, Sparse::bits_of(&kept, cols), values(count)).unwrap())
}

fn low_rank(rank: usize, left: Form, right: Form) -> Form {
    Form::LowRank { left: Box::new(left), right: Box::new(right), rank }
}

/// Matrices `[6, 21]` of every kind.
const SHAPE: [usize; 2] = [6, 21];

fn golden_forms() -> BTreeMap<String, Form> {
    let [rows, cols] = SHAPE;
    let places = |seed| numbers(seed, rows * cols).map(|value| value > 0.2).collect::<Vec<_>>();
    let dense_values = |dtype, seed| move |count| dense(dtype, seed, count);
    let quantised_factors = |seed, [rows, cols]: [usize; 2], rank| {
        let left = codes(seed, [rows, rank], None, [true, false]);
        low_rank(rank, left, codes(seed + 4, [rank, cols], Some(5), [false, true]))
    };
    let nested = low_rank(4, quantised_factors(30, [rows, 4], 2), quantised_factors(40, [4, cols], 3));
    let two_of_four = Pattern::NOfM { keep: 2, of: 4 };
    let outliers = || sparse(SHAPE, Pattern::Any, places(50), dense_values(FloatType::BF16, 51));
    // The deepest that is allowed: four forms around one.
    let deepest = (0..4).fold(dense(FloatType::F16, 60, rows * cols), |inner, _| Form::Sum(vec![inner]));
    let forms = [
        ("dense.f32", dense(FloatType::F32, 1, rows * cols)),
        ("dense.bf16", dense(FloatType::BF16, 2, rows * cols)),
        ("dense.f16", dense(FloatType::F16, 3, rows * cols)),
        ("codes.matrix", codes(4, SHAPE, None, [false, false])),
        ("codes.columns", codes(5, SHAPE, None, [true, false])),
        ("codes.groups", codes(10, SHAPE, Some(8), [false, false])),
        ("codes.all", codes(15, SHAPE, Some(4), [true, true])),
        ("sparse.any", outliers()),
        ("sparse.codes", sparse(SHAPE, two_of_four, places(52), |n| codes(53, [1, n], Some(16), [false; 2]))),
        (
            "sparse.row",
            sparse(SHAPE, Pattern::NOfM { keep: 1, of: 40 }, places(54), dense_values(FloatType::F32, 55)),
        ),
        (
            "sparse.none",
            sparse(SHAPE, Pattern::Any, vec![false; rows * cols], dense_values(FloatType::F32, 0)),
        ),
        ("rank.dense", low_rank(6, dense(FloatType::F32, 20, rows * 6), dense(FloatType::F32, 21, 6 * cols))),
        ("rank.codes", quantised_factors(22, SHAPE, 5)),
        ("rank.nested", nested.clone()),
        ("sum.all", Form::Sum(vec![nested, outliers(), codes(56, SHAPE, Some(21), [false; 2]), Form::Zero])),
        ("sum.deepest", deepest),
        ("zero", Form::Zero),
    ];
    forms.into_iter().map(|(name, form)| (format!("{name}.weight"), form)).collect()
}

fn file(tensors: Tensors) -> Vec<u8> {
    let new = |(name, Part { dtype, shape, bytes })| NewTensor {
        name,
        dtype: DType::from_name(dtype),
        shape,
        source: Arc::new(bytes),
    };
    let tensors = tensors.into_iter().map(new).collect();
    let made = Checkpoint::from_tensors("student", tensors, &BTreeMap::new(), &Limits::default()).unwrap();
    let Contents::Safetensors(header) = &made.members[0].contents else { panic!("not a safetensors file") };
    let mut bytes = [&(header.len() as u64).to_le_bytes()[..], header].concat();
    for (member, info) in made.tensors() {
        bytes.extend(made.read_tensor(member, info).unwrap());
    }
    bytes
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A matrix in F32.
fn part([rows, cols]: [usize; 2], values: &[f32]) -> Part {
    Part { dtype: "F32", shape: vec![rows as u64, cols as u64], bytes: floats(values) }
}

/// A base: tensors of each type, and what they are in F32.
fn golden_base() -> BTreeMap<String, (Part, Arc<[f32]>)> {
    let types = [("f32", FloatType::F32), ("bf16", FloatType::BF16), ("f16", FloatType::F16)];
    let shape = SHAPE.map(|size| size as u64).to_vec();
    let tensor = |(number, (name, dtype)): (u32, (&str, FloatType))| {
        let mut written = Tensors::new();
        let form = dense(dtype, 80 + number, SHAPE[0] * SHAPE[1]);
        form.write("m", SHAPE, &mut written);
        let part = Part { shape: shape.clone(), ..written.remove("m.values").unwrap() };
        (format!("{name}.weight"), (part, form.decode(SHAPE[0], SHAPE[1]).into()))
    };
    (0..).zip(types).map(tensor).collect()
}

/// Forms on that base, by the name of its tensor; the last one has none.
fn forms_on_base() -> BTreeMap<String, Form> {
    let [rows, cols] = SHAPE;
    let base = golden_base();
    let on = |name: &str| Form::Base(Arc::clone(&base[&format!("{name}.weight")].1));
    let turned = |seed, [rows, cols]: [usize; 2]| {
        Form::Turned(Box::new(codes(seed, [cols, rows], None, [true, false])))
    };
    let factors = low_rank(3, codes(91, [rows, 3], None, [true, false]), turned(93, [3, cols]));
    let inner = Form::Sum(vec![on("f16"), dense(FloatType::F16, 95, rows * cols)]);
    let forms = [
        ("f32", on("f32")),
        ("bf16", Form::Sum(vec![on("bf16"), factors])),
        ("f16", Form::Sum(vec![inner, Form::Zero])),
        ("turned", turned(96, SHAPE)),
    ];
    forms.into_iter().map(|(name, form)| (format!("{name}.weight"), form)).collect()
}

/// The digest of a base by docs/student.md.
fn digest(base: &BTreeMap<String, (Part, Arc<[f32]>)>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, (part, values)) in base {
        let widened = floats(values);
        hasher.update(name.as_bytes());
        hasher.update(if part.dtype == "F16" { &widened } else { &part.bytes });
    }
    hasher.finalize().to_hex().to_string()
}

/// The files of the golden student with a base.
fn golden_files_with_base() -> Vec<(&'static str, Vec<u8>)> {
    let mut base = golden_base();
    base.insert("norm.weight".to_owned(), (part([1, 21], &[1.5; 21]), [1.5; 21].into()));
    let from_base = vec!["norm.weight".to_owned()];
    let [weights, json, decoded] = files_of(forms_on_base(), Some((digest(&base), from_base)));
    let base = base.into_iter().map(|(name, (part, _))| (name, part)).collect();
    vec![weights, json, decoded, ("base/model.safetensors", file(base))]
}

/// The files of the golden student.
fn golden_files() -> [(&'static str, Vec<u8>); 3] {
    files_of(golden_forms(), None)
}

/// The files of a student; with a base, whose digest and kept tensors are given.
fn files_of(
    forms: BTreeMap<String, Form>,
    base: Option<(String, Vec<String>)>,
) -> [(&'static str, Vec<u8>); 3] {
    let mut tensors = Tensors::new();
    let (mut matrices, mut decoded) = (BTreeMap::new(), Tensors::new());
    for (name, form) in forms {
        decoded.insert(name.clone(), part(SHAPE, &form.decode(SHAPE[0], SHAPE[1])));
        let form = form.write(&name, SHAPE, &mut tensors);
        matrices.insert(name, MatrixRecord { shape: SHAPE, form });
    }
    let (base, from_base) = base.unzip();
    if base.is_none() {
        tensors.insert("norm.weight".to_owned(), part([1, 21], &[1.0; 21]));
    }
    let from_base = from_base.unwrap_or_default();
    let tool = "tests/forms.rs".to_owned();
    let student = Student { schema: 1, lossy: true, tool, base, from_base, matrices };
    let json = serde_json::to_vec_pretty(&student).unwrap();
    [("student.safetensors", file(tensors)), ("student.json", json), ("decoded.safetensors", file(decoded))]
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/students").join(name)
}

#[test]
fn the_golden_student_is_written_again_and_read() {
    check_golden("forms", &golden_files(), &golden_forms());
    check_golden("base", &golden_files_with_base(), &forms_on_base());
}

fn check_golden(student: &str, files: &[(&str, Vec<u8>)], expected: &BTreeMap<String, Form>) {
    let golden = |name: &str| golden(student).join(name);
    for (name, bytes) in files {
        if std::env::var_os("UPDATE_STUDENTS").is_some() {
            std::fs::create_dir_all(golden(name).parent().unwrap()).unwrap();
            std::fs::write(golden(name), bytes).unwrap();
        }
        assert!(std::fs::read(golden(name)).unwrap() == *bytes, "{name} differs");
    }
    let open = |name: &str| {
        let opened = Checkpoint::open(&golden(name), &Limits::default()).unwrap();
        let tensor = |(member, info): (usize, &TensorInfo)| {
            let bytes = opened.read_tensor(member, info).unwrap();
            (info.name.clone(), (info.dtype.to_string(), info.shape.clone(), bytes))
        };
        opened.tensors().map(tensor).collect::<BTreeMap<_, _>>()
    };
    let (stored, decoded) = (open("student.safetensors"), open("decoded.safetensors"));
    let find = |name: &str, dtype: &str, shape: &[usize]| {
        let (found, dims, bytes) = &stored[name];
        let dims: Vec<usize> = dims.iter().map(|size| usize::try_from(*size).unwrap()).collect();
        assert_eq!((found.as_str(), dims.as_slice()), (dtype, shape), "{name}");
        Ok(bytes.clone())
    };
    let student: Student = serde_json::from_slice(&std::fs::read(golden("student.json")).unwrap()).unwrap();
    let base = golden_base();
    assert!(student.matrices.keys().eq(expected.keys()));
    for (name, MatrixRecord { shape, form }) in &student.matrices {
        let base = base.get(name).map(|(_, values)| values);
        let read = Form::read(form, name, *shape, &Source { find: &find, base }).unwrap();
        assert_eq!(&read, &expected[name], "{name}");
        assert!(floats(&read.decode(shape[0], shape[1])) == decoded[name].2, "{name} decodes to other bits");
    }
}

/// Reads a form whose tensors are in memory.
fn read(record: &FormRecord, shape: [usize; 2], tensors: &Tensors) -> Result<Form> {
    let wrong = |name: &str| Error::InvalidArgument(format!("{name} is not there"));
    let find = |name: &str, dtype: &str, shape: &[usize]| {
        let part = tensors.get(name).ok_or_else(|| wrong(name))?;
        let shape = shape.iter().map(|size| *size as u64);
        let is_same = part.dtype == dtype && part.shape.iter().copied().eq(shape);
        if is_same { Ok(part.bytes.clone()) } else { Err(wrong(name)) }
    };
    Form::read(record, "m", shape, &Source { find: &find, base: None })
}

/// What reading says of a form that was changed after it was written.
fn changed(form: &Form, change: impl FnOnce(&mut serde_json::Value, &mut Tensors)) -> String {
    let mut tensors = Tensors::new();
    let mut json = serde_json::to_value(form.write("m", SHAPE, &mut tensors)).unwrap();
    change(&mut json, &mut tensors);
    match serde_json::from_value(json) {
        Ok(record) => read(&record, SHAPE, &tensors).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    for (name, form) in golden_forms() {
        let mut tensors = Tensors::new();
        let record = form.write("m", SHAPE, &mut tensors);
        assert_eq!(read(&record, SHAPE, &tensors).unwrap(), form, "{name}");
        for tensor in tensors.keys() {
            let without = |_: &mut _, tensors: &mut Tensors| drop(tensors.remove(tensor));
            assert!(changed(&form, without).contains("is not there"), "{name} without {tensor}");
            let turned = |_: &mut _, tensors: &mut Tensors| tensors.get_mut(tensor).unwrap().shape.push(1);
            assert!(changed(&form, turned).contains("is not there"), "{name} with another {tensor}");
        }
        if !tensors.is_empty() {
            assert!(read(&record, [SHAPE[0] + 1, SHAPE[1]], &tensors).is_err(), "{name}");
        }
    }
}

#[test]
fn numbers_that_no_writer_writes_are_refused() {
    let forms = golden_forms();
    let with = |form: &str, tensor: &str, at: usize, bytes: &[u8]| {
        changed(&forms[&format!("{form}.weight")], |_, tensors| {
            tensors.get_mut(tensor).unwrap().bytes[at..at + bytes.len()].copy_from_slice(bytes);
        })
    };
    let infinity = f16::INFINITY.to_le_bytes();
    assert!(with("codes.all", "m.codes", 3, &[0x80]).contains("codes do not make a matrix"));
    for tensor in ["m.steps", "m.columns", "m.rows"] {
        assert!(with("codes.all", tensor, 2, &infinity).contains("a step or a factor is inf"), "{tensor}");
    }
    assert!(with("rank.codes", "m.left.steps", 0, &infinity).contains("is inf"));
    assert!(with("dense.f32", "m.values", 4, &f32::NAN.to_le_bytes()).contains("the value NaN"));
    assert!(with("dense.f16", "m.values", 2, &infinity).contains("the value inf"));
    assert!(with("sum.all", "m.1.kept.values", 0, &[0x80, 0xff]).contains("the value -inf"));
    assert!(with("sparse.none", "m.bits", 0, &[1]).contains("1 set bits and 0 values"));
}

#[test]
fn records_that_do_not_fit_are_refused() {
    let forms = golden_forms();
    let with = |form: &str, place: &str, value: serde_json::Value| {
        changed(&forms[&format!("{form}.weight")], |json, _| *json.pointer_mut(place).unwrap() = value)
    };
    for size in [json!(-1), json!(1.5), json!("1"), json!(true)] {
        assert!(with("rank.codes", "/rank", size.clone()).contains("invalid"), "{size}");
    }
    for rank in [json!(0), json!(7), json!(u64::MAX)] {
        assert!(with("rank.codes", "/rank", rank).contains("and has rank"));
    }
    assert!(with("codes.groups", "/group", json!(0)).contains("groups of 0 columns"));
    assert!(with("codes.groups", "/group", json!(11)).contains("is not there"));
    assert!(with("codes.groups", "/group", json!(u64::MAX)).contains("is not there"));
    assert!(with("sparse.any", "/count", json!(1)).contains("set bits and 1 values"));
    assert!(with("dense.f32", "/dtype", json!("F64")).contains("unknown variant"));
    assert!(with("dense.f32", "/kind", json!("gaps")).contains("unknown variant"));
    for (keep, of) in [(0, 4), (1, 4), (4, 4), (2, 0), (2, 21)] {
        let pattern = json!({"n_of_m": {"keep": keep, "of": of}});
        assert!(with("sparse.codes", "/pattern", pattern).contains("are not"), "{keep}:{of}");
    }
    let strange = changed(&forms["codes.all.weight"], |json, _| json["zero_points"] = json!(true));
    assert!(strange.contains("unknown field"));
    // A base that is not there, or that is not the whole matrix.
    let on_base = &forms_on_base()["f32.weight"];
    assert!(changed(on_base, |_, _| ()).contains("is that of a base"));
    let inside = |json: &mut serde_json::Value, _: &mut _| json["left"] = json!({"kind": "base"});
    let rank = low_rank(6, Form::Zero, dense(FloatType::F32, 21, SHAPE[0] * SHAPE[1]));
    assert!(changed(&rank, inside).contains("is that of a base"));
    let deeper = Form::Sum(vec![forms["sum.deepest.weight"].clone()]);
    assert!(changed(&deeper, |_, _| ()).contains("nest deeper than 4"));
}

#[test]
fn a_factor_that_is_not_there_takes_no_memory() {
    let zero = || Box::new(FormRecord::Zero);
    let huge = FormRecord::LowRank { rank: usize::MAX, left: zero(), right: zero() };
    assert!(read(&huge, SHAPE, &Tensors::new()).is_err());
    // A product that was not read from a file has its shape, too.
    assert_eq!(low_rank(0, Form::Zero, Form::Zero).decode(2, 3), [0.0; 6]);
}

/// Any form of a matrix `[rows, cols]`, with at most `depth` forms around another.
fn any_form(rows: usize, cols: usize, depth: u32) -> BoxedStrategy<Form> {
    let leaf = prop_oneof![
        (any::<u16>(), prop::sample::select(vec![FloatType::F32, FloatType::BF16, FloatType::F16]))
            .prop_map(move |(seed, dtype)| dense(dtype, seed.into(), rows * cols)),
        (any::<u16>(), prop::option::of(1..cols + 3), any::<[bool; 2]>())
            .prop_map(move |(seed, group, factors)| codes(seed.into(), [rows, cols], group, factors)),
        Just(Form::Zero),
    ];
    if depth == 0 {
        return leaf.boxed();
    }
    let product = (1..=rows.min(cols).max(1)).prop_flat_map(move |rank| {
        (any_form(rows, rank, depth - 1), any_form(rank, cols, depth - 1))
            .prop_map(move |(left, right)| low_rank(rank, left, right))
    });
    let sum = prop::collection::vec(any_form(rows, cols, depth - 1), 0..3).prop_map(Form::Sum);
    let turned = any_form(cols, rows, depth - 1).prop_map(|form| Form::Turned(Box::new(form)));
    let pattern = prop_oneof![
        Just(Pattern::Any),
        (1..4usize, 1..6usize).prop_map(|(keep, more)| Pattern::NOfM { keep, of: keep + more }),
    ];
    let kept = prop::collection::vec(any::<bool>(), rows * cols);
    let places = (pattern, kept, any::<u16>()).prop_map(move |(pattern, kept, seed)| {
        sparse([rows, cols], pattern, kept, |count| codes(seed.into(), [1, count], Some(3), [true; 2]))
    });
    prop_oneof![2 => leaf, 1 => product, 1 => sum, 1 => turned, 1 => places].boxed()
}

proptest! {
    #[test]
    fn any_form_comes_back(
        (shape, form) in (1..7usize, 1..20usize)
            .prop_flat_map(|(rows, cols)| (Just([rows, cols]), any_form(rows, cols, 2)))
    ) {
        let mut tensors = Tensors::new();
        let record = form.write("m", shape, &mut tensors);
        let text = serde_json::to_string(&record).unwrap();
        let found = read(&serde_json::from_str(&text).unwrap(), shape, &tensors).unwrap();
        prop_assert_eq!(&found, &form);
        let mut again = Tensors::new();
        prop_assert_eq!(found.write("m", shape, &mut again), record);
        prop_assert_eq!(again, tensors);
        let [rows, cols] = shape;
        prop_assert_eq!(floats(&found.decode(rows, cols)), floats(&form.decode(rows, cols)));
        prop_assert_eq!(found.decode(rows, cols).len(), rows * cols);
    }
}
