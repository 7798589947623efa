//! A family gives every tenant's tokens the results of its dense fine-tune, whatever else is in the
//! batch and in memory.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../deltaloom/tests/common/mod.rs"]
mod common;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use common::*;
use deltaloom::{Container, Error, Limits, Result, with_threads};
use deltaloom_compute::{DenseMatrix, Form, Mode, Run, WeightType};
use deltaloom_lm::layer::{
    Batch, LayerConfig, LayerHints, LayerNames, LayerWeights, MatrixRole, Sequence, TenantId, VectorRole,
    forward,
};
use deltaloom_lm::tenancy::{Family, FamilyOptions, Forms, TenantResidency};
use half::bf16;

const WIDTH: u64 = 64;
const HIDDEN: u64 = 96;
const CONFIG: &str = r#"{"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "hidden_act": "silu"}"#;

/// The tensors of two layers.
fn shapes() -> Vec<(String, Vec<u64>)> {
    let names: [(&str, &[u64]); 9] = [
        ("input_layernorm.weight", &[WIDTH]),
        ("self_attn.q_proj.weight", &[WIDTH, WIDTH]),
        ("self_attn.k_proj.weight", &[WIDTH / 2, WIDTH]),
        ("self_attn.v_proj.weight", &[WIDTH / 2, WIDTH]),
        ("self_attn.o_proj.weight", &[WIDTH, WIDTH]),
        ("post_attention_layernorm.weight", &[WIDTH]),
        ("mlp.gate_proj.weight", &[HIDDEN, WIDTH]),
        ("mlp.up_proj.weight", &[HIDDEN, WIDTH]),
        ("mlp.down_proj.weight", &[WIDTH, HIDDEN]),
    ];
    let layer =
        |number: usize| names.map(|(name, shape)| (format!("model.layers.{number}.{name}"), shape.to_vec()));
    [layer(0), layer(1)].concat()
}

/// A base or, with a number, a fine-tune of it in which a seventh of the elements differ. Its key
/// matrix equals the base's.
fn model(tenant: Option<u64>) -> Vec<Tensor> {
    let mut rng = Random::new(77);
    let mut other = Random::new(1000 + tenant.unwrap_or(0));
    let make = |(name, shape): (String, Vec<u64>)| {
        let count = usize::try_from(shape.iter().product::<u64>()).unwrap();
        let norm = if shape.len() == 1 { 1.0 } else { 0.0 };
        let numbers: Vec<f32> = rng.weights(count).into_iter().map(|w| norm + 4.0 * w).collect();
        let base = bf16_bytes(&numbers);
        let bytes = match tenant {
            Some(_) if !name.contains("k_proj") => {
                stepped(&base, 2, |_| if other.below(7) == 0 { 1 + other.below(20).cast_signed() } else { 0 })
            }
            _ => base,
        };
        tensor(&name, "BF16", &shape, bytes)
    };
    shapes().into_iter().map(make).collect()
}

fn layers() -> Vec<(LayerConfig, LayerNames)> {
    let shapes = shapes();
    let tensors = || shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()));
    let hints = |layer| LayerHints::default().with_layer(layer).with_config(Some(CONFIG));
    (0..2).map(|layer| LayerNames::recognise(tensors(), &hints(layer)).unwrap()).collect()
}

fn family(options: FamilyOptions) -> Family {
    Family::new(Path::new("base"), checkpoint(&safetensors(&model(None))).unwrap(), layers(), options)
        .unwrap()
}

fn container(of: u64) -> Container {
    static PACKED: [OnceLock<Vec<u8>>; 8] = [const { OnceLock::new() }; 8];
    let bytes = PACKED[usize::try_from(of).unwrap()]
        .get_or_init(|| pack(&safetensors(&model(Some(of))), &[&safetensors(&model(None))]).0);
    Container::from_source(Path::new("tenant"), Box::new(bytes.clone()), &Limits::default()).unwrap()
}

fn with_tenants(options: FamilyOptions, count: u64) -> Family {
    let mut family = family(options);
    (0..count).for_each(|of| assert_eq!(family.add(container(of)).unwrap().number() as u64, of));
    family
}

/// The dense layers of some fine-tunes.
struct Dense {
    matrices: BTreeMap<(usize, MatrixRole), DenseMatrix>,
    vectors: BTreeMap<(usize, VectorRole), Vec<f32>>,
}

