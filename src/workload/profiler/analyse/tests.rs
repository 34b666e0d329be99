use super::*;
use crate::workload::profiler::read::read;
use serde_json::json;

fn analyse(events: &serde_json::Value) -> WindowProfile {
    with_limits(events, Limits::default())
}

fn with_limits(events: &serde_json::Value, limits: Limits) -> WindowProfile {
    let text = json!({ "traceEvents": events }).to_string();
    let mut analyser = Analyser::new(limits);
    read(text.as_bytes(), |_| false, |event| analyser.event(event)).unwrap();
    analyser.finish()
}

/// Times in microseconds, as they stand in traces.
fn op(name: &str, tid: i64, start: i64, end: i64) -> serde_json::Value {
    json!({"ph": "X", "cat": "cpu_op", "name": name, "pid": 9, "tid": tid, "ts": start, "dur": end - start})
}

fn launch(correlation: i64, at: i64) -> serde_json::Value {
    json!({"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 9, "tid": 9, "ts": at, "dur": 1,
        "args": {"correlation": correlation}})
}

fn gpu(cat: &str, name: &str, stream: i64, start: i64, end: i64, correlation: i64) -> serde_json::Value {
    json!({"ph": "X", "cat": cat, "name": name, "pid": 0, "tid": stream, "ts": start, "dur": end - start,
        "args": {"device": 0, "stream": stream, "correlation": correlation}})
}

fn step(number: u64, start: i64, end: i64) -> serde_json::Value {
    json!({"ph": "X", "cat": "user_annotation", "name": format!("ProfilerStep#{number}"), "pid": 9, "tid": 9,
        "ts": start, "dur": end - start})
}

/// Two steps. The first launches two kernels on two streams that overlap and a copy; the second launches one kernel, which
/// runs after its end.
fn two_steps() -> serde_json::Value {
    json!([
        op("aten::linear", 9, 0, 60),
        op("aten::mm", 9, 10, 30),
        op("aten::add", 9, 40, 50),
        op("aten::mm", 9, 110, 130),
        step(40, 0, 100),
        step(41, 100, 200),
        launch(1, 12),
        gpu("kernel", "gemm", 7, 20, 60, 1),
        launch(2, 42),
        gpu("kernel", "add", 8, 50, 80, 2),
        launch(3, 70),
        gpu("gpu_memcpy", "Memcpy DtoH", 7, 90, 95, 3),
        launch(4, 120),
        gpu("kernel", "gemm", 7, 205, 255, 4),
        {"ph": "M", "name": "process_name", "pid": 9, "ts": 0, "args": {"name": "python"}},
        {"ph": "X", "cat": "Trace", "name": "PyTorch Profiler (0)", "pid": "Spans", "tid": "x", "ts": -500, "dur": 9000},
    ])
}

fn rows(list: &[NameTime]) -> Vec<(&str, u64, u64)> {
    list.iter().map(|row| (row.name.as_str(), row.count, row.total_ns)).collect()
}

#[test]
fn every_number_of_two_steps_is_as_computed_by_hand() {
    let profile = analyse(&two_steps());
    assert_eq!((profile.events, profile.kernels), (16, 3));
    // From the first operator to the end of the last kernel; the profiler's own span is not work.
    assert_eq!(profile.span_ns, Some(255_000));
    assert_eq!(rows(&profile.kernel_times), [("gemm", 2, 90_000), ("add", 1, 30_000)]);
    assert_eq!(rows(&profile.copies), [("Memcpy DtoH", 1, 5_000)]);
    assert_eq!(profile.gpu_ns(), 125_000);
    let operators: Vec<_> = profile
        .operators
        .iter()
        .map(|o| (o.time.name.as_str(), o.time.count, o.time.total_ns, o.self_ns))
        .collect();
    assert_eq!(
        operators,
        [
            ("aten::mm", 2, 40_000, Some(40_000)),
            ("aten::linear", 1, 60_000, Some(30_000)),
            ("aten::add", 1, 10_000, Some(10_000)),
        ]
    );
    assert_eq!(profile.self_ns(), Some(80_000));
    // Busy: 20..80, 90..95, 205..255. Gaps: 80..90, 95..205.
    let [device] = profile.devices.as_deref().unwrap() else { panic!("{:?}", profile.devices) };
    assert_eq!((device.device, device.busy_ns), (0, 115_000));
    assert_eq!(device.gaps_ns, [10_000, 110_000]);
    // Within the gaps: the operator 110..130; of the steps 80..90, 95..200, less that operator.
    assert_eq!(device.gap_in_operator_ns, 20_000);
    assert_eq!(device.gap_in_step_ns, Some(95_000));
    assert_eq!(profile.busy_share(), Some(115.0 / 255.0));
    let steps: Vec<_> = profile.steps.iter().map(|s| (s.number, s.wall_ns, s.gpu_ns)).collect();
    assert_eq!(steps, [(40, 100_000, Some(75_000)), (41, 100_000, Some(50_000))]);
    assert_eq!(profile.unattributed_ns, Some(0));
    assert_eq!(profile.notes, [""; 0]);
}

