//! Products in pair order, in GFLOP/s and in GB/s of weights, on every instruction set of this
//! machine, beside the order of lanes and plain reads of the same bytes:
//! `cargo bench -p deltaloom-kernels --bench pairs`. One thread, best of repeats.
#![expect(clippy::print_stdout, reason = "it reports measurements")]

use std::hint::black_box;
use std::time::Instant;

use deltaloom_kernels::dense::{self, Weights};
use deltaloom_kernels::isa::{Isa, lower_to};
use deltaloom_kernels::pairs::{Activations, Parts, products};

/// A matrix that stays in the second-level cache, and one that no cache holds.
const IN_CACHE: [usize; 2] = [1536, 576];
const IN_MEMORY: [usize; 2] = [400_000, 576];
/// Rows of a call: what stays in the fastest cache.
const PANEL_ROWS: usize = 64;
const PARTS: [Parts; 3] = [Parts::One, Parts::Two, Parts::Three];

fn main() {
    // `cargo test` runs benches with this argument.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    println!("# Products with BF16 weights\n\nMachine: {}. Command: `just bench-products`.", machine());
    println!("One thread, best of repeats; the time to split activations is counted. `lanes` is the order");
    println!(
        "of products with FP32 weights, which BF16 weights had before ([ADR 65](../adr/0065-pair-order.md)).\n"
    );
    for (what, offset) in [("lines of a cache", 0), ("8 bytes behind them", 8)] {
        println!("| {IN_CACHE:?}, in cache, rows at {what} | tokens | lanes | 1 part | 2 parts | 3 parts |");
        println!("|---|--:|--:|--:|--:|--:|");
        for isa in Isa::available() {
            lower_to(isa);
            for tokens in [1, 4, 16, 64, 256] {
                table_row(isa, IN_CACHE, offset, tokens, if isa == Isa::Scalar { 5 } else { 40 });
            }
        }
        println!();
    }
    println!("| {IN_MEMORY:?}, from memory | tokens | lanes | 1 part | 2 parts | 3 parts |");
    println!("|---|--:|--:|--:|--:|--:|");
    for isa in Isa::available() {
        lower_to(isa);
        table_row(isa, IN_MEMORY, 0, 1, 5);
    }
    let bytes = weights(IN_MEMORY);
    let read = best(5, || {
        black_box(bytes.as_chunks::<8>().0).iter().map(|b| u64::from_le_bytes(*b)).fold(0, |a, b| a ^ b)
    });
    println!("\nA plain read of these bytes: {:.1} GB/s.", bytes.len() as f64 / read / 1e9);
}

/// The name of the processor, if the system tells.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    name.map_or_else(|| "unknown".to_owned(), |name| name.trim().to_owned())
}

/// `offset` is where weights begin, in bytes from a line of a cache.
fn table_row(isa: Isa, [rows, cols]: [usize; 2], offset: usize, tokens: usize, repeats: usize) {
    let all = weights([rows + 1, cols]);
    let start = all.as_ptr().align_offset(64) + offset;
    let weights = &all[start..][..rows * cols * 2];
    let x: Vec<f32> = (0..tokens * cols).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect();
    let mut y = vec![0.0; rows * tokens];
    let mut sums = Vec::new();
    let say = |seconds: f64| {
        let flops = 2.0 * (rows * cols * tokens) as f64 / seconds / 1e9;
        format!("{flops:.0} GFLOP/s, {:.1} GB/s", weights.len() as f64 / seconds / 1e9)
    };
    let panels = |run: &mut dyn FnMut(&[u8], &mut [f32]), y: &mut [f32]| {
        let panels = weights.chunks(PANEL_ROWS * cols * 2).zip(y.chunks_mut(PANEL_ROWS * tokens));
        panels.for_each(|(weights, y)| run(weights, y));
    };
    let lanes = best(repeats, || {
        panels(&mut |weights, y| dense::products(Weights::Bf16(weights), cols, &x, y), &mut y);
    });
    let mut cells = vec![say(lanes)];
    for parts in PARTS {
        let seconds = best(repeats, || {
            let x = Activations::new(&x, cols, parts);
            panels(&mut |weights, y| products(weights, &x, &mut sums, y), &mut y);
        });
        cells.push(say(seconds));
    }
    println!("| {} | {tokens} | {} |", isa.name(), cells.join(" | "));
}

/// BF16 numbers around 0.65 and -1.2.
fn weights([rows, cols]: [usize; 2]) -> Vec<u8> {
    [0x25, 0x3f, 0x9c, 0xbf].into_iter().cycle().take(rows * cols * 2).collect()
}

/// Seconds of the fastest of some runs.
fn best<T>(repeats: usize, mut run: impl FnMut() -> T) -> f64 {
    let seconds = (0..=repeats).map(|_| {
        let start = Instant::now();
        black_box(run());
        start.elapsed().as_secs_f64()
    });
    seconds.fold(f64::INFINITY, f64::min)
}
