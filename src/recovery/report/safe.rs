//! Text of a log on a page: what a browser, a terminal or a reader could take for something else is made visible.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Control characters become their pictures, and letters that turn the direction of the text become a mark: a log must
/// not be able to hide or reorder what stands beside it. Tabs and line breaks stay.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| {
        (c.is_control() && !matches!(c, '\n' | '\t'))
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    let picture = |c: char| match c {
        '\r' => '\n',
        c if c < ' ' => char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}'),
        '\u{7f}' => '\u{2421}',
        _ => '\u{fffd}',
    };
    let text = without_colours(text).replace("\r\n", "\n");
    Cow::Owned(text.chars().map(|c| if harmful(c) { picture(c) } else { c }).collect())
}

/// Without the escape sequences by which a terminal is coloured.
fn without_colours(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut parts = text.split("\u{1b}[");
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        match part.find(|c: char| !matches!(c, '0'..='9' | ';')) {
            Some(end) if part[end..].starts_with(['m', 'K']) => out.push_str(&part[end + 1..]),
            _ => {
                out.push('\u{1b}');
                out.push('[');
                out.push_str(part);
            }
        }
    }
    out
}

/// A path below the run folder as a link that stays there: every byte but the plain ones is percent-encoded, and what
/// would climb out is taken away.
pub(super) fn relative(path: &str) -> String {
    let mut out = String::new();
    for part in path.split('/').filter(|part| !matches!(*part, "" | "." | "..")) {
        if !out.is_empty() {
            out.push('/');
        }
        for byte in part.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
                _ => {
                    let _ = write!(out, "%{byte:02X}");
                }
            }
        }
    }
    out
}

/// Where it is known from, if that is a place on the web that a person may follow.
pub(super) fn web(text: &str) -> Option<&str> {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '<' | '>' | '\\');
    (text.starts_with("https://") && text.chars().all(plain)).then_some(text)
}

/// What stands for a secret.
pub(super) const HIDDEN: &str = "\u{2022}\u{2022}\u{2022} (not shown)";

/// A value that would be a pity to show to whoever gets to read a report.
pub(super) fn secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let name = name.trim_start_matches('-').replace('-', "_");
    let ends = ["TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIALS", "API_KEYS"];
    ends.iter().any(|end| name == *end || name.ends_with(&format!("_{end}")))
}

/// A command line without its secrets.
pub(super) fn command_line(argv: &[String]) -> Vec<String> {
    let mut out = Vec::with_capacity(argv.len());
    let mut hide = false;
    for word in argv {
        let flag = word.starts_with("--");
        if hide && !flag {
            out.push(HIDDEN.to_owned());
        } else {
            match word.split_once('=') {
                Some((name, _)) if flag && secret(name) => out.push(format!("{name}={HIDDEN}")),
                _ => out.push(word.clone()),
            }
        }
        hide = flag && !word.contains('=') && secret(word);
    }
    out
}

/// A word as a shell would want it.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && (word.chars().all(plain) || word.ends_with(HIDDEN)) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_go_and_other_control_characters_show() {
        assert_eq!(clean("plain"), "plain");
        assert_eq!(clean("\u{1b}[1;31mred\u{1b}[0m"), "red");
        assert_eq!(clean("a\0b\u{7}c\u{1b}]0;title"), "a\u{2400}b\u{2407}c\u{241b}]0;title");
        assert_eq!(clean("50 %\r60 %\r\nend"), "50 %\n60 %\nend");
        assert_eq!(clean("safe\u{202e}gnp.exe"), "safe\u{fffd}gnp.exe");
    }

    #[test]
    fn a_link_stays_below_the_run_folder() {
        assert_eq!(relative("attempt-1/traces/a b.gz"), "attempt-1/traces/a%20b.gz");
        assert_eq!(relative("../../etc/passwd"), "etc/passwd");
        assert_eq!(relative("//evil.example/x"), "evil.example/x");
        assert_eq!(relative("javascript:alert(1)"), "javascript%3Aalert%281%29");
        assert_eq!(relative("x\"onload=\"y"), "x%22onload%3D%22y");
    }

    #[test]
    fn only_a_plain_address_is_a_link() {
        assert!(web("https://github.com/vllm-project/vllm/issues/1").is_some());
        for text in ["http://x", "javascript:alert(1)", "https://x/\"y", "our wiki", "https://x y"] {
            assert!(web(text).is_none(), "{text}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        for name in ["HF_TOKEN", "api_key", "--api-key", "AWS_SECRET_ACCESS_KEY", "PASSWORD"] {
            assert!(secret(name), "{name}");
        }
        for name in ["--tokenizer", "--max-num-batched-tokens", "VLLM_USE_V1", "KEYBOARD"] {
            assert!(!secret(name), "{name}");
        }
        let argv = ["serve", "--api-key", "abc", "--hf-token=def", "--port", "1"].map(str::to_owned);
        let shown = command_line(&argv).join(" ");
        assert!(!shown.contains("abc") && !shown.contains("def") && shown.ends_with("--port 1"), "{shown}");
    }
}