impl Dense {
    fn new(tenants: &[u64], names: &LayerNames) -> Self {
        let mut dense = Self { matrices: BTreeMap::new(), vectors: BTreeMap::new() };
        for (number, of) in tenants.iter().enumerate() {
            let model = model(Some(*of));
            let find = |name: &str| model.iter().find(|tensor| tensor.name == name).unwrap();
            for (role, name) in names.matrices() {
                let tensor = find(name);
                let [rows, cols] = [0, 1].map(|i| usize::try_from(tensor.shape[i]).unwrap());
                let matrix = DenseMatrix::new(rows, cols, WeightType::Bf16, tensor.bytes.clone()).unwrap();
                dense.matrices.insert((number, role), matrix);
            }
            for (role, name) in names.vectors() {
                let bytes = find(name).bytes.as_chunks().0.iter();
                dense
                    .vectors
                    .insert((number, role), bytes.map(|b| bf16::from_le_bytes(*b).to_f32()).collect());
            }
        }
        dense
    }
}

impl LayerWeights for Dense {
    fn matmul(&self, role: MatrixRole, batch: &Batch, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()> {
        for (sequence, tokens) in batch.places() {
            let matrix = &self.matrices[&(sequence.tenant.number(), role)];
            let shape = matrix.shape();
            let x = &x[tokens.start * shape.cols..tokens.end * shape.cols];
            matrix.matmul(x, &mut y[tokens.start * shape.rows..tokens.end * shape.rows], run)?;
        }
        Ok(())
    }

    fn vector(&self, role: VectorRole, tenant: TenantId) -> Result<Option<Cow<'_, [f32]>>> {
        Ok(self.vectors.get(&(tenant.number(), role)).map(|vector| Cow::Borrowed(&vector[..])))
    }
}

/// The results of the dense fine-tunes.
fn expected(tenants: &[u64], batch: &Batch, x: &[f32]) -> Vec<f32> {
    let layers = layers();
    layers.iter().fold(x.to_vec(), |x, (config, names)| {
        forward(config, &Dense::new(tenants, names), batch, &x, &Run::default()).unwrap()
    })
}

/// The batches with their activations and the results of the dense fine-tunes.
fn cases() -> Vec<(Batch, Vec<f32>, Vec<f32>)> {
    let case = |(seed, batch): (u64, Batch)| {
        let x = tokens(seed, &batch);
        let expected = expected(&ALL, &batch, &x);
        (batch, x, expected)
    };
    (0..).zip(batches()).map(case).collect()
}

fn batch(of: &[(usize, usize)]) -> Batch {
    let sequence = |(i, (tenant, tokens)): (usize, &(usize, usize))| Sequence {
        tenant: TenantId::new(*tenant),
        tokens: *tokens,
        position: 3 * i,
    };
    Batch::new(of.iter().enumerate().map(sequence).collect()).unwrap()
}

fn tokens(seed: u64, batch: &Batch) -> Vec<f32> {
    let mut rng = Random::new(seed);
    (0..batch.tokens() * usize::try_from(WIDTH).unwrap()).map(|_| rng.normal()).collect()
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| y.to_bits()).collect()
}

/// Tenants one after another, interleaved, without tokens, with many.
fn batches() -> Vec<Batch> {
    [
        &[(0, 1), (1, 1), (2, 1), (3, 1)][..],
        &[(2, 3), (0, 1), (2, 5), (1, 0), (0, 7)],
        &[(3, 11)],
        &[(1, 1), (3, 2), (1, 9), (3, 1), (0, 1)],
        &[(1, 0)],
        &[],
        &[(0, 1), (1, 1), (2, 1), (3, 1)],
    ]
    .map(batch)
    .to_vec()
}

const ALL: [u64; 4] = [0, 1, 2, 3];

/// Bytes of four tenants as sparse differences.
fn all_bytes() -> u64 {
    let mut family = with_tenants(FamilyOptions::default().with_forms(Forms::All(Form::Csr)), 4);
    let batch = batch(&[(0, 1), (1, 1), (2, 1), (3, 1)]);
    family.forward(&batch, &tokens(1, &batch), &Run::default()).unwrap();
    let residency = family.residency();
    assert_eq!((residency.hits, residency.direct, residency.evictions), (0, 0, 0));
    residency.matrix_bytes + residency.vector_bytes
}

