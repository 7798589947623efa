//! Static rANS with 12-bit frequencies, 32-bit states and 16-bit renormalisation, interleaved over
//! up to 32 lanes.
//!
//! Sources: for the coder, J. Duda, "Asymmetric numeral systems" (arXiv 0902.0271, 1311.2540); for
//! interleaving, F. Giesen, "Interleaved entropy coders" (arXiv 1402.3392).
//!
//! A stream here is one interleaved run. The caller handles blocks of streams and their headers.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

use crate::DecodeError;
#[cfg(target_arch = "x86_64")]
use crate::isa::{Isa, isa};

/// Bits of a frequency: the frequencies of a table sum to `1 << PROB_BITS`.
pub const PROB_BITS: u32 = 12;
/// Sum of the frequencies of a table.
pub const PROB_SCALE: u32 = 1 << PROB_BITS;
/// Number of lanes of a wide stream, fixed by the format.
pub const LANES: usize = 32;
/// Lowest state between symbols. A lane of an encoder starts at this plus the 16 bits that it
/// carries.
pub const STATE_LOW: u32 = 1 << 16;
/// Number of symbols of an alphabet.
pub const ALPHABET: usize = 256;

const SLOTS: usize = PROB_SCALE as usize;

/// A list of tables for encoding: one 32-bit entry per symbol, `frequency | start << 16`.
#[derive(Debug, Clone)]
pub struct EncodeTables {
    entries: Vec<u32>,
}

impl EncodeTables {
    /// Builds the tables from frequencies.
    ///
    /// # Panics
    /// If the frequencies of a table do not sum to [`PROB_SCALE`]. That is a bug in the caller, not
    /// bad input.
    #[must_use]
    pub fn new(tables: &[[u16; ALPHABET]]) -> Self {
        let mut entries = Vec::with_capacity(tables.len() * ALPHABET);
        for frequencies in tables {
            let mut start = 0;
            for &frequency in frequencies {
                let frequency = u32::from(frequency);
                entries.push(frequency | start << 16);
                start += frequency;
            }
            assert_eq!(start, PROB_SCALE, "frequencies of a table sum to {PROB_SCALE}");
        }
        Self { entries }
    }
}

/// A list of tables for decoding: one 32-bit entry per slot,
/// `symbol | (frequency - 1) << 8 | (slot - start) << 20`.
#[derive(Debug, Clone)]
pub struct DecodeTables {
    slots: Vec<u32>,
}

impl DecodeTables {
    /// Builds the tables from frequencies. `None` if those of a table do not sum to [`PROB_SCALE`].
    #[must_use]
    pub fn new(tables: &[[u16; ALPHABET]]) -> Option<Self> {
        let mut slots = Vec::with_capacity(tables.len() * SLOTS);
        for frequencies in tables {
            if frequencies.iter().map(|&f| u32::from(f)).sum::<u32>() != PROB_SCALE {
                return None;
            }
            for (symbol, &frequency) in (0u32..).zip(frequencies).filter(|(_, frequency)| **frequency > 0) {
                let frequency = u32::from(frequency);
                let first = symbol | (frequency - 1) << 8;
                slots.extend((0..frequency).map(|offset| first | offset << 20));
            }
        }
        Some(Self { slots })
    }
}

/// Which table each symbol of a stream is coded with.
#[derive(Debug, Clone, Copy)]
pub enum Contexts<'a> {
    /// Table 0.
    Single,
    /// A table number for every symbol.
    PerSymbol(&'a [u8]),
}

impl<'a> Contexts<'a> {
    /// The contexts of a part of the symbols.
    #[must_use]
    pub fn slice(self, range: std::ops::Range<usize>) -> Self {
        match self {
            Self::Single => Self::Single,
            Self::PerSymbol(contexts) => Self::PerSymbol(&contexts[range]),
        }
    }

    #[inline(always)]
    fn at(self, i: usize) -> usize {
        match self {
            Self::Single => 0,
            Self::PerSymbol(contexts) => usize::from(contexts[i]),
        }
    }

    /// Checks once that each of `symbols` symbols has a context and that each context names one of
    /// `tables` tables. Kernels may then read tables unchecked.
    fn check(self, symbols: usize, tables: usize) {
        let highest = match self {
            Self::Single => 0,
            Self::PerSymbol(contexts) => {
                assert_eq!(symbols, contexts.len(), "a context for every symbol");
                contexts.iter().copied().max().unwrap_or(0)
            }
        };
        assert!(symbols == 0 || usize::from(highest) < tables, "contexts name tables that exist");
    }
}

