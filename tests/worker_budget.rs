//! The promises of the budget inside vLLM, with an invented engine: `worker_budget.py`. Any Python 3 does.

use std::process::Command;
use varcas_guard::workload::server::PYTHON_FILES;

#[test]
fn the_budget_keeps_its_promises() {
    let modules = tempfile::tempdir().unwrap();
    for (name, text) in PYTHON_FILES {
        std::fs::write(modules.path().join(name), text).unwrap();
    }
    let output = Command::new("python3")
        .args(["-B", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/worker_budget.py")])
        .env("PYTHONPATH", modules.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.lines().filter(|line| line.starts_with("ok ")).count(), 11, "{said}");
}
