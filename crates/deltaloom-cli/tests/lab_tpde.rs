//! Threshold methods as a person or a script runs them.

mod common;

use common::Scratch;

const SERIES: &str = "base.safetensors ft_bf16.safetensors ft_master.safetensors";

fn series() -> Scratch {
    Scratch::with_assets(&["base", "ft_bf16", "ft_master"])
}

#[test]
fn methods_are_compared_written_and_verified() {
    let scratch = series();
    let report = scratch
        .ok(&format!(
            "lab tpde {SERIES} --methods P1,P1+,P3+ --adaptive quantile=0.9 --adaptive lr-steps=1e-5,2 -o lossy --json"
        ))
        .json();
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<(&str, &str)> =
        rows.iter().map(|row| (row["form"].as_str().unwrap(), row["method"].as_str().unwrap())).collect();
    assert_eq!(
        names,
        [
            ("exact", "exact"),
            ("published", "P1"),
            ("published", "P1+"),
            ("published", "P3+"),
            ("corrected", "P1, P1+"),
            ("corrected", "P3+"),
            ("corrected", "quantile=0.9"),
            ("corrected", "lr-steps=1e-5,2"),
        ]
    );
    for row in rows {
        assert_eq!(row["lossy"], row["form"] != "exact");
        let steps = row["steps"].as_array().unwrap();
        assert_eq!(steps.len(), 3);
        let sum: u64 = steps.iter().map(|step| step["out_bytes"].as_u64().unwrap()).sum();
        assert_eq!(row["out_bytes"], sum);
    }
    assert_eq!(rows[4]["steps"][0]["out_bytes"], rows[0]["steps"][0]["out_bytes"], "the first is exact");
    assert!(rows[4]["steps"][2]["max_error"].as_f64().unwrap() < 1e-3);
    assert!(rows[1]["steps"][2]["max_error"].as_f64().unwrap() > 1e-3);

    let checks = scratch.ok(&format!("lab tpde --verify lossy {SERIES} --json")).json();
    assert_eq!(checks.as_array().unwrap().len(), 4 * 3);
    let text = scratch.ok("lab tpde --verify lossy/P1");
    assert_eq!((text.text().matches("LOSSY").count(), text.text().matches("lossless").count()), (2, 1));
    let file = "lossy/P1/step-00000002.lossy.loom";
    let mut bytes = scratch.read(file);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    scratch.write(file, &bytes);
    let ended = scratch.run("lab tpde --verify lossy/P1");
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert!(ended.text().contains("WRONG") && ended.text().contains("fault: step 2"));
}

#[test]
fn no_other_command_takes_a_lossy_file() {
    let scratch = series();
    scratch.ok(&format!("lab tpde {SERIES} --methods P1 --form corrected -o lossy"));
    let file = "lossy/P1/step-00000001.lossy.loom";
    for arguments in [
        format!("unpack {file} -b base.safetensors -o out"),
        format!("inspect {file}"),
        format!("verify {file}"),
        format!("cat {file} model.norm.weight"),
        format!("pack {file} -o out.loom"),
        format!("pack ft_master.safetensors --base {file} -o out.loom"),
        format!("diff base.safetensors {file}"),
        format!("lab tpde base.safetensors {file}"),
    ] {
        let said = scratch.refused(&arguments);
        assert!(said.contains("lossy step"), "{arguments}: {said}");
        assert!(said.contains("hint: `deltaloom lab tpde --verify`"), "{arguments}: {said}");
    }
}

#[test]
fn tables_and_csv_say_what_is_lossy() {
    let scratch = series();
    let arguments = format!("lab tpde {SERIES} --methods P2,v2");
    let table = scratch.ok(&arguments);
    assert!(table.text().starts_with("All steps; every row except the exact one is LOSSY"));
    let csv = scratch.ok(&format!("{arguments} --csv"));
    let lines: Vec<&str> = csv.text().lines().collect();
    assert_eq!(lines.len(), 1 + 5 * 3);
    assert!(lines[1].starts_with("0,exact,exact,false,"));
    assert!(lines[4].starts_with("0,P2,published,true,"));
}

#[cfg(unix)]
#[test]
fn reconstructions_are_evaluated() {
    let scratch = series();
    let run = |command: &str| {
        let mut program =
            scratch.command("lab tpde base.safetensors ft_bf16.safetensors --methods P1 --json");
        program.args(["--evaluate", command]);
        program
    };
    let ended = common::finish(run("stat -c %s {}").spawn().unwrap());
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let loss = |row: usize| ended.json()["rows"][row]["steps"][1]["loss"].as_f64().unwrap();
    // The evaluation was of files: that of the published form has every weight as FP32.
    assert!(loss(1) > 1.8 * loss(0));
    assert!((loss(2) - loss(0)).abs() < 1.0);
    for (command, what) in
        [("false {}", "false failed"), ("echo {}", "does not end with a number"), ("true", "needs {}")]
    {
        assert!(scratch.refuses(run(command), command).contains(what), "{command}");
    }
}

#[test]
fn rules_that_make_no_sense_are_refused() {
    let scratch = series();
    for rule in ["quantile=1.5", "bytes=-1", "lr-steps=1e-5", "threshold=inf", "threshold=-1", "other=1", ""]
    {
        let ended = scratch.run(&format!("lab tpde base.safetensors --adaptive={rule}"));
        assert_eq!(ended.code, Some(2), "{rule}");
    }
    scratch.fails(3, "lab tpde --verify nothing");
    scratch.fails(3, "lab tpde missing.safetensors");
}
