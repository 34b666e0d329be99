//! The parts of the load that have sockets, against a server on loopback that answers well and badly.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "load_net/bench.rs"]
mod bench;
#[path = "load_net/driver.rs"]
mod driver;
#[path = "load_net/ready.rs"]
mod ready;
#[path = "load_net/shapes.rs"]
mod shapes;
#[path = "load_net/support.rs"]
mod support;
