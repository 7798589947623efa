//! Attention from pages against the formulas of each method, pair by pair, and the same bits
//! however a sequence is computed.

use proptest::prelude::*;

use super::naive::{Dense, Tenant, forward_f64, random};
use super::*;

const WIDTH: usize = 20;

fn config(plan: AttentionPlan) -> LayerConfig {
    LayerConfig::new(WIDTH, Heads { query: 4, key_value: 2, size: 4 }, 24).with_attention(plan)
}

/// The layer's output for a sequence in chunks of these many tokens, the last again and again.
fn in_chunks(config: &LayerConfig, x: &[f32], kv: KvType, chunks: &[usize]) -> Vec<f32> {
    config.check().unwrap();
    let weights = Dense { config: config.clone(), tenants: vec![Tenant::random(config, 5)] };
    let mut memory = Memory::new([config], MemoryOptions::default().with_kv(kv));
    let id = memory.begin(TenantId::ONLY);
    let mut rotary = Rotary::of(config);
    let (mut out, mut sizes, mut left) = (Vec::new(), chunks.iter().copied(), x);
    let mut size = 1;
    while !left.is_empty() {
        size = sizes.next().unwrap_or(size);
        let tokens = size.min(left.len() / WIDTH);
        let position = memory.tokens(id).unwrap();
        let batch = Batch::new(vec![Sequence { tenant: TenantId::ONLY, tokens, position }]).unwrap();
        memory.reserve(&[(id, tokens)]).unwrap();
        rotary.prepare(position + tokens);
        let early = rotary.early(&batch);
        let (run, turning) = (Run::default(), rotary.turning(&early));
        let layer = Layer { config, weights: &weights, batch: &batch, run: &run, turning };
        let past = Past { memory: &mut memory, sequences: &[id], layer: 0 };
        out.extend(layer.forward(&left[..tokens * WIDTH], Some(past)).unwrap());
        memory.advance(&[(id, &vec![0; tokens][..])]);
        assert_eq!(memory.used_bytes(), memory.kept_bytes(position + tokens).unwrap());
        left = &left[tokens * WIDTH..];
    }
    out
}

fn table() -> impl Strategy<Value = Table> {
    let by = prop_oneof![Just(By::Query), (1_usize..300).prop_map(|tokens| By::Sequence { tokens })];
    let list = || prop::collection::vec(0.5_f32..5.0, 2);
    prop_oneof![
        3 => Just(Table::Default),
        1 => Just(Table::Linear { factor: 3.0 }),
        1 => Just(Table::Ntk { factor: 2.5 }),
        2 => (1.0..4.0, 20_usize..100, by.clone())
            .prop_map(|(factor, trained, by)| Table::Dynamic { factor, trained, by }),
        1 => Just(Table::Yarn {
            factor: 4.0, trained: 64, beta_fast: 32.0, beta_slow: 1.0, attention_factor: None, mscale: None,
            mscale_all_dim: None, truncate: false,
        }),
        2 => (list(), list(), 20_usize..200, by).prop_map(|(short, long, trained, by)| Table::Longrope {
            short, long, trained, factor: 4.0, attention_factor: None, by,
        }),
        1 => Just(Table::Llama3 { factor: 4.0, low: 1.0, high: 4.0, trained: 64 }),
        1 => Just(Table::Proportional { share: 0.5 }),
        1 => list().prop_map(Table::Custom),
    ]
}

fn positions() -> impl Strategy<Value = Positions> {
    let map = prop_oneof![
        2 => Just(PositionMap::Identity),
        2 => (1_usize..9, 1_usize..80)
            .prop_map(|(group, neighbours)| PositionMap::Grouped { group, neighbours }),
        2 => (4_usize..90, 1_usize..5, prop::option::of(90_usize..120))
            .prop_map(|(chunk, local, saturate)| PositionMap::DualChunk { chunk, local, saturate }),
        1 => (1_usize..100).prop_map(|at| PositionMap::Clipped { at }),
    ];
    let theta = prop_oneof![Just(10_000.0), Just(50.0)];
    prop_oneof![
        1 => Just(Positions::None),
        6 => (theta, table(), map).prop_map(|(theta, table, map)| Positions::Rotary { theta, table, map }),
    ]
}

fn plan() -> impl Strategy<Value = AttentionPlan> {
    let reach = prop_oneof![
        3 => Just(Reach::Causal),
        1 => (1_usize..100).prop_map(|tokens| Reach::Window { tokens, sinks: 0 }),
        2 => (40_usize..100, 1_usize..40).prop_map(|(tokens, sinks)| Reach::Window { tokens, sinks }),
        1 => (1_usize..100).prop_map(|tokens| Reach::Chunk { tokens }),
    ];
    let law = prop_oneof![
        2 => Just(None),
        1 => Just(Some(Law::LogLength { trained: 40 })),
        1 => Just(Some(Law::Floor { every: 16, slope: 0.1 })),
    ];
    let norm = prop_oneof![
        4 => Just(None),
        1 => Just(Some((NormPlace::Before, Gain::Weights))),
        1 => Just(Some((NormPlace::Before, Gain::One))),
        1 => Just(Some((NormPlace::After, Gain::One))),
        1 => Just(Some((NormPlace::After, Gain::Calibrated(vec![0.5, 1.0, 2.0, 3.0])))),
    ];
    (positions(), reach, law, norm).prop_map(|(positions, reach, law, norm)| {
        let epsilon = 1e-5;
        let norm = norm.map(|(place, gain)| QkNorm { norm: Norm::RmsNorm { epsilon }, place, gain });
        // Sinks and other positions do not go together.
        let is_identity = !matches!(positions, Positions::Rotary { map, .. } if map != PositionMap::Identity);
        let reach = if is_identity { reach } else { without_sinks(reach) };
        AttentionPlan::new(reach).with_positions(positions).with_law(law).with_qk_norm(norm)
    })
}

