//! Views are stored and read as section 3 of docs/format.md has them; senseless ones are refused.

use super::*;
use crate::predict::Predictor;
use crate::tensor::ChunkGrid;

fn info() -> TensorInfo {
    TensorInfo::sized("w".to_owned(), DType::BF16, vec![6, 4])
}

fn view(is_transposed: bool) -> View {
    let viewed = |name: &str, shape: &[u64], is_transposed| Viewed {
        place: Place::Base(Some(name.to_owned())),
        shape: shape.to_vec(),
        is_transposed,
    };
    let references = vec![viewed("a", &[5, 4], false), viewed("b", &[4, 3], true)];
    let piece = |source, start, count| Piece { source, start, count };
    let pieces = [
        piece(Some(0), 8, 8),
        piece(None, 0, 4),
        piece(Some(1), 4, 4),
        piece(Some(0), 0, 4),
        piece(Some(1), 0, 4),
    ];
    View::new(&DType::BF16, is_transposed, DType::F32, references, &pieces)
}

fn parse(bytes: &[u8]) -> Result<Predictor> {
    let (info, grid) = (info(), ChunkGrid::new(&info(), 17));
    let mut reader = ByteReader::new(bytes, "a test");
    let parsed = Predictor::parse(&mut reader, &info, &grid, 4)?;
    reader.finish()?;
    Ok(parsed)
}

#[test]
fn views_are_stored_and_count_in_the_largest_unit() {
    let mut bytes = Vec::new();
    for is_transposed in [true, false] {
        let view = view(is_transposed);
        assert_eq!(view.unit, 4);
        let predictor = Predictor::View(Box::new(view));
        bytes.clear();
        predictor.push_to(&mut bytes);
        assert_eq!(parse(&bytes).unwrap(), predictor);
    }
    for cut in 0..bytes.len() {
        assert!(parse(&bytes[..cut]).is_err(), "{cut}");
    }
    // Whatever one byte becomes, the pieces fill the tensor and lie in their references.
    for at in 0..bytes.len() {
        for value in 0..=255 {
            let mut changed = bytes.clone();
            changed[at] = value;
            if let Ok(Predictor::View(view)) = parse(&changed) {
                assert_eq!(view.ends.last().map(|end| end * view.unit), Some(24));
                let lies_within = |piece: &Piece| {
                    let Some(source) = piece.source else { return true };
                    (piece.start + piece.count) * view.unit <= elems_of(&view.references[source].shape)
                };
                assert!(view.pieces.iter().all(lies_within));
            }
        }
    }
}

#[test]
fn senseless_views_are_refused() {
    // dtype, references, name, order, dims, unit, pieces, source, start, count.
    let good = [12, 0, 1, 1, b'a', 0, 1, 24, 1, 1, 1, 0, 24];
    assert!(parse(&good).is_ok());
    let with = |at: usize, value: u8| {
        let mut bytes = good;
        bytes[at] = value;
        parse(&bytes)
    };
    for (at, value, why) in [
        (1, 2, "the tensor's own dtype as another"),
        (1, 6, "an unknown dtype"),
        (2, 0, "a piece of no reference"),
        (5, 1, "a vector that is transposed"),
        (5, 2, "an unknown order"),
        (7, 23, "a piece beyond its reference"),
        (8, 0, "no unit"),
        (8, 5, "a unit that does not divide the tensor"),
        (9, 0, "no pieces"),
        (10, 2, "an unknown reference"),
        (10, 0, "fields of a reference for zeros"),
        (11, 1, "a start before the reference"),
        (11, 2, "an end behind the reference"),
        (12, 23, "too few elements"),
        (12, 25, "too many elements"),
    ] {
        assert!(with(at, value).is_err(), "{why}");
    }
    let mut huge = vec![12, 0, 1, 1, b'a', 0, 2];
    push_varint(&mut huge, u64::MAX);
    push_varint(&mut huge, 2);
    huge.extend([1, 1, 1, 0, 24]);
    assert!(parse(&huge).is_err(), "a size that overflows");
    let mut many = vec![12, 0];
    push_varint(&mut many, u64::MAX);
    assert!(parse(&many).is_err(), "more references than are allowed");
    let converted = |dtype: u8, inner: u8| parse(&[13, dtype, inner, 0]);
    assert!(converted(1, 1).is_ok() && converted(3, 2).is_ok());
    assert!(converted(0, 1).is_err() && converted(2, 1).is_err() && converted(6, 1).is_err());
    assert!(converted(1, 3).is_err() && converted(1, 13).is_err() && parse(&[13, 1, 0]).is_err());
}
