//! Packing and unpacking need memory for a window, whatever the size of the model.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use common::{Scratch, asset, finish, tensors_of};
use serde_json::json;

/// Bytes of a tensor; 24 of them are the model.
const TENSOR_BYTES: u64 = 64 << 20;
const TENSORS: u64 = 24;
/// Those that are noise, and not in the base under their name.
const NOISE: Range<u64> = 3..8;
/// 300 MB and 64 chunks of 2^17 elements of four bytes.
const LIMIT_BYTES: u64 = 300_000_000 + 64 * (4 << 17);

/// Times the length of its header that a safetensors file takes in memory, at most.
const HEADER_TIMES: u64 = 4;

/// Every third tensor is F32, the others BF16.
fn is_single(tensor: u64) -> bool {
    tensor % 3 == 2
}

fn header(is_tuned: bool) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    for i in 0..TENSORS {
        let (dtype, rows) = if is_single(i) { ("F32", 2048) } else { ("BF16", 4096) };
        let offsets = [i * TENSOR_BYTES, (i + 1) * TENSOR_BYTES];
        let name = if is_tuned && NOISE.contains(&i) { format!("new{i:02}") } else { format!("{i:02}") };
        header.insert(name, json!({"dtype": dtype, "shape": [rows, 8192], "data_offsets": offsets}));
    }
    common::with_header(&json!(header).to_string(), b"")
}

/// A model of holes, but for three tensors of weights, five of noise, and two patches in each of
/// the others. The noise makes the container itself larger than the memory allowed.
fn write_model(path: &Path, weights: &[u8], noise: &[u8], patches: &[u8]) {
    let file = File::create_new(path).unwrap();
    let header = header(!noise.is_empty());
    let data = header.len() as u64;
    file.write_all_at(&header, 0).unwrap();
    file.set_len(data + TENSORS * TENSOR_BYTES).unwrap();
    let fill = |tensor: u64, bytes: &[u8]| {
        let mut at = 0;
        while at < TENSOR_BYTES {
            let piece = &bytes[..bytes.len().min(usize::try_from(TENSOR_BYTES - at).unwrap())];
            file.write_all_at(piece, data + tensor * TENSOR_BYTES + at).unwrap();
            at += piece.len() as u64;
        }
    };
    let singles: Vec<u8> =
        weights.chunks_exact(2).flat_map(|half| [half[1], half[0], half[0], half[1]]).collect();
    for tensor in 0..3 {
        fill(tensor, if is_single(tensor) { &singles } else { weights });
    }
    for tensor in NOISE.filter(|_| !noise.is_empty()) {
        // Turned, so that none is tied to another.
        let turn = usize::try_from(tensor).unwrap() * 1000;
        fill(tensor, &[&noise[turn..], &noise[..turn]].concat());
    }
    for tensor in NOISE.end..TENSORS {
        for (i, patch) in patches.chunks(patches.len().div_ceil(2).max(1)).enumerate() {
            let at = tensor * TENSOR_BYTES + (3 + 11 * i as u64 + tensor) * 1_000_000;
            file.write_all_at(patch, data + at).unwrap();
        }
    }
}