fn without_sinks(reach: Reach) -> Reach {
    if let Reach::Window { tokens, .. } = reach { Reach::Window { tokens, sinks: 0 } } else { reach }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn spans_compute_the_formulas(plan in plan(), tokens in 1_usize..300) {
        let config = config(plan);
        let x = random(7, tokens * WIDTH);
        let found = in_chunks(&config, &x, KvType::F32, &[tokens]);
        let expected = forward_f64(&config, &Tenant::random(&config, 5), 0, &x);
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let error = norm(&mut found.iter().zip(&expected).map(|(a, b)| f64::from(*a) - b));
        let size = norm(&mut expected.iter().copied());
        prop_assert!(error < 1e-5 * size, "{} of {}", error, size);
    }

    #[test]
    fn chunks_change_no_bit(
        plan in plan(),
        tokens in 1_usize..300,
        chunks in prop::collection::vec(1_usize..70, 1..5),
        kv in prop_oneof![Just(KvType::F32), Just(KvType::Bf16)],
    ) {
        let config = config(plan);
        let x = random(7, tokens * WIDTH);
        let whole = in_chunks(&config, &x, kv, &[tokens]);
        prop_assert_eq!(bits(&in_chunks(&config, &x, kv, &chunks)), bits(&whole));
        prop_assert_eq!(bits(&in_chunks(&config, &x, kv, &[1])), bits(&whole));
    }
}

#[test]
fn identity_plans_are_plain_attention() {
    let tokens = 150;
    let x = random(7, tokens * WIDTH);
    let plain = || AttentionPlan::new(Reach::Causal).with_positions(Positions::rotary(1e4, Table::Default));
    let of_table = |table| plain().with_positions(Positions::rotary(1e4, table));
    let of_map = |map| plain().with_positions(Positions::Rotary { theta: 1e4, table: Table::Default, map });
    let of_reach = |reach| plain().with_reach(reach);
    let dual = PositionMap::DualChunk { chunk: tokens, local: 9, saturate: None };
    let early = [
        of_table(Table::Linear { factor: 1.0 }),
        of_table(Table::Ntk { factor: 1.0 }),
        of_table(Table::Dynamic { factor: 2.0, trained: tokens, by: By::Sequence { tokens: 1 } }),
        of_table(Table::Custom(Table::Default.rates(1e4, 4, 0))),
        of_map(PositionMap::Grouped { group: 1, neighbours: 3 }),
        of_reach(Reach::Window { tokens, sinks: 0 }),
        of_reach(Reach::Chunk { tokens }),
        plain().with_law(Some(Law::LogLength { trained: tokens })),
    ];
    // Their keys are rounded before they turn.
    let late = [
        of_map(PositionMap::Grouped { group: 3, neighbours: tokens }),
        of_map(PositionMap::Clipped { at: tokens }),
        of_map(dual),
        of_table(Table::Dynamic { factor: 2.0, trained: tokens, by: By::Query }),
        of_reach(Reach::Window { tokens, sinks: 4 }),
    ];
    for (plans, kvs) in [(&early[..], &[KvType::Bf16, KvType::F32][..]), (&late, &[KvType::F32])] {
        for (plan, kv) in plans.iter().flat_map(|plan| kvs.iter().map(move |kv| (plan, *kv))) {
            let expected = in_chunks(&config(plain()), &x, kv, &[tokens]);
            let found = in_chunks(&config(plan.clone()), &x, kv, &[tokens]);
            assert_eq!(bits(&found), bits(&expected), "{plan:?}");
        }
    }
    let other = in_chunks(&config(of_map(PositionMap::Clipped { at: 20 })), &x, KvType::F32, &[tokens]);
    assert_ne!(bits(&other), bits(&in_chunks(&config(plain()), &x, KvType::F32, &[tokens])));
}

#[test]
fn positions_that_depend_on_the_query_need_a_memory() {
    let positions =
        Positions::Rotary { theta: 1e4, table: Table::Default, map: PositionMap::Clipped { at: 20 } };
    let config = config(AttentionPlan::new(Reach::Causal).with_positions(positions));
    let weights = Dense { config: config.clone(), tenants: vec![Tenant::random(&config, 5)] };
    let error = forward(&config, &weights, &Batch::of_one(1), &[0.0; WIDTH], &Run::default()).unwrap_err();
    assert!(error.to_string().contains("needs a memory"), "{error}");
}
