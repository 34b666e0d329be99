//! Names that grew together of two. A name is free text, so that one was never seen before means nothing; but a name that stands
//! in the whole trace once, is the beginning of one other name and the end of another, and is no name by itself (its brackets do
//! not close, or a word in its middle is half of one and half of another), did not come from torch.
//!
//! Pure.

use super::signs::hash;
use super::words::{common_head, common_tail, one_bit_apart};
use memchr::memmem;
use std::collections::HashMap;

/// Kernels a trace may have; torch's have some hundred.
const MOST_NAMES: usize = 1024;
/// Bytes of all names.
const MOST_BYTES: usize = 1 << 20;
/// Names that one damage makes, at most.
const MOST_WRONG: usize = 8;

/// How often a kernel must have been seen, that another may be one with a turned bit.
const LIKELY: u32 = 8;

/// A name.
#[derive(Debug, Clone)]
struct Known {
    text: Box<[u8]>,
    times: u32,
    /// Where it was seen last.
    at: u64,
    /// What belongs to it: for a kernel its registers and its shared memory, which the compiler fixed.
    mark: u64,
}

/// Names of kernels.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    known: Vec<Known>,
    /// By a hash of some of their bytes, since names are long.
    index: HashMap<u64, usize>,
    bytes: usize,
    full: bool,
}

impl Names {
    pub(super) fn note(&mut self, name: &[u8], args: &[u8], at: u64) {
        let key = glance(name);
        match self.index.get(&key).map(|number| &mut self.known[*number]) {
            Some(known) if *known.text == *name => {
                known.times += 1;
                known.at = at;
            }
            _ => self.add(name, args, key, at),
        }
    }

    #[cold]
    fn add(&mut self, name: &[u8], args: &[u8], key: u64, at: u64) {
        if let Some(known) = self.known.iter_mut().find(|known| *known.text == *name) {
            known.times += 1;
            return;
        }
        self.bytes += name.len();
        self.full |= self.known.len() == MOST_NAMES || self.bytes > MOST_BYTES;
        if self.full {
            return;
        }
        self.index.entry(key).or_insert(self.known.len());
        self.known.push(Known { text: name.into(), times: 1, at, mark: mark(args) });
    }

    pub(super) fn verdict(&self) -> Vec<u64> {
        if self.full {
            return Vec::new();
        }
        let once = self.known.iter().filter(|known| known.times == 1);
        let wrong = |known: &&Known| self.is_joined(known) || self.is_turned(known);
        let wrong: Vec<u64> = once.filter(wrong).map(|known| known.at).collect();
        if wrong.len() > MOST_WRONG { Vec::new() } else { wrong }
    }

    /// Whether a bit of it was turned. Names that are written as the linker sees them have letters for types (`f`, `d`).
    fn is_turned(&self, name: &Known) -> bool {
        let like = |other: &Known| {
            other.times >= LIKELY && other.mark == name.mark && one_bit_apart(&other.text, &name.text)
        };
        !name.text.starts_with(b"\"_Z") && self.known.iter().any(like)
    }

    fn is_joined(&self, name: &Known) -> bool {
        let others = || self.known.iter().filter(|other| other.text != name.text);
        let Some(head) = others().map(|other| common_head(&other.text, &name.text)).max() else {
            return false;
        };
        // The end of the event came with the end of the name.
        let tail = |other: &Known| common_tail(&other.text, &name.text);
        let Some(tail) = others().filter(|other| other.mark == name.mark).map(tail).max() else {
            return false;
        };
        let (from, to) = (name.text.len() - tail, head);
        // Quotes are common to all.
        if from > to || from >= name.text.len() - 1 || to <= 1 {
            return false;
        }
        if !balanced(&name.text) {
            return others().all(|other| balanced(&other.text));
        }
        let Some(word) = word_around(&name.text, from, to) else { return false };
        word.iter().any(u8::is_ascii_alphabetic) && others().all(|other| !has_word(&other.text, word))
    }
}

