//! Small plots as SVG: a line over equal steps of time, drawn here so that a page needs no script to show it.

use maud::{Markup, html};

/// Width and height of a plot, in its own units.
const WIDTH: u32 = 240;
const HEIGHT: u32 = 48;

/// A line of values, each a part of `top`, which is the upper edge.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// What it is, for who cannot see it.
    pub label: &'a str,
    /// Oldest first.
    pub values: &'a [f64],
    /// The upper edge.
    pub top: f64,
}

/// The corners of a line, as an attribute of SVG.
pub fn points(values: &[f64], top: f64) -> String {
    let last = values.len().saturating_sub(1).max(1);
    let corner = |(at, value): (usize, &f64)| {
        // Counts of samples are hundreds, far within what the type tells apart.
        let x = f64::from(u32::try_from(at).unwrap_or(0)) * f64::from(WIDTH) / f64::from(u32::try_from(last).unwrap_or(1));
        let part = if top > 0.0 && value.is_finite() { (value / top).clamp(0.0, 1.0) } else { 0.0 };
        format!("{x:.1},{:.1}", (1.0 - part) * f64::from(HEIGHT - 2) + 1.0)
    };
    values.iter().enumerate().map(corner).collect::<Vec<_>>().join(" ")
}

/// The plot.
pub fn line(line: Line<'_>) -> Markup {
    html! {
        svg class="plot" viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(line.label) {
            polyline points=(points(line.values, line.top)) fill="none" vector-effect="non-scaling-stroke" {}
        }
    }
}

/// Bars beside each other, each with its name: how often something was.
pub fn bars(label: &str, bars: &[(String, u64)]) -> Markup {
    let top = bars.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    let count = u32::try_from(bars.len().max(1)).unwrap_or(1);
    let width = WIDTH / count;
    html! {
        svg class="plot bars" viewBox={ "0 0 " (width * count) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(label) {
            @for (at, (name, value)) in (0_u32..).zip(bars) {
                @let height = u32::try_from(value * u64::from(HEIGHT) / top).unwrap_or(HEIGHT);
                rect x=(at * width) y=(HEIGHT - height) width=(width.saturating_sub(1)) height=(height) {
                    title { (name) ": " (value) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_within_its_frame() {
        assert_eq!(points(&[0.0, 50.0, 200.0], 100.0), "0.0,47.0 120.0,24.0 240.0,1.0");
        assert_eq!(points(&[f64::NAN], 0.0), "0.0,47.0");
        assert_eq!(points(&[], 1.0), "");
    }
}
