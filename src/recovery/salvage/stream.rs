//! Walks through a trace of any length: document entries, events, document entries. What is whole is handed on, what
//! is mendable is mended, and after damage it looks for the next event. Bytes are pushed in; nothing is kept but a
//! few counters, so memory is what the caller's window is.
//!
//! Pure.

use super::anchors::{LOOK_BACK, begins_line, candidates, is_event_key, next_key_line};
use super::damage::Damage;
use super::habits::Habits;
use super::repair;
use super::scan::{Cursor, ENTRY_DEPTH, EVENT_DEPTH, Event, Span, Stop};
use super::signs::{self, Signs};
use super::turns::Turns;
use super::words;
use memchr::memmem;

/// The largest event or entry that is kept whole. Kineto's reach some ten kilobytes.
pub const LARGEST: usize = 8 << 20;
/// How far behind an error the next event is looked for before mending is given up.
const MEND_WINDOW: usize = 64 << 10;
/// How many next events are tried as the end of one that is to be mended: a name can hold what looks like one.
const MEND_ENDS: usize = 3;

/// Which entries of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Before the events.
    Head,
    /// After them.
    Foot,
}

/// Takes what the walk finds.
pub trait Sink {
    /// An entry of the document; `key` is without quotes, `value` is strict JSON.
    fn entry(&mut self, part: Part, key: &[u8], value: &[u8]);
    /// A whole event; its spans lie in `text`.
    fn event(&mut self, event: &Event, text: &[u8]);
    /// An element of the event list that is no object.
    fn oddity(&mut self, text: &[u8]);
}

/// Where in a document the walk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Before the first byte that counts.
    Start,
    /// Entries before the events.
    Head,
    /// The event list.
    Events,
    /// Damage: looking for the next event.
    Lost,
    /// Entries after the events.
    Foot,
    /// The document was closed.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    First,
    AfterValue,
    AfterComma,
}

/// Answer to [`Walker::feed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fed {
    /// Bytes of the slice that are done with.
    pub used: usize,
    /// How long the next slice must at least be, counted after the used bytes.
    pub want: usize,
}

enum Next {
    Go(usize),
    Want { from: usize, len: usize },
    End,
}

/// The walk. Feed it slices that begin where the last one was used up to.
#[derive(Debug, Clone)]
pub struct Walker {
    place: Place,
    slot: Slot,
    /// Offset of the slice in the whole.
    at: u64,
    array: bool,
    depth: u32,
    saw_list: bool,
    list_closed: bool,
    habits: Habits,
    /// The head is Kineto's, so events without a place in time are damage.
    kineto: bool,
    /// The numbers of its events.
    pub turns: Turns,
    /// What Kineto says twice.
    pub signs: Signs,
    /// What was wrong so far.
    pub damage: Damage,
}

impl Default for Walker {
    fn default() -> Self {
        Self::new()
    }
}

impl Walker {
    /// At the beginning of a document.
    pub fn new() -> Self {
        Self {
            place: Place::Start,
            slot: Slot::First,
            at: 0,
            array: false,
            depth: EVENT_DEPTH,
            saw_list: false,
            list_closed: false,
            habits: Habits::default(),
            kineto: false,
            turns: Turns::default(),
            signs: Signs::default(),
            damage: Damage::default(),
        }
    }

    /// Where the walk ended.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Whether an event list was ever entered.
    pub fn saw_list(&self) -> bool {
        self.saw_list
    }

    /// Whether the event list was closed, so that no event can be missing at its end.
    pub fn list_closed(&self) -> bool {
        self.list_closed
    }

    /// Whether the document is an array of events and no more.
    pub fn is_array(&self) -> bool {
        self.array
    }

    /// Whether everything was as a strict reader wants it.
    pub fn is_whole(&self) -> bool {
        self.place == Place::Done && self.damage == Damage::default()
    }

