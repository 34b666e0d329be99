//! Every setting once: its key in guard.toml, its flag, its type, and where it goes in the [`Plan`]. The file reader, the
//! flags, the error messages and the reference in the documentation all come from this table.

pub use super::values::{parse_span, suggestion};
use super::{Endpoint, OnHang, OwnWorkload, Plan, Process, ProfilePlan, ServerKind, disk};
use std::path::PathBuf;
use std::time::Duration;

/// How a value is read and where it goes.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Any text.
    Text(fn(&mut Plan, String)),
    /// One of these words.
    Choice(&'static [&'static str], fn(&mut Plan, &str)),
    /// A whole number within these bounds.
    Whole(u64, u64, fn(&mut Plan, u64)),
    /// A number within these bounds.
    Real(f64, f64, fn(&mut Plan, f64)),
    /// `90s`, `10m`, `1h 30m`; at least this long.
    Span(Duration, fn(&mut Plan, Duration)),
    /// `5%` or `0.05`, within these bounds.
    Share(f64, f64, fn(&mut Plan, f64)),
    /// `500MB`, `20GB`; at least so many bytes.
    Size(u64, fn(&mut Plan, u64)),
    /// A list of points in time: `10s,60s`.
    Spans(fn(&mut Plan, Vec<Duration>)),
    /// True or false.
    Flag(fn(&mut Plan, bool)),
    /// A list of tables, read elsewhere.
    Tables(fn(&mut Plan, Vec<OwnWorkload>)),
    /// A list of texts.
    Words(fn(&mut Plan, Vec<String>)),
    /// A table of texts.
    Pairs(fn(&mut Plan, String, String)),
}

/// One setting.
#[derive(Clone, Copy)]
pub struct Setting {
    /// Dotted key in guard.toml.
    pub key: &'static str,
    /// What users may also set on the command line.
    pub flag: Option<&'static str>,
    /// Type and destination.
    pub kind: Kind,
    /// One line for the reference.
    pub help: &'static str,
}

