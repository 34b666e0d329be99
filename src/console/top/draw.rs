//! The screen of `top`. Pure: a state and a size give cells.

use super::state::{LogLine, State, Tab};
use crate::console::lines::harmless;
use crate::console::live::frame::{self, Paint, ascii, cut, frame};
use crate::console::live::terminal::{Abilities, Size};
use crate::event::{Gravity, Reading};
use crate::time::human;
use crate::view::now::Process;
use crate::view::phrases::{self, Tone};
use crate::view::series::{Metric, Spans, Track};
use crate::view::snapshot::Standing;
use crate::view::units::{bytes, count, figure};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use std::collections::BTreeMap;
use std::time::Duration;

/// Rows of a chart, its title among them.
const CHART: usize = 5;

/// The narrowest chart.
const CHART_WIDTH: usize = 36;

/// What does not change between two screens.
#[derive(Debug, Clone)]
pub struct Look {
    /// What may be sent to the terminal.
    pub able: Abilities,
    /// The run folder.
    pub run: String,
}

/// How the screen is divided.
#[derive(Debug, Clone, Copy)]
struct Parts {
    head: usize,
    charts: usize,
    columns: usize,
    panel: usize,
}

fn parts(size: Size) -> Parts {
    let head = match size.rows {
        _ if size.rows >= 20 => 6,
        _ if size.rows >= 10 => 4,
        _ => 2,
    };
    // Keys, tabs, and some lines of the panel always stay.
    let free = size.rows.saturating_sub(head + 2 + 6);
    let rows = (free / CHART).min(if size.rows >= 34 { 3 } else { 2 });
    let columns = (size.columns / CHART_WIDTH).clamp(1, 3);
    let charts = rows * CHART;
    Parts { head, charts, columns, panel: size.rows.saturating_sub(head + charts + 2) }
}

/// Lines of the panel.
pub fn page(size: Size) -> usize {
    parts(size).panel
}

/// Lines that the present tab has to show.
pub fn lines(state: &State, look: &Look, size: Size) -> usize {
    match state.tab {
        Tab::Log => state.log.len(),
        _ => panel(state, look, size).len(),
    }
}

/// Draws everything.
pub fn draw(target: &mut Frame<'_>, state: &State, look: &Look, at: Duration) {
    let area = target.area();
    let size = Size { columns: area.width.into(), rows: area.height.into() };
    let p = parts(size);
    let rows =
        [p.head, p.charts, 1, p.panel, 1].map(|n| Constraint::Length(u16::try_from(n).unwrap_or(u16::MAX)));
    let [head_at, charts_at, tabs_at, panel_at, keys_at] = Layout::vertical(rows).areas(area);
    let show = |target: &mut Frame<'_>, lines: Vec<Line<'static>>, at: Rect| {
        target.render_widget(Paragraph::new(lines), at);
    };
    show(target, head(state, look, at, Size { columns: size.columns, rows: p.head }), head_at);
    if p.charts > 0 {
        for (index, lines) in
            charts(state, look, p.charts / CHART * p.columns, size.columns / p.columns, CHART)
                .into_iter()
                .enumerate()
        {
            let width = charts_at.width / u16::try_from(p.columns).unwrap_or(1).max(1);
            let (row, column) = (index / p.columns, index % p.columns);
            let (row, column) = (u16::try_from(row * CHART).unwrap_or(0), u16::try_from(column).unwrap_or(0));
            let cell = Rect {
                x: charts_at.x + column * width,
                y: charts_at.y + row,
                width,
                height: u16::try_from(CHART).unwrap_or(1),
            };
            show(target, lines, cell.intersection(charts_at));
        }
    }
    show(target, vec![tabs(state, look, size.columns)], tabs_at);
    let lines = match state.tab {
        Tab::Log => log(state, look, size.columns, p.panel),
        _ => {
            let all = panel(state, look, size);
            // These are read from the beginning; scrolling "back" goes on in them.
            let from = state.back.min(all.len().saturating_sub(p.panel));
            all.into_iter().skip(from).take(p.panel).collect()
        }
    };
    show(target, lines, panel_at);
    show(target, vec![keys(look, size.columns)], keys_at);
}

fn style(paint: Paint, able: Abilities) -> Style {
    if !able.color {
        return Style::default();
    }
    match paint {
        Paint::Faint => Style::default().add_modifier(Modifier::DIM),
        Paint::Strong => Style::default().add_modifier(Modifier::BOLD),
        Paint::Tone(Tone::Good) => Style::default().fg(Color::Green),
        Paint::Tone(Tone::Plain) => Style::default(),
        Paint::Tone(Tone::Doubtful) => Style::default().fg(Color::Yellow),
        Paint::Tone(Tone::Bad) => Style::default().fg(Color::Red),
    }
}

