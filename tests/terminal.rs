//! What `run` prints: a view on a terminal, plain lines and JSON elsewhere, and never anything that holds up the run.

mod e2e_support;
#[path = "terminal_support/pty.rs"]
mod pty;
mod terminal_support;

use e2e_support::{FAST, Place, alive, wait_for};
use pty::Pty;
use std::process::{Command, Stdio};
use terminal_support::{Tmux, no_tmux};
use varcas_guard::event::{Event, EventKind};

/// `run` with a benchmark of so many seconds on a quick simulator.
fn run(place: &Place, seconds: &str, more: &[&str]) -> Command {
    let config = place.config(FAST, "");
    let args = args(place, &config.to_string_lossy(), seconds, more);
    let mut command = place.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
    command.env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8").env_remove("NO_COLOR");
    command
}

fn args(place: &Place, config: &str, seconds: &str, more: &[&str]) -> Vec<String> {
    let port = place.port.to_string();
    let mut args = vec!["run", "--server", "sim", "--duration", seconds, "--port", &port, "--config", config];
    args.extend(["--retries", "0"]);
    args.extend(more);
    args.extend(["out", "--", "--max-model-len", "160"]);
    args.into_iter().map(str::to_owned).collect()
}

#[test]
fn on_a_terminal_a_view_is_drawn_below_the_lines_and_is_gone_at_the_end() {
    let place = Place::new();
    let (status, text) = Pty::new().run(&mut run(&place, "2s", &[]));
    assert_eq!(status.code(), Some(0), "{text}");
    assert!(text.contains("measuring, attempt 1 of 1") && text.contains("\x1b[2m requests  "), "{text:?}");
    assert!(
        !text.contains("\x1b[?"),
        "no mode of the terminal is changed, so none has to be restored: {text:?}"
    );
    let end = text.rfind("\x1b[J").unwrap();
    assert!(text[end..].contains("report: ") || text[..end].contains("report: "), "{text:?}");
    let last = text.trim_end().rsplit('\n').next().unwrap();
    assert!(last.contains("report.html") || last.contains("\x1b[J"), "{last:?}");
}

#[test]
fn no_color_and_a_dumb_terminal_are_respected() {
    let place = Place::new();
    let (_, text) = Pty::new().run(run(&place, "2s", &[]).env("NO_COLOR", "1"));
    assert!(text.contains("\x1b[K") && !text.contains("\x1b[2m") && !text.contains("\x1b[0m"), "{text:?}");
    let place = Place::new();
    let (_, text) = Pty::new().run(run(&place, "2s", &[]).env("TERM", "dumb"));
    assert!(!text.contains('\x1b') && text.contains("the end: success, exit code 0"), "{text:?}");
}

#[test]
fn a_pipe_gets_plain_lines_and_quiet_gets_none() {
    let place = Place::new();
    let output = run(&place, "2s", &[]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("[00:00] varcas-guard "), "{text}");
    assert!(text.contains(" the end: success, exit code 0\n") && text.contains("\nreport: "), "{text}");
    assert!(!text.contains('\x1b') && !text.contains("attempt 1 of 1"), "{text}");
    let place = Place::new();
    let output = run(&place, "2s", &["--quiet"]).output().unwrap();
    assert_eq!(
        (output.status.code(), output.stdout.len(), output.stderr.len()),
        (Some(0), 0, 0),
        "{output:?}"
    );
}

#[test]
fn json_is_one_event_a_line_also_on_a_terminal_and_the_last_one_is_the_end() {
    let place = Place::new();
    let (_, text) = Pty::new().run(&mut run(&place, "2s", &["--json"]));
    let events: Vec<Event> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(matches!(events[0].kind, EventKind::RunStarted { .. }));
    assert!(matches!(events.last().unwrap().kind, EventKind::RunFinished { exit_code: 0, .. }));
    assert!(events.is_sorted_by_key(|event| event.seq));
}

