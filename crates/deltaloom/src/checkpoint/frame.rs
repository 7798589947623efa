//! Files of other formats, as tensors between the bytes of a frame: where each byte is, and how
//! such a file is written again. It does not know the formats.

use std::collections::HashSet;
use std::io::{self, Write};
use std::ops::Range;

use super::{Contents, Member};
use crate::error::{Error, Result};
use crate::limits::{Limits, to_usize};
use crate::tensor::{DType, TensorInfo};

/// The name of a frame, unless a tensor has that name.
const FRAME_NAME: &str = "__frame__";

/// All bytes of a file that belong to no tensor. They are the first tensor of their member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// For every other tensor, the bytes of the frame that come before it in the file.
    before: Vec<u64>,
    /// The file as one tensor, as it is where the format is not known.
    whole: TensorInfo,
    len_bytes: u64,
}

/// A tensor of a framed file, and the bytes between it and the tensor before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    pub(crate) gap: u64,
}

impl Frame {
    /// Size of the frame.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    pub(crate) fn whole(&self) -> &TensorInfo {
        &self.whole
    }

    /// The bytes between each tensor and the one before it.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = u64> {
        let starts = std::iter::once(0).chain(self.before.iter().copied());
        self.before.iter().zip(starts).map(|(before, start)| before - start)
    }

    /// The place in the file of the first bytes of `range`, which lies in a tensor, and how many of
    /// them are there.
    pub(super) fn place_of(
        &self,
        tensor: &TensorInfo,
        range: &Range<u64>,
        tensors: &[TensorInfo],
    ) -> (u64, u64) {
        let len_bytes = range.end - range.start;
        if tensor.len_bytes() == self.whole.len_bytes() {
            return (range.start, len_bytes);
        }
        if tensor.begin < self.len_bytes {
            // Tensors that lie before this byte of the frame.
            let count = self.before.partition_point(|before| *before <= range.start);
            let end = self.before.get(count).map_or(range.end, |next| range.end.min(*next));
            return (range.start + tensors[count].end - self.len_bytes, end - range.start);
        }
        let number = tensors.partition_point(|other| other.end <= range.start);
        (range.start - self.len_bytes + self.before[number - 1], len_bytes)
    }
}

impl Member {
    /// A file of another format: the size of its frame, and its tensors in the order of their
    /// places.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::LimitExceeded`].
    pub(crate) fn framed(
        path: String,
        frame_bytes: u64,
        placed: Vec<Placed>,
        limits: &Limits,
    ) -> Result<Self> {
        Limits::check("the frame of a file in bytes", frame_bytes, limits.header_bytes)?;
        Limits::check("the number of tensors", placed.len() as u64, limits.tensors)?;
        let name = frame_name(&placed)?;
        let mut tensors =
            vec![TensorInfo { name, dtype: DType::U8, shape: vec![frame_bytes], begin: 0, end: frame_bytes }];
        let mut before = Vec::with_capacity(placed.len());
        let (mut begin, mut used) = (frame_bytes, 0u64);
        for Placed { name, dtype, shape, gap } in placed {
            Limits::check("the number of dimensions", shape.len() as u64, limits.dimensions)?;
            let bits = dtype.number().map(|number| u64::from(number.bits()));
            let elems = shape.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim));
            let len_bytes = elems.zip(bits).and_then(|(elems, bits)| elems.checked_mul(bits / 8));
            let end = len_bytes.and_then(|len_bytes| begin.checked_add(len_bytes));
            let Some(end) = end.filter(|end| end >> 56 == 0) else {
                return Err(Error::corrupt(format!("tensor {name:?} of {dtype} {shape:?} has no size")));
            };
            used = used.saturating_add(gap);
            if used > frame_bytes {
                return Err(Error::corrupt(format!("tensor {name:?} begins behind the end of its file")));
            }
            before.push(used);
            tensors.push(TensorInfo { name, dtype, shape, begin, end });
            begin = end;
        }
        if frame_bytes == 0 {
            return Err(Error::corrupt("a frame has no bytes"));
        }
        let whole =
            TensorInfo { name: path.clone(), dtype: DType::U8, shape: vec![begin], begin: 0, end: begin };
        let contents = Contents::Framed(Frame { before, whole, len_bytes: frame_bytes });
        Ok(Self { path, contents, tensors, tail_bytes: 0 })
    }
}

/// A name that no tensor has.
fn frame_name(placed: &[Placed]) -> Result<String> {
    let mut names = HashSet::with_capacity(placed.len());
    if let Some(twice) = placed.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
        return Err(Error::corrupt(format!("two tensors are named {:?}", twice.name)));
    }
    let mut name = FRAME_NAME.to_owned();
    while names.contains(name.as_str()) {
        name.push('_');
    }
    Ok(name)
}

