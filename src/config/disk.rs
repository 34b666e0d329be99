//! How much of the disk a run may take.

use super::Plan;
use serde::{Deserialize, Serialize};

/// In bytes. None of it in journals of runs that were not limited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPlan {
    /// For the whole run folder: windows give way before it is reached, then the run is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// With less free space than this the run is stopped in good order, before a write fails in the middle of it.
    pub min_free: u64,
    /// For the server's log and what is kept of its middle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_log: Option<u64>,
}

/// A log cannot be kept shorter.
pub const LEAST_LOG: u64 = 1_000_000;

impl Default for DiskPlan {
    fn default() -> Self {
        Self { max: None, min_free: 250_000_000, max_log: Some(1_000_000_000) }
    }
}

pub(super) fn of(plan: &mut Plan) -> &mut DiskPlan {
    plan.disk.get_or_insert_default()
}

/// As [`parse_size`], at least so many bytes.
pub(super) fn parse_size_from(least: u64, text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if bytes < least { Err(format!("`{text}` is less than {}MB", least / 1_000_000)) } else { Ok(bytes) }
}

/// `500MB`, `1.5 GB`, `2GiB`. A number without a unit is refused, because people mean different things by it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = (&text[..split], text[split..].trim());
    let wrong = || format!("`{text}` is not a size: write one like `500MB`, `20GB` or `1GiB`");
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit = match unit.to_ascii_lowercase().as_str() {
        "" => return Err(format!("`{text}` has no unit: write `{text}MB` or `{text}GB`")),
        "kb" | "k" => 1e3,
        "mb" | "m" => 1e6,
        "gb" | "g" => 1e9,
        "tb" | "t" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err(wrong()),
    };
    let bytes = number * unit;
    if bytes > 1e18 {
        return Err(format!("`{text}` is larger than any disk"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    Ok(bytes.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units_and_refused_without() {
        let read: Vec<u64> =
            ["500MB", "1.5 GB", "2GiB", "1t", "0.5kb"].iter().map(|text| parse_size(text).unwrap()).collect();
        assert_eq!(read, [500_000_000, 1_500_000_000, 2 << 30, 1_000_000_000_000, 500]);
        assert_eq!(parse_size("20").unwrap_err(), "`20` has no unit: write `20MB` or `20GB`");
        for wrong in ["", "GB", "-1GB", "1.2.3GB", "5 bananas", "99999999TB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
