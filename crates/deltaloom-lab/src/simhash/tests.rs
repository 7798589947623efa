//! The law of signatures, exact columns, samples, and rejected arguments.

use super::*;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Error, Limits, Silent};

fn normal(rows: usize, cols: usize, seed: u64) -> Matrix {
    Matrix::normal(rows, cols, 1.0, seed).unwrap()
}

fn settings(bits: usize, pieces: Pieces, seed: u64) -> HashSettings {
    HashSettings { bits, pieces, projection: Projection::Gaussian, seed }
}

fn estimate(weights: &Matrix, x: &Matrix, settings: &HashSettings) -> Vec<f32> {
    let hashed = HashedMatrix::new(weights, settings).unwrap();
    let mut out = vec![0.0; weights.rows() * x.rows()];
    hashed.add_estimate(&hashed.hash(x).unwrap(), &mut out).unwrap();
    out
}

fn nmse(found: &[f32], exact: &[f64]) -> f64 {
    let error: f64 = found.iter().zip(exact).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    error / exact.iter().map(|b| b * b).sum::<f64>()
}

#[test]
fn errors_follow_the_law() {
    let (weights, x) = (normal(96, 256, 1), normal(24, 256, 2));
    let exact = weights.exact_product(&x).unwrap();
    for bits in [64, 256, 1024] {
        for (pieces, least) in [
            (Pieces::Rows, 0.85),
            (Pieces::Blocks { rows: 16, cols: 64 }, 0.8),
            (Pieces::Blocks { rows: 96, cols: 16 }, 0.6),
        ] {
            for projection in [Projection::Gaussian, Projection::Rademacher] {
                let settings = HashSettings { projection, ..settings(bits, pieces, 3) };
                let predicted = HashedMatrix::new(&weights, &settings).unwrap().predicted_nmse();
                let ratio = nmse(&estimate(&weights, &x, &settings), &exact) / predicted;
                // Short pieces are often far from a right angle, where signatures err less.
                assert!((least..1.2).contains(&ratio), "{bits} {pieces:?} {projection:?}: {ratio}");
            }
        }
    }
    let predicted = HashedMatrix::new(&weights, &settings(256, Pieces::Rows, 0)).unwrap().predicted_nmse();
    assert!((predicted - 2.4674).abs() < 1e-4, "{predicted}");
}

#[test]
fn bits_are_counted_with_norms() {
    let bits = |settings| HashedMatrix::new(&normal(32, 100, 0), &settings).unwrap().bits_per_weight();
    assert_eq!(bits(settings(64, Pieces::Rows, 0)), 0.8);
    // Seven pieces, the last of four elements.
    assert_eq!(bits(settings(128, Pieces::Blocks { rows: 5, cols: 16 }, 0)), 7.0 * 1.44);
}

#[test]
fn seeds_decide_everything() {
    let (weights, x) = (normal(20, 50, 1), normal(3, 50, 2));
    let blocks = Pieces::Blocks { rows: 7, cols: 16 };
    let first = estimate(&weights, &x, &settings(128, blocks, 9));
    assert_eq!(first, estimate(&weights, &x, &settings(128, blocks, 9)));
    assert_ne!(first, estimate(&weights, &x, &settings(128, blocks, 10)));
    // The number of rows in a block only affects speed.
    assert_eq!(first, estimate(&weights, &x, &settings(128, Pieces::Blocks { rows: 20, cols: 16 }, 9)));
}

#[test]
fn all_columns_are_the_exact_product() {
    let (weights, x) = (normal(40, 33, 1), normal(5, 33, 2));
    let exact = weights.exact_product(&x).unwrap();
    let columns = ColumnStore::new(&weights).unwrap();
    let hashed = HashedMatrix::new(&weights, &settings(64, Pieces::Rows, 3)).unwrap();
    let mut out = vec![0.0; 40 * 5];
    let all = share_of(33, 1.0).unwrap();
    let rest = columns.add_selected(Selection::Top(all), &x, &mut out).unwrap();
    assert!(rest.iter().all(|v| *v == 0.0));
    hashed.add_estimate(&hashed.hash_values(&rest), &mut out).unwrap();
    assert!(nmse(&out, &exact) < 1e-12, "{}", nmse(&out, &exact));
    assert!(nmse(&Dense::new(&weights).unwrap().product(&x).unwrap(), &exact) < 1e-12);
}

