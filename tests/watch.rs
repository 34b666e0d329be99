//! Watching a run from elsewhere: who is answered, what is said, and that nobody can disturb anybody.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod report_support;

#[path = "watch/client.rs"]
mod client;
#[path = "watch/prometheus.rs"]
mod prometheus;

use client::{Answer, Guest};
use report_support::{Story, full};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use varcas_guard::console::watch::{Access, Ended, Server, Watched};
use varcas_guard::event::{Event, EventKind};
use varcas_guard::time::SystemClock;

const TOKEN: &str = "a-token-that-is-long-enough";

/// A server in this process that knows what the test tells it.
struct Show {
    watched: Watched,
    server: Server,
}

impl Show {
    fn new(token: Option<&str>, hosts: &[&str]) -> Self {
        let at: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let access = Access::new(at, &hosts, token.map(str::to_owned), "cookie-secret".to_owned()).unwrap();
        let watched = Watched::new(SystemClock::new());
        let listener = Server::bind(at).unwrap();
        let server = Server::start(listener, access, watched.clone(), Arc::new(|| Some((2, 5)))).unwrap();
        Self { watched, server }
    }

    fn told(events: &[Event]) -> Self {
        let show = Self::new(None, &[]);
        show.tell(events);
        show
    }

    fn tell(&self, events: &[Event]) {
        events.iter().for_each(|event| self.watched.push(event));
    }

    fn guest(&self) -> Guest {
        Guest::new(self.server.address())
    }

    fn get(&self, path: &str) -> Answer {
        self.guest().get(path, &[])
    }
}

/// Numbers of the milestones, which are what `/events` tells.
fn milestones(events: &[Event]) -> Vec<u64> {
    events.iter().filter(|event| event.kind.is_milestone()).map(|event| event.seq).collect()
}

#[test]
fn every_place_answers_and_forbids_what_a_browser_could_do_with_it() {
    let show = Show::told(&full().events);
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/healthz", "application/json"),
        ("/api/run", "application/json"),
    ] {
        let answer = show.get(path);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(kind)), "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("script-src 'unsafe"), "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), None, "{path}");
    }
    assert_eq!(show.get("/etc/passwd").status, 404);
    assert_eq!(show.guest().ask("POST", "/api/run", &[("Content-Length", "5")]).status, 405);
    assert_eq!(show.guest().ask("HEAD", "/", &[]).body, "");
}

#[test]
fn the_page_shows_the_very_charts_and_figures_of_the_report() {
    let events = full().events;
    let show = Show::told(&events);
    let page = show.get("/").body;
    let series = varcas_guard::view::series::of(&events);
    let report = varcas_guard::recovery::report::model::build(&events);
    let html = varcas_guard::recovery::report::html::render(&varcas_guard::recovery::report::View::new(
        &report, &series,
    ));
    let part = |text: &str, from: &str, to: &str| {
        let begin = text.find(from).unwrap_or_else(|| panic!("no {from}"));
        let length = text[begin..].find(to).unwrap_or_else(|| panic!("no {to} after {from}"));
        text[begin..begin + length].to_owned()
    };
    for (from, to) in [
        ("<section id=\"charts\"", "</section>"),
        ("<section id=\"attempts-overview\"", "</section>"),
        ("<dt>Requests</dt>", "<div><dt>Traces</dt>"),
    ] {
        let ours = part(&page, from, to.replace("Traces", "Engine").as_str());
        assert_eq!(ours, part(&html, from, to), "{from}");
        assert!(ours.len() > 200, "{ours}");
    }
}

#[test]
fn api_and_metrics_say_the_same_as_the_journal() {
    let events = full().events;
    let show = Show::told(&events[..events.len() - 20]);
    let value: serde_json::Value = serde_json::from_str(&show.get("/api/run").body).unwrap();
    let progress = &value["load"]["progress"];
    let metrics = show.get("/metrics").body;
    for (name, number) in [
        ("varcas_guard_requests_sent_total", &progress["sent"]),
        ("varcas_guard_requests_completed_total", &progress["completed"]),
        ("varcas_guard_requests_in_flight", &progress["in_flight"]),
        ("varcas_guard_attempt", &value["attempt"]),
        ("varcas_guard_notifications_waiting", &serde_json::json!(2)),
        ("varcas_guard_notifications_delivered_total", &serde_json::json!(5)),
    ] {
        assert!(metrics.contains(&format!("\n{name} {number}\n")), "{name} {number}: {metrics}");
    }
    assert_eq!(value["standing"], "running");
    assert!(metrics.contains("varcas_guard_attempts_ended{outcome=\"crash\"} 1\n"), "{metrics}");
}

