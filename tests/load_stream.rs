//! Bytes of the wire become the same facts, however they are cut.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use proptest::prelude::*;
use varcas_guard::workload::load::http1::{Decoder, Progress};
use varcas_guard::workload::load::stream::{Finish, MAX_EVENT, Meaning, SseParser, Usage, interpret};

fn events(parts: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut parser = SseParser::default();
    let mut events = Vec::new();
    for part in parts {
        parser.push(part, |data| events.push(data.to_vec())).unwrap();
    }
    events
}

fn cut(bytes: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
    let mut at: Vec<usize> = cuts.iter().map(|c| c % (bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|w| bytes[w[0]..w[1]].to_vec()).collect()
}

/// The standard, written down without any care for speed: lines by CRLF, LF or CR over the whole text.
fn reference(bytes: &[u8]) -> Vec<Vec<u8>> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let (mut lines, mut line, mut i) = (Vec::new(), Vec::new(), 0);
    while i < bytes.len() {
        match bytes[i] {
            b'\r' => {
                lines.push(std::mem::take(&mut line));
                i += usize::from(bytes.get(i + 1) == Some(&b'\n'));
            }
            b'\n' => lines.push(std::mem::take(&mut line)),
            other => line.push(other),
        }
        i += 1;
    }
    let (mut events, mut data): (Vec<Vec<u8>>, Option<Vec<u8>>) = (Vec::new(), None);
    for line in lines {
        if line.is_empty() {
            events.extend(data.take());
            continue;
        }
        let colon = line.iter().position(|b| *b == b':').unwrap_or(line.len());
        if &line[..colon] != b"data" {
            continue;
        }
        let value = line.get(colon + 1..).unwrap_or(b"");
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &mut data {
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
            None => data = Some(value.to_vec()),
        }
    }
    events
}

#[test]
fn one_read_may_hold_many_events_and_one_event_many_reads() {
    assert_eq!(events(&[b"data: a\n\ndata: b\n\n"]), [b"a", b"b"]);
    assert_eq!(events(&[b"da", b"ta: a", b"\n", b"\n"]), [b"a"]);
}

#[test]
fn carriage_returns_comments_other_fields_and_a_missing_space_are_understood() {
    let text = b"\xEF\xBB\xBF: ping\r\nevent: x\r\nid: 7\r\ndata:a\r\n\r\n:\n\ndata\n\ndatabase: no\n\ndata:  b\rdata: c\r\r";
    assert_eq!(events(&[text]), [b"a".to_vec(), b"".to_vec(), b" b\nc".to_vec()]);
}

#[test]
fn an_event_without_its_empty_line_is_not_given_out() {
    assert!(events(&[b"data: a\n"]).is_empty());
}

#[test]
fn a_line_without_end_is_refused_instead_of_eating_the_memory() {
    let mut parser = SseParser::default();
    let block = vec![b'x'; 1 << 20];
    let refused = (0..64).any(|_| parser.push(&block, |_| {}).is_err());
    assert!(refused);
}

#[test]
fn an_event_of_the_longest_size_is_taken_and_a_byte_more_is_not() {
    // Without an end in sight, in one read or in two.
    for (reads, good) in [(&[MAX_EVENT][..], true), (&[MAX_EVENT + 2], false), (&[MAX_EVENT, 2], false)] {
        let mut parser = SseParser::default();
        let all = reads.iter().all(|read| parser.push(&vec![b'x'; *read], |_| {}).is_ok());
        assert_eq!(all, good, "{reads:?}");
    }
    // In two lines of data, between which a newline stands.
    for (second, good) in [(MAX_EVENT - 11, true), (MAX_EVENT - 10, false)] {
        let mut parser = SseParser::default();
        let mut seen = 0;
        parser.push(b"data:0123456789\n", |_| {}).unwrap();
        let line = [b"data:", &vec![b'x'; second][..], b"\n\n"].concat();
        let pushed = parser.push(&line, |event| seen = event.len());
        assert_eq!((pushed.is_ok(), seen), (good, if good { MAX_EVENT } else { 0 }));
    }
}

