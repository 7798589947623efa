//! Bytes of meta and checks: docs/format.md sections 2 to 5, and nothing else.
//! It checks each field on its own and fields against each other. It does not read payloads.

use deltaloom_kernels::Number;

use crate::checkpoint::safetensors::parse_header;
use crate::checkpoint::{Contents, Layout, Member, Placed, check_paths};
use crate::codec::{Codec, Coding, Family};
use crate::entropy::bytes::{ByteReader, push_text, push_varint};
use crate::entropy::table::TableSet;
use crate::error::{Error, Result};
use crate::limits::{Limits, to_usize};
use crate::predict::{Input, Predictor};
use crate::tensor::{ChunkGrid, DType, TensorInfo};

use super::ends::{Features, HEAD_BYTES};
use super::identity::Identity;
use super::index::{ChunkEntry, GroupEntry, Index, KnownDigest, PackedTensor, PayloadEntry};

const CHUNK_LOG2: std::ops::RangeInclusive<u8> = 10..=20;
const DIGEST_BYTES: usize = 32;
/// Most bytes of tensors that all files can claim together. Far above any disk, and so low that no
/// sum of sizes overflows.
const MAX_CLAIMED_BYTES: u64 = u64::MAX >> 8;

/// A serialised index: meta and tables before compression, and checks.
pub(super) struct IndexParts {
    pub(super) meta: Vec<u8>,
    pub(super) tables: Vec<u8>,
    pub(super) checks: Vec<u8>,
}

pub(super) fn serialise(index: &Index) -> IndexParts {
    // Headers may be long, and a growing buffer exists twice for a while.
    let headers: u64 = index.members.iter().map(Member::data_offset).sum();
    let mut meta = Vec::with_capacity(to_usize(headers) + 64 * index.tensors.len());
    meta.extend([u8::from(index.layout == Layout::Directory), index.chunk_log2]);
    push_varint(&mut meta, index.members.len() as u64);
    for member in index.members.iter() {
        push_text(&mut meta, &member.path);
        match &member.contents {
            Contents::Opaque => {
                meta.push(0);
                push_varint(&mut meta, member.len_bytes());
            }
            Contents::Safetensors(header) => {
                meta.push(if member.tail_bytes > 0 { 2 } else { 1 });
                push_varint(&mut meta, header.len() as u64);
                meta.extend_from_slice(header);
                if member.tail_bytes > 0 {
                    push_varint(&mut meta, member.tail_bytes);
                }
            }
            Contents::Framed(frame) => {
                meta.push(3);
                push_varint(&mut meta, frame.len_bytes());
                push_varint(&mut meta, member.tensors.len() as u64 - 1);
                for (tensor, gap) in member.tensors[1..].iter().zip(frame.gaps()) {
                    push_placed(&mut meta, tensor, gap);
                }
            }
        }
    }
    push_varint(&mut meta, index.table_sets.len() as u64);
    let mut checks = Vec::new();
    for tensor in &index.tensors {
        push_tensor(&mut meta, tensor, index.coded_info(tensor).number());
        if !matches!(tensor.predictor, Predictor::Identical(_) | Predictor::Tied(_)) {
            checks.extend_from_slice(tensor.digest.as_bytes());
        }
        tensor.reference_digests.iter().for_each(|digest| checks.extend_from_slice(digest.as_bytes()));
    }
    index.identity.push_to(&mut meta);
    let payloads = index.tensors.iter().flat_map(PackedTensor::payloads);
    checks.extend(payloads.flat_map(|payload| payload.crc.to_le_bytes()));
    let mut tables = Vec::new();
    index.table_sets.iter().for_each(|set| set.push_to(&mut tables));
    IndexParts { meta, tables, checks }
}

fn push_placed(meta: &mut Vec<u8>, tensor: &TensorInfo, gap: u64) {
    push_varint(meta, gap);
    push_text(meta, &tensor.name);
    push_text(meta, tensor.dtype.name());
    push_varint(meta, tensor.shape.len() as u64);
    tensor.shape.iter().for_each(|dim| push_varint(meta, *dim));
}

