//! rANS decoding on four lanes per vector for aarch64: tables by single loads, words by a table
//! permutation.
#![expect(unsafe_code, reason = "vector loads and stores")]

use std::arch::aarch64::*;

use super::{Decoder, LANES, SLOTS};

const WIDTH: usize = 4;
const VECTORS: usize = LANES / WIDTH;
/// Lane weights; their sum over the lanes of a comparison is its mask.
static WEIGHTS: [u32; WIDTH] = [1, 2, 4, 8];

/// For every mask of lanes, which bytes of the next words they take; 0xff gives zero.
static EXPAND: [[u8; 16]; 16] = {
    let mut all = [[0xff; 16]; 16];
    let mut mask = 0;
    while mask < 16 {
        let (mut lane, mut byte) = (0, 0);
        while lane < WIDTH {
            if mask >> lane & 1 == 1 {
                all[mask][4 * lane] = byte;
                all[mask][4 * lane + 1] = byte + 1;
                byte += 2;
            }
            lane += 1;
        }
        mask += 1;
    }
    all
};

/// Decodes whole steps of a stream of [`LANES`] lanes while there is a word for every lane.
///
/// # Safety
/// Needs NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn decode(decoder: &mut Decoder<'_>) {
    assert_eq!(decoder.states.len(), LANES);
    let first_state = decoder.states.as_mut_ptr();
    // SAFETY: there are 32 states, and four weights.
    let (mut states, weights): ([uint32x4_t; VECTORS], _) = unsafe {
        (std::array::from_fn(|i| vld1q_u32(first_state.add(i * WIDTH))), vld1q_u32(WEIGHTS.as_ptr()))
    };
    while decoder.has_wide_step() {
        for (part, x) in states.iter_mut().enumerate() {
            let first = decoder.done + part * WIDTH;
            let mut in_table = [0; WIDTH];
            // SAFETY: four numbers are one vector.
            unsafe { vst1q_u32(in_table.as_mut_ptr(), vandq_u32(*x, vdupq_n_u32(0xfff))) };
            let slots: [u32; WIDTH] = std::array::from_fn(|lane| {
                let slot = decoder.slots[decoder.contexts.at(first + lane) * SLOTS + in_table[lane] as usize];
                decoder.out[first + lane] = (slot & 0xff) as u8;
                slot
            });
            // SAFETY: four numbers are one vector.
            let slot = unsafe { vld1q_u32(slots.as_ptr()) };
            let frequency_less_1 = vandq_u32(vshrq_n_u32::<8>(slot), vdupq_n_u32(0xfff));
            let quotient = vshrq_n_u32::<12>(*x);
            let next = vmlaq_u32(vaddq_u32(quotient, vshrq_n_u32::<20>(slot)), frequency_less_1, quotient);
            let is_short = vcltq_u32(next, vdupq_n_u32(0x1_0000));
            let mask = vaddvq_u32(vandq_u32(is_short, weights)) as usize;
            let words = &decoder.words[decoder.at..decoder.at + 2 * WIDTH];
            // SAFETY: eight bytes of words and sixteen of a permutation are there.
            let (words, expansion) = unsafe { (vld1_u8(words.as_ptr()), vld1q_u8(EXPAND[mask].as_ptr())) };
            let words = vqtbl1q_u8(vcombine_u8(words, vdup_n_u8(0)), expansion);
            let refilled = vorrq_u32(vshlq_n_u32::<16>(next), vreinterpretq_u32_u8(words));
            *x = vbslq_u32(is_short, refilled, next);
            decoder.at += 2 * mask.count_ones() as usize;
        }
        decoder.done += LANES;
    }
    for (i, state) in states.into_iter().enumerate() {
        // SAFETY: there are 32 states.
        unsafe { vst1q_u32(first_state.add(i * WIDTH), state) };
    }
}
