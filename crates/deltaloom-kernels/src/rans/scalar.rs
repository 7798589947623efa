//! rANS for every machine, and for the last symbols that do not fill all lanes.

use std::ops::Range;

use super::{Decoder, Encoder, PROB_BITS, PROB_SCALE, SLOTS, STATE_LOW};

impl Encoder<'_> {
    /// Encodes the symbols of `range`, which starts at a multiple of the lanes, last one first.
    pub(super) fn scalar(&mut self, range: Range<usize>) {
        let lanes = self.states.len();
        for i in range.rev() {
            let entry = self.entries[(self.contexts.at(i) << 8) | usize::from(self.symbols[i])];
            let (frequency, start) = (entry & 0xffff, entry >> 16);
            assert!(frequency > 0, "a symbol that its table does not have");
            let mut x = self.states[i % lanes];
            // A symbol costs at most 12 bits, so it emits at most one word.
            if x >> (32 - PROB_BITS) >= frequency {
                let [low, high, ..] = x.to_le_bytes();
                self.start -= 2;
                self.buffer[self.start..self.start + 2].copy_from_slice(&[low, high]);
                x >>= 16;
            }
            self.states[i % lanes] = x / frequency * PROB_SCALE + x % frequency + start;
        }
    }
}

impl Decoder<'_> {
    /// Decodes as long as there is a word for every lane.
    pub(super) fn scalar(&mut self) {
        let lanes = self.states.len();
        while self.done < self.out.len() && self.at + 2 * lanes <= self.words.len() {
            let end = self.out.len().min(self.done + lanes);
            for (i, state) in (self.done..end).zip(&mut *self.states) {
                let slot = self.slots[self.contexts.at(i) * SLOTS + (*state & (PROB_SCALE - 1)) as usize];
                self.out[i] = (slot & 0xff) as u8;
                let x = ((slot >> 8 & 0xfff) + 1).wrapping_mul(*state >> PROB_BITS).wrapping_add(slot >> 20);
                // Without a branch, because whether a word is due is effectively random.
                let is_short = x < STATE_LOW;
                let word = u16::from_le_bytes([self.words[self.at], self.words[self.at + 1]]);
                *state = if is_short { x << 16 | u32::from(word) } else { x };
                self.at += 2 * usize::from(is_short);
            }
            self.done = end;
        }
    }
}
