//! What events look like without their numbers and names. A trace of any length has some hundred such shapes, and what torch
//! writes into them comes from a small stock of words: keys, categories, types. A word that stands in the whole trace once, and
//! is one that torch writes with one bit turned, or the beginning of one and the end of another, was not written by torch.
//!
//! Names are looked at in the same way, but a name is free text, so only a turned bit shows there, and only where no user chooses.
//!
//! Pure.

use super::scan::{Cursor, Event};
use super::signs::{Kind, LEARN, MOST_WRONG, hash};
use super::words::{self, Role};
use std::collections::HashMap;
use wide::u8x16;

/// Shapes, and names, that a trace may have.
const MOST: usize = 4096;
/// Bytes of all words and names.
const MOST_BYTES: usize = 1 << 20;
/// Texts that are found without reading them closely: a few for each shape, since numbers have lengths.
const SLOTS: usize = 4096;

/// One shape, or one name.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// What is to be known of its category.
    pub(super) kind: Kind,
    /// Its `args` have every key of their kind, each once.
    pub(super) whole: bool,
    /// No user chooses the names of its events, and nobody else looks at them.
    named: bool,
    times: u32,
    /// Where it was seen last.
    at: u64,
    /// Its words, the category first. Of a name: itself.
    words: Box<[u32]>,
}

/// Shapes and names by their bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Shapes {
    shapes: Known,
    names: Known,
    words: Vec<(Role, Box<[u8]>)>,
    by_text: HashMap<(Role, Box<[u8]>), u32>,
    bytes: usize,
}

/// What was seen, found by a quick look or by a slow one.
#[derive(Debug, Clone, Default)]
struct Known {
    /// A hash of the text with its digits blanked out, and its number.
    slots: Vec<(u64, u32)>,
    /// A hash of the text with its numbers taken out, and its number.
    index: HashMap<u64, u32>,
    all: Vec<Shape>,
    /// There are more than can be told apart.
    full: bool,
}

