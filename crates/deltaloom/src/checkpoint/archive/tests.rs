//! Archives and GGUF files as their programs write them, and what hostile ones look like.

use super::*;
use crate::checkpoint::Contents;
use crate::limits::to_usize;
use crate::tensor::TensorInfo;

/// A zip archive as torch.save writes it: stored, sizes behind the data, and a large end.
fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in files {
        let offset = u32::try_from(out.len()).unwrap();
        let size = u32::try_from(data.len()).unwrap();
        let name_len = u16::try_from(name.len()).unwrap().to_le_bytes();
        out.extend(b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        out.extend(name_len);
        out.extend(6u16.to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(b"FB\x02\0ZZ");
        out.extend(*data);
        out.extend(b"PK\x07\x08....");
        out.extend([size.to_le_bytes(); 2].concat());
        directory.extend(b"PK\x01\x02\0\0\0\0\x08\x08\0\0\0\0\0\0....");
        directory.extend([size.to_le_bytes(); 2].concat());
        directory.extend(name_len);
        directory.extend([0; 12]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, count, size) = (out.len() as u64, files.len() as u64, directory.len() as u64);
    out.extend(directory);
    let end = out.len() as u64;
    out.extend(b"PK\x06\x06");
    out.extend(44u64.to_le_bytes());
    out.extend([0x1e, 3, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    out.extend([count, count, size, start].map(u64::to_le_bytes).concat());
    out.extend(b"PK\x06\x07\0\0\0\0");
    out.extend(end.to_le_bytes());
    out.extend([1, 0, 0, 0]);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([u16::try_from(count).unwrap().to_le_bytes(); 2].concat());
    out.extend([size, start].map(|x| u32::try_from(x).unwrap().to_le_bytes()).concat());
    out.extend([0; 2]);
    out
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat()
}

fn int(int: u64) -> Vec<u8> {
    [b"J", &u32::try_from(int).unwrap().to_le_bytes()[..]].concat()
}

fn tuple(items: &[u64]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|item| int(*item)).collect();
    [b"(", &items[..], b"t"].concat()
}

/// What identifies a storage.
fn storage(class: &str, key: &str, elems: u64) -> Vec<u8> {
    let class = format!("ctorch\n{class}\n").into_bytes();
    [b"(", &text("storage")[..], &class, &text(key), &text("cpu"), &int(elems), b"tQ"].concat()
}

fn tensor(storage: &[u8], offset: u64, shape: &[u64], strides: &[u64]) -> Vec<u8> {
    let hooks = b"\x89ccollections\nOrderedDict\n)RtR";
    let function = b"ctorch._utils\n_rebuild_tensor_v2\n(";
    [function, storage, &int(offset), &tuple(shape), &tuple(strides), hooks].concat()
}

fn dict(items: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(key, value)| [&key[..], value].concat()).collect();
    [b"}(", &items[..], b"u"].concat()
}

fn pickle(root: &[u8]) -> Vec<u8> {
    [b"\x80\x02", root, b"."].concat()
}

fn archive(root: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let pickle = pickle(root);
    let names: Vec<String> = storages.iter().map(|(key, _)| format!("archive/data/{key}")).collect();
    let mut files = vec![("archive/data.pkl", &pickle[..]), ("archive/byteorder", b"little")];
    files.extend(names.iter().map(String::as_str).zip(storages.iter().map(|(_, bytes)| *bytes)));
    files.push(("archive/version", b"3\n"));
    zip(&files)
}

fn read_with(bytes: &[u8], limits: &Limits) -> Result<Option<Member>> {
    read("x.pt", &bytes.to_vec(), Path::new("x.pt"), limits)
}

fn fault(bytes: &[u8]) -> String {
    match read_with(bytes, &Limits::default()) {
        Err(e) => e.to_string(),
        Ok(found) => panic!("{found:?} was read"),
    }
}

/// Name, dtype, shape and bytes of every tensor but the frame.
fn tensors(bytes: &[u8]) -> Vec<(String, String, Vec<u64>, Vec<u8>)> {
    let member = read_with(bytes, &Limits::default()).unwrap().unwrap();
    assert_eq!(member.len_bytes(), bytes.len() as u64);
    let bytes_of = |info: &TensorInfo| -> Vec<u8> {
        let places = member.places_of(info, 0..info.len_bytes());
        places.flat_map(|place| bytes[to_usize(place.start)..to_usize(place.end)].to_vec()).collect()
    };
    let described =
        |info: &TensorInfo| (info.name.clone(), info.dtype.to_string(), info.shape.clone(), bytes_of(info));
    member.tensors[1..].iter().map(described).collect()
}

#[test]
fn tensors_have_the_names_and_shapes_of_the_pickle() {
    let shared = storage("FloatStorage", "0", 6);
    let parameter = [
        b"ctorch._utils\n_rebuild_parameter\n(",
        &tensor(&storage("HalfStorage", "1", 2), 0, &[2], &[1])[..],
    ];
    let parameter = [&parameter.concat()[..], b"\x88ccollections\nOrderedDict\n)RtR"].concat();
    let list = [b"](".to_vec(), tensor(&storage("LongStorage", "2", 1), 0, &[], &[]), b"e".to_vec()].concat();
    let object = [
        b"cmodule\nClass\n)\x81".to_vec(),
        dict(&[(text("inner"), storage("ByteStorage", "3", 3))]),
        b"b".to_vec(),
    ];
    let root = dict(&[
        (text("row"), tensor(&shared, 3, &[3], &[1])),
        (text("turned"), tensor(&shared, 0, &[3, 2], &[1, 3])),
        (text("whole"), tensor(&shared, 0, &[2, 1, 3], &[3, 99, 1])),
        (text("again"), tensor(&shared, 0, &[6], &[1])),
        (int(7), parameter),
        (text("list"), list),
        (text("object"), object.concat()),
        (text("turned only"), tensor(&storage("ByteStorage", "4", 6), 0, &[3, 2], &[1, 3])),
        (text("none"), tensor(&storage("BFloat16Storage", "5", 0), 0, &[0, 4], &[4, 1])),
    ]);
    let numbers: Vec<u8> = (0..24).collect();
    let storages: [(&str, &[u8]); 7] = [
        ("3", b"abc"),
        ("0", &numbers),
        ("1", b"halv"),
        ("2", b"a number"),
        ("4", b"123456"),
        ("5", b""),
        ("unnamed", b"of nobody"),
    ];
    let found = tensors(&archive(&root, &storages));
    let expected: [(&str, &str, &[u64], &[u8]); 6] = [
        ("object.inner", "U8", &[3], b"abc"),
        ("whole", "F32", &[2, 1, 3], &numbers),
        ("7", "F16", &[2], b"halv"),
        ("list.0", "I64", &[], b"a number"),
        ("turned only", "U8", &[6], b"123456"),
        ("none", "BF16", &[0, 4], b""),
    ];
    let found: Vec<_> = found.iter().map(|(n, d, s, b)| (n.as_str(), d.as_str(), &s[..], &b[..])).collect();
    assert_eq!(found, expected);
}

#[test]
fn names_are_unique_and_never_empty() {
    let of = |key: &str| tensor(&storage("ByteStorage", key, 1), 0, &[1], &[1]);
    let inner = dict(&[(text("b"), of("0"))]);
    let names = |root: &[u8], storages: &[(&str, &[u8])]| -> Vec<String> {
        tensors(&archive(root, storages)).into_iter().map(|(name, ..)| name).collect()
    };
    let root = dict(&[(text("a"), inner), (text("a.b"), of("1"))]);
    assert_eq!(names(&root, &[("0", b"x"), ("1", b"y")]), ["a.b", "a.b.data/1"]);
    assert_eq!(names(&of("0"), &[("0", b"x")]), ["data/0"]);
    // What a name is built from may itself be long, but not all names together.
    let long = "x".repeat(3000);
    let keys: Vec<String> = (0..9).map(|key| key.to_string()).collect();
    let children: Vec<_> = keys.iter().map(|key| (text(key), of(key))).collect();
    let storages: Vec<(&str, &[u8])> = keys.iter().map(|key| (key.as_str(), &b"z"[..])).collect();
    assert!(fault(&archive(&dict(&[(text(&long), dict(&children))]), &storages)).contains("names"));
}

#[test]
fn pickles_that_lie_are_refused() {
    let of = |root: &[u8]| fault(&archive(root, &[("0", b"four")]));
    let whole = |class, elems| tensor(&storage(class, "0", elems), 0, &[elems], &[1]);
    assert!(of(&whole("FloatStorage", 2)).contains("another size"));
    assert!(of(&whole("QInt8Storage", 4)).contains("torch.QInt8Storage"));
    assert!(of(&tensor(&storage("ByteStorage", "9", 4), 0, &[4], &[1])).contains("not in the archive"));
    assert!(of(&tensor(b"N", 0, &[4], &[1])).contains("described"));
    assert!(
        of(&[&whole("ByteStorage", 4)[..], &whole("ByteStorage", 3), b"\x86"].concat())
            .contains("several sizes")
    );
    assert!(of(b"(NtQ").contains("described"));
    assert!(of(b"}q\0X\x01\0\0\0ah\0s").contains("contains itself"));
    assert!(of(b"]q\0h\0a").contains("contains itself"));
    let deep = [&b"]".repeat(100)[..], &b"a".repeat(99)].concat();
    assert!(of(&deep).contains("nested"));
    let many = [1; 17];
    assert!(of(&tensor(&storage("ByteStorage", "0", 4), 0, &many, &many)).contains("dimensions"));
    // A value that is repeated at every level has 2^60 paths, and is looked at once.
    let mut bomb = b"(]q\0".to_vec();
    (0..60u8).for_each(|i| bomb.extend([b']', b'q', i + 1, b'(', b'h', i, b'h', i, b'e']));
    bomb.push(b't');
    let member = read_with(&archive(&bomb, &[]), &Limits::default()).unwrap().unwrap();
    assert_eq!(member.tensors.len(), 1);
}

#[test]
fn directories_that_lie_are_refused() {
    let root = tensor(&storage("ByteStorage", "0", 4), 0, &[4], &[1]);
    let good = archive(&root, &[("0", b"four")]);
    assert_eq!(tensors(&good).len(), 1);
    let directory = good.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let changed = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        fault(&bad)
    };
    // Method, encryption, sizes and offset of the first entry.
    assert!(changed(directory + 10, &[8]).contains("not where"));
    assert!(changed(directory + 8, &[9]).contains("encrypted"));
    assert!(changed(directory + 20, &[1]).contains("two sizes"));
    assert!(changed(directory + 42, &[1]).contains("not where"));
    assert!(changed(directory + 20, &[0xff; 8]).contains("not where"));
    assert!(changed(directory + 46, b"b").contains("not where"));
    let end = good.len() - 22;
    assert!(changed(end - 20 + 8, &[0xff; 8]).contains("not where"));
    assert!(changed(end - 76 + 32, &[0xff; 8]).contains("several files"));
    assert!(changed(end - 76 + 48, &[0xff; 8]).contains("not where"));
    assert!(fault(&good[..good.len() - 1]).contains("cut off"));
    // Two entries with one place, and with one name.
    let two = zip(&[("a/data.pkl", b"N."), ("a/data.pkl", b"N.")]);
    assert!(fault(&two).contains("are named"));
    let mut overlap = zip(&[("a/data.pkl", b"N."), ("a/data.pkx", b"N.")]);
    let second = overlap.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    overlap[second + 42..second + 46].copy_from_slice(&[1, 0, 0, 0]);
    assert!(fault(&overlap).contains("overlaps"));
    let big = zip(&[("a/data.pkl", b"\x80\x02N."), ("a/byteorder", b"big")]);
    assert!(fault(&big).contains("little-endian"));
    assert!(fault(&zip(&[("a/version", b"3")])).contains("no data.pkl"));
    // Whatever one flipped bit does, the answer is a result.
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        if let Ok(Some(member)) = read_with(&bad, &Limits::default()) {
            assert_eq!(member.len_bytes(), bad.len() as u64);
        }
    }
    (0..good.len()).for_each(|end| _ = read_with(&good[..end], &Limits::default()));
}

