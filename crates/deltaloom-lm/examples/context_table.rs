//! The loss by position of a small model with other attention than it was trained with, and what
//! that costs in time.
//!
//! Arguments: directory of the model, file of token ids (little-endian u16), `loss` or `speed`, and
//! parts of the names of plans, or none for all.

use std::path::PathBuf;
use std::time::Instant;

use deltaloom_compute::Run;
use deltaloom_lm::layer::{
    AttentionPlan, By, Gain, KvType, Law, MemoryOptions, Norm, NormPlace, PositionMap, Positions, QkNorm,
    Reach, Table,
};
use deltaloom_lm::model::{Chunk, Model};
use deltaloom_lm::tenancy::FamilyOptions;

/// The trained length.
const TRAINED: usize = 256;
const LENGTH: usize = 1024;
const STARTS: [usize; 12] =
    [0, 12337, 24675, 37013, 49351, 61689, 74027, 86365, 98703, 111_041, 123_379, 135_717];
const BUCKETS: [usize; 6] = [0, 128, 256, 512, 768, 1024];

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Plans of eight layers by name.
fn plans(theta: f32) -> Vec<(&'static str, Vec<AttentionPlan>)> {
    let rotary = |table, map| {
        AttentionPlan::new(Reach::Causal).with_positions(Positions::Rotary { theta, table, map })
    };
    let of_table = |table| rotary(table, PositionMap::Identity);
    let of_map = |map| rotary(Table::Default, map);
    let plain = || of_table(Table::Default);
    let of_reach = |reach| plain().with_reach(reach);
    let all = |plan: AttentionPlan| vec![plan; 8];
    let without = |layers: &[usize], rest: AttentionPlan, law| -> Vec<AttentionPlan> {
        let none = AttentionPlan::new(Reach::Causal).with_law(law);
        (0..8).map(|layer| if layers.contains(&layer) { none.clone() } else { rest.clone() }).collect()
    };
    let yarn = |attention_factor| Table::Yarn {
        factor: 4.0,
        trained: TRAINED,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor,
        mscale: None,
        mscale_all_dim: None,
        truncate: true,
    };
    let log = Some(Law::LogLength { trained: TRAINED });
    let grouped = |group, neighbours| of_map(PositionMap::Grouped { group, neighbours });
    let norm = QkNorm { norm: Norm::RmsNorm { epsilon: 1e-6 }, place: NormPlace::Before, gain: Gain::One };
    let chunks = || of_reach(Reach::Chunk { tokens: TRAINED });
    let floor = Some(Law::Floor { every: TRAINED, slope: 0.1 });
    let dual = PositionMap::DualChunk { chunk: 192, local: 64, saturate: Some(255) };
    vec![
        ("plain", all(plain())),
        ("pi 4", all(of_table(Table::Linear { factor: 4.0 }))),
        ("ntk 4", all(of_table(Table::Ntk { factor: 4.0 }))),
        ("ntk 8", all(of_table(Table::Ntk { factor: 8.0 }))),
        ("dynamic by query", all(of_table(Table::Dynamic { factor: 1.0, trained: TRAINED, by: By::Query }))),
        ("yarn 4", all(of_table(yarn(None)))),
        ("yarn 4 without m", all(of_table(yarn(Some(1.0))))),
        ("llama3 4", all(of_table(Table::Llama3 { factor: 4.0, low: 1.0, high: 4.0, trained: TRAINED }))),
        ("nope 3, 7", without(&[3, 7], plain(), None)),
        ("nope everywhere", all(AttentionPlan::new(Reach::Causal))),
        ("chunk 256", all(chunks())),
        ("irope", without(&[3, 7], chunks(), None)),
        ("irope floor", without(&[3, 7], chunks(), floor)),
        ("window 256", all(of_reach(Reach::Window { tokens: TRAINED, sinks: 0 }))),
        ("sinks 4 + 252", all(of_reach(Reach::Window { tokens: 252, sinks: 4 }))),
        ("self-extend 8, 128", all(grouped(8, 128))),
        ("self-extend 16, 192", all(grouped(16, 192))),
        ("dual chunk 192", all(of_map(dual))),
        ("rerope 255", all(of_map(PositionMap::Clipped { at: 255 }))),
        ("qk norm", all(plain().with_qk_norm(Some(norm)))),
        ("plain + log", all(plain().with_law(log))),
        ("ntk 8 + log", all(of_table(Table::Ntk { factor: 8.0 }).with_law(log))),
        ("self-extend 8, 128 + log", all(grouped(8, 128).with_law(log))),
    ]
}

