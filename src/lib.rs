//! varcas-guard brings one expensive, fragile thing to its end with nobody watching: a vLLM server with the PyTorch
//! profiler inside it and a benchmark against it.
//!
//! # Theory of operation
//!
//! A pure core with thin edges. The core ([`supervisor::machine`]) decides; the edges touch the kernel, the GPU, the
//! network and the disk. What an edge sees or does becomes an [`event::Event`]; the dispatcher gives each fact to the
//! machine, performs the actions it answers with, and writes everything to the journal. Report, replay and tests are
//! made from the journal.
//!
//! The processes belong to the *keeper* ([`supervisor::keeper`]), a small process of its own that kills and reaps
//! everything even when the guard is killed.
//!
//! # Map and dependency rule
//!
//! `main -> cli -> supervisor, recovery, workload, health, console`; these five use [`event`], [`time`], [`config`],
//! [`error`], [`redact`], [`cut_log`], [`gz`] (salvage and windows both compress, and neither may use the other) and [`view`] (whatever
//! shows a run folds its events in the same way). `recovery`, `health`, `workload` and `console` never use `supervisor` or
//! each other: what one needs of another arrives as an event.
//! `tests/architecture.rs` holds this.
//!
//! The machine also asks two pure rooms for their judgement: [`health::assess`] whether the server lives, and
//! [`recovery::verdict`] and [`recovery::policy`] what a failed attempt failed of and what follows. They are called in
//! its step and not behind an action, so that verdict, changed settings and decision are conclusions: a replay reaches
//! them again from the facts alone.

/// The subcommands.
pub mod cli;
/// guard.toml and flags become a plan.
pub mod config;
/// What faces a person while a run goes on.
pub mod console;
/// A log of which a part was taken out.
pub mod cut_log;
/// Errors and exit codes.
pub mod error;
/// The vocabulary.
pub mod event;
/// Gzip in blocks.
pub mod gz;
/// The senses: processes, metrics, GPU, files.
pub mod health;
/// Verdict, second tries, salvage, report.
pub mod recovery;
/// Keeps secrets out of what is written.
pub mod redact;
/// State machine, dispatcher, keeper, journal.
pub mod supervisor;
/// Clocks.
pub mod time;
/// Events folded into what people are shown.
pub mod view;
/// What is run: server, profiler, load, simulator.
pub mod workload;