    /// Walks as far as `data` goes; `last` says that nothing follows it.
    pub fn feed<S: Sink>(&mut self, data: &[u8], last: bool, sink: &mut S) -> Fed {
        let mut pos = 0;
        loop {
            let next = match self.place {
                Place::Start => self.start(data, pos, last),
                Place::Head => self.entries(Part::Head, data, pos, last, sink),
                Place::Events => self.events(data, pos, last, sink),
                Place::Lost => self.lost(data, pos, last, sink),
                Place::Foot => self.entries(Part::Foot, data, pos, last, sink),
                Place::Done => self.done(data, pos),
            };
            match next {
                Next::Go(to) => pos = to,
                Next::Want { from, len } if !last => {
                    self.signs.leave(data);
                    self.at += from as u64;
                    return Fed { used: from, want: len.max(data.len() - from + 1) };
                }
                Next::Want { .. } | Next::End => {
                    self.at += data.len() as u64;
                    return Fed { used: data.len(), want: 1 };
                }
            }
        }
    }

    #[cold]
    fn wrong(&mut self, pos: usize) {
        self.damage.first.get_or_insert(self.at + pos as u64);
    }

    #[cold]
    fn broken(&mut self, pos: usize) {
        self.wrong(pos);
        self.damage.broken.get_or_insert(self.at + pos as u64);
    }

    fn start(&mut self, data: &[u8], pos: usize, last: bool) -> Next {
        if pos == 0 && self.at == 0 && data.len() < 3 && !last {
            return Next::Want { from: 0, len: 3 };
        }
        let mark = if pos == 0 && self.at == 0 && data.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        let mut cursor = Cursor::new(data, pos + mark);
        cursor.blank();
        match cursor.peek() {
            Some(b'{') => {
                if mark > 0 {
                    // A byte-order mark is not JSON: the copy goes without.
                    self.wrong(0);
                    self.damage.mended += 1;
                }
                self.place = Place::Head;
            }
            Some(b'[') => {
                self.array = true;
                self.depth = EVENT_DEPTH + 1;
                self.saw_list = true;
                self.place = Place::Events;
            }
            Some(_) => {
                self.broken(cursor.pos);
                self.place = Place::Lost;
                return Next::Go(cursor.pos);
            }
            None => return Next::Want { from: cursor.pos, len: 1 },
        }
        self.slot = Slot::First;
        Next::Go(cursor.pos + 1)
    }

    #[inline]
    fn events<S: Sink>(&mut self, data: &[u8], pos: usize, last: bool, sink: &mut S) -> Next {
        let mut cursor = Cursor::new(data, pos);
        let mut event = Event::default();
        loop {
            cursor.blank();
            let from = cursor.pos;
            match cursor.peek() {
                Some(b'{') => {
                    if self.slot == Slot::AfterValue {
                        self.wrong(from);
                        self.damage.commas += 1;
                    }
                    if !cursor.usual_event(&mut event, self.depth, &mut self.habits) {
                        return self.trouble(data, from, cursor.pos, cursor.stop, last, sink);
                    }
                    let end = cursor.pos;
                    cursor.blank();
                    let follower = cursor.peek();
                    match follower {
                        Some(b',' | b']' | b'{') => {}
                        None if !last && end - from < LARGEST => {
                            return Next::Want { from, len: cursor.pos - from + 1 };
                        }
                        None => {}
                        // It was closed too early: this is two events grown together at a seam.
                        Some(_) => event.doubled = true,
                    }
                    if event.doubled || (self.kineto && !event.placed(data)) {
                        return self.trouble(data, from, end, Stop::Bad, last, sink);
                    }
                    if !self.kineto || self.is_sound(&event, data, from, false) {
                        sink.event(&event, data);
                    } else {
                        self.drop_event(from, end);
                    }
                    if follower == Some(b',') {
                        self.slot = Slot::AfterComma;
                        cursor.pos += 1;
                    } else {
                        self.slot = Slot::AfterValue;
                    }
                }
                Some(b',') => {
                    if self.slot != Slot::AfterValue {
                        self.wrong(from);
                        self.damage.commas += 1;
                    }
                    self.slot = Slot::AfterComma;
                    cursor.pos += 1;
                }
                Some(b']') => {
                    if self.slot == Slot::AfterComma {
                        self.wrong(from);
                        self.damage.commas += 1;
                    }
                    self.list_closed = true;
                    self.slot = Slot::AfterValue;
                    self.place = if self.array { Place::Done } else { Place::Foot };
                    return Next::Go(from + 1);
                }
                Some(_) => return self.stranger(data, from, last, sink),
                None => return Next::Want { from, len: 1 },
            }
        }
    }

