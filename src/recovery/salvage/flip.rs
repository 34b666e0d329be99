//! One flipped bit in a gzip: the checksum at its end proves a correction, so it can be found by trying.
//!
//! A flip does one of two things. Mostly the stream goes another way, and its text is soon nonsense: then every bit shortly
//! before the first sign of damage is turned back in turn, and the few that give text without damage are put to the checksum
//! (`Loud`). Or the stream soon is where it was, and only some bytes and all their copies are wrong: then the length is right,
//! and what each possible flip does to the checksum is computed without inflating anything again (`silent`).
//!
//! Pure.

use super::damage::Damage;
use super::inflate::{Block, Ended, Mark, Symbol, decode, symbol};
use super::scan::Event;
use super::stream::{Part, Sink, Walker};
use crate::gz::deflate::Bits;

/// The search holds the text in memory; more than this is not searched.
const MOST_TEXT: usize = 128 << 20;
/// Bits before the first sign of damage that are tried.
const REACH: usize = 1 << 17;
/// Bytes that may be inflated in trials for each byte of text, at least, and at most.
const WORK: usize = 128;
const LEAST_WORK: usize = 16 << 20;
const MOST_WORK: usize = 512 << 20;
/// Text behind the first sign of damage that must be good before the checksum is asked.
const BEHIND: usize = 4096;
/// The sign may be the beginning of the event in which the damage is.
const LATE: usize = 512;
/// Corrections that may be put to the checksum, however long the text is.
const LEAST_CHECKS: u32 = 16;
/// A symbol takes no more bits.
const WIDEST: usize = 48;
/// Bits that the head of a block may take; a wrong head does not tell.
const HEAD: usize = 2500;
/// Symbols in which a stream with a flipped bit must be where it was without.
const RESYNC: usize = 24;
const POLYNOMIAL: u32 = 0xedb8_8320;

/// Which bit is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flip {
    /// Byte, counted from the beginning of the deflate stream; the checksum follows it directly.
    pub at: usize,
    /// Bit of the byte.
    pub bit: u8,
}

impl Flip {
    fn of(bit: usize) -> Self {
        Self { at: bit / 8, bit: (bit % 8) as u8 }
    }

    fn turn(self, raw: &mut [u8]) {
        raw[self.at] ^= 1 << self.bit;
    }
}

struct Nowhere;

impl Sink for Nowhere {
    fn entry(&mut self, _part: Part, _key: &[u8], _value: &[u8]) {}
    fn event(&mut self, _event: &Event, _text: &[u8]) {}
    fn oddity(&mut self, _text: &[u8]) {}
}

fn crc(text: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(text);
    crc.sum()
}

/// Looks for the one bit of the deflate stream `raw` that must be turned so that its text has this checksum and length.
/// `raw` is the same afterwards.
pub fn find(raw: &mut [u8], sum: u32, length: u32) -> Option<Flip> {
    let (mut text, mut marks) = (Vec::new(), Vec::new());
    let mut bits = Bits { raw, pos: 0 };
    let ended = decode(&mut bits, &mut None, &mut text, MOST_TEXT, &mut marks);
    if ended == Ended::Enough {
        return None;
    }
    let whole = ended == Ended::Done && bits.pos.div_ceil(8) == raw.len();
    let mut walker = Walker::new();
    walker.feed(&text, true, &mut Nowhere);
    let sign = walker.damage.first.map_or(text.len(), |sign| sign as usize);
    if whole {
        let wrong = crc(&text) ^ sum;
        let short = text.len() as u32 ^ length;
        // The text is right; the flip hit what is to prove it.
        match (wrong.count_ones(), short.count_ones()) {
            (1, 0) => return Some(Flip::of(raw.len() * 8 + wrong.trailing_zeros() as usize)),
            (0, 1) => return Some(Flip::of((raw.len() + 4) * 8 + short.trailing_zeros() as usize)),
            _ => {}
        }
        if short == 0
            && let Some(flip) = silent(raw, &marks, &text, wrong)
            && proven(raw, flip, sum, length)
        {
            return Some(flip);
        }
    }
    Loud::new(raw, text, sign, sum, length).search(&marks)
}

/// Whether the checksum says that this was it.
fn proven(raw: &mut [u8], flip: Flip, sum: u32, length: u32) -> bool {
    flip.turn(raw);
    let mut text = Vec::new();
    let mut bits = Bits { raw, pos: 0 };
    let ended = decode(&mut bits, &mut None, &mut text, length as usize + 1, &mut Vec::new());
    let whole = ended == Ended::Done && bits.pos.div_ceil(8) == raw.len();
    flip.turn(raw);
    whole && text.len() == length as usize && crc(&text) == sum
}

