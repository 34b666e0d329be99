//! The stock of words that torch and Kineto write into events, and when a word is damage.
//!
//! Pure.

use super::signs::LEARN;

/// Where a word stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Role {
    /// The value of `cat`.
    Category,
    /// A key of the event itself.
    Field,
    /// A key within its `args`.
    Key,
    /// Text beside a key of the event itself, by the number of the key.
    Of(u32),
    /// Text within its `args`.
    Value,
    /// A name, by the number of its category.
    Name(u32),
}

impl Role {
    /// What torch is known to write there.
    pub(super) fn stock(&self) -> &'static [&'static [u8]] {
        match self {
            Self::Category => CATEGORIES,
            Self::Field => FIELDS,
            Self::Key => KEYS,
            Self::Of(_) => LETTERS,
            Self::Value | Self::Name(_) => &[],
        }
    }

    /// Whether nobody but torch chooses the word.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self, Self::Category | Self::Field | Self::Key)
    }

    /// How often another word must have been seen.
    pub(super) fn least(&self, text: &[u8]) -> u32 {
        match self {
            Self::Category | Self::Field | Self::Key | Self::Of(_) => 2,
            Self::Name(_) if is_of_torch(text) => 2,
            Self::Value | Self::Name(_) => LEARN,
        }
    }
}

/// Names that only torch gives.
pub(super) fn is_of_torch(name: &[u8]) -> bool {
    const BEGINS: [&[u8]; 3] =
        [b"\"aten::", b"\"autograd::engine::evaluate_function: ", b"\"torch::autograd::"];
    BEGINS.iter().any(|begin| name.starts_with(begin)) || name.ends_with(b"Backward0\"")
}

/// Kinds of events, and other single letters.
const LETTERS: &[&[u8]] = &[
    b"\"X\"", b"\"i\"", b"\"s\"", b"\"f\"", b"\"t\"", b"\"M\"", b"\"C\"", b"\"b\"", b"\"n\"", b"\"e\"",
    b"\"p\"", b"\"g\"",
];

/// Categories of Kineto, some of which look like two others joined.
const CATEGORIES: &[&[u8]] = &[
    b"",
    b"\"cpu_op\"",
    b"\"user_annotation\"",
    b"\"gpu_user_annotation\"",
    b"\"cpu_instant_event\"",
    b"\"gpu_memcpy\"",
    b"\"gpu_memset\"",
    b"\"kernel\"",
    b"\"cuda_runtime\"",
    b"\"cuda_driver\"",
    b"\"cuda_sync\"",
    b"\"cuda_event\"",
    b"\"cuda_profiler_range\"",
    b"\"hip_runtime\"",
    b"\"privateuse0_runtime\"",
    b"\"privateuse0_driver\"",
    b"\"xpu_runtime\"",
    b"\"xpu_driver\"",
    b"\"mtia_runtime\"",
    b"\"mtia_workloadd\"",
    b"\"mtia_insight\"",
    b"\"mtia_ccp_events\"",
    b"\"glow_runtime\"",
    b"\"collective_comm\"",
    b"\"gpu_pm_counter\"",
    b"\"overhead\"",
    b"\"python_function\"",
    b"\"external_correlation\"",
    b"\"fwdbwd\"",
    b"\"ac0g\"",
    b"\"Trace\"",
];

/// Keys of an event.
const FIELDS: &[&[u8]] = &[
    b"\"ph\"",
    b"\"cat\"",
    b"\"name\"",
    b"\"pid\"",
    b"\"tid\"",
    b"\"ts\"",
    b"\"dur\"",
    b"\"args\"",
    b"\"id\"",
    b"\"bp\"",
    b"\"s\"",
];

/// Keys that torch writes into `args`, as far as they are in the traces at hand.
const KEYS: &[&[u8]] = &[
    b"\"External id\"",
    b"\"Record function id\"",
    b"\"Sequence number\"",
    b"\"Fwd thread id\"",
    b"\"Ev Idx\"",
    b"\"Concrete Inputs\"",
    b"\"Input type\"",
    b"\"Input Strides\"",
    b"\"Input Dims\"",
    b"\"Total Reserved\"",
    b"\"Total Allocated\"",
    b"\"Bytes\"",
    b"\"Device Id\"",
    b"\"Device Type\"",
    b"\"Addr\"",
    b"\"finished\"",
    b"\"Python parent id\"",
    b"\"Python id\"",
    b"\"Python module id\"",
    b"\"Python thread\"",
    b"\"cbid\"",
    b"\"correlation\"",
    b"\"queued\"",
    b"\"device\"",
    b"\"context\"",
    b"\"stream\"",
    b"\"registers per thread\"",
    b"\"shared memory\"",
    b"\"blocks per SM\"",
    b"\"warps per SM\"",
    b"\"grid\"",
    b"\"block\"",
    b"\"est. achieved occupancy %\"",
    b"\"bytes\"",
    b"\"memory bandwidth (GB/s)\"",
    b"\"Op count\"",
    b"\"name\"",
    b"\"labels\"",
    b"\"sort_index\"",
];

