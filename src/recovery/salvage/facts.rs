//! What one walk through a trace remembers: counts, categories, lanes and their names, flow arrows. It is what a cut
//! trace must be given back, and it stays small however long the trace is.
//!
//! Pure.

use super::scan::Event;
use super::stream::{Part, Sink};
use std::collections::HashMap;

/// Lanes (threads, streams) that are remembered; more would be no trace of one process.
const MOST_LANES: usize = 20_000;
/// Categories that are counted by name.
const MOST_CATEGORIES: usize = 256;
/// Pages of flow ids that are remembered, 64 ids each.
const MOST_PAGES: usize = 200_000;

/// A thread or a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// `pid` as it stands in the trace.
    pub pid: Vec<u8>,
    /// `tid` as it stands in the trace.
    pub tid: Vec<u8>,
    /// `ts` of the first event.
    pub ts: Vec<u8>,
    /// Whether work of a GPU is on it.
    pub gpu: bool,
    /// Whether the trace names the thread.
    pub named: bool,
    /// Whether the trace names the process.
    pub process_named: bool,
    /// Whether events other than metadata are on it.
    pub used: bool,
}

/// Which ends of flow arrows were seen, two bits an id.
#[derive(Debug, Clone, Default)]
pub struct Flows {
    pages: HashMap<(u32, u64), [u64; 2]>,
    /// Ends that found no room.
    pub untracked: u64,
}

impl Flows {
    fn note(&mut self, category: u32, id: u64, end: bool) {
        let key = (category, id >> 6);
        if self.pages.len() >= MOST_PAGES && !self.pages.contains_key(&key) {
            self.untracked += 1;
            return;
        }
        self.pages.entry(key).or_default()[usize::from(end)] |= 1 << (id & 63);
    }

    /// Whether only this end of the arrow is in the trace.
    pub fn lonely(&self, category: u32, id: u64, end: bool) -> bool {
        self.pages
            .get(&(category, id >> 6))
            .is_some_and(|page| page[usize::from(!end)] & (1 << (id & 63)) == 0)
    }

    /// Arrows with one end.
    pub fn dangling(&self) -> u64 {
        self.pages.values().map(|[starts, ends]| u64::from((starts ^ ends).count_ones())).sum()
    }
}

/// The id of a flow: the number itself, or a hash of whatever else it is.
pub fn flow_id(text: &[u8]) -> u64 {
    let number = text.iter().try_fold(0u64, |value, byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    });
    number.filter(|_| text.len() < 19).unwrap_or_else(|| {
        text.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    })
}

/// The memory of a walk.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Objects in the event list.
    pub events: u64,
    /// Other elements of the list.
    pub oddities: u64,
    /// Categories with their events, in order of appearance.
    pub categories: Vec<(Vec<u8>, u64)>,
    /// Lanes in order of appearance.
    pub lanes: Vec<Lane>,
    /// Arrows.
    pub flows: Flows,
    /// `trace_id` of the head.
    pub trace_id: Option<Vec<u8>>,
    /// The first pid that is a number: that of the process that recorded.
    pub pid: Option<i64>,
    /// Category of the last event.
    pub last_category: usize,
    /// Whether the head speaks of GPUs.
    pub has_gpu: bool,
    /// Whether Python stacks were recorded.
    pub with_stack: bool,
    /// Whether memory was recorded.
    pub with_memory: bool,
    /// Names of processes the trace itself gives.
    named_processes: HashMap<Vec<u8>, ()>,
    last_lane: usize,
    lane_index: HashMap<Vec<u8>, usize>,
}

impl Facts {
    /// The number of a category, adding it if there is room.
    #[inline]
    pub fn category(&mut self, text: &[u8]) -> usize {
        if let Some((last, _)) = self.categories.get(self.last_category)
            && last == text
        {
            return self.last_category;
        }
        self.other_category(text)
    }

    fn other_category(&mut self, text: &[u8]) -> usize {
        let found = self.categories.iter().position(|(known, _)| known == text);
        self.last_category = found.unwrap_or_else(|| {
            if self.categories.len() < MOST_CATEGORIES {
                self.categories.push((text.to_vec(), 0));
            }
            self.categories.len() - 1
        });
        self.last_category
    }

    /// How many events of a category there are; `name` without quotes.
    pub fn count(&self, name: &str) -> u64 {
        self.categories.iter().filter(|(known, _)| unquoted(known) == name.as_bytes()).map(|(_, n)| n).sum()
    }