    /// Whether a mended event can be one that Kineto wrote badly. Only names and arguments come from outside.
    fn may_be_written(&mut self, event: &Event, text: &[u8], from: usize) -> bool {
        let verbatim = |field: Span| !field.of(text).contains(&b'\\');
        let free = !signs::is_of_gpu(event.cat.of(text)) && !words::is_of_torch(event.name.of(text));
        let free = free || verbatim(event.name);
        let sound =
            event.placed(text) && verbatim(event.cat) && free && self.is_sound(event, text, from, false);
        self.signs.leave(text);
        sound
    }

    /// Whether nothing else in the trace speaks against the event, which begins at `from`.
    #[inline]
    fn is_sound(&mut self, event: &Event, text: &[u8], from: usize, after_damage: bool) -> bool {
        let at = self.at + from as u64;
        self.turns.keep(event, text, at, after_damage) && self.signs.keep(event, text, at, after_damage)
    }

    /// It reads well, but it is none of those that were written.
    #[cold]
    fn drop_event(&mut self, from: usize, end: usize) {
        self.signs.gap();
        self.broken(from);
        self.damage.lost_events += 1;
        self.damage.lost_bytes += (end - from) as u64;
    }

    /// Something in the event list that is no object. Strict JSON allows it, so an undamaged document keeps it; Kineto never
    /// writes it.
    #[cold]
    fn stranger<S: Sink>(&mut self, data: &[u8], from: usize, last: bool, sink: &mut S) -> Next {
        let mut cursor = Cursor::new(data, from);
        if !self.kineto && self.damage == Damage::default() && self.slot != Slot::AfterValue {
            let read = cursor.value(self.depth);
            let end = cursor.pos;
            if read {
                cursor.blank();
            }
            match cursor.peek() {
                Some(b',' | b']') if read => {
                    sink.oddity(&data[from..end]);
                    self.slot = Slot::AfterValue;
                    return Next::Go(end);
                }
                None if (read || cursor.stop == Stop::More) && !last && data.len() - from < LARGEST => {
                    return Next::Want { from, len: 2 * (data.len() - from) };
                }
                _ => {}
            }
        }
        self.broken(from);
        self.place = Place::Lost;
        Next::Go(from)
    }

    /// An event did not read to its end.
    #[cold]
    fn trouble<S: Sink>(
        &mut self,
        data: &[u8],
        from: usize,
        error: usize,
        stop: Stop,
        last: bool,
        sink: &mut S,
    ) -> Next {
        let room = !last && data.len() - from < LARGEST;
        if stop == Stop::More && room {
            return Next::Want { from, len: 2 * (data.len() - from) };
        }
        if stop == Stop::Bad {
            self.wrong(error);
            let mut ends: Vec<usize> = candidates(data, error).take(MEND_ENDS).collect();
            if !ends.iter().any(|&end| begins_line(data, end)) && room && data.len() - error < MEND_WINDOW {
                return Next::Want { from, len: error - from + MEND_WINDOW };
            }
            if ends.is_empty() || (last && ends.len() < MEND_ENDS) {
                ends.push(data.len());
            }
            if let Some((mended, used)) = ends.iter().find_map(|&end| repair::event(&data[from..end])) {
                let mut event = Event::default();
                let read = Cursor::new(&mended, 0).event(&mut event, self.depth) && !event.doubled;
                if read && (!self.kineto || self.may_be_written(&event, &mended, from)) {
                    self.damage.mended += 1;
                    sink.event(&event, &mended);
                    self.slot = Slot::AfterValue;
                    return Next::Go(from + used);
                }
            }
            self.broken(error);
        }
        // The broken event itself is counted here, what else goes with it as it passes by.
        self.damage.lost_events += 1;
        self.damage.lost_bytes += 1;
        self.place = Place::Lost;
        let head = memmem::find(&data[from..(from + 256).min(data.len())], b"\"ph\"").map_or(1, |at| at + 4);
        self.damage.lost_bytes += head as u64 - 1;
        Next::Go(from + head)
    }