#[test]
fn nothing_that_may_hold_a_secret_leaves_the_journal() {
    let show = Show::told(&full().events);
    let stream = show.guest().stream("/events", &[]);
    let all = [show.get("/").body, show.get("/metrics").body, show.get("/api/run").body].concat();
    stream.until("retry: ");
    assert_eq!(show.server.end(None), Ended::Told);
    let all = all + &stream.rest();
    for secret in ["hf_the_secret", "the_secret", "HF_TOKEN"] {
        assert!(!all.contains(secret), "{secret}");
    }
}

#[test]
fn a_stream_taken_up_again_misses_nothing_and_repeats_nothing() {
    let events = full().events;
    let show = Show::told(&events[..100]);
    let first = show.guest().stream("/events", &[]);
    let wanted = milestones(&events);
    let half = wanted.iter().filter(|seq| **seq < 100).count();
    let (seen, last) = first.take_ids(half - 3);
    assert_eq!(seen, wanted[..half - 3]);
    drop(first);
    show.tell(&events[100..]);
    let second = show.guest().stream("/events", &[("Last-Event-ID", &last.to_string())]);
    let third = show.guest().stream(&format!("/events?after={last}"), &[]);
    // Who has not been heard yet when the server ends is not heard at all.
    [&second, &third].iter().for_each(|stream| stream.until("retry: "));
    assert_eq!(show.server.end(Some("/run/report.html".to_owned())), Ended::Told);
    for stream in [second, third] {
        let text = stream.rest();
        assert_eq!(client::ids(&text), wanted[half - 3..]);
        assert!(text.contains("event: end\n") && text.starts_with("retry: "), "{text}");
    }
}

#[test]
fn what_is_too_old_to_be_told_again_is_said_to_be_missing() {
    let mut story = Story::begin();
    for _ in 0..100 {
        story.say(EventKind::Trouble { what: "x".to_owned(), error: "y".repeat(300_000) });
    }
    let show = Show::told(&story.events);
    let stream = show.guest().stream("/events", &[("Last-Event-ID", "3")]);
    stream.until("id: 100\n");
    assert_eq!(show.server.end(None), Ended::Told);
    let text = stream.rest();
    let gap = text.lines().skip_while(|line| *line != "event: gap").nth(1).unwrap();
    let gap: serde_json::Value = serde_json::from_str(gap.strip_prefix("data: ").unwrap()).unwrap();
    let ids = client::ids(&text);
    assert_eq!((&gap["from"], &gap["to"]), (&4.into(), &(ids[0] - 1).into()));
    assert_eq!(ids.last(), Some(&100));
}

#[test]
fn the_page_gets_only_what_has_changed_and_at_last_the_end() {
    let events = full().events;
    let show = Show::told(&events[..200]);
    let stream = show.guest().stream("/live", &[]);
    stream.until("event: parts");
    show.tell(&events[200..]);
    assert_eq!(show.server.end(Some("/run/report.html".to_owned())), Ended::Told);
    let text = stream.rest();
    let pieces: Vec<serde_json::Value> =
        text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    let (last, news) = (pieces.last().unwrap(), &pieces[pieces.len() - 2]);
    assert_eq!(last["report"], "/run/report.html");
    assert_eq!(news["run"], "made-up");
    assert!(news["parts"]["head"].as_str().unwrap().contains("SUCCESS"), "{news}");
    assert!(pieces.len() >= 2);
}

