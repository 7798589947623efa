//! Static rANS with 12-bit frequencies, 32-bit states and 16-bit renormalisation, interleaved over up to 32 lanes.
//!
//! Source of the coder: J. Duda, "Asymmetric numeral systems" (arXiv 0902.0271, 1311.2540); of interleaving: F. Giesen, "Interleaved entropy
//! coders" (arXiv 1402.3392). A stream here is one interleaved run; blocks of streams and their headers belong to the caller.

use crate::DecodeError;
use crate::isa::per_isa;

/// Bits of a frequency: the frequencies of a table sum to `1 << PROB_BITS`.
pub const PROB_BITS: u32 = 12;
/// Sum of the frequencies of a table.
pub const PROB_SCALE: u32 = 1 << PROB_BITS;
/// Lanes of a wide stream. A format constant.
pub const LANES: usize = 32;
/// Lowest state between symbols; an encoder's lane starts at this plus the 16 bits it carries.
pub const STATE_LOW: u32 = 1 << 16;
/// Symbols of an alphabet.
pub const ALPHABET: usize = 256;

const SLOTS: usize = PROB_SCALE as usize;
/// `ceil(2^RECIPROCAL_BITS / f)` makes `x * r >> RECIPROCAL_BITS` the exact quotient `x / f` for 32-bit x and f <= 4096.
const RECIPROCAL_BITS: u32 = 44;

/// One symbol as an encoder sees it.
#[derive(Debug, Clone, Copy, Default)]
struct EncodeSymbol {
    reciprocal: u64,
    frequency: u32,
    start: u32,
}

/// Encoder side of a list of tables.
#[derive(Debug, Clone)]
pub struct EncodeTables {
    symbols: Vec<EncodeSymbol>,
}

impl EncodeTables {
    /// From frequencies per table; each table sums to [`PROB_SCALE`].
    ///
    /// # Panics
    /// When a table does not sum to [`PROB_SCALE`]: that is a fault of the caller, not of input.
    #[must_use]
    pub fn new(tables: &[[u16; ALPHABET]]) -> Self {
        let mut symbols = Vec::with_capacity(tables.len() * ALPHABET);
        for frequencies in tables {
            let mut start = 0;
            for &frequency in frequencies {
                let frequency = u32::from(frequency);
                let reciprocal =
                    if frequency == 0 { 0 } else { (1u64 << RECIPROCAL_BITS).div_ceil(u64::from(frequency)) };
                symbols.push(EncodeSymbol { reciprocal, frequency, start });
                start += frequency;
            }
            assert_eq!(start, PROB_SCALE, "frequencies of a table sum to {PROB_SCALE}");
        }
        Self { symbols }
    }
}

/// Decoder side of a list of tables: one 32-bit entry per slot, `symbol | (frequency - 1) << 8 | (slot - start) << 20`.
#[derive(Debug, Clone)]
pub struct DecodeTables {
    slots: Vec<u32>,
}

impl DecodeTables {
    /// From frequencies per table, each summing to [`PROB_SCALE`]; `None` when one does not.
    #[must_use]
    pub fn new(tables: &[[u16; ALPHABET]]) -> Option<Self> {
        let mut slots = Vec::with_capacity(tables.len() * SLOTS);
        for frequencies in tables {
            if frequencies.iter().map(|&f| u32::from(f)).sum::<u32>() != PROB_SCALE {
                return None;
            }
            for (symbol, &frequency) in (0u32..).zip(frequencies) {
                let frequency = u32::from(frequency);
                slots.extend((0..frequency).map(|offset| symbol | (frequency - 1) << 8 | offset << 20));
            }
        }
        Some(Self { slots })
    }

    /// Number of tables.
    #[must_use]
    pub fn count(&self) -> usize {
        self.slots.len() / SLOTS
    }
}

/// A coded stream: states to start decoding with and the words in reading order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// One state per lane.
    pub states: Vec<u32>,
    /// Words in the order in which a decoder takes them.
    pub words: Vec<u16>,
}

per_isa! {
    /// Encodes `symbols[i]` with table `contexts[i]` over `carry.len()` lanes; lane l starts at `STATE_LOW + carry[l]`.
    ///
    /// # Panics
    /// When a symbol has frequency 0 in its table, a context names no table, or the slices differ in length: faults of the caller.
    #[must_use]
    pub fn encode(tables: &EncodeTables, symbols: &[u8], contexts: &[u8], carry: &[u16]) -> Stream = encode_body;
}

