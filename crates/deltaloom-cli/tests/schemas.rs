//! The keys and types of all JSON output. Removing a key or changing its type breaks scripts.

mod common;

use std::collections::BTreeMap;

use common::Scratch;
use serde_json::Value;

/// Objects whose keys are data and no schema.
const MAPS: [&str; 7] = ["predictors", "codecs", "ulp_histogram", "dtype_bytes", "meta", "kinds", "texts"];

/// Types by path. The elements of a list share their paths.
type Schema = BTreeMap<String, std::collections::BTreeSet<&'static str>>;

fn add(value: &Value, path: &str, schema: &mut Schema) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(items) => {
            items.iter().for_each(|item| add(item, &format!("{path}[]"), schema));
            "list"
        }
        Value::Object(fields) => {
            let is_map = MAPS.iter().any(|name| path.ends_with(name));
            for (name, field) in fields {
                let name = if is_map { "*" } else { name };
                add(field, &format!("{path}.{name}"), schema);
            }
            "object"
        }
    };
    schema.entry(path.to_owned()).or_default().insert(kind);
}

/// One line a path, in order.
fn schema(value: &Value) -> String {
    let mut schema = Schema::new();
    add(value, "", &mut schema);
    let line = |(path, kinds): (&String, &std::collections::BTreeSet<&str>)| {
        let kinds: Vec<&str> = kinds.iter().copied().collect();
        format!("{}: {}\n", if path.is_empty() { "." } else { path }, kinds.join(" or "))
    };
    schema.iter().map(line).collect()
}

/// What each command prints, with its exit code.
fn schemas(scratch: &Scratch, commands: &[&str]) -> String {
    let of = |command: &&str| {
        let ended = scratch.run(&format!("{command} --json"));
        let printed: Value = serde_json::from_slice(&ended.out)
            .unwrap_or_else(|e| panic!("{command}: {e}: {}{}", ended.text(), ended.err));
        format!("$ deltaloom {command} --json\nexit {}\n{}", ended.code.unwrap_or(-1), schema(&printed))
    };
    commands.iter().map(of).collect::<Vec<_>>().join("\n")
}

#[test]
fn containers_and_checkpoints() {
    let scratch = Scratch::with_small_pair();
    scratch.write("models/base.safetensors", &scratch.read("base.safetensors"));
    scratch.write("model.safetensors", &scratch.read("base.safetensors"));
    scratch.write("folder/weights.safetensors", &scratch.read("tuned.safetensors"));
    scratch.write("folder/optimizer.pt", &[b"PK\x03\x04", &[0; 100_000][..]].concat());
    scratch.write("half/model.safetensors.index.json", br#"{"weight_map": {"a": "nowhere.safetensors"}}"#);
    scratch.write("half/weights.safetensors", &scratch.read("base.safetensors"));
    let mut damaged = scratch.read("tuned.loom");
    damaged[20] ^= 1;
    scratch.write("damaged.loom", &damaged);
    insta::assert_snapshot!(
        "containers",
        schemas(
            &scratch,
            &[
                "pack tuned.safetensors --base base.safetensors --base-name org/base@1 --meta note=text -o new.loom",
                "pack folder --base half -o folder.loom",
                "pack tuned.safetensors --base-dir models --dry-run",
                "pack tuned.safetensors --base-dir models -o found.loom",
                "inspect new.loom",
                "unpack tuned.loom --base base.safetensors -o out.safetensors",
                "unpack tuned.loom --in-place model.safetensors",
                "verify tuned.loom --base base.safetensors",
                "verify damaged.loom",
                "diff base.safetensors tuned.safetensors",
                "lineage tuned.safetensors base.safetensors",
                "bench tuned.safetensors --base base.safetensors --rounds 1 --only deltaloom --only memcpy",
                "estimate base.safetensors --tenants 2 --tuned tuned.safetensors",
                "unpack tuned.loom -o nothing",
            ]
        )
    );
}

#[test]
fn series() {
    let scratch = Scratch::with_small_pair();
    scratch.ok("series init runs");
    insta::assert_snapshot!(
        "series",
        schemas(
            &scratch,
            &[
                "series add runs base.safetensors --step 1 --meta loss=2.5",
                "series add runs tuned.safetensors --step 2 --meta loss=2.25",
                "series add runs base.safetensors --step 3",
                "series add runs tuned.safetensors --step 3 --rewind",
                "series ls runs",
                "series ls runs --branches",
                "series log runs",
                "series show runs",
                "series show runs --step 2",
                "series health runs",
                "series get runs --step 2 -o out",
                "series set runs --step 2 --meta loss=2.0",
                "series rm runs --step 2",
                "series prune runs --keep keyframes --dry-run",
                "series repack runs",
                "series gc runs",
                "series verify runs",
            ]
        )
    );
}

#[test]
fn experiments() {
    let scratch = Scratch::with_assets(&["base", "ft_bf16"]);
    scratch.ok("lab tpde base.safetensors ft_bf16.safetensors --methods P1 --adaptive threshold=1e-4 -o lossy --json");
    let tensor = "model.layers.0.self_attn.q_proj.weight";
    insta::assert_snapshot!(
        "experiments",
        schemas(
            &scratch,
            &[
                "lab positions --pattern sparse --size 65536 --methods ours",
                &format!(
                    "lab matmul --base base.safetensors --tuned ft_bf16.safetensors --tensor {tensor} --tokens 1 --rounds 1"
                ),
                "lab layer --tokens 1 --repeats 1",
                "lab tenants --tenants 2 --rounds 1 --requests 4 --request-tokens 2 --active 2",
                &format!(
                    "lab simhash --base base.safetensors --tuned ft_bf16.safetensors --tensor {tensor} --bits 64 --tokens 2"
                ),
                "lab simhash --index base.safetensors ft_bf16.safetensors",
                "lab tpde base.safetensors ft_bf16.safetensors --methods P1",
                "lab tpde --verify lossy base.safetensors ft_bf16.safetensors",
            ]
        )
    );
}

#[cfg(feature = "demo")]
#[test]
fn the_demo() {
    insta::assert_snapshot!("demo", schemas(&Scratch::new(), &["demo"]));
}
