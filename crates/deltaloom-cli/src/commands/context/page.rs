//! The page about a test.

use deltaloom_lm::context::tester::{Length, TestReport};
use deltaloom_lm::evaluate::Share;
use deltaloom_report::{Arrangement, Axis, Bar, Bars, Cell, Figure, Page, Section, Table, Unit};

use super::test::{Report, clear_of_truncation, with_error, with_points};

pub(super) fn page(report: &Report) -> Page {
    let result = &report.result;
    let subtitle = format!(
        "Losses in nats per token, keys and values in {}. Trained length: {} tokens. The baseline is truncation: the \
         model as it is, with only the last tokens before each one. A method extends only where its gain over that is \
         clear of 0.",
        report.kv, result.trained_tokens
    );
    let mut sections: Vec<Section> = result.lengths.iter().map(length).collect();
    sections.extend([price(result), copies(result)]);
    if !result.controls.is_empty() {
        sections.push(controls(result));
    }
    if !result.retrieval.is_empty() {
        sections.push(retrieval(result));
    }
    sections.push(memory(result));
    if !result.speed.is_empty() {
        sections.push(speed(result));
    }
    sections.push(ends(result));
    Page { title: format!("Context of a {} model", report.model_type), subtitle, sections }
}

fn section(heading: &str, text: &str, table: Table) -> Section {
    Section { heading: heading.to_owned(), text: text.to_owned(), figure: None, table: Some(table) }
}

fn written(value: f64, shown: String) -> Cell {
    Cell::Written { shown, exact: value.to_string() }
}

fn fixed(value: f64) -> Cell {
    written(value, format!("{value:.3}"))
}

fn length(length: &Length) -> Section {
    let titles: Vec<String> =
        length.buckets.iter().map(|[start, end]| format!("{start}-{}", end - 1)).collect();
    let mut columns = vec!["method"];
    columns.extend(titles.iter().map(String::as_str));
    columns.extend(["gain", "word", "key tokens"]);
    let mut table = Table::new(&columns);
    let mut row = vec![Cell::text("truncation")];
    row.extend(length.truncation.buckets.iter().map(|loss| fixed(*loss)));
    row.extend([Cell::Empty, Cell::Empty, Cell::Empty]);
    table.rows.push(row);
    for method in &length.methods {
        let mut row = vec![Cell::text(&*method.name)];
        row.extend(method.losses.buckets.iter().map(|loss| fixed(*loss)));
        row.push(method.gain.map_or(Cell::Empty, |gain| written(gain.mean, with_error(&gain))));
        row.push(method.word.map_or(Cell::Empty, |word| Cell::text(word.name())));
        let keys = |keys: deltaloom_lm::context::tester::KeyTokens| fixed(keys.perplexity);
        row.push(method.key_tokens.map_or(Cell::Empty, keys));
        table.rows.push(row);
    }
    let losses = |name: &str, losses: &[f64]| Bar { name: name.to_owned(), values: losses.to_vec() };
    let mut bars = vec![losses("truncation", &length.truncation.buckets)];
    bars.extend(length.methods.iter().map(|method| losses(&method.name, &method.losses.buckets)));
    let figure = Figure::Bars(Bars {
        axis: Axis::linear("nats per token", Unit::Number),
        parts: titles.clone(),
        bars,
        arrangement: Arrangement::Beside,
    });
    let text = format!(
        "{} sequences of {} tokens. Buckets of positions hold different text: only differences in one column mean \
         anything. The gain is that of all tokens behind the trained length.",
        length.starts.len(),
        length.tokens
    );
    let heading = format!("{} tokens", length.tokens);
    Section { figure: Some(figure), ..section(&heading, &text, table) }
}

fn price(result: &TestReport) -> Section {
    let mut table = Table::new(&["method", "tokens", "loss", "less that of the model"]);
    for price in &result.price {
        table.rows.push(vec![
            Cell::text(&*price.name),
            Cell::Value(price.tokens as f64, Unit::Count),
            fixed(price.loss),
            written(price.difference.mean, with_error(&price.difference)),
        ]);
    }
    section("Price of short texts", "What a method costs within the trained length.", table)
}

