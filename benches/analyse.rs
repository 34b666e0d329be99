//! CPU time of the passes over one trace, decompressed beforehand: counting its events alone, reading the fields that the
//! analysis looks at, and the whole analysis.
//!
//!     cargo bench --bench analyse -- TRACE.pt.trace.json.gz

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use std::fmt;
use std::io::{BufReader, Read};
use varcas_guard::workload::profiler::analyse::Analyser;
use varcas_guard::workload::profiler::read::read;

const ROUNDS: u32 = 7;

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "traceEvents")]
    events: Count,
}

/// What the collection did before there was an analysis: the category of every event, and nothing else.
struct Count(u64, u64);

#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    cat: Kernel,
}

#[derive(Default)]
struct Kernel(bool);

impl<'de> Deserialize<'de> for Kernel {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Kernel;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a category")
            }

            fn visit_str<E>(self, name: &str) -> Result<Kernel, E> {
                Ok(Kernel(name == "kernel"))
            }
        }
        from.deserialize_str(Name)
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("events")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Count, A::Error> {
                let mut count = Count(0, 0);
                while let Some(event) = list.next_element::<Head>()? {
                    count.0 += 1;
                    count.1 += u64::from(event.cat.0);
                }
                Ok(count)
            }
        }
        from.deserialize_seq(Each)
    }
}

/// CPU seconds of this process so far, user and system.
fn cpu() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("own usage");
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

fn best(what: &str, bytes: usize, mut pass: impl FnMut() -> u64) {
    let mut times = Vec::new();
    let mut result = 0;
    for _ in 0..ROUNDS {
        let before = cpu();
        result = pass();
        times.push(cpu() - before);
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!(
        "{what:32} {median:.3} s (median of {ROUNDS}, {:.3} to {:.3}), {:.0} MB/s, {result} events",
        times[0],
        times[times.len() - 1],
        bytes as f64 / 1e6 / median
    );
}

fn main() {
    let Some(path) = std::env::args().skip(1).find(|arg| !arg.starts_with("--")) else {
        println!("SKIPPED: name a compressed trace");
        return;
    };
    let mut text = Vec::new();
    let file = std::fs::File::open(&path).expect("open the trace");
    flate2::read::MultiGzDecoder::new(BufReader::new(file))
        .read_to_end(&mut text)
        .expect("decompress the trace");
    best("count", text.len(), || {
        let reader = BufReader::with_capacity(256 * 1024, &text[..]);
        let document: Document = serde_json::from_reader(reader).expect("a trace");
        document.events.0
    });
    best("read", text.len(), || {
        let mut events = 0;
        read(BufReader::with_capacity(256 * 1024, &text[..]), |_| false, |_| events += 1).expect("a trace");
        events
    });
    best("read and analyse", text.len(), || {
        let mut analyser = Analyser::default();
        let reader = BufReader::with_capacity(256 * 1024, &text[..]);
        read(reader, |_| false, |event| analyser.event(event)).expect("a trace");
        analyser.finish().events
    });
}