/// A symbol of a block that was decoded once already.
#[derive(Debug, Clone, Copy)]
struct Piece {
    bit: usize,
    text: usize,
    /// Distance if it is a copy.
    away: usize,
}

/// The symbols of a block, with one more at its end.
fn pieces(raw: &[u8], mark: Mark, until: usize) -> Option<(Block, Vec<Piece>)> {
    let mut bits = Bits { raw, pos: mark.bit };
    let block = Block::read(&mut bits)?;
    let mut list = Vec::new();
    let mut text = mark.text;
    if block.stored.is_none() {
        loop {
            let bit = bits.pos;
            let read = symbol(&block.codes, &mut bits);
            let away = if let Some(Symbol::Copy { away, .. }) = read { away } else { 0 };
            list.push(Piece { bit, text, away });
            match read {
                Some(Symbol::Literal(_)) => text += 1,
                Some(Symbol::Copy { len, .. }) => text += len,
                Some(Symbol::End) => break,
                None => {
                    bits.pos += WIDEST;
                    break;
                }
            }
            if text > until {
                break;
            }
        }
        list.push(Piece { bit: bits.pos, text, away: 0 });
        // What is read as the last symbols may reach beyond the end.
        list.iter_mut().for_each(|piece| piece.bit = piece.bit.min(raw.len() * 8));
    }
    Some((block, list))
}

/// Multiplies by x in the field of the checksum, whose bits stand in reverse.
fn times_x(value: u32) -> u32 {
    value >> 1 ^ if value & 1 == 1 { POLYNOMIAL } else { 0 }
}

/// What a difference in one byte of the text does to the checksum; `weight` is what the last bit of it does.
fn effect(difference: u8, mut weight: u32) -> u32 {
    let mut sum = 0;
    for bit in (0..8).rev() {
        if difference >> bit & 1 == 1 {
            sum ^= weight;
        }
        weight = times_x(weight);
    }
    sum
}

/// Weights of the last 64 KiB of text that were passed, going backwards. The weight of a byte contains those of all its
/// later copies, because a wrong byte makes them wrong too.
struct Weights {
    ring: Vec<u32>,
    plain: u32,
}

impl Weights {
    const MASK: usize = 0xffff;
    /// The farthest a copy reaches.
    const WINDOW: usize = 1 << 15;

    fn pass(&mut self, at: usize, away: usize) {
        if let Some(first_reached) = at.checked_sub(Self::WINDOW) {
            self.ring[first_reached & Self::MASK] = 0;
        }
        self.ring[at & Self::MASK] ^= self.plain;
        if away > 0 {
            let weight = self.ring[at & Self::MASK];
            self.ring[(at - away) & Self::MASK] ^= weight;
        }
        for _ in 0..8 {
            self.plain = times_x(self.plain);
        }
    }

    fn of(&self, at: usize) -> u32 {
        self.ring[at & Self::MASK]
    }
}

/// Finds the flip that leaves the length as it is and changes the checksum by `wrong`.
fn silent(raw: &mut [u8], marks: &[Mark], text: &[u8], wrong: u32) -> Option<Flip> {
    let mut weights = Weights { ring: vec![0; Weights::MASK + 1], plain: POLYNOMIAL };
    let mut end = text.len();
    for mark in marks.iter().rev() {
        let (block, list) = pieces(raw, *mark, text.len())?;
        if list.is_empty() {
            (mark.text..end).rev().for_each(|at| weights.pass(at, 0));
        }
        for place in (0..list.len().saturating_sub(1)).rev() {
            let (piece, next) = (list[place], list[place + 1]);
            (piece.text..next.text).rev().for_each(|at| weights.pass(at, piece.away));
            for bit in piece.bit..next.bit {
                Flip::of(bit).turn(raw);
                let change = change(raw, &block, &list[place..], text, &weights);
                Flip::of(bit).turn(raw);
                if change == Some(wrong) {
                    return Some(Flip::of(bit));
                }
            }
        }
        end = mark.text;
    }
    None
}

/// What the stream, which has been changed at the first of `list`, does to the checksum, if it soon is where it was.
fn change(raw: &[u8], block: &Block, list: &[Piece], text: &[u8], weights: &Weights) -> Option<u32> {
    let start = list[0].text;
    let mut bits = Bits { raw, pos: list[0].bit };
    let mut made: Vec<u8> = Vec::new();
    let mut old = 0;
    for _ in 0..RESYNC {
        match symbol(&block.codes, &mut bits)? {
            Symbol::Literal(byte) => made.push(byte),
            Symbol::Copy { len, away } => {
                for _ in 0..len {
                    let from = (start + made.len()).checked_sub(away)?;
                    made.push(if from < start { text[from] } else { made[from - start] });
                }
            }
            Symbol::End => return None,
        }
        while list.get(old)?.bit < bits.pos {
            old += 1;
        }
        if list[old].bit == bits.pos {
            let end = list[old].text;
            return (end == start + made.len()).then(|| difference(&made, list, old, text, weights));
        }
    }
    None
}

