//! The structure of a pickle: what `torch.save` writes, as a graph of values.
//! It executes nothing and imports nothing. A call stays the name of its function and its
//! arguments, and a pickle with any other opcode is refused.

use std::collections::HashMap;

use crate::entropy::bytes::ByteReader;
use crate::error::{Error, Result};
use crate::limits::Limits;

/// The number of a value.
pub(super) type Id = u32;

/// A value that a pickle builds. It refers to others by their numbers, and cycles are possible.
#[derive(Debug, PartialEq)]
pub(super) enum Value<'a> {
    /// None, a truth value, a fraction, or an integer of more than 64 bits.
    Plain,
    Int(i64),
    Text(&'a str),
    /// A class or function: its module and its name.
    Global(&'a str, &'a str),
    Sequence(Vec<Id>),
    /// Keys with values.
    Dict(Vec<(Id, Id)>),
    /// An object that is kept outside the pickle, and what identifies it.
    Persistent(Id),
    Called(Box<Call>),
}

/// The call of a function, or of the constructor of a class.
#[derive(Debug, PartialEq)]
pub(super) struct Call {
    pub(super) function: Id,
    pub(super) arguments: Id,
    /// What the result was then given.
    pub(super) state: Option<Id>,
    pub(super) items: Vec<(Id, Id)>,
}

/// A pickle that was read to its end.
pub(super) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    pub(super) root: Id,
}

impl<'a> Pickle<'a> {
    pub(super) fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    pub(super) fn count(&self) -> usize {
        self.values.len()
    }

    pub(super) fn text(&self, id: Id) -> Option<&'a str> {
        if let Value::Text(text) = self.value(id) { Some(text) } else { None }
    }

    /// An integer that is a size or an offset.
    pub(super) fn size(&self, id: Id) -> Option<u64> {
        if let Value::Int(int) = self.value(id) { u64::try_from(*int).ok() } else { None }
    }

    pub(super) fn sequence(&self, id: Id) -> Option<&[Id]> {
        if let Value::Sequence(items) = self.value(id) { Some(items) } else { None }
    }

    pub(super) fn global(&self, id: Id) -> Option<(&'a str, &'a str)> {
        if let Value::Global(module, name) = self.value(id) { Some((module, name)) } else { None }
    }
}

/// The value of None, of truth values, and of all else that is never looked at.
const PLAIN: Id = 0;
/// Classes whose instances are built from nothing and then filled as a dict is.
const DICTS: [(&str, &str); 2] = [("collections", "OrderedDict"), ("collections", "defaultdict")];

/// Reads a pickle of protocol 2.
pub(super) fn read<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Pickle<'a>> {
    // Every value on the stack or in a list takes less than this.
    let most_values = limits.index_bytes / size_of::<Value<'_>>() as u64;
    let mut machine = Machine {
        values: vec![Value::Plain],
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        pushed: 0,
        most_values,
    };
    let mut reader = ByteReader::new(bytes, "the pickle");
    while machine.step(&mut reader)? {}
    reader.finish()?;
    match (&machine.stack[..], &machine.marks[..]) {
        ([root], []) => Ok(Pickle { root: *root, values: machine.values }),
        _ => Err(Error::corrupt("the pickle leaves more than one value")),
    }
}

struct Machine<'a> {
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at which a run of values begins.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Values that were put on the stack so far, and how many may be.
    pushed: u64,
    most_values: u64,
}

