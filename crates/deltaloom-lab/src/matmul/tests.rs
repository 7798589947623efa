use super::*;
use deltaloom::Silent;
use deltaloom_compute::{Mode, WeightType};

fn options() -> MatmulOptions {
    MatmulOptions {
        tokens: vec![1, 9],
        ways: Way::ALL.to_vec(),
        modes: vec![Mode::Fast, Mode::Exact],
        rounds: 1,
        threads: 1,
        seed: 3,
    }
}

#[test]
fn every_way_gives_the_product_of_the_fine_tune_at_odd_shapes() {
    for (rows, cols, weight) in [
        (1, 1, WeightType::Bf16),
        (35, 77, WeightType::Bf16),
        (130, 16, WeightType::F32),
        (7, 300, WeightType::F32),
    ] {
        let pair = Pair::made(rows, cols, weight, 1.0, 7).unwrap();
        let report = run(&pair, &options(), &Silent).unwrap();
        assert!(report.verified, "{report:?}");
        assert_eq!(report.changed_elems, (rows * cols) as u64);
        // Bit-exact products do not add differences.
        assert_eq!(report.products.len(), 2 * (2 * Way::ALL.len() - 1));
        assert!(report.ways.iter().all(|way| way.missing.is_none()), "{:?}", report.ways);
    }
}

#[test]
fn a_wrong_product_is_found() {
    let pair = Pair::made(40, 64, WeightType::Bf16, 0.1, 1).unwrap();
    let mut other = Pair::made(40, 64, WeightType::Bf16, 0.1, 1).unwrap();
    // Now forms come from another matrix than the one whose product is expected.
    other.base = pair.tuned.clone();
    other.container = Pair::made(40, 64, WeightType::Bf16, 0.2, 1).unwrap().container;
    let report =
        run(&other, &MatmulOptions { ways: Way::named("tiles").unwrap(), ..options() }, &Silent).unwrap();
    assert!(!report.verified);
    let is_right = |way| report.products.iter().filter(|row| row.way == way).all(|row| row.verified);
    assert!(is_right("raw") && !is_right("tiles"));
}

#[test]
fn goals_are_computed_from_the_numbers() {
    let pair = Pair::made(64, 64, WeightType::Bf16, 0.5, 2).unwrap();
    let mut report = run(&pair, &MatmulOptions { tokens: vec![1], ..options() }, &Silent).unwrap();
    (report.rows, report.cols, report.changed_fraction) = (4096, 4096, 0.03);
    for row in report.products.iter_mut().filter(|row| row.way == "bitmap") {
        row.times_raw = Some(2.5);
    }
    let goal = |report: &MatmulReport| {
        goals::of(report).into_iter().find(|goal| goal.goal == "bitmap-1-token").unwrap()
    };
    let missed = goal(&report);
    assert!(!missed.reached && missed.is_about_this_matrix);
    report.products.iter_mut().for_each(|row| row.times_raw = Some(1.5));
    report.changed_fraction = 0.5;
    let reached = goal(&report);
    assert!(reached.reached && !reached.is_about_this_matrix);
}

#[test]
fn made_matrices_are_the_same_for_a_seed_and_change_as_asked() {
    let made = |seed| Pair::made(100, 200, WeightType::Bf16, 0.03, seed).unwrap();
    let (a, b) = (made(5), made(5));
    assert!(a.base.bytes() == b.base.bytes() && a.tuned.bytes() == b.tuned.bytes());
    assert!(a.base.bytes() != made(6).base.bytes());
    assert!((450..750).contains(&a.changed()), "{}", a.changed());
    for (rows, cols, changed) in
        [(0, 5, 0.5), (5, 0, 0.5), (usize::MAX, 2, 0.5), (5, 5, 0.0), (5, 5, f64::NAN)]
    {
        assert!(Pair::made(rows, cols, WeightType::F32, changed, 0).is_err());
    }
}

#[test]
fn nonsense_is_refused() {
    let pair = Pair::made(4, 4, WeightType::Bf16, 1.0, 1).unwrap();
    let bad = [
        MatmulOptions { tokens: vec![0], ..options() },
        MatmulOptions { tokens: vec![1 << 20], ..options() },
        MatmulOptions { rounds: 0, ..options() },
        MatmulOptions { modes: Vec::new(), ..options() },
    ];
    assert!(bad.iter().all(|options| run(&pair, options, &Silent).is_err()));
    assert!(Way::named("zip").is_err());
    assert_eq!(Way::named("all").unwrap(), Way::ALL);
}
