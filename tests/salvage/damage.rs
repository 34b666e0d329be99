//! Damaged traces: the output is strict, and nothing in it was invented.

use crate::common::*;
use rand::{Rng, RngExt};
use serde_json::Value;
use std::collections::HashSet;
use varcas_guard::recovery::salvage::{Salvaged, Status};

/// One way to damage a file. Returns the damaged bytes and the range of the original that was touched.
fn damage(kind: &str, bytes: &[u8], rng: &mut impl Rng) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let at = rng.random_range(0..bytes.len());
    let len = rng.random_range(1..4096).min(bytes.len() - at);
    match kind {
        "flip" => out[at] ^= 1 << rng.random_range(0..8),
        "zero" => out[at..at + len].fill(0),
        "double" => {
            let block = bytes[at..at + len].to_vec();
            out.splice(at..at, block);
        }
        "remove" => {
            out.drain(at..at + len);
        }
        other => panic!("no damage is called {other}"),
    }
    out
}

/// Whether an event of the output may be there: it is an event of the original, or a name or arrow end that a cut
/// trace is given back. `grown` counts the others: plain JSON has no checksum, so a changed digit cannot be told.
fn strangers<'o>(output: &'o Value, known: &HashSet<String>, record: &Salvaged) -> Vec<&'o Value> {
    let made_up = |event: &Value| {
        record.status == Status::Salvaged
            && (event["ph"] == "M" || ((event["ph"] == "s" || event["ph"] == "f") && event["dur"].is_null()))
    };
    events(output).iter().filter(|event| !known.contains(&event.to_string()) && !made_up(event)).collect()
}

fn known(text: &[u8]) -> HashSet<String> {
    spans(text)
        .into_iter()
        .map(|span| serde_json::from_slice::<Value>(&text[span]).expect("an event").to_string())
        .collect()
}

/// Damages a plain trace again and again. At most the one event that the damage lies in may read differently.
fn plain(kind: &str, rounds: usize, seed: u64) {
    let bench = Bench::new();
    let mut rng = rng(seed);
    for round in 0..rounds {
        let text = fixture(TRACES[round % TRACES.len()]);
        let broken = damage(kind, &text, &mut rng);
        let (record, output) = bench.one("a.pt.trace.json", &broken);
        let output = output.or_else(|| (record.status == Status::Complete).then(|| read(&record.input)));
        let Some(output) = output else { continue };
        let strange = strangers(&output, &known(&text), &record);
        assert!(strange.len() <= 1, "{kind} {round}: {strange:?}");
        for event in strange {
            let verbatim =
                String::from_utf8_lossy(&broken).contains(event["name"].as_str().unwrap_or_default());
            assert!(verbatim || record.note.contains("mended"), "{kind} {round}: {event} was invented");
        }
    }
}

#[test]
fn a_flipped_bit_of_plain_json_touches_at_most_its_own_event() {
    plain("flip", 60, 1);
}

#[test]
fn a_zeroed_block_of_plain_json_touches_at_most_one_event() {
    plain("zero", 60, 2);
}

#[test]
fn a_doubled_block_of_plain_json_touches_at_most_one_event() {
    plain("double", 60, 3);
}

#[test]
fn removed_bytes_of_plain_json_touch_at_most_one_event() {
    plain("remove", 60, 4);
}

#[test]
fn a_damaged_gzip_gives_a_strict_trace() {
    let bench = Bench::new();
    let mut rng = rng(5);
    for round in 0..12 {
        let text = fixture(TRACES[round % TRACES.len()]);
        let raw = damage(["flip", "zero", "double", "remove"][round % 4], &zip(&text), &mut rng);
        bench.one("a.pt.trace.json.gz", &raw);
    }
}

#[test]
fn what_kineto_writes_wrongly_is_mended() {
    let bench = Bench::new();
    let (record, output) = bench.one("weird.pt.trace.json", &fixture("weird_names"));
    let output = output.unwrap();
    assert_eq!((record.status, record.events_dropped, record.bytes_lost), (Status::Repaired, 0, 0));
    assert_eq!(output["user_json"], serde_json::json!({"nan": null, "inf": null}));
    assert_eq!(output["user_str"], "he said /\"hi/\"");
    assert_eq!(events(&output)[0]["name"], "quote\"in name");
    assert_eq!(record.events_kept, events(&output).len() as u64);
}

const HEAD: &str = "{\n  \"schemaVersion\": 1,\n  \"traceEvents\": [\n";
const GOOD: &str = "  {\n    \"ph\": \"X\", \"cat\": \"cpu_op\", \"name\": \"good\", \"pid\": 1, \"tid\": 2,\n    \"ts\": 1.5, \"dur\": 2\n  }";

