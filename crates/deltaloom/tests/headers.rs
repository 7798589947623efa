//! Headers of safetensors files that lie are refused.

mod common;

use common::*;

#[test]
fn hostile_safetensors_files_are_refused() {
    let tensor = |name: &str, dtype: &str, shape: &str, begin: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let object = |tensors: &[String]| format!("{{{}}}", tensors.join(","));
    let data = vec![1; 8];
    let bad_headers = [
        ("overlap", object(&[tensor("a", "U8", "[5]", 0, 5), tensor("b", "U8", "[4]", 4, 8)])),
        ("same place", object(&[tensor("a", "U8", "[8]", 0, 8), tensor("b", "U8", "[8]", 0, 8)])),
        ("hole", object(&[tensor("a", "U8", "[3]", 0, 3), tensor("b", "U8", "[4]", 4, 8)])),
        ("hole at the start", object(&[tensor("a", "U8", "[7]", 1, 8)])),
        ("outside", object(&[tensor("a", "U8", "[9]", 0, 9)])),
        ("backwards", object(&[tensor("a", "U8", "[8]", 8, 0)])),
        ("wrong length", object(&[tensor("a", "U16", "[8]", 0, 8)])),
        ("twice", object(&[tensor("a", "U8", "[4]", 0, 4), tensor("a", "U8", "[4]", 4, 8)])),
        ("2^60 bytes", object(&[tensor("a", "U8", "[1152921504606846976]", 0, 1 << 60)])),
        ("all bytes there can be", object(&[tensor("a", "X", "[1]", 0, u64::MAX)])),
        ("overflowing shape", object(&[tensor("a", "F64", "[4294967296,4294967296,2]", 0, 8)])),
        ("overflowing bits", object(&[tensor("a", "F64", "[2305843009213693953]", 0, 8)])),
        (
            "overflowing number",
            object(&[tensor("a", "U8", "[8]", 0, 8)]).replace("0,8", "0,18446744073709551624"),
        ),
        ("negative", object(&[tensor("a", "U8", "[-8]", 0, 8)])),
        ("fraction", object(&[tensor("a", "U8", "[8.0]", 0, 8)])),
        ("half a byte", object(&[tensor("a", "F4", "[15]", 0, 8)])),
        ("17 dimensions", object(&[tensor("a", "U8", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,8]", 0, 8)])),
        ("no dtype", r#"{"a":{"shape":[8],"data_offsets":[0,8]}}"#.to_owned()),
        ("not an object", "[]".to_owned()),
        ("nothing", String::new()),
        ("two objects", "{}{}".to_owned()),
        ("deep", format!("{{\"__metadata__\":{}", "[".repeat(100_000))),
    ];
    for (what, header) in bad_headers {
        let fault = checkpoint(&file(&header, &data)).err().unwrap();
        assert!(fault.to_string().contains("model.safetensors"), "{what}: {fault}");
    }
    let good = file(&object(&[tensor("a", "U8", "[8]", 0, 8)]), &data);
    assert!(checkpoint(&good).is_ok());
    assert!((0..good.len()).all(|len| checkpoint(&good[..len]).is_err()));
    for length in [1 << 60, u64::MAX, u64::MAX - 7, 100_000_000, good.len() as u64 - 7] {
        let mut long = good.clone();
        long[..8].copy_from_slice(&length.to_le_bytes());
        assert!(checkpoint(&long).is_err(), "a header of {length} bytes");
    }
    let not_utf8: Vec<u8> = good.iter().map(|byte| if *byte == b'a' { 0xff } else { *byte }).collect();
    assert!(checkpoint(&not_utf8).is_err());
}