/// A hash of length, begin, middle and end.
fn glance(name: &[u8]) -> u64 {
    let middle = name.len() / 2;
    let part = |at: usize| name[at..].first_chunk::<8>().copied().map_or(0, u64::from_le_bytes);
    let parts = [part(0), part(middle), part(name.len().saturating_sub(8)), name.len() as u64];
    parts.iter().fold(0, |sum: u64, part| (sum.rotate_left(5) ^ part).wrapping_mul(0xa076_1d64_78bd_642f))
}

/// A hash of what stands between the correlation and the blocks of a launch.
fn mark(args: &[u8]) -> u64 {
    let from = memmem::find(args, b"\"registers per thread\"").unwrap_or(0);
    let to = memmem::find(&args[from..], b"\"blocks per SM\"").map_or(from, |len| from + len);
    hash(&args[from..to])
}

/// The one word that the join lies in, wherever between `from` and `to` it is.
fn word_around(name: &[u8], from: usize, to: usize) -> Option<&[u8]> {
    let begin = from - name[..from].iter().rev().take_while(|byte| byte.is_ascii_alphanumeric()).count();
    let end = to + name[to..].iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
    let is_one = name[begin..end].iter().all(u8::is_ascii_alphanumeric);
    (begin < from && to < end && is_one).then(|| &name[begin..end])
}

fn has_word(name: &[u8], word: &[u8]) -> bool {
    let inside = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    memmem::find_iter(name, word)
        .any(|at| !inside(name.get(at.wrapping_sub(1))) && !inside(name.get(at + word.len())))
}

/// Whether every bracket of a C++ name closes. An operator may be called like one.
fn balanced(name: &[u8]) -> bool {
    let mut open = Vec::new();
    let mut rest = name;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'o' && after.starts_with(b"perator") {
            let end = after[7..].iter().take_while(|byte| b"<>=-()[] ".contains(byte)).count();
            rest = &after[7..];
            for symbol in [
                &b"()"[..],
                b"[]",
                b"<<=",
                b">>=",
                b"<=>",
                b"<<",
                b">>",
                b"->*",
                b"->",
                b"<=",
                b">=",
                b"<",
                b">",
            ] {
                if end > 0 && rest.starts_with(symbol) {
                    rest = &rest[symbol.len()..];
                    break;
                }
            }
            continue;
        }
        match byte {
            b'-' if after.first() == Some(&b'>') => rest = &after[1..],
            b'<' | b'(' | b'{' | b'[' => open.push(byte),
            b'>' | b')' | b'}' | b']' => {
                let partner = match byte {
                    b'>' => b'<',
                    b')' => b'(',
                    b'}' => b'{',
                    _ => b'[',
                };
                if open.pop() != Some(partner) {
                    return false;
                }
            }
            _ => {}
        }
    }
    open.is_empty()
}

/// Category, number and name.
type Call = (usize, Box<[u8]>, Known);

/// Calls by their number.
#[derive(Debug, Clone, Default)]
pub(super) struct Calls {
    known: Vec<Call>,
    last: usize,
}

impl Calls {
    pub(super) fn note(&mut self, kind: usize, number: &[u8], name: &[u8], at: u64) {
        let same = |(a, b, known): &Call| *a == kind && **b == *number && *known.text == *name;
        if !self.known.get(self.last).is_some_and(same) {
            self.last = self.known.iter().position(same).unwrap_or(self.known.len());
        }
        match self.known.get_mut(self.last) {
            Some((.., known)) => known.times += 1,
            None if self.last < 1024 => {
                self.known.push((kind, number.into(), Known { text: name.into(), times: 1, at, mark: 0 }));
            }
            None => {}
        }
    }

