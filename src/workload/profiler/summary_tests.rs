use super::*;
use crate::workload::profiler::analyse::{OperatorTime, Step};
use crate::workload::profiler::composition::{self, Facts};

fn row(name: &str, count: u64, total_ns: u64) -> NameTime {
    NameTime { name: name.to_owned(), count, total_ns }
}

fn operator(name: &str, total_ns: u64, self_ns: u64) -> OperatorTime {
    OperatorTime { time: row(name, 1, total_ns), self_ns: Some(self_ns) }
}

/// Kernels `a` and `b` of so many microseconds, on a GPU that was busy for both, in a window of 1 ms.
fn window(a: u64, b: u64) -> WindowProfile {
    let kernel_times =
        [row("a", 1, a * 1000), row("b", 1, b * 1000)].into_iter().filter(|r| r.total_ns > 0).collect();
    WindowProfile {
        events: 10,
        kernels: 2,
        span_ns: Some(1_000_000),
        kernel_times,
        operators: vec![operator("outer", 400_000, 100_000), operator("inner", 300_000, 300_000)],
        devices: Some(vec![Device {
            device: 0,
            busy_ns: (a + b) * 1000,
            gaps_ns: vec![1_000, 9_000],
            gap_in_operator_ns: 5_000,
            gap_in_step_ns: Some(1_000),
        }]),
        ..WindowProfile::default()
    }
}

fn step(number: u64, wall_ns: u64, gpu_ns: u64) -> Step {
    Step { number, start_ns: 0, wall_ns, gpu_ns: Some(gpu_ns) }
}

fn of(list: Vec<(Place, WindowProfile)>, facts: Facts) -> ProfileSummary {
    let mut aggregate = Aggregate::default();
    for (place, profile) in list {
        aggregate.push(place, facts.of(place), profile);
    }
    aggregate.finish().unwrap()
}

#[test]
fn shares_are_means_over_windows_with_their_spread() {
    // Shares of a: 0.5, 0.75, 1.0; a longer window does not weigh more.
    let list =
        vec![(Some((0, 0)), window(50, 50)), (Some((0, 1)), window(75, 25)), (Some((0, 2)), window(400, 0))];
    let summary = of(list, Facts::default());
    assert_eq!((summary.windows, summary.traces, summary.ranks), (3, 3, Some(1)));
    let [a, b] = &summary.kernels[..] else { panic!("{:?}", summary.kernels) };
    assert_eq!((a.name.as_str(), a.count, a.total_s), ("a", 3, 0.000_525));
    assert_eq!((a.share.mean, a.share.min, a.share.max, a.share.windows), (0.75, 0.5, 1.0, 3));
    // Standard deviation 0.25; 4.303 * 0.25 / sqrt(3) = 0.621; a share is at most 1.
    assert_eq!(a.share.ci95, Some([0.128_915, 1.0]));
    // b is not in the last window: 0 there.
    assert_eq!((b.name.as_str(), b.share.mean, b.share.min, b.share.max), ("b", 0.25, 0.0, 0.5));
    let gpu = summary.gpu.unwrap();
    let busy = gpu.busy.unwrap();
    assert_eq!((busy.mean, busy.min, busy.max), (0.2, 0.1, 0.4));
    assert_eq!((gpu.kernel_s, gpu.copy_s, gpu.distinct_kernels), (0.0006, 0.0, 2));
    assert!(gpu.busy_by_rank.is_empty());
    let gaps = gpu.gaps.unwrap();
    assert_eq!((gaps.count, gaps.total_s, gaps.median_us, gaps.longest_us), (6, 0.000_03, 1.0, 9.0));
    assert_eq!((gaps.in_operators, gaps.in_steps), (0.5, Some(0.1)));
}

#[test]
fn two_windows_have_no_interval() {
    let summary = of(vec![(Some((0, 0)), window(50, 50)), (Some((0, 1)), window(75, 25))], Facts::default());
    assert_eq!(summary.kernels[0].share.ci95, None);
}

