//! Errors for people, and the exit-code contract that schedulers rely on.

use std::fmt;
use std::process::ExitCode as ProcessExit;

/// The exit codes, each with one meaning (README, "Exit codes").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCode {
    /// The benchmark ran to its end and the traces asked for are on disk.
    Success,
    /// The command line or guard.toml is wrong.
    Usage,
    /// Preflight refused; nothing was started.
    Refused,
    /// A bug in varcas-guard.
    Bug,
    /// Every attempt failed; trying later may help.
    AttemptsFailed,
    /// Failed for a reason that no retry can cure: do not requeue.
    Hopeless,
    /// A drill saw something else than it should have, or something was left behind.
    Unexpected,
    /// The deadline for the whole run passed.
    DeadlinePassed,
    /// Stopped by SIGINT, after a clean stop and salvage.
    Interrupted,
    /// Stopped by SIGTERM, after a clean stop and salvage.
    Terminated,
}

impl ExitCode {
    /// The number a shell sees.
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Usage => 2,
            Self::Refused => 69,
            Self::Bug => 70,
            Self::AttemptsFailed => 75,
            Self::Hopeless => 93,
            Self::Unexpected => 94,
            Self::DeadlinePassed => 124,
            Self::Interrupted => 130,
            Self::Terminated => 143,
        }
    }
}

impl From<ExitCode> for ProcessExit {
    fn from(code: ExitCode) -> Self {
        Self::from(code.code())
    }
}

/// An error that ends a command: what was tried on what, what to do, and the exit code it maps to.
#[derive(Debug)]
pub struct Failure {
    /// The code.
    pub exit: ExitCode,
    /// Lowercase fragments, one per problem.
    pub problems: Vec<String>,
    /// What to do, if it is not in the problem itself.
    pub hint: Option<String>,
}

impl Failure {
    /// One problem.
    pub fn new(exit: ExitCode, problem: impl Into<String>) -> Self {
        Self { exit, problems: vec![problem.into()], hint: None }
    }

    /// Adds advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "error: {problem}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// Puts "what was tried" before an error of the system.
pub trait Context<T> {
    /// `what` is a lowercase fragment: `write /x/y`.
    fn context(self, what: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(ExitCode::Bug, format!("cannot {what}: {error}")))
    }
}