    #[inline]
    fn lane(&mut self, pid: &[u8], tid: &[u8], ts: &[u8]) -> Option<&mut Lane> {
        let same = |lane: &Lane| lane.pid == pid && lane.tid == tid;
        let found = if self.lanes.get(self.last_lane).is_some_and(same) {
            Some(self.last_lane)
        } else {
            self.other_lane(pid, tid, ts)
        };
        self.last_lane = found?;
        self.lanes.get_mut(self.last_lane)
    }

    fn other_lane(&mut self, pid: &[u8], tid: &[u8], ts: &[u8]) -> Option<usize> {
        let key = [pid, b"\0", tid].concat();
        if let Some(&index) = self.lane_index.get(&key) {
            return Some(index);
        }
        if self.lanes.len() >= MOST_LANES || key.len() > 256 {
            return None;
        }
        if self.pid.is_none() {
            self.pid = std::str::from_utf8(pid).ok().and_then(|text| text.parse().ok());
        }
        self.lane_index.insert(key, self.lanes.len());
        self.lanes.push(Lane {
            pid: pid.to_vec(),
            tid: tid.to_vec(),
            ts: ts.to_vec(),
            gpu: false,
            named: false,
            process_named: false,
            used: false,
        });
        Some(self.lanes.len() - 1)
    }

    #[cold]
    fn metadata(&mut self, event: &Event, text: &[u8]) {
        let (pid, tid) = (event.pid.of(text), event.tid.of(text));
        match event.name.of(text) {
            b"\"process_name\"" if self.named_processes.len() < MOST_LANES => {
                self.named_processes.insert(pid.to_vec(), ());
            }
            b"\"thread_name\"" => {
                if let Some(lane) = self.lane(pid, tid, event.ts.of(text)) {
                    lane.named = true;
                }
            }
            _ => {}
        }
    }

    fn flow(&mut self, event: &Event, text: &[u8], category: usize) {
        let end = event.phase(text) == b'f';
        self.flows.note(category as u32, flow_id(event.id.of(text)), end);
    }

    /// Lanes with work on them that the trace does not name, with `process_named` filled in.
    pub fn nameless(&self) -> Vec<Lane> {
        self.lanes
            .iter()
            .filter(|lane| lane.used && lane.pid.first().is_some_and(u8::is_ascii_digit))
            .map(|lane| Lane { process_named: self.named_processes.contains_key(&lane.pid), ..lane.clone() })
            .filter(|lane| !lane.named || !lane.process_named)
            .collect()
    }

    /// Categories that a recording like this has and of which nothing is there. Kineto writes by type, so a cut takes
    /// whole types away.
    pub fn missing(&self) -> Vec<String> {
        let mut expected = Vec::new();
        if self.with_memory {
            expected.push("cpu_instant_event");
        }
        if self.with_stack {
            expected.push("python_function");
        }
        if self.has_gpu {
            expected.extend(["cuda_runtime", "kernel"]);
            if self.count("user_annotation") > 0 {
                expected.push("gpu_user_annotation");
            }
        }
        expected.insert(0, "cpu_op");
        expected.retain(|name| self.count(name) == 0);
        expected.into_iter().map(str::to_owned).collect()
    }
}

fn unquoted(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(text)
}

/// Whether a category is work of a GPU.
fn is_gpu(category: &[u8]) -> bool {
    matches!(
        unquoted(category),
        b"kernel" | b"gpu_memcpy" | b"gpu_memset" | b"gpu_user_annotation" | b"collective_comm"
    )
}

impl Sink for Facts {
    fn entry(&mut self, _part: Part, key: &[u8], value: &[u8]) {
        let yes = value != b"0" && value != b"false";
        match key {
            b"trace_id" if value.len() < 256 => self.trace_id = Some(value.to_vec()),
            b"with_stack" => self.with_stack = yes,
            b"profile_memory" => self.with_memory = yes,
            b"cuda_runtime_version" | b"hip_runtime_version" => self.has_gpu |= yes,
            b"deviceProperties" => self.has_gpu |= memchr::memchr(b'{', value).is_some(),
            _ => {}
        }
    }

    #[inline]
    fn event(&mut self, event: &Event, text: &[u8]) {
        self.events += 1;
        let category = self.category(event.cat.of(text));
        if let Some((_, count)) = self.categories.get_mut(category) {
            *count += 1;
        }
        match event.phase(text) {
            b'M' => return self.metadata(event, text),
            b's' | b'f' => self.flow(event, text, category),
            _ => {}
        }
        let gpu = self.categories.get(category).is_some_and(|(name, n)| *n < 3 && is_gpu(name));
        if let Some(lane) = self.lane(event.pid.of(text), event.tid.of(text), event.ts.of(text)) {
            lane.used = true;
            lane.gpu |= gpu;
        }
    }

    fn oddity(&mut self, _text: &[u8]) {
        self.oddities += 1;
    }
}