/// The slot of a hash.
#[inline]
fn place(quick: u64) -> usize {
    (quick.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize % SLOTS
}

impl Known {
    #[inline]
    fn find(&self, quick: u64) -> Option<u32> {
        let slot = self.slots.get(place(quick))?;
        (slot.0 == quick).then_some(slot.1)
    }

    #[cold]
    fn keep(&mut self, quick: u64, number: u32) {
        self.slots.resize(SLOTS, (0, 0));
        self.slots[place(quick)] = (quick, number);
    }

    #[inline]
    fn count(&mut self, number: u32, at: u64) -> &Shape {
        let shape = &mut self.all[number as usize];
        shape.times = shape.times.saturating_add(1);
        shape.at = at;
        shape
    }
}

impl Shapes {
    /// Notes an event and says what is known of its shape. `None` if there are too many shapes to tell them apart.
    #[inline]
    pub(super) fn note(
        &mut self,
        event: &Event,
        text: &[u8],
        at: u64,
        whole: fn(Kind, &[u8]) -> bool,
    ) -> Option<&Shape> {
        if self.shapes.full {
            return None;
        }
        let name = event.name.of(text);
        let quick = if event.usual {
            masked(&text[event.ts.from as usize..event.all.to as usize], masked(event.cat.of(text), 0))
        } else {
            let (head, tail) = around_name(event, text);
            masked(tail, masked(head, 1))
        };
        let number = match self.shapes.find(quick) {
            Some(number) => number,
            None => self.look(event, text, quick, whole)?,
        };
        let shape = &self.shapes.all[number as usize];
        if shape.named && !self.names.full {
            let category = shape.words[0];
            self.name(name, category, at);
        }
        Some(self.shapes.count(number, at))
    }

    /// A shape that the quick look does not know: mostly one whose numbers have other lengths.
    #[cold]
    fn look(
        &mut self,
        event: &Event,
        text: &[u8],
        quick: u64,
        whole: fn(Kind, &[u8]) -> bool,
    ) -> Option<u32> {
        let (category, args) = (event.cat.of(text), event.args.of(text));
        let (head, tail) = around_name(event, text);
        let mut text = Vec::with_capacity(head.len() + tail.len() + 2);
        without_numbers(head, &mut text);
        text.extend_from_slice(b"\"\"");
        without_numbers(tail, &mut text);
        let key = hash(&text);
        let kind = Kind::of(category);
        let whole = whole(kind, args);
        // A key that came twice is no word of its own.
        let key = if whole { key } else { !key };
        let number = match self.shapes.index.get(&key) {
            Some(number) => *number,
            None => {
                let words = self.words_of(&text, category);
                self.add(
                    true,
                    key,
                    Shape { kind, whole, named: is_named(kind, category), times: 0, at: 0, words },
                )?
            }
        };
        self.shapes.keep(quick, number);
        Some(number)
    }

    fn add(&mut self, shape: bool, key: u64, new: Shape) -> Option<u32> {
        let known = if shape { &mut self.shapes } else { &mut self.names };
        known.full |= known.all.len() == MOST || self.words.len() > 4 * MOST || self.bytes > MOST_BYTES;
        if known.full {
            return None;
        }
        let number = known.all.len() as u32;
        known.index.insert(key, number);
        known.all.push(new);
        Some(number)
    }

    #[inline]
    fn name(&mut self, name: &[u8], category: u32, at: u64) {
        let quick = masked(name, u64::from(category) + 1);
        let number = self.names.find(quick).or_else(|| self.look_at_name(name, category, quick));
        if let Some(number) = number {
            self.names.count(number, at);
        }
    }

    #[cold]
    fn look_at_name(&mut self, name: &[u8], category: u32, quick: u64) -> Option<u32> {
        let mut text = Vec::with_capacity(name.len());
        without_numbers(name, &mut text);
        let key = hash(&text) ^ u64::from(category);
        let number = match self.names.index.get(&key) {
            Some(number) => *number,
            None => {
                let word = self.word(Role::Name(category), &text);
                let new = Shape {
                    kind: Kind::Other,
                    whole: true,
                    named: false,
                    times: 0,
                    at: 0,
                    words: Box::new([word]),
                };
                self.add(false, key, new)?
            }
        };
        self.names.keep(quick, number);
        Some(number)
    }

    fn word(&mut self, role: Role, text: &[u8]) -> u32 {
        let key = (role, Box::from(text));
        if let Some(number) = self.by_text.get(&key) {
            return *number;
        }
        let number = self.words.len() as u32;
        self.bytes += text.len();
        self.words.push(key.clone());
        self.by_text.insert(key, number);
        number
    }

    /// The strings of an event without numbers.
    fn words_of(&mut self, text: &[u8], category: &[u8]) -> Box<[u32]> {
        let mut found = vec![self.word(Role::Category, category)];
        let mut cursor = Cursor::new(text, 0);
        let (mut depth, mut last) = (0, 0);
        while let Some(byte) = cursor.peek() {
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                b'"' => {
                    let from = cursor.pos;
                    if !cursor.string() {
                        break;
                    }
                    let word = &text[from..cursor.pos];
                    cursor.blank();
                    let role = match (cursor.peek() == Some(b':'), depth) {
                        (true, 1) => Role::Field,
                        (true, _) => Role::Key,
                        (false, 1) => Role::Of(last),
                        (false, _) => Role::Value,
                    };
                    let number = self.word(role, word);
                    if matches!(role, Role::Field | Role::Key) {
                        last = number;
                    }
                    found.push(number);
                    continue;
                }
                _ => {}
            }
            cursor.pos += 1;
        }
        found[1..].sort_unstable();
        found.dedup();
        found.into()
    }

    /// Where the events begin that have a word or a name that torch did not write.
    pub(super) fn verdict(&self) -> Vec<u64> {
        let all: u64 = self.shapes.all.iter().map(|shape| u64::from(shape.times)).sum();
        if self.shapes.full || all < u64::from(LEARN) {
            return Vec::new();
        }
        let names: &[Shape] = if self.names.full { Default::default() } else { &self.names.all };
        let known = || self.shapes.all.iter().chain(names);
        let mut times = vec![0u32; self.words.len()];
        for shape in known() {
            for word in shape.words.iter() {
                let times = &mut times[*word as usize];
                *times = times.saturating_add(shape.times);
            }
        }
        let needed = self.needed();
        let mut wrong: Vec<u64> = Vec::new();
        for shape in known().filter(|shape| shape.times == 1) {
            let alone = |word: &&u32| times[**word as usize] == 1;
            let lacks = || {
                let keys = needed.get(&shape.words[0]);
                keys.is_some_and(|keys| keys.iter().any(|key| !shape.words.contains(key)))
            };
            if shape.words.iter().filter(alone).any(|word| self.is_foreign(*word, &times, lacks)) {
                wrong.push(shape.at);
            }
            if wrong.len() > MOST_WRONG as usize {
                return Vec::new();
            }
        }
        wrong
    }

    fn is_foreign(&self, word: u32, times: &[u32], lacks: impl Fn() -> bool) -> bool {
        let (role, text) = &self.words[word as usize];
        let stock = role.stock();
        if stock.contains(&&**text) {
            return false;
        }
        let others = || {
            let known = self.words.iter().zip(times).filter(|((other, _), _)| other == role);
            let often = known.filter(|((_, other), times)| **times >= role.least(other));
            often.map(|((_, other), _)| &**other).chain(stock.iter().copied())
        };
        others().any(|other| words::is_turned(*role, other, text))
            || (*role == Role::Value && others().any(|other| words::is_two_strings(other, text)))
            || (role.is_closed() && words::is_joined(text, others(), lacks))
    }

    /// For each category the keys that all its events have but one.
    fn needed(&self) -> HashMap<u32, Vec<u32>> {
        let mut all: HashMap<u32, u32> = HashMap::new();
        let mut with: HashMap<(u32, u32), u32> = HashMap::new();
        for shape in &self.shapes.all {
            let add = |times: &mut u32| *times = times.saturating_add(shape.times);
            add(all.entry(shape.words[0]).or_default());
            for word in shape.words[1..].iter().filter(|word| self.words[**word as usize].0 == Role::Key) {
                add(with.entry((shape.words[0], *word)).or_default());
            }
        }
        let mut needed: HashMap<u32, Vec<u32>> = HashMap::new();
        for ((category, key), times) in with {
            if times >= LEARN && times.checked_add(1) == all.get(&category).copied() {
                needed.entry(category).or_default().push(key);
            }
        }
        needed
    }
}

