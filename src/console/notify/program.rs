//! A program that takes a message on its standard input: sendmail, or any command.

use super::send::Trouble;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::process::Stdio;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// So much of what it says is shown.
const SHOWN: usize = 200;

/// Ends the program and whatever it has started, however the wait for it ends.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // The leader is not waited for yet, so the number cannot belong to anybody else.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Runs it to its end; given up, it is killed.
pub(super) async fn run(
    argv: &[String],
    input: &str,
    variables: &[(String, String)],
) -> Result<String, Trouble> {
    let never = |what: String| Trouble { what, again: false, asked: None };
    let Some((program, arguments)) = argv.split_first() else {
        return Err(never("there is no program to run".to_owned()));
    };
    let mut child = Command::new(program)
        .args(arguments)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Trouble::again(format!("cannot start {program}: {error}")))?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that needs no input may close it.
            drop(stdin.write_all(input.as_bytes()).await);
        }
    };
    let listen = async {
        let mut said = Vec::new();
        if let Some(mut stderr) = stderr {
            drop((&mut stderr).take(64 << 10).read_to_end(&mut said).await);
        }
        String::from_utf8_lossy(&said)
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(SHOWN)
            .collect::<String>()
    };
    // What it left running may hold its standard error open for ever, so its own end is what counts.
    let ends = async {
        let status = child.wait().await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        status
    };
    tokio::pin!(feed, listen, ends);
    let (mut fed, mut said) = (false, None);
    let status = loop {
        tokio::select! {
            () = &mut feed, if !fed => fed = true,
            words = &mut listen, if said.is_none() => said = Some(words),
            status = &mut ends => break status,
        }
    };
    group.0 = None;
    let said = said
        .filter(|words| !words.trim().is_empty())
        .map(|words| format!(": {}", words.trim()))
        .unwrap_or_default();
    match status {
        Ok(status) if status.success() => Ok(format!("{program} ended well")),
        Ok(status) => Err(Trouble::again(format!("{program} ended with {status}{said}"))),
        Err(error) => Err(Trouble::again(format!("cannot wait for {program}: {error}"))),
    }
}