#[test]
fn names_that_may_point_anywhere_are_not_served() {
    let show = Show::new(None, &["box.lan"]);
    for (host, status) in
        [("localhost", 200), ("127.0.0.1:1", 200), ("box.lan", 200), ("evil.example", 421), ("", 421)]
    {
        for path in ["/", "/metrics", "/healthz", "/events", "/live"] {
            assert_eq!(show.guest().head(path, &[("Host", host)]).status, status, "{host} {path}");
        }
    }
    assert_eq!(show.guest().raw("GET /metrics HTTP/1.0\r\n\r\n").status, 421);
    assert_eq!(
        show.guest()
            .raw("GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .status,
        421
    );
}

#[test]
fn with_a_token_nothing_but_life_is_told_without_it() {
    let show = Show::new(Some(TOKEN), &[]);
    show.tell(&full().events);
    for path in ["/", "/live", "/events", "/metrics", "/api/run", "/nothing"] {
        assert_eq!(show.get(path).status, 401, "{path}");
    }
    let health = show.get("/healthz");
    assert_eq!((health.status, health.body.trim()), (200, r#"{"status":"ok"}"#));
    let bearer = format!("Bearer {TOKEN}");
    assert_eq!(show.guest().get("/metrics", &[("Authorization", &bearer)]).status, 200);
    assert_eq!(show.guest().get("/metrics", &[("Authorization", "Bearer nonsense")]).status, 401);
    // A browser shows it once in the address and is known by its cookie from then on.
    assert_eq!(show.get("/?token=wrong").status, 401);
    let welcome = show.get(&format!("/?token={TOKEN}"));
    assert_eq!((welcome.status, welcome.header("location")), (303, Some("./")));
    let cookie = welcome.header("set-cookie").unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict") && !cookie.contains(TOKEN));
    let pair = cookie.split(';').next().unwrap();
    assert_eq!(show.guest().get("/api/run", &[("Cookie", pair)]).status, 200);
    assert!(!show.guest().get("/", &[("Cookie", pair)]).body.contains(TOKEN));
}

#[test]
fn whoever_asks_too_much_is_turned_away_and_the_others_are_served() {
    let show = Show::told(&full().events);
    let address = show.server.address();
    // A head that is too large, one with too many lines, and one that is no HTTP.
    let large = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "y".repeat(100_000));
    assert!(matches!(show.guest().raw(&large).status, 0 | 431));
    let many = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(500));
    assert!(matches!(show.guest().raw(&many).status, 0 | 431));
    assert!(matches!(show.guest().raw("\u{16}\u{3}\u{1} nonsense\r\n\r\n").status, 0 | 400));
    // More who say nothing than there are places: those beyond them are closed at once, the run's thread is not asked.
    let idle: Vec<_> = (0..70).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    client::closed_by_the_other_side(idle.last().unwrap());
    show.tell(&full().events);
    drop(idle);
    let metrics = client::patiently(|| Some(show.guest().try_get("/metrics")?.body));
    let refused = metrics.lines().find(|line| line.starts_with("varcas_guard_http_refused_total")).unwrap();
    assert!(refused.split(' ').nth(1).unwrap().parse::<u64>().unwrap() >= 6, "{refused}");
}

#[test]
fn more_streams_than_there_are_places_are_told_to_come_back() {
    let show = Show::told(&full().events);
    let streams: Vec<_> = (0..32).map(|_| show.guest().stream("/events", &[])).collect();
    for stream in &streams {
        stream.until("id: ");
    }
    let answer = show.get("/events");
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("10")));
    drop(streams);
    client::patiently(|| (show.guest().head("/events", &[]).status == 200).then_some(()));
}

#[test]
fn one_who_never_reads_holds_up_neither_the_run_nor_the_end() {
    let show = Show::told(&full().events);
    let asleep: Vec<_> = (0..8).map(|_| show.guest().unread("/events")).collect();
    // Far more than all buffers between the two hold.
    let mut story = full();
    for _ in 0..200 {
        story.say(EventKind::Trouble { what: "x".to_owned(), error: "y".repeat(100_000) });
    }
    show.tell(&story.events);
    assert_eq!(show.get("/healthz").status, 200);
    assert_eq!(show.server.end(None), Ended::Told);
    drop(asleep);
}

#[test]
fn a_guard_whose_loop_has_not_turned_for_long_is_called_stuck() {
    // The run's clock is old, and nothing has happened on it.
    let show = Show::new(None, &[]);
    assert_eq!(show.get("/healthz").status, 200);
    let late = Watched::new(SystemClock::earlier(Duration::from_secs(3600)));
    let at: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let access = Access::new(at, &[], None, String::new()).unwrap();
    let server = Server::start(Server::bind(at).unwrap(), access, late.clone(), Arc::new(|| None)).unwrap();
    let answer = Guest::new(server.address()).get("/healthz", &[]);
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("stuck"), "{}", answer.body);
    late.beat();
    assert_eq!(Guest::new(server.address()).get("/healthz", &[]).status, 200);
}