#[test]
fn a_terminal_that_takes_nothing_holds_up_no_run() {
    let place = Place::new();
    let pty = Pty::new();
    // Ctrl-S: whoever writes to it sleeps.
    nix::sys::termios::tcflow(&pty.slave, nix::sys::termios::FlowArg::TCOOFF).unwrap();
    let twin = || pty.slave.try_clone().unwrap();
    let mut child =
        run(&place, "2s", &[]).stdin(twin()).stdout(twin()).stderr(Stdio::null()).spawn().unwrap();
    let status = wait_for("the guard's end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    assert!(place.path("out/report.html").is_file() && alive(&place.path("out")).is_empty());
}

#[test]
fn a_pipe_that_nobody_reads_holds_up_no_run() {
    let place = Place::new();
    let mut child =
        run(&place, "2s", &["--json"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let unread = child.stdout.take().unwrap();
    nix::fcntl::fcntl(&unread, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let status = wait_for("the guard's end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    assert!(place.path("out/report.html").is_file());
    drop(unread);
}

#[test]
fn a_reader_that_goes_away_ends_no_run() {
    let place = Place::new();
    let mut child = run(&place, "2s", &[]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    let status = wait_for("the guard's end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn top_ends_when_its_terminal_goes_away() {
    let place = Place::new();
    place.run_well("out", &place.config(FAST, ""));
    let pty = Pty::new();
    let mut child = pty.start(&mut place.command(&["top", "out"]), "quit");
    drop(pty);
    let status = wait_for("its end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

/// `run` in tmux with a benchmark that lasts until it is stopped.
fn live(place: &Place, size: (u32, u32), env: &[(&str, &str)]) -> Tmux {
    let config = place.config(FAST, "");
    let args = args(place, &config.to_string_lossy(), "300s", &[]);
    let folder = place.path("");
    Tmux::start(size, &folder, env, &args.iter().map(String::as_str).collect::<Vec<_>>())
}

fn measures(screen: &str) -> bool {
    screen.contains("measuring, attempt 1 of 1") && screen.contains(" done, ")
}

#[test]
fn the_view_fits_and_stands_once_on_the_screen_at_every_size_and_while_the_size_changes() {
    if let Some(why) = no_tmux() {
        return eprintln!("{why}");
    }
    let place = Place::new();
    let tmux = live(&place, (80, 24), &[("LC_ALL", "C.UTF-8")]);
    let screen = tmux.until("the view", |screen| measures(screen) && screen.contains("TTFT p50"));
    assert!(screen.contains("── measuring, attempt 1 of 1 ──") && screen.contains(" requests  "), "{screen}");
    // Not lower than the view: rows that have left a terminal at its top cannot be taken back.
    for (columns, rows) in [(40, 12), (120, 40), (80, 24)] {
        tmux.resize(columns, rows);
        // Drawn anew for this size, so that its rule is as long as the terminal is wide.
        let is_new = |screen: &str| {
            let rules: Vec<&str> = screen.lines().filter(|line| line.starts_with("── measuring")).collect();
            matches!(rules[..], [rule] if rule.chars().count() == columns as usize - 1)
        };
        let screen = tmux.until(&format!("one view of {columns} columns"), is_new);
        let labels = screen.lines().filter(|line| line.starts_with(" requests  ")).count();
        assert_eq!(labels, usize::from(columns >= 60), "{screen}");
    }
    tmux.keys(&["C-c"]);
    let all = tmux.until_ended(130);
    assert!(!all.contains("── stopping"), "the view is gone at the end:\n{all}");
    assert!(all.contains("varcas-guard received SIGINT") && all.contains("report: "), "{all}");
}

#[test]
fn ascii_where_the_locale_knows_no_more_and_no_colours_where_none_are_wanted() {
    if let Some(why) = no_tmux() {
        return eprintln!("{why}");
    }
    let place = Place::new();
    let tmux = live(&place, (80, 24), &[("LC_ALL", "C"), ("NO_COLOR", "1")]);
    let screen = tmux.until("the view", measures);
    assert!(screen.is_ascii() && screen.contains("-- measuring, attempt 1 of 1 --"), "{screen}");
    let painted = tmux.painted();
    assert!(!painted.contains("\x1b["), "{painted:?}");
}

#[test]
fn a_guard_that_is_killed_leaves_a_terminal_that_can_be_typed_on() {
    if let Some(why) = no_tmux() {
        return eprintln!("{why}");
    }
    let place = Place::new();
    let tmux = live(&place, (80, 24), &[("LC_ALL", "C.UTF-8")]);
    tmux.until("the view", measures);
    let out = place.path("out");
    let started = e2e_support::events(&out).into_iter().find_map(|event| match event.kind {
        EventKind::RunStarted { guard, .. } => Some(guard),
        _ => None,
    });
    varcas_guard::supervisor::os::signal(started.unwrap(), 9).unwrap();
    let screen = tmux.until("the shell's word", |screen| screen.contains("ended with 137"));
    assert!(screen.lines().any(|line| line == "ended with 137" || line == "Killed"), "{screen}");
    wait_for("the keeper's work", || alive(&out).is_empty().then_some(()));
}
