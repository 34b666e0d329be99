//! What is run: the server's command line, the profiler inside it, the load against it, and a simulator of it all.

pub mod load;
pub mod profiler;
pub mod server;
pub mod sim;
