//! The words of a prompt. Random common words, as in the user's harness, so that no two prompts share a prefix beyond the
//! head of their template. Pure.

use super::mix::{Part, Template};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

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
    /// Tokens of each of [`WORDS`] with the space before it, in the middle of a text.
    costs: Vec<u32>,
    /// Pattern of a template to the tokens it adds around its words, special tokens included.
    around: BTreeMap<String, u32>,
}

impl Default for TokenModel {
    fn default() -> Self {
        Self { chars_per_token: CHARS_PER_TOKEN, measured: false, costs: Vec::new(), around: BTreeMap::new() }
    }
}

impl TokenModel {
    /// From one measurement on the server.
    pub fn measured(chars: usize, tokens: usize) -> Self {
        if chars == 0 || tokens == 0 {
            return Self::default();
        }
        Self { chars_per_token: chars as f64 / tokens as f64, measured: true, ..Self::default() }
    }

    /// Adds what each word costs, in the order of [`WORDS`]; prompts then have their length to the token. Tokenizers work
    /// word by word, so the cost of a word does not depend on its neighbours.
    #[must_use]
    pub fn with_costs(mut self, costs: Vec<u32>) -> Self {
        if costs.len() == WORDS.len() && costs.iter().all(|cost| *cost > 0) {
            self.costs = costs;
        }
        self
    }

    /// Adds what a template costs around its words.
    pub fn set_around(&mut self, template: &Template, tokens: u32) {
        self.around.insert(template.pattern().to_owned(), tokens);
    }

    /// Whether the server was asked, or four characters a token assumed.
    pub fn is_measured(&self) -> bool {
        self.measured
    }

    /// Whether prompts have their length to the token.
    pub fn is_exact(&self) -> bool {
        !self.costs.is_empty()
    }

    /// Characters of a token on average.
    pub fn chars_per_token(&self) -> f64 {
        self.chars_per_token
    }

    /// Tokens that are left for words.
    fn budget(&self, template: &Template, tokens: u32) -> u32 {
        // The harness counts the words alone; when real tokens are known, the template's own tokens are taken off.
        let around = match self.around.get(template.pattern()) {
            Some(around) => *around,
            None if self.measured => (template.fixed_chars() as f64 / self.chars_per_token) as u32,
            None => 0,
        };
        tokens.saturating_sub(around).max(1)
    }
}

/// Words for `tokens` tokens.
fn words(text: &mut String, tokens: u32, model: &TokenModel, rng: &mut impl Rng) {
    if model.costs.is_empty() {
        push_words(text, (f64::from(tokens) * model.chars_per_token) as usize, rng);
    } else {
        push_exact(text, tokens, &model.costs, rng);
    }
}

/// The generator of one text: any text can be built at any time, and a long schedule needs no memory for its prompts.
fn source(seed: u64, kind: u64, id: u32) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(kind << 32 | u64::from(id));
    rng
}

/// Builds the prompt of request `id`; its words depend on `seed` and `id` alone.
pub fn build(template: &Template, tokens: u32, model: &TokenModel, seed: u64, id: u32) -> String {
    let mut rng = source(seed, 1, id);
    let all = model.budget(template, tokens);
    let mut left = all;
    let mut text = String::with_capacity(template.fixed_chars() + all as usize * 5 + 2);
    for part in template.parts() {
        match *part {
            Part::Text(from, to) => text.push_str(template.text(from, to)),
            Part::Words(share) => {
                let tokens = ((f64::from(all) * share) as u32).min(left);
                left -= tokens;
                words(&mut text, tokens.max(1), model, &mut rng);
            }
            Part::Rest => words(&mut text, left.max(1), model, &mut rng),
        }
    }
    text
}

/// What the server is made to have said in a former turn.
pub fn answer(tokens: u32, model: &TokenModel, seed: u64, id: u32) -> String {
    let mut text = String::new();
    words(&mut text, tokens.max(1), model, &mut source(seed, 2, id));
    text
}

/// The shared beginning of a group.
pub fn prefix(tokens: u32, model: &TokenModel, seed: u64, group: u32) -> String {
    let mut text = String::new();
    words(&mut text, tokens.max(1), model, &mut source(seed, 3, group));
    text
}

/// Random words that cost exactly `tokens`, as far as words of one token allow it, with a capital and a full stop.
fn push_exact(text: &mut String, tokens: u32, costs: &[u32], rng: &mut impl Rng) {
    let begin = text.len();
    let mut left = tokens;
    while left > 0 {
        let mut word = rng.random_range(0..WORDS.len());
        if costs[word] > left {
            let fitting: Vec<usize> = (0..WORDS.len()).filter(|w| costs[*w] <= left).collect();
            if fitting.is_empty() {
                break;
            }
            word = fitting[rng.random_range(0..fitting.len())];
        }
        if text.len() > begin {
            text.push(' ');
        }
        text.push_str(WORDS[word]);
        left -= costs[word];
    }
    if let Some(first) = text.get_mut(begin..=begin) {
        first.make_ascii_uppercase();
    }
    text.push('.');
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
