use super::*;
use crate::config::Plan;
use crate::event::{
    EngineSample, Event, EventKind, Finding, GpuSample, JOURNAL_VERSION, LoadProgress, Phase, ProcId,
    ProcSample,
};
use crate::time::Stamp;
use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

fn busy(words: &str) -> State {
    let mut state = State::default();
    let mut give = |second: u64, kind: EventKind| {
        let at = Stamp { mono: Duration::from_secs(second), wall: jiff::Timestamp::UNIX_EPOCH };
        state.event(&Event { v: JOURNAL_VERSION, seq: 0, at, attempt: 1, kind });
    };
    let guard = ProcId { pid: 1, start: 1 };
    let (run_id, guard_version) = ("vg".to_owned(), "0".to_owned());
    give(0, EventKind::RunStarted { run_id, guard_version, guard, plan: Box::new(Plan::default()) });
    give(0, EventKind::AttemptStarted {});
    give(0, EventKind::PhaseEntered { phase: Phase::Measuring, budget: None });
    give(0, EventKind::LoadStarted { planned: 100, seed: 1 });
    for second in 1..30 {
        let progress = LoadProgress {
            sent: second,
            in_flight: second % 7,
            chunks: second * 90,
            ..LoadProgress::default()
        };
        give(second, EventKind::LoadProgressed(progress));
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let engine = EngineSample { generation_tokens: (second * second) as f64, ..EngineSample::default() };
        give(second, EventKind::EngineSampled(Reading::Value(engine)));
    }
    // A child of a child, and two that claim each other as parents.
    let process = |pid, ppid| ProcSample {
        proc: ProcId { pid, start: 1 },
        ppid,
        comm: words.to_owned(),
        state: 'S',
        cpu_s: 1.5,
        rss: 1 << 30,
        threads: 3,
        read_bytes: None,
        written_bytes: None,
        wchan: Some("futex_wait".to_owned()),
    };
    let processes = vec![process(10, 1), process(11, 10), process(12, 11), process(20, 21), process(21, 20)];
    give(30, EventKind::ProcessesSampled { processes });
    let gpu = GpuSample {
        gpu: 0,
        util: Reading::Value(97),
        mem_util: Reading::Stale,
        power_w: Reading::Value(400.0),
        mem_used: Reading::Value(1 << 36),
        mem_total: Reading::Value(1 << 37),
        xid: Some(79),
        details: None,
    };
    give(30, EventKind::GpusSampled(Reading::Value(vec![gpu])));
    give(
        30,
        EventKind::Finding(Finding {
            rule: "cuda-oom".to_owned(),
            cause: "cuda-oom".to_owned(),
            gravity: Gravity::Fatal,
            line: 2,
            offset: 20,
            text: words.to_owned(),
            count: 3,
            outranks: Vec::new(),
        }),
    );
    let lines =
        (0..40).map(|n| LogLine { offset: n * 20, text: format!("\u{1b}[31mline {n}\u{1b}[0m {words}") });
    state.log(1, false, lines.collect());
    state
}

fn look(unicode: bool) -> Look {
    Look { able: Abilities { frames: true, color: false, unicode }, run: "/runs/tonight".to_owned() }
}

fn screen(state: &State, columns: u16, rows: u16, unicode: bool) -> String {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
    terminal.draw(|target| draw(target, state, &look(unicode), Duration::from_secs(31))).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let cells: Vec<&str> = buffer.content().iter().map(ratatui::buffer::Cell::symbol).collect();
    cells.chunks(columns.into()).map(|row| row.concat() + "\n").collect()
}

#[test]
fn a_screen_of_eighty_columns_has_charts_the_log_with_its_mark_and_the_keys() {
    let mut state = busy("words");
    state.back = 36;
    let shown = screen(&state, 80, 24, true);
    assert!(shown.starts_with("running  /runs/tonight"), "{shown}");
    assert!(
        shown.contains(" tokens/s ") && shown.contains("─[log]─") && shown.contains(" findings 1 "),
        "{shown}"
    );
    assert!(shown.contains("!! line 1 words"), "{shown}");
    assert!(shown.lines().last().unwrap().starts_with("q quit"), "{shown}");
}

#[test]
fn a_guard_is_called_gone_only_when_it_was_looked_for_and_not_found() {
    let mut state = busy("words");
    assert!(screen(&state, 80, 24, true).starts_with("running  "));
    state.orphaned = true;
    assert!(screen(&state, 80, 24, true).starts_with("the guard is gone"));
}

#[test]
fn children_stand_below_their_parents_and_a_circle_of_parents_ends() {
    let mut state = busy("python3");
    state.tab = Tab::Processes;
    let shown = screen(&state, 100, 40, true);
    let at = |pid: &str| shown.find(&format!("      {pid}  S")).unwrap_or_else(|| panic!("{pid}: {shown}"));
    assert!(at("10") < at("11") && at("11") < at("12"), "{shown}");
    let indent = |pid: &str| shown[at(pid)..].lines().next().unwrap().find("python3").unwrap();
    assert!(indent("10") < indent("11") && indent("11") < indent("12"), "{shown}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_tab_can_be_drawn_at_every_size(
        columns in 1..200_u16, rows in 1..70_u16, tab in 0..5_usize, back in 0..100_usize, words in "\\PC{0,60}", unicode: bool
    ) {
        let mut state = busy(&words);
        (state.tab, state.back) = (Tab::ALL[tab].0, back);
        let shown = screen(&state, columns, rows, unicode);
        prop_assert!(unicode || shown.is_ascii(), "{}", shown);
        // A person can always leave.
        prop_assert!(columns < 6 || rows < 3 || shown.lines().last().is_some_and(|line| line.starts_with("q quit")));
    }
}
