//! `varcas-guard install kubernetes`: the manifest of a Job that does one run.

use super::{check_run, one_line, write};
use crate::error::{Context, ExitCode, Failure};
use std::fmt::Write as _;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image, with vLLM and varcas-guard in it
    #[arg(long)]
    image: String,
    /// varcas-guard in the image
    #[arg(long, value_name = "PATH", default_value = "varcas-guard")]
    program: String,
    /// The Job's name
    #[arg(long, default_value = "varcas-guard")]
    name: String,
    /// The PersistentVolumeClaim that the run folders go to
    #[arg(long, value_name = "NAME", default_value = "varcas-runs")]
    claim: String,
    /// GPUs (nvidia.com/gpu)
    #[arg(long, value_name = "N", default_value_t = 1)]
    gpus: u32,
    /// How often another pod is started when every attempt failed (exit code 75), or the preflight refused (69)
    #[arg(long, value_name = "N", default_value_t = 1)]
    tries: u32,
    /// Where the manifest goes
    #[arg(long, value_name = "FILE", default_value = "varcas-guard-job.yaml")]
    out: PathBuf,
    /// Print the manifest; write nothing
    #[arg(long)]
    print: bool,
    /// What `varcas-guard run` gets but for the run folder
    #[arg(last = true, value_name = "RUN_ARGS")]
    run: Vec<String>,
}

/// Kubernetes puts the pod's name in (each pod of a Job has another).
const RUN_FOLDER: &str = "/runs/$(POD_NAME)";

/// Exit codes after which another pod would fail in the same way, or would need as much time again.
const FINAL: [ExitCode; 4] = [ExitCode::Usage, ExitCode::Bug, ExitCode::Hopeless, ExitCode::DeadlinePassed];

/// Exit codes after which another pod may do better.
const RETRIABLE: [ExitCode; 2] = [ExitCode::Refused, ExitCode::AttemptsFailed];

/// Runs it.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    check_run(Some(RUN_FOLDER), &args.run)?;
    let text = manifest(args)?;
    if args.print {
        print!("{text}");
        return Ok(());
    }
    write(&args.out, &text)?;
    println!("\nnow: kubectl create -f {}", args.out.display());
    Ok(())
}

fn manifest(args: &Args) -> Result<String, Failure> {
    named("--name", &args.name)?;
    named("--claim", &args.claim)?;
    one_line("--image", &args.image)?;
    let mut words = String::new();
    for word in [args.program.as_str(), "run"].into_iter().map(escaped).chain([RUN_FOLDER.to_owned()]) {
        let _ = write!(words, "\n            - {}", quoted(&word)?);
    }
    for word in &args.run {
        let _ = write!(words, "\n            - {}", quoted(&escaped(word))?);
    }
    Ok(format!(
        r#"# One run of varcas-guard, written by `varcas-guard install kubernetes`.
apiVersion: batch/v1
kind: Job
metadata:
  name: {name}
spec:
  completions: 1
  parallelism: 1
  # Pods after the first; the guard itself has tried more than once in each (--retries).
  backoffLimit: {tries}
  podFailurePolicy:
    rules:
      # Wrong command line, a bug, hopeless (93), out of time: another pod would end the same way.
      - action: FailJob
        onExitCodes:
          containerName: varcas-guard
          operator: In
          values: [{fail}]
      # Evicted, preempted, or the node was drained: not the run's fault, so it does not count.
      - action: Ignore
        onPodConditions:
          - type: DisruptionTarget
            status: "True"
      # Refused by this node, or every attempt failed: later or elsewhere one may not.
      - action: Count
        onExitCodes:
          containerName: varcas-guard
          operator: In
          values: [{count}]
  template:
    spec:
      # The pod's end is the run's end; podFailurePolicy needs it, too.
      restartPolicy: Never
      # SIGTERM to SIGKILL: load, windows, server, salvage and report come before. The kubelet's 30 s would cut them off.
      terminationGracePeriodSeconds: 300
      containers:
        - name: varcas-guard
          image: {image}
          # varcas-guard may be the first process of the container: it reaps and passes signals on itself.
          command:{words}
          env:
            - name: POD_NAME
              valueFrom:
                fieldRef:
                  fieldPath: metadata.name
            # compute for CUDA, utility for NVML, by which the guard watches the GPU.
            - name: NVIDIA_DRIVER_CAPABILITIES
              value: compute,utility
          resources:
            limits:
              nvidia.com/gpu: {gpus}
          # The end of the log is then in `kubectl describe pod`.
          terminationMessagePolicy: FallbackToLogsOnError
          volumeMounts:
            - name: runs
              mountPath: /runs
            - name: shm
              mountPath: /dev/shm
      volumes:
        - name: runs
          persistentVolumeClaim:
            claimName: {claim}
        # Workers talk through /dev/shm, of which a container has 64 MB by default. It counts as memory of the container.
        - name: shm
          emptyDir:
            medium: Memory
            sizeLimit: 8Gi
"#,
        name = args.name,
        tries = args.tries,
        fail = codes(&FINAL),
        image = quoted(&args.image)?,
        count = codes(&RETRIABLE),
        gpus = args.gpus,
        claim = args.claim,
    ))
}

fn codes(codes: &[ExitCode]) -> String {
    codes.iter().map(|code| code.code().to_string()).collect::<Vec<_>>().join(", ")
}

/// A name as Kubernetes takes it (RFC 1123, label).
fn named(what: &str, name: &str) -> Result<(), Failure> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let sound = name.len() <= 63
        && name.chars().all(|c| plain(c) || c == '-')
        && name.starts_with(plain)
        && name.ends_with(plain);
    if sound {
        return Ok(());
    }
    let problem = format!("{what} must be small letters, digits and inner hyphens, 63 at most, not {name:?}");
    Err(Failure::new(ExitCode::Usage, problem))
}

/// Kubernetes replaces `$(NAME)` in a container's command; `$$(` stands for `$(`.
fn escaped(word: &str) -> String {
    word.replace("$(", "$$(")
}

/// As a scalar of YAML, of which JSON's strings are a part.
fn quoted(word: &str) -> Result<String, Failure> {
    serde_json::to_string(word).context(format_args!("write {word:?} into a manifest"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(run: &[&str]) -> Args {
        Args {
            image: "registry/vllm:1".to_owned(),
            program: "varcas-guard".to_owned(),
            name: "night".to_owned(),
            claim: "runs".to_owned(),
            gpus: 2,
            tries: 1,
            out: PathBuf::new(),
            print: true,
            run: run.iter().map(|word| (*word).to_owned()).collect(),
        }
    }

    #[test]
    fn words_reach_the_program_as_they_were_given() {
        let text = manifest(&args(&["--model", "$(HOME)", r#"a "b" \n"#, "50%: #x"])).unwrap();
        for line in [r#"- "/runs/$(POD_NAME)""#, r#"- "$$(HOME)""#, r#"- "a \"b\" \\n""#, r##"- "50%: #x""##]
        {
            assert!(text.contains(line), "no {line} in {text}");
        }
    }

    #[test]
    fn a_name_that_kubernetes_would_refuse_is_refused() {
        for name in ["Night", "", "-x", "x-", "a_b", "a: b"] {
            assert!(named("--name", name).is_err(), "{name}");
        }
        assert!(named("--name", "run-7").is_ok());
    }

    #[test]
    fn no_exit_code_is_both_final_and_worth_another_pod() {
        assert!(FINAL.iter().all(|code| !RETRIABLE.contains(code)));
        assert!(FINAL.contains(&ExitCode::Hopeless) && RETRIABLE.contains(&ExitCode::AttemptsFailed));
    }
}