#[test]
fn limits_are_kept() {
    let root = tensor(&storage("ByteStorage", "0", 4), 0, &[4], &[1]);
    let good = archive(&root, &[("0", b"four")]);
    for limits in [
        Limits { header_bytes: 100, ..Limits::default() },
        Limits { tensors: 2, ..Limits::default() },
        Limits { index_bytes: 64, ..Limits::default() },
    ] {
        assert!(read_with(&good, &limits).unwrap_err().to_string().contains("limit"));
    }
}

/// A GGUF file: keys with values, then name, dimensions, type and offset of each tensor.
fn gguf(pairs: &[Vec<u8>], infos: &[(&str, &[u64], u32, u64)], data: &[u8], alignment: usize) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend([infos.len() as u64, pairs.len() as u64].map(u64::to_le_bytes).concat());
    out.extend(pairs.concat());
    for (name, dims, kind, offset) in infos {
        out.extend((name.len() as u64).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(u32::try_from(dims.len()).unwrap().to_le_bytes());
        dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(alignment), 0);
    out.extend(data);
    out
}

fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&(key.len() as u64).to_le_bytes()[..], key.as_bytes(), &kind.to_le_bytes(), value].concat()
}

#[test]
fn tensors_of_gguf_are_found_behind_any_metadata() {
    let words = [&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &1u64.to_le_bytes(), b"a", &[0; 8]].concat();
    let numbers = [&5u32.to_le_bytes()[..], &3u64.to_le_bytes(), &[7; 12]].concat();
    let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &numbers].concat();
    let pairs = [
        pair("general.architecture", 8, &[&5u64.to_le_bytes()[..], b"llama"].concat()),
        pair("words", 9, &words),
        pair("nested", 9, &nested),
        pair("general.alignment", 4, &64u32.to_le_bytes()),
        pair("fraction", 12, &[1; 8]),
        pair("truth", 7, &[1]),
    ];
    let data: Vec<u8> = (0..200).collect();
    let infos: [(&str, &[u64], u32, u64); 3] =
        [("q", &[64, 2], 2, 64), ("w", &[3, 2], 30, 0), ("i", &[8], 24, 0xc0)];
    let file = gguf(&pairs, &infos, &data, 64);
    let found = tensors(&file);
    let expected: [(&str, &str, &[u64], &[u8]); 3] = [
        ("w", "BF16", &[2, 3], &data[..12]),
        ("q", "U8", &[2, 36], &data[64..136]),
        ("i", "I8", &[8], &data[192..200]),
    ];
    let found: Vec<_> = found.iter().map(|(n, d, s, b)| (n.as_str(), d.as_str(), &s[..], &b[..])).collect();
    assert_eq!(found, expected);
    (0..file.len()).for_each(|end| {
        assert!(end == 0 || !matches!(read_with(&file[..end], &Limits::default()), Ok(Some(_))))
    });
    for bit in 0..file.len() * 8 {
        let mut bad = file.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        if let Ok(Some(member)) = read_with(&bad, &Limits::default()) {
            assert_eq!(member.len_bytes(), bad.len() as u64);
        }
    }
}