fn controls(result: &TestReport) -> Section {
    let mut table = Table::new(&["method", "place", "of", "p"]);
    for choice in &result.controls {
        table.rows.push(vec![
            Cell::text(&*choice.name),
            Cell::Value(choice.rank as f64, Unit::Count),
            Cell::Value((choice.controls.len() + 1) as f64, Unit::Count),
            fixed(choice.p_value),
        ]);
    }
    let text = "Where a choice of layers stands among random ones of as many, by the loss within the trained length, and \
                how probable so good a place is by chance. Depth may explain it as well.";
    section("Choices of layers", text, table)
}

fn copies(result: &TestReport) -> Section {
    if let Some(reason) = &result.no_copies {
        let text = format!("Not measured: {reason}.");
        return Section { heading: "Copies".to_owned(), text, figure: None, table: None };
    }
    let mut table = Table::new(&["method", "gap", "gain"]);
    for copies in &result.copies {
        table.rows.push(vec![
            Cell::text(&*copies.name),
            Cell::Value(copies.gap_tokens as f64, Unit::Count),
            written(copies.gain.mean, with_error(&copies.gain)),
        ]);
    }
    let text = "What an earlier copy of a passage gains: the loss with another passage in its place, less the loss. \
                The last gap is longer than the trained length: what truncation cannot see.";
    section("Copies", text, table)
}

fn retrieval(result: &TestReport) -> Section {
    let mut table = Table::new(&["method", "tokens", "chosen", "interval", "over truncation", "written"]);
    for row in &result.retrieval {
        let percent = |share: Share| Cell::Value(share.value, Unit::Percent);
        let interval =
            |share: Share| Cell::text(format!("{:.0} to {:.0} %", 100.0 * share.low, 100.0 * share.high));
        table.rows.push(vec![
            Cell::text(&*row.name),
            Cell::Value(row.tokens as f64, Unit::Count),
            row.forced_choice.map_or(Cell::Empty, percent),
            row.forced_choice.map_or(Cell::Empty, interval),
            row.gain.map_or(Cell::Empty, |gain| written(gain.mean, with_points(&gain))),
            row.exact.map_or(Cell::Empty, percent),
        ]);
    }
    let text = format!(
        "Facts that were planted in the text: how often the right one of eight answers was the most probable one \
         (12.5 % by chance), with its interval of 95 %, by how many points that is above truncation in the same texts, \
         and how often the model wrote it. {}",
        clear_of_truncation(result).join(" ")
    );
    section("Retrieval", text.trim_end(), table)
}

fn memory(result: &TestReport) -> Section {
    let mut table = Table::new(&["method", "tokens", "by formula", "counted"]);
    for kv in &result.memory {
        table.rows.push(vec![
            Cell::text(&*kv.name),
            Cell::Value(kv.tokens as f64, Unit::Count),
            Cell::Value(kv.formula_bytes as f64, Unit::Bytes),
            Cell::Value(kv.counted_bytes as f64, Unit::Bytes),
        ]);
    }
    section(
        "Memory",
        "Bytes of keys and values of one sequence; pages are whole when they are counted.",
        table,
    )
}

fn speed(result: &TestReport) -> Section {
    let mut table = Table::new(&["method", "prefill, tokens/s", "ratio", "decode, tokens/s", "ratio "]);
    for speed in &result.speed {
        let whole = |value: f64| written(value, format!("{value:.0}"));
        table.rows.push(vec![
            Cell::text(&*speed.name),
            whole(speed.prefill_tokens_per_second),
            fixed(speed.prefill_ratio),
            whole(speed.decode_tokens_per_second),
            fixed(speed.decode_ratio),
        ]);
    }
    section("Speed", "Medians of rounds in turns; ratios are over the model as it is.", table)
}

fn ends(result: &TestReport) -> Section {
    let mut table = Table::new(&["method", "tokens", "why"]);
    for end in &result.effective_length {
        let tokens = end.tokens.map_or(Cell::Empty, |tokens| Cell::Value(tokens as f64, Unit::Count));
        table.rows.push(vec![Cell::text(&*end.name), tokens, Cell::text(&*end.reason)]);
    }
    section(
        "Effective length",
        "The largest length of the test at which a method is not worse than truncation.",
        table,
    )
}