fn span(paint: Paint, text: &str, able: Abilities) -> Span<'static> {
    let text = harmless(text);
    Span::styled(if able.unicode { text } else { ascii(&text) }, style(paint, able))
}

fn plain(tone: Tone, text: &str, width: usize, able: Abilities) -> Line<'static> {
    Line::from(span(Paint::Tone(tone), &cut(text, width), able))
}

fn head(state: &State, look: &Look, at: Duration, size: Size) -> Vec<Line<'static>> {
    let (tone, word) = match state.standing() {
        Standing::Running => (Tone::Plain, "running"),
        Standing::Finished => (Tone::Plain, "finished"),
        Standing::Interrupted if state.now.guard_died => {
            (Tone::Bad, "the guard died, and what it had left was ended")
        }
        Standing::Interrupted => (Tone::Bad, "the guard is gone: nobody watches this run any more"),
    };
    let room = size.columns.saturating_sub(word.len() + 3);
    let name = if look.run.chars().count() > room {
        // The end of a path says more than its beginning.
        look.run.rsplit('/').next().unwrap_or_default().to_owned()
    } else {
        look.run.clone()
    };
    let mut out = vec![Line::from(vec![
        span(Paint::Tone(tone), &cut(word, size.columns), look.able),
        span(Paint::Faint, &cut(&format!("  {name}"), room + 2), look.able),
    ])];
    if let Some(trouble) = &state.trouble {
        out.push(plain(Tone::Bad, trouble, size.columns, look.able));
    }
    let rest = size.rows.saturating_sub(out.len());
    let view = frame(&state.now, at, Size { columns: size.columns, rows: rest + 2 }, look.able);
    out.extend(view.into_iter().take(rest).map(|line| {
        Line::from(line.iter().map(|part| span(part.paint, &part.text, look.able)).collect::<Vec<_>>())
    }));
    out
}

/// A chart's title, metric and unit; several metrics are tried until one has values.
const CHARTS: [(&str, &[Metric], &str); 9] = [
    ("tokens/s", &[Metric::OutputRate, Metric::PieceRate], ""),
    ("TTFT", &[Metric::TtftMedian], " ms"),
    ("open requests", &[Metric::Open], ""),
    ("GPU busy", &[Metric::GpuUtil], " %"),
    ("GPU memory", &[Metric::GpuMemory], "B"),
    ("KV cache", &[Metric::KvUsage], " %"),
    ("resident memory", &[Metric::Rss], "B"),
    ("busy cores", &[Metric::Cores], ""),
    ("prompt tokens/s", &[Metric::PromptRate], ""),
];

/// Up to `most` charts; the first ones are the most telling, and one without a value is left out.
fn charts(state: &State, look: &Look, most: usize, width: usize, rows: usize) -> Vec<Vec<Line<'static>>> {
    let Some(track) = state.track() else {
        return vec![vec![plain(Tone::Plain, " no measurements yet", width, look.able)]];
    };
    let mut out: Vec<Vec<Line<'static>>> = Vec::new();
    for (title, metrics, unit) in CHARTS {
        if let Some(metric) = metrics.iter().find(|metric| track.has(**metric)) {
            out.push(chart(track, title, *metric, unit, look, width, rows));
        }
        if out.len() == 2 && state.now.profiling {
            out.push(windows(state, track, look, width));
        }
    }
    if out.is_empty() {
        out.push(vec![plain(Tone::Plain, " no measurements yet", width, look.able)]);
    }
    out.truncate(most);
    out
}

fn number(value: f64, unit: &str) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes for people")]
    if unit == "B" { bytes(value.max(0.0) as u64) } else { format!("{}{unit}", figure(value)) }
}