#[test]
fn every_tenant_gets_the_bits_of_its_dense_fine_tune() {
    let (all, cases) = (all_bytes(), cases());
    let forms = Form::ALL.map(Forms::All).into_iter().chain([Forms::ByShare]);
    for (number, forms) in forms.enumerate() {
        for budget_bytes in [u64::MAX, all / 2, all / 9, 500, 0] {
            let mut family = with_tenants(
                FamilyOptions::default()
                    .with_budget(budget_bytes)
                    .with_forms(forms)
                    .with_prefetch(number % 3),
                4,
            );
            for (batch, x, expected) in &cases {
                let y = family.forward(batch, x, &Run::default()).unwrap();
                assert_eq!(bits(&y), bits(expected), "{forms:?} {budget_bytes} {batch:?}");
                let residency = family.residency();
                let matrices = budget_bytes.saturating_sub(residency.vector_bytes);
                assert!(residency.matrix_bytes <= matrices, "{forms:?} {residency:?}");
            }
            // One of seven matrices is the base's; the others have the requested form.
            let Forms::All(form) = forms else { continue };
            assert_eq!(family.forms(), BTreeMap::from([(Form::Base, 8), (form, 48)]), "{forms:?}");
        }
    }
}

#[test]
fn fast_outputs_are_near_and_depend_on_neither_threads_nor_prefetching() {
    let cases = cases();
    for budget_bytes in [u64::MAX, all_bytes() / 2] {
        let run = |threads, prefetch| {
            let options = FamilyOptions::default().with_budget(budget_bytes).with_prefetch(prefetch);
            with_threads(threads, || {
                let mut family = with_tenants(options, 4);
                let outputs =
                    cases.iter().map(|(batch, x, _)| family.forward(batch, x, &Run::new(Mode::Fast)));
                let outputs = outputs.collect::<Result<Vec<_>>>()?;
                let residency = family.residency();
                let counts = [residency.hits, residency.misses, residency.direct, residency.evictions];
                Ok((counts, residency.matrix_bytes, outputs))
            })
            .unwrap()
        };
        let one = run(1, 0);
        for (threads, prefetch) in [(1, 2), (2, 0), (2, 1)] {
            let other = run(threads, prefetch);
            assert_eq!((other.0, other.1), (one.0, one.1));
            assert!(other.2.iter().map(|y| bits(y)).eq(one.2.iter().map(|y| bits(y))));
        }
        for ((_, _, expected), y) in cases.iter().zip(&one.2) {
            let length = |numbers: &mut dyn Iterator<Item = f32>| {
                numbers.map(|y| f64::from(y).powi(2)).sum::<f64>().sqrt()
            };
            let distance = length(&mut y.iter().zip(expected).map(|(y, expected)| y - expected));
            assert!(distance <= 1e-5 * length(&mut expected.iter().copied()), "{distance}");
        }
    }
}

#[test]
fn tenants_come_and_go_between_batches() {
    let mut family = with_tenants(FamilyOptions::default(), 3);
    let both = batch(&[(0, 2), (2, 1)]);
    let x = tokens(1, &both);
    family.forward(&both, &x, &Run::default()).unwrap();
    let before = family.residency();
    family.remove(TenantId::new(2)).unwrap();
    let left = family.residency();
    assert!(left.matrix_bytes < before.matrix_bytes && left.vector_bytes < before.vector_bytes);
    assert!(
        matches!(family.remove(TenantId::new(2)), Err(Error::NotFound { what, .. }) if what == "tenant 2")
    );
    assert!(
        matches!(family.forward(&both, &x, &Run::default()), Err(Error::NotFound { what, .. }) if what == "tenant 2")
    );
    // Numbers are never reused.
    assert_eq!(family.add(container(7)).unwrap(), TenantId::new(3));
    assert_eq!(family.tenants().collect::<Vec<_>>(), [0, 1, 3].map(TenantId::new));
    let both = batch(&[(3, 2), (0, 1)]);
    let y = family.forward(&both, &x, &Run::default()).unwrap();
    assert_eq!(bits(&y), bits(&expected(&[0, 1, 2, 7], &both, &x)));
    for tenant in [0, 1, 3] {
        family.remove(TenantId::new(tenant)).unwrap();
    }
    let residency = family.residency();
    assert_eq!((residency.matrix_bytes, residency.vector_bytes), (0, 0));
    // An unknown tenant without tokens is allowed.
    assert!(family.forward(&batch(&[(9, 0)]), &[], &Run::default()).unwrap().is_empty());
}

