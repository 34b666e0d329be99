//! What Kineto says twice, and must say the same both times. Where bytes went missing or came twice, the halves of two events can
//! read well together; torch's numbers give that away ([`super::turns`]) except in what torch does not number: kernels, copies,
//! runtime calls, arrows. Of those Kineto repeats so much that a seam contradicts it:
//!
//! - an arrow stands right behind the event that it belongs to, with the same process, thread and time, and with its correlation as
//!   id;
//! - times have three decimals, and all of a trace about the same length;
//! - a kernel, a copy, a call has all its `args`, each once;
//! - a call has one number (`cbid`), which has one name; a kernel's name is a name (`names.rs`);
//! - keys, categories, types and the names of operators are of a small stock (`shapes.rs`);
//! - what is numbered is in the order of time, and every thread has a name (`order.rs`);
//! - no event comes twice.
//!
//! The walk only takes notes. What they come to is asked at its end, when it is known what this trace does everywhere else: a rule
//! speaks only if the trace keeps it, but for very few places, and the event of such a place is dropped in another reading. So
//! nothing is lost of a trace that was written in another way, and where it cannot be known which of two is wrong, both go.
//!
//! Pure.

use super::names::{Calls, Names};
use super::order::Order;
use super::scan::{Event, Span};
use super::shapes::Shapes;
use memchr::memmem::{self, Finder};

/// No single damage breaks a rule in more places.
pub(super) const MOST_WRONG: u32 = 8;
/// Places that keep a rule for each that breaks it.
pub(super) const LEARN: u32 = 32;
/// Events of one damage.
const MOST_EVENTS: usize = 1 << 16;
/// Events at the begin of a trace whose numbers nobody checks yet.
const UNPROVEN: u32 = 64;
/// Events that are remembered, to see what comes twice: the last of each part of the hashes. So many in one part lie between an event
/// and the same one again only by a chance that no trace will meet.
const PARTS: usize = 1024;
const PART: usize = 4;

/// A rule, and where it was broken.
#[derive(Debug, Clone, Default)]
pub(super) struct Rule {
    kept: u32,
    wrong: u32,
    events: Vec<u64>,
}

impl Rule {
    pub(super) fn kept(&mut self) {
        self.kept = self.kept.saturating_add(1);
    }

    #[cold]
    pub(super) fn broken(&mut self, events: impl IntoIterator<Item = u64>) {
        self.wrong = self.wrong.saturating_add(1);
        if self.wrong <= MOST_WRONG {
            self.events.extend(events);
        }
    }

    /// The rule is not one of this trace.
    #[cold]
    fn void(&mut self) {
        self.wrong = u32::MAX;
        self.events = Vec::new();
    }

    /// The events to drop.
    pub(super) fn verdict(&self) -> &[u64] {
        let holds = self.wrong <= MOST_WRONG && self.kept / LEARN >= self.wrong;
        if holds { &self.events } else { &[] }
    }
}

/// The event that the next arrow belongs to.
#[derive(Debug, Clone, Default)]
struct Owner {
    at: Option<u64>,
    /// Where its fields lie, in the text at hand or in what was kept of it.
    fields: Event,
    kept: Option<Vec<u8>>,
}

impl Owner {
    /// Whether the arrow is at its place and time, and has its correlation.
    fn has(&self, arrow: &Event, text: &[u8], keys: &Keys) -> bool {
        let own = self.kept.as_deref().unwrap_or(text);
        let pairs = [(self.fields.pid, arrow.pid), (self.fields.tid, arrow.tid), (self.fields.ts, arrow.ts)];
        let there = pairs.iter().all(|(mine, its)| mine.of(own) == its.of(text));
        let linked = || {
            let number = value(self.fields.args.of(own), &keys.correlation);
            number.is_empty() || number == arrow.id.of(text)
        };
        there && (arrow.cat.of(text) != b"\"ac2g\"" || linked())
    }
}

/// Two keys, ready to be looked for.
#[derive(Debug, Clone)]
struct Keys {
    correlation: Finder<'static>,
    cbid: Finder<'static>,
}

