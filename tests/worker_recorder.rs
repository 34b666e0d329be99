//! The promises of the recorder inside vLLM, checked with real torch and invented steps: `worker_recorder.py`. They need an
//! interpreter with torch, named by `VARCAS_TEST_PYTHON`.

#![expect(clippy::unwrap_used, reason = "a test that cannot prepare its ground has failed")]

use serde::Deserialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use varcas_guard::event::Trace;
use varcas_guard::workload::profiler::windows::collect;
use varcas_guard::workload::server::PYTHON_FILES;

/// How the process of one promise ended.
#[derive(Debug, Deserialize)]
struct End {
    promise: String,
    signal: Option<i32>,
    code: Option<i32>,
    said: String,
}

struct Ends {
    ends: Vec<End>,
    /// The windows that a promise left, and what was wrong with them.
    kept: HashMap<String, (Vec<Trace>, Vec<String>)>,
}

/// All promises are run once, by one interpreter. `None`, with a line about it, when there is none.
fn ends() -> Option<&'static Ends> {
    static ENDS: OnceLock<Option<Ends>> = OnceLock::new();
    ENDS.get_or_init(|| match std::env::var_os("VARCAS_TEST_PYTHON").filter(|value| !value.is_empty()) {
        Some(python) => Some(run(&PathBuf::from(python))),
        None => {
            eprintln!(
                "SKIPPED: VARCAS_TEST_PYTHON names no interpreter with torch; the recorder was not tested"
            );
            None
        }
    })
    .as_ref()
}

fn run(python: &Path) -> Ends {
    let folder = tempfile::tempdir().unwrap();
    let modules = folder.path().join("python");
    std::fs::create_dir(&modules).unwrap();
    for (name, text) in PYTHON_FILES {
        std::fs::write(modules.join(name), text).unwrap();
    }
    let output = Command::new(python)
        .args(["-B", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/worker_recorder.py")])
        .arg(folder.path())
        .env("PYTHONPATH", &modules)
        .env("VARCAS_RUN_ID", "run-7")
        .env("VARCAS_ATTEMPT", "1")
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    let ends: Vec<End> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect();
    // Now: what lives as long as the program is never dropped, and the folder would stay.
    let kept = |end: &End| (end.promise.clone(), collect(&folder.path().join(&end.promise).join("traces")));
    Ends { kept: ends.iter().map(kept).collect(), ends }
}

fn end_of(ends: &'static Ends, promise: &str) -> &'static End {
    ends.ends.iter().find(|end| end.promise == promise).unwrap_or_else(|| panic!("{promise} was not run"))
}

macro_rules! promises {
    ($($name:ident),+ $(,)?) => {
        $(
            #[test]
            fn $name() {
                let Some(ends) = ends() else { return };
                let end = end_of(ends, stringify!($name));
                assert_eq!((end.signal, end.code), (None, Some(0)), "{}", end.said);
            }
        )+
    };
}

promises!(
    a_window_holds_exactly_its_steps_and_their_sampling,
    cupti_goes_at_rest_where_it_can_come_back,
    where_cupti_goes_a_step_lies_between_windows,
    a_pipeline_stage_without_sampling_counts_its_steps,
    a_window_closes_on_time,
    a_budget_is_kept_and_each_choice_is_told,
    a_window_is_no_larger_than_asked,
    windows_open_at_the_times_asked_for,
    each_phase_has_its_window_and_loading_has_none,
    without_memory_to_spare_nothing_is_recorded,
    memory_that_windows_add_is_bounded,
    nothing_is_recorded_before_loading_is_over,
    a_step_without_tokens_opens_nothing,
    an_idle_engine_closes_its_window,
    a_request_to_close_is_answered_by_an_idle_engine,
    a_request_to_close_is_answered_under_load,
    a_request_to_close_without_any_window_is_answered,
    sigterm_in_the_middle_of_an_export_loses_nothing,
    sigterm_within_a_window_closes_it,
    a_full_disk_switches_the_profiler_off_and_the_steps_go_on,
    a_trace_that_the_writer_cut_short_gets_no_final_name,
    one_failure_is_forgiven,
    a_deleted_folder_harms_nothing,
    a_read_only_folder_harms_nothing,
    somebody_elses_profile_goes_on,
    memory_does_not_climb,
    a_sigkill_at_any_moment_loses_at_most_the_open_window,
    workers_open_on_the_same_step,
    a_worker_that_comes_too_late_leaves_the_window_out,
);

fn kept_window(ends: &Ends, promise: &str) {
    let (traces, problems) = &ends.kept[promise];
    assert_eq!(*problems, [""; 0]);
    assert_eq!(traces.len(), 1);
    assert!(traces[0].events > 0 && traces[0].steps == Some(1), "{traces:?}");
}

#[test]
fn a_second_sigterm_during_the_last_flush_waits_for_it() {
    let Some(ends) = ends() else { return };
    let end = end_of(ends, "a_second_sigterm_during_the_last_flush_waits_for_it");
    assert_eq!((end.signal, end.code), (Some(15), None), "{}", end.said);
    kept_window(ends, &end.promise);
}

#[test]
fn a_process_that_ends_within_a_window_ends_cleanly_and_keeps_it() {
    let Some(ends) = ends() else { return };
    let end = end_of(ends, "a_process_that_ends_within_a_window_ends_cleanly_and_keeps_it");
    assert_eq!((end.signal, end.code), (None, Some(0)), "{}", end.said);
    kept_window(ends, &end.promise);
}