#[test]
fn gguf_that_lies_is_refused() {
    let of = |pairs: &[Vec<u8>], infos: &[(&str, &[u64], u32, u64)]| fault(&gguf(pairs, infos, &[0; 64], 32));
    let huge = u64::MAX / 2 + 1;
    let with_counts = |tensors: u64, pairs: u64| {
        let mut file = gguf(&[], &[], &[0; 64], 32);
        file[8..24].copy_from_slice(&[tensors, pairs].map(u64::to_le_bytes).concat());
        fault(&file)
    };
    assert!(with_counts(huge, 0).contains("limit"));
    assert!(with_counts(0, huge).contains("too short"));
    assert!(with_counts(1000, 0).contains("too short"));
    assert!(of(&[pair("a", 8, &huge.to_le_bytes())], &[]).contains("ends before"));
    assert!(
        of(&[pair("a", 9, &[&4u32.to_le_bytes()[..], &huge.to_le_bytes()].concat())], &[])
            .contains("too short")
    );
    assert!(of(&[pair("a", 99, &[])], &[]).contains("type 99"));
    let deep = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat().repeat(9);
    assert!(of(&[pair("a", 9, &deep)], &[]).contains("type 9"));
    assert!(of(&[pair("general.alignment", 4, &[0; 4])], &[]).contains("alignment of 0"));
    assert!(of(&[], &[("a", &[4], 0, 0), ("b", &[4], 0, 8)]).contains("not aligned"));
    assert!(of(&[], &[("a", &[16], 0, 0), ("b", &[4], 0, 32)]).contains("overlaps"));
    assert!(of(&[], &[("a", &[4], 0, 0), ("a", &[4], 0, 32)]).contains("two tensors"));
    assert!(of(&[], &[("a", &[4], 0, 64)]).contains("behind the file"));
    assert!(of(&[], &[("a", &[huge, 2], 0, 0)]).contains("no size"));
    assert!(of(&[], &[("a", &[4], 77, 0)]).contains("type 77"));
    assert!(of(&[], &[("a", &[33], 2, 0)]).contains("parts of blocks"));
    assert!(of(&[], &[("a", &[], 2, 0)]).contains("parts of blocks"));
    let mut big_endian = gguf(&[], &[], &[], 32);
    big_endian[4..8].copy_from_slice(&[0, 0, 0, 3]);
    assert!(fault(&big_endian).contains("big-endian"));
    let limits = Limits { header_bytes: 40, ..Limits::default() };
    let long = gguf(&[pair("a", 8, &[&40u64.to_le_bytes()[..], &[b'x'; 40]].concat())], &[], &[], 32);
    assert!(read_with(&long, &limits).unwrap_err().to_string().contains("limit"));
}

#[test]
fn only_files_of_these_kinds_are_read() {
    for bytes in [&b""[..], b"PK\x03\x04", b"\x80\x02N.", b"{}", &zip(&[("a.npy", b"")])] {
        assert!(matches!(read_with(bytes, &Limits::default()), Ok(None)), "{}", bytes.escape_ascii());
    }
    let root = tensor(&storage("ByteStorage", "0", 4), 0, &[4], &[1]);
    let bytes = archive(&root, &[("0", b"four")]);
    let member = read_with(&bytes, &Limits::default()).unwrap().unwrap();
    let Contents::Framed(frame) = &member.contents else { panic!("an archive has a frame") };
    assert_eq!(frame.len_bytes(), bytes.len_bytes() - 4);
}
