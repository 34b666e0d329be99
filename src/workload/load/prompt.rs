//! The words of a prompt. Random common words, as in the user's harness, so that no two prompts share a prefix beyond the
//! head of their template. Pure.

use super::mix::Template;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Common English words.
pub const WORDS: [&str; 100] = [
    "able",
    "about",
    "above",
    "after",
    "again",
    "air",
    "also",
    "animal",
    "answer",
    "back",
    "become",
    "before",
    "begin",
    "below",
    "better",
    "between",
    "book",
    "both",
    "bring",
    "build",
    "call",
    "carry",
    "change",
    "children",
    "city",
    "clear",
    "close",
    "color",
    "come",
    "country",
    "different",
    "during",
    "each",
    "early",
    "earth",
    "enough",
    "even",
    "every",
    "example",
    "family",
    "father",
    "feel",
    "field",
    "find",
    "follow",
    "food",
    "form",
    "friend",
    "give",
    "good",
    "ground",
    "group",
    "grow",
    "hand",
    "help",
    "home",
    "house",
    "important",
    "keep",
    "kind",
    "know",
    "large",
    "later",
    "learn",
    "letter",
    "light",
    "line",
    "little",
    "mountain",
    "move",
    "music",
    "name",
    "near",
    "never",
    "night",
    "number",
    "often",
    "open",
    "other",
    "page",
    "paper",
    "people",
    "place",
    "plant",
    "point",
    "question",
    "read",
    "river",
    "school",
    "second",
    "sentence",
    "small",
    "start",
    "state",
    "story",
    "study",
    "system",
    "through",
    "water",
    "write",
];

/// How many characters make a token when the server does not tell.
pub const CHARS_PER_TOKEN: f64 = 4.0;

/// How text turns into the server's tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenModel {
    chars_per_token: f64,
    measured: bool,
}

impl Default for TokenModel {
    fn default() -> Self {
        Self { chars_per_token: CHARS_PER_TOKEN, measured: false }
    }
}

impl TokenModel {
    /// From one measurement on the server.
    pub fn measured(chars: usize, tokens: usize) -> Self {
        if chars == 0 || tokens == 0 {
            return Self::default();
        }
        Self { chars_per_token: chars as f64 / tokens as f64, measured: true }
    }

    /// Whether the server was asked, or four characters a token assumed.
    pub fn is_measured(&self) -> bool {
        self.measured
    }

    /// Characters of a token on average.
    pub fn chars_per_token(&self) -> f64 {
        self.chars_per_token
    }

    fn chars(&self, tokens: f64) -> usize {
        (tokens * self.chars_per_token) as usize
    }
}

/// Builds the prompt of request `id`. The words depend on `seed` and `id` alone, so any request can be built at any time
/// and a long schedule needs no memory for its prompts.
pub fn build(template: &Template, tokens: u32, model: &TokenModel, seed: u64, id: u32) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(u64::from(id) + 2);
    // The harness counts the words alone; when real tokens are known, the template's own tokens are taken off.
    let (head, middle, tail, share) = match template {
        Template::Chat => ("User: ", "", "\nAssistant:", 1.0),
        Template::Rag => ("Context: ", "\n\nQuestion: ", "", 0.8),
        Template::Code => ("# File context:\n# ", "\n\n# Task: ", "\n", 0.7),
        Template::Plain => ("", "", "", 1.0),
    };
    let mut words = f64::from(tokens);
    if model.measured {
        words -= (head.len() + middle.len() + tail.len()) as f64 / model.chars_per_token;
    }
    let words = words.max(1.0);
    let first = if share < 1.0 { (words * share).floor() } else { words };
    let mut text = String::with_capacity(model.chars(words) + head.len() + middle.len() + tail.len() + 2);
    text.push_str(head);
    push_words(&mut text, model.chars(first), &mut rng);
    text.push_str(middle);
    if share < 1.0 {
        push_words(&mut text, model.chars(words - first), &mut rng);
    }
    text.push_str(tail);
    text
}

/// Random words up to `chars` characters, cut there, with a capital and a full stop.
pub fn push_words(text: &mut String, chars: usize, rng: &mut impl Rng) {
    let chars = chars.max(1);
    let begin = text.len();
    while text.len() - begin < chars {
        if text.len() > begin {
            text.push(' ');
        }
        text.push_str(WORDS[rng.random_range(0..WORDS.len())]);
    }
    text.truncate(begin + chars);
    if let Some(first) = text.get_mut(begin..=begin) {
        first.make_ascii_uppercase();
    }
    text.push('.');
}

/// Text for the calibration: what prompts are made of, and enough of it for a stable mean.
pub fn sample(seed: u64) -> String {
    let mut text = String::new();
    push_words(&mut text, 8000, &mut ChaCha8Rng::seed_from_u64(seed));
    text
}