fn parse_placed(meta: &mut ByteReader<'_>, limits: &Limits) -> Result<Placed> {
    let gap = meta.varint()?;
    let name = meta.text()?.to_owned();
    let dtype = DType::from_name(meta.text()?);
    let dims = meta.varint()?;
    Limits::check("the number of dimensions", dims, limits.dimensions)?;
    let shape = (0..dims).map(|_| meta.varint()).collect::<Result<_>>()?;
    Ok(Placed { name, dtype, shape, gap })
}

fn push_tensor(meta: &mut Vec<u8>, tensor: &PackedTensor, number: Number) {
    tensor.predictor.push_to(meta);
    tensor.factors.iter().for_each(|factors| push_varint(meta, factors.len_bytes as u64));
    if !tensor.predictor.has_chunks() {
        return;
    }
    if tensor.predictor.counts_changes() {
        push_varint(meta, tensor.changed);
    }
    push_varint(meta, tensor.groups.len() as u64);
    for (group, chunks) in tensor.groups.iter().zip(tensor.chunks.chunk_by(|a, b| a.group == b.group)) {
        push_varint(meta, chunks.len() as u64);
        meta.push(group.coding.family().id());
        group.tables.iter().for_each(|tables| push_varint(meta, *tables as u64));
        group.coding.push_to(meta, number);
        for chunk in chunks {
            meta.push(chunk.codec.id());
            push_varint(meta, chunk.payload.len_bytes as u64);
        }
    }
}

pub(super) fn parse(
    parts: &IndexParts,
    payload_bytes: u64,
    features: Features,
    limits: &Limits,
) -> Result<Index> {
    let mut meta = ByteReader::new(&parts.meta, "the index");
    let layout = match meta.u8()? {
        0 => Layout::File,
        1 => Layout::Directory,
        other => return Err(Error::corrupt(format!("layout {other} does not exist"))),
    };
    let chunk_log2 = meta.u8()?;
    if !CHUNK_LOG2.contains(&chunk_log2) {
        return Err(Error::corrupt(format!("chunks of 2^{chunk_log2} elements are not allowed")));
    }
    let members = parse_members(&mut meta, features, limits)?;
    check_paths(layout, &members)?;
    let set_count = meta.varint()?;
    Limits::check("the number of table sets", set_count, limits.chunks)?;
    let mut tensors = Vec::new();
    let mut next = Places {
        offset: HEAD_BYTES,
        chunks: 0,
        max_chunks: limits.chunks,
        pieces_left: limits.pieces,
        set_count,
        features,
    };
    for (m, member) in members.iter().enumerate() {
        for (t, info) in member.tensors.iter().enumerate() {
            let grid = member.grid(info, u32::from(chunk_log2));
            tensors.push(parse_tensor(&mut meta, (m, t), info, grid, &mut next)?);
            Limits::check("the number of tensors", tensors.len() as u64, limits.tensors)?;
        }
    }
    let identity = if features.has_parts {
        Identity::parse(meta, limits)?
    } else {
        meta.finish()?;
        Identity::default()
    };
    if next.offset != HEAD_BYTES + payload_bytes {
        return Err(Error::corrupt("the payloads do not fill the space before the index"));
    }
    let mut tables = ByteReader::new(&parts.tables, "the tables");
    let parse_set = |_| TableSet::parse(&mut tables, features.has_cells);
    let table_sets = (0..set_count).map(parse_set).collect::<Result<Vec<_>>>()?;
    tables.finish()?;
    let mut index = Index {
        version: features.version,
        layout,
        chunk_log2,
        members: members.into(),
        tensors,
        table_sets,
        identity,
    };
    check_cells(&index)?;
    check_internal_targets(&index)?;
    parse_checks(&parts.checks, &mut index)?;
    Ok(index)
}