#[test]
fn top_columns_have_the_largest_scores() {
    let weights = Matrix::new(2, 4, vec![1.0, 0.0, 2.0, 4.0, 0.0, 3.0, 0.0, 0.0]).unwrap();
    let x = Matrix::new(1, 4, vec![5.0, -2.0, 3.0, 0.5]).unwrap();
    let mut out = vec![0.0; 2];
    // Scores 5, 6, 6, 2.
    let rest = ColumnStore::new(&weights).unwrap().add_selected(Selection::Top(2), &x, &mut out).unwrap();
    assert_eq!((rest, out), (vec![5.0, 0.0, 0.0, 0.5], vec![6.0, -6.0]));
}

#[test]
fn samples_are_unbiased_and_their_error_is_foretold() {
    let (weights, x) = (normal(30, 60, 1), normal(4, 60, 2));
    let exact = weights.exact_product(&x).unwrap();
    let columns = ColumnStore::new(&weights).unwrap();
    let seeds = 400;
    let mut mean = vec![0.0; exact.len()];
    let mut each = 0.0;
    for seed in 0..seeds {
        let mut out = vec![0.0; exact.len()];
        columns.add_selected(Selection::Sampled { draws: 6, seed }, &x, &mut out).unwrap();
        each += nmse(&out, &exact) / seeds as f64;
        mean.iter_mut().zip(&out).for_each(|(mean, v)| *mean += v / seeds as f32);
    }
    let predicted = columns.predicted_sample_nmse(&x, 6, exact.iter().map(|y| y * y).sum());
    assert!((0.95..1.05).contains(&(each / predicted)), "{each} {predicted}");
    let of_mean = nmse(&mean, &exact) * seeds as f64 / each;
    assert!((0.8..1.2).contains(&of_mean), "{of_mean}");
}

#[test]
fn impossible_requests_are_refused() {
    let weights = normal(8, 20, 1);
    let refused = |settings: &HashSettings| match HashedMatrix::new(&weights, settings) {
        Err(Error::InvalidArgument(what)) => what,
        other => panic!("{other:?}"),
    };
    for bits in [0, 1, 63, 100, 1088] {
        refused(&settings(bits, Pieces::Rows, 0));
    }
    for (rows, cols) in [(9, 16), (8, 21), (0, 4), (4, 0)] {
        assert!(refused(&settings(64, Pieces::Blocks { rows, cols }, 0)).contains("8 x 20"));
    }
    for (rows, cols, values) in [
        (0, 20, vec![]),
        (3, 0, vec![]),
        (2, 2, vec![1.0; 3]),
        (usize::MAX, 2, vec![1.0]),
        (1, 2, vec![1.0, f32::NAN]),
        (1, 1, vec![f32::INFINITY]),
    ] {
        assert!(matches!(Matrix::new(rows, cols, values), Err(Error::InvalidArgument(_))));
    }
    for fraction in [0.0, -0.1, 1.1, f64::NAN, f64::INFINITY] {
        assert!(share_of(10, fraction).is_err());
    }
    assert_eq!([0.001, 0.1, 0.96, 1.0].map(|f| share_of(10, f).unwrap()), [1, 1, 10, 10]);
    let narrow = normal(3, 19, 1);
    let hashed = HashedMatrix::new(&weights, &settings(64, Pieces::Rows, 0)).unwrap();
    assert!(hashed.hash(&narrow).is_err() && weights.exact_product(&narrow).is_err());
    assert!(weights.less(&narrow).is_err() && Dense::new(&weights).unwrap().product(&narrow).is_err());
    let x = hashed.hash(&normal(3, 20, 1)).unwrap();
    assert!(hashed.add_estimate(&x, &mut [0.0; 23]).is_err());
    assert!(
        ColumnStore::new(&weights).unwrap().add_selected(Selection::Top(1), &narrow, &mut [0.0; 24]).is_err()
    );
    let large = Matrix::new(1, 2, vec![f32::MAX; 2]).unwrap();
    assert!(HashedMatrix::new(&large, &settings(64, Pieces::Rows, 0)).is_err());
}

