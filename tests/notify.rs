//! Who is told of a run, that nobody who is told can hold it up, and that nothing is lost that can be delivered later. Times
//! are scaled down: a try takes 300 ms instead of 10 s, the end waits 1 s instead of 10 s.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod e2e_support;
mod report_support;

#[path = "notify/hook.rs"]
mod hook;

use e2e_support::{FAST, Finished, Place, free_port};
use hook::{Hook, Mood};
use std::fmt::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use varcas_guard::config::Plan;
use varcas_guard::console::notify::{Composer, Outbox, Poster, Recipient};
use varcas_guard::event::EventKind;
use varcas_guard::time::SystemClock;

/// A part of every address that nobody may see.
const HUSH: &str = "T0P/S3CRET/hush-hush";

fn table(name: &str, port: u16) -> String {
    format!("[[notify]]\nname = \"{name}\"\nurl = \"http://127.0.0.1:{port}/{HUSH}\"\ntimeout = \"300ms\"\n")
}

/// Everything the run wrote down or printed.
fn written(done: &Finished) -> String {
    let mut text = done.told();
    for name in
        ["events.jsonl", "guard.log", "notifications.jsonl", "report.json", "report.html", "report.md"]
    {
        text += &std::fs::read_to_string(done.out.join(name)).unwrap();
    }
    text
}

#[test]
fn one_who_hangs_refuses_or_fails_changes_nothing_and_is_told_later() {
    let place = Place::new();
    let (good, hangs, fails) = (Hook::new(Mood::Good), Hook::new(Mood::Hangs), Hook::new(Mood::Answers(500)));
    let nobody = free_port();
    let mut more = String::from("[notifications]\ngrace = \"1s\"\n");
    let everybody = [("good", good.port), ("hangs", hangs.port), ("fails", fails.port), ("refuses", nobody)];
    for (name, port) in everybody {
        more += &table(name, port);
    }
    let config = place.config(FAST, &more);
    let done = place.run("run", &config, &[]).wait();
    // The same as without anybody to tell.
    assert_eq!(done.code, Some(0), "{}", done.told());
    assert_eq!(done.report()["outcome"], "success");
    done.assert_replays(&place);
    done.assert_nothing_left(&place);
    assert_eq!(good.occasions(), ["start", "success"]);
    assert!(done.told().contains("notifications: 6 not delivered"), "{}", done.told());
    let all = written(&done);
    assert!(!all.contains("hush-hush") && all.contains("http://127.0.0.1:"), "{all}");

    // In the morning everybody is well again.
    hangs.mood(Mood::Good);
    fails.mood(Mood::Good);
    let refuses = Hook::on(TcpListener::bind(("127.0.0.1", nobody)).unwrap(), Mood::Good);
    let config = config.to_string_lossy();
    let out = done.out.to_string_lossy();
    let resend = || place.ask(&["notify", "--resend", &out, "--config", &config]);
    let first = resend();
    assert_eq!((first.code, first.out.lines().next()), (Some(0), Some("6 delivered, 0 not")), "{first:?}");
    for hook in [&good, &hangs, &fails, &refuses] {
        assert_eq!(hook.occasions(), ["start", "success"]);
        assert_eq!(hook.taken()[1].body, good.taken()[1].body);
    }
    assert_eq!(resend().out, "everything was delivered\n");
    assert!(!std::fs::read_to_string(done.out.join("notifications.jsonl")).unwrap().contains("hush-hush"));
}

#[test]
fn verdict_retry_and_end_are_told_in_order_and_with_what_a_person_wants_to_know() {
    let place = Place::new();
    let hook = Hook::new(Mood::Good);
    let knobs = format!("{FAST},fault=crash(oom)@step:40,only_attempt=1");
    let config = place.config(&knobs, &table("hook", hook.port));
    let done = place.run("run", &config, &["--retries", "2"]).wait();
    assert_eq!(done.code, Some(0), "{}", done.told());
    assert_eq!(hook.occasions(), ["start", "verdict", "retry", "success"]);
    let told: Vec<serde_json::Value> = hook.taken().iter().map(hook::Taken::json).collect();
    let report = done.report();
    assert_eq!(told[1]["cause"], report["attempts"][0]["verdict"]["cause"]);
    assert_eq!(told[1]["cause"], "cuda-oom");
    assert!(told[2]["text"].as_str().unwrap().contains("--gpu-memory-utilization"), "{}", told[2]);
    assert_eq!(told[3]["exit_code"], 0);
    assert_eq!(told[3]["completed"], report["benchmark"]["progress"]["completed"]);
    assert_eq!(told[3]["run"], report["run_id"]);
}

