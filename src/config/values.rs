//! Values as people write them. Pure.

use std::time::Duration;

/// No budget and no pause is longer; sums of some of them still fit into every clock.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// `90s`, `10m`, `1h 30m`, `500ms`, to the microsecond. A number without a unit is refused, because people mean different things
/// by it.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(format!("`{text}` has no unit: write `{text}s` or `{text}m`"));
    }
    let span: jiff::SignedDuration = text
        .parse()
        .map_err(|_| format!("`{text}` is not a duration: write one like `90s`, `10m` or `1h 30m`"))?;
    let span = Duration::try_from(span).map_err(|_| format!("`{text}` is negative"))?;
    if span > LONGEST {
        return Err(format!("`{text}` is longer than a year"));
    }
    // The journal keeps microseconds, and a replay must see what the run saw.
    Ok(Duration::from_nanos(u64::from(span.subsec_micros()) * 1000) + Duration::from_secs(span.as_secs()))
}

/// `; did you mean `x`?` when something near exists.
pub fn suggestion(given: &str, known: &[&str]) -> String {
    known
        .iter()
        .map(|word| (strsim::damerau_levenshtein(given, word), word))
        .filter(|(distance, word)| *distance <= (word.len() / 3).max(2))
        .min()
        .map(|(_, word)| format!("; did you mean `{word}`?"))
        .unwrap_or_default()
}
