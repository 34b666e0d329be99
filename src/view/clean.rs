//! Text of a log on a page: what a browser, a terminal or a reader could take for something else is made visible. Pure.

use std::borrow::Cow;

/// Control characters become their pictures, and letters that turn the direction of the text become a mark: a log must
/// not be able to hide or reorder what stands beside it. Tabs and line breaks stay.
pub fn clean(text: &str) -> Cow<'_, str> {
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
}
