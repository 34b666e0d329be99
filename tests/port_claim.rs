//! Guards that start at the same moment do not get in each other's way.

mod e2e_support;

use e2e_support::{FAST, Place};
use std::collections::BTreeSet;
use varcas_guard::event::EventKind;

/// As many as a night's sweep might start with one line of shell.
const GUARDS: usize = 6;

#[test]
fn guards_that_are_started_at_once_take_a_port_each() {
    let place = Place::new();
    let config = place.config(FAST, "");
    let names: Vec<String> = (0..GUARDS).map(|n| format!("run-{n}")).collect();
    let running: Vec<_> = names.iter().map(|name| place.run(name, &config, &["--port", "auto"])).collect();
    let mut ports = BTreeSet::new();
    for run in running {
        let done = run.wait();
        assert_eq!(done.code, Some(0), "{}", done.told());
        let plan = done.events().into_iter().find_map(|event| match event.kind {
            EventKind::RunStarted { plan, .. } => Some(plan),
            _ => None,
        });
        assert_eq!(done.report()["attempts"].as_array().map(Vec::len), Some(1), "{}", done.told());
        ports.extend(plan.map(|plan| plan.server.port));
    }
    assert_eq!(ports.len(), GUARDS, "{ports:?}");
}

#[test]
fn a_port_that_another_guard_has_chosen_is_refused_before_its_server_has_bound_it() {
    let place = Place::new();
    // Nothing listens for a long time.
    let config = place.config("load=20m", "");
    let mut first = place.run("first", &config, &[]);
    first.until("the start of the server", |kind| {
        matches!(kind, EventKind::ServerSpawned { .. }).then_some(())
    });
    let second = place.run("second", &config, &[]).wait();
    assert_eq!(second.code, Some(69), "{}", second.told());
    assert!(second.told().contains("for its server"), "{}", second.told());
    assert!(second.told().contains(&format!("pid {}", first.id.pid)), "{}", second.told());
    drop(first);
}