fn bf16_tensor(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()
}

fn checkpoint(tensors: &[(&str, &str, Vec<u64>, Vec<u8>)]) -> Checkpoint {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let place = [data.len(), data.len() + bytes.len()];
        data.extend(bytes);
        header.insert(
            (*name).to_owned(),
            serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": place}),
        );
    }
    let header = serde_json::Value::Object(header).to_string().into_bytes();
    let file = [&(header.len() as u64).to_le_bytes(), &header[..], &data].concat();
    Checkpoint::from_bytes("made.safetensors", file, &Limits::default()).unwrap()
}

#[test]
fn matrices_are_read_and_other_tensors_refused() {
    let made = checkpoint(&[
        ("a", "BF16", vec![2, 2], bf16_tensor(&[1.0, 2.0, 3.0, 4.0])),
        ("b", "BF16", vec![3, 2], bf16_tensor(&[0.5; 6])),
        ("bias", "BF16", vec![8], bf16_tensor(&[1.0; 8])),
        ("ids", "U8", vec![4, 4], vec![0; 16]),
        ("nan", "BF16", vec![1, 1], bf16_tensor(&[f32::NAN])),
    ]);
    assert_eq!(Matrix::read(&made, Some("a")).unwrap().1.values(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(Matrix::read(&made, None).unwrap().0, "b");
    for (name, said) in [("bias", "of shape [8]"), ("ids", "U8"), ("nan", "NaN"), ("c", "not found")] {
        let error = Matrix::read(&made, Some(name)).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn near_duplicates_are_found_and_told_from_exact_ones() {
    let noise = |seed, count| normal(1, count, seed).values().to_vec();
    let base = noise(1, 10_000);
    let nudged: Vec<f32> = base.iter().zip(noise(2, 10_000)).map(|(a, b)| a + 0.05 * b).collect();
    let shape = || vec![100, 100];
    let first = checkpoint(&[
        ("moved", "BF16", shape(), bf16_tensor(&base)),
        ("other", "BF16", shape(), bf16_tensor(&noise(3, 10_000))),
        ("ones", "BF16", vec![64], bf16_tensor(&[1.0; 64])),
        ("ids", "U8", vec![4], vec![0; 4]),
    ]);
    let second = checkpoint(&[
        ("copy", "BF16", shape(), bf16_tensor(&base)),
        ("halves", "BF16", vec![64], bf16_tensor(&[0.5; 64])),
        ("ones", "BF16", vec![64], bf16_tensor(&[1.0; 64])),
    ]);
    let third = checkpoint(&[
        ("nudged", "BF16", shape(), bf16_tensor(&nudged)),
        ("unrelated", "BF16", shape(), bf16_tensor(&noise(4, 10_000))),
    ]);
    for whole in [false, true] {
        let settings = IndexSettings { bits: 256, least_similarity: 0.9, whole, seed: 5 };
        let found = index(&[first.clone(), second.clone(), third.clone()], &settings, &Silent).unwrap();
        assert_eq!((found.tensors, found.skipped_tensors, found.signature_bytes), (8, 1, 8 * 32));
        let pairs: Vec<_> = found
            .pairs
            .iter()
            .map(|p| (p.first_checkpoint, &*p.first_tensor, p.second_checkpoint, &*p.second_tensor, p.exact))
            .collect();
        assert_eq!(
            pairs,
            [
                (0, "moved", 1, "copy", true),
                (0, "ones", 1, "ones", true),
                (0, "moved", 2, "nudged", false),
                (1, "copy", 2, "nudged", false),
            ],
            "{whole}"
        );
        let near = &found.pairs[2];
        assert!((near.sample_cosine.unwrap() - 1.0 / 1.0025f64.sqrt()).abs() < 1e-3, "{near:?}");
        assert!((near.similarity - 1.0).abs() < 0.03, "{near:?}");
    }
    let settings = IndexSettings { bits: 64, least_similarity: 2.0, whole: false, seed: 0 };
    assert!(index(&[], &settings, &Silent).is_err());
    assert!(index(&[], &IndexSettings { bits: 65, least_similarity: 0.5, ..settings }, &Silent).is_err());
}