/// Operators of torch that are one turned bit away from another one: of all 2,287 names in the registry of torch 2.13.
const SIBLINGS: [&[u8]; 26] = [
    b"le",
    b"ne",
    b"lt",
    b"relu",
    b"selu",
    b"celu",
    b"gelu",
    b"elu",
    b"glu",
    b"elu_backward",
    b"glu_backward",
    b"prelu",
    b"rrelu",
    b"asin",
    b"isin",
    b"std",
    b"svd",
    b"fft_hfft",
    b"fft_ifft",
    b"rsplit",
    b"vsplit",
    b"dict",
    b"dist",
    b"list",
    b"size",
    b"complex",
];

/// Whether the word is the other one with a bit turned.
pub(super) fn is_turned(role: Role, other: &[u8], word: &[u8]) -> bool {
    one_bit_apart(other, word) && !(matches!(role, Role::Name(_)) && are_siblings(other, word))
}

/// Whether both may well be operators. What stands before the operator is always the same.
fn are_siblings(other: &[u8], name: &[u8]) -> bool {
    let space = name.iter().rposition(|byte| matches!(byte, b':' | b' ')).map_or(0, |at| at + 1);
    if other.get(..space) != name.get(..space) {
        return false;
    }
    let name = name[space..].to_ascii_lowercase();
    let families: [&[u8]; 4] = [b"sparse_", b"sparseb", b"sparsec", b"special_"];
    if families.iter().any(|part| memchr::memmem::find(&name, part).is_some()) {
        return true;
    }
    let name = name.strip_suffix(b"\"").unwrap_or(&name);
    let name = name.strip_suffix(b"backward0").unwrap_or(name);
    let name = name.strip_suffix(b"n").filter(|name| name.ends_with(b"fft")).unwrap_or(name);
    let name = name.strip_suffix(b"0").or_else(|| name.strip_suffix(b"_")).unwrap_or(name);
    SIBLINGS.contains(&name)
}

/// Whether a string was mended that is two, of which the other is one: the mark between them was damaged.
pub(super) fn is_two_strings(other: &[u8], word: &[u8]) -> bool {
    let Some(other) = other.strip_prefix(b"\"").and_then(|other| other.strip_suffix(b"\"")) else {
        return false;
    };
    let mut quotes = memchr::memmem::find_iter(word, b"\\\"").peekable();
    if other.is_empty() || quotes.peek().is_none() {
        return false;
    }
    let mut from = 1;
    quotes.chain([word.len() - 1]).any(|to| {
        let piece = word.get(from..to);
        from = to + 2;
        piece == Some(other)
    })
}

/// Whether `two` is `one` with one bit turned. Of digits, and of letters in an address, nobody can say which was meant; a 0 stands
/// for any number; what is no text any more was mended to the sign for that or to an escape.
pub(super) fn one_bit_apart(one: &[u8], two: &[u8]) -> bool {
    if two.len() < 3 || one.len() > two.len() + 1 || two.len() > one.len() + 6 {
        return false;
    }
    let head = common_head(one, two);
    let tail = common_tail(&one[head..], &two[head..]);
    match (&one[head..one.len() - tail], &two[head..two.len() - tail]) {
        ([was], [is]) => {
            let turned = match (was, is) {
                (b'0', other) | (other, b'0') => beside_a_digit(*other) || matches!(other, b'p'..=b'y'),
                _ => (was ^ is).count_ones() == 1,
            };
            turned && !(is.is_ascii_hexdigit() && in_an_address(two, head))
        }
        ([was], [b'\\', b'"']) => (was ^ b'"').count_ones() == 1,
        ([_], [b'\\', escape, ..]) => *escape != b'"',
        // It was a digit.
        ([], [b'\\', b'u', ..]) => one[..head].ends_with(b"0"),
        // It became a digit beside others.
        ([was], []) => beside_a_digit(*was) && (two[..head].ends_with(b"0") || two[head..].starts_with(b"0")),
        ([_], middle) => *middle == *"\u{fffd}".as_bytes(),
        _ => false,
    }
}

/// Blanks and signs that are one bit away from a digit.
fn beside_a_digit(byte: u8) -> bool {
    matches!(byte, 0x20..=0x29 | 0x3a..=0x3f)
}

pub(super) fn common_head(one: &[u8], two: &[u8]) -> usize {
    one.iter().zip(two).take_while(|(one, two)| one == two).count()
}

pub(super) fn common_tail(one: &[u8], two: &[u8]) -> usize {
    one.iter().rev().zip(two.iter().rev()).take_while(|(one, two)| one == two).count()
}

