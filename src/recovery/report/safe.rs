//! What a browser or a reader could take for something else in paths, addresses and command lines.

use std::fmt::Write as _;

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
