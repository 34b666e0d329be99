//! Single values that are false in a plain JSON: what shows, and what must not cost a healthy trace an event.

#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

use crate::common::*;
use crate::seams::strangers;
use varcas_guard::recovery::salvage::Status;

/// The trace with `new` instead of the one `old` behind `behind`, which must cost exactly these events.
fn dropped(text: &str, behind: &str, old: &str, new: &str, lost: u64) {
    let at = text.find(behind).expect("it is there");
    let at = at + text[at..].find(old).expect("it is there");
    let broken = format!("{}{new}{}", &text[..at], &text[at + old.len()..]);
    let bench = Bench::new();
    let (record, output) = bench.one("w.pt.trace.json", broken.as_bytes());
    assert_eq!(
        (record.status, record.events_dropped),
        (Status::Salvaged, lost),
        "{old} to {new}: {record:?}"
    );
    assert_eq!(strangers(&output.unwrap(), text.as_bytes()), Vec::<String>::new(), "{old} to {new}");
}

fn texts() -> Vec<String> {
    TRACES.map(|name| String::from_utf8(fixture(name)).unwrap()).into()
}

#[test]
fn a_key_a_category_or_an_operator_with_a_turned_bit_is_dropped() {
    for text in texts() {
        let middle = "\"Ev Idx\": 200";
        for (old, new) in [
            ("External id", "Extern`l id"),
            ("Record function id", "Record`function id"),
            ("\"cpu_op\"", "\"cpu_np\""),
            ("\"X\"", "\"Y\""),
        ] {
            dropped(&text, middle, old, new, 1);
        }
        for (old, new) in [("\"aten::t\"", "\"atenz:t\""), ("\"aten::transpose\"", "\"aten::tranqpose\"")] {
            dropped(&text, "\"Ev Idx\": 100", old, new, 1);
        }
    }
}

#[test]
fn a_key_that_lost_its_middle_or_has_it_twice_is_dropped() {
    for text in texts() {
        let middle = "\"Ev Idx\": 200";
        dropped(&text, middle, "Record function id", "Record fu Idx", 1);
        dropped(&text, middle, "Record function id", "Record functction id", 1);
        dropped(&text, middle, "External id", "Exl id", 1);
    }
}

#[test]
fn a_name_that_names_nothing_or_is_two_is_dropped() {
    for text in texts() {
        let name = text.split_once("\"thread_name\"").unwrap().1.split_once("\"args\": {").unwrap().1;
        let name = name.split_once('}').unwrap().0;
        dropped(&text, "\"thread_name\"", name, "", 1);
        dropped(&text, "\"Ev Idx\": 200", "\"aten::", "\"aten::mm\", \"aten::", 1);
    }
}

#[test]
fn halves_that_grew_together_before_the_trace_has_shown_that_it_counts_are_no_event() {
    for text in texts() {
        let pid = |number: u32| {
            let at = text.find(&format!("\"Ev Idx\": {number}\n")).unwrap();
            at + text[at..].find("\"pid\"").unwrap()
        };
        for (one, two) in [(2, 8), (9, 14), (12, 40)] {
            let broken = [&text[..pid(one)], &text[pid(two)..]].concat();
            let (record, output) = Bench::new().one("e.pt.trace.json", broken.as_bytes());
            assert_eq!(record.status, Status::Salvaged, "{one} to {two}: {record:?}");
            assert_eq!(strangers(&output.unwrap(), text.as_bytes()), Vec::<String>::new(), "{one} to {two}");
        }
    }
}

#[test]
fn a_thread_that_no_other_event_has_is_none() {
    for text in texts() {
        let (_, rest) = text.split_at(text.find("\"Ev Idx\": 200").unwrap());
        let tid = rest.split_once("\"tid\": ").unwrap().1.split([',', '\n']).next().unwrap();
        dropped(&text, "\"Ev Idx\": 200", &format!("\"tid\": {tid}"), &format!("\"tid\": 7{tid}"), 1);
    }
}

