//! Where and when events are. torch sorts what it numbers by time and counts its ids up, operators of one thread lie within each
//! other, and every thread has a name at the end; one place that breaks this is damage.
//!
//! Only what two neighbours prove is said: of three in a row whose outer two are in order, the inner one is wrong.
//!
//! Pure.

use super::scan::{Event, Span};
use super::signs::{LEARN, MOST_WRONG, Rule};
use std::collections::HashMap;

/// Threads and streams that are told apart.
const MOST_LANES: usize = 4096;
/// Lanes that are looked through one by one: a GPU's events change places all the time.
const FEW_LANES: usize = 16;
/// How deep operators nest at most.
const MOST_DEEP: usize = 512;

/// Numbers in a row, each with the event it is of.
#[derive(Debug, Clone, Default)]
struct Row {
    /// The last two.
    last: [Option<(u64, u64)>; 2],
    rule: Rule,
}

impl Row {
    /// `outer` says whether two numbers can stand around one, `inner` whether that one fits.
    #[inline]
    fn note(&mut self, number: u64, at: u64, outer: fn(u64, u64) -> bool, inner: fn(u64, u64, u64) -> bool) {
        if let [Some((before, _)), Some((middle, event))] = self.last
            && outer(before, number)
        {
            if inner(before, middle, number) {
                self.rule.kept();
            } else {
                self.rule.broken([event]);
                // It shall not speak against its neighbour, too.
                self.last[1] = self.last[0];
            }
        }
        self.last = [self.last[1], Some((number, at))];
    }
}

/// A thread or a stream.
#[derive(Debug, Clone)]
struct Lane {
    key: Box<[u8]>,
    /// How it is written.
    text: Box<[u8]>,
    times: u32,
    at: u64,
    named: bool,
    /// Operators that are open: where they end, and where they begin in the trace.
    open: Vec<(u64, u64)>,
    time: u64,
    /// Gaps before that were there.
    gaps: u32,
}

/// What is where and when.
#[derive(Debug, Clone, Default)]
pub(super) struct Order {
    times: Row,
    /// Ids of operators.
    ids: Row,
    /// Ids of Python's frames.
    frames: Row,
    nesting: Rule,
    lanes: Vec<Lane>,
    index: HashMap<Box<[u8]>, usize>,
    last: usize,
    gaps: u32,
    /// Names that name nothing.
    empty: Vec<u64>,
    full: bool,
}

impl Order {
    /// Something is missing before the next event.
    pub(super) fn gap(&mut self) {
        self.times.last = [None; 2];
        self.ids.last = [None; 2];
        self.frames.last = [None; 2];
        self.gaps = self.gaps.wrapping_add(1);
    }

    /// An event that torch numbers.
    #[inline]
    pub(super) fn numbered(&mut self, event: &Event, text: &[u8], at: u64) {
        let Some(time) = thousandths(event.ts.of(text)) else { return };
        self.times.note(time, at, |one, two| one <= two, |one, it, two| one <= it && it <= two);
        let args = event.args.of(text);
        let outer = |one: u64, two: u64| one.checked_add(2) == Some(two);
        let inner = |one: u64, it: u64, _: u64| it == one + 1;
        if let Some(id) = external_id(args) {
            self.ids.note(id, at, outer, inner);
        } else if let Some((parent, id)) = python_ids(args) {
            if parent.is_some_and(|parent| parent >= id) {
                self.frames.rule.broken([at]);
            }
            self.frames.note(id, at, outer, inner);
        }
        let lane = self.lane(event, text, at);
        if event.name.of(text).starts_with(b"\"aten::")
            && let Some(lane) = lane
            && let Some(length) = thousandths(event.dur.of(text))
        {
            self.operator(lane, time, time.saturating_add(length), at);
        }
    }

    #[inline]
    fn operator(&mut self, lane: usize, time: u64, end: u64, at: u64) {
        let lane = &mut self.lanes[lane];
        if time < lane.time || lane.gaps != self.gaps || lane.open.len() >= MOST_DEEP {
            lane.open.clear();
            lane.gaps = self.gaps;
        }
        lane.time = time;
        while lane.open.last().is_some_and(|(end, _)| *end <= time) {
            lane.open.pop();
        }
        match lane.open.last() {
            Some((around, event)) if *around < end => self.nesting.broken([*event, at]),
            _ => {
                self.nesting.kept();
                lane.open.push((end, at));
            }
        }
    }

    /// The lane of an event, counted.
    #[inline]
    pub(super) fn lane(&mut self, event: &Event, text: &[u8], at: u64) -> Option<usize> {
        // What stands between them is always the same.
        let both = Span { from: event.pid.from, to: event.tid.to }.of(text);
        let same = |lane: &Lane| !both.is_empty() && *lane.text == *both;
        if !self.lanes.get(self.last).is_some_and(same) {
            self.last = match self.lanes.iter().take(FEW_LANES).position(same) {
                Some(lane) => lane,
                None => {
                    let lane = self.other_lane(event.pid.of(text), event.tid.of(text))?;
                    self.lanes[lane].text = both.into();
                    lane
                }
            };
        }
        let lane = &mut self.lanes[self.last];
        lane.times = lane.times.saturating_add(1);
        lane.at = at;
        Some(self.last)
    }

