//! What the simulated model says: words that depend on the seed, the request and the position alone. Pure.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const WORDS: [&str; 48] = [
    " the", " a", " of", " and", " to", " in", " is", " that", " it", " was", " for", " on", " with", " as",
    " by", " at", " from", " river", " stone", " light", " engine", " window", " morning", " paper",
    " garden", " number", " signal", " table", " answer", " letter", " winter", " machine", " little",
    " quiet", " green", " early", " open", " moves", " keeps", " turns", " finds", " holds", " writes",
    " returns", ",", ".", " again", " never",
];

fn source(seed: u64, request: u64, purpose: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed ^ request.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (purpose << 56))
}

/// The words of one request, one per token, and which chunks carry two.
#[derive(Debug)]
pub(super) struct Words {
    words: ChaCha8Rng,
    merges: ChaCha8Rng,
    merge: f64,
}

impl Words {
    pub(super) fn new(seed: u64, request: u64, merge: f64) -> Self {
        Self { words: source(seed, request, 1), merges: source(seed, request, 2), merge }
    }

    /// The next token.
    pub(super) fn next(&mut self) -> &'static str {
        WORDS[self.words.random_range(0..WORDS.len())]
    }

    /// Whether the next chunk waits for a further token.
    pub(super) fn merges(&mut self) -> bool {
        self.merges.random_bool(self.merge)
    }
}

/// How many tokens a request gets, and whether it stops by itself.
pub(super) fn length(seed: u64, request: u64, min: u64, max: u64, ignore_eos: bool, eos: f64) -> (u64, bool) {
    let mut source = source(seed, request, 3);
    let stops = source.random_bool(eos);
    let (min, max) = (min.clamp(1, max.max(1)), max.max(1));
    if ignore_eos || !stops || min == max { (max, false) } else { (source.random_range(min..max), true) }
}

/// Sixteen hexadecimal digits, as in vLLM's request ids.
pub(super) fn request_id(seed: u64, request: u64) -> String {
    format!("{:016x}", source(seed, request, 4).random::<u64>())
}

/// About four characters a token.
pub(super) fn tokens_of(text: &str) -> u64 {
    (text.chars().count() as u64).div_ceil(4)
}

/// Token numbers for `/tokenize`.
pub(super) fn token_numbers(count: u64, seed: u64) -> Vec<u64> {
    let mut source = source(seed, count, 5);
    (0..count).map(|_| source.random_range(3..32_000)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_and_request_say_the_same_words() {
        let say = |seed, request| -> String {
            let mut words = Words::new(seed, request, 0.5);
            (0..20).map(|_| words.next()).collect()
        };
        assert_eq!(say(1, 2), say(1, 2));
        assert_ne!(say(1, 2), say(1, 3));
        assert_ne!(say(1, 2), say(2, 2));
    }

    #[test]
    fn a_length_stays_between_its_limits() {
        for request in 0..200 {
            let (length, stops) = length(9, request, 3, 20, false, 0.5);
            assert!((3..=20).contains(&length));
            assert_eq!(stops, length < 20);
            assert_eq!(super::length(9, request, 3, 20, true, 1.0), (20, false));
            assert_eq!(super::length(9, request, 0, 1, false, 1.0), (1, false));
        }
    }
}
