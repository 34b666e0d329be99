//! A run of the built program on a real vLLM with a toy model, and faults inside its worker.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

use crate::e2e_support::{Place, Running};
use std::path::PathBuf;
use std::process::Command;
use varcas_guard::event::{EventKind, LoadProgress, ProcId};

/// The toy model of `real_vllm.rs`.
const MAKE_MODEL: &str = include_str!("make_model.py");

/// A place with a toy model and the folder with the faults.
pub(crate) struct Bench {
    pub(crate) place: Place,
    python: PathBuf,
}

impl Bench {
    pub(crate) fn new() -> Option<Self> {
        let Some(python) = std::env::var_os("VARCAS_TEST_PYTHON").filter(|value| !value.is_empty()) else {
            eprintln!(
                "SKIPPED: VARCAS_TEST_PYTHON names no interpreter with vLLM; no real fault was provoked"
            );
            return None;
        };
        let (place, python) = (Place::new(), PathBuf::from(python));
        let made = Command::new(&python).args(["-c", MAKE_MODEL]).arg(place.path("model")).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        std::fs::create_dir(place.path("faults")).unwrap();
        let text = include_str!("sitecustomize.py");
        std::fs::write(place.path("faults/sitecustomize.py"), text).unwrap();
        Some(Self { place, python })
    }

    /// A run into the folder `name` with load for minutes, if nobody ends it.
    pub(crate) fn start(&self, name: &str, duration: &str, workers: u32, more: &str) -> Running<'_> {
        let config = self.place.path("guard.toml");
        let text = format!(
            "retries = 0\n[server.env]\nVLLM_CPU_KVCACHE_SPACE = \"1\"\nVLLM_CPU_OMP_THREADS_BIND = \"nobind\"\n\
             OMP_NUM_THREADS = \"1\"\nHF_HUB_OFFLINE = \"1\"\nPYTHONPATH = {:?}\nVARCAS_TEST_FAULT = {:?}\n\
             TORCHINDUCTOR_CACHE_DIR = {:?}\n[load]\nrate = 3.0\n{more}",
            self.place.path("faults"),
            self.place.path("fault"),
            // One for all tests, or each would compile for half a minute.
            concat!(env!("CARGO_TARGET_TMPDIR"), "/inductor"),
        );
        std::fs::write(&config, text).unwrap();
        let (config, python, model) =
            (text_of(config), text_of(self.python.clone()), text_of(self.place.path("model")));
        let (port, workers) = (self.place.port.to_string(), workers.to_string());
        self.place.start(
            name,
            &[
                "run",
                "--duration",
                duration,
                "--port",
                &port,
                "--config",
                &config,
                "--python",
                &python,
                "--model",
                &model,
                name,
                "--",
                "--load-format",
                "dummy",
                "--dtype",
                "bfloat16",
                "--max-model-len",
                "1024",
                "-tp",
                &workers,
            ],
        )
    }
}

fn text_of(path: PathBuf) -> String {
    path.into_os_string().into_string().unwrap()
}

pub(crate) fn under_load(running: &mut Running<'_>) {
    running.until("answers", |kind| match kind {
        EventKind::LoadProgressed(LoadProgress { completed, .. }) if *completed > 2 => Some(()),
        _ => None,
    });
}

pub(crate) fn process(running: &mut Running<'_>, title: &str) -> ProcId {
    running.until(title, |kind| match kind {
        EventKind::ProcessSeen { proc, comm, .. } if comm.starts_with(title) => Some(*proc),
        _ => None,
    })
}