/// The result of [`encode`] in addition to the words in its buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// States to start decoding with, one per lane.
    pub states: Vec<u32>,
    /// Where the words start in the buffer: 16 bits each, little-endian, in the order in which a
    /// decoder takes them.
    pub start: usize,
}

/// Length of the buffer that [`encode`] needs for `symbols` symbols: each emits at most one word,
/// and vector stores write a few more.
#[must_use]
pub const fn buffer_bytes(symbols: usize) -> usize {
    2 * symbols + 2 * LANES
}

/// Encodes every symbol with its table over `carry.len()` lanes; lane l starts at
/// `STATE_LOW + carry[l]`. The words go to the end of `buffer`.
///
/// # Panics
/// If a symbol has frequency 0 in its table, contexts do not fit symbols and tables, or the buffer
/// is shorter than [`buffer_bytes`]. These are bugs in the caller.
#[must_use]
pub fn encode(
    tables: &EncodeTables,
    symbols: &[u8],
    contexts: Contexts<'_>,
    carry: &[u16],
    buffer: &mut [u8],
) -> Encoded {
    assert!(buffer.len() >= buffer_bytes(symbols.len()), "room for all words");
    contexts.check(symbols.len(), tables.entries.len() / ALPHABET);
    let states = carry.iter().map(|&word| STATE_LOW + u32::from(word)).collect();
    let start = buffer.len();
    let mut encoder = Encoder { entries: &tables.entries, symbols, contexts, states, buffer, start };
    let full = symbols.len() / carry.len() * carry.len();
    encoder.scalar(full..symbols.len());
    encoder.run(full);
    Encoded { states: encoder.states, start: encoder.start }
}

/// A stream that is being encoded, from its last symbol to its first.
struct Encoder<'a> {
    entries: &'a [u32],
    symbols: &'a [u8],
    contexts: Contexts<'a>,
    states: Vec<u32>,
    buffer: &'a mut [u8],
    /// Where the words in the buffer start.
    start: usize,
}

impl Encoder<'_> {
    /// Encodes the first `full` symbols, a multiple of the lanes, last one first.
    fn run(&mut self, full: usize) {
        #[cfg(target_arch = "x86_64")]
        if self.states.len() == LANES && isa() >= Isa::Avx2 {
            #[expect(unsafe_code, reason = "calling functions with detected target features")]
            // SAFETY: `isa` returns only what was detected, and contexts were checked.
            return unsafe {
                match isa() {
                    Isa::Avx512 | Isa::Amx => avx512::encode(self, full),
                    _ => avx2::encode(self, full),
                }
            };
        }
        self.scalar(0..full);
    }
}

/// A stream to decode.
#[derive(Debug)]
pub struct StreamReader<'a> {
    /// One state per lane. After decoding, their low halves are the words that the lanes carried.
    pub states: &'a mut [u32],
    /// The 16-bit words, little-endian.
    pub words: &'a [u8],
    /// The table of every symbol.
    pub contexts: Contexts<'a>,
    /// Receives the symbols; all of it is filled.
    pub out: &'a mut [u8],
}

/// Decodes streams side by side.
///
/// # Errors
/// [`DecodeError::Truncated`] if a stream runs out of words, [`DecodeError::Trailing`] if words are
/// left over or a lane does not end where encoders start.
///
/// # Panics
/// If contexts do not fit symbols and tables, which is a bug in the caller.
pub fn decode(tables: &DecodeTables, streams: &mut [StreamReader<'_>]) -> Result<(), DecodeError> {
    for stream in &mut *streams {
        stream.contexts.check(stream.out.len(), tables.slots.len() / SLOTS);
    }
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(unused_mut, reason = "only there two streams go side by side")
    )]
    let mut decoders: Vec<Decoder<'_>> =
        streams.iter_mut().map(|stream| Decoder::new(tables, stream)).collect();
    #[cfg(target_arch = "x86_64")]
    if let ([a, b], Isa::Avx512 | Isa::Amx) = (&mut decoders[..], isa())
        && a.states.len() == LANES
        && b.states.len() == LANES
    {
        #[expect(unsafe_code, reason = "calling a function with detected target features")]
        // SAFETY: `isa` returns only what was detected, and contexts were checked.
        unsafe {
            avx512::decode_two(a, b);
        }
    }
    decoders.into_iter().try_for_each(Decoder::finish)
}

