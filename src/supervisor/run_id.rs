//! The name of a run as every process of it carries it in its environment: `YYYYMMDD_HHMMSS-<guard pid>-<start ticks>`.
//! Whoever finds a marked process can tell from the mark alone whether its guard still lives.

use crate::event::ProcId;
use crate::supervisor::proc;
use std::fmt;
use std::str::FromStr;

/// The environment variable that marks every process of a run.
pub const MARK: &str = "VARCAS_RUN_ID";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId {
    text: String,
    guard: ProcId,
}

impl RunId {
    /// The id of a run that this process guards.
    pub fn new(now: &jiff::ZonedDateTime) -> Self {
        Self::of(now, proc::own_id())
    }

    /// The id of a run that `guard` guards.
    pub fn of(now: &jiff::ZonedDateTime, guard: ProcId) -> Self {
        Self { text: format!("{}-{}-{}", now.strftime("%Y%m%d_%H%M%S"), guard.pid, guard.start), guard }
    }

    /// As it stands in the environment.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The process that guards, or guarded, this run.
    pub fn guard(&self) -> ProcId {
        self.guard
    }

    /// Whether that very process still lives.
    pub fn guard_alive(&self) -> bool {
        proc::is_alive(self.guard)
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for RunId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("`{text}` is not a run id (YYYYMMDD_HHMMSS-pid-ticks)");
        let mut parts = text.split('-');
        let (Some(when), Some(pid), Some(start), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let date_ok = when.len() == 15
            && when
                .split_once('_')
                .is_some_and(|(date, time)| date.len() == 8 && digits(date) && digits(time));
        if !date_ok || !digits(pid) || !digits(start) {
            return Err(wrong());
        }
        let guard =
            ProcId { pid: pid.parse().map_err(|_| wrong())?, start: start.parse().map_err(|_| wrong())? };
        Ok(Self { text: text.to_owned(), guard })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_id_survives_the_environment() {
        let now = jiff::Timestamp::UNIX_EPOCH.to_zoned_datetime(jiff::tz::TimeZone::UTC);
        let id = RunId::of(&now, ProcId { pid: 12, start: 345 });
        assert_eq!(id.as_str(), "19700101_000000-12-345");
        assert_eq!(id.as_str().parse::<RunId>(), Ok(id.clone()));
        assert!(!id.guard_alive());
        assert!(RunId::new(&now).guard_alive());
    }

    #[test]
    fn what_is_not_a_run_id_is_refused() {
        for text in [
            "",
            "x",
            "19700101_000000-12",
            "19700101_000000-12-3-4",
            "19700101-000000-1-2",
            "19700101_000000--3-4",
            "19700101_000000-+1-2",
            "19700101_000000-99999999999-2",
        ] {
            assert!(text.parse::<RunId>().is_err(), "{text}");
        }
    }
}