const fn setting(key: &'static str, flag: Option<&'static str>, kind: Kind, help: &'static str) -> Setting {
    Setting { key, flag, kind, help }
}

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// The table.
pub const SETTINGS: &[Setting] = &[
    setting("output", Some("OUTPUT_DIR"), Kind::Text(|p, v| p.output = PathBuf::from(v)), "the run folder"),
    setting(
        "retries",
        Some("--retries"),
        Kind::Whole(0, 1000, |p, v| p.retries = u32::try_from(v).unwrap_or(u32::MAX)),
        "attempts after the first",
    ),
    setting(
        "notify",
        Some("--notify"),
        Kind::Tables(|p, v| p.notify_tables = v),
        "[[notify]] tables: who is told of the run",
    ),
    setting(
        "server.kind",
        Some("--server"),
        Kind::Choice(&["vllm", "sim", "command"], |p, v| {
            p.server.kind = match v {
                "sim" => ServerKind::Sim,
                "command" => ServerKind::Command,
                _ => ServerKind::Vllm,
            }
        }),
        "what is started: vllm, sim, or command (its argv stands after --)",
    ),
    setting(
        "server.python",
        Some("--python"),
        Kind::Text(|p, v| p.server.python = PathBuf::from(v)),
        "the interpreter that has vLLM",
    ),
    setting("server.model", Some("--model"), Kind::Text(|p, v| p.server.model = v), "a path or a hub name"),
    setting(
        "server.port",
        Some("--port"),
        Kind::Whole(1, 65535, |p, v| p.server.port = u16::try_from(v).unwrap_or(8000)),
        "the port on 127.0.0.1",
    ),
    setting(
        "server.port-auto",
        None,
        Kind::Flag(|p, v| p.server.port_auto = v),
        "take another port when this one is not free (--port auto)",
    ),
    setting(
        "server.raise-open-files",
        None,
        Kind::Flag(|p, v| p.server.raise_open_files = v),
        "start the server with the hard limit of open files",
    ),
    setting(
        "server.args",
        Some("-- ARGS"),
        Kind::Words(|p, v| p.server.extra = v),
        "further arguments for vLLM, or the command line of server.kind = \"command\"",
    ),
    setting(
        "server.env",
        None,
        Kind::Pairs(|p, k, v| {
            p.server.env.insert(k, v);
        }),
        "environment variables for the server",
    ),
    setting(
        "profile.mode",
        Some("--profile"),
        Kind::Choice(ProfilePlan::PRESETS, |p, v| p.profile.set_preset(v)),
        "light (2 % of the engine's time), standard (5 %), full (back to back), once (at profile.at), windows (standard), or off",
    ),
    setting(
        "profile.budget",
        Some("--profile-budget"),
        Kind::Share(0.001, 0.9, |p, v| p.profile.budget = v),
        "the share of its time that windows may take from the engine",
    ),
    setting(
        "profile.at",
        Some("--profile-at"),
        Kind::Spans(|p, v| p.profile.at = v),
        "for profile.mode = \"once\": when windows open, counted from the begin of the load",
    ),
    setting(
        "profile.window-steps",
        None,
        Kind::Whole(1, 100_000, |p, v| p.profile.window_steps = u32::try_from(v).unwrap_or(u32::MAX)),
        "a window closes after this many engine steps at the latest",
    ),
    setting(
        "profile.window-events",
        None,
        Kind::Whole(1_000, 5_000_000, |p, v| p.profile.window_events = u32::try_from(v).unwrap_or(u32::MAX)),
        "it is made no longer than about so many events fit into it",
    ),
    setting(
        "profile.window",
        None,
        Kind::Span(Duration::from_millis(10), |p, v| p.profile.window = v),
        "or after this long",
    ),
    setting(
        "profile.rest",
        None,
        Kind::Span(Duration::ZERO, |p, v| p.profile.rest = v),
        "the shortest rest between two windows",
    ),
    setting(
        "profile.idle",
        None,
        Kind::Span(Duration::from_millis(100), |p, v| p.profile.idle = v),
        "a window without a step for this long is closed",
    ),
    setting(
        "listen.address",
        Some("--listen"),
        Kind::Text(|p, v| p.listen.address = Some(v)),
        "where the run may be watched from: 127.0.0.1:9464, or a port alone",
    ),
    setting(
        "listen.hosts",
        None,
        Kind::Words(|p, v| p.listen.hosts = v),
        "further names under which it may be asked",
    ),
    setting(
        "listen.token-env",
        None,
        Kind::Text(|p, v| p.listen.token_env = Some(v)),
        "environment variable that holds the token: VARCAS_GUARD_LISTEN_TOKEN if not set",
    ),
    setting(
        "listen.token-file",
        None,
        Kind::Text(|p, v| p.listen.token_file = Some(PathBuf::from(v))),
        "file that holds the token",
    ),
    setting(
        "notifications.grace",
        None,
        Kind::Span(Duration::ZERO, |p, v| p.notify_grace = v),
        "how long the end of a run waits for messages that are not delivered yet: 10 s if not set",
    ),
    setting(
        "load.duration",
        Some("--duration"),
        Kind::Span(SECOND, |p, v| p.load.duration = v),
        "how long requests are sent",
    ),
    setting("load.rate", None, Kind::Real(0.001, 1e6, |p, v| p.load.rate = v), "mean arrivals per second"),
    setting(
        "load.seed",
        None,
        Kind::Whole(0, u64::MAX, |p, v| p.load.seed = v),
        "seed of schedule, mix, lengths and words",
    ),
    setting(
        "load.drain",
        None,
        Kind::Span(Duration::ZERO, |p, v| p.load.drain = v),
        "how long open requests may take after the last send",
    ),
    setting(
        "load.request-timeout",
        None,
        Kind::Span(SECOND, |p, v| p.load.request_timeout = v),
        "the longest a request may take",
    ),
    setting(
        "load.max-failure-share",
        None,
        Kind::Real(0.0, 1.0, |p, v| p.load.max_failure_share = v),
        "a larger share of failed requests fails the attempt",
    ),
    setting(
        "load.warmup-requests",
        None,
        Kind::Whole(1, 1000, |p, v| p.load.warmup_requests = u32::try_from(v).unwrap_or(u32::MAX)),
        "requests before the measurement",
    ),
    setting(
        "load.mix",
        None,
        Kind::Text(|p, v| p.load.mix = v),
        "mixed, chat, rag, code, or a TOML file with [[workload]] tables",
    ),
    setting(
        "load.workload",
        None,
        Kind::Tables(|p, v| p.load.workloads = v),
        "[[load.workload]] tables: an own mix, instead of load.mix",
    ),
    setting(
        "load.arrivals",
        None,
        Kind::Choice(&Process::NAMES, |p, v| p.load.arrivals = Process::named(v)),
        "when requests are sent",
    ),
    setting(
        "load.burstiness",
        None,
        Kind::Real(0.001, 1e6, |p, v| p.load.burstiness = v),
        "gamma: below 1 is burstier than Poisson, above 1 more regular",
    ),
    setting(
        "load.branching",
        None,
        Kind::Real(0.0, 0.99, |p, v| p.load.branching = v),
        "hawkes: mean number of requests that one request sets off",
    ),
    setting(
        "load.decay",
        None,
        Kind::Real(0.001, 1e6, |p, v| p.load.decay = v),
        "hawkes: how fast the excitement fades, per second",
    ),
    setting(
        "load.amplitude",
        None,
        Kind::Real(0.0, 1.0, |p, v| p.load.amplitude = v),
        "cyclic: swing around the mean rate",
    ),
    setting("load.period", None, Kind::Span(SECOND, |p, v| p.load.period = v), "cyclic: one swing"),
    setting(
        "load.to-rate",
        None,
        Kind::Real(0.001, 1e6, |p, v| p.load.to_rate = v),
        "ramp: the rate at the end; load.rate is the one at the start",
    ),
    setting(
        "load.streams",
        None,
        Kind::Whole(1, 1_000_000, |p, v| p.load.streams = u32::try_from(v).unwrap_or(u32::MAX)),
        "closed: requests open at any time",
    ),
    setting(
        "load.trace",
        None,
        Kind::Text(|p, v| p.load.trace = Some(PathBuf::from(v))),
        "a trace or result file of the seed's harness, replayed up to load.duration",
    ),
    setting(
        "load.endpoint",
        None,
        Kind::Choice(&["completions", "chat"], |p, v| {
            p.load.endpoint = if v == "chat" { Endpoint::Chat } else { Endpoint::Completions };
        }),
        "completions or chat",
    ),
    setting(
        "load.max-concurrency",
        None,
        Kind::Whole(1, 1_000_000, |p, v| {
            p.load.max_concurrency = Some(u32::try_from(v).unwrap_or(u32::MAX));
        }),
        "no more requests than this are open at once; the wait of the others is counted",
    ),
    setting(
        "load.ignore-eos",
        None,
        Kind::Flag(|p, v| p.load.ignore_eos = v),
        "have the server write until max_tokens",
    ),
    setting(
        "load.temperature",
        None,
        Kind::Real(0.0, 100.0, |p, v| p.load.temperature = v),
        "sampling temperature; 0 is greedy",
    ),
    setting(
        "load.idle-timeout",
        None,
        Kind::Span(SECOND, |p, v| p.load.idle_timeout = Some(v)),
        "a request fails when nothing comes for this long",
    ),
    setting(
        "load.slo-ttft",
        None,
        Kind::Span(MILLISECOND, |p, v| p.load.slo_ttft = Some(v)),
        "a good request has its first token within this",
    ),
    setting(
        "load.slo-tpot",
        None,
        Kind::Span(MILLISECOND, |p, v| p.load.slo_tpot = Some(v)),
        "a good request takes no longer than this per token",
    ),
    setting(
        "load.slo-e2el",
        None,
        Kind::Span(MILLISECOND, |p, v| p.load.slo_e2el = Some(v)),
        "a good request is over within this",
    ),
    setting(
        "health.on-hang",
        Some("--on-hang"),
        Kind::Choice(&["kill", "observe"], |p, v| {
            p.health.on_hang = if v == "observe" { OnHang::Observe } else { OnHang::Kill };
        }),
        "what follows when patience is over: kill, or observe (record it and go on)",
    ),
    setting(
        "health.rules",
        Some("--rules"),
        Kind::Text(|p, v| p.health.rules = Some(PathBuf::from(v))),
        "a file with further rules for lines of the server's log",
    ),
    setting(
        "patience.suspect-after",
        None,
        Kind::Span(SECOND, |p, v| p.health.patience.suspect_after = v),
        "before this nothing is said",
    ),
    setting(
        "patience.stopped",
        None,
        Kind::Span(SECOND, |p, v| p.health.patience.stopped = v),
        "a process is stopped by a signal",
    ),
    setting(
        "patience.gpu-spin",
        None,
        Kind::Span(SECOND, |p, v| p.health.patience.gpu_spin = v),
        "a GPU is busy without touching its memory",
    ),
    setting(
        "patience.idle",
        None,
        Kind::Span(SECOND, |p, v| p.health.patience.idle = v),
        "neither CPU nor GPU does anything",
    ),
    setting(
        "patience.host-busy",
        None,
        Kind::Span(SECOND, |p, v| p.health.patience.host_busy = v),
        "the CPU works, but nothing comes of it",
    ),
    setting(
        "patience.compile",
        None,
        Kind::Span(SECOND, |p, v| p.health.patience.compile = v),
        "the same during the warm-up, whose first requests compile",
    ),
    setting(
        "patience.driver-dead",
        None,
        Kind::Span(SECOND, |p, v| p.health.patience.driver_dead = v),
        "the GPU driver does not answer",
    ),
    setting(
        "patience.client",
        None,
        Kind::Span(SECOND, |p, v| p.health.patience.client = v),
        "the server progresses, our streams do not; told, never acted upon",
    ),
    setting(
        "patience.undetermined",
        None,
        Kind::Span(SECOND, |p, v| p.health.patience.undetermined = v),
        "any other standstill, and the longest of all but a flush",
    ),
    setting(
        "patience.flush",
        None,
        Kind::Span(SECOND, |p, v| p.health.patience.flush = v),
        "a profiler that writes and grows in the middle of the benchmark",
    ),
    setting(
        "patience.flush-still",
        None,
        Kind::Span(SECOND, |p, v| p.health.patience.flush_still = v),
        "a flush that has not grown for this long counts as a standstill",
    ),
    setting(
        "patience.loading",
        None,
        Kind::Span(SECOND, |p, v| p.health.patience.loading = v),
        "nothing moves while the server loads",
    ),
    setting(
        "patience.adapt-max",
        None,
        Kind::Span(SECOND, |p, v| p.health.patience.adapt_max = v),
        "what the run has shown raises patience at most to this",
    ),
    setting(
        "patience.adapt-factor",
        None,
        Kind::Real(0.0, 1000.0, |p, v| p.health.patience.adapt_factor = v),
        "patience is at least so many times the 99th percentile of the run's own gaps",
    ),
    setting(
        "patience.kineto-factor",
        None,
        Kind::Real(0.0, 1.0, |p, v| p.health.patience.kineto_factor = v),
        "patience is multiplied by this after Kineto's message about threads",
    ),
    setting(
        "budgets.startup",
        Some("--startup-timeout"),
        Kind::Span(SECOND, |p, v| p.budgets.startup = v),
        "spawn to ready",
    ),
    setting(
        "budgets.warmup",
        None,
        Kind::Span(SECOND, |p, v| p.budgets.warmup = v),
        "all warm-up requests together",
    ),
    setting(
        "budgets.flush",
        None,
        Kind::Span(SECOND, |p, v| p.budgets.flush = v),
        "closing the profiler's windows at the end",
    ),
    setting("budgets.stop", None, Kind::Span(SECOND, |p, v| p.budgets.stop = v), "SIGTERM to SIGKILL"),
    setting(
        "budgets.drain",
        None,
        Kind::Span(SECOND, |p, v| p.budgets.drain = v),
        "SIGKILL until port, memory and names are back",
    ),
    setting(
        "budgets.run",
        Some("--deadline"),
        Kind::Span(SECOND, |p, v| p.budgets.run = Some(v)),
        "the whole run; without it there is no deadline",
    ),
    setting(
        "disk.max",
        Some("--max-disk"),
        Kind::Size(0, |p, v| disk::of(p).max = Some(v)),
        "bytes for the run folder, like 20GB: old windows give way, then the run is stopped",
    ),
    setting(
        "disk.min-free",
        None,
        Kind::Size(0, |p, v| disk::of(p).min_free = v),
        "with less free space the run is stopped in good order",
    ),
    setting(
        "disk.max-log",
        Some("--max-log"),
        Kind::Size(disk::LEAST_LOG, |p, v| disk::of(p).max_log = Some(v)),
        "bytes for the server's log: its beginning and its end stay, the middle is compressed or dropped",
    ),
    setting(
        "policy.mitigate",
        None,
        Kind::Flag(|p, v| p.policy.get_or_insert_default().mitigate = v),
        "change settings for the next attempt when the cause asks for it (--no-mitigation)",
    ),
    setting(
        "policy.same-failure",
        None,
        Kind::Whole(1, 1000, |p, v| {
            p.policy.get_or_insert_default().same_failure = u32::try_from(v).unwrap_or(1)
        }),
        "stop early after so many failures that are the same",
    ),
    setting(
        "backoff.initial",
        None,
        Kind::Span(Duration::ZERO, |p, v| p.backoff.initial = v),
        "the pause before the second attempt",
    ),
    setting("backoff.max", None, Kind::Span(Duration::ZERO, |p, v| p.backoff.max = v), "the longest pause"),
];

