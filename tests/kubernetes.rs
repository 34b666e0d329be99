//! The manifest of a Job, against the real schemas of Kubernetes, and by what they say only in words.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its stage must fail")]

use std::io::Write as _;
use std::process::{Command, Stdio};

/// The manifest for these arguments.
fn manifest(args: &[&str]) -> String {
    let fixed = ["install", "kubernetes", "--print", "--image", "registry.example/vllm:0.15.1"];
    let output =
        Command::new(env!("CARGO_BIN_EXE_varcas-guard")).args([&fixed[..], args].concat()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What the schemas think of it: the versions of Kubernetes that take it, and how they read it. `None`, with a line that
/// says so, where the schemas are not installed.
fn checked(text: &str) -> Option<serde_json::Value> {
    let python = std::env::var("VARCAS_TEST_KUBERNETES").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python).args(["-c", "import kubernetes_validate, yaml"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: {python} has no kubernetes-validate");
        return None;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kubernetes.py");
    let mut child = Command::new(&python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn every_kubernetes_that_knows_pod_failure_policies_takes_the_job() {
    for args in
        [&[][..], &["--gpus", "8", "--tries", "0", "--name", "x", "--", "--deadline", "6h", "--", "-tp", "8"]]
    {
        let Some(checked) = checked(&manifest(args)) else { return };
        let versions = checked["versions"].as_array().unwrap();
        assert!(versions.len() > 5, "{versions:?}");
        println!("valid for {versions:?}");
    }
}

#[test]
fn the_job_is_what_was_asked_for_and_keeps_the_rules_that_no_schema_has() {
    let args = [
        "--gpus",
        "2",
        "--tries",
        "3",
        "--claim",
        "night",
        "--",
        "--model",
        "$(X) \"é\": #1",
        "--",
        "-tp",
        "2",
    ];
    let Some(checked) = checked(&manifest(&args)) else { return };
    let job = &checked["manifest"]["spec"];
    assert_eq!(job["backoffLimit"], 3);
    let pod = &job["template"]["spec"];
    // A Job with a podFailurePolicy is refused without it.
    assert_eq!(pod["restartPolicy"], "Never");
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > 30);
    let container = &pod["containers"][0];
    let command: Vec<&str> =
        container["command"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
    let wanted = ["varcas-guard", "run", "/runs/$(POD_NAME)", "--model", "$$(X) \"é\": #1", "--", "-tp", "2"];
    assert_eq!(command, wanted);
    assert_eq!(container["resources"]["limits"]["nvidia.com/gpu"], 2);
    let variables: Vec<&serde_json::Value> = container["env"].as_array().unwrap().iter().collect();
    let pod_name = variables.iter().find(|variable| variable["name"] == "POD_NAME").unwrap();
    assert_eq!(pod_name["valueFrom"]["fieldRef"]["fieldPath"], "metadata.name");

    let rules = job["podFailurePolicy"]["rules"].as_array().unwrap();
    let rule = |action: &str| rules.iter().find(|rule| rule["action"] == action).unwrap();
    let codes = |action: &str| {
        let codes: Vec<u64> = rule(action)["onExitCodes"]["values"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_u64().unwrap())
            .collect();
        assert!(codes.is_sorted() && !codes.contains(&0), "{codes:?}");
        assert_eq!(rule(action)["onExitCodes"]["containerName"], container["name"]);
        // The schemas would take any word.
        assert_eq!(rule(action)["onExitCodes"]["operator"], "In");
        codes
    };
    // Exit codes of the README: wrong command line, bug, hopeless, out of time; refused, every attempt failed.
    assert_eq!((codes("FailJob"), codes("Count")), (vec![2, 70, 93, 124], vec![69, 75]));
    assert_eq!(rule("Ignore")["onPodConditions"][0]["type"], "DisruptionTarget");

    let volumes = pod["volumes"].as_array().unwrap();
    let volume = |name: &str| volumes.iter().find(|volume| volume["name"] == name).unwrap();
    assert_eq!(volume("shm")["emptyDir"]["medium"], "Memory");
    assert_eq!(volume("runs")["persistentVolumeClaim"]["claimName"], "night");
    let mounts = container["volumeMounts"].as_array().unwrap();
    let mounted = |path: &str| mounts.iter().find(|mount| mount["mountPath"] == path).unwrap();
    assert_eq!(mounts.len(), 2);
    assert_eq!((&mounted("/runs")["name"], &mounted("/dev/shm")["name"]), (&"runs".into(), &"shm".into()));
}

#[test]
fn a_mistake_in_the_arguments_of_the_run_is_told_before_the_night() {
    let output = Command::new(env!("CARGO_BIN_EXE_varcas-guard"))
        .args(["install", "kubernetes", "--print", "--image", "x", "--", "--modle", "y"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("`run` would refuse: unexpected argument '--modle'"), "{told}");
}
