//! Builds a container from meta and tables as they are before compression, and from payloads: lengths and checksums
//! are computed, everything else is as hostile as the parts. docs/format.md says what is read here.

use super::GoldenBases;

/// Reads meta as far as it makes sense.
struct Meta<'a> {
    bytes: &'a [u8],
}

impl<'a> Meta<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn size(&mut self) -> Option<usize> {
        usize::try_from(self.varint()?).ok()
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.size()?;
        std::str::from_utf8(self.take(length)?).ok()
    }
}

/// Name, dtype and shape of a tensor.
struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<u64>,
}

fn tensors_of_header(header: &[u8]) -> Option<Vec<Tensor>> {
    let serde_json::Value::Object(header) = serde_json::from_slice(header).ok()? else { return None };
    let mut tensors = Vec::new();
    for (name, entry) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let number = |value: &serde_json::Value| value.as_u64();
        let numbers = |key: &str| entry[key].as_array()?.iter().map(number).collect::<Option<Vec<u64>>>();
        let place = numbers("data_offsets")?;
        let tensor = Tensor {
            name: name.clone(),
            dtype: entry["dtype"].as_str()?.to_owned(),
            shape: numbers("shape")?,
        };
        tensors.push((place, name, tensor));
    }
    tensors.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    Some(tensors.into_iter().map(|(.., tensor)| tensor).collect())
}

/// What `checks` needs to know.
#[derive(Default)]
struct Checks {
    digests: Vec<u8>,
    payload_bytes: Vec<usize>,
}

/// Walks meta. `None` when it makes no sense; the library will say so too.
fn checks(meta: &[u8], bases: &GoldenBases) -> Option<Checks> {
    let mut meta = Meta { bytes: meta };
    let (_layout, _chunk_log2, members) = (meta.u8()?, meta.u8()?, meta.varint()?);
    let mut tensors = Vec::new();
    for _ in 0..members {
        let path = meta.text()?.to_owned();
        if meta.u8()? == 0 {
            let length = meta.varint()?;
            tensors.push(Tensor { name: path, dtype: "U8".to_owned(), shape: vec![length] });
        } else {
            let length = meta.size()?;
            tensors.extend(tensors_of_header(meta.take(length)?)?);
        }
    }
    let _sets = meta.varint()?;
    let mut out = Checks::default();
    for tensor in &tensors {
        let predictor = meta.u8()?;
        let mut reference = None;
        if matches!(predictor, 1 | 2 | 4) {
            let name = Some(meta.text()?).filter(|name| !name.is_empty()).unwrap_or(&tensor.name);
            let dtype = if predictor == 4 { "F32" } else { &tensor.dtype };
            reference = Some(bases.digest(name, dtype, &tensor.shape).unwrap_or_default());
        } else if predictor != 0 {
            meta.varint()?;
        }
        if !matches!(predictor, 2 | 3) {
            out.digests.extend([0; 32]);
        }
        out.digests.extend(reference.into_iter().flatten());
        if predictor > 1 {
            continue;
        }
        if predictor == 1 {
            meta.varint()?;
        }
        for _ in 0..meta.varint()? {
            groups(&mut meta, &mut out.payload_bytes)?;
        }
    }
    Some(out)
}

fn groups(meta: &mut Meta<'_>, payload_bytes: &mut Vec<usize>) -> Option<()> {
    let chunks = meta.varint()?;
    let family = meta.u8()?;
    if family > 0 {
        meta.varint()?;
        let mode = meta.u8()?;
        meta.varint()?;
        if family > 1 && mode & 2 != 0 {
            meta.varint()?;
            meta.u8()?;
            let length = meta.size()?;
            meta.take(length)?;
        }
    }
    for _ in 0..chunks {
        meta.u8()?;
        payload_bytes.push(meta.size()?);
    }
    Some(())
}

/// The container.
pub fn assemble(meta: &[u8], tables: &[u8], payloads: &[u8], bases: &GoldenBases) -> Option<Vec<u8>> {
    let known = checks(meta, bases)?;
    let mut out = b"\x89LOOM\r\n\x1a\x02\0\0\0\0\0\0\0".to_vec();
    let mut checks = known.digests;
    let mut rest = payloads;
    for length in known.payload_bytes {
        // What is missing is zero, so that lengths may change.
        let (there, after) = rest.split_at(length.min(rest.len()));
        rest = after;
        let missing = length - there.len();
        if missing > 1 << 16 {
            return None;
        }
        let payload = [there, &vec![0; missing]].concat();
        out.extend(&payload);
        checks.extend(crc32fast::hash(&payload).to_le_bytes());
    }
    let index_offset = out.len() as u64;
    let (meta_packed, tables_packed) =
        (zstd::bulk::compress(meta, 1).ok()?, zstd::bulk::compress(tables, 1).ok()?);
    let index = [&meta_packed[..], &tables_packed, &checks].concat();
    let mut trailer = index_offset.to_le_bytes().to_vec();
    for length in [meta_packed.len(), meta.len(), tables_packed.len(), tables.len(), checks.len(), 0] {
        trailer.extend(u32::try_from(length).ok()?.to_le_bytes());
    }
    trailer.extend(crc32fast::hash(&index).to_le_bytes());
    trailer.extend(crc32fast::hash(&trailer).to_le_bytes());
    trailer.extend(b"LOOMEND\n");
    out.extend(index);
    out.extend(trailer);
    Some(out)
}

/// Gives index and trailer of a container their checksums, where its trailer can be read at all.
pub fn fix_checksums(container: &mut [u8]) -> Option<()> {
    let trailer = container.len().checked_sub(48)?;
    let start = usize::try_from(u64::from_le_bytes(container[trailer..trailer + 8].try_into().ok()?)).ok()?;
    let crc = crc32fast::hash(container.get(start..trailer)?);
    container[trailer + 32..trailer + 36].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32fast::hash(&container[trailer..trailer + 36]);
    container[trailer + 36..trailer + 40].copy_from_slice(&crc.to_le_bytes());
    Some(())
}
