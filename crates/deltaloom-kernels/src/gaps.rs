//! Turns set bits into gaps and gaps back into bits. Bit k of byte i has position 8 i + k.
//!
//! A gap is the distance from the previous set bit. How gaps are coded is not decided here.

use crate::DecodeError;
use crate::isa::per_isa;

/// Position in a stream of bits that is processed piece by piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since {
    /// Gap of the first bit of the piece if it is set, from the pieces before it.
    before: u64,
    /// The last set bit of the current piece so far.
    last: Option<u64>,
}

impl Default for Since {
    /// Before the first bit: if the first set bit has position p, its gap is p + 1.
    fn default() -> Self {
        Self { before: 1, last: None }
    }
}

impl Since {
    /// Moves past a piece of `piece_bytes` bytes.
    pub fn pass(&mut self, piece_bytes: usize) {
        let piece_bits = 8 * piece_bytes as u64;
        self.before = match self.last.take() {
            Some(last) => piece_bits - last,
            None => self.before.saturating_add(piece_bits),
        };
    }

    /// Moves past a piece and looks only for its last nonzero byte.
    pub fn skip(&mut self, bytes: &[u8]) {
        let last = bytes.iter().rposition(|byte| *byte != 0);
        self.last = last.map(|at| 8 * at as u64 + u64::from(bytes[at].ilog2()));
        self.pass(bytes.len());
    }
}

per_isa! {
    /// Appends the gap of every set bit in the piece `bytes` to `gaps` and moves past the piece.
    pub fn extract(bytes: &[u8], since: &mut Since, gaps: &mut Vec<u64>) = extract_body;
}

#[inline(always)]
fn extract_body(bytes: &[u8], since: &mut Since, gaps: &mut Vec<u64>) {
    let (words, tail) = bytes.as_chunks::<8>();
    let mut last_word = [0; 8];
    last_word[..tail.len()].copy_from_slice(tail);
    let all = || words.iter().chain(std::iter::once(&last_word)).map(|word| u64::from_le_bytes(*word));
    let count: usize = all().map(|word| word.count_ones() as usize).sum();
    let first = gaps.len();
    gaps.resize(first + count, 0);
    let mut places = gaps[first..].iter_mut();
    // Positions count from the first bit of the piece; the previous set bit lies that far before 0.
    let mut before = 0u64.wrapping_sub(since.before);
    let mut base = 0u64;
    for mut word in all() {
        while word != 0 {
            let position = base + u64::from(word.trailing_zeros());
            if let Some(place) = places.next() {
                *place = position.wrapping_sub(before);
            }
            before = position;
            word &= word - 1;
        }
        base += 64;
    }
    since.last = (count > 0).then_some(before);
    since.pass(bytes.len());
}

per_isa! {
    /// Sets the bits of the piece `bytes`, all zero before, to which `gaps` lead. Returns how many
    /// gaps were used; the others lead past its end. The caller moves on with [`Since::pass`].
    ///
    /// # Errors
    /// [`DecodeError::BadSymbol`] if a gap is zero or leads to a bit before the piece.
    pub fn scatter(gaps: &[u64], since: &mut Since, bytes: &mut [u8]) -> Result<usize, DecodeError> = scatter_body;
}

#[inline(always)]
fn scatter_body(gaps: &[u64], since: &mut Since, bytes: &mut [u8]) -> Result<usize, DecodeError> {
    let Some((first, rest)) = gaps.split_first() else { return Ok(0) };
    let mut at = match since.last {
        None => first.checked_sub(since.before).ok_or(DecodeError::BadSymbol)?,
        Some(_) if *first == 0 => return Err(DecodeError::BadSymbol),
        Some(last) => last.saturating_add(*first),
    };
    let mut used = 0;
    while let Some(byte) = usize::try_from(at / 8).ok().and_then(|place| bytes.get_mut(place)) {
        *byte |= 1 << (at % 8);
        since.last = Some(at);
        used += 1;
        let Some(&gap) = rest.get(used - 1) else { break };
        if gap == 0 {
            return Err(DecodeError::BadSymbol);
        }
        at = at.saturating_add(gap);
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    fn gaps_of(pieces: &[&[u8]]) -> Vec<u64> {
        let (mut since, mut gaps) = (Since::default(), Vec::new());
        pieces.iter().for_each(|piece| extract(piece, &mut since, &mut gaps));
        gaps
    }

    proptest! {
        #[test]
        fn pieces_give_the_gaps_of_the_whole(
            bytes in prop::collection::vec(prop_oneof![4 => Just(0u8), 1 => any::<u8>()], 0..300),
            cuts in (0usize..300, 0usize..300),
        ) {
            let mut positions = Vec::new();
            for (i, byte) in bytes.iter().enumerate() {
                positions.extend((0..8).filter(|k| byte >> k & 1 == 1).map(|k| (8 * i + k) as u64));
            }
            let expected: Vec<u64> = std::iter::once(positions.first().map(|p| p + 1)).flatten()
                .chain(positions.windows(2).map(|w| w[1] - w[0])).collect();
            let (a, b) = (cuts.0.min(bytes.len()), cuts.1.min(bytes.len()));
            let pieces = [&bytes[..a.min(b)], &bytes[a.min(b)..a.max(b)], &bytes[a.max(b)..]];
            for_each_isa(|_| {
                prop_assert_eq!(&gaps_of(&[&bytes]), &expected);
                prop_assert_eq!(&gaps_of(&pieces), &expected);
                let (mut since, mut skipped, mut used, mut rebuilt) = (Since::default(), Since::default(), 0, Vec::new());
                for piece in pieces {
                    let mut out = vec![0; piece.len()];
                    let half = used + (expected.len() - used) / 2;
                    used += scatter(&expected[used..half], &mut since, &mut out).unwrap();
                    if used == half {
                        used += scatter(&expected[used..], &mut since, &mut out).unwrap();
                    }
                    since.pass(out.len());
                    skipped.skip(piece);
                    prop_assert_eq!(since, skipped);
                    rebuilt.extend(out);
                }
                prop_assert_eq!(used, expected.len());
                prop_assert_eq!(&rebuilt, &bytes);
                Ok(())
            })?;
        }
    }

    #[test]
    fn ends_and_gaps_that_lead_nowhere() {
        assert_eq!(gaps_of(&[&[1, 0, 0]]), [1]);
        assert_eq!(gaps_of(&[&[0, 0, 0x80]]), [24]);
        assert_eq!(gaps_of(&[&[0xff, 1]]), [1; 9]);
        let mut out = [0; 4];
        let mut since = Since::default();
        assert_eq!(scatter(&[1, u64::MAX], &mut since, &mut out), Ok(1));
        since.pass(4);
        assert_eq!(scatter(&[1, 0], &mut Since::default(), &mut out), Err(DecodeError::BadSymbol));
        assert_eq!(scatter(&[0], &mut Since::default(), &mut out), Err(DecodeError::BadSymbol));
        // 32 bits lie between, so a gap of 31 would lead back into the earlier piece.
        assert_eq!(scatter(&[31], &mut since, &mut out), Err(DecodeError::BadSymbol));
        assert_eq!(scatter(&[1 << 40], &mut since, &mut []), Ok(0));
    }
}