impl Default for Keys {
    fn default() -> Self {
        Self { correlation: Finder::new("\"correlation\": "), cbid: Finder::new("\"cbid\": ") }
    }
}

/// The notes of a walk, or what an earlier one came to.
#[derive(Debug, Clone, Default)]
pub struct Signs {
    off: bool,
    /// Offsets of the events to drop, in order, and how many of them passed by.
    drop: Vec<u64>,
    dropped: usize,
    owner: Owner,
    arrows: Rule,
    decimals: Rule,
    /// For each length of a time how often, and where last.
    lengths: [(u32, u64); 32],
    args: [Rule; KINDS.len()],
    calls: Calls,
    names: Names,
    shapes: Shapes,
    order: Order,
    seen: Seen,
    keys: Keys,
}

/// What is to be known of the events of a category.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// torch numbers them.
    Numbered,
    /// One of `KINDS`.
    Gpu(usize),
    /// No more than that they come once.
    Other,
}

impl Kind {
    pub(super) fn of(category: &[u8]) -> Self {
        let numbered: [&[u8]; 4] =
            [b"\"cpu_op\"", b"\"user_annotation\"", b"\"python_function\"", b"\"cpu_instant_event\""];
        match KINDS.iter().position(|(name, _)| *name == category) {
            Some(kind) => Self::Gpu(kind),
            None if numbered.contains(&category) => Self::Numbered,
            None => Self::Other,
        }
    }
}

/// Categories of what a GPU did or was told, and what Kineto always writes into their `args`, in its order.
const KINDS: [(&[u8], &[&[u8]]); 5] = [
    (
        b"\"kernel\"",
        &[
            b"\"queued\"",
            b"\"device\"",
            b"\"context\"",
            b"\"stream\"",
            b"\"correlation\"",
            b"\"registers per thread\"",
            b"\"shared memory\"",
            b"\"blocks per SM\"",
            b"\"warps per SM\"",
            b"\"grid\"",
            b"\"block\"",
            b"\"est. achieved occupancy %\"",
        ],
    ),
    (b"\"cuda_runtime\"", &[b"\"cbid\"", b"\"correlation\""]),
    (b"\"cuda_driver\"", &[b"\"cbid\"", b"\"correlation\""]),
    (b"\"gpu_memcpy\"", &[b"\"device\"", b"\"context\"", b"\"stream\"", b"\"correlation\"", b"\"bytes\""]),
    (b"\"gpu_memset\"", &[b"\"device\"", b"\"context\"", b"\"stream\"", b"\"correlation\"", b"\"bytes\""]),
];

/// Whether events of the category have names that no user chose.
pub(super) fn is_of_gpu(category: &[u8]) -> bool {
    matches!(Kind::of(category), Kind::Gpu(_))
}

/// Whether `args` have everything that is always written into those of the kind.
fn is_whole(kind: Kind, args: &[u8]) -> bool {
    match kind {
        Kind::Gpu(kind) => each_once(KINDS[kind].1, args),
        Kind::Numbered | Kind::Other => true,
    }
}

/// Whether all keys are there, in this order, and none a second time.
fn each_once(keys: &[&[u8]], args: &[u8]) -> bool {
    let mut rest = args;
    keys.iter().all(|key| {
        let Some(at) = memmem::find(rest, key) else { return false };
        rest = &rest[at + key.len()..];
        memmem::find_iter(args, key).nth(1).is_none()
    })
}

/// The last events, by a hash.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// Hash and turn, the latest first.
    parts: Vec<[(u64, u64); PART]>,
    turn: u64,
    rule: Rule,
    /// The event before.
    before: Option<u64>,
    /// How far back those lie that come again now, and how many did.
    run: Option<(u64, u64)>,
}

