//! `deltaloom lab layer`: output, pages and errors. The library tests what the layer computes.

mod common;

use common::Scratch;

#[test]
fn the_reference_layer_as_json_table_and_page() {
    let scratch = Scratch::new();
    let report = scratch.ok("lab layer --tokens 1,3 --repeats 2 --tenants 1,16 --threads 1 --json").json();
    assert_eq!(report["layer"], "reference layer");
    assert_eq!((&report["is_right"], &report["repeats"]), (&true.into(), &2.into()));
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 22, "the file and five forms in two modes, for two numbers of tokens");
    assert!(
        runs.iter().all(|run| run["is_right"] == true && run["parameters"].as_array().unwrap().len() == 12)
    );
    assert_eq!(report["statistics"]["sparsity"]["changed_elems"], 994);
    assert_eq!(report["restored"].as_array().unwrap().len(), 4);
    assert_eq!(report["counted_memory"][1]["dense"], 16 * 133_888);

    let ended = scratch.ok("lab layer --tokens 1 --repeats 1 --form tiles --budget 20kB --html layer.html");
    let text = ended.text();
    for part in
        ["tiles   exact", "budget  fast", "Slowest parameters", "XOR zstd 10", "self_attn.in_proj_weight"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    let page = String::from_utf8(scratch.read("layer.html")).unwrap();
    for part in
        ["Differences: self_attn.in_proj_weight", "<summary>Rows 0 to 63</summary>", "Memory of tenants"]
    {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("<script") && !page.contains("NaN"));
    // Terminal and page show the same tables.
    let headings = text.lines().filter(|line| {
        ["tensor ", "form ", "stored ", "tenants "].iter().any(|first| line.starts_with(first))
    });
    let headings: Vec<&str> = headings.flat_map(|line| line.split("  ")).collect();
    assert!(headings.len() > 50, "{headings:?}");
    for heading in headings.iter().map(|heading| heading.trim()).filter(|heading| !heading.is_empty()) {
        assert!(page.contains(&format!(">{heading}</th>")), "{heading}");
    }
}

#[test]
fn what_cannot_be_computed_is_told() {
    let scratch = Scratch::with_assets(&["base", "ft_bf16"]);
    let refused = |arguments: &str, words: &str| {
        let error = scratch.refused(&format!("lab layer {arguments}"));
        assert!(error.contains(words), "{error}");
    };
    refused("--repeats 0", "nothing would be measured");
    refused("--form tiles --budget 10", "the limit is");
    refused("--heads 4", "required");
    refused("base.safetensors ft_bf16.safetensors", "config.json is needed");
}
