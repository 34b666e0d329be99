//! The simulated vLLM from outside, through the binary and over a real port. What "like the real one" means is held against
//! recordings of vLLM 0.15.1 in `tests/fixtures/vllm-0.15.1`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, like the tests")]

#[path = "sim_server/api.rs"]
mod api;
#[path = "sim_server/death.rs"]
mod death;
#[path = "sim_server/support.rs"]
mod support;
#[path = "sim_server/windows.rs"]
mod windows;
