//! What a drill says: a line for each run as it ends, a table of several, and one last line.

use super::config::Users;
use super::play::Played;
use super::scenario::Scenario;
use crate::time::human;
use serde_json::{Value, json};
use std::time::Duration;

/// All runs of one scenario.
#[derive(Debug)]
pub(super) struct Row<'a> {
    /// Which.
    pub(super) scenario: &'a Scenario,
    /// Its runs.
    pub(super) runs: Vec<&'a Played>,
}

/// Middle and worst of a list.
fn spread(mut values: Vec<Duration>) -> Option<(Duration, Duration)> {
    values.sort_unstable();
    let worst = *values.last()?;
    // The lower one of two middles: a time that was really seen.
    Some((values[(values.len() - 1) / 2], worst))
}

impl Row<'_> {
    fn detect(&self) -> Option<(Duration, Duration)> {
        spread(self.runs.iter().filter_map(|run| run.times.detect).collect())
    }

    fn clean(&self) -> Option<(Duration, Duration)> {
        spread(self.runs.iter().filter_map(|run| run.times.clean).collect())
    }

    /// As JSON.
    pub(super) fn json(&self) -> Value {
        let pair = |pair: Option<(Duration, Duration)>| {
            pair.map(
                |(median, worst)| json!({"median_s": median.as_secs_f64(), "worst_s": worst.as_secs_f64()}),
            )
        };
        let patience = self.runs.iter().filter_map(|run| run.times.patience).max();
        json!({
            "scenario": self.scenario.name(), "about": self.scenario.about, "runs": self.runs.len(),
            "wrong": self.runs.iter().filter(|run| !run.wrong.is_empty()).count(),
            "leaks": self.runs.iter().map(|run| run.leaks.len()).sum::<usize>(),
            "false_kills": self.runs.iter().filter(|run| run.false_kill).count(),
            "healthy": self.scenario.expect.is_healthy(),
            "detect": pair(self.detect()), "clean": pair(self.clean()),
            "patience_s": patience.map(|patience| patience.as_secs_f64()),
        })
    }
}

/// What a run came to, in few words.
fn outcome(played: &Played) -> String {
    let seen = &played.seen;
    let end = match (seen.exit, seen.signal) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => crate::event::signal_name(signal),
        (None, None) => "no end".to_owned(),
    };
    let attempts =
        if seen.attempts == 1 { "1 attempt".to_owned() } else { format!("{} attempts", seen.attempts) };
    let mut causes: Vec<&str> = seen.causes.iter().map(String::as_str).collect();
    causes.dedup();
    let causes = if causes.is_empty() { String::new() } else { format!(": {}", causes.join(", ")) };
    format!("{end}, {attempts}{causes}")
}

fn short(time: Option<Duration>) -> String {
    time.map_or("-".to_owned(), human)
}

/// The line of one run.
pub(super) fn line(scenario: &Scenario, played: &Played) -> String {
    let word = match (played.interrupted, played.is_good(), played.wrong.is_empty()) {
        (true, ..) => "stop",
        (_, true, _) => "ok",
        (_, _, false) => "WRONG",
        _ => "LEAK",
    };
    let (detect, clean) = (short(played.times.detect), short(played.times.clean));
    let mut text = format!(
        "{word:<5} {:<28} {:<44} detected {detect:>7}  clean {clean:>7}  {:>6}",
        scenario.name(),
        outcome(played),
        human(played.took)
    );
    if !played.interrupted && !played.is_good() {
        for wrong in &played.wrong {
            text.push_str(&format!("\n      {wrong}"));
        }
        for leak in &played.leaks {
            text.push_str(&format!("\n      left behind: {leak}"));
        }
        text.push_str(&format!("\n      see {}", played.folder.display()));
    }
    text
}

/// The same as JSON.
pub(super) fn json_line(scenario: &Scenario, played: &Played) -> String {
    json!({
        "scenario": scenario.name(), "ok": played.is_good(), "interrupted": played.interrupted,
        "expected": expected(scenario), "seen": played.seen, "wrong": played.wrong, "leaks": played.leaks,
        "false_kill": played.false_kill, "times": played.times, "took_s": played.took.as_secs_f64(),
        "folder": (!played.is_good()).then_some(&played.folder),
    })
    .to_string()
}

fn expected(scenario: &Scenario) -> Value {
    let expect = &scenario.expect;
    json!({
        "exit": expect.exit, "signal": expect.signal, "attempts": expect.attempts, "causes": expect.causes,
        "hang": expect.hang, "rules": expect.rules, "changed": expect.changed, "saved": expect.saved,
        "left": expect.left,
    })
}