/// Whether only digits of a hexadecimal number stand before.
fn in_an_address(text: &[u8], at: usize) -> bool {
    let digits = text[..at].iter().rev().take_while(|byte| byte.is_ascii_hexdigit()).count();
    text[..at - digits].ends_with(b"x") && text[..at - digits].len() > 1 && text[at - digits - 2] == b'0'
}

/// Whether the word is the beginning of one and the end of another, with quotes. Of a word without a blank, which may be the name
/// of an argument in somebody's Python, that may be chance where little of one of them is left; then `lacks` is asked.
pub(super) fn is_joined<'w>(
    word: &[u8],
    others: impl Iterator<Item = &'w [u8]>,
    lacks: impl Fn() -> bool,
) -> bool {
    const ENOUGH: usize = 4;
    let (mut head, mut tail) = (0, 0);
    for other in others.filter(|other| *other != word) {
        head = head.max(common_head(other, word));
        tail = tail.max(common_tail(other, word));
    }
    let covered = head > 1 && tail > 1 && head + tail >= word.len();
    covered && ((head >= ENOUGH && tail >= ENOUGH) || word.contains(&b' ') || lacks())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turned_bit_makes_a_neighbour_but_not_of_a_digit_or_an_address() {
        for (one, two, near) in [
            ("\"Ev Idx\"", "\"Ev Idy\"", true),
            ("\"Ev Idx\"", "\"Ev Idw\"", false),
            ("\"Ev Idx\"", "\"Ev Id\"", false),
            ("\"step 0\"", "\"step 1\"", false),
            ("<method at 0x7fa0>", "<method at 0x7fc0>", false),
            ("<method at 0x7fa0>", "<mexhod at 0x7fa0>", false),
            ("<method at 0x7fa0>", "<mdthod at 0x7fa0>", true),
            ("\"External id\"", "\"Expernal id\"", true),
            ("\"AddBackward0\"", "\"AddBackwa0d0\"", true),
            ("\"aten::mm\"", "\"aten:0mm\"", true),
            ("\"aten::a0\"", "\"aten::aa\"", false),
            ("\"cpu_op\"", "\"cpu_\u{fffd}p\"", true),
            ("\"cpu_op\"", "\"cpv_\u{fffd}p\"", false),
            ("\"cpu_op\"", "\"cpu_\\u0fp\"", true),
            ("<list at 0x0f>", "<list at0x0f>", true),
            ("<steps0>", "<step0>", false),
        ] {
            assert_eq!(one_bit_apart(one.as_bytes(), two.as_bytes()), near, "{one} {two}");
        }
    }

    #[test]
    fn an_operator_that_has_a_sibling_may_be_it() {
        let turned = |one: &str, two: &str| is_turned(Role::Name(0), one.as_bytes(), two.as_bytes());
        for (one, two) in [
            ("\"aten::le\"", "\"aten::ne\""),
            ("\"aten::relu_\"", "\"aten::selu_\""),
            ("\"a::evaluate_function: CeluBackward0\"", "\"a::evaluate_function: GeluBackward0\""),
            ("\"aten::_to_sparse_csr\"", "\"aten::_to_sparse_bsr\""),
            ("\"aten::fft_ifftn\"", "\"aten::fft_hfftn\""),
        ] {
            assert!(!turned(one, two) && one_bit_apart(one.as_bytes(), two.as_bytes()), "{two}");
        }
        assert!(turned("\"a::evaluate_function: ReluBackward0\"", "\"a::evaluate_functaon: ReluBackward0\""));
        assert!(turned("\"aten::addmm\"", "\"aten::addmi\""));
    }

    #[test]
    fn a_string_that_swallowed_another_is_two() {
        let two = |one: &str, word: &str| is_two_strings(one.as_bytes(), word.as_bytes());
        assert!(two("\"float\"", "\"float\\\"( \\\"Scalar\""));
        assert!(two("\"Scalar\"", "\"float\\\"( \\\"Scalar\""));
        assert!(!two("\"Scalar\"", "\"float\\\"( \\\"ScalarList\""));
        assert!(!two("\"\"", "\"a \\\"\\\" b\""));
        assert!(!two("\"float\"", "\"float\""));
    }

    #[test]
    fn a_word_of_two_halves_is_joined() {
        let others = || [&b"\"Record function id\""[..], b"\"Input Dims\"", b"\"Ev Idx\""].into_iter();
        assert!(is_joined(b"\"Record fu Dims\"", others(), || false));
        assert!(is_joined(b"\"Record fs\"", others(), || false));
        assert!(is_joined(b"\"Record functction id\"", others(), || false));
        assert!(!is_joined(b"\"Record of Dims\"", others(), || true));
        assert!(!is_joined(b"\"Rx\"", others(), || false));
        assert!(is_joined(b"\"Rx\"", others(), || true));
    }
}
