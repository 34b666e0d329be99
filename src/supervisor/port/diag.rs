//! Sockets that are bound and do not listen: they are in no table of `/proc`. The kernel's socket diagnosis (netlink,
//! sock_diag(7)) lists them since Linux 6.8, under a state of its own; before, the answer is empty.

use super::Row;
use crate::supervisor::os;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `TCP_BOUND_INACTIVE`, a state that exists only for this question.
const BOUND_INACTIVE: u8 = 13;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x001 | 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// Sizes of `nlmsghdr`, `inet_diag_req_v2` and `inet_diag_msg`.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const MESSAGE: usize = 72;

/// The TCP sockets bound to this port that neither listen nor are connected.
pub(super) fn bound_sockets(port: u16) -> Vec<Row> {
    // A kernel without this answers with an error or with nothing; either way we do not know, and the caller says so.
    [AF_INET, AF_INET6]
        .iter()
        .filter_map(|family| os::socket_diagnosis(&request(*family), is_last).ok())
        .flat_map(|answer| parse(&answer))
        .filter(|row| row.port == port)
        .collect()
}

fn request(family: u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend(u32::try_from(HEADER + REQUEST).unwrap_or_default().to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    // Sequence and port id: one question, one answer, the kernel fills in the rest.
    bytes.extend([0; 8]);
    bytes.extend([family, IPPROTO_TCP, 0, 0]);
    bytes.extend((1u32 << BOUND_INACTIVE).to_ne_bytes());
    // No filter by address or port.
    bytes.extend([0; 48]);
    bytes
}

/// Whether this block ends the answer.
fn is_last(block: &[u8]) -> bool {
    messages(block).any(|(kind, _)| matches!(kind, NLMSG_DONE | NLMSG_ERROR))
}

fn parse(answer: &[u8]) -> Vec<Row> {
    messages(answer)
        .filter(|(kind, _)| *kind == SOCK_DIAG_BY_FAMILY)
        .filter_map(|(_, body)| row(body))
        .collect()
}

/// The messages of an answer: type and body.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// `inet_diag_msg`: family, state, timer, retrans, then ports and addresses in network order.
fn row(body: &[u8]) -> Option<Row> {
    let body = body.get(..MESSAGE)?;
    let word = |at: usize| body[at..].first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes));
    let address = match body[0] {
        AF_INET => IpAddr::V4(Ipv4Addr::from(*body[8..].first_chunk::<4>()?)),
        AF_INET6 => IpAddr::V6(Ipv6Addr::from(*body[8..].first_chunk::<16>()?)),
        _ => return None,
    };
    Some(Row {
        address,
        port: u16::from_be_bytes(*body[4..].first_chunk::<2>()?),
        state: body[1],
        uid: word(64)?,
        inode: u64::from(word(68)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    fn body() -> Vec<u8> {
        let mut body = vec![0; MESSAGE];
        body[..2].copy_from_slice(&[AF_INET, 7]);
        body[4..6].copy_from_slice(&8000u16.to_be_bytes());
        body[8..12].copy_from_slice(&[127, 0, 0, 1]);
        body[64..68].copy_from_slice(&1000u32.to_ne_bytes());
        body[68..72].copy_from_slice(&4711u32.to_ne_bytes());
        body
    }

    #[test]
    fn an_answer_is_read_to_its_end() {
        let answer = [message(SOCK_DIAG_BY_FAMILY, &body()), message(NLMSG_DONE, &[0; 4])].concat();
        let expected =
            Row { address: Ipv4Addr::LOCALHOST.into(), port: 8000, state: 7, uid: 1000, inode: 4711 };
        assert_eq!(parse(&answer), [expected]);
        assert!(is_last(&answer));
    }

    #[test]
    fn a_cut_or_lying_answer_gives_nothing() {
        let whole = message(SOCK_DIAG_BY_FAMILY, &body());
        for cut in 0..whole.len() {
            assert!(parse(&whole[..cut]).is_empty(), "{cut}");
        }
        let mut lies = whole;
        lies[..4].copy_from_slice(&0u32.to_ne_bytes());
        assert!(parse(&lies).is_empty());
    }

    #[test]
    fn the_request_has_the_size_it_claims() {
        assert_eq!(request(AF_INET).len(), HEADER + REQUEST);
    }
}