#[test]
fn wrong_bases_and_shapes_are_told_before_anything_is_decoded() {
    let mut wrong = model(None);
    wrong[1].bytes[0] ^= 1;
    let file = safetensors(&model(Some(1)));
    let (bytes, _) = pack(&file, &[&safetensors(&wrong)]);
    let open =
        |bytes: Vec<u8>| Container::from_source(Path::new("t"), Box::new(bytes), &Limits::default()).unwrap();
    let mut one = family(FamilyOptions::default());
    assert!(
        matches!(one.add(open(bytes)), Err(Error::InFile { source, .. }) if matches!(*source, Error::BaseMismatch { .. }))
    );
    let mut other = model(Some(1));
    other[1] = tensor(&other[1].name, "BF16", &[WIDTH / 2, WIDTH], vec![0; 4096]);
    let (bytes, _) = pack(&safetensors(&other), &[&safetensors(&model(None))]);
    assert!(
        matches!(one.add(open(bytes)), Err(Error::InvalidArgument(what)) if what.contains("the shape of its base"))
    );
    let (bytes, _) = pack(&safetensors(&model(Some(1))[1..]), &[&safetensors(&model(None))]);
    assert!(matches!(one.add(open(bytes)), Err(Error::NotFound { .. } | Error::InFile { .. })));
    assert_eq!((one.tenants().len(), one.residency().decoded_bytes), (0, 0));
    let none = FamilyOptions::default().with_forms(Forms::All(Form::Base));
    let base = || checkpoint(&safetensors(&model(None))).unwrap();
    assert!(matches!(Family::new(Path::new("b"), base(), layers(), none), Err(Error::InvalidArgument(_))));
    let part = checkpoint(&safetensors(&model(None)[..9])).unwrap();
    let missing = Family::new(Path::new("b"), part, layers(), FamilyOptions::default());
    assert!(matches!(missing, Err(Error::NotFound { what, .. }) if what.contains("layers.1")));
}

#[test]
fn another_batch_or_layer_is_an_error() {
    let mut family = with_tenants(FamilyOptions::default(), 1);
    let (one, other) = (batch(&[(0, 1)]), batch(&[(0, 2)]));
    let running = family.start(&one).unwrap();
    assert!(matches!(running.layer(2), Err(Error::NotFound { .. })));
    let layer = running.layer(0).unwrap();
    let result = forward(layer.config(), &layer, &other, &tokens(1, &other), &Run::default());
    assert!(matches!(result, Err(Error::InvalidArgument(what)) if what.contains("another batch")));
    assert!(layer.matmul(MatrixRole::Qkv, &one, &[], &mut [], &Run::default()).is_err());
    assert!(layer.matmul(MatrixRole::Up, &one, &[0.0; 3], &mut [0.0; 96], &Run::default()).is_err());
    assert!(layer.vector(VectorRole::Norm1Weight, TenantId::new(4)).is_err());
    assert_eq!(layer.vector(VectorRole::UpBias, TenantId::ONLY).unwrap(), None);
}

/// Runs batches of one token of each of these tenants. Returns the hits and the uses.
fn run(family: &mut Family, steps: &[Vec<usize>]) -> [u64; 2] {
    let before = family.residency();
    for step in steps {
        let batch = batch(&step.iter().map(|tenant| (*tenant, 1)).collect::<Vec<_>>());
        family.forward(&batch, &tokens(1, &batch), &Run::default()).unwrap();
    }
    let after = family.residency();
    let hits = after.hits - before.hits;
    [hits, hits + after.misses - before.misses]
}