/// The table of scenarios that were run several times.
pub(super) fn table(rows: &[Row<'_>]) -> String {
    let mut text = format!(
        "\n{:<28} {:>5} {:>5} {:>5}   {:>9} {:>9}   {:>9} {:>9}\n",
        "scenario", "runs", "wrong", "leaks", "detected", "worst", "clean", "worst"
    );
    for row in rows {
        let value = row.json();
        let pair = |pair: Option<(Duration, Duration)>| {
            (short(pair.map(|pair| pair.0)), short(pair.map(|pair| pair.1)))
        };
        let (detect, clean) = (pair(row.detect()), pair(row.clean()));
        text.push_str(&format!(
            "{:<28} {:>5} {:>5} {:>5}   {:>9} {:>9}   {:>9} {:>9}\n",
            row.scenario.name(),
            row.runs.len(),
            value["wrong"],
            value["leaks"],
            detect.0,
            detect.1,
            clean.0,
            clean.1
        ));
    }
    text
}

/// What was asked for, before it begins.
pub(super) fn head(
    scenarios: usize,
    repeat: u32,
    jobs: usize,
    config: Option<&str>,
    users: &Users,
) -> String {
    let times = if repeat == 1 { String::new() } else { format!(", {repeat} times each") };
    let mut text = format!("drill: {scenarios} scenarios{times}, {jobs} at a time");
    if let Some(config) = config {
        let list = |keys: &[String]| if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
        text.push_str(&format!("\nof {config} holds: {}", list(&users.kept)));
        if !users.replaced.is_empty() {
            text.push_str(&format!("\nthe drill sets itself: {}", list(&users.replaced)));
        }
    }
    text
}

/// The sums of a drill.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// Runs that came to their end.
    pub(super) runs: usize,
    /// Runs that were not as expected.
    pub(super) wrong: usize,
    /// Things left behind.
    pub(super) leaks: usize,
    /// Runs in which nothing had to be killed.
    pub(super) healthy: usize,
    /// Those in which something was.
    pub(super) false_kills: usize,
}

impl Sums {
    /// Adds them up.
    pub(super) fn of(rows: &[Row<'_>]) -> Self {
        let mut sums = Self::default();
        for row in rows {
            let runs = row.runs.len();
            sums.runs += runs;
            sums.wrong += row.runs.iter().filter(|run| !run.wrong.is_empty()).count();
            sums.leaks += row.runs.iter().map(|run| run.leaks.len()).sum::<usize>();
            sums.healthy += if row.scenario.expect.is_healthy() { runs } else { 0 };
            sums.false_kills += row.runs.iter().filter(|run| run.false_kill).count();
        }
        sums
    }

    /// Whether everything was as expected.
    pub(super) fn are_good(self) -> bool {
        self.wrong == 0 && self.leaks == 0
    }

    /// The last line.
    pub(super) fn line(self, took: Duration) -> String {
        let runs = if self.runs == 1 { "1 run".to_owned() } else { format!("{} runs", self.runs) };
        let good =
            if self.are_good() { "all as expected".to_owned() } else { format!("{} WRONG", self.wrong) };
        let left = match self.leaks {
            0 => "nothing".to_owned(),
            1 => "1 THING".to_owned(),
            leaks => format!("{leaks} THINGS"),
        };
        let kills = if self.false_kills == 1 { "kill" } else { "kills" };
        format!(
            "{runs}: {good}, {left} left behind, {} false {kills} in {} healthy, in {}",
            self.false_kills,
            self.healthy,
            human(took)
        )
    }

    /// The same as JSON.
    pub(super) fn json(self, took: Duration) -> Value {
        json!({
            "runs": self.runs, "wrong": self.wrong, "leaks": self.leaks, "healthy": self.healthy,
            "false_kills": self.false_kills, "took_s": took.as_secs_f64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_a_list_is_a_time_that_was_seen() {
        let list = |seconds: &[u64]| seconds.iter().map(|s| Duration::from_secs(*s)).collect();
        assert_eq!(spread(list(&[3, 1, 2, 9])), Some((Duration::from_secs(2), Duration::from_secs(9))));
        assert_eq!(spread(list(&[5])), Some((Duration::from_secs(5), Duration::from_secs(5))));
        assert_eq!(spread(Vec::new()), None);
    }

    #[test]
    fn the_last_line_says_what_was_wrong() {
        let good = Sums { runs: 3, healthy: 1, ..Sums::default() };
        let line = good.line(Duration::from_secs(60));
        assert_eq!(line, "3 runs: all as expected, nothing left behind, 0 false kills in 1 healthy, in 60 s");
        let bad = Sums { wrong: 1, leaks: 2, ..good };
        assert!(bad.line(Duration::from_secs(60)).contains("1 WRONG, 2 THINGS left behind"));
        assert!(!bad.are_good());
    }
}
