//! `deltaloom lab positions`: a table, JSON or comma-separated values of what the library has measured.

mod page;

use std::path::Path;

use anyhow::{Context as _, Result};
use deltaloom_lab::positions::{self, Method, MethodReport, Pattern, PositionsReport, Source};

use crate::args::lab::positions::PositionsArguments;
use crate::progress::Bar;
use crate::{Answer, target, ui};

const PATTERNS: [Pattern; 4] = [Pattern::Structured, Pattern::Random, Pattern::Sparse, Pattern::Clustered];

pub(crate) fn run(arguments: &PositionsArguments) -> Result<Answer> {
    let inputs = target::inputs([Path::new(&arguments.pattern)]);
    ui::page::check(&arguments.report.page, &inputs)?;
    let source = source(arguments)?;
    let methods =
        arguments.methods.iter().map(|name| Method::named(name.trim())).collect::<Result<Vec<_>, _>>()?;
    let bar = Bar::new("coding");
    let report = deltaloom::with_threads(arguments.threads.count, || {
        positions::run(&source, &methods.concat(), &bar)
    })?;
    bar.finish();
    ui::page::write_asked(|| page::page(&report), &arguments.report.page, &inputs)?;
    if arguments.report.json {
        ui::print_json(&report)?;
    } else if arguments.report.csv {
        ui::print(&csv(&report))?;
    } else {
        ui::print(&describe(&report))?;
    }
    Ok(if report.methods.iter().all(|row| row.verified) { Answer::Yes } else { Answer::No })
}

fn source(arguments: &PositionsArguments) -> Result<Source> {
    let name = &arguments.pattern;
    match PATTERNS.into_iter().find(|pattern| pattern.name() == name) {
        Some(pattern) => Ok(Source::Made { pattern, seed: arguments.seed, len_bytes: arguments.size }),
        None => Source::open(Path::new(name))
            .with_context(|| "not structured, random, sparse or clustered, so taken for a file"),
    }
}

fn csv(report: &PositionsReport) -> String {
    let mut out = "source,original_bytes,method,group,coded_bytes,container_bytes,is_raw,ratio,extract_seconds,compress_seconds,decompress_seconds,reconstruct_seconds,verify_seconds,encode_mb_per_second,decode_mb_per_second,verified\n".to_owned();
    let source = format!("\"{}\"", report.source.replace('"', "\"\""));
    for row in &report.methods {
        let seconds = [
            row.extract_seconds,
            row.compress_seconds,
            row.decompress_seconds,
            row.reconstruct_seconds,
            row.verify_seconds,
        ];
        out.push_str(&format!(
            "{source},{},{},{},{},{},{},{:.6},{},{:.3},{:.3},{}\n",
            report.original_bytes,
            row.method,
            row.group,
            row.coded_bytes,
            row.container_bytes,
            row.is_raw,
            row.ratio,
            seconds.map(|s| format!("{s:.6}")).join(","),
            row.encode_mb_per_second,
            row.decode_mb_per_second,
            row.verified,
        ));
    }
    out
}

fn describe(report: &PositionsReport) -> String {
    let seed = report.seed.map_or_else(String::new, |seed| format!(", seed {seed}"));
    let bound = report.entropy_ratio.map_or_else(String::new, |ratio| format!(", ratio {ratio:.2}"));
    let of = match report.entropy_of {
        "pattern" => "entropy of the pattern",
        _ => "entropy of the bytes, if they were independent",
    };
    let mut out = format!(
        "{}{seed}: {}, {} set bits; {of}: {:.0} bytes{bound}\n\n{}\n",
        ui::printable(&report.source),
        ui::bytes(report.original_bytes),
        report.gaps,
        report.entropy_bytes,
        table(report),
    );
    for row in report.methods.iter().filter_map(|row| Some((&row.method, row.fault.as_ref()?))) {
        out.push_str(&format!("fault: {}: {}\n", row.0, ui::printable(row.1)));
    }
    out.push_str(&format!(
        "Coded bytes are without the container's header; extract is done once for all. Seconds of a method are processor time of one thread, MB/s 10^6 original bytes in one of them.\n\
         raw: coding would have made it larger, so the container holds the data. All methods on {} threads, by the clock on the wall: {:.1} s to encode, {:.1} s with checks.\n",
        report.threads, report.encode_seconds, report.total_seconds,
    ));
    out
}

fn table(report: &PositionsReport) -> String {
    let header = [
        "method",
        "coded bytes",
        "ratio",
        "extract s",
        "compress s",
        "decompress s",
        "reconstruct s",
        "verify s",
        "encode MB/s",
        "decode MB/s",
        "verified",
        "",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(report.methods.iter().map(|row| {
        let seconds = |s: f64| format!("{s:.2}");
        vec![
            row.method.clone(),
            row.coded_bytes.to_string(),
            format!("{:.2}", row.ratio),
            seconds(row.extract_seconds),
            seconds(row.compress_seconds),
            seconds(row.decompress_seconds),
            seconds(row.reconstruct_seconds),
            seconds(row.verify_seconds),
            format!("{:.0}", row.encode_mb_per_second),
            format!("{:.0}", row.decode_mb_per_second),
            if row.verified { "yes" } else { "NO" }.to_owned(),
            marks(report, row),
        ]
    }));
    ui::table(&rows)
}

fn marks(report: &PositionsReport, row: &MethodReport) -> String {
    let is_named = |name: &Option<String>| name.as_ref() == Some(&row.method);
    let marks =
        [(row.is_raw, "raw"), (is_named(&report.best), "best"), (is_named(&report.fastest), "fastest")];
    marks.iter().filter(|(is_it, _)| *is_it).map(|(_, mark)| *mark).collect::<Vec<_>>().join(", ")
}
