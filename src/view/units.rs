//! Numbers for people. Pure.

/// `1.4 MB`.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        _ if n < 1e3 => format!("{n:.0} B"),
        _ if n < 1e6 => format!("{:.1} kB", n / 1e3),
        _ if n < 1e9 => format!("{:.1} MB", n / 1e6),
        _ => format!("{:.1} GB", n / 1e9),
    }
}

/// `1,234,567`: a count that can be read at a glance.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Three digits that matter: `0.012`, `1.23`, `12.3`, `123`, `1,234`.
pub fn figure(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return "?".to_owned();
    }
    match size {
        _ if size >= 1000.0 => {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it is rounded and large"
            )]
            let whole = count(size.round() as u64);
            if value < 0.0 { format!("-{whole}") } else { whole }
        }
        _ if size >= 100.0 => format!("{value:.0}"),
        _ if size >= 10.0 => format!("{value:.1}"),
        _ if size >= 1.0 => format!("{value:.2}"),
        _ if size == 0.0 => "0".to_owned(),
        _ => format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_groups_of_three() {
        let shown: Vec<String> = [0, 12, 999, 1000, 12_345, 1_234_567].map(count).into();
        assert_eq!(shown, ["0", "12", "999", "1,000", "12,345", "1,234,567"]);
    }

    #[test]
    fn figures_have_the_digits_that_matter() {
        let shown: Vec<String> =
            [0.0, 0.01234, 0.05, 0.1234, 1.234, 12.34, 123.4, 1234.5, -2000.0, f64::NAN].map(figure).into();
        assert_eq!(shown, ["0", "0.012", "0.05", "0.123", "1.23", "12.3", "123", "1,235", "-2,000", "?"]);
    }
}
