//! One chart: a few lines over the time of an attempt, as inline SVG. Pure.
//!
//! A chart is drawn for the width of a phone and set side by side on a desk, so that its letters have one size
//! everywhere. Colours are classes; the style sheet gives them a light and a dark value.

use super::series::{Bin, Metric, Spans, Track};
use super::units::figure;
use crate::event::Phase;
use maud::{Markup, html};
use std::fmt::Write as _;
use std::time::Duration;

/// The view box.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 152.0;
/// The plot inside it.
const LEFT: f64 = 40.0;
const RIGHT: f64 = 352.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 122.0;

/// A longer silence between two values is a gap in the line.
const GAP: Duration = Duration::from_secs(5);

/// How values are written on the axis and in the legend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A count that only grows.
    Total,
    /// A count that comes and goes.
    Count,
    /// Tokens, pieces and the like per second.
    PerSecond,
    /// Milliseconds.
    Millis,
    /// 0 to 100.
    Percent,
    /// Watts.
    Watts,
    /// Bytes, told in gigabytes ...
    Bytes,
    /// ... or in megabytes, where they are few.
    Megabytes,
    /// Processor cores.
    Cores,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Total | Self::Count => "",
            Self::PerSecond => "/s",
            Self::Millis => "ms",
            Self::Percent => "%",
            Self::Watts => "W",
            Self::Bytes => "GB",
            Self::Megabytes => "MB",
            Self::Cores => "cores",
        }
    }

    fn scale(self) -> f64 {
        match self {
            Self::Bytes => 1e-9,
            Self::Megabytes => 1e-6,
            _ => 1.0,
        }
    }

    /// With the unit.
    fn text(self, value: f64) -> String {
        let shown = match self {
            Self::Total | Self::Count => figure(value.round()),
            _ => figure(value * self.scale()),
        };
        // A whole number needs no places.
        let shown = shown.strip_suffix(".00").or(shown.strip_suffix(".0")).unwrap_or(&shown);
        match self {
            Self::Total => shown.to_owned(),
            Self::Count => format!("max {shown}"),
            Self::PerSecond => format!("max {shown}/s"),
            other => format!("max {shown} {}", other.name()),
        }
    }
}

/// A line of a chart.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// What it shows.
    pub metric: Metric,
    /// Its name in the legend.
    pub name: &'static str,
    /// Its colour.
    pub class: &'static str,
    /// Whether lowest and highest are shown as a band.
    pub band: bool,
}

/// What stands behind the lines of every chart of an attempt.
#[derive(Debug, Clone, Copy)]
pub struct Backdrop<'a> {
    /// Phase, begin and end, since the attempt began.
    pub phases: &'a [(Phase, Duration, Duration)],
    /// Word for the mark.
    pub failure: &'a str,
}

/// A chart, or nothing when there is no value to show.
pub fn chart(
    track: &Track,
    title: &str,
    unit: Unit,
    lines: &[Line],
    behind: &Backdrop<'_>,
    note: Option<&str>,
) -> Option<Markup> {
    let lines: Vec<&Line> = lines
        .iter()
        .filter(|line| track.has_line(line.metric))
        // That nothing failed is no line.
        .filter(|line| line.metric != Metric::Failed || most(track.bins(line.metric)) > 0.0)
        .collect();
    if lines.is_empty() {
        return None;
    }
    let top = lines.iter().flat_map(|line| track.bins(line.metric)).filter(|bin| bin.n > 0);
    let highest = top.map(|bin| bin.max).fold(0.0, f64::max);
    let unit = if unit == Unit::Bytes && highest < 1e9 { Unit::Megabytes } else { unit };
    let highest = highest * unit.scale();
    let (step, high) = if unit == Unit::Percent { (50.0, 100.0_f64.max(highest)) } else { ceiling(highest) };
    let x = Scale { from: 0.0, to: seconds(track), low: LEFT, high: RIGHT };
    let y = Scale { from: 0.0, to: high, low: BOTTOM, high: TOP };
    let said: Vec<String> = lines
        .iter()
        .map(|line| format!("{} {}", line.name, unit.text(most(track.bins(line.metric)))))
        .collect();
    let label = format!("{title}: {}", said.join(", "));
    Some(html! {
        figure.chart {
            figcaption {
                b { (title) } @if !unit.name().is_empty() { " " span.unit { "(" (unit.name()) ")" } }
                span.legend {
                    @for line in &lines {
                        span.key { i.swatch.(line.class) {} (line.name) " " span.most { (unit.text(most(track.bins(line.metric)))) } }
                    }
                }
            }
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(label) {
                (backdrop(track, &x, behind))
                (axis_y(&y, step, high))
                (axis_x(&x))
                @for line in &lines {
                    (draw(track, line, unit, &x, &y))
                }
                (mark(track, &x, behind.failure))
            }
            p.note { @if let Some(note) = note { (note) } }
        }
    })
}