/// For each column the mean of what fell into it; none where nothing was measured.
fn resample(track: &Track, metric: Metric, columns: usize) -> Vec<Option<f64>> {
    let bins = track.bins(metric);
    let length = track.length().as_secs_f64().max(track.width.as_secs_f64());
    let mut sums = vec![(0.0, 0_u32); columns];
    for bin in bins {
        if let (Some(mean), Some(moment)) = (bin.mean(), bin.moment()) {
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a column"
            )]
            let column = ((moment / length * columns as f64) as usize).min(columns.saturating_sub(1));
            if let Some((sum, n)) = sums.get_mut(column) {
                *sum += mean;
                *n += 1;
            }
        }
    }
    let mut out: Vec<Option<f64>> =
        sums.iter().map(|(sum, n)| (*n > 0).then(|| sum / f64::from(*n))).collect();
    // Fewer samples than columns: a value holds until the next one, as long as that is near.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "columns"
    )]
    let near = (columns as f64 * (track.width.as_secs_f64() * 2.0).max(3.0) / length).ceil() as usize;
    let mut since = usize::MAX;
    for column in 0..out.len() {
        if out[column].is_some() {
            since = 0;
        } else if since < near {
            since += 1;
            out[column] = out[column - 1];
        }
    }
    out
}

fn chart(
    track: &Track,
    title: &str,
    metric: Metric,
    unit: &str,
    look: &Look,
    width: usize,
    rows: usize,
) -> Vec<Line<'static>> {
    let columns = width.saturating_sub(2);
    let values = resample(track, metric, columns);
    let top = values.iter().flatten().copied().fold(0.0_f64, f64::max);
    let last = values.iter().rev().flatten().next().copied();
    let said = last.map_or_else(String::new, |last| number(last, unit));
    let mut out = vec![Line::from(vec![
        span(Paint::Strong, &cut(&format!(" {title} {said}"), columns), look.able),
        span(
            Paint::Faint,
            &cut(
                &format!(", at most {}", number(top, unit)),
                columns.saturating_sub(title.len() + said.len() + 2),
            ),
            look.able,
        ),
    ])];
    let height = rows.saturating_sub(2).max(1);
    for row in (0..height).rev() {
        let text: String =
            values.iter().map(|value| cell(*value, top, row, height, look.able.unicode)).collect();
        out.push(Line::from(span(Paint::Tone(Tone::Plain), &format!(" {text}"), look.able)));
    }
    out
}

/// One character of a bar: how full this row of it is.
fn cell(value: Option<f64>, top: f64, row: usize, height: usize, unicode: bool) -> char {
    const UNICODE: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    const ASCII: [char; 9] = [' ', '_', '_', '.', '.', ':', ':', '#', '#'];
    let Some(value) = value else { return ' ' };
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most eight"
    )]
    let eighths = {
        let full = if top > 0.0 { value / top * height as f64 } else { 0.0 };
        // What was measured is seen, also a zero.
        let least = if row == 0 { 1.0 } else { 0.0 };
        ((full - row as f64) * 8.0).round().clamp(least, 8.0) as usize
    };
    if unicode { UNICODE[eighths] } else { ASCII[eighths] }
}

fn windows(state: &State, track: &Track, look: &Look, width: usize) -> Vec<Line<'static>> {
    let columns = width.saturating_sub(2);
    let said = phrases::windows(&state.now).map_or_else(|| "no window yet".to_owned(), |(_, text)| text);
    let mut out = vec![Line::from(span(Paint::Strong, &cut(&format!(" {said}"), columns), look.able))];
    let label = 9.min(columns / 3);
    for (name, spans, paint) in [
        ("record", &track.windows, Tone::Good),
        ("write", &track.flushes, Tone::Doubtful),
        ("still", &track.pauses, Tone::Bad),
    ] {
        let text = band(spans, track.length(), columns.saturating_sub(label), look.able.unicode);
        out.push(Line::from(vec![
            span(Paint::Faint, &format!(" {name:<w$}", w = label.saturating_sub(1)), look.able),
            span(Paint::Tone(paint), &text, look.able),
        ]));
    }
    out
}

fn band(spans: &Spans, length: Duration, columns: usize, unicode: bool) -> String {
    let (full, empty) = if unicode { ('█', '·') } else { ('#', '.') };
    let mut out = vec![empty; columns];
    let length = length.as_secs_f64().max(0.001);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a column"
    )]
    let column =
        |at: Duration| ((at.as_secs_f64() / length * columns as f64) as usize).min(columns.saturating_sub(1));
    for (from, to) in spans.list() {
        let (from, to) = (column(*from), column(*to));
        if let Some(cells) = out.get_mut(from..=to) {
            cells.fill(full);
        }
    }
    out.into_iter().collect()
}

