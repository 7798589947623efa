//! Random numbers by counters: Philox4x32-10 of J. K. Salmon, M. A. Moraes, R. O. Dror and D. E.
//! Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011). There is no state, so a number does
//! not depend on what was drawn before or on which machine.

/// A number from 0 up to but not including 1, with 53 bits, for a position of a request.
pub(crate) fn uniform(seed: u64, request: u64, position: u64) -> f64 {
    let [low, high, ..] = philox(halves(position, request), halves_of(seed));
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

fn halves_of(number: u64) -> [u32; 2] {
    let bytes = number.to_le_bytes();
    let (pair, _) = bytes.as_chunks::<4>();
    [u32::from_le_bytes(pair[0]), u32::from_le_bytes(pair[1])]
}

fn halves(low: u64, high: u64) -> [u32; 4] {
    let ([a, b], [c, d]) = (halves_of(low), halves_of(high));
    [a, b, c, d]
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [low0, high0] = halves_of(u64::from(counter[0]) * 0xd251_1f53);
        let [low1, high1] = halves_of(u64::from(counter[2]) * 0xcd9e_8d57);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_numbers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn numbers_are_below_one_and_differ() {
        let mean = (0..4096).map(|position| uniform(7, 1, position)).sum::<f64>() / 4096.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        let first = [uniform(0, 0, 0), uniform(1, 0, 0), uniform(0, 1, 0), uniform(0, 0, 1)];
        assert!(first.iter().all(|number| (0.0..1.0).contains(number)));
        assert!(first.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
