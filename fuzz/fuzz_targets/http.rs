//! One HTTP/1.1 response: how the bytes are cut changes nothing, and a body that was framed by a writer comes out as it was,
//! chunked, with a length, or until the end of the connection.
#![no_main]

use libfuzzer_sys::fuzz_target;
use varcas_guard::workload::load::http1::{Decoder, Progress};
use varcas_guard_fuzz::{amplified, pieces};

#[derive(Debug, PartialEq)]
struct Outcome {
    status: Option<u16>,
    body: Vec<u8>,
    complete: bool,
    reusable: bool,
    closed_well: bool,
}

fn decode<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Option<Outcome> {
    let (mut decoder, mut body) = (Decoder::default(), Vec::new());
    let mut complete = false;
    for part in parts {
        complete = decoder.push(part, |_, bytes| body.extend_from_slice(bytes)).ok()? == Progress::Complete;
    }
    let (status, reusable) = (decoder.head().map(|head| head.status), decoder.reusable());
    Some(Outcome { status, body, complete, reusable, closed_well: decoder.close() })
}

/// A response around `body`, as servers write it.
fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = b"HTTP/1.1 200 OK\r\nserver: x\r\n".to_vec();
    match kind % 3 {
        0 => {
            out.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            out.extend_from_slice(body);
        }
        1 => {
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(body);
        }
        _ => {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            for piece in pieces(body) {
                out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                out.extend_from_slice(piece);
                out.extend_from_slice(b"\r\n");
            }
            out.extend_from_slice(b"0\r\n\r\n");
        }
    }
    out
}

fuzz_target!(|data: &[u8]| {
    // An error may come earlier or later by the cuts, but it comes.
    let whole = decode([data]);
    assert_eq!(whole, decode(pieces(data)), "{}", String::from_utf8_lossy(data));
    if let Some(outcome) = &whole {
        assert!(outcome.body.len() <= data.len());
        assert!(!outcome.reusable || outcome.complete);
    }
    let Some((kind, body)) = data.split_first() else { return };
    let framed = frame(*kind, body);
    let outcome = decode(pieces(&framed)).expect("a correct response is read");
    assert_eq!(outcome.body, body);
    assert!(outcome.closed_well);
    assert_eq!(outcome.complete, kind % 3 != 1);
    if let Some(long) = amplified(data) {
        let _ = decode(long.chunks(7));
        let framed = frame(2, &long);
        assert_eq!(decode(framed.chunks(7)).expect("a correct response is read").body, long);
    }
});
