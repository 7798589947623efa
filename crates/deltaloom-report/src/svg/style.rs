//! Colours of pictures, as one style sheet for light and dark.
//!
//! Pictures name only classes, and the sheet uses no variables, so that viewers other than browsers
//! show them too.

use std::fmt::Write as _;

/// Number of colours for kinds of things; further kinds reuse them with another dash.
pub(crate) const COLOURS: usize = 8;
/// Number of steps in the colour scale of heat maps.
pub(crate) const HEAT: usize = 16;

// Any two of the first six keep a distance of 0.087 (light) and 0.062 (dark) in OKLab. This holds
// under simulated protanopia, deuteranopia and tritanopia (Machado et al. 2009, severity 1). Their
// contrast to the background is at least 3.
const LIGHT: [&str; COLOURS] =
    ["#0068b5", "#e07b00", "#0b4f3a", "#9b2d8a", "#2fa39a", "#33241a", "#c4485f", "#7d8793"];
const DARK: [&str; COLOURS] =
    ["#4f9fe8", "#ffb84d", "#2a9a72", "#e36fd0", "#d6f5ec", "#c8622a", "#8a6fd8", "#8b96a3"];

// Even steps in OKLab between four colours; lightness falls (light) or rises (dark) throughout.
const HEAT_LIGHT: [&str; HEAT] = [
    "#e9eff4", "#d7e6f0", "#c5ddeb", "#b4d5e6", "#a1cce2", "#8fc3dd", "#7bb4d5", "#68a5cd", "#5496c5",
    "#3f87bd", "#2878b5", "#2467a2", "#205790", "#1b477e", "#17376d", "#13285c",
];
const HEAT_DARK: [&str; HEAT] = [
    "#222b35", "#233545", "#243e56", "#244867", "#225279", "#1f5c8b", "#266b99", "#2c7ba6", "#348bb4",
    "#3b9bc2", "#43acd0", "#6cbcd0", "#90cbce", "#b0dacc", "#d0e9c9", "#f0f7c4",
];

/// Background, text, weaker text, axes, grid lines, zero values, missing values.
struct Neutrals([&'static str; 7]);

const NEUTRAL_LIGHT: Neutrals =
    Neutrals(["#ffffff", "#1f262d", "#55606b", "#8b96a0", "#e3e7eb", "#f3d9a4", "#f6f7f8"]);
const NEUTRAL_DARK: Neutrals =
    Neutrals(["#15191e", "#e4e8ec", "#a7b1bb", "#6d7883", "#2b333b", "#8a6420", "#1a1f25"]);

fn rules(out: &mut String, colours: &[&str], heat: &[&str], neutrals: &Neutrals) {
    let Neutrals([background, text, weak, axis, grid, zero, missing]) = neutrals;
    let _ = writeln!(
        out,
        ".dl .bg{{fill:{background}}}.dl text{{fill:{text}}}.dl .w{{fill:{weak}}}.dl .ax{{stroke:{axis}}}.dl .gr{{stroke:{grid}}}.dl .hz{{fill:{zero}}}.dl .hn{{fill:{missing};stroke:{grid}}}.dl .ring{{stroke:{background}}}"
    );
    for (i, colour) in colours.iter().enumerate() {
        let _ = write!(out, ".dl .s{i}{{stroke:{colour}}}.dl .f{i}{{fill:{colour}}}");
    }
    out.push('\n');
    for (i, colour) in heat.iter().enumerate() {
        let _ = write!(out, ".dl .h{i}{{fill:{colour}}}");
    }
    out.push('\n');
}

/// The style sheet of all pictures.
pub(crate) fn sheet() -> String {
    let mut out = String::from(
        ".dl text{font:12px system-ui,-apple-system,\"Segoe UI\",Roboto,\"Helvetica Neue\",Arial,sans-serif;font-variant-numeric:tabular-nums}\n.dl rect{shape-rendering:crispEdges}.dl .b{font-weight:600}.dl .ln{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}.dl .d1{stroke-dasharray:6 4}.dl .d2{stroke-dasharray:1.5 4}.dl .ax,.dl .gr{fill:none;stroke-width:1}.dl .mk{stroke-dasharray:3 3}.dl .ring{stroke-width:1.2}.dl .hit{fill-opacity:0}.dl .hit:hover{fill-opacity:.08}\n",
    );
    rules(&mut out, &LIGHT, &HEAT_LIGHT, &NEUTRAL_LIGHT);
    out.push_str("@media (prefers-color-scheme:dark){\n");
    rules(&mut out, &DARK, &HEAT_DARK, &NEUTRAL_DARK);
    out.push_str("}\n");
    out
}
