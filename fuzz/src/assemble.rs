//! Builds a container from meta and tables as they are before compression, and from payloads:
//! lengths and checksums are computed, everything else is as hostile as the parts. docs/format.md
//! says what is read here.

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
        let kind = meta.u8()?;
        if kind == 0 {
            let length = meta.varint()?;
            tensors.push(Tensor { name: path, dtype: "U8".to_owned(), shape: vec![length] });
        } else if kind == 3 {
            let (length, count) = (meta.varint()?, meta.varint()?);
            tensors.push(Tensor { name: "__frame__".to_owned(), dtype: "U8".to_owned(), shape: vec![length] });
            for _ in 0..count {
                let _gap = meta.varint()?;
                let (name, dtype) = (meta.text()?.to_owned(), meta.text()?.to_owned());
                let dims = meta.varint()?;
                let shape = (0..dims.min(17)).map(|_| meta.varint()).collect::<Option<_>>()?;
                tensors.push(Tensor { name, dtype, shape });
            }
        } else {
            let length = meta.size()?;
            tensors.extend(tensors_of_header(meta.take(length)?)?);
            if kind == 2 {
                let length = meta.varint()?;
                tensors.push(Tensor {
                    name: "__tail__".to_owned(),
                    dtype: "U8".to_owned(),
                    shape: vec![length],
                });
            }
        }
    }
    let _sets = meta.varint()?;
    let mut out = Checks::default();
    for tensor in &tensors {
        let predictor = meta.u8()?;
        let references = references(&mut meta, predictor, tensor)?;
        if !matches!(predictor, 2 | 3) {
            out.digests.extend([0; 32]);
        }
        let digest = |like: &Tensor| bases.digest(&like.name, &like.dtype, &like.shape).unwrap_or_default();
        let ancestors = if predictor == 11 { references.len() - 1 } else { 0 };
        for (i, like) in references.iter().enumerate() {
            // Of ancestors only the start is there.
            let known = if i > 0 && ancestors > 0 { 8 } else { 32 };
            out.digests.extend(digest(like).iter().take(known));
        }
        if matches!(predictor, 6 | 18) {
            out.payload_bytes.push(meta.size()?);
        }
        if matches!(predictor, 2..=5) {
            continue;
        }
        if matches!(predictor, 1 | 6..=8 | 10 | 11 | 17 | 18) {
            meta.varint()?;
        }
        for _ in 0..meta.varint()? {
            groups(&mut meta, &tensor.dtype, &mut out.payload_bytes)?;
        }
    }
    Some(out)
}

/// Reads the fields of a predictor, but for the length of factors; the tensors of bases that it
/// needs.
fn references(meta: &mut Meta<'_>, predictor: u8, tensor: &Tensor) -> Option<Vec<Tensor>> {
    let like = |name: &str, dtype: &str, shape: &[u64]| Tensor {
        name: if name.is_empty() { &tensor.name } else { name }.to_owned(),
        dtype: dtype.to_owned(),
        shape: shape.to_vec(),
    };
    let own = |meta: &mut Meta<'_>| Some(like(meta.text()?, &tensor.dtype, &tensor.shape));
    Some(match predictor {
        0 => Vec::new(),
        1 | 2 => vec![own(meta)?],
        6 => {
            let reference = own(meta)?;
            let _rank = meta.varint()?;
            vec![reference]
        }
        4 => vec![like(meta.text()?, "F32", &tensor.shape)],
        11 => {
            let name = meta.text()?;
            let hops = meta.size()?.min(17);
            (0..=hops).map(|_| like(name, &tensor.dtype, &tensor.shape)).collect()
        }
        7 => {
            let (reference, a, b) = (own(meta)?, meta.text()?, meta.text()?);
            let dtype = *["F32", "BF16", "F16"].get(usize::from(meta.u8()?))?;
            let rank = meta.varint()?;
            let flags = meta.take(7)?[4];
            let &[rows, cols] = &tensor.shape[..] else { return None };
            let (outputs, inputs) = if flags & 4 != 0 { (cols, rows) } else { (rows, cols) };
            vec![reference, like(a, dtype, &[rank, inputs]), like(b, dtype, &[outputs, rank])]
        }
        8 => {
            let (form, _precision, count) = (meta.u8()?, meta.u8()?, meta.size()?);
            let references = (0..count.min(17)).map(|_| own(meta)).collect::<Option<Vec<Tensor>>>()?;
            let numbers = match form {
                0 => count,
                1 => count.checked_sub(2)?,
                _ => (2 * count).checked_sub(1)?,
            };
            meta.take(8 * numbers.min(64))?;
            references
        }
        10 => {
            let is_moment = meta.take(2)?[0] == 0;
            let references =
                (0..=usize::from(is_moment)).map(|_| own(meta)).collect::<Option<Vec<Tensor>>>()?;
            meta.varint()?;
            if !is_moment {
                meta.varint()?;
            }
            meta.take(if is_moment { 16 } else { 24 })?;
            references
        }
        16 | 19 => {
            let (name, length) = (meta.text()?, meta.varint()?);
            if predictor == 19 {
                meta.take(2)?;
                (meta.varint()?, meta.varint()?);
            }
            vec![like(name, "U8", &[length])]
        }
        17 => {
            let (form, name, dtype) = (meta.u8()?, meta.text()?, meta.text()?);
            let dims = meta.varint()?;
            let shape = (0..dims.min(17)).map(|_| meta.varint()).collect::<Option<Vec<u64>>>()?;
            if form < 2 {
                meta.take(2)?;
                meta.varint()?;
            } else {
                meta.u8()?;
                (meta.varint()?, meta.varint()?);
                meta.take(6)?;
            }
            vec![like(name, dtype, &shape)]
        }
        18 => {
            let (reference, _width, count) = (own(meta)?, meta.varint()?, meta.varint()?);
            (0..count).try_for_each(|_| meta.varint().map(|_rank| ()))?;
            vec![reference]
        }
        _ => {
            meta.varint()?;
            Vec::new()
        }
    })
}

