//! `deltaloom lab tenants` and `deltaloom estimate`: output and errors. The library tests what
//! tenants compute.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use common::{Scratch, asset, tensors_of};
use serde_json::Value;

#[test]
fn a_generated_batch_is_right_in_every_way() {
    let scratch = Scratch::new();
    let arguments =
        "lab tenants --tenants 3 --density 0.1 --rounds 1 --requests 4 --request-tokens 2 --active 2";
    let report = scratch.ok(&format!("{arguments} --json --html tenants.html")).json();
    let ways = report["ways"].as_array().unwrap();
    assert!(ways.len() == 12 && ways.iter().all(|way| way["is_right"] == true), "{report}");
    for way in ways.iter().filter(|way| way["name"].as_str().unwrap().contains("exact")) {
        assert_eq!(way["is_bit_exact"], true, "{way}");
    }
    let changed = report["changed_fraction"].as_f64().unwrap();
    assert!((changed - 0.1).abs() < 0.001, "{changed}");
    // Two orders of requests, two kinds of forms, four budgets.
    let pressure = report["pressure"].as_array().unwrap();
    assert_eq!(pressure.len(), 16);
    for row in pressure {
        let residency = &row["residency"];
        let bytes = |name: &str| residency[name].as_u64().unwrap();
        assert!(bytes("matrix_bytes") + bytes("vector_bytes") <= bytes("budget_bytes"), "{row}");
        assert!(row["tenants_over_budget"] != 1.0 || bytes("evictions") + bytes("direct") == 0, "{row}");
        assert!(
            row["arrivals"] != "in_turn" || row["tenants_over_budget"] != 4.0 || bytes("direct") > 0,
            "{row}"
        );
    }
    assert_eq!(report["verdicts"].as_array().unwrap().len(), 5);
    assert!(
        String::from_utf8(scratch.read("tenants.html"))
            .unwrap()
            .contains("More tenants than the budget holds")
    );
    let csv = scratch.ok("lab tenants --tenants 2 --rounds 1 --requests 0 --csv");
    assert_eq!(csv.text().lines().count(), 13);
}

#[test]
fn tenants_that_cannot_be_are_refused() {
    let scratch = Scratch::with_assets(&["base", "ft_bf16"]);
    for wrong in
        ["--tenants 0", "--budget lots", "--budget -3%", "base.safetensors", "--density 2", "--layer 1"]
    {
        scratch.refused(&format!("lab tenants {wrong}"));
    }
    // A LLaMA layer needs its config.json.
    let told = scratch.refused("lab tenants base.safetensors ft_bf16.safetensors");
    assert!(told.contains("config.json"), "{told}");
}

fn row<'a>(report: &'a Value, form: &str) -> &'a Value {
    report["forms"].as_array().unwrap().iter().find(|row| row["form"] == form).unwrap()
}

#[test]
fn estimates_count_what_differs() {
    let scratch = Scratch::with_assets(&["base", "ft_bf16"]);
    scratch.ok("pack ft_bf16.safetensors --base base.safetensors -o tuned.loom");
    let (base, tuned) = (tensors_of(&asset("base")), tensors_of(&asset("ft_bf16")));
    let elements = |bytes: &[u8]| bytes.chunks(2).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let changed =
        |(a, b): (&Vec<u8>, &Vec<u8>)| elements(a).iter().zip(elements(b)).filter(|(a, b)| *a != b).count();
    let changed: usize = base.iter().zip(&tuned).map(|(a, b)| changed((&a.2, &b.2))).sum();
    let bytes: usize = base.iter().map(|tensor| tensor.2.len()).sum();
    for tuned in ["ft_bf16.safetensors", "tuned.loom"] {
        let report =
            scratch.ok(&format!("estimate base.safetensors --tenants 3 --tuned {tuned} --json")).json();
        assert_eq!((&report["base_bytes"], &report["is_assumed"]), (&bytes.into(), &false.into()));
        assert_eq!(row(&report, "raw copies")["weight_bytes"], 3 * bytes);
        assert_eq!(row(&report, "COO, 32 bits")["tenant_bytes"], 12 * changed);
        assert_eq!(row(&report, "COO, 64 bits")["weight_bytes"], bytes + 3 * 20 * changed);
        assert_eq!(row(&report, "packed container")["tenant_bytes"], scratch.read("tuned.loom").len());
        let of = |form| row(&report, form)["tenant_bytes"].as_u64().unwrap();
        assert!(
            of("tiles") < of("planes") && of("planes") < of("bitmap") && of("bitmap") < of("csr"),
            "{report}"
        );
        assert!(report["cache_bytes"].is_null() && report["check"].is_null());
    }
    scratch.write(
        "config.json",
        br#"{"hidden_size": 320, "num_hidden_layers": 8, "num_attention_heads": 5, "intermediate_size": 864, "vocab_size": 8192}"#,
    );
    let assumed =
        "estimate base.safetensors --tenants 3 --changed 0.03 --context 256 --batch 4 --dtype-cache f32";
    let report = scratch.ok(&format!("{assumed} --json")).json();
    assert_eq!(
        (&report["is_assumed"], &report["cache_bytes"]),
        (&true.into(), &(2 * 8 * 320 * 256 * 4 * 4).into())
    );
    assert!((report["changed_fraction"].as_f64().unwrap() - 0.03).abs() < 1e-4);
    assert!(scratch.ok(assumed).text().contains("(assumed)"));
    scratch.refused("estimate base.safetensors --tenants 3 --changed 1.5");
    scratch.refused("estimate base.safetensors --tenants 3 --check");
    scratch.refused("estimate base.safetensors");
}