/// Writes a member from the bytes of its tensors, which come in order and in any pieces.
pub(crate) struct MemberWriter<'a> {
    member: &'a Member,
    /// Of a framed file: the frame as far as it is known, and how much of it is written.
    frame: Vec<u8>,
    written: usize,
}

impl<'a> MemberWriter<'a> {
    /// Writes what comes before the first tensor.
    pub(crate) fn start(member: &'a Member, out: &mut (impl Write + ?Sized)) -> io::Result<Self> {
        if let Contents::Safetensors(header) = &member.contents {
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(header)?;
        }
        Ok(Self { member, frame: Vec::new(), written: 0 })
    }

    /// Writes the next bytes of a tensor, given by its number in the member. Of a tensor without
    /// bytes, this is called with none.
    pub(crate) fn write(
        &mut self,
        tensor: usize,
        bytes: &[u8],
        out: &mut (impl Write + ?Sized),
    ) -> io::Result<()> {
        let Contents::Framed(frame) = &self.member.contents else { return out.write_all(bytes) };
        let Some(number) = tensor.checked_sub(1) else {
            // At most as long as `Limits` allows a frame to be.
            self.frame.extend_from_slice(bytes);
            return Ok(());
        };
        self.write_frame(to_usize(frame.before[number]), out)?;
        out.write_all(bytes)
    }

    /// Writes what comes after the last tensor.
    pub(crate) fn finish(mut self, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
        self.write_frame(self.frame.len(), out)
    }

    fn write_frame(&mut self, end: usize, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
        if end > self.written {
            out.write_all(&self.frame[self.written..end])?;
            self.written = end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(name: &str, len_bytes: u64, gap: u64) -> Placed {
        Placed { name: name.to_owned(), dtype: DType::U8, shape: vec![len_bytes], gap }
    }

    fn framed(frame_bytes: u64, tensors: Vec<Placed>) -> Result<Member> {
        Member::framed("f".to_owned(), frame_bytes, tensors, &Limits::default())
    }

    #[test]
    fn every_byte_of_a_file_belongs_to_one_place() {
        // The file is f, aaa, no bytes of e, ff, bb, c, fff.
        let member =
            framed(6, vec![placed("a", 3, 1), placed("e", 0, 0), placed("b", 2, 2), placed("c", 1, 0)]);
        let member = member.unwrap();
        assert_eq!(member.len_bytes(), 12);
        let places_of = |tensor: &TensorInfo, range: Range<u64>| -> Vec<(u64, u64)> {
            member.places_of(tensor, range).map(|place| (place.start, place.end)).collect()
        };
        let places = |tensor: usize, range| places_of(&member.tensors[tensor], range);
        assert_eq!(places(0, 0..6), [(0, 1), (4, 6), (9, 12)]);
        assert_eq!(places(0, 2..4), [(5, 6), (9, 10)]);
        assert_eq!(places(1, 0..3), [(1, 4)]);
        assert_eq!(places(2, 0..0), []);
        assert_eq!(places(3, 1..2), [(7, 8)]);
        assert_eq!(places(4, 0..1), [(8, 9)]);
        let Contents::Framed(frame) = &member.contents else { panic!("a frame was made") };
        assert_eq!(frame.gaps().collect::<Vec<_>>(), [1, 0, 2, 0]);
        assert_eq!(places_of(frame.whole(), 3..11), [(3, 11)]);

        let mut out = Vec::new();
        let mut writer = MemberWriter::start(&member, &mut out).unwrap();
        for (tensor, bytes) in
            [(0, &b"01"[..]), (0, b"2345"), (1, b"a"), (1, b"aa"), (2, b""), (3, b"bb"), (4, b"c")]
        {
            writer.write(tensor, bytes, &mut out).unwrap();
        }
        writer.finish(&mut out).unwrap();
        assert_eq!(out, b"0aaa12bbc345");
    }

    #[test]
    fn frames_that_lie_are_refused() {
        let fault = |frame_bytes, tensors| framed(frame_bytes, tensors).unwrap_err().to_string();
        assert!(fault(0, vec![]).contains("no bytes"));
        assert!(fault(3, vec![placed("a", 1, 2), placed("b", 1, 2)]).contains("behind the end"));
        assert!(fault(3, vec![placed("a", 1, 1), placed("a", 1, 1)]).contains("two tensors"));
        assert!(fault(3, vec![placed("a", u64::MAX, 1)]).contains("no size"));
        assert!(fault(u64::MAX, vec![]).contains("frame"));
        assert_eq!(framed(9, vec![placed("__frame__", 1, 1)]).unwrap().tensors[0].name, "__frame___");
    }
}