    #[cold]
    fn other_lane(&mut self, pid: &[u8], tid: &[u8]) -> Option<usize> {
        let key: Box<[u8]> = [pid, b" ", tid].concat().into();
        if let Some(number) = self.index.get(&key) {
            return Some(*number);
        }
        self.full |= self.lanes.len() == MOST_LANES || key.len() > 256;
        if self.full {
            return None;
        }
        self.index.insert(key.clone(), self.lanes.len());
        self.lanes.push(Lane {
            key,
            text: Box::default(),
            times: 0,
            at: 0,
            named: false,
            open: Vec::new(),
            time: 0,
            gaps: 0,
        });
        Some(self.lanes.len() - 1)
    }

    /// A name, of a thread or of what else.
    #[cold]
    pub(super) fn metadata(&mut self, event: &Event, text: &[u8], at: u64) {
        let key: &[u8] = match event.name.of(text) {
            b"\"process_name\"" | b"\"thread_name\"" => b"\"name\"",
            b"\"process_labels\"" => b"\"labels\"",
            b"\"process_sort_index\"" | b"\"thread_sort_index\"" => b"\"sort_index\"",
            _ => return,
        };
        if memchr::memmem::find(event.args.of(text), key).is_none() {
            self.empty.extend((self.empty.len() <= MOST_WRONG as usize).then_some(at));
        }
        if event.name.of(text) == b"\"thread_name\""
            && let Some(lane) = self.other_lane(event.pid.of(text), event.tid.of(text))
        {
            self.lanes[lane].named = true;
        }
    }

    /// Where the events begin that contradict their neighbours.
    pub(super) fn verdict(&self) -> Vec<u64> {
        let mut events =
            [&self.times.rule, &self.ids.rule, &self.frames.rule, &self.nesting].map(Rule::verdict).concat();
        events.extend(self.strays());
        if self.empty.len() <= MOST_WRONG as usize {
            events.extend(&self.empty);
        }
        events
    }

    /// Events that are alone on a thread without a name, where every other thread has one.
    fn strays(&self) -> Vec<u64> {
        let used = || self.lanes.iter().filter(|lane| lane.times > 0 && lane.key[0].is_ascii_digit());
        let nameless: Vec<&Lane> = used().filter(|lane| !lane.named).collect();
        let all: u32 = used().map(|lane| lane.times).fold(0, u32::saturating_add);
        let alone = nameless.iter().all(|lane| lane.times == 1);
        let few = nameless.len() <= MOST_WRONG as usize && all / LEARN >= nameless.len() as u32;
        if self.full || !alone || !few || nameless.len() == used().count() {
            return Vec::new();
        }
        nameless.iter().map(|lane| lane.at).collect()
    }
}

/// A time in thousandths, if it has three decimals.
#[inline]
fn thousandths(number: &[u8]) -> Option<u64> {
    let [whole @ .., b'.', a, b, c] = number else { return None };
    if whole.len() > 14 {
        return None;
    }
    let digit = |sum: u64, byte: &u8| sum * 10 + u64::from(byte.wrapping_sub(b'0'));
    let (high, low) = whole.split_at(whole.len().saturating_sub(8));
    let sum = match low.first_chunk() {
        Some(low) => high.iter().fold(0, digit) * 100_000_000 + eight_digits(*low),
        None => low.iter().fold(0, digit),
    };
    Some([*a, *b, *c].iter().fold(sum, digit))
}

/// Eight digits at once: pairs, then fours, then all.
#[inline]
fn eight_digits(digits: [u8; 8]) -> u64 {
    let ones = u64::from_le_bytes(digits) & 0x0f0f_0f0f_0f0f_0f0f;
    let pairs = (ones.wrapping_mul(10 << 8 | 1) >> 8) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs.wrapping_mul(100 << 16 | 1) >> 16) & 0x0000_ffff_0000_ffff;
    fours.wrapping_mul(10_000 << 32 | 1) >> 32
}

/// The id that every operator has first in its `args`.
#[inline]
fn external_id(args: &[u8]) -> Option<u64> {
    number(args.strip_prefix(b"{")?.trim_ascii_start().strip_prefix(b"\"External id\": ")?)
}

/// The ids that every frame of Python has first in its `args`: of its caller, which was there before, and its own.
#[inline]
fn python_ids(args: &[u8]) -> Option<(Option<u64>, u64)> {
    let rest = args.strip_prefix(b"{")?.trim_ascii_start().strip_prefix(b"\"Python parent id\": ")?;
    let comma = rest.iter().take(24).position(|byte| *byte == b',')?;
    let own = rest[comma + 1..].trim_ascii_start().strip_prefix(b"\"Python id\": ")?;
    Some((number(rest), number(own)?))
}

#[inline]
fn number(text: &[u8]) -> Option<u64> {
    let mut sum = 0u64;
    for (count, byte) in text.iter().enumerate() {
        if !byte.is_ascii_digit() {
            return (count > 0).then_some(sum);
        }
        sum = sum.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_the_last_decimal() {
        for (text, time) in [
            ("4647594794863.642", Some(4_647_594_794_863_642)),
            ("12345678.901", Some(12_345_678_901)),
            ("1234567.890", Some(1_234_567_890)),
            ("0.001", Some(1)),
            ("1.5", None),
            ("123456789012345.000", None),
        ] {
            assert_eq!(thousandths(text.as_bytes()), time, "{text}");
        }
    }
}
