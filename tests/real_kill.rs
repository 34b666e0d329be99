//! `kill -9` of every process of a real run on a real vLLM (CPU, `-tp 2`) in every phase, one after the other on one port:
//! nothing of the run stays alive, the folder tells what happened, and the next run starts. About a minute a case, so it
//! runs only with `VARCAS_TEST_LONG=0` (the number of the first case) and `VARCAS_TEST_PYTHON`; the table is printed (`-- --nocapture`).

mod e2e_support;
mod real_support;

use e2e_support::{Running, alive, named, wait_for};
use real_support::{Bench, process, under_load};
use varcas_guard::event::{EventKind, Phase, ProcId};
use varcas_guard::supervisor::{os, proc, reap};
use varcas_guard::time::instant_now;

const VICTIMS: [&str; 5] = ["API server", "EngineCore", "worker", "keeper", "guard"];
const PHASES: [Phase; 4] = [Phase::Loading, Phase::WarmUp, Phase::Measuring, Phase::Flushing];

/// One window over the whole load, so that closing it takes a while.
const WINDOW: &str = "[profile]\nwindow-steps = 100000\nwindow = \"20m\"\nidle = \"20m\"\n";

fn find(running: &mut Running<'_>, who: &str) -> ProcId {
    let guard = running.id;
    match who {
        "EngineCore" => process(running, "VLLM::Engine"),
        "worker" => process(running, "VLLM::Worker"),
        "guard" => guard,
        _ => running.until(who, |kind| match kind {
            EventKind::ServerSpawned { proc, .. } if who == "API server" => Some(*proc),
            EventKind::KeeperStarted { proc } if who == "keeper" => Some(*proc),
            _ => None,
        }),
    }
}

#[test]
fn whoever_is_killed_whenever_on_a_real_vllm_nothing_stays_alive() {
    let Some(first) = std::env::var("VARCAS_TEST_LONG").ok().and_then(|text| text.parse::<usize>().ok())
    else {
        eprintln!("SKIPPED: VARCAS_TEST_LONG is no number; nobody was killed on a real vLLM");
        return;
    };
    let Some(bench) = Bench::new() else { return };
    for (number, (who, at)) in
        VICTIMS.iter().flat_map(|who| PHASES.iter().map(move |at| (*who, *at))).enumerate().skip(first)
    {
        let name = format!("out-{number}");
        let shm: Vec<String> = reap::shm_names();
        let duration = if at == Phase::Flushing { "8s" } else { "10m" };
        let mut running = bench.start(&name, duration, 2, WINDOW);
        if at == Phase::Loading {
            process(&mut running, "VLLM::Worker");
        } else {
            running.until_phase(at);
        }
        if at == Phase::Measuring {
            under_load(&mut running);
        }
        let victim = find(&mut running, who);
        let began = instant_now();
        os::signal(victim, 9).unwrap();
        wait_for("the end of everything that runs", || {
            let some = named(&running.events()).into_iter().any(proc::is_alive);
            (!some && alive(&running.out).is_empty()).then_some(())
        });
        let took = began.elapsed();
        let out = running.out.clone();
        let done = running.wait();
        wait_for("the report", || out.join("report.json").is_file().then_some(()));
        let report = done.report();
        println!(
            "| {who} | {at} | {:.1} s | {} | {} |",
            took.as_secs_f64(),
            report["outcome"].as_str().unwrap_or("?"),
            report["reason"].as_str().unwrap_or("?").chars().take(150).collect::<String>()
        );
        assert_eq!(report["left_behind"], serde_json::json!([]), "{}", done.told());
        // Other programs may use the machine too.
        let vllms = |name: &String| name.starts_with("psm_") || name.starts_with("sem.mp-");
        let left: Vec<_> =
            reap::shm_names().into_iter().filter(|name| vllms(name) && !shm.contains(name)).collect();
        assert!(left.is_empty(), "{left:?}");
        bench.place.assert_no_scratch();
        assert!(done.code == Some(75) || at == Phase::Flushing || who == "guard", "{}", done.told());
    }
}
