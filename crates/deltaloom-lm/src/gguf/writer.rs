//! Writes GGUF files for tests.

use super::Gguf;
use deltaloom::Result;

/// A file under construction.
#[derive(Default)]
pub(crate) struct Writer {
    values: Vec<u8>,
    value_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

fn push_text(into: &mut Vec<u8>, text: &str) {
    into.extend((text.len() as u64).to_le_bytes());
    into.extend(text.as_bytes());
}

impl Writer {
    /// A value of this type, by the number that GGUF gives it.
    pub(crate) fn value(&mut self, key: &str, kind: u32, bytes: &[u8]) {
        push_text(&mut self.values, key);
        self.values.extend(kind.to_le_bytes());
        self.values.extend(bytes);
        self.value_count += 1;
    }

    pub(crate) fn integer(&mut self, key: &str, value: u32) {
        self.value(key, 4, &value.to_le_bytes());
    }

    pub(crate) fn number(&mut self, key: &str, value: f32) {
        self.value(key, 6, &value.to_le_bytes());
    }

    pub(crate) fn text(&mut self, key: &str, text: &str) {
        let mut bytes = Vec::new();
        push_text(&mut bytes, text);
        self.value(key, 8, &bytes);
    }

    pub(crate) fn texts(&mut self, key: &str, texts: &[&str]) {
        let mut bytes = [8_u32.to_le_bytes().to_vec(), (texts.len() as u64).to_le_bytes().to_vec()].concat();
        texts.iter().for_each(|text| push_text(&mut bytes, text));
        self.value(key, 9, &bytes);
    }

    pub(crate) fn integers(&mut self, key: &str, values: &[i32]) {
        let mut bytes = [5_u32.to_le_bytes().to_vec(), (values.len() as u64).to_le_bytes().to_vec()].concat();
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.value(key, 9, &bytes);
    }

    /// A tensor behind those before it. `kind` is the number of its `ggml_type`.
    pub(crate) fn tensor(&mut self, name: &str, kind: u32, shape: &[u64], bytes: &[u8]) {
        let start = self.data.len() as u64;
        self.tensor_at(name, kind, shape, start);
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
    }

    /// The description of a tensor alone.
    pub(crate) fn tensor_at(&mut self, name: &str, kind: u32, shape: &[u64], start: u64) {
        push_text(&mut self.tensors, name);
        self.tensors.extend(u32::try_from(shape.len()).unwrap().to_le_bytes());
        shape.iter().rev().for_each(|size| self.tensors.extend(size.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(start.to_le_bytes());
        self.tensor_count += 1;
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(self.tensor_count.to_le_bytes());
        bytes.extend(self.value_count.to_le_bytes());
        bytes.extend(&self.values);
        bytes.extend(&self.tensors);
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }

    pub(crate) fn open(&self) -> Result<Gguf> {
        Gguf::from_source(Box::new(self.bytes()))
    }
}