fn with_name(name: &[u8]) -> Vec<u8> {
    let broken = [
        b"  {\n    \"ph\": \"X\", \"cat\": \"cpu_op\", \"name\": \"".as_slice(),
        name,
        b"\", \"pid\": 1, \"tid\": 2,\n    \"ts\": 3, \"dur\": 4,\n    \"args\": {\n      \"Ev Idx\": 0\n    }\n  }",
    ]
    .concat();
    [HEAD.as_bytes(), GOOD.as_bytes(), b",\n", &broken, b",\n", GOOD.as_bytes(), b"\n  ]\n}"].concat()
}

#[test]
fn names_that_break_json_are_kept() {
    let bench = Bench::new();
    for (name, mended) in [
        (&b"a\"b"[..], "a\"b"),
        (b"\"\"", "\"\""),
        (b"f(\"x\", \"y\")", "f(\"x\", \"y\")"),
        (b"a\", \"b", "a\", \"b"),
        (b"tab\there", "tab\there"),
        (b"bell\x07", "bell\x07"),
        (b"bad \xff utf", "bad \u{fffd} utf"),
        (b"C:\\path", "C:\\path"),
        (b"lone \\ud800 half", "lone \\ud800 half"),
    ] {
        let (record, output) = bench.one("n.pt.trace.json", &with_name(name));
        let output = output.unwrap();
        assert_eq!(record.status, Status::Repaired, "{mended}");
        assert_eq!(events(&output)[1]["name"], mended);
        assert_eq!(events(&output).len(), 3);
    }
}

#[test]
fn a_cut_gzip_of_what_kineto_writes_wrongly_is_believed_to_its_end() {
    let bench = Bench::new();
    let text = fixture("weird_names");
    let raw = zip(&text);
    let (whole, _) = bench.one("w.pt.trace.json.gz", &raw);
    let (cut, _) = bench.one("c.pt.trace.json.gz", &raw[..raw.len() - 8]);
    assert_eq!((cut.status, cut.events_kept), (Status::Repaired, whole.events_kept));
    let (half, _) = bench.one("h.pt.trace.json.gz", &raw[..raw.len() / 2]);
    assert!(half.events_kept > 20 && half.bytes_lost < 1000, "{half:?}");
}

#[test]
fn an_event_to_mend_is_kept_when_the_cut_is_right_behind_it_and_not_before() {
    let bench = Bench::new();
    let text = with_name(b"f(\"x\", {\"y\"})");
    let end = memchr::memmem::rfind(&text, b"},\n  {").expect("a last event") + 1;
    for cut in 0..=end + 2 {
        let (record, _) = bench.one("c.pt.trace.json", &text[..cut]);
        let first = HEAD.len() + GOOD.len();
        let whole = u64::from(cut >= first) + u64::from(cut >= end);
        assert_eq!(record.events_kept, whole, "cut at {cut}: {}", String::from_utf8_lossy(&text[..cut]));
    }
}

#[test]
fn a_zero_byte_is_a_lost_block_and_takes_its_event_with_it() {
    let bench = Bench::new();
    let (record, output) = bench.one("z.pt.trace.json", &with_name(b"a\0b"));
    assert_eq!((record.status, record.events_kept, record.events_dropped), (Status::Salvaged, 2, 1));
    assert!(events(&output.unwrap()).iter().all(|event| event["name"] != "a\0b"));
}

#[test]
fn a_broken_quote_does_not_swallow_fields() {
    let bench = Bench::new();
    let text = String::from_utf8(with_name(b"x")).unwrap();
    for field in ["\"cpu_op\", \"name\": \"x\"", "\"X\", \"cat\": \"cpu_op\", \"name\": \"x\""] {
        let flipped = field.replacen("\", ", "#, ", 1);
        let (record, output) = bench.one("q.pt.trace.json", text.replace(field, &flipped).as_bytes());
        assert_eq!((record.events_kept, record.events_dropped), (2, 1));
        assert!(events(&output.unwrap()).iter().all(|e| e["name"] == "good" || e["ph"] == "M"));
    }
}

#[test]
fn an_event_that_only_begins_like_its_neighbours_is_read_anew() {
    let bench = Bench::new();
    let many = format!("{GOOD},\n{GOOD},\n{GOOD}");
    for (from, to) in [("\"good\"", "#good\""), ("\"pid\": 1", "\"pid\": #"), ("\"ts\": 1.5", "\"ts\": ,")] {
        let broken = GOOD.replace(from, to);
        let (record, output) =
            bench.one("h.pt.trace.json", format!("{HEAD}{many},\n{broken},\n{many}\n  ]\n}}").as_bytes());
        assert_eq!((record.events_kept, record.events_dropped), (6, 1), "{to}");
        assert!(events(&output.unwrap()).iter().all(|event| event["name"] == "good" || event["ph"] == "M"));
    }
}