fn most(bins: &[Bin]) -> f64 {
    bins.iter().filter(|bin| bin.n > 0).map(|bin| bin.max).fold(0.0, f64::max)
}

/// The length of the attempt in seconds; never nothing, because it is divided by.
fn seconds(track: &Track) -> f64 {
    track.length().as_secs_f64().max(0.001)
}

struct Scale {
    from: f64,
    to: f64,
    low: f64,
    high: f64,
}

impl Scale {
    fn at(&self, value: f64) -> f64 {
        let share = ((value - self.from) / (self.to - self.from)).clamp(0.0, 1.0);
        self.low + share * (self.high - self.low)
    }
}

/// The step between ticks and the upper end of an axis that begins at 0: 1, 2 or 5 times a power of ten.
fn ceiling(highest: f64) -> (f64, f64) {
    if highest <= 0.0 {
        return (1.0, 1.0);
    }
    let rough = highest / 3.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|k| k * power).find(|s| *s >= rough).unwrap_or(rough);
    (step, (highest / step).ceil() * step)
}

/// Seconds between ticks, and the unit they are told in.
fn time_step(length: f64) -> (f64, f64, &'static str) {
    const STEPS: [f64; 26] = [
        0.05,
        0.1,
        0.2,
        0.5,
        1.0,
        2.0,
        5.0,
        10.0,
        15.0,
        30.0,
        60.0,
        120.0,
        300.0,
        600.0,
        900.0,
        1800.0,
        3600.0,
        7200.0,
        10800.0,
        21600.0,
        43200.0,
        86400.0,
        172_800.0,
        345_600.0,
        691_200.0,
        1_382_400.0,
    ];
    let step = STEPS.into_iter().find(|step| length / step <= 6.0).unwrap_or(length / 4.0);
    match step {
        _ if step < 60.0 => (step, 1.0, "s"),
        _ if step < 3600.0 => (step, 60.0, "min"),
        _ => (step, 3600.0, "h"),
    }
}

fn axis_y(y: &Scale, step: f64, high: f64) -> Markup {
    let ticks = (0..=8).map(|n| f64::from(n) * step).filter(|tick| *tick <= high * 1.0001);
    html! {
        g.axis {
            @for tick in ticks {
                line x1=(LEFT) x2=(RIGHT) y1=(short(y.at(tick))) y2=(short(y.at(tick))) {}
                text.y x=(LEFT - 5.0) y=(short(y.at(tick) + 3.5)) { (tick_text(tick)) }
            }
        }
    }
}

/// As short as a margin of 40 units wants it.
fn tick_text(tick: f64) -> String {
    let trim = |text: String| {
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    };
    match tick {
        _ if tick >= 1e6 => format!("{}M", trim(format!("{:.2}", tick / 1e6))),
        _ if tick >= 1e4 => format!("{}k", trim(format!("{:.1}", tick / 1e3))),
        _ if tick >= 1000.0 => figure(tick),
        _ => trim(format!("{tick:.4}")),
    }
}

fn axis_x(x: &Scale) -> Markup {
    let (step, per, unit) = time_step(x.to);
    let ticks: Vec<f64> =
        (0..=8).map(|n| f64::from(n) * step).take_while(|tick| *tick <= x.to * 1.0001).collect();
    let last = ticks.len().saturating_sub(1);
    html! {
        g.axis {
            @for (index, tick) in ticks.iter().enumerate() {
                text.x x=(short(x.at(*tick).min(RIGHT - 6.0))) y=(HEIGHT - 8.0) {
                    (tick_text(tick / per)) @if index == last { " " (unit) }
                }
            }
        }
    }
}

fn backdrop(track: &Track, x: &Scale, behind: &Backdrop<'_>) -> Markup {
    let stretch = |from: Duration, to: Duration| {
        let (left, right) = (x.at(from.as_secs_f64()), x.at(to.as_secs_f64()));
        (short(left), short((right - left).max(1.0)))
    };
    // One row for the windows and one for their flushes: where many are joined, neither hides the other.
    let strip = |spans: &Spans, y: &str| {
        let mut path = String::new();
        for (from, to) in spans.list() {
            let (left, width) = stretch(*from, *to);
            let _ = write!(path, "M{left} {y}h{width}v3h-{width}z");
        }
        path
    };
    html! {
        @for (class, spans) in [("pause", &track.pauses), ("still", &track.stills)] {
            @for (from, to) in spans.list() {
                @let (left, width) = stretch(*from, *to);
                rect.(class) x=(left) y=(TOP) width=(width) height=(BOTTOM - TOP) {}
            }
        }
        @for (phase, from, to) in behind.phases {
            @let (left, width) = stretch(*from, *to);
            rect.{ "ph-" (phase) } x=(left) y=(BOTTOM + 3.0) width=(width) height="4" {}
        }
        @if !track.windows.list().is_empty() { path.window d=(strip(&track.windows, "2")) {} }
        @if !track.flushes.list().is_empty() { path.flush d=(strip(&track.flushes, "6")) {} }
    }
}

