//! Time per element of every kernel on every instruction set of this machine:
//! `cargo bench -p deltaloom-kernels --features lab`.
//!
//! Rounds are interleaved. It prints medians as a table for docs/benchmarks/kernels.md.
//!
//! With `-- --once` it runs every kernel once on the instruction set of `DELTALOOM_ISA`, for
//! `xtask instructions` to count.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement that prints its table")]

use std::hint::black_box;
use std::time::Instant;

use deltaloom_kernels::bits::{BitReader, BitWriter};
use deltaloom_kernels::carry::{self, Lane};
use deltaloom_kernels::dense::{self, Weights};
use deltaloom_kernels::fields::{FieldSplit, common_zero_bits, count_tops, escape_bits};
use deltaloom_kernels::isa::{self, Isa, lower_to};
use deltaloom_kernels::keys::{self, KEYS, KeyRule};
use deltaloom_kernels::patch::{self, Planes, RowShape};
use deltaloom_kernels::product::{ProductRule, RightFactor};
use deltaloom_kernels::rans::{self, Contexts, DecodeTables, EncodeTables, LANES, PROB_SCALE, StreamReader};
use deltaloom_kernels::sparse::{self, Differences};
use deltaloom_kernels::{Number, steps, ulp};

/// Number of elements of a chunk.
const ELEMS: usize = 1 << 17;
const ROUNDS: usize = 25;

/// A kernel to measure.
struct Kernel {
    name: String,
    run: Box<dyn FnMut()>,
}

fn main() {
    if std::env::args().any(|argument| argument == "--once") { run_once() } else { measure() }
}

/// Runs each kernel in [`counted`], then prints its instruction set, elements and name.
fn run_once() {
    for mut kernel in kernels() {
        // The first run grows buffers and detects features.
        (kernel.run)();
        counted(&mut kernel);
        println!("{}\t{ELEMS}\t{}", isa::isa().name(), kernel.name);
    }
}

/// Runs a kernel once. callgrind finds this function by name and counts from its entry to its end.
#[inline(never)]
fn counted(kernel: &mut Kernel) {
    (kernel.run)();
    // Otherwise the call above would become a jump, and this function would end before the kernel
    // begins.
    black_box(kernel);
}

