//! Turns a located tree into typed settings. Every error gets the line and the field of its value.

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};

use super::fault::Fault;
use super::tree::{Node, Value, named};

/// Reads `root` as a `T`. Lists of one may be written without brackets.
///
/// # Errors
/// The first value that does not fit, with its place.
pub fn typed<'a, T: Deserialize<'a>>(root: &'a Node) -> Result<T, Fault> {
    T::deserialize(At { node: root, field: String::new() })
}

/// A node and its dotted name.
struct At<'a> {
    node: &'a Node,
    field: String,
}

impl<'a> At<'a> {
    fn key(&self, key: &str, node: &'a Node) -> Self {
        Self { node, field: named(Some(node), &self.field, key) }
    }

    fn item(&self, index: usize, node: &'a Node) -> Self {
        Self { node, field: format!("{}[{index}]", self.field) }
    }

    /// Reads it, and gives errors their place.
    fn read<S: DeserializeSeed<'a>>(self, seed: S) -> Result<S::Value, Fault> {
        let (line, field) = (self.node.line, self.field.clone());
        seed.deserialize(self).map_err(|fault| fault.at(line, &field))
    }

    fn wrong<T>(&self, wanted: &str) -> Result<T, Fault> {
        Err(Fault::new("", format!("found {}, wanted {wanted}", self.node.value.shown())))
    }

    /// A section. Nothing is an empty one: all its lines may be comments.
    fn entries(&self) -> Result<&'a [(String, Node)], Fault> {
        match &self.node.value {
            Value::Map(entries) => Ok(entries),
            Value::Nothing => Ok(&[]),
            _ => self.wrong("a section with keys"),
        }
    }
}

/// A method for integers: whole numbers from 0 on.
macro_rules! whole {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            match self.node.value {
                Value::Whole(number) => match u64::try_from(number) {
                    Ok(number) => visitor.visit_u64(number),
                    Err(_) => self.wrong("a whole number from 0 on"),
                },
                _ => self.wrong("a whole number"),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for At<'de> {
    type Error = Fault;

    whole! { deserialize_u32 deserialize_u64 }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u128 f32 char bytes byte_buf unit unit_struct newtype_struct tuple_struct
        identifier ignored_any
    }

    /// For settings that are a word or a section.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Nothing => visitor.visit_unit(),
            Value::Flag(flag) => visitor.visit_bool(*flag),
            Value::Whole(_) => self.deserialize_u64(visitor),
            Value::Number(_) => self.deserialize_f64(visitor),
            Value::Text(_) => self.deserialize_str(visitor),
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Flag(flag) => visitor.visit_bool(flag),
            _ => self.wrong("true or false"),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Number(number) if number.is_finite() => visitor.visit_f64(number),
            Value::Number(_) => self.wrong("a finite number"),
            Value::Whole(number) => visitor.visit_f64(number as f64),
            _ => self.wrong("a number"),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Text(text) => visitor.visit_str(text),
            Value::Flag(_) | Value::Whole(_) | Value::Number(_) => {
                self.wrong("text").map_err(|e| e.hint("put it in quotes"))
            }
            _ => self.wrong("text"),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Nothing => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    /// A single value is a list of one.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let items = match &self.node.value {
            Value::List(nodes) => nodes.as_slice(),
            Value::Nothing => &[],
            _ => std::slice::from_ref(self.node),
        };
        visitor.visit_seq(Items { of: &self, rest: items.iter().enumerate() })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::List(nodes) if nodes.len() == len => {
                visitor.visit_seq(Items { of: &self, rest: nodes.iter().enumerate() })
            }
            _ => self.wrong(&format!("a list of {len}")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let entries = self.entries()?;
        visitor.visit_map(Entries { of: &self, rest: entries.iter(), value: None })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_map(visitor)
    }

    /// A word. `true` and `false` are words, too.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let word = match &self.node.value {
            Value::Text(word) => word,
            Value::Flag(true) => "true",
            Value::Flag(false) => "false",
            _ => return self.wrong(&format!("one of {}", words.join(", "))),
        };
        let word: StrDeserializer<'_, Fault> = word.into_deserializer();
        visitor.visit_enum(word)
    }
}

/// The items of a list.
struct Items<'a, 'de> {
    of: &'a At<'de>,
    rest: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some((index, node)) = self.rest.next() else { return Ok(None) };
        let alone = std::ptr::eq(node, self.of.node);
        let item = if alone { At { node, field: self.of.field.clone() } } else { self.of.item(index, node) };
        item.read(seed).map(Some)
    }
}

/// The keys and values of a section.
struct Entries<'a, 'de> {
    of: &'a At<'de>,
    rest: std::slice::Iter<'de, (String, Node)>,
    value: Option<At<'de>>,
}

impl<'de> MapAccess<'de> for Entries<'_, 'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some((key, node)) = self.rest.next() else { return Ok(None) };
        let value = self.of.key(key, node);
        let word: StrDeserializer<'_, Fault> = key.as_str().into_deserializer();
        let key = seed.deserialize(word).map_err(|e| e.at(node.line, &value.field))?;
        self.value = Some(value);
        Ok(Some(key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        match self.value.take() {
            Some(value) => value.read(seed),
            None => Err(Fault::new("", "a value without a key")),
        }
    }
}