#[inline(always)]
fn encode_body(tables: &EncodeTables, symbols: &[u8], contexts: &[u8], carry: &[u16]) -> Stream {
    assert_eq!(symbols.len(), contexts.len());
    let lanes = carry.len();
    let mut states: Vec<u32> = carry.iter().map(|&word| STATE_LOW + u32::from(word)).collect();
    // In the order of encoding; decoders read the other way.
    let mut words = Vec::new();
    let mut used = 0;
    let full = symbols.len() / lanes * lanes;
    let starts = (0..full).step_by(lanes).chain((full < symbols.len()).then_some(full));
    for start in starts.rev() {
        let end = (start + lanes).min(symbols.len());
        // A symbol costs at most 12 bits, so it emits at most one word; the last store may be of a word that is not due.
        if words.len() < used + lanes + 1 {
            words.resize(2 * words.len() + lanes + 1, 0);
        }
        let coded = symbols[start..end].iter().zip(&contexts[start..end]);
        for ((&symbol, &context), state) in coded.zip(&mut states[..end - start]).rev() {
            let entry = &tables.symbols[(usize::from(context) << 8) | usize::from(symbol)];
            debug_assert!(entry.frequency > 0);
            // Without a branch: whether a word is due is as good as random.
            let is_full = *state >> (32 - PROB_BITS) >= entry.frequency;
            words[used] = (*state & 0xffff) as u16;
            used += usize::from(is_full);
            let x = *state >> (16 * u32::from(is_full));
            let quotient = ((u64::from(x) * entry.reciprocal) >> RECIPROCAL_BITS) as u32;
            *state = x + quotient * (PROB_SCALE - entry.frequency) + entry.start;
        }
    }
    words.truncate(used);
    words.reverse();
    Stream { states, words }
}

per_isa! {
    /// Decodes `out.len()` symbols, symbol i with table `contexts[i]`, from a stream of `states.len()` lanes. `words` are its 16-bit words,
    /// little-endian. Gives the carry: the low half of every final state.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] when words run out, [`DecodeError::Trailing`] when some are left or a lane does not end where encoders start.
    ///
    /// # Panics
    /// When a context names no table or the slices differ in length: faults of the caller.
    pub fn decode(
        tables: &DecodeTables,
        contexts: &[u8],
        states: &mut [u32],
        words: &[u8],
        out: &mut [u8],
    ) -> Result<Vec<u16>, DecodeError> = decode_body;
}