#[test]
fn the_order_of_events_changes_nothing() {
    let mut events = two_steps();
    let list = events.as_array_mut().unwrap();
    let expected = analyse(&json!(list));
    for _ in 0..list.len() {
        list.rotate_left(5);
        assert_eq!(analyse(&json!(list)), expected);
        list.reverse();
        assert_eq!(analyse(&json!(list)), expected);
    }
}

#[test]
fn a_trace_of_a_cpu_has_operators_and_steps_and_no_gpu() {
    let profile = analyse(&json!([op("aten::mm", 1, 0, 10), step(3, 0, 20), launch(1, 5)]));
    assert_eq!(profile.devices, Some(Vec::new()));
    assert_eq!(profile.busy_share(), None);
    assert_eq!(profile.steps[0].gpu_ns, None);
    assert_eq!(profile.span_ns, Some(20_000));
}

#[test]
fn an_empty_trace_knows_nothing() {
    let profile = analyse(&json!([]));
    assert_eq!((profile.span_ns, profile.busy_share(), profile.self_ns()), (None, None, Some(0)));
    assert!(profile.steps.is_empty());
}

#[test]
fn work_whose_launch_is_unknown_belongs_to_no_step() {
    // Launched before the window; launched between the steps; without a correlation.
    let mut lonely = gpu("kernel", "k", 7, 60, 70, 0);
    lonely["args"].as_object_mut().unwrap().remove("correlation");
    let profile = analyse(&json!([
        step(1, 10, 20),
        step(2, 30, 40),
        gpu("kernel", "k", 7, 11, 12, 99),
        launch(1, 25),
        gpu("kernel", "k", 7, 31, 34, 1),
        launch(2, 39),
        gpu("kernel", "k", 7, 50, 55, 2),
        lonely,
    ]));
    let steps: Vec<_> = profile.steps.iter().map(|s| s.gpu_ns).collect();
    assert_eq!(steps, [Some(0), Some(5_000)]);
    assert_eq!(profile.unattributed_ns, Some(14_000));
}

#[test]
fn without_any_launch_the_gpu_time_of_steps_is_unknown_and_not_zero() {
    let profile = analyse(&json!([step(1, 10, 20), gpu("kernel", "k", 7, 11, 12, 99)]));
    assert_eq!(profile.steps[0].gpu_ns, None);
    assert_eq!(profile.unattributed_ns, Some(1_000));
}

#[test]
fn all_kernels_of_a_graph_belong_to_its_launch() {
    let profile = analyse(&json!([
        step(1, 0, 20),
        launch(5, 3),
        gpu("kernel", "a", 7, 30, 31, 5),
        gpu("kernel", "b", 7, 31, 33, 5),
    ]));
    assert_eq!(profile.steps[0].gpu_ns, Some(3_000));
}

#[test]
fn devices_are_told_apart() {
    let mut other = gpu("kernel", "k", 7, 5, 10, 2);
    other["args"]["device"] = json!(1);
    let profile = analyse(&json!([gpu("kernel", "k", 7, 0, 10, 1), other, op("a", 1, 0, 20)]));
    let busy: Vec<_> = profile.devices.as_ref().unwrap().iter().map(|d| (d.device, d.busy_ns)).collect();
    assert_eq!(busy, [(0, 10_000), (1, 5_000)]);
    assert_eq!(profile.busy_share(), Some(0.375));
}

