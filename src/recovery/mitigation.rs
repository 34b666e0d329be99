//! Settings changed for the next attempt, as data: what a [`Mitigation`] says is all there is to it, so that it can be
//! printed, recorded, applied to a plan and taken back. Pure.

pub mod catalogue;

use crate::config::{Plan, ServerKind, settings};
use crate::event::Mitigation;

/// Where a setting lives; its name says it.
enum Place<'a> {
    /// `--flag` of the server.
    Flag(&'a str),
    /// `VARIABLE` of the server.
    Variable(&'a str),
    /// `key` of guard.toml.
    Key(&'a settings::Setting),
}

fn place(setting: &str) -> Option<Place<'_>> {
    if let Some(name) = setting.strip_prefix("--") {
        return Some(Place::Flag(name));
    }
    let variable = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    if !setting.is_empty() && setting.chars().all(variable) {
        return Some(Place::Variable(setting));
    }
    settings::by_key(setting).map(Place::Key)
}

/// Makes the change. False if this plan has no such setting; then nothing is changed.
pub fn apply(plan: &mut Plan, change: &Mitigation) -> bool {
    set(plan, &change.setting, change.to.as_deref())
}

/// Takes the change back.
pub fn revert(plan: &mut Plan, change: &Mitigation) -> bool {
    set(plan, &change.setting, change.from.as_deref())
}

fn set(plan: &mut Plan, setting: &str, value: Option<&str>) -> bool {
    match place(setting) {
        // Its command line is somebody else's; what a flag would mean there is unknown.
        Some(Place::Flag(_)) if plan.server.kind == ServerKind::Command => false,
        Some(Place::Flag(name)) => {
            set_flag(&mut plan.server.extra, name, value);
            true
        }
        Some(Place::Variable(name)) => {
            match value {
                Some(value) => drop(plan.server.env.insert(name.to_owned(), value.to_owned())),
                None => drop(plan.server.env.remove(name)),
            }
            true
        }
        Some(Place::Key(key)) => value.is_some_and(|value| settings::set_text(plan, key, value).is_ok()),
        None => false,
    }
}

/// Every change that is in force after these: each setting once, with the value it had at first.
pub fn merge(in_force: &[Mitigation], new: &[Mitigation]) -> Vec<Mitigation> {
    let mut all = in_force.to_vec();
    for change in new {
        match all.iter_mut().find(|old| old.setting == change.setting) {
            Some(old) => {
                old.to.clone_from(&change.to);
                old.id.clone_from(&change.id);
                old.why.clone_from(&change.why);
            }
            None => all.push(change.clone()),
        }
    }
    all
}

/// `--some_flag=x` and `--some-flag` are both `some-flag`.
fn name_of(word: &str) -> Option<String> {
    let name = word.strip_prefix("--")?;
    let name = name.split('=').next().unwrap_or(name);
    (!name.is_empty()).then(|| name.replace('_', "-"))
}

/// The last value of a flag in the server's arguments: outer none when it is not there, empty for a switch.
pub fn flag(extra: &[String], name: &str) -> Option<String> {
    let at = extra.iter().rposition(|word| name_of(word).as_deref() == Some(name))?;
    if let Some((_, value)) = extra[at].split_once('=') {
        return Some(value.to_owned());
    }
    Some(extra.get(at + 1).filter(|next| !is_option(next)).cloned().unwrap_or_default())
}

fn is_option(word: &str) -> bool {
    word.strip_prefix('-').is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit() || c == '.'))
}

fn set_flag(extra: &mut Vec<String>, name: &str, value: Option<&str>) {
    while let Some(at) = extra.iter().position(|word| name_of(word).as_deref() == Some(name)) {
        let word = extra.remove(at);
        if !word.contains('=') && extra.get(at).is_some_and(|next| !is_option(next)) {
            extra.remove(at);
        }
    }
    if let Some(value) = value {
        extra.push(format!("--{name}"));
        if !value.is_empty() {
            extra.push(value.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(setting: &str, from: Option<&str>, to: Option<&str>) -> Mitigation {
        Mitigation {
            id: "x".to_owned(),
            setting: setting.to_owned(),
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
            why: "it helps".to_owned(),
        }
    }

    fn plan(extra: &[&str]) -> Plan {
        let mut plan = Plan::default();
        plan.server.extra = extra.iter().map(|word| (*word).to_owned()).collect();
        plan
    }

    #[test]
    fn a_flag_is_replaced_in_every_spelling_and_comes_back() {
        for words in [&["--max-model-len", "4096", "-tp", "2"][..], &["--max_model_len=4096", "-tp", "2"]] {
            let mut plan = plan(words);
            assert_eq!(flag(&plan.server.extra, "max-model-len").as_deref(), Some("4096"));
            let change = change("--max-model-len", Some("4096"), Some("1024"));
            assert!(apply(&mut plan, &change));
            assert_eq!(plan.server.extra, ["-tp", "2", "--max-model-len", "1024"]);
            assert!(revert(&mut plan, &change));
            assert_eq!(plan.server.extra, ["-tp", "2", "--max-model-len", "4096"]);
        }
    }

    #[test]
    fn a_switch_takes_no_value_from_its_neighbour() {
        let mut plan = plan(&["--no-enforce-eager", "--dtype", "half"]);
        assert!(apply(&mut plan, &change("--no-enforce-eager", Some(""), None)));
        assert!(apply(&mut plan, &change("--enforce-eager", None, Some(""))));
        assert_eq!(plan.server.extra, ["--dtype", "half", "--enforce-eager"]);
        assert_eq!(flag(&plan.server.extra, "enforce-eager").as_deref(), Some(""));
    }

    #[test]
    fn variables_and_keys_are_set_and_taken_back() {
        let mut plan = Plan::default();
        let before = plan.clone();
        let changes = [
            change("NCCL_DEBUG", None, Some("INFO")),
            change("budgets.startup", Some("30m"), Some("60m")),
            change("profile.window-steps", Some("20"), Some("10")),
        ];
        for one in &changes {
            assert!(apply(&mut plan, one), "{one}");
        }
        assert_eq!(plan.server.env["NCCL_DEBUG"], "INFO");
        assert_eq!(plan.budgets.startup.as_secs(), 3600);
        for one in &changes {
            assert!(revert(&mut plan, one), "{one}");
        }
        assert_eq!(plan, before);
    }

    #[test]
    fn a_foreign_command_line_and_an_unknown_setting_stay_as_they_are() {
        let mut plan = plan(&["my-server"]);
        plan.server.kind = ServerKind::Command;
        let before = plan.clone();
        assert!(!apply(&mut plan, &change("--enforce-eager", None, Some(""))));
        assert!(!apply(&mut plan, &change("no.such.key", None, Some("1"))));
        assert_eq!(plan, before);
    }

    #[test]
    fn what_is_in_force_names_each_setting_once_with_its_first_value() {
        let first = change("--gpu-memory-utilization", Some("0.9"), Some("0.8"));
        let second = change("--gpu-memory-utilization", Some("0.8"), Some("0.7"));
        let merged = merge(std::slice::from_ref(&first), &[second]);
        assert_eq!(merged.len(), 1);
        assert_eq!((merged[0].from.as_deref(), merged[0].to.as_deref()), (Some("0.9"), Some("0.7")));
    }
}
