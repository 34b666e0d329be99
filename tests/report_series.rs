//! What the charts are made of: nothing is lost but detail, and memory stays bounded.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod report_support;

use proptest::prelude::*;
use report_support::{Story, ending, full, long};
use std::time::Duration;
use varcas_guard::event::{
    EngineSample, EventKind, HangKind, LoadProgress, Outcome, Phase, Reading, Suspicion, SuspicionStep,
    WindowEvent,
};
use varcas_guard::recovery::report::series::{Metric, Track, of};

fn open(in_flight: u64) -> EventKind {
    EventKind::LoadProgressed(LoadProgress { in_flight, ..LoadProgress::default() })
}

fn track(story: &Story, attempt: u32) -> Track {
    of(&story.events).track(attempt).unwrap().clone()
}

proptest! {
    #[test]
    fn bins_keep_count_extremes_and_mean_of_whatever_came(values in prop::collection::vec((0..900_000_u64, 0..10_000_u64), 1..400)) {
        let mut story = Story::begin();
        story.attempt();
        for (pause, value) in &values {
            story.wait(*pause).say(open(*value));
        }
        let track = track(&story, 1);
        let bins: Vec<_> = track.bins(Metric::Open).iter().filter(|bin| bin.n > 0).collect();
        let numbers: Vec<f64> = values.iter().map(|(_, value)| *value as f64).collect();
        prop_assert!(track.bins(Metric::Open).len() <= 180);
        prop_assert_eq!(bins.iter().map(|bin| bin.n).sum::<u64>(), values.len() as u64);
        let (low, high) = (bins.iter().map(|b| b.min).fold(f64::MAX, f64::min), bins.iter().map(|b| b.max).fold(0.0, f64::max));
        prop_assert_eq!(low, numbers.iter().copied().fold(f64::MAX, f64::min));
        prop_assert_eq!(high, numbers.iter().copied().fold(0.0, f64::max));
        let sum: f64 = bins.iter().map(|bin| bin.mean().unwrap() * bin.n as f64).sum();
        prop_assert!((sum - numbers.iter().sum::<f64>()).abs() < 1e-3 * (1.0 + sum));
        // Each bin lies where it says, or a chart would show it elsewhere.
        for (index, bin) in track.bins(Metric::Open).iter().enumerate().filter(|(_, bin)| bin.n > 0) {
            let at = bin.moment().unwrap() / track.width.as_secs_f64();
            prop_assert!(at >= index as f64 - 1e-6 && at <= index as f64 + 1.0 + 1e-6);
        }
    }

    #[test]
    fn windows_are_all_covered_by_their_bands(pauses in prop::collection::vec((10..100_000_u64, 10..3000_u64), 1..600)) {
        let mut story = Story::begin();
        story.attempt();
        let mut recorded = Vec::new();
        let mut now = 0;
        for (window, (rest, length)) in pauses.iter().enumerate() {
            let window = u32::try_from(window).unwrap();
            story.wait(*rest).window(WindowEvent::Opened { window, step: 0, phase: String::new() });
            story.wait(*length).window(WindowEvent::Flushing { window });
            recorded.push((now + rest, now + rest + length));
            now += rest + length;
        }
        let track = track(&story, 1);
        prop_assert!(track.windows.list().len() <= 160);
        prop_assert_eq!(track.windows.count(), pauses.len() as u64);
        // The attempt began 23.5 s before the first pause.
        let begin = 23.5;
        for (from, to) in recorded {
            let middle = begin + (from + to) as f64 / 2e3;
            prop_assert!(track.windows.list().iter().any(|(a, b)| a.as_secs_f64() <= middle && middle <= b.as_secs_f64()), "{middle}");
        }
    }
}

#[test]
fn rates_come_from_counters_and_never_across_a_silence() {
    let mut story = Story::begin();
    story.attempt();
    let sample = |tokens: f64| {
        EventKind::EngineSampled(Reading::Value(EngineSample {
            generation_tokens: tokens,
            ..EngineSample::default()
        }))
    };
    let silence = || EventKind::EngineSampled(Reading::Unavailable { why: "no answer".to_owned() });
    story.say(sample(1000.0)).wait(2000).say(sample(1500.0)).wait(1000).say(silence());
    // Four seconds of silence are no rate of 25 tokens/s, and a counter that begins anew is none of -1500.
    story.wait(4000).say(sample(1600.0)).wait(1000).say(sample(100.0)).wait(1000).say(sample(180.0));
    let track = track(&story, 1);
    let rates: Vec<f64> = track.bins(Metric::OutputRate).iter().filter_map(|bin| bin.mean()).collect();
    assert_eq!(rates, [250.0, 80.0]);
    assert!(track.bins(Metric::OutputRate).iter().any(|bin| bin.lost), "the gap must show");
}

#[test]
fn a_standstill_is_a_band_from_its_beginning_to_its_end() {
    let mut story = Story::begin();
    story.attempt().wait(10_000);
    let said = |step, still| {
        EventKind::Suspicion(Suspicion {
            step,
            kind: HangKind::GpuSpin,
            still: Duration::from_secs(still),
            patience: Duration::from_secs(60),
            reasons: vec![],
        })
    };
    story.say(said(SuspicionStep::Suspect, 4)).wait(6000).say(said(SuspicionStep::Confirmed, 10));
    story.wait(1000).say(said(SuspicionStep::Cleared, 0)).wait(5000);
    let track = track(&story, 1);
    let [(from, to)] = track.pauses.list() else { panic!("{:?}", track.pauses) };
    assert_eq!((from.as_secs_f64(), to.as_secs_f64()), (29.5, 40.5));
    assert!(track.stills.list().is_empty(), "it went on");
    // The one that ended the attempt.
    story.say(said(SuspicionStep::Suspect, 3)).wait(2000).say(said(SuspicionStep::Act, 5));
    story.end(&ending(Outcome::Hang, "nothing moves", Phase::Measuring));
    let track = self::track(&story, 1);
    let [(from, to)] = track.stills.list() else { panic!("{:?}", track.stills) };
    assert_eq!((from.as_secs_f64(), to.as_secs_f64()), (42.5, 47.5));
    assert_eq!((track.pauses.list().len(), track.failed_at), (1, Some(*to)));
}

#[test]
fn the_track_of_the_attempt_that_counts_is_kept_among_many() {
    let story = long(20_000, 60);
    let series = of(&story.events);
    let kept: Vec<u32> = (1..=60).filter(|attempt| series.track(*attempt).is_some()).collect();
    assert_eq!(kept, [1, 2, 3, 56, 57, 58, 59, 60]);
    assert_eq!(series.left_out, 52);
}

#[test]
fn a_window_that_nobody_closed_ends_with_the_attempt() {
    let mut story = Story::begin();
    story.attempt();
    story.window(WindowEvent::Opened { window: 0, step: 0, phase: String::new() }).wait(4000);
    story.say(open(1));
    let track = track(&story, 1);
    let [(from, to)] = track.windows.list() else { panic!("{:?}", track.windows) };
    assert_eq!((*to - *from).as_secs(), 4);
}

#[test]
fn every_metric_of_a_full_run_has_a_line() {
    let track = track(&full(), 2);
    for metric in [
        Metric::Sent,
        Metric::Completed,
        Metric::Open,
        Metric::Running,
        Metric::OutputRate,
        Metric::PieceRate,
        Metric::TtftMedian,
        Metric::KvUsage,
        Metric::GpuUtil,
        Metric::GpuPower,
        Metric::GpuMemory,
        Metric::Rss,
        Metric::Cores,
    ] {
        assert!(track.has_line(metric), "{metric:?}");
    }
}
