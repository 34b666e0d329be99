//! Where a run may be watched from: the part of the plan about `/metrics` and the live page.

// The types alone: what is in `core` cannot touch a network.
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where the token is looked for when nothing else is said.
pub const TOKEN_ENV: &str = "VARCAS_GUARD_LISTEN_TOKEN";

/// What `[listen]` says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListenPlan {
    /// `127.0.0.1:9464`, or a port alone, which is one of 127.0.0.1. Nobody listens without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Further names under which it may be asked, as a browser writes them into `Host`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Environment variable that holds the token; [`TOKEN_ENV`] when there is neither this nor a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_env: Option<String>,
    /// File that holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

impl ListenPlan {
    /// Whether nothing was said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The address to listen on; none when nobody is to.
    pub fn socket(&self) -> Result<Option<SocketAddr>, String> {
        let Some(text) = self.address.as_deref().map(str::trim) else { return Ok(None) };
        let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        if let Ok(port) = text.parse::<u16>() {
            return Ok(Some(local(port)));
        }
        if let Some(Ok(port)) = text.strip_prefix("localhost:").map(str::parse::<u16>) {
            return Ok(Some(local(port)));
        }
        // A name could mean another address tomorrow, so only numbers are taken.
        text.parse().map(Some).map_err(|_| {
            format!("`{text}` is no address with a port: write one like `127.0.0.1:9464`, or a port alone")
        })
    }

    /// What is wrong with it, in one sentence.
    pub fn check(&self, server_port: u16) -> Option<String> {
        let named = if self.token_env.is_some() && self.token_file.is_some() {
            Some("`listen.token-env` and `listen.token-file` are both given: leave one out".to_owned())
        } else {
            None
        };
        match self.socket() {
            Err(problem) => Some(format!("--listen: {problem}")),
            Ok(Some(at)) if at.port() == server_port && at.port() != 0 => Some(format!(
                "--listen: port {server_port} is the one of the server: give another one, like 9464"
            )),
            Ok(_) => named,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Result<Option<SocketAddr>, String> {
        ListenPlan { address: Some(text.to_owned()), ..ListenPlan::default() }.socket()
    }

    #[test]
    fn a_port_alone_is_loopback_and_names_are_refused() {
        for (text, meant) in [
            ("9464", "127.0.0.1:9464"),
            ("localhost:9464", "127.0.0.1:9464"),
            ("[::1]:9464", "[::1]:9464"),
            ("0.0.0.0:9464", "0.0.0.0:9464"),
        ] {
            assert_eq!(at(text), Ok(Some(meant.parse().unwrap())), "{text}");
        }
        for text in ["example.org:80", "127.0.0.1", "", "70000", "127.0.0.1:"] {
            assert!(at(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_servers_own_port_is_refused() {
        let plan = ListenPlan { address: Some("8000".to_owned()), ..ListenPlan::default() };
        assert!(plan.check(8000).is_some_and(|problem| problem.contains("8000")));
        assert_eq!(plan.check(8001), None);
    }
}
