//! What operations say of their work: reports with stable keys, pictures, pages and event files.
//! It computes from what it is given and from container indexes; only [`weights`] reads tensors.

mod figure;
mod health;
mod pack;
mod page;
mod series;
mod svg;
mod tensorboard;
mod weights;

pub use figure::{
    Arrangement, Axis, Bar, Bars, Curve, Drawn, Figure, HeatMap, Histogram, Lines, Mark, Panels, Point,
    Scale, Scatter, Stacks, Unit, Zoom,
};
pub(crate) use health::median;
pub use health::{
    Health, Layer, LayerHealth, LayerKind, StepHealth, StepRecord, TensorRecord, Warning, WarningKind,
    WarningRule, health,
};
pub use pack::{PackReport, Share, TensorReport};
pub(crate) use pack::{ratio, report};
pub use page::{Cell, Page, Section, Table};
pub use series::{FrontierPoint, MethodRatios, SeriesSummary, methods_page, series_events, series_page};
pub use svg::{human, standalone};
pub use tensorboard::EventWriter;
pub use weights::{FieldEntropy, WeightStatistics, weights};
