//! Every method on every kind of edge case, and on damaged containers.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use deltaloom::Silent;

fn stored(bytes: &[u8]) -> Source {
    Source::Stored { name: "test".into(), bytes: Box::new(Arc::new(bytes.to_vec())) }
}

fn made(pattern: Pattern, len_bytes: u64) -> Source {
    Source::Made { pattern, seed: 1, len_bytes }
}

fn bytes_of(source: &Source) -> Vec<u8> {
    let (mut all, mut block) = (Vec::new(), Vec::new());
    for number in 0.. {
        if !source.block(number, &mut block).unwrap() {
            break;
        }
        all.extend_from_slice(&block);
    }
    all
}

fn container(bytes: &[u8], method: Method) -> Vec<u8> {
    let mut out = Vec::new();
    let len = encode(&stored(bytes), method, &mut out).unwrap();
    assert_eq!(len, out.len() as u64);
    out
}

fn restored(mut container: &[u8], limit_bytes: u64) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    decode(&mut container, limit_bytes, &mut |piece| {
        out.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(out)
}

/// Runs all methods on `bytes` and checks what must hold for any data.
fn check(bytes: &[u8]) -> PositionsReport {
    let methods: Vec<Method> =
        Method::all().into_iter().filter(|m| *m != Method::Baseline(Backend::Zstd19)).collect();
    let report = run(&stored(bytes), &methods, &Silent).unwrap();
    assert_eq!(report.methods.len(), methods.len());
    for row in &report.methods {
        assert!(row.verified, "{}: {:?}", row.method, row.fault);
        assert!(row.container_bytes <= bytes.len() as u64 + 48, "{} expands", row.method);
    }
    report
}

#[test]
fn there_are_seventeen_published_methods() {
    let names: Vec<String> = Method::published().into_iter().map(Method::name).collect();
    assert_eq!(
        names.join(" "),
        "zlib lz4 zstd golomb elias_delta golomb+zlib golomb+lz4 golomb+zstd elias_delta+zlib elias_delta+lz4 elias_delta+zstd \
         zlib+lz4 zlib+zstd lz4+zlib lz4+zstd zstd+zlib zstd+lz4"
    );
    for method in Method::all() {
        assert_eq!(Method::named(&method.name()).unwrap(), [method]);
        assert_eq!(Method::from_wire_id(method.wire_id()), Some(method));
    }
    assert!(Method::named("best").unwrap_err().to_string().contains("elias_delta+zstd"));
}

#[test]
fn edges_come_back_by_every_method() {
    let mut cases: Vec<Vec<u8>> =
        vec![vec![], vec![0], vec![1], vec![0x80], vec![0xff], vec![0; 100_000], vec![0xff; 70_000]];
    // One bit at either end, across more than one step.
    for (at, value) in [(0, 1), (99_999, 0x80)] {
        let mut bytes = vec![0; 100_000];
        bytes[at] = value;
        cases.push(bytes);
    }
    for case in &cases {
        check(case);
    }
}

#[test]
fn dense_data_is_stored_as_it_is() {
    let noise = bytes_of(&made(Pattern::Clustered, 1 << 20))
        .into_iter()
        .filter(|byte| *byte != 0)
        .collect::<Vec<u8>>();
    assert!(noise.len() > 10_000);
    let report = check(&noise);
    for row in report.methods.iter().filter(|row| row.group == "published") {
        assert!(row.is_raw && row.container_bytes == noise.len() as u64 + 48, "{}", row.method);
    }
}

#[test]
fn patterns_reach_their_ratios() {
    let ratio = |report: &PositionsReport, name: &str| {
        report.methods.iter().find(|row| row.method == name).unwrap().ratio
    };
    // A block and a bit, so that gaps continue across blocks.
    let methods = [Method::published(), Method::ours()].concat();
    let random = run(&made(Pattern::Random, (4 << 20) + 1001), &methods, &Silent).unwrap();
    assert!(random.methods.iter().all(|row| row.verified));
    // Published for 1 GiB: 10.74, 19.34, 20.03, 26.49 and a bound of 26.55.
    let expected =
        [("golomb", 10.74), ("elias_delta", 19.34), ("elias_delta+zlib", 20.03), ("bytes-rice", 26.47)];
    for (name, published) in expected {
        let found = ratio(&random, name);
        assert!((found - published).abs() < 0.015 * published, "{name}: {found}");
    }
    let bound = random.entropy_ratio.unwrap();
    assert!((bound - 26.55).abs() < 0.01, "{bound}");
    for pattern in [Pattern::Structured, Pattern::Sparse, Pattern::Clustered] {
        let source = made(pattern, 5 << 20);
        let methods =
            [Method::ours(), Method::named("elias_delta+zstd").unwrap(), Method::named("zstd+lz4").unwrap()];
        let report = run(&source, &methods.concat(), &Silent).unwrap();
        assert!(report.methods.iter().all(|row| row.verified), "{}", pattern.name());
        let most = report.methods.iter().map(|row| row.ratio).fold(0.0, f64::max);
        assert!(most < 1.02 * report.entropy_ratio.unwrap(), "{}: {most} beats the bound", pattern.name());
        let filled = bytes_of(&source).iter().filter(|byte| **byte != 0).count();
        match pattern {
            Pattern::Structured => assert!((104_000..132_000).contains(&filled), "{filled}"),
            Pattern::Clustered => assert!((90_000..120_000).contains(&filled), "{filled}"),
            _ => assert!(filled < 110_000, "{filled}"),
        }
    }
}

#[test]
fn the_same_bytes_on_any_number_of_threads() {
    let source = made(Pattern::Random, 5 << 20);
    let names = ["golomb+zstd", "elias_delta+lz4", "lz4+zstd"].map(|name| Method::named(name).unwrap());
    for method in [Method::ours(), names.concat()].concat() {
        let on = |threads| {
            let mut out = Vec::new();
            deltaloom::with_threads(threads, || encode(&source, method, &mut out)).unwrap();
            blake3::hash(&out)
        };
        assert_eq!(on(1), on(3), "{}", method.name());
    }
}

#[test]
fn many_gaps_in_a_step_make_several_segments() {
    let mut dense = vec![0xff; 200_000];
    dense[150_000] = 0;
    let source = stored(&dense);
    let mut segments = segment::Segments::new(&source);
    let mut lengths = Vec::new();
    while let Some(segment) = segments.next(true).unwrap() {
        assert!(segment.gaps.len() <= segment::MOST_GAPS);
        lengths.push(segment.bytes.len());
    }
    assert!(lengths.len() > 2 && lengths.iter().sum::<usize>() == dense.len());
    check(&dense);
}

#[test]
fn gaps_of_more_than_32_bits_do_not_wrap() {
    let gaps = [1, u64::from(u32::MAX), 1 << 32, 7, 1 << 33, (1 << 33) + 1, 1 << 32];
    let segment = || segment::Segment { bytes: vec![0; 1000], gaps: gaps.to_vec() };
    for coder in [Coder::Words(Backend::Zlib), Coder::Words(Backend::Lz4), Coder::Golomb, Coder::EliasDelta] {
        let body = encode::body_of(Method::Published(coder, None), &segment()).unwrap();
        assert_eq!(decode::gaps_of(coder, &body, gaps.len()).unwrap(), gaps);
    }
    for own in [Own::Rice, Own::Golomb, Own::Rans] {
        let mut frame = Vec::new();
        own::push_frame(own, &segment(), &mut frame).unwrap();
        let decoded = own::read_frame(&mut &frame[..], 1000).unwrap().decode(own).unwrap();
        let own::Decoded::Gaps { gaps: found, len_bytes: 1000 } = decoded else {
            panic!("{own:?} gives no gaps")
        };
        assert_eq!(found, gaps);
    }
}

fn sample() -> Vec<u8> {
    bytes_of(&made(Pattern::Random, 6_000))
}

#[test]
fn damage_is_noticed() {
    let bytes = sample();
    // zstd level 19 behaves like level 3 but is slow to start.
    for method in Method::all().into_iter().filter(|method| *method != Method::Baseline(Backend::Zstd19)) {
        let good = container(&bytes, method);
        assert_eq!(restored(&good, bytes.len() as u64).unwrap(), bytes, "{}", method.name());
        assert!(matches!(restored(&good, 5_999), Err(Error::LimitExceeded { .. })));
        for len in (0..good.len()).step_by(11) {
            assert!(restored(&good[..len], u64::MAX).is_err(), "{} cut to {len}", method.name());
        }
        for at in (0..48).chain((48..good.len()).step_by(31)) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            // If the decompressor ignores the changed bit, the data must be right.
            if let Ok(out) = restored(&bad, 1 << 20) {
                assert!(at >= 48 && out == bytes, "{}: byte {at}", method.name());
            }
        }
    }
}