fn groups(meta: &mut Meta<'_>, dtype: &str, payload_bytes: &mut Vec<usize>) -> Option<()> {
    let chunks = meta.varint()?;
    let family = meta.u8()?;
    if !matches!(family, 0 | 4) {
        meta.varint()?;
    }
    match family {
        1 | 6 => {
            meta.u8()?;
            meta.varint()?;
        }
        5 => match meta.u8()? {
            0 => {
                let bytes = match dtype {
                    "BF16" | "F16" | "I16" | "U16" => 2,
                    "F32" | "I32" | "U32" => 4,
                    _ => 8,
                };
                let count = meta.u8()?;
                meta.take(bytes * usize::from(count))?;
            }
            kind => {
                for _ in 0..=kind.min(2) {
                    meta.varint()?;
                }
            }
        },
        _ => {}
    }
    if family == 6 {
        meta.take(2)?;
    }
    if matches!(family, 7 | 8) {
        meta.u8()?;
    }
    if matches!(family, 2 | 3 | 6 | 7) {
        let mode = meta.u8()?;
        meta.varint()?;
        if mode & 2 != 0 {
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
    let mut out = b"\x89LOOM\r\n\x1a\x04\0\0\0\0\0\0\0".to_vec();
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
    trailer.extend(crc32fast::hash(&[&out[..16], &index].concat()).to_le_bytes());
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
    // Since version 3 of the head, too.
    let head = if container.get(8).is_some_and(|version| *version >= 3) { &container[..16] } else { &[] };
    let crc = crc32fast::hash(&[head, container.get(start..trailer)?].concat());
    container[trailer + 32..trailer + 36].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32fast::hash(&container[trailer..trailer + 36]);
    container[trailer + 36..trailer + 40].copy_from_slice(&crc.to_le_bytes());
    Some(())
}

/// A zip archive of stored files. Checksums of files are left out; nobody looks at them.
pub fn zip(files: &[(String, &[u8])]) -> Vec<u8> {
    let four = |number: usize| u32::try_from(number).expect("a small file").to_le_bytes();
    let two = |number: usize| u16::try_from(number).expect("few files").to_le_bytes();
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in files {
        let offset = four(out.len());
        let fields = [&[0; 14][..], &four(data.len()), &four(data.len()), &two(name.len()), &[0; 2]].concat();
        out.extend([b"PK\x03\x04", &fields[..], name.as_bytes(), data].concat());
        directory.extend([b"PK\x01\x02\0\0", &fields[..], &[0; 10], &offset, name.as_bytes()].concat());
    }
    let (start, count) = (out.len(), two(files.len()));
    out.extend(&directory);
    out.extend([&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &four(directory.len()), &four(start), &[0; 2]].concat());
    out
}
