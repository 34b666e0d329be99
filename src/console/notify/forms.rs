//! A message in the form that somebody takes. Pure.

use super::message::Message;
use crate::config::{NotifyPlan, Occasion, placeholders};
use serde_json::json;

/// A template with its placeholders filled, each after `escape`.
fn fill(template: &str, message: &Message, escape: impl Fn(&str) -> String) -> String {
    let mut out = String::with_capacity(template.len() * 2);
    let mut rest = template;
    // What is filled in is not looked at again: a log line with braces in it stays one.
    for name in placeholders(template) {
        let token = format!("{{{name}}}");
        let Some(at) = rest.find(&token) else { continue };
        out.push_str(&rest[..at]);
        out.push_str(&escape(&message.field(name)));
        rest = &rest[at + token.len()..];
    }
    out + rest
}

/// The message as this one gets it: with title and text of their templates.
pub(super) fn addressed(target: &NotifyPlan, message: &Message) -> Message {
    let mut out = message.clone();
    let same = |text: &str| text.to_owned();
    if let Some(template) = &target.title {
        out.title = fill(template, message, same);
    }
    if let Some(template) = &target.text {
        let titled = Message { title: out.title.clone(), ..message.clone() };
        out.text = fill(template, &titled, same);
    }
    out
}

/// What a webhook gets.
pub(super) fn webhook(target: &NotifyPlan, message: &Message) -> String {
    match &target.body {
        Some(template) => fill(template, message, |text| {
            let quoted = json!(text).to_string();
            quoted[1..quoted.len() - 1].to_owned()
        }),
        None => json!(message).to_string(),
    }
}

/// What Slack gets.
pub(super) fn slack(message: &Message) -> String {
    let plain = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let sign = match message.severity.as_str() {
        "error" => ":red_circle:",
        "warning" => ":large_orange_circle:",
        _ => ":large_green_circle:",
    };
    let text =
        format!("{sign} *{}*\n{}\n_{}_", plain(&message.title), plain(&message.text), plain(&foot(message)));
    json!({ "text": text }).to_string()
}

