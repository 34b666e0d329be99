//! `varcas-guard install slurm`: a batch script that does one run.

use super::{check_run, has_flag, one_line, write};
use crate::error::{Context, ExitCode, Failure};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the script goes
    #[arg(long, value_name = "FILE", default_value = "varcas-guard.sbatch")]
    out: PathBuf,
    /// Print the script; write nothing
    #[arg(long)]
    print: bool,
    /// The job's time limit, as sbatch(1) takes it; two minutes before it the run is stopped in good order
    #[arg(long, value_name = "TIME", default_value = "08:00:00")]
    time: String,
    /// GPUs (--gres=gpu:N)
    #[arg(long, value_name = "N", default_value_t = 1)]
    gpus: u32,
    /// How often the job is put back into the queue when every attempt failed (exit code 75)
    #[arg(long, value_name = "N", default_value_t = 1)]
    requeues: u32,
    /// A further option of sbatch, such as --partition=a100; may be given more than once
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    sbatch: Vec<String>,
    /// What `varcas-guard run` gets but for the run folder; it runs in the folder in which this command is given
    #[arg(last = true, value_name = "RUN_ARGS")]
    run: Vec<String>,
}

/// A run folder for each start of a job; an array's tasks have job numbers of their own.
const RUN_FOLDER: &str = "output/slurm-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}";

/// Runs it.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    check_run(Some(RUN_FOLDER), &args.run)?;
    let exe = std::env::current_exe().context("find this program's own file")?;
    let cwd = std::env::current_dir().context("find the current folder")?;
    let text = script(&exe, &cwd, args)?;
    if args.print {
        print!("{text}");
        return Ok(());
    }
    write(&args.out, &text)?;
    println!("\nnow: sbatch {}", args.out.display());
    Ok(())
}

fn script(exe: &Path, cwd: &Path, args: &Args) -> Result<String, Failure> {
    one_line("--time", &args.time)?;
    let mut options = String::new();
    if args.gpus > 0 {
        let _ = writeln!(options, "#SBATCH --gres=gpu:{}", args.gpus);
    }
    for option in &args.sbatch {
        one_line("--sbatch", option)?;
        let _ = writeln!(options, "#SBATCH {option}");
    }
    let port = if has_flag(&args.run, "--port") { "" } else { " --port auto" };
    let mut command = format!("{} run \"$out\"{port}", quoted(&exe.to_string_lossy())?);
    for word in &args.run {
        let _ = write!(command, " {}", quoted(word)?);
    }
    let folder = quoted(&cwd.to_string_lossy())?;
    Ok(format!(
        r#"#!/bin/bash
# One run of varcas-guard, written by `varcas-guard install slurm`. Options given to sbatch win over these.
#SBATCH --job-name=varcas-guard
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time={time}
# Two minutes before the limit (Slurm may be a minute early) this shell alone (B:) gets SIGTERM, and passes it on. Without
# B: only steps of srun would get it, of which there are none. At the limit everything gets SIGTERM, and after KillWait
# (30 s; scontrol show config) SIGKILL: too short for an orderly end, which is why it begins before.
#SBATCH --signal=B:TERM@120
# A preempted job, or one whose node died, is started again by Slurm itself.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=varcas-guard-%j.log
{options}
set -u
cd {folder} || exit 69
# A folder for each start: the run before is not overwritten.
out={RUN_FOLDER}
# Where the site gives a job room of its own on the node.
[ -z "${{SLURM_TMPDIR:-}}" ] || export TMPDIR=$SLURM_TMPDIR

# Not exec, because the exit code is looked at below; in the background, because bash runs no trap before a program in the
# foreground has ended.
guard= early= heard=
trap 'heard=1; if [ -n "$guard" ]; then kill -TERM "$guard" 2>/dev/null; else early=1; fi' TERM
{command} &
guard=$!
[ -z "$early" ] || kill -TERM "$guard" 2>/dev/null
code=127
while :; do
    heard=
    wait "$guard"
    now=$?
    # 127 the second time: its end was told before.
    [ "$now" -eq 127 ] || code=$now
    # A signal ends `wait` as well; then the guard is still at work.
    [ -n "$heard" ] || break
done
guard=

echo "varcas-guard ended with $code, run folder $PWD/$out"
restarts=${{SLURM_RESTART_COUNT:-0}}
# 75: every attempt failed, later or elsewhere one may not. All others are final; 93 above all: nothing but a change helps.
if [ "$code" -eq 75 ] && [ "$restarts" -lt {requeues} ]; then
    echo "back into the queue, start $((restarts + 2)) of {starts}"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"#,
        time = args.time,
        requeues = args.requeues,
        starts = u64::from(args.requeues) + 1,
    ))
}

/// As one word of a shell.
fn quoted(word: &str) -> Result<String, Failure> {
    if word.chars().any(char::is_control) {
        return Err(Failure::new(ExitCode::Usage, format!("{word:?} cannot stand in a batch script")));
    }
    Ok(format!("'{}'", word.replace('\'', r"'\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(run: &[&str]) -> Args {
        Args {
            out: PathBuf::new(),
            print: true,
            time: "01:00:00".to_owned(),
            gpus: 0,
            requeues: 1,
            sbatch: vec!["--partition=a100".to_owned()],
            run: run.iter().map(|word| (*word).to_owned()).collect(),
        }
    }

    #[test]
    fn words_reach_the_program_as_they_were_given() {
        let given = args(&["--model", "a b", "$HOME", "it's", "`x`"]);
        let text = script(Path::new("/my tools/vg"), Path::new("/data/it's"), &given).unwrap();
        let line = r#"'/my tools/vg' run "$out" --port auto '--model' 'a b' '$HOME' 'it'\''s' '`x`' &"#;
        assert!(text.contains(line), "{text}");
        assert!(text.contains("\ncd '/data/it'\\''s' || exit 69\n"), "{text}");
        assert!(text.contains("\n#SBATCH --partition=a100\n") && !text.contains("--gres"), "{text}");
        assert!(script(Path::new("/x"), Path::new("/"), &args(&["a\nb"])).is_err());
    }

    #[test]
    fn a_port_that_was_chosen_is_kept() {
        let text = script(Path::new("/x"), Path::new("/"), &args(&["--port", "9000"])).unwrap();
        assert!(!text.contains("--port auto"), "{text}");
    }
}