#[inline(always)]
fn decode_body(
    tables: &DecodeTables,
    contexts: &[u8],
    states: &mut [u32],
    words: &[u8],
    out: &mut [u8],
) -> Result<Vec<u16>, DecodeError> {
    assert_eq!(out.len(), contexts.len());
    let lanes = states.len();
    // A step reads at most a word per lane, whether it needs it or not: that much is appended, and running into it is found out after each step.
    let mut padded: Vec<u16> =
        words.chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]])).collect();
    let word_count = padded.len();
    padded.resize(word_count + lanes, 0);
    let mut at = 0;
    for (out_step, context_step) in out.chunks_mut(lanes).zip(contexts.chunks(lanes)) {
        for ((out, &context), state) in out_step.iter_mut().zip(context_step).zip(states.iter_mut()) {
            let slot = tables.slots[usize::from(context) * SLOTS + (*state & (PROB_SCALE - 1)) as usize];
            *out = (slot & 0xff) as u8;
            let x = ((slot >> 8 & 0xfff) + 1).wrapping_mul(*state >> PROB_BITS).wrapping_add(slot >> 20);
            // Without a branch: whether a word is due is as good as random.
            let is_short = x < STATE_LOW;
            let refilled = x << 16 | u32::from(padded[at]);
            *state = if is_short { refilled } else { x };
            at += usize::from(is_short);
        }
        if at > word_count {
            return Err(DecodeError::Truncated);
        }
    }
    if at != word_count || !words.len().is_multiple_of(2) || states.iter().any(|x| x >> 16 != 1) {
        return Err(DecodeError::Trailing);
    }
    Ok(states.iter().map(|&x| (x & 0xffff) as u16).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Frequencies of a skewed alphabet that sum to 4096.
    fn skewed(seed: usize, used: usize) -> [u16; ALPHABET] {
        let mut table = [0u16; ALPHABET];
        let mut left = 4096u16;
        for k in 0..used - 1 {
            let f = (left / 3).max(1).min(left - u16::try_from(used - 1 - k).unwrap());
            table[(seed + k * 7) % ALPHABET] = f;
            left -= f;
        }
        table[(seed + (used - 1) * 7) % ALPHABET] = left;
        table
    }

    fn bytes(words: &[u16]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    proptest! {
        #[test]
        fn roundtrip_with_contexts(
            picks in prop::collection::vec((0usize..4096, 0u8..3), 0..3000),
            wide in any::<bool>(), word in any::<u16>(),
        ) {
            let tables = [skewed(3, 1), skewed(5, 30), skewed(200, 100)];
            let symbols: Vec<u8> = picks.iter().map(|&(slot, context)| {
                let mut rest = slot;
                let find = |f: &u16| { let f = usize::from(*f); if rest < f { true } else { rest -= f; false } };
                u8::try_from(tables[usize::from(context)].iter().position(find).unwrap()).unwrap()
            }).collect();
            let contexts: Vec<u8> = picks.iter().map(|p| p.1).collect();
            let carry = vec![word; if wide { LANES } else { 1 }];
            let coded = encode(&EncodeTables::new(&tables), &symbols, &contexts, &carry);
            let decoder = DecodeTables::new(&tables).unwrap();
            let mut out = vec![0; symbols.len()];
            let mut states = coded.states.clone();
            let got = decode(&decoder, &contexts, &mut states, &bytes(&coded.words), &mut out);
            prop_assert_eq!(got, Ok(carry));
            prop_assert_eq!(out, symbols);
            if !coded.words.is_empty() {
                let short = bytes(&coded.words[..coded.words.len() - 1]);
                let mut out = vec![0; contexts.len()];
                prop_assert!(decode(&decoder, &contexts, &mut coded.states.clone(), &short, &mut out).is_err());
            }
        }
    }

    /// An independent coder of the same model bounds ours: same size to within its own rounding.
    #[test]
    fn size_agrees_with_constriction() {
        use constriction::stream::model::DefaultContiguousCategoricalEntropyModel as Model;
        use constriction::stream::stack::DefaultAnsCoder;
        let table = skewed(0, 20);
        let symbols: Vec<u8> =
            (0..40_000usize).map(|i| u8::try_from((i * i + i / 7) % 20 * 7 % ALPHABET).unwrap()).collect();
        let ours = encode(&EncodeTables::new(&[table]), &symbols, &vec![0; symbols.len()], &[0; LANES]);
        let weights: Vec<f64> = table.iter().map(|&f| f64::from(f) / 4096.0 + 1e-12).collect();
        let model = Model::from_floating_point_probabilities_fast(&weights, None).unwrap();
        let mut oracle = DefaultAnsCoder::new();
        oracle.encode_iid_symbols_reverse(symbols.iter().map(|&s| usize::from(s)), &model).unwrap();
        let (ours_bits, oracle_bits) = (ours.words.len() * 16 + 16 * LANES, oracle.num_bits());
        assert!(
            ours_bits.abs_diff(oracle_bits) <= 16 * LANES + oracle_bits / 1000,
            "{ours_bits} against {oracle_bits} bits"
        );
    }

    #[test]
    fn one_symbol_alphabet_costs_nothing() {
        let tables = [skewed(9, 1)];
        let coded = encode(&EncodeTables::new(&tables), &[9; 1000], &[0; 1000], &[7; LANES]);
        assert!(coded.words.is_empty());
        assert_eq!(coded.states, vec![STATE_LOW + 7; LANES]);
    }

    #[test]
    fn reciprocal_is_exact_division() {
        for f in 1u32..=4096 {
            let reciprocal = (1u64 << RECIPROCAL_BITS).div_ceil(u64::from(f));
            let limit = (u64::from(f) << 20) - 1;
            for x in [
                0,
                1,
                u64::from(f) - 1,
                u64::from(f),
                limit / 2,
                limit - limit % u64::from(f),
                limit,
                limit - 1,
            ] {
                assert_eq!((x * reciprocal) >> RECIPROCAL_BITS, x / u64::from(f), "{x} / {f}");
            }
        }
    }

    #[test]
    fn sum_of_frequencies_is_checked() {
        let mut table = skewed(1, 5);
        table[1] -= 1;
        assert!(DecodeTables::new(&[table]).is_none());
    }
}
