//! The rules against labelled failure logs and whole server logs that lie beside the checkout. Nothing of them is
//! copied here; without them these tests say that they did nothing.

mod cases_support;

use cases_support::{Case, cases, shared};
use std::sync::LazyLock;
use varcas_guard::event::{Finding, Gravity, Phase};
use varcas_guard::health::log_rules::{LogScanner, Rules};

/// Building them takes a good part of a second without optimisation.
static RULES: LazyLock<Rules> = LazyLock::new(Rules::builtin);

fn scan(rules: &Rules, text: &[u8], phase: Phase) -> Vec<Finding> {
    let mut scanner = LogScanner::new();
    let mut findings = Vec::new();
    scanner.push(rules, phase, text, &mut findings);
    scanner.end_of_text(rules, phase, &mut findings);
    findings
}

/// The phase a case is about.
fn phase_of(case: &Case) -> Phase {
    match case.outcome.as_str() {
        "startup-failure" => Phase::Loading,
        _ => Phase::Measuring,
    }
}

fn number_of(log: &str, line: &str) -> u64 {
    log.lines()
        .position(|candidate| candidate.trim_end() == line.trim_end())
        .map_or(0, |index| index as u64 + 1)
}

#[test]
fn every_case_has_its_decisive_line_found_with_its_class() {
    let Some(cases) = cases() else { return };
    let rules = &*RULES;
    let mut missed = Vec::new();
    let mut verbatim = 0;
    for case in &cases {
        let wanted = number_of(&case.log, &case.decisive_line);
        let findings = scan(rules, case.log.as_bytes(), phase_of(case));
        if !findings.iter().any(|found| found.line == wanted && found.cause == case.class) {
            missed.push(format!("{}: {:?} line {wanted}\n   {findings:?}", case.id, case.decisive_line));
        }
        verbatim += usize::from(case.provenance.ends_with("verbatim"));
    }
    assert!(missed.is_empty(), "{} of {} missed:\n{}", missed.len(), cases.len(), missed.join("\n"));
    println!("{} cases, {verbatim} of them verbatim", cases.len());
    assert_eq!(verbatim, 29);
}

#[test]
fn the_root_of_the_findings_is_the_class_of_the_case() {
    let Some(cases) = cases() else { return };
    let rules = &*RULES;
    let mut wrong = Vec::new();
    for case in cases.iter().filter(|case| case.outcome != "harmless") {
        let findings = scan(rules, case.log.as_bytes(), phase_of(case));
        let root = Finding::root(&findings.iter().collect::<Vec<_>>());
        if root.is_none_or(|root| root.cause != case.class) {
            wrong.push(format!("{} ({}): {root:?}", case.id, case.class));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_harmless_or_healthy_case_has_a_fatal_finding_in_any_phase() {
    let Some(cases) = cases() else { return };
    let rules = &*RULES;
    for case in cases.iter().filter(|case| case.outcome == "harmless" || case.class == "healthy") {
        for phase in [Phase::Loading, Phase::WarmUp, Phase::Measuring, Phase::Flushing, Phase::Stopping] {
            for found in scan(rules, case.log.as_bytes(), phase) {
                assert!(found.gravity != Gravity::Fatal, "{} in {phase}: {found:?}", case.id);
            }
        }
    }
}

#[test]
fn a_crash_or_a_failed_start_has_a_fatal_finding() {
    let Some(cases) = cases() else { return };
    let rules = &*RULES;
    // Nothing in these two logs says more than that somebody ended the server.
    let silent = ["startup-timeout-01", "killed-externally-01"];
    for case in cases.iter().filter(|case| ["crash", "startup-failure"].contains(&case.outcome.as_str())) {
        let fatal = scan(rules, case.log.as_bytes(), phase_of(case))
            .iter()
            .any(|found| found.gravity == Gravity::Fatal);
        assert_eq!(fatal, !silent.contains(&case.id.as_str()), "{}", case.id);
    }
}

#[test]
fn a_misleading_line_never_names_another_cause_before_the_decisive_one() {
    let Some(cases) = cases() else { return };
    let rules = &*RULES;
    for case in &cases {
        let decisive = number_of(&case.log, &case.decisive_line);
        for line in &case.misleading_lines {
            let Some((rule, gravity)) = rules.classify(line, phase_of(case)) else { continue };
            let later = number_of(&case.log, line) > decisive;
            let fatal = gravity == Gravity::Fatal;
            assert!(
                !fatal || later || rule.cause == Finding::ENGINE_DEAD,
                "{}: {line:?} is {}",
                case.id,
                rule.id
            );
        }
    }
}

#[test]
fn whole_logs_are_read_without_a_false_fatal_finding() {
    // File, phase, and the rule of the first fatal finding.
    let logs = [
        ("user/healthy-eager-graceful-stop.log", None),
        ("user/profiler-404.log", None),
        ("user/start-profile-then-flush-stall.log", None),
        ("user/benchmark_output.log", None),
        ("measured/cpu-0.15.1-basic.log", None),
        ("measured/cpu-0.15.1-kill-api-during-load.log", None),
        ("measured/cpu-0.15.1-kill-engine-during-load.log", Some("engine-failed-to-start")),
        ("measured/cpu-0.15.1-port-in-use.log", None),
        ("measured/cpu-0.15.1-profiled-enospc.log", None),
        // The engine was killed at its end.
        ("measured/cpu-0.15.1-profiled-worker.log", Some("engine-fatal")),
        ("measured/cpu-0.15.1-sigterm-load.log", None),
        ("measured/cpu-0.15.1-stock-profiler.log", None),
        ("measured/h100-0.22.1-healthy-then-killed.log", None),
        ("measured/h100-0.22.1-missing-flashinfer-module.log", Some("engine-failed-to-start")),
        ("measured/h100-0.22.1-stock-profiler-flush-stall.log", None),
    ];
    let rules = &*RULES;
    for (name, expected) in logs {
        let Some(path) = shared(&format!("logs/{name}")) else { return };
        let text = std::fs::read(path).unwrap();
        for phase in [Phase::Loading, Phase::Measuring] {
            let findings = scan(rules, &text, phase);
            let fatal = findings.iter().find(|found| found.gravity == Gravity::Fatal);
            assert_eq!(fatal.map(|found| found.rule.as_str()), expected, "{name} in {phase}: {fatal:?}");
        }
    }
}
