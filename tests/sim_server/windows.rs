//! Profiler windows: the same contract as the worker inside the real vLLM.

use crate::support::{Options, Sim, until};
use nix::sys::signal::Signal;
use varcas_guard::event::{WindowEvent, WindowLine};

fn lines(sim: &Sim) -> Vec<WindowLine> {
    let text = std::fs::read_to_string(sim.traces().join("windows.jsonl")).unwrap_or_default();
    // A line still being written has no end yet.
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn profiled(knobs: &str, env: &[(&str, &str)], arguments: &[&str]) -> Sim {
    Sim::ready(&Options { knobs: &format!("window_events=120,{knobs}"), arguments, env, profile: true })
}

fn closed(sim: &Sim) -> Vec<(u32, String, u64, u64, String)> {
    lines(sim)
        .into_iter()
        .filter_map(|line| match line.what {
            WindowEvent::Closed { file, bytes, first_step, last_step, why, .. } => {
                let path = sim.traces().join(&file);
                assert_eq!(std::fs::metadata(&path).unwrap().len(), bytes, "{file}");
                let trace: serde_json::Value =
                    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
                assert_eq!(
                    trace["traceEvents"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .filter(|event| event["cat"] == "kernel")
                        .count(),
                    20
                );
                Some((line.rank, file, first_step, last_step, why))
            }
            _ => None,
        })
        .collect()
}

fn temporary(sim: &Sim) -> Vec<String> {
    let names = std::fs::read_dir(sim.traces())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".tmp")).collect()
}

#[test]
fn a_window_closes_after_its_steps_and_the_next_opens_after_a_rest() {
    let sim = profiled("", &[("VARCAS_WINDOW_STEPS", "8")], &[]);
    let _stream = sim.long_stream();
    let done = until("two windows", || Some(closed(&sim)).filter(|closed| closed.len() >= 2));
    assert_eq!(done[0], (0, "window-0000-rank0.pt.trace.json".to_owned(), 0, 8, "steps".to_owned()));
    assert_eq!(done[1].1, "window-0001-rank0.pt.trace.json");
    assert!(done[1].2 > 8, "no rest between the windows");
    assert_eq!(done[1].3 - done[1].2, 8);
    let lines = lines(&sim);
    let kinds: Vec<&WindowEvent> = lines.iter().map(|line| &line.what).collect();
    assert!(
        matches!(kinds[0], WindowEvent::Hello { torch, activities } if torch == "2.9.1" && activities == &["CPU", "CUDA"])
    );
    assert!(matches!(kinds[1], WindowEvent::Opened { window: 0, step: 0, .. }));
    assert!(matches!(kinds[2], WindowEvent::Flushing { window: 0 }));
    assert!(matches!(kinds[3], WindowEvent::Closed { window: 0, .. }));
    assert!(lines.iter().all(|line| line.pid == sim.engine()));
}

#[test]
fn a_window_closes_by_time_and_when_idle() {
    let sim = profiled("", &[("VARCAS_WINDOW_STEPS", "100000"), ("VARCAS_WINDOW_SECONDS", "0.05")], &[]);
    let _stream = sim.long_stream();
    until("a window", || closed(&sim).iter().any(|window| window.4 == "time").then_some(()));

    let sim = profiled("", &[("VARCAS_WINDOW_STEPS", "100000"), ("VARCAS_IDLE_SECONDS", "0.1")], &[]);
    sim.complete(3);
    let done = until("a window", || Some(closed(&sim)).filter(|closed| !closed.is_empty()));
    assert_eq!((done[0].3, done[0].4.as_str()), (3, "idle"));
}

#[test]
fn the_close_file_ends_profiling_once_per_rank() {
    let sim = profiled("", &[("VARCAS_WINDOW_STEPS", "100000")], &["-tp", "2"]);
    sim.complete(3);
    std::fs::write(sim.traces().join("close"), "").unwrap();
    let finished = |sim: &Sim| {
        lines(sim)
            .into_iter()
            .filter(|line| line.what == WindowEvent::Finished {})
            .map(|line| line.rank)
            .collect::<Vec<_>>()
    };
    until("both ranks finished", || (finished(&sim).len() >= 2).then_some(()));
    let mut done = closed(&sim);
    done.sort();
    assert_eq!(
        done.iter().map(|window| (window.0, window.4.as_str())).collect::<Vec<_>>(),
        [(0, "asked"), (1, "asked")]
    );
    assert_eq!(done[1].1, "window-0000-rank1.pt.trace.json");
    sim.complete(20);
    let mut ranks = finished(&sim);
    ranks.sort_unstable();
    assert_eq!(ranks, [0, 1]);
    assert_eq!(closed(&sim).len(), 2, "a window opened after the request to close");
    assert!(temporary(&sim).is_empty());
}