#[test]
fn a_time_before_or_behind_its_neighbours_is_dropped() {
    for text in texts() {
        let (_, rest) = text.split_at(text.find("\"Ev Idx\": 200").unwrap());
        let ts = rest.split_once("\"ts\": ").unwrap().1.split([',', '\n']).next().unwrap();
        let wrong = |digit: &str| format!("\"ts\": {}{digit}{}", &ts[..4], &ts[5..]);
        for digit in ["0", "9"] {
            dropped(&text, "\"Ev Idx\": 200", &format!("\"ts\": {ts}"), &wrong(digit), 1);
        }
    }
}

#[test]
fn an_id_that_its_neighbours_count_past_is_dropped() {
    for text in texts() {
        dropped(&text, "\"Ev Idx\": 200", "\"External id\": 2", "\"External id\": 6", 1);
    }
}

#[test]
fn an_operator_that_outlasts_the_one_around_it_is_dropped_with_it() {
    for text in texts() {
        // `as_strided` within `transpose`.
        let at = text.find("\"Ev Idx\": 100").unwrap();
        let at = at + text[at..].find("\"aten::as_strided\"").unwrap();
        let dur = text[at..].split_once("\"dur\": ").unwrap().1.split([',', '\n']).next().unwrap();
        let (before, after) = (format!("\"dur\": {dur}"), format!("\"dur\": 9{dur}"));
        let broken = format!("{}{}", &text[..at], text[at..].replacen(&before, &after, 1));
        let (record, output) = Bench::new().one("n.pt.trace.json", broken.as_bytes());
        assert_eq!((record.status, record.events_dropped), (Status::Salvaged, 2));
        assert_eq!(strangers(&output.unwrap(), text.as_bytes()), Vec::<String>::new());
    }
}

#[test]
fn what_a_healthy_trace_has_once_is_kept() {
    for text in texts() {
        let own = text.replacen("\"External id\": 200,", "\"my key\": \"float\",\"External id\": 200,", 1);
        let annotation = text.replacen("\"step_3\"", "\"qtep_3\"", 1);
        let operator =
            text.replace("\"aten::mm\"", "\"aten::ne\"").replacen("\"aten::ne\"", "\"aten::le\"", 1);
        let late = text.replacen("\"Ev Idx\": 200", "\"Later key\": 1, \"Ev Idx\": 200", 1);
        for (what, text) in
            [("key", own), ("annotation", annotation), ("operator", operator), ("later", late)]
        {
            let (record, _) = Bench::new().one("h.pt.trace.json", text.as_bytes());
            assert_eq!((record.status, record.events_kept), (Status::Complete, 600), "{what}");
        }
    }
}

#[test]
fn a_trace_that_is_in_another_order_or_names_no_threads_loses_nothing() {
    for text in texts() {
        let spans = spans(text.as_bytes());
        let events: Vec<&str> = spans.iter().map(|span| &text[span.clone()]).collect();
        // Every tenth event two hundred places later, without numbers that would tell.
        let mut moved: Vec<String> =
            events.iter().map(|event| event.replace("\"Ev Idx\"", "\"No Idx\"")).collect();
        for number in (10..300).step_by(10) {
            moved.swap(number, number + 200);
        }
        let whole = |events: &[String]| {
            format!(
                "{}{}{}",
                &text[..spans[0].start],
                events.join(",\n"),
                &text[spans[spans.len() - 1].end..]
            )
        };
        let nameless: Vec<String> = events
            .iter()
            .filter(|event| !event.contains("\"thread_name\""))
            .map(|event| (*event).to_owned())
            .collect();
        for (what, events) in [("order", moved), ("names", nameless)] {
            let (record, _) = Bench::new().one("o.pt.trace.json", whole(&events).as_bytes());
            assert_eq!(
                (record.status, record.events_kept),
                (Status::Complete, events.len() as u64),
                "{what}"
            );
        }
    }
}