#[test]
fn ranks_of_a_window_are_one_window() {
    let list = vec![(Some((0, 7)), window(50, 50)), (Some((1, 7)), window(300, 100))];
    let summary = of(list, Facts::default());
    assert_eq!((summary.windows, summary.traces, summary.ranks), (1, 2, Some(2)));
    assert_eq!(summary.recorded_s, 0.001);
    // 0.5 on one rank, 0.75 on the other.
    assert_eq!(summary.kernels[0].share.mean, 0.625);
    let gpu = summary.gpu.unwrap();
    assert_eq!(gpu.busy.unwrap().mean, 0.25);
    assert_eq!(gpu.busy_by_rank, [(0, 0.1), (1, 0.4)]);
}

#[test]
fn the_warm_up_counts_only_where_nothing_was_measured_and_that_is_told() {
    let index = r#"{"event":"opened","rank":0,"t":1,"window":0,"phase":"warm-up"}
{"event":"closed","rank":0,"t":2,"window":0,"phase":"warm-up"}
{"event":"opened","rank":0,"t":5,"window":1,"phase":"warm-up"}
{"event":"closed","rank":0,"t":6.5,"window":1,"phase":"measuring"}
{"event":"opened","rank":0,"t":8,"window":2,"phase":"measuring"}
{"event":"closed","rank":0,"t":9.5,"window":2,"phase":"measuring"}"#;
    let warm = (Some((0, 0)), window(50, 50));
    let list = vec![warm.clone(), (Some((0, 1)), window(75, 25)), (Some((0, 2)), window(75, 25))];
    let summary = of(list, composition::parse(index));
    assert_eq!((summary.windows, summary.kernels[0].share.mean, summary.observed_s), (2, 0.75, Some(4.5)));
    assert_eq!(summary.notes, ["1 window outside of the measuring phase"]);
    let summary = of(vec![warm], composition::parse(index));
    assert_eq!((summary.windows, summary.observed_s, summary.notes.len()), (1, Some(1.0), 0));
}

#[test]
fn ranks_that_drift_are_still_one_window() {
    // As data parallel engines close their windows; the last comes far too late and stands alone.
    let places = [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (0, 3), (0, 4), (0, 5), (1, 2), (1, 0)];
    let list = places.map(|place| (Some(place), window(50, 50))).to_vec();
    let summary = of(list, Facts::default());
    assert_eq!((summary.traces, summary.windows, summary.ranks), (10, 7, Some(2)));
}

#[test]
fn traces_of_unknown_place_are_windows_of_their_own() {
    let summary = of(vec![(None, window(1, 1)), (None, window(1, 1))], Facts::default());
    assert_eq!((summary.windows, summary.ranks), (2, None));
}

#[test]
fn operators_are_ranked_by_self_time_and_by_total_time() {
    let summary = of(vec![(None, window(1, 1))], Facts::default());
    let names = |list: &[OperatorShare]| list.iter().map(|row| row.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&summary.operators), ["inner", "outer"]);
    assert_eq!(names(&summary.operators_by_total), ["outer", "inner"]);
    assert_eq!(summary.operators[0].share.mean, 0.75);
}

