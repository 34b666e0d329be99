//! Throws random bytes, cut at random, at everything that reads the wire: `cargo bench --bench load_fuzz -- EXECUTIONS SEED`.
//! Checks that nothing panics, that events do not depend on the cuts, and that time grows in proportion to the bytes.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::Duration;
use varcas_guard::time::instant_now;
use varcas_guard::workload::load::http1::Decoder;
use varcas_guard::workload::load::stream::{SseParser, interpret};

const PARTS: [&[u8]; 20] = [
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"data:",
    b"data: ",
    b": comment",
    b"event: x",
    b"[DONE]",
    b"data: [DONE]\n\n",
    b"{\"choices\":[{\"text\":\"a\\u00e9\",\"finish_reason\":null}],\"usage\":null}",
    b"{\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}",
    b"{\"error\":{\"message\":\"m\",\"code\":500}}",
    b"{\"choices\":[{\"delta\":{\"content\":\"x\"}}]",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n",
    b"5\r\nabcde\r\n",
    b"0\r\n\r\n",
    "\u{e9}\u{1f44d}".as_bytes(),
    b"\xEF\xBB\xBF",
];

fn events(parts: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut parser = SseParser::default();
    let mut events = Vec::new();
    for part in parts {
        if parser.push(part, |data| events.push(data.to_vec())).is_err() {
            break;
        }
    }
    events
}

fn input(rng: &mut impl Rng, bytes: &mut Vec<u8>) {
    bytes.clear();
    for _ in 0..rng.random_range(0..14) {
        if rng.random_range(0..5) == 0 {
            bytes.extend((0..rng.random_range(0..9)).map(|_| rng.random::<u8>()));
        } else {
            bytes.extend_from_slice(PARTS[rng.random_range(0..PARTS.len())]);
        }
    }
    if !bytes.is_empty() && rng.random_range(0..4) == 0 {
        let at = rng.random_range(0..bytes.len());
        bytes[at] = rng.random();
    }
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let Some(count) = args.next().and_then(|a| a.parse::<u64>().ok()) else {
        println!("load_fuzz: no number of executions given, nothing done");
        return;
    };
    let seed = args.next().and_then(|a| a.parse().ok()).unwrap_or(1);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut bytes, mut total, mut found) = (Vec::new(), 0_u64, 0_u64);
    for _ in 0..count {
        input(&mut rng, &mut bytes);
        total += bytes.len() as u64;
        let whole = events(&[&bytes]);
        let (a, b) = (rng.random_range(0..=bytes.len()), rng.random_range(0..=bytes.len()));
        let (a, b) = (a.min(b), a.max(b));
        let cut = events(&[&bytes[..a], &bytes[a..b], &bytes[b..]]);
        assert_eq!(whole, cut, "cut at {a} and {b}: {bytes:?}");
        for event in &whole {
            found += 1;
            let _ = interpret(event);
        }
        let _ = interpret(&bytes);
        let run = |parts: [&[u8]; 3]| {
            let (mut decoder, mut body) = (Decoder::default(), Vec::new());
            for part in parts {
                if decoder.push(part, |_, bytes| body.extend_from_slice(bytes)).is_err() {
                    return None;
                }
            }
            Some((body, decoder.close()))
        };
        assert_eq!(run([&bytes, b"", b""]), run([&bytes[..a], &bytes[a..b], &bytes[b..]]), "{bytes:?}");
    }
    println!("{count} executions, {total} bytes, {found} events, no panic, no difference by cuts");
    // A byte at a time is the worst way to get a long line; four times the bytes may take about four times as long.
    let time = |length: usize| {
        let began = instant_now();
        let mut parser = SseParser::default();
        for _ in 0..length {
            let _ = parser.push(b"x", |_| {});
        }
        instant_now().duration_since(began)
    };
    let (short, long): (Duration, Duration) = (time(1 << 20), time(1 << 22));
    println!("a line byte by byte: 1 MiB in {short:?}, 4 MiB in {long:?}");
}
