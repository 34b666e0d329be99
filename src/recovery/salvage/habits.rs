//! Kineto's events differ in few bytes. What is the same byte for byte as in an event before needs no second reading.
//!
//! Pure.

use super::scan::{Cursor, Event, Span, span};

/// A stretch of text between two values that vary, and where two fields lie in it.
#[derive(Debug, Clone, Default)]
struct Habit {
    text: Vec<u8>,
    first: Span,
    second: Span,
}

/// How the events of this trace use to begin (`ph` and `cat` before the name) and go on (`pid` and `tid` between name
/// and `ts`).
#[derive(Debug, Clone, Default)]
pub struct Habits {
    heads: Vec<Habit>,
    lanes: Vec<Habit>,
    turn: usize,
}

impl Habits {
    /// More are slower to find than to read anew.
    const MOST: usize = 4;
    const LONGEST: usize = 128;

    fn learn(kept: &mut Vec<Habit>, turn: &mut usize, habit: Habit) {
        if kept.len() < Self::MOST {
            kept.push(habit);
        } else {
            *turn = (*turn + 1) % Self::MOST;
            kept[*turn] = habit;
        }
    }

    #[cold]
    fn learn_head(&mut self, event: &Event, buf: &[u8]) {
        let (start, end) = (event.all.from, event.name.from);
        let ordered = event.ph.present() && event.ph.to <= event.cat.from && event.cat.to <= end;
        // Another known field in the stretch would be missed.
        let alone = [event.pid, event.tid, event.ts, event.id, event.dur, event.args]
            .iter()
            .all(|field| !field.present() || field.from > end);
        let text = Span { from: start, to: end };
        if ordered && alone && !event.doubled && (end - start) as usize <= Self::LONGEST {
            let habit = Habit {
                text: text.of(buf).to_vec(),
                first: event.ph.relative(start),
                second: event.cat.relative(start),
            };
            Self::learn(&mut self.heads, &mut self.turn, habit);
        }
    }

    #[cold]
    fn learn_lane(&mut self, event: &Event, buf: &[u8]) {
        let (start, end) = (event.name.to, event.ts.from);
        let ordered = event.pid.present()
            && start <= event.pid.from
            && event.pid.to <= event.tid.from
            && event.tid.to <= end;
        let alone =
            [event.id, event.dur, event.args].iter().all(|field| !field.present() || field.from > end);
        let text = Span { from: start, to: end };
        if ordered && alone && !event.doubled && (end - start) as usize <= Self::LONGEST {
            let habit = Habit {
                text: text.of(buf).to_vec(),
                first: event.pid.relative(start),
                second: event.tid.relative(start),
            };
            Self::learn(&mut self.lanes, &mut self.turn, habit);
        }
    }
}

impl Cursor<'_> {
    /// Reads an event like [`Cursor::event`], faster where it is written like one before it: text that is the same
    /// byte for byte needs no second reading.
    #[inline]
    pub fn usual_event(&mut self, event: &mut Event, depth: u32, habits: &mut Habits) -> bool {
        let start = self.pos;
        let usual = |head: &&Habit| {
            self.buf[start..].starts_with(&head.text) && self.buf.get(start + head.text.len()) == Some(&b'"')
        };
        let Some(head) = habits.heads.iter().find(usual) else {
            if !self.event(event, depth) {
                return false;
            }
            habits.learn_head(event, self.buf);
            return true;
        };
        *event = Event::default();
        event.ph = head.first.shifted(start);
        event.cat = head.second.shifted(start);
        self.pos += head.text.len();
        let name = self.pos;
        if !self.string() {
            return false;
        }
        event.name = span(name, self.pos);
        let from = self.pos;
        if let Some(lane) = habits.lanes.iter().find(|lane| self.buf[from..].starts_with(&lane.text)) {
            event.pid = lane.first.shifted(from);
            event.tid = lane.second.shifted(from);
            self.pos += lane.text.len();
            let ts = self.pos;
            if !self.value(depth - 1) {
                return false;
            }
            event.ts = span(ts, self.pos);
            event.usual = true;
            return match self.next_field(start, event) {
                Some(true) => self.fields(start, event, depth),
                Some(false) => true,
                None => false,
            };
        }
        let read = match self.next_field(start, event) {
            Some(true) => self.fields(start, event, depth),
            Some(false) => true,
            None => false,
        };
        if read {
            habits.learn_lane(event, self.buf);
        }
        read
    }
}
