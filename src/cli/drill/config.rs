//! The guard.toml of one scenario: what of the user's own stays, what the drill sets, and what the scenario sets.

use super::scenario::Scenario;
use std::path::Path;
use toml::{Table, Value};

/// Keys of the user's guard.toml that hold in a drill. The others say what is run, how long, and how long is waited: a drill
/// runs its own server for a few seconds, and its times are to that scale.
const KEPT: [&str; 4] = ["health", "policy", "server.env", "server.raise-open-files"];

/// Keys that only the drill itself sets.
const OURS: [&str; 5] = ["output", "server.kind", "server.port", "server.args", "server.env"];

/// Times to the scale of a drill.
const BASE: &str = r#"
retries = 2
[load]
duration = "1s"
rate = 20.0
warmup-requests = 2
drain = "30s"
request-timeout = "60s"
[budgets]
startup = "30s"
warmup = "30s"
flush = "20s"
stop = "5s"
drain = "30s"
[backoff]
initial = "10ms"
max = "20ms"
[profile]
rest = "200ms"
window-steps = 8
"#;

/// How long a standstill is borne unless the scenario says otherwise: long enough for a busy machine.
const PATIENCE: &str = "12s";

/// The first key that a scenario may not set.
pub(super) fn not_for_scenarios(guard: &Table) -> Option<&'static str> {
    OURS.into_iter().find(|key| get(guard, key).is_some())
}

fn get<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((section, rest)) => get(table.get(section)?.as_table()?, rest),
    }
}

fn put(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

fn merge(into: &mut Table, from: &Table) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(Value::Table(inner)), Value::Table(from)) => merge(inner, from),
            _ => {
                into.insert(key.clone(), value.clone());
            }
        }
    }
}

/// What of the user's guard.toml holds, and the names of what holds and of what does not.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Users {
    table: Table,
    /// Keys in force, the user's own.
    pub(super) kept: Vec<String>,
    /// Keys that the drill sets itself.
    pub(super) replaced: Vec<String>,
}

impl Users {
    /// From the text of a guard.toml that was found to be good.
    pub(super) fn read(text: &str) -> Self {
        let all: Table = toml::from_str(text).unwrap_or_default();
        let mut users = Self::default();
        for key in KEPT {
            if let Some(value) = get(&all, key) {
                put(&mut users.table, key, value.clone());
            }
        }
        names("", &users.table, &mut users.kept);
        names("", &all, &mut users.replaced);
        users.replaced.retain(|name| !users.kept.contains(name));
        users
    }

    /// The guards run elsewhere, so the file of rules needs its whole path.
    pub(super) fn set_rules(&mut self, path: &Path) {
        put(&mut self.table, "health.rules", path.to_string_lossy().into_owned().into());
    }
}

fn names(prefix: &str, table: &Table, into: &mut Vec<String>) {
    for (key, value) in table {
        match value {
            Value::Table(inner) => names(&format!("{prefix}{key}."), inner, into),
            _ => into.push(format!("{prefix}{key}")),
        }
    }
}

/// The text of the file. `simulator` is the value of `VARCAS_SIM`, `marks` that of `VARCAS_SIM_MARKS`.
pub(super) fn text(
    users: &Users,
    scenario: &Scenario,
    simulator: &str,
    marks: &Path,
    port: u16,
    output: &Path,
) -> String {
    let mut table = users.table.clone();
    // The constant is good, as the tests show.
    merge(&mut table, &toml::from_str(BASE).unwrap_or_default());
    let patience = scenario.patience.as_deref().unwrap_or(PATIENCE);
    for kind in
        ["stopped", "gpu-spin", "idle", "host-busy", "compile", "driver-dead", "client", "undetermined"]
    {
        put(&mut table, &format!("patience.{kind}"), patience.into());
    }
    for (key, value) in
        [("suspect-after", "1s"), ("flush", "20s"), ("flush-still", patience), ("loading", patience)]
    {
        put(&mut table, &format!("patience.{key}"), value.into());
    }
    put(&mut table, "patience.adapt-factor", 1.0.into());
    merge(&mut table, &scenario.guard);
    for (key, value) in [
        ("output", Value::from(output.to_string_lossy().into_owned())),
        ("server.kind", "sim".into()),
        ("server.port", i64::from(port).into()),
        ("server.args", scenario.server.clone().into()),
        ("server.env.VARCAS_SIM", simulator.into()),
        ("server.env.VARCAS_SIM_MARKS", marks.to_string_lossy().into_owned().into()),
    ] {
        put(&mut table, key, value);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::drill::scenario;
    use crate::config::{Given, OnHang, Plan, plan};

    fn planned(users: &str, scenario: &Scenario) -> Plan {
        let simulator = scenario.simulator(|_, _| "/x".to_owned());
        let text = text(&Users::read(users), scenario, &simulator, Path::new("/m"), 11000, Path::new("/o"));
        let given = Given { file: Some(("guard.toml".into(), text.clone())), ..Given::default() };
        plan(Plan::default(), &given).unwrap_or_else(|error| panic!("{}: {error}\n{text}", scenario.name()))
    }

    #[test]
    fn every_shipped_scenario_makes_a_good_guard_toml() {
        for scenario in scenario::shipped() {
            let plan = planned("", &scenario);
            assert_eq!((plan.server.port, plan.load.rate > 0.0), (11000, true));
        }
    }

    #[test]
    fn the_users_policy_and_rules_hold_and_times_do_not() {
        let own = "retries = 9\n[health]\non-hang = \"observe\"\n[policy]\nsame-failure = 2\n[server]\nport = 9000\n\
                   model = \"m\"\n[server.env]\nA = \"b\"\n[load]\nduration = \"2h\"\n";
        let users = Users::read(own);
        assert_eq!(users.kept, ["health.on-hang", "policy.same-failure", "server.env.A"]);
        assert_eq!(users.replaced, ["load.duration", "retries", "server.model", "server.port"]);
        let plain = scenario::read(
            "s.toml",
            "[[scenario]]\nname = \"a\"\nabout = \"b\"\nguard.policy.mitigate = false\nexpect = { exit = 0 }\n",
        );
        let plan = planned(own, &plain.unwrap()[0]);
        let policy = plan.policy.unwrap();
        assert_eq!((plan.retries, policy.same_failure, policy.mitigate), (2, 2, false));
        assert_eq!((plan.health.on_hang, plan.load.duration.as_secs()), (OnHang::Observe, 1));
        assert_eq!(plan.server.env["A"], "b");
        assert!(plan.server.env["VARCAS_SIM"].contains("load=50ms"));
    }
}