fn measure() {
    let mut kernels = kernels();
    if let Ok(f) = std::env::var("ONLY") {
        kernels.retain(|k| k.name.contains(&f));
    }
    let isas = Isa::available();
    let mut nanos = vec![vec![Vec::new(); isas.len()]; kernels.len()];
    for round in 0..=ROUNDS {
        for (kernel, nanos) in kernels.iter_mut().zip(&mut nanos) {
            for (isa, nanos) in isas.iter().zip(nanos) {
                lower_to(*isa);
                let start = Instant::now();
                for _ in 0..4 {
                    (kernel.run)();
                }
                // The first round warms up.
                if round > 0 {
                    nanos.push(start.elapsed().as_secs_f64() * 1e9 / (4 * ELEMS) as f64);
                }
            }
        }
    }
    let names: Vec<&str> = isas.iter().map(|isa| isa.name()).collect();
    println!("| kernel, ns per element | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(isas.len()));
    for (kernel, nanos) in kernels.iter().zip(&mut nanos) {
        let medians: Vec<String> = nanos.iter_mut().map(|times| format!("{:.3}", median(times))).collect();
        println!("| {} | {} |", kernel.name, medians.join(" | "));
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Random numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64*: G. Marsaglia, "Xorshift RNGs"; S. Vigna's multiplier.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        ((self.next() >> 32) * n) >> 32
    }
}

/// Frequencies that fall to `keep` in 256 from one symbol to the next.
fn geometric(keep: u32, symbols: usize) -> [u16; 256] {
    let mut table = [0u16; 256];
    let mut left = PROB_SCALE - 256;
    for frequency in &mut table[..symbols] {
        let share = left * (256 - keep) / 256;
        *frequency = u16::try_from(share + 1).unwrap();
        left -= share;
    }
    table[0] += u16::try_from(PROB_SCALE).unwrap() - table.iter().sum::<u16>();
    table
}

fn draw(table: &[u16; 256], random: &mut Random) -> u8 {
    let mut slot = random.below(4096);
    for (symbol, &frequency) in (0..=255).zip(table) {
        match slot.checked_sub(frequency.into()) {
            None => return symbol,
            Some(rest) => slot = rest,
        }
    }
    unreachable!("frequencies sum to 4096")
}

fn kernels() -> Vec<Kernel> {
    let mut random = Random(1);
    let tables: Vec<[u16; 256]> = (0..24).map(|i| geometric(120 + 5 * i, 40)).collect();
    let contexts: Vec<u8> = (0..ELEMS).map(|_| u8::try_from(random.below(24)).unwrap()).collect();
    let symbols: Vec<u8> = contexts.iter().map(|c| draw(&tables[usize::from(*c)], &mut random)).collect();
    let mut all = rans_kernels("24 tables", &tables, Some(&contexts), &symbols);
    let single: Vec<u8> = (0..ELEMS).map(|_| draw(&tables[12], &mut random)).collect();
    all.extend(rans_kernels("1 table", &tables[12..13], None, &single));
    for (name, number) in [("BF16", Number::float(8, 7)), ("FP32", Number::float(8, 23))] {
        let prediction = weights(number, &mut random);
        for (part, in_1024) in [("13 %", 133), ("96 %", 983)] {
            let target = moved(number, &prediction, in_1024, &mut random);
            all.extend(ulp_kernels(&format!("{name}, {part} changed"), number, &target, &prediction));
        }
        let target = moved(number, &prediction, 20, &mut random);
        all.extend(sparse_kernels(&format!("{name}, 2 %"), number, &target, &prediction));
        all.push(distance_kernel(name, number, &target, &prediction));
        all.extend(key_kernels(name, number, &prediction, &target));
        all.extend(carry_kernels(name, number, &prediction, &target));
        all.extend(field_kernels(name, number, &prediction));
    }
    for (name, number) in
        [("BF16", Number::float(8, 7)), ("F16", Number::float(5, 10)), ("FP32", Number::float(8, 23))]
    {
        all.push(product_kernel(name, number, &mut random));
    }
    for (name, number) in [("BF16", Number::float(8, 7)), ("FP32", Number::float(8, 23))] {
        all.extend(dense_kernels(name, number, &mut random));
        all.extend(patch_kernels(name, number, &mut random));
    }
    all.extend(difference_kernels(&mut random));
    all
}

fn rans_kernels(what: &str, tables: &[[u16; 256]], contexts: Option<&[u8]>, symbols: &[u8]) -> Vec<Kernel> {
    let (encoder, decoder) = (EncodeTables::new(tables), DecodeTables::new(tables).unwrap());
    let contexts = contexts.map(<[u8]>::to_vec);
    let symbols = symbols.to_vec();
    let of = |contexts: &Option<Vec<u8>>, range| match contexts {
        // Both lists live as long as the program.
        Some(contexts) => Contexts::PerSymbol(Box::leak(contexts.clone().into_boxed_slice())).slice(range),
        None => Contexts::Single,
    };
    let halves = [0..ELEMS / 2, ELEMS / 2..ELEMS];
    let inputs = halves.map(|range| (symbols[range.clone()].to_vec(), of(&contexts, range)));
    let coded = inputs.clone().map(|(symbols, contexts)| {
        let mut buffer = vec![0; rans::buffer_bytes(symbols.len())];
        let stream = rans::encode(&encoder, &symbols, contexts, &[0; LANES], &mut buffer);
        (stream.states, buffer[stream.start..].to_vec(), contexts)
    });
    let mut buffer = vec![0; rans::buffer_bytes(ELEMS / 2)];
    let encode = move || {
        for (symbols, contexts) in &inputs {
            black_box(rans::encode(&encoder, symbols, *contexts, &[0; LANES], &mut buffer));
        }
    };
    let mut out = vec![0; ELEMS];
    let decode = move || {
        let (first, second) = out.split_at_mut(ELEMS / 2);
        let [(a_states, a_words, a_contexts), (b_states, b_words, b_contexts)] = &coded;
        let (mut a_states, mut b_states) = (a_states.clone(), b_states.clone());
        let streams = &mut [
            StreamReader { states: &mut a_states, words: a_words, contexts: *a_contexts, out: first },
            StreamReader { states: &mut b_states, words: b_words, contexts: *b_contexts, out: second },
        ];
        rans::decode(&decoder, streams).unwrap();
        black_box(&out);
    };
    vec![kernel(format!("rANS encode, {what}"), encode), kernel(format!("rANS decode, {what}"), decode)]
}

/// Weights like those of a trained model: normal with a standard deviation of 0.02.
fn weights(number: Number, random: &mut Random) -> Vec<u8> {
    let value = |random: &mut Random| {
        let sum: u64 = (0..12).map(|_| random.below(1 << 16)).sum();
        ((sum as f32 / 65536.0) - 6.0) * 0.02
    };
    let bytes = number.bytes();
    (0..ELEMS).flat_map(|_| value(random).to_bits().to_le_bytes()[4 - bytes..].to_vec()).collect()
}

/// Copies weights and moves some of them by a step of one size, as an optimiser does.
fn moved(number: Number, prediction: &[u8], in_1024: u64, random: &mut Random) -> Vec<u8> {
    let bytes = number.bytes();
    let step = |value: &[u8]| {
        let mut word = [0; 4];
        word[4 - bytes..].copy_from_slice(value);
        let by = if random.below(1024) < in_1024 { random.below(512) as f32 / 512.0 - 0.5 } else { 0.0 };
        let word = f32::from_le_bytes(word) + by * 0.0006;
        word.to_bits().to_le_bytes()[4 - bytes..].to_vec()
    };
    prediction.chunks(bytes).flat_map(step).collect()
}

fn kernel(name: String, run: impl FnMut() + 'static) -> Kernel {
    Kernel { name, run: Box::new(run) }
}

fn ulp_kernels(what: &str, number: Number, target: &[u8], prediction: &[u8]) -> Vec<Kernel> {
    let mut symbols = vec![0; ELEMS];
    let mut raw = BitWriter::default();
    ulp::encode(number, target, prediction, &mut symbols, &mut raw);
    let (raw, coded) = (raw.finish(), symbols.clone());
    let (target, prediction, before) = (target.to_vec(), prediction.to_vec(), prediction.to_vec());
    let mut values = before.clone();
    let encode = move || {
        let mut raw = BitWriter::default();
        ulp::encode(number, &target, &prediction, &mut symbols, &mut raw);
        black_box(raw.finish());
    };
    let apply = move || {
        values.copy_from_slice(&before);
        ulp::apply(number, &mut values, &coded, &mut BitReader::new(&raw)).unwrap();
        black_box(&values);
    };
    vec![kernel(format!("ULP residual, {what}"), encode), kernel(format!("ULP apply, {what}"), apply)]
}

fn sparse_kernels(what: &str, number: Number, target: &[u8], prediction: &[u8]) -> Vec<Kernel> {
    let positions = ulp::changed_positions(number, target, prediction);
    let elements = ulp::gather(number, target, &positions);
    // Both lists live as long as the program.
    let pair = (target.to_vec(), prediction.to_vec());
    let (target, prediction): &'static (Vec<u8>, Vec<u8>) = Box::leak(Box::new(pair));
    let find = move || drop(black_box(ulp::changed_positions(number, target, prediction)));
    let count = move || {
        black_box(ulp::count_changed(number, target, prediction));
    };
    let mut restored = prediction.clone();
    let exchange = move || {
        let rule = KeyRule { number, cols: 1024, offset: 400, row_scales: &[], col_scales: &[] };
        black_box(rule.keys_at(prediction, &positions));
        black_box(ulp::gather(number, target, &positions));
        ulp::scatter(number, &mut restored, &positions, &elements);
    };
    vec![
        kernel(format!("changed elements, {what}"), find),
        kernel(format!("count of changed elements, {what}"), count),
        kernel(format!("contexts, gather and scatter, {what}"), exchange),
    ]
}

fn distance_kernel(name: &str, number: Number, target: &[u8], prediction: &[u8]) -> Kernel {
    let (t, p, mut distances) = (target.to_vec(), prediction.to_vec(), steps::Distances::default());
    kernel(format!("distances, {name}"), move || {
        steps::add_distances(number, &t, &p, &mut distances);
        black_box(&distances);
    })
}

fn key_kernels(name: &str, number: Number, prediction: &[u8], target: &[u8]) -> Vec<Kernel> {
    const COLS: usize = 1024;
    let scales: &'static [i32] = Box::leak((0..1024).map(|i| i % 9 - 4).collect::<Box<[i32]>>());
    let rule =
        KeyRule { number, cols: COLS, offset: 400, row_scales: &scales[..ELEMS / COLS], col_scales: scales };
    let map: [u8; KEYS] = std::array::from_fn(|key| u8::try_from(key / 11).unwrap());
    let (p, mut contexts) = (prediction.to_vec(), vec![0; ELEMS]);
    let keys = move || {
        rule.keys(&p, &mut contexts);
        keys::map_keys(&mut contexts, &map);
        black_box(&contexts);
    };
    let mut symbols = vec![0; ELEMS];
    ulp::encode(number, target, prediction, &mut symbols, &mut BitWriter::default());
    let (p, mut histogram) = (prediction.to_vec(), vec![0; KEYS * 256]);
    let count = move || {
        keys::count_pairs(&rule, &p, &symbols, &mut histogram);
        black_box(&histogram);
    };
    let (t, p, mut distances) = (target.to_vec(), prediction.to_vec(), vec![0.0; ELEMS]);
    let steps = move || {
        steps::absolute_steps(number, &t, &p, &mut distances);
        black_box(&distances);
    };
    vec![
        kernel(format!("contexts, {name}"), keys),
        kernel(format!("histogram by context, {name}"), count),
        kernel(format!("absolute steps, {name}"), steps),
    ]
}

/// Deltas as integers: applies both kinds, converts each to the other, and adds by rounds of
/// carries.
fn carry_kernels(name: &str, number: Number, base: &[u8], tuned: &[u8]) -> Vec<Kernel> {
    type Apply = fn(Lane, &[u8], &mut [u8]);
    let lane = if number.bytes() == 2 { Lane::Bits16 } else { Lane::Bits32 };
    let xor: Vec<u8> = base.iter().zip(tuned).map(|(b, t)| b ^ t).collect();
    let mut difference = xor.clone();
    carry::xor_to_difference(lane, base, &mut difference);
    let plain: Apply = |_, delta, values| values.iter_mut().zip(delta).for_each(|(v, d)| *v ^= d);
    let rounds: Apply = |lane, delta, values| {
        for (value, delta) in values.as_chunks_mut::<8>().0.iter_mut().zip(delta.as_chunks::<8>().0) {
            let (sum, _) = lane.add_by_rounds(u64::from_le_bytes(*value), u64::from_le_bytes(*delta));
            *value = sum.to_le_bytes();
        }
    };
    let cases: [(&str, Apply, &[u8], &[u8]); 6] = [
        ("XOR delta applied", plain, &xor, base),
        ("XOR delta applied by sums", carry::apply_xor_by_sums, &xor, base),
        ("differences added", carry::add_differences, &difference, base),
        ("differences added by rounds", rounds, &difference, base),
        ("XOR delta to differences", carry::xor_to_difference, base, &xor),
        ("differences to XOR delta", carry::difference_to_xor, base, &difference),
    ];
    let row = |(what, apply, other, before): (&str, Apply, &[u8], &[u8])| {
        let (other, before, mut values) = (other.to_vec(), before.to_vec(), before.to_vec());
        kernel(format!("{what}, {name}"), move || {
            values.copy_from_slice(&before);
            apply(lane, &other, &mut values);
            black_box(&values);
        })
    };
    cases.map(row).into()
}

/// A chunk of a matrix of 4096 columns, and factors of rank 16.
fn product_kernel(name: &str, number: Number, random: &mut Random) -> Kernel {
    const COLS: usize = 4096;
    const RANK: usize = 16;
    let mut factor = |count: usize| -> Vec<i32> {
        (0..count).map(|_| i32::try_from(random.below(1 << 14)).unwrap() - (1 << 13)).collect()
    };
    let (left, right) = (factor(ELEMS / COLS * RANK), factor(RANK * COLS));
    let right = RightFactor::new(number, 1e-10, &right, RANK, COLS).unwrap();
    let before = weights(number, random);
    let mut values = before.clone();
    kernel(format!("low-rank prediction, {name}, rank {RANK}"), move || {
        values.copy_from_slice(&before);
        right.predict(ProductRule::RoundedProduct, &left, &mut values);
        black_box(&values);
    })
}

fn field_kernels(name: &str, number: Number, target: &[u8]) -> Vec<Kernel> {
    let split = FieldSplit::new(number, 2, 112 << 2).unwrap();
    let mut symbols = vec![0; ELEMS];
    let (mut escapes, mut fields) = (BitWriter::default(), BitWriter::default());
    split.encode(target, 0, &mut symbols, &mut escapes, &mut fields);
    let (escapes, fields, coded) = (escapes.finish(), fields.finish(), symbols.clone());
    let (t, counted) = (target.to_vec(), symbols.clone());
    let limits = move || {
        black_box((common_zero_bits(number, &t), escape_bits(split, &counted)));
    };
    let (t, mut out) = (target.to_vec(), vec![0; target.len()]);
    let encode = move || {
        let (mut escapes, mut fields) = (BitWriter::default(), BitWriter::default());
        split.encode(&t, 0, &mut symbols, &mut escapes, &mut fields);
        black_box((escapes.finish(), fields.finish()));
    };
    let decode = move || {
        let (mut escapes, mut fields) = (BitReader::new(&escapes), BitReader::new(&fields));
        split.decode(&coded, 0, &mut escapes, &mut fields, &mut out).unwrap();
        black_box(&out);
    };
    let (t, mut tops) = (target.to_vec(), vec![0; 1 << 14]);
    let count = move || {
        count_tops(split, &t, &mut tops);
        black_box(&tops);
    };
    vec![
        kernel(format!("fields split, {name}"), encode),
        kernel(format!("fields join, {name}"), decode),
        kernel(format!("histogram of exponents, {name}"), count),
        kernel(format!("zero bits and escapes, {name}"), limits),
    ]
}

/// Columns of a matrix in products.
const MATRIX_COLS: usize = 1024;
const MATRIX_ROWS: usize = ELEMS / MATRIX_COLS;

/// Activations of `tokens` tokens.
fn activations(tokens: usize, random: &mut Random) -> Vec<f32> {
    (0..tokens * MATRIX_COLS).map(|_| random.below(1 << 16) as f32 / 65536.0 - 0.5).collect()
}

/// Rows of weights that live as long as the program.
fn rows_of(number: Number, bytes: Vec<u8>) -> Weights<'static> {
    let bytes = Box::leak(bytes.into_boxed_slice());
    if number.bytes() == 2 { Weights::Bf16(bytes) } else { Weights::F32(bytes) }
}