#[test]
fn tenants_in_turn_leave_what_is_there_and_requests_bring_what_they_need() {
    // Two of eight tenants fit, beside the vectors of all: four of 64 numbers each. The key
    // matrices are the base's, which leaves six matrices in each of two layers.
    let mut family = with_tenants(
        FamilyOptions::default()
            .with_budget(all_bytes() / 2 + 6 * 4 * 64 * 4 + 1280)
            .with_forms(Forms::All(Form::Csr))
            .with_prefetch(0),
        8,
    );
    let round: Vec<Vec<usize>> = (0..8).map(|tenant| vec![tenant]).collect();
    run(&mut family, &round);
    assert_eq!(family.residency().evictions, 0);
    // One in four uses is a hit, round after round.
    assert_eq!(run(&mut family, &[round.clone(), round].concat()), [2 * 2 * 12, 2 * 8 * 12]);
    // A tenant that runs again sooner than those in memory takes their place, from the next batch
    // on.
    let [hits, uses] = run(&mut family, &vec![vec![5]; 10]);
    assert_eq!([hits, uses], [9 * 12, 10 * 12]);
    assert!(family.residency().evictions > 0);
    // Tenants of one batch do not evict each other.
    let before = family.residency().evictions;
    let [hits, uses] = run(&mut family, &vec![vec![0, 1, 2, 3, 4, 5, 6, 7]; 5]);
    assert!(4 * hits >= uses && family.residency().evictions == before);
}

/// Takes what is decoded in the background for a tenant until all is there.
fn settle(family: &mut Family, tenant: TenantId) {
    while family.is_expected(tenant) {
        family.take_expected();
        std::thread::yield_now();
    }
}

#[test]
fn a_waiting_tenant_is_decoded_while_others_run() {
    let csr = FamilyOptions::default().with_forms(Forms::All(Form::Csr)).with_prefetch(0);
    let mut family = with_tenants(csr.with_budget(all_bytes() / 2 + 6 * 4 * 64 * 4 + 1280), 8);
    let resident =
        |family: &Family, of| family.tenant_residency(TenantId::new(of)).unwrap().resident_matrices;
    family.expect(TenantId::new(0)).unwrap();
    settle(&mut family, TenantId::new(0));
    assert_eq!((resident(&family, 0), family.residency().prefetched), (12, 12));
    assert_eq!(run(&mut family, &[vec![0]]), [12, 12]);
    // Nothing is left to do for what is in memory.
    family.expect(TenantId::new(0)).unwrap();
    assert!(!family.is_expected(TenantId::new(0)));
    // Without room, one that never ran is multiplied from its container.
    run(&mut family, &[vec![1]]);
    family.expect(TenantId::new(5)).unwrap();
    settle(&mut family, TenantId::new(5));
    assert_eq!((resident(&family, 5), family.residency().evictions), (0, 0));
    let one = batch(&[(5, 3)]);
    let x = tokens(1, &one);
    let y = family.forward(&one, &x, &Run::default()).unwrap();
    assert_eq!(bits(&y), bits(&expected(&[0, 1, 2, 3, 4, 5], &one, &x)));
    assert_eq!(family.tenant_residency(TenantId::new(5)).unwrap().uses.direct, 12);
    // It ran after those in memory, and takes their place when it comes again. Then it stays for
    // its request.
    run(&mut family, &[vec![2]]);
    family.expect(TenantId::new(5)).unwrap();
    settle(&mut family, TenantId::new(5));
    assert_eq!(resident(&family, 5), 12);
    assert_eq!(resident(&family, 0) + resident(&family, 1), 12);
    assert_eq!(run(&mut family, &[vec![2], vec![5]])[0], 12);
    // Who leaves is not built any more.
    family.expect(TenantId::new(6)).unwrap();
    family.remove(TenantId::new(6)).unwrap();
    assert!(!family.is_expected(TenantId::new(6)) && family.expect(TenantId::new(6)).is_err());
}

#[test]
fn expecting_changes_no_bit() {
    let (all, cases) = (all_bytes(), cases());
    for forms in [Forms::ByShare, Forms::All(Form::Planes), Forms::All(Form::Tiles)] {
        for (number, budget_bytes) in [u64::MAX, all / 2, all / 9, 0].into_iter().enumerate() {
            let options = FamilyOptions::default().with_budget(budget_bytes).with_forms(forms);
            let mut family = with_tenants(options.with_prefetch(number % 2), 4);
            for (turn, (batch, x, expected)) in cases.iter().enumerate() {
                (0..4).for_each(|tenant| family.expect(TenantId::new(tenant)).unwrap());
                if turn % 2 == 1 {
                    (0..4).for_each(|tenant| settle(&mut family, TenantId::new(tenant)));
                }
                let y = family.forward(batch, x, &Run::default()).unwrap();
                assert_eq!(bits(&y), bits(expected), "{forms:?} {budget_bytes} {batch:?}");
                let residency = family.residency();
                assert!(residency.matrix_bytes <= budget_bytes.saturating_sub(residency.vector_bytes));
            }
        }
    }
}

