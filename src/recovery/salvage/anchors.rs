//! Where in damaged text an event or an entry of the document may begin.
//!
//! Pure.

/// Bytes kept when nothing was found: what decides about the next candidate may lie before it.
pub(super) const LOOK_BACK: usize = 64;

/// Positions from `pos` on where an event may begin: an opening brace at the start of a line or of a list element,
/// followed by a key.
pub(super) fn candidates(data: &[u8], pos: usize) -> impl Iterator<Item = usize> + '_ {
    memchr::memchr_iter(b'{', &data[pos..]).map(move |at| at + pos).filter(move |&at| {
        let before = data[..at].iter().rev().take(LOOK_BACK).find(|b| !matches!(b, b' ' | b'\t' | b'\r'));
        let after = data[at + 1..].iter().take(LOOK_BACK).find(|b| !b.is_ascii_whitespace());
        matches!(before, None | Some(b'\n' | b',' | b'[' | b'}' | 0)) && matches!(after, None | Some(b'"'))
    })
}

pub(super) fn begins_line(data: &[u8], at: usize) -> bool {
    data[..at].iter().rev().take(LOOK_BACK).find(|b| **b != b' ') == Some(&b'\n')
}

/// The first line after `pos` that begins with a quote, as every entry of Kineto does.
pub(super) fn next_key_line(data: &[u8], pos: usize) -> Option<usize> {
    memchr::memchr_iter(b'\n', &data[pos.min(data.len())..]).find_map(|at| {
        let line = pos + at + 1;
        let indent = data[line..].iter().take(LOOK_BACK).position(|b| *b != b' ')?;
        (data[line + indent] == b'"').then_some(line + indent)
    })
}

pub(super) fn is_event_key(line: &[u8]) -> bool {
    [&b"\"ph\""[..], b"\"name\"", b"\"cat\"", b"\"ts\"", b"\"pid\"", b"\"tid\"", b"\"dur\"", b"\"args\""]
        .iter()
        .any(|key| line.starts_with(key))
}