fn difference(made: &[u8], list: &[Piece], same: usize, text: &[u8], weights: &Weights) -> u32 {
    let start = list[0].text;
    let mut own: Vec<u32> = (0..made.len()).map(|at| weights.of(start + at)).collect();
    // Copies within the stretch are already in `made`.
    for pair in list[..=same].windows(2).filter(|pair| pair[0].away > 0) {
        for at in pair[0].text..pair[1].text {
            if let Some(from) = (at - pair[0].away).checked_sub(start) {
                own[from] ^= weights.of(at);
            }
        }
    }
    let differences = made.iter().zip(&text[start..]).map(|(new, old)| new ^ old);
    differences.zip(own).fold(0, |sum, (difference, weight)| sum ^ effect(difference, weight))
}

/// The search before the first sign of damage.
struct Loud<'a> {
    raw: &'a mut [u8],
    /// The text as it reads, cut off where the last trial began.
    text: Vec<u8>,
    sign: usize,
    sum: u32,
    length: u32,
    /// The walk over the good text, at places about 1 KiB apart.
    walks: Vec<(usize, Walker)>,
    work: usize,
    checks: u32,
}

impl<'a> Loud<'a> {
    fn new(raw: &'a mut [u8], text: Vec<u8>, sign: usize, sum: u32, length: u32) -> Self {
        Self { raw, text, sign, sum, length, walks: Vec::new(), work: 0, checks: 0 }
    }

    fn search(&mut self, marks: &[Mark]) -> Option<Flip> {
        let near = marks.partition_point(|mark| mark.text <= self.sign + LATE).checked_sub(1)?;
        let reach = marks[near].bit.saturating_sub(REACH);
        let far = marks.partition_point(|mark| mark.bit < reach).saturating_sub(1).min(near);
        self.walk(marks[far].text);
        for mark in marks[far..=near].iter().rev() {
            // Wrong codes show at once; then what follows them says nothing.
            let codes = self.sign < mark.text + LATE;
            let first = if codes { self.head(*mark)? } else { self.symbols(*mark)? };
            if first.is_some() {
                return first;
            }
            let second = if codes { self.symbols(*mark)? } else { self.head(*mark)? };
            if second.is_some() {
                return second;
            }
        }
        None
    }

    /// Tries the bits of a block's symbols, the last first. The outer `None` is the end of the search.
    fn symbols(&mut self, mark: Mark) -> Option<Option<Flip>> {
        if let Some((block, list)) = pieces(self.raw, mark, self.sign + LATE) {
            for pair in list.windows(2).rev() {
                for bit in (pair[0].bit..pair[1].bit).rev() {
                    if self.try_bit(bit, pair[0].bit, pair[0].text, Some(&block))? {
                        return Some(Some(Flip::of(bit)));
                    }
                }
            }
        }
        Some(None)
    }

    /// Tries the bits of a block's head.
    fn head(&mut self, mark: Mark) -> Option<Option<Flip>> {
        let text = self.text[mark.text..].to_vec();
        for bit in mark.bit..(mark.bit + HEAD).min(self.raw.len() * 8) {
            if self.try_bit(bit, mark.bit, mark.text, None)? {
                return Some(Some(Flip::of(bit)));
            }
        }
        self.text.extend_from_slice(&text);
        Some(None)
    }

    fn walk(&mut self, from: usize) {
        let mut walker = Walker::new();
        let (mut used, mut to) = (0, from.min(self.sign));
        loop {
            let fed = walker.feed(&self.text[used..to], false, &mut Nowhere);
            used += fed.used;
            self.walks.push((used, walker.clone()));
            if to == self.sign {
                return;
            }
            to = (used + fed.want.max(1024)).min(self.sign);
        }
    }

    /// Turns one bit and decodes from `from` on. `None` when enough was tried.
    fn try_bit(&mut self, bit: usize, from: usize, text: usize, block: Option<&Block>) -> Option<bool> {
        self.text.truncate(text);
        let flip = Flip::of(bit);
        flip.turn(self.raw);
        let good = self.reads_well(from, block.cloned());
        flip.turn(self.raw);
        self.text.truncate(text);
        if self.work > (self.length as usize * WORK).clamp(LEAST_WORK, MOST_WORK)
            && (self.checks >= LEAST_CHECKS || !good)
        {
            return None;
        }
        if !good {
            return Some(false);
        }
        self.checks += 1;
        self.work += self.length as usize;
        Some(proven(self.raw, flip, self.sum, self.length))
    }