#[test]
fn several_members_trailing_garbage_and_array_form_are_read() {
    let bench = Bench::new();
    let text = fixture("torch2.10");
    let count = spans(&text).len() as u64;
    let (one, two) = text.split_at(text.len() / 2);
    let members = [zip(one), zip(two)].concat();
    assert_eq!(bench.one("m.pt.trace.json.gz", &members).0.status, Status::Complete);
    let (record, _) = bench.one("c.pt.trace.json.gz", &members[..members.len() - 200]);
    assert_eq!(record.status, Status::Salvaged);
    let garbage = [&zip(&text)[..], b"garbage"].concat();
    let (record, output) = bench.one("g.pt.trace.json.gz", &garbage);
    assert_eq!((record.status, record.events_kept), (Status::Repaired, count));
    assert_eq!(events(&output.unwrap()).len() as u64, count);
    let padded = [&zip(&text)[..], &[0; 512]].concat();
    assert_eq!(bench.one("p.pt.trace.json.gz", &padded).0.status, Status::Complete);
    let array = format!("[\n{GOOD},\n{GOOD},\n  {{\n    \"ph\"");
    let (record, output) = bench.one("array.json", array.as_bytes());
    assert_eq!((record.status, record.events_kept), (Status::Salvaged, 2));
    assert!(events(&output.unwrap()).len() > 2);
}

#[test]
fn an_output_is_complete_to_a_second_salvage_also_if_no_kineto_wrote_it() {
    let bench = Bench::new();
    let text = br#"{"traceEvents":[{"a":1},3,{"ph":"X"},],"x":{}}"#;
    let (record, output) = bench.one("odd.json", text);
    assert_eq!((record.status, record.events_kept), (Status::Repaired, 2));
    assert_eq!(output.unwrap()["traceEvents"], serde_json::json!([{"a": 1}, 3, {"ph": "X"}]));
    let again = std::fs::read(record.output.unwrap()).unwrap();
    assert_eq!(bench.one("again.json.gz", &again).0.status, Status::Complete);
}

#[test]
fn behind_damage_an_event_of_kineto_needs_all_its_fields_too() {
    let bench = Bench::new();
    let nameless = GOOD.replace(", \"name\": \"good\"", "");
    let endless = GOOD.replace("\"dur\"", "\"d|r\"");
    for broken in [format!("#\n{nameless}"), endless.replace("good", "a\"b"), endless] {
        let text = format!("{HEAD}{broken},\n{GOOD}\n  ]\n}}");
        let (record, output) = bench.one("n.pt.trace.json", text.as_bytes());
        assert_eq!((record.status, record.events_kept), (Status::Salvaged, 1), "{broken}");
        assert!(events(&output.unwrap()).iter().all(|event| event["name"].is_string()));
    }
}

#[test]
fn a_zero_filled_tail_of_a_gzip_gives_what_lies_before_it() {
    let bench = Bench::new();
    let text = fixture("torch2.10");
    let mut raw = zip(&text);
    let given = text_per_prefix(&raw);
    let at = raw.len() / 2;
    raw[at..].fill(0);
    let whole = spans(&text).partition_point(|span| span.end <= given[at]) as u64;
    let (record, _) = bench.one("z.pt.trace.json.gz", &raw);
    assert_eq!((record.status, record.events_kept), (Status::Salvaged, whole));
}

#[test]
fn a_cut_trace_says_which_types_are_missing_and_gets_names_and_arrow_ends() {
    let bench = Bench::new();
    let head = "{\n  \"schemaVersion\": 1,\n  \"deviceProperties\": [{\"id\": 0}],\n  \"with_stack\": 1,\n  \"traceEvents\": [\n";
    let arrow = "  {\n    \"ph\": \"s\", \"id\": 7, \"pid\": 1, \"tid\": 2, \"ts\": 1.5,\n    \"cat\": \"fwdbwd\", \"name\": \"fwdbwd\"\n  }";
    let text = format!("{head}{GOOD},\n{arrow},\n{GOOD},\n  {{\n    \"ph\": \"X\", \"ca");
    let (record, output) = bench.one("a.pt.trace.json", text.as_bytes());
    assert_eq!(record.missing_categories, ["python_function", "cuda_runtime", "kernel"]);
    let output = output.unwrap();
    assert_eq!(output["salvaged"]["missing_categories"], serde_json::json!(record.missing_categories));
    let ends: Vec<&Value> = events(&output).iter().filter(|e| e["ph"] == "f" && e["id"] == 7).collect();
    assert_eq!(ends.len(), 1);
    for name in ["process_name", "process_labels", "process_sort_index", "thread_name", "thread_sort_index"] {
        assert_eq!(
            events(&output).iter().filter(|e| e["ph"] == "M" && e["name"] == name).count(),
            1,
            "{name}"
        );
    }
}

