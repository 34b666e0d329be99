//! What the salvage tests share: fixtures, an oracle that reads traces with another JSON parser, and a way to run the
//! salvage over bytes.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its stage must fail")]

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use flate2::{Compression, Decompress, FlushDecompress};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use varcas_guard::recovery::salvage::{Options, Salvaged, salvage};

/// Real traces of torch 2.9, 2.10 and 2.13, and one that is invalid although complete.
pub(crate) const TRACES: [&str; 3] = ["torch2.9", "torch2.10", "torch2.13"];

pub(crate) fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/traces");
    let raw = std::fs::read(path.join(format!("{name}.pt.trace.json.gz"))).unwrap();
    unzip(&raw)
}

pub(crate) fn unzip(raw: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    MultiGzDecoder::new(raw).read_to_end(&mut text).unwrap();
    text
}

pub(crate) fn zip(text: &[u8]) -> Vec<u8> {
    let mut writer = GzEncoder::new(Vec::new(), Compression::new(9));
    writer.write_all(text).unwrap();
    writer.finish().unwrap()
}

pub(crate) fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Where the events of a complete trace lie, found with serde_json.
pub(crate) fn spans(text: &[u8]) -> Vec<Range<usize>> {
    let list = b"\"traceEvents\":";
    let at = text.windows(list.len()).position(|window| window == list).unwrap();
    let mut pos = at + list.len();
    while text[pos] != b'[' {
        pos += 1;
    }
    pos += 1;
    let mut spans = Vec::new();
    loop {
        while text[pos].is_ascii_whitespace() || text[pos] == b',' {
            pos += 1;
        }
        if text[pos] == b']' {
            return spans;
        }
        let mut values =
            serde_json::Deserializer::from_slice(&text[pos..]).into_iter::<serde::de::IgnoredAny>();
        values.next().unwrap().unwrap();
        let end = pos + values.byte_offset();
        spans.push(pos..end);
        pos = end;
    }
}

/// How much text each prefix of a gzip gives, found by feeding zlib byte after byte.
pub(crate) fn text_per_prefix(raw: &[u8]) -> Vec<usize> {
    let mut inflate = Decompress::new_gzip(15);
    let mut out = vec![0; 1 << 20];
    let mut given = vec![0];
    for byte in raw {
        let mut input: &[u8] = std::slice::from_ref(byte);
        loop {
            let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
            let status = inflate.decompress(input, &mut out, FlushDecompress::None);
            input = &input[(inflate.total_in() - before_in) as usize..];
            let idle = inflate.total_out() == before_out && input.is_empty();
            if idle || status.is_err() || matches!(status, Ok(flate2::Status::StreamEnd)) {
                break;
            }
            if inflate.total_in() == before_in && inflate.total_out() == before_out {
                break;
            }
        }
        given.push(inflate.total_out() as usize);
    }
    given
}

pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Salvages one file of these bytes and returns its record and its output, parsed strictly.
    pub(crate) fn one(&self, name: &str, bytes: &[u8]) -> (Salvaged, Option<Value>) {
        let path = self.put(name, bytes);
        let mut records = salvage(&[path], &Options::default());
        assert_eq!(records.len(), 1);
        let record = records.remove(0);
        assert_eq!(record.error, None);
        let output = record.output.as_deref().map(read);
        (record, output)
    }
}

/// Reads a trace with a strict parser.
pub(crate) fn read(path: &Path) -> Value {
    let raw = std::fs::read(path).unwrap();
    let text = if path.extension().is_some_and(|e| e == "gz") { unzip(&raw) } else { raw };
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{} is no strict JSON: {e}", path.display()))
}

pub(crate) fn events(trace: &Value) -> &[Value] {
    trace["traceEvents"].as_array().unwrap()
}
