//! Pages and pictures of made-up series are self-contained, escape their input, and have no
//! overlapping text.

use deltaloom_report::{
    Axis, Bar, Bars, Cell, Curve, Drawn, EventWriter, Figure, HeatMap, Lines, Mark, Page, Scatter, Section,
    Table, Unit, health, series_events, series_page, standalone,
};

mod series_example;
use series_example::{Noise, add_methods, series};

/// Value of an attribute of an element.
fn attribute<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    element.split_once(&format!(" {name}=\""))?.1.split_once('"').map(|(value, _)| value)
}

/// Left, right and baseline of every text, with a width that underestimates most text.
fn texts(svg: &str) -> Vec<(f64, f64, f64, String)> {
    // The title is above the picture, which has its own coordinates.
    let (_, picture) = svg.split_once("<g transform").expect("a picture");
    let elements = picture.split("<text").skip(1);
    elements
        .map(|rest| {
            let (head, rest) = rest.split_once('>').expect("an element");
            let text = rest.split_once("</text>").expect("its end").0.to_owned();
            let number = |name| attribute(head, name).and_then(|n| n.parse::<f64>().ok()).expect("a number");
            let (x, y) = (number("x"), number("y"));
            // Narrower than most text, so text that overlaps by this measure overlaps in any font.
            let width = 5.0 * text.replace("&lt;", "<").replace("&amp;", "&").chars().count() as f64;
            let left = match attribute(head, "text-anchor") {
                Some("middle") => x - width / 2.0,
                Some("end") => x - width,
                _ => x,
            };
            (left, left + width, y, text)
        })
        .collect()
}

fn assert_no_overlap(svg: &str) {
    let texts = texts(svg);
    for (i, a) in texts.iter().enumerate() {
        for b in &texts[i + 1..] {
            let is_apart = a.1 <= b.0 || b.1 <= a.0 || (a.2 - b.2).abs() >= 9.0;
            assert!(is_apart, "{a:?} and {b:?}");
        }
    }
}

#[test]
fn pages_of_any_length_stand_alone_and_are_reproducible() {
    for steps in [0, 1, 2, 200] {
        let mut summary = series(steps, 12);
        add_methods(&mut summary, &["P1", "P1+", "P2", "P2+", "P3", "P3-first", "P3+", "P4"]);
        let page = series_page(&summary);
        let html = page.html();
        assert_eq!(html, series_page(&summary).html());
        // The only place where the word is intended.
        let html = html.replace("NaN or infinite", "");
        for outside in ["http://", "https://", "src=", "@import", "url(", "<script", "NaN", "inf\""] {
            assert!(!html.contains(outside), "{steps} steps: {outside}");
        }
        assert_eq!(html.matches("<svg").count(), page.pictures().len());
        for (name, picture) in page.pictures() {
            assert!(picture.contains("prefers-color-scheme:dark"), "{name}");
            assert_no_overlap(&picture);
        }
    }
}

#[test]
fn ten_thousand_steps_are_thinned() {
    let page = series_page(&series(10_000, 12));
    for (name, picture) in page.pictures() {
        assert!(picture.len() < 700_000, "{name}: {} bytes", picture.len());
        assert_no_overlap(&picture);
        for path in picture.split(" d=\"").skip(1).map(|rest| rest.split_once('"').unwrap().0) {
            assert!(path.matches(['M', 'L']).count() <= 1000, "{name}");
        }
    }
    let table =
        page.sections.iter().find_map(|section| section.table.as_ref().filter(|t| t.rows.len() == 10_000));
    assert_eq!(table.unwrap().csv().lines().count(), 10_001);
    assert!(page.html().contains("9,800 more rows"));
}

#[test]
fn names_are_escaped_everywhere() {
    let evil = "</script><img src=x onerror=\"alert(1)\">&'\u{0}";
    let mut summary = series(30, 3);
    summary.name = evil.to_owned();
    summary.command = evil.to_owned();
    for tensor in summary.steps.iter_mut().flat_map(|step| &mut step.tensors) {
        tensor.name = evil.into();
        tensor.predictor = evil.into();
    }
    add_methods(&mut summary, &[evil]);
    let page = series_page(&summary);
    let pictures = page.pictures().into_iter().map(|(_, picture)| picture);
    for file in std::iter::once(page.html()).chain(pictures) {
        assert!(!file.contains("<img") && !file.contains('\0') && !file.contains("</script"));
    }
}

#[test]
fn tables_keep_digits_and_quotes_in_csv() {
    let mut table = Table::new(&["name", "a,b"]);
    table.rows.push(vec![Cell::text("say \"x\", y"), Cell::Value(0.123456789, Unit::Percent)]);
    table.rows.push(vec![Cell::text("2 lines\nof it"), Cell::Value(25_086_448.0, Unit::Bytes)]);
    table.rows.push(vec![Cell::Empty, Cell::maybe(Some(f64::NAN), Unit::Ratio)]);
    assert_eq!(
        table.csv(),
        "name,\"a,b\"\n\"say \"\"x\"\", y\",0.123456789\n\"2 lines\nof it\",25086448\n,\n"
    );
    let section = Section { heading: "Same".to_owned(), table: Some(table), ..Section::default() };
    let page =
        Page { title: "T".to_owned(), subtitle: String::new(), sections: vec![section.clone(), section] };
    let html = page.html();
    assert!(html.contains("12.3\u{a0}%") && html.contains("25.1\u{a0}MB"));
    assert!(html.contains("id=\"same\"") && html.contains("id=\"same-2\""));
}

