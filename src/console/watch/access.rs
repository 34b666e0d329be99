//! Who may ask: the rules about addresses, names and the token. Pure.
//!
//! A page of somebody else, open in a browser on this machine, can let a name of its own point to 127.0.0.1 and so read
//! what listens there. It cannot choose the `Host` header, though: only names that can only mean this server are served.

// The types alone: what is in `core` cannot touch a network.
use core::net::{IpAddr, SocketAddr};

/// A token shorter than this could be guessed.
pub const SHORTEST_TOKEN: usize = 16;

/// The cookie by which a browser that has shown the token once is known.
pub(super) const COOKIE: &str = "varcas_guard";

/// Who may ask.
#[derive(Clone)]
pub struct Access {
    loopback: bool,
    hosts: Vec<String>,
    token: Option<String>,
    /// What the cookie must hold; drawn anew by each guard.
    session: String,
}

/// Why somebody may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No `Host`, or one that may mean another server.
    Host,
    /// No token, or a wrong one.
    Token,
}

impl Access {
    /// The rules of a server that listens on `at`. Beyond the machine itself a token is a must.
    pub fn new(
        at: SocketAddr,
        hosts: &[String],
        token: Option<String>,
        session: String,
    ) -> Result<Self, String> {
        let loopback = at.ip().is_loopback();
        match &token {
            None if !loopback => {
                return Err(format!(
                    "{at} can be reached from other machines, so a token is needed: put one into {}, or name a file in \
                     `listen.token-file`",
                    crate::config::TOKEN_ENV
                ));
            }
            Some(token) if token.len() < SHORTEST_TOKEN => {
                return Err(format!("the token has fewer than {SHORTEST_TOKEN} characters"));
            }
            Some(token) if !token.bytes().all(|b| b.is_ascii_graphic()) => {
                return Err("the token has characters that cannot stand in a header".to_owned());
            }
            _ => {}
        }
        let hosts = hosts.iter().map(|host| host.trim().to_ascii_lowercase()).collect();
        Ok(Self { loopback, hosts, token, session })
    }

    /// Whether `Host` can only mean this server.
    pub fn host(&self, host: Option<&str>) -> Result<(), Refusal> {
        let name = host.and_then(without_port).ok_or(Refusal::Host)?.to_ascii_lowercase();
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        let known = match address {
            // A number cannot be made to point elsewhere.
            Some(address) => address.is_loopback() || !self.loopback,
            None => name == "localhost" || self.hosts.contains(&name),
        };
        if known { Ok(()) } else { Err(Refusal::Host) }
    }

    /// Whether one of these is the token: `Authorization`, the cookie.
    pub fn token(&self, authorization: Option<&str>, cookies: &[&str]) -> Result<(), Refusal> {
        let Some(token) = &self.token else { return Ok(()) };
        let bearer = authorization.and_then(|text| {
            let (scheme, rest) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim())
        });
        let mut right = bearer.is_some_and(|given| same(given, token));
        for pair in cookies.iter().flat_map(|line| line.split(';')) {
            if let Some((COOKIE, value)) = pair.trim().split_once('=') {
                right |= same(value, &self.session);
            }
        }
        if right { Ok(()) } else { Err(Refusal::Token) }
    }

    /// The cookie for a browser that was given the token in an address.
    pub fn admit(&self, given: &str) -> Result<String, Refusal> {
        match &self.token {
            Some(token) if same(given, token) => {
                Ok(format!("{COOKIE}={}; HttpOnly; SameSite=Strict; Path=/", self.session))
            }
            _ => Err(Refusal::Token),
        }
    }
}

/// `[::1]:9464` is `[::1]`; none for what is no host.
fn without_port(host: &str) -> Option<&str> {
    let name = if host.starts_with('[') {
        let end = host.find(']')? + 1;
        let rest = &host[end..];
        (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port)).then(|| &host[..end])?
    } else {
        match host.split_once(':') {
            Some((name, port)) => is_port(port).then_some(name)?,
            None => host,
        }
    };
    (!name.is_empty()).then_some(name)
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok()
}

/// Whether two texts are the same, in a time that does not tell where they differ.
fn same(given: &str, wanted: &str) -> bool {
    let (given, wanted) = (given.as_bytes(), wanted.as_bytes());
    let mut differ = given.len() ^ wanted.len();
    for (index, byte) in wanted.iter().enumerate() {
        // Without the box the compiler may end the loop at the first difference.
        differ |= usize::from(std::hint::black_box(byte ^ given.get(index).copied().unwrap_or(0)));
    }
    std::hint::black_box(differ) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn access(at: &str, hosts: &[&str], token: Option<&str>) -> Result<Access, String> {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        Access::new(at.parse().unwrap(), &hosts, token.map(str::to_owned), "session".to_owned())
    }

    #[test]
    fn beyond_the_machine_nothing_is_served_without_a_token() {
        for at in ["0.0.0.0:1", "192.168.1.2:1", "[::]:1", "[fe80::1]:1"] {
            assert!(access(at, &[], None).is_err(), "{at}");
            assert!(access(at, &[], Some(TOKEN)).is_ok(), "{at}");
        }
        for at in ["127.0.0.1:1", "127.0.0.9:1", "[::1]:1"] {
            assert!(access(at, &[], None).is_ok(), "{at}");
        }
        for weak in ["", "short", "with a space in it", "0123456789abcde\n"] {
            assert!(access("127.0.0.1:1", &[], Some(weak)).is_err(), "{weak}");
        }
    }

    #[test]
    fn a_name_that_may_point_anywhere_is_not_served() {
        let local = access("127.0.0.1:9464", &["box.lan"], None).unwrap();
        for host in [
            "127.0.0.1:9464",
            "127.0.0.1",
            "localhost:7000",
            "LOCALHOST",
            "[::1]:9464",
            "[::1]",
            "box.lan:80",
        ] {
            assert_eq!(local.host(Some(host)), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            ":80",
            "localhost:x",
            "192.168.1.2",
            "[::1",
            "[::1]x",
            "localhost:80:80",
        ] {
            assert_eq!(local.host(Some(host)), Err(Refusal::Host), "{host}");
        }
        assert_eq!(local.host(None), Err(Refusal::Host));
        let wide = access("0.0.0.0:9464", &[], Some(TOKEN)).unwrap();
        assert_eq!(wide.host(Some("192.168.1.2:9464")), Ok(()));
        assert_eq!(wide.host(Some("evil.example")), Err(Refusal::Host));
    }

    #[test]
    fn only_the_token_or_the_cookie_made_from_it_opens() {
        let access = access("0.0.0.0:1", &[], Some(TOKEN)).unwrap();
        assert_eq!(access.token(Some("Bearer 0123456789abcdef"), &[]), Ok(()));
        assert_eq!(access.token(Some("bearer  0123456789abcdef "), &[]), Ok(()));
        let cookie = access.admit(TOKEN).unwrap();
        let pair = cookie.split(';').next().unwrap();
        assert!(!cookie.contains(TOKEN));
        assert_eq!(access.token(None, &["other=1", &format!("a=b; {pair}")]), Ok(()));
        for wrong in [
            "Bearer 0123456789abcdeg",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
            "Bearer",
            "",
        ] {
            assert_eq!(access.token(Some(wrong), &[]), Err(Refusal::Token), "{wrong}");
        }
        assert_eq!(access.token(None, &[&format!("{COOKIE}={TOKEN}")]), Err(Refusal::Token));
        assert!(access.admit("nonsense").is_err());
    }
}
