//! `deltaloom lab simhash`: output, pages and errors. The library tests the estimates.

mod common;

use common::{Scratch, asset};

const QUICK: &str = "lab simhash --bits 64,128 --tokens 2";

#[test]
fn bundled_weights_are_compared_and_called_an_experiment() {
    let scratch = Scratch::new();
    let ended = scratch.ok(QUICK);
    let text = ended.text();
    assert!(text.starts_with("EXPERIMENT") && text.contains("LOSSY"), "{text}");
    assert!(text.contains("Verdicts of this run"), "{text}");
    let report = scratch.ok(&format!("{QUICK} --json")).json();
    assert_eq!((&report["experiment"], &report["on"]), (&true.into(), &"weights".into()));
    let methods = report["methods"].as_array().unwrap();
    let of = |name: &str| methods.iter().find(|row| row["method"] == name).unwrap();
    assert_eq!(of("simhash 16x16 64 bits")["bits_per_weight"], 5.0);
    assert!(of("simhash 16x16 64 bits")["error_over_rival"].as_f64().unwrap() > 10.0);
    assert!(of("exact")["nmse"].as_f64().unwrap() < 1e-9);
    let csv = scratch.ok(&format!("{QUICK} --csv"));
    assert_eq!(csv.text().lines().count(), methods.len() + 1);
}

#[test]
fn files_and_their_differences_make_pages() {
    let scratch = Scratch::with_assets(&["base", "ft_bf16"]);
    let files =
        "--base base.safetensors --tuned ft_bf16.safetensors --tensor model.layers.0.self_attn.q_proj.weight";
    scratch.ok(&format!("{QUICK} {files} --on delta --block row --correct none,topk --fraction 0.05 --html page.html --svg pictures"));
    let page = String::from_utf8(scratch.read("page.html")).unwrap();
    assert!(page.contains("EXPERIMENT") && page.contains("Error against size") && page.contains("<svg"));
    assert_eq!(std::fs::read_dir(scratch.path().join("pictures")).unwrap().count(), 3);
    let report = scratch.ok(&format!("{QUICK} {files} --on delta --json")).json();
    assert!(report["delta_energy"].as_f64().unwrap() < 0.1);
    let random = scratch.ok(&format!("{QUICK} --random 40x64 --projection rademacher --json")).json();
    assert_eq!((&random["rows"], &random["cols"]), (&40.into(), &64.into()));
}

#[test]
fn an_index_tells_exact_duplicates_from_near_ones() {
    let scratch = Scratch::with_assets(&["base", "ft_bf16"]);
    scratch.write("copy.safetensors", &asset("base"));
    let index = "lab simhash --index base.safetensors copy.safetensors ft_bf16.safetensors";
    let report = scratch.ok(&format!("{index} --json")).json();
    let pairs = report["pairs"].as_array().unwrap();
    let tensors = report["tensors"].as_u64().unwrap() / 3;
    let of = |second: u64, exact: bool| {
        let are =
            pairs.iter().filter(|pair| pair["first_checkpoint"] == 0 && pair["second_checkpoint"] == second);
        are.filter(|pair| pair["exact"] == exact).count() as u64
    };
    assert_eq!((of(1, true), of(1, false)), (tensors, 0));
    assert!(of(2, false) > 0);
    assert!(scratch.ok(index).text().contains("exact duplicate"));
}

#[test]
fn what_cannot_be_is_refused() {
    let scratch = Scratch::with_assets(&["base"]);
    for bad in [
        "--tokens 0",
        "--bits 65",
        "--bits 2048",
        "--fraction 0",
        "--fraction 1.5",
        "--fraction nan",
        "--block 16",
        "--block 0x16",
        "--block 4000x4000",
        "--random 0x3",
        "--random 4x4 --on delta",
        "--base base.safetensors --on delta",
        "--base base.safetensors --tensor model.layers.0.input_layernorm.weight",
        "--base base.safetensors --tensor nothing",
        "--index base.safetensors --similarity 2",
        "--index base.safetensors --bits 64,128",
        "--whole",
        "--json --csv",
    ] {
        scratch.refused(&format!("lab simhash {bad}"));
    }
    scratch.fails(3, "lab simhash --base missing.safetensors");
}
