//! What the forms of the report promise, on journals made up for it.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod report_support;

use regex::Regex;
use report_support::{
    Story, ending, full, hopeless, killed, long, mitigation, proc, refused, summary, trace, verdict,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;
use varcas_guard::cli::report as command;
use varcas_guard::event::{
    Event, EventKind, Evidence, ExitHow, Finding, Gravity, Leftover, Mitigation, Outcome, Phase, Quote,
    RuledOut, SavedTrace, Trace, Verdict,
};
use varcas_guard::recovery::report::model::{self, Report};
use varcas_guard::recovery::report::{Excerpt, View, html, markdown, series, text};
use varcas_guard::supervisor::layout::RunDir;

fn page(story: &Story) -> String {
    let (report, series) = (model::build(&story.events), series::of(&story.events));
    html::render(&View::new(&report, &series))
}

fn text_of(story: &Story, render: fn(&View<'_>) -> String) -> String {
    let (report, series) = (model::build(&story.events), series::of(&story.events));
    render(&View::new(&report, &series))
}

fn write_journal(folder: &Path, events: &[Event]) {
    let lines: Vec<String> =
        events.iter().map(|event| serde_json::to_string(event).unwrap() + "\n").collect();
    std::fs::write(folder.join("events.jsonl"), lines.concat()).unwrap();
}

/// Everything that could end an attribute, open an element, colour a terminal or turn the writing around.
const HOSTILE: &str = "\"'><script>alert(1)</script><img src=x onerror=alert(2)></pre></style><!-- &lt; \u{1b}[31m\0\u{202e}` | javascript:x";

/// A run in which every text that comes from outside is hostile.
fn hostile() -> (Story, Vec<Excerpt>) {
    let evil = || HOSTILE.to_owned();
    let mut story = Story::begin();
    if let EventKind::RunStarted { run_id, guard_version, plan, .. } = &mut story.events[0].kind {
        (*run_id, *guard_version) = (evil(), evil());
        plan.server.model = evil();
        plan.server.extra = vec![evil()];
        plan.server.env = BTreeMap::from([(evil(), evil())]);
        plan.load.mix = evil();
    }
    story.attempt();
    for event in &mut story.events {
        match &mut event.kind {
            EventKind::ServerSpawned { argv, .. } => *argv = vec![evil(), evil()],
            EventKind::ServerEnvironment { env } => *env = BTreeMap::from([(evil(), evil())]),
            EventKind::PreflightFinished { server, .. } => {
                (server.version, server.torch, server.device) = (Some(evil()), Some(evil()), Some(evil()));
            }
            _ => {}
        }
    }
    for n in 0..5 {
        story.second(n, 1);
    }
    story.say(EventKind::ProcessExited { proc: proc(11), comm: evil(), how: ExitHow::Unknown, main: false });
    let end = ending(Outcome::Crash, HOSTILE, Phase::Measuring);
    story.end(&end);
    story.say(EventKind::Finding(Finding {
        rule: evil(),
        cause: evil(),
        gravity: Gravity::Fatal,
        line: 1,
        offset: 0,
        text: evil(),
        count: 1,
        outranks: vec![],
    }));
    let item =
        Evidence { what: evil(), file: Some(evil()), bytes: 1, took: Duration::ZERO, problem: Some(evil()) };
    story.say(EventKind::EvidenceSaved { items: vec![item] });
    story.say(EventKind::SignalSent { signal: 9, targets: vec![proc(10)], why: evil() });
    let mut bench = summary();
    bench.is_complete = false;
    bench.incomplete_reason = Some(evil());
    bench.by_workload[0].name = evil();
    bench.errors = BTreeMap::from([(evil(), 1)]);
    bench.warnings = vec![evil()];
    story.say(EventKind::LoadFinished { summary: Box::new(bench) });
    let saved = SavedTrace {
        from: evil(),
        file: Some(evil()),
        status: evil(),
        events: 1,
        dropped: 1,
        missing: vec![evil()],
        note: evil(),
    };
    let unsaved = SavedTrace { file: None, ..saved.clone() };
    story.say(EventKind::TracesCollected {
        traces: vec![Trace { file: evil(), ..trace(0) }],
        problems: vec![evil()],
        saved: vec![saved, unsaved],
    });
    let quote = || Quote { source: evil(), line: Some(1), text: evil() };
    story.say(EventKind::Judged {
        verdict: Box::new(Verdict {
            cause: evil(),
            explanation: evil(),
            advice: evil(),
            decisive: Some(quote()),
            consequences: vec![quote()],
            supports: vec![evil()],
            contradicts: vec![evil()],
            ruled_out: vec![RuledOut { cause: evil(), why: evil() }],
            missing: vec![evil()],
            references: vec![evil(), format!("https://{HOSTILE}"), "javascript:alert(1)".to_owned()],
            ..verdict()
        }),
    });
    story.say(EventKind::Mitigated {
        changes: vec![Mitigation {
            id: evil(),
            setting: evil(),
            from: Some(evil()),
            to: Some(evil()),
            why: evil(),
        }],
    });
    story.say(EventKind::Trouble { what: evil(), error: evil() });
    let leftovers = vec![Leftover::File { path: evil().into(), why: evil() }];
    story.say(EventKind::Drained { leftovers, removed: vec![evil()] });
    story.close(end, true);
    // The changes show in the attempt after them.
    story.attempt().end(&ending(Outcome::Crash, HOSTILE, Phase::Measuring));
    story.finish(Outcome::Crash, 75, HOSTILE);
    let excerpt = |log: bool| Excerpt {
        attempt: 1,
        path: evil(),
        log,
        text: format!("{HOSTILE}\n{HOSTILE}"),
        first_line: 1,
        decisive: Some(2),
        note: evil(),
    };
    (story, vec![excerpt(true), excerpt(false)])
}

fn hostile_page() -> String {
    let (story, files) = hostile();
    let (report, series) = (model::build(&story.events), series::of(&story.events));
    let unread = [HOSTILE.to_owned()];
    html::render(&View { report: &report, series: &series, files: &files, unread: &unread })
}

/// Every tag with its attributes. A `>` inside a quoted value does not end it.
fn tags(page: &str) -> Vec<(String, Vec<(String, String)>)> {
    let tag = Regex::new(r#"<(/?[a-zA-Z!][a-zA-Z0-9]*)((?:[^>"]|"[^"]*")*)>"#).unwrap();
    let attribute = Regex::new(r#"([a-zA-Z-]+)(?:="([^"]*)")?"#).unwrap();
    tag.captures_iter(page)
        .map(|found| {
            let attributes = attribute.captures_iter(&found[2]);
            let attributes =
                attributes.map(|a| (a[1].to_owned(), a.get(2).map_or("", |value| value.as_str()).to_owned()));
            (found[1].to_owned(), attributes.collect())
        })
        .collect()
}

#[test]
fn a_log_full_of_markup_stays_text_wherever_it_is_shown() {
    let page = hostile_page();
    assert!(page.matches("&lt;script&gt;alert(1)").count() > 40, "the test shows too little of it");
    assert!(!page.contains("<script") && !page.contains("<img"), "markup came through");
    let plain: BTreeSet<String> = tags(&self::page(&full())).into_iter().map(|(name, _)| name).collect();
    let more = ["mark", "/mark", "small", "/small"];
    for (name, attributes) in tags(&page) {
        assert!(plain.contains(&name) || more.contains(&name.as_str()), "an element <{name}> came through");
        for (attribute, value) in attributes {
            assert!(!attribute.starts_with("on"), "{name} has {attribute}");
            assert!(attribute != "href" || !value.contains("javascript:"), "{name} has {attribute}={value}");
        }
    }
    for harmful in ['\0', '\u{1b}', '\u{202e}'] {
        assert!(!page.contains(harmful), "{harmful:?} came through");
    }
}

#[test]
fn a_log_cannot_command_the_terminal_it_is_shown_on() {
    let (story, _) = hostile();
    for render in [html::render, markdown::render, text::render] {
        let shown = text_of(&story, render);
        assert!(shown.contains("alert(1)"), "the test shows nothing of it");
        let command = shown.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(command, None);
    }
}

#[test]
fn a_page_asks_for_nothing_and_links_only_into_its_folder_or_to_documentation() {
    for page in [page(&full()), page(&hopeless()), page(&killed()), page(&refused()), hostile_page()] {
        assert!(page.contains("default-src 'none'"));
        let style = page.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
        assert!(!style.contains("url(") && !style.contains("@import") && !style.contains("//"), "{style}");
        for (name, attributes) in tags(&page) {
            let is_loader = [
                "script", "link", "iframe", "object", "embed", "base", "form", "img", "video", "use", "image",
            ];
            assert!(!is_loader.contains(&name.as_str()), "<{name}>");
            for (attribute, value) in &attributes {
                assert!(
                    !["src", "srcset", "action", "data", "poster", "background", "ping"]
                        .contains(&attribute.as_str())
                );
                assert!(attribute != "style" || !value.contains("url"), "{value}");
                if attribute != "href" {
                    continue;
                }
                assert_eq!(name, "a");
                let documentation =
                    value.starts_with("https://") && attributes.iter().any(|(k, _)| k == "rel");
                let inside = !value.contains(':') && !value.starts_with('/') && !value.contains("..");
                assert!(documentation || inside, "href={value}");
            }
        }
    }
}

#[test]
fn the_same_journal_gives_the_same_bytes_whether_it_streams_or_not() {
    let story = full();
    let folder = tempfile::tempdir().unwrap();
    write_journal(folder.path(), &story.events);
    let dir = RunDir::new(folder.path());
    let told = command::of_run(&dir).unwrap();
    assert_eq!(told.report, model::build(&story.events));
    command::write(&dir, &told).unwrap();
    let first = ["report.html", "report.md", "report.json"]
        .map(|name| std::fs::read(folder.path().join(name)).unwrap());
    assert_eq!(String::from_utf8_lossy(&first[0]), page(&story));
    command::write(&dir, &command::of_run(&dir).unwrap()).unwrap();
    let again = ["report.html", "report.md", "report.json"]
        .map(|name| std::fs::read(folder.path().join(name)).unwrap());
    assert!(first == again);
}

/// What each section shows when there is something to show.
const SECTIONS: [&str; 12] = [
    "now",
    "verdict",
    "attempts-overview",
    "charts",
    "benchmark",
    "traces",
    "attempts",
    "attempt-1",
    "attempt-2",
    "timeline",
    "repeat",
    "missing",
];

fn sections(page: &str) -> Vec<&'static str> {
    SECTIONS.into_iter().filter(|id| page.contains(&format!(" id=\"{id}\""))).collect()
}

#[test]
fn a_section_is_there_exactly_when_there_is_something_in_it() {
    let every =
        |without: &[&str]| SECTIONS.into_iter().filter(|id| !without.contains(id)).collect::<Vec<_>>();
    assert_eq!(sections(&page(&full())), every(&["verdict"]), "a success has no verdict of its own");
    assert_eq!(sections(&page(&hopeless())), every(&["benchmark", "attempt-2", "missing"]));
    assert_eq!(
        sections(&page(&killed())),
        every(&["verdict", "benchmark", "attempt-2"]),
        "the killed run has no benchmark"
    );
    assert_eq!(
        sections(&page(&refused())),
        ["now", "attempts", "attempt-1", "timeline", "repeat", "missing"],
        "nothing ran"
    );
    let bare = Story::begin();
    assert_eq!(sections(&page(&bare)), ["now", "timeline", "repeat"]);
    assert!(page(&bare).contains("INTERRUPTED"));
}

#[test]
fn charts_are_drawn_for_what_was_measured_and_for_nothing_else() {
    let charts = |page: &str| {
        let title = Regex::new("<figcaption><b>([^<]+)</b>").unwrap();
        title.captures_iter(page).map(|found| found[1].to_owned()).collect::<BTreeSet<_>>()
    };
    let with_gpu = charts(&page(&full()));
    let without = charts(&page(&killed()));
    let missing: Vec<&String> = with_gpu.difference(&without).collect();
    assert_eq!(missing, ["GPU memory", "GPU power", "GPU utilisation"]);
    let everything = [
        "Requests so far",
        "Open requests",
        "Output",
        "Prompt tokens",
        "Time to first token",
        "KV cache in use",
        "Memory of the server",
        "CPU of the server",
    ];
    assert_eq!(without, everything.map(str::to_owned).into());
    assert!(page(&killed()).contains("no GPU answered"), "silence would look like health");
    assert!(charts(&page(&refused())).is_empty());
}

#[test]
fn the_moment_of_failure_is_marked_where_there_was_one() {
    let marks = |page: &str| page.matches("<g class=\"failure\">").count();
    let failed = page(&hopeless());
    assert_eq!(marks(&failed), failed.matches("<svg").count(), "each chart has its mark");
    let both = page(&full());
    assert_eq!(marks(&both) * 2, both.matches("<svg").count(), "only those of the attempt that crashed");
    assert!(
        both.contains("class=\"window\"")
            && both.contains("class=\"flush\"")
            && both.contains("class=\"pause\"")
    );
    assert!(page(&killed()).contains("cut off</text>"));
}

#[test]
fn a_result_under_changed_settings_says_so_in_bold_before_anything_else() {
    let shown = page(&full());
    let top = shown.split("<main>").next().unwrap();
    assert!(top.contains("<strong>These results were obtained with changed settings"), "{top}");
    assert!(top.contains("--gpu-memory-utilization") && top.contains("0.9 \u{2192} 0.8"));
    assert!(top.contains("SUCCESS WITH CHANGED SETTINGS"));
    let md = text_of(&full(), markdown::render);
    let top = md.split("## ").next().unwrap();
    assert!(top.contains(&format!("- **{}**", mitigation())), "{top}");
    assert!(text_of(&full(), text::render).contains("with changed settings"));
    let plain = page(&hopeless());
    assert!(!plain.contains("changed settings"));
}

#[test]
fn the_verdict_is_there_with_everything_that_proves_it() {
    let verdict = verdict();
    let wanted: Vec<String> = [
        vec!["CUDA out of memory".to_owned(), verdict.decisive.unwrap().text, verdict.explanation],
        verdict.supports,
        verdict.contradicts,
        verdict.missing,
        verdict.references,
        verdict.consequences.into_iter().map(|quote| quote.text).collect(),
        verdict.ruled_out.into_iter().map(|other| other.why).collect(),
    ]
    .concat();
    let (shown, md) = (page(&hopeless()), text_of(&hopeless(), markdown::render));
    for words in &wanted {
        assert!(shown.contains(words.as_str()), "the page lacks {words:?}");
        assert!(md.contains(words.as_str()), "report.md lacks {words:?}");
    }
    assert!(shown.contains("href=\"attempt-1/vllm_server.log\""));
    // Of a failed attempt before a success too.
    assert!(page(&full()).contains("42 GB were free"));
}

#[test]
fn the_story_has_three_sentences_and_there_is_always_something_to_do() {
    for story in [full(), hopeless(), killed(), refused()] {
        let report = model::build(&story.events);
        assert_eq!(report.story.len(), 3);
        for sentence in &report.story {
            assert!(sentence.ends_with('.') && !sentence.ends_with(".."), "{sentence}");
        }
        assert!(!report.to_do.is_empty());
        for render in [html::render, markdown::render, text::render] {
            let shown = text_of(&story, render).replace("&quot;", "\"");
            assert!(report.story.iter().all(|sentence| shown.contains(sentence.as_str())), "{shown}");
        }
    }
    let killed = model::build(&killed().events);
    assert!(killed.to_do[0].contains("3.0 GB of memory on GPU 0"), "{:?}", killed.to_do);
    assert_eq!(killed.outcome, "interrupted");
}

#[test]
fn secrets_stay_out_of_what_people_pass_on() {
    for render in [html::render, markdown::render, text::render] {
        let shown = text_of(&full(), render);
        assert!(!shown.contains("the_secret"), "{shown}");
    }
    assert!(page(&full()).contains("HF_TOKEN"));
}

#[test]
fn a_page_is_made_for_a_phone_for_the_dark_and_for_paper() {
    let shown = page(&full());
    assert!(shown.contains("name=\"viewport\" content=\"width=device-width, initial-scale=1\""));
    for rule in ["prefers-color-scheme: dark", "@media print", "max-width: 640px"] {
        assert!(shown.contains(rule), "{rule}");
    }
    assert!(!shown.contains("<script"), "nothing needs a script");
    let without_name: Vec<_> = tags(&shown)
        .into_iter()
        .filter(|(name, attributes)| name == "svg" && !attributes.iter().any(|(key, _)| key == "aria-label"))
        .collect();
    assert!(without_name.is_empty(), "a chart that nobody can hear: {without_name:?}");
}

#[test]
fn a_page_stays_small_however_long_the_night_was() {
    const MOST: usize = 3_000_000;
    let sizes: Vec<usize> = [(100_000, 4), (60_000, 1000)]
        .into_iter()
        .map(|(events, attempts)| page(&long(events, attempts)).len())
        .collect();
    assert!(sizes.iter().all(|size| *size < MOST), "{sizes:?}");
    // Everything that can be many is many, and every text is as long as a log line may get.
    let mut story = full();
    let line = "x".repeat(400);
    let attempt = story.events.iter().position(|event| event.attempt == 1).unwrap();
    let like = story.events[attempt].clone();
    let more = (0..30_000).flat_map(|n| {
        let of = |kind| Event { kind, ..like.clone() };
        let gone = ExitHow::Code { code: 1 };
        [
            of(EventKind::ProcessExited { proc: proc(n + 100), comm: line.clone(), how: gone, main: false }),
            of(EventKind::SignalSent { signal: 9, targets: vec![proc(n)], why: line.clone() }),
            of(EventKind::Trouble { what: line.clone(), error: n.to_string() }),
            of(EventKind::Decided { retry: true, why: line.clone() }),
        ]
    });
    let more: Vec<Event> = more.collect();
    story.events.splice(attempt..attempt, more);
    let mut great = verdict();
    great.consequences = vec![great.consequences[0].clone(); 5000];
    great.supports = vec![line.clone(); 5000];
    let saved = SavedTrace {
        from: "half.json".to_owned(),
        file: None,
        status: "nothing-to-save".to_owned(),
        events: 1,
        dropped: 0,
        missing: vec![],
        note: line.clone(),
    };
    for attempt in [1, 2] {
        let traces = (0..20_000).map(trace).collect();
        let (problems, saved) = (vec![line.clone(); 20_000], vec![saved.clone(); 20_000]);
        for kind in [
            EventKind::Judged { verdict: Box::new(great.clone()) },
            EventKind::TracesCollected { traces, problems, saved },
        ] {
            story.events.push(Event { kind, attempt, ..like.clone() });
        }
    }
    let size = page(&story).len();
    assert!(size < MOST, "{size}");
}

#[test]
fn a_journal_of_the_first_version_still_makes_a_report() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/journal-v1.jsonl");
    let read = varcas_guard::supervisor::journal::read(&path).unwrap();
    assert_eq!(read.unread, []);
    let report = model::build(&read.events);
    assert_eq!((report.outcome.as_str(), report.attempts.len(), report.counts), ("success", 2, Some(2)));
    assert_eq!(report.benchmark.as_ref().unwrap().progress.completed, 25);
    assert!(!report.is_open());
    let series = series::of(&read.events);
    let shown = html::render(&View::new(&report, &series));
    assert!(shown.contains("Requests so far") && shown.contains("an older version wrote the journal"));
}

#[test]
fn a_report_json_of_the_first_version_still_loads() {
    let mut old = serde_json::to_value(model::build(&full().events)).unwrap();
    for key in ["story", "to_do", "env", "mitigations"] {
        old.as_object_mut().unwrap().remove(key);
    }
    for attempt in old["attempts"].as_array_mut().unwrap() {
        for key in ["verdict", "mitigations", "standstills"] {
            attempt.as_object_mut().unwrap().remove(key);
        }
    }
    let loaded: Report = serde_json::from_value(old).unwrap();
    assert_eq!(loaded.attempts.len(), 2);
}

#[test]
fn wherever_a_journal_is_torn_there_is_a_report_of_the_part_before() {
    let whole = full();
    let folder = tempfile::tempdir().unwrap();
    write_journal(folder.path(), &whole.events);
    let journal = folder.path().join("events.jsonl");
    let bytes = std::fs::read(&journal).unwrap();
    let dir = RunDir::new(folder.path());
    for share in 1..40 {
        std::fs::write(&journal, &bytes[..bytes.len() * share / 40]).unwrap();
        let told = command::of_run(&dir).unwrap();
        assert_eq!(told.report.outcome, "interrupted", "{share}");
        command::write(&dir, &told).unwrap();
        let shown = std::fs::read_to_string(dir.report_html()).unwrap();
        assert!(shown.contains("INTERRUPTED") && shown.ends_with("</html>"), "{share}");
    }
    // A torn line is told.
    std::fs::write(&journal, &bytes[..bytes.len() - 20]).unwrap();
    command::write(&dir, &command::of_run(&dir).unwrap()).unwrap();
    for name in ["report.html", "report.md"] {
        let shown = std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(shown.contains("Journal, line "), "{name}");
    }
}

#[test]
fn what_the_run_folder_says_is_on_the_page_with_the_decisive_line_marked() {
    let folder = tempfile::tempdir().unwrap();
    write_journal(folder.path(), &hopeless().events);
    let attempt = folder.path().join("attempt-1");
    std::fs::create_dir(&attempt).unwrap();
    std::fs::write(attempt.join("vllm_server.log"), "first\nsecond\nthe <decisive> line\nfourth\n").unwrap();
    let dir = RunDir::new(folder.path());
    command::write(&dir, &command::of_run(&dir).unwrap()).unwrap();
    let shown = std::fs::read_to_string(dir.report_html()).unwrap();
    assert!(shown.contains("second\n<mark>the &lt;decisive&gt; line</mark>\nfourth"), "{shown}");
}