#[test]
fn the_end_of_a_guard_that_was_killed_is_told_by_whoever_looks_next() {
    let place = Place::new();
    let hook = Hook::new(Mood::Good);
    let config = place.config(FAST, &table("hook", hook.port));
    let mut running = place.run("run", &config, &["--duration", "1m"]);
    running.until_under_load();
    let (config, out) = (config.to_string_lossy().into_owned(), running.out.to_string_lossy().into_owned());
    let resend = || place.ask(&["notify", "--resend", &out, "--config", &config]);
    let alive = resend();
    assert_eq!(alive.code, Some(69), "{alive:?}");
    running.signal(9);
    running.wait();
    let answer = resend();
    assert_eq!((answer.code, answer.out.as_str()), (Some(0), "1 delivered, 0 not\n"), "{answer:?}");
    let last = hook.taken().last().unwrap().json();
    assert_eq!((&last["occasion"], &last["outcome"]), (&"failure".into(), &"interrupted".into()));
    assert_eq!(resend().out, "everything was delivered\n");
}

#[test]
fn a_test_message_shows_what_each_answers_and_starts_nothing() {
    let place = Place::new();
    let (good, refuses) = (Hook::new(Mood::Good), Hook::new(Mood::Answers(403)));
    let sendmail = place.path("sendmail");
    let mail = place.path("mail.txt");
    std::fs::write(&sendmail, format!("#!/bin/sh\necho \"$@\" >{0}\ncat >>{0}\n", mail.display())).unwrap();
    let tell = place.path("tell");
    std::fs::write(&tell, "#!/bin/sh\ncat >/dev/null\necho no $VARCAS_NOTIFY_OCCASION today >&2\nexit 3\n")
        .unwrap();
    let sleeps = place.path("sleeps");
    let pid = place.path("pid");
    std::fs::write(&sleeps, format!("#!/bin/sh\nsleep 1000 &\necho $! >{}\nwait\n", pid.display())).unwrap();
    for program in [&sendmail, &tell, &sleeps] {
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut more = table("good", good.port) + &table("refuses", refuses.port);
    let _ = write!(
        more,
        "[[notify]]\nto = \"me@example.org\"\nfrom = \"guard@example.org\"\ncommand = [\"{}\"]\ntitle = \"N\u{e4}chtlich: {{title}}\"\n\
         [[notify]]\ncommand = [\"{}\", \"hush-hush\"]\n\
         [[notify]]\nname = \"sleeps\"\ncommand = [\"{}\"]\ntimeout = \"500ms\"\n",
        sendmail.display(),
        tell.display(),
        sleeps.display()
    );
    let config = place.config(FAST, &more);
    let config = config.to_string_lossy();
    let answer = place.ask(&["run", "--notify-test", "--server", "sim", "--config", &config, "never"]);
    assert_eq!(answer.code, Some(75), "{answer:?}");
    let lines: Vec<&str> = answer.out.lines().collect();
    assert!(
        lines[0].starts_with("good (http://127.0.0.1:") && lines[0].contains("): delivered: "),
        "{answer:?}"
    );
    assert!(lines[1].contains("NOT delivered") && lines[1].contains("403"), "{answer:?}");
    assert!(lines[2].starts_with("mail (mail to me@example.org): delivered"), "{answer:?}");
    assert!(lines[3].contains("NOT delivered") && lines[3].contains("no test today"), "{answer:?}");
    assert!(lines[4].contains("no answer within 500 ms"), "{answer:?}");
    assert!(!answer.out.contains("hush-hush") && !place.path("never").exists(), "{answer:?}");
    let mail = std::fs::read_to_string(mail).unwrap();
    assert!(
        mail.starts_with(
            "-f guard@example.org -- me@example.org\nFrom: guard@example.org\nTo: me@example.org\n"
        ),
        "{mail}"
    );
    assert!(mail.contains("\nSubject: =?utf-8?B?"), "{mail}");
    // What the slow one had started is gone with it.
    let pid: i32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    e2e_support::wait_for("the end of what it left", || {
        varcas_guard::supervisor::proc::stat(pid).is_none_or(|stat| stat.is_dead()).then_some(())
    });
}

#[test]
fn what_is_wrong_with_a_recipient_is_said_before_anything_starts() {
    let place = Place::new();
    let config = place.config(
        FAST,
        "[[notify]]\nurl-env = \"NOT_SET_ANYWHERE\"\n[[notify]]\nurl-file = \"/nowhere/at/all\"\nname = \"file\"\n",
    );
    let config = config.to_string_lossy();
    let answer = place.ask(&["run", "--server", "sim", "--config", &config, "never"]);
    assert_eq!(answer.code, Some(2), "{answer:?}");
    assert!(
        answer.err.contains("NOT_SET_ANYWHERE is not set") && answer.err.contains("/nowhere/at/all"),
        "{answer:?}"
    );
    let answer = place.ask(&["run", "--server", "sim", "--notify", "gopher://x/hush-hush", "never"]);
    assert_eq!(answer.code, Some(2), "{answer:?}");
    assert!(!place.path("never").exists());
    let answer = place.ask(&["run", "--server", "sim", "--listen", "0.0.0.0:0", "never"]);
    assert_eq!(answer.code, Some(2), "{answer:?}");
    assert!(answer.err.contains("a token is needed") && !place.path("never").exists(), "{answer:?}");
}

fn poster(hook: &Hook, folder: &Path, clock: SystemClock) -> Poster {
    let given = varcas_guard::config::Given {
        notify: vec![format!("http://127.0.0.1:{}/x", hook.port)],
        ..varcas_guard::config::Given::default()
    };
    let plan = varcas_guard::config::plan(Plan::default(), &given).unwrap().notify.remove(0);
    let url = plan.url.as_ref().map(|url| url.reveal().to_owned());
    let outbox = Outbox::open(&folder.join("notifications.jsonl")).unwrap();
    let recipients = vec![Recipient::new(plan, url, None)];
    Poster::start(recipients, outbox, Composer::new("box"), clock, Duration::from_secs(30)).unwrap()
}

#[test]
fn a_near_deadline_is_told_once_although_nothing_happens() {
    let hook = Hook::new(Mood::Good);
    let folder = tempfile::tempdir().unwrap();
    // 15 minutes and a bit of 1000 s have passed, so less than a tenth is left.
    let poster = poster(&hook, folder.path(), SystemClock::earlier(Duration::from_secs(905)));
    let mut story = report_support::Story::begin();
    if let EventKind::RunStarted { plan, .. } = &mut story.events[0].kind {
        plan.budgets.run = Some(Duration::from_secs(1000));
    }
    story.events.iter().for_each(|event| poster.push(event));
    hook.until_taken(2);
    assert_eq!(poster.end(), 0);
    assert_eq!(hook.occasions(), ["start", "deadline"]);
}

#[test]
fn a_failed_delivery_is_tried_again_in_order_and_a_final_refusal_is_left_for_later() {
    let hook = Hook::new(Mood::Answers(503));
    let folder = tempfile::tempdir().unwrap();
    let poster = poster(&hook, folder.path(), SystemClock::new());
    let story = report_support::full();
    story.events.iter().for_each(|event| poster.push(event));
    hook.until_asked(2);
    hook.mood(Mood::Answers(404));
    hook.until_asked(3);
    hook.mood(Mood::Good);
    let left = poster.end();
    let due =
        varcas_guard::console::notify::outbox::waiting(&folder.path().join("notifications.jsonl")).unwrap();
    assert_eq!(due.len() as u64, left);
    // Whichever messages met the refusal, none is lost and none came twice.
    let mut all: Vec<String> =
        due.iter().map(|due| due.message.occasion.word().to_owned()).chain(hook.occasions()).collect();
    all.sort();
    assert_eq!(all, ["retry", "start", "success", "verdict"]);
    assert!(due.iter().all(|due| due.error.as_deref().is_some_and(|error| error.contains("404"))), "{due:?}");
}

#[test]
fn slack_and_ntfy_get_what_they_take() {
    let place = Place::new();
    let (slack, ntfy) = (Hook::new(Mood::Good), Hook::new(Mood::Good));
    let token = place.path("token");
    std::fs::write(&token, "tk_hush-hush\n").unwrap();
    let more = format!(
        "[[notify]]\nkind = \"slack\"\nurl = \"http://127.0.0.1:{}/s\"\n\
         [[notify]]\nkind = \"ntfy\"\nurl = \"http://127.0.0.1:{}/topic\"\ntoken-file = \"{}\"\nheaders = {{ Email = \"me@example.org\" }}\n",
        slack.port,
        ntfy.port,
        token.display()
    );
    let config = place.config(FAST, &more);
    let answer = place.ask(&["notify", "--test", "--config", &config.to_string_lossy()]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(slack.taken()[0].json()["text"].as_str().unwrap().contains("*Test message*"));
    let head = ntfy.taken()[0].head.to_ascii_lowercase();
    for line in [
        "post /topic http/1.1",
        "title: test message",
        "priority: 2",
        "authorization: bearer tk_hush-hush",
        "email: me@example.org",
    ] {
        assert!(head.contains(line), "{line}: {head}");
    }
    assert!(!answer.out.contains("hush-hush"), "{answer:?}");
    let list = place.ask(&["notify", "--config", &config.to_string_lossy()]);
    assert!(list.out.contains("start, verdict, retry, deadline, success, failure"), "{list:?}");
}