/// Runs a command to its end and gives the most memory it ever had resident.
fn peak_bytes(scratch: &Scratch, arguments: &str) -> u64 {
    let mut child = scratch.command(arguments).spawn().unwrap();
    let path = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    // The mark only rises, and is gone when the process has ended.
    while child.try_wait().unwrap().is_none() {
        let status = fs::read_to_string(&path).unwrap_or_default();
        let mark = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = mark.and_then(|mark| mark.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak = kilobytes.map_or(peak, |count| count * 1024);
        std::thread::sleep(Duration::from_millis(2));
    }
    let ended = finish(child);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    #[expect(clippy::print_stdout, reason = "the measurement, shown with --nocapture")]
    {
        println!("{arguments}: {} MB; {}", peak / 1_000_000, ended.err.trim_end());
    }
    peak
}

fn are_equal(a: &Path, b: &Path) -> bool {
    let (a, b) = (File::open(a).unwrap(), File::open(b).unwrap());
    let length = a.metadata().unwrap().len();
    let (mut of_a, mut of_b) = (vec![0; 1 << 22], vec![0; 1 << 22]);
    b.metadata().unwrap().len() == length
        && (0..length).step_by(1 << 22).all(|at| {
            let count = usize::try_from(length - at).unwrap().min(1 << 22);
            a.read_exact_at(&mut of_a[..count], at).unwrap();
            b.read_exact_at(&mut of_b[..count], at).unwrap();
            of_a[..count] == of_b[..count]
        })
}

#[test]
fn a_model_of_gigabytes_takes_a_third_of_one() {
    let scratch = Scratch::new();
    let weights =
        |name: &str| tensors_of(&asset(name)).into_iter().flat_map(|(.., bytes)| bytes).collect::<Vec<u8>>();
    let mut state = 1u64;
    let noise: Vec<u8> = (0..(8 << 20) / 8)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect();
    let path = |name: &str| scratch.path().join(name);
    write_model(&path("base.safetensors"), &weights("base"), b"", b"");
    write_model(&path("tuned.safetensors"), &weights("ft_master"), &noise, &noise[..3_000_000]);
    let pack = peak_bytes(&scratch, "pack tuned.safetensors --base base.safetensors -o tuned.loom");
    let unpack = peak_bytes(&scratch, "unpack tuned.loom --base base.safetensors -o out.safetensors");
    assert!(fs::metadata(path("tuned.loom")).unwrap().len() > LIMIT_BYTES);
    assert!(are_equal(&path("tuned.safetensors"), &path("out.safetensors")));
    assert!(pack <= LIMIT_BYTES, "pack took {pack} bytes");
    assert!(unpack <= LIMIT_BYTES, "unpack took {unpack} bytes");
}

/// A header of 60 MB: 60,000 tensors of one byte, whose names are long, and differ a little from
/// model to model.
fn write_long_header(scratch: &Scratch, name: &str, value: u8) -> u64 {
    use std::fmt::Write as _;
    let mut header = String::from("{");
    for i in 0..60_000 {
        let comma = if i == 0 { "" } else { "," };
        let end = i + 1;
        write!(
            header,
            "{comma}\"{i:06}{:x>940}\":{{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[{i},{end}]}}",
            ""
        )
        .unwrap();
    }
    header.push('}');
    let data: Vec<u8> =
        (0..60_000u32).map(|i| if i % 100 == 0 { value } else { i.to_le_bytes()[0] }).collect();
    scratch.write(name, &common::with_header(&header, &data));
    header.len() as u64
}

/// The memory of a header is bounded by its length, as README.md says.
#[test]
fn long_headers_take_a_multiple_of_their_length() {
    let scratch = Scratch::new();
    let header = write_long_header(&scratch, "base.safetensors", 1);
    write_long_header(&scratch, "tuned.safetensors", 2);
    assert!(header > 60_000_000);
    let of_base = " --base base.safetensors";
    for (arguments, headers) in [
        ("pack tuned.safetensors -o alone.loom".to_owned(), 1),
        (format!("pack tuned.safetensors -o tuned.loom{of_base}"), 2),
        ("unpack alone.loom -o alone.safetensors".to_owned(), 1),
        (format!("unpack tuned.loom -o out.safetensors{of_base}"), 2),
        (format!("verify tuned.loom{of_base}"), 2),
    ] {
        // The model itself is small: what its windows take is far from their bound.
        let limit = 130_000_000 + HEADER_TIMES * headers * header;
        let peak = peak_bytes(&scratch, &arguments);
        assert!(peak <= limit, "{arguments} took {peak} bytes, {limit} are allowed");
    }
    for back in ["alone.safetensors", "out.safetensors"] {
        assert!(are_equal(&scratch.path().join("tuned.safetensors"), &scratch.path().join(back)));
    }
}