fn parse_members(meta: &mut ByteReader<'_>, features: Features, limits: &Limits) -> Result<Vec<Member>> {
    let count = meta.varint()?;
    Limits::check("the number of files", count, limits.members)?;
    let mut members: Vec<Member> = Vec::new();
    let mut claimed = 0u64;
    for _ in 0..count {
        let path = meta.text()?.to_owned();
        let member = match features.check_member(meta.u8()?)? {
            0 => Member::opaque(path, meta.varint()?),
            3 => {
                let (frame_bytes, count) = (meta.varint()?, meta.varint()?);
                Limits::check("the number of tensors", count, limits.tensors)?;
                let placed = (0..count).map(|_| parse_placed(meta, limits)).collect::<Result<_>>()?;
                Member::framed(path, frame_bytes, placed, limits)?
            }
            kind => {
                let length = meta.size()?;
                let header = meta.take(length)?.to_vec();
                let tensors = parse_header(&header, limits)?;
                let tail_bytes = if kind == 2 { meta.varint()? } else { 0 };
                if kind == 2 && tail_bytes == 0 {
                    return Err(Error::corrupt("a tail has no bytes"));
                }
                Member::safetensors(path, header, tensors, tail_bytes)
            }
        };
        claimed = claimed.saturating_add(member.data_bytes());
        Limits::check("the size of all files", claimed, MAX_CLAIMED_BYTES)?;
        members.push(member);
    }
    Ok(members)
}

/// Where the next payload starts, the number of chunks so far, and what tensors may refer to.
struct Places {
    offset: u64,
    chunks: u64,
    max_chunks: u64,
    /// Pieces and references that views may still have.
    pieces_left: u64,
    set_count: u64,
    features: Features,
}

fn parse_tensor(
    meta: &mut ByteReader<'_>,
    place: (usize, usize),
    info: &TensorInfo,
    grid: ChunkGrid,
    next: &mut Places,
) -> Result<PackedTensor> {
    let predictor = Predictor::parse(meta, info, &grid, next.features.version)?;
    Limits::check("the number of pieces of views", predictor.part_count(), next.pieces_left)?;
    next.pieces_left -= predictor.part_count();
    let number = predictor.coded(info).0.number();
    let mut tensor = PackedTensor::new(place, predictor, grid);
    let coded_grid = tensor.coded_grid();
    if tensor.predictor.products(info, &grid).is_some() {
        let len_bytes = meta.size()?;
        if len_bytes as u64 > info.len_bytes() {
            return Err(Error::corrupt(format!(
                "the factors of tensor {:?} are longer than it is",
                info.name
            )));
        }
        tensor.factors = Some(PayloadEntry { offset: next.offset, len_bytes, crc: 0 });
        next.offset += len_bytes as u64;
    }
    // Also for tensors without payloads: reading them takes as many steps.
    let chunk_count = grid.chunk_count();
    Limits::check("the number of chunks", next.chunks.saturating_add(chunk_count), next.max_chunks)?;
    next.chunks += chunk_count;
    if !tensor.predictor.has_chunks() {
        return Ok(tensor);
    }
    if tensor.predictor.counts_changes() {
        tensor.changed = meta.varint()?;
        if tensor.changed > grid.rows * grid.cols {
            return Err(Error::corrupt(format!(
                "tensor {:?} has more changed elements than elements",
                info.name
            )));
        }
    }
    let group_count = meta.size()?;
    for group in 0..group_count {
        let chunks_of_group = meta.varint()?;
        if chunks_of_group == 0 || chunks_of_group > chunk_count - tensor.chunks.len() as u64 {
            return Err(Error::corrupt(format!(
                "the groups of tensor {:?} do not match its chunks",
                info.name
            )));
        }
        let entry = parse_group(meta, &grid, number, next)?;
        let has_history = matches!(tensor.predictor, Predictor::History { .. });
        if entry.coding.family() == Family::History && !has_history {
            return Err(Error::corrupt(format!(
                "tensor {:?} has no history, but a chunk needs one",
                info.name
            )));
        }
        tensor.groups.push(entry);
        for _ in 0..chunks_of_group {
            let codec = Codec::of_id(meta.u8()?, next.features.version)?;
            let is_plain = tensor.groups[group].coding.family() == Family::Plain;
            if codec == Codec::Patch && !(is_plain && matches!(tensor.predictor, Predictor::Text(_))) {
                let what = format!("tensor {:?} has a patch, but no file that it applies to", info.name);
                return Err(Error::corrupt(what));
            }
            let len_bytes = meta.size()?;
            let range = coded_grid.chunk_bytes(tensor.chunks.len() as u64);
            let raw_bytes = range.end - range.start;
            if len_bytes as u64 > raw_bytes || (codec == Codec::Raw && len_bytes as u64 != raw_bytes) {
                return Err(Error::corrupt(format!(
                    "a chunk of tensor {:?} has an impossible length",
                    info.name
                )));
            }
            let payload = PayloadEntry { offset: next.offset, len_bytes, crc: 0 };
            tensor.chunks.push(ChunkEntry { codec, group, payload });
            // Bounded by Limits: a payload is at most as long as its chunk, and the number of
            // chunks is limited.
            next.offset += len_bytes as u64;
        }
    }
    if tensor.chunks.len() as u64 != chunk_count {
        return Err(Error::corrupt(format!("the groups of tensor {:?} do not match its chunks", info.name)));
    }
    Ok(tensor)
}

