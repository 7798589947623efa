//! Parts of a file that are in memory, in the order of their last use.

use std::collections::HashMap;
use std::sync::Arc;

/// A part that is in memory.
#[derive(Default)]
pub(super) struct Frame {
    /// Where it is in the file.
    pub(super) place: u64,
    pub(super) bytes: Arc<[u8]>,
    /// Whether the file has something else.
    pub(super) is_changed: bool,
    older: usize,
    newer: usize,
}

/// Frames, in a ring by age.
pub(super) struct Resident {
    /// The first is no part: it lies between the newest one and the oldest one.
    frames: Vec<Frame>,
    numbers: HashMap<u64, usize>,
    unused: Vec<usize>,
    bytes: u64,
}

impl Default for Resident {
    fn default() -> Self {
        Self { frames: vec![Frame::default()], numbers: HashMap::new(), unused: Vec::new(), bytes: 0 }
    }
}

impl Resident {
    /// Bytes of all parts.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The part at a place, which becomes the newest one.
    pub(super) fn get(&mut self, place: u64) -> Option<&mut Frame> {
        let number = *self.numbers.get(&place)?;
        self.unlink(number);
        self.link(number);
        Some(&mut self.frames[number])
    }

    /// Adds a part that is not there, as the newest one.
    pub(super) fn insert(&mut self, place: u64, bytes: Arc<[u8]>) -> &mut Frame {
        self.bytes += bytes.len() as u64;
        let number = self.unused.pop().unwrap_or_else(|| {
            self.frames.push(Frame::default());
            self.frames.len() - 1
        });
        self.frames[number] = Frame { place, bytes, ..Frame::default() };
        self.numbers.insert(place, number);
        self.link(number);
        &mut self.frames[number]
    }

    /// The part that was not used for the longest time.
    pub(super) fn oldest(&self) -> Option<&Frame> {
        let number = self.frames[0].newer;
        (number != 0).then(|| &self.frames[number])
    }

    /// Forgets the part at a place, if it is there.
    pub(super) fn remove(&mut self, place: u64) {
        let Some(number) = self.numbers.remove(&place) else { return };
        self.unlink(number);
        let frame = std::mem::take(&mut self.frames[number]);
        self.bytes -= frame.bytes.len() as u64;
        self.unused.push(number);
    }

    /// Makes a frame the newest one.
    fn link(&mut self, number: usize) {
        let older = self.frames[0].older;
        self.frames[older].newer = number;
        self.frames[0].older = number;
        (self.frames[number].older, self.frames[number].newer) = (older, 0);
    }

    fn unlink(&mut self, number: usize) {
        let Frame { older, newer, .. } = self.frames[number];
        self.frames[older].newer = newer;
        self.frames[newer].older = older;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_that_was_not_used_longest_is_the_oldest() {
        let mut resident = Resident::default();
        assert!(resident.oldest().is_none());
        for place in [10, 20, 30] {
            resident.insert(place, Arc::from([0; 4]));
        }
        assert!(resident.get(10).is_some() && resident.get(40).is_none());
        let mut order = Vec::new();
        while let Some(frame) = resident.oldest() {
            let place = frame.place;
            order.push(place);
            resident.remove(place);
            if place == 20 {
                resident.insert(50, Arc::from([0; 9]));
                assert_eq!(resident.bytes(), 17);
            }
        }
        assert_eq!((order, resident.bytes()), (vec![20, 30, 10, 50], 0));
        resident.remove(20);
        // Frames are used again.
        assert_eq!(resident.frames.len(), 4);
    }
}
