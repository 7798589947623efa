//! Checks what needs no other weights than those in the repository: golden containers, demo sizes,
//! demo digests.

#[test]
fn every_golden_container_is_restored() {
    xtask::golden::check_all(xtask::Mode::Check).unwrap();
}

#[test]
fn no_packed_size_of_the_demo_weights_has_grown() {
    xtask::sizes::check_demo().unwrap();
}

#[test]
fn the_demo_weights_are_those_recorded() {
    xtask::assets::check_digests().unwrap();
}