/// What ntfy gets: headers and body.
pub(super) fn ntfy(message: &Message) -> (Vec<(&'static str, String)>, String) {
    let priority = match message.severity.as_str() {
        "error" => "4",
        "warning" => "3",
        _ => "2",
    };
    let tag = match message.occasion {
        Occasion::Success => "white_check_mark",
        Occasion::Failure => "rotating_light",
        Occasion::Deadline => "hourglass_flowing_sand",
        Occasion::Start | Occasion::Test => "information_source",
        Occasion::Verdict | Occasion::Retry => "warning",
    };
    let headers =
        vec![("Title", header(&message.title)), ("Priority", priority.to_owned()), ("Tags", tag.to_owned())];
    (headers, format!("{}\n{}", message.text, foot(message)))
}

/// What sendmail gets.
pub(super) fn mail(target: &NotifyPlan, message: &Message) -> String {
    let mut out = String::new();
    if let Some(from) = &target.from {
        out.push_str(&format!("From: {from}\n"));
    }
    out.push_str(&format!("To: {}\n", target.to.join(", ")));
    out.push_str(&format!("Date: {}\n", message.at.strftime("%a, %d %b %Y %H:%M:%S +0000")));
    out.push_str(&format!("Subject: {}\n", header(&format!("[varcas-guard] {}", message.title))));
    out.push_str(
        "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n",
    );
    // Answers of vacation programs would come back for every message.
    out.push_str("Auto-Submitted: auto-generated\n\n");
    out.push_str(&format!("{}\n\n{}\n", message.text, foot(message)));
    out
}

/// What a program finds in its environment, beside the JSON on its standard input.
pub(super) fn variables(message: &Message) -> Vec<(String, String)> {
    let names = [
        "occasion",
        "severity",
        "title",
        "text",
        "run",
        "folder",
        "report",
        "host",
        "model",
        "attempt",
        "outcome",
        "cause",
        "exit_code",
    ];
    // Not VARCAS_RUN_ID: by that mark processes of a run are found and ended.
    let name = |name: &str| format!("VARCAS_NOTIFY_{}", name.to_uppercase());
    names.iter().map(|field| (name(field), message.field(field).replace('\0', ""))).collect()
}

fn foot(message: &Message) -> String {
    format!("{} on {}, run {}", message.model, message.host, message.run)
}

/// One line for a header: as it is if it is plain ASCII, else in the encoding of RFC 2047.
fn header(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    if line.is_ascii() {
        return line;
    }
    // A word of it may have 75 characters, of which 63 are left for the text in it, and no letter may be torn.
    let mut words: Vec<String> = Vec::new();
    let mut part = String::new();
    for c in line.chars() {
        if part.len() + c.len_utf8() > 45 {
            words.push(std::mem::take(&mut part));
        }
        part.push(c);
    }
    words.push(part);
    let encoded: Vec<String> =
        words.iter().map(|word| format!("=?utf-8?B?{}?=", base64(word.as_bytes()))).collect();
    encoded.join(" ")
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let number = three.iter().fold(0_u32, |n, byte| n << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for index in 0..4 {
            let letter = LETTERS[(number >> (18 - 6 * index) & 63) as usize];
            out.push(if index <= three.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::message::Composer;
    use super::*;
    use crate::time::{Clock, ManualClock};

    fn message(title: &str, text: &str) -> Message {
        let mut message = Composer::new("box").test(ManualClock::new().now());
        (message.title, message.text) = (title.to_owned(), text.to_owned());
        message
    }

    fn target(text: &str) -> NotifyPlan {
        let table = crate::config::OwnWorkload { line: 1, table: serde_json::from_str(text).unwrap() };
        let (mut targets, problems) = crate::config::recipients::read(&[table], &[]);
        assert!(problems.is_empty(), "{problems:?}");
        targets.remove(0)
    }

    #[test]
    fn a_template_is_filled_once_and_json_stays_json() {
        let target = target(
            r#"{"url": "http://x/", "title": "{host}: {title}", "body": "{\"content\": \"{title}\", \"t\": \"{text}\", \"n\": {}}"}"#,
        );
        let message = addressed(&target, &message("a \"b\" {text}", "line\none\\ {title}"));
        assert_eq!(message.title, "box: a \"b\" {text}");
        let value: serde_json::Value = serde_json::from_str(&webhook(&target, &message)).unwrap();
        assert_eq!(value["content"], "box: a \"b\" {text}");
        assert_eq!(value["t"], "line\none\\ {title}");
    }

    #[test]
    fn every_placeholder_becomes_something_known() {
        let message = message("t", "x");
        for (name, _) in crate::config::recipients::PLACEHOLDERS {
            // Those that depend on the run may be empty here, but none is left as it is.
            let filled = fill(&format!("<{{{name}}}>"), &message, str::to_owned);
            assert!(filled.starts_with('<') && filled.ends_with('>') && !filled.contains('{'), "{filled}");
        }
    }

    #[test]
    fn no_text_can_add_a_header() {
        let target = target(r#"{"to": "a@b", "from": "c@d"}"#);
        let text = mail(&target, &message("x\r\nBcc: evil@example.org", "body"));
        let head = text.split("\n\n").next().unwrap();
        assert!(!head.lines().any(|line| line.starts_with("Bcc")), "{head}");
        let (headers, _) = ntfy(&message("x\nY: z", "body"));
        assert!(headers.iter().all(|(_, value)| !value.contains('\n')));
    }

    #[test]
    fn letters_beyond_ascii_are_encoded_word_by_word() {
        assert_eq!(header("plain"), "plain");
        assert_eq!(header("n\u{e4}h"), "=?utf-8?B?bsOkaA==?=");
        for word in header(&"\u{2713}".repeat(100)).split(' ') {
            assert!(word.len() <= 75, "{word}");
        }
        assert_eq!([base64(b""), base64(b"a"), base64(b"ab"), base64(b"abc")], ["", "YQ==", "YWI=", "YWJj"]);
    }

    #[test]
    fn slack_cannot_be_made_to_link_or_mention() {
        let text = slack(&message("<!channel>", "<https://evil.example|click> & co"));
        assert!(!text.contains("<!channel>") && !text.contains("<https"), "{text}");
    }

    #[test]
    fn a_program_never_gets_the_mark_of_a_run() {
        assert!(
            variables(&message("t", "x\0y"))
                .iter()
                .all(|(name, value)| { name.starts_with("VARCAS_NOTIFY_") && !value.contains('\0') })
        );
    }
}
