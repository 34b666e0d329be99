//! The codes of a deflate stream (RFC 1951), for whoever must know where in a stream something stands: [`super::seam`], and the
//! salvage where it looks for a flipped bit. Who only wants the text takes zlib.

/// A position in a stream, in bits.
pub(crate) struct Bits<'a> {
    /// The stream.
    pub(crate) raw: &'a [u8],
    /// The next bit.
    pub(crate) pos: usize,
}

impl Bits<'_> {
    /// At least 57 bits from here on, zeros behind the end of the stream; `None` if it ended before.
    #[inline(always)]
    pub(crate) fn peek(&self) -> Option<u64> {
        let at = self.pos / 8;
        let word = match self.raw.get(at..).and_then(|rest| rest.first_chunk()) {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => self.peek_end(at)?,
        };
        Some(word >> (self.pos % 8))
    }

    #[cold]
    fn peek_end(&self, at: usize) -> Option<u64> {
        let rest = self.raw.get(at..).filter(|rest| !rest.is_empty())?;
        let mut bytes = [0; 8];
        bytes[..rest.len()].copy_from_slice(rest);
        Some(u64::from_le_bytes(bytes))
    }

    /// The next bits as a number.
    pub(crate) fn take(&mut self, count: usize) -> Option<usize> {
        let value = self.peek()? & ((1 << count) - 1);
        self.pos += count;
        Some(value as usize)
    }
}

/// A prefix code, by the bits that come next: how many the symbol takes, and of what kind it is.
///
/// An entry is the width of the code, plus what the maker of the table says of the symbol: a multiple of [`Table::KIND`], or a
/// smaller number for extra bits that are to be counted into the width. 0 is no code.
#[derive(Default, Clone)]
pub(crate) struct Table {
    entries: Vec<u16>,
    mask: usize,
}

impl Table {
    /// Where in an entry the width ends.
    pub(crate) const KIND: u16 = 1 << 6;

    fn build(&mut self, lengths: &[u8], kind: impl Fn(usize) -> u16) {
        let longest = lengths.iter().copied().max().unwrap_or(0).max(1);
        self.entries.clear();
        self.entries.resize(1 << longest, 0);
        self.mask = self.entries.len() - 1;
        let mut code = 0usize;
        for length in 1..=longest {
            for symbol in (0..lengths.len()).filter(|symbol| lengths[*symbol] == length) {
                let first = (code as u16).reverse_bits() >> (16 - length);
                for entry in self.entries.iter_mut().skip(first as usize).step_by(1 << length) {
                    *entry = kind(symbol) + u16::from(length);
                }
                code += 1;
            }
            code <<= 1;
        }
    }

    #[inline(always)]
    pub(crate) fn at(&self, word: u64) -> u16 {
        self.entries[word as usize & self.mask]
    }
}

/// What stands at the head of a block.
pub(crate) struct Head {
    /// No block follows.
    pub(crate) last: bool,
    /// Length of the text that stands there as it is; otherwise symbols follow.
    pub(crate) stored: Option<usize>,
}

/// The two codes of a block.
#[derive(Default, Clone)]
pub(crate) struct Codes {
    /// Literals and lengths.
    pub(crate) letters: Table,
    /// Distances.
    pub(crate) distances: Table,
}

impl Codes {
    /// Reads the head of a block and leaves `bits` at its first symbol or stored byte.
    pub(crate) fn read(
        &mut self,
        bits: &mut Bits<'_>,
        letter: impl Fn(usize) -> u16,
        distance: impl Fn(usize) -> u16,
    ) -> Option<Head> {
        let last = bits.take(1)? == 1;
        let mut stored = None;
        match bits.take(2)? {
            0 => {
                let at = bits.pos.div_ceil(8);
                let &[a, b, c, d] = bits.raw.get(at..)?.first_chunk()?;
                let length = u16::from_le_bytes([a, b]);
                if length != !u16::from_le_bytes([c, d]) {
                    return None;
                }
                bits.pos = (at + 4) * 8;
                stored = Some(usize::from(length));
            }
            1 => {
                let mut lengths = [8; 288];
                lengths[144..256].fill(9);
                lengths[256..280].fill(7);
                self.letters.build(&lengths, letter);
                self.distances.build(&[5; 30], distance);
            }
            2 => self.dynamic(bits, letter, distance)?,
            _ => return None,
        }
        Some(Head { last, stored })
    }

    fn dynamic(
        &mut self,
        bits: &mut Bits<'_>,
        letter: impl Fn(usize) -> u16,
        distance: impl Fn(usize) -> u16,
    ) -> Option<()> {
        const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
        let literals = bits.take(5)? + 257;
        let all = literals + bits.take(5)? + 1;
        let count = bits.take(4)? + 4;
        let mut short = [0; 19];
        for place in &ORDER[..count] {
            short[*place] = bits.take(3)? as u8;
        }
        let mut table = Table::default();
        table.build(&short, |symbol| (symbol as u16 + 1) * Table::KIND);
        let mut lengths = [0u8; 320];
        let mut have = 0;
        while have < all {
            let entry = table.at(bits.peek()?);
            bits.pos += usize::from(entry % Table::KIND);
            let symbol = (entry / Table::KIND).checked_sub(1)?;
            let (times, value) = match symbol {
                0..=15 => (1, symbol as u8),
                16 => (bits.take(2)? + 3, *lengths.get(have.checked_sub(1)?)?),
                17 => (bits.take(3)? + 3, 0),
                _ => (bits.take(7)? + 11, 0),
            };
            lengths.get_mut(have..have + times)?.fill(value);
            have += times;
        }
        self.letters.build(&lengths[..literals], letter);
        self.distances.build(&lengths[literals..all.min(320)], distance);
        Some(())
    }
}
