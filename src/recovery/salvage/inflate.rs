//! Inflates with an eye on where in the stream each piece of text comes from, which zlib does not tell. Slower, and only for the
//! search after a flipped bit; everything else is inflated by zlib-rs.
//!
//! Pure.

use crate::gz::deflate::{Bits, Codes, Table};
use std::rc::Rc;

/// Base and extra bits of the length symbols from 257 on.
const LENGTHS: [(u16, u8); 29] = [
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 0),
    (7, 0),
    (8, 0),
    (9, 0),
    (10, 0),
    (11, 1),
    (13, 1),
    (15, 1),
    (17, 1),
    (19, 2),
    (23, 2),
    (27, 2),
    (31, 2),
    (35, 3),
    (43, 3),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 4),
    (115, 4),
    (131, 5),
    (163, 5),
    (195, 5),
    (227, 5),
    (258, 0),
];

/// One symbol of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Symbol {
    /// A byte.
    Literal(u8),
    /// Text that stood `away` bytes before.
    Copy {
        /// Bytes.
        len: usize,
        /// Distance.
        away: usize,
    },
    /// The block ends.
    End,
}

fn number(symbol: usize) -> u16 {
    (symbol as u16 + 1) * Table::KIND
}

/// Reads a symbol.
#[inline]
pub(super) fn symbol(codes: &Codes, bits: &mut Bits<'_>) -> Option<Symbol> {
    let word = bits.peek()?;
    let entry = codes.letters.at(word);
    let mut used = u32::from(entry % Table::KIND);
    let read = match (entry / Table::KIND).checked_sub(1)? {
        literal @ 0..=255 => Symbol::Literal(literal as u8),
        256 => Symbol::End,
        length => {
            let &(base, extra) = LENGTHS.get(usize::from(length) - 257)?;
            let len = usize::from(base) + (word >> used & ((1 << extra) - 1)) as usize;
            used += u32::from(extra);
            let entry = codes.distances.at(word >> used);
            used += u32::from(entry % Table::KIND);
            let code = u32::from((entry / Table::KIND).checked_sub(1)?);
            let extra = (code / 2).saturating_sub(1);
            let base = if code < 4 { code + 1 } else { ((2 + code % 2) << extra) + 1 };
            let away = base as usize + (word >> used & ((1 << extra) - 1)) as usize;
            used += extra;
            if code > 29 {
                return None;
            }
            Symbol::Copy { len, away }
        }
    };
    bits.pos += used as usize;
    Some(read)
}

/// Where a block begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    /// First bit of its head.
    pub(super) bit: usize,
    /// Text before it.
    pub(super) text: usize,
}

/// The block a decoder is in.
#[derive(Clone, Default)]
pub(super) struct Block {
    /// Its codes.
    pub(super) codes: Rc<Codes>,
    /// No block follows.
    pub(super) last: bool,
    /// Bytes that stand as they are; no symbols then.
    pub(super) stored: Option<usize>,
}

impl Block {
    /// Reads the head of a block.
    pub(super) fn read(bits: &mut Bits<'_>) -> Option<Self> {
        let mut codes = Codes::default();
        let head = codes.read(bits, number, number)?;
        Some(Self { codes: Rc::new(codes), last: head.last, stored: head.stored })
    }
}

/// How a stretch of decoding ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// There is enough text.
    Enough,
    /// The stream is at its end.
    Done,
    /// It cannot be read further.
    Broken,
}

/// Decodes on, to at least `until` bytes of text if there is no end before. `marks` gets the blocks that begin.
pub(super) fn decode(
    bits: &mut Bits<'_>,
    block: &mut Option<Block>,
    text: &mut Vec<u8>,
    until: usize,
    marks: &mut Vec<Mark>,
) -> Ended {
    loop {
        let known = match block {
            Some(known) => known,
            None => {
                marks.push(Mark { bit: bits.pos, text: text.len() });
                let Some(read) = Block::read(bits) else { return Ended::Broken };
                block.insert(read)
            }
        };
        if let Some(stored) = known.stored {
            let from = bits.pos / 8;
            let Some(bytes) = bits.raw.get(from..from + stored) else { return Ended::Broken };
            text.extend_from_slice(bytes);
            bits.pos += stored * 8;
        } else {
            loop {
                if text.len() >= until {
                    return Ended::Enough;
                }
                match symbol(&known.codes, bits) {
                    Some(Symbol::Literal(byte)) => text.push(byte),
                    Some(Symbol::Copy { len, away }) if away <= text.len() => {
                        let from = text.len() - away;
                        if away >= len {
                            text.extend_from_within(from..from + len);
                        } else {
                            (from..from + len).for_each(|at| text.push(text[at]));
                        }
                    }
                    Some(Symbol::End) => break,
                    _ => return Ended::Broken,
                }
            }
        }
        let last = known.last;
        *block = None;
        if last {
            return Ended::Done;
        }
        if text.len() >= until {
            return Ended::Enough;
        }
    }
}