    /// Looks for the next event, or for the end of the document.
    #[cold]
    fn lost<S: Sink>(&mut self, data: &[u8], pos: usize, last: bool, sink: &mut S) -> Next {
        let mut event = Event::default();
        for from in candidates(data, pos) {
            let mut cursor = Cursor::new(data, from);
            if cursor.event(&mut event, self.depth) {
                let placed = if self.kineto { event.placed(data) } else { event.plausible(data) };
                if placed && !event.doubled {
                    if let Some(next) = self.footer(data, pos, from) {
                        return next;
                    }
                    self.skip(&data[pos..from]);
                    if !self.kineto || self.is_sound(&event, data, from, true) {
                        sink.event(&event, data);
                    } else {
                        self.drop_event(from, cursor.pos);
                    }
                    self.saw_list = true;
                    self.slot = Slot::AfterValue;
                    self.place = Place::Events;
                    return Next::Go(cursor.pos);
                }
            } else if cursor.stop == Stop::More && !last && data.len() - from < LARGEST {
                if let Some(next) = self.footer(data, pos, from) {
                    return next;
                }
                self.skip(&data[pos..from]);
                return Next::Want { from, len: 2 * (data.len() - from) };
            }
        }
        if let Some(next) = self.footer(data, pos, data.len()) {
            return next;
        }
        let keep = if last { data.len() } else { data.len().saturating_sub(LOOK_BACK).max(pos) };
        self.skip(&data[pos..keep]);
        if last { Next::End } else { Next::Want { from: keep, len: LOOK_BACK + 1 } }
    }

    /// The name of the trace stands behind the events in every layout of Kineto.
    fn footer(&mut self, data: &[u8], pos: usize, until: usize) -> Option<Next> {
        if self.array {
            return None;
        }
        let at = memmem::find(&data[pos..until], b"\"traceName\"")? + pos;
        self.skip(&data[pos..at]);
        self.list_closed = true;
        self.place = Place::Foot;
        self.slot = Slot::AfterComma;
        Some(Next::Go(at))
    }

    fn skip(&mut self, text: &[u8]) {
        let solid = text.iter().any(|b| !b.is_ascii_whitespace());
        if solid {
            self.damage.lost_bytes += text.len() as u64;
            self.damage.lost_events += memmem::find_iter(text, b"\"ph\"").count() as u64;
        }
    }