fn parse_group(
    meta: &mut ByteReader<'_>,
    grid: &ChunkGrid,
    number: Number,
    known: &Places,
) -> Result<GroupEntry> {
    let family = Family::of_id(meta.u8()?, known.features.version)?;
    let tables = if family.has_tables() { Some(meta.size()?) } else { None };
    if let Some(tables) = tables.filter(|tables| *tables as u64 >= known.set_count) {
        return Err(Error::corrupt(format!("table set {tables} does not exist")));
    }
    Ok(GroupEntry { coding: Coding::parse(family, meta, grid, number)?, tables })
}

/// Sets that serve cells belong to histories, and histories have no other sets.
fn check_cells(index: &Index) -> Result<()> {
    let fits = |group: &GroupEntry| {
        let has_cells = group.tables.is_some_and(|set| !index.table_sets[set].cells.is_empty());
        has_cells == (group.coding.family() == Family::History)
    };
    if index.tensors.iter().flat_map(|tensor| &tensor.groups).all(fits) {
        return Ok(());
    }
    Err(Error::corrupt("a group uses a table set of the wrong kind"))
}

fn check_internal_targets(index: &Index) -> Result<()> {
    for tensor in &index.tensors {
        for input in tensor.predictor.inputs() {
            let (target_number, described) = match input {
                Input::Own(number) => (number, None),
                Input::OwnShaped(number, dtype, shape) => (number, Some((dtype, shape))),
                _ => continue,
            };
            let bad = || {
                Error::corrupt(format!(
                    "tensor {:?} points at a tensor it cannot come from",
                    index.info(tensor).name
                ))
            };
            let target = index.tensors.get(target_number).ok_or_else(bad)?;
            // Then no tensor depends on itself, and chains are short.
            let is_lower = target.predictor.level() < tensor.predictor.level();
            let (own, theirs) = (index.info(tensor), index.info(target));
            let fits = match (&tensor.predictor, described) {
                (Predictor::CastInternal(_), _) => theirs.dtype == DType::F32 && own.shape == theirs.shape,
                (_, Some((dtype, shape))) => theirs.dtype == *dtype && theirs.shape == shape,
                _ => own.same_type(theirs) && tensor.grid == target.grid,
            };
            if !is_lower || !fits {
                return Err(bad());
            }
        }
    }
    Ok(())
}

fn parse_checks(checks: &[u8], index: &mut Index) -> Result<()> {
    let mut reader = ByteReader::new(checks, "the checks");
    let digest =
        |reader: &mut ByteReader<'_>| Ok::<_, Error>(super::Digest::from(reader.array::<DIGEST_BYTES>()?));
    for tensor in &mut index.tensors {
        match tensor.predictor {
            Predictor::Tied(_) => {}
            Predictor::Identical(_) => {
                tensor.digest = digest(&mut reader)?;
                tensor.reference_digests = vec![KnownDigest::Whole(tensor.digest)];
            }
            Predictor::History { hops, .. } => {
                tensor.digest = digest(&mut reader)?;
                let reference = KnownDigest::Whole(digest(&mut reader)?);
                let ancestors = (0..hops).map(|_| Ok(KnownDigest::Start(reader.array()?)));
                tensor.reference_digests =
                    std::iter::once(Ok(reference)).chain(ancestors).collect::<Result<_>>()?;
            }
            _ => {
                tensor.digest = digest(&mut reader)?;
                let count = tensor.predictor.reference_count();
                let whole = (0..count).map(|_| digest(&mut reader).map(KnownDigest::Whole));
                tensor.reference_digests = whole.collect::<Result<_>>()?;
            }
        }
    }
    for i in 0..index.tensors.len() {
        if let Predictor::Tied(target) = index.tensors[i].predictor {
            index.tensors[i].digest = index.tensors[target].digest;
        }
    }
    for tensor in &mut index.tensors {
        let chunks = tensor.chunks.iter_mut().map(|chunk| &mut chunk.payload);
        for payload in tensor.factors.iter_mut().chain(chunks) {
            payload.crc = reader.u32()?;
        }
    }
    reader.finish()
}

