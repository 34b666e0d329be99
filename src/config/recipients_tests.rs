//! Who is told, as people write it down.

use super::*;

fn table(text: &str) -> OwnWorkload {
    OwnWorkload { line: 7, table: serde_json::from_str(text).unwrap() }
}

fn problems(text: &str) -> Vec<String> {
    read(&[table(text)], &[]).1.into_iter().map(|(_, problem)| problem).collect()
}

#[test]
fn the_way_follows_from_what_is_given() {
    for (text, way) in [
        (r#"{"url": "https://hooks.slack.com/services/T/B/x"}"#, Way::Slack),
        (r#"{"url": "https://ntfy.sh/topic"}"#, Way::Ntfy),
        (r#"{"url-env": "HOOK"}"#, Way::Webhook),
        (r#"{"to": "me@example.org"}"#, Way::Mail),
        (r#"{"command": ["notify-send"]}"#, Way::Command),
        (r#"{"kind": "ntfy", "url": "http://127.0.0.1/x"}"#, Way::Ntfy),
    ] {
        let (targets, problems) = read(&[table(text)], &[]);
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(targets[0].kind, way, "{text}");
    }
}

#[test]
fn every_mistake_is_told_with_what_to_do() {
    let wrong = problems(r#"{"kind": "slak", "url": "x"}"#);
    assert!(wrong[0].contains("did you mean `slack`?"), "{wrong:?}");
    let wrong = problems(
        r#"{"ur": "x", "on": ["sucess"], "timeout": "5", "title": "{modle}", "headers": {"a b": "c"}}"#,
    );
    for part in [
        "unknown key `ur`",
        "did you mean `success`?",
        "write `5s`",
        "{modle}; did you mean `model`?",
        "`headers`",
        "exactly one of",
    ] {
        assert!(wrong.iter().any(|problem| problem.contains(part)), "{part}: {wrong:?}");
    }
    for text in [
        r#"{"url": "ftp://x"}"#,
        r#"{"to": "a@b\nBcc: c@d"}"#,
        r#"{"to": "-oQ/tmp@x"}"#,
        r#"{"kind": "mail"}"#,
        r#"{"kind": "command"}"#,
        r#"{"url": "https://x/", "url-env": "Y"}"#,
        r#"{"kind": "slack", "url": "https://x/", "body": "{}"}"#,
        r#"{"headers": {"X": "a\r\nY: b"}, "url": "https://x/"}"#,
    ] {
        assert!(!problems(text).is_empty(), "{text}");
    }
}

#[test]
fn names_switch_on_and_addresses_add() {
    let off = table(r#"{"name": "phone", "url": "https://ntfy.sh/t", "enabled": false}"#);
    assert!(read(std::slice::from_ref(&off), &[]).0.is_empty());
    let flags = ["phone", "https://hooks.slack.com/services/x", "ntfy+https://n.example/t", "mailto:a@b"];
    let (targets, problems) = read(&[off], &flags.map(str::to_owned));
    assert!(problems.is_empty(), "{problems:?}");
    let seen: Vec<_> = targets.iter().map(|target| (target.name.as_str(), target.kind)).collect();
    assert_eq!(
        seen,
        [
            ("phone", Way::Ntfy),
            ("hooks.slack.com", Way::Slack),
            ("n.example", Way::Ntfy),
            ("mail", Way::Mail)
        ]
    );
    assert_eq!(read(&[], &["phon".to_owned()]).1.len(), 1);
    assert_eq!(read(&[], &["gopher://x/".to_owned()]).1.len(), 1);
    let twice = read(&[], &["http://x/1".to_owned(), "http://x/2".to_owned()]).0;
    assert_eq!([&twice[0].name, &twice[1].name], ["x", "x-2"]);
}

#[test]
fn a_secret_is_nowhere_to_be_seen() {
    let text = r#"{"url": "https://me:hush@hooks.example/hush?token=hush", "headers": {"X-Key": "hush"}}"#;
    let mut target = read(&[table(text)], &[]).0.remove(0);
    target.command = vec!["curl".to_owned(), "hush".to_owned()];
    let shown = [
        serde_json::to_string(&target).unwrap(),
        format!("{:?}", target.url),
        format!("{:?}", target.headers),
    ];
    for text in shown {
        assert!(!text.contains("hush"), "{text}");
        assert!(text.contains("hooks.example") || !text.contains("https"), "{text}");
    }
}

#[test]
fn every_placeholder_and_key_stands_in_the_documentation() {
    let document = include_str!("../../docs/notifications.md");
    for (name, becomes) in PLACEHOLDERS {
        assert!(document.contains(&format!("| `{{{name}}}` | {becomes} |")), "{name}");
    }
    for key in KEYS {
        assert!(document.contains(&format!("`{key}`")), "{key}");
    }
}

#[test]
fn json_braces_are_no_placeholders() {
    let text = r#"{"content": "{title}", "n": {"a": {model}}}"#;
    assert_eq!(placeholders(text).collect::<Vec<_>>(), ["title", "model"]);
}