fn tabs(state: &State, look: &Look, width: usize) -> Line<'static> {
    let dash = if look.able.unicode { "─" } else { "-" };
    let mut spans = vec![span(Paint::Faint, dash, look.able)];
    let mut used = 1;
    for (tab, _, name) in Tab::ALL {
        let marked = match tab {
            Tab::Findings if state.now.findings_count > 0 => {
                format!("{name} {}", count(state.now.findings_count))
            }
            _ => name.to_owned(),
        };
        let is_shown = tab == state.tab;
        let text = if is_shown { format!("[{marked}]") } else { format!(" {marked} ") };
        used += text.chars().count() + 1;
        spans.push(span(if is_shown { Paint::Strong } else { Paint::Faint }, &text, look.able));
        spans.push(span(Paint::Faint, dash, look.able));
    }
    spans.push(span(Paint::Faint, &dash.repeat(width.saturating_sub(used)), look.able));
    Line::from(spans)
}

fn keys(look: &Look, width: usize) -> Line<'static> {
    let arrows = if look.able.unicode { "↑↓" } else { "up/down" };
    let long = format!(
        "q quit  Tab next  l log  c charts  p processes  g GPUs  f findings  {arrows} PgUp/PgDn scroll  End follow"
    );
    let middle = format!("q quit  Tab  l log  c charts  p proc  g GPU  f findings  {arrows} scroll  End");
    let short = format!("q quit  l c p g f Tab  {arrows} End");
    let fits = [long, middle, short].into_iter().find(|text| text.chars().count() <= width);
    plain(Tone::Plain, &fits.unwrap_or_else(|| "q quit".to_owned()), width, look.able)
}

fn log(state: &State, look: &Look, width: usize, rows: usize) -> Vec<Line<'static>> {
    if state.log.is_empty() {
        return vec![plain(Tone::Plain, " the server has written nothing yet", width, look.able)];
    }
    let end = state.log.len().saturating_sub(state.back);
    let from = end.saturating_sub(rows);
    state.log.range(from..end).map(|line| log_line(state, line, look, width)).collect()
}

fn log_line(state: &State, line: &LogLine, look: &Look, width: usize) -> Line<'static> {
    let (mark, tone) = match state.mark(line) {
        Some(Gravity::Fatal) => ("!! ", Tone::Bad),
        Some(Gravity::Suspect) => ("!  ", Tone::Doubtful),
        Some(Gravity::Consequence) => ("~  ", Tone::Plain),
        Some(Gravity::Harmless) | None => ("   ", Tone::Plain),
    };
    let text = uncoloured(&line.text);
    Line::from(vec![
        span(Paint::Tone(tone), mark, look.able),
        span(Paint::Tone(tone), &cut(&text, width.saturating_sub(3)), look.able),
    ])
}

/// Without escape sequences (`ESC [ ... letter`).
fn uncoloured(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' && chars.peek() == Some(&'[') {
            chars.by_ref().skip(1).find(|c| ('@'..='~').contains(c));
        } else {
            out.push(if c == '\t' { ' ' } else { c });
        }
    }
    out
}

/// All lines of a tab that is not the log.
fn panel(state: &State, look: &Look, size: Size) -> Vec<Line<'static>> {
    let width = size.columns;
    let say = |tone, text: &str| plain(tone, text, width, look.able);
    match state.tab {
        Tab::Log => Vec::new(),
        Tab::Charts => charts(state, look, usize::MAX, width, CHART).into_iter().flatten().collect(),
        Tab::Processes => {
            let mut out = vec![say(Tone::Plain, "     PID  S      CPU        RSS  THREADS  COMMAND")];
            tree(state, |text| out.push(say(Tone::Plain, &text)));
            if out.len() == 1 {
                out = vec![say(Tone::Plain, " no process of the server is alive")];
            }
            out
        }
        Tab::Gpus => gpus(state).iter().map(|text| say(Tone::Plain, text)).collect(),
        Tab::Findings => findings(state)
            .into_iter()
            .flat_map(|(tone, text)| {
                frame::wrap(&harmless(&text), width.saturating_sub(1), 6)
                    .into_iter()
                    .map(move |line| (tone, line))
            })
            .map(|(tone, text)| say(tone, &text))
            .collect(),
    }
}