/// The setting with this key.
pub fn by_key(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// Reads one textual value into the plan.
pub fn set_text(plan: &mut Plan, setting: &Setting, text: &str) -> Result<(), String> {
    match setting.kind {
        Kind::Text(_) if text.is_empty() => return Err("is empty".to_owned()),
        Kind::Text(set) => set(plan, text.to_owned()),
        Kind::Choice(words, set) => {
            if !words.contains(&text) {
                return Err(format!(
                    "`{text}` is not one of {}{}",
                    words.join(", "),
                    suggestion(text, words)
                ));
            }
            set(plan, text);
        }
        Kind::Whole(min, max, set) => {
            let number: i128 = text.parse().map_err(|_| format!("`{text}` is not a whole number"))?;
            match u64::try_from(number) {
                Ok(number) if (min..=max).contains(&number) => set(plan, number),
                _ => return Err(format!("`{text}` is out of range: {min} to {max}")),
            }
        }
        Kind::Real(min, max, set) => {
            let number: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
            if !(min..=max).contains(&number) {
                return Err(format!("`{text}` is out of range: {min} to {max}"));
            }
            set(plan, number);
        }
        Kind::Span(min, set) => {
            let span = parse_span(text)?;
            if span < min {
                return Err(format!("`{text}` is shorter than {}", crate::time::human(min)));
            }
            set(plan, span);
        }
        Kind::Share(min, max, set) => {
            let given = text.trim();
            let number = match given.strip_suffix('%') {
                Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
                None => given.parse(),
            };
            let share =
                number.map_err(|_| format!("`{text}` is not a share: write one like `5%` or `0.05`"))?;
            if !(min..=max).contains(&share) {
                let (min, max) = (super::percent(min), super::percent(max));
                return Err(format!("`{text}` is out of range: {min}% to {max}%"));
            }
            set(plan, share);
        }
        Kind::Spans(set) => {
            let spans: Result<Vec<Duration>, String> = text.split(',').map(parse_span).collect();
            let mut spans = spans?;
            spans.sort_unstable();
            set(plan, spans);
        }
        Kind::Size(min, set) => set(plan, disk::parse_size_from(min, text)?),
        Kind::Flag(set) => match text {
            "true" => set(plan, true),
            "false" => set(plan, false),
            _ => return Err(format!("`{text}` is neither true nor false")),
        },
        Kind::Words(_) | Kind::Pairs(_) | Kind::Tables(_) => {
            return Err("cannot be given as one text".to_owned());
        }
    }
    Ok(())
}