impl<'a> Machine<'a> {
    /// Follows one opcode. Returns whether there are more.
    fn step(&mut self, reader: &mut ByteReader<'a>) -> Result<bool> {
        match reader.u8()? {
            // PROTO
            0x80 => match reader.u8()? {
                2 => {}
                other => return Err(Error::corrupt(format!("a pickle of protocol {other}, not 2"))),
            },
            b'.' => return Ok(false),
            b'(' => {
                self.count()?;
                self.marks.push(self.stack.len());
            }
            // None, True, False; a fraction.
            b'N' | 0x88 | 0x89 => self.push_id(PLAIN)?,
            b'G' => {
                reader.take(8)?;
                self.push_id(PLAIN)?;
            }
            b'K' => {
                let int = reader.u8()?;
                self.push(Value::Int(int.into()))?;
            }
            b'M' => {
                let int = u16::from_le_bytes(reader.array()?);
                self.push(Value::Int(int.into()))?;
            }
            b'J' => {
                let int = i32::from_le_bytes(reader.array()?);
                self.push(Value::Int(int.into()))?;
            }
            // LONG1
            0x8a => {
                let length = reader.u8()?;
                let bytes = reader.take(length.into())?;
                self.push(long(bytes))?;
            }
            b'X' => {
                let length = reader.u32()?;
                let text = utf8(reader.take(length as usize)?)?;
                self.push(Value::Text(text))?;
            }
            b'c' => {
                let (module, name) = (line(reader)?, line(reader)?);
                self.push(Value::Global(module, name))?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b']' | b')' => self.push(Value::Sequence(Vec::new()))?,
            b't' => {
                let items = self.pop_run()?;
                self.push(Value::Sequence(items))?;
            }
            // TUPLE1 to TUPLE3
            count @ 0x85..=0x87 => {
                let start = self.stack.len().checked_sub(usize::from(count - 0x84));
                let start = start.filter(|start| *start >= self.floor()).ok_or_else(empty)?;
                let items = self.stack.split_off(start);
                self.push(Value::Sequence(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.pop_run()?;
                self.append(&items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_run()?;
                self.set_items(&items)?;
            }
            b'q' => {
                let place = reader.u8()?;
                self.remember(place.into())?;
            }
            b'r' => {
                let place = reader.u32()?;
                self.remember(place)?;
            }
            b'h' => {
                let place = reader.u8()?;
                self.recall(place.into())?;
            }
            b'j' => {
                let place = reader.u32()?;
                self.recall(place)?;
            }
            b'Q' => {
                let identity = self.pop()?;
                self.push(Value::Persistent(identity))?;
            }
            // REDUCE and NEWOBJ
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.call(function, arguments)?;
            }
            b'b' => {
                let state = self.pop()?;
                // What a dict is given is what is known about it, and not in it.
                if let Value::Called(call) = self.top()? {
                    call.state = Some(state);
                }
            }
            other => {
                return Err(Error::corrupt(format!(
                    "a pickle with the opcode {other:#04x}, which torch.save does not write"
                )));
            }
        }
        Ok(true)
    }

    fn count(&mut self) -> Result<()> {
        self.pushed += 1;
        Limits::check("the number of values in a pickle", self.pushed, self.most_values)
    }

    fn push_id(&mut self, id: Id) -> Result<()> {
        self.count()?;
        self.stack.push(id);
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) -> Result<()> {
        let id =
            Id::try_from(self.values.len()).map_err(|_| Error::corrupt("a pickle of too many values"))?;
        self.push_id(id)?;
        self.values.push(value);
        Ok(())
    }

    /// Where the values of the innermost run begin.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id> {
        if self.stack.len() <= self.floor() {
            return Err(empty());
        }
        self.stack.pop().ok_or_else(empty)
    }

    fn pop_run(&mut self) -> Result<Vec<Id>> {
        let start = self.marks.pop().ok_or_else(empty)?;
        Ok(self.stack.split_off(start))
    }

    fn top(&mut self) -> Result<&mut Value<'a>> {
        let top = self.stack[self.floor()..].last().ok_or_else(empty)?;
        // The shared value must stay as it is.
        self.values.get_mut(*top as usize).filter(|_| *top != PLAIN).ok_or_else(misplaced)
    }

    fn append(&mut self, items: &[Id]) -> Result<()> {
        match self.top()? {
            Value::Sequence(list) => list.extend_from_slice(items),
            Value::Called(call) => call.items.extend(items.iter().map(|item| (PLAIN, *item))),
            _ => return Err(misplaced()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<()> {
        let (pairs, []) = items.as_chunks::<2>() else { return Err(misplaced()) };
        let pairs = pairs.iter().map(|[key, value]| (*key, *value));
        match self.top()? {
            Value::Dict(dict) => dict.extend(pairs),
            Value::Called(call) => call.items.extend(pairs),
            _ => return Err(misplaced()),
        }
        Ok(())
    }

    fn remember(&mut self, place: u32) -> Result<()> {
        self.count()?;
        let top = *self.stack[self.floor()..].last().ok_or_else(empty)?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Result<()> {
        let id = self.memo.get(&place).copied();
        self.push_id(id.ok_or_else(|| Error::corrupt("a pickle repeats a value that it does not have"))?)
    }

    fn call(&mut self, function: Id, arguments: Id) -> Result<()> {
        let is_dict = |value: &Value<'_>| match value {
            Value::Global(module, name) => DICTS.contains(&(module, name)),
            _ => false,
        };
        if is_dict(&self.values[function as usize]) {
            return self.push(Value::Dict(Vec::new()));
        }
        self.push(Value::Called(Box::new(Call { function, arguments, state: None, items: Vec::new() })))
    }
}

fn empty() -> Error {
    Error::corrupt("a pickle uses a value that it does not have")
}

fn misplaced() -> Error {
    Error::corrupt("a pickle puts values into one that cannot hold them")
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| Error::corrupt("a text of the pickle is not UTF-8"))
}

/// The bytes before the end of the line.
fn line<'a>(reader: &mut ByteReader<'a>) -> Result<&'a str> {
    let length = reader.clone().rest().iter().position(|byte| *byte == b'\n');
    let length = length.ok_or_else(|| Error::corrupt("the pickle ends early"))?;
    let text = utf8(reader.take(length)?)?;
    reader.take(1)?;
    Ok(text)
}

/// A little-endian integer in two's complement, of any length.
fn long<'a>(bytes: &[u8]) -> Value<'a> {
    if bytes.len() > 8 {
        return Value::Plain;
    }
    let sign = if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 };
    let mut whole = [sign; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(bytes: &[u8]) -> String {
        match read(bytes, &Limits::default()) {
            Err(e) => e.to_string(),
            Ok(_) => panic!("{} was read", bytes.escape_ascii()),
        }
    }

    #[test]
    fn values_are_built_and_calls_are_only_named() {
        let bytes =
            b"\x80\x02}q\0(X\x01\0\0\0aK\x05X\x01\0\0\0bcos\nsystem\nX\x01\0\0\0x\x85RX\x01\0\0\0ch\0u.";
        let pickle = read(bytes, &Limits::default()).unwrap();
        let Value::Dict(items) = pickle.value(pickle.root) else { panic!("the root is a dict") };
        let keys: Vec<_> = items.iter().map(|(key, _)| pickle.text(*key)).collect();
        assert_eq!(keys, [Some("a"), Some("b"), Some("c")]);
        assert_eq!(pickle.size(items[0].1), Some(5));
        let Value::Called(call) = pickle.value(items[1].1) else { panic!("b is a call") };
        assert_eq!(pickle.global(call.function), Some(("os", "system")));
        assert_eq!(items[2].1, pickle.root, "a value may contain itself");
    }

    #[test]
    fn integers_have_signs() {
        for (bytes, int) in [(&b""[..], 0), (b"\xff", -1), (b"\0\x80", -32768), (b"\xff\0", 255)] {
            assert_eq!(long(bytes), Value::Int(int));
        }
        assert_eq!(long(&[1; 9]), Value::Plain);
    }

    #[test]
    fn broken_pickles_are_refused() {
        for bytes in
            [&b""[..], b"\x80", b"\x80\x02", b"\x80\x02X\xff\xff\xff\xffa", b"cos", b"K", b"\x8a\x09a"]
        {
            assert!(fault(bytes).contains("ends early"), "{}", bytes.escape_ascii());
        }
        for bytes in [&b"."[..], b"NN.", b"(N."] {
            assert!(fault(bytes).contains("more than one"), "{}", bytes.escape_ascii());
        }
        for bytes in [
            &b"t"[..],
            b"a",
            b"Na",
            b"N(a",
            b"R",
            b"NR",
            b"N\x86",
            b"N(N\x86",
            b"q\0",
            b"(q\0",
            b"b",
            b"s",
            b"Q",
        ] {
            assert!(fault(bytes).contains("does not have"), "{}", bytes.escape_ascii());
        }
        for bytes in [&b"NNa"[..], b"K\x01Na", b"}(Nu", b"](NNu", b"NNb"] {
            assert!(fault(bytes).contains("cannot hold"), "{}", bytes.escape_ascii());
        }
        assert!(fault(b"h\0").contains("repeats"));
        assert!(fault(b"N.N").contains("left over"));
        assert!(fault(b"X\x01\0\0\0\xff").contains("UTF-8"));
        assert!(fault(b"\x80\x04N.").contains("protocol 4"));
        for opcode in [b'o', b'i', b'0', b'1', b'2', b'P', 0x82, 0x8b, 0x93, 0x94, 0x95, 0x97] {
            assert!(fault(&[opcode, 0, 0, 0, 0]).contains("opcode"), "{opcode}");
        }
    }

    #[test]
    fn a_pickle_cannot_take_more_memory_than_allowed() {
        let limits = Limits { index_bytes: 1 << 16, ..Limits::default() };
        let most = (1 << 16) / size_of::<Value<'_>>();
        for opcode in [&b"("[..], b"N", b"K\0", b"]", b"h\0", b"q\0"] {
            let mut bytes = b"]q\0".to_vec();
            (0..most).for_each(|_| bytes.extend_from_slice(opcode));
            assert!(matches!(read(&bytes, &limits), Err(Error::LimitExceeded { .. })), "{opcode:?}");
        }
    }
}