/// Users name annotations; kernels and calls are looked at elsewhere.
fn is_named(kind: Kind, category: &[u8]) -> bool {
    let of_users: [&[u8]; 3] = [b"\"user_annotation\"", b"\"gpu_user_annotation\"", b"\"Trace\""];
    !matches!(kind, Kind::Gpu(0..=2)) && !of_users.contains(&category)
}

/// What stands before the name of an event, and behind it.
fn around_name<'t>(event: &Event, text: &'t [u8]) -> (&'t [u8], &'t [u8]) {
    let (from, to) = (event.all.from as usize, event.all.to as usize);
    let (name, after) =
        if event.name.present() { (event.name.from as usize, event.name.to as usize) } else { (to, to) };
    (&text[from..name], &text[after..to])
}

/// A hash that does not see digits, but where they stand.
#[inline]
fn masked(text: &[u8], seed: u64) -> u64 {
    const LOW: u64 = 0xa076_1d64_78bd_642f;
    const HIGH: u64 = 0xe703_7ed1_a0b4_28db;
    let (blocks, rest) = text.as_chunks::<16>();
    let add = |sum: u64, block: [u8; 16]| {
        let bytes = u8x16::new(block);
        let value = bytes - u8x16::splat(b'0');
        let other = value.max(u8x16::splat(10)).simd_eq(value);
        let kept = u128::from_le_bytes((bytes & other).to_array());
        let (low, high) = (kept as u64, (kept >> 64) as u64);
        sum.rotate_left(23).wrapping_add(low.wrapping_mul(LOW)).wrapping_add(high.wrapping_mul(HIGH))
    };
    let sum = blocks.iter().fold(seed ^ text.len() as u64, |sum, block| add(sum, *block));
    // What no block holds is seen through one that ends with the text, even if it was seen before.
    let end = text.last_chunk::<16>().copied().unwrap_or_else(|| {
        let mut end = [0; 16];
        end[..rest.len()].copy_from_slice(rest);
        end
    });
    let sum = add(sum, end);
    sum ^ sum >> 32
}

/// Copies a text with a 0 for each number.
fn without_numbers(text: &[u8], out: &mut Vec<u8>) {
    let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        if !byte.is_ascii_digit() {
            out.push(byte);
            rest = after;
            continue;
        }
        out.push(b'0');
        rest = &rest[digits(rest)..];
        if let [b'.', fraction @ ..] = rest
            && digits(fraction) > 0
        {
            rest = &fraction[digits(fraction)..];
        }
        if let [b'e', b'+' | b'-', power @ ..] = rest
            && digits(power) > 0
        {
            rest = &power[digits(power)..];
        }
    }
}