#[test]
fn every_reason_to_stop_has_its_name() {
    for (word, name) in
        [("stop", "stop"), ("length", "length"), ("abort", "abort"), ("error", "abort"), ("new", "other")]
    {
        let json = format!("{{\"choices\":[{{\"text\":\"a\",\"finish_reason\":\"{word}\"}}]}}");
        let Meaning::Piece { finish: Some(finish), .. } = interpret(json.as_bytes()) else {
            panic!("{json}")
        };
        assert_eq!(finish.name(), name);
    }
}

#[test]
fn lines_of_a_chunked_body_have_a_longest_size() {
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let whole = |line: &[u8], more: &[u8]| {
        let mut decoder = Decoder::default();
        decoder.push(head, |_, _| {}).unwrap();
        decoder.push(line, |_, _| {}).and_then(|_| decoder.push(more, |_, _| {})).is_ok()
    };
    let line = |length: usize| [b"1;", &vec![b'x'; length - 2][..]].concat();
    assert!(whole(&line(8192), b"\r\na\r\n0\r\n\r\n"));
    assert!(!whole(&line(8193), b"\r\n") && !whole(&line(8192), b"xy") && !whole(&line(9000), b""));
    assert!(whole(b"000000000000001\r\na\r\n", b""), "fifteen digits");
    assert!(!whole(b"0000000000000001\r\na\r\n", b""), "sixteen");
}