#[test]
fn prefill_and_decode_are_told_apart_by_the_index() {
    let index = r#"{"event":"closed","rank":0,"pid":9,"t":4.0,"window":0,"first_step":40,"last_step":43,"batch":[[128,0,1],[0,3,3],[0,5,5]]}"#;
    let steps =
        vec![step(40, 9_000_000, 7_000_000), step(41, 2_000_000, 1_000_000), step(42, 4_000_000, 3_000_000)];
    let profile = WindowProfile { steps, ..window(1, 1) };
    let other = WindowProfile { steps: vec![step(90, 5_000_000, 1)], ..window(1, 1) };
    // Rank 1 saw the same steps: they are not counted twice.
    let list = vec![(Some((0, 0)), profile.clone()), (Some((1, 0)), profile), (Some((0, 1)), other)];
    let summary = of(list, composition::parse(index));
    assert_eq!(summary.steps, 4);
    let [prefill, decode, unknown] = &summary.step_groups[..] else { panic!("{:?}", summary.step_groups) };
    assert_eq!((prefill.kind, prefill.steps, prefill.windows), (StepKind::Prefill, 1, 1));
    assert_eq!((prefill.wall_ms, prefill.gpu_ms, prefill.prefill_tokens), (9.0, Some(7.0), Some(128.0)));
    assert_eq!(
        (decode.kind, decode.steps, decode.wall_ms, decode.gpu_ms),
        (StepKind::Decode, 2, 2.0, Some(1.0))
    );
    assert_eq!((decode.decode_tokens, decode.requests), (Some(4.0), Some(4.0)));
    assert_eq!((unknown.kind, unknown.steps, unknown.decode_tokens), (StepKind::Unknown, 1, None));
}

#[test]
fn a_gpu_time_that_is_unknown_for_some_steps_is_unknown() {
    let mut lacking = step(2, 1, 1);
    lacking.gpu_ns = None;
    let profile = WindowProfile { steps: vec![step(1, 1, 1), lacking], ..window(1, 1) };
    assert_eq!(of(vec![(None, profile)], Facts::default()).step_groups[0].gpu_ms, None);
}

#[test]
fn a_cpu_has_no_gpu_section_and_no_kernels() {
    let profile = WindowProfile { kernel_times: Vec::new(), devices: Some(Vec::new()), ..window(0, 0) };
    let summary = of(vec![(None, profile)], Facts::default());
    assert_eq!(summary.gpu, None);
    assert!(summary.kernels.is_empty());
    assert_eq!(summary.operators.len(), 2);
}

#[test]
fn no_trace_gives_no_summary() {
    assert_eq!(Aggregate::default().finish(), None);
}

#[test]
fn a_summary_survives_being_written_and_read_to_the_last_digit() {
    let list = (0..7).map(|n| (Some((0, n)), window(7 + u64::from(n) * 13, 11))).collect();
    let summary = of(
        list,
        composition::parse(
            r#"{"event":"opened","rank":0,"window":0,"t":1795500000.123}
{"event":"closed","rank":0,"window":0,"t":1795500100.456}"#,
        ),
    );
    let text = serde_json::to_string(&summary).unwrap();
    let again: ProfileSummary = serde_json::from_str(&text).unwrap();
    assert_eq!(again, summary);
    assert_eq!(serde_json::to_string(&again).unwrap(), text);
}

#[test]
fn students_t_is_that_of_the_tables() {
    for (df, t) in [(2, 4.303), (10, 2.228), (11, 2.201), (20, 2.086), (30, 2.042), (120, 1.980)] {
        assert!((student(df) - t).abs() < 0.001, "{df}: {}", student(df));
    }
}

#[test]
fn a_note_is_told_once_and_no_more_than_a_handful() {
    let noted = |note: &str| WindowProfile { notes: vec![note.to_owned()], ..window(1, 1) };
    let list = |notes: &[String]| {
        let list = (0..).zip(notes).map(|(number, note)| (Some((0, number)), noted(note))).collect();
        of(list, Facts::default()).notes
    };
    assert_eq!(list(&["a", "b", "a"].map(str::to_owned)), ["a", "b"]);
    let many: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    assert_eq!(list(&many).len(), MAX_NOTES);
}

#[test]
fn a_rank_without_gpu_work_takes_no_share_from_the_others() {
    let list = vec![(Some((0, 7)), window(50, 50)), (Some((1, 7)), window(0, 0))];
    let summary = of(list, Facts::default());
    assert_eq!((summary.windows, summary.kernels[0].share.mean), (1, 0.5));
}
