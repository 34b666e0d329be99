//! One POST, to anybody in the world. Everything else in this program talks to 127.0.0.1; so TLS lives here alone, with the
//! certificates of the system.

use super::send::Trouble;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// So much of an answer is read, and shown of it.
const ANSWER_BYTES: usize = 8 << 10;
const ANSWER_SHOWN: usize = 200;
/// The answer of a proxy has no more than this.
const PROXY_BYTES: usize = 8 << 10;

/// What is sent.
pub(super) struct Post<'a> {
    pub(super) url: &'a str,
    pub(super) kind: &'static str,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Sends it and returns what came back, in short. No message of an error shows more of the address than its host.
pub(super) async fn post(post: &Post<'_>) -> Result<String, Trouble> {
    let never = |what: &str| Trouble { what: what.to_owned(), again: false, asked: None };
    let uri: Uri = post.url.parse().map_err(|_| never("the address is none"))?;
    let host = uri.host().ok_or_else(|| never("the address has no host"))?;
    let secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(never("the address begins neither with https:// nor with http://")),
    };
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let proxy = proxy(secure, host);
    let stream = connect(host, port, secure, proxy.as_deref()).await?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or(host, |at| at.as_str().rsplit('@').next().unwrap_or_default());
    // A proxy is told the whole address, unless it only lets the connection through.
    let target = match (&proxy, secure) {
        (Some(_), false) => format!("http://{authority}{path}"),
        _ => path.to_owned(),
    };
    let mut request = Request::post(target)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, post.kind)
        .header(header::USER_AGENT, concat!("varcas-guard/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::from(post.body.clone())))
        .map_err(|_| never("the address cannot be asked"))?;
    for (name, value) in &post.headers {
        match (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            (Ok(name), Ok(value)) => drop(request.headers_mut().insert(name, value)),
            _ => return Err(never(&format!("the header {name} cannot be sent"))),
        }
    }
    let broken = |error: hyper::Error| Trouble::again(format!("{host}: {error}"));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // Ends with the answer; this function is given up as a whole when it takes too long.
    let answer = async move {
        let answer = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = answer.into_parts();
        let body =
            Limited::new(body, ANSWER_BYTES).collect().await.map(|all| all.to_bytes()).unwrap_or_default();
        Ok::<_, Trouble>((head, body))
    };
    tokio::pin!(answer);
    let (head, body) = tokio::select! {
        biased;
        answer = &mut answer => answer?,
        // The other side may close right behind its answer, which is then still to be read.
        _ = connection => answer.await?,
    };
    let text: String =
        String::from_utf8_lossy(&body).chars().filter(|c| !c.is_control()).take(ANSWER_SHOWN).collect();
    let said = if text.trim().is_empty() { String::new() } else { format!(": {}", text.trim()) };
    let what = format!("{host} answered {}{said}", head.status);
    match head.status {
        status if status.is_success() => Ok(what),
        status if status.is_redirection() => {
            Err(never(&format!("{what}, which is an address elsewhere: a message is not sent on")))
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            Err(Trouble { what, again: true, asked: retry_after(&head.headers) })
        }
        status if status.is_client_error() => Err(never(&what)),
        _ => Err(Trouble { what, again: true, asked: retry_after(&head.headers) }),
    }
}

fn retry_after(headers: &header::HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The proxy for this host, as the environment names it: `host:port`.
fn proxy(secure: bool, host: &str) -> Option<String> {
    let get = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    // HTTP_PROXY in capitals can come from a request to a CGI program, and is not believed anywhere.
    let named = if secure { get("https_proxy").or_else(|| get("HTTPS_PROXY")) } else { get("http_proxy") };
    let named = named.or_else(|| get("all_proxy")).or_else(|| get("ALL_PROXY"))?;
    let except = get("no_proxy").or_else(|| get("NO_PROXY")).unwrap_or_default();
    (!is_excepted(&except, host)).then(|| address_of(&named))
}

fn is_excepted(except: &str, host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    let local = host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    local
        || except.split(',').map(|name| name.trim().trim_start_matches("*.").trim_start_matches('.')).any(
            |name| {
                let below =
                    || host.to_ascii_lowercase().ends_with(&format!(".{}", name.to_ascii_lowercase()));
                !name.is_empty() && (name == "*" || name.eq_ignore_ascii_case(host) || below())
            },
        )
}

fn address_of(proxy: &str) -> String {
    let rest = proxy.split_once("://").map_or(proxy, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let authority = authority.rsplit('@').next().unwrap_or_default();
    if authority.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok()) {
        authority.to_owned()
    } else {
        format!("{authority}:3128")
    }
}

async fn connect(
    host: &str,
    port: u16,
    secure: bool,
    proxy: Option<&str>,
) -> Result<Box<dyn Stream>, Trouble> {
    let name = host.trim_matches(['[', ']']);
    let mut tcp = match proxy {
        Some(proxy) => TcpStream::connect(proxy)
            .await
            .map_err(|error| Trouble::again(format!("cannot connect to the proxy {proxy}: {error}")))?,
        None => TcpStream::connect((name, port))
            .await
            .map_err(|error| Trouble::again(format!("cannot connect to {host}:{port}: {error}")))?,
    };
    if !secure {
        return Ok(Box::new(tcp));
    }
    if let Some(proxy) = proxy {
        tunnel(&mut tcp, host, port).await.map_err(|error| {
            Trouble::again(format!("the proxy {proxy} does not let through to {host}: {error}"))
        })?;
    }
    let bad = |error: String| Trouble::again(format!("no secure connection to {host}: {error}"));
    let domain =
        rustls::pki_types::ServerName::try_from(name.to_owned()).map_err(|error| bad(error.to_string()))?;
    let connector = tokio_rustls::TlsConnector::from(trust().map_err(bad)?);
    let tls = connector.connect(domain, tcp).await.map_err(|error| bad(error.to_string()))?;
    Ok(Box::new(tls))
}

async fn tunnel(tcp: &mut TcpStream, host: &str, port: u16) -> std::io::Result<()> {
    let text = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n");
    tcp.write_all(text.as_bytes()).await?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the answer belongs to the other side.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() > PROXY_BYTES {
            return Err(std::io::Error::other("its answer has no end"));
        }
        answer.push(tcp.read_u8().await?);
    }
    let first = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
    if first.split(' ').nth(1).is_some_and(|code| code.starts_with('2')) {
        Ok(())
    } else {
        Err(std::io::Error::other(first))
    }
}

/// Whom this machine trusts.
fn trust() -> Result<Arc<rustls::ClientConfig>, String> {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(
            "this machine has no certificates of authorities: install ca-certificates, or set SSL_CERT_FILE"
                .to_owned(),
        );
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_itself_is_never_asked_through_a_proxy() {
        for (except, host, is) in [
            ("", "localhost", true),
            ("", "127.0.0.1", true),
            ("", "[::1]", true),
            ("", "example.org", false),
            ("example.org", "hooks.example.org", true),
            (".example.org, x", "hooks.EXAMPLE.org", true),
            ("example.org", "badexample.org", false),
            ("*", "example.org", true),
        ] {
            assert_eq!(is_excepted(except, host), is, "{except}: {host}");
        }
    }

    #[test]
    fn a_proxy_is_named_with_or_without_scheme_and_port() {
        for (given, meant) in [
            ("http://proxy.lan:8080/", "proxy.lan:8080"),
            ("proxy.lan:8080", "proxy.lan:8080"),
            ("http://me:secret@proxy.lan", "proxy.lan:3128"),
        ] {
            assert_eq!(address_of(given), meant);
        }
    }
}