#[test]
fn one_flipped_bit_of_a_gzip_is_found_by_its_checksum_and_nothing_is_lost() {
    let bench = Bench::new();
    let event = |n: usize| GOOD.replace("1.5", &format!("{n}.{:03}", n * n % 997));
    let text = format!(
        "{HEAD}{}\n  ],\n  \"traceName\": \"t\"\n}}",
        (0..300).map(event).collect::<Vec<_>>().join(",\n")
    );
    let raw = zip(text.as_bytes());
    let whole: Value = serde_json::from_str(&text).unwrap();
    // In the codes, in the symbols, in the last ones, in the checksum, in the length.
    let places = [12, 20, 100, raw.len() / 2, raw.len() - 100, raw.len() - 10, raw.len() - 6, raw.len() - 3];
    for (round, at) in places.into_iter().enumerate() {
        let mut broken = raw.clone();
        broken[at] ^= 1 << (round % 8);
        let (record, output) = bench.one("f.pt.trace.json.gz", &broken);
        assert_eq!(
            (record.status, record.events_kept),
            (Status::Repaired, 300),
            "byte {at}: {}",
            record.note
        );
        assert!(record.note.contains(&format!("(byte {at})")), "{}", record.note);
        assert_eq!(output.unwrap()["traceEvents"], whole["traceEvents"], "byte {at}");
        assert_eq!(std::fs::read(bench.path("f.pt.trace.json.gz")).unwrap(), broken);
    }
}

#[test]
fn two_flipped_bits_are_not_taken_for_one() {
    let bench = Bench::new();
    let many = vec![GOOD; 300].join(",\n");
    let raw = zip(format!("{HEAD}{many}\n  ]\n}}").as_bytes());
    let mut broken = raw.clone();
    broken[raw.len() - 7] ^= 1;
    broken[raw.len() - 5] ^= 8;
    let (record, _) = bench.one("f.pt.trace.json.gz", &broken);
    assert_eq!((record.status, record.events_kept), (Status::Salvaged, 300));
    assert!(record.note.contains("the checksum is wrong"), "{}", record.note);
}

/// Events of Kineto that torch numbered, as in a real trace.
fn numbered(count: usize) -> (Vec<String>, String) {
    let one = |n: usize| {
        GOOD.replace("1.5", &format!("{n}.{:03}", n * n % 997))
            .replace("\n  }", &format!(",\n    \"args\": {{\n      \"External id\": {},\"Record function id\": 0, \"Ev Idx\": {n}\n    }}\n  }}", n + 1))
    };
    let events: Vec<String> = (0..count).map(one).collect();
    let text = format!("{HEAD}{}\n  ],\n  \"traceName\": \"t\"\n}}", events.join(",\n"));
    (events, text)
}

#[test]
fn halves_of_two_events_that_grew_together_are_no_event() {
    let bench = Bench::new();
    let (events, text) = numbered(60);
    let known = known(text.as_bytes());
    let middle = |n: usize| text.find(&events[n]).unwrap() + events[n].find("\"tid\"").unwrap();
    let removed = [&text[..middle(30)], &text[middle(40)..]].concat();
    let doubled = [&text[..middle(40)], &text[middle(30)..]].concat();
    for (what, broken, kept) in [("removed", removed, 49), ("doubled", doubled, 60)] {
        serde_json::from_str::<Value>(&broken).unwrap();
        let (record, output) = bench.one("s.pt.trace.json", broken.as_bytes());
        let output = output.unwrap();
        assert_eq!((record.status, record.events_kept), (Status::Salvaged, kept), "{what}");
        assert_eq!(strangers(&output, &known, &record), Vec::<&Value>::new(), "{what}");
        let again = std::fs::read(record.output.unwrap()).unwrap();
        assert_eq!(bench.one("again.json.gz", &again).0.status, Status::Complete, "{what}");
    }
}

#[test]
fn events_out_of_turn_are_kept_where_the_trace_does_not_count() {
    let bench = Bench::new();
    let (events, _) = numbered(200);
    // Now and then a gap, as if somebody had filtered the trace; a healthy one must never lose an event.
    let some: Vec<&str> =
        events.iter().enumerate().filter(|(n, _)| n % 20 != 19).map(|(_, e)| &e[..]).collect();
    let text = format!("{HEAD}{}\n  ]\n}}", some.join(",\n"));
    let (record, _) = bench.one("f.pt.trace.json", text.as_bytes());
    assert_eq!((record.status, record.events_kept), (Status::Complete, 190));
}

#[test]
fn a_wrong_number_costs_one_event() {
    let bench = Bench::new();
    let (_, text) = numbered(60);
    let broken = text.replacen("\"Ev Idx\": 30\n", "\"Ev Idx\": 38\n", 1);
    let (record, _) = bench.one("n.pt.trace.json", broken.as_bytes());
    assert_eq!((record.status, record.events_kept, record.events_dropped), (Status::Salvaged, 59, 1));
}