impl Seen {
    fn note(&mut self, part: Span, text: &[u8], at: u64) {
        let hash = hash(part.of(text));
        if self.parts.is_empty() {
            self.parts.resize(PARTS, [(0, 0); PART]);
        }
        self.turn += 1;
        let part = &mut self.parts[hash as usize % PARTS];
        let same = part.iter().position(|(other, _)| *other == hash);
        let back = same.map(|place| self.turn - part[place].1);
        part.copy_within(..same.unwrap_or(PART - 1), 1);
        part[0] = (hash, self.turn);
        match (back, self.run) {
            (None, _) => self.run = None,
            (Some(back), Some((same, count))) if back == same => {
                self.run = Some((back, count + 1));
                self.rule.events.push(at);
                // A block comes twice. What comes again and again is no block, but a trace of a kind of its own.
                if count == back || self.rule.events.len() > MOST_EVENTS {
                    self.rule.void();
                }
            }
            (Some(back), _) => {
                // The block that came twice begins within the event before, which therefore ends like another.
                self.rule.broken(self.before.into_iter().chain([at]));
                self.run = Some((back, 1));
            }
        }
        self.before = Some(at);
    }
}

impl Signs {
    /// Takes no notes and drops nothing.
    pub fn ignore(&mut self) {
        self.off = true;
    }

    /// Drops the events that begin at these offsets.
    pub fn drop_these(&mut self, events: &[u64]) {
        self.drop = events.to_vec();
    }

    /// Something is missing before the next event.
    pub fn gap(&mut self) {
        self.owner.at = None;
        self.seen.before = None;
        self.order.gap();
    }

    /// Whether the event may be kept. `at` is its offset in the trace.
    #[inline]
    pub fn keep(&mut self, event: &Event, text: &[u8], at: u64, after_damage: bool) -> bool {
        if self.off {
            return true;
        }
        if !self.drop.is_empty() {
            return self.is_sound(at);
        }
        if after_damage {
            self.gap();
        }
        self.note(event, text, at);
        true
    }

    fn is_sound(&mut self, at: u64) -> bool {
        while self.drop.get(self.dropped).is_some_and(|event| *event < at) {
            self.dropped += 1;
        }
        self.drop.get(self.dropped) != Some(&at)
    }

    fn note(&mut self, event: &Event, text: &[u8], at: u64) {
        let (ts, dur) = (event.ts.of(text), event.dur.of(text));
        self.time(ts, at);
        self.seen.rule.kept();
        if event.dur.present() && !three_decimals(dur) {
            self.decimals.broken([at]);
        }
        let phase = event.phase(text);
        let shape = self.shapes.note(event, text, at, is_whole).map(|shape| (shape.kind, shape.whole));
        let category = || Kind::of(event.cat.of(text));
        let (kind, whole) = shape.unwrap_or_else(|| (category(), is_whole(category(), event.args.of(text))));
        match phase {
            b's' | b'f' => return self.arrow(event, text, at),
            b'M' => self.order.metadata(event, text, at),
            _ if kind == Kind::Numbered => self.order.numbered(event, text, at),
            _ => {
                self.order.lane(event, text, at);
            }
        }
        self.owner.at = Some(at);
        self.owner.fields = *event;
        self.owner.kept = None;
        match phase {
            b'X' => self.work(kind, whole, event, text, at),
            b'i' if kind != Kind::Numbered => self.seen.note(event.all, text, at),
            _ => {}
        }
        self.seen.before = Some(at);
    }

    /// The text at hand goes away.
    pub fn leave(&mut self, text: &[u8]) {
        if self.owner.at.is_some() && self.owner.kept.is_none() {
            let all = self.owner.fields.all;
            let fields = &mut self.owner.fields;
            for field in [&mut fields.pid, &mut fields.tid, &mut fields.ts, &mut fields.args] {
                if field.present() {
                    *field = field.relative(all.from);
                }
            }
            self.owner.kept = Some(all.of(text).to_vec());
        }
    }

    #[inline]
    fn time(&mut self, ts: &[u8], at: u64) {
        if three_decimals(ts) {
            self.decimals.kept();
        } else {
            self.decimals.broken([at]);
        }
        let length = &mut self.lengths[ts.len().min(31)];
        *length = (length.0.saturating_add(1), at);
    }

    fn arrow(&mut self, event: &Event, text: &[u8], at: u64) {
        self.seen.note(event.all, text, at);
        match self.owner.at {
            Some(_) if self.owner.has(event, text, &self.keys) => self.arrows.kept(),
            Some(owner) => self.arrows.broken([owner, at]),
            None => {}
        }
    }