#[test]
fn pieces_of_both_endpoints_and_of_reasoning_models_are_read() {
    let text = |json: &str| match interpret(json.as_bytes()) {
        Meaning::Piece { text_bytes, .. } => text_bytes,
        other => panic!("{other:?}"),
    };
    assert_eq!(text(r#"{"choices":[{"index":0,"text":" a\n","finish_reason":null}],"usage":null}"#), 3);
    assert_eq!(text(r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#), 0);
    assert_eq!(text(r#"{"choices":[{"delta":{"content":"ab"}}]}"#), 2);
    assert_eq!(text(r#"{"choices":[{"delta":{"content":null,"reasoning_content":"abc"}}]}"#), 3);
    assert_eq!(text(r#"{"choices":[{"delta":{"reasoning":"abcd"}}]}"#), 4);
    assert_eq!(text(r#"{"choices":[{"text":"a"},{"text":"b"}]}"#), 2);
}

#[test]
fn finish_reason_and_usage_are_read_together_or_apart() {
    let usage = Usage { prompt_tokens: 3, completion_tokens: 2 };
    assert_eq!(
        interpret(br#"{"choices":[{"text":"x","finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#),
        Meaning::Piece { text_bytes: 1, has_text: true, finish: Some(Finish::Stop), usage: Some(usage) }
    );
    assert_eq!(
        interpret(br#"{"choices":[],"usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2}}"#),
        Meaning::Piece { text_bytes: 0, has_text: false, finish: None, usage: Some(usage) }
    );
    assert_eq!(interpret(b"[DONE]"), Meaning::Done);
}

#[test]
fn every_shape_of_an_error_object_is_a_failure() {
    let error = |json: &str| match interpret(json.as_bytes()) {
        Meaning::Error { code, message } => (code, message),
        other => panic!("{json}: {other:?}"),
    };
    assert_eq!(error(r#"{"error":{"message":"m","type":"t","code":500}}"#), (Some(500), "m".to_owned()));
    assert_eq!(error(r#"{"object":"error","message":"m","code":400}"#), (Some(400), "m".to_owned()));
    assert_eq!(error(r#"{"error":"m"}"#), (None, "m".to_owned()));
    assert_eq!(error(r#"{"error":{"message":"m","code":"bad"},"choices":[]}"#), (None, "m".to_owned()));
}

#[test]
fn what_is_not_a_completion_is_not_taken_for_one() {
    for data in
        ["", "{", "null", "3", "[]", "{}", r#"{"choices":7}"#, r#"{"choices":[{"text":7}]}"#, "\u{7f}"]
    {
        assert_eq!(interpret(data.as_bytes()), Meaning::Unreadable, "{data}");
    }
    assert_eq!(interpret(b"{\"choices\":[{\"text\":\"\xff\"}]}"), Meaning::Unreadable);
}

fn decode(parts: &[Vec<u8>]) -> (Vec<u8>, Option<u16>, Progress, bool) {
    let mut decoder = Decoder::default();
    let (mut body, mut progress) = (Vec::new(), Progress::More);
    for part in parts {
        progress = decoder.push(part, |_, bytes| body.extend_from_slice(bytes)).unwrap();
    }
    (body, decoder.head().map(|h| h.status), progress, decoder.reusable())
}

#[test]
fn a_response_ends_where_its_framing_says() {
    let all = |text: &[u8]| decode(&[text.to_vec()]);
    let chunked =
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nt: v\r\n\r\n";
    assert_eq!(all(chunked), (b"abcde".to_vec(), Some(200), Progress::Complete, true));
    let closing = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nab";
    assert_eq!(all(closing), (b"ab".to_vec(), Some(200), Progress::Complete, false));
    let surplus = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nabHTTP";
    assert_eq!(all(surplus), (b"ab".to_vec(), Some(200), Progress::Complete, false));
    let informed = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n";
    assert_eq!(all(informed), (Vec::new(), Some(204), Progress::Complete, true));
}

#[test]
fn a_body_of_known_length_may_come_in_any_number_of_reads() {
    let parts: Vec<Vec<u8>> = ["HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\na", "b", "c", "d"]
        .iter()
        .map(|part| part.as_bytes().to_vec())
        .collect();
    assert_eq!(decode(&parts), (b"abcd".to_vec(), Some(200), Progress::Complete, true));
    assert_eq!(decode(&parts[..3]).2, Progress::More);
}

#[test]
fn a_body_without_a_length_ends_with_the_connection_and_a_framed_one_does_not() {
    let mut open = Decoder::default();
    open.push(b"HTTP/1.1 200 OK\r\n\r\nabc", |_, _| {}).unwrap();
    assert!(open.close());
    let mut framed = Decoder::default();
    framed.push(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", |_, _| {}).unwrap();
    assert!(!framed.close());
}

#[test]
fn what_is_not_http_is_an_error_and_not_a_panic() {
    for bad in [
        "SSH-2.0-OpenSSH\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
    ] {
        assert!(Decoder::default().push(bad.as_bytes(), |_, _| {}).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn events_do_not_depend_on_where_reads_are_cut(
        text in proptest::collection::vec(
            prop_oneof![
                Just(b"\n".to_vec()), Just(b"\r".to_vec()), Just(b"\r\n".to_vec()), Just(b"data:".to_vec()),
                Just(b"data: ".to_vec()), Just(b":".to_vec()), Just("é👍".as_bytes().to_vec()),
                Just(b"data: {\"a\":1}\n\n".to_vec()), proptest::collection::vec(any::<u8>(), 0..6),
            ], 0..40),
        cuts in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let bytes = text.concat();
        let parts = cut(&bytes, &cuts);
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        prop_assert_eq!(events(&parts), reference(&bytes));
    }

    #[test]
    fn bodies_do_not_depend_on_where_reads_are_cut(
        body in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..8),
        cuts in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for part in &body {
            bytes.extend_from_slice(format!("{:X}\r\n", part.len()).as_bytes());
            bytes.extend_from_slice(part);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        prop_assert_eq!(decode(&cut(&bytes, &cuts)), (body.concat(), Some(200), Progress::Complete, true));
    }

    #[test]
    fn nothing_makes_the_decoders_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        cuts in proptest::collection::vec(any::<usize>(), 0..6),
    ) {
        let mut decoder = Decoder::default();
        for part in cut(&bytes, &cuts) {
            if decoder.push(&part, |_, _| {}).is_err() { break }
        }
        let _ = interpret(&bytes);
    }
}

#[test]
fn a_token_that_decodes_to_nothing_is_a_piece_of_a_completion_but_a_role_is_none_of_a_chat() {
    let empty = |data: &[u8]| match interpret(data) {
        Meaning::Piece { text_bytes: 0, has_text, .. } => has_text,
        other => panic!("{other:?}"),
    };
    assert!(empty(br#"{"choices":[{"index":0,"text":"","finish_reason":null}],"usage":null}"#));
    assert!(!empty(
        br#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#
    ));
    assert!(!empty(br#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#));
}
