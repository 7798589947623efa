//! Charts as plain data, for any page. It knows nothing of colours and pixels; see [`super::svg`].

/// How the values of an axis are formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unit {
    /// Plain numbers.
    Number,
    /// Whole numbers of things, such as steps, with nothing in between.
    Count,
    /// Fractions, written as percentages.
    Percent,
    /// Bytes, written as kB, MB and so on (powers of ten).
    Bytes,
    /// Seconds, written as µs, ms or s.
    Seconds,
    /// Ratios, written with two decimals and a times sign.
    Ratio,
}

/// How values are distributed along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences have equal distances.
    Linear,
    /// Equal ratios have equal distances. Zeros get their own lane next to the smallest value.
    Log,
}

/// An axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Axis {
    /// What it measures.
    pub label: String,
    /// How its values are formatted.
    pub unit: Unit,
    /// How they are distributed.
    pub scale: Scale,
}

impl Axis {
    /// Creates a linear axis.
    pub fn linear(label: impl Into<String>, unit: Unit) -> Self {
        Self { label: label.into(), unit, scale: Scale::Linear }
    }

    /// Creates a logarithmic axis.
    pub fn log(label: impl Into<String>, unit: Unit) -> Self {
        Self { label: label.into(), unit, scale: Scale::Log }
    }
}

/// How the points of a curve are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drawn {
    /// Joined by a line; a value that is not finite interrupts it.
    Line,
    /// As separate points.
    Points,
}

/// Named points, in the order of their x.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Name in the legend.
    pub name: String,
    /// Pairs of x and y.
    pub points: Vec<(f64, f64)>,
    /// How they are drawn.
    pub drawn: Drawn,
}

/// An event at an x.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    /// Its position.
    pub x: f64,
    /// Its description: in full as a tooltip, and as text if there is room.
    pub label: String,
}

/// Curves over a common axis. A curve of more than 1,000 points is thinned, keeping the smallest
/// and the largest of each interval.
#[derive(Debug, Clone, PartialEq)]
pub struct Lines {
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// The curves.
    pub curves: Vec<Curve>,
    /// Vertical marks.
    pub marks: Vec<Mark>,
}

/// Curves over common axes, each in its own panel: for more than one chart can distinguish.
#[derive(Debug, Clone, PartialEq)]
pub struct Panels {
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// The curves; their names are above the panels.
    pub curves: Vec<Curve>,
}

/// How several values of one bar are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// One below the other, each from zero.
    Beside,
    /// One after the other: the bar is their sum.
    Stacked,
}

/// A row of horizontal bars.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Name in front of the bar.
    pub name: String,
    /// One value per part.
    pub values: Vec<f64>,
}

/// Horizontal bars, for things with names.
#[derive(Debug, Clone, PartialEq)]
pub struct Bars {
    /// What the bars measure, always from zero.
    pub axis: Axis,
    /// Names of the parts; a single part has no legend.
    pub parts: Vec<String>,
    /// The bars, from top to bottom.
    pub bars: Vec<Bar>,
    /// How the parts are arranged.
    pub arrangement: Arrangement,
}

/// Columns divided into parts, side by side along an axis. More than 200 are averaged in intervals.
#[derive(Debug, Clone, PartialEq)]
pub struct Stacks {
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis, from zero.
    pub y: Axis,
    /// Positions of the columns.
    pub columns: Vec<f64>,
    /// Name of each part, and its value in each column.
    pub parts: Vec<(String, Vec<f64>)>,
}

/// Colours for values in rows and columns. More than 200 columns or 256 rows are averaged in
/// intervals.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    /// Horizontal axis.
    pub x: Axis,
    /// What the colours mean.
    pub value: Axis,
    /// Positions of the columns.
    pub columns: Vec<f64>,
    /// Name of each row, and its value in each column, if there is one.
    pub rows: Vec<(String, Vec<Option<f64>>)>,
}

/// A heat map of the whole, and more detailed pictures of its parts. A page folds them away; a
/// separate file shows only the whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Zoom {
    /// All of it.
    pub whole: HeatMap,
    /// Name and picture of each part.
    pub parts: Vec<(String, Figure)>,
}

/// How often values fall into intervals.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// The values.
    pub x: Axis,
    /// What the heights mean, from zero.
    pub y: Axis,
    /// Ends of the intervals, one more than heights.
    pub edges: Vec<f64>,
    /// The heights.
    pub heights: Vec<f64>,
}

/// A named point.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Name, written next to the point if there is room.
    pub label: String,
    /// Horizontal position.
    pub x: f64,
    /// Vertical position.
    pub y: f64,
}

/// Points of several kinds.
#[derive(Debug, Clone, PartialEq)]
pub struct Scatter {
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// Name of each kind, and its points.
    pub groups: Vec<(String, Vec<Point>)>,
}

/// A picture.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Figure {
    /// Curves.
    Lines(Lines),
    /// Curves in panels.
    Panels(Panels),
    /// Horizontal bars.
    Bars(Bars),
    /// Divided columns.
    Stacks(Stacks),
    /// Colours in rows and columns.
    HeatMap(HeatMap),
    /// Colours in rows and columns, and parts of them.
    Zoom(Zoom),
    /// Frequencies.
    Histogram(Histogram),
    /// Named points.
    Scatter(Scatter),
}