/// Mean loss in each bucket of positions.
fn losses(model: &mut Model, ids: &[u32]) -> Fallible<Vec<f64>> {
    let (run, mut sums) = (Run::default(), vec![0.0; LENGTH]);
    for start in STARTS {
        let ids = ids.get(start..=start + LENGTH).ok_or("too few tokens")?;
        let mut memory = model.memory(MemoryOptions::default().with_kv(KvType::F32));
        let sequence = memory.begin(Model::BASE);
        let hidden = model.forward(&mut memory, &[Chunk { sequence, tokens: &ids[..LENGTH] }], &run)?;
        let next: Vec<(usize, u32)> = ids[1..].iter().copied().enumerate().collect();
        hidden.log_probs(&next, &run)?.iter().zip(&mut sums).for_each(|(found, sum)| *sum -= found);
    }
    let bucket = |ends: &[usize]| {
        let count = (ends[1] - ends[0]) * STARTS.len();
        sums[ends[0]..ends[1]].iter().sum::<f64>() / count as f64
    };
    Ok(BUCKETS.windows(2).map(bucket).collect())
}

/// Seconds of 4,096 tokens, and of 32 tokens one by one behind them.
fn seconds(model: &mut Model, ids: &[u32]) -> Fallible<[f64; 2]> {
    const PROMPT: usize = 4096;
    let run = Run::default();
    let mut memory = model.memory(MemoryOptions::default());
    let sequence = memory.begin(Model::BASE);
    let prompt = ids.get(..PROMPT).ok_or("too few tokens")?;
    let start = Instant::now();
    for tokens in prompt.chunks(512) {
        model.forward(&mut memory, &[Chunk { sequence, tokens }], &run)?;
    }
    let prefill = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for token in prompt[..32].chunks(1) {
        model.forward(&mut memory, &[Chunk { sequence, tokens: token }], &run)?;
    }
    Ok([prefill, start.elapsed().as_secs_f64()])
}

#[expect(clippy::print_stdout, reason = "its result")]
fn main() -> Fallible<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base, tokens, what, names @ ..] = &arguments[..] else {
        return Err("usage: context_table MODEL TOKENS loss|speed [NAMES]".into());
    };
    let (base, bytes) = (PathBuf::from(base), std::fs::read(tokens)?);
    let ids: Vec<u32> = bytes.as_chunks().0.iter().map(|pair| u16::from_le_bytes(*pair).into()).collect();
    let mut plain = Model::open(&base, FamilyOptions::default())?;
    let theta = match plain.attention().next().map(|plan| &plan.positions) {
        Some(Positions::Rotary { theta, .. }) => *theta,
        _ => return Err("the model has no rotary positions".into()),
    };
    for (name, plans) in plans(theta) {
        if !names.is_empty() && !names.iter().any(|part| name.contains(part)) {
            continue;
        }
        let mut model = Model::open(&base, FamilyOptions::default())?.with_attention(plans)?;
        if what == "loss" {
            let found: Vec<String> = losses(&mut model, &ids)?.iter().map(|it| format!("{it:.3}")).collect();
            println!("{name:<26} {}", found.join(" "));
            continue;
        }
        // In turns with the unchanged model; the least of three is the least disturbed.
        let (mut own, mut other) = ([f64::MAX; 2], [f64::MAX; 2]);
        for _ in 0..3 {
            for (model, least) in [(&mut model, &mut own), (&mut plain, &mut other)] {
                let found = seconds(model, &ids)?;
                least.iter_mut().zip(found).for_each(|(least, found)| *least = least.min(found));
            }
        }
        let ratio: Vec<String> =
            own.iter().zip(other).map(|(a, b)| format!("{a:.3} s {:.2} x", a / b)).collect();
        println!("{name:<26} prefill {}   decode {}", ratio[0], ratio[1]);
    }
    Ok(())
}