/// A stream that is being decoded.
struct Decoder<'a> {
    slots: &'a [u32],
    states: &'a mut [u32],
    words: &'a [u8],
    contexts: Contexts<'a>,
    out: &'a mut [u8],
    /// Symbols decoded, and bytes of words taken.
    done: usize,
    at: usize,
}

impl<'a> Decoder<'a> {
    fn new(tables: &'a DecodeTables, stream: &'a mut StreamReader<'_>) -> Self {
        Self {
            slots: &tables.slots,
            states: stream.states,
            words: stream.words,
            contexts: stream.contexts,
            out: stream.out,
            done: 0,
            at: 0,
        }
    }

    /// Whether every lane can decode a step and take a word without further checks.
    #[inline(always)]
    fn has_wide_step(&self) -> bool {
        self.done + LANES <= self.out.len() && self.at + 2 * LANES <= self.words.len()
    }

    /// Decodes as long as there is a word for every lane.
    fn run(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.states.len() == LANES && isa() >= Isa::Avx2 {
            #[expect(unsafe_code, reason = "calling functions with detected target features")]
            // SAFETY: `isa` returns only what was detected, and contexts were checked.
            unsafe {
                match isa() {
                    Isa::Avx512 | Isa::Amx => avx512::decode(self),
                    _ => avx2::decode(self),
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        if self.states.len() == LANES {
            #[expect(unsafe_code, reason = "calling a function with target features")]
            // SAFETY: every aarch64 machine has NEON.
            unsafe {
                neon::decode(self);
            }
        }
        self.scalar();
    }

    fn finish(mut self) -> Result<(), DecodeError> {
        self.run();
        let rest = &self.words[self.at..];
        if self.done == self.out.len() {
            return self.check_end(rest.is_empty());
        }
        // A copy of the last words, padded with zeros, so that steps may read past the end.
        let mut padded = [0; 4 * LANES];
        let rest = &rest[..rest.len().min(2 * LANES)];
        padded[..rest.len()].copy_from_slice(rest);
        let mut tail = Decoder { words: &padded, at: 0, ..self };
        tail.run();
        if tail.done < tail.out.len() || tail.at > rest.len() {
            return Err(DecodeError::Truncated);
        }
        tail.check_end(tail.at == rest.len())
    }

    fn check_end(&self, all_taken: bool) -> Result<(), DecodeError> {
        let is_start = self.states.iter().all(|x| x >> 16 == 1);
        if all_taken && is_start { Ok(()) } else { Err(DecodeError::Trailing) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
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

    /// States and words of a stream.
    fn encode(
        tables: &EncodeTables,
        symbols: &[u8],
        contexts: Contexts<'_>,
        carry: &[u16],
    ) -> (Vec<u32>, Vec<u8>) {
        let mut buffer = vec![0xaa; buffer_bytes(symbols.len())];
        let encoded = super::encode(tables, symbols, contexts, carry, &mut buffer);
        (encoded.states, buffer[encoded.start..].to_vec())
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
            let decoder = DecodeTables::new(&tables).unwrap();
            let coded = encode(&EncodeTables::new(&tables), &symbols, Contexts::PerSymbol(&contexts), &carry);
            for_each_isa(|_| {
                let by_isa = encode(&EncodeTables::new(&tables), &symbols, Contexts::PerSymbol(&contexts), &carry);
                prop_assert_eq!(&by_isa, &coded);
                // Two streams side by side, the second one a little shorter in symbols.
                let cut = symbols.len() - symbols.len().min(40);
                let contexts = Contexts::PerSymbol(&contexts);
                let second = encode(&EncodeTables::new(&tables), &symbols[..cut], contexts.slice(0..cut), &carry);
                let (mut states, mut second_states) = (coded.0.clone(), second.0.clone());
                let (mut out, mut second_out) = (vec![0; symbols.len()], vec![0; cut]);
                let (words, second_words) = (coded.1.clone(), second.1.clone());
                let got = decode(&decoder, &mut [
                    StreamReader { states: &mut states, words: &words, contexts, out: &mut out },
                    StreamReader { states: &mut second_states, words: &second_words, contexts: contexts.slice(0..cut), out: &mut second_out },
                ]);
                prop_assert_eq!(got, Ok(()));
                prop_assert_eq!(&out, &symbols);
                prop_assert_eq!(&second_out, &symbols[..cut]);
                let starts = states.iter().chain(&second_states);
                prop_assert!(starts.zip(carry.iter().chain(&carry)).all(|(x, c)| *x == STATE_LOW + u32::from(*c)));
                if !coded.1.is_empty() {
                    let short = &words[..words.len() - 2];
                    let mut out = vec![0; symbols.len()];
                    let mut stream = [StreamReader { states: &mut coded.0.clone(), words: short, contexts, out: &mut out }];
                    prop_assert!(decode(&decoder, &mut stream).is_err());
                }
                let long = [&words[..], &[0; 66]].concat();
                let mut stream = [StreamReader { states: &mut coded.0.clone(), words: &long, contexts, out: &mut out }];
                prop_assert_eq!(decode(&decoder, &mut stream), Err(DecodeError::Trailing));
                Ok(())
            })?;
        }
    }

    /// The size is the information in the symbols, given their frequencies, up to the states.
    #[test]
    fn size_is_that_of_the_information() {
        let table = skewed(0, 20);
        let symbols: Vec<u8> =
            (0..40_000usize).map(|i| u8::try_from((i * i + i / 7) % 20 * 7 % ALPHABET).unwrap()).collect();
        let coded = encode(&EncodeTables::new(&[table]), &symbols, Contexts::Single, &[0; LANES]);
        let bits = |symbol: &u8| 12.0 - f64::from(table[usize::from(*symbol)]).log2();
        let information: f64 = symbols.iter().map(bits).sum();
        let found = f64::from(u32::try_from(coded.1.len() * 8 + 16 * LANES).unwrap());
        let states = f64::from(u32::try_from(16 * LANES).unwrap());
        assert!((found - information).abs() <= states + information / 1000.0, "{found}, {information} bits");
    }

    #[test]
    fn one_symbol_alphabet_costs_nothing() {
        let tables = [skewed(9, 1)];
        let coded = encode(&EncodeTables::new(&tables), &[9; 1000], Contexts::Single, &[7; LANES]);
        assert!(coded.1.is_empty());
        assert_eq!(coded.0, vec![STATE_LOW + 7; LANES]);
    }

    /// Every frequency, with states on both sides of its multiples, where a rounded quotient could
    /// be wrong.
    #[test]
    fn quotients_are_exact_at_their_borders() {
        for f in 1u32..=4096 {
            let entries = [f | 7 << 16; ALPHABET];
            let multiple = |k: u32| (f << 20).wrapping_sub(1).wrapping_sub(k % 2) / f / (1 + k / 4 * 5) * f;
            let states: Vec<u32> = (0..32).map(|k| multiple(k).wrapping_sub(k / 2 % 2)).collect();
            let states: Vec<u32> = states.into_iter().map(|x| x.max(STATE_LOW)).collect();
            let encoded = |run: &mut dyn FnMut(&mut Encoder<'_>)| {
                let (states, contexts) = (states.clone(), Contexts::Single);
                let mut buffer = vec![0; buffer_bytes(LANES)];
                let (symbols, start) = (&[0; LANES], buffer.len());
                let mut encoder =
                    Encoder { entries: &entries, symbols, contexts, states, buffer: &mut buffer, start };
                run(&mut encoder);
                let (states, start) = (encoder.states, encoder.start);
                (states, buffer[start..].to_vec())
            };
            let scalar = encoded(&mut |encoder| encoder.scalar(0..LANES));
            for_each_isa(|isa| {
                assert_eq!(encoded(&mut |encoder| encoder.run(LANES)), scalar, "{f} {isa:?}");
                Ok::<_, ()>(())
            })
            .unwrap();
        }
    }

    #[test]
    #[should_panic(expected = "does not have")]
    fn a_symbol_without_frequency_is_a_fault() {
        let _ = encode(&EncodeTables::new(&[skewed(9, 1)]), &[8; 64], Contexts::Single, &[0; LANES]);
    }

    #[test]
    fn sum_of_frequencies_is_checked() {
        let mut table = skewed(1, 5);
        table[1] -= 1;
        assert!(DecodeTables::new(&[table]).is_none());
    }
}