/// A header with arbitrary numbers and a valid checksum.
fn header(method: u8, flags: u8, divisor: u32, original: u64, gaps: u64, body: u64) -> Vec<u8> {
    let mut out = b"LOOMGAPS".to_vec();
    out.extend([1, method, flags, 0]);
    out.extend(divisor.to_le_bytes());
    [original, gaps, body].iter().for_each(|n| out.extend(n.to_le_bytes()));
    out.extend(0u32.to_le_bytes());
    let crc = crc32fast::hash(&out);
    out.extend(crc.to_le_bytes());
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn any_data_comes_back(bytes in prop::collection::vec(prop_oneof![8 => Just(0u8), 1 => any::<u8>()], 0..3000)) {
        check(&bytes);
    }
}

proptest! {
    #[test]
    fn hostile_containers_fail_without_harm(
        (method, flags, divisor) in (0u8..40, 0u8..2, prop_oneof![Just(256u32), any::<u32>()]),
        (original, gaps, body) in (0u64..1 << 21, any::<u64>(), any::<u64>()),
        limits in 0u64..1 << 21,
        rest in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut bytes = header(method, flags, divisor, original, gaps % (8 * original + 1), body);
        bytes.extend(&rest);
        if let Ok(out) = restored(&bytes, limits) {
            prop_assert_eq!(out.len() as u64, original);
        }
        let mut huge = header(method, flags, divisor, u64::MAX, gaps, body);
        huge.extend(&rest);
        prop_assert!(restored(&huge, 1 << 21).is_err());
    }
}
