//! The states of a port, with real sockets. Other programs run beside these tests, so every test takes a port that was
//! free a moment ago and keeps it to itself by holding it.

#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod keeper_support;

use keeper_support::*;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command};
use varcas_guard::supervisor::os;
use varcas_guard::supervisor::port::{PortState, foreign_listeners, listeners, probe};

/// A Python process with a socket as vLLM makes it, or otherwise; killed with the test.
struct Server {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Server {
    /// `script` has `s`, an IPv4 socket, and must call `done()` once the state is reached.
    async fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port_file = dir.path().join("port");
        let script = format!(
            "import socket\ns = socket.socket()\ndef done(s=s):\n    note({:?}, s.getsockname()[1])\n{script}\nforever()",
            port_file.display().to_string()
        );
        let child = Command::new(python()).args(["-c", &with_helpers(&script)]).spawn().unwrap();
        let port = text_in(&port_file).await.trim().parse().unwrap();
        Self { child, port, _dir: dir }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
async fn a_port_that_nobody_has_is_free() {
    let server = Server::new("s.bind(('127.0.0.1', 0)); s.listen(); done()").await;
    let port = server.port;
    assert_ne!(probe(port).unwrap(), PortState::Free);
    drop(server);
    assert_eq!(probe(port).unwrap(), PortState::Free);
    assert_eq!(listeners(port), []);
}

#[tokio::test]
async fn the_probe_leaves_nothing_behind() {
    let server = Server::new("s.bind(('127.0.0.1', 0)); s.listen(); done()").await;
    let port = server.port;
    drop(server);
    for _ in 0..3 {
        assert_eq!(probe(port).unwrap(), PortState::Free);
    }
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
}

#[tokio::test]
async fn a_listener_is_named_whatever_its_address() {
    for bind in [
        "s.bind(('127.0.0.1', 0))",
        "s.bind(('0.0.0.0', 0))",
        "s = socket.socket(socket.AF_INET6); s.setsockopt(41, 26, 0); s.bind(('::', 0))",
    ] {
        let server = Server::new(&format!("{bind}; s.listen(); done(s)")).await;
        let PortState::Held { listening } = probe(server.port).unwrap() else { panic!("{bind}") };
        let [holder] = &listening[..] else { panic!("{listening:?}") };
        let process = holder.process.as_ref().unwrap();
        assert_eq!((process.proc.pid, holder.uid), (server.pid(), os::own_uid()));
        assert!(process.command.contains("socket.socket()"));
        assert!(process.started.unwrap() <= varcas_guard::time::wall_now());
        let words = holder.to_string();
        assert!(words.starts_with(&format!("pid {} (", server.pid())), "{words}");
        assert!(words.contains(", started 20"), "{words}");
    }
}

#[tokio::test]
async fn a_server_that_is_still_loading_is_seen_and_not_disturbed() {
    // vLLM's options, and its order: bind, load the model for minutes, then listen.
    let mut server = Server::new(
        r#"
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
s.bind(("127.0.0.1", 0))
signal.signal(signal.SIGUSR1, lambda *_: (s.listen(), done()))
done()
"#,
    )
    .await;
    let PortState::BoundNotListening { holders } = probe(server.port).unwrap() else {
        panic!("{:?}", probe(server.port))
    };
    // Before Linux 6.8 the kernel does not say who.
    if kernel_at_least(6, 8) {
        assert_eq!(holders.len(), 1);
        assert_eq!(holders[0].process.as_ref().unwrap().proc.pid, server.pid());
    }
    // The probe was no obstacle to its listen().
    let id = varcas_guard::supervisor::proc::id(server.pid()).unwrap();
    os::signal(id, 10).unwrap();
    let port = server.port;
    wait_for("listen", || (!listeners(port).is_empty()).then_some(())).await;
    assert!(server.child.try_wait().unwrap().is_none());
}

#[tokio::test]
async fn remains_of_closed_connections_are_told_from_a_server() {
    // Whoever closes first keeps the TIME_WAIT: the server closes, then goes.
    let server = Server::new(
        r#"
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", 0)); s.listen(); done()
c, _ = s.accept()
c.close()
"#,
    )
    .await;
    let port = server.port;
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    drop(client);
    drop(server);
    wait_for("TIME_WAIT", || (probe(port).unwrap() == PortState::TimeWait { sockets: 1 }).then_some(()))
        .await;
    // A server that sets SO_REUSEADDR could use it at once, if the one before did too, as vLLM does.
    drop(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap());
}

#[tokio::test]
async fn a_connection_of_somebody_else_is_not_a_loading_server() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let port = client.local_addr().unwrap().port();
    let PortState::Connected { holders } = probe(port).unwrap() else { panic!("{:?}", probe(port)) };
    assert_eq!(holders[0].process.as_ref().unwrap().proc.pid, os::own_pid());
}

const SHARED: &str = "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)";

#[tokio::test]
async fn a_foreign_server_that_shares_the_port_is_found() {
    let ours = Server::new(&format!("{SHARED}; s.bind(('127.0.0.1', 0)); s.listen(); done()")).await;
    assert_eq!(foreign_listeners(ours.port, &[ours.pid()]), []);
    let theirs =
        Server::new(&format!("{SHARED}; s.bind(('127.0.0.1', {})); s.listen(); done()", ours.port)).await;
    assert_eq!(listeners(ours.port).len(), 2);
    let foreign = foreign_listeners(ours.port, &[ours.pid()]);
    assert_eq!(foreign.len(), 1);
    assert_eq!(foreign[0].process.as_ref().unwrap().proc.pid, theirs.pid());
    assert_eq!(foreign_listeners(ours.port, &[]).len(), 2);
}

#[tokio::test]
async fn workers_that_share_our_socket_are_not_foreign() {
    let ours = Server::new("s.bind(('127.0.0.1', 0)); s.listen(); child(forever); done()").await;
    let port = ours.port;
    wait_for("two holders", || (listeners(port).len() == 2).then_some(())).await;
    // Even if only one of them is known to be ours.
    assert_eq!(foreign_listeners(port, &[ours.pid()]), []);
    let kid = children_of(ours.pid())[0];
    let kid = varcas_guard::supervisor::proc::id(kid).unwrap();
    os::signal(kid, os::SIGKILL).unwrap();
}

#[test]
fn a_port_that_may_not_be_bound_is_an_error_and_not_free() {
    // Root may bind everything, so for root there is nothing to see here but that it is an answer at all.
    let answer = probe(1);
    if os::own_uid() == 0 {
        assert!(answer.is_ok());
    } else {
        assert!(answer.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied));
    }
}