    fn entries<S: Sink>(&mut self, part: Part, data: &[u8], pos: usize, last: bool, sink: &mut S) -> Next {
        let mut cursor = Cursor::new(data, pos);
        cursor.blank();
        let from = cursor.pos;
        match cursor.peek() {
            Some(b'}') => {
                if self.slot == Slot::AfterComma {
                    self.wrong(from);
                    self.damage.commas += 1;
                }
                self.place = Place::Done;
                Next::Go(from + 1)
            }
            Some(b',') => {
                if self.slot != Slot::AfterValue {
                    self.wrong(from);
                    self.damage.commas += 1;
                }
                self.slot = Slot::AfterComma;
                Next::Go(from + 1)
            }
            Some(b'"') => {
                if self.slot == Slot::AfterValue {
                    self.wrong(from);
                    self.damage.commas += 1;
                }
                let Some(key) = cursor.key() else {
                    return self.entry_trouble(part, data, from, None, &cursor, last, sink);
                };
                self.kineto |= key == b"schemaVersion" || key == b"deviceProperties";
                if key == b"salvaged" {
                    self.turns.ignore();
                    self.signs.ignore();
                }
                if part == Part::Head && key == b"traceEvents" && cursor.peek() == Some(b'[') {
                    self.saw_list = true;
                    self.place = Place::Events;
                    self.slot = Slot::First;
                    return Next::Go(cursor.pos + 1);
                }
                if part == Part::Head && key == b"traceEvents" && cursor.peek().is_none() && !last {
                    return Next::Want { from, len: 2 * (data.len() - from) };
                }
                let value = cursor.pos;
                if !cursor.value(ENTRY_DEPTH) {
                    return self.entry_trouble(part, data, from, Some((key, value)), &cursor, last, sink);
                }
                let end = cursor.pos;
                cursor.blank();
                match cursor.peek() {
                    Some(b',' | b'}') => {}
                    None if !last && data.len() - from < LARGEST => {
                        return Next::Want { from, len: 2 * (data.len() - from) };
                    }
                    None => {}
                    // The value goes on behind what looked like its end: an unescaped quote.
                    Some(_) => {
                        cursor.stop = Stop::Bad;
                        let entry = Some((key, value));
                        return self.entry_trouble(part, data, from, entry, &cursor, last, sink);
                    }
                }
                sink.entry(part, key, &data[value..end]);
                self.slot = Slot::AfterValue;
                Next::Go(end)
            }
            Some(_) => {
                cursor.stop = Stop::Bad;
                self.entry_trouble(part, data, from, None, &cursor, last, sink)
            }
            None => Next::Want { from, len: 1 },
        }
    }

    #[cold]
    #[expect(clippy::too_many_arguments, reason = "one call site's local state")]
    fn entry_trouble<S: Sink>(
        &mut self,
        part: Part,
        data: &[u8],
        from: usize,
        entry: Option<(&[u8], usize)>,
        cursor: &Cursor<'_>,
        last: bool,
        sink: &mut S,
    ) -> Next {
        let error = cursor.pos;
        let room = !last && data.len() - from < LARGEST;
        if cursor.stop == Stop::More && room {
            return Next::Want { from, len: 2 * (data.len() - from) };
        }
        let line = next_key_line(data, error);
        if line.is_none() && room && data.len() - error < MEND_WINDOW {
            return Next::Want { from, len: error - from + MEND_WINDOW };
        }
        self.wrong(error);
        let end = line.unwrap_or(data.len());
        if let Some((key, value)) = entry
            && cursor.stop == Stop::Bad
            && let Some((mended, used)) = repair::value(&data[value..end])
        {
            self.damage.mended += 1;
            sink.entry(part, key, &mended);
            self.slot = Slot::AfterValue;
            return Next::Go(value + used);
        }
        if cursor.stop == Stop::Bad {
            self.broken(error);
        }
        let mut next = match line {
            Some(line) if !is_event_key(&data[line..]) => {
                self.damage.lost_entries += 1;
                self.slot = Slot::AfterComma;
                line
            }
            _ => {
                // One byte further, or the name of the trace would be found again and again.
                self.place = Place::Lost;
                (from + 1).min(data.len())
            }
        };
        // An event may begin before the line that looks like the next entry: then the list was missed.
        if next > from
            && candidates(data, error)
                .next()
                .is_some_and(|event| event < next && is_event_key(data[event + 1..].trim_ascii_start()))
        {
            self.place = Place::Lost;
            next = from + 1;
        }
        self.skip(&data[from..next]);
        Next::Go(next)
    }

    fn done(&mut self, data: &[u8], pos: usize) -> Next {
        let mut cursor = Cursor::new(data, pos);
        cursor.blank();
        if cursor.pos < data.len() {
            self.broken(cursor.pos);
            self.damage.lost_bytes += (data.len() - cursor.pos) as u64;
        }
        Next::Want { from: data.len(), len: 1 }
    }
}
