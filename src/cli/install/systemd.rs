//! `varcas-guard install systemd`: a user unit that does one run, and a timer that starts it every night.

use super::{check_run, one_line, write};
use crate::error::{Context, ExitCode, Failure};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the units go [default: ~/.config/systemd/user]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// When the timer starts the run, as in systemd.time(7)
    #[arg(long, value_name = "TIME", default_value = "*-*-* 23:00:00")]
    at: String,
    /// Print the units; write nothing
    #[arg(long)]
    print: bool,
    /// What `varcas-guard run` gets; it runs in the folder in which this command is given
    #[arg(last = true, value_name = "RUN_ARGS")]
    run: Vec<String>,
}

/// Runs it.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    check_run(None, &args.run)?;
    let exe = std::env::current_exe().context("find this program's own file")?;
    let cwd = std::env::current_dir().context("find the current folder")?;
    let units =
        [("varcas-guard.service", service(&exe, &cwd, &args.run)?), ("varcas-guard.timer", timer(&args.at)?)];
    if args.print {
        for (name, text) in units {
            println!("# {name}\n{text}");
        }
        return Ok(());
    }
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => std::env::home_dir()
            .map(|home| home.join(".config/systemd/user"))
            .ok_or_else(|| Failure::new(ExitCode::Usage, "there is no home folder").hint("pass --dir"))?,
    };
    std::fs::create_dir_all(&dir).context(format_args!("make {}", dir.display()))?;
    for (name, text) in units {
        write(&dir.join(name), &text)?;
    }
    println!("\nnow: systemctl --user daemon-reload && systemctl --user enable --now varcas-guard.timer");
    println!("and, so that it runs while nobody is logged in: loginctl enable-linger");
    Ok(())
}

/// `KillMode=mixed`: a stop asks the guard, which stops in good order; only what is left after that is killed.
/// The exit codes are those of the README; none is started again by systemd, because `run` retries itself.
fn service(exe: &Path, cwd: &Path, run: &[String]) -> Result<String, Failure> {
    let mut line = quoted(&exe.to_string_lossy())?;
    for word in ["run"].into_iter().chain(run.iter().map(String::as_str)) {
        let _ = write!(line, " {}", quoted(word)?);
    }
    let folder = cwd.to_string_lossy().replace('%', "%%");
    Ok(format!(
        "[Unit]\nDescription=A profiled vLLM benchmark, guarded by varcas-guard\n\n[Service]\nType=notify\n\
         NotifyAccess=main\nExecStart={line}\nWorkingDirectory={folder}\nWatchdogSec=120\nKillMode=mixed\n\
         TimeoutStartSec=300\nTimeoutStopSec=600\nOOMPolicy=continue\nUMask=0077\nRestart=no\n"
    ))
}

fn timer(at: &str) -> Result<String, Failure> {
    one_line("--at", at)?;
    Ok(format!(
        "[Unit]\nDescription=Starts varcas-guard\n\n[Timer]\nOnCalendar={at}\nAccuracySec=1s\nPersistent=false\n\n\
         [Install]\nWantedBy=timers.target\n"
    ))
}

/// As one word of a command line in a unit file (systemd.service(5)).
fn quoted(word: &str) -> Result<String, Failure> {
    if word.chars().any(char::is_control) {
        return Err(Failure::new(ExitCode::Usage, format!("{word:?} cannot stand in a unit file")));
    }
    let escaped = word.replace('\\', r"\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    Ok(format!("\"{escaped}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_program_as_they_were_given() {
        let args = ["--model", "a b", "50%", "$HOME", r#"say "x" \n"#].map(str::to_owned);
        let unit = service(Path::new("/opt/my tools/vg"), Path::new("/data/100%"), &args).unwrap();
        let line = r#"ExecStart="/opt/my tools/vg" "run" "--model" "a b" "50%%" "$$HOME" "say \"x\" \\n""#;
        assert!(unit.contains(line), "{unit}");
        assert!(unit.contains("WorkingDirectory=/data/100%%\n"), "{unit}");
        assert!(service(Path::new("/x"), Path::new("/"), &["a\nExecStop=/bin/evil".to_owned()]).is_err());
    }
}