/// Charts of arbitrary sizes and values, including nonsense, are drawn without a panic and without
/// overlapping text.
#[test]
fn charts_of_anything_are_drawn() {
    let mut noise = Noise(5);
    let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 1e300, -1e300, 1e-300, 3.0];
    for round in 0..108 {
        let mut value = || {
            let pick = noise.next();
            let size = 10f64.powf(noise.next() * 12.0 - 6.0);
            if round % 4 == 0 && pick < 0.2 { odd[round / 4 % odd.len()] } else { (pick - 0.2) * size }
        };
        let unit =
            [Unit::Number, Unit::Count, Unit::Percent, Unit::Bytes, Unit::Seconds, Unit::Ratio][round % 6];
        let axis = |i: usize| {
            let label = "a rather long label of an axis ".repeat(i % 5);
            if (round / 6 + i).is_multiple_of(2) { Axis::linear(label, unit) } else { Axis::log(label, unit) }
        };
        let count = [0, 1, 2, 7, 60, 1500][round / 6 % 6];
        let curves = (0..round % 10).map(|i| Curve {
            name: "curve ".repeat(1 + i % 4) + &i.to_string(),
            points: (0..count).map(|k| (f64::from(k) * 2.5, value())).collect(),
            drawn: if i % 3 == 2 { Drawn::Points } else { Drawn::Line },
        });
        let curves: Vec<Curve> = curves.collect();
        let marks = (0..round % 4).map(|i| Mark { x: 3.0 * i as f64, label: "a mark".to_owned() }).collect();
        let columns: Vec<f64> = (0..count).map(|k| f64::from(k) * 3.0).collect();
        let rows =
            (0..round % 50).map(|i| (format!("row {i}"), columns.iter().map(|_| Some(value())).collect()));
        let rows: Vec<(String, Vec<Option<f64>>)> = rows.collect();
        let bars = rows.iter().map(|(name, row)| Bar {
            name: name.clone(),
            values: row.iter().take(2).map(|v| v.unwrap_or(0.0)).collect(),
        });
        let parts = vec!["one".to_owned(), "two".to_owned()];
        let point = |(x, y): &(f64, f64)| deltaloom_report::Point { label: "point".to_owned(), x: *x, y: *y };
        let groups = curves
            .iter()
            .map(|curve| (curve.name.clone(), curve.points.iter().take(40).map(point).collect()));
        let figures = [
            Figure::Scatter(Scatter { x: axis(0), y: axis(1), groups: groups.collect() }),
            Figure::Bars(Bars {
                axis: axis(2),
                parts,
                bars: bars.collect(),
                arrangement: [deltaloom_report::Arrangement::Beside, deltaloom_report::Arrangement::Stacked]
                    [round % 2],
            }),
            Figure::HeatMap(HeatMap { x: axis(2), value: axis(1), columns, rows }),
            Figure::Lines(Lines { x: axis(3), y: axis(4), curves, marks }),
        ];
        for figure in figures {
            let svg = standalone(&figure, "title");
            assert!(!svg.contains("NaN") && !svg.contains("\"inf") && !svg.contains("-inf"), "{figure:?}");
            assert_no_overlap(&svg);
        }
    }
}

#[test]
fn events_have_every_step_and_layer() {
    let folder = tempfile::tempdir().unwrap();
    let summary = series(20, 2);
    let mut events = EventWriter::create(folder.path(), 5.0).unwrap();
    let path = events.path().to_path_buf();
    series_events(&summary.steps, &health(&summary.steps, &summary.rule), &mut events).unwrap();
    events.finish().unwrap();
    let bytes = std::fs::read(path).unwrap();
    let count = |tag: &str| bytes.windows(tag.len()).filter(|window| *window == tag.as_bytes()).count();
    assert_eq!(count("series/ratio"), 20);
    assert_eq!(count("series/changed_fraction"), 19, "all but the keyframe");
    assert_eq!(count("changed_fraction/model.layers.1"), 19);
}

#[test]
fn a_page_is_markdown_too() {
    let mut table = Table::new(&["name", "size"]);
    table.rows.push(vec![Cell::text("a|b\n*c*"), Cell::Value(12_345.0, Unit::Bytes)]);
    table.rows.push(vec![Cell::text("plain"), Cell::Empty]);
    let section = Section {
        heading: "Sizes".to_owned(),
        text: "Of `all`.".to_owned(),
        table: Some(table),
        ..Section::default()
    };
    let page = Page { title: "A title".to_owned(), subtitle: String::new(), sections: vec![section] };
    assert_eq!(
        page.markdown(),
        "# A title\n\n## Sizes\n\nOf `all`.\n\n| name | size |\n| --- | ---: |\n\
         | a\\|b \\*c\\* | 12.3\u{a0}kB |\n| plain | – |\n"
    );
}
