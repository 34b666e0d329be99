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
    /// Each of them.
    pub const ALL: [Self; 10] = [
        Self::Success,
        Self::Usage,
        Self::Refused,
        Self::Bug,
        Self::AttemptsFailed,
        Self::Hopeless,
        Self::Unexpected,
        Self::DeadlinePassed,
        Self::Interrupted,
        Self::Terminated,
    ];

    /// What it says, for people; the README has the same words.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Success => "the benchmark ran to its end and the traces asked for are on disk",
            Self::Usage => "the command line or guard.toml is wrong",
            Self::Refused => {
                "preflight refused: the port, GPU, disk or vLLM is not usable; nothing was started"
            }
            Self::Bug => "a bug in varcas-guard",
            Self::AttemptsFailed => "every attempt failed; trying later may help",
            Self::Hopeless => "failed for a reason that no retry can cure: do not requeue",
            Self::Unexpected => "`drill`: a run was not as expected, or something was left behind",
            Self::DeadlinePassed => "the deadline for the whole run passed",
            Self::Interrupted => "stopped by SIGINT, after a clean stop and salvage",
            Self::Terminated => "stopped by SIGTERM, after a clean stop and salvage",
        }
    }

    /// What to do then.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Success => {
                "read report.html in the run folder; settings that were changed on the way stand there in bold"
            }
            Self::Usage => {
                "the message names the flag, or the line of guard.toml; varcas-guard explain KEY says what a key takes"
            }
            Self::Refused => {
                "do what the message says, then run again; varcas-guard check tries it without a start"
            }
            Self::Bug => "report it with the run folder",
            Self::AttemptsFailed => {
                "the report's verdict names the cause; a scheduler may start the job again"
            }
            Self::Hopeless => {
                "the report's verdict says what to change; a scheduler must not start the job again"
            }
            Self::Unexpected => "the drill names each such run and the folder that it kept of it",
            Self::DeadlinePassed => {
                "what was measured until then is in the report; raise --deadline or lower --duration"
            }
            Self::Interrupted | Self::Terminated => "nothing: what was measured until then is in the report",
        }
    }

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