    /// A stretch of time on a thread or on a GPU.
    fn work(&mut self, kind: Kind, whole: bool, event: &Event, text: &[u8], at: u64) {
        let (name, args) = (event.name.of(text), event.args.of(text));
        if let Kind::Gpu(kind) = kind {
            if whole {
                self.args[kind].kept();
            } else {
                self.args[kind].broken([at]);
            }
            match kind {
                0 => self.names.note(name, args, at),
                1 | 2 => self.calls.note(kind, value(args, &self.keys.cbid), name, at),
                _ => {}
            }
        }
        if kind == Kind::Numbered && self.seen.rule.kept > UNPROVEN {
            return;
        }
        // Time, length and `args`: the name may be long.
        self.seen.note(Span { from: event.ts.from, to: event.all.to }, text, at);
    }

    /// Where the events begin that contradict what is said elsewhere, in order.
    pub fn verdict(&self) -> Vec<u64> {
        if self.off || !self.drop.is_empty() {
            return Vec::new();
        }
        let mut events = [&self.arrows, &self.decimals, &self.seen.rule].map(Rule::verdict).concat();
        events.extend(self.args.iter().flat_map(Rule::verdict));
        events.extend(self.odd_lengths());
        events.extend(self.calls.verdict());
        events.extend(self.names.verdict());
        events.extend(self.shapes.verdict());
        events.extend(self.order.verdict());
        events.sort_unstable();
        events.dedup();
        events
    }

    /// Times that are digits shorter or longer than every other one: a clock passes lengths one after the other.
    fn odd_lengths(&self) -> impl Iterator<Item = u64> + '_ {
        let all: u64 = self.lengths.iter().map(|(count, _)| u64::from(*count)).sum();
        self.lengths
            .iter()
            .enumerate()
            .filter(move |(len, (count, _))| {
                let near = len.saturating_sub(1)..(len + 2).min(self.lengths.len());
                let neighbours: u32 = self.lengths[near].iter().map(|(count, _)| count).sum();
                *count == 1 && neighbours == 1 && all > u64::from(LEARN)
            })
            .map(|(_, (_, at))| *at)
    }
}

#[inline]
fn three_decimals(number: &[u8]) -> bool {
    matches!(number, [.., b'.', _, _, _])
}

/// The digits behind a key.
fn value<'a>(args: &'a [u8], key: &Finder<'_>) -> &'a [u8] {
    let Some(at) = key.find(args) else { return &[] };
    let rest = &args[at + key.needle().len()..];
    &rest[..rest.iter().take_while(|byte| byte.is_ascii_digit()).count()]
}

/// A quick hash. Whoever makes two events alike loses one of them, and that only if the trace is damaged nowhere else.
#[inline]
pub(super) fn hash(text: &[u8]) -> u64 {
    const FACTOR: u64 = 0xa076_1d64_78bd_642f;
    let (words, rest) = text.as_chunks::<8>();
    let add = |sum: u64, word: [u8; 8]| {
        sum.rotate_left(23).wrapping_add(u64::from_le_bytes(word).wrapping_mul(FACTOR))
    };
    let mut end = [0; 8];
    end[..rest.len()].copy_from_slice(rest);
    let sum = add(words.iter().fold(text.len() as u64, |sum, word| add(sum, *word)), end);
    let product = u128::from(sum) * u128::from(FACTOR);
    (product as u64) ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_with_like_hashes_are_known_again() {
        let like = |text: &String| hash(text.as_bytes()) as usize % PARTS == 7;
        let mut block: Vec<String> = (0..).map(|n| format!("event {n}")).filter(like).take(3).collect();
        block.extend(["first".to_owned(), "last".to_owned()]);
        let mut seen = Seen::default();
        for (at, text) in (0..).zip(block.iter().chain(&block)) {
            seen.rule.kept = u32::MAX;
            seen.note(Span { from: 0, to: text.len() as u32 }, text.as_bytes(), at);
        }
        // The one before the block as well: it grew together with the block's first.
        assert_eq!(seen.rule.verdict(), [4, 5, 6, 7, 8, 9]);
    }
}