#[test]
fn a_rank_without_an_open_window_finishes_too() {
    let sim = profiled("", &[], &[]);
    std::fs::write(sim.traces().join("close"), "").unwrap();
    until("finished", || lines(&sim).iter().any(|line| line.what == WindowEvent::Finished {}).then_some(()));
    assert!(closed(&sim).is_empty());
}

#[test]
fn sigterm_closes_the_open_window() {
    for arguments in [&[][..], &["-tp", "2"][..]] {
        let mut sim = profiled("", &[("VARCAS_WINDOW_STEPS", "100000")], arguments);
        sim.complete(5);
        sim.signal(sim.pid, Signal::SIGTERM);
        assert_eq!(sim.code(), 0);
        sim.gone();
        let done = closed(&sim);
        assert_eq!(done.len(), if arguments.is_empty() { 1 } else { 2 });
        assert!(done.iter().all(|window| window.4 == "shutdown" && window.3 == 5), "{done:?}");
    }
}

#[test]
fn without_a_trace_folder_nothing_is_recorded() {
    let sim = Sim::with("");
    sim.complete(30);
    assert_eq!(std::fs::read_dir(sim.traces()).unwrap().count(), 0);
}

#[test]
fn a_kill_in_the_middle_of_an_export_leaves_half_a_file() {
    let mut sim = profiled("fault=half@window:1", &[("VARCAS_WINDOW_STEPS", "5")], &[]);
    let _ = sim.long_stream().rest();
    assert_eq!(sim.code(), 0);
    assert_eq!(temporary(&sim), ["window-0001-rank0.pt.trace.json.tmp"]);
    let half = std::fs::read_to_string(sim.traces().join("window-0001-rank0.pt.trace.json.tmp")).unwrap();
    assert!(half.contains("\"traceEvents\": [") && serde_json::from_str::<serde_json::Value>(&half).is_err());
    assert_eq!(closed(&sim).len(), 1);
    assert!(matches!(lines(&sim).last().unwrap().what, WindowEvent::Flushing { window: 1 }));
}

#[test]
fn a_slow_flush_stops_the_engine_but_not_the_api_server() {
    let sim = profiled("fault=slow(1s)@window:0", &[("VARCAS_WINDOW_STEPS", "5")], &[]);
    let _stream = sim.long_stream();
    until("flushing", || {
        lines(&sim).iter().any(|line| matches!(line.what, WindowEvent::Flushing { .. })).then_some(())
    });
    assert_eq!(sim.get("/health").unwrap().status, 200);
    until("closed", || (!closed(&sim).is_empty()).then_some(()));
    let lines = lines(&sim);
    let at = |wanted: fn(&WindowEvent) -> bool| lines.iter().find(|line| wanted(&line.what)).unwrap().t;
    let (flushing, closed) = (
        at(|what| matches!(what, WindowEvent::Flushing { .. })),
        at(|what| matches!(what, WindowEvent::Closed { .. })),
    );
    assert!(closed - flushing >= 1.0, "{flushing} {closed}");
    assert!(matches!(lines[3].what, WindowEvent::Closed { stop_s, .. } if stop_s >= 1.0));
}

#[test]
fn a_failed_window_and_a_disabled_profiler_leave_the_engine_alone() {
    let sim = profiled("fault=fail@window:0,fault=disable@window:1", &[("VARCAS_WINDOW_STEPS", "5")], &[]);
    let _stream = sim.long_stream();
    until("disabled", || {
        lines(&sim).iter().any(|line| matches!(line.what, WindowEvent::Disabled { .. })).then_some(())
    });
    assert!(lines(&sim).iter().any(|line| matches!(line.what, WindowEvent::Failed { window: 0, .. })));
    let before = lines(&sim).len();
    sim.complete(50);
    assert_eq!(lines(&sim).len(), before, "a disabled profiler said something");
}
