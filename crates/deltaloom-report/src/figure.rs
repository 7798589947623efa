//! What can be drawn: charts as plain data, for any page.
//! It knows nothing of colours and pixels; see [`super::svg`].

/// How the values of an axis are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unit {
    /// Plain numbers.
    Number,
    /// Whole numbers of things, such as steps: nothing lies between two of them.
    Count,
    /// Fractions, written as percentages.
    Percent,
    /// Bytes, written as kB, MB and so on (powers of ten).
    Bytes,
    /// Seconds, written as µs, ms or s.
    Seconds,
    /// Quotients, written with a times sign.
    Ratio,
}

/// How values are spread along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences, equal distances.
    Linear,
    /// Equal quotients, equal distances. Zeros stand in a lane of their own beside the smallest value.
    Log,
}

/// An axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Axis {
    /// What it measures.
    pub label: String,
    /// How its values are written.
    pub unit: Unit,
    /// How they are spread.
    pub scale: Scale,
}

impl Axis {
    /// A linear axis.
    pub fn linear(label: impl Into<String>, unit: Unit) -> Self {
        Self { label: label.into(), unit, scale: Scale::Linear }
    }

    /// A logarithmic axis.
    pub fn log(label: impl Into<String>, unit: Unit) -> Self {
        Self { label: label.into(), unit, scale: Scale::Log }
    }
}

/// How the points of a curve are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drawn {
    /// Joined by a line; a value that is not finite interrupts it.
    Line,
    /// Each by itself.
    Points,
}

/// Points with a name, in the order of their x.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Name in the legend.
    pub name: String,
    /// x and y.
    pub points: Vec<(f64, f64)>,
    /// How they are shown.
    pub drawn: Drawn,
}

/// Something that happened at an x.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    /// Where.
    pub x: f64,
    /// What; in full as a tooltip, and written out where there is room.
    pub label: String,
}

/// Curves over a common axis. Curves of more than 1,000 points are thinned: smallest and largest of each interval stay.
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

/// Curves over common axes, each in a panel of its own: for more than can be told apart in one.
#[derive(Debug, Clone, PartialEq)]
pub struct Panels {
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// The curves; their names stand above the panels.
    pub curves: Vec<Curve>,
}

/// How several values of one bar stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// One under the other, each from zero.
    Beside,
    /// One after the other: their sum is the bar.
    Stacked,
}

/// A row of horizontal bars.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Name in front of it.
    pub name: String,
    /// A value of each part.
    pub values: Vec<f64>,
}

/// Horizontal bars, for things with names.
#[derive(Debug, Clone, PartialEq)]
pub struct Bars {
    /// What the bars measure; always from zero.
    pub axis: Axis,
    /// Names of the parts; one without a legend.
    pub parts: Vec<String>,
    /// The bars, from above.
    pub bars: Vec<Bar>,
    /// How parts stand.
    pub arrangement: Arrangement,
}

/// Columns that are divided into parts, side by side along an axis. More than 200 are averaged in intervals.
#[derive(Debug, Clone, PartialEq)]
pub struct Stacks {
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis, from zero.
    pub y: Axis,
    /// Places of the columns.
    pub columns: Vec<f64>,
    /// Name of each part, and its value in each column.
    pub parts: Vec<(String, Vec<f64>)>,
}

/// Colours for values in rows and columns. More than 200 columns or 256 rows are averaged in intervals.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    /// Horizontal axis.
    pub x: Axis,
    /// What the colours mean.
    pub value: Axis,
    /// Places of the columns.
    pub columns: Vec<f64>,
    /// Name of each row, and its value in each column, where there is one.
    pub rows: Vec<(String, Vec<Option<f64>>)>,
}

/// A heat map of the whole, and pictures of its parts in more detail. A page shows them folded away; a file of its own has the whole alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Zoom {
    /// All of it.
    pub whole: HeatMap,
    /// Name and picture of each part.
    pub parts: Vec<(String, Figure)>,
}

/// How often values lie in intervals.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// The values.
    pub x: Axis,
    /// What the heights mean; from zero.
    pub y: Axis,
    /// Ends of the intervals, one more than heights.
    pub edges: Vec<f64>,
    /// Heights.
    pub heights: Vec<f64>,
}

/// A point with a name.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Name; written beside the point where there is room.
    pub label: String,
    /// Horizontal.
    pub x: f64,
    /// Vertical.
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