fn dense_kernels(name: &str, number: Number, random: &mut Random) -> Vec<Kernel> {
    let rows = rows_of(number, weights(number, random));
    let products = |tokens: usize, x: Vec<f32>| {
        let mut y = vec![0.0; MATRIX_ROWS * tokens];
        kernel(format!("products, {name}, {tokens} token{}", if tokens == 1 { "" } else { "s" }), move || {
            dense::products(rows, MATRIX_COLS, &x, &mut y);
            black_box(&y);
        })
    };
    let mut all = vec![products(1, activations(1, random)), products(64, activations(64, random))];
    let mut wide = vec![0.0; ELEMS];
    all.push(kernel(format!("weights as FP32, {name}"), move || {
        dense::widen(rows, &mut wide);
        black_box(&wide);
    }));
    all
}

fn patch_kernels(name: &str, number: Number, random: &mut Random) -> Vec<Kernel> {
    let bytes = number.bytes();
    let shape = RowShape { cols: MATRIX_COLS, element_bytes: bytes };
    let mut all = Vec::new();
    for (part, in_1024) in [("3 %", 31), ("13 %", 133)] {
        let mask: Vec<u64> = (0..ELEMS / 64)
            .map(|_| (0..64).fold(0, |word, bit| word | u64::from(random.below(1024) < in_1024) << bit))
            .collect();
        let changed: usize = mask.iter().map(|word| word.count_ones() as usize).sum();
        let tops: Vec<u64> =
            (0..changed.div_ceil(64)).map(|_| random.next() & random.next() & random.next()).collect();
        let base = weights(number, random);
        // More than needed, as in the middle of a tensor.
        let (values, highs) = (base.clone(), base[..changed + 128].to_vec());
        let (b, m, v, mut out) = (base.clone(), mask.clone(), values.clone(), base.clone());
        all.push(kernel(format!("rows by a bitmap, {name}, {part}"), move || {
            black_box(patch::bitmap_rows(shape, &b, &m, &v, &mut out));
        }));
        let mut out = base.clone();
        all.push(kernel(format!("rows by planes, {name}, {part}"), move || {
            let planes = Planes { mask: &mask, tops: &tops, first_top: 0, lows: &values, highs: &highs };
            black_box(patch::planes_rows(shape, &base, planes, &mut out));
        }));
    }
    all
}

