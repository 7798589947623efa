//! The page of `deltaloom lab tpde`.

use deltaloom_lab::lossy::RowReport;
use deltaloom_report::{FrontierPoint, MethodRatios, Page, SeriesSummary, methods_page};

/// The methods over a series: ratios in total and per step, bytes against error.
pub(super) fn page(rows: &[RowReport]) -> Page {
    let name = |row: &RowReport| match row.form {
        "exact" => row.method.clone(),
        form => format!("{} {form}", row.method),
    };
    let methods = rows.iter().map(|row| MethodRatios {
        name: name(row),
        total_ratio: row.ratio,
        ratios: row.steps.iter().map(|step| (step.step, step.ratio())).collect(),
    });
    #[expect(clippy::cast_precision_loss, reason = "a place in a picture")]
    let frontier = rows.iter().filter_map(|row| {
        Some(FrontierPoint {
            group: row.form.to_owned(),
            name: name(row),
            bytes: row.out_bytes as f64,
            error: row.steps.last()?.relative_state_error?,
        })
    });
    let summary = SeriesSummary {
        methods: methods.collect(),
        frontier: frontier.collect(),
        error_label: "error of the last step, relative to its update".to_owned(),
        ..SeriesSummary::default()
    };
    let subtitle = "Every row except the exact one is LOSSY: what is restored is not what was stored.";
    methods_page("Threshold methods over a series", subtitle, &summary)
}