#[cfg(test)]
mod tests {
    use super::super::ends::LEAST_VERSION;
    use super::*;
    use crate::codec::{GroupScales, HistoryKind};
    use crate::entropy::table::{self, CellRun};

    /// A file of eight bytes with a history of `hops` ancestors, in a group of the given kind.
    fn with_history(hops: usize, coding: Coding, set: TableSet) -> Index {
        let members = vec![Member::opaque("x".to_owned(), 8)];
        let predictor = Predictor::History { reference: None, hops };
        let mut tensor = PackedTensor::new((0, 0), predictor, members[0].grid(&members[0].tensors[0], 17));
        let payload = PayloadEntry { offset: HEAD_BYTES, len_bytes: 3, crc: 5 };
        tensor.groups.push(GroupEntry { coding, tables: Some(0) });
        tensor.chunks.push(ChunkEntry { codec: Codec::Ulp, group: 0, payload });
        let digest = super::super::Digest::from([7; 32]);
        tensor.reference_digests = vec![KnownDigest::start_of(&digest); hops];
        tensor.reference_digests.insert(0, KnownDigest::Whole(digest));
        Index {
            version: LEAST_VERSION,
            layout: Layout::File,
            chunk_log2: 17,
            members: members.into(),
            tensors: vec![tensor],
            table_sets: vec![set],
            identity: Identity::default(),
        }
    }

    fn parsed(index: &Index, version: u16) -> Result<Index> {
        let features = Features::of_version(version).unwrap();
        parse(&serialise(index), 3, features, &Limits::default())
    }

    #[test]
    fn histories_need_their_version_predictor_and_tables() {
        let scales = || GroupScales { offset: 0, has_rows: false, cols: None };
        let of_kind = |kind| Coding::History { scales: scales(), kind };
        let tables = || vec![table::normalise(&[1; 256])];
        let cells = || {
            let cells = vec![CellRun { first: 0, table: 0 }, CellRun { first: 300, table: 0 }];
            TableSet { first_keys: Vec::new(), cells, tables: tables() }
        };
        for (hops, kind) in [(1, HistoryKind::Changes), (16, HistoryKind::Residuals)] {
            let good = with_history(hops, of_kind(kind), cells());
            let read = parsed(&good, 3).unwrap();
            let (written, read) = (&good.tensors[0], &read.tensors[0]);
            assert_eq!((&read.predictor, &read.groups), (&written.predictor, &written.groups));
            assert_eq!(read.reference_digests, written.reference_digests);
            assert!(parsed(&good, 2).is_err());
        }
        let changes = || of_kind(HistoryKind::Changes);
        let by_key = TableSet::of_keys(Vec::new(), tables());
        let mut no_history = with_history(1, changes(), cells());
        no_history.tensors[0].predictor = Predictor::Reference(None);
        no_history.tensors[0].reference_digests.truncate(1);
        let bad = [
            with_history(0, changes(), cells()),
            with_history(17, changes(), cells()),
            with_history(1, changes(), by_key),
            with_history(1, Coding::Ulp(scales()), cells()),
            no_history,
        ];
        for index in bad {
            assert!(matches!(parsed(&index, 3), Err(Error::Corrupt { .. })), "{:?}", index.tensors[0]);
        }
    }
}