fn difference_kernels(random: &mut Random) -> Vec<Kernel> {
    let mut all = Vec::new();
    for (part, in_1024) in [("3 %", 31), ("13 %", 133)] {
        let (mut entries, mut ends) = (Vec::new(), vec![0]);
        for _ in 0..MATRIX_ROWS {
            for col in (0..).take(MATRIX_COLS) {
                if random.below(1024) < in_1024 {
                    entries.push(sparse::narrow(col, (random.below(256) as f32 - 128.0) / 65536.0));
                }
            }
            ends.push(u32::try_from(entries.len()).unwrap());
        }
        for tokens in [1, 64] {
            let x = sparse::token_contiguous(&activations(tokens, random), MATRIX_COLS);
            let (entries, ends, mut y) = (entries.clone(), ends.clone(), vec![0.0; MATRIX_ROWS * tokens]);
            all.push(kernel(
                format!("sparse products, {part}, {tokens} token{}", if tokens == 1 { "" } else { "s" }),
                move || {
                    let differences = Differences::Narrow { entries: &entries, ends: &ends };
                    sparse::add_products(differences, tokens, &x, &mut y);
                    black_box(&y);
                },
            ));
        }
    }
    let (x, mut out) = (activations(ELEMS / MATRIX_COLS, random), vec![0.0; ELEMS]);
    all.push(kernel("transposition, FP32".into(), move || {
        sparse::transpose(&x, ELEMS / MATRIX_COLS, MATRIX_COLS, &mut out);
        black_box(&out);
    }));
    all
}
