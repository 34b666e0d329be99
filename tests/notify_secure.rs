//! A webhook behind TLS, with a certificate of an authority of one's own, and behind a proxy. Everything is on 127.0.0.1; openssl
//! makes the certificates and Python serves them. Without either of the two it says so and passes.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod e2e_support;

use e2e_support::{Answer, FAST, Place};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

/// An authority, and a certificate of it for one name each.
fn certificates(folder: &Path) -> bool {
    let openssl = |args: &str| {
        Command::new("openssl").args(args.split(' ')).current_dir(folder).stderr(Stdio::null()).status()
    };
    let made = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ours -keyout ca.key -out ca.pem";
    if !openssl(made).is_ok_and(|status| status.success()) {
        return false;
    }
    for (name, of) in [("good", "DNS:hook.test,IP:127.0.0.1"), ("wrong", "DNS:other.test")] {
        let ask = format!("req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr");
        assert!(openssl(&ask).unwrap().success());
        std::fs::write(folder.join("names"), format!("subjectAltName={of}\n")).unwrap();
        let sign = "x509 -req -days 2 -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names";
        assert!(openssl(&format!("{sign} -in {name}.csr -out {name}.pem")).unwrap().success());
    }
    true
}

struct Servers {
    child: Child,
    lines: BufReader<ChildStdout>,
    ports: Value,
}

impl Servers {
    fn start(folder: &Path) -> Option<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/notify/secure.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().ok()?;
        let mut lines = BufReader::new(child.stdout.take()?);
        let mut first = String::new();
        lines.read_line(&mut first).ok()?;
        Some(Self { child, lines, ports: serde_json::from_str(&first).ok()? })
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // Its end is the end of its standard input.
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}

#[test]
fn a_webhook_behind_tls_is_trusted_as_the_machine_trusts_it_and_asked_through_the_proxy_of_the_environment() {
    let place = Place::new();
    let folder = place.path("tls");
    std::fs::create_dir(&folder).unwrap();
    let servers = if certificates(&folder) { Servers::start(&folder) } else { None };
    let Some(mut servers) = servers else {
        println!("skipped: openssl and python3 are needed");
        return;
    };
    let ca = folder.join("ca.pem").to_string_lossy().into_owned();
    let port = |name: &str| servers.ports[name].as_u64().unwrap();
    let (good, wrong, plain) = (port("good"), port("wrong"), port("plain"));
    let proxy = format!("http://127.0.0.1:{}", port("proxy"));
    let ask = |url: &str, env: &[(&str, &str)]| -> Answer {
        let config = place.config(FAST, &format!("[[notify]]\nname = \"hook\"\nurl = \"{url}\"\n"));
        let mut command = place.command(&["notify", "--test", "--config", &config.to_string_lossy()]);
        for name in ["SSL_CERT_FILE", "SSL_CERT_DIR", "http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        let output = command.envs(env.iter().copied()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Answer { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    };
    let refused = |answer: &Answer| answer.code == Some(75) && answer.out.contains("NOT delivered");

    // Whom the machine does not trust, or who has another's certificate, gets nothing.
    let direct = format!("https://127.0.0.1:{good}/hook");
    let answer = ask(&direct, &[]);
    assert!(refused(&answer) && answer.out.contains("no secure connection to 127.0.0.1"), "{answer:?}");
    let answer = ask(&format!("https://127.0.0.1:{wrong}/hook"), &[("SSL_CERT_FILE", &ca)]);
    assert!(refused(&answer) && answer.out.contains("not valid for name"), "{answer:?}");

    // An authority of one's own, also with a proxy in the environment: the machine itself is asked directly.
    for env in [
        vec![("SSL_CERT_FILE", ca.as_str())],
        vec![("SSL_CERT_FILE", ca.as_str()), ("https_proxy", proxy.as_str())],
    ] {
        let answer = ask(&direct, &env);
        assert_eq!(answer.code, Some(0), "{answer:?}");
        let seen = servers.next();
        assert_eq!(
            (&seen["seen"], &seen["by"], &seen["occasion"]),
            (&"message".into(), &"good".into(), &"test".into())
        );
    }
    assert_eq!(ask(&format!("http://127.0.0.1:{plain}/hook"), &[("http_proxy", &proxy)]).code, Some(0));
    assert_eq!(servers.next()["by"], "plain");

    // Through the proxy: a name that only the proxy knows, and the certificate is still that of the other side.
    for (name, seen) in [("hook.test", true), ("nobody.test", false)] {
        let env = [("SSL_CERT_FILE", ca.as_str()), ("HTTPS_PROXY", proxy.as_str())];
        let answer = ask(&format!("https://{name}/hook"), &env);
        assert_eq!(servers.next(), serde_json::json!({"seen": "connect", "to": format!("{name}:443")}));
        assert_eq!(answer.code == Some(0), seen, "{answer:?}");
        if seen {
            let message = servers.next();
            assert_eq!((&message["host"], &message["path"]), (&"hook.test".into(), &"/hook".into()));
        } else {
            assert!(refused(&answer) && answer.out.contains("not valid for name"), "{answer:?}");
        }
    }
    assert_eq!(ask("http://hook.test/hook", &[("http_proxy", &proxy)]).code, Some(0));
    let forwarded = serde_json::json!({"seen": "forward", "to": "http://hook.test/hook", "occasion": "test"});
    assert_eq!(servers.next(), forwarded);

    // A proxy that is not there is a trouble that is told, and tried again later.
    let dead = format!("http://127.0.0.1:{}", e2e_support::free_port());
    let answer = ask("https://hook.test/hook", &[("SSL_CERT_FILE", &ca), ("https_proxy", &dead)]);
    assert!(refused(&answer) && answer.out.contains("cannot connect to the proxy"), "{answer:?}");
}