#[test]
fn uses_are_counted_for_each_tenant_and_pins_hold() {
    let options = FamilyOptions::default().with_forms(Forms::All(Form::Csr)).with_prefetch(0);
    let mut family = with_tenants(options.with_budget(all_bytes() / 3), 4);
    let pinned = TenantId::new(3);
    family.pin(pinned, true).unwrap();
    run(&mut family, &[vec![0, 1], vec![0, 1], vec![3], vec![2], vec![0, 2], vec![0, 1, 2, 3], vec![1]]);
    let found: Vec<_> = (0..4).map(|of| family.tenant_residency(TenantId::new(of)).unwrap()).collect();
    assert_eq!((found[3].resident_matrices, found[3].uses.evictions, found[3].is_pinned), (12, 0, true));
    assert!(found[..3].iter().all(|tenant| !tenant.is_pinned && tenant.changed_matrices == 12));
    let sum = |of: fn(&TenantResidency) -> u64| found.iter().map(of).sum::<u64>();
    let all = family.residency();
    assert_eq!(sum(|tenant| tenant.resident_bytes), all.matrix_bytes + all.vector_bytes);
    assert_eq!(sum(|tenant| tenant.uses.hits), all.hits);
    assert_eq!(sum(|tenant| tenant.uses.misses), all.misses);
    assert_eq!(sum(|tenant| tenant.uses.direct), all.direct);
    assert_eq!(sum(|tenant| tenant.uses.evictions), all.evictions);
    assert!(all.evictions > 0 && all.direct > 0);
    let json = serde_json::to_value(&found[3]).unwrap();
    assert_eq!((&json["forms"]["csr"], &json["forms"]["base"]), (&12.into(), &2.into()));
    assert_eq!(json["misses"], found[3].uses.misses);
    family.pin(pinned, false).unwrap();
    run(&mut family, &[vec![0], vec![1], vec![0], vec![1]]);
    assert!(family.tenant_residency(pinned).unwrap().uses.evictions > 0);
    assert!(family.pin(TenantId::new(9), true).is_err());
    assert!(family.tenant_residency(TenantId::new(9)).is_err());
}

#[test]
fn a_file_that_changes_is_told() {
    let scratch = tempfile::tempdir().unwrap();
    let mut family = family(FamilyOptions::default());
    let (bytes, _) = pack(&safetensors(&model(Some(1))), &[&safetensors(&model(None))]);
    let paths = ["longer", "replaced", "gone", "same"].map(|name| scratch.path().join(name));
    for path in &paths {
        std::fs::write(path, &bytes).unwrap();
        family.add(Container::open(path, &Limits::default()).unwrap()).unwrap();
    }
    family.add(container(2)).unwrap();
    family.add_base().unwrap();
    assert_eq!(family.changed_files(), []);
    std::fs::write(&paths[0], [&bytes[..], &[0]].concat()).unwrap();
    let other = scratch.path().join("other");
    std::fs::write(&other, &bytes).unwrap();
    std::fs::rename(&other, &paths[1]).unwrap();
    std::fs::remove_file(&paths[2]).unwrap();
    let changed: Vec<_> = (0..3).map(|of| (TenantId::new(of), paths[of].clone())).collect();
    assert_eq!(family.changed_files(), changed);
}

#[test]
fn a_fine_tune_that_was_prepared_for_another_family_is_refused() {
    let (mut one, other) = (family(FamilyOptions::default()), family(FamilyOptions::default()));
    let preparer = other.preparer();
    let prepared = std::thread::spawn(move || preparer.prepare(container(1)).unwrap()).join().unwrap();
    assert!(
        matches!(one.admit(prepared), Err(Error::InvalidArgument(what)) if what.contains("another base"))
    );
    assert_eq!(one.tenants().len(), 0);
}
