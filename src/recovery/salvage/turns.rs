//! Bytes that went missing or came twice can join the halves of two events to one that reads well. torch numbers its events
//! (`Ev Idx`, the last of their `args`) and Kineto writes them in that order without a gap, so a number out of turn shows the
//! seam. What is joined is dropped, and so is what came twice.
//!
//! The rule must never cost an event of a healthy trace: it holds only once the trace has shown that it counts, not for what was
//! salvaged already, and not where numbers are out of turn again and again.
//!
//! Pure.

use super::scan::Event;

/// The counting of a trace.
#[derive(Debug, Clone, Default)]
pub struct Turns {
    off: bool,
    next: Option<u64>,
    /// Events in a row that came in turn.
    proven: u32,
    /// What comes next if the number out of turn before was right.
    aside: Option<u64>,
    /// Since the last number there was damage, so the next one may be higher.
    loose: bool,
    /// Begin of the category of the last event in turn.
    category: [u8; 8],
    /// An event without a number among such that have one, before the rule held.
    bare: bool,
    /// Numbers out of turn.
    wrong: u32,
    /// Where numbers went on higher before the rule held, and events in turn since then.
    early: Vec<u64>,
    since: u32,
}

impl Turns {
    const LEARN: u32 = 16;
    /// No single damage makes more.
    const MOST_WRONG: u32 = 8;

    /// From now on every event is kept.
    pub fn ignore(&mut self) {
        self.off = true;
    }

    /// Whether this trace does not count as others do: then it must be read again without the rule.
    pub fn mean_nothing(&self) -> bool {
        self.wrong > Self::MOST_WRONG
    }

    /// The event at the begin of the trace, if it is one, that grew together of two before the trace had shown that it counts.
    pub fn verdict(&self) -> &[u64] {
        let counts = !self.off && self.wrong == 0 && self.since > 2 * Self::LEARN;
        if counts && self.early.len() == 1 { &self.early } else { &[] }
    }

    /// Whether the event, which begins at `at`, may be kept. `after_damage` says that events may be missing before it.
    #[inline]
    pub fn keep(&mut self, event: &Event, text: &[u8], at: u64, after_damage: bool) -> bool {
        if self.off {
            return true;
        }
        let Some(number) = number(event.args.of(text)) else {
            self.loose |= after_damage;
            return self.keep_bare(event, text, after_damage);
        };
        if self.next == Some(number) {
            self.proven = self.proven.saturating_add(1);
            self.since = self.since.saturating_add(1);
            self.next = Some(number + 1);
            self.aside = None;
            self.loose = false;
            self.category = begin(event.cat.of(text));
            return true;
        }
        self.out_of_turn(number, at, after_damage)
    }

    #[inline]
    fn keep_bare(&mut self, event: &Event, text: &[u8], after_damage: bool) -> bool {
        let category = begin(event.cat.of(text));
        if category != *b"\"cpu_op\""
            && (category == [0; 8] || category != self.category || matches!(event.phase(text), b's' | b'f'))
        {
            return true;
        }
        if self.proven < Self::LEARN || self.bare {
            self.bare = true;
            return true;
        }
        // The head of a numbered event before the end of something else.
        self.loose = true;
        self.wrong += u32::from(!after_damage);
        false
    }

    #[cold]
    fn out_of_turn(&mut self, number: u64, at: u64, after_damage: bool) -> bool {
        let next = self.next.unwrap_or(number);
        if self.proven < Self::LEARN {
            if self.proven > 0 && !after_damage && !self.loose && self.early.len() < 2 {
                self.early.push(at);
                self.since = 0;
            }
            self.proven = 0;
            self.loose = false;
            self.next = Some(number + 1);
            return true;
        }
        let loose = after_damage || std::mem::take(&mut self.loose);
        let goes_on = self.aside == Some(number);
        // The one before had this turn, but a wrong number.
        let replaced = self.aside.is_some() && number == next + 1;
        if replaced || (number > next && (loose || goes_on)) {
            self.next = Some(number + 1);
            self.aside = None;
            return true;
        }
        self.aside = Some(number + 1);
        // What was there before comes again until it is its turn.
        self.wrong += u32::from(!loose && !goes_on);
        false
    }
}

#[inline]
fn begin(category: &[u8]) -> [u8; 8] {
    category.first_chunk().copied().unwrap_or_default()
}

/// The number at the end of `args`.
#[inline]
fn number(args: &[u8]) -> Option<u64> {
    let body = args.strip_suffix(b"}")?.trim_ascii_end();
    let digits = body.iter().rev().take(18).take_while(|byte| byte.is_ascii_digit()).count();
    let (key, digits) = body.split_at(body.len() - digits);
    let key = key.trim_ascii_end().strip_suffix(b":")?.trim_ascii_end();
    let value = digits.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0'));
    (key.ends_with(b"\"Ev Idx\"") && !digits.is_empty()).then_some(value)
}