#[test]
fn beyond_a_limit_a_figure_is_unknown_and_the_others_stand() {
    let tight = |calls, work, steps| with_limits(&two_steps(), Limits { calls, work, steps });
    let whole = analyse(&two_steps());
    let few_calls = tight(3, 99, 99);
    assert!(few_calls.operators.iter().all(|o| o.self_ns.is_none()));
    assert_eq!((few_calls.self_ns(), few_calls.notes.len()), (None, 1));
    assert_eq!(few_calls.steps, whole.steps);
    let few_work = tight(99, 3, 99);
    assert_eq!(
        (few_work.devices.clone(), few_work.busy_share(), few_work.unattributed_ns),
        (None, None, None)
    );
    assert_eq!(few_work.steps[0].gpu_ns, None);
    assert_eq!(few_work.kernel_times, whole.kernel_times);
    assert_eq!(few_work.operators, whole.operators);
    let few_steps = tight(99, 99, 1);
    assert_eq!((few_steps.steps.len(), few_steps.notes.len()), (1, 1));
}

#[test]
fn quantiles_are_values_that_occurred() {
    assert_eq!(quantile(&[], 0.5), None);
    assert_eq!(quantile(&[7], 0.99), Some(7));
    let hundred: Vec<u64> = (1..=100).collect();
    assert_eq!(
        (quantile(&hundred, 0.5), quantile(&hundred, 0.99), quantile(&hundred, 1.0)),
        (Some(50), Some(99), Some(100))
    );
}

mod any {
    use super::*;
    use proptest::prelude::*;

    fn scalar() -> impl Strategy<Value = serde_json::Value> {
        prop_oneof![
            Just(json!(null)),
            any::<i64>().prop_map(|n| json!(n)),
            any::<u64>().prop_map(|n| json!(n)),
            any::<f64>().prop_map(|n| json!(n)),
            (-50_i64..50).prop_map(|n| json!(n)),
            (-50_i64..50).prop_map(|n| json!(n)),
            ".{0,6}".prop_map(|s| json!(s)),
        ]
    }

    fn event() -> impl Strategy<Value = serde_json::Value> {
        const CATS: &[&str] = &[
            "cpu_op",
            "kernel",
            "gpu_memcpy",
            "cuda_runtime",
            "user_annotation",
            "Trace",
            "python_function",
        ];
        const NAMES: &[&str] = &["a", "b", "ProfilerStep#1", "ProfilerStep#2", "ProfilerStep#x"];
        (
            proptest::sample::select(CATS),
            proptest::sample::select(NAMES),
            scalar(),
            scalar(),
            scalar(),
            scalar(),
            scalar(),
        )
            .prop_map(|(cat, name, ts, dur, tid, correlation, device)| {
                json!({"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": tid, "pid": 1,
                    "args": {"correlation": correlation, "device": device}})
            })
    }

    proptest! {
        #[test]
        fn sums_are_consistent_whatever_the_events(list in proptest::collection::vec(event(), 0..25)) {
            let profile = analyse(&json!(list));
            for operator in &profile.operators {
                prop_assert!(operator.self_ns.unwrap() <= operator.time.total_ns);
            }
            let span = profile.span_ns.unwrap_or(0);
            for device in profile.devices.as_ref().unwrap() {
                prop_assert!(device.busy_ns <= span);
                prop_assert!(device.busy_ns <= profile.gpu_ns());
                let gaps: u64 = device.gaps_ns.iter().sum();
                prop_assert!(device.busy_ns + gaps <= span);
                prop_assert!(device.gap_in_operator_ns + device.gap_in_step_ns.unwrap_or(0) <= gaps);
            }
            let attributed = profile.steps.iter().fold(0_u64, |sum, step| sum.saturating_add(step.gpu_ns.unwrap_or(0)));
            if let Some(rest) = profile.unattributed_ns {
                prop_assert_eq!(attributed.saturating_add(rest), profile.gpu_ns());
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in r#"[\[\]{}",:0-9a-z. -]{0,60}"#) {
            let mut analyser = Analyser::default();
            let whole = format!("{{\"traceEvents\": [{text}]}}");
            for text in [text.as_bytes(), whole.as_bytes()] {
                let _ = read(text, |_| true, |event| analyser.event(event));
            }
            let _ = analyser.finish();
        }
    }
}

#[test]
fn a_window_that_lasted_no_time_has_no_busy_share() {
    let of = |span| WindowProfile { span_ns: Some(span), ..analyse(&two_steps()) }.busy_share();
    assert!(of(0).is_none() && of(1_000_000).is_some_and(|share| share > 0.0));
}
