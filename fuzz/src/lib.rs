//! What several targets need: cuts of an input, and inputs long enough to show quadratic time.

/// FNV-1a; decides from the input alone, so that a finding can be repeated.
pub fn hash(data: &[u8]) -> u64 {
    data.iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// The same bytes in three to many pieces.
pub fn pieces(data: &[u8]) -> Vec<&[u8]> {
    let mut state = hash(data) | 1;
    let most = [1, 2, 3, 7, 20, 100][usize::try_from(state >> 32).unwrap_or(0) % 6];
    let (mut rest, mut out) = (data, Vec::new());
    while !rest.is_empty() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let length = (usize::try_from(state >> 33).unwrap_or(0) % (2 * most) + 1).min(rest.len());
        let (piece, after) = rest.split_at(length);
        out.push(piece);
        rest = after;
    }
    out
}

/// For one input in many thousands, the input repeated to about a mebibyte: what takes quadratic time for it runs into the
/// fuzzer's limit of seconds.
pub fn amplified(data: &[u8]) -> Option<Vec<u8>> {
    const LENGTH: usize = 1 << 20;
    (data.len() > 1 && hash(data).is_multiple_of(16_384)).then(|| data.repeat(LENGTH / data.len()))
}