    fn reads_well(&mut self, from: usize, mut block: Option<Block>) -> bool {
        let start = self.text.len();
        let known = self.walks.partition_point(|(at, _)| *at <= start);
        let Some((mut used, mut walker)) = known.checked_sub(1).map(|last| self.walks[last].clone()) else {
            return false;
        };
        let mut bits = Bits { raw: self.raw, pos: from };
        let mut step = 256;
        loop {
            let before = self.text.len();
            let until = (start + step).min(self.sign + BEHIND);
            let ended = decode(&mut bits, &mut block, &mut self.text, until, &mut Vec::new());
            self.work += self.text.len() - before + 64;
            if ended == Ended::Broken {
                return false;
            }
            let last = ended == Ended::Done;
            used += walker.feed(&self.text[used..], last, &mut Nowhere).used;
            if walker.damage != Damage::default() {
                return false;
            }
            if last {
                return walker.is_whole();
            }
            if self.text.len() >= self.sign + BEHIND {
                return true;
            }
            step *= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn trace(events: usize) -> String {
        let mut text = String::from("{\n  \"schemaVersion\": 1,\n  \"traceEvents\": [\n");
        for n in 0..events {
            let end = if n + 1 < events { "," } else { "" };
            text += &format!(
                "  {{\n    \"ph\": \"X\", \"cat\": \"cpu_op\", \"name\": \"aten::op{}\", \"pid\": 1, \"tid\": 2,\n    \"ts\": {}.{:03}, \"dur\": {}\n  }}{end}\n",
                n * n % 11,
                n * 17,
                n * n % 997,
                n % 7
            );
        }
        text + "  ]\n}\n"
    }

    fn deflate(text: &str) -> Vec<u8> {
        let mut writer = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(9));
        writer.write_all(text.as_bytes()).expect("memory takes it");
        writer.finish().expect("memory takes it")
    }

    fn inflate(raw: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        decode(&mut Bits { raw, pos: 0 }, &mut None, &mut text, usize::MAX, &mut Vec::new());
        text
    }

    #[test]
    fn whichever_bit_is_flipped_is_found() {
        let text = trace(40);
        let raw = deflate(&text);
        let (sum, length) = (crc(text.as_bytes()), text.len() as u32);
        for bit in (0..(raw.len() - 1) * 8).step_by(13) {
            let mut broken = raw.clone();
            Flip::of(bit).turn(&mut broken);
            let before = broken.clone();
            let found = find(&mut broken, sum, length).unwrap_or_else(|| panic!("bit {bit} was not found"));
            assert_eq!(broken, before, "the search must leave everything as it was");
            // There can be two ways to write the same text that are two bits apart.
            found.turn(&mut broken);
            assert_eq!(inflate(&broken), text.as_bytes());
        }
    }

    #[test]
    fn what_a_wrong_byte_and_its_copies_do_to_the_checksum_is_known_without_inflating() {
        let text = trace(60);
        let mut raw = deflate(&text);
        let (mut all, mut right) = (0, 0);
        for bit in (0..(raw.len() - 1) * 8).step_by(5) {
            Flip::of(bit).turn(&mut raw);
            let (mut wrong, mut marks) = (Vec::new(), Vec::new());
            let ended =
                decode(&mut Bits { raw: &raw, pos: 0 }, &mut None, &mut wrong, usize::MAX, &mut marks);
            if ended == Ended::Done && wrong.len() == text.len() && wrong != text.as_bytes() {
                let difference = crc(&wrong) ^ crc(text.as_bytes());
                let found = silent(&mut raw, &marks, &wrong, difference);
                all += 1;
                right += usize::from(found == Some(Flip::of(bit)));
            }
            Flip::of(bit).turn(&mut raw);
        }
        // The others take a detour through more symbols than are followed, or lie in the codes.
        assert!(all > 20 && right * 10 > all * 9, "{right} of {all}");
    }

    #[test]
    fn damage_of_more_than_a_bit_is_left_alone() {
        let text = trace(40);
        let raw = deflate(&text);
        let mut broken = raw.clone();
        let middle = raw.len() / 2;
        broken[middle..middle + 9].fill(0x5a);
        assert_eq!(find(&mut broken, crc(text.as_bytes()), text.len() as u32), None);
    }
}