/// Parents before their children, which stand a little to the right.
fn tree(state: &State, mut say: impl FnMut(String)) {
    let processes = &state.now.processes;
    let pids: Vec<i32> = processes.keys().map(|id| id.pid).collect();
    let mut children: BTreeMap<i32, Vec<&Process>> = BTreeMap::new();
    for process in processes.values() {
        let parent =
            if pids.contains(&process.ppid) && process.ppid != process.proc.pid { process.ppid } else { 0 };
        children.entry(parent).or_default().push(process);
    }
    let mut todo: Vec<(usize, &Process)> =
        children.remove(&0).unwrap_or_default().into_iter().rev().map(|process| (0, process)).collect();
    while let Some((depth, process)) = todo.pop() {
        let pid = process.proc.pid;
        let numbers = process.sample.as_ref().map_or_else(
            || format!("{:>3} {:>8} {:>10} {:>8}", "-", "-", "-", "-"),
            |s| {
                format!(
                    "{:>3} {:>8} {:>10} {:>8}",
                    s.state,
                    human(Duration::from_secs_f64(s.cpu_s.max(0.0))),
                    bytes(s.rss),
                    s.threads
                )
            },
        );
        let waits = process.sample.as_ref().and_then(|s| s.wchan.as_deref()).filter(|name| *name != "0");
        let waits = waits.map_or_else(String::new, |name| format!("  in {name}"));
        say(format!("{pid:>8}{numbers}  {}{}{waits}", "  ".repeat(depth.min(12)), process.comm));
        for child in children.remove(&pid).unwrap_or_default().into_iter().rev() {
            todo.push((depth + 1, child));
        }
    }
}

fn gpus(state: &State) -> Vec<String> {
    let gpus = match &state.now.gpus {
        None => return vec![" nothing is known of GPUs yet".to_owned()],
        Some(Reading::Unavailable { why }) => return vec![format!(" no GPU readings: {why}")],
        Some(Reading::Stale) => return vec![" the GPU driver does not answer any more".to_owned()],
        Some(Reading::Value(gpus)) => gpus,
    };
    let mut out = Vec::new();
    for (gpu, said) in gpus.iter().zip(phrases::gpus(&state.now)) {
        out.push(format!(" {said}"));
        let Some(d) = &gpu.details else { continue };
        let mut parts: Vec<String> = Vec::new();
        if let Some(mhz) = d.sm_mhz {
            parts
                .push(d.sm_max_mhz.map_or_else(|| format!("{mhz} MHz"), |max| format!("{mhz} of {max} MHz")));
        }
        if let Some(limits) = d.clock_limits.as_ref().filter(|limits| !limits.is_empty()) {
            parts.push(format!("held down by {}", limits.join(", ")));
        }
        for (name, share) in [("SMs", d.sm_util), ("tensor cores", d.tensor_util), ("memory", d.dram_util)] {
            if let Some(share) = share {
                parts.push(format!("{name} {share:.0} %"));
            }
        }
        if let (Some(from), Some(to)) = (d.pcie_tx_kbs, d.pcie_rx_kbs) {
            parts.push(format!(
                "PCIe {}/s out, {}/s in",
                bytes(u64::from(from) * 1000),
                bytes(u64::from(to) * 1000)
            ));
        }
        if let Some(errors) = d.ecc_uncorrected.filter(|errors| *errors > 0) {
            parts.push(format!("{} uncorrected memory errors", count(errors)));
        }
        for holder in d.holders.iter().flatten() {
            let held = holder.bytes.map_or_else(|| "memory".to_owned(), bytes);
            parts.push(format!("pid {} holds {held}", holder.pid));
        }
        out.extend(parts.into_iter().map(|part| format!("   {part}")));
        out.extend(d.unavailable.iter().map(|why| format!("   not readable: {why}")));
    }
    out
}

fn findings(state: &State) -> Vec<(Tone, String)> {
    let now = &state.now;
    let mut out: Vec<(Tone, String)> = phrases::so_far(now).into_iter().collect();
    if let Some(verdict) = &now.verdict {
        out.push((Tone::Plain, format!("what to do: {}", verdict.advice)));
    }
    out.extend(phrases::decision(now).map(|text| (Tone::Plain, text)));
    for finding in &now.findings {
        let tone = if finding.gravity == Gravity::Fatal { Tone::Bad } else { Tone::Doubtful };
        out.push((tone, phrases::finding(finding)));
    }
    out.extend(now.trouble.iter().map(|text| (Tone::Doubtful, format!("trouble: {text}"))));
    for past in &now.past {
        let cause = past.cause.as_ref().map_or_else(String::new, |cause| format!(", {cause}"));
        out.push((
            Tone::Plain,
            format!("attempt {}: {}{cause}: {}", past.attempt, past.outcome, past.reason),
        ));
    }
    if out.is_empty() {
        out.push((Tone::Good, "nothing was found wrong".to_owned()));
    }
    out
}

#[cfg(test)]
#[path = "draw_tests.rs"]
mod tests;
