//! Figures, tables, HTML pages, TensorBoard event files, and the health of a training run. It draws
//! and judges its arguments; it reads no checkpoints and no containers.

mod figure;
mod health;
mod page;
mod series;
mod svg;
mod tensorboard;

pub use figure::{
    Arrangement, Axis, Bar, Bars, Curve, Drawn, Figure, HeatMap, Histogram, Lines, Mark, Panels, Point,
    Scale, Scatter, Stacks, Unit, Zoom,
};
pub use health::{
    Health, Layer, LayerHealth, LayerKind, StepHealth, Warning, WarningKind, WarningRule, health, median,
};
pub use page::{Cell, Page, Section, Table};
pub use series::{FrontierPoint, MethodRatios, SeriesSummary, methods_page, series_events, series_page};
pub use svg::{human, standalone};
pub use tensorboard::EventWriter;
