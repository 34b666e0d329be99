use super::*;
use proptest::prelude::*;
use std::sync::LazyLock;

/// Building them takes a good part of a second without optimisation.
static RULES: LazyLock<Rules> = LazyLock::new(Rules::builtin);

fn errors(text: &str) -> Vec<String> {
    Rules::load(&[("mine.toml", text)]).err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

const MINE: &str = r#"
[[rule]]
id = "mine"
pattern = 'boom \d+'
cause = "my-cause"
severity = "suspect"
phases = ["measuring"]
source = "me"
example = "boom 7"
near_misses = ["boom x"]
"#;

fn scan(rules: &Rules, text: &[u8], phase: Phase, piece: usize) -> Vec<Finding> {
    let mut scanner = LogScanner::new();
    let mut findings = Vec::new();
    for piece in text.chunks(piece) {
        scanner.push(rules, phase, piece, &mut findings);
    }
    scanner.end_of_text(rules, phase, &mut findings);
    findings
}

#[test]
fn every_built_in_example_is_found_as_what_it_is() {
    let rules = &*RULES;
    for rule in rules.rules() {
        let phase = *rule.phases.first().unwrap();
        let (found, gravity) = rules.classify(&rule.example, phase).unwrap();
        assert_eq!((&found.cause, gravity), (&rule.cause, rule.gravity), "{}", rule.id);
        assert_eq!(scan(rules, rule.example.as_bytes(), phase, 1000).len(), 1, "{}", rule.id);
        assert!(!rule.near_misses.is_empty() && !rule.source.is_empty(), "{}", rule.id);
    }
}

#[test]
fn a_rule_of_the_user_counts_beside_the_built_in_ones() {
    let rules = Rules::load(&[("mine.toml", MINE)]).unwrap();
    let (rule, gravity) = rules.classify("xx boom 12", Phase::Measuring).unwrap();
    assert_eq!((rule.cause.as_str(), gravity), ("my-cause", Gravity::Suspect));
    assert!(rules.classify("CUDA out of memory. Tried to allocate 1 GiB", Phase::Loading).is_some());
}

#[test]
fn a_match_outside_its_phases_is_only_a_consequence() {
    let rules = &*RULES;
    let line = "No available shared memory broadcast block found in 60 seconds.";
    assert_eq!(rules.classify(line, Phase::Measuring).unwrap().1, Gravity::Suspect);
    assert_eq!(rules.classify(line, Phase::Loading).unwrap().1, Gravity::Consequence);
    let died = "Engine core proc EngineCore_DP0 died unexpectedly, shutting down client.";
    assert_eq!(rules.classify(died, Phase::Measuring).unwrap().1, Gravity::Fatal);
    assert_eq!(rules.classify(died, Phase::Stopping).unwrap().1, Gravity::Consequence);
}

#[test]
fn a_bad_pattern_is_refused_with_file_and_line() {
    let text = MINE.replace(r"boom \d+", "boom (");
    assert_eq!(errors(&text).len(), 1);
    assert!(
        errors(&text)[0].starts_with("mine.toml:4: rule \"mine\": the pattern is not valid"),
        "{:?}",
        errors(&text)
    );
}

#[test]
fn a_pattern_without_a_fixed_text_is_refused() {
    for pattern in [r"\d+ \w+", "boo|[0-9]+", "(?i)boom 7|boom 7", "bo+m 7?"] {
        let text = MINE.replace(r"boom \d+", pattern);
        assert!(errors(&text)[0].contains("fixed text"), "{pattern}: {:?}", errors(&text));
    }
}

#[test]
fn an_example_that_does_not_match_and_a_near_miss_that_does_are_refused_with_their_lines() {
    assert!(errors(&MINE.replace("\"boom 7\"", "\"bang 7\""))[0].starts_with("mine.toml:9: "));
    assert!(errors(&MINE.replace("boom x", "boom 1"))[0].starts_with("mine.toml:10: "));
}

#[test]
fn a_duplicate_id_names_the_first_one() {
    let text = format!("{MINE}{MINE}");
    assert!(errors(&text)[0].contains("taken by mine.toml:3"), "{:?}", errors(&text));
    assert!(errors(&MINE.replace("\"mine\"", "\"cuda-oom\""))[0].contains("taken by built-in rules:"));
}

#[test]
fn every_mistake_is_told_at_once_and_broken_toml_has_a_line() {
    let two = format!(
        "{}{}",
        MINE.replace("boom x", "boom 1"),
        MINE.replace("\"mine\"", "\"other\"").replace("\"boom 7\"", "\"\"")
    );
    assert_eq!(errors(&two).len(), 2);
    assert!(errors("\n\n[[rule]]\nid = 7\n")[0].starts_with("mine.toml:"));
    assert!(errors(&MINE.replace("cause", "cuase"))[0].contains("cuase"));
    assert!(errors(&MINE.replace("\"suspect\"", "\"bad\""))[0].starts_with("mine.toml:6"));
}

#[test]
fn findings_carry_line_and_offset_and_no_colours() {
    let rules = &*RULES;
    let text = b"one\ntwo\r\n\x1b[0;36m(APIServer pid=7)\x1b[0;0m \xff CUDA out of memory. Tried to allocate 1\r\nfour\n";
    for piece in [1, 3, 1000] {
        let findings = scan(rules, text, Phase::Loading, piece);
        assert_eq!(findings.len(), 1, "in pieces of {piece}");
        assert_eq!((findings[0].line, findings[0].offset), (3, 9));
        assert_eq!(findings[0].text, "(APIServer pid=7) \u{fffd} CUDA out of memory. Tried to allocate 1");
    }
}

#[test]
fn a_line_that_comes_for_ever_is_told_a_few_times() {
    let text = "Too many open files\n".repeat(1234);
    let counts: Vec<u64> =
        scan(&RULES, text.as_bytes(), Phase::Measuring, 64).iter().map(|found| found.count).collect();
    assert_eq!(counts, [1, 2, 3, 10, 100, 1000]);
}

#[test]
fn a_needle_at_the_end_of_ten_megabytes_without_a_line_break_is_found_and_cut() {
    let mut text = vec![b'x'; 10 << 20];
    text.extend_from_slice(b" CUDA out of memory. Tried to allocate 1 GiB");
    text.extend_from_slice(&vec![b'y'; 1 << 20]);
    let findings = scan(&RULES, &text, Phase::Loading, 4 << 20);
    assert_eq!(findings.len(), 1);
    assert!(findings[0].text.len() <= MAX_TEXT + 3);
}

proptest! {
    #[test]
    fn the_pieces_a_log_comes_in_change_nothing(
        lines in prop::collection::vec(prop::sample::select(vec![
            "INFO all is well", "", "Too many open files", "\u{1b}[0mEngineDeadError: x", "ptxas fatal   : y", "PTXASErro",
        ]), 0..12),
        piece in 1usize..40,
    ) {
        let rules = &*RULES;
        let text = lines.join("\n");
        let whole = scan(rules, text.as_bytes(), Phase::Measuring, 10_000);
        prop_assert_eq!(scan(rules, text.as_bytes(), Phase::Measuring, piece), whole.clone());
        // The prefilter may only be faster than asking every line, never blind.
        let known = lines.iter().filter(|line| rules.classify(line, Phase::Measuring).is_some()).count();
        let told = whole.iter().filter(|found| found.count <= 3).count();
        prop_assert!(told <= known && (known == 0) == (told == 0));
    }

    #[test]
    fn no_bytes_make_the_scanner_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), piece in 1usize..50) {
        scan(&RULES, &bytes, Phase::Loading, piece);
    }
}

#[test]
fn the_built_in_needles_are_searched_for_with_the_fast_search() {
    let all = Rules::builtin();
    let needles = fewest(all.rules.iter().flat_map(|rule| needles_of(&rule.pattern).unwrap()).collect());
    println!("{} rules, {} needles", all.rules.len(), needles.len());
    assert!(matches!(all.prefilter, Prefilter::Packed(_)), "the other search takes 3.5 MB more");
}
