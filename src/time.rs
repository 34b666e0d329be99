//! Time as a value: one stamp carries the monotonic and the wall clock, so that a laptop that slept or a corrected
//! clock can be told apart. This file alone may read a clock.

use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// A moment: `mono` since the run began (never goes back), `wall` for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Monotonic time since the run began, in seconds in the journal.
    #[serde(rename = "t", with = "secs")]
    pub mono: Duration,
    /// Wall clock, RFC 3339 in the journal.
    pub wall: jiff::Timestamp,
}

/// Where stamps come from.
pub trait Clock: Send + Sync {
    /// The current moment.
    fn now(&self) -> Stamp;
}

/// The machine's clocks, counted from the creation of this value.
#[derive(Debug, Clone)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock whose monotonic part starts at zero now.
    #[expect(clippy::disallowed_methods, reason = "this is the file that owns the clock")]
    #[expect(
        clippy::new_without_default,
        reason = "a default clock would hide that creating one reads the time"
    )]
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }

    /// A clock that seems to have been created so long before; for tests of what takes long.
    #[expect(clippy::disallowed_methods, reason = "this is the file that owns the clock")]
    pub fn earlier(by: Duration) -> Self {
        let now = std::time::Instant::now();
        Self { origin: now.checked_sub(by).unwrap_or(now) }
    }

    /// The monotonic zero as tokio's timers understand it.
    pub fn deadline(&self, mono: Duration) -> Instant {
        self.origin + mono
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Stamp {
        // Whole microseconds: what the journal stores is exactly what the machine saw, or a replay would differ.
        let elapsed = u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX);
        Stamp { mono: Duration::from_micros(elapsed), wall: wall_now() }
    }
}

/// The wall clock alone, for file names and for processes that have no run clock (the keeper, the simulator).
pub fn wall_now() -> jiff::Timestamp {
    let now = jiff::Timestamp::now();
    match JUMPS.get() {
        None => now,
        Some((origin, jumps)) => {
            jumps.iter().filter(|jump| origin.elapsed() >= jump.after).fold(now, |now, jump| {
                // Beyond the year 9999 nothing is left to prove.
                now.checked_add(jump.by).unwrap_or(now)
            })
        }
    }
}

/// A jump of the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jump {
    /// So long after [`let_wall_jump`].
    pub after: Duration,
    /// Forward, or back.
    pub by: jiff::SignedDuration,
}

static JUMPS: OnceLock<(Instant, Vec<Jump>)> = OnceLock::new();

/// Makes the wall clock of this process jump, as a clock does that is set. Nobody but root can set the machine's, so a drill
/// asks for this in the guards it starts; nothing else does (`cli/drill/stage.rs`).
pub fn let_wall_jump(jumps: Vec<Jump>) {
    drop(JUMPS.set((instant_now(), jumps)));
}

/// A monotonic instant for code that measures or paces itself outside the pure rooms.
#[expect(clippy::disallowed_methods, reason = "this is the file that owns the clock")]
pub fn instant_now() -> Instant {
    Instant::now()
}

/// A clock that a test turns by hand.
#[derive(Debug, Clone)]
pub struct ManualClock {
    now: Arc<Mutex<Stamp>>,
}

impl ManualClock {
    /// Starts at monotonic zero and the Unix epoch.
    #[expect(clippy::new_without_default, reason = "symmetry with SystemClock")]
    pub fn new() -> Self {
        Self { now: Arc::new(Mutex::new(Stamp { mono: Duration::ZERO, wall: jiff::Timestamp::UNIX_EPOCH })) }
    }

    /// Turns both clocks forward.
    pub fn advance(&self, by: Duration) {
        let mut now = self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        now.mono += by;
        now.wall += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Stamp {
        *self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Durations as seconds with a fraction, the form that plots and scripts read without help.
pub mod secs {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    /// Rounds to a microsecond: finer is noise here and bloats the journal.
    pub fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64((value.as_secs_f64() * 1e6).round() / 1e6)
    }

    /// Refuses negative, infinite and NaN seconds.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// The same for an optional duration.
pub mod opt_secs {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    /// `null` when absent.
    pub fn serialize<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::secs::serialize(value, to),
            None => to.serialize_none(),
        }
    }

    /// `null` is none.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        match Option::<f64>::deserialize(from)? {
            Some(value) => Duration::try_from_secs_f64(value).map(Some).map_err(serde::de::Error::custom),
            None => Ok(None),
        }
    }
}

/// The same for a list.
pub mod secs_list {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    /// Rounds as [`super::secs`] does.
    pub fn serialize<S: Serializer>(values: &[Duration], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(values.iter().map(|value| (value.as_secs_f64() * 1e6).round() / 1e6))
    }

    /// Refuses what [`super::secs`] refuses.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Duration>, D::Error> {
        let values = Vec::<f64>::deserialize(from)?;
        values.into_iter().map(|s| Duration::try_from_secs_f64(s).map_err(serde::de::Error::custom)).collect()
    }
}

/// `850 ms`, `2.5 s`, `90 s`, `10 min`: a duration for a sentence.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 1.0 {
        format!("{} ms", duration.as_millis())
    } else if seconds < 10.0 && duration.subsec_millis() >= 50 {
        format!("{seconds:.1} s")
    } else if seconds < 120.0 {
        format!("{seconds:.0} s")
    } else if seconds < 7200.0 {
        format!("{:.0} min", seconds / 60.0)
    } else {
        format!("{:.1} h", seconds / 3600.0)
    }
}
