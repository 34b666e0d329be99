//! Opens a deflate stream at its end so that another can follow (RFC 1951).
//!
//! A stream ends with the block whose first bit is set. That block is found by walking through the codes without writing any
//! text, which costs a fraction of what making them cost.

use super::deflate::{Bits, Codes, Table};

/// What opening a stream adds at most.
pub(super) const LONGEST: usize = 5;

const MATCH: u16 = Table::KIND;
const END: u16 = Table::KIND * 2;
const LITERAL: u16 = Table::KIND * 4;
/// Bits of an entry that say how much of the stream its symbol takes, extra bits included.
const WIDTH: u16 = Table::KIND - 1;

/// Where the last block of a stream lies, in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LastBlock {
    header: usize,
    end: usize,
}

impl LastBlock {
    /// Makes the block one of many, ends it at a byte with an empty stored block, and returns the length of the stream.
    pub(super) fn open(self, raw: &mut [u8]) -> usize {
        raw[self.header / 8] &= !(1 << (self.header % 8));
        // The three zero bits of the stored block's header fit into the last byte or need another one.
        let stored = (self.end + 3).div_ceil(8);
        raw[self.end.div_ceil(8)..stored].fill(0);
        raw[stored..stored + 4].copy_from_slice(&[0, 0, 0xff, 0xff]);
        stored + 4
    }
}

/// The last block of a stream, `None` if it is no stream or not all of it is there.
pub(super) fn last_block(raw: &[u8]) -> Option<LastBlock> {
    let mut bits = Bits { raw, pos: 0 };
    let mut codes = Codes::default();
    loop {
        let header = bits.pos;
        let head = codes.read(&mut bits, letter, distance)?;
        match head.stored {
            Some(length) => bits.pos += length * 8,
            None => symbols(&mut bits, &codes)?,
        }
        if head.last {
            return (bits.pos <= raw.len() * 8).then_some(LastBlock { header, end: bits.pos });
        }
    }
}

/// Kind of a literal or length symbol, with its extra bits.
fn letter(symbol: usize) -> u16 {
    match symbol {
        0..=255 => LITERAL,
        256 => END,
        257..=264 | 285 => MATCH,
        265..=284 => MATCH + (symbol as u16 - 261) / 4,
        _ => 0,
    }
}

fn distance(symbol: usize) -> u16 {
    match symbol {
        0..=3 => LITERAL,
        4..=29 => LITERAL + symbol as u16 / 2 - 1,
        _ => 0,
    }
}

/// Walks over the symbols of a block to its end.
fn symbols(bits: &mut Bits<'_>, codes: &Codes) -> Option<()> {
    loop {
        // A length and a distance with all their extra bits are 48 bits.
        let word = bits.peek()?;
        let entry = codes.letters.at(word);
        let width = usize::from(entry & WIDTH);
        bits.pos += width;
        if entry & LITERAL != 0 {
            continue;
        }
        if entry & MATCH == 0 {
            return (entry & END != 0).then_some(());
        }
        let away = codes.distances.at(word >> width);
        if away == 0 {
            return None;
        }
        bits.pos += usize::from(away & WIDTH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libdeflater::{CompressionLvl, Compressor};
    use proptest::prelude::*;

    fn deflate(text: &[u8], level: i32) -> Vec<u8> {
        let mut deflate = Compressor::new(CompressionLvl::new(level).unwrap());
        let mut out = vec![0; deflate.deflate_compress_bound(text.len())];
        let len = deflate.deflate_compress(text, &mut out).unwrap();
        out.truncate(len);
        out
    }

    fn inflate(raw: &[u8], room: usize) -> Vec<u8> {
        let mut inflate = flate2::Decompress::new(false);
        let mut out = Vec::with_capacity(room + 64);
        let status = inflate.decompress_vec(raw, &mut out, flate2::FlushDecompress::Finish).unwrap();
        assert_eq!(status, flate2::Status::StreamEnd);
        assert_eq!(inflate.total_in() as usize, raw.len());
        out
    }

    /// Runs of letters from alphabets of all sizes: stored, fixed and dynamic blocks, long codes, long matches.
    fn texts() -> impl Strategy<Value = Vec<u8>> {
        let run =
            (1..=255u8, any::<u64>(), 0..6000usize, 1..40usize).prop_map(|(letters, seed, len, repeat)| {
                let mut state = seed | 1;
                let mut text: Vec<u8> = Vec::new();
                while text.len() < len {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let letter = ((state >> 33) as u8) % letters;
                    text.extend(std::iter::repeat_n(letter, 1 + (state >> 60) as usize % repeat));
                }
                text
            });
        prop::collection::vec(run, 0..6).prop_map(|runs| runs.concat())
    }

    proptest! {
        #[test]
        fn an_opened_stream_goes_on_with_any_other(texts in prop::collection::vec(texts(), 1..4), level in 0..=12) {
            let mut whole = Vec::new();
            for text in &texts {
                let mut raw = deflate(text, level);
                let last = last_block(&raw).unwrap();
                raw.resize(raw.len() + LONGEST, 0);
                let len = last.open(&mut raw);
                whole.extend_from_slice(&raw[..len]);
            }
            whole.extend_from_slice(&deflate(b"", level));
            prop_assert_eq!(inflate(&whole, texts.concat().len()), texts.concat());
        }

        #[test]
        fn a_cut_stream_has_no_last_block_and_no_bytes_make_it_panic(text in texts(), level in 1..=12, cut in any::<prop::sample::Index>(), noise in any::<Vec<u8>>()) {
            let raw = deflate(&text, level);
            prop_assert_eq!(last_block(&raw[..cut.index(raw.len())]), None);
            last_block(&noise);
            last_block(&[&[0x05], &noise[..]].concat());
        }
    }
}