    /// Calls whose number has another name elsewhere.
    pub(super) fn verdict(&self) -> Vec<u64> {
        let wrong = |(kind, number, call): &&Call| {
            let others = self.known.iter().filter(|(a, b, _)| a == kind && b == number);
            call.times == 1 && others.map(|(.., other)| other.times).sum::<u32>() > 2
        };
        let all: Vec<u64> = self.known.iter().filter(wrong).map(|(.., call)| call.at).collect();
        if all.len() > MOST_WRONG { Vec::new() } else { all }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(all: &[(&str, u32)]) -> Names {
        let mut names = Names::default();
        for (number, (name, registers)) in all.iter().enumerate() {
            let args = format!("\"registers per thread\": {registers}, \"blocks per SM\": 1");
            names.note(format!("\"{name}\"").as_bytes(), args.as_bytes(), number as u64);
        }
        names
    }

    const ADD: (&str, u32) = ("void vectorized<4, Add<float>, array<char*, 3ul> >(int, Add<float>)", 32);
    const REDUCE: (&str, u32) =
        ("void reduce<512, Sum<float>::operator()(Iterator&)::{lambda(float)#1}>(Sum<float>)", 54);

    #[test]
    fn a_name_that_is_two_halves_and_does_not_close_is_found() {
        let joined = (&*format!("{}{}", &ADD.0[..20], &REDUCE.0[30..]), REDUCE.1);
        assert_eq!(names(&[ADD, ADD, REDUCE, joined, REDUCE]).verdict(), [3]);
        assert_eq!(names(&[ADD, ADD, REDUCE, joined, joined]).verdict(), Vec::<u64>::new(), "it came twice");
    }

    #[test]
    fn a_name_with_a_word_of_two_halves_is_found_if_the_launch_is_that_of_the_second() {
        let joined = (&*format!("{}{}", &ADD.0[..7], &REDUCE.0[7..]), REDUCE.1);
        assert_eq!(joined.0.split('<').next(), Some("void veduce"));
        assert_eq!(names(&[ADD, REDUCE, joined]).verdict(), [2]);
        assert_eq!(names(&[ADD, REDUCE, (joined.0, 99)]).verdict(), Vec::<u64>::new());
    }

    #[test]
    fn a_name_with_a_piece_twice_is_found_by_its_seam_though_other_words_have_those_letters() {
        let fill = "k<4, native::Fill<float>, std::array<base> >(native::Fill<float>)";
        let (from, to) = (fill.find("e::").unwrap(), fill.find("td::").unwrap());
        let joined = format!("{}{}", &fill[..to], &fill[from..]);
        assert_eq!(
            joined,
            "k<4, native::Fill<float>, se::Fill<float>, std::array<base> >(native::Fill<float>)"
        );
        assert_eq!(names(&[(fill, 16), (&joined, 16), (fill, 16)]).verdict(), [1]);
        // A number is no word.
        let blocks =
            [("k<128, F>", 16), ("k<256, F>", 16), ("k<16, F>", 16), ("k<6, F>", 16), ("k<18, F>", 16)];
        assert_eq!(names(&blocks).verdict(), Vec::<u64>::new());
    }

    #[test]
    fn names_of_other_words_and_variants_are_let_alone() {
        let variants = [
            ("gemm_f32_nn_64x64", 90),
            ("gemm_f32_nt_64x32", 96),
            ("gemm_f32_nt_64x64", 90),
            ("gemm_f32_nn_64x32", 96),
        ];
        assert_eq!(names(&variants).verdict(), Vec::<u64>::new());
        let types = [
            ("k<float, 4>(float)", 18),
            ("k<half, 8>(half)", 18),
            ("k<float, 8>(float)", 18),
            ("k<half, 4>(half)", 18),
        ];
        assert_eq!(names(&types).verdict(), Vec::<u64>::new());
    }

    #[test]
    fn the_brackets_of_torchs_names_close() {
        for name in [
            ADD.0,
            REDUCE.0,
            "f<(anonymous namespace)::g>",
            "a::operator<<(b)",
            "a::operator->(b<c>)",
            "operator<",
            "x->y",
            "f<(a)1>[2]",
        ] {
            assert!(balanced(name.as_bytes()), "{name}");
        }
        for name in ["f<g", "f>(a)", "f(a))", "f<(a>)"] {
            assert!(!balanced(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_call_whose_number_is_called_otherwise_elsewhere_is_found() {
        let mut calls = Calls::default();
        for at in 0..9 {
            calls.note(1, b"211", b"\"cudaLaunchKernel\"", at);
            calls.note(1, b"41", b"\"cudaMemcpyAsync\"", at);
        }
        assert_eq!(calls.verdict(), Vec::<u64>::new());
        calls.note(1, b"41", b"\"cudaLauncpyAsync\"", 9);
        assert_eq!(calls.verdict(), [9]);
    }
}