fn mark(track: &Track, x: &Scale, word: &str) -> Markup {
    let Some(at) = track.failed_at else { return html! {} };
    let at = x.at(at.as_secs_f64());
    let (anchor, place) = if at > (LEFT + RIGHT) / 2.0 { ("end", at - 4.0) } else { ("start", at + 4.0) };
    html! {
        g.failure {
            line x1=(short(at)) x2=(short(at)) y1=(TOP - 3.0) y2=(BOTTOM + 7.0) {}
            text x=(short(place)) y=(TOP + 8.0) text-anchor=(anchor) { (word) }
        }
    }
}

/// A stretch of bins without a gap.
fn stretches(track: &Track, metric: Metric) -> Vec<Vec<(f64, Bin)>> {
    let mut out: Vec<Vec<(f64, Bin)>> = Vec::new();
    let mut last: Option<usize> = None;
    let width = track.width.as_secs_f64();
    let gap = (GAP.as_secs_f64() / width).max(4.0);
    let mut lost = true;
    for (index, bin) in track.bins(metric).iter().enumerate() {
        if bin.n > 0 {
            #[expect(clippy::cast_precision_loss, reason = "a few hundred bins")]
            let silent = last.map_or(f64::MAX, |last| (index - last) as f64);
            let point = (bin.moment().unwrap_or_default(), *bin);
            match out.last_mut() {
                Some(stretch) if !lost && silent <= gap => stretch.push(point),
                _ => out.push(vec![point]),
            }
            last = Some(index);
            lost = false;
        }
        lost |= bin.lost;
    }
    out
}

fn draw(track: &Track, line: &Line, unit: Unit, x: &Scale, y: &Scale) -> Markup {
    let scale = unit.scale();
    let (mut path, mut band) = (String::new(), String::new());
    let mut dots = Vec::new();
    for stretch in stretches(track, line.metric) {
        let place = |at: f64, value: f64| (short(x.at(at)), short(y.at(value * scale)));
        let middle = |bin: &Bin| if unit == Unit::Total { bin.max } else { bin.mean().unwrap_or_default() };
        if let [(at, bin)] = stretch.as_slice() {
            dots.push(place(*at, middle(bin)));
            continue;
        }
        for (index, (at, bin)) in stretch.iter().enumerate() {
            let (px, py) = place(*at, middle(bin));
            let _ = write!(path, "{}{px} {py}", if index == 0 { 'M' } else { 'L' });
        }
        if line.band {
            for (index, (at, bin)) in stretch.iter().enumerate() {
                let (px, py) = place(*at, bin.max);
                let _ = write!(band, "{}{px} {py}", if index == 0 { 'M' } else { 'L' });
            }
            for (at, bin) in stretch.iter().rev() {
                let (px, py) = place(*at, bin.min);
                let _ = write!(band, "L{px} {py}");
            }
            band.push('z');
        }
    }
    html! {
        @if !band.is_empty() { path.band.(line.class) d=(band) {} }
        @if !path.is_empty() { path.line.(line.class) d=(path) {} }
        @for (px, py) in dots { circle.dot.(line.class) cx=(px) cy=(py) r="2" {} }
    }
}

/// A coordinate with one place, without the place where it is 0.
fn short(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_at_a_round_number_above_the_highest_value() {
        for (highest, step, high) in [
            (0.0, 1.0, 1.0),
            (0.7, 0.5, 1.0),
            (1.0, 0.5, 1.0),
            (7.0, 5.0, 10.0),
            (97.0, 50.0, 100.0),
            (1234.0, 500.0, 1500.0),
            (31_000.0, 20_000.0, 40_000.0),
        ] {
            let (s, h) = ceiling(highest);
            assert!((s - step).abs() < 1e-9 && (h - high).abs() < 1e-9, "{highest}: {s}, {h}");
        }
    }

    #[test]
    fn time_is_told_in_the_unit_that_fits_it() {
        for (length, step, unit) in [
            (0.4, 0.1, "s"),
            (3.0, 0.5, "s"),
            (95.0, 30.0, "s"),
            (400.0, 120.0, "min"),
            (30_000.0, 7200.0, "h"),
        ] {
            let (s, _, u) = time_step(length);
            assert!((s - step).abs() < 1e-9 && u == unit, "{length}: {s} {u}");
        }
    }

    #[test]
    fn ticks_are_short() {
        let shown: Vec<String> = [0.0, 0.5, 2.5, 100.0, 1500.0, 20_000.0, 2_500_000.0].map(tick_text).into();
        assert_eq!(shown, ["0", "0.5", "2.5", "100", "1,500", "20k", "2.5M"]);
    }
}
